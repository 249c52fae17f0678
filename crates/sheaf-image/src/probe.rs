//! What a file is, told from its first and last bytes: raw, qcow2 or iso; anything else is refused by name.
//!
//! Rules, in this order:
//!
//! 1. The formats of other hypervisors (VMDK, VHD, VHDX, VDI, ...), archives and compressed files are refused by name,
//!    with the command that converts them.
//! 2. qcow2 is taken if its header is complete in itself ([`crate::qcow2`]).
//! 3. ISO 9660 (and UDF) is taken.
//! 4. A disk or a bare file system (MBR, GPT, ext, XFS, Btrfs, FAT, NTFS, LVM, LUKS, swap, ...) is taken as raw.
//! 5. Text, and HTML in particular (the page that a server sends in place of the file), is refused.
//! 6. Anything else is taken as raw if it is a whole number of sectors (an empty disk has no signature, and not every
//!    system's is known here), and refused otherwise.
//!
//! No state, no I/O except in [`probe_file`].

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::qcow2::{self, Qcow2Error};

/// How much of a file's beginning [`look`] wants to see; a shorter file is shown whole. The farthest signature is
/// that of Btrfs, at 64 KiB and 64 bytes.
pub const HEAD_LEN: usize = 68 << 10;
/// How much of its end [`judge`] wants to see.
pub const TAIL_LEN: usize = 512;
const SECTOR: u64 = 512;

/// How a file is stored, and read by QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Bytes as they are.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
    /// A CD or DVD; bytes as they are.
    Iso,
}

/// What a file turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probed {
    /// How it is to be opened.
    pub format: Format,
    /// Size of the disk that a guest sees, in bytes.
    pub virtual_size: u64,
}

/// What the first bytes say; [`judge`] has the last word when the file is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// A qcow2 header that is in order.
    Qcow2(qcow2::Header),
    /// A CD or DVD.
    Iso,
    /// A disk or a file system; its name.
    Disk(&'static str),
    /// Nothing known, and nothing known to be wrong.
    Unknown,
}

/// Why a file is not taken. The text is for the user's eyes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No bytes at all.
    #[error("the file is empty")]
    Empty,
    /// A disk format of another hypervisor.
    #[error("this is a {0} image; convert it with `qemu-img convert -O qcow2`")]
    OtherDisk(&'static str),
    /// Has to be unpacked first.
    #[error("this is a {0} file, not a disk image; unpack it first")]
    Packed(&'static str),
    /// A web page, probably an error or login page.
    #[error(
        "this looks like an HTML page, not a disk image; check that the address is that of the file itself"
    )]
    Html,
    /// Text of some kind.
    #[error("this is a text file, not a disk image (it begins with {0:?})")]
    Text(String),
    /// Something with a name of its own.
    #[error("this is {0}, not a disk image")]
    Other(&'static str),
    /// A qcow2 file that is not in order.
    #[error("{0}")]
    Qcow2(#[from] Qcow2Error),
    /// Nothing known, and no whole number of sectors.
    #[error(
        "this is neither a raw, a qcow2 nor an ISO image: no known signature, and its {0} bytes are no multiple of 512"
    )]
    NotADisk(u64),
}

/// Bytes at fixed places, and what they are the mark of.
struct Mark {
    at: usize,
    bytes: &'static [u8],
    refused: fn() -> Refused,
}

