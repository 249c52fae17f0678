//! Functions on texts, and how values are written as text.

use std::fmt::Write;

use crate::ast::quote;
use crate::functions::{Cost, Cx, Function};
use crate::value::{EvalError, List, Map, Outcome, Value};

use super::time;

const TRAVERSE: Cost = Cost::Traverse(0, 1.0);
const SUFFIX: Cost = Cost::Traverse(1, 1.0);
const TEXTS: &[&str] = &[".string, string -> bool"];

pub(crate) const FUNCTIONS: &[Function] = &[
    Function {
        name: "contains",
        overloads: TEXTS,
        cost: Cost::Contains,
        call: |_, a| test(a, |s, t| s.contains(t)),
    },
    Function {
        name: "startsWith",
        overloads: TEXTS,
        cost: SUFFIX,
        call: |_, a| test(a, |s, t| s.starts_with(t)),
    },
    Function {
        name: "endsWith",
        overloads: TEXTS,
        cost: SUFFIX,
        call: |_, a| test(a, |s, t| s.ends_with(t)),
    },
    Function { name: "charAt", overloads: &[".string, int -> string"], cost: Cost::One, call: char_at },
    Function {
        name: "lowerAscii",
        overloads: &[".string -> string"],
        cost: TRAVERSE,
        call: |_, a| map(a, |s| s.to_ascii_lowercase()),
    },
    Function {
        name: "upperAscii",
        overloads: &[".string -> string"],
        cost: TRAVERSE,
        call: |_, a| map(a, |s| s.to_ascii_uppercase()),
    },
    Function {
        name: "trim",
        overloads: &[".string -> string"],
        cost: TRAVERSE,
        call: |_, a| map(a, |s| s.trim().to_owned()),
    },
    Function {
        name: "reverse",
        overloads: &[".string -> string"],
        cost: TRAVERSE,
        call: |_, a| map(a, |s| s.chars().rev().collect()),
    },
    Function {
        name: "strings.quote",
        overloads: &["string -> string"],
        cost: TRAVERSE,
        call: |_, a| map(a, quote),
    },
    Function {
        name: "replace",
        overloads: &[".string, string, string -> string", ".string, string, string, int -> string"],
        cost: Cost::Replace,
        call: replace,
    },
    Function {
        name: "split",
        overloads: &[".string, string -> list(string)", ".string, string, int -> list(string)"],
        cost: Cost::Split,
        call: split,
    },
    Function {
        name: "substring",
        overloads: &[".string, int -> string", ".string, int, int -> string"],
        cost: TRAVERSE,
        call: substring,
    },
    Function {
        name: "join",
        overloads: &[".list(string) -> string", ".list(string), string -> string"],
        cost: Cost::Join,
        call: join,
    },
    Function { name: "format", overloads: &[".string, list(dyn) -> string"], cost: TRAVERSE, call: format },
];

fn test<'a>(args: &[Value<'a>], f: fn(&str, &str) -> bool) -> Outcome<'a> {
    match args {
        [Value::String(a), Value::String(b)] => Ok(Value::Bool(f(a, b))),
        _ => Err(EvalError::NoOverload),
    }
}

fn map<'a>(args: &[Value<'a>], f: fn(&str) -> String) -> Outcome<'a> {
    match args {
        [Value::String(s)] => Ok(Value::string(f(s))),
        _ => Err(EvalError::NoOverload),
    }
}

fn out_of_range(index: i64) -> EvalError {
    EvalError::other(format!("index out of range: {index}"))
}

/// The offset in bytes of a character, or of the end.
fn offset(text: &str, index: i64) -> Result<usize, EvalError> {
    let wanted = usize::try_from(index).map_err(|_| out_of_range(index))?;
    text.char_indices().map(|(i, _)| i).chain([text.len()]).nth(wanted).ok_or_else(|| out_of_range(index))
}

fn char_at<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    let [Value::String(s), Value::Int(i)] = args else { return Err(EvalError::NoOverload) };
    let at = offset(s, *i)?;
    Ok(Value::string(s[at..].chars().next().map(String::from).unwrap_or_default()))
}

fn substring<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::String(s), Value::Int(start)] => Ok(Value::string(&s[offset(s, *start)?..])),
        [Value::String(s), Value::Int(start), Value::Int(end)] => {
            if start > end {
                let message = format!("invalid substring range. start: {start}, end: {end}");
                return Err(EvalError::other(message));
            }
            Ok(Value::string(&s[offset(s, *start)?..offset(s, *end)?]))
        }
        _ => Err(EvalError::NoOverload),
    }
}

fn chars(text: &str) -> i64 {
    text.chars().count() as i64
}

