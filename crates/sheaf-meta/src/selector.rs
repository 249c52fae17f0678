//! Label and field selectors: the text form of query parameters, the object form inside specs, and matching.
//!
//! Grammar and error sentences are those of Kubernetes, since clients print them. Nothing here decides which field
//! labels a kind supports: [`FieldSelector::check_supported`] is told.

use std::fmt;

use serde_json::Value;

use crate::names;
use crate::object;

/// Longest selector text that is parsed, in bytes (URLs are bounded well below this).
pub const MAX_TEXT: usize = 64 * 1024;

/// A selector that cannot be used. The text is what the client gets in a 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(String);

fn error<T>(message: impl Into<String>) -> Result<T, SelectorError> {
    Err(SelectorError(message.into()))
}

/// What a requirement asks of a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operator {
    /// Present with one of these values (sorted).
    In(Vec<String>),
    /// Absent, or with none of these values (sorted).
    NotIn(Vec<String>),
    /// Present.
    Exists,
    /// Absent.
    DoesNotExist,
    /// Present, and a number greater than this.
    GreaterThan(i64),
    /// Present, and a number less than this.
    LessThan(i64),
}

/// One condition on one label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// What is asked.
    pub operator: Operator,
}

impl Requirement {
    /// Whether a label (absent: `None`) meets the requirement.
    pub fn matches(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match &self.operator {
            Operator::In(values) => value.is_some_and(|v| values.iter().any(|x| x == v)),
            Operator::NotIn(values) => value.is_none_or(|v| !values.iter().any(|x| x == v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan(n) => number().is_some_and(|v| v > *n),
            Operator::LessThan(n) => number().is_some_and(|v| v < *n),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match &self.operator {
            Operator::In(v) if v.len() == 1 => write!(f, "{key}={}", v[0]),
            Operator::In(v) => write!(f, "{key} in ({})", v.join(",")),
            Operator::NotIn(v) if v.len() == 1 => write!(f, "{key}!={}", v[0]),
            Operator::NotIn(v) => write!(f, "{key} notin ({})", v.join(",")),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan(n) => write!(f, "{key}>{n}"),
            Operator::LessThan(n) => write!(f, "{key}<{n}"),
        }
    }
}

/// A conjunction of requirements; the default matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// All of these must hold.
    pub requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    /// Matches everything.
    pub fn everything() -> Self {
        Self::default()
    }
    /// Matches nothing: what an absent `LabelSelector` object means.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }
    /// Whether it matches everything.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// Reads the text form (`a=b,c in (d,e),!f`). Empty text matches everything.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > MAX_TEXT {
            return error(format!("the label selector has more than {MAX_TEXT} bytes"));
        }
        let mut requirements = Parser { tokens: lex(text), at: 0 }.parse()?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    /// Reads the object form, `{matchLabels, matchExpressions}`; null (absent) matches nothing, `{}` everything.
    pub fn from_object(selector: &Value) -> Result<Self, SelectorError> {
        if selector.is_null() {
            return Ok(Self::nothing());
        }
        let mut requirements = Vec::new();
        for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let Some(value) = value.as_str() else {
                return error(format!("matchLabels[{key}]: Invalid value: {value}: must be a string"));
            };
            requirements.push(requirement(key, Op::In, vec![value.into()])?);
        }
        for e in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let key = object::str_at(e, &["key"]);
            let values: Vec<String> = e
                .get("values")
                .and_then(Value::as_array)
                .map(|a| a.iter().filter_map(Value::as_str).map(str::to_owned).collect())
                .unwrap_or_default();
            let op = match object::str_at(e, &["operator"]) {
                "In" => Op::In,
                "NotIn" => Op::NotIn,
                "Exists" => Op::Exists,
                "DoesNotExist" => Op::DoesNotExist,
                other => return error(format!("\"{other}\" is not a valid label selector operator")),
            };
            requirements.push(requirement(key, op, values)?);
        }
        Ok(Self { requirements, nothing: false })
    }

    /// Whether labels, looked up by `get`, meet all requirements.
    pub fn matches_by<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(get(&r.key)))
    }
    /// Whether the labels of an object meet all requirements.
    pub fn matches(&self, object: &Value) -> bool {
        self.matches_by(|key| object::label(object, key))
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{r}")?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Op {
    In,
    NotIn,
    /// `=`, `==`.
    Equals,
    /// `!=`.
    NotEquals,
    Exists,
    DoesNotExist,
    Greater,
    Less,
}

