//! Whether the expressions of a policy fit the kinds that it names. A policy is accepted without: kinds may come later, and
//! what is no field of one may be one of another. So what is found is a warning in the policy's status. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::{Value, json};
use sheaf_cel::{CompileError, Decl, Env, Field, Object, Opaque, Shape, Type, conditions};

use crate::{
    admission::{list, text},
    registry::{Row, Snapshot},
};

/// Most kinds that a policy is checked against.
const MAX_KINDS: usize = 10;

/// A kind, as messages name it, and what its objects are.
pub(super) struct Kind {
    name: String,
    decl: Arc<Decl>,
}

/// The kinds that the rules of a policy name one by one, in the order of their names. A rule with a wildcard names none.
pub(super) fn kinds(rows: &Snapshot, spec: &Value) -> Vec<Kind> {
    let mut found: BTreeSet<(&str, &str, &str)> = BTreeSet::new();
    for rule in list(&spec["matchConstraints"], "resourceRules") {
        let texts = |key: &str| -> Vec<&str> { list(rule, key).filter_map(Value::as_str).collect() };
        let (groups, versions) = (texts("apiGroups"), texts("apiVersions"));
        if groups.iter().chain(&versions).any(|word| word.contains('*')) {
            continue;
        }
        for plural in texts("resources").iter().filter(|r| !r.contains(['*', '/'])) {
            let wanted = rows.rows().iter().filter(|row| {
                let info = &row.info;
                info.plural == *plural
                    && groups.contains(&info.group.as_str())
                    && versions.contains(&info.version.as_str())
            });
            found.extend(wanted.map(|r| (&*r.info.group, &*r.info.version, &*r.info.kind)));
        }
    }
    let named = |(group, version, kind): (&str, &str, &str)| {
        let row = rows
            .rows()
            .iter()
            .find(|r| r.info.group == group && r.info.version == version && r.info.kind == kind)?;
        Some(Kind { name: format!("{}, Kind={kind}", dotted(group, version)), decl: declare(row)? })
    };
    found.into_iter().filter_map(named).take(MAX_KINDS).collect()
}

/// Group and version as messages have them: the core group is the empty one.
fn dotted(group: &str, version: &str) -> String {
    if group.is_empty() { format!("/{version}") } else { format!("{group}/{version}") }
}

/// The parameters of a policy, if they are of a kind that is served.
pub(super) fn parameters(rows: &Snapshot, spec: &Value) -> Option<Arc<Decl>> {
    let kind = spec.get("paramKind")?;
    declare(rows.find_kind(text(kind, "apiVersion"), text(kind, "kind"))?)
}

/// What an object of a kind is to expressions: as its schema says, with what every object has.
fn declare(row: &Row) -> Option<Arc<Decl>> {
    let mut schema = (*row.info.schema.get()).clone();
    let properties = schema.as_object_mut()?.entry("properties").or_insert_with(|| json!({}));
    for key in ["apiVersion", "kind"] {
        properties[key] = json!({"type": "string"});
    }
    properties["metadata"] = sheaf_meta::objectmeta::schema().clone();
    sheaf_crd::declare_kind(&schema)
}

/// The expressions that do not fit some of the kinds, as `status.typeChecking` has them.
pub(super) fn check(spec: &Value, kinds: &[Kind], parameters: Option<&Arc<Decl>>) -> Vec<Value> {
    let envs: Vec<(&str, Env)> =
        kinds.iter().map(|k| (k.name.as_str(), env(spec, &k.decl, parameters))).collect();
    let mut warnings = Vec::new();
    for (i, validation) in list(spec, "validations").enumerate() {
        for key in ["expression", "messageExpression"] {
            let expression = text(validation, key);
            if expression.is_empty() {
                continue;
            }
            let told: Vec<String> = envs
                .iter()
                .filter_map(|(kind, env)| {
                    let error = env.compile(expression).err()?;
                    Some(format!("{kind}: compilation failed: {error}\n"))
                })
                .collect();
            if !told.is_empty() {
                let place = format!("spec.validations[{i}].{key}");
                warnings.push(json!({"fieldRef": place, "warning": told.join("\n")}));
            }
        }
    }
    warnings
}

