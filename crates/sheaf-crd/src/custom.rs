//! Custom objects: one version of a definition made ready, and what is done to an object before it is stored.

use serde_json::Value;
use sheaf_cel::OBJECT_BUDGET;
use sheaf_meta::object;
use sheaf_meta::schema::{Schema, SchemaPool};
use sheaf_meta::status::FieldError;

use crate::{embedded, rules};

/// A version's schema, compiled: the tree for pruning, defaulting, validation and apply, and the rules.
#[derive(Debug)]
pub struct CustomSchema {
    schema: Schema,
    rules: Option<rules::Node>,
    /// Kept for embedded resources only.
    definition: Option<Value>,
}

/// What became of an object.
#[derive(Debug, Default)]
pub struct Prepared {
    /// Paths of fields that no schema knows and that were taken out (`spec.a[0].b`).
    pub pruned: Vec<String>,
    /// Broken rules; the object may be stored only if there are none.
    pub errors: Vec<FieldError>,
    /// Sentences for `Warning` headers: rules that values break which this write did not change, and finalizers that
    /// say not whose they are.
    pub warnings: Vec<String>,
}

impl CustomSchema {
    /// Compiles `openAPIV3Schema` of a version.
    pub fn compile(definition: &Value) -> Self {
        Self::compile_in(&mut SchemaPool::new(), definition)
    }
    /// The same, sharing what is equal with the schemas of other versions and kinds.
    pub fn compile_in(pool: &mut SchemaPool, definition: &Value) -> Self {
        Self {
            schema: pool.compile(definition),
            rules: rules::Node::compile(definition, true),
            definition: embedded::has_any(definition).then(|| definition.clone()),
        }
    }
    /// The tree, for strategic merge, apply and the rest of the machinery.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }
    /// Whether objects can break rules written in CEL.
    pub fn has_rules(&self) -> bool {
        self.rules.is_some()
    }

    /// Takes out what no schema knows and fills in defaults. Gives the paths of what was taken out.
    pub fn shape(&self, object: &mut Value) -> Vec<String> {
        let pruned = self.schema.prune_custom(object);
        self.schema.default(object);
        pruned
    }
    /// What is done to an object that comes from the store, which may be older than the schema.
    pub fn shape_stored(&self, object: &mut Value) {
        self.shape(object);
    }

    /// The rules that an object breaks, as a replacement of `old` if there is one. Values that the replacement does not
    /// change are tolerated as they are.
    pub fn validate(&self, new: &Value, old: Option<&Value>) -> (Vec<FieldError>, Vec<String>) {
        let mut errors = self.schema.validate_change(new, old);
        if let Some(definition) = &self.definition {
            let mut found = Vec::new();
            embedded::validate(definition, new, "", false, &mut found);
            errors.extend(found);
        }
        let mut warnings = strange_finalizers(new, old);
        let Some(node) = &self.rules else { return (errors, warnings) };
        if errors.iter().any(blocks_rules) {
            errors.push(FieldError {
                field: "<nil>".into(),
                reason: "FieldValueInvalid".into(),
                message:
                    "Invalid value: \"null\": some validation rules were not checked because the object was \
                          invalid; correct the existing errors to complete validation"
                        .into(),
            });
            return (errors, warnings);
        }
        let mut run = rules::Run::new(OBJECT_BUDGET);
        run.evaluate(node, new, old, "");
        errors.append(&mut run.errors);
        warnings.append(&mut run.warnings);
        (errors, warnings)
    }

    /// Prunes, defaults and validates an object in one go.
    pub fn prepare(&self, new: &mut Value, old: Option<&Value>) -> Prepared {
        let pruned = self.shape(new);
        let (errors, warnings) = self.validate(new, old);
        Prepared { pruned, errors, warnings }
    }
}

/// Sentences on finalizers that are new and could be anybody's. Kubernetes' own kinds are held to more, or to nothing.
fn strange_finalizers(new: &Value, old: Option<&Value>) -> Vec<String> {
    let before = old.map(object::finalizers).unwrap_or_default();
    let fresh = object::finalizers(new).into_iter().filter(|name| !before.contains(name));
    let alone = fresh.filter(|name| !name.contains('/') && !matches!(*name, "foregroundDeletion" | "orphan"));
    let tell = |name: &str| {
        format!(
            "metadata.finalizers: {name:?}: prefer a domain-qualified finalizer name including a path (/) to avoid \
             accidental conflicts with other finalizer writers"
        )
    };
    alone.map(tell).collect()
}

/// Errors after which an object is not of the shape that rules are written for.
fn blocks_rules(error: &FieldError) -> bool {
    matches!(
        error.reason.as_str(),
        "FieldValueRequired" | "FieldValueTooLong" | "FieldValueTooMany" | "FieldValueTypeInvalid"
    )
}

/// Prunes, defaults and validates an object: [`CustomSchema::prepare`].
pub fn prepare(new: &mut Value, old: Option<&Value>, schema: &CustomSchema) -> Prepared {
    schema.prepare(new, old)
}