fn requirement(key: &str, op: Op, mut values: Vec<String>) -> Result<Requirement, SelectorError> {
    let broken = names::label_key(key);
    if !broken.is_empty() {
        return error(format!("key: Invalid value: \"{key}\": {}", broken.join("; ")));
    }
    let list =
        |v: &[String]| format!("[{}]", v.iter().map(|x| format!("\"{x}\"")).collect::<Vec<_>>().join(","));
    let shown = |v: &[String]| list(v);
    match op {
        Op::In | Op::NotIn if values.is_empty() => {
            return error(
                "values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty",
            );
        }
        Op::Exists | Op::DoesNotExist if !values.is_empty() => {
            return error(format!(
                "values: Invalid value: {}: values set must be empty for exists and does not exist",
                shown(&values)
            ));
        }
        _ => {}
    }
    for (i, value) in values.iter().enumerate() {
        let broken = names::label_value(value);
        if !broken.is_empty() {
            return error(format!("values[{i}][{key}]: Invalid value: \"{value}\": {}", broken.join("; ")));
        }
    }
    values.sort();
    values.dedup();
    let number = |values: &[String]| match values[0].parse::<i64>() {
        Ok(n) => Ok(n),
        Err(_) => error(format!(
            "values[0]: Invalid value: \"{}\": for 'Gt', 'Lt' operators, the value must be an integer",
            values[0]
        )),
    };
    let operator = match op {
        Op::In | Op::Equals => Operator::In(values),
        Op::NotIn | Op::NotEquals => Operator::NotIn(values),
        Op::Exists => Operator::Exists,
        Op::DoesNotExist => Operator::DoesNotExist,
        Op::Greater => Operator::GreaterThan(number(&values)?),
        Op::Less => Operator::LessThan(number(&values)?),
    };
    Ok(Requirement { key: key.into(), operator })
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Token<'a> {
    Word(&'a str),
    Sign(&'a str),
    End,
}

impl<'a> Token<'a> {
    fn text(self) -> &'a str {
        match self {
            Token::Word(s) | Token::Sign(s) => s,
            Token::End => "",
        }
    }
}

fn lex(text: &str) -> Vec<Token<'_>> {
    const SIGNS: &str = "=!(),<>";
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        let Some(first) = rest.chars().next() else { return tokens };
        let len = if SIGNS.contains(first) {
            if rest.starts_with("==") || rest.starts_with("!=") { 2 } else { 1 }
        } else {
            rest.find(|c: char| SIGNS.contains(c) || matches!(c, ' ' | '\t' | '\r' | '\n'))
                .unwrap_or(rest.len())
        };
        let (token, after) = rest.split_at(len);
        tokens.push(if SIGNS.contains(first) { Token::Sign(token) } else { Token::Word(token) });
        rest = after;
    }
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Token<'a> {
        self.tokens.get(self.at).copied().unwrap_or(Token::End)
    }
    fn next(&mut self) -> Token<'a> {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn parse(mut self) -> Result<Vec<Requirement>, SelectorError> {
        let mut out = Vec::new();
        loop {
            match self.peek() {
                Token::Word(_) | Token::Sign("!") => {
                    out.push(
                        self.requirement()
                            .map_err(|e| SelectorError(format!("unable to parse requirement: {e}")))?,
                    );
                    match self.next() {
                        Token::End => return Ok(out),
                        Token::Sign(",") => {
                            let after = self.peek();
                            if !matches!(after, Token::Word(_) | Token::Sign("!")) {
                                return error(format!(
                                    "found '{}', expected: identifier after ','",
                                    after.text()
                                ));
                            }
                        }
                        t => return error(format!("found '{}', expected: ',' or 'end of string'", t.text())),
                    }
                }
                Token::End => return Ok(out),
                t => {
                    return error(format!(
                        "found '{}', expected: !, identifier, or 'end of string'",
                        t.text()
                    ));
                }
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let mut token = self.next();
        let absent = token == Token::Sign("!");
        if absent {
            token = self.next();
        }
        let Token::Word(key) = token else {
            return error(format!("found '{}', expected: identifier", token.text()));
        };
        let broken = names::label_key(key);
        if !broken.is_empty() {
            return error(format!("<nil>: Invalid value: \"{key}\": {}", broken.join("; ")));
        }
        if absent {
            return requirement(key, Op::DoesNotExist, Vec::new());
        }
        if matches!(self.peek(), Token::End | Token::Sign(",")) {
            return requirement(key, Op::Exists, Vec::new());
        }
        let operator = self.next();
        let op = match operator {
            Token::Word("in") => Op::In,
            Token::Word("notin") => Op::NotIn,
            Token::Sign("=" | "==") => Op::Equals,
            Token::Sign("!=") => Op::NotEquals,
            Token::Sign(">") => Op::Greater,
            Token::Sign("<") => Op::Less,
            t => return error(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", t.text())),
        };
        let values = if matches!(op, Op::In | Op::NotIn) { self.values()? } else { vec![self.exact()?] };
        requirement(key, op, values)
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        let open = self.next();
        if open != Token::Sign("(") {
            return error(format!("found '{}' expected: '('", open.text()));
        }
        match self.peek() {
            Token::Word(_) | Token::Sign(",") => {}
            Token::Sign(")") => {
                self.next();
                return Ok(Vec::new());
            }
            t => return error(format!("found '{}', expected: ',', ')' or identifier", t.text())),
        }
        let mut out: Vec<String> = Vec::new();
        // An empty place between commas is the empty value.
        let mut pending = true;
        loop {
            match self.next() {
                Token::Word(w) if pending => {
                    out.push(w.into());
                    pending = false;
                }
                Token::Sign(",") => {
                    if pending {
                        out.push(String::new());
                    }
                    pending = true;
                }
                Token::Sign(")") => {
                    if pending {
                        out.push(String::new());
                    }
                    return Ok(out);
                }
                t => return error(format!("found '{}', expected: ',' or ')'", t.text())),
            }
        }
    }

    fn exact(&mut self) -> Result<String, SelectorError> {
        match self.peek() {
            Token::End | Token::Sign(",") => Ok(String::new()),
            Token::Word(w) => {
                self.next();
                Ok(w.into())
            }
            t => error(format!("found '{}', expected: identifier", t.text())),
        }
    }
}

/// One term of a field selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldTerm {
    /// Dotted path of the field (`spec.nodeName`).
    pub field: String,
    /// The value to compare with, unescaped; empty also matches an absent field.
    pub value: String,
    /// `true` for `!=`.
    pub negated: bool,
}

