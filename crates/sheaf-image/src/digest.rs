//! Checksums as users write them: hexadecimal SHA-512 (Harvester's `spec.checksum`) or SHA-256, told apart by length.

use std::fmt;

use sha2::{Digest, Sha256, Sha512};

/// A checksum that a file must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// 64 hexadecimal digits.
    Sha256([u8; 32]),
    /// 128 hexadecimal digits.
    Sha512([u8; 64]),
}

/// A text that is no checksum.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChecksumError {
    /// Neither 128 nor 64 digits.
    #[error("a checksum has 128 hexadecimal digits (SHA-512) or 64 (SHA-256), this one has {0} characters")]
    Length(usize),
    /// Some character is no hexadecimal digit.
    #[error("a checksum has hexadecimal digits only, this one has {0:?} at position {1}")]
    Digit(char, usize),
}

impl std::str::FromStr for Checksum {
    type Err = ChecksumError;

    fn from_str(text: &str) -> Result<Self, ChecksumError> {
        let text = text.trim();
        if let Some((at, bad)) = text.char_indices().find(|(_, c)| !c.is_ascii_hexdigit()) {
            return Err(ChecksumError::Digit(bad, at));
        }
        match text.len() {
            64 => Ok(Checksum::Sha256(unhex(text))),
            128 => Ok(Checksum::Sha512(unhex(text))),
            other => Err(ChecksumError::Length(other)),
        }
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Checksum::Sha256(bytes) => f.write_str(&hex(bytes)),
            Checksum::Sha512(bytes) => f.write_str(&hex(bytes)),
        }
    }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The caller has checked the digits and their number.
fn unhex<const N: usize>(text: &str) -> [u8; N] {
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16).unwrap_or(0) as u8;
        *byte = digit(pair[0]) << 4 | digit(pair[1]);
    }
    out
}

/// What is computed over every file received: SHA-512 always (it is how nodes check what they give one another), and
/// SHA-256 if that is what the user gave.
#[derive(Clone)]
pub(crate) struct Hashes {
    sha512: Sha512,
    sha256: Option<Sha256>,
}

impl Hashes {
    pub(crate) fn new(expected: Option<&Checksum>) -> Self {
        let sha256 = matches!(expected, Some(Checksum::Sha256(_))).then(Sha256::new);
        Hashes { sha512: Sha512::new(), sha256 }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.sha512.update(bytes);
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(bytes);
        }
    }

    /// The SHA-512, and the checksum of the kind that was expected.
    pub(crate) fn finish(self) -> ([u8; 64], Checksum) {
        let sha512: [u8; 64] = self.sha512.finalize().into();
        let asked = match self.sha256 {
            Some(sha256) => Checksum::Sha256(sha256.finalize().into()),
            None => Checksum::Sha512(sha512),
        };
        (sha512, asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_told_apart_by_length() {
        let text = "AB".repeat(64);
        assert_eq!(text.parse(), Ok(Checksum::Sha512([0xab; 64])));
        assert_eq!(Checksum::Sha512([0xab; 64]).to_string(), text.to_lowercase());
        assert_eq!(" 0f ".parse::<Checksum>(), Err(ChecksumError::Length(2)));
        assert_eq!("1e".repeat(32).parse(), Ok(Checksum::Sha256([0x1e; 32])));
        assert_eq!("x".repeat(128).parse::<Checksum>(), Err(ChecksumError::Digit('x', 0)));
        assert_eq!("".parse::<Checksum>(), Err(ChecksumError::Length(0)));
    }
}
