//! What a guest has in its memory, and who may look at it: a user for each guest, snapshots with memory, dumps of memory.
//! And a VM that is written again as it is, or that a quota is against.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sheaf_lab::{Deadline, Lab, condition, run};

use crate::life::{only_qemu, uid};

const SNAPSHOTS: &str = "/apis/snapshot.kubevirt.io/v1beta1/namespaces/default";
const VM: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines/a";
const VMI: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances/a";
/// The first user that a guest's processes may have.
const FIRST_USER: u32 = 1_900_000_000;

/// Everything in the life of one guest, as its boot takes the most time.
#[test]
fn what_a_guest_has_in_mind() -> Result<()> {
    run("what a guest has in mind", async |lab| {
        // Memory is kept with local volumes only.
        lab.set_default_class("local").await?;
        lab.import_small_guest().await?;
        let manifest = Lab::small_vm("a", "Always", "");
        lab.apply(&manifest).await?;
        let again = lab.apply(&manifest).await?;
        ensure!(again.contains("virtualmachine.kubevirt.io/a unchanged"), "written again as it is: {again}");
        let console = lab.console("a").await?;
        console.wait_mark("SHEAF-GUEST ready", Deadline::GUEST).await?;
        addresses(lab).await?;
        isolated(lab)?;

        console.type_line("MIND=kept-in-$((40+2)); echo $MIND").await?;
        console.wait_line("kept-in-42", Deadline::GUEST).await?;
        snapshot(lab).await?;
        console.type_line("echo still-$MIND").await?;
        console.wait_line("still-kept-in-42", Deadline::GUEST).await?;
        console.type_line("MIND=lost; echo forgot-$MIND").await?;
        console.wait_line("forgot-lost", Deadline::GUEST).await?;

        restore(lab).await?;
        let console = lab.console("a").await?;
        console.type_line("echo back-$MIND").await?;
        console.wait_line("back-kept-in-42", Deadline::GUEST).await?;

        dump(lab).await?;
        quota(lab).await?;
        lab.kubectl(&["delete", "vm", "a", "--wait=false"]).await?.ok()?;
        order(lab).await
    })
}

/// The address of the NIC is the VM's for good, and not in the spec that its user wrote.
async fn addresses(lab: &Lab) -> Result<()> {
    let vm = lab.get(VM).await?.context("the VM")?;
    let spec = &vm["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"][0];
    ensure!(spec.get("macAddress").is_none(), "{spec}");
    let text = vm["metadata"]["annotations"]["harvesterhci.io/mac-address"].as_str().unwrap_or_default();
    let settled: Value = serde_json::from_str(text).with_context(|| format!("the annotation {text:?}"))?;
    let vmi = lab.get(VMI).await?.context("the instance")?;
    ensure!(
        vmi["spec"]["domain"]["devices"]["interfaces"][0]["macAddress"] == settled["default"],
        "{}",
        vmi["spec"]
    );
    ensure!(vmi["status"]["interfaces"][0]["mac"] == settled["default"], "{}", vmi["status"]["interfaces"]);
    Ok(())
}

/// The guest's QEMU is a user of its own, without rights, who cannot read any disk by name: neither its own nor another's.
fn isolated(lab: &mut Lab) -> Result<()> {
    let pid = only_qemu(lab)?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("its status")?;
    let field = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
        line.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let user: u32 = field("Uid:").first().and_then(|u| u.parse().ok()).context("a user")?;
    ensure!(user >= FIRST_USER && field("Gid:")[0] == user.to_string(), "{status}");
    ensure!(field("CapEff:")[0] == "0000000000000000" && field("Seccomp:")[0] == "2", "{status}");
    let disks = lab.server().data_dir().join("agent/volumes");
    let disk = std::fs::read_dir(&disks)
        .context("the volumes")?
        .flatten()
        .map(|volume| volume.path().join("disk.qcow2"))
        .find(|disk| disk.exists());
    let disk = disk.with_context(|| format!("no disk is below {}", disks.display()))?;
    for user in [user, user + 1] {
        let user = user.to_string();
        let out = std::process::Command::new("setpriv")
            .args(["--reuid", &user, "--regid", &user, "--clear-groups", "cat"])
            .arg(&disk)
            .output()
            .context("running setpriv")?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        ensure!(
            !out.status.success() && said.contains("Permission denied"),
            "user {user} and {}: {said}",
            disk.display()
        );
    }
    Ok(())
}

