//! The authorizer as expressions see it: builders that collect what is asked, and `check`, which asks the caller.
//!
//! Only where the caller declares and gives one: webhooks' `matchConditions` and admission policies. What may be done is
//! decided elsewhere; this module only carries the question there.

use std::rc::Rc;

use crate::functions::{Cost, Cx, Function};
use crate::types::Opaque;
use crate::value::{EvalError, Outcome, Value};

/// What is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Question {
    /// A path that is no resource, or empty.
    pub path: String,
    /// API group.
    pub group: String,
    /// Plural resource.
    pub resource: String,
    /// Subresource, or empty.
    pub subresource: String,
    /// Namespace, or empty.
    pub namespace: String,
    /// Name, or empty.
    pub name: String,
    /// Verb.
    pub verb: String,
    /// Field selector, or empty.
    pub field_selector: String,
    /// Label selector, or empty.
    pub label_selector: String,
    /// The service account that is asked about (namespace and name), where it is not the user of the request.
    pub service_account: Option<(String, String)>,
}

/// The answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// Whether it is allowed.
    pub allowed: bool,
    /// Why.
    pub reason: String,
    /// What went wrong, or empty.
    pub error: String,
}

/// Who answers.
pub trait Authorizer {
    /// Whether the user of the request, or the service account of the question, may do it.
    fn check(&self, question: &Question) -> Decision;
}

/// An authorizer, a question in the making, or an answer.
#[derive(Clone)]
pub struct Authz<'a> {
    who: &'a dyn Authorizer,
    stage: Opaque,
    question: Question,
    decision: Decision,
}

impl<'a> Authz<'a> {
    /// What a variable of type authorizer holds.
    pub fn value(who: &'a dyn Authorizer) -> Value<'a> {
        Value::Authz(Rc::new(Self {
            who,
            stage: Opaque::Authorizer,
            question: Question::default(),
            decision: Decision::default(),
        }))
    }
    /// What a variable like `authorizer.requestResource` holds: a question that names the resource already.
    pub fn resource(who: &'a dyn Authorizer, question: Question) -> Value<'a> {
        Value::Authz(Rc::new(Self {
            who,
            stage: Opaque::ResourceCheck,
            question,
            decision: Decision::default(),
        }))
    }
    pub(crate) fn opaque(&self) -> Opaque {
        self.stage
    }
}

macro_rules! builder {
    ($name:literal, $signature:literal, $from:ident -> $to:ident, $field:ident) => {
        Function {
            name: $name,
            overloads: &[$signature],
            cost: Cost::One,
            call: |_, args| build(args, Opaque::$from, Opaque::$to, |q, text| q.$field = text),
        }
    };
}

pub(crate) const FUNCTIONS: &[Function] = &[
    builder!("path", ".authorizer, string -> path-check", Authorizer -> PathCheck, path),
    builder!("group", ".authorizer, string -> group-check", Authorizer -> GroupCheck, group),
    builder!("resource", ".group-check, string -> resource-check", GroupCheck -> ResourceCheck, resource),
    builder!("subresource", ".resource-check, string -> resource-check", ResourceCheck -> ResourceCheck, subresource),
    builder!("namespace", ".resource-check, string -> resource-check", ResourceCheck -> ResourceCheck, namespace),
    builder!("name", ".resource-check, string -> resource-check", ResourceCheck -> ResourceCheck, name),
    builder!("fieldSelector", ".resource-check, string -> resource-check", ResourceCheck -> ResourceCheck, field_selector),
    builder!("labelSelector", ".resource-check, string -> resource-check", ResourceCheck -> ResourceCheck, label_selector),
    Function {
        name: "serviceAccount",
        overloads: &[".authorizer, string, string -> authorizer"],
        cost: Cost::One,
        call: service_account,
    },
    Function {
        name: "check",
        overloads: &[".path-check, string -> decision", ".resource-check, string -> decision"],
        cost: Cost::Check,
        call: check,
    },
    Function {
        name: "allowed",
        overloads: &[".decision -> bool"],
        cost: Cost::One,
        call: |_, a| answer(a, |d| Value::Bool(d.allowed)),
    },
    Function {
        name: "reason",
        overloads: &[".decision -> string"],
        cost: Cost::One,
        call: |_, a| answer(a, |d| Value::string(&d.reason)),
    },
    Function {
        name: "errored",
        overloads: &[".decision -> bool"],
        cost: Cost::One,
        call: |_, a| answer(a, |d| Value::Bool(!d.error.is_empty())),
    },
    Function {
        name: "error",
        overloads: &[".decision -> string"],
        cost: Cost::One,
        call: |_, a| answer(a, |d| Value::string(&d.error)),
    },
];

fn build<'a>(args: &[Value<'a>], from: Opaque, to: Opaque, set: fn(&mut Question, String)) -> Outcome<'a> {
    match args {
        [Value::Authz(authz), Value::String(text)] if authz.stage == from => {
            let mut next = (**authz).clone();
            next.stage = to;
            set(&mut next.question, text.to_string());
            Ok(Value::Authz(Rc::new(next)))
        }
        _ => Err(EvalError::NoOverload),
    }
}

fn service_account<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    let [Value::Authz(authz), Value::String(namespace), Value::String(name)] = args else {
        return Err(EvalError::NoOverload);
    };
    let broken = [sheaf_meta::names::dns_label(namespace), sheaf_meta::names::dns_subdomain(name)].concat();
    if !broken.is_empty() {
        return Err(EvalError::other(format!("Invalid service account: {}", broken.join(", "))));
    }
    let mut next = (**authz).clone();
    next.question.service_account = Some((namespace.to_string(), name.to_string()));
    Ok(Value::Authz(Rc::new(next)))
}

fn check<'a>(_: &Cx<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Authz(authz), Value::String(verb)]
            if matches!(authz.stage, Opaque::PathCheck | Opaque::ResourceCheck) =>
        {
            let mut next = (**authz).clone();
            next.question.verb = verb.to_string();
            next.decision = next.who.check(&next.question);
            next.stage = Opaque::Decision;
            Ok(Value::Authz(Rc::new(next)))
        }
        _ => Err(EvalError::NoOverload),
    }
}

fn answer<'a>(args: &[Value<'a>], f: fn(&Decision) -> Value<'a>) -> Outcome<'a> {
    match args {
        [Value::Authz(authz)] if authz.stage == Opaque::Decision => Ok(f(&authz.decision)),
        _ => Err(EvalError::NoOverload),
    }
}
