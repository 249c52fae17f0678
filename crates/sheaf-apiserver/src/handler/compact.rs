//! Trees as compact JSON, byte for byte as `serde_json` writes them, and quicker: most of what is stored is inside
//! strings in which nothing has to be escaped, and those are copied as a whole. Pure.

use serde_json::{Map, Value};

/// Writes a value behind what `out` holds.
pub(super) fn value(value: &Value, out: &mut Vec<u8>) -> serde_json::Result<()> {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(_) => serde_json::to_writer(out, value)?,
        Value::String(text) => string(text, out)?,
        Value::Array(list) => {
            out.push(b'[');
            for (i, item) in list.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                self::value(item, out)?;
            }
            out.push(b']');
        }
        Value::Object(fields) => map(fields.iter(), out, |_, item, out| self::value(item, out))?,
    }
    Ok(())
}

/// Writes the members of a map, each value as `write` does it.
pub(super) fn map<'a>(
    members: impl Iterator<Item = <&'a Map<String, Value> as IntoIterator>::Item>,
    out: &mut Vec<u8>,
    mut write: impl FnMut(&str, &Value, &mut Vec<u8>) -> serde_json::Result<()>,
) -> serde_json::Result<()> {
    out.push(b'{');
    for (i, (key, item)) in members.enumerate() {
        if i > 0 {
            out.push(b',');
        }
        string(key, out)?;
        out.push(b':');
        write(key, item, out)?;
    }
    out.push(b'}');
    Ok(())
}

/// Writes a string with its quotes.
pub(super) fn string(text: &str, out: &mut Vec<u8>) -> serde_json::Result<()> {
    if needs_escape(text.as_bytes()) {
        return serde_json::to_writer(out, text);
    }
    out.reserve(text.len() + 2);
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
    Ok(())
}

/// Whether a quote, a backslash or a control character is in the text. Eight bytes are looked at together.
fn needs_escape(text: &[u8]) -> bool {
    const ONES: u64 = u64::MAX / 0xff;
    const TOPS: u64 = ONES * 0x80;
    // The top bit of each byte that is below `limit` (at most 128), by borrowing; a byte above such a one may be marked by
    // mistake, which does not matter where only "any" is asked for.
    let below = |word: u64, limit: u64| word.wrapping_sub(ONES * limit) & !word & TOPS;
    let is = |word: u64, byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    let (words, rest) = text.as_chunks::<8>();
    let found = |word: &[u8; 8]| {
        let word = u64::from_le_bytes(*word);
        below(word, 0x20) | is(word, b'"') | is(word, b'\\') != 0
    };
    words.iter().any(found) || rest.iter().any(|b| *b < 0x20 || matches!(b, b'"' | b'\\'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn written(tree: &Value) -> String {
        let mut out = b"before ".to_vec();
        value(tree, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_byte_at_every_place() {
        for byte in 0..=0x7fu8 {
            for place in 0..19 {
                let mut text = "\u{e4}-0123456789abcdef".to_owned();
                text.insert(if place == 0 { 0 } else { place + 1 }, char::from(byte));
                let tree = json!({text.clone(): [text]});
                assert_eq!(written(&tree), format!("before {tree}"), "{byte} at {place}");
            }
        }
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            "[a-z]{0,40}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn as_serde_json_writes_it(tree in tree()) {
            prop_assert_eq!(written(&tree), format!("before {tree}"));
        }
    }
}
