//! Image formats in and out: raw, qcow2, iso; sparse, checked, resumable.
//!
//! What is here: recognising what a file is ([`probe`]), bringing it onto this node ([`fetch`] by HTTP, [`upload`] by
//! an upload), and the files that volumes are made of ([`volume`]: thin overlays, blank sparse files). Nothing here
//! knows of API objects, nodes or policies; whoever calls decides when to try again and what to tell whom.
//!
//! Who owns the state: the file system. A file that is being received is `<name>.part` beside `<name>.part.json`; it
//! gets its real name when it is complete, checked and durable, so that a file with its real name is always whole.
//!
//! Where to start reading: [`probe::judge`] (what is accepted, what is refused and why), then [`intake::Intake`]
//! (through which all bytes go), then [`fetch::plan`] (what follows after which answer of a server).

pub mod digest;
pub mod fetch;
pub mod intake;
pub mod multipart;
pub mod probe;
pub mod qcow2;
pub mod sparse;
pub mod upload;
pub mod volume;

/// A number of bytes in words that people compare at a glance: `512 B`, `3.1 GiB`.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would be printed as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// An error and what caused it, in one line; for the eyes of users, who see nothing else of it.
pub fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some libraries repeat the cause in their own text.
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::human_bytes;

    #[test]
    fn bytes_read_well() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (10 << 30, "10.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(human_bytes(bytes), text);
        }
    }
}
