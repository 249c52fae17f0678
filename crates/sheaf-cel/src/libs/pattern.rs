//! Regular expressions: `matches`, `find`, `findAll`. Linear in the text, bounded in the pattern.

use std::borrow::Cow;

use regex::Regex;

use crate::functions::{Cost, Cx, Function};
use crate::value::{EvalError, Outcome, Value};

/// Largest compiled pattern, in bytes.
const PATTERN_LIMIT: usize = 1 << 20;

pub(crate) const FUNCTIONS: &[Function] = &[
    Function {
        name: "matches",
        overloads: &[".string, string -> bool", "string, string -> bool"],
        cost: Cost::Regex,
        call: matches,
    },
    Function { name: "find", overloads: &[".string, string -> string"], cost: Cost::Regex, call: find },
    Function {
        name: "findAll",
        overloads: &[".string, string -> list(string)", ".string, string, int -> list(string)"],
        cost: Cost::Regex,
        call: find_all,
    },
];

/// Compiles a pattern.
pub(crate) fn compile(pattern: &str) -> Result<Regex, EvalError> {
    regex::RegexBuilder::new(pattern).size_limit(PATTERN_LIMIT).build().map_err(|e| {
        let why = e.to_string();
        let line = why.lines().last().unwrap_or("").trim_start_matches("error: ");
        EvalError::other(format!("error parsing regexp: {line}: `{pattern}`"))
    })
}

fn regex<'p>(cx: &Cx<'p>, pattern: &str) -> Result<Cow<'p, Regex>, EvalError> {
    match cx.regex {
        Some(regex) => Ok(Cow::Borrowed(regex)),
        None => compile(pattern).map(Cow::Owned),
    }
}

fn matches<'a>(cx: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    let [Value::String(s), Value::String(pattern)] = args else { return Err(EvalError::NoOverload) };
    Ok(Value::Bool(regex(cx, pattern)?.is_match(s)))
}

fn find<'a>(cx: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    let [Value::String(s), Value::String(pattern)] = args else { return Err(EvalError::NoOverload) };
    Ok(Value::string(regex(cx, pattern)?.find(s).map_or("", |m| m.as_str())))
}

fn find_all<'a>(cx: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    let (s, pattern, limit) = match args {
        [Value::String(s), Value::String(p)] => (s, p, -1),
        [Value::String(s), Value::String(p), Value::Int(limit)] => (s, p, *limit),
        _ => return Err(EvalError::NoOverload),
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let regex = regex(cx, pattern)?;
    Ok(Value::list(regex.find_iter(s).take(limit).map(|m| Value::string(m.as_str())).collect()))
}
