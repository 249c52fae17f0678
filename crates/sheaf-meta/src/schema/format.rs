//! The string formats that CustomResourceDefinitions may ask for. Unknown formats hold nothing to anything.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::{names, times};

/// Whether a text is of a format.
pub(crate) fn fits(format: &str, text: &str) -> bool {
    match format {
        "date-time" | "datetime" => times::is_date_time(text),
        "date" => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "ip" => text.parse::<std::net::IpAddr>().is_ok(),
        "cidr" => cidr(text),
        "mac" => mac(text),
        "uuid" | "uuid3" | "uuid4" | "uuid5" => uuid(text),
        "byte" => base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).is_ok(),
        "hostname" => text.split('.').all(|l| names::dns_label(&l.to_ascii_lowercase()).is_empty()),
        "duration" => times::parse_loose_duration(text).is_some(),
        "uri" => {
            text.split_once(':').is_some_and(|(scheme, _)| {
                scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                    && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
            }) || text.starts_with('/')
        }
        "email" => text.split_once('@').is_some_and(|(user, host)| !user.is_empty() && !host.is_empty()),
        "isbn" => isbn10(text) || isbn13(text),
        "isbn10" => isbn10(text),
        "isbn13" => isbn13(text),
        "creditcard" => credit_card(text),
        "ssn" => grouped(text, &[3, 2, 4]),
        "hexcolor" => {
            let plain = text.strip_prefix('#').unwrap_or(text);
            matches!(plain.len(), 3 | 6) && plain.bytes().all(|b| b.is_ascii_hexdigit())
        }
        "rgbcolor" => rgb(text),
        "bsonobjectid" => text.len() == 24 && text.bytes().all(|b| b.is_ascii_hexdigit()),
        "k8s-short-name" => names::dns_label(text).is_empty(),
        "k8s-long-name" => names::dns_subdomain(text).is_empty(),
        _ => true,
    }
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

fn digits(text: &str) -> Vec<u32> {
    text.chars().filter(|c| !matches!(c, '-' | ' ')).filter_map(|c| c.to_digit(10)).collect()
}

/// Digits in groups of these lengths, with at most one dash or space between.
fn grouped(text: &str, groups: &[usize]) -> bool {
    let mut rest = text;
    for (i, len) in groups.iter().enumerate() {
        if i > 0 {
            rest = rest.strip_prefix(['-', ' ']).unwrap_or(rest);
        }
        let Some((group, after)) = rest.split_at_checked(*len) else { return false };
        if !group.bytes().all(|b| b.is_ascii_digit()) {
            return false;
        }
        rest = after;
    }
    rest.is_empty()
}

fn isbn10(text: &str) -> bool {
    let plain: String = text.chars().filter(|c| !matches!(c, '-' | ' ')).collect();
    let values: Option<Vec<u32>> = plain
        .char_indices()
        .map(|(i, c)| if i == 9 && c == 'X' { Some(10) } else { c.to_digit(10) })
        .collect();
    values.is_some_and(|v| {
        v.len() == 10 && v.iter().zip(1..).map(|(d, weight)| d * weight).sum::<u32>() % 11 == 0
    })
}

fn isbn13(text: &str) -> bool {
    let plain = text.chars().all(|c| c.is_ascii_digit() || matches!(c, '-' | ' '));
    let values = digits(text);
    plain
        && values.len() == 13
        && values.iter().zip([1, 3].into_iter().cycle()).map(|(d, weight)| d * weight).sum::<u32>() % 10 == 0
}

/// The sum of Luhn over 13 to 19 digits.
fn credit_card(text: &str) -> bool {
    let plain = text.chars().all(|c| c.is_ascii_digit() || matches!(c, '-' | ' '));
    let values = digits(text);
    let doubled = |(i, d): (usize, &u32)| match (i % 2, d * 2) {
        (0, _) => *d,
        (_, twice) if twice > 9 => twice - 9,
        (_, twice) => twice,
    };
    plain
        && (13..=19).contains(&values.len())
        && values.iter().rev().enumerate().map(doubled).sum::<u32>() % 10 == 0
}

/// `rgb(1, 2, 3)`.
fn rgb(text: &str) -> bool {
    let Some(inner) = text.strip_prefix("rgb(").and_then(|t| t.strip_suffix(')')) else { return false };
    let parts: Vec<&str> = inner.split(',').map(str::trim).collect();
    parts.len() == 3 && parts.iter().all(|p| p.parse::<u8>().is_ok_and(|n| n.to_string() == *p))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_formats() {
        for (format, good, bad) in [
            ("isbn10", "3-598-21508-8", "3-598-21508-9"),
            ("isbn13", "978-3-16-148410-0", "978-3-16-148410-1"),
            ("isbn", "359821507X", "x"),
            ("creditcard", "4111 1111 1111 1111", "4111111111111112"),
            ("ssn", "111-11-1111", "111-111-111"),
            ("hexcolor", "#FFFFFF", "#FFFF"),
            ("rgbcolor", "rgb(0, 31, 255)", "rgb(0, 31, 256)"),
            ("bsonobjectid", "507f1f77bcf86cd799439011", "507f1f77"),
            ("mac", "01:02:03:04:05:06", "01:02:03"),
            ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123e4567"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("hostname", "a.example.com", "-a"),
            ("duration", "2 days", "two days"),
            ("date", "2026-01-02", "2026-1-2"),
            ("byte", "aGk=", "a"),
            ("email", "a@b", "@b"),
            ("k8s-short-name", "a-b", "a.b"),
            ("k8s-long-name", "a.b", "a_b"),
        ] {
            assert!(fits(format, good), "{format} {good}");
            assert!(!fits(format, bad), "{format} {bad}");
        }
        assert!(fits("unheard-of", "anything"));
    }
}
