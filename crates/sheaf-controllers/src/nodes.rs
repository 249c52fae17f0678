//! Nodes: gives each a guest subnet, and says so when one has fallen silent.
//!
//! A node whose Lease has not been renewed for its duration gets Ready=Unknown and a taint, so that nothing new is
//! placed there; it takes both back itself, or this does, when it is heard again. What runs on a silent node is left
//! alone: nobody can know that it has stopped. Owns `spec.podCIDR`, and the conditions only while the node is silent.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use sheaf_runtime::{Controller, Driver, Next, ObjectKey, StepError, TaskGroup};
use tracing::{info, warn};

use crate::world::World;

const MANAGER: &str = "sheaf-nodes";
/// Guest subnets are the /24s of this /16; 255 nodes with 253 guests each.
const GUESTS: Ipv4Addr = Ipv4Addr::new(10, 52, 0, 0);
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// Assumed where a Lease says nothing.
const LEASE_SECONDS: i32 = 40;

struct Nodes {
    client: Client,
    world: Arc<World>,
    /// When this controller began to look: a Lease that is old because the server was down is no evidence.
    since: Timestamp,
}

pub(crate) fn spawn(client: &Client, world: &Arc<World>, group: &TaskGroup) {
    let nodes = Nodes { client: client.clone(), world: world.clone(), since: Timestamp::now() };
    Driver::new(nodes)
        // Two nodes that come together must not get the same subnet.
        .workers(1)
        .for_each(&world.nodes)
        .on(&world.leases, |lease| {
            let of_node = lease.metadata.namespace.as_deref() == Some("kube-node-lease");
            if of_node {
                vec![ObjectKey::new("", lease.metadata.name.clone().unwrap_or_default())]
            } else {
                Vec::new()
            }
        })
        .spawn(group);
}

impl Controller for Nodes {
    const NAME: &'static str = "nodes";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        let Some(node) = self.world.nodes.get(key) else { return Ok(Next::Done) };
        let api: Api<Node> = Api::all(self.client.clone());
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        let version = &node.metadata.resource_version;
        if node.spec.as_ref().and_then(|s| s.pod_cidr.as_ref()).is_none() {
            let taken =
                self.world.nodes.list().iter().filter_map(|n| n.spec.as_ref()?.pod_cidr.clone()).collect();
            let Some(subnet) = free_subnet(&taken) else {
                warn!("no guest subnet is left for this node: {GUESTS}/16 is used up");
                return Ok(Next::Done);
            };
            let patch = json!({
                "metadata": {"resourceVersion": version},
                "spec": {"podCIDR": subnet, "podCIDRs": [subnet]},
            });
            api.patch(&key.name, &params, &Patch::Merge(patch))
                .await
                .map_err(StepError::api("giving a node its guest subnet"))?;
            info!(subnet, "guest subnet given");
            return Ok(Next::Done);
        }
        let lease = self.world.leases.get(&ObjectKey::new("kube-node-lease", &key.name));
        let now = Timestamp::now();
        let silent_at = deadline(lease.as_deref(), self.since);
        let taints = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
        let tainted = taints.iter().any(|t| t.key == UNREACHABLE);
        if now >= silent_at {
            if !tainted {
                warn!("the node has fallen silent");
                self.mark_silent(&api, &params, &node, taints, now).await?;
            }
            return Ok(Next::Done);
        }
        if tainted {
            let left: Vec<_> = taints.into_iter().filter(|t| t.key != UNREACHABLE).collect();
            let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"taints": left}});
            api.patch(&key.name, &params, &Patch::Merge(patch))
                .await
                .map_err(StepError::api("taking a taint from a node"))?;
            info!("the node is heard again");
        }
        let wait = Duration::try_from(silent_at.duration_since(now)).unwrap_or_default();
        Ok(Next::After(wait + Duration::from_millis(500)))
    }
}

impl Nodes {
    async fn mark_silent(
        &self,
        api: &Api<Node>,
        params: &PatchParams,
        node: &Node,
        mut taints: Vec<Taint>,
        now: Timestamp,
    ) -> Result<(), StepError> {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let mut conditions = node.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
        for condition in &mut conditions {
            if condition.status != "Unknown" {
                condition.last_transition_time =
                    stamp.parse().ok().map(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time);
            }
            condition.status = "Unknown".into();
            condition.reason = Some("NodeStatusUnknown".into());
            condition.message = Some("the agent has stopped reporting; its guests may still run".into());
        }
        let patch = json!({"status": {"conditions": conditions}});
        api.patch_status(name, params, &Patch::Merge(patch))
            .await
            .map_err(StepError::api("marking a silent node"))?;
        taints.push(Taint {
            key: UNREACHABLE.into(),
            effect: "NoSchedule".into(),
            time_added: None,
            value: None,
        });
        let patch = json!({"spec": {"taints": taints}});
        api.patch(name, params, &Patch::Merge(patch))
            .await
            .map_err(StepError::api("tainting a silent node"))?;
        Ok(())
    }
}

/// When a node counts as silent, if its Lease is not renewed before.
fn deadline(lease: Option<&Lease>, since: Timestamp) -> Timestamp {
    let spec = lease.and_then(|l| l.spec.as_ref());
    let renewed = spec.and_then(|s| s.renew_time.as_ref()).map_or(since, |t| t.0.max(since));
    let seconds = spec.and_then(|s| s.lease_duration_seconds).unwrap_or(LEASE_SECONDS);
    renewed.checked_add(k8s_openapi::jiff::SignedDuration::from_secs(seconds.into())).unwrap_or(renewed)
}

/// The first /24 that nobody has.
fn free_subnet(taken: &BTreeSet<String>) -> Option<String> {
    let [a, b, _, _] = GUESTS.octets();
    (0..=255u8).map(|third| format!("{a}.{b}.{third}.0/24")).find(|subnet| !taken.contains(subnet))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_are_given_in_order_and_once() {
        let mut taken = BTreeSet::new();
        for n in 0..256 {
            let subnet = free_subnet(&taken).expect("one is left");
            assert_eq!(subnet, format!("10.52.{n}.0/24"));
            taken.insert(subnet);
        }
        assert_eq!(free_subnet(&taken), None);
    }

    #[test]
    fn a_lease_that_is_old_because_the_server_was_down_is_no_evidence() {
        let at = |s| Timestamp::from_second(s).expect("a time");
        let lease: Lease = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "n"},
            "spec": {"renewTime": "1970-01-01T00:01:40.000000Z", "leaseDurationSeconds": 40},
        }))
        .expect("a lease");
        assert_eq!(deadline(Some(&lease), at(0)), at(140));
        assert_eq!(deadline(Some(&lease), at(5000)), at(5040));
        assert_eq!(deadline(None, at(7)), at(47));
    }
}
