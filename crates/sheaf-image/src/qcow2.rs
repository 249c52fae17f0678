//! The header of QEMU's qcow2 files: read with distrust, written for thin overlays.
//!
//! Format: docs/interop/qcow2.txt of QEMU, versions 2 and 3. Only the header is looked at; the tables behind it are
//! QEMU's matter, which reads them in a sandbox. What a header may make QEMU open (a backing file, an external data
//! file) is refused, since with it an image could read any file of the node.

/// `QFI\xfb`.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";
/// A header of version 2, and the part that every header of version 3 has.
const V2_LEN: usize = 72;
const V3_LEN: usize = 104;
/// QEMU's own limit for the table of tables (QCOW_MAX_L1_SIZE).
const MAX_L1_BYTES: u64 = 32 << 20;
/// QEMU's own limit (QCOW_MAX_REFTABLE_SIZE).
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// dirty, compression type, extended L2 entries: QEMU reads these without harm to anyone else.
const HARMLESS_FEATURES: u64 = 1 | 1 << 3 | 1 << 4;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;

/// What matters of a qcow2 header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Size of the disk that a guest sees, in bytes.
    pub virtual_size: u64,
    /// A cluster has 2 to the power of this bytes.
    pub cluster_bits: u32,
    /// Where the L1 table begins, in bytes.
    pub l1_offset: u64,
    /// Length of the L1 table, in entries of 8 bytes.
    pub l1_entries: u32,
    /// Where the refcount table begins, in bytes.
    pub refcount_offset: u64,
}

/// Why a qcow2 file is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Qcow2Error {
    /// Shorter than its header.
    #[error("the qcow2 header is cut off after {0} bytes")]
    TooShort(usize),
    /// Version 1 (the old qcow format) or one that is newer than this program.
    #[error("qcow version {0} is not supported; convert the image with `qemu-img convert -O qcow2`")]
    Version(u32),
    /// Reads another file.
    #[error(
        "the qcow2 image has a backing file ({0:?}) and is not complete without it; flatten it with `qemu-img convert -O qcow2`"
    )]
    BackingFile(String),
    /// Keeps its data in another file.
    #[error(
        "the qcow2 image keeps its data in an external data file; convert it with `qemu-img convert -O qcow2`"
    )]
    DataFile,
    /// Encrypted by QEMU.
    #[error("the qcow2 image is encrypted, which is not supported; decrypt it with `qemu-img convert`")]
    Encrypted,
    /// Marked so by QEMU.
    #[error("the qcow2 image is marked as corrupt; repair it with `qemu-img check -r all`")]
    Corrupt,
    /// Needs a program that knows more than we do.
    #[error("the qcow2 image uses unknown incompatible features (bits {0:#x})")]
    UnknownFeatures(u64),
    /// A field contradicts the format.
    #[error("the qcow2 header is not valid: {field} is {value}")]
    Invalid {
        /// Name of the field, as QEMU's documentation has it.
        field: &'static str,
        /// What it says.
        value: u64,
    },
    /// The file ends before its tables do.
    #[error("the qcow2 image is cut off: it has {len} bytes, and its {table} ends at {end}")]
    Truncated {
        /// Which table.
        table: &'static str,
        /// Length of the file.
        len: u64,
        /// First byte behind the table.
        end: u64,
    },
}

fn be32(bytes: &[u8], at: usize) -> Result<u32, Qcow2Error> {
    let end = at.checked_add(4).ok_or(Qcow2Error::TooShort(bytes.len()))?;
    let field = bytes.get(at..end).and_then(|b| <[u8; 4]>::try_from(b).ok());
    field.map(u32::from_be_bytes).ok_or(Qcow2Error::TooShort(bytes.len()))
}

fn be64(bytes: &[u8], at: usize) -> Result<u64, Qcow2Error> {
    Ok(u64::from(be32(bytes, at)?) << 32 | u64::from(be32(bytes, at + 4)?))
}

