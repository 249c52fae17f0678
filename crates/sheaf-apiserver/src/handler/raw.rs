//! Stored objects as the bytes they are: where their parts lie, and how they are answered without building a tree.
//!
//! An object in the watch cache is its stored bytes and a few offsets. A list is then a concatenation, and a tree is
//! made only for who needs one (tables, writes, YAML). The scanner here walks structure and strings and nothing else:
//! what is stored was written by this server from a checked tree. Damage makes it give up; it never panics. Pure.

use std::borrow::Cow;

use serde_json::Value;

/// A stretch of bytes; empty where the part is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// From where to where; absent if that is further than anything stored reaches.
    pub(crate) fn new(start: usize, end: usize) -> Self {
        match (u32::try_from(start), u32::try_from(end)) {
            (Ok(start), Ok(end)) => Self { start, end },
            _ => Self::default(),
        }
    }

    /// Whether it is there.
    pub(crate) fn is_some(self) -> bool {
        self != Self::default()
    }

    /// Where it begins.
    pub(crate) fn start(self) -> usize {
        self.start as usize
    }

    /// The bytes; none if the part is absent.
    pub(crate) fn of(self, bytes: &[u8]) -> &[u8] {
        bytes.get(self.start as usize..self.end as usize).unwrap_or_default()
    }
}

/// Where the parts of an object are that answers are made with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    /// The value of `apiVersion`, with its quotes.
    pub(crate) api_version: Span,
    /// The value of `kind`, with its quotes.
    pub(crate) kind: Span,
    /// The map `metadata`, with its braces.
    pub(crate) metadata: Span,
    /// The map `metadata.labels`, with its braces.
    pub(crate) labels: Span,
}

/// The members of metadata that tell which object it is, whose, and whether it goes.
const IDENTITY: [&[u8]; 6] =
    [b"deletionTimestamp", b"finalizers", b"name", b"namespace", b"ownerReferences", b"uid"];

impl Parts {
    /// Finds the parts. `None`: this is no object with metadata.
    pub(crate) fn find(bytes: &[u8]) -> Option<Self> {
        // Offsets are kept small; the store takes nothing that comes near.
        u32::try_from(bytes.len()).ok()?;
        let mut parts = Self::default();
        let mut members = Members::new(bytes, 0)?;
        while let Some((key, value)) = members.next()? {
            match key {
                b"apiVersion" => parts.api_version = value,
                b"kind" => parts.kind = value,
                b"metadata" => parts.metadata = value,
                _ => {}
            }
        }
        if !bytes.get(members.at..)?.iter().all(u8::is_ascii_whitespace) {
            return None;
        }
        if parts.metadata == Span::default() {
            return None;
        }
        let mut members = Members::new(bytes, parts.metadata.start as usize)?;
        while let Some((key, value)) = members.next()? {
            if key == b"labels" {
                parts.labels = value;
            }
        }
        Some(parts)
    }

    /// Whether the object was stored as this version and kind.
    pub(crate) fn is(&self, bytes: &[u8], api_version: &str, kind: &str) -> bool {
        let same = |span: Span, text: &str| matches!(span.of(bytes), [b'"', inner @ .., b'"'] if inner == text.as_bytes());
        same(self.api_version, api_version) && same(self.kind, kind)
    }

    /// Writes the object with a version, a kind and a resourceVersion.
    pub(crate) fn write(&self, bytes: &[u8], api_version: &str, kind: &str, at: u64, out: &mut Vec<u8>) {
        out.reserve(bytes.len() + 64);
        // In the order in which they come in the bytes; the encoder sorts keys, but nothing here relies on it.
        let mut cuts =
            [(self.api_version, Some(api_version)), (self.kind, Some(kind)), (self.metadata, None)];
        cuts.sort_unstable_by_key(|(span, _)| span.start);
        let mut done = 0;
        if self.api_version == Span::default() || self.kind == Span::default() {
            // One is missing: both are put in front, where the later of two equal keys does not exist.
            out.push(b'{');
            if self.api_version == Span::default() {
                quoted("apiVersion", api_version, out);
            }
            if self.kind == Span::default() {
                quoted("kind", kind, out);
            }
            done = 1;
        }
        for (span, text) in cuts {
            if span == Span::default() {
                continue;
            }
            match text {
                Some(text) => {
                    out.extend_from_slice(bytes.get(done..span.start as usize).unwrap_or_default());
                    out.push(b'"');
                    out.extend_from_slice(text.as_bytes());
                    out.push(b'"');
                }
                None => {
                    out.extend_from_slice(bytes.get(done..span.start as usize).unwrap_or_default());
                    self.write_metadata(bytes, at, out);
                }
            }
            done = span.end as usize;
        }
        out.extend_from_slice(bytes.get(done..).unwrap_or_default());
    }

