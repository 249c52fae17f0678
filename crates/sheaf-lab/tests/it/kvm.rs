//! A guest that runs by hardware virtualization. Where the machine has none, `make test-kvm` runs this inside an emulated
//! machine that has.

use anyhow::{Context, Result, ensure};
use sheaf_lab::{Deadline, Lab, run};

use crate::life::only_qemu;

/// Whether the processor can, and lets us.
fn has_kvm() -> bool {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flag = cpu.split_ascii_whitespace().any(|word| word == "svm" || word == "vmx");
    flag && std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
}

#[test]
fn a_guest_runs_by_kvm() -> Result<()> {
    if !has_kvm() {
        eprintln!(
            "SKIPPED: this machine has no hardware virtualization; `make test-kvm` emulates one that has"
        );
        return Ok(());
    }
    run("a guest runs by KVM", async |lab| {
        lab.import_small_guest().await?;
        lab.apply(&Lab::small_vm("a", "Always", "")).await?;
        lab.wait_vm("a", "Running", Deadline::GUEST).await?;
        let console = lab.console("a").await?;
        console.wait_mark("SHEAF-GUEST ready", Deadline::GUEST).await?;
        let pid = only_qemu(lab)?;
        let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).context("its command line")?;
        let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ");
        ensure!(cmdline.contains("-accel kvm"), "{cmdline}");
        ensure!(cmdline.contains("-cpu host"), "{cmdline}");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("its status")?;
        let groups = status.lines().find(|l| l.starts_with("Groups:")).unwrap_or_default();
        ensure!(
            groups.split_ascii_whitespace().count() == 2,
            "one group beside its own, for /dev/kvm: {groups}"
        );
        // It is shut down in good order.
        lab.kubectl(&["delete", "vm", "a", "--wait=false"]).await?.ok()?;
        console.wait_line("SHEAF-GUEST power button", Deadline::GUEST).await?;
        lab.wait_gone("/apis/kubevirt.io/v1/namespaces/default/virtualmachines/a", Deadline::GUEST).await
    })
}
