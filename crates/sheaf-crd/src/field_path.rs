//! Paths of fields as definitions write them (`.spec.a['b.c']`), followed along a schema. No indexes of lists.

use serde_json::Value;

use crate::json::{object, property, schema};

/// The steps of a path and the schema at its end, or why it leads nowhere.
pub(crate) fn resolve<'s>(path: &str, root: &'s Value) -> Result<(Vec<String>, &'s Value), String> {
    let steps = parse(path)?;
    let mut at = root;
    for step in &steps {
        let map = object(at);
        let next = property(map, step);
        // metadata is there even where the schema does not say what is in it.
        at = match next.or_else(|| schema(map, "additionalProperties")) {
            Some(next) => next,
            None => return Err("does not refer to a valid field".to_owned()),
        };
    }
    Ok((steps, at))
}

pub(crate) fn parse(path: &str) -> Result<Vec<String>, String> {
    let mut steps = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[']).unwrap_or(after.len());
            let name = &after[..end];
            if name.is_empty() {
                return Err("unexpected end of JSON path".to_owned());
            }
            steps.push(name.to_owned());
            rest = &after[end..];
        } else if let Some(after) = rest.strip_prefix("['") {
            let (name, tail) =
                quoted(after).ok_or_else(|| "expected '] at end of bracketed accessor".to_owned())?;
            steps.push(name);
            rest = tail;
        } else if rest.starts_with('[') {
            return Err("array notation is not allowed in field paths: expected ['field']".to_owned());
        } else {
            return Err("expected [ or . but got: ".to_owned() + &rest.chars().take(1).collect::<String>());
        }
    }
    if steps.is_empty() { Err("must not be empty".to_owned()) } else { Ok(steps) }
}

/// The text up to `']`, with escapes read, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '\\' => out.push(chars.next()?.1),
            '\'' => return text[i + 1..].strip_prefix(']').map(|rest| (out, rest)),
            c => out.push(c),
        }
    }
    None
}
