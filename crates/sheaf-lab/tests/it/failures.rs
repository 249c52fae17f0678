//! Guests that fail: a watchdog that is not fed, a kernel that panics, a disk whose file system is full. What the machine does
//! then, and what its objects say, is as upstream has it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sheaf_lab::{Console, Deadline, Lab, condition, run, wait_for};

use crate::life::{only_qemu, uid};
use crate::small::Small;

const VMI: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances/a";

/// The message of an event of the instance; an error with all of them if there is none with this reason that has these words.
async fn event(lab: &Lab, reason: &str, words: &str) -> Result<()> {
    wait_for(&format!("an event {reason} with {words:?}"), Deadline::SOON, async || {
        let all = lab.get("/api/v1/namespaces/default/events").await.map_err(|e| format!("{e:#}"))?;
        let all = all.unwrap_or_default();
        let texts: Vec<String> = all["items"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|e| format!("{} {}: {}", e["involvedObject"]["kind"], e["reason"], e["message"]))
            .collect();
        let found = |t: &String| t.contains(reason) && t.contains(words) && t.contains("Instance");
        if texts.iter().any(found) { Ok(()) } else { Err(texts.join("\n")) }
    })
    .await
}

/// The guest, when its shell listens.
async fn guest(lab: &Lab) -> Result<Console> {
    let console = lab.console("a").await?;
    console.wait_mark("SHEAF-GUEST ready", Deadline::GUEST).await?;
    console.wait_line("a# ", Deadline::GUEST).await?;
    Ok(console)
}

/// Starts the guest again with another action of its watchdog.
async fn with_action(lab: &Lab, action: &str) -> Result<Console> {
    let devices = json!({"watchdog": {"name": "dog", "i6300esb": {"action": action}}});
    let patch = json!({"spec": {"template": {"spec": {"domain": {"devices": devices}}}}}).to_string();
    lab.kubectl(&["patch", "vm", "a", "--type=merge", "-p", &patch]).await?.ok()?;
    let before = uid(lab, "a").await?;
    lab.act("virtualmachines", "a", "start").await?;
    let anew = |v: &Value| {
        v["metadata"]["uid"].as_str().is_some_and(|u| u != before) && v["status"]["phase"] == "Running"
    };
    lab.wait_object("a new instance to run", VMI, Deadline::GUEST, anew).await?;
    guest(lab).await
}

async fn wait_phase(lab: &Lab, phase: &str) -> Result<Value> {
    let over = |v: &Value| v["status"]["phase"] == phase;
    let vmi = lab.wait_object(&format!("the instance to be {phase}"), VMI, Deadline::GUEST, over).await?;
    lab.wait_vm("a", "Stopped", Deadline::SOON).await?;
    Ok(vmi)
}

#[test]
fn a_watchdog_fires_and_a_kernel_panics() -> Result<()> {
    run("a watchdog fires and a kernel panics", async |lab| {
        lab.import_small_guest().await?;
        let devices = "        devices:\n          watchdog: {name: dog, i6300esb: {action: reset}}\n          panicDevices: [{model: pvpanic}, {model: isa}]\n";
        let manifest = Lab::small_vm("a", "Manual", "").replace("        devices:\n", devices);
        // Upstream has no pause.
        let pause = manifest.replace("action: reset", "action: pause");
        let said = lab.kubectl_input(&["apply", "-f", "-"], Some(&pause)).await?.refused()?;
        ensure!(said.contains("spec.template.spec.domain.devices.watchdog.i6300esb.action"), "{said}");
        lab.apply(&manifest).await?;
        lab.act("virtualmachines", "a", "start").await?;

        // Reset: the guest begins anew, and nobody else notices.
        let console = guest(lab).await?;
        let (qemu, instance) = (only_qemu(lab)?, uid(lab, "a").await?);
        console.type_line("bite").await?;
        console.wait_line("SHEAF-GUEST watchdog runs", Deadline::GUEST).await?;
        console.wait_line("SHEAF-GUEST disk vda 67108864 found boots=2", Deadline::GUEST).await?;
        ensure!(only_qemu(lab)? == qemu, "the same QEMU");
        ensure!(uid(lab, "a").await? == instance, "the same instance");
        lab.wait_vm("a", "Running", Deadline::SOON).await?;
        wait_for("the shell to listen again", Deadline::GUEST, async || {
            let text = console.text();
            let after = text.rsplit_once("found boots=2").map_or("", |(_, after)| after);
            if after.contains("a# ") { Ok(()) } else { Err(after.to_owned()) }
        })
        .await?;

        // The kernel dies, and says so through a panic device.
        console.type_line("panic").await?;
        let vmi = wait_phase(lab, "Failed").await?;
        let (status, reason, message) = condition(&vmi, "Ready");
        ensure!((status.as_str(), reason.as_str()) == ("False", "GuestNotRunning"), "{status} {reason}");
        ensure!(message.contains("the guest's kernel panicked"), "{message}");
        event(lab, "Stopped", "the guest's kernel panicked").await?;
        ensure!(lab.server().qemus().is_empty(), "nothing runs");

        // Power off: as if the plug were pulled, which is a failure.
        let console = with_action(lab, "poweroff").await?;
        console.type_line("bite").await?;
        let vmi = wait_phase(lab, "Failed").await?;
        let message = condition(&vmi, "Ready").2;
        ensure!(message.contains("its watchdog powered it off"), "{message}");
        ensure!(lab.server().qemus().is_empty(), "nothing runs");

        // Shut down: the guest hears its power button, and ends in good order.
        let console = with_action(lab, "shutdown").await?;
        console.type_line("bite").await?;
        console.wait_line("SHEAF-GUEST power button", Deadline::GUEST).await?;
        wait_phase(lab, "Succeeded").await.map(drop)
    })
}

