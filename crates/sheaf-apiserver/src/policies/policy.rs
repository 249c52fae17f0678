//! A ValidatingAdmissionPolicy and its bindings, compiled; and what its expressions say of a request. Pure.
//!
//! Not here: finding what a request is about and the parameters of a binding, which read.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sheaf_cel::{
    Decl, Env, EvalError, Key, OBJECT_BUDGET, PER_CALL_LIMIT, Program, Type, Value as Cel,
    authorizer::{Authorizer, Authz},
    conditions,
};
use sheaf_meta::{object, status::FieldError};

use super::types;
use crate::admission::{constraint::Constraint, list, text};

/// Longest message that is told, in bytes; one that an expression makes longer is not used.
const MAX_MESSAGE: usize = 5 * 1024;
/// Most validations, variables or annotations of a policy.
const MAX_PARTS: usize = 100;

/// A validation.
struct Check {
    expression: String,
    program: Program,
    message: String,
    message_program: Option<Program>,
    reason: String,
}

/// A policy.
pub(super) struct Policy {
    /// Its name.
    pub(super) name: String,
    /// What it is about.
    pub(super) constraint: Constraint,
    /// `paramKind`: apiVersion and kind.
    pub(super) parameters: Option<(String, String)>,
    /// Whether a request fails where the policy cannot decide.
    pub(super) fail: bool,
    conditions: Vec<(String, Program)>,
    variables: Vec<(String, Program)>,
    checks: Vec<Check>,
    annotations: Vec<(String, Program)>,
    /// Of a mutating policy.
    pub(super) mutations: Vec<Mutation>,
    /// Whether it looks again where others changed the object after it.
    pub(super) again: bool,
}

/// How a policy changes objects.
pub(super) enum Mutation {
    /// A part of an object that is applied to it.
    Apply(Program),
    /// A JSON patch.
    Patch(Program),
}

/// What is done about a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// The request fails.
    Deny,
    /// The client is warned.
    Warn,
    /// It is written into the audit log.
    Audit,
}

impl Action {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Deny => "Deny",
            Self::Warn => "Warn",
            Self::Audit => "Audit",
        }
    }
}

/// Which objects are a binding's parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// One by its name.
    Named(String),
    /// All that a selector finds; the text of it.
    Selected(Value),
}

/// `paramRef`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ParamRef {
    pub(super) wanted: Wanted,
    /// Where they are; empty for the namespace of the request's object.
    pub(super) namespace: String,
    /// Whether the policy does nothing where there are none; otherwise it refuses.
    pub(super) allow_missing: bool,
}

/// A binding.
pub(super) struct Binding {
    pub(super) name: String,
    pub(super) policy: String,
    /// What it restricts its policy to.
    pub(super) constraint: Constraint,
    pub(super) parameters: Option<ParamRef>,
    pub(super) actions: Vec<Action>,
}

impl Binding {
    /// Reads a stored binding; one that cannot be read is left out and told.
    pub(super) fn read(object: &Value) -> Vec<Self> {
        match Self::try_read(object) {
            Ok(binding) => vec![binding],
            Err(why) => {
                tracing::error!(binding = object::name(object), why, "a policy binding cannot be used");
                Vec::new()
            }
        }
    }

    fn try_read(object: &Value) -> Result<Self, String> {
        let spec = &object["spec"];
        let resources = spec.get("matchResources").unwrap_or(&Value::Null);
        let mut constraint = Constraint::read(resources, "resourceRules")?;
        constraint.rules = constraint.rules.filter(|rules| !rules.is_empty());
        let parameters = spec.get("paramRef").filter(|p| p.is_object()).map(|given| ParamRef {
            wanted: match text(given, "name") {
                "" => Wanted::Selected(given.get("selector").cloned().unwrap_or_default()),
                name => Wanted::Named(name.into()),
            },
            namespace: text(given, "namespace").into(),
            allow_missing: text(given, "parameterNotFoundAction") == "Allow",
        });
        let action = |word: &Value| match word.as_str()? {
            "Deny" => Some(Action::Deny),
            "Warn" => Some(Action::Warn),
            "Audit" => Some(Action::Audit),
            _ => None,
        };
        Ok(Self {
            name: object::name(object).into(),
            policy: text(spec, "policyName").into(),
            constraint,
            parameters,
            actions: list(spec, "validationActions").filter_map(action).collect(),
        })
    }
}

