//! Quantities: `500m`, `2Gi`, `1e3`, as Kubernetes reads, compares and writes them.
//!
//! Exact down to one nano and up to 2^63-1; finer fractions round away from zero and larger magnitudes are capped,
//! as upstream does. The notation that the user chose (binary, decimal, exponent) is kept.

use std::cmp::Ordering;
use std::fmt;

const NANO: i128 = 1_000_000_000;
const MAX: i128 = (i64::MAX as i128) * NANO;
/// Longer texts are refused before they are parsed.
const MAX_LEN: usize = 64;

/// In which notation a quantity was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Notation {
    /// `Ki`, `Mi`, ...
    Binary,
    /// `n`, `u`, `m`, none, `k`, `M`, ...
    Decimal,
    /// `1e3`.
    Exponent,
}

/// A parsed quantity. Compares by value: `1Gi` equals `1024Mi`.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nanos: i128,
    notation: Notation,
}

/// Why a text is no quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not digits followed by a suffix.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// The part after the digits is unknown.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    /// Reads a quantity.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        if text.is_empty() || text.len() > MAX_LEN || !text.is_ascii() {
            return Err(QuantityError::Format);
        }
        let (negative, rest) = match text.as_bytes()[0] {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.bytes().position(|b| !b.is_ascii_digit() && b != b'.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(QuantityError::Format);
        }
        if !suffix.bytes().all(|b| b.is_ascii_digit() || b"eEinumkKMGTP+-".contains(&b)) {
            return Err(QuantityError::Format);
        }
        let (notation, scale) = suffix_scale(suffix)?;
        let magnitude = scaled(whole, fraction, scale);
        Ok(Self { nanos: if negative { -magnitude } else { magnitude }, notation })
    }

    /// A whole number in the given notation.
    pub fn from_int(value: i64, notation: Notation) -> Self {
        Self { nanos: i128::from(value) * NANO, notation }
    }
    /// Thousandths, in decimal notation (`1500` is `1500m`).
    pub fn from_milli(value: i64) -> Self {
        Self { nanos: i128::from(value) * (NANO / 1000), notation: Notation::Decimal }
    }
    /// A number of bytes, in binary notation.
    pub fn from_bytes(value: u64) -> Self {
        Self { nanos: (i128::from(value) * NANO).min(MAX), notation: Notation::Binary }
    }
    /// Zero.
    pub fn zero() -> Self {
        Self::from_int(0, Notation::Decimal)
    }

    /// The value rounded up to a whole number (bytes, for sizes).
    pub fn value(&self) -> i64 {
        clamp(ceil_div(self.nanos, NANO))
    }
    /// The value as bytes, rounded up; `None` if negative.
    pub fn bytes(&self) -> Option<u64> {
        u64::try_from(self.value()).ok()
    }
    /// Thousandths, rounded up (`500m` is 500, `2` is 2000).
    pub fn milli(&self) -> i64 {
        clamp(ceil_div(self.nanos, NANO / 1000))
    }
    /// Billionths, exact.
    pub fn nanos(&self) -> i128 {
        self.nanos
    }
    /// As a float, for ratios and display only.
    pub fn as_f64(&self) -> f64 {
        self.nanos as f64 / NANO as f64
    }
    /// -1, 0 or 1.
    pub fn signum(&self) -> i32 {
        self.nanos.signum() as i32
    }
    /// The notation it was written in.
    pub fn notation(&self) -> Notation {
        self.notation
    }
    /// The sum, capped, in the notation of `self`.
    pub fn plus(self, other: Self) -> Self {
        Self { nanos: (self.nanos + other.nanos).clamp(-MAX, MAX), notation: self.notation }
    }
    /// The difference, capped, in the notation of `self`.
    pub fn minus(self, other: Self) -> Self {
        Self { nanos: (self.nanos - other.nanos).clamp(-MAX, MAX), notation: self.notation }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}
impl std::str::FromStr for Quantity {
    type Err = QuantityError;
    fn from_str(s: &str) -> Result<Self, QuantityError> {
        Self::parse(s)
    }
}