/// `text.indexOf(part)`, from an offset if one is given.
pub(crate) fn index_of<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let (s, part, from) = match args {
        [Value::String(s), Value::String(part)] => (s, part, 0),
        [Value::String(s), Value::String(part), Value::Int(from)] => (s, part, *from),
        _ => return Err(EvalError::NoOverload),
    };
    let start = offset(s, from)?;
    Ok(Value::Int(s[start..].find(&**part).map_or(-1, |i| from + chars(&s[start..start + i]))))
}

/// `text.lastIndexOf(part)`, beginning at most at an offset if one is given.
pub(crate) fn last_index_of<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let (s, part, end) = match args {
        [Value::String(s), Value::String(part)] => (s, part, s.len()),
        [Value::String(s), Value::String(part), Value::Int(last)] => {
            (s, part, offset(s, *last)? + part.len())
        }
        _ => return Err(EvalError::NoOverload),
    };
    let mut end = end.min(s.len());
    while !s.is_char_boundary(end) {
        end -= 1;
    }
    Ok(Value::Int(s[..end].rfind(&**part).map_or(-1, |i| chars(&s[..i]))))
}

fn replace<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    let (s, old, new, limit) = match args {
        [Value::String(s), Value::String(old), Value::String(new)] => (s, old, new, -1),
        [Value::String(s), Value::String(old), Value::String(new), Value::Int(limit)] => {
            (s, old, new, *limit)
        }
        _ => return Err(EvalError::NoOverload),
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let hits = s.matches(&**old).take(limit).count();
    let size = s.len() as u128 + hits as u128 * new.len() as u128;
    super::bounded(size)?;
    Ok(Value::string(s.replacen(&**old, new, limit)))
}

fn split<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    let (s, separator, limit) = match args {
        [Value::String(s), Value::String(by)] => (s, by, -1),
        [Value::String(s), Value::String(by), Value::Int(limit)] => (s, by, *limit),
        _ => return Err(EvalError::NoOverload),
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let parts: Vec<String> = if limit == 0 {
        Vec::new()
    } else if separator.is_empty() {
        // Characters, the last part being all that is left.
        let mut out = Vec::new();
        let mut rest: &str = s;
        while let Some(c) = rest.chars().next() {
            if out.len() + 1 == limit {
                out.push(rest.to_owned());
                break;
            }
            out.push(c.to_string());
            rest = &rest[c.len_utf8()..];
        }
        out
    } else {
        s.splitn(limit, &**separator).map(str::to_owned).collect()
    };
    Ok(Value::list(parts.into_iter().map(Value::string).collect()))
}

fn join<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    let (list, separator) = match args {
        [Value::List(list)] => (list, ""),
        [Value::List(list), Value::String(s)] => (list, &**s),
        _ => return Err(EvalError::NoOverload),
    };
    let mut out = String::new();
    for (i, item) in list.iter().enumerate() {
        let Value::String(s) = item? else { return Err(EvalError::NoOverload) };
        if i > 0 {
            out.push_str(separator);
        }
        out.push_str(&s);
        super::bounded(out.len() as u128)?;
    }
    Ok(Value::string(out))
}

const MAX_PRECISION: usize = 100;

fn format<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    let [Value::String(template), Value::List(values)] = args else { return Err(EvalError::NoOverload) };
    let mut out = String::new();
    let mut rest: &str = template;
    let mut next = 0;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        let mut precision = None;
        if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
            let digits: usize =
                after[..end].parse().map_err(|_| EvalError::other("error parsing format precision"))?;
            if digits > MAX_PRECISION {
                return Err(EvalError::other(format!("precision {digits} exceeds maximum {MAX_PRECISION}")));
            }
            precision = Some(digits);
            rest = &after[end..];
        }
        let clause = rest.chars().next().ok_or_else(|| EvalError::other("unexpected end of string"))?;
        rest = &rest[clause.len_utf8()..];
        let value =
            values.get(next).ok_or_else(|| EvalError::other(format!("index {next} out of range")))??;
        next += 1;
        clause_text(&mut out, clause, precision, &value).ok_or_else(|| {
            EvalError::other(format!(
                "error during formatting: unrecognized clause or type: %{clause} of {}",
                value.type_name()
            ))
        })?;
        super::bounded(out.len() as u128)?;
    }
    out.push_str(rest);
    Ok(Value::string(out))
}

