//! The JSON files of a replica directory, byte for byte as Longhorn writes them: `volume.meta`, `*.img.meta`,
//! `*.img.checksum`.
//!
//! Reading is liberal (any order, missing and unknown keys), writing is exact: Longhorn's keys in its order, its
//! escapes, one newline. Keys that we do not know are kept behind them. Pure; files are read and written elsewhere.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Map, Value};

/// Bytes of the largest metadata file that is read.
pub const META_BYTES_MAX: usize = 1 << 20;

/// Why bytes are not metadata.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MetaError {
    /// Nothing is in it: the trace of a power cut.
    #[error("the file is empty")]
    Empty,
    /// Longer than any can be.
    #[error("the file has more than {META_BYTES_MAX} bytes")]
    TooLong,
    /// Not JSON.
    #[error("the file is not a JSON object: {0}")]
    Json(String),
    /// A key has a value that it cannot have.
    #[error("key {key}: {rule}")]
    Key {
        /// Which.
        key: &'static str,
        /// What it must be.
        rule: &'static str,
    },
}

/// `volume.meta`.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct VolumeMeta {
    /// Bytes of the volume.
    pub size: u64,
    /// File name of the writable layer.
    pub head: String,
    /// Written to since it was opened last, and not closed.
    pub dirty: bool,
    /// A rebuild has not ended: nothing may be read from it.
    pub rebuilding: bool,
    /// An error that stays.
    pub error: String,
    /// File name of the layer under the head; the head's own metadata counts more.
    pub parent: String,
    /// Bytes of a sector, as reported.
    pub sector_size: u64,
    /// Path of the file under the chain, or empty.
    pub backing_file_path: String,
    /// Whether the content is encrypted; missing in older directories.
    pub encrypted: bool,
    /// Keys that we do not know.
    pub other: BTreeMap<String, Value>,
}

/// `*.img.meta`. The name within is not trusted: the file's own name counts.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ImageMeta {
    /// What the file says its name is.
    pub name: String,
    /// File name of the layer below; empty for the lowest.
    pub parent: String,
    /// Deleted, and waiting to be merged away.
    pub removed: bool,
    /// A person asked for it.
    pub user_created: bool,
    /// When, RFC 3339.
    pub created: String,
    /// What the person wrote to it.
    pub labels: Option<BTreeMap<String, String>>,
    /// Keys that we do not know.
    pub other: BTreeMap<String, Value>,
}

/// `*.img.checksum`.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ChecksumRecord {
    /// The method; Longhorn knows `crc64`.
    pub method: String,
    /// Sixteen hexadecimal digits.
    pub checksum: String,
    /// The image's ctime when it was made, in Go's notation.
    pub change_time: String,
    /// When it was made.
    pub last_hashed_at: String,
    /// The content changed without the ctime.
    pub silently_corrupted: bool,
    /// Keys that we do not know.
    pub other: BTreeMap<String, Value>,
}

fn object(bytes: &[u8]) -> Result<Map<String, Value>, MetaError> {
    if bytes.len() > META_BYTES_MAX {
        return Err(MetaError::TooLong);
    }
    if bytes.iter().all(|b| *b == 0 || b.is_ascii_whitespace()) {
        return Err(MetaError::Empty);
    }
    serde_json::from_slice(bytes).map_err(|error| MetaError::Json(error.to_string()))
}

fn text(map: &mut Map<String, Value>, key: &'static str) -> Result<String, MetaError> {
    match map.remove(key) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(MetaError::Key { key, rule: "must be a string" }),
    }
}

fn flag(map: &mut Map<String, Value>, key: &'static str) -> Result<bool, MetaError> {
    match map.remove(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(flag),
        Some(_) => Err(MetaError::Key { key, rule: "must be true or false" }),
    }
}

fn number(map: &mut Map<String, Value>, key: &'static str) -> Result<u64, MetaError> {
    match map.remove(key) {
        None | Some(Value::Null) => Ok(0),
        Some(value) => value.as_u64().ok_or(MetaError::Key { key, rule: "must be a number from 0" }),
    }
}

/// A layer's file name, or nothing.
fn layer(map: &mut Map<String, Value>, key: &'static str) -> Result<String, MetaError> {
    let name = text(map, key)?;
    if name.is_empty() || crate::names::is_image(&name) {
        return Ok(name);
    }
    Err(MetaError::Key {
        key,
        rule: "must be the file name of a layer (volume-snap-*.img or volume-head-*.img)",
    })
}

