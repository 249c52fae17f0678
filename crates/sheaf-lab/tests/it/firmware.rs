//! UEFI with Secure Boot, a TPM, and what both keep from one start to the next: there the guest is the firmware alone.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sheaf_lab::{Deadline, Lab, run, wait_for};

use crate::life::only_qemu;

fn machine(secure: bool) -> String {
    json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": "u", "namespace": "default"},
        "spec": {"runStrategy": "Always", "template": {"spec": {
            "terminationGracePeriodSeconds": 0,
            "domain": {
                "memory": {"guest": "256Mi"}, "features": {"acpi": {}, "smm": {"enabled": true}},
                "firmware": {"bootloader": {"efi": {"secureBoot": secure, "persistent": true}}},
                "devices": {"tpm": {"persistent": true}, "clientPassthrough": {}, "autoattachPodInterface": false},
            },
        }}},
    })
    .to_string()
}

/// Where the state of VMs is kept that outlives their instances.
fn states(lab: &Lab) -> PathBuf {
    lab.node_ref(1).data_dir().join("agent")
}

fn find(dir: &Path, name: &str) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            out.extend(find(&path, name));
        } else if entry.file_name() == name {
            out.push(path);
        }
    }
    out
}

#[test]
fn firmware_keeps_its_variables_and_a_tpm_its_state() -> Result<()> {
    run("firmware keeps its variables and a TPM its state", async |lab| {
        lab.apply(&machine(true)).await?;
        let console = lab.console("u").await?;
        // There is nothing to boot: the firmware says so, when it has written down what it has found.
        console.wait_line("BdsDxe", Deadline::GUEST).await?;
        let qemu = only_qemu(lab)?;
        let cmdline = std::fs::read(format!("/proc/{qemu}/cmdline")).context("its command line")?;
        let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ");
        for part in
            ["smm=on", "driver=cfi.pflash01,property=secure,value=on", "tpm-crb", "usb-redir,id=redir3"]
        {
            ensure!(cmdline.contains(part), "{part} is not in {cmdline}");
        }
        stop(lab).await?;
        let vars = only(&states(lab), "OVMF_VARS.fd")?;
        let tpm = only(&states(lab), "tpm2-00.permall")?;
        let first = (std::fs::read(&vars)?, std::fs::read(&tpm)?);
        let template = first_of(&["/usr/share/OVMF/OVMF_VARS_4M.ms.fd", "/usr/share/OVMF/OVMF_VARS.ms.fd"])?;
        ensure!(first.0 != std::fs::read(template)?, "the firmware has written variables");

        // Marked in a part that the firmware leaves alone: the state is found again, not made again.
        lab.act("virtualmachines", "u", "start").await?;
        lab.wait_vm("u", "Running", Deadline::SOON).await?;
        let console = lab.console("u").await?;
        console.wait_line("BdsDxe", Deadline::GUEST).await?;
        stop(lab).await?;
        let second = std::fs::read(only(&states(lab), "OVMF_VARS.fd")?)?;
        ensure!(second.len() == first.0.len(), "the variables have another size");
        ensure!(only(&states(lab), "tpm2-00.permall")? == tpm, "the TPM's state is where it was");
        let same = same_manufacture(&first.1, &std::fs::read(&tpm)?);
        ensure!(same, "the TPM is another one");

        swept(lab, vars.parent().context("its directory")?).await
    })
}