    /// Writes the metadata with a resourceVersion.
    pub(crate) fn write_metadata(&self, bytes: &[u8], at: u64, out: &mut Vec<u8>) {
        let rest = self.metadata.of(bytes).get(1..).unwrap_or(b"}");
        out.extend_from_slice(b"{\"resourceVersion\":\"");
        decimal(at, out);
        out.push(b'"');
        if rest.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'}') {
            out.push(b',');
        }
        out.extend_from_slice(rest);
    }

    /// Writes of the metadata what [`IDENTITY`] names, with a resourceVersion.
    pub(crate) fn write_identity(&self, bytes: &[u8], at: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"resourceVersion\":\"");
        decimal(at, out);
        out.push(b'"');
        let mut members = Members::new(bytes, self.metadata.start());
        while let Some((key, value)) = members.as_mut().and_then(Members::identity) {
            out.extend_from_slice(b",\"");
            out.extend_from_slice(key);
            out.extend_from_slice(b"\":");
            out.extend_from_slice(value);
        }
        out.push(b'}');
    }

    /// Whether two states of an object say the same of what [`IDENTITY`] names.
    pub(crate) fn same_identity(&self, bytes: &[u8], other: &Self, others: &[u8]) -> bool {
        let mut one = Members::new(bytes, self.metadata.start());
        let mut two = Members::new(others, other.metadata.start());
        loop {
            let next = one.as_mut().and_then(Members::identity);
            if next != two.as_mut().and_then(Members::identity) {
                return false;
            }
            if next.is_none() {
                return true;
            }
        }
    }

    /// The value of a label.
    pub(crate) fn label<'a>(&self, bytes: &'a [u8], key: &str) -> Option<Cow<'a, str>> {
        if self.labels == Span::default() {
            return None;
        }
        text(member(bytes, self.labels.start as usize, key)?.of(bytes))
    }
}

fn quoted(key: &str, value: &str, out: &mut Vec<u8>) {
    for part in ["\"", key, "\":\"", value, "\","] {
        out.extend_from_slice(part.as_bytes());
    }
}

/// A number in decimal digits.
pub(crate) fn decimal(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        if let (Some(digit), Ok(value)) = (digits.get_mut(at), u8::try_from(number % 10)) {
            *digit = b'0' + value;
        }
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(at..).unwrap_or_default());
}

/// A field by its path as field selectors see it: strings as they are, numbers and booleans as they are written,
/// anything else and what is absent as empty.
pub(crate) fn field<'a>(bytes: &'a [u8], path: &str) -> Cow<'a, str> {
    let mut at = 0;
    let mut span = Span::default();
    for key in path.split('.') {
        match member(bytes, at, key) {
            Some(found) => {
                span = found;
                at = found.start as usize;
            }
            None => return Cow::Borrowed(""),
        }
    }
    let raw = span.of(bytes);
    match raw.first() {
        Some(b'"') => text(raw).unwrap_or_default(),
        Some(b't' | b'f' | b'-' | b'0'..=b'9') => {
            std::str::from_utf8(raw).map(Cow::Borrowed).unwrap_or_default()
        }
        _ => Cow::Borrowed(""),
    }
}

/// A tree of some members of an object, all of each but for `metadata.managedFields`, which no cell shows. `None`: they
/// cannot be read.
pub(crate) fn pick(bytes: &[u8], wanted: &[String]) -> Option<serde_json::Map<String, Value>> {
    let mut out = serde_json::Map::new();
    let mut members = Members::new(bytes, 0)?;
    while let Some((key, span)) = members.next()? {
        let Some(name) = wanted.iter().find(|w| w.as_bytes() == key) else { continue };
        let value = match key {
            b"metadata" => {
                let mut metadata = serde_json::Map::new();
                let mut members = Members::new(bytes, span.start as usize)?;
                while let Some((key, span)) = members.next()? {
                    if key != b"managedFields" {
                        metadata.insert(unescape(key)?, serde_json::from_slice(span.of(bytes)).ok()?);
                    }
                }
                Value::Object(metadata)
            }
            _ => serde_json::from_slice(span.of(bytes)).ok()?,
        };
        out.insert(name.clone(), value);
    }
    Some(out)
}

