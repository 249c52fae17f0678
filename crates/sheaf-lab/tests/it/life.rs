//! The life of one guest: image, boot, address, data that stays, processes that are killed, the end.

use anyhow::{Context, Result, ensure};
use sheaf_lab::{Deadline, Lab, run, wait_for};

/// What a user does with a first VM, from the upload of its image to its deletion.
#[test]
fn a_guest_lives() -> Result<()> {
    run("a guest lives", async |lab| {
        lab.import_small_guest().await?;
        lab.apply(&Lab::small_vm("a", "Always", "")).await?;
        let console = lab.console("a").await?;
        console.wait_mark("SHEAF-GUEST boot", Deadline::GUEST).await?;
        let cidata = console.wait_mark("SHEAF-GUEST cidata", Deadline::GUEST).await?;
        ensure!(cidata.contains("hostname=a "), "cloud-init's disk gives the VM's name: {cidata}");
        let said = console.wait_mark("SHEAF-GUEST eth0 ip=", Deadline::GUEST).await?;

        // The address that the guest got is the one that the API shows, and it answers there.
        let address = lab.wait_address("a").await?;
        ensure!(said.contains(&format!("ip={address}/")), "the guest says {said}, the API {address}");
        ensure!(greeting(lab, &address).await?.contains("sheaf-guest a boots=1"), "first boot");
        lab.wait_vm("a", "Running", Deadline::SOON).await?;

        // Stopped by its power button, started again: the disk is the same.
        lab.act("virtualmachines", "a", "stop").await?;
        console.wait_line("SHEAF-GUEST power button", Deadline::GUEST).await?;
        let vm = lab.wait_vm("a", "Stopped", Deadline::GUEST).await?;
        ensure!(
            vm["spec"]["runStrategy"] == "Halted",
            "stop of an Always VM is kept: {}",
            vm["spec"]["runStrategy"]
        );
        lab.wait_gone("/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances/a", Deadline::SOON)
            .await?;
        ensure!(lab.server().qemus().is_empty(), "nor a QEMU");
        lab.act("virtualmachines", "a", "start").await?;
        let console = lab.console("a").await?;
        let disk = console.wait_mark("SHEAF-GUEST disk vda", Deadline::GUEST).await?;
        ensure!(disk.contains("found boots=2"), "what was written is found again: {disk}");

        // Deletion ends, and takes everything but the claim with it.
        lab.kubectl(&["delete", "vm", "a", "--wait=false"]).await?.ok()?;
        lab.wait_gone("/apis/kubevirt.io/v1/namespaces/default/virtualmachines/a", Deadline::GUEST).await?;
        lab.wait_gone("/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances/a", Deadline::SOON)
            .await?;
        ensure!(lab.server().qemus().is_empty(), "no QEMU is left");
        ensure!(
            lab.get("/api/v1/namespaces/default/persistentvolumeclaims/a-root").await?.is_some(),
            "the claim stays"
        );
        Ok(())
    })
}

/// The server is killed and started again: the guest has not noticed, and is managed again.
#[test]
fn a_guest_survives_the_server() -> Result<()> {
    run("a guest survives the server", async |lab| {
        lab.import_small_guest().await?;
        lab.apply(&Lab::small_vm("a", "Always", "")).await?;
        let console = lab.console("a").await?;
        console.wait_mark("SHEAF-GUEST eth0 ip=", Deadline::GUEST).await?;
        let address = lab.wait_address("a").await?;
        let uid = uid(lab, "a").await?;
        let qemu = only_qemu(lab)?;

        lab.server().kill().await?;
        ensure!(greeting(lab, &address).await?.contains("boots=1"), "the guest answers without its server");
        lab.server().start()?;
        lab.server_ready().await?;

        lab.wait_vm("a", "Running", Deadline::SOON).await?;
        ensure!(only_qemu(lab)? == qemu, "the same QEMU");
        ensure!(self::uid(lab, "a").await? == uid, "the same instance");
        let console = lab.console("a").await?;
        console.type_line("echo alive-$((6*7))").await?;
        console.wait_line("alive-42", Deadline::GUEST).await?;
        ensure!(greeting(lab, &address).await?.contains("boots=1"), "it has not booted since");

        // Managed again: it hears the power button.
        lab.act("virtualmachines", "a", "stop").await?;
        console.wait_line("SHEAF-GUEST power button", Deadline::GUEST).await?;
        lab.wait_vm("a", "Stopped", Deadline::GUEST).await?;

        // A server that is stopped in good order leaves guests alone, too.
        lab.act("virtualmachines", "a", "start").await?;
        lab.wait_vm("a", "Running", Deadline::GUEST).await?;
        let qemu = only_qemu(lab)?;
        lab.server().stop(Deadline::SOON).await?;
        ensure!(only_qemu(lab)? == qemu, "the guest runs on");
        lab.server().start()?;
        lab.server_ready().await?;
        lab.wait_vm("a", "Running", Deadline::SOON).await?;
        ensure!(only_qemu(lab)? == qemu, "and is adopted");
        Ok(())
    })
}