/// Reads the header at the start of `head`, which needs no more than the file's first cluster, and refuses what
/// could do harm.
pub fn parse(head: &[u8]) -> Result<Header, Qcow2Error> {
    let invalid = |field, value| Err(Qcow2Error::Invalid { field, value });
    if !head.starts_with(&MAGIC) {
        return invalid("magic", u64::from(be32(head, 0)?));
    }
    let version = be32(head, 4)?;
    if !(2..=3).contains(&version) {
        return Err(Qcow2Error::Version(version));
    }
    let least = if version == 2 { V2_LEN } else { V3_LEN };
    if head.len() < least {
        return Err(Qcow2Error::TooShort(head.len()));
    }
    // What could do harm is said first, even if more is wrong.
    let features = if version == 3 { be64(head, 72)? } else { 0 };
    let (backing_offset, backing_len) = (be64(head, 8)?, be32(head, 16)?);
    if backing_offset != 0 || backing_len != 0 {
        return Err(Qcow2Error::BackingFile(backing_name(head, backing_offset, backing_len)));
    }
    if features & EXTERNAL_DATA != 0 {
        return Err(Qcow2Error::DataFile);
    }
    if be32(head, 32)? != 0 {
        return Err(Qcow2Error::Encrypted);
    }
    if features & CORRUPT != 0 {
        return Err(Qcow2Error::Corrupt);
    }
    let unknown = features & !HARMLESS_FEATURES;
    if unknown != 0 {
        return Err(Qcow2Error::UnknownFeatures(unknown));
    }

    let cluster_bits = be32(head, 20)?;
    if !(9..=21).contains(&cluster_bits) {
        return invalid("cluster_bits", u64::from(cluster_bits));
    }
    let cluster = 1u64 << cluster_bits;
    if version == 3 {
        let header_len = be32(head, 100)?;
        if header_len < V3_LEN as u32 || u64::from(header_len) > cluster {
            return invalid("header_length", u64::from(header_len));
        }
        let refcount_order = be32(head, 96)?;
        if refcount_order > 6 {
            return invalid("refcount_order", u64::from(refcount_order));
        }
    }
    let virtual_size = be64(head, 24)?;
    if virtual_size == 0 || virtual_size > i64::MAX as u64 {
        return invalid("size", virtual_size);
    }
    let l1_entries = be32(head, 36)?;
    let l1_offset = be64(head, 40)?;
    // With extended entries a second-level table holds half as many.
    let l2_bits = if features & (1 << 4) != 0 { cluster_bits - 4 } else { cluster_bits - 3 };
    let per_l1_entry = 1u64 << (cluster_bits + l2_bits);
    if u64::from(l1_entries) * 8 > MAX_L1_BYTES || u64::from(l1_entries) < virtual_size.div_ceil(per_l1_entry)
    {
        return invalid("l1_size", u64::from(l1_entries));
    }
    if l1_offset % cluster != 0 || l1_offset == 0 || l1_offset > i64::MAX as u64 {
        return invalid("l1_table_offset", l1_offset);
    }
    let refcount_offset = be64(head, 48)?;
    if refcount_offset % cluster != 0 || refcount_offset == 0 || refcount_offset > i64::MAX as u64 {
        return invalid("refcount_table_offset", refcount_offset);
    }
    let refcount_bytes = u64::from(be32(head, 56)?) << cluster_bits;
    if refcount_bytes == 0 || refcount_bytes > MAX_REFCOUNT_TABLE_BYTES {
        return invalid("refcount_table_clusters", refcount_bytes >> cluster_bits);
    }
    Ok(Header { version, virtual_size, cluster_bits, l1_offset, l1_entries, refcount_offset })
}

/// For the error text only.
fn backing_name(head: &[u8], offset: u64, len: u32) -> String {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let end = start.saturating_add((len as usize).min(255)).min(head.len());
    String::from_utf8_lossy(head.get(start..end).unwrap_or_default()).into_owned()
}

impl Header {
    /// Whether a file of `len` bytes has room for what its header points to; catches files that were cut off.
    pub fn check_len(&self, len: u64) -> Result<(), Qcow2Error> {
        let l1_end = self.l1_offset.saturating_add(u64::from(self.l1_entries) * 8);
        if l1_end > len {
            return Err(Qcow2Error::Truncated { table: "L1 table", len, end: l1_end });
        }
        // Its first entry; how much of the table must be there depends on the data.
        let refcount_end = self.refcount_offset.saturating_add(8);
        if refcount_end > len {
            return Err(Qcow2Error::Truncated { table: "refcount table", len, end: refcount_end });
        }
        Ok(())
    }
}

/// Clusters of 64 KiB, as qemu-img makes them.
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Bytes of disk behind one L1 entry: 8192 entries of a second-level table, each a cluster.
const PER_L1_ENTRY: u64 = CLUSTER * (CLUSTER / 8);
/// Overlays have room in their L1 table for growth up to this size without moving anything.
const ROOM: u64 = 16 << 40;
/// The largest overlay: its L1 table has 1 MiB.
pub const MAX_OVERLAY_BYTES: u64 = (1 << 20) / 8 * PER_L1_ENTRY;

/// The bytes of a new overlay, and how long its file is (what the bytes do not cover is zero).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewOverlay {
    /// What the file begins with.
    pub bytes: Vec<u8>,
    /// Length of the file in bytes.
    pub len: u64,
}