const MARKS: &[Mark] = &[
    Mark { at: 0, bytes: b"KDMV", refused: || Refused::OtherDisk("VMDK") },
    Mark { at: 0, bytes: b"COWD", refused: || Refused::OtherDisk("VMDK") },
    Mark { at: 0, bytes: b"# Disk DescriptorFile", refused: || Refused::OtherDisk("VMDK (its descriptor)") },
    Mark { at: 0, bytes: b"conectix", refused: || Refused::OtherDisk("VHD") },
    Mark { at: 0, bytes: b"vhdxfile", refused: || Refused::OtherDisk("VHDX") },
    Mark { at: 64, bytes: &[0x7f, 0x10, 0xda, 0xbe], refused: || Refused::OtherDisk("VDI") },
    Mark { at: 0, bytes: b"QED\0", refused: || Refused::OtherDisk("QED") },
    Mark { at: 0, bytes: b"WithoutFreeSpace", refused: || Refused::OtherDisk("Parallels") },
    Mark { at: 0, bytes: b"WithouFreSpacExt", refused: || Refused::OtherDisk("Parallels") },
    Mark { at: 0, bytes: &[0x1f, 0x8b, 8], refused: || Refused::Packed("gzip") },
    Mark { at: 0, bytes: b"\xfd7zXZ\0", refused: || Refused::Packed("xz") },
    Mark { at: 0, bytes: &[0x28, 0xb5, 0x2f, 0xfd], refused: || Refused::Packed("zstd") },
    Mark { at: 0, bytes: &[0x04, 0x22, 0x4d, 0x18], refused: || Refused::Packed("lz4") },
    Mark { at: 4, bytes: b"1AY&SY", refused: || Refused::Packed("bzip2") },
    Mark { at: 0, bytes: b"PK\x03\x04", refused: || Refused::Packed("zip") },
    Mark { at: 0, bytes: b"7z\xbc\xaf\x27\x1c", refused: || Refused::Packed("7-Zip") },
    Mark { at: 0, bytes: b"Rar!\x1a\x07", refused: || Refused::Packed("RAR") },
    Mark { at: 257, bytes: b"ustar", refused: || Refused::Packed("tar (an OVA file is one, too)") },
    Mark { at: 0, bytes: b"MSWIM\0\0\0", refused: || Refused::Other("a Windows image (WIM)") },
    Mark { at: 0, bytes: b"\x7fELF", refused: || Refused::Other("a program (ELF)") },
    Mark { at: 0, bytes: b"%PDF-", refused: || Refused::Other("a PDF file") },
    Mark {
        at: 0,
        bytes: b"!<arch>\n",
        refused: || Refused::Other("an ar archive (a Debian package is one, too)"),
    },
    Mark { at: 0, bytes: &[0xed, 0xab, 0xee, 0xdb], refused: || Refused::Other("an RPM package") },
    Mark { at: 0, bytes: b"070701", refused: || Refused::Other("a cpio archive (an initramfs is one, too)") },
];

/// Marks of disks and file systems. `55 aa` of a boot sector is looked at last: others have it, too.
const DISKS: &[(usize, &[u8], &str)] = &[
    (512, b"EFI PART", "GPT"),
    (4096, b"EFI PART", "GPT"),
    (1080, &[0x53, 0xef], "ext"),
    (0, b"XFSB", "XFS"),
    (0x10040, b"_BHRfS_M", "Btrfs"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (0, b"LABELONE", "LVM"),
    (512, b"LABELONE", "LVM"),
    (1024, b"LABELONE", "LVM"),
    (1536, b"LABELONE", "LVM"),
    (3, b"NTFS    ", "NTFS"),
    (3, b"EXFAT   ", "exFAT"),
    (54, b"FAT1", "FAT"),
    (82, b"FAT32", "FAT"),
    (4086, b"SWAPSPACE2", "swap"),
    (0, b"hsqs", "SquashFS"),
    (1024, &[0x10, 0x20, 0xf5, 0xf2], "F2FS"),
    (1024, &[0xe2, 0xe1, 0xf5, 0xe0], "EROFS"),
    (510, &[0x55, 0xaa], "MBR"),
];

fn has(bytes: &[u8], at: usize, mark: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(mark))
}

