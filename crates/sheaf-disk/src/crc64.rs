//! CRC-64 as Longhorn records it for snapshots (ISO 3309, reflected), with a shortcut over holes. Pure.

const POLY: u64 = 0xd800_0000_0000_0000;

const fn tables() -> [[u64; 256]; 8] {
    let mut t = [[0u64; 256]; 8];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u64;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLY } else { crc >> 1 };
            bit += 1;
        }
        t[0][i] = crc;
        i += 1;
    }
    let mut slice = 1;
    while slice < 8 {
        let mut i = 0;
        while i < 256 {
            let below = t[slice - 1][i];
            t[slice][i] = t[0][(below & 0xff) as usize] ^ (below >> 8);
            i += 1;
        }
        slice += 1;
    }
    t
}

static TABLES: [[u64; 256]; 8] = tables();

/// A checksum under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Crc64(u64);

impl Default for Crc64 {
    fn default() -> Self {
        Self(!0)
    }
}

impl Crc64 {
    /// Takes in bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let mut crc = self.0;
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            let mut word = [0; 8];
            word.copy_from_slice(chunk);
            let x = crc ^ u64::from_le_bytes(word);
            crc = (0..8).fold(0, |sum, i| sum ^ TABLES[7 - i][((x >> (8 * i)) & 0xff) as usize]);
        }
        for byte in chunks.remainder() {
            crc = TABLES[0][((crc ^ u64::from(*byte)) & 0xff) as usize] ^ (crc >> 8);
        }
        self.0 = crc;
    }

    /// Takes in `count` zero bytes, in time that grows with the logarithm of their number.
    pub fn zeros(&mut self, count: u64) {
        // One zero byte is a linear map of the 64 bits; its powers by squaring.
        let mut map: [u64; 64] = std::array::from_fn(|bit| {
            let crc = 1u64 << bit;
            TABLES[0][(crc & 0xff) as usize] ^ (crc >> 8)
        });
        let apply = |map: &[u64; 64], value: u64| {
            (0..64).filter(|bit| value >> bit & 1 == 1).fold(0, |sum, bit| sum ^ map[bit])
        };
        let mut left = count;
        while left > 0 {
            if left & 1 == 1 {
                self.0 = apply(&map, self.0);
            }
            map = map.map(|image| apply(&map, image));
            left >>= 1;
        }
    }

    /// The checksum of what was taken in.
    pub fn finish(self) -> u64 {
        !self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(bytes: &[u8]) -> u64 {
        let mut crc = Crc64::default();
        crc.update(bytes);
        crc.finish()
    }

    #[test]
    fn check_values() {
        assert_eq!(of(b"123456789"), 0xb909_56c7_75a4_1001);
        assert_eq!(of(&[0; 4096]), 0x492f_c33c_906f_ff90);
    }

    proptest! {
        #[test]
        fn holes_count_as_zeros(head in prop::collection::vec(any::<u8>(), 0..40), hole in 0u64..5000, tail in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut all = head.clone();
            all.resize(head.len() + hole as usize, 0);
            all.extend(&tail);
            let mut crc = Crc64::default();
            crc.update(&head);
            crc.zeros(hole);
            crc.update(&tail);
            prop_assert_eq!(crc.finish(), of(&all));
        }
    }
}
