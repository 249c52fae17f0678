//! What is kept of VMs beside their instances (firmware's variables, TPMs' state): removed when their VM is gone, and has been
//! for a while.
//!
//! A TPM's state may be the only key to a disk, so this errs on the side of keeping. Looked at now and then, not on deletion: a VM
//! may be deleted while it does not run, or while this node is away. A state without a VM is marked with a file beside it; the
//! mark goes when the VM is there again (an API that was restored from a backup, a list that was too short), and the state goes when
//! the mark has stood for [`GRACE`]. No answer of the API, half an answer, and a machine that runs leave everything as it is.
//!
//! Owns the marks, and the end of the directories in `machine-state`; who makes them: [`super::start`]. Each node looks after its
//! own, and a VM counts wherever it runs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use kube::api::{ListParams, ObjectList, PartialObjectMeta};
use kube::{Api, Client};
use sheaf_api::kubevirt::{VirtualMachine, VirtualMachineInstance};
use sheaf_qemu::spec::{Firmware, MachineSpec};
use sheaf_runtime::TaskGroup;
use tracing::{info, warn};

use super::start::remove_dir;
use super::table::Machines;

/// How often is looked.
const PERIOD: Duration = Duration::from_secs(3600);
/// The API was not to be had: it is asked again after this.
const AGAIN: Duration = Duration::from_secs(15);
/// How long a state stays after its VM has gone: so long may a mistake go unnoticed.
const GRACE: Duration = Duration::from_secs(7 * 24 * 3600);
/// The end of a mark's name; what is before it is the name of the state.
const MARK: &str = ".no-vm-since";

/// Where the states of all VMs lie; `machines` is the directory of machines.
pub(super) fn states_dir(machines: &Path) -> PathBuf {
    machines.with_file_name("machine-state")
}

/// Where the state of a VM lies that outlives its instances.
pub(super) fn state_dir(machines: &Path, vm_uid: &str) -> PathBuf {
    states_dir(machines).join(vm_uid)
}

