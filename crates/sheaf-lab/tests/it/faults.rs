//! Trouble: the agent, QEMU and swtpm die at every step of a start and of a stop; disks are broken, QEMU hangs. What is asked for
//! comes about all the same or the condition says what stands against it, nothing runs twice, and deletion ends.
//!
//! Most machines here have no operating system: they ignore the power button, and are there at once.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sheaf_lab::{Deadline, Lab, condition, run, wait_for};

use crate::life::{only_qemu, uid};

const VM: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines/s";
const VMI: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances/s";

/// A machine without an operating system, with a TPM.
fn bare(strategy: &str) -> String {
    json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": "s", "namespace": "default"},
        "spec": {"runStrategy": strategy, "template": {"spec": {
            "terminationGracePeriodSeconds": 1,
            "domain": {"memory": {"guest": "64Mi"}, "devices": {"tpm": {"persistent": true}}},
        }}},
    })
    .to_string()
}

/// Steps of a start and of a stop that can be seen from outside.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// The instance is there.
    Asked,
    /// The machine has its directory.
    Directory,
    /// The TPM emulator runs.
    Emulator,
    /// QEMU runs.
    Process,
    /// The API says that it runs.
    Running,
    /// The instance is to end.
    Told,
    /// No QEMU runs any more.
    NoProcess,
    /// The directory is gone.
    NoDirectory,
}

/// The machines' directories.
fn directories(lab: &Lab) -> Vec<PathBuf> {
    let all = std::fs::read_dir(lab.node_ref(1).data_dir().join("agent/machines"));
    all.into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect()
}

