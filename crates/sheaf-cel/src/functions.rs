//! The table of functions: for each name its signatures, its cost, and the code that runs it.
//!
//! A signature is text, `PARAMS -> RESULT`, with a dot in front where the first parameter is the target of a member
//! call. Signatures are read once. Which overload runs is decided by the values, as upstream decides it.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use regex::Regex;

use crate::libs;
use crate::types::{Opaque, Type};
use crate::value::{Fuel, Outcome, Value};

/// What a call costs, while running and at worst.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Cost {
    /// 1.
    One,
    /// Its arguments only.
    Free,
    /// A tenth of the size of an argument, so many times.
    Traverse(usize, f64),
    /// A tenth of a text made bytes or the reverse; 1 where nothing is converted.
    Convert,
    /// As `Traverse(0, _)`, but upstream estimates 1.
    Parse(f64),
    /// A tenth of the smaller of two.
    Compare,
    /// As `Compare` for texts and bytes, else 1.
    Order,
    /// A tenth of both texts together; lists and numbers 1.
    Concat,
    /// The size of the second argument, if it is a list.
    In,
    /// Text by pattern.
    Regex,
    /// Text by text.
    Contains,
    /// Every element of a list.
    Walk,
    /// The joined text.
    Join,
    /// Replacing: twice over the text.
    Replace,
    /// Splitting: twice over the text.
    Split,
    /// Elements by elements, so many times.
    Sets(u64),
    /// Comparing addresses.
    ContainsIp,
    /// Comparing ranges.
    ContainsCidr,
    /// Asking the authorizer.
    Check,
}

/// What a function may look at beside its arguments.
pub(crate) struct Cx<'p> {
    /// The pattern of `matches`, `find` and `findAll`, compiled before, where it is a literal.
    pub(crate) regex: Option<&'p Regex>,
    /// For what is compared.
    pub(crate) fuel: &'p Fuel,
}

pub(crate) type Call = for<'a> fn(&Cx<'_>, &[Value<'a>]) -> Outcome<'a>;

/// A function as a row.
pub(crate) struct Function {
    pub(crate) name: &'static str,
    pub(crate) overloads: &'static [&'static str],
    pub(crate) cost: Cost,
    pub(crate) call: Call,
}

/// A signature.
#[derive(Debug)]
pub(crate) struct Overload {
    pub(crate) member: bool,
    pub(crate) params: Vec<Type>,
    pub(crate) result: Type,
}

/// A function with its signatures read.
pub(crate) struct Declared {
    pub(crate) function: &'static Function,
    pub(crate) overloads: Vec<Overload>,
}

/// All functions by name.
pub(crate) fn table() -> &'static HashMap<&'static str, Declared> {
    static TABLE: OnceLock<HashMap<&'static str, Declared>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let all = [
            libs::standard::FUNCTIONS,
            libs::convert::FUNCTIONS,
            libs::time::FUNCTIONS,
            libs::strings::FUNCTIONS,
            libs::lists::FUNCTIONS,
            libs::optional::FUNCTIONS,
            libs::pattern::FUNCTIONS,
            libs::url::FUNCTIONS,
            libs::net::FUNCTIONS,
            libs::amounts::FUNCTIONS,
            libs::format::FUNCTIONS,
            libs::semver::FUNCTIONS,
            libs::patch::FUNCTIONS,
            crate::authorizer::FUNCTIONS,
        ];
        let mut table: HashMap<&'static str, Declared> = HashMap::new();
        for function in all.into_iter().flatten() {
            let overloads = function.overloads.iter().map(|text| signature(text)).collect();
            table.insert(function.name, Declared { function, overloads });
        }
        table
    })
}

fn signature(text: &str) -> Overload {
    let (params, result) = text.split_once("->").unwrap_or((text, "dyn"));
    let (member, params) = match params.trim().strip_prefix('.') {
        Some(rest) => (true, rest),
        None => (false, params.trim()),
    };
    Overload { member, params: split(params).into_iter().map(read).collect(), result: read(result.trim()) }
}

/// Splits at commas outside parentheses.
fn split(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let (mut depth, mut start) = (0, 0);
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                out.push(text[start..i].trim());
                start = i + 1;
            }
            _ => {}
        }
    }
    let last = text[start..].trim();
    if !last.is_empty() {
        out.push(last);
    }
    out
}

fn read(text: &str) -> Type {
    if let Some((head, inner)) = text.strip_suffix(')').and_then(|t| t.split_once('(')) {
        let mut inner = split(inner).into_iter().map(read);
        let mut next = || inner.next().unwrap_or(Type::Dyn);
        return match head {
            "list" => Type::List(Arc::new(next())),
            "map" => Type::Map(Arc::new((next(), next()))),
            _ => Type::Optional(Arc::new(next())),
        };
    }
    match text {
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "timestamp" => Type::Timestamp,
        "duration" => Type::Duration,
        "type" => Type::Meta,
        "A" => Type::Param(0),
        "B" => Type::Param(1),
        "url" => Type::Opaque(Opaque::Url),
        "ip" => Type::Opaque(Opaque::Ip),
        "cidr" => Type::Opaque(Opaque::Cidr),
        "quantity" => Type::Opaque(Opaque::Quantity),
        "semver" => Type::Opaque(Opaque::Semver),
        "format" => Type::Opaque(Opaque::Format),
        "authorizer" => Type::Opaque(Opaque::Authorizer),
        "path-check" => Type::Opaque(Opaque::PathCheck),
        "group-check" => Type::Opaque(Opaque::GroupCheck),
        "resource-check" => Type::Opaque(Opaque::ResourceCheck),
        "decision" => Type::Opaque(Opaque::Decision),
        "dyn" => Type::Dyn,
        other => unreachable!("the table of functions names an unknown type {other}"),
    }
}
