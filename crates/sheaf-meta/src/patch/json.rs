//! JSON patch (RFC 6902). What is no list of objects cannot be read, which is 400; what is wrong with an operation shows
//! when its turn comes, as with a place that is not there, and is 422 as that is.

use serde_json::Value;

use super::{MAX_DEPTH, PatchError};

/// Most operations of one patch, as upstream.
pub const MAX_OPERATIONS: usize = 10_000;
/// Most bytes that `copy` operations of one patch may add together, measured roughly.
pub const MAX_COPIED: usize = 3 << 20;

/// Applies a JSON patch. All operations or none.
pub fn json_patch(document: &Value, patch: &Value) -> Result<Value, PatchError> {
    let malformed = |why: &str| PatchError::Malformed(why.into());
    let operations =
        patch.as_array().ok_or_else(|| malformed("a JSON patch must be a list of operations"))?;
    if !operations.iter().all(Value::is_object) {
        return Err(malformed("an operation of a JSON patch must be an object"));
    }
    if operations.len() > MAX_OPERATIONS {
        return Err(PatchError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let mut out = document.clone();
    let mut copied = 0;
    for operation in operations {
        let word = |key: &str| operation.get(key).and_then(Value::as_str);
        let op = word("op").unwrap_or("unknown");
        let path = word("path").ok_or_else(|| missing(op, "path"))?;
        let to = pointer(path)?;
        let value = || operation.get("value").ok_or_else(|| missing(op, "value"));
        let from = || word("from").ok_or_else(|| missing(op, "from"));
        match op {
            "add" => add(&mut out, &to, value()?.clone())?,
            "remove" => {
                remove(&mut out, &to)?;
            }
            "replace" => {
                let value = value()?.clone();
                check_depth(&to, &value)?;
                *find_mut(&mut out, &to)? = value;
            }
            "test" => {
                // A field that an object lacks equals null, as upstream's library has it.
                let expected = value()?;
                let lacks =
                    || to.split_last().is_some_and(|(_, up)| find(&out, up).is_some_and(Value::is_object));
                let equal = match find(&out, &to) {
                    Some(found) => same(found, expected),
                    None => expected.is_null() && lacks(),
                };
                if !equal {
                    return Err(PatchError::TestFailed { path: path.into() });
                }
            }
            "copy" => {
                let source = from()?;
                let value = find(&out, &pointer(source)?).ok_or_else(|| no_such(op, source))?.clone();
                copied += rough_size(&value);
                if copied > MAX_COPIED {
                    return Err(PatchError::TooLarge(format!(
                        "the copy operations of a JSON patch may add {MAX_COPIED} bytes"
                    )));
                }
                add(&mut out, &to, value)?;
            }
            "move" => {
                let source = pointer(from()?)?;
                if to.len() > source.len() && to[..source.len()] == source[..] {
                    return Err(PatchError::Inapplicable(format!("cannot move {path:?} into itself")));
                }
                let value = remove(&mut out, &source)?;
                add(&mut out, &to, value)?;
            }
            other => return Err(PatchError::Inapplicable(format!("Unexpected kind: {other}"))),
        }
    }
    Ok(out)
}

fn missing(op: &str, field: &str) -> PatchError {
    let why = format!("the operation \"{op}\" of a JSON patch must have the field \"{field}\"");
    PatchError::Inapplicable(why)
}

fn no_such(op: &str, path: &str) -> PatchError {
    PatchError::Inapplicable(format!("{op} operation does not apply: doc is missing path: {path}"))
}

/// Splits a JSON pointer (RFC 6901).
fn pointer(path: &str) -> Result<Vec<String>, PatchError> {
    if path.is_empty() {
        return Ok(Vec::new());
    }
    let rest = path.strip_prefix('/').ok_or_else(|| {
        PatchError::Inapplicable(format!("the path {path:?} of a JSON patch must begin with \"/\""))
    })?;
    let tokens: Vec<String> = rest.split('/').map(|t| t.replace("~1", "/").replace("~0", "~")).collect();
    if tokens.len() > MAX_DEPTH {
        return Err(PatchError::TooLarge(format!("a path of a JSON patch may have {MAX_DEPTH} segments")));
    }
    Ok(tokens)
}

fn index(token: &str) -> Option<usize> {
    let canonical = token == "0" || (!token.starts_with('0') && token.bytes().all(|b| b.is_ascii_digit()));
    if canonical { token.parse().ok() } else { None }
}

fn find<'a>(document: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(document, |at, token| match at {
        Value::Object(map) => map.get(token),
        Value::Array(list) => list.get(index(token)?),
        _ => None,
    })
}

fn find_mut<'a>(document: &'a mut Value, path: &[String]) -> Result<&'a mut Value, PatchError> {
    let mut at = document;
    for token in path {
        let next = match at {
            Value::Object(map) => map.get_mut(token),
            Value::Array(list) => index(token).and_then(|i| list.get_mut(i)),
            _ => None,
        };
        at = next.ok_or_else(|| no_such("patch", &path.join("/")))?;
    }
    Ok(at)
}

fn add(document: &mut Value, path: &[String], value: Value) -> Result<(), PatchError> {
    check_depth(path, &value)?;
    let Some((last, parent)) = path.split_last() else {
        *document = value;
        return Ok(());
    };
    match find_mut(document, parent)? {
        Value::Object(map) => {
            map.insert(last.clone(), value);
        }
        Value::Array(list) => {
            let at = if last == "-" { Some(list.len()) } else { index(last) };
            match at {
                Some(i) if i <= list.len() => list.insert(i, value),
                _ => return Err(no_such("add", &path.join("/"))),
            }
        }
        _ => return Err(no_such("add", &path.join("/"))),
    }
    Ok(())
}

fn remove(document: &mut Value, path: &[String]) -> Result<Value, PatchError> {
    // Without the whole document nothing would be left to write.
    let (last, parent) = path.split_last().ok_or_else(|| no_such("remove", ""))?;
    let removed = match find_mut(document, parent)? {
        Value::Object(map) => map.remove(last),
        Value::Array(list) => index(last).filter(|i| *i < list.len()).map(|i| list.remove(i)),
        _ => None,
    };
    removed.ok_or_else(|| no_such("remove", &path.join("/")))
}

/// JSON equality: `1` and `1.0` are the same number.
pub(crate) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => {
            x == y || (x.is_f64() || y.is_f64()) && x.as_f64() == y.as_f64()
        }
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(a, b)| same(a, b)),
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len() && x.iter().all(|(k, v)| y.get(k).is_some_and(|w| same(v, w)))
        }
        _ => a == b,
    }
}

/// Keeps the document within [`MAX_DEPTH`], on which all recursion over documents relies.
fn check_depth(path: &[String], value: &Value) -> Result<(), PatchError> {
    if depth_within(value, MAX_DEPTH.saturating_sub(path.len())) {
        Ok(())
    } else {
        Err(PatchError::TooLarge(format!("the patched object would nest deeper than {MAX_DEPTH} levels")))
    }
}

fn depth_within(value: &Value, left: usize) -> bool {
    match value {
        Value::Array(list) => left > 0 && list.iter().all(|v| depth_within(v, left - 1)),
        Value::Object(map) => left > 0 && map.values().all(|v| depth_within(v, left - 1)),
        _ => true,
    }
}

fn rough_size(value: &Value) -> usize {
    8 + match value {
        Value::String(s) => s.len(),
        Value::Array(list) => list.iter().map(rough_size).sum(),
        Value::Object(map) => map.iter().map(|(k, v)| k.len() + rough_size(v)).sum(),
        _ => 0,
    }
}
