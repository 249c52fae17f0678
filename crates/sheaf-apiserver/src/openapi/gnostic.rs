//! The whole document in the encoding that kubectl, Helm and Argo CD read: gnostic's `openapi.v2.Document`. Pure.
//!
//! Only what the documents made here contain is encoded; the numbers are those of gnostic's published messages. What
//! has no message of its own (defaults, enumerations, extensions) is carried as YAML, which JSON is.

use serde_json::Value;

/// A message, as it grows.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn message(&mut self, field: u64, message: &Message) {
        self.bytes(field, &message.0);
    }

    fn text(&mut self, field: u64, value: Option<&Value>) {
        if let Some(text) = value.and_then(Value::as_str).filter(|t| !t.is_empty()) {
            self.bytes(field, text.as_bytes());
        }
    }

    fn texts(&mut self, field: u64, value: Option<&Value>) {
        for text in list(value).filter_map(Value::as_str) {
            self.bytes(field, text.as_bytes());
        }
    }

    fn flag(&mut self, field: u64, value: Option<&Value>) {
        if value == Some(&Value::Bool(true)) {
            self.varint(field << 3);
            self.varint(1);
        }
    }

    fn integer(&mut self, field: u64, value: Option<&Value>) {
        if let Some(number) = value.and_then(Value::as_i64).filter(|n| *n != 0) {
            self.varint(field << 3);
            self.varint(number.cast_unsigned());
        }
    }

    fn double(&mut self, field: u64, value: Option<&Value>) {
        if let Some(number) = value.and_then(Value::as_f64).filter(|n| *n != 0.0) {
            self.varint(field << 3 | 1);
            self.0.extend_from_slice(&number.to_bits().to_le_bytes());
        }
    }

    /// `x-...` members, as named values.
    fn extensions(&mut self, field: u64, of: &Value) {
        for (name, value) in members(of).filter(|(name, _)| name.starts_with("x-")) {
            self.message(field, &named(name, &any(value)));
        }
    }
}

fn list(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn named(name: &str, value: &Message) -> Message {
    let mut out = Message::default();
    out.bytes(1, name.as_bytes());
    out.message(2, value);
    out
}

fn any(value: &Value) -> Message {
    let mut out = Message::default();
    out.bytes(2, format!("{value}\n").as_bytes());
    out
}

fn one_of(field: u64, message: &Message) -> Message {
    let mut out = Message::default();
    out.message(field, message);
    out
}

/// Encodes a document.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    let mut out = Message::default();
    out.text(1, document.get("swagger"));
    if let Some(info) = document.get("info") {
        let mut message = Message::default();
        message.text(1, info.get("title"));
        message.text(2, info.get("version"));
        out.message(2, &message);
    }
    let mut paths = Message::default();
    for (path, item) in members(&document["paths"]) {
        paths.message(2, &named(path, &path_item(item)));
    }
    out.message(8, &paths);
    let mut definitions = Message::default();
    for (name, shape) in members(&document["definitions"]) {
        definitions.message(1, &named(name, &schema(shape)));
    }
    out.message(9, &definitions);
    for requirement in list(document.get("security")) {
        let mut message = Message::default();
        for (name, scopes) in members(requirement) {
            let mut array = Message::default();
            array.texts(1, Some(scopes));
            message.message(1, &named(name, &array));
        }
        out.message(12, &message);
    }
    let mut security = Message::default();
    for (name, scheme) in members(&document["securityDefinitions"]) {
        let mut key = Message::default();
        for (field, part) in [(1, "type"), (2, "name"), (3, "in"), (4, "description")] {
            key.text(field, scheme.get(part));
        }
        security.message(1, &named(name, &one_of(2, &key)));
    }
    out.message(13, &security);
    out.0
}

fn path_item(item: &Value) -> Message {
    let mut out = Message::default();
    let verbs =
        [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (6, "options"), (7, "head"), (8, "patch")];
    for (field, verb) in verbs {
        if let Some(given) = item.get(verb) {
            out.message(field, &operation(given));
        }
    }
    for given in list(item.get("parameters")) {
        out.message(9, &one_of(1, &parameter(given)));
    }
    out.extensions(10, item);
    out
}

fn operation(given: &Value) -> Message {
    let mut out = Message::default();
    out.texts(1, given.get("tags"));
    out.text(3, given.get("description"));
    out.text(5, given.get("operationId"));
    out.texts(6, given.get("produces"));
    out.texts(7, given.get("consumes"));
    for one in list(given.get("parameters")) {
        out.message(8, &one_of(1, &parameter(one)));
    }
    let mut responses = Message::default();
    for (code, response) in members(&given["responses"]) {
        let mut message = Message::default();
        message.text(1, response.get("description"));
        if let Some(shape) = response.get("schema") {
            message.message(2, &one_of(1, &schema(shape)));
        }
        responses.message(1, &named(code, &one_of(1, &message)));
    }
    out.message(9, &responses);
    out.texts(10, given.get("schemes"));
    out.extensions(13, given);
    out
}

