//! Rules of quotas, limits, classes and drivers. Words as Kubernetes' own validation has them.

use serde_json::{Map, Value};
use sheaf_meta::names;
use sheaf_meta::quantity::Quantity;

use super::super::Problems;
use super::{At, IMMUTABLE};

/// Resources that a quota names without a domain, beside `count/…`, `requests.…`, `limits.…` and those of a class.
const QUOTA_RESOURCES: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "pods",
    "services",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
    "storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "requests.storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
];

pub(super) fn quota(at: &At<'_>, problems: &mut Problems) {
    for part in ["spec/hard", "status/hard", "status/used"] {
        let field = part.replace('/', ".");
        for name in at.get(&format!("/{part}")).and_then(Value::as_object).into_iter().flat_map(Map::keys) {
            problems.name(&field, name, names::qualified_name);
            let known =
                name.contains('/') || QUOTA_RESOURCES.contains(&name.as_str()) || name.contains("hugepages-");
            if !known {
                problems.invalid(
                    &field,
                    name.as_str(),
                    "must be a standard resource type or fully qualified",
                );
                problems.invalid(field.clone(), name.as_str(), "must be a standard resource for quota");
            }
        }
    }
    let scopes: Vec<&str> = at.list("/spec/scopes").iter().filter_map(Value::as_str).collect();
    for scope in &scopes {
        let known = [
            "BestEffort",
            "CrossNamespacePodAffinity",
            "NotBestEffort",
            "NotTerminating",
            "PriorityClass",
            "Terminating",
            "VolumeAttributesClass",
        ];
        if !known.contains(scope) {
            problems.invalid("spec.scopes", *scope, "unsupported scope");
        }
        let limits = at.get("/spec/hard").and_then(Value::as_object).into_iter().flat_map(Map::keys);
        for limit in limits.filter(|limit| QUOTA_RESOURCES.contains(&limit.as_str())) {
            if !is_of_scope(limit, scope) {
                let given = at.get("/spec/scopes").cloned().unwrap_or_default();
                problems.invalid("spec.scopes", given, "unsupported scope applied to resource");
            }
        }
    }
    for pair in [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]] {
        if pair.iter().all(|scope| scopes.contains(scope)) {
            let given = at.get("/spec/scopes").cloned().unwrap_or_default();
            problems.invalid("spec.scopes", given, "conflicting scopes");
        }
    }
    for (i, expression) in at.list("/spec/scopeSelector/matchExpressions").iter().enumerate() {
        let field = format!("spec.scopeSelector.matchExpressions[{i}]");
        let values = expression["values"].as_array().map_or(0, Vec::len);
        match expression["operator"].as_str().unwrap_or("") {
            "In" | "NotIn" if values == 0 => problems.required(
                format!("{field}.values"),
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            ),
            "Exists" | "DoesNotExist" if values > 0 => problems.invalid(
                format!("{field}.values"),
                expression["values"].clone(),
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
            ),
            _ => {}
        }
    }
    at.fixed(&["spec.scopes"], problems);
}

/// Whether objects of a scope have any use of a resource.
fn is_of_scope(resource: &str, scope: &str) -> bool {
    let claims = ["persistentvolumeclaims", "requests.storage"].contains(&resource);
    let compute = ["cpu", "memory", "ephemeral-storage"]
        .contains(&resource.trim_start_matches("requests.").trim_start_matches("limits."));
    match scope {
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => claims,
        _ => resource == "pods" || compute,
    }
}

