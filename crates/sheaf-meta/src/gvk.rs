//! Group, version and kind: reading `apiVersion`, ordering versions by preference.

use std::cmp::{Ordering, Reverse};
use std::fmt;

/// A group and a version; the core group is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupVersion {
    /// API group, empty for the core group.
    pub group: String,
    /// Version.
    pub version: String,
}

impl GroupVersion {
    /// Reads `v1` or `kubevirt.io/v1`. `None` if there are two slashes or an empty version.
    pub fn parse(api_version: &str) -> Option<Self> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        if version.is_empty() || version.contains('/') || (group.is_empty() && api_version.contains('/')) {
            return None;
        }
        Some(Self { group: group.into(), version: version.into() })
    }
}

impl fmt::Display for GroupVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() {
            f.write_str(&self.version)
        } else {
            write!(f, "{}/{}", self.group, self.version)
        }
    }
}

/// Orders versions by preference, best first: `v2`, `v1`, `v2beta1`, `v1beta2`, `v1alpha1`, then others by name.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    match (parts(a), parts(b)) {
        (Some(x), Some(y)) => Reverse(x).cmp(&Reverse(y)),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => a.cmp(b),
    }
}

/// Stability (2 stable, 1 beta, 0 alpha), major, minor.
fn parts(version: &str) -> Option<(u8, u64, u64)> {
    let rest = version.strip_prefix('v')?;
    for (word, stability) in [("alpha", 0), ("beta", 1)] {
        if let Some((major, minor)) = rest.split_once(word) {
            return Some((stability, number(major)?, number(minor)?));
        }
    }
    Some((2, number(rest)?, 0))
}

fn number(digits: &str) -> Option<u64> {
    if digits.starts_with('0') || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_versions() {
        let parse = |s: &str| GroupVersion::parse(s).map(|g| (g.group, g.version));
        assert_eq!(parse("v1"), Some(("".into(), "v1".into())));
        assert_eq!(parse("kubevirt.io/v1"), Some(("kubevirt.io".into(), "v1".into())));
        for bad in ["", "/", "a/", "/v1", "a/b/c"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn preference() {
        let mut all =
            ["foo1", "v1alpha1", "v10", "v2", "v1beta2", "v11alpha2", "v3beta1", "v1", "foo10", "v0"];
        all.sort_by(|a, b| compare_versions(a, b));
        assert_eq!(
            all,
            ["v10", "v2", "v1", "v3beta1", "v1beta2", "v11alpha2", "v1alpha1", "foo1", "foo10", "v0"]
        );
    }
}
