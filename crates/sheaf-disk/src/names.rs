//! Names of files in a replica directory, as Longhorn gives them. Pure; owns nothing.

/// The replica's own metadata.
pub const VOLUME_META: &str = "volume.meta";
/// Longhorn's optional counter of writes; read, kept, never needed.
pub const REVISION_COUNTER: &str = "revision.counter";
/// Every file of ours begins with this; Longhorn's reader passes over them.
pub const OURS: &str = "sheaf-";
/// Which run of the machine the directory was opened in last; replaced, never changed in place.
pub const BOOT_FILE: &str = "sheaf-boot";
/// Most layers that a chain may have: Longhorn's index of them is one byte.
pub const CHAIN_MAX: usize = 250;

const HEAD: &str = "volume-head-";
const SNAP: &str = "volume-snap-";
const IMG: &str = ".img";

/// What a file name says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Name<'a> {
    /// `volume.meta`.
    VolumeMeta,
    /// The writable layer with this number, or one that was.
    Head(u32),
    /// The layer of the named snapshot.
    Snapshot(&'a str),
    /// Metadata of the layer with that file name.
    ImageMeta(&'a str),
    /// Checksum record of the layer with that file name.
    Checksum(&'a str),
    /// Something written anew that was never put in its place.
    Temporary,
    /// A file of ours.
    Ours(&'a str),
    /// Left by an unfinished restore: the directory is not complete.
    Restore,
    /// Nothing that we know.
    Other,
}

/// Reads a file name.
pub fn parse(name: &str) -> Name<'_> {
    if name.ends_with(".tmp") {
        return Name::Temporary;
    }
    if name == VOLUME_META {
        return Name::VolumeMeta;
    }
    if let Some(rest) = name.strip_prefix(OURS) {
        return Name::Ours(rest);
    }
    if name.ends_with(".snap_tmp") || name.starts_with("volume-delta-") {
        return Name::Restore;
    }
    if let Some(image) = name.strip_suffix(".meta").filter(|image| is_image(image)) {
        return Name::ImageMeta(image);
    }
    if let Some(image) = name.strip_suffix(".checksum").filter(|image| is_image(image)) {
        return Name::Checksum(image);
    }
    if let Some(number) = head_number(name) {
        return Name::Head(number);
    }
    snapshot_of(name).map_or(Name::Other, Name::Snapshot)
}

/// Whether it is the name of a layer.
pub fn is_image(name: &str) -> bool {
    head_number(name).is_some() || snapshot_of(name).is_some()
}

/// The number in the name of a head.
pub fn head_number(name: &str) -> Option<u32> {
    let digits = name.strip_prefix(HEAD)?.strip_suffix(IMG)?;
    (digits.len() >= 3 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// The snapshot whose layer it is.
pub fn snapshot_of(name: &str) -> Option<&str> {
    name.strip_prefix(SNAP)?.strip_suffix(IMG).filter(|snapshot| is_snapshot_name(snapshot))
}

/// Whether a snapshot may have this name.
pub fn is_snapshot_name(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    first && rest && (2..=200).contains(&name.len())
}

/// File name of a head.
pub fn head(number: u32) -> String {
    format!("{HEAD}{number:03}{IMG}")
}

/// File name of a snapshot's layer.
pub fn snapshot(name: &str) -> String {
    format!("{SNAP}{name}{IMG}")
}

/// File name of a layer's metadata.
pub fn meta_of(image: &str) -> String {
    format!("{image}.meta")
}

/// File name of a layer's checksum record.
pub fn checksum_of(image: &str) -> String {
    format!("{image}.checksum")
}

/// The number of the next head: free among `taken`. Longhorn itself counts on from the last digit only.
pub fn next_head(current: u32, taken: impl Fn(u32) -> bool) -> u32 {
    (1..=1000).map(|step| (current + step) % 1000).find(|number| !taken(*number)).unwrap_or(current + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_longhorn_writes_them() {
        for (name, expected) in [
            ("volume.meta", Name::VolumeMeta),
            ("volume.meta.tmp", Name::Temporary),
            ("volume-head-000.img", Name::Head(0)),
            ("volume-head-1234.img", Name::Head(1234)),
            ("volume-head-01.img", Name::Other),
            ("volume-head-000.img.meta", Name::ImageMeta("volume-head-000.img")),
            ("volume-snap-s1.img", Name::Snapshot("s1")),
            ("volume-snap-s1.img.meta", Name::ImageMeta("volume-snap-s1.img")),
            ("volume-snap-s1.img.checksum", Name::Checksum("volume-snap-s1.img")),
            ("volume-snap-s1.img.checksum..tmp", Name::Temporary),
            ("volume-snap-s1.img.snap_tmp", Name::Restore),
            ("volume-delta-backup-1.img", Name::Restore),
            ("volume-snap-../x.img", Name::Other),
            ("volume-snap-.img", Name::Other),
            ("other.meta", Name::Other),
            ("revision.counter", Name::Other),
            ("sheaf-state.1", Name::Ours("state.1")),
        ] {
            assert_eq!(parse(name), expected, "{name}");
        }
    }

    #[test]
    fn the_next_head_is_one_that_is_free() {
        assert_eq!(head(next_head(0, |_| false)), "volume-head-001.img");
        assert_eq!(next_head(999, |_| false), 0);
        assert_eq!(next_head(3, |n| n == 4), 5);
    }
}