impl VolumeMeta {
    /// Reads `volume.meta`.
    pub fn decode(bytes: &[u8]) -> Result<Self, MetaError> {
        let mut map = object(bytes)?;
        let this = Self {
            size: number(&mut map, "Size")?,
            head: layer(&mut map, "Head")?,
            dirty: flag(&mut map, "Dirty")?,
            rebuilding: flag(&mut map, "Rebuilding")?,
            error: text(&mut map, "Error")?,
            parent: layer(&mut map, "Parent")?,
            sector_size: number(&mut map, "SectorSize")?,
            backing_file_path: text(&mut map, "BackingFilePath")?,
            encrypted: flag(&mut map, "Encrypted")?,
            other: map.into_iter().collect(),
        };
        if crate::names::head_number(&this.head).is_none() {
            return Err(MetaError::Key {
                key: "Head",
                rule: "must be the file name of a head (volume-head-NNN.img)",
            });
        }
        if this.size == 0 || !this.size.is_multiple_of(512) {
            return Err(MetaError::Key { key: "Size", rule: "must be a multiple of 512 above 0" });
        }
        Ok(this)
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.raw("Size", self.size);
        w.text("Head", &self.head);
        w.raw("Dirty", self.dirty);
        w.raw("Rebuilding", self.rebuilding);
        w.text("Error", &self.error);
        w.text("Parent", &self.parent);
        w.raw("SectorSize", self.sector_size);
        w.text("BackingFilePath", &self.backing_file_path);
        w.raw("Encrypted", self.encrypted);
        w.end(&self.other)
    }
}

impl ImageMeta {
    /// Reads `*.img.meta`.
    pub fn decode(bytes: &[u8]) -> Result<Self, MetaError> {
        let mut map = object(bytes)?;
        let labels = match map.remove("Labels") {
            None | Some(Value::Null) => None,
            Some(Value::Object(labels)) => Some(
                labels
                    .into_iter()
                    .map(|(key, value)| match value {
                        Value::String(value) => Ok((key, value)),
                        _ => Err(MetaError::Key { key: "Labels", rule: "must have strings as values" }),
                    })
                    .collect::<Result<_, _>>()?,
            ),
            Some(_) => return Err(MetaError::Key { key: "Labels", rule: "must be an object" }),
        };
        Ok(Self {
            name: text(&mut map, "Name")?,
            parent: layer(&mut map, "Parent")?,
            removed: flag(&mut map, "Removed")?,
            user_created: flag(&mut map, "UserCreated")?,
            created: text(&mut map, "Created")?,
            labels,
            other: map.into_iter().collect(),
        })
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.text("Name", &self.name);
        w.text("Parent", &self.parent);
        w.raw("Removed", self.removed);
        w.raw("UserCreated", self.user_created);
        w.text("Created", &self.created);
        match &self.labels {
            None => w.raw("Labels", "null"),
            Some(labels) => {
                let mut inner = Writer::default();
                labels.iter().for_each(|(key, value)| inner.text(key, value));
                w.raw("Labels", format_args!("{{{}}}", inner.0));
            }
        }
        w.end(&self.other)
    }
}

impl ChecksumRecord {
    /// Reads `*.img.checksum`.
    pub fn decode(bytes: &[u8]) -> Result<Self, MetaError> {
        let mut map = object(bytes)?;
        Ok(Self {
            method: text(&mut map, "method")?,
            checksum: text(&mut map, "checksum")?,
            change_time: text(&mut map, "change_time")?,
            last_hashed_at: text(&mut map, "last_hashed_at")?,
            silently_corrupted: flag(&mut map, "silently_corrupted")?,
            other: map.into_iter().collect(),
        })
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.text("method", &self.method);
        w.text("checksum", &self.checksum);
        w.text("change_time", &self.change_time);
        w.text("last_hashed_at", &self.last_hashed_at);
        w.raw("silently_corrupted", self.silently_corrupted);
        w.end(&self.other)
    }
}