/// Why it is not known which VMs there are.
#[derive(Debug, thiserror::Error)]
enum LookError {
    /// The API did not answer, or refused.
    #[error("cannot list {kind}")]
    Api {
        /// The kind.
        kind: &'static str,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// There are more than it said.
    #[error("the list of {kind} has not come to its end")]
    Incomplete {
        /// The kind.
        kind: &'static str,
    },
}

/// Starts looking, at once and then each [`PERIOD`]. `states` is the directory of all states, `machines` are those that were
/// adopted.
pub(super) fn spawn(client: &Client, states: PathBuf, machines: Machines, group: &TaskGroup) {
    let client = client.clone();
    group.spawn(async move {
        loop {
            let wait = match look(&client, &states, &machines).await {
                Ok(()) => PERIOD,
                Err(error) => {
                    let why = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                    warn!(%error, why, "what is kept of machines stays as it is");
                    AGAIN
                }
            };
            tokio::time::sleep(wait).await;
        }
    });
}

async fn look(client: &Client, states: &Path, machines: &Machines) -> Result<(), LookError> {
    // Before the API is asked: what is made afterwards belongs to a VM that is not in its answer.
    let dir = states.to_owned();
    let kept = tokio::task::spawn_blocking(move || kept(&dir)).await.unwrap_or_default();
    if kept.is_empty() {
        return Ok(());
    }
    let all = ListParams::default();
    let api = |kind| move |source| LookError::Api { kind, source };
    let vms = Api::<VirtualMachine>::all(client.clone()).list_metadata(&all).await;
    let mut owners = uids("VirtualMachines", &vms.map_err(api("VirtualMachines"))?)?;
    let instances = Api::<VirtualMachineInstance>::all(client.clone()).list_metadata(&all).await;
    owners.extend(uids("VirtualMachineInstances", &instances.map_err(api("VirtualMachineInstances"))?)?);
    owners.extend(machines.specs().iter().flat_map(|spec| in_use(spec, states)));
    for (name, step) in plan_states(&kept, &owners, SystemTime::now()) {
        let (state, mark) = (states.join(&name), mark_of(states, &name));
        let done = match step {
            Step::Mark => tokio::fs::write(&mark, []).await,
            Step::Unmark => tokio::fs::remove_file(&mark).await,
            Step::Remove => match remove_dir(&state).await {
                // The mark last: whoever is cut short goes on here.
                Ok(()) => tokio::fs::remove_file(&mark).await,
                Err(error) => Err(error),
            },
        };
        match done {
            Ok(()) => info!(vm = name, ?step, "the kept state of a machine"),
            Err(error) => warn!(vm = name, ?step, %error, "the kept state of a machine stays as it is"),
        }
    }
    Ok(())
}

/// UIDs of all objects of a list, which has to be whole.
fn uids<K: Clone>(
    kind: &'static str,
    list: &ObjectList<PartialObjectMeta<K>>,
) -> Result<BTreeSet<String>, LookError> {
    let rest = list.metadata.continue_.as_deref().unwrap_or_default();
    if !rest.is_empty() || list.metadata.remaining_item_count.unwrap_or(0) > 0 {
        return Err(LookError::Incomplete { kind });
    }
    Ok(list.items.iter().filter_map(|object| object.metadata.uid.clone()).collect())
}

/// The states that a machine has open.
fn in_use(spec: &MachineSpec, states: &Path) -> Vec<String> {
    let vars = match &spec.firmware {
        Firmware::Uefi { vars, .. } => Some(vars),
        Firmware::Bios => None,
    };
    let paths = vars.into_iter().chain(&spec.rare.tpm);
    let names = paths.filter_map(|path| path.strip_prefix(states).ok()?.iter().next()?.to_str());
    names.map(str::to_owned).collect()
}

/// A state that lies here: its name, which is the UID of its VM, and since when it is marked.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    name: String,
    marked: Option<SystemTime>,
}

fn mark_of(states: &Path, name: &str) -> PathBuf {
    states.join(format!("{name}{MARK}"))
}

/// What lies in the directory and is a state; other things are nobody's business here.
fn kept(states: &Path) -> Vec<Kept> {
    let names = std::fs::read_dir(states).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    // A state that is gone while its mark is not was cut short.
    let names: BTreeSet<String> =
        names.map(|name| name.strip_suffix(MARK).map(str::to_owned).unwrap_or(name)).collect();
    let marked = |name: &str| std::fs::metadata(mark_of(states, name)).and_then(|m| m.modified()).ok();
    names.into_iter().filter(|name| is_uid(name)).map(|name| Kept { marked: marked(&name), name }).collect()
}

/// Whether a name is a UID: 32 hexadecimal digits in five groups.
fn is_uid(name: &str) -> bool {
    let groups: Vec<&str> = name.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|g| g.len()).collect();
    lengths == [8, 4, 4, 4, 12] && groups.iter().all(|g| g.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// What is done with a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Its VM is not there: the time begins.
    Mark,
    /// Its VM is there again.
    Unmark,
    /// Its VM has been away for long enough.
    Remove,
}

