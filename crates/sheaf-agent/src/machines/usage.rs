//! What this node and its machines use, in a few counters: `/metrics/use` on the agent's listener, which the API server asks
//! every half minute for the history that the dashboard shows. Less than [`super::metrics`]: one question to each machine.
//! Nothing is kept.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use http::{Method, StatusCode};
use kube::ResourceExt;
use sheaf_api::kubevirt::VirtualMachineInstance;
use sheaf_plan::usage::{self, Counters, Told};
use sheaf_runtime::{Informer, ObjectKey};

use super::metrics::times;
use super::monitor::Run;
use super::table::Machines;
use crate::http::{API_SERVER, Routes, answer};
use crate::node::load;

/// A machine that does not answer within this is left out.
const MACHINE_DEADLINE: Duration = Duration::from_secs(1);
/// Machines that are asked at the same time.
const TOGETHER: usize = 16;

/// Adds the route.
pub fn routes(machines: &Machines, instances: &Arc<Informer<VirtualMachineInstance>>, routes: &mut Routes) {
    let (machines, instances) = (machines.clone(), instances.clone());
    routes.add(Method::GET, "/metrics/use", &[API_SERVER], move |_, _| {
        let (machines, instances) = (machines.clone(), instances.clone());
        async move {
            let told = gather(&machines, &instances).await;
            // Names and numbers: it always serialises.
            let body = serde_json::to_vec(&told).unwrap_or_default();
            answer(StatusCode::OK, "application/json", body)
        }
    });
}

async fn gather(machines: &Machines, instances: &Informer<VirtualMachineInstance>) -> Told {
    let asked = machines.keys().into_iter().map(|key| async move {
        let look = look(machines, &key);
        let counters = tokio::time::timeout(MACHINE_DEADLINE, look).await.ok().flatten()?;
        let uid = instances.get(&key).map(|vmi| identity(&vmi)).unwrap_or_default();
        Some(usage::Machine { namespace: key.namespace, name: key.name, uid, counters })
    });
    let machines =
        stream::iter(asked).buffer_unordered(TOGETHER).filter_map(std::future::ready).collect().await;
    Told { node: load::counters(), machines }
}

/// The VirtualMachine behind an instance, which stays while its instances come and go.
fn identity(vmi: &VirtualMachineInstance) -> String {
    let owner = vmi.owner_references().iter().find(|o| o.controller == Some(true)).map(|o| o.uid.clone());
    owner.or_else(|| vmi.uid()).unwrap_or_default()
}

async fn look(machines: &Machines, key: &ObjectKey) -> Option<Counters> {
    let entry = machines.entry(key)?;
    let machine = entry.machine.clone()?;
    if !matches!(machine.seen().run, Run::Running | Run::Paused(_)) {
        return None;
    }
    let (user, system) = times(&format!("/proc/{}/stat", machine.pid()))?;
    let mut out =
        Counters { cpu_seconds: user + system, memory: machine.resident_bytes(), ..Counters::default() };
    if let Some(qmp) = machine.qmp() {
        for disk in qmp.block_stats().await.unwrap_or_default() {
            out.read += disk.read_bytes;
            out.written += disk.written_bytes;
        }
    }
    for nic in entry.ledger.nics.iter().filter(|n| !n.tap.is_empty()) {
        // What the host's end sends, the guest receives.
        let (sent, received) = load::traffic(&nic.tap);
        out.received += sent;
        out.sent += received;
    }
    Some(out)
}