/// Waits for a step, and looks often: some last for a few milliseconds. A step that is over by the time it is looked for is
/// seen as the next one, which is as good.
async fn reached(lab: &Lab, step: Step) -> Result<()> {
    wait_for(&format!("the step {step:?}"), Deadline::SOON, async || {
        for _ in 0..200 {
            let node = lab.node_ref(1);
            let vmi = match step {
                Step::Asked | Step::Running | Step::Told => {
                    lab.get(VMI).await.map_err(|e| format!("{e:#}"))?
                }
                _ => None,
            };
            let is = match step {
                Step::Asked => vmi.is_some(),
                Step::Directory => !directories(lab).is_empty(),
                Step::Emulator => !node.named("swtpm").is_empty(),
                Step::Process => !node.qemus().is_empty(),
                Step::Running => vmi.is_some_and(|v| v["status"]["phase"] == "Running"),
                Step::Told => vmi.is_none_or(|v| v["metadata"]["deletionTimestamp"].is_string()),
                Step::NoProcess => node.qemus().is_empty(),
                Step::NoDirectory => directories(lab).is_empty(),
            };
            if is {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Err("not yet".to_owned())
    })
    .await
}

async fn new_server(lab: &mut Lab) -> Result<()> {
    lab.server().kill().await?;
    lab.server().start()?;
    lab.server_ready().await
}

/// It runs, once.
async fn runs(lab: &mut Lab) -> Result<()> {
    lab.wait_vm("s", "Running", Deadline::GUEST).await?;
    only_qemu(lab)?;
    let emulators = lab.server().named("swtpm");
    ensure!(emulators.len() == 1, "one TPM emulator was to run, but there are {emulators:?}");
    Ok(())
}

/// Nothing is left of it on the node.
async fn nothing_left(lab: &mut Lab) -> Result<()> {
    wait_for("nothing to be left", Deadline::SOON, async || {
        let node = lab.node_ref(1);
        let left = (node.qemus(), node.named("swtpm"), directories(lab));
        if left.0.is_empty() && left.1.is_empty() && left.2.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    })
    .await
}

#[test]
fn all_may_die_at_every_step() -> Result<()> {
    run("all may die at every step", async |lab| {
        lab.apply(&bare("Halted")).await?;
        for step in [Step::Asked, Step::Directory, Step::Emulator, Step::Process, Step::Running] {
            lab.act("virtualmachines", "s", "start").await?;
            reached(lab, step).await?;
            let before = uid(lab, "s").await?;
            new_server(lab).await?;
            runs(lab).await.with_context(|| format!("the agent died at {step:?}"))?;
            ensure!(
                uid(lab, "s").await? == before,
                "{step:?}: an agent that dies while it starts fails no instance"
            );
            lab.act("virtualmachines", "s", "stop").await?;
            lab.wait_vm("s", "Stopped", Deadline::SOON).await?;
            nothing_left(lab).await.with_context(|| format!("the agent died at {step:?}"))?;
        }
        for step in [Step::Told, Step::NoProcess, Step::NoDirectory] {
            lab.act("virtualmachines", "s", "start").await?;
            runs(lab).await?;
            lab.act("virtualmachines", "s", "stop").await?;
            reached(lab, step).await?;
            new_server(lab).await?;
            lab.wait_vm("s", "Stopped", Deadline::SOON).await.with_context(|| format!("died at {step:?}"))?;
            lab.wait_gone(VMI, Deadline::SOON).await?;
            nothing_left(lab).await.with_context(|| format!("the agent died at {step:?}"))?;
        }

        // QEMU and the emulator, as soon as they are there: under Always it is tried again.
        for (step, what) in [(Step::Process, "qemu-system-x86"), (Step::Emulator, "swtpm")] {
            lab.act("virtualmachines", "s", "start").await?;
            reached(lab, step).await?;
            kill(lab, what, Signal::KILL);
            runs(lab).await.with_context(|| format!("{what} was killed at its start"))?;
            lab.act("virtualmachines", "s", "stop").await?;
            kill(lab, what, Signal::KILL);
            lab.wait_vm("s", "Stopped", Deadline::SOON).await?;
            nothing_left(lab).await.with_context(|| format!("{what} was killed at its stop"))?;
        }

        // The emulator of a machine that runs: the guest goes on without its TPM, and has it again after its next start.
        lab.act("virtualmachines", "s", "start").await?;
        runs(lab).await?;
        let qemu = only_qemu(lab)?;
        kill(lab, "swtpm", Signal::KILL);
        reached(lab, Step::Running).await?;
        ensure!(only_qemu(lab)? == qemu, "the guest goes on");
        let before = uid(lab, "s").await?;
        lab.act("virtualmachines", "s", "restart").await?;
        let anew = |v: &Value| {
            v["metadata"]["uid"].as_str().is_some_and(|u| u != before) && v["status"]["phase"] == "Running"
        };
        lab.wait_object("a new instance to run", VMI, Deadline::SOON, anew).await?;
        runs(lab).await?;
        lab.kubectl(&["delete", "vm", "s", "--wait=false"]).await?.ok()?;
        lab.wait_gone(VM, Deadline::SOON).await?;
        nothing_left(lab).await
    })
}

/// Sends a signal to all processes of the node with this name.
fn kill(lab: &Lab, name: &str, signal: Signal) {
    for pid in lab.node_ref(1).named(name).into_iter().filter_map(Pid::from_raw) {
        // Gone meanwhile is as good.
        let _ = kill_process(pid, signal);
    }
}

/// QEMU is there, and does not say a word.
#[test]
fn a_qemu_that_hangs_holds_nobody_up() -> Result<()> {
    run("a QEMU that hangs holds nobody up", async |lab| {
        // The guest ignores the power button; then QEMU hangs while it is asked.
        lab.apply(&bare("Always")).await?;
        runs(lab).await?;
        kill(lab, "qemu-system-x86", Signal::STOP);
        lab.act("virtualmachines", "s", "stop").await?;
        lab.wait_vm("s", "Stopped", Deadline::SOON).await?;
        nothing_left(lab).await?;

        // It hangs before its agent comes: it is adopted, and may be ended.
        lab.act("virtualmachines", "s", "start").await?;
        runs(lab).await?;
        let hangs = only_qemu(lab)?;
        kill(lab, "qemu-system-x86", Signal::STOP);
        new_server(lab).await?;
        lab.act_with("virtualmachines", "s", "stop", r#"{"gracePeriod": 0}"#).await?;
        lab.wait_vm("s", "Stopped", Deadline::SOON).await?;
        ensure!(!lab.server().qemus().contains(&hangs), "it was ended");
        nothing_left(lab).await?;

        // Its instance is taken away by force and another wants its place: that waits, and says for what.
        lab.act("virtualmachines", "s", "start").await?;
        runs(lab).await?;
        let (hangs, before) = (only_qemu(lab)?, uid(lab, "s").await?);
        kill(lab, "qemu-system-x86", Signal::STOP);
        lab.kubectl(&["delete", "vmi", "s", "--wait=false"]).await?.ok()?;
        lab.kubectl(&["patch", "vmi", "s", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#])
            .await?;
        let anew = |v: &Value| v["metadata"]["uid"].as_str().is_some_and(|u| u != before);
        lab.wait_object("another instance", VMI, Deadline::SOON, anew).await?;
        wait_for("it to run, after the other", Deadline::GUEST, async || {
            let qemus = lab.node_ref(1).qemus();
            if qemus.len() > 1 {
                return Ok(Err(format!("two run at once: {qemus:?}")));
            }
            let vmi = lab.get(VMI).await.map_err(|e| format!("{e:#}"))?.unwrap_or_default();
            if vmi["status"]["phase"] != "Running" {
                return Err(vmi["status"].to_string());
            }
            Ok(if qemus.contains(&hangs) { Err("it runs beside the other".to_owned()) } else { Ok(()) })
        })
        .await?
        .map_err(anyhow::Error::msg)?;
        lab.kubectl(&["delete", "vm", "s", "--wait=false"]).await?.ok()?;
        lab.wait_gone(VM, Deadline::SOON).await?;
        nothing_left(lab).await
    })
}

/// QEMU's own words, and those of whoever opens a disk, are in the condition; and it heals.
#[test]
fn what_is_broken_is_named() -> Result<()> {
    run("what is broken is named", async |lab| {
        // A disk that is one file.
        lab.set_default_class("local").await?;
        // QEMU exits at once.
        let abacus = bare("Always").replace(r#""memory""#, r#""cpu":{"model":"abacus"},"memory""#);
        lab.apply(&abacus).await?;
        named(lab, "s", &["abacus"]).await?;
        lab.kubectl(&["delete", "vm", "s", "--wait=false"]).await?.ok()?;
        lab.wait_gone(VM, Deadline::SOON).await?;
        nothing_left(lab).await?;

        lab.import_small_guest().await?;
        lab.apply(&Lab::small_vm("s", "Always", "").replace("PeriodSeconds: 60", "PeriodSeconds: 0")).await?;
        lab.wait_vm("s", "Running", Deadline::GUEST).await?;
        let stop = async |lab: &Lab| {
            lab.act_with("virtualmachines", "s", "stop", r#"{"gracePeriod": 0}"#).await?;
            lab.wait_vm("s", "Stopped", Deadline::SOON).await
        };
        stop(lab).await?;
        let disk = only_disk(lab)?;
        let whole = std::fs::read(&disk).context("the disk")?;

        // A corrupt image.
        std::fs::write(&disk, [&b"MZ"[..], &whole[2..]].concat())?;
        lab.act("virtualmachines", "s", "start").await?;
        named(lab, "s", &["disk.qcow2"]).await?;
        ensure!(lab.server().qemus().is_empty(), "nothing runs");
        std::fs::write(&disk, &whole)?;
        lab.wait_vm("s", "Running", Deadline::SOON).await?;
        stop(lab).await?;

        // A disk that is gone.
        let away = disk.with_extension("away");
        std::fs::rename(&disk, &away)?;
        lab.act("virtualmachines", "s", "start").await?;
        named(lab, "s", &["s-root", "is missing on node"]).await?;
        std::fs::rename(&away, &disk)?;
        lab.wait_vm("s", "Running", Deadline::SOON).await?;
        stop(lab).await?;

        // Deletion ends from there, too.
        std::fs::rename(&disk, &away)?;
        lab.act("virtualmachines", "s", "start").await?;
        named(lab, "s", &["s-root", "is missing on node"]).await?;
        lab.kubectl(&["delete", "vm", "s", "--wait=false"]).await?.ok()?;
        lab.wait_gone(VM, Deadline::SOON).await?;
        nothing_left(lab).await
    })
}

/// The only qcow2 file of a volume.
fn only_disk(lab: &Lab) -> Result<PathBuf> {
    let volumes = std::fs::read_dir(lab.node_ref(1).data_dir().join("agent/volumes")).context("volumes")?;
    let mut disks = volumes.flatten().map(|v| v.path().join("disk.qcow2")).filter(|d| d.exists());
    disks.next().context("there is no disk")
}

/// Waits until a condition of the VM or of its instance has these words.
async fn named(lab: &Lab, name: &str, words: &[&str]) -> Result<()> {
    wait_for(&format!("a condition with {words:?}"), Deadline::SOON, async || {
        let mut all = String::new();
        for object in [lab.vm(name).await, lab.vmi(name).await] {
            let object = object.map_err(|e| format!("{e:#}"))?.unwrap_or_default();
            for kind in ["Ready", "Synchronized", "Failure"] {
                let (status, reason, message) = condition(&object, kind);
                all.push_str(&format!("{kind} {status} {reason}: {message}\n"));
            }
        }
        if !words.iter().all(|w| all.contains(w)) {
            return Err(all);
        }
        eprintln!("lab: it says:\n{all}");
        Ok(())
    })
    .await
}
