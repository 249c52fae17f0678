//! Names, label keys and label values: Kubernetes' rules in Kubernetes' words.
//!
//! Each validator returns the broken rules as sentences; an empty list means valid. The regular expressions appear
//! in the messages as upstream prints them, but the checks are plain loops, linear in the input.

/// Longest DNS label (RFC 1123), label value, and name part of a label key, in bytes.
pub const LABEL_MAX: usize = 63;
/// Longest DNS subdomain, in bytes.
pub const SUBDOMAIN_MAX: usize = 253;

const LABEL_FMT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN_FMT: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const DNS1035_FMT: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const QUALIFIED_FMT: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const VALUE_FMT: &str = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?";

const LABEL_MSG: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', \
     and must start and end with an alphanumeric character";
const SUBDOMAIN_MSG: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, \
     '-' or '.', and must start and end with an alphanumeric character";
const DNS1035_MSG: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with \
     an alphabetic character, and end with an alphanumeric character";
const QUALIFIED_MSG: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with \
     an alphanumeric character";
const VALUE_MSG: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
     '.', and must start and end with an alphanumeric character";

/// `must be no more than N bytes`.
fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

/// The sentence of a broken pattern, with examples, as `validation.RegexError` words it.
fn pattern(msg: &str, regex: &str, examples: &[&str]) -> String {
    let examples: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!("{msg} (e.g. {}regex used for validation is '{regex}')", examples.join(" or "))
}

fn lower(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn shape(s: &[u8], edge: fn(u8) -> bool, inner: fn(u8) -> bool) -> bool {
    match s {
        [] => false,
        [only] => edge(*only),
        [first, middle @ .., last] => edge(*first) && edge(*last) && middle.iter().all(|b| inner(*b)),
    }
}

fn is_label_shape(s: &str) -> bool {
    shape(s.as_bytes(), lower, |b| lower(b) || b == b'-')
}

fn is_qualified_shape(s: &str) -> bool {
    shape(
        s.as_bytes(),
        |b| b.is_ascii_alphanumeric(),
        |b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'),
    )
}

/// A DNS label of RFC 1123: names of namespaces, services and most things that get an address.
pub fn dns_label(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > LABEL_MAX {
        errors.push(too_long(LABEL_MAX));
    }
    if !is_label_shape(value) {
        errors.push(pattern(LABEL_MSG, LABEL_FMT, &["my-name", "123-abc"]));
    }
    errors
}

/// A DNS label of RFC 1035: as above, but begins with a letter.
pub fn dns1035_label(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > LABEL_MAX {
        errors.push(too_long(LABEL_MAX));
    }
    if !is_label_shape(value) || !value.as_bytes().first().is_some_and(u8::is_ascii_lowercase) {
        errors.push(pattern(DNS1035_MSG, DNS1035_FMT, &["my-name", "abc-123"]));
    }
    errors
}

/// A DNS subdomain: the rule for names of most kinds.
pub fn dns_subdomain(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > SUBDOMAIN_MAX {
        errors.push(too_long(SUBDOMAIN_MAX));
    }
    if !value.split('.').all(is_label_shape) {
        errors.push(pattern(SUBDOMAIN_MSG, SUBDOMAIN_FMT, &["example.com"]));
    }
    errors
}

/// A name that only has to be one segment of a path (RBAC objects).
pub fn path_segment(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value == "." || value == ".." {
        errors.push(format!("may not be '{value}'"));
        return errors;
    }
    for illegal in ['/', '%'] {
        if value.contains(illegal) {
            errors.push(format!("may not contain '{illegal}'"));
        }
    }
    errors
}

/// A label key, annotation key or finalizer: `name` or `prefix/name`.
pub fn qualified_name(value: &str) -> Vec<String> {
    const EXAMPLES: [&str; 3] = ["MyName", "my.name", "123-abc"];
    let mut errors = Vec::new();
    let name = match value.split_once('/') {
        None => value,
        Some((prefix, name)) if !name.contains('/') => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".into());
            } else {
                errors.extend(dns_subdomain(prefix).into_iter().map(|e| format!("prefix part {e}")));
            }
            name
        }
        _ => {
            errors.push(format!(
                "a qualified name {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                pattern(QUALIFIED_MSG, QUALIFIED_FMT, &EXAMPLES)
            ));
            return errors;
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".into());
    } else if name.len() > LABEL_MAX {
        errors.push(format!("name part {}", too_long(LABEL_MAX)));
    }
    if !is_qualified_shape(name) {
        errors.push(format!("name part {}", pattern(QUALIFIED_MSG, QUALIFIED_FMT, &EXAMPLES)));
    }
    errors
}

/// A label key.
pub fn label_key(value: &str) -> Vec<String> {
    qualified_name(value)
}

/// A label value; empty is valid.
pub fn label_value(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > LABEL_MAX {
        errors.push(too_long(LABEL_MAX));
    }
    if !value.is_empty() && !is_qualified_shape(value) {
        errors.push(pattern(VALUE_MSG, VALUE_FMT, &["MyValue", "my_value", "12345"]));
    }
    errors
}

