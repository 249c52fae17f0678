//! Machines that are changed while they run: disks, discs, NICs, processors, memory, limits. The guest never stops; its
//! console and its QEMU are the same before and after.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sheaf_lab::{Deadline, Lab, condition, run};

use crate::life::{only_qemu, uid};

const VMI: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances/a";
const VM: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines/a";

fn claim(name: &str, size: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{accessModes: [ReadWriteOnce], volumeMode: Block, resources: {{requests: {{storage: {size}}}}}}}\n"
    )
}

/// The status of a volume of the instance.
fn volume<'a>(vmi: &'a Value, name: &str) -> Option<&'a Value> {
    vmi["status"]["volumeStatus"].as_array()?.iter().find(|v| v["name"] == name)
}

async fn patch(lab: &Lab, kind: &str, patch: &Value) -> Result<()> {
    let args = ["patch", kind, "a", "--type=json", "-p", &patch.to_string()];
    lab.kubectl(&args).await?.ok().map(drop)
}

/// Everything in one life of one guest, as its boot takes the most time.
#[test]
fn a_running_guest_is_changed() -> Result<()> {
    run("a running guest is changed", async |lab| {
        lab.import_small_guest().await?;
        lab.server().ip(&["link", "add", "lab-br", "type", "bridge"])?;
        lab.server().ip(&["link", "set", "lab-br", "up"])?;
        for (name, bridge) in [("one", "lab-br"), ("two", "lab-br2")] {
            let config =
                format!(r#"{{"cniVersion":"0.3.1","name":"{name}","type":"bridge","bridge":"{bridge}"}}"#);
            lab.apply(&format!(
                "apiVersion: k8s.cni.cncf.io/v1\nkind: NetworkAttachmentDefinition\nmetadata: {{name: {name}, namespace: default}}\n\
                 spec: {{config: '{config}'}}\n"
            ))
            .await?;
        }
        lab.server().ip(&["link", "add", "lab-br2", "type", "bridge"])?;
        lab.server().ip(&["link", "set", "lab-br2", "up"])?;
        // Memory enough to grow, and a drive without a disc. Not SATA: the guest's kernel has no driver for it.
        let manifest = Lab::small_vm("a", "Always", "")
            .replace("guest: 160Mi", "guest: 1Gi")
            .replace("cores: 1", "cores: 1\n          sockets: 1")
            .replace("            - name: cloudinit\n              disk", "            - name: cd\n              cdrom:\n                bus: scsi\n            - name: cloudinit\n              disk");
        lab.apply(&manifest).await?;
        for (name, size) in [("data", "32Mi"), ("fast", "16Mi"), ("disc", "16Mi")] {
            lab.apply(&claim(name, size)).await?;
        }
        let console = lab.console("a").await?;
        console.wait_mark("SHEAF-GUEST ready", Deadline::GUEST).await?;
        let (qemu, instance) = (only_qemu(lab)?, uid(lab, "a").await?);

        disks(lab, &console).await?;
        discs(lab, &console).await?;
        nics(lab, &console).await?;
        sizes(lab, &console).await?;

        ensure!(only_qemu(lab)? == qemu, "the same QEMU");
        ensure!(uid(lab, "a").await? == instance, "the same instance");
        survives(lab).await
    })
}

async fn disks(lab: &mut Lab, console: &sheaf_lab::Console) -> Result<()> {
    let add = |name: &str, bus: &str| {
        json!({"name": name, "disk": {"disk": {"bus": bus}, "serial": name}, "volumeSource": {"persistentVolumeClaim": {"claimName": name}}})
            .to_string()
    };
    lab.act_with("virtualmachines", "a", "addvolume", &add("data", "scsi")).await?;
    let again = lab.act_with("virtualmachines", "a", "addvolume", &add("data", "scsi")).await;
    let said = format!("{:#}", again.err().context("a second time")?);
    ensure!(
        said.contains("Unable to add volume [data] because volume with that name already exists"),
        "{said}"
    );
    let ready =
        |name: &'static str| move |vmi: &Value| volume(vmi, name).is_some_and(|v| v["phase"] == "Ready");
    let vmi = lab.wait_object("the disk to be ready", VMI, Deadline::GUEST, ready("data")).await?;
    let status = volume(&vmi, "data").context("its status")?;
    // The drive of the disc is the first with such a name.
    ensure!(status["hotplugVolume"].is_object() && status["target"] == "sdb", "{status}");
    ensure!(status["persistentVolumeClaimInfo"]["claimName"] == "data", "{status}");
    console.type_line("sleep 1; cat /sys/block/sda/size").await?;
    console.wait_line("65536", Deadline::GUEST).await?;

    // By the spec alone, as Argo CD does it; a virtio disk needs a port of its own.
    patch(lab, "vm", &json!([
        {"op": "add", "path": "/spec/template/spec/domain/devices/disks/-", "value": {"name": "fast", "disk": {"bus": "virtio"}}},
        {"op": "add", "path": "/spec/template/spec/volumes/-",
            "value": {"name": "fast", "persistentVolumeClaim": {"claimName": "fast", "hotpluggable": true}}},
    ]))
    .await?;
    lab.wait_object("the second disk", VMI, Deadline::GUEST, ready("fast")).await?;
    console.type_line("sleep 2; cat /sys/block/vd?/size | tr '\\n' ,").await?;
    console.wait_line(",32768,", Deadline::GUEST).await?;

    // It grows with its claim.
    lab.kubectl(&["patch", "pvc", "data", "-p", r#"{"spec":{"resources":{"requests":{"storage":"64Mi"}}}}"#])
        .await?
        .ok()?;
    let grown = |pvc: &Value| {
        pvc["status"]["capacity"]["storage"].as_str().is_some_and(|s| s == "64Mi" || s == "67108864")
    };
    let path = "/api/v1/namespaces/default/persistentvolumeclaims/data";
    lab.wait_object("the claim to grow", path, Deadline::GUEST, grown).await?;
    console.type_line("cat /sys/block/sda/size").await?;
    console.wait_line("131072", Deadline::GUEST).await?;

    // Its use is limited, and not any more.
    for limits in [r#"{"data": {"iops": 50, "iopsBurst": 100}}"#, "{}"] {
        let merge =
            json!({"spec": {"template": {"metadata": {"annotations": {"sheaf.io/disk-limits": limits}}}}});
        lab.kubectl(&["patch", "vm", "a", "--type=merge", "-p", &merge.to_string()]).await?.ok()?;
        let annotated = |vmi: &Value| vmi["metadata"]["annotations"]["sheaf.io/disk-limits"] == limits;
        lab.wait_object("the limits to reach the instance", VMI, Deadline::SOON, annotated).await?;
    }

    for name in ["data", "fast"] {
        lab.act_with("virtualmachines", "a", "removevolume", &json!({"name": name}).to_string()).await?;
        let gone = |vmi: &Value| volume(vmi, name).is_none();
        lab.wait_object("the disk to go", VMI, Deadline::GUEST, gone).await?;
    }
    console.type_line("ls -d /sys/block/sda || echo no-such-$((1+1))").await?;
    console.wait_line("no-such-2", Deadline::GUEST).await?;
    let said = lab.act_with("virtualmachines", "a", "removevolume", r#"{"name": "root"}"#).await;
    let said = format!("{:#}", said.err().context("the root disk stays")?);
    ensure!(said.contains("Unable to remove volume [root] because it is not hotpluggable"), "{said}");
    Ok(())
}

async fn discs(lab: &mut Lab, console: &sheaf_lab::Console) -> Result<()> {
    let volume_of =
        json!({"name": "cd", "persistentVolumeClaim": {"claimName": "disc", "hotpluggable": true}});
    patch(lab, "vm", &json!([{"op": "add", "path": "/spec/template/spec/volumes/-", "value": volume_of}]))
        .await?;
    let ready = |vmi: &Value| volume(vmi, "cd").is_some_and(|v| v["phase"] == "Ready");
    lab.wait_object("the disc to be in", VMI, Deadline::GUEST, ready).await?;
    console
        .type_line("dd if=/dev/sr0 of=/dev/null bs=1M count=1 2>&1 | tail -n 1; cat /sys/block/sr0/size")
        .await?;
    console.wait_line("32768", Deadline::GUEST).await?;
    let vm = lab.get(VM).await?.context("the VM")?;
    let at = vm["spec"]["template"]["spec"]["volumes"]
        .as_array()
        .and_then(|v| v.iter().position(|v| v["name"] == "cd"));
    let path = format!("/spec/template/spec/volumes/{}", at.context("the disc's volume")?);
    patch(lab, "vm", &json!([{"op": "remove", "path": path}])).await?;
    let out = |vmi: &Value| volume(vmi, "cd").is_none();
    lab.wait_object("the disc to be out", VMI, Deadline::GUEST, out).await?;
    let vm = lab.get(VM).await?.context("the VM")?;
    ensure!(
        condition(&vm, "RestartRequired").0.is_empty(),
        "discs need no restart: {:?}",
        condition(&vm, "RestartRequired")
    );
    Ok(())
}

async fn nics(lab: &mut Lab, console: &sheaf_lab::Console) -> Result<()> {
    patch(lab, "vm", &json!([
        {"op": "add", "path": "/spec/template/spec/domain/devices/interfaces/-", "value": {"name": "extra", "bridge": {}}},
        {"op": "add", "path": "/spec/template/spec/networks/-",
            "value": {"name": "extra", "multus": {"networkName": "default/one"}}},
    ]))
    .await?;
    let nic = |vmi: &Value| {
        let all = vmi["status"]["interfaces"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|i| i["name"] == "extra")
    };
    lab.wait_object("the NIC", VMI, Deadline::GUEST, |vmi| nic(vmi).is_some()).await?;
    console.type_line("sleep 2; ls /sys/class/net | tr '\\n' ,").await?;
    console.wait_line("eth1,", Deadline::GUEST).await?;
    let members = lab.server().ip(&["-o", "link", "show", "master", "lab-br"])?;
    ensure!(members.lines().count() == 1, "the tap is on the bridge: {members}");

    // Another network, and no cable.
    let at = "/spec/template/spec/networks/1/multus/networkName";
    patch(lab, "vm", &json!([{"op": "replace", "path": at, "value": "default/two"}])).await?;
    let deadline = Deadline::SOON;
    sheaf_lab::wait_for("the tap to move", deadline, async || {
        let members =
            lab.server().ip(&["-o", "link", "show", "master", "lab-br2"]).map_err(|e| e.to_string())?;
        if members.lines().count() == 1 { Ok(()) } else { Err(format!("on lab-br2: {members:?}")) }
    })
    .await?;
    let state = "/spec/template/spec/domain/devices/interfaces/1/state";
    patch(lab, "vm", &json!([{"op": "add", "path": state, "value": "down"}])).await?;
    lab.wait_object("the cable to be out", VMI, Deadline::SOON, |vmi| {
        nic(vmi).is_some_and(|n| n["linkState"] == "down")
    })
    .await?;
    patch(lab, "vm", &json!([{"op": "replace", "path": state, "value": "absent"}])).await?;
    lab.wait_object("the NIC to go", VMI, Deadline::GUEST, |vmi| nic(vmi).is_none()).await?;
    let tidy =
        |vm: &Value| vm["spec"]["template"]["spec"]["networks"].as_array().is_some_and(|n| n.len() == 1);
    let vm = lab.wait_object("its entries to go", VM, Deadline::SOON, tidy).await?;
    ensure!(condition(&vm, "RestartRequired").0.is_empty(), "NICs need no restart");
    Ok(())
}

async fn sizes(lab: &mut Lab, console: &sheaf_lab::Console) -> Result<()> {
    patch(
        lab,
        "vm",
        &json!([
            {"op": "replace", "path": "/spec/template/spec/domain/cpu/sockets", "value": 2},
            {"op": "replace", "path": "/spec/template/spec/domain/memory/guest", "value": "1536Mi"},
        ]),
    )
    .await?;
    let sockets = |vmi: &Value| vmi["status"]["currentCPUTopology"]["sockets"] == 2;
    lab.wait_object("a second processor", VMI, Deadline::GUEST, sockets).await?;
    console.type_line("sleep 1; ls -d /sys/devices/system/cpu/cpu1 && echo cpu-$((0+1))").await?;
    console.wait_line("cpu-1", Deadline::GUEST).await?;
    // The guest has taken it when it says so; until then the condition is there.
    let grown = |vmi: &Value| vmi["status"]["memory"]["guestCurrent"] == "1536Mi";
    let vmi = lab.wait_object("the guest to take its memory", VMI, Deadline::GUEST, grown).await?;
    ensure!(condition(&vmi, "HotMemoryChange").0.is_empty(), "it is done");
    ensure!(vmi["status"]["memory"]["guestAtBoot"] == "1Gi", "{}", vmi["status"]["memory"]);

    // What cannot change in a running machine waits, and says so.
    patch(lab, "vm", &json!([{"op": "replace", "path": "/spec/template/spec/domain/cpu/cores", "value": 2}]))
        .await?;
    let told = |vm: &Value| condition(vm, "RestartRequired").0 == "True";
    let vm = lab.wait_object("RestartRequired", VM, Deadline::SOON, told).await?;
    ensure!(
        condition(&vm, "RestartRequired").2.contains("non-live-updatable field"),
        "{:?}",
        condition(&vm, "RestartRequired")
    );
    patch(lab, "vm", &json!([{"op": "replace", "path": "/spec/template/spec/domain/cpu/cores", "value": 1}]))
        .await?;
    let settled = |vm: &Value| condition(vm, "RestartRequired").0.is_empty();
    lab.wait_object("no more RestartRequired", VM, Deadline::SOON, settled).await?;
    Ok(())
}

/// An agent that is killed while a disk is plugged in finds the machine as it is, and takes the disk out again.
async fn survives(lab: &mut Lab) -> Result<()> {
    let options = json!({"name": "data", "disk": {"disk": {"bus": "scsi"}}, "volumeSource": {"persistentVolumeClaim": {"claimName": "data"}}});
    lab.act_with("virtualmachines", "a", "addvolume", &options.to_string()).await?;
    let ready = |vmi: &Value| volume(vmi, "data").is_some_and(|v| v["phase"] == "Ready");
    lab.wait_object("the disk to be ready", VMI, Deadline::GUEST, ready).await?;
    lab.server().kill().await?;
    lab.server().start()?;
    lab.server_ready().await?;
    lab.act_with("virtualmachines", "a", "removevolume", r#"{"name": "data"}"#).await?;
    let gone = |vmi: &Value| volume(vmi, "data").is_none() && vmi["status"]["phase"] == "Running";
    lab.wait_object("the disk to go", VMI, Deadline::GUEST, gone).await?;
    Ok(())
}