/// What expressions may look at.
fn env() -> Env {
    conditions::env()
        .with("params", Decl::dynamic())
        .with("namespaceObject", Decl::dynamic())
        .with("variables", Decl::dynamic())
}

/// A request as a policy sees it.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) object: &'a Value,
    pub(super) old: &'a Value,
    /// The `AdmissionRequest`.
    pub(super) request: &'a Value,
    /// The namespace of the object, or null.
    pub(super) namespace: &'a Value,
    /// The binding's parameter, or null.
    pub(super) parameter: &'a Value,
    pub(super) authorizer: &'a dyn Authorizer,
}

/// One validation that does not hold, or cannot be said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) message: String,
    /// A reason of a Status.
    pub(super) reason: String,
    /// Which validation it was.
    pub(super) index: usize,
}

/// What expressions are told of a request.
pub(super) struct Known<'a> {
    pub(super) values: Vec<(&'static str, Cel<'a>)>,
    /// What they may still cost.
    pub(super) left: u64,
    /// Of the variables that failed, how one that uses them fails, and why.
    pub(super) failed: Vec<(String, String)>,
}

/// An error, or that of the variable from which it came.
pub(super) fn told(error: &EvalError, failed: &[(String, String)]) -> String {
    let told = error.to_string();
    let cause = failed.iter().find(|(missing, _)| *missing == told);
    cause.map_or(told.clone(), |(_, cause)| format!("composited variable fails to evaluate: {cause}"))
}

/// What a policy says of a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// In the order of the validations.
    pub(super) refusals: Vec<Refusal>,
    /// For the audit log.
    pub(super) annotations: BTreeMap<String, String>,
}

impl Policy {
    /// Reads a stored policy; one that cannot be read is left out and told: validation lets none in.
    pub(super) fn read(object: &Value) -> Vec<Self> {
        match Self::try_read(object) {
            Ok(policy) => vec![policy],
            Err(why) => {
                tracing::error!(policy = object::name(object), why, "a policy cannot be used");
                Vec::new()
            }
        }
    }

    fn try_read(object: &Value) -> Result<Self, String> {
        let spec = &object["spec"];
        let env = env();
        let compile = |value: &Value, key: &str| {
            env.compile(text(value, key)).map_err(|e| format!("{}: {e}", text(value, key)))
        };
        let named = |key: &str, name: &'static str, expression: &'static str| {
            let one = |v: &Value| Ok((text(v, name).to_owned(), compile(v, expression)?));
            list(spec, key).map(one).collect::<Result<Vec<_>, String>>()
        };
        let check = |value: &Value| {
            let message_program = match text(value, "messageExpression") {
                "" => None,
                _ => Some(compile(value, "messageExpression")?),
            };
            Ok(Check {
                expression: text(value, "expression").into(),
                program: compile(value, "expression")?,
                message: text(value, "message").into(),
                message_program,
                reason: match text(value, "reason") {
                    "" => "Invalid".into(),
                    reason => reason.into(),
                },
            })
        };
        let making = self::env().with_messages();
        let mutation = |value: &Value| {
            let compile = |key: &str| {
                let expression = text(&value[key], "expression");
                making.compile(expression).map_err(|e| format!("{expression}: {e}"))
            };
            match text(value, "patchType") {
                "JSONPatch" => compile("jsonPatch").map(Mutation::Patch),
                _ => compile("applyConfiguration").map(Mutation::Apply),
            }
        };
        let kind = spec.get("paramKind").filter(|k| k.is_object());
        Ok(Self {
            name: object::name(object).into(),
            constraint: Constraint::read(&spec["matchConstraints"], "resourceRules")?,
            parameters: kind.map(|k| (text(k, "apiVersion").into(), text(k, "kind").into())),
            fail: text(spec, "failurePolicy") != "Ignore",
            conditions: named("matchConditions", "name", "expression")?,
            variables: named("variables", "name", "expression")?,
            checks: list(spec, "validations").map(check).collect::<Result<_, String>>()?,
            annotations: named("auditAnnotations", "key", "valueExpression")?,
            mutations: list(spec, "mutations").map(mutation).collect::<Result<_, String>>()?,
            again: text(spec, "reinvocationPolicy") == "IfNeeded",
        })
    }