/// Key of a ConfigMap or Secret.
pub fn config_map_key(value: &str) -> Vec<String> {
    const MSG: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
    let mut errors = Vec::new();
    if value.len() > SUBDOMAIN_MAX {
        errors.push(too_long(SUBDOMAIN_MAX));
    }
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if value.is_empty() || !value.bytes().all(ok) {
        errors.push(pattern(MSG, "[-._a-zA-Z0-9]+", &["key.name", "KEY_NAME", "key-name"]));
    }
    if value == "." || value == ".." {
        errors.push(format!("must not be '{value}'"));
    } else if value.starts_with("..") {
        errors.push("must not start with '..'".into());
    }
    errors
}

/// Letters of generated suffixes: no vowels and no characters that look alike, so no words appear by chance.
const SUFFIX_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// Length of a generated suffix.
pub const SUFFIX_LEN: usize = 5;

/// `metadata.name` from `metadata.generateName`: the base, cut so that the whole has at most 63 bytes, and five
/// letters chosen by `random` (which the caller draws, 32 bits for each letter so that no letter is favoured
/// noticeably).
pub fn generate_name(base: &str, random: [u32; SUFFIX_LEN]) -> String {
    let mut cut = base.len().min(LABEL_MAX - SUFFIX_LEN);
    while !base.is_char_boundary(cut) {
        cut -= 1;
    }
    let mut out = base[..cut].to_owned();
    for r in random {
        out.push(char::from(SUFFIX_ALPHABET[r as usize % SUFFIX_ALPHABET.len()]));
    }
    out
}

/// An address of either family.
pub fn ip_address(value: &str) -> Vec<String> {
    match value.parse::<std::net::IpAddr>() {
        Ok(_) => Vec::new(),
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()],
    }
}

/// A name rule as a kind chooses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NameRule {
    /// [`dns_subdomain`]: most kinds, and all custom resources.
    #[default]
    Subdomain,
    /// [`dns_label`]: namespaces.
    Label,
    /// [`dns1035_label`]: services.
    Label1035,
    /// [`path_segment`]: roles and bindings.
    PathSegment,
    /// [`ip_address`]: addresses that are objects.
    Address,
}

impl NameRule {
    /// The broken rules. With `prefix` the value is a `generateName`, whose last character may be a hyphen since
    /// letters follow.
    pub fn check(self, value: &str, prefix: bool) -> Vec<String> {
        let masked;
        let value = if prefix && self != NameRule::PathSegment && value.len() > 1 && value.ends_with('-') {
            masked = format!("{}a", &value[..value.len() - 1]);
            &masked
        } else {
            value
        };
        match self {
            NameRule::Subdomain => dns_subdomain(value),
            NameRule::Label => dns_label(value),
            NameRule::Label1035 => dns1035_label(value),
            NameRule::PathSegment => path_segment(value),
            NameRule::Address => ip_address(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let sixty_four = "a".repeat(64);
        for (value, label, l1035, subdomain) in [
            ("a", true, true, true),
            ("my-name", true, true, true),
            ("1a", true, false, true),
            ("a.b", false, false, true),
            ("", false, false, false),
            ("-a", false, false, false),
            ("a-", false, false, false),
            ("A", false, false, false),
            ("a..b", false, false, false),
            ("a_b", false, false, false),
            ("\u{e4}", false, false, false),
            (sixty_four.as_str(), false, false, true),
        ] {
            assert_eq!(dns_label(value).is_empty(), label, "label {value:?}");
            assert_eq!(dns1035_label(value).is_empty(), l1035, "1035 {value:?}");
            assert_eq!(dns_subdomain(value).is_empty(), subdomain, "subdomain {value:?}");
        }
    }

    #[test]
    fn keys_and_values() {
        for (key, ok) in [
            ("a", true),
            ("kubevirt.io/nodeName", true),
            ("a/b/c", false),
            ("/b", false),
            ("a/", false),
            ("UP/b", false),
            ("", false),
        ] {
            assert_eq!(qualified_name(key).is_empty(), ok, "{key:?}");
        }
        for (value, ok) in [("", true), ("a_B.c-1", true), ("a b", false), ("-a", false), ("a/b", false)] {
            assert_eq!(label_value(value).is_empty(), ok, "{value:?}");
        }
        for (key, ok) in
            [("a", true), (".dockerconfigjson", true), ("..x", false), (".", false), ("a b", false)]
        {
            assert_eq!(config_map_key(key).is_empty(), ok, "{key:?}");
        }
    }

    #[test]
    fn the_words_are_kubernetes_own() {
        assert_eq!(
            dns_subdomain("A"),
            [
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and \
              must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
              '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
        assert_eq!(
            dns_label("A"),
            [
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
              and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
              '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
    }

    #[test]
    fn generated_names_fit_and_use_the_alphabet() {
        assert_eq!(generate_name("vm-", [0, 1, 26, 27, u32::MAX]), "vm-bc9b4");
        assert_eq!(generate_name(&"x".repeat(100), [0; 5]).len(), 63);
        assert_eq!(generate_name(&"\u{e4}".repeat(50), [0; 5]).len(), 63);
        assert!(NameRule::Subdomain.check("vm-", true).is_empty());
        assert!(NameRule::Address.check("2001:db8::1", false).is_empty());
        assert!(!NameRule::Address.check("10.0.0", false).is_empty());
        assert!(!NameRule::Subdomain.check("vm-", false).is_empty());
    }
}
