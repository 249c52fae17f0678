//! A device as QEMU takes it: an option's value for `-device`, an object for `device_add`. One list of properties for
//! both, so that a device that is plugged in later is the one that would have been there from the start.

use serde_json::{Map, Value};

/// A device with its properties, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    driver: String,
    properties: Vec<(String, Property)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Property {
    Text(String),
    Number(u64),
    Switch(bool),
}

impl Device {
    pub(super) fn new(driver: impl Into<String>) -> Self {
        Self { driver: driver.into(), properties: Vec::new() }
    }
    pub(super) fn text(mut self, key: &str, value: impl Into<String>) -> Self {
        self.properties.push((key.into(), Property::Text(value.into())));
        self
    }
    pub(super) fn number(mut self, key: &str, value: impl Into<u64>) -> Self {
        self.properties.push((key.into(), Property::Number(value.into())));
        self
    }
    pub(super) fn number_if(self, key: &str, value: Option<impl Into<u64>>) -> Self {
        match value {
            Some(value) => self.number(key, value),
            None => self,
        }
    }
    pub(super) fn switch(mut self, key: &str, value: bool) -> Self {
        self.properties.push((key.into(), Property::Switch(value)));
        self
    }
    /// Properties that belong together, as a place on a bus.
    pub(super) fn all(mut self, more: &[(String, String)]) -> Self {
        self.properties.extend(more.iter().map(|(k, v)| (k.clone(), Property::Text(v.clone()))));
        self
    }

    /// As the value of `-device`.
    pub fn to_arg(&self) -> String {
        let mut out = self.driver.clone();
        for (key, value) in &self.properties {
            let value = match value {
                Property::Text(text) => super::escaped(text),
                Property::Number(n) => n.to_string(),
                Property::Switch(on) => super::on_off(*on).to_string(),
            };
            out.push_str(&format!(",{key}={value}"));
        }
        out
    }

    /// As the arguments of `device_add`.
    pub fn to_json(&self) -> Value {
        let mut out = Map::from_iter([("driver".to_owned(), Value::from(self.driver.clone()))]);
        for (key, value) in &self.properties {
            let value = match value {
                Property::Text(text) => Value::from(text.clone()),
                Property::Number(n) => Value::from(*n),
                // Some of QEMU's switches are enumerations of these words, and all of them take the words.
                Property::Switch(on) => Value::from(super::on_off(*on)),
            };
            out.insert(key.clone(), value);
        }
        Value::Object(out)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_forms_say_the_same() {
        let device = Device::new("scsi-hd")
            .text("serial", "a,b")
            .number("lun", 3_u32)
            .number_if("bootindex", None::<u32>)
            .switch("share-rw", true)
            .all(&[("bus".into(), "scsi0.0".into())]);
        assert_eq!(device.to_arg(), "scsi-hd,serial=a,,b,lun=3,share-rw=on,bus=scsi0.0");
        let json =
            json!({"driver": "scsi-hd", "serial": "a,b", "lun": 3, "share-rw": "on", "bus": "scsi0.0"});
        assert_eq!(device.to_json(), json);
    }
}