    /// What expressions are told of a request, variables included. `None`: the policy is not about it; `Err`: that cannot be
    /// said, and why. `declared` is [`conditions::request`].
    pub(super) fn known<'a>(
        &'a self,
        seen: &Seen<'a>,
        declared: &'a Decl,
    ) -> Result<Option<Known<'a>>, String> {
        let about = Cel::from_json(seen.request, declared).map_err(|e| e.to_string())?;
        let mut values = vec![
            ("object", Cel::dynamic(seen.object)),
            ("oldObject", Cel::dynamic(seen.old)),
            ("request", about),
            ("params", Cel::dynamic(seen.parameter)),
            ("namespaceObject", Cel::dynamic(seen.namespace)),
            ("authorizer", Authz::value(seen.authorizer)),
            (
                "authorizer.requestResource",
                Authz::resource(seen.authorizer, conditions::question(seen.request)),
            ),
        ];
        let mut left = conditions::BUDGET;
        let mut undecided = Vec::new();
        for (name, program) in &self.conditions {
            let run = program.evaluate(&values, PER_CALL_LIMIT.min(left));
            left = left.saturating_sub(run.cost);
            match run.result {
                Ok(Cel::Bool(true)) => {}
                Ok(Cel::Bool(false)) => return Ok(None),
                Ok(_) => undecided.push(format!("match condition {name}: must evaluate to bool")),
                Err(why) => undecided.push(format!("match condition {name}: {why}")),
            }
        }
        if !undecided.is_empty() {
            return Err(undecided.join("; "));
        }
        let mut left = OBJECT_BUDGET;
        // One that fails is told where it is used; upstream does not look at it before that either.
        let mut variables: BTreeMap<Key, Cel<'_>> = BTreeMap::new();
        let mut failed: Vec<(String, String)> = Vec::new();
        for (name, program) in &self.variables {
            values.push(("variables", Cel::map(variables.clone())));
            let run = program.evaluate(&values, PER_CALL_LIMIT.min(left));
            values.pop();
            left = left.saturating_sub(run.cost);
            match run.result {
                Ok(value) => drop(variables.insert(Key::String(name.as_str().into()), value)),
                Err(why) => failed.push((format!("no such key: {name}"), why.to_string())),
            }
        }
        values.push(("variables", Cel::map(variables)));
        Ok(Some(Known { values, left, failed }))
    }

    /// Evaluates everything. `Err`: it cannot be said whether the request is one of the policy's, and why.
    pub(super) fn judge(&self, seen: &Seen<'_>) -> Result<Said, String> {
        let declared = conditions::request();
        let Some(Known { values: known, mut left, failed }) = self.known(seen, &declared)? else {
            return Ok(Said::default());
        };
        let why = |error: &EvalError| told(error, &failed);
        let mut said = Said::default();
        for (index, check) in self.checks.iter().enumerate() {
            let run = check.program.evaluate(&known, PER_CALL_LIMIT.min(left));
            left = left.saturating_sub(run.cost);
            let message = match &run.result {
                Ok(Cel::Bool(true)) => continue,
                Ok(Cel::Bool(false)) => check.tell(&known, &mut left),
                Ok(_) => format!("expression '{}' must evaluate to bool", check.expression),
                Err(_) if !self.fail => continue,
                Err(error) => format!("expression '{}' resulted in error: {}", check.expression, why(error)),
            };
            said.refusals.push(Refusal { message, reason: check.reason.clone(), index });
        }
        for (key, program) in &self.annotations {
            let run = program.evaluate(&known, PER_CALL_LIMIT.min(left));
            left = left.saturating_sub(run.cost);
            match run.result {
                Ok(Cel::Null) => {}
                Ok(value) => drop(said.annotations.insert(format!("{}/{key}", self.name), value.show())),
                Err(error) => {
                    tracing::warn!(policy = self.name, key, why = %error, "an audit annotation failed")
                }
            }
        }
        Ok(said)
    }
}