/// What expressions may look at where objects are of one kind.
fn env(spec: &Value, object: &Arc<Decl>, parameters: Option<&Arc<Decl>>) -> Env {
    let mut env = Env::new()
        .with("object", object.clone())
        .with("oldObject", object.clone())
        .with("request", conditions::request())
        .with("namespaceObject", Decl::dynamic())
        .with("authorizer", Decl::of(Type::Opaque(Opaque::Authorizer)))
        .with("authorizer.requestResource", Decl::of(Type::Opaque(Opaque::ResourceCheck)));
    if let Some(parameters) = parameters {
        env = env.with("params", parameters.clone());
    } else if spec.get("paramKind").is_some_and(Value::is_object) {
        // Of a kind that nobody serves yet.
        env = env.with("params", Decl::dynamic());
    }
    with_variables(env, spec, |_, _| {})
}

/// Adds the variables of a policy. One sees those before it, and is what its expression gives; `tell` hears of each that
/// cannot be compiled.
pub(super) fn with_variables(env: Env, spec: &Value, mut tell: impl FnMut(usize, &CompileError)) -> Env {
    let mut fields: BTreeMap<String, Field> = BTreeMap::new();
    for (i, variable) in list(spec, "variables").enumerate() {
        let so_far = env.clone().with("variables", variables(&fields));
        let decl = match so_far.compile(text(variable, "expression")) {
            Ok(program) => Decl::of(program.result_type().clone()),
            Err(error) => {
                tell(i, &error);
                Decl::dynamic()
            }
        };
        let name = text(variable, "name").to_owned();
        fields.insert(name.clone(), Field { json: name, decl });
    }
    env.with("variables", variables(&fields))
}

fn variables(fields: &BTreeMap<String, Field>) -> Arc<Decl> {
    let copy = |(name, field): (&String, &Field)| {
        (name.clone(), Field { json: field.json.clone(), decl: field.decl.clone() })
    };
    let object = Object { name: "kubernetes.variables".into(), fields: fields.iter().map(copy).collect() };
    Arc::new(Decl::new(Shape::Object(Arc::new(object))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;

    fn warnings(spec: Value) -> Vec<(String, String)> {
        let rows = Registry::new(sheaf_api::kinds()).snapshot();
        let found = check(&spec, &kinds(&rows, &spec), parameters(&rows, &spec).as_ref());
        found.iter().map(|w| (text(w, "fieldRef").to_owned(), text(w, "warning").to_owned())).collect()
    }

    fn spec(rule: Value, validations: Value) -> Value {
        json!({"matchConstraints": {"resourceRules": [rule]}, "validations": validations})
    }

    fn deployments() -> Value {
        json!({"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"]})
    }

    #[test]
    fn what_is_no_field_of_a_kind_is_told() {
        let found = warnings(spec(
            deployments(),
            json!([
                {"expression": "object.spec.replicas > 1 && object.metadata.labels['a'] == 'b'"},
                {"expression": "object.foo", "messageExpression": "'x' + object.spec.replicas"},
            ]),
        ));
        let places: Vec<&str> = found.iter().map(|(place, _)| place.as_str()).collect();
        assert_eq!(places, ["spec.validations[1].expression", "spec.validations[1].messageExpression"]);
        assert_eq!(
            found[0].1,
            "apps/v1, Kind=Deployment: compilation failed: ERROR: <input>:1:7: undefined field 'foo'\n \
             | object.foo\n | ......^\n"
        );
    }

    #[test]
    fn several_kinds_are_looked_at_and_wildcards_are_not() {
        let mut rule = deployments();
        rule["resources"] = json!(["replicasets", "deployments", "deployments/scale", "*"]);
        let found = warnings(spec(rule.clone(), json!([{"expression": "object.spec.strategy.type == 'x'"}])));
        assert!(found[0].1.starts_with("apps/v1, Kind=ReplicaSet: "), "{found:?}");
        rule["apiVersions"] = json!(["*"]);
        assert_eq!(warnings(spec(rule, json!([{"expression": "object.none"}]))), []);
    }

    #[test]
    fn variables_and_parameters_have_types() {
        let mut whole = spec(
            deployments(),
            json!([
                {"expression": "variables.n > 1 && params.data['x'] == string(variables.n)"},
                {"expression": "variables.n == 'x'"},
                {"expression": "variables.none"},
                {"expression": "params.spec == 1"},
            ]),
        );
        whole["variables"] = json!([{"name": "n", "expression": "object.spec.replicas"}]);
        whole["paramKind"] = json!({"apiVersion": "v1", "kind": "ConfigMap"});
        let found = warnings(whole);
        let places: Vec<&str> = found.iter().map(|(place, _)| place.as_str()).collect();
        let wrong = [1, 2, 3].map(|i| format!("spec.validations[{i}].expression"));
        assert_eq!(places, wrong, "{found:?}");
    }
}
