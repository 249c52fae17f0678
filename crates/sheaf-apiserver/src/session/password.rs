//! Passwords: argon2id, written and read as PHC strings. Pure, and slow on purpose: call it from a blocking thread.

use argon2::{Algorithm, Argon2, Params, Version};
use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};

/// Memory in KiB, passes, lanes.
type Cost = (u32, u32, u32);
/// As OWASP recommends them for argon2id.
const COST: Cost = (19 * 1024, 2, 1);
/// What a stored hash may ask for at most: it is read from an object that somebody may have edited.
const COST_MAX: Cost = (1024 * 1024, 16, 16);
/// Bytes of a hash.
const LENGTH: usize = 32;
/// Shortest password that is taken, in characters.
pub(crate) const SHORTEST: usize = 12;
/// Longest, in bytes: hashing must not be made slow by a megabyte.
const LONGEST: usize = 1024;

/// Why a new password is refused, if it is.
pub(crate) fn refusal(password: &str) -> Option<String> {
    let length = password.chars().count();
    if length < SHORTEST {
        return Some(format!("the password has {length} characters; it needs at least {SHORTEST}"));
    }
    (password.len() > LONGEST).then(|| format!("the password is longer than {LONGEST} bytes"))
}

/// The hash of a password with a salt.
pub(crate) fn hash(password: &str, salt: &[u8; 16]) -> Result<String, argon2::Error> {
    let (memory, passes, lanes) = COST;
    let out = raw(password, salt, COST)?;
    let encode = |bytes: &[u8]| STANDARD_NO_PAD.encode(bytes);
    Ok(format!("$argon2id$v=19$m={memory},t={passes},p={lanes}${}${}", encode(salt), encode(&out)))
}

/// Whether a password is the one of a stored hash. A hash that cannot be read fits none.
pub(crate) fn fits(password: &str, stored: &str) -> bool {
    let Some((cost, salt, expected)) = parse(stored) else { return false };
    if password.len() > LONGEST {
        return false;
    }
    raw(password, &salt, cost).is_ok_and(|out| super::same(&out, &expected))
}

fn raw(password: &str, salt: &[u8], (memory, passes, lanes): Cost) -> Result<Vec<u8>, argon2::Error> {
    let params = Params::new(memory, passes, lanes, Some(LENGTH))?;
    let mut out = vec![0; LENGTH];
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params).hash_password_into(
        password.as_bytes(),
        salt,
        &mut out,
    )?;
    Ok(out)
}

/// Cost, salt and hash of a PHC string.
fn parse(text: &str) -> Option<(Cost, Vec<u8>, Vec<u8>)> {
    let mut parts = text.trim().strip_prefix("$argon2id$v=19$")?.split('$');
    let mut numbers =
        parts.next()?.split(',').zip(["m=", "t=", "p="]).map(|(part, name)| part.strip_prefix(name));
    let mut number = || numbers.next()??.parse::<u32>().ok();
    let cost = (number()?, number()?, number()?);
    let decode = |part: Option<&str>| STANDARD_NO_PAD.decode(part?).ok();
    let (salt, hash) = (decode(parts.next())?, decode(parts.next())?);
    let sane = cost.0 <= COST_MAX.0 && cost.1 <= COST_MAX.1 && cost.2 <= COST_MAX.2;
    (sane && hash.len() == LENGTH && parts.next().is_none()).then_some((cost, salt, hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_fits_its_password_only() {
        let stored = hash("correct horse battery", &[7; 16]).unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{stored}");
        assert!(fits("correct horse battery", &stored));
        assert!(!fits("correct horse batterz", &stored));
        assert!(!fits("correct horse battery", ""));
        assert!(!fits("x", "$argon2id$v=19$m=4294967295,t=2,p=1$BwcHBwcHBwcHBwcHBwcHBw$AAAA"));
    }

    #[test]
    fn what_is_too_short_is_named() {
        assert_eq!(refusal("short").unwrap(), "the password has 5 characters; it needs at least 12");
        assert_eq!(refusal("äöüäöüäöüäöü"), None);
        assert!(refusal(&"x".repeat(2000)).is_some());
    }
}