/// So long it is watched: three attempts.
const ATTEMPTS: Duration = Duration::from_secs(8);

/// The condition as it stands, with its times.
fn paused(vmi: &Value) -> Option<&Value> {
    vmi["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == "Paused")
}

#[test]
fn a_full_disk_stops_a_guest_until_there_is_room() -> Result<()> {
    run("a full disk stops a guest until there is room", async |lab| {
        lab.server().stop(Deadline::SOON).await?;
        let small = Small::over(&lab.server().data_dir().join("agent"), 224)?;
        lab.server().start()?;
        lab.server_ready().await?;
        // Disks that are files in that directory.
        lab.set_default_class("local").await?;
        lab.import_small_guest().await?;
        lab.apply(
            "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: told, namespace: default}\n\
             spec: {accessModes: [ReadWriteOnce], volumeMode: Block, resources: {requests: {storage: 32Mi}}}\n",
        )
        .await?;
        // The guest is told of errors of one disk, and stops for those of the other, which is what happens if nothing is said.
        let manifest = Lab::small_vm("a", "Always", "")
            .replace(
                "            - name: cloudinit\n              disk",
                "            - name: told\n              errorPolicy: report\n              disk:\n                bus: virtio\n            - name: cloudinit\n              disk",
            )
            .replace(
                "        - name: cloudinit\n          cloudInit",
                "        - name: told\n          persistentVolumeClaim:\n            claimName: told\n        - name: cloudinit\n          cloudInit",
            );
        lab.apply(&manifest).await?;
        let console = guest(lab).await?;
        let (qemu, instance) = (only_qemu(lab)?, uid(lab, "a").await?);
        small.fill(4 << 20)?;

        console.type_line("dd if=/dev/urandom of=/tmp/data bs=1M count=16 2>/dev/null; dd if=/tmp/data of=/dev/vdb bs=1M seek=8 conv=notrunc,fsync; echo told-$?").await?;
        console.wait_line("told-1", Deadline::GUEST).await?;
        lab.wait_vm("a", "Running", Deadline::SOON).await?;

        console
            .type_line(
                "dd if=/tmp/data of=/dev/vda bs=1M seek=40 conv=notrunc,fsync 2>/dev/null; echo written-$?",
            )
            .await?;
        lab.wait_vm("a", "Paused", Deadline::GUEST).await?;
        let vmi = lab.vmi("a").await?.context("the instance")?;
        let (status, reason, message) = condition(&vmi, "Paused");
        ensure!((status.as_str(), reason.as_str()) == ("True", "PausedIOError"), "{status} {reason}");
        ensure!(message == "VMI was paused, low-level IO error detected", "{message}");
        ensure!(vmi["status"]["phase"] == "Running", "{}", vmi["status"]["phase"]);
        event(lab, "IOerror", "VM Paused due to not enough space on volume: root").await?;
        ensure!(!console.text().contains("written-0"), "nothing has been written yet");

        // It is tried again and again, and looks the same all the while; then there is room.
        let began = Instant::now();
        wait_for("some attempts", Deadline::SOON, async || {
            let now = lab.vmi("a").await.map_err(|e| format!("{e:#}"))?.unwrap_or_default();
            match began.elapsed() > ATTEMPTS {
                _ if paused(&now) != paused(&vmi) => {
                    Ok(Err(format!("{:?}, then {:?}", paused(&vmi), paused(&now))))
                }
                true => Ok(Ok(())),
                false => Err("it has not been long".to_owned()),
            }
        })
        .await?
        .map_err(anyhow::Error::msg)?;
        small.make_room()?;
        console.wait_line("written-0", Deadline::GUEST).await?;
        lab.wait_vm("a", "Running", Deadline::SOON).await?;
        let vmi = lab.vmi("a").await?.context("the instance")?;
        ensure!(
            condition(&vmi, "Paused").0.is_empty(),
            "no condition is left: {}",
            vmi["status"]["conditions"]
        );

        // Nothing was lost on the way.
        console.type_line("echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=1M skip=40 count=16 2>/dev/null | cmp - /tmp/data; echo same-$?").await?;
        console.wait_line("same-0", Deadline::GUEST).await?;
        ensure!(only_qemu(lab)? == qemu && uid(lab, "a").await? == instance, "the same guest");

        lab.act_with("virtualmachines", "a", "stop", r#"{"gracePeriod": 0}"#).await?;
        lab.wait_vm("a", "Stopped", Deadline::SOON).await?;
        lab.server().stop(Deadline::SOON).await
    })
}
