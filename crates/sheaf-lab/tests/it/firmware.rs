//! UEFI with Secure Boot, a TPM, and what both keep from one start to the next. The guest is the firmware alone.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sheaf_lab::{Deadline, Lab, run};

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

        lab.kubectl(&["delete", "vm", "u", "--wait=false"]).await?.ok()?;
        lab.wait_gone("/apis/kubevirt.io/v1/namespaces/default/virtualmachines/u", Deadline::SOON).await?;
        Ok(())
    })
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
