//! What lies below a disk: the layers of a qcow2 file, read from the files' own headers. Blocking, quick.
//!
//! QEMU is handed open files and can open none by name, so each layer has to be known before. Only what our own files
//! have is understood: a name of the file below, and its format beside it; a guest that rewrites the header of its own
//! disk (it cannot: it sees the content, not the file) would gain nothing, as only the agent follows names.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::spec::Source;

/// More layers than this are not followed.
const LAYERS_MAX: usize = 16;
/// The longest name that the format allows.
const NAME_MAX: u32 = 1023;
/// Header extension that names the format of the file below.
const BACKING_FORMAT: u32 = 0xe279_2aca;

/// How the bytes of a file are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// As they are.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

impl Format {
    /// QEMU's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// One layer of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The file.
    pub path: PathBuf,
    /// How it is read.
    pub format: Format,
}

/// The layers could not be found.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// A file cannot be read.
    #[error("Could not open '{}'", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is not what it is said to be.
    #[error("{}: {why}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
    },
}

/// The layers of what a disk shows, from the one that is written down to the lowest.
pub fn layers(source: &Source) -> Result<Vec<Layer>, ChainError> {
    let mut next = match source {
        Source::Raw(path) => Some(Layer { path: path.clone(), format: Format::Raw }),
        Source::Qcow2(path) => Some(Layer { path: path.clone(), format: Format::Qcow2 }),
        Source::Nbd(_) | Source::VhostUser(_) => None,
    };
    let mut out = Vec::new();
    while let Some(layer) = next.take() {
        if out.len() == LAYERS_MAX {
            return Err(ChainError::Content { path: layer.path, why: "lies below too many layers" });
        }
        if layer.format == Format::Qcow2 {
            next = below(&layer.path)?;
        }
        out.push(layer);
    }
    Ok(out)
}

/// What lies directly below a qcow2 file.
fn below(path: &Path) -> Result<Option<Layer>, ChainError> {
    let io = |source| ChainError::Io { path: path.into(), source };
    let content = |why| ChainError::Content { path: path.into(), why };
    let mut file = File::open(path).map_err(io)?;
    let mut head = [0; 104];
    file.read_exact(&mut head).map_err(|_| content("is shorter than a qcow2 header"))?;
    let u32_at = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    if &head[..4] != b"QFI\xfb" {
        return Err(content("is no qcow2 file"));
    }
    let (version, name_at, name_len) =
        (u32_at(4), (u64::from(u32_at(8)) << 32) | u64::from(u32_at(12)), u32_at(16));
    if name_at == 0 || name_len == 0 {
        return Ok(None);
    }
    if name_len > NAME_MAX {
        return Err(content("names a file below it with too long a name"));
    }
    let header_len = if version >= 3 { u32_at(100).max(104) } else { 72 };
    file.seek(SeekFrom::Start(header_len.into())).map_err(io)?;
    let format = extension(&mut file).ok_or(content("does not say what format the file below it has"))?;
    let mut name = vec![0; name_len as usize];
    file.seek(SeekFrom::Start(name_at)).and_then(|_| file.read_exact(&mut name)).map_err(io)?;
    let name = String::from_utf8(name).map_err(|_| content("names a file below it that is no text"))?;
    // Relative names begin at the file that has them; a name with a protocol is nothing that we make.
    let dir = path.parent().unwrap_or(Path::new("/"));
    Ok(Some(Layer { path: dir.join(name), format }))
}

/// The format of what is below, from the extensions at the file's place.
fn extension(file: &mut File) -> Option<Format> {
    for _ in 0..16 {
        let mut head = [0; 8];
        file.read_exact(&mut head).ok()?;
        let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (kind, len) = (word(0), word(4).min(4096));
        if kind == 0 {
            return None;
        }
        let mut data = vec![0; len.next_multiple_of(8) as usize];
        file.read_exact(&mut data).ok()?;
        if kind == BACKING_FORMAT {
            return match data.get(..len as usize)? {
                b"raw" => Some(Format::Raw),
                b"qcow2" => Some(Format::Qcow2),
                _ => None,
            };
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn layers_are_followed() {
        let dir = tempfile::tempdir().expect("dir");
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("base"), vec![0; 1 << 20]).expect("file");
        let create = |args: &[&str]| {
            let status =
                Command::new("qemu-img").current_dir(dir.path()).args(["create", "-q"]).args(args).status();
            assert!(status.expect("qemu-img (package qemu-utils)").success());
        };
        create(&["-f", "qcow2", "-F", "raw", "-b", "base", "mid.qcow2"]);
        create(&["-f", "qcow2", "-o", "compat=0.10", "-F", "qcow2", "-b", "mid.qcow2", "top.qcow2"]);
        create(&["-f", "qcow2", "alone.qcow2", "1M"]);
        let found = layers(&Source::Qcow2(at("top.qcow2"))).expect("layers");
        let want = [("top.qcow2", Format::Qcow2), ("mid.qcow2", Format::Qcow2), ("base", Format::Raw)];
        assert_eq!(found, want.map(|(name, format)| Layer { path: at(name), format }));
        assert_eq!(layers(&Source::Qcow2(at("alone.qcow2"))).expect("one").len(), 1);
        // A raw disk is what it is, whatever a guest wrote to it.
        assert_eq!(layers(&Source::Raw(at("top.qcow2"))).expect("one").len(), 1);
        let err = layers(&Source::Qcow2(at("base"))).expect_err("no header");
        assert!(err.to_string().ends_with("base: is no qcow2 file"), "{err}");
        let err = layers(&Source::Qcow2("/nowhere".into())).expect_err("no file");
        assert_eq!(err.to_string(), "Could not open '/nowhere'");
        create(&["-f", "qcow2", "-u", "-F", "qcow2", "-b", "other.qcow2", "loop.qcow2", "1M"]);
        create(&["-f", "qcow2", "-u", "-F", "qcow2", "-b", "loop.qcow2", "other.qcow2", "1M"]);
        let err = layers(&Source::Qcow2(at("loop.qcow2"))).expect_err("endless");
        assert!(err.to_string().contains("too many layers"), "{err}");
    }
}
