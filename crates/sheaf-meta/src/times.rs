//! Spans and moments as texts: Go's durations, and the looser ones and the date-times of OpenAPI's formats.
//!
//! Values only; what time it is, nobody here knows.

use jiff::Timestamp;

/// Go's durations: `1h2m3.5s`, `-5ms`, `0`. In nanoseconds.
pub fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let (number, after) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || number.len() > 40 {
            return None;
        }
        const UNITS: [(&str, i128); 8] = [
            ("ns", 1),
            ("us", 1_000),
            ("\u{b5}s", 1_000),
            ("\u{3bc}s", 1_000),
            ("ms", 1_000_000),
            ("s", SECOND),
            ("m", 60 * SECOND),
            ("h", 3600 * SECOND),
        ];
        let (unit, scale) = UNITS.into_iter().find(|(unit, _)| after.starts_with(unit))?;
        rest = &after[unit.len()..];
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        // Finer than a nanosecond of an hour nothing can matter.
        let digits = &fraction[..fraction.len().min(15)];
        let part: i128 = if digits.is_empty() { 0 } else { digits.parse().ok()? };
        let part = part * scale / 10i128.pow(digits.len() as u32);
        total = total.checked_add(whole.checked_mul(scale)?)?.checked_add(part)?;
        if total > i128::from(i64::MAX) + 1 {
            return None;
        }
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

const SECOND: i128 = 1_000_000_000;

/// The format `duration` of OpenAPI as Kubernetes reads it: Go's, or words as in `2 days 3 hours`. In nanoseconds.
pub fn parse_loose_duration(text: &str) -> Option<i64> {
    if let Some(nanos) = parse_duration(text) {
        return Some(nanos);
    }
    const WORDS: [(&[&str], i128); 8] = [
        (&["ns", "nano"], 1),
        (&["us", "\u{b5}s", "\u{3bc}s", "micro"], 1_000),
        (&["ms", "milli"], 1_000_000),
        (&["s", "sec"], SECOND),
        (&["m", "min"], 60 * SECOND),
        (&["h", "hr", "hour"], 3600 * SECOND),
        (&["d", "day"], 86_400 * SECOND),
        (&["w", "wk", "week"], 7 * 86_400 * SECOND),
    ];
    let mut total: i128 = 0;
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: i128 = rest.get(..end)?.parse().ok()?;
        let after = rest[end..].trim_start();
        let end = after.find(|c: char| !c.is_alphabetic()).unwrap_or(after.len());
        let word = after[..end].to_lowercase();
        let names =
            |word: &str| WORDS.iter().find(|(names, _)| names.contains(&word)).map(|(_, scale)| *scale);
        let scale = names(&word).or_else(|| names(word.strip_suffix('s')?))?;
        total = total.checked_add(number.checked_mul(scale)?)?;
        rest = after[end..].trim_start();
    }
    i64::try_from(total).ok()
}

/// Whether a text is a date-time of RFC 3339, as the format of OpenAPI wants it.
pub fn is_date_time(text: &str) -> bool {
    let (Some(date), Some(rest)) = (text.get(..10), text.get(10..)) else { return false };
    let Some(time) = rest.strip_prefix(['T', 't']) else { return false };
    let zone = time.find(['Z', 'z', '+', '-']).unwrap_or(time.len());
    let (time, zone) = time.split_at(zone);
    let digits = |s: &str, len: usize| s.len() == len && s.bytes().all(|b| b.is_ascii_digit());
    let zone_fits = matches!(zone, "Z" | "z")
        || zone.get(1..).and_then(|z| z.split_once(':')).is_some_and(|(h, m)| digits(h, 2) && digits(m, 2));
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    date.parse::<jiff::civil::Date>().is_ok()
        && clock.len() == 8
        && clock.parse::<jiff::civil::Time>().is_ok()
        && !fraction.is_empty()
        && fraction.bytes().all(|b| b.is_ascii_digit())
        && zone_fits
}

/// The moment that a date-time names. The last day of the year 9999, which is what people write for "never", lies beyond
/// what can be reckoned with, and counts as the last moment that can.
pub fn parse_date_time(text: &str) -> Option<Timestamp> {
    if !is_date_time(text) {
        return None;
    }
    match text.parse() {
        Ok(at) => Some(at),
        Err(_) => text.starts_with("9999-12-3").then_some(Timestamp::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, go, loose) in [
            ("1h2m3.5s", Some(3_723_500_000_000), Some(3_723_500_000_000)),
            ("-5ms", Some(-5_000_000), Some(-5_000_000)),
            ("0", Some(0), Some(0)),
            ("+1.5h", Some(5_400_000_000_000), Some(5_400_000_000_000)),
            (".5s", Some(500_000_000), Some(500_000_000)),
            ("1us", Some(1_000), Some(1_000)),
            ("1\u{b5}s", Some(1_000), Some(1_000)),
            ("2562047h47m16.854775807s", Some(i64::MAX), Some(i64::MAX)),
            ("2562048h", None, None),
            ("1", None, None),
            ("", None, None),
            ("-", None, None),
            ("1x", None, None),
            ("1..5s", None, None),
            ("1d", None, Some(86_400_000_000_000)),
            ("2 days 3 hours", None, Some(183_600_000_000_000)),
            ("3 weeks", None, Some(1_814_400_000_000_000)),
            ("5 parsecs", None, None),
        ] {
            assert_eq!((parse_duration(text), parse_loose_duration(text)), (go, loose), "{text}");
        }
    }

    #[test]
    fn date_times() {
        for (text, second) in [
            ("1970-01-01T00:01:00Z", Some(60)),
            ("1970-01-01t00:01:00.5z", Some(60)),
            ("1970-01-01T01:00:00+01:00", Some(0)),
            ("9999-12-31T23:59:59Z", Some(Timestamp::MAX.as_second())),
            ("1970-01-01 00:01:00Z", None),
            ("1970-01-01T00:01:00", None),
            ("1970-01-01T00:01Z", None),
            ("1970-13-01T00:01:00Z", None),
            ("1970-01-01T24:01:00Z", None),
            ("1970-01-01T00:01:00.Z", None),
            ("", None),
        ] {
            assert_eq!(parse_date_time(text).map(Timestamp::as_second), second, "{text}");
        }
    }
}
