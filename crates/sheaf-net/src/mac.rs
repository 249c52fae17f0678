//! Hardware addresses. No state.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A hardware address of Ethernet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Mac(pub [u8; 6]);

/// A text that is no hardware address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no hardware address: six pairs of hexadecimal digits with colons are expected")]
pub struct MacError(String);

impl Mac {
    /// The address of the host's end of a guest's NIC.
    ///
    /// A bridge without an address of its own takes the lowest of its ports', so a port's must be high: else a
    /// starting guest would change the address of the host's bridge, and its peers would lose it. Never equal to the
    /// guest's own address.
    #[must_use]
    pub fn host_end(self) -> Self {
        let [first, rest @ ..] = self.0;
        let high = if first == 0xfe { 0xfa } else { 0xfe };
        let [b, c, d, e, f] = rest;
        Self([high, b, c, d, e, f])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let error = || MacError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(error)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(error());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() { Err(error()) } else { Ok(Self(bytes)) }
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl TryFrom<String> for Mac {
    type Error = MacError;

    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_it_prints_and_nothing_else() {
        let mac: Mac = "52:54:00:AB-cd:0f".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:0f");
        for bad in ["", "52:54:00:ab:cd", "52:54:00:ab:cd:0f:11", "52:54:00:ab:cd:+f", "525400abcd0f"] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn host_end_differs_from_the_guest_s() {
        let guest: Mac = "fe:54:00:ab:cd:0f".parse().unwrap();
        assert_eq!(guest.host_end().to_string(), "fa:54:00:ab:cd:0f");
        let guest: Mac = "52:54:00:ab:cd:0f".parse().unwrap();
        assert_eq!(guest.host_end().to_string(), "fe:54:00:ab:cd:0f");
    }
}