/// A conjunction of field terms; the default matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// All of these must hold.
    pub terms: Vec<FieldTerm>,
}

impl FieldSelector {
    /// Reads `a.b=c,d!=e`, with `\,`, `\=` and `\\` escaped in values.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > MAX_TEXT {
            return error(format!("the field selector has more than {MAX_TEXT} bytes"));
        }
        let mut terms = Vec::new();
        for part in split_unescaped(text) {
            if part.is_empty() {
                continue;
            }
            let Some((field, op, value)) = split_term(part) else {
                return error(format!("invalid selector: '{text}'; can't understand '{part}'"));
            };
            terms.push(FieldTerm { field: field.into(), value: unescape(value)?, negated: op == "!=" });
        }
        Ok(Self { terms })
    }

    /// Refuses fields that a kind does not select by. `metadata.name` and `metadata.namespace` always pass.
    pub fn check_supported(&self, supported: &[String]) -> Result<(), SelectorError> {
        for t in &self.terms {
            let usual = t.field == "metadata.name" || t.field == "metadata.namespace";
            if !usual && !supported.contains(&t.field) {
                return error(format!("field label not supported: {}", t.field));
            }
        }
        Ok(())
    }

    /// Whether it matches everything.
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }
    /// The value a field must have, if the selector fixes it: a shortcut for lists of one object.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.field == field && !t.negated).map(|t| t.value.as_str())
    }
    /// Whether an object's fields meet all terms.
    pub fn matches(&self, object: &Value) -> bool {
        self.terms.iter().all(|t| (field_text(object, &t.field) == t.value) != t.negated)
    }
}

/// A field as the selector sees it: strings as they are, numbers and booleans as JSON writes them, absent as empty.
fn field_text(object: &Value, path: &str) -> String {
    match path.split('.').try_fold(object, |v, key| v.get(key)) {
        Some(Value::String(s)) => s.clone(),
        Some(v @ (Value::Bool(_) | Value::Number(_))) => v.to_string(),
        _ => String::new(),
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn split_term(part: &str) -> Option<(&str, &str, &str)> {
    for (i, _) in part.char_indices() {
        for op in ["!=", "==", "="] {
            if let Some(value) = part[i..].strip_prefix(op) {
                return Some((&part[..i], op, value));
            }
        }
    }
    None
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(e @ ('\\' | ',' | '=')) => out.push(e),
                Some(e) => return error(format!("invalid field selector: invalid escape sequence: \\{e}")),
                None => return error("invalid field selector: invalid escape sequence: \\"),
            },
            ',' | '=' => return error(format!("invalid field selector: unescaped character in value: {c}")),
            c => out.push(c),
        }
    }
    Ok(out)
}
