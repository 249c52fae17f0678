//! Limits of disks' use: an annotation of our own on a machine's template, as KubeVirt has no field for them.
//!
//! `sheaf.io/disk-limits: '{"root": {"iops": 500, "iopsBurst": 2000, "bytesPerSecond": "100Mi", "burstSeconds": 10}}'`.
//! Keys are names of disks. Pure; the annotation is checked when a machine is written, and read by the machine's node.

use std::collections::BTreeMap;

use serde_json::Value;
use sheaf_meta::quantity::Quantity;

/// The annotation.
pub const DISK_LIMITS: &str = "sheaf.io/disk-limits";
/// The share of the node's disks that a machine gets where several want more than there is: 1 to 10000, others have 100.
pub const IO_WEIGHT: &str = "sheaf.io/io-weight";

/// One limit; 0 is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limit {
    /// In the long run.
    pub steady: u64,
    /// For a while.
    pub burst: u64,
    /// For how many seconds.
    pub burst_seconds: u32,
}

/// Limits of one disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskLimits {
    /// Operations per second.
    pub iops: Limit,
    /// Reads per second.
    pub iops_read: Limit,
    /// Writes per second.
    pub iops_write: Limit,
    /// Bytes per second.
    pub bytes: Limit,
    /// Bytes per second, reading.
    pub bytes_read: Limit,
    /// Bytes per second, writing.
    pub bytes_write: Limit,
}

/// The smallest limit of bytes: a guest that can read less than a page now and then is a guest that hangs.
const BYTES_MIN: u64 = 4096;

impl DiskLimits {
    /// Reads the annotation; the text of an error names the disk and the key.
    pub fn parse(text: &str) -> Result<BTreeMap<String, Self>, String> {
        let all: BTreeMap<String, BTreeMap<String, Value>> =
            serde_json::from_str(text).map_err(|e| format!("must be a JSON object of disks: {e}"))?;
        all.into_iter().map(|(disk, keys)| Self::one(&disk, &keys).map(|limits| (disk, limits))).collect()
    }

    fn one(disk: &str, keys: &BTreeMap<String, Value>) -> Result<Self, String> {
        let number = |key: &str| -> Result<u64, String> {
            let Some(value) = keys.get(key) else { return Ok(0) };
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let parsed = Quantity::parse(&text).ok().and_then(|q| q.bytes());
            parsed.ok_or_else(|| format!("disk {disk:?}: {key} is {text}, which is no number of 0 or more"))
        };
        let seconds = u32::try_from(number("burstSeconds")?.max(1))
            .map_err(|_| format!("disk {disk:?}: burstSeconds is too large"))?;
        let limit = |name: &str| -> Result<Limit, String> {
            let (steady, burst) = (number(name)?, number(&format!("{name}Burst"))?);
            if burst != 0 && burst < steady {
                return Err(format!("disk {disk:?}: {name}Burst is less than {name}"));
            }
            if burst != 0 && steady == 0 {
                return Err(format!("disk {disk:?}: {name}Burst needs {name}"));
            }
            if name.starts_with("bytes") && steady != 0 && steady < BYTES_MIN {
                return Err(format!("disk {disk:?}: {name} is less than {BYTES_MIN}"));
            }
            Ok(Limit { steady, burst, burst_seconds: seconds })
        };
        const NAMES: [&str; 6] =
            ["iops", "iopsRead", "iopsWrite", "bytesPerSecond", "bytesPerSecondRead", "bytesPerSecondWrite"];
        let known =
            |key: &str| key == "burstSeconds" || NAMES.contains(&key.strip_suffix("Burst").unwrap_or(key));
        if let Some(unknown) = keys.keys().find(|k| !known(k)) {
            return Err(format!("disk {disk:?}: unknown key {unknown:?}; there are {}", NAMES.join(", ")));
        }
        let [iops, iops_read, iops_write, bytes, bytes_read, bytes_write] = NAMES.map(limit);
        let out = Self {
            iops: iops?,
            iops_read: iops_read?,
            iops_write: iops_write?,
            bytes: bytes?,
            bytes_read: bytes_read?,
            bytes_write: bytes_write?,
        };
        // QEMU knows either a total or the two directions.
        for (name, total, read, write) in [
            ("iops", out.iops, out.iops_read, out.iops_write),
            ("bytesPerSecond", out.bytes, out.bytes_read, out.bytes_write),
        ] {
            if total.steady != 0 && read.steady + write.steady != 0 {
                return Err(format!(
                    "disk {disk:?}: {name} cannot be given together with {name}Read or {name}Write"
                ));
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_and_refused() {
        let text =
            r#"{"root": {"iops": 500, "iopsBurst": 2000, "bytesPerSecond": "100Mi", "burstSeconds": 10}}"#;
        let all = DiskLimits::parse(text).expect("limits");
        assert_eq!(all["root"].iops, Limit { steady: 500, burst: 2000, burst_seconds: 10 });
        assert_eq!(all["root"].bytes.steady, 100 << 20);
        for (text, word) in [
            ("[]", "JSON object"),
            (r#"{"a": {"iopz": 1}}"#, "iopz"),
            (r#"{"a": {"iops": -1}}"#, "iops"),
            (r#"{"a": {"iops": 9, "iopsBurst": 3}}"#, "less than"),
            (r#"{"a": {"iopsBurst": 3}}"#, "needs iops"),
            (r#"{"a": {"iops": 9, "iopsRead": 3}}"#, "together"),
            (r#"{"a": {"bytesPerSecond": 1}}"#, "4096"),
        ] {
            let err = DiskLimits::parse(text).expect_err(text);
            assert!(err.contains(word), "{text}: {err}");
        }
    }
}
