//! Instance types and preferences of VMs: found, kept as they were (a ControllerRevision each), and applied.
//!
//! The rules are `sheaf_plan::vm::instancetype`. A VM goes on with the revision that it began with: a type that is changed
//! later changes no machine, until the VM names another.

use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::api::{ApiResource, DynamicObject, PostParams};
use kube::{Api, Client};
use serde_json::{Map, Value, json};
use sheaf_api::kubevirt::{
    ControllerRevisionRef, InstancetypeMatcher, InstancetypeStatusRef, VirtualMachine,
};
use sheaf_plan::vm::instancetype::apply;
use sheaf_runtime::{ObjectKey, StepError};

use crate::world::World;

const GROUP: &str = "instancetype.kubevirt.io";
const VERSION: &str = "v1beta1";

/// What a VM's matchers come to.
#[derive(Debug, Default)]
pub(crate) struct Types {
    pub(crate) instancetype: Option<Found>,
    pub(crate) preference: Option<Found>,
    /// Why one of them is not to be had: reason and message of the condition `Failure`.
    pub(crate) problem: Option<(&'static str, String)>,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Found {
    /// For the VM's status.
    pub(crate) reference: InstancetypeStatusRef,
    spec: Value,
}

/// A kind by its name in a matcher; without one it is the cluster's.
fn kind_of(what: &str, given: &str) -> (bool, String, String) {
    let noun = if what == "instancetype" { "Instancetype" } else { "Preference" };
    let lower = given.to_ascii_lowercase();
    let cluster = lower.is_empty() || lower.starts_with("virtualmachinecluster");
    let kind = if cluster { format!("VirtualMachineCluster{noun}") } else { format!("VirtualMachine{noun}") };
    let plural = format!("{}s", kind.to_ascii_lowercase());
    (cluster, kind, plural)
}

/// Finds what a VM names.
pub(crate) async fn find(
    client: &Client,
    world: &World,
    key: &ObjectKey,
    vm: &VirtualMachine,
) -> Result<Types, StepError> {
    let mut types = Types::default();
    let status = vm.status.clone().unwrap_or_default();
    for (what, matcher, known, reason) in [
        ("instancetype", &vm.spec.instancetype, status.instancetype_ref, "FailedFindInstancetype"),
        ("preference", &vm.spec.preference, status.preference_ref, "FailedFindPreference"),
    ] {
        let Some(matcher) = matcher.as_ref().filter(|m| !m.name.is_empty()) else { continue };
        match one(client, world, key, vm, what, matcher, known.as_ref()).await? {
            Ok(found) if what == "instancetype" => types.instancetype = Some(found),
            Ok(found) => types.preference = Some(found),
            Err(why) => {
                types.problem.get_or_insert((reason, why));
            }
        }
    }
    Ok(types)
}

async fn one(
    client: &Client,
    world: &World,
    key: &ObjectKey,
    vm: &VirtualMachine,
    what: &str,
    matcher: &InstancetypeMatcher,
    known: Option<&InstancetypeStatusRef>,
) -> Result<Result<Found, String>, StepError> {
    let (cluster, kind, plural) = kind_of(what, &matcher.kind);
    let mut reference = InstancetypeStatusRef {
        kind: kind.clone(),
        name: matcher.name.clone(),
        infer_from_volume: matcher.infer_from_volume.clone(),
        infer_from_volume_failure_policy: matcher.infer_from_volume_failure_policy.clone(),
        controller_revision_ref: None,
    };
    // As it was when the VM took it up.
    let same = known.filter(|k| k.name == reference.name && k.kind == reference.kind);
    let kept = same.and_then(|k| k.controller_revision_ref.as_ref()).map(|r| r.name.clone());
    let kept = Some(matcher.revision_name.clone()).filter(|r| !r.is_empty()).or(kept);
    if let Some(name) = kept
        && let Some(revision) = world.revisions.get(&ObjectKey::new(&key.namespace, &name))
        && let Some(data) = &revision.data
    {
        let spec = data.0.get("spec").cloned().unwrap_or_default();
        reference.controller_revision_ref = Some(ControllerRevisionRef { name });
        return Ok(Ok(Found { reference, spec }));
    }
    let resource = ApiResource {
        group: GROUP.into(),
        version: VERSION.into(),
        api_version: format!("{GROUP}/{VERSION}"),
        kind: kind.clone(),
        plural,
    };
    let api: Api<DynamicObject> = match cluster {
        true => Api::all_with(client.clone(), &resource),
        false => Api::namespaced_with(client.clone(), &key.namespace, &resource),
    };
    let found = api.get_opt(&matcher.name).await.map_err(StepError::api("reading an instance type"))?;
    let Some(found) = found else {
        let place = if cluster { String::new() } else { format!("{}/", key.namespace) };
        return Ok(Err(format!(
            "{kind} {place}{} does not exist; create it, and the VM starts",
            matcher.name
        )));
    };
    let name = keep(client, key, vm, &kind, &found).await?;
    reference.controller_revision_ref = Some(ControllerRevisionRef { name });
    Ok(Ok(Found { reference, spec: found.data.get("spec").cloned().unwrap_or_default() }))
}

/// Keeps an instance type or preference as it is.
async fn keep(
    client: &Client,
    key: &ObjectKey,
    vm: &VirtualMachine,
    kind: &str,
    found: &DynamicObject,
) -> Result<String, StepError> {
    let meta = &found.metadata;
    let (object, uid) = (meta.name.clone().unwrap_or_default(), meta.uid.clone().unwrap_or_default());
    let generation = meta.generation.unwrap_or(1);
    let name = format!("{}-{object}-{VERSION}-{uid}-{generation}", key.name);
    let label = |leaf: &str| format!("{GROUP}/object-{leaf}");
    let mut data = json!({"apiVersion": format!("{GROUP}/{VERSION}"), "kind": kind, "metadata": {"name": object, "uid": uid}});
    data["spec"] = found.data.get("spec").cloned().unwrap_or_default();
    let revision = json!({
        "apiVersion": "apps/v1", "kind": "ControllerRevision",
        "metadata": {
            "name": name, "namespace": key.namespace,
            "labels": {
                label("generation"): generation.to_string(), label("kind"): kind, label("name"): object, label("uid"): uid,
                label("version"): VERSION,
            },
            "ownerReferences": [{
                "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "name": key.name, "uid": vm.metadata.uid,
                "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "revision": 0,
        "data": data,
    });
    let revision: ControllerRevision = serde_json::from_value(revision)
        .map_err(StepError::other("composing a revision of an instance type"))?;
    let api: Api<ControllerRevision> = Api::namespaced(client.clone(), &key.namespace);
    match api.create(&PostParams::default(), &revision).await {
        Ok(_) => Ok(name),
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(name),
        Err(error) => Err(StepError::api("keeping an instance type as it is")(error)),
    }
}

impl Types {
    /// Whether there is nothing to apply.
    pub(crate) fn is_empty(&self) -> bool {
        self.instancetype.is_none() && self.preference.is_none()
    }

    /// A template with both applied, and the annotations that say so.
    pub(crate) fn expand(&self, template: &Value) -> Result<Value, String> {
        if self.is_empty() {
            return Ok(template.clone());
        }
        let mut out = template.clone();
        let mut spec = template.get("spec").cloned().unwrap_or_else(|| json!({}));
        let mut annotations: Map<String, Value> =
            template.pointer("/metadata/annotations").and_then(Value::as_object).cloned().unwrap_or_default();
        let spec_of = |found: &Option<Found>| found.as_ref().map(|f| f.spec.clone());
        let (instancetype, preference) = (spec_of(&self.instancetype), spec_of(&self.preference));
        apply(&mut spec, &mut annotations, instancetype.as_ref(), preference.as_ref())
            .map_err(|all| all.iter().map(|c| c.why.clone()).collect::<Vec<_>>().join(", "))?;
        for (found, what) in [(&self.instancetype, "instancetype"), (&self.preference, "preference")] {
            if let Some(found) = found {
                let cluster =
                    if found.reference.kind.starts_with("VirtualMachineCluster") { "cluster-" } else { "" };
                annotations.insert(format!("kubevirt.io/{cluster}{what}-name"), json!(found.reference.name));
            }
        }
        out["spec"] = spec;
        out["metadata"]["annotations"] = Value::Object(annotations);
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_expanded_and_says_by_what() {
        let found = |kind: &str, name: &str, spec: Value| Found {
            reference: InstancetypeStatusRef { kind: kind.into(), name: name.into(), ..Default::default() },
            spec,
        };
        let types = Types {
            instancetype: Some(found(
                "VirtualMachineClusterInstancetype",
                "m",
                json!({"cpu": {"guest": 2}, "memory": {"guest": "1Gi"}}),
            )),
            preference: Some(found(
                "VirtualMachinePreference",
                "p",
                json!({"cpu": {"preferredCPUTopology": "cores"}}),
            )),
            problem: None,
        };
        let out = types
            .expand(&json!({"metadata": {"annotations": {"a": "b"}}, "spec": {"domain": {}}}))
            .expect("fits");
        assert_eq!(out["spec"]["domain"]["cpu"], json!({"sockets": 1, "cores": 2, "threads": 1}));
        assert_eq!(
            out["metadata"]["annotations"],
            json!({"a": "b", "kubevirt.io/cluster-instancetype-name": "m", "kubevirt.io/preference-name": "p"})
        );
        let refused = types.expand(&json!({"spec": {"domain": {"memory": {"guest": "1Gi"}}}}));
        assert!(refused.expect_err("both").contains("spec.template.spec.domain.memory.guest"));
        assert_eq!(kind_of("preference", "VirtualMachinePreference").2, "virtualmachinepreferences");
        assert_eq!(kind_of("instancetype", "").1, "VirtualMachineClusterInstancetype");
    }
}