/// The value under a key of the map that begins at `at`.
fn member(bytes: &[u8], at: usize, key: &str) -> Option<Span> {
    let mut members = Members::new(bytes, at)?;
    while let Some((found, value)) = members.next()? {
        // Keys with escapes are rare, and compared as what they mean.
        if found == key.as_bytes() || (found.contains(&b'\\') && unescape(found).as_deref() == Some(key)) {
            return Some(value);
        }
    }
    None
}

/// A string's text, from its bytes with quotes.
fn text(raw: &[u8]) -> Option<Cow<'_, str>> {
    let [b'"', inner @ .., b'"'] = raw else { return None };
    if inner.contains(&b'\\') {
        return unescape(inner).map(Cow::Owned);
    }
    std::str::from_utf8(inner).ok().map(Cow::Borrowed)
}

fn unescape(inner: &[u8]) -> Option<String> {
    let mut raw = Vec::with_capacity(inner.len() + 2);
    raw.push(b'"');
    raw.extend_from_slice(inner);
    raw.push(b'"');
    serde_json::from_slice(&raw).ok()
}

/// The members of a map, one by one.
struct Members<'a> {
    bytes: &'a [u8],
    at: usize,
    first: bool,
    over: bool,
}

impl<'a> Members<'a> {
    /// At the brace that opens the map (or at space before it).
    fn new(bytes: &'a [u8], at: usize) -> Option<Self> {
        let at = space(bytes, at);
        (bytes.get(at)? == &b'{').then_some(Self { bytes, at: at + 1, first: true, over: false })
    }

    /// The next key (what is between its quotes, escapes and all) and value. The outer `None`: this is no JSON.
    #[allow(clippy::type_complexity, reason = "damage and end are different things")]
    fn next(&mut self) -> Option<Option<(&'a [u8], Span)>> {
        if self.over {
            return Some(None);
        }
        let mut at = space(self.bytes, self.at);
        match (self.bytes.get(at)?, self.first) {
            (b'}', _) => {
                self.at = at + 1;
                self.over = true;
                return Some(None);
            }
            (b',', false) => at = space(self.bytes, at + 1),
            (_, true) => {}
            (_, false) => return None,
        }
        self.first = false;
        let end = string(self.bytes, at)?;
        let key = self.bytes.get(at + 1..end - 1)?;
        let colon = space(self.bytes, end);
        if self.bytes.get(colon)? != &b':' {
            return None;
        }
        let start = space(self.bytes, colon + 1);
        let end = value(self.bytes, start)?;
        self.at = end;
        Some(Some((key, Span { start: u32::try_from(start).ok()?, end: u32::try_from(end).ok()? })))
    }
}

impl<'a> Members<'a> {
    /// The next of those that [`IDENTITY`] names.
    fn identity(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        loop {
            let (key, value) = self.next()??;
            if IDENTITY.contains(&key) {
                return Some((key, value.of(self.bytes)));
            }
        }
    }
}

fn space(bytes: &[u8], mut at: usize) -> usize {
    while bytes.get(at).is_some_and(u8::is_ascii_whitespace) {
        at += 1;
    }
    at
}

/// The end of the string that begins at `at`.
fn string(bytes: &[u8], at: usize) -> Option<usize> {
    if bytes.get(at)? != &b'"' {
        return None;
    }
    let mut at = at + 1;
    loop {
        at += stop(bytes.get(at..)?)?;
        match bytes.get(at)? {
            b'"' => return Some(at + 1),
            _ => at += 2,
        }
    }
}

/// Where the first quote or backslash is. Most bytes of objects are inside strings: eight are looked at together, and after
/// two such steps, which most strings do not outlast, many more.
fn stop(text: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::MAX / 0xff;
    let (words, _) = text.as_chunks::<8>();
    for (i, word) in words.iter().take(2).enumerate() {
        let word = u64::from_le_bytes(*word);
        // The top bit of each byte that is zero, by borrowing: the lowest one that is set is never set by mistake.
        let zeros = |word: u64| word.wrapping_sub(ONES) & !word & (ONES * 0x80);
        let found = zeros(word ^ (ONES * u64::from(b'"'))) | zeros(word ^ (ONES * u64::from(b'\\')));
        if found != 0 {
            return Some(i * 8 + found.trailing_zeros() as usize / 8);
        }
    }
    let done = words.len().min(2) * 8;
    memchr::memchr2(b'"', b'\\', text.get(done..)?).map(|stop| done + stop)
}

