//! Reading the protobuf wire format: tags, varints, fixed words, counted bytes. Knows no message.
//!
//! Groups (wire types 3 and 4) are refused: no Kubernetes type has any.

/// Why bytes are no message. Positions are not kept: nobody can look at them in a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes end within a field.
    #[error("it ends in the middle of a field")]
    Truncated,
    /// A varint of more than 64 bits.
    #[error("it has an integer of more than 64 bits")]
    Overlong,
    /// Field number zero, or one beyond 29 bits.
    #[error("it has a field number that does not exist")]
    FieldNumber,
    /// A wire type that no encoder writes any more, or that does not exist.
    #[error("it has a field of an unknown wire type")]
    WireType,
    /// A field of the table has another wire type.
    #[error("it has a field of another type than its kind says")]
    Mismatch,
}

/// A field's value, undecoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Raw<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

impl<'a> Raw<'a> {
    pub(super) fn varint(self) -> Result<u64, WireError> {
        match self {
            Self::Varint(v) => Ok(v),
            _ => Err(WireError::Mismatch),
        }
    }
    pub(super) fn bytes(self) -> Result<&'a [u8], WireError> {
        match self {
            Self::Bytes(b) => Ok(b),
            _ => Err(WireError::Mismatch),
        }
    }
    pub(super) fn double(self) -> Result<f64, WireError> {
        match self {
            Self::Fixed64(v) => Ok(f64::from_bits(v)),
            Self::Fixed32(v) => Ok(f64::from(f32::from_bits(v))),
            _ => Err(WireError::Mismatch),
        }
    }
}

/// What is left of a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    /// The next field, or `None` at the end.
    pub(super) fn field(&mut self) -> Result<Option<(u32, Raw<'a>)>, WireError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).map_err(|_| WireError::FieldNumber)?;
        if number == 0 || number >= 1 << 29 {
            return Err(WireError::FieldNumber);
        }
        let raw = match key & 7 {
            0 => Raw::Varint(self.varint()?),
            1 => Raw::Fixed64(u64::from_le_bytes(self.fixed()?)),
            2 => {
                let len = usize::try_from(self.varint()?).map_err(|_| WireError::Truncated)?;
                Raw::Bytes(self.take(len)?)
            }
            5 => Raw::Fixed32(u32::from_le_bytes(self.fixed()?)),
            _ => return Err(WireError::WireType),
        };
        Ok(Some((number, raw)))
    }

    /// A varint of at most ten bytes.
    pub(super) fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or(WireError::Truncated)?;
            self.0 = rest;
            if shift == 63 && byte > 1 {
                return Err(WireError::Overlong);
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(WireError::Overlong)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(WireError::Truncated)?;
        self.0 = rest;
        Ok(*head)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(WireError::Truncated)?;
        self.0 = rest;
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_of_every_length() {
        for (bytes, want) in [
            (&[0u8][..], Ok(0)),
            (&[0x96, 1], Ok(150)),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], Ok(u64::MAX)),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2], Err(WireError::Overlong)),
            (&[0x80], Err(WireError::Truncated)),
            (&[], Err(WireError::Truncated)),
        ] {
            assert_eq!(Reader(bytes).varint(), want, "{bytes:?}");
        }
    }

    #[test]
    fn fields_and_what_is_none() {
        let all = |bytes: &'static [u8]| {
            let mut reader = Reader(bytes);
            let mut out = Vec::new();
            while let Some(field) = reader.field()? {
                out.push(field);
            }
            Ok(out)
        };
        assert_eq!(all(b"\x08\x01\x12\x02ab"), Ok(vec![(1, Raw::Varint(1)), (2, Raw::Bytes(b"ab"))]));
        assert_eq!(all(b"\x0d\x01\0\0\0"), Ok(vec![(1, Raw::Fixed32(1))]));
        assert_eq!(all(b"\x09\x01\0\0\0\0\0\0\0"), Ok(vec![(1, Raw::Fixed64(1))]));
        assert_eq!(all(b"\x12\x03ab"), Err(WireError::Truncated));
        assert_eq!(all(b"\x0b"), Err(WireError::WireType));
        assert_eq!(all(b"\x00\x00"), Err(WireError::FieldNumber));
    }
}