/// Why an overlay cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OverlayError {
    /// Zero, or no multiple of 512.
    #[error("a disk of {0} bytes is not possible: the size must be a positive multiple of 512")]
    Unaligned(u64),
    /// Beyond [`MAX_OVERLAY_BYTES`].
    #[error("a disk of {0} bytes is too large: at most {MAX_OVERLAY_BYTES} bytes are possible")]
    TooLarge(u64),
    /// The name does not fit into the header.
    #[error("the name of the backing file has {0} bytes; 1 to 1023 are possible")]
    Name(usize),
}

/// Builds a qcow2 version 3 file of `virtual_size` bytes that shows `backing` (a name relative to the overlay's own
/// directory, or absolute) until it is written to. The backing file's format is recorded, so that QEMU never guesses
/// it from what a guest wrote there.
pub fn new_overlay(
    backing: &str,
    backing_is_qcow2: bool,
    virtual_size: u64,
) -> Result<NewOverlay, OverlayError> {
    if virtual_size == 0 || !virtual_size.is_multiple_of(512) {
        return Err(OverlayError::Unaligned(virtual_size));
    }
    if virtual_size > MAX_OVERLAY_BYTES {
        return Err(OverlayError::TooLarge(virtual_size));
    }
    if backing.is_empty() || backing.len() > 1023 {
        return Err(OverlayError::Name(backing.len()));
    }
    let l1_entries = virtual_size.max(ROOM).div_ceil(PER_L1_ENTRY) as u32;
    let l1_clusters = (u64::from(l1_entries) * 8).div_ceil(CLUSTER);

    // Clusters: 0 header, 1 refcount table, 2 refcount block, 3.. L1 table.
    let mut bytes = Vec::with_capacity(3 * CLUSTER as usize);
    let format: &[u8] = if backing_is_qcow2 { b"qcow2" } else { b"raw" };
    let extensions_len = 8 + 8 + 8;
    bytes.extend(MAGIC);
    bytes.extend(3u32.to_be_bytes());
    bytes.extend((V3_LEN as u64 + 8 + extensions_len).to_be_bytes()); // backing_file_offset
    bytes.extend((backing.len() as u32).to_be_bytes());
    bytes.extend(CLUSTER_BITS.to_be_bytes());
    bytes.extend(virtual_size.to_be_bytes());
    bytes.extend(0u32.to_be_bytes()); // crypt_method
    bytes.extend(l1_entries.to_be_bytes());
    bytes.extend((3 * CLUSTER).to_be_bytes()); // l1_table_offset
    bytes.extend(CLUSTER.to_be_bytes()); // refcount_table_offset
    bytes.extend(1u32.to_be_bytes()); // refcount_table_clusters
    bytes.extend(0u32.to_be_bytes()); // nb_snapshots
    bytes.extend(0u64.to_be_bytes()); // snapshots_offset
    bytes.extend([0; 24]); // incompatible, compatible, autoclear features
    bytes.extend(4u32.to_be_bytes()); // refcount_order: 16 bits
    bytes.extend((V3_LEN as u32 + 8).to_be_bytes()); // header_length
    bytes.extend([0; 8]); // compression type zlib, padding
    bytes.extend(0xe279_2aca_u32.to_be_bytes()); // extension: backing file format
    bytes.extend((format.len() as u32).to_be_bytes());
    bytes.extend(format);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.extend([0; 8]); // end of the extensions
    bytes.extend(backing.as_bytes());
    bytes.resize(CLUSTER as usize, 0);
    bytes.extend((2 * CLUSTER).to_be_bytes());
    bytes.resize(2 * CLUSTER as usize, 0);
    for _ in 0..3 + l1_clusters {
        bytes.extend(1u16.to_be_bytes());
    }
    Ok(NewOverlay { bytes, len: (3 + l1_clusters) * CLUSTER })
}

/// Whether an overlay of ours (with `l1_entries`, as its header says) can grow to `virtual_size` by changing only the
/// size in its header; see [`SIZE_OFFSET`].
pub fn can_grow_in_place(header: &Header, virtual_size: u64) -> bool {
    let per_entry = 1u64 << (2 * header.cluster_bits - 3);
    virtual_size.is_multiple_of(512) && u64::from(header.l1_entries) >= virtual_size.div_ceil(per_entry)
}

/// Where the header has its virtual size, a big-endian u64.
pub const SIZE_OFFSET: u64 = 24;