/// The end of the value that begins at `at`.
fn value(bytes: &[u8], at: usize) -> Option<usize> {
    match bytes.get(at)? {
        b'"' => string(bytes, at),
        b'{' | b'[' => {
            let (mut at, mut depth) = (at, 0usize);
            loop {
                match bytes.get(at)? {
                    b'"' => {
                        at = string(bytes, at)?;
                        continue;
                    }
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => {
                        depth -= 1;
                        if depth == 0 {
                            return Some(at + 1);
                        }
                    }
                    _ => {}
                }
                at += 1;
            }
        }
        b't' | b'f' | b'n' | b'-' | b'0'..=b'9' => {
            let rest = bytes.get(at..)?;
            let length =
                rest.iter().position(|b| matches!(b, b',' | b'}' | b']') || b.is_ascii_whitespace())?;
            Some(at + length)
        }
        _ => None,
    }
}

/// Compact JSON written again with two spaces for each level, as Go's `json.Indent` does: empty maps and lists stay on
/// their line.
pub(crate) fn indent(compact: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(compact.len() * 2);
    let (mut at, mut depth) = (0, 0usize);
    let line = |out: &mut Vec<u8>, depth: usize| {
        out.push(b'\n');
        out.extend(std::iter::repeat_n(b' ', depth * 2));
    };
    while let Some(&byte) = compact.get(at) {
        match byte {
            b'"' => {
                let end = string(compact, at).unwrap_or(compact.len());
                out.extend_from_slice(compact.get(at..end).unwrap_or_default());
                at = end;
                continue;
            }
            b'{' | b'[' => {
                out.push(byte);
                let next = space(compact, at + 1);
                if let Some(&close @ (b'}' | b']')) = compact.get(next) {
                    out.push(close);
                    at = next + 1;
                    continue;
                }
                depth += 1;
                line(&mut out, depth);
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(byte);
            }
            b',' => {
                out.push(byte);
                line(&mut out, depth);
            }
            b':' => out.extend_from_slice(b": "),
            byte if byte.is_ascii_whitespace() => {}
            byte => out.push(byte),
        }
        at += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn written(object: &str, api_version: &str, kind: &str, at: u64) -> Value {
        let parts = Parts::find(object.as_bytes()).unwrap();
        let mut out = Vec::new();
        parts.write(object.as_bytes(), api_version, kind, at, &mut out);
        serde_json::from_slice(&out).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&out)))
    }

    #[test]
    fn strings_end_at_their_first_quote_without_a_backslash() {
        for length in 0..40 {
            for place in 0..=length {
                for inside in ["", "\\\"", "\\\\", "!", "\u{a2}\u{dc}"] {
                    let mut text = "#".repeat(length);
                    text.insert_str(place, inside);
                    let text = format!("\"{text}\"");
                    let end = Some(text.len());
                    assert_eq!(string(text.as_bytes(), 0), end, "{text}");
                    assert_eq!(string(format!("{text},\"\"").as_bytes(), 0), end, "{text}");
                    assert_eq!(string(&text.as_bytes()[..text.len() - 1], 0), None, "{text}");
                }
            }
        }
    }

    #[test]
    fn version_kind_and_revision_are_put_in() {
        for (stored, expected) in [
            (
                r#"{"apiVersion":"v1","kind":"A","metadata":{"name":"x"}}"#,
                json!({"apiVersion": "g/v2", "kind": "B", "metadata": {"name": "x", "resourceVersion": "7"}}),
            ),
            (
                r#" { "metadata" : { } , "kind" : "A" , "apiVersion" : "v1", "x": [1, {"metadata": {}}] } "#,
                json!({"apiVersion": "g/v2", "kind": "B", "metadata": {"resourceVersion": "7"}, "x": [1, {"metadata": {}}]}),
            ),
            (
                r#"{"metadata":{"labels":{"a":"}\"{"}},"spec":{"kind":"no"}}"#,
                json!({"apiVersion": "g/v2", "kind": "B", "spec": {"kind": "no"},
                    "metadata": {"resourceVersion": "7", "labels": {"a": "}\"{"}}}),
            ),
        ] {
            assert_eq!(written(stored, "g/v2", "B", 7), expected, "{stored}");
        }
    }

    #[test]
    fn fields_and_labels_are_found() {
        let object = r#"{"metadata":{"labels":{"a":"1","b\"c":"x\ny"},"name":"n"},"spec":{"nodeName":"n1","on":true,"n":-3,"list":[1]}}"#;
        let bytes = object.as_bytes();
        let parts = Parts::find(bytes).unwrap();
        assert_eq!(parts.label(bytes, "a").as_deref(), Some("1"));
        assert_eq!(parts.label(bytes, "b\"c").as_deref(), Some("x\ny"));
        assert_eq!(parts.label(bytes, "d"), None);
        for (path, expected) in [
            ("spec.nodeName", "n1"),
            ("spec.on", "true"),
            ("spec.n", "-3"),
            ("spec.list", ""),
            ("spec.none", ""),
            ("spec.nodeName.x", ""),
            ("metadata.name", "n"),
        ] {
            assert_eq!(field(bytes, path), expected, "{path}");
        }
    }

    #[test]
    fn damage_is_noticed() {
        for broken in [
            "",
            "[]",
            "{",
            "{}",
            r#"{"metadata":1}"#,
            r#"{"metadata":{"a""#,
            r#"{"metadata":{}} x"#,
            r#"{"metadata" {}}"#,
        ] {
            assert_eq!(Parts::find(broken.as_bytes()), None, "{broken}");
        }
    }

    #[test]
    fn indenting_is_that_of_go() {
        let value = json!({"a": [], "b": {}, "c": [1, {"d": "x{,\"y"}]});
        let expected = "{\n  \"a\": [],\n  \"b\": {},\n  \"c\": [\n    1,\n    {\n      \"d\": \"x{,\\\"y\"\n    }\n  ]\n}";
        assert_eq!(String::from_utf8(indent(value.to_string().as_bytes())).unwrap(), expected);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(".{0,6}", inner, 0..5)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// The tree is the oracle: splicing bytes does what changing the tree does.
        #[test]
        fn splicing_is_the_same_as_changing_the_tree(spec in any_json(), labels in any_json(), at: u64) {
            let mut object = json!({"apiVersion": "v1", "kind": "K", "metadata": {"name": "n", "labels": labels}, "spec": spec});
            let bytes = object.to_string();
            let spliced = written(&bytes, "g/v1", "L", at);
            object["apiVersion"] = json!("g/v1");
            object["kind"] = json!("L");
            object["metadata"]["resourceVersion"] = json!(at.to_string());
            prop_assert_eq!(&spliced, &object);
            let pretty: Value = serde_json::from_slice(&indent(object.to_string().as_bytes())).unwrap();
            prop_assert_eq!(pretty, object);
        }

        /// Two states have the same identity if the trees have, and what is written of it is what the tree has.
        #[test]
        fn identities_are_those_of_the_trees(labels in any_json(), owner in any_json(), other in any_json(), at: u64) {
            let object = |labels: &Value, owner: &Value| {
                let metadata = json!({"finalizers": ["x"], "labels": labels, "managedFields": [labels], "name": "n", "ownerReferences": owner, "uid": "u"});
                json!({"kind": "K", "metadata": metadata, "spec": labels})
            };
            let one = object(&labels, &owner);
            let text = one.to_string();
            let parts = Parts::find(text.as_bytes()).unwrap();
            for changed in [object(&other, &owner), object(&labels, &other)] {
                let changed_text = changed.to_string();
                let changed_parts = Parts::find(changed_text.as_bytes()).unwrap();
                let same = one["metadata"]["ownerReferences"] == changed["metadata"]["ownerReferences"];
                let found = parts.same_identity(text.as_bytes(), &changed_parts, changed_text.as_bytes());
                prop_assert_eq!(found, same);
            }
            let mut out = Vec::new();
            parts.write_identity(text.as_bytes(), at, &mut out);
            let written: Value = serde_json::from_slice(&out).unwrap();
            let expected = json!({"finalizers": ["x"], "name": "n", "ownerReferences": owner, "uid": "u", "resourceVersion": at.to_string()});
            prop_assert_eq!(written, expected);
        }

        /// What is picked is what the tree has.
        #[test]
        fn picking_members_is_the_same_as_dropping_the_others(labels in any_json(), status in any_json()) {
            let mut object = json!({"metadata": {"a\"b": labels, "managedFields": [status]}, "spec": {"x": 1}, "status": status});
            let bytes = object.to_string();
            let picked = pick(bytes.as_bytes(), &["status".into(), "metadata".into(), "none".into()]);
            let map = object.as_object_mut().unwrap();
            map.remove("spec");
            map["metadata"].as_object_mut().unwrap().remove("managedFields");
            prop_assert_eq!(picked.as_ref(), Some(&*map));
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(parts) = Parts::find(&bytes) {
                parts.write(&bytes, "v1", "K", 1, &mut Vec::new());
                parts.write_identity(&bytes, 1, &mut Vec::new());
                parts.same_identity(&bytes, &parts, &bytes);
            }
            field(&bytes, "a.b");
            pick(&bytes, &["metadata".into()]);
            indent(&bytes);
        }
    }
}
