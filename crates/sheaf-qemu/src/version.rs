//! Which QEMU is installed, as a type: asked of the program once, and compared where QEMU's options differ.
//!
//! State: what each program said when it was asked. A package that is replaced under a running agent is noticed by the next
//! agent; what is chosen by version here works with the versions around it, too.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// The program, as the search path finds it.
pub const PROGRAM: &str = "qemu-system-x86_64";

/// A version of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u16,
    /// The second.
    pub minor: u16,
    /// The third.
    pub micro: u16,
}

/// The version could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// The program could not be run.
    #[error("cannot ask {} for its version", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It said something else.
    #[error("{} does not say its version, but {said:?}", program.display())]
    Words {
        /// The program.
        program: PathBuf,
        /// The beginning of what it said.
        said: String,
    },
}

/// Where a program lies, by the search path of this process. A process that is started without an environment is looked for
/// elsewhere; so what is asked for its version and what runs are only the same if both are started by this path.
pub fn locate(program: &Path) -> PathBuf {
    if program.components().count() != 1 {
        return program.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let runs = |file: &PathBuf| {
        let mode =
            std::fs::metadata(file).ok().filter(std::fs::Metadata::is_file).map(|m| m.permissions().mode());
        mode.is_some_and(|mode| mode & 0o111 != 0)
    };
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(runs).unwrap_or_else(|| program.into())
}

static KNOWN: Mutex<BTreeMap<PathBuf, Version>> = Mutex::new(BTreeMap::new());

impl Version {
    /// A version by its numbers.
    pub const fn new(major: u16, minor: u16, micro: u16) -> Self {
        Self { major, minor, micro }
    }

    /// The version of a program, which is run for it the first time that somebody asks. Blocking.
    pub fn of(program: &Path) -> Result<Self, VersionError> {
        if let Some(known) = KNOWN.lock().unwrap_or_else(PoisonError::into_inner).get(program) {
            return Ok(*known);
        }
        let out = Command::new(locate(program)).arg("--version").stdin(Stdio::null()).output();
        let out = out.map_err(|source| VersionError::Run { program: program.into(), source })?;
        let text = String::from_utf8_lossy(&out.stdout);
        let version = Self::parse(&text).ok_or_else(|| VersionError::Words {
            program: program.into(),
            said: text.chars().take(100).collect(),
        })?;
        KNOWN.lock().unwrap_or_else(PoisonError::into_inner).insert(program.into(), version);
        Ok(version)
    }

    /// Reads what `--version` prints: `QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)`.
    pub fn parse(text: &str) -> Option<Self> {
        let (_, after) = text.lines().next()?.split_once("version ")?;
        let mut numbers = after.split_whitespace().next()?.split('.').map(|n| n.parse().ok());
        let (major, minor) = (numbers.next()??, numbers.next()??);
        Some(Self { major, minor, micro: numbers.next().flatten().unwrap_or(0) })
    }

    /// How a character device that loses its peer is told to try again each second. The first form is gone in versions to come,
    /// the second unknown to those before 9.2.
    pub(crate) fn reconnect(self) -> &'static str {
        if self < Self::new(9, 2, 0) { "reconnect=1" } else { "reconnect-ms=1000" }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_qemu_says_is_read() {
        let cases = [
            ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright", Some((7, 2, 22))),
            ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1)", Some((10, 0, 2))),
            ("QEMU emulator version 11.0", Some((11, 0, 0))),
            ("QEMU emulator version 9.1.50 (v9.1.0-1-gabc)", Some((9, 1, 50))),
            ("QEMU emulator version next", None),
            ("", None),
        ];
        for (text, want) in cases {
            assert_eq!(Version::parse(text), want.map(|(a, b, c)| Version::new(a, b, c)), "{text}");
        }
        assert_eq!(Version::new(10, 0, 2).to_string(), "10.0.2");
    }

    #[test]
    fn a_way_to_reconnect_for_each_version() {
        let way = |major, minor, micro| Version::new(major, minor, micro).reconnect();
        assert_eq!((way(7, 2, 22), way(9, 1, 2)), ("reconnect=1", "reconnect=1"));
        assert_eq!((way(9, 2, 0), way(10, 0, 2)), ("reconnect-ms=1000", "reconnect-ms=1000"));
    }

    #[test]
    fn programs_are_found_as_the_shell_finds_them() {
        let found = locate(Path::new("sh"));
        assert!(found.is_absolute() && found.ends_with("sh"), "{}", found.display());
        for as_it_is in ["/bin/sh", "./sh", "no-such-program"] {
            assert_eq!(locate(Path::new(as_it_is)), Path::new(as_it_is));
        }
    }

    #[test]
    fn a_program_that_is_none_is_an_error() {
        let error = Version::of(Path::new("/nowhere/qemu")).expect_err("no program");
        assert_eq!(error.to_string(), "cannot ask /nowhere/qemu for its version");
        let error = Version::of(Path::new("true")).expect_err("no words");
        assert!(error.to_string().starts_with("true does not say its version, but "), "{error}");
    }
}