async fn snapshot(lab: &Lab) -> Result<()> {
    lab.apply(
        "apiVersion: snapshot.kubevirt.io/v1beta1\nkind: VirtualMachineSnapshot\n\
         metadata: {name: s1, namespace: default, annotations: {sheaf.io/memory: \"true\"}}\n\
         spec: {source: {apiGroup: kubevirt.io, kind: VirtualMachine, name: a}}\n",
    )
    .await?;
    let path = format!("{SNAPSHOTS}/virtualmachinesnapshots/s1");
    let ready = |s: &Value| s["status"]["readyToUse"] == true;
    let made = lab.wait_object("the snapshot", &path, Deadline::GUEST, ready).await?;
    ensure!(made["status"]["indications"] == json!(["Online", "Memory"]), "{}", made["status"]);
    let unlocked = |vm: &Value| vm["status"]["snapshotInProgress"].is_null();
    lab.wait_object("the VM to be unlocked", VM, Deadline::SOON, unlocked).await.map(drop)
}

async fn restore(lab: &Lab) -> Result<()> {
    let before = uid(lab, "a").await?;
    lab.apply(
        "apiVersion: snapshot.kubevirt.io/v1beta1\nkind: VirtualMachineRestore\nmetadata: {name: r1, namespace: default}\n\
         spec: {target: {apiGroup: kubevirt.io, kind: VirtualMachine, name: a}, virtualMachineSnapshotName: s1}\n",
    )
    .await?;
    let complete = |r: &Value| r["status"]["complete"] == true;
    let path = format!("{SNAPSHOTS}/virtualmachinerestores/r1");
    lab.wait_object("the restore", &path, Deadline::GUEST, complete).await?;
    let again = |vmi: &Value| {
        vmi["status"]["phase"] == "Running" && vmi["metadata"]["uid"].as_str().is_some_and(|u| u != before)
    };
    lab.wait_object("the VM to run again", VMI, Deadline::GUEST, again).await?;
    let once = |vm: &Value| vm["metadata"]["annotations"].get("sheaf.io/resume-from").is_none();
    lab.wait_object("the next start to be an ordinary one", VM, Deadline::SOON, once).await.map(drop)
}