/// What is done with each state; nothing, for those that are not mentioned.
fn plan_states(kept: &[Kept], owners: &BTreeSet<String>, now: SystemTime) -> Vec<(String, Step)> {
    let step = |state: &Kept| match (owners.contains(&state.name), state.marked) {
        (true, None) => None,
        (true, Some(_)) => Some(Step::Unmark),
        (false, None) => Some(Step::Mark),
        // A mark from the future is of a clock that was wrong: the time begins now.
        (false, Some(since)) => match now.duration_since(since) {
            Err(_) => Some(Step::Mark),
            Ok(time) => (time >= GRACE).then_some(Step::Remove),
        },
    };
    kept.iter().filter_map(|state| Some((state.name.clone(), step(state)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "0a1b2c3d-0000-4000-8000-00000000000a";
    const B: &str = "0a1b2c3d-0000-4000-8000-00000000000b";

    fn set(all: &[&str]) -> BTreeSet<String> {
        all.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn a_state_goes_when_its_vm_was_away_for_long() {
        let now = SystemTime::UNIX_EPOCH + 10 * GRACE;
        let (just, long) = (Some(now - Duration::from_secs(60)), Some(now - GRACE));
        let wrong_clock = Some(now + GRACE);
        let rows = [
            // Its VM is there, running or not, here or elsewhere.
            (None, true, None),
            (just, true, Some(Step::Unmark)),
            (long, true, Some(Step::Unmark)),
            (None, false, Some(Step::Mark)),
            (just, false, None),
            (wrong_clock, false, Some(Step::Mark)),
            (long, false, Some(Step::Remove)),
        ];
        for (marked, owned, want) in rows {
            let kept = [Kept { name: A.into(), marked }];
            let owners = if owned { set(&[A, B]) } else { set(&[B]) };
            let got: Vec<Step> = plan_states(&kept, &owners, now).into_iter().map(|(_, step)| step).collect();
            assert_eq!(got, want.into_iter().collect::<Vec<_>>(), "{marked:?} {owned}");
        }
    }

    #[test]
    fn only_states_are_looked_at() {
        let dir = tempfile::tempdir().expect("dir");
        for name in [A, "lost+found", "0a1b", "..data"] {
            std::fs::create_dir(dir.path().join(name)).expect("dir");
        }
        std::fs::write(mark_of(dir.path(), B), "").expect("a mark");
        let found = kept(dir.path());
        let names: Vec<(&str, bool)> = found.iter().map(|k| (k.name.as_str(), k.marked.is_some())).collect();
        assert_eq!(names, [(A, false), (B, true)]);
        assert_eq!(kept(&dir.path().join("nowhere")), []);
        for no in ["", "..", A.trim_end_matches('a'), "0a1b2c3d-0000-4000-8000-00000000000g"] {
            assert!(!is_uid(no), "{no}");
        }
    }

    #[test]
    fn what_a_machine_has_open_is_kept() {
        let states = Path::new("/d/agent/machine-state");
        let vmi = serde_json::json!({"spec": {"domain": {"memory": {"guest": "64Mi"}, "devices": {}}}});
        let vmi = serde_json::from_value(vmi).expect("instance");
        let mut spec =
            super::super::convert::wanted(&vmi, "/d/agent/machines/x".as_ref()).expect("valid").machine;
        assert_eq!(in_use(&spec, states), [""; 0]);
        spec.rare.tpm = Some(states.join(A).join("tpm"));
        let vars = states.join(B).join("OVMF_VARS.fd");
        spec.firmware = Firmware::Uefi { code: "/usr/share/code".into(), vars, secure_boot: false };
        assert_eq!(in_use(&spec, states), [B, A]);
        // Its own directory is no kept state.
        spec.rare.tpm = Some("/d/agent/machines/x/tpm".into());
        assert_eq!(in_use(&spec, states), [B]);
    }

    #[test]
    fn half_a_list_says_nothing() {
        let list = |meta: serde_json::Value| {
            let list = serde_json::json!({"metadata": meta, "items": [{"metadata": {"uid": A}}]});
            serde_json::from_value::<ObjectList<PartialObjectMeta<VirtualMachine>>>(list).expect("a list")
        };
        let whole = list(serde_json::json!({"resourceVersion": "7"}));
        assert_eq!(uids("VirtualMachines", &whole).expect("whole"), set(&[A]));
        for meta in [serde_json::json!({"continue": "x"}), serde_json::json!({"remainingItemCount": 3})] {
            let error = uids("VirtualMachines", &list(meta)).expect_err("half");
            assert_eq!(error.to_string(), "the list of VirtualMachines has not come to its end");
        }
    }
}