/// The canonical form: no fraction, the largest suffix that leaves none.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let small = self.nanos.abs() < 1024 * NANO;
        if self.notation == Notation::Binary && !small && self.nanos % NANO == 0 {
            const SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
            let mut number = self.nanos / NANO;
            let mut step = 0;
            while number % 1024 == 0 && step + 1 < SUFFIXES.len() {
                number /= 1024;
                step += 1;
            }
            return write!(f, "{number}{}", SUFFIXES[step]);
        }
        let mut number = self.nanos;
        let mut exponent = -9;
        while number % 1000 == 0 && exponent < 18 {
            number /= 1000;
            exponent += 3;
        }
        if self.notation == Notation::Exponent {
            return if exponent == 0 { write!(f, "{number}") } else { write!(f, "{number}e{exponent}") };
        }
        const SUFFIXES: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
        write!(f, "{number}{}", SUFFIXES[(exponent + 9) as usize / 3])
    }
}

#[derive(Clone, Copy)]
enum Scale {
    Ten(i32),
    Two(u32),
}

fn suffix_scale(suffix: &str) -> Result<(Notation, Scale), QuantityError> {
    use Notation::{Binary, Decimal, Exponent};
    Ok(match suffix {
        "n" => (Decimal, Scale::Ten(-9)),
        "u" => (Decimal, Scale::Ten(-6)),
        "m" => (Decimal, Scale::Ten(-3)),
        "" => (Decimal, Scale::Ten(0)),
        "k" => (Decimal, Scale::Ten(3)),
        "M" => (Decimal, Scale::Ten(6)),
        "G" => (Decimal, Scale::Ten(9)),
        "T" => (Decimal, Scale::Ten(12)),
        "P" => (Decimal, Scale::Ten(15)),
        "E" => (Decimal, Scale::Ten(18)),
        "Ki" => (Binary, Scale::Two(10)),
        "Mi" => (Binary, Scale::Two(20)),
        "Gi" => (Binary, Scale::Two(30)),
        "Ti" => (Binary, Scale::Two(40)),
        "Pi" => (Binary, Scale::Two(50)),
        "Ei" => (Binary, Scale::Two(60)),
        _ => {
            let digits = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError::Suffix)?;
            let exponent: i32 = digits.parse().map_err(|_| QuantityError::Suffix)?;
            // Beyond this every number is 0 or capped.
            (Exponent, Scale::Ten(exponent.clamp(-200, 200)))
        }
    })
}

/// `whole.fraction` times the scale, in nanos: rounded up, capped.
fn scaled(whole: &str, fraction: &str, scale: Scale) -> i128 {
    let digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).map(|b| b - b'0').collect();
    let mut point = whole.len() as i64;
    let binary = match scale {
        Scale::Ten(e) => {
            point += i64::from(e);
            0
        }
        Scale::Two(bits) => bits,
    };
    // digits * 10^(point - len) * 2^binary, as integer part and a decimal tail.
    let leading = digits.iter().take_while(|d| **d == 0).count();
    let significant = &digits[leading..];
    point -= leading as i64;
    if significant.iter().all(|d| *d == 0) {
        return 0;
    }
    if point > 19 {
        return MAX;
    }
    if binary == 0 {
        // Nanos keep `point + 9` digits; what follows rounds up.
        let keep = point + 9;
        if keep < 0 {
            return 1;
        }
        let mut n: i128 = 0;
        for i in 0..keep {
            n = n * 10 + i128::from(significant.get(i as usize).copied().unwrap_or(0));
        }
        let rest = significant.iter().skip(keep as usize).any(|d| *d != 0);
        return (n + i128::from(rest)).min(MAX);
    }
    // Binary suffix: the whole part and the fraction are multiplied one by one, to stay within i128.
    let mut whole_part: i128 = 0;
    for i in 0..point.max(0) {
        whole_part = whole_part * 10 + i128::from(significant.get(i as usize).copied().unwrap_or(0));
    }
    let multiplier = 1i128 << binary;
    if whole_part > MAX / NANO {
        return MAX;
    }
    let Some(nanos) = whole_part.checked_mul(multiplier).filter(|n| *n <= MAX / NANO).map(|n| n * NANO)
    else {
        return MAX;
    };
    // Long division in base ten: fraction * 2^binary * 10^9, eighteen digits at most (finer cannot matter after
    // rounding up, apart from the round itself).
    let skip = point.max(0) as usize;
    let zeros = (-point).max(0) as usize;
    let mut tail: Vec<u8> = std::iter::repeat_n(0, zeros.min(MAX_LEN))
        .chain(significant.iter().skip(skip).copied())
        .take(18)
        .collect();
    let rest = zeros + significant.len().saturating_sub(skip) > 18;
    tail.resize(18, 0);
    let fraction = tail.iter().fold(0i128, |n, d| n * 10 + i128::from(*d));
    // fraction < 10^18 and multiplier <= 2^60: the product fits; then times 10^9 / 10^18.
    let product = fraction * multiplier;
    let mut low = product / NANO;
    if product % NANO != 0 || rest {
        low += 1;
    }
    (nanos + low).min(MAX)
}

