//! Claims, as whoever makes volumes for them sees them, local ones and replicated ones alike: the image that a claim names, what binds
//! it to its volume, what is said of it. Pure. Not here: what a volume of either kind needs next.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimCondition};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::{Value, json};
use sheaf_api::kubevirt::VirtualMachineInstanceSpec;

/// Annotation of a claim or of a class: NAMESPACE/NAME of the image that its volume is made of.
pub const IMAGE_ID: &str = "harvesterhci.io/imageId";
/// Parameter of a class with the same meaning.
const IMAGE_PARAMETER: &str = "sheaf.io/image";
/// Keeps a claim while a machine uses it; set before its volume is made, or when it is bound.
pub const PROTECTION: &str = "kubernetes.io/pvc-protection";
/// Condition of a claim whose volume cannot be made (yet).
pub const PROVISIONED: &str = "Provisioned";
/// Condition of a claim that grows, or is to.
pub const RESIZING: &str = "Resizing";

fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a String> {
    meta.annotations.as_ref()?.get(key)
}

/// Namespace and name of the image that a claim's volume is to be made of.
pub fn image_of(claim: &PersistentVolumeClaim, class: Option<&StorageClass>) -> Option<(String, String)> {
    let parameters = class.and_then(|class| class.parameters.as_ref());
    let text = annotation(&claim.metadata, IMAGE_ID)
        .or_else(|| parameters?.get(IMAGE_PARAMETER))
        .or_else(|| annotation(&class?.metadata, IMAGE_ID))?;
    // Harvester takes a bare name for one in the claim's own namespace.
    let own = claim.metadata.namespace.as_deref().unwrap_or_default();
    let (namespace, name) = text.split_once('/').unwrap_or((own, text));
    Some((namespace.to_owned(), name.to_owned()))
}

/// The claims that a machine uses, each once.
pub fn claims_of(spec: &VirtualMachineInstanceSpec) -> Vec<String> {
    let mut claims: Vec<String> = Vec::new();
    for volume in &spec.volumes {
        let ephemeral = volume.ephemeral.as_ref().and_then(|e| e.persistent_volume_claim.as_ref());
        let name = volume
            .persistent_volume_claim
            .as_ref()
            .map(|c| &c.claim_name)
            .or_else(|| volume.data_volume.as_ref().map(|d| &d.name))
            .or_else(|| ephemeral.map(|c| &c.claim_name))
            .or_else(|| volume.memory_dump.as_ref().map(|d| &d.claim_name));
        if let Some(name) = name
            && !claims.contains(name)
        {
            claims.push(name.clone());
        }
    }
    claims
}

/// The patch that binds a claim to a volume; its status follows, see [`bound`].
pub fn binding(claim: &PersistentVolumeClaim, volume: &str, provisioner: &str) -> Value {
    let meta = &claim.metadata;
    let mut finalizers = meta.finalizers.clone().unwrap_or_default();
    if !finalizers.iter().any(|f| f == PROTECTION) {
        finalizers.push(PROTECTION.to_owned());
    }
    json!({
        "metadata": {
            "resourceVersion": meta.resource_version, "uid": meta.uid, "finalizers": finalizers,
            "annotations": {
                "pv.kubernetes.io/bind-completed": "yes", "pv.kubernetes.io/bound-by-controller": "yes",
                "volume.kubernetes.io/storage-provisioner": provisioner,
                "volume.beta.kubernetes.io/storage-provisioner": provisioner,
            },
        },
        "spec": {"volumeName": volume},
    })
}

/// Says of a claim that it is bound to a volume, and has what that has.
pub fn bound(claim: &mut PersistentVolumeClaim, volume: &PersistentVolume) {
    let spec = volume.spec.clone().unwrap_or_default();
    let status = claim.status.get_or_insert_default();
    status.phase = Some("Bound".to_owned());
    status.access_modes = spec.access_modes;
    status.capacity = spec.capacity;
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != PROVISIONED);
    }
}

/// The patch that lets a claim go.
pub fn let_go(claim: &PersistentVolumeClaim) -> Value {
    let meta = &claim.metadata;
    let left: Vec<_> = meta.finalizers.iter().flatten().filter(|f| *f != PROTECTION).collect();
    json!({"metadata": {"resourceVersion": meta.resource_version, "uid": meta.uid, "finalizers": left}})
}

