//! The two forms in which schemas are published, made from the one in which kinds have them. Pure.

use serde_json::{Map, Value, json};

/// A version of OpenAPI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Swagger: one document, simpler schemas.
    V2,
    /// A document for each group-version.
    V3,
}

/// Definitions whose meaning each form says in its own words.
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";

/// Names a definition's kind.
const KIND: &str = "x-kubernetes-group-version-kind";
/// Says that a schema does not know all fields.
const OPEN: &str = "x-kubernetes-preserve-unknown-fields";
/// Deepest nesting that is followed.
const DEPTH_MAX: usize = 128;

impl Dialect {
    /// A reference to a definition.
    pub(super) fn reference(self, name: &str) -> Value {
        json!({"$ref": self.pointer(name)})
    }

    fn pointer(self, name: &str) -> String {
        match self {
            Self::V2 => format!("#/definitions/{name}"),
            Self::V3 => format!("#/components/schemas/{name}"),
        }
    }

    /// The definition of a name, whose shape refers to others by their bare names.
    pub(super) fn definition(self, name: &str, shape: &Value) -> Value {
        match (self, name) {
            (Self::V2, QUANTITY) => json!({"type": "string"}),
            (Self::V2, INT_OR_STRING) => json!({"type": "string", "format": "int-or-string"}),
            (Self::V3, QUANTITY) => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            (Self::V3, INT_OR_STRING) => {
                json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
            }
            // Readers of the older form would refuse what is not described, if anything were.
            _ if self == Self::V2
                && shape.get(KIND).is_some()
                && shape.get(OPEN) == Some(&Value::Bool(true)) =>
            {
                json!({"type": "object", KIND: shape[KIND]})
            }
            _ => self.schema(shape, 0),
        }
    }

    fn schema(self, shape: &Value, depth: usize) -> Value {
        let Some(map) = shape.as_object() else { return shape.clone() };
        if depth > DEPTH_MAX {
            return json!({"x-kubernetes-preserve-unknown-fields": true});
        }
        if let Some(name) = map.get("$ref").and_then(Value::as_str) {
            return self.beside_reference(name, map);
        }
        let flag = |key: &str| map.get(key) == Some(&Value::Bool(true));
        // Readers of the older form take a schema with unknown fields for one without any, unless it says nothing.
        let opaque = self == Self::V2 && (flag("nullable") || flag(OPEN));
        let mut out = Map::new();
        for (key, value) in map {
            let value = match key.as_str() {
                "properties" if opaque => continue,
                "items" | "additionalProperties" if opaque => continue,
                "type" if self == Self::V2 && flag("nullable") => continue,
                // Words that the older form does not have.
                "nullable" | "oneOf" | "anyOf" | "allOf" | "not" if self == Self::V2 => continue,
                "properties" => {
                    let properties = value.as_object().into_iter().flatten();
                    properties.map(|(name, p)| (name.clone(), self.schema(p, depth + 1))).collect()
                }
                "items" | "additionalProperties" | "not" => self.schema(value, depth + 1),
                "oneOf" | "anyOf" | "allOf" => {
                    value.as_array().into_iter().flatten().map(|s| self.schema(s, depth + 1)).collect()
                }
                _ => value.clone(),
            };
            out.insert(key.clone(), value);
        }
        Value::Object(out)
    }

    /// What stands beside a reference is about this use of it; the newer form needs a wrapping for that.
    fn beside_reference(self, name: &str, map: &Map<String, Value>) -> Value {
        let beside = map.iter().filter(|(key, _)| *key != "$ref").map(|(k, v)| (k.clone(), v.clone()));
        let mut out: Map<String, Value> = beside.collect();
        match self {
            Self::V2 => {
                out.insert("$ref".into(), self.pointer(name).into());
            }
            Self::V3 if out.is_empty() => return self.reference(name),
            Self::V3 => drop(out.insert("allOf".into(), json!([self.reference(name)]))),
        }
        Value::Object(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_shape_in_both_forms() {
        let shape = json!({
            "type": "object",
            "properties": {
                "a": {"$ref": "x.A", "description": "d", "default": {}},
                "b": {"$ref": "x.B"},
                "n": {"type": "object", "nullable": true, "properties": {"y": {"type": "string"}}},
                "i": {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": true},
                "l": {"type": "array", "items": {"$ref": "x.A"}, "x-kubernetes-list-type": "atomic"},
                "$ref": {"type": "string"},
            },
        });
        assert_eq!(
            Dialect::V2.definition("x.Shape", &shape)["properties"],
            json!({
                "a": {"$ref": "#/definitions/x.A", "description": "d", "default": {}},
                "b": {"$ref": "#/definitions/x.B"},
                "n": {},
                "i": {"x-kubernetes-int-or-string": true},
                "l": {"type": "array", "items": {"$ref": "#/definitions/x.A"}, "x-kubernetes-list-type": "atomic"},
                "$ref": {"type": "string"},
            })
        );
        let v3 = Dialect::V3.definition("x.Shape", &shape);
        assert_eq!(
            v3["properties"]["a"],
            json!({"allOf": [{"$ref": "#/components/schemas/x.A"}], "description": "d", "default": {}})
        );
        assert_eq!(v3["properties"]["b"], json!({"$ref": "#/components/schemas/x.B"}));
        assert_eq!(v3["properties"]["n"], shape["properties"]["n"]);
        assert_eq!(v3["properties"]["i"], shape["properties"]["i"]);
    }

    #[test]
    fn open_schemas_stay_open() {
        let shape = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true,
            "properties": {"a": {"type": "string"}}});
        assert_eq!(
            Dialect::V2.definition("x", &shape),
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
        );
        assert_eq!(Dialect::V3.definition("x", &shape), shape);
        let mut kind = shape.clone();
        kind[KIND] = json!([{"kind": "X"}]);
        assert_eq!(Dialect::V2.definition("x", &kind), json!({"type": "object", KIND: [{"kind": "X"}]}));
    }
}