/// Bounds of a limit fit into one another.
pub(super) fn limit_item(at: &At<'_>, problems: &mut Problems) {
    let of = |part: &str, name: &str| -> Option<Quantity> {
        let value = at.map.get(part)?.get(name)?;
        Quantity::parse(value.as_str()?).ok()
    };
    let ty = at.text("/type");
    let parts = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];
    let mut all: Vec<&String> =
        parts.iter().filter_map(|p| at.map.get(*p)?.as_object()).flat_map(Map::keys).collect();
    all.sort();
    all.dedup();
    if ty == "Pod" {
        for part in ["default", "defaultRequest"] {
            if at.map.get(part).and_then(Value::as_object).is_some_and(|m| !m.is_empty()) {
                problems.forbidden(at.field(part), "may not be specified when `type` is 'Pod'");
            }
        }
    }
    if ty == "PersistentVolumeClaim" && of("min", "storage").is_none() && of("max", "storage").is_none() {
        problems.required(
            at.field("limits"),
            "either minimum or maximum storage value is required, but neither was provided",
        );
    }
    for name in all {
        let name = name.as_str();
        let mut order = |low: &str, high: &str, field: &str, why: &str| {
            if let (Some(low), Some(high)) = (of(low, name), of(high, name))
                && low > high
            {
                let value = of(field, name).map_or_else(String::new, |q| q.to_string());
                problems.invalid(format!("{}[{name}]", at.field(field)), value, why);
            }
        };
        let show = |part: &str| of(part, name).map_or_else(String::new, |q| q.to_string());
        order(
            "min",
            "max",
            "min",
            &format!("min value {} is greater than max value {}", show("min"), show("max")),
        );
        order(
            "defaultRequest",
            "max",
            "defaultRequest",
            &format!(
                "default request value {} is greater than max value {}",
                show("defaultRequest"),
                show("max")
            ),
        );
        order(
            "defaultRequest",
            "default",
            "defaultRequest",
            &format!(
                "default request value {} is greater than default limit value {}",
                show("defaultRequest"),
                show("default")
            ),
        );
        order(
            "default",
            "max",
            "default",
            &format!("default value {} is greater than max value {}", show("default"), show("max")),
        );
        for (part, word) in [("defaultRequest", "default request value"), ("default", "default value")] {
            if let (Some(value), Some(min)) = (of(part, name), of("min", name))
                && value < min
            {
                let why = format!("min value {min} is greater than {word} {value}");
                problems.invalid(format!("{}[{name}]", at.field("min")), min.to_string(), why);
            }
        }
        if let Some(ratio) = of("maxLimitRequestRatio", name).filter(|r| r.nanos() < 1_000_000_000) {
            problems.invalid(
                format!("{}[{name}]", at.field("maxLimitRequestRatio")),
                ratio.to_string(),
                format!("ratio {ratio} is less than 1"),
            );
        }
    }
}

/// Highest value that a user may give.
const PRIORITY_MAX: i64 = 1_000_000_000;

pub(super) fn priority_class(at: &At<'_>, problems: &mut Problems) {
    let name = at.text("/metadata/name");
    let value = at.int("/value").unwrap_or(0);
    let known = [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];
    if name.starts_with("system-") {
        if !known.contains(&(name, value)) {
            problems.forbidden("metadata.name", "priority class names with 'system-' prefix are reserved for system use only. error: only system-node-critical and system-cluster-critical with their own values are known");
        }
    } else if value > PRIORITY_MAX {
        problems.forbidden(
            "value",
            &format!("maximum allowed value of a user defined priority is {PRIORITY_MAX}"),
        );
    }
    for (field, why) in [
        ("value", "may not be changed in an update."),
        ("preemptionPolicy", "may not be changed in an update."),
    ] {
        if at.changed(&format!("/{field}")) {
            problems.forbidden(field, why);
        }
    }
}

pub(super) fn csi_driver(at: &At<'_>, problems: &mut Problems) {
    at.fixed(&["spec.volumeLifecycleModes"], problems);
}

pub(super) fn csi_node(at: &At<'_>, problems: &mut Problems) {
    let Some(old) = at.old else { return };
    let before = super::find(old, "/spec/drivers").and_then(Value::as_array);
    for driver in before.into_iter().flatten() {
        let now = at.list("/spec/drivers").iter().find(|d| d["name"] == driver["name"]);
        let same = |now: &Value| ["nodeID", "topologyKeys"].iter().all(|f| now.get(f) == driver.get(f));
        if let Some(now) = now.filter(|now| !same(now)) {
            problems.invalid("spec.drivers", now.clone(), IMMUTABLE);
        }
    }
}

pub(super) fn storage_capacity(at: &At<'_>, problems: &mut Problems) {
    at.fixed(&["nodeTopology"], problems);
}

pub(super) fn fixed_spec(at: &At<'_>, problems: &mut Problems) {
    at.fixed(&["spec"], problems);
}
