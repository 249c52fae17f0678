//! Public SSH keys as one line of `authorized_keys`, and their MD5 fingerprint.
//!
//! MD5 is no protection here: it is the name by which Harvester shows a key.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A public key that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// `ssh-ed25519`, `ssh-rsa`, ...
    pub algorithm: String,
    /// The key in the form that goes over the wire.
    pub blob: Vec<u8>,
    /// What stands behind it.
    pub comment: String,
}

/// Why a line is no public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Nothing there.
    #[error(
        "is empty; it takes one line as in authorized_keys, for example the content of ~/.ssh/id_ed25519.pub"
    )]
    Empty,
    /// A private key: it must not be here at all.
    #[error("looks like a private key; give the public one (the file that ends in .pub)")]
    Private,
    /// No known algorithm in the line.
    #[error("names no algorithm that is known; it must be one of {}", ALGORITHMS.join(", "))]
    Algorithm,
    /// The part after the algorithm is no base64.
    #[error("the part after the algorithm is no base64: was the line broken or cut?")]
    Base64,
    /// The bytes are not those of such a key.
    #[error("the part after the algorithm is no {0} key: was the line cut?")]
    Blob(&'static str),
}

const ALGORITHMS: &[&str] = &[
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "ssh-dss",
];

impl PublicKey {
    /// Reads one line; options before the algorithm are allowed.
    pub fn parse(line: &str) -> Result<Self, KeyError> {
        let line = line.trim();
        if line.is_empty() {
            return Err(KeyError::Empty);
        }
        if line.contains("PRIVATE KEY") {
            return Err(KeyError::Private);
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let found =
            words.iter().enumerate().find_map(|(i, w)| Some((i, *ALGORITHMS.iter().find(|a| *a == w)?)));
        let (at, algorithm) = found.ok_or(KeyError::Algorithm)?;
        let blob = STANDARD.decode(words.get(at + 1).unwrap_or(&"")).map_err(|_| KeyError::Base64)?;
        check(algorithm, &blob).ok_or(KeyError::Blob(algorithm))?;
        let comment = words.get(at + 2..).map_or_else(String::new, |rest| rest.join(" "));
        Ok(Self { algorithm: algorithm.into(), blob, comment })
    }

    /// MD5 of the key, as pairs of hexadecimal digits parted by colons.
    pub fn fingerprint(&self) -> String {
        md5(&self.blob).map(|b| format!("{b:02x}")).join(":")
    }
}

/// Reads the fields of a key, each behind its length; `None` if they are not those of the algorithm.
fn check(algorithm: &str, mut blob: &[u8]) -> Option<()> {
    let mut fields = Vec::new();
    while !blob.is_empty() {
        let (length, rest) = blob.split_first_chunk::<4>()?;
        let (field, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        fields.push(field);
        blob = rest;
    }
    let named = fields.first().is_some_and(|name| *name == algorithm.as_bytes());
    let long_enough = match (algorithm, fields.as_slice()) {
        ("ssh-ed25519", [_, key]) | ("sk-ssh-ed25519@openssh.com", [_, key, _]) => key.len() == 32,
        ("ssh-rsa", [_, exponent, modulus]) => !exponent.is_empty() && modulus.len() >= 96,
        ("ssh-dss", fields) => fields.len() == 5,
        (_, [_, curve, point, ..]) => {
            algorithm.contains(std::str::from_utf8(curve).ok()?) && point.len() > 32
        }
        _ => false,
    };
    (named && long_enough).then_some(())
}

/// MD5 as in RFC 1321.
fn md5(data: &[u8]) -> [u8; 16] {
    const SHIFTS: [[u32; 4]; 4] = [[7, 12, 17, 22], [5, 9, 14, 20], [4, 11, 16, 23], [6, 10, 15, 21]];
    let mut message = data.to_vec();
    message.push(0x80);
    while message.len() % 64 != 56 {
        message.push(0);
    }
    message.extend_from_slice(&(data.len() as u64).wrapping_mul(8).to_le_bytes());
    let mut state: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
    for block in message.chunks_exact(64) {
        let mut words = [0u32; 16];
        for (word, bytes) in words.iter_mut().zip(block.chunks_exact(4)) {
            *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        let [mut a, mut b, mut c, mut d] = state;
        for i in 0..64usize {
            let (mix, word) = match i / 16 {
                0 => ((b & c) | (!b & d), i),
                1 => ((d & b) | (!d & c), (5 * i + 1) % 16),
                2 => (b ^ c ^ d, (3 * i + 5) % 16),
                _ => (c ^ (b | !d), (7 * i) % 16),
            };
            // RFC 1321: the integer part of 2^32 times the absolute sine.
            let sine = (((i + 1) as f64).sin().abs() * 4_294_967_296.0) as u32;
            let sum = a.wrapping_add(mix).wrapping_add(sine).wrapping_add(words[word]);
            (a, d, c) = (d, c, b);
            b = b.wrapping_add(sum.rotate_left(SHIFTS[i / 16][i % 4]));
        }
        for (s, v) in state.iter_mut().zip([a, b, c, d]) {
            *s = s.wrapping_add(v);
        }
    }
    let mut out = [0u8; 16];
    for (bytes, word) in out.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn md5_matches_the_vectors_of_its_rfc() {
        let hex = |data: &str| md5(data.as_bytes()).map(|b| format!("{b:02x}")).concat();
        assert_eq!(hex(""), "d41d8cd98f00b204e9800998ecf8427e");
        assert_eq!(hex("message digest"), "f96b697d7cb7938d525a2f31aaf161d0");
        let long = "12345678901234567890123456789012345678901234567890123456789012345678901234567890";
        assert_eq!(hex(long), "57edf4a22be3c955ac49da2e2107b67a");
        for n in 50..70 {
            assert_eq!(hex(&"a".repeat(n)).len(), 32, "{n}");
        }
        assert_eq!(hex(&"a".repeat(56)), "3b0c8ac703f828b04c6c197006d17218");
        assert_eq!(hex(&"a".repeat(64)), "014842d480b571495a4a0363793f7367");
    }
}