/// Looks at a file's first [`HEAD_LEN`] bytes, or at all of it if it has fewer.
pub fn look(head: &[u8]) -> Result<Look, Refused> {
    if head.is_empty() {
        return Err(Refused::Empty);
    }
    if let Some(mark) = MARKS.iter().find(|mark| has(head, mark.at, mark.bytes)) {
        return Err((mark.refused)());
    }
    if head.starts_with(&qcow2::MAGIC) {
        return Ok(Look::Qcow2(qcow2::parse(head)?));
    }
    // A volume descriptor (32 KiB in) of ISO 9660, or the beginning of a UDF volume recognition sequence.
    if has(head, 0x8001, b"CD001") || has(head, 0x8001, b"BEA01") {
        return Ok(Look::Iso);
    }
    if let Some((_, _, name)) = DISKS.iter().find(|(at, mark, _)| has(head, *at, mark)) {
        return Ok(Look::Disk(name));
    }
    match text_start(head) {
        Some(start) if looks_like_html(&start) => Err(Refused::Html),
        Some(start) => Err(Refused::Text(start.chars().take(40).collect())),
        None => Ok(Look::Unknown),
    }
}

/// The first characters of a file that is text as far as can be seen.
fn text_start(head: &[u8]) -> Option<String> {
    let sample = &head[..head.len().min(4096)];
    let text = match std::str::from_utf8(sample) {
        Ok(text) => text,
        // The sample may end within a character.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&sample[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    let is_text = |c: char| !c.is_control() || matches!(c, '\t' | '\r' | '\n' | '\x0c' | '\x1b');
    text.chars().all(is_text).then(|| text.trim_start_matches('\u{feff}').trim().to_owned())
}

fn looks_like_html(text: &str) -> bool {
    let start: String = text.chars().take(1024).collect::<String>().to_ascii_lowercase();
    start.starts_with("<!doctype html") || start.contains("<html") || start.starts_with("<head")
}

/// Decides about a complete file: what its beginning looked like, its last [`TAIL_LEN`] bytes (or all of it), and its
/// length in bytes.
pub fn judge(look: &Look, tail: &[u8], len: u64) -> Result<Probed, Refused> {
    // These formats are marked at the end only, and look like raw disks otherwise.
    if let Some(trailer) = tail.len().checked_sub(TAIL_LEN).and_then(|start| tail.get(start..)) {
        if trailer.starts_with(b"conectix") {
            return Err(Refused::OtherDisk("VHD"));
        }
        if trailer.starts_with(b"koly") {
            return Err(Refused::OtherDisk("Apple DMG"));
        }
    }
    let whole_sectors = len.next_multiple_of(SECTOR);
    match look {
        Look::Qcow2(header) => {
            header.check_len(len)?;
            // QEMU rounds up to sectors, too.
            Ok(Probed { format: Format::Qcow2, virtual_size: header.virtual_size.next_multiple_of(SECTOR) })
        }
        Look::Iso => Ok(Probed { format: Format::Iso, virtual_size: whole_sectors }),
        Look::Disk(_) => Ok(Probed { format: Format::Raw, virtual_size: whole_sectors }),
        Look::Unknown if len == whole_sectors => Ok(Probed { format: Format::Raw, virtual_size: len }),
        Look::Unknown => Err(Refused::NotADisk(len)),
    }
}

/// Why a file on disk could not be probed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It is none that we take.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It could not be read.
    #[error("cannot read the file")]
    Io(#[from] io::Error),
}

/// Probes a file that is on disk.
pub fn probe_file(file: &File) -> Result<Probed, ProbeError> {
    let len = file.metadata()?.len();
    let mut head = vec![0; usize::try_from(len).unwrap_or(HEAD_LEN).min(HEAD_LEN)];
    file.read_exact_at(&mut head, 0)?;
    let mut tail = vec![0; usize::try_from(len).unwrap_or(TAIL_LEN).min(TAIL_LEN)];
    let tail_at = len - tail.len() as u64;
    file.read_exact_at(&mut tail, tail_at)?;
    Ok(judge(&look(&head)?, &tail, len)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn probe(bytes: &[u8]) -> Result<Probed, Refused> {
        let head = &bytes[..bytes.len().min(HEAD_LEN)];
        judge(&look(head)?, &bytes[bytes.len().saturating_sub(TAIL_LEN)..], bytes.len() as u64)
    }

    fn with(len: usize, at: usize, mark: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; len];
        bytes[at..at + mark.len()].copy_from_slice(mark);
        bytes
    }

    #[test]
    fn disks_are_taken() {
        let raw = |len| Ok(Probed { format: Format::Raw, virtual_size: len });
        for (at, mark, name) in DISKS {
            assert_eq!(probe(&with(128 << 10, *at, mark)), raw(128 << 10), "{name}");
        }
        assert_eq!(probe(&with(1000, 510, &[0x55, 0xaa])), raw(1024), "a disk is padded to whole sectors");
        assert_eq!(probe(&vec![0; 1 << 20]), raw(1 << 20), "an empty disk");
        assert_eq!(probe(&with(1 << 20, 700, b"some data")), raw(1 << 20), "a disk without a signature");
        let iso = with(64 << 10, 0x8001, b"CD001");
        assert_eq!(probe(&iso), Ok(Probed { format: Format::Iso, virtual_size: 64 << 10 }));
        let mut hybrid = iso;
        hybrid[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(probe(&hybrid).unwrap().format, Format::Iso, "an ISO that can also be put on a USB stick");
    }

    #[test]
    fn bad_files_are_refused_by_name() {
        let mut fixed_vhd = with(4096, 510, &[0x55, 0xaa]);
        fixed_vhd.extend(with(512, 0, b"conectix"));
        let table: &[(&[u8], &str)] = &[
            (b"", "the file is empty"),
            (&with(4096, 0, b"KDMV"), "this is a VMDK image; convert it with `qemu-img convert"),
            (b"# Disk DescriptorFile\nversion=1\n", "VMDK (its descriptor)"),
            (&fixed_vhd, "this is a VHD image"),
            (&with(4096, 0, b"vhdxfile"), "VHDX"),
            (&with(4096, 64, &[0x7f, 0x10, 0xda, 0xbe]), "VDI"),
            (&with(4096, 0, &[0x1f, 0x8b, 8]), "this is a gzip file, not a disk image; unpack it first"),
            (&with(4096, 0, b"\xfd7zXZ\0"), "this is a xz file"),
            (&with(4096, 0, &[0x28, 0xb5, 0x2f, 0xfd]), "this is a zstd file"),
            (&with(4096, 0, b"BZh91AY&SY"), "this is a bzip2 file"),
            (&with(4096, 257, b"ustar"), "tar (an OVA file"),
            (&with(4096, 0, b"\x7fELF"), "a program"),
            (
                b"<!DOCTYPE html>\n<html><body>404</body></html>",
                "this looks like an HTML page, not a disk image",
            ),
            (b"\xef\xbb\xbf \n<HTML>", "HTML page"),
            (
                b"{\"error\": \"not found\"}",
                "this is a text file, not a disk image (it begins with \"{\\\"error",
            ),
            (&b"one line of text\n".repeat(512), "this is a text file"),
            (&[0, 1, 2, 3, 250, 251], "neither a raw, a qcow2 nor an ISO image"),
            (b"QFI\xfb\0\0\0\x01", "qcow version 1"),
            (b"QFI\xfb", "cut off"),
        ];
        for (bytes, text) in table {
            let error = probe(bytes).unwrap_err().to_string();
            assert!(error.contains(text), "{error:?} does not say {text:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = probe(&bytes);
        }

        #[test]
        fn text_is_never_taken(text in "[ -~\n]{1,3000}") {
            prop_assert!(probe(text.as_bytes()).is_err());
        }

        #[test]
        fn a_disk_is_a_whole_number_of_sectors(len in 1usize..200_000) {
            let mut bytes = vec![0xa5; len];
            bytes[0] = 0;
            match probe(&bytes) {
                Ok(probed) => prop_assert_eq!(probed.virtual_size % 512, 0),
                Err(refused) => prop_assert_eq!(refused, Refused::NotADisk(len as u64)),
            }
        }
    }
}
