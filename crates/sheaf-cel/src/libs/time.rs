//! Moments and spans of time: reading, writing, and the parts of a date.

use jiff::tz::{Offset, TimeZone};
use jiff::{Timestamp, Zoned};

use crate::functions::{Cost, Function};
use crate::value::{EvalError, Outcome, Value};

macro_rules! part {
    ($name:literal) => {
        Function {
            name: $name,
            overloads: &[".timestamp -> int", ".timestamp, string -> int"],
            cost: Cost::One,
            call: |_, args| date_part($name, args),
        }
    };
    ($name:literal, duration) => {
        Function {
            name: $name,
            overloads: &[".timestamp -> int", ".timestamp, string -> int", ".duration -> int"],
            cost: Cost::One,
            call: |_, args| date_part($name, args),
        }
    };
}

pub(crate) const FUNCTIONS: &[Function] = &[
    part!("getFullYear"),
    part!("getMonth"),
    part!("getDate"),
    part!("getDayOfMonth"),
    part!("getDayOfWeek"),
    part!("getDayOfYear"),
    part!("getHours", duration),
    part!("getMinutes", duration),
    part!("getSeconds", duration),
    part!("getMilliseconds", duration),
];

const SECOND: i64 = 1_000_000_000;

fn date_part<'a>(part: &str, args: &[Value<'a>]) -> Outcome<'a> {
    let zoned = match args {
        [Value::Duration(d)] => {
            return Ok(Value::Int(match part {
                "getHours" => d / (3600 * SECOND),
                "getMinutes" => d / (60 * SECOND),
                "getSeconds" => d / SECOND,
                "getMilliseconds" => d / (SECOND / 1000),
                _ => return Err(EvalError::NoOverload),
            }));
        }
        [Value::Timestamp(t)] => t.to_zoned(TimeZone::UTC),
        [Value::Timestamp(t), Value::String(zone)] => in_zone(*t, zone)?,
        _ => return Err(EvalError::NoOverload),
    };
    Ok(Value::Int(match part {
        "getFullYear" => i64::from(zoned.year()),
        // Counted from zero, but for getDate.
        "getMonth" => i64::from(zoned.month()) - 1,
        "getDate" => i64::from(zoned.day()),
        "getDayOfMonth" => i64::from(zoned.day()) - 1,
        "getDayOfWeek" => i64::from(zoned.weekday().to_sunday_zero_offset()),
        "getDayOfYear" => i64::from(zoned.day_of_year()) - 1,
        "getHours" => i64::from(zoned.hour()),
        "getMinutes" => i64::from(zoned.minute()),
        "getSeconds" => i64::from(zoned.second()),
        "getMilliseconds" => i64::from(zoned.millisecond()),
        _ => return Err(EvalError::NoOverload),
    }))
}

fn in_zone(at: Timestamp, zone: &str) -> Result<Zoned, EvalError> {
    let unknown = || EvalError::other(format!("unknown time zone {zone}"));
    if zone.is_empty() || zone == "UTC" {
        return Ok(at.to_zoned(TimeZone::UTC));
    }
    // `+01:00`, `-8:00`, `01:00`.
    if let Some((hours, minutes)) = zone.split_once(':') {
        let (sign, hours) = match hours.strip_prefix('-') {
            Some(rest) => (-1, rest),
            None => (1, hours.strip_prefix('+').unwrap_or(hours)),
        };
        let number = |s: &str| s.parse::<u16>().ok().filter(|_| s.bytes().all(|b| b.is_ascii_digit()));
        let (hours, minutes) = number(hours).zip(number(minutes)).ok_or_else(unknown)?;
        let seconds = sign * (i32::from(hours) * 3600 + i32::from(minutes) * 60);
        let offset = Offset::from_seconds(seconds).map_err(|_| unknown())?;
        return Ok(at.to_zoned(TimeZone::fixed(offset)));
    }
    at.in_tz(zone).map_err(|_| unknown())
}

pub(crate) fn shift(at: Timestamp, nanos: i64) -> Result<Timestamp, EvalError> {
    Timestamp::from_nanosecond(at.as_nanosecond() + i128::from(nanos))
        .ok()
        .ok_or(EvalError::Overflow("timestamp"))
}

pub(crate) fn at_second(seconds: i64) -> Result<Timestamp, EvalError> {
    Timestamp::from_second(seconds).ok().ok_or(EvalError::Overflow("timestamp"))
}

/// A span as `string()` writes it: seconds with at most nine digits behind the point.
pub(crate) fn show_duration(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let (whole, part) = (nanos.unsigned_abs() / 1_000_000_000, nanos.unsigned_abs() % 1_000_000_000);
    if part == 0 {
        return format!("{sign}{whole}s");
    }
    let part = format!("{part:09}");
    format!("{sign}{whole}.{}s", part.trim_end_matches('0'))
}

/// A moment as `string()` writes it: RFC 3339 in UTC, with as many digits as it has.
pub(crate) fn show_timestamp(at: Timestamp) -> String {
    at.to_string()
}
