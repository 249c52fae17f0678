//! What each run strategy makes of a guest that dies and of one that powers itself off.

use anyhow::{Result, ensure};
use serde_json::Value;
use sheaf_lab::{Deadline, Lab, run};

use crate::life::{only_qemu, uid};

/// How a guest ends in this test.
#[derive(Debug, Clone, Copy)]
enum End {
    /// `kill -9` of its QEMU.
    Killed,
    /// The guest powers off by itself.
    PoweredOff,
}

/// What is to follow.
#[derive(Debug, Clone, Copy)]
enum Then {
    /// A new instance runs.
    Again,
    /// Nothing runs; the VM says this.
    Ended(&'static str),
}

#[test]
fn a_run_strategy_decides_what_follows() -> Result<()> {
    run("a run strategy decides what follows", async |lab| {
        lab.import_small_guest().await?;
        let table = [
            ("Always", End::Killed, Then::Again),
            ("Always", End::PoweredOff, Then::Again),
            ("RerunOnFailure", End::Killed, Then::Again),
            ("RerunOnFailure", End::PoweredOff, Then::Ended("Stopped")),
            ("Once", End::Killed, Then::Ended("Stopped")),
            ("Once", End::PoweredOff, Then::Ended("Stopped")),
            ("Manual", End::Killed, Then::Ended("Stopped")),
        ];
        for (strategy, end, then) in table {
            one(lab, strategy, end, then)
                .await
                .map_err(|e| e.context(format!("{strategy}, {end:?}, {then:?}")))?;
        }
        Ok(())
    })
}

async fn one(lab: &mut Lab, strategy: &str, end: End, then: Then) -> Result<()> {
    lab.apply(&Lab::small_vm("s", strategy, "")).await?;
    if strategy == "Manual" {
        lab.act("virtualmachines", "s", "start").await?;
    }
    let console = lab.console("s").await?;
    console.wait_mark("SHEAF-GUEST ready", Deadline::GUEST).await?;
    let (before, qemu) = (uid(lab, "s").await?, only_qemu(lab)?);
    match end {
        End::Killed => lab.server().kill_qemu(qemu).await?,
        End::PoweredOff => {
            // What is typed before the shell listens is lost.
            console.wait_line("s# ", Deadline::GUEST).await?;
            console.type_line("poweroff").await?;
        }
    }
    let path = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances/s";
    match then {
        Then::Again => {
            let anew = |vmi: &Value| {
                vmi["metadata"]["uid"].as_str().is_some_and(|u| u != before)
                    && vmi["status"]["phase"] == "Running"
            };
            lab.wait_object("a new instance to run", path, Deadline::GUEST, anew).await?;
        }
        Then::Ended(status) => {
            lab.wait_vm("s", status, Deadline::GUEST).await?;
            ensure!(lab.server().qemus().is_empty(), "nothing runs");
        }
    }
    lab.kubectl(&["delete", "vm,pvc", "--all", "--wait=false"]).await?.ok()?;
    lab.wait_gone("/apis/kubevirt.io/v1/namespaces/default/virtualmachines/s", Deadline::GUEST).await?;
    lab.wait_gone("/api/v1/namespaces/default/persistentvolumeclaims/s-root", Deadline::SOON).await
}