async fn dump(lab: &mut Lab) -> Result<()> {
    let ask = json!({"claimName": "dump"}).to_string();
    let refused = lab.act_with("virtualmachines", "a", "memorydump", &ask).await;
    let said = format!("{:#}", refused.err().context("without a claim")?);
    ensure!(said.contains("\"dump\" not found"), "{said}");
    lab.apply(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: dump, namespace: default}\n\
         spec: {accessModes: [ReadWriteOnce], volumeMode: Block, resources: {requests: {storage: 256Mi}}}\n",
    )
    .await?;
    lab.act_with("virtualmachines", "a", "memorydump", &ask).await?;
    let done = |vm: &Value| vm["status"]["memoryDumpRequest"]["phase"] == "Completed";
    let vm = lab.wait_object("the dump", VM, Deadline::GUEST, done).await?;
    let file = vm["status"]["memoryDumpRequest"]["fileName"].as_str().unwrap_or_default().to_owned();
    ensure!(
        file.starts_with("a-dump-") && file.ends_with(".memory.dump"),
        "{}",
        vm["status"]["memoryDumpRequest"]
    );
    let claim =
        lab.get("/api/v1/namespaces/default/persistentvolumeclaims/dump").await?.context("the claim")?;
    ensure!(
        claim["metadata"]["annotations"]["kubevirt.io/memory-dump"] == file.as_str(),
        "{}",
        claim["metadata"]
    );
    let volume = claim["spec"]["volumeName"].as_str().context("its volume")?;
    let content = lab.server().data_dir().join("agent/volumes").join(volume).join("disk.img");
    let mut head = [0; 4];
    std::io::Read::read_exact(&mut std::fs::File::open(&content).context("the volume")?, &mut head)?;
    ensure!(&head == b"\x7fELF", "the volume begins with {head:?}");

    lab.act("virtualmachines", "a", "removememorydump").await?;
    let gone = |vm: &Value| {
        let volumes = vm["spec"]["template"]["spec"]["volumes"].as_array();
        vm["status"]["memoryDumpRequest"].is_null()
            && volumes.is_some_and(|v| v.iter().all(|v| v["name"] != "dump"))
    };
    let vm = lab.wait_object("the dump to be let go", VM, Deadline::SOON, gone).await?;
    ensure!(condition(&vm, "RestartRequired").0.is_empty(), "{}", vm["status"]["conditions"]);
    Ok(())
}

/// A VM that a quota is against says so, and starts when there is room.
async fn quota(lab: &Lab) -> Result<()> {
    lab.apply(
        "apiVersion: v1\nkind: ResourceQuota\nmetadata: {name: few, namespace: default}\n\
         spec: {hard: {count/virtualmachineinstances.kubevirt.io: \"1\"}}\n",
    )
    .await?;
    let used = |q: &Value| q["status"]["used"]["count/virtualmachineinstances.kubevirt.io"] == "1";
    let path = "/api/v1/namespaces/default/resourcequotas/few";
    lab.wait_object("the quota to be counted", path, Deadline::SOON, used).await?;
    lab.apply(&Lab::small_vm("b", "Always", "")).await?;
    let vm = lab.wait_vm("b", "ErrorUnschedulable", Deadline::SOON).await?;
    let (status, reason, message) = condition(&vm, "Failure");
    ensure!(
        status == "True" && reason == "FailedCreate" && message.contains("exceeded quota: few"),
        "{message}"
    );
    lab.kubectl(&["delete", "resourcequota", "few"]).await?.ok()?;
    lab.wait_vm("b", "Running", Deadline::GUEST).await?;
    lab.kubectl(&["delete", "vm", "b", "--wait=false"]).await?.ok().map(drop)
}

/// A VM starts when the one that it names is ready; a circle is refused.
async fn order(lab: &Lab) -> Result<()> {
    let halted = Lab::small_vm("first", "Halted", "");
    lab.apply(&halted).await?;
    let second = Lab::small_vm("second", "Always", "").replace(
        "metadata:\n  name: second\n  namespace: default\nspec:\n  runStrategy",
        "metadata:\n  name: second\n  namespace: default\n  annotations: {sheaf.io/start-after: first}\nspec:\n  runStrategy",
    );
    lab.apply(&second).await?;
    let path = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines/second";
    let waits =
        |vm: &Value| condition(vm, "Waiting").2.contains("waits for VirtualMachine first to be ready");
    lab.wait_object("the second to wait", path, Deadline::SOON, waits).await?;
    let circle = lab.kubectl(&["annotate", "vm", "first", "sheaf.io/start-after=second"]).await?.refused()?;
    ensure!(circle.contains("first -> second -> first"), "{circle}");
    ensure!(lab.vmi("second").await?.is_none(), "it does not run");
    lab.act("virtualmachines", "first", "start").await?;
    lab.wait_vm("second", "Running", Deadline::GUEST).await?;
    let vm = lab.get(path).await?.context("the second")?;
    ensure!(condition(&vm, "Waiting").0.is_empty(), "{}", vm["status"]["conditions"]);
    Ok(())
}
