//! The last so many steps of some numbers, in twelve bytes each. Pure.

use std::collections::VecDeque;

use sheaf_plan::usage::Numbers;

/// A number in two bytes: the upper half of a positive `f32`, which is right to a quarter of a percent.
type Packed = [u16; 6];
/// A step of which nothing is known.
const GAP: Packed = [u16::MAX; 6];
/// Steps for which room is made at a time: most machines are young.
const ROOM: usize = 48;

fn pack(value: f32) -> u16 {
    // The sign is always plus: its bit is room for one of the mantissa. Rounded, and less than the bits of a gap.
    let bits = value.clamp(0.0, f32::MAX).to_bits();
    u16::try_from(bits.saturating_add(0x4000) >> 15).unwrap_or(0)
}

fn unpack(packed: u16) -> f32 {
    f32::from_bits(u32::from(packed) << 15)
}

/// Numbers by step. A step is the time since the epoch by the length of one.
#[derive(Debug, Default)]
pub(super) struct Ring {
    kept: VecDeque<Packed>,
    /// The step after the newest.
    end: i64,
}

impl Ring {
    /// Keeps the numbers of a step, and the `steps` newest in all. What is not newer than what is known is left out.
    pub(super) fn push(&mut self, step: i64, numbers: &Numbers, steps: usize) {
        if self.kept.is_empty() {
            self.end = step;
        }
        if step < self.end {
            return;
        }
        let missed = usize::try_from(step - self.end).unwrap_or(usize::MAX).min(steps);
        for _ in 0..missed {
            self.add(GAP, steps);
        }
        self.add(numbers.map(pack), steps);
        self.end = step + 1;
    }

    fn add(&mut self, packed: Packed, steps: usize) {
        if self.kept.len() >= steps {
            self.kept.pop_front();
        } else if self.kept.len() == self.kept.capacity() {
            self.kept.reserve_exact(ROOM);
        }
        self.kept.push_back(packed);
    }

    /// Drops what is older than the `steps` before `now`.
    pub(super) fn trim(&mut self, now: i64, steps: usize) {
        let steps = i64::try_from(steps).unwrap_or(i64::MAX);
        let begin = self.end - i64::try_from(self.kept.len()).unwrap_or(i64::MAX);
        let old = usize::try_from(now + 1 - steps - begin).unwrap_or(0).min(self.kept.len());
        self.kept.drain(..old);
        if self.kept.is_empty() {
            self.kept = VecDeque::new();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// The numbers of a step.
    pub(super) fn at(&self, step: i64) -> Option<Numbers> {
        let back = usize::try_from(self.end - step).ok().filter(|back| *back > 0)?;
        let packed = *self.kept.get(self.kept.len().checked_sub(back)?)?;
        (packed != GAP).then(|| packed.map(unpack))
    }

    /// Bytes that it takes.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.kept.capacity() * size_of::<Packed>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_bytes_are_enough() {
        for value in [0.0, 0.013, 1.0, 3.99, 1e6, 123_456_789.0, 68_719_476_736.0, 1e12] {
            let back = unpack(pack(value));
            assert!((back - value).abs() <= value / 400.0, "{value} {back}");
        }
        assert!(pack(f32::INFINITY) < u16::MAX && pack(f32::NAN) < u16::MAX && unpack(pack(-1.0)) == 0.0);
    }

    #[test]
    fn steps_that_were_missed_are_gaps_and_the_oldest_go() {
        let mut ring = Ring::default();
        let one = |n: f32| [n; 6];
        ring.push(100, &one(1.0), 5);
        ring.push(100, &one(9.0), 5);
        ring.push(103, &one(4.0), 5);
        let all: Vec<Option<f32>> = (99..105).map(|step| ring.at(step).map(|n| n[0])).collect();
        assert_eq!(all, [None, Some(1.0), None, None, Some(4.0), None]);
        ring.push(102, &one(9.0), 5);
        ring.push(106, &one(7.0), 5);
        assert_eq!(
            (ring.at(100), ring.at(103).map(|n| n[5]), ring.at(106).map(|n| n[5])),
            (None, Some(4.0), Some(7.0))
        );
        ring.push(1_000_000, &one(1.0), 5);
        assert_eq!((ring.kept.len(), ring.at(106)), (5, None));
        ring.trim(1_000_003, 5);
        assert_eq!((ring.kept.len(), ring.at(1_000_000).map(|n| n[0])), (2, Some(1.0)));
        ring.trim(1_000_005, 5);
        assert!(ring.is_empty() && ring.at(1_000_000).is_none() && ring.bytes() == 0);
        ring.push(7, &one(2.0), 5);
        assert_eq!(ring.at(7).map(|n| n[0]), Some(2.0), "the clock was set back, and all was forgotten");
    }
}
