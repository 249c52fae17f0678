//! Semantic versions: `semver(text)`, strict unless told to normalize.

use std::cmp::Ordering;
use std::fmt;
use std::rc::Rc;

use crate::functions::{Cost, Cx, Function};
use crate::value::{EvalError, Outcome, Value};

/// A version, 2.0.0 of the specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Semver {
    numbers: [u64; 3],
    pre: Vec<Identifier>,
    build: String,
}

/// A part of a pre-release. Numbers come before words.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Identifier {
    Number(u64),
    Word(String),
}

pub(crate) const FUNCTIONS: &[Function] = &[
    Function {
        name: "semver",
        overloads: &["string -> semver", "string, bool -> semver"],
        cost: Cost::Parse(1.0),
        call: semver,
    },
    Function {
        name: "isSemver",
        overloads: &["string -> bool", "string, bool -> bool"],
        cost: Cost::Parse(1.0),
        call: |_, args| Ok(Value::Bool(parse(args)?.is_some())),
    },
    Function { name: "major", overloads: &[".semver -> int"], cost: Cost::One, call: |_, a| number(a, 0) },
    Function { name: "minor", overloads: &[".semver -> int"], cost: Cost::One, call: |_, a| number(a, 1) },
    Function { name: "patch", overloads: &[".semver -> int"], cost: Cost::One, call: |_, a| number(a, 2) },
];

impl Semver {
    /// Reads a version; `None` if it is none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (rest, build) = match text.split_once('+') {
            Some((rest, build)) => (rest, build),
            None => (text, ""),
        };
        if text.contains('+') && !build.split('.').all(is_identifier) {
            return None;
        }
        let (numbers, pre) = match rest.split_once('-') {
            Some((numbers, pre)) => (numbers, Some(pre)),
            None => (rest, None),
        };
        let mut parts = numbers.split('.').map(plain_number);
        let numbers = [parts.next()??, parts.next()??, parts.next()??];
        if parts.next().is_some() {
            return None;
        }
        let pre = match pre {
            None => Vec::new(),
            Some(pre) => pre.split('.').map(identifier).collect::<Option<_>>()?,
        };
        Some(Self { numbers, pre, build: build.to_owned() })
    }

    /// Order by precedence, which does not look at the build.
    pub(crate) fn compare(&self, other: &Self) -> Ordering {
        self.numbers.cmp(&other.numbers).then_with(|| match (self.pre.is_empty(), other.pre.is_empty()) {
            // A version comes after its pre-releases.
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            _ => self.pre.cmp(&other.pre),
        })
    }
}

impl fmt::Display for Semver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.numbers;
        write!(f, "{major}.{minor}.{patch}")?;
        for (i, part) in self.pre.iter().enumerate() {
            f.write_str(if i == 0 { "-" } else { "." })?;
            match part {
                Identifier::Number(n) => write!(f, "{n}")?,
                Identifier::Word(w) => f.write_str(w)?,
            }
        }
        if self.build.is_empty() { Ok(()) } else { write!(f, "+{}", self.build) }
    }
}

fn is_identifier(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// A number without zeros in front.
fn plain_number(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

fn identifier(text: &str) -> Option<Identifier> {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return plain_number(text).map(Identifier::Number);
    }
    is_identifier(text).then(|| Identifier::Word(text.to_owned()))
}

/// What `normalize` forgives: a `v` in front, missing minor and patch, zeros in front of numbers.
fn normalize(text: &str) -> String {
    let text = text.strip_prefix('v').unwrap_or(text);
    let end = text.find(['-', '+']).unwrap_or(text.len());
    let (numbers, rest) = text.split_at(end);
    let trim = |part: &str| {
        let trimmed = part.trim_start_matches('0');
        if trimmed.is_empty() && !part.is_empty() { "0".to_owned() } else { trimmed.to_owned() }
    };
    let mut parts: Vec<String> = numbers.split('.').map(trim).collect();
    while parts.len() < 3 {
        parts.push("0".into());
    }
    parts.join(".") + rest
}

fn parse(args: &[Value<'_>]) -> Result<Option<Semver>, EvalError> {
    match args {
        [Value::String(s)] | [Value::String(s), Value::Bool(false)] => Ok(Semver::parse(s)),
        [Value::String(s), Value::Bool(true)] => Ok(Semver::parse(&normalize(s))),
        _ => Err(EvalError::NoOverload),
    }
}

fn semver<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    match parse(args)? {
        Some(version) => Ok(Value::Semver(Rc::new(version))),
        None => Err(EvalError::other("semver parse error: not a semantic version (MAJOR.MINOR.PATCH)")),
    }
}

fn number<'a>(args: &[Value<'a>], which: usize) -> Outcome<'a> {
    match args {
        [Value::Semver(v)] => Ok(Value::Int(i64::try_from(v.numbers[which]).unwrap_or(i64::MAX))),
        _ => Err(EvalError::NoOverload),
    }
}
