//! Conditions on requests: `matchConditions` of webhooks and policies. Which variables they have, how a list of them is
//! compiled, and what all of them together say of a request.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::{Value as Json, json};
use sheaf_meta::names;
use sheaf_meta::status::FieldError;

use crate::authorizer::{Authorizer, Authz, Question};
use crate::{Decl, Env, ListKind, OBJECT_BUDGET, Opaque, PER_CALL_LIMIT, Program, Shape, Type, Value};

/// Most conditions of one webhook or policy.
pub const MAX_CONDITIONS: usize = 64;
/// What all conditions of one webhook may cost for one request.
pub const BUDGET: u64 = OBJECT_BUDGET / 4;

/// What a condition may look at: `object`, `oldObject`, `request`, `authorizer` and `authorizer.requestResource`.
pub fn env() -> Env {
    Env::new()
        .with("object", Decl::dynamic())
        .with("oldObject", Decl::dynamic())
        .with("request", request())
        .with("authorizer", Decl::of(Type::Opaque(Opaque::Authorizer)))
        .with("authorizer.requestResource", Decl::of(Type::Opaque(Opaque::ResourceCheck)))
}

/// An `AdmissionRequest`, as far as expressions see it.
pub fn request() -> Arc<Decl> {
    let text = Decl::string;
    let new = |shape| Arc::new(Decl::new(shape));
    let kind = || {
        Decl::object(
            "kubernetes.GroupVersionKind",
            [("group", text()), ("version", text()), ("kind", text())],
        )
    };
    let resource = || {
        let fields = [("group", text()), ("version", text()), ("resource", text())];
        Decl::object("kubernetes.GroupVersionResource", fields)
    };
    let texts = || new(Shape::List(text(), ListKind::Atomic));
    let user = Decl::object(
        "kubernetes.UserInfo",
        [("username", text()), ("uid", text()), ("groups", texts()), ("extra", new(Shape::Map(texts())))],
    );
    Decl::object(
        "kubernetes.AdmissionRequest",
        [
            ("kind", kind()),
            ("resource", resource()),
            ("subResource", text()),
            ("requestKind", kind()),
            ("requestResource", resource()),
            ("requestSubResource", text()),
            ("name", text()),
            ("namespace", text()),
            ("operation", text()),
            ("userInfo", user),
            ("dryRun", new(Shape::Bool)),
            ("options", Decl::dynamic()),
        ],
    )
}

/// A request as conditions see it.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// The object, or null where there is none (a deletion).
    pub object: &'a Json,
    /// The object that is replaced or deleted, or null.
    pub old_object: &'a Json,
    /// The `AdmissionRequest`.
    pub request: &'a Json,
    /// Who says what is allowed.
    pub authorizer: &'a dyn Authorizer,
}

/// What conditions say of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// All hold.
    Matches,
    /// One does not: the webhook is not asked.
    Excluded {
        /// Name of the condition.
        by: String,
    },
    /// None excludes the request, but some cannot be said: the failure policy decides.
    Failed(Vec<String>),
}

/// Compiled conditions.
#[derive(Debug, Default)]
pub struct Conditions(Vec<(String, Program)>);

impl Conditions {
    /// Compiles `matchConditions`. What cannot be compiled is left out; [`validate`] says what that is.
    pub fn compile(conditions: &Json) -> Self {
        let env = env();
        let one = |c: &Json| {
            let text = |key: &str| c.get(key).and_then(Json::as_str);
            Some((text("name")?.to_owned(), env.compile(text("expression")?).ok()?))
        };
        Self(conditions.as_array().into_iter().flatten().filter_map(one).collect())
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Evaluates all conditions. One that does not hold decides, whatever the others are.
    pub fn verdict(&self, request: &Request<'_>) -> Verdict {
        let declared = self::request();
        let about = match Value::from_json(request.request, &declared) {
            Ok(value) => value,
            Err(error) => return Verdict::Failed(vec![error.to_string()]),
        };
        let variables = [
            ("object", Value::dynamic(request.object)),
            ("oldObject", Value::dynamic(request.old_object)),
            ("request", about),
            ("authorizer", Authz::value(request.authorizer)),
            ("authorizer.requestResource", Authz::resource(request.authorizer, question(request.request))),
        ];
        let mut failed = Vec::new();
        let mut left = BUDGET;
        for (name, program) in &self.0 {
            let run = program.evaluate(&variables, PER_CALL_LIMIT.min(left));
            left = left.saturating_sub(run.cost);
            match run.result {
                Ok(Value::Bool(true)) => {}
                Ok(Value::Bool(false)) => return Verdict::Excluded { by: name.clone() },
                Ok(_) => {
                    failed.push(format!("match condition {name}: cel expression must evaluate to a bool"))
                }
                Err(error) => failed.push(format!("match condition {name}: {error}")),
            }
        }
        if failed.is_empty() { Verdict::Matches } else { Verdict::Failed(failed) }
    }
}

/// What `authorizer.requestResource` is about: the resource of an `AdmissionRequest`.
pub fn question(request: &Json) -> Question {
    let text = |pointer: &str| request.pointer(pointer).and_then(Json::as_str).unwrap_or("").to_owned();
    Question {
        group: text("/resource/group"),
        resource: text("/resource/resource"),
        subresource: text("/subResource"),
        namespace: text("/namespace"),
        name: text("/name"),
        ..Question::default()
    }
}

/// The rules that the `matchConditions` of a webhook at a path break.
pub fn validate(conditions: &Json, path: &str) -> Vec<FieldError> {
    validate_in(&env(), conditions, path)
}

/// The same where conditions may look at what `env` declares.
pub fn validate_in(env: &Env, conditions: &Json, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let list = conditions.as_array().map_or(&[][..], Vec::as_slice);
    if list.len() > MAX_CONDITIONS {
        errors.push(FieldError {
            field: path.to_owned(),
            reason: "FieldValueTooMany".into(),
            message: format!("Too many: {}: must have at most {MAX_CONDITIONS} items", list.len()),
        });
    }
    let mut seen = HashSet::new();
    for (i, condition) in list.iter().enumerate() {
        let text = |key: &str| condition.get(key).and_then(Json::as_str).unwrap_or("");
        let (name, expression) = (text("name"), text("expression"));
        let place = format!("{path}[{i}].expression");
        if expression.trim().is_empty() {
            errors.push(FieldError::required(place, ""));
        } else {
            match env.compile(expression) {
                Err(error) => {
                    let why = format!("compilation failed: {error}");
                    errors.push(FieldError::invalid(place, &json!(expression), &why));
                }
                Ok(program) if !matches!(program.result_type(), Type::Bool | Type::Dyn) => {
                    let why = "must evaluate to bool";
                    errors.push(FieldError::invalid(place, &json!(expression), why));
                }
                Ok(_) => {}
            }
        }
        let place = format!("{path}[{i}].name");
        if name.is_empty() {
            errors.push(FieldError::required(place, ""));
            continue;
        }
        for why in names::qualified_name(name) {
            errors.push(FieldError::invalid(place.clone(), &json!(name), &why));
        }
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(place, &json!(name)));
        }
    }
    errors
}