/// From the firmware over Debian's signed shim and GRUB to Debian's signed kernel, which says what it was told. Without Secure Boot it
/// says so, too.
#[test]
fn a_system_is_started_by_secure_boot() -> Result<()> {
    run("a system is started by Secure Boot", async |lab| {
        lab.import_small_guest().await?;
        for (name, secure, says) in [("s", true, "enabled"), ("u", false, "disabled")] {
            let firmware = format!(
                "        features: {{acpi: {{}}, smm: {{enabled: {secure}}}}}\n        firmware: {{bootloader: {{efi: {{secureBoot: {secure}}}}}}}\n"
            );
            let manifest = Lab::small_vm(name, "Always", "").replace("guest: 160Mi\n", "guest: 512Mi\n");
            let at = manifest.find("        devices:\n").context("the devices")?;
            lab.apply(&format!("{}{firmware}{}", &manifest[..at], &manifest[at..])).await?;
            let console = lab.console(name).await?;
            console.wait_mark(&format!("SHEAF-GUEST uefi secure-boot={says}"), Deadline::GUEST).await?;
            console.wait_mark("SHEAF-GUEST ready", Deadline::GUEST).await?;
            lab.act_with("virtualmachines", name, "stop", r#"{"gracePeriod": 0}"#).await?;
            lab.wait_vm(name, "Stopped", Deadline::GUEST).await?;
        }
        Ok(())
    })
}

/// What is kept of a VM stays while there is the VM, running or not, and for a while after its end. The node looks when its agent
/// begins; so each look here is an agent that begins.
async fn swept(lab: &mut Lab, state: &Path) -> Result<()> {
    let name = state.file_name().context("its name")?.to_string_lossy().into_owned();
    let kept = state.parent().context("all states")?.to_owned();
    let mark = |name: &str| kept.join(format!("{name}.no-vm-since"));
    let exists = |path: &Path, exists: bool| match path.exists() == exists {
        true => Ok(()),
        false => {
            Err(format!("{} {}", path.display(), if exists { "is not there" } else { "is still there" }))
        }
    };
    // One that no VM has had; its name is the last of all, so that it is dealt with when the others have been.
    let nobodys = "ffffffff-ffff-4fff-8fff-ffffffffffff";
    std::fs::create_dir(kept.join(nobodys))?;
    std::fs::write(kept.join(nobodys).join("OVMF_VARS.fd"), "x")?;
    again(lab).await?;
    wait_for("what is nobody's to be marked", Deadline::SOON, async || exists(&mark(nobodys), true)).await?;
    exists(&mark(&name), false).map_err(anyhow::Error::msg).context("the state of a VM that is stopped")?;
    ensure!(state.join("OVMF_VARS.fd").exists() && kept.join(nobodys).exists(), "all is there yet");

    lab.kubectl(&["delete", "vm", "u", "--wait=false"]).await?.ok()?;
    lab.wait_gone("/apis/kubevirt.io/v1/namespaces/default/virtualmachines/u", Deadline::SOON).await?;
    long_ago(&mark(nobodys))?;
    again(lab).await?;
    wait_for("what was nobody's for long to go", Deadline::SOON, async || exists(&mark(nobodys), false))
        .await?;
    ensure!(!kept.join(nobodys).exists(), "it is gone");
    ensure!(state.join("OVMF_VARS.fd").exists(), "the state of the VM that was just deleted is there yet");
    exists(&mark(&name), true).map_err(anyhow::Error::msg)?;

    long_ago(&mark(&name))?;
    again(lab).await?;
    wait_for("the state of the deleted VM to go", Deadline::SOON, async || exists(&mark(&name), false))
        .await?;
    ensure!(!state.exists(), "it is gone");
    Ok(())
}

async fn again(lab: &mut Lab) -> Result<()> {
    lab.server().stop(Deadline::SOON).await?;
    lab.server().start()?;
    lab.server_ready().await
}

/// Dates a mark back, beyond any grace.
fn long_ago(mark: &Path) -> Result<()> {
    let file = std::fs::File::options().write(true).open(mark).with_context(|| mark.display().to_string())?;
    file.set_modified(SystemTime::now() - Duration::from_secs(8 * 24 * 3600)).context("dating a mark back")
}

/// A TPM that was made anew has other seeds: nearly all of its state differs. One that was used again differs in counters.
fn same_manufacture(a: &[u8], b: &[u8]) -> bool {
    let equal = a.iter().zip(b).filter(|(a, b)| a == b).count();
    a.len() == b.len() && equal * 10 > a.len() * 9
}

async fn stop(lab: &Lab) -> Result<()> {
    lab.act_with("virtualmachines", "u", "stop", r#"{"gracePeriod": 0}"#).await?;
    lab.wait_vm("u", "Stopped", Deadline::SOON).await.map(drop)
}

fn only(dir: &Path, name: &str) -> Result<PathBuf> {
    match &find(dir, name)[..] {
        [one] => Ok(one.clone()),
        other => anyhow::bail!("one {name} was to be below {}, but there are {other:?}", dir.display()),
    }
}

fn first_of<'a>(paths: &[&'a str]) -> Result<&'a str> {
    paths.iter().find(|p| Path::new(p).exists()).copied().context("this machine has no OVMF (package ovmf)")
}