/// The header of an overlay that we made ourselves: its backing file is no reason to refuse it.
pub fn parse_own_overlay(head: &[u8]) -> Result<Header, Qcow2Error> {
    let mut head = head.to_vec();
    if let Some(backing) = head.get_mut(8..20) {
        backing.fill(0);
    }
    parse(&head)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A valid header of a complete image.
    pub(crate) fn plain(version: u32) -> Vec<u8> {
        let mut bytes = new_overlay("x", false, 1 << 30).unwrap().bytes;
        bytes[8..20].fill(0);
        bytes[4..8].copy_from_slice(&version.to_be_bytes());
        bytes
    }

    #[test]
    fn a_plain_header_is_read() {
        for version in [2, 3] {
            let header = parse(&plain(version)).unwrap();
            assert_eq!((header.version, header.virtual_size, header.cluster_bits), (version, 1 << 30, 16));
            assert_eq!(header.check_len(7 * CLUSTER), Ok(()));
            assert!(matches!(
                header.check_len(4 * CLUSTER),
                Err(Qcow2Error::Truncated { table: "L1 table", .. })
            ));
        }
    }

    #[test]
    fn what_could_do_harm_is_refused() {
        type Spoil = fn(&mut Vec<u8>);
        let table: &[(&str, Spoil, &str)] = &[
            ("cut off", |b| b.truncate(90), "cut off after 90 bytes"),
            ("version 1", |b| b[7] = 1, "qcow version 1 is not supported"),
            ("version 4", |b| b[7] = 4, "qcow version 4 is not supported"),
            (
                "backing file",
                |b| {
                    b[14..16].copy_from_slice(&300u16.to_be_bytes());
                    b[19] = 11;
                    b[300..311].copy_from_slice(b"/etc/shadow");
                },
                "has a backing file (\"/etc/shadow\")",
            ),
            ("backing file far away", |b| b[8..20].fill(0xff), "has a backing file (\"\")"),
            ("data file", |b| b[79] = 4, "external data file"),
            ("encrypted", |b| b[35] = 2, "is encrypted"),
            ("corrupt", |b| b[79] = 2, "marked as corrupt"),
            ("unknown", |b| b[79] = 0x20, "unknown incompatible features (bits 0x20)"),
            ("cluster bits", |b| b[23] = 40, "cluster_bits is 40"),
            ("no size", |b| b[24..32].fill(0), "size is 0"),
            ("vast size", |b| b[24..32].fill(0xff), "size is 18446744073709551615"),
            ("l1 too small", |b| b[36..40].copy_from_slice(&1u32.to_be_bytes()), "l1_size is 1"),
            ("l1 too large", |b| b[36..40].fill(0xff), "l1_size is 4294967295"),
            ("l1 unaligned", |b| b[47] = 1, "l1_table_offset is"),
            ("no refcounts", |b| b[48..56].fill(0), "refcount_table_offset is 0"),
            ("no refcount clusters", |b| b[56..60].fill(0), "refcount_table_clusters is 0"),
            ("refcount order", |b| b[99] = 7, "refcount_order is 7"),
            ("header length", |b| b[103] = 1, "header_length is 1"),
        ];
        for (name, spoil, text) in table {
            let mut bytes = plain(3);
            spoil(&mut bytes);
            let error = parse(&bytes).expect_err(name).to_string();
            assert!(error.contains(text), "{name}: {error}");
        }
    }

    #[test]
    fn overlays_have_limits() {
        assert_eq!(new_overlay("base", true, 0), Err(OverlayError::Unaligned(0)));
        assert_eq!(new_overlay("base", true, 513), Err(OverlayError::Unaligned(513)));
        assert_eq!(new_overlay("", true, 512), Err(OverlayError::Name(0)));
        assert!(new_overlay("base", true, MAX_OVERLAY_BYTES).is_ok());
        assert!(matches!(new_overlay("base", true, MAX_OVERLAY_BYTES + 512), Err(OverlayError::TooLarge(_))));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
            let mut marked = MAGIC.to_vec();
            marked.extend(&bytes);
            let _ = parse(&marked);
        }

        #[test]
        fn a_changed_header_never_panics(at in 4usize..112, value: u8, len in 0usize..200) {
            let mut bytes = plain(3);
            bytes[at] = value;
            if let Ok(header) = parse(&bytes) {
                let _ = header.check_len(u64::from(value) << 12);
                prop_assert!(header.virtual_size > 0);
            }
            bytes.truncate(len);
            let _ = parse(&bytes);
        }

        #[test]
        fn an_overlay_is_read_back(sectors in 1u64..(MAX_OVERLAY_BYTES / 512), name in "[a-z/]{1,40}", q: bool) {
            let overlay = new_overlay(&name, q, sectors * 512).unwrap();
            prop_assert_eq!(parse(&overlay.bytes), Err(Qcow2Error::BackingFile(name)));
            let header = parse_own_overlay(&overlay.bytes).unwrap();
            prop_assert_eq!(header.virtual_size, sectors * 512);
            prop_assert_eq!(header.check_len(overlay.len), Ok(()));
        }
    }
}
