//! Named formats: `format.dns1123Label().validate(text)` gives the broken rules, or nothing.

use sheaf_meta::names;

use crate::functions::{Cost, Cx, Function};
use crate::value::{EvalError, Outcome, Value};

use super::url::Url;

macro_rules! format {
    ($name:literal) => {
        Function {
            name: concat!("format.", $name),
            overloads: &["-> format"],
            cost: Cost::One,
            call: |_, _| Ok(Value::Format($name)),
        }
    };
}

pub(crate) const FUNCTIONS: &[Function] = &[
    format!("dns1123Label"),
    format!("dns1123Subdomain"),
    format!("dns1035Label"),
    format!("qualifiedName"),
    format!("dns1123LabelPrefix"),
    format!("dns1123SubdomainPrefix"),
    format!("dns1035LabelPrefix"),
    format!("labelValue"),
    format!("uri"),
    format!("uuid"),
    format!("byte"),
    format!("date"),
    format!("datetime"),
    Function {
        name: "format.named",
        overloads: &["string -> optional(format)"],
        cost: Cost::One,
        call: named,
    },
    Function {
        name: "validate",
        overloads: &[".format, string -> optional(list(string))"],
        // By the length of the text; upstream weighs each format by its pattern, in the same order of magnitude.
        cost: Cost::Traverse(1, 1.0),
        call: validate,
    },
];

fn named<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    let [Value::String(name)] = args else { return Err(EvalError::NoOverload) };
    let known = FUNCTIONS.iter().filter_map(|f| f.name.strip_prefix("format."));
    let found = known.filter(|n| *n != "named").find(|n| **n == **name);
    Ok(found.map_or(Value::Optional(None), |n| Value::some(Value::Format(n))))
}

fn validate<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    let [Value::Format(format), Value::String(text)] = args else { return Err(EvalError::NoOverload) };
    let broken = check(format, text);
    if broken.is_empty() {
        return Ok(Value::Optional(None));
    }
    Ok(Value::some(Value::list(broken.into_iter().map(Value::string).collect())))
}

/// The rules of a format that a text breaks.
fn check(format: &str, text: &str) -> Vec<String> {
    // A prefix may end in a dash: as upstream, the last character stands for what will follow.
    let masked = || match text.strip_suffix('-') {
        Some(rest) if text.len() > 1 => [rest, "a"].concat(),
        _ => text.to_owned(),
    };
    let one = |fits: bool, why: &str| if fits { Vec::new() } else { vec![why.to_owned()] };
    match format {
        "dns1123Label" => names::dns_label(text),
        "dns1123Subdomain" => names::dns_subdomain(text),
        "dns1035Label" => names::dns1035_label(text),
        "qualifiedName" => names::qualified_name(text),
        "dns1123LabelPrefix" => names::dns_label(&masked()),
        "dns1123SubdomainPrefix" => names::dns_subdomain(&masked()),
        "dns1035LabelPrefix" => names::dns1035_label(&masked()),
        "labelValue" => names::label_value(text),
        "uri" => match Url::parse(text) {
            Ok(_) => Vec::new(),
            Err(why) => vec![why],
        },
        "uuid" => one(is_uuid(text), "does not match the UUID format"),
        "byte" => {
            use base64::Engine;
            one(base64::engine::general_purpose::STANDARD.decode(text).is_ok(), "invalid base64")
        }
        "date" => one(text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(), "invalid date"),
        "datetime" => one(sheaf_meta::times::parse_date_time(text).is_some(), "invalid datetime"),
        _ => Vec::new(),
    }
}

fn is_uuid(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 36
        && bytes.iter().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => *b == b'-',
            _ => b.is_ascii_hexdigit(),
        })
}