/// Sets a condition of a claim (status, reason, message), or removes it; whether that changes anything.
pub fn set_condition(
    claim: &mut PersistentVolumeClaim,
    kind: &str,
    state: Option<(&str, &str, &str)>,
    now: Timestamp,
) -> bool {
    let conditions = claim.status.get_or_insert_default().conditions.get_or_insert_default();
    let at = conditions.iter().position(|c| c.type_ == kind);
    let Some((status, reason, message)) = state else {
        return at.map(|at| conditions.remove(at)).is_some();
    };
    let before = at.map(|at| &conditions[at]);
    let reason = Some(reason.to_owned()).filter(|r| !r.is_empty());
    let same = before
        .is_some_and(|c| c.status == status && c.reason == reason && c.message.as_deref() == Some(message));
    if same {
        return false;
    }
    let since = before.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
    let fresh = PersistentVolumeClaimCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason,
        message: Some(message.to_owned()),
        last_transition_time: since.or(Some(Time(now))),
        last_probe_time: None,
    };
    match at {
        Some(at) => conditions[at] = fresh,
        None => conditions.push(fresh),
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(meta: Value) -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": meta})).expect("a claim")
    }

    #[test]
    fn an_image_is_named_by_the_claim_or_by_its_class() {
        let class: StorageClass = serde_json::from_value(json!({
            "metadata": {"name": "lh", "annotations": {IMAGE_ID: "old/old"}}, "provisioner": "p",
            "parameters": {IMAGE_PARAMETER: "x/y"},
        }))
        .expect("a class");
        let plain = claim(json!({"namespace": "d", "name": "c"}));
        let own = claim(json!({"namespace": "d", "name": "c", "annotations": {IMAGE_ID: "b"}}));
        let pair = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(image_of(&plain, None), None);
        assert_eq!(image_of(&plain, Some(&class)), pair("x", "y"));
        assert_eq!(image_of(&own, Some(&class)), pair("d", "b"));
    }

    #[test]
    fn claims_are_named_once_and_in_order() {
        let spec: VirtualMachineInstanceSpec = serde_json::from_value(json!({
            "domain": {"devices": {}},
            "volumes": [
                {"name": "a", "persistentVolumeClaim": {"claimName": "root"}},
                {"name": "b", "cloudInitNoCloud": {"userData": "x"}},
                {"name": "c", "dataVolume": {"name": "data"}},
                {"name": "d", "persistentVolumeClaim": {"claimName": "root"}},
            ],
        }))
        .expect("a spec");
        assert_eq!(claims_of(&spec), ["root", "data"]);
    }

    #[test]
    fn a_claim_is_bound_and_let_go() {
        let mut claim =
            claim(json!({"name": "c", "uid": "u", "resourceVersion": "7", "finalizers": ["other"]}));
        let patch = binding(&claim, "v", "p");
        assert_eq!(patch["metadata"]["finalizers"], json!(["other", PROTECTION]));
        assert_eq!(patch["spec"]["volumeName"], "v");
        claim.metadata.finalizers = Some(vec!["other".into(), PROTECTION.into()]);
        assert_eq!(
            let_go(&claim)["metadata"],
            json!({"resourceVersion": "7", "uid": "u", "finalizers": ["other"]})
        );

        let t = |s| Timestamp::from_second(s).expect("a time");
        assert!(set_condition(&mut claim, PROVISIONED, Some(("False", "Waiting", "a")), t(1)));
        assert!(!set_condition(&mut claim, PROVISIONED, Some(("False", "Waiting", "a")), t(2)));
        assert!(set_condition(&mut claim, PROVISIONED, Some(("False", "", "b")), t(3)));
        let told = claim.status.clone().and_then(|s| s.conditions).unwrap_or_default();
        assert_eq!((told.len(), told[0].last_transition_time.clone()), (1, Some(Time(t(1)))));
        assert!(!set_condition(&mut claim, RESIZING, None, t(4)));
        let volume: PersistentVolume = serde_json::from_value(
            json!({"metadata": {"name": "v"}, "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]}}),
        )
        .expect("a volume");
        bound(&mut claim, &volume);
        let status = claim.status.clone().expect("a status");
        assert_eq!((status.phase.as_deref(), status.conditions), (Some("Bound"), Some(vec![])));
    }
}