/// One clause; `None` if it does not take such a value.
fn clause_text(out: &mut String, clause: char, precision: Option<usize>, value: &Value<'_>) -> Option<()> {
    let digits = precision.unwrap_or(6);
    let written = match (clause, value) {
        ('s', value) => {
            out.push_str(&display(value));
            Ok(())
        }
        ('d', Value::Int(_) | Value::Uint(_)) => {
            out.push_str(&display(value));
            Ok(())
        }
        ('f', Value::Double(d)) => write!(out, "{d:.digits$}"),
        ('e', Value::Double(d)) => {
            let text = format!("{d:.digits$e}");
            let (mantissa, exponent) = text.split_once('e')?;
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
            write!(out, "{mantissa}e{sign}{exponent:0>2}")
        }
        ('b', Value::Int(n)) => write!(out, "{}{:b}", if *n < 0 { "-" } else { "" }, n.unsigned_abs()),
        ('b', Value::Uint(n)) => write!(out, "{n:b}"),
        ('b', Value::Bool(b)) => write!(out, "{}", u8::from(*b)),
        ('o', Value::Int(n)) => write!(out, "{}{:o}", if *n < 0 { "-" } else { "" }, n.unsigned_abs()),
        ('o', Value::Uint(n)) => write!(out, "{n:o}"),
        ('x', Value::Int(n)) => write!(out, "{}{:x}", if *n < 0 { "-" } else { "" }, n.unsigned_abs()),
        ('X', Value::Int(n)) => write!(out, "{}{:X}", if *n < 0 { "-" } else { "" }, n.unsigned_abs()),
        ('x', Value::Uint(n)) => write!(out, "{n:x}"),
        ('X', Value::Uint(n)) => write!(out, "{n:X}"),
        ('x', Value::String(s)) => s.bytes().try_for_each(|b| write!(out, "{b:02x}")),
        ('X', Value::String(s)) => s.bytes().try_for_each(|b| write!(out, "{b:02X}")),
        ('x', Value::Bytes(s)) => s.iter().try_for_each(|b| write!(out, "{b:02x}")),
        ('X', Value::Bytes(s)) => s.iter().try_for_each(|b| write!(out, "{b:02X}")),
        _ => return None,
    };
    written.ok()
}

/// A value as text.
pub(crate) fn display(value: &Value<'_>) -> String {
    let mut out = String::new();
    show(&mut out, value, false);
    out
}

fn show(out: &mut String, value: &Value<'_>, nested: bool) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Int(n) => out.push_str(&n.to_string()),
        Value::Uint(n) => out.push_str(&n.to_string()),
        Value::Double(d) => out.push_str(&float(*d)),
        Value::String(s) if nested => out.push_str(&quote(s)),
        Value::String(s) => out.push_str(s),
        Value::Bytes(b) => out.push_str(&String::from_utf8_lossy(b)),
        Value::Timestamp(t) => out.push_str(&time::show_timestamp(*t)),
        Value::Duration(d) => out.push_str(&time::show_duration(*d)),
        Value::List(list) => show_list(out, list),
        Value::Map(map) => show_map(out, map),
        Value::Type(name) => out.push_str(name),
        Value::Optional(None) => out.push_str("optional.none()"),
        Value::Optional(Some(inner)) => {
            out.push_str("optional(");
            show(out, inner, true);
            out.push(')');
        }
        Value::Url(url) => out.push_str(url.text()),
        Value::Ip(ip) => out.push_str(&ip.to_string()),
        Value::Cidr(cidr) => out.push_str(&cidr.to_string()),
        Value::Quantity(q) => out.push_str(&q.to_string()),
        Value::Semver(v) => out.push_str(&v.to_string()),
        Value::Format(name) => out.push_str(name),
        Value::Authz(authz) => out.push_str(authz.opaque().name()),
    }
}

fn show_list(out: &mut String, list: &List<'_>) {
    out.push('[');
    for (i, item) in list.iter().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        match item {
            Ok(item) => show(out, &item, true),
            Err(error) => out.push_str(&error.to_string()),
        }
    }
    out.push(']');
}

fn show_map(out: &mut String, map: &Map<'_>) {
    out.push('{');
    for (i, key) in map.keys().iter().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        show(out, key, true);
        out.push_str(": ");
        match map.get(key) {
            Some(Ok(item)) => show(out, &item, true),
            Some(Err(error)) => out.push_str(&error.to_string()),
            None => {}
        }
    }
    out.push('}');
}

/// A double as Go's shortest notation: exponents below -4 and from 21 on.
pub(crate) fn float(d: f64) -> String {
    if d.is_nan() {
        return "NaN".into();
    }
    if d.is_infinite() {
        return if d > 0.0 { "+Inf" } else { "-Inf" }.into();
    }
    let text = format!("{d:e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..21).contains(&exponent) || d == 0.0 {
        return format!("{d}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}
