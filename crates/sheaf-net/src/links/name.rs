//! Names and marks of our taps.
//!
//! A name must fit into 15 characters, which no machine UID does, so it is a hash; the link alias says in full whose
//! the tap is. Should two NICs ever have the same hash, the second takes the next candidate. No state.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// The kernel's limit for a link alias in bytes.
pub const MAX_ALIAS_LEN: usize = 255;
const ALIAS_PREFIX: &str = "sheaf:nic:";
const NAME_PREFIX: &str = "shf";
const CANDIDATES: u8 = 8;

/// Whose a tap is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// UID of the machine.
    pub machine: String,
    /// Name of the NIC in the machine's specification.
    pub nic: String,
}

impl Identity {
    /// The mark of the tap: `sheaf:nic:MACHINE/NIC`.
    #[must_use]
    pub fn alias(&self) -> String {
        format!("{ALIAS_PREFIX}{}/{}", self.machine, self.nic)
    }

    /// Reads a mark; `None` if the link is not a tap of ours.
    #[must_use]
    pub fn from_alias(alias: &str) -> Option<Self> {
        let (machine, nic) = alias.strip_prefix(ALIAS_PREFIX)?.split_once('/')?;
        Some(Self { machine: machine.to_owned(), nic: nic.to_owned() })
    }
}

/// Why a NIC can have no tap.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TapNameError {
    /// Machine UID or NIC name is empty, too long, or has a character that would make the mark ambiguous.
    #[error(
        "NIC {nic:?} of machine {machine:?} can have no tap: their names are too long, empty or have a slash"
    )]
    Unfit {
        /// UID of the machine.
        machine: String,
        /// Name of the NIC.
        nic: String,
    },
    /// All names that the NIC could have are taken by other links.
    #[error("all {CANDIDATES} names that the tap of NIC {nic:?} of machine {machine:?} could have are taken")]
    Taken {
        /// UID of the machine.
        machine: String,
        /// Name of the NIC.
        nic: String,
    },
}

/// The name of a NIC's tap: the same for the same NIC, given the same other links. `alias_of` tells the alias of an
/// existing link (empty if it has none), `None` if no link has that name.
pub fn tap_name<'a>(
    identity: &Identity,
    alias_of: impl Fn(&str) -> Option<&'a str>,
) -> Result<String, TapNameError> {
    let alias = identity.alias();
    let Identity { machine, nic } = identity;
    let unfit = machine.is_empty() || nic.is_empty() || machine.contains('/') || alias.len() > MAX_ALIAS_LEN;
    if unfit || alias.contains('\0') {
        return Err(TapNameError::Unfit { machine: machine.clone(), nic: nic.clone() });
    }
    let mut free = None;
    for n in 0..CANDIDATES {
        let name = candidate(&alias, n);
        match alias_of(&name) {
            Some(theirs) if theirs == alias => return Ok(name),
            Some(_) => {}
            None => free = free.or(Some(name)),
        }
    }
    free.ok_or_else(|| TapNameError::Taken { machine: machine.clone(), nic: nic.clone() })
}

fn candidate(alias: &str, n: u8) -> String {
    let digest = Sha256::new().chain_update(alias.as_bytes()).chain_update([n]).finalize();
    let mut name = NAME_PREFIX.to_owned();
    for byte in digest.iter().take(6) {
        // Writing to a String cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic(machine: &str, nic: &str) -> Identity {
        Identity { machine: machine.into(), nic: nic.into() }
    }

    const UID: &str = "3b1f7a52-6c1e-4f0e-9d0b-0d8f6a2f4a11";

    #[test]
    fn names_fit_and_are_stable() {
        let name = tap_name(&nic(UID, "default"), |_| None).unwrap();
        assert_eq!(name, tap_name(&nic(UID, "default"), |_| None).unwrap());
        assert!(name.len() <= 15, "{name}");
        assert_ne!(name, tap_name(&nic(UID, "other"), |_| None).unwrap());
    }

    #[test]
    fn a_taken_name_is_stepped_over_and_found_again() {
        let mine = nic(UID, "default");
        let first = tap_name(&mine, |_| None).unwrap();
        let second = tap_name(&mine, |n| (n == first).then_some("sheaf:nic:other/default")).unwrap();
        assert_ne!(first, second);
        let alias = mine.alias();
        let again = tap_name(&mine, |n| match n {
            n if n == second => Some(alias.as_str()),
            _ => None,
        });
        assert_eq!(again.unwrap(), second, "found by its mark, though the first name is free again");
        assert!(matches!(tap_name(&mine, |_| Some("eth")), Err(TapNameError::Taken { .. })));
    }

    #[test]
    fn marks_round_trip_and_unfit_names_are_refused() {
        let id = nic(UID, "a/b");
        assert_eq!(Identity::from_alias(&id.alias()), Some(id));
        assert_eq!(Identity::from_alias("uplink"), None);
        assert!(tap_name(&nic("", "x"), |_| None).is_err());
        assert!(tap_name(&nic("a/b", "x"), |_| None).is_err());
        assert!(tap_name(&nic(UID, &"x".repeat(300)), |_| None).is_err());
    }
}
