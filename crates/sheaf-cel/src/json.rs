//! From values back to JSON, for expressions that make objects.

use serde_json::{Map as JsonMap, Number, Value as Json};

use crate::value::{Items, Key, Value};

impl Value<'_> {
    /// The value as JSON. The error says what has no place there. What is optional and not there is left out of maps and
    /// lists.
    pub fn to_json(&self) -> Result<Json, String> {
        Ok(match self {
            Value::Null => Json::Null,
            Value::Bool(b) => Json::Bool(*b),
            Value::Int(n) => Json::from(*n),
            Value::Uint(n) => Json::from(*n),
            Value::Double(d) if d.fract() == 0.0 && d.abs() < 9e15 => Json::from(*d as i64),
            Value::Double(d) => {
                Number::from_f64(*d).map(Json::Number).ok_or_else(|| format!("{d} is no number of JSON"))?
            }
            Value::String(text) => Json::from(text.to_string()),
            Value::List(list) => {
                let mut out = Vec::with_capacity(list.len());
                for item in list.iter() {
                    match item.map_err(|e| e.to_string())? {
                        Value::Optional(None) => {}
                        item => out.push(item.to_json()?),
                    }
                }
                Json::Array(out)
            }
            Value::Map(_) => {
                let mut out = JsonMap::new();
                let Some(mut items) = Items::of(self.clone()) else { return Ok(Json::Object(out)) };
                while let Some((key, value)) = items.next() {
                    let key = match Key::of(&key) {
                        Some(Key::String(key)) => key,
                        Some(Key::Number(key)) => key.to_string(),
                        Some(Key::Bool(key)) => key.to_string(),
                        None => return Err("a key of a map is no text".into()),
                    };
                    match value.map_err(|e| e.to_string())? {
                        Value::Optional(None) => {}
                        value => drop(out.insert(key, value.to_json()?)),
                    }
                }
                Json::Object(out)
            }
            Value::Optional(Some(value)) => value.to_json()?,
            Value::Optional(None) => Json::Null,
            Value::Timestamp(_) | Value::Duration(_) | Value::Quantity(_) => Json::from(self.show()),
            _ => return Err(format!("{} is no value of JSON", self.show())),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{Decl, Env, PER_CALL_LIMIT, Value};

    fn run(text: &str) -> Result<serde_json::Value, String> {
        let env = Env::new().with("object", Decl::dynamic()).with_messages();
        let program = env.compile(text).map_err(|e| e.messages().collect::<Vec<_>>().join("; "))?;
        let object = json!({"spec": {"replicas": 2, "list": [1, {"a": 1.5}]}});
        let run = program.evaluate(&[("object", Value::dynamic(&object))], PER_CALL_LIMIT);
        run.result.map_err(|e| e.to_string())?.to_json()
    }

    #[test]
    fn objects_that_expressions_make() {
        for (text, expected) in [
            ("Object{}", json!({})),
            (
                r#"Object{spec: Object.spec{replicas: object.spec.replicas + 1, list: object.spec.list}}"#,
                json!({"spec": {"replicas": 3, "list": [1, {"a": 1.5}]}}),
            ),
            (
                r#"Object{spec: Object.spec{items: [Object.spec.items{name: "a", ?x: optional.none(), ?y: optional.of(1)}]}}"#,
                json!({"spec": {"items": [{"name": "a", "y": 1}]}}),
            ),
            (
                r#"Object{metadata: Object.metadata{labels: {"a/b": "c"}}}"#,
                json!({"metadata": {"labels": {"a/b": "c"}}}),
            ),
            (
                r#"[JSONPatch{op: "add", path: "/metadata/labels/" + jsonpatch.escapeKey("a/b~c"), value: {"x": [1]}}]"#,
                json!([{"op": "add", "path": "/metadata/labels/a~1b~0c", "value": {"x": [1]}}]),
            ),
        ] {
            assert_eq!(run(text), Ok(expected), "{text}");
        }
        for (text, why) in [
            ("Objekt{}", "undeclared reference to 'Objekt'"),
            (
                "Object{spec: Object.status{a: 1}}",
                "unexpected type name \"Object.status\", expected \"Object.spec\"",
            ),
            ("Object{spec: [Object.a{}]}", "unexpected type name"),
            ("JSONPatch{what: 1}", "undefined field 'what'"),
            ("Object{spec: nope}", "undeclared reference to 'nope'"),
        ] {
            assert!(run(text).is_err_and(|e| e.contains(why)), "{text}: {:?}", run(text));
        }
        let without = Env::new().compile("Object{}").unwrap_err();
        assert!(without.to_string().contains("undeclared reference to 'Object'"));
        let text = "Object{spec: Object.spec{a: [1], ?b: optional.none()}}.spec.a";
        assert_eq!(crate::normalize(text).unwrap(), text);
    }
}
