//! Rules of admission policies and their bindings. Words as Kubernetes' own validation has them. Not here: whether
//! expressions compile, which the API server says.

use sheaf_meta::selector::LabelSelector;

use super::super::Problems;
use super::At;

/// A policy names what it is about one by one; a binding may leave that to its policy.
pub(super) fn spec(at: &At<'_>, problems: &mut Problems) {
    if at.get("/matchConstraints").is_some() && at.list("/matchConstraints/resourceRules").is_empty() {
        problems.required(at.field("matchConstraints.resourceRules"), "");
    }
    for (i, variable) in at.list("/variables").iter().enumerate() {
        let name = variable["name"].as_str().unwrap_or("");
        let mut letters = name.chars();
        let begins = letters.next().is_none_or(|c| c.is_ascii_alphabetic() || c == '_');
        if !(begins && letters.all(|c| c.is_ascii_alphanumeric() || c == '_')) {
            let field = at.field(&format!("variables[{i}].name"));
            problems.invalid(field, name, "name is not a valid CEL identifier");
        }
    }
}

pub(super) fn validation(at: &At<'_>, problems: &mut Problems) {
    let message = at.text("/message");
    if message.is_empty() {
        return;
    }
    if message.trim().is_empty() {
        problems.invalid(at.field("message"), message, "message must be non-empty if specified");
    } else if message.trim().contains(['\n', '\r']) {
        problems.invalid(at.field("message"), message, "message must not contain line breaks");
    }
}

pub(super) fn binding_spec(at: &At<'_>, problems: &mut Problems) {
    let has = |action: &str| at.list("/validationActions").iter().any(|a| a == action);
    if has("Deny") && has("Warn") {
        let given = at.get("/validationActions").cloned().unwrap_or_default();
        let why = "must not contain both \"Deny\" and \"Warn\" (repeating the same validation failure information in \
            the API response and headers serves no purpose)";
        problems.invalid(at.field("validationActions"), given, why);
    }
}

pub(super) fn param_ref(at: &At<'_>, problems: &mut Problems) {
    let (named, selector) = (!at.text("/name").is_empty(), at.get("/selector"));
    match (named, selector) {
        (true, Some(_)) => {
            for field in ["name", "selector"] {
                problems.forbidden(at.field(field), "name and selector are mutually exclusive");
            }
        }
        (false, None) => {
            problems
                .required(at.field("").trim_end_matches('.'), "one of name or selector must be specified");
        }
        _ => {}
    }
    if let Some(Err(error)) = selector.map(LabelSelector::from_object) {
        problems.invalid(at.field("selector"), selector.cloned().unwrap_or_default(), error);
    }
}
