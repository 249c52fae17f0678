//! What a machine was is kept and brought back: snapshots of one that runs, restores, clones. And the Pod that stands for it.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sheaf_lab::{Deadline, Lab, condition, run};

use crate::life::uid;

const SNAPSHOTS: &str = "/apis/snapshot.kubevirt.io/v1beta1/namespaces/default";
const VM: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines/a";
const VMI: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances/a";

fn snapshot(name: &str) -> String {
    format!(
        "apiVersion: snapshot.kubevirt.io/v1beta1\nkind: VirtualMachineSnapshot\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{source: {{apiGroup: kubevirt.io, kind: VirtualMachine, name: a}}}}\n"
    )
}

/// What is written after the snapshot is gone after the restore; the VM is stopped and started by nobody but us.
#[test]
fn a_snapshot_is_taken_and_brought_back() -> Result<()> {
    run("a snapshot is taken and brought back", async |lab| {
        lab.import_small_guest().await?;
        lab.apply(&Lab::small_vm("a", "Always", "")).await?;
        let console = lab.console("a").await?;
        console.wait_mark("SHEAF-GUEST ready", Deadline::GUEST).await?;
        // The agent in the guest answers, and freezes: there is no file system on the disk, so nothing is held up.
        let agent = |vmi: &Value| condition(vmi, "AgentConnected").0 == "True";
        lab.wait_object("the guest agent", VMI, Deadline::GUEST, agent).await?;
        let write = "printf 'MARK-%s' before | dd of=/dev/vda bs=512 seek=2000 conv=notrunc,fsync 2>/dev/null; echo written-$((1+1))";
        console.type_line(write).await?;
        console.wait_line("written-2", Deadline::GUEST).await?;

        lab.apply(&snapshot("s1")).await?;
        let path = format!("{SNAPSHOTS}/virtualmachinesnapshots/s1");
        let ready = |s: &Value| s["status"]["readyToUse"] == true;
        let made = lab.wait_object("the snapshot", &path, Deadline::GUEST, ready).await?;
        let status = &made["status"];
        ensure!(
            status["phase"] == "Succeeded" && status["indications"] == json!(["Online", "GuestAgent"]),
            "{status}"
        );
        ensure!(status["snapshotVolumes"]["includedVolumes"] == json!(["root"]), "{status}");
        lab.wait_vm("a", "Running", Deadline::SOON).await?;
        // The snapshot is ready first; then the VM is let go.
        let unlocked = |vm: &Value| vm["status"]["snapshotInProgress"].is_null();
        lab.wait_object("the VM to be unlocked", VM, Deadline::SOON, unlocked).await?;

        console.type_line(&write.replace("before", "after-").replace("1+1", "1+2")).await?;
        console.wait_line("written-3", Deadline::GUEST).await?;
        let before = uid(lab, "a").await?;
        lab.apply(
            "apiVersion: snapshot.kubevirt.io/v1beta1\nkind: VirtualMachineRestore\nmetadata: {name: r1, namespace: default}\n\
             spec: {target: {apiGroup: kubevirt.io, kind: VirtualMachine, name: a}, virtualMachineSnapshotName: s1}\n",
        )
        .await?;
        let path = format!("{SNAPSHOTS}/virtualmachinerestores/r1");
        let complete = |r: &Value| r["status"]["complete"] == true;
        let done = lab.wait_object("the restore", &path, Deadline::GUEST, complete).await?;
        ensure!(done["status"]["restores"][0]["volumeName"] == "root", "{}", done["status"]);
        let again = |vmi: &Value| {
            vmi["status"]["phase"] == "Running"
                && vmi["metadata"]["uid"].as_str().is_some_and(|u| u != before)
        };
        lab.wait_object("the VM to run again", VMI, Deadline::GUEST, again).await?;
        let console = lab.console("a").await?;
        console.wait_mark("SHEAF-GUEST ready", Deadline::GUEST).await?;
        console.type_line("dd if=/dev/vda bs=512 skip=2000 count=1 2>/dev/null | tr -d '\\0'; echo").await?;
        let found = console.wait_line("MARK-", Deadline::GUEST).await?;
        ensure!(found.contains("MARK-before"), "what the disk holds: {found}");
        let vm = lab.get(VM).await?.context("the VM")?;
        ensure!(vm["spec"]["runStrategy"] == "Always", "it runs as before: {}", vm["spec"]["runStrategy"]);

        // A second machine of the same snapshot, with an identity of its own.
        lab.apply(
            "apiVersion: clone.kubevirt.io/v1beta1\nkind: VirtualMachineClone\nmetadata: {name: c1, namespace: default}\n\
             spec: {source: {apiGroup: snapshot.kubevirt.io, kind: VirtualMachineSnapshot, name: s1}, \
             target: {apiGroup: kubevirt.io, kind: VirtualMachine, name: b}}\n",
        )
        .await?;
        let path = "/apis/clone.kubevirt.io/v1beta1/namespaces/default/virtualmachineclones/c1";
        lab.wait_object("the clone", path, Deadline::GUEST, |c| c["status"]["phase"] == "Succeeded").await?;
        let clone = lab.get(&VM.replace("machines/a", "machines/b")).await?.context("the clone's VM")?;
        let firmware = |vm: &Value| vm["spec"]["template"]["spec"]["domain"]["firmware"]["uuid"].clone();
        ensure!(firmware(&clone) != firmware(&vm) && firmware(&clone).is_string(), "{}", firmware(&clone));
        lab.act_with("virtualmachines", "b", "stop", r#"{"gracePeriod": 0}"#).await?;

        // Deleted, and its copies with it.
        lab.kubectl(&["delete", "vmsnapshot", "s1", "--wait=false"]).await?.ok()?;
        lab.wait_gone(&format!("{SNAPSHOTS}/virtualmachinesnapshots/s1"), Deadline::SOON).await?;
        let dir = lab.server().data_dir().join("agent/snapshots");
        let left = std::fs::read_dir(&dir).map(Iterator::count).unwrap_or(0);
        ensure!(left == 0, "{left} copies are left in {}", dir.display());
        Ok(())
    })
}

/// The Pod says what the machine does, metrics count it, and what is done to the Pod is done to the machine.
#[test]
fn a_pod_stands_for_a_machine() -> Result<()> {
    run("a pod stands for a machine", async |lab| {
        lab.import_small_guest().await?;
        lab.apply(
            "apiVersion: instancetype.kubevirt.io/v1beta1\nkind: VirtualMachineClusterInstancetype\nmetadata: {name: tiny}\n\
             spec: {cpu: {guest: 1}, memory: {guest: 176Mi}}\n",
        )
        .await?;
        let sized = Lab::small_vm("a", "RerunOnFailure", "")
            .replace("  template:\n", "  instancetype:\n    name: tiny\n  template:\n")
            .replace("        cpu:\n          cores: 1\n        memory:\n          guest: 160Mi\n", "");
        // A size beside the type contradicts it.
        let both = sized.replace("        devices:\n", "        memory: {guest: 1Gi}\n        devices:\n");
        let said = lab.kubectl_input(&["apply", "-f", "-"], Some(&both)).await?.refused()?;
        ensure!(said.contains("spec.template.spec.domain.memory.guest"), "{said}");
        lab.apply(&sized).await?;
        let console = lab.console("a").await?;
        console.wait_mark("SHEAF-GUEST ready", Deadline::GUEST).await?;
        let vmi = lab.vmi("a").await?.context("the instance")?;
        ensure!(vmi["spec"]["domain"]["memory"]["guest"] == "176Mi", "{}", vmi["spec"]["domain"]["memory"]);
        ensure!(vmi["metadata"]["annotations"]["kubevirt.io/cluster-instancetype-name"] == "tiny");

        let selector = format!("kubevirt.io/created-by={}", uid(lab, "a").await?);
        let pods = format!(
            "/api/v1/namespaces/default/pods?labelSelector={}",
            selector.replace('/', "%2F").replace('=', "%3D")
        );
        let running = |all: &Value| {
            let pod = &all["items"][0];
            pod["status"]["phase"] == "Running" && pod["status"]["podIP"].is_string()
        };
        let all = lab.wait_object("the pod", &pods, Deadline::SOON, running).await?;
        let pod = &all["items"][0];
        let name = pod["metadata"]["name"].as_str().context("its name")?.to_owned();
        ensure!(name.starts_with("virt-launcher-a-"), "{name}");
        let vmi = lab
            .wait_object("the pod to be noted", VMI, Deadline::SOON, |v| {
                v["status"]["activePods"].is_object()
            })
            .await?;
        ensure!(
            vmi["status"]["activePods"][pod["metadata"]["uid"].as_str().unwrap_or_default()] == "node1",
            "{}",
            vmi["status"]["activePods"]
        );

        let metrics = lab.kubectl(&["get", "--raw", "/metrics"]).await?.ok()?;
        for part in [
            r#"harvester_vm_status{name="a",namespace="default",status="Running"} 1"#,
            r#"kubevirt_vmi_storage_iops_read_total{node="node1",namespace="default",name="a",drive="root""#,
            r#"kubevirt_vmi_network_receive_bytes_total{node="node1",namespace="default",name="a",interface="default""#,
            r#"instance_type="tiny""#,
        ] {
            ensure!(metrics.contains(part), "{part} is not among\n{metrics}");
        }

        // The guest agent: what it tells, a freeze that ends by itself, and a reset.
        let agent = |vmi: &Value| condition(vmi, "AgentConnected").0 == "True";
        lab.wait_object("the guest agent", VMI, Deadline::GUEST, agent).await?;
        let base = "/apis/subresources.kubevirt.io/v1/namespaces/default/virtualmachineinstances/a";
        let info = lab.kubectl(&["get", "--raw", &format!("{base}/guestosinfo")]).await?.ok()?;
        ensure!(info.contains("guestAgentVersion"), "{info}");
        let missing = lab.act_with("virtualmachineinstances", "a", "freeze", "{}").await;
        ensure!(missing.is_err(), "a freeze without a timeout");
        lab.act_with("virtualmachineinstances", "a", "freeze", r#"{"unfreezeTimeout": "2s"}"#).await?;
        let thawed = |vmi: &Value| vmi["status"]["fsFreezeStatus"].is_null();
        lab.wait_object("the guest to thaw by itself", VMI, Deadline::SOON, thawed).await?;
        lab.act("virtualmachineinstances", "a", "unfreeze").await?;

        // Deleting the Pod shuts the guest down; under RerunOnFailure it stays down.
        lab.kubectl(&["delete", "pod", &name, "--wait=false"]).await?.ok()?;
        console.wait_line("SHEAF-GUEST power button", Deadline::GUEST).await?;
        lab.wait_vm("a", "Stopped", Deadline::GUEST).await?;
        lab.wait_gone(&format!("/api/v1/namespaces/default/pods/{name}"), Deadline::SOON).await?;
        Ok(())
    })
}