impl Check {
    /// Why it refuses.
    fn tell<'a>(&'a self, known: &[(&str, Cel<'a>)], left: &mut u64) -> String {
        if let Some(program) = &self.message_program {
            let run = program.evaluate(known, PER_CALL_LIMIT.min(*left));
            *left = left.saturating_sub(run.cost);
            if let Ok(Cel::String(text)) = &run.result {
                let text = text.trim();
                if !text.is_empty() && text.len() <= MAX_MESSAGE && !text.contains('\n') {
                    return text.to_owned();
                }
            }
        }
        match self.message.as_str() {
            "" => format!("failed expression: {}", self.expression.trim()),
            message => message.to_owned(),
        }
    }
}

/// The rules that a policy breaks.
pub(super) fn validate(object: &Value) -> Vec<FieldError> {
    let spec = &object["spec"];
    // Conditions may look at parameters too, which webhooks have not.
    let of_conditions = conditions::env().with("params", Decl::dynamic());
    let given = spec.get("matchConditions").unwrap_or(&Value::Null);
    let mut errors = conditions::validate_in(&of_conditions, given, "spec.matchConditions");
    let parts = [
        ("variables", "expression", None),
        ("validations", "expression", Some("bool")),
        ("validations", "messageExpression", Some("string")),
        ("auditAnnotations", "valueExpression", Some("string")),
    ];
    let given = conditions::env().with("params", Decl::dynamic()).with("namespaceObject", Decl::dynamic());
    let mut broken: BTreeMap<usize, String> = BTreeMap::new();
    let env = types::with_variables(given, spec, |i, error| drop(broken.insert(i, error.to_string())));
    for (key, field, wanted) in parts {
        let count = list(spec, key).count();
        if count > MAX_PARTS && field != "messageExpression" {
            errors.push(FieldError {
                field: format!("spec.{key}"),
                reason: "FieldValueTooMany".into(),
                message: format!("Too many: {count}: must have at most {MAX_PARTS} items"),
            });
            continue;
        }
        for (i, value) in list(spec, key).enumerate() {
            let expression = text(value, field);
            let place = format!("spec.{key}[{i}].{field}");
            if expression.trim().is_empty() {
                if field != "messageExpression" {
                    errors.push(FieldError::required(place, &format!("{field} is not specified")));
                }
                continue;
            }
            // A variable may only look at those before it, which was found out already.
            let compiled = match (key, broken.get(&i)) {
                ("variables", Some(error)) => Err(error.clone()),
                _ => env.compile(expression).map_err(|e| e.to_string()),
            };
            match compiled {
                Err(error) => {
                    let why = format!("compilation failed: {error}");
                    errors.push(FieldError::invalid(place, &json!(expression), &why));
                }
                Ok(program) => {
                    let fits = match (wanted, program.result_type()) {
                        (None, _) | (_, Type::Dyn) => true,
                        (Some("bool"), ty) => matches!(ty, Type::Bool),
                        (_, ty) => matches!(ty, Type::String | Type::Null),
                    };
                    if !fits {
                        let why = format!("must evaluate to {}", wanted.unwrap_or_default());
                        errors.push(FieldError::invalid(place, &json!(expression), &why));
                    }
                }
            }
        }
    }
    let making = env.clone().with_messages();
    for (i, value) in list(spec, "mutations").enumerate() {
        let key = if text(value, "patchType") == "JSONPatch" { "jsonPatch" } else { "applyConfiguration" };
        let expression = text(&value[key], "expression");
        let place = format!("spec.mutations[{i}].{key}.expression");
        if expression.trim().is_empty() {
            errors.push(FieldError::required(place, "expression is not specified"));
        } else if let Err(error) = making.compile(expression) {
            let why = format!("compilation failed: {error}");
            errors.push(FieldError::invalid(place, &json!(expression), &why));
        }
    }
    let decides = ["validations", "auditAnnotations", "mutations"];
    if decides.iter().all(|key| list(spec, key).next().is_none()) {
        let why = "validations or auditAnnotations must be non-empty";
        errors.push(FieldError::required("spec.validations", why));
    }
    errors
}

#[cfg(test)]
mod tests {
    use sheaf_cel::authorizer::{Decision, Question};

    use super::*;

    struct Nobody;
    impl Authorizer for Nobody {
        fn check(&self, _: &Question) -> Decision {
            Decision { allowed: false, reason: String::new(), error: String::new() }
        }
    }