fn parameter(given: &Value) -> Message {
    let mut out = Message::default();
    let place = given.get("in").and_then(Value::as_str).unwrap_or_default();
    if place == "body" {
        out.text(1, given.get("description"));
        out.text(2, given.get("name"));
        out.text(3, given.get("in"));
        out.flag(4, given.get("required"));
        if let Some(shape) = given.get("schema") {
            out.message(5, &schema(shape));
        }
        return one_of(1, &out);
    }
    out.flag(1, given.get("required"));
    out.text(2, given.get("in"));
    out.text(3, given.get("description"));
    out.text(4, given.get("name"));
    // Parameters of the query have one field more before the type than those of the path.
    let (kind, after) = if place == "query" { (3, 1) } else { (4, 0) };
    out.text(5 + after, given.get("type"));
    out.text(6 + after, given.get("format"));
    out.flag(19 + after, given.get("uniqueItems"));
    one_of(2, &one_of(kind, &out))
}

fn schema(shape: &Value) -> Message {
    let mut out = Message::default();
    let get = |key: &str| shape.get(key);
    out.text(1, get("$ref"));
    out.text(2, get("format"));
    out.text(3, get("title"));
    out.text(4, get("description"));
    if let Some(default) = get("default") {
        out.message(5, &any(default));
    }
    out.double(6, get("multipleOf"));
    out.double(7, get("maximum"));
    out.flag(8, get("exclusiveMaximum"));
    out.double(9, get("minimum"));
    out.flag(10, get("exclusiveMinimum"));
    out.integer(11, get("maxLength"));
    out.integer(12, get("minLength"));
    out.text(13, get("pattern"));
    out.integer(14, get("maxItems"));
    out.integer(15, get("minItems"));
    out.flag(16, get("uniqueItems"));
    out.integer(17, get("maxProperties"));
    out.integer(18, get("minProperties"));
    out.texts(19, get("required"));
    for value in list(get("enum")) {
        out.message(20, &any(value));
    }
    match get("additionalProperties") {
        Some(Value::Bool(allowed)) => {
            let mut flag = Message::default();
            // Said also when it is false: that is what it is there for.
            flag.varint(2 << 3);
            flag.varint(u64::from(*allowed));
            out.message(21, &flag);
        }
        Some(shape) => out.message(21, &one_of(1, &schema(shape))),
        None => {}
    }
    if let Some(kind) = get("type").and_then(Value::as_str) {
        let mut item = Message::default();
        item.bytes(1, kind.as_bytes());
        out.message(22, &item);
    }
    if let Some(items) = get("items") {
        out.message(23, &one_of(1, &schema(items)));
    }
    if let Some(properties) = get("properties") {
        let mut message = Message::default();
        for (name, shape) in members(properties) {
            message.message(1, &named(name, &schema(shape)));
        }
        out.message(25, &message);
    }
    out.extensions(31, shape);
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_bytes_of_small_documents() {
        // swagger (1), info (2: title, version), paths (8), definitions (9), securityDefinitions (13).
        let empty = encode(&json!({"swagger": "2.0", "info": {"title": "K", "version": "v1"}}));
        assert_eq!(empty, b"\x0a\x032.0\x12\x07\x0a\x01K\x12\x02v1\x42\x00\x4a\x00\x6a\x00");
        let shape = schema(&json!({"type": "object", "required": ["a"], "x-kubernetes-list-type": "set",
            "properties": {"a": {"$ref": "#/definitions/b"}}}));
        let expected: Vec<u8> = [
            b"\x9a\x01\x01a".as_slice(),
            b"\xb2\x01\x08\x0a\x06object",
            b"\xca\x01\x18\x0a\x16\x0a\x01a\x12\x11\x0a\x0f#/definitions/b",
            b"\xfa\x01\x22\x0a\x16x-kubernetes-list-type\x12\x08\x12\x06\"set\"\n",
        ]
        .concat();
        assert_eq!(shape.0, expected);
    }

    #[test]
    fn parameters_of_the_query_and_of_the_path() {
        let query = parameter(&json!({"name": "n", "in": "query", "type": "string", "uniqueItems": true}));
        assert_eq!(query.0, b"\x12\x17\x1a\x15\x12\x05query\x22\x01n\x32\x06string\xa0\x01\x01");
        let path = parameter(&json!({"name": "n", "in": "path", "type": "string", "required": true}));
        assert_eq!(path.0, b"\x12\x15\x22\x13\x08\x01\x12\x04path\x22\x01n\x2a\x06string");
        let long = schema(&json!({"description": "x".repeat(300)}));
        assert_eq!(&long.0[..3], b"\x22\xac\x02");
    }
}
