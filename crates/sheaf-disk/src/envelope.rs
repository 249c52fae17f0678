//! The frame around every small file of ours: what it is, which version wrote it, and whether it is whole. Pure.
//!
//! ```text
//!  0  magic          8   which file
//!  8  version        4   of its body
//! 12  body length    4
//! 16  body CRC-32C   4
//! 20  header CRC-32C 4   of bytes 0 to 19
//! 24  body
//! ```
//!
//! Little-endian. The header has a checksum of its own, so that "from the future" is told from "damaged".

use sheaf_block_core::crc::crc32c;

/// Bytes before the body.
pub const HEADER: usize = 24;
/// Bytes of the largest body.
pub const BODY_MAX: usize = 1 << 30;

/// Why bytes are not what they should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// Cut, or something else altogether.
    #[error("it is not a file of this kind, or cut short")]
    NotOurs,
    /// A checksum does not match.
    #[error("it is damaged (checksum)")]
    Damaged,
    /// A later version wrote it.
    #[error("it was written by a newer version of Sheaf (format {0}); this one knows formats up to {1}")]
    Future(u32, u32),
    /// The body contradicts the format.
    #[error("its content is not valid")]
    Content,
}

/// Puts a body into its frame.
pub fn seal(magic: [u8; 8], version: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(magic);
    bytes.extend(version.to_le_bytes());
    bytes.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(crc32c(body).to_le_bytes());
    let crc = crc32c(&bytes);
    bytes.extend(crc.to_le_bytes());
    bytes.extend(body);
    bytes
}

/// The body, if it is whole and of a version that we know.
pub fn unseal(magic: [u8; 8], known: u32, bytes: &[u8]) -> Result<(u32, &[u8]), EnvelopeError> {
    let mut r = Reader(bytes);
    let header = bytes.get(..20).ok_or(EnvelopeError::NotOurs)?;
    if r.array::<8>()? != magic {
        return Err(EnvelopeError::NotOurs);
    }
    let (version, len, crc, header_crc) = (r.u32()?, r.u32()? as usize, r.u32()?, r.u32()?);
    if crc32c(header) != header_crc {
        return Err(EnvelopeError::Damaged);
    }
    if version > known || version == 0 {
        return Err(EnvelopeError::Future(version, known));
    }
    let body = r.0.get(..len).filter(|_| len <= BODY_MAX).ok_or(EnvelopeError::NotOurs)?;
    if crc32c(body) != crc {
        return Err(EnvelopeError::Damaged);
    }
    Ok((version, body))
}

/// Takes little-endian values off the front.
pub struct Reader<'a>(pub &'a [u8]);

impl Reader<'_> {
    /// So many bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], EnvelopeError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(EnvelopeError::Content)?;
        self.0 = rest;
        Ok(*head)
    }
    /// One byte.
    pub fn u8(&mut self) -> Result<u8, EnvelopeError> {
        Ok(self.array::<1>()?[0])
    }
    /// One byte that is 0 or 1.
    pub fn flag(&mut self) -> Result<bool, EnvelopeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(EnvelopeError::Content),
        }
    }
    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, EnvelopeError> {
        self.array().map(u32::from_le_bytes)
    }
    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, EnvelopeError> {
        self.array().map(u64::from_le_bytes)
    }
    /// Sixteen bytes.
    pub fn u128(&mut self) -> Result<u128, EnvelopeError> {
        self.array().map(u128::from_le_bytes)
    }
    /// A text with its length before it.
    pub fn text(&mut self) -> Result<String, EnvelopeError> {
        let len = self.u32()? as usize;
        let (head, rest) = self.0.split_at_checked(len).ok_or(EnvelopeError::Content)?;
        self.0 = rest;
        String::from_utf8(head.to_vec()).map_err(|_| EnvelopeError::Content)
    }
}

/// Appends a text with its length before it.
pub fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAGIC: [u8; 8] = *b"SHEAFtst";

    #[test]
    fn a_version_from_the_future_is_not_called_damage() {
        let bytes = seal(MAGIC, 7, b"body");
        assert_eq!(unseal(MAGIC, 1, &bytes), Err(EnvelopeError::Future(7, 1)));
        assert_eq!(unseal(*b"SHEAFxxx", 7, &bytes), Err(EnvelopeError::NotOurs));
        assert_eq!(unseal(MAGIC, 7, &bytes), Ok((7, &b"body"[..])));
    }

    proptest! {
        #[test]
        fn any_flipped_bit_or_cut_is_seen(body in prop::collection::vec(any::<u8>(), 0..60), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let bytes = seal(MAGIC, 1, &body);
            let mut bad = bytes.clone();
            let at = at.index(bytes.len());
            bad[at] ^= 1 << bit;
            prop_assert!(unseal(MAGIC, 1, &bad).is_err());
            prop_assert!(unseal(MAGIC, 1, &bytes[..at]).is_err());
        }
    }
}