/// Pause, unpause and restart, as virtctl and the dashboard ask for them.
#[test]
fn a_guest_is_paused_and_restarted() -> Result<()> {
    run("a guest is paused and restarted", async |lab| {
        lab.import_small_guest().await?;
        lab.apply(&Lab::small_vm("a", "RerunOnFailure", "")).await?;
        let console = lab.console("a").await?;
        console.wait_mark("SHEAF-GUEST ready", Deadline::GUEST).await?;

        lab.act("virtualmachineinstances", "a", "pause").await?;
        lab.wait_vm("a", "Paused", Deadline::SOON).await?;
        let vmi = lab.vmi("a").await?.context("the instance")?;
        ensure!(sheaf_lab::condition(&vmi, "Paused").0 == "True", "the instance says so");
        lab.act("virtualmachineinstances", "a", "unpause").await?;
        lab.wait_vm("a", "Running", Deadline::SOON).await?;
        console.type_line("echo alive-$((6*7))").await?;
        console.wait_line("alive-42", Deadline::GUEST).await?;

        let before = uid(lab, "a").await?;
        lab.act("virtualmachines", "a", "restart").await?;
        let path = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances/a";
        let anew = |vmi: &serde_json::Value| {
            vmi["metadata"]["uid"].as_str().is_some_and(|u| u != before)
                && vmi["status"]["phase"] == "Running"
        };
        lab.wait_object("a new instance to run", path, Deadline::GUEST, anew).await?;
        let console = lab.console("a").await?;
        let disk = console.wait_mark("SHEAF-GUEST disk vda", Deadline::GUEST).await?;
        ensure!(disk.contains("found boots=2"), "{disk}");

        // Halted, and started for somebody who wants to look before it runs.
        let halt = r#"{"spec": {"runStrategy": "Halted"}}"#;
        lab.kubectl(&["patch", "vm", "a", "--type=merge", "-p", halt]).await?.ok()?;
        lab.wait_vm("a", "Stopped", Deadline::GUEST).await?;
        lab.act_with("virtualmachines", "a", "start", r#"{"paused": true}"#).await?;
        let vm = lab.wait_vm("a", "Paused", Deadline::GUEST).await?;
        ensure!(vm["spec"]["runStrategy"] == "Always", "its strategy is {}", vm["spec"]["runStrategy"]);
        lab.act("virtualmachineinstances", "a", "unpause").await?;
        lab.wait_vm("a", "Running", Deadline::SOON).await.map(drop)
    })
}

/// What the small guest says on port 80.
pub(crate) async fn greeting(lab: &Lab, address: &str) -> Result<String> {
    let url = format!("http://{address}/");
    wait_for(&format!("{url} to answer"), Deadline::GUEST, async || {
        let out = lab.command("curl", &["-sS", "--max-time", "5", &url]).await.map_err(|e| e.to_string())?;
        if out.code == 0 { Ok(out.stdout) } else { Err(out.stderr) }
    })
    .await
}

pub(crate) async fn uid(lab: &Lab, name: &str) -> Result<String> {
    let vmi = lab.vmi(name).await?.context("there is no instance")?;
    Ok(vmi["metadata"]["uid"].as_str().context("it has no uid")?.to_owned())
}

/// The pid of the server's only QEMU.
pub(crate) fn only_qemu(lab: &mut Lab) -> Result<i32> {
    match lab.server().qemus()[..] {
        [pid] => Ok(pid),
        ref other => anyhow::bail!("one QEMU was to run, but there are {other:?}"),
    }
}
