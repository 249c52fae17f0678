//! The string formats that CustomResourceDefinitions may ask for. Unknown formats hold nothing to anything.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::names;

/// Whether a text is of a format.
pub(crate) fn fits(format: &str, text: &str) -> bool {
    match format {
        "date-time" | "datetime" => date_time(text),
        "date" => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "ip" => text.parse::<std::net::IpAddr>().is_ok(),
        "cidr" => cidr(text),
        "mac" => mac(text),
        "uuid" | "uuid3" | "uuid4" | "uuid5" => uuid(text),
        "byte" => base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).is_ok(),
        "hostname" => text.split('.').all(|l| names::dns_label(&l.to_ascii_lowercase()).is_empty()),
        "duration" => duration(text),
        "uri" => {
            text.split_once(':').is_some_and(|(scheme, _)| {
                scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                    && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
            }) || text.starts_with('/')
        }
        "email" => text.split_once('@').is_some_and(|(user, host)| !user.is_empty() && !host.is_empty()),
        "k8s-short-name" => names::dns_label(text).is_empty(),
        "k8s-long-name" => names::dns_subdomain(text).is_empty(),
        _ => true,
    }
}

/// RFC 3339. The last day of the year 9999, which is what people write for "never", is one too, though it is beyond the
/// moments that can be reckoned with.
fn date_time(text: &str) -> bool {
    let (Some(date), Some(rest)) = (text.get(..10), text.get(10..)) else { return false };
    let Some(time) = rest.strip_prefix(['T', 't', ' ']) else { return false };
    let zone = time.find(['Z', 'z', '+', '-']).unwrap_or(time.len());
    let (time, zone) = time.split_at(zone);
    let digits = |s: &str, len: usize| s.len() == len && s.bytes().all(|b| b.is_ascii_digit());
    let zone_fits = matches!(zone, "Z" | "z")
        || zone.get(1..).and_then(|z| z.split_once(':')).is_some_and(|(h, m)| digits(h, 2) && digits(m, 2));
    let (seconds, fraction) = time.split_once('.').unwrap_or((time, "0"));
    date.parse::<jiff::civil::Date>().is_ok()
        && seconds.len() == 8
        && seconds.parse::<jiff::civil::Time>().is_ok()
        && !fraction.is_empty()
        && fraction.bytes().all(|b| b.is_ascii_digit())
        && zone_fits
}

fn cidr(text: &str) -> bool {
    text.split_once('/').is_some_and(|(address, bits)| {
        let bits: u8 = match bits.parse() {
            Ok(b) => b,
            Err(_) => return false,
        };
        (address.parse::<Ipv4Addr>().is_ok() && bits <= 32)
            || (address.parse::<Ipv6Addr>().is_ok() && bits <= 128)
    })
}

fn mac(text: &str) -> bool {
    let parts: Vec<&str> = text.split([':', '-']).collect();
    matches!(parts.len(), 6 | 8 | 20)
        && parts.iter().all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn uuid(text: &str) -> bool {
    let plain: String = text.chars().filter(|c| *c != '-').collect();
    plain.len() == 32
        && plain.bytes().all(|b| b.is_ascii_hexdigit())
        && (text.len() == 32 || text.len() == 36)
}

/// Go's durations: `1h2m3.5s`, `-5ms`, `0`.
fn duration(text: &str) -> bool {
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return true;
    }
    if rest.is_empty() {
        return false;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
        if digits == 0 || rest[..digits].parse::<f64>().is_err() {
            return false;
        }
        rest = &rest[digits..];
        let units = ["ns", "us", "\u{b5}s", "\u{3bc}s", "ms", "s", "m", "h"];
        match units.iter().find_map(|u| rest.strip_prefix(u)) {
            Some(after) => rest = after,
            None => return false,
        }
    }
    true
}