    fn said(spec: Value, object: Value, parameter: Value) -> Result<Said, String> {
        let mut whole = json!({"metadata": {"name": "p"}, "spec": {"matchConstraints": {}}});
        whole["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        assert_eq!(validate(&whole), [], "{whole}");
        let policy = Policy::try_read(&whole).unwrap();
        let request = json!({"operation": "CREATE", "name": "n"});
        policy.judge(&Seen {
            object: &object,
            old: &Value::Null,
            request: &request,
            namespace: &Value::Null,
            parameter: &parameter,
            authorizer: &Nobody,
        })
    }

    fn messages(said: &Said) -> Vec<&str> {
        said.refusals.iter().map(|r| r.message.as_str()).collect()
    }

    #[test]
    fn validations_speak_in_order() {
        let spec = json!({
            "variables": [{"name": "n", "expression": "object.spec.replicas"},
                {"name": "twice", "expression": "variables.n * 2"}],
            "validations": [
                {"expression": "variables.twice > 2"},
                {"expression": "variables.n > 1", "message": "more than one"},
                {"expression": "variables.n > 1", "message": "unused", "reason": "Forbidden",
                 "messageExpression": "'wants > 1, got ' + string(variables.n)"},
                {"expression": "object.none == 1", "message": "x"},
                {"expression": "params.max >= variables.n"},
            ],
            "auditAnnotations": [{"key": "count", "valueExpression": "'n is ' + string(variables.n)"}],
        });
        let said = said(spec, json!({"spec": {"replicas": 1}}), json!({"max": 3})).unwrap();
        assert_eq!(
            messages(&said),
            [
                "failed expression: variables.twice > 2",
                "more than one",
                "wants > 1, got 1",
                "expression 'object.none == 1' resulted in error: no such key: none",
            ]
        );
        assert_eq!(said.refusals[2].reason, "Forbidden");
        assert_eq!(said.annotations.get("p/count").map(String::as_str), Some("n is 1"));
    }

    #[test]
    fn conditions_come_first_and_failures_follow_the_policy() {
        let checks = json!([{"expression": "false"}]);
        let out = json!({"matchConditions": [{"name": "not-mine", "expression": "request.name == 'x'"}],
            "validations": checks});
        assert_eq!(said(out, json!({}), Value::Null), Ok(Said::default()));
        let by_parameter = json!({"matchConditions": [{"name": "c", "expression": "params.on"}],
            "validations": checks});
        assert_eq!(said(by_parameter, json!({}), json!({"on": false})), Ok(Said::default()));
        let broken =
            json!({"matchConditions": [{"name": "c", "expression": "object.a.b"}], "validations": checks});
        let why = said(broken, json!({}), Value::Null).unwrap_err();
        assert_eq!(why, "match condition c: no such key: a");
        let ignored = json!({"failurePolicy": "Ignore", "validations": [{"expression": "object.a == 1"}]});
        assert_eq!(said(ignored, json!({}), Value::Null), Ok(Said::default()));
    }

    #[test]
    fn a_variable_that_fails_is_told_where_it_is_used() {
        let spec = |check: &str| {
            json!({"variables": [{"name": "v", "expression": "object.a"}],
            "validations": [{"expression": check}]})
        };
        assert_eq!(said(spec("true || variables.v"), json!({}), Value::Null), Ok(Said::default()));
        let said = said(spec("variables.v"), json!({}), Value::Null).unwrap();
        let told = messages(&said)[0].to_owned();
        assert!(told.ends_with("composited variable fails to evaluate: no such key: a"), "{told}");
    }

    #[test]
    fn what_cannot_be_compiled_is_named() {
        for (spec, field, why) in [
            (
                json!({"validations": [{"expression": "object. > 1"}]}),
                "spec.validations[0].expression",
                "compilation failed",
            ),
            (
                json!({"validations": [{"expression": "1"}]}),
                "spec.validations[0].expression",
                "must evaluate to bool",
            ),
            (
                json!({"validations": [{"expression": "true", "messageExpression": "1"}]}),
                "spec.validations[0].messageExpression",
                "must evaluate to string",
            ),
            (
                json!({"validations": [{"expression": ""}]}),
                "spec.validations[0].expression",
                "Required value",
            ),
            (json!({}), "spec.validations", "must be non-empty"),
            (
                json!({"validations": [{"expression": "variables.none == 1"}]}),
                "spec.validations[0].expression",
                "undefined field 'none'",
            ),
            (
                json!({"variables": [{"name": "a", "expression": "variables.b"}, {"name": "b", "expression": "1"}]}),
                "spec.variables[0].expression",
                "undefined field 'b'",
            ),
            (
                json!({"matchConditions": [{"name": "c", "expression": "params.a == 1 && nothing.b"}]}),
                "spec.matchConditions[0].expression",
                "undeclared reference to 'nothing'",
            ),
        ] {
            let errors = validate(&json!({"spec": spec}));
            let found = errors.iter().any(|e| e.field == field && e.message.contains(why));
            assert!(found, "{spec}: {errors:?}");
        }
    }
}