fn ceil_div(n: i128, d: i128) -> i128 {
    let q = n / d;
    if n % d > 0 { q + 1 } else { q }
}

fn clamp(n: i128) -> i64 {
    n.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_value_canonical() {
        for (text, value, milli, canonical) in [
            ("0", 0, 0, "0"),
            ("0Gi", 0, 0, "0"),
            ("1", 1, 1000, "1"),
            ("1.5", 2, 1500, "1500m"),
            (".5", 1, 500, "500m"),
            ("5.", 5, 5000, "5"),
            ("500m", 1, 500, "500m"),
            ("1500m", 2, 1500, "1500m"),
            ("2000m", 2, 2000, "2"),
            ("1k", 1000, 1_000_000, "1k"),
            ("1000k", 1_000_000, 1_000_000_000, "1M"),
            ("1Ki", 1024, 1_024_000, "1Ki"),
            ("0.5Ki", 512, 512_000, "512"),
            ("1.5Gi", 1_610_612_736, 1_610_612_736_000, "1536Mi"),
            ("1024Mi", 1 << 30, (1 << 30) * 1000, "1Gi"),
            ("1000Ki", 1_024_000, 1_024_000_000, "1000Ki"),
            ("1e3", 1000, 1_000_000, "1e3"),
            ("1E3", 1000, 1_000_000, "1e3"),
            ("15e2", 1500, 1_500_000, "1500"),
            ("1e-3", 1, 1, "1e-3"),
            ("-1.5", -1, -1500, "-1500m"),
            ("+7", 7, 7000, "7"),
            ("1n", 1, 1, "1n"),
            ("0.1n", 1, 1, "1n"),
            ("100Ei", i64::MAX, i64::MAX, "9223372036854775807"),
            ("99999999999999999999999999", i64::MAX, i64::MAX, "9223372036854775807"),
            ("1E", 1_000_000_000_000_000_000, i64::MAX, "1E"),
            ("1e99999", i64::MAX, i64::MAX, "9223372036854775807"),
            ("1e-99", 1, 1, "1e-9"),
        ] {
            let q = Quantity::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!((q.value(), q.milli(), q.to_string().as_str()), (value, milli, canonical), "{text}");
        }
    }

    #[test]
    fn no_quantities() {
        use QuantityError::{Format, Suffix};
        for (text, error) in [
            ("", Format),
            ("-", Format),
            (".", Format),
            ("1.2.3", Format),
            ("a", Format),
            ("1GB", Format),
            (" 1", Format),
            ("1 ", Format),
            ("1e", Suffix),
            ("1ki", Suffix),
            ("1KiB", Format),
            ("1e3.5", Format),
            ("1mm", Suffix),
            ("\u{660}", Format),
        ] {
            assert_eq!(Quantity::parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn compares_by_value() {
        let q = |s: &str| Quantity::parse(s).unwrap();
        assert_eq!(q("1Gi"), q("1024Mi"));
        assert!(q("1G") < q("1Gi") && q("100m") < q("1") && q("-1") < q("0"));
        assert_eq!(q("1Gi").plus(q("1")).value(), (1 << 30) + 1);
        assert_eq!(q("1Gi").minus(q("512Mi")).to_string(), "512Mi");
        assert_eq!(Quantity::from_bytes(3 << 20).to_string(), "3Mi");
    }
}