/// A moment in Go's notation, in UTC: what `time.Time.String` prints.
pub fn go_time(seconds: i64, nanoseconds: u32) -> String {
    let stamp = jiff::Timestamp::new(seconds, 0).unwrap_or_default();
    let civil = stamp.to_zoned(jiff::tz::TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S").to_string();
    let fraction = format!("{nanoseconds:09}");
    match fraction.trim_end_matches('0') {
        "" => format!("{civil} +0000 UTC"),
        digits => format!("{civil}.{digits} +0000 UTC"),
    }
}

/// A moment in RFC 3339, in whole seconds, UTC.
pub fn rfc3339(seconds: i64) -> String {
    jiff::Timestamp::new(seconds, 0).unwrap_or_default().to_string()
}

/// An object being written as Go's encoder does it.
#[derive(Default)]
struct Writer(String);

impl Writer {
    fn key(&mut self, key: &str) {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        self.quoted(key);
        self.0.push(':');
    }

    fn raw(&mut self, key: &str, value: impl std::fmt::Display) {
        self.key(key);
        let _ = write!(self.0, "{value}");
    }

    fn text(&mut self, key: &str, value: &str) {
        self.key(key);
        self.quoted(value);
    }

    fn quoted(&mut self, value: &str) {
        self.0.push('"');
        for c in value.chars() {
            match c {
                '"' => self.0.push_str("\\\""),
                '\\' => self.0.push_str("\\\\"),
                '\n' => self.0.push_str("\\n"),
                '\r' => self.0.push_str("\\r"),
                '\t' => self.0.push_str("\\t"),
                '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\x1f' => {
                    let _ = write!(self.0, "\\u{:04x}", u32::from(c));
                }
                c => self.0.push(c),
            }
        }
        self.0.push('"');
    }

    fn end(mut self, other: &BTreeMap<String, Value>) -> Vec<u8> {
        for (key, value) in other {
            self.raw(key, value);
        }
        format!("{{{}}}\n", self.0).into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VOLUME: &str = concat!(
        r#"{"Size":1048576,"Head":"volume-head-002.img","Dirty":true,"Rebuilding":false,"Error":"","#,
        r#""Parent":"volume-snap-s2.img","SectorSize":512,"BackingFilePath":"","Encrypted":false}"#,
        "\n"
    );
    const HEAD: &str = concat!(
        r#"{"Name":"volume-head-002.img","Parent":"volume-snap-s2.img","Removed":false,"UserCreated":false,"#,
        r#""Created":"2026-01-01T00:00:02Z","Labels":null}"#,
        "\n"
    );

    #[test]
    fn what_longhorn_wrote_comes_out_byte_for_byte() {
        assert_eq!(VolumeMeta::decode(VOLUME.as_bytes()).expect("valid").encode(), VOLUME.as_bytes());
        assert_eq!(ImageMeta::decode(HEAD.as_bytes()).expect("valid").encode(), HEAD.as_bytes());
        assert_eq!((VOLUME.len(), HEAD.len()), (175, 144));
        let labels = r#"{"Name":"n","Parent":"","Removed":false,"UserCreated":true,"Created":"","Labels":{"a":"\u003cb\u003e\u0026"}}"#;
        assert_eq!(
            ImageMeta::decode(labels.as_bytes()).expect("valid").encode(),
            format!("{labels}\n").as_bytes()
        );
        let sum = concat!(
            r#"{"method":"crc64","checksum":"b90956c775a41001","change_time":"2026-01-02 03:04:05.12345 +0000 UTC","#,
            r#""last_hashed_at":"2026-01-02T03:04:06Z","silently_corrupted":false}"#,
            "\n"
        );
        assert_eq!(ChecksumRecord::decode(sum.as_bytes()).expect("valid").encode(), sum.as_bytes());
    }

    #[test]
    fn restored_and_older_files_are_read() {
        let restored = ImageMeta::decode(b"{\"Parent\":\"\"}\n").expect("valid");
        assert_eq!(restored, ImageMeta::default());
        let old = br#"{"Size":4096,"Head":"volume-head-000.img","BackingFileName":"x"}"#;
        let old = VolumeMeta::decode(old).expect("valid");
        assert!(!old.encrypted && old.other.contains_key("BackingFileName"), "unknown keys stay");
        assert!(String::from_utf8_lossy(&old.encode()).ends_with("\"BackingFileName\":\"x\"}\n"));
    }

    #[test]
    fn bad_metadata_is_refused_with_the_key() {
        for (bytes, expected) in [
            (&b""[..], "the file is empty"),
            (b"\0\0\0", "the file is empty"),
            (b"{", "the file is not a JSON object: EOF"),
            (br#"{"Size":-1,"Head":"volume-head-000.img"}"#, "key Size: must be a number"),
            (br#"{"Size":4097,"Head":"volume-head-000.img"}"#, "key Size: must be a multiple of 512"),
            (
                br#"{"Size":4096,"Head":"../volume-head-000.img"}"#,
                "key Head: must be the file name of a layer",
            ),
            (br#"{"Size":4096,"Head":"volume-snap-aa.img"}"#, "key Head: must be the file name of a head"),
            (br#"{"Size":4096,"Head":"volume-head-000.img","Dirty":1}"#, "key Dirty: must be true or false"),
        ] {
            let error = VolumeMeta::decode(bytes).expect_err("refused").to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn times_as_go_prints_them() {
        assert_eq!(go_time(1_767_323_045, 123_450_000), "2026-01-02 03:04:05.12345 +0000 UTC");
        assert_eq!(go_time(1_767_323_045, 0), "2026-01-02 03:04:05 +0000 UTC");
        assert_eq!(rfc3339(1_767_323_045), "2026-01-02T03:04:05Z");
    }

    proptest! {
        #[test]
        fn any_text_survives(name in "\\PC*", key in "\\PC*", value in any::<String>()) {
            let meta = ImageMeta {
                name, created: value.clone(), labels: Some([(key, value)].into()), ..ImageMeta::default()
            };
            prop_assert_eq!(ImageMeta::decode(&meta.encode()).expect("valid"), meta);
        }

        #[test]
        fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (VolumeMeta::decode(&bytes), ImageMeta::decode(&bytes), ChecksumRecord::decode(&bytes));
        }
    }
}
