//! More than one node.

use anyhow::{Result, ensure};
use serde_json::Value;
use sheaf_lab::{Deadline, Lab, Role, condition, run, wait_for};

#[test]
fn a_second_node_joins_and_runs_a_guest() -> Result<()> {
    run("a second node joins and runs a guest", async |lab| {
        let number = lab.add_agent().await?;
        let ready = |node: &Value| condition(node, "Ready").0 == "True";
        for name in ["node1", "node2"] {
            lab.wait_object(
                &format!("{name} to be Ready"),
                &format!("/api/v1/nodes/{name}"),
                Deadline::SOON,
                ready,
            )
            .await?;
        }
        lab.import_small_guest().await?;
        let selector = "      nodeSelector:\n        kubernetes.io/hostname: node2\n";
        lab.apply(&Lab::small_vm("far", "Always", selector)).await?;
        // The console is relayed from the other node.
        let console = lab.console("far").await?;
        console.wait_mark("SHEAF-GUEST eth0 ip=", Deadline::GUEST).await?;
        lab.wait_address("far").await?;
        let vmi = lab.vmi("far").await?.unwrap_or_default();
        ensure!(vmi["status"]["nodeName"] == "node2", "it runs on {}", vmi["status"]["nodeName"]);
        ensure!(lab.node(number).qemus().len() == 1 && lab.server().qemus().is_empty(), "and really there");

        // Cut off, the guest runs on; the node is seen as lost, and comes back.
        let qemu = lab.node(number).qemus();
        lab.set_connected(number, false)?;
        let lost = |node: &Value| condition(node, "Ready").0 != "True";
        lab.wait_object("node2 to be seen as lost", "/api/v1/nodes/node2", Deadline::GUEST, lost).await?;
        ensure!(lab.node(number).qemus() == qemu, "its guest runs on");
        lab.set_connected(number, true)?;
        lab.wait_object("node2 to be back", "/api/v1/nodes/node2", Deadline::GUEST, ready).await?;
        ensure!(lab.node(number).qemus() == qemu, "still the same guest");

        // Its agent killed and started again: adopted.
        lab.node(number).kill().await?;
        lab.node(number).start()?;
        lab.act("virtualmachines", "far", "stop").await?;
        lab.wait_vm("far", "Stopped", Deadline::GUEST).await?;
        Ok(())
    })
}

#[test]
fn a_wrong_token_is_refused_with_its_reason() -> Result<()> {
    run("a wrong token is refused with its reason", async |lab| {
        let token = lab.sheaf(&["token"]).await?.ok()?.trim().to_owned();
        let (rest, secret) = token.rsplit_once('.').unwrap_or_default();
        let wrong = format!("{rest}.{}", "x".repeat(secret.len()));
        let server = format!("https://{}:6443", lab.server().address());
        let number = lab.add_node(Role::Agent { server, token: wrong })?;
        wait_for("the agent to say what is wrong", Deadline::SOON, async || {
            let log = lab.node(number).log_tail(50);
            if log.contains("token") { Ok(()) } else { Err(log) }
        })
        .await?;
        ensure!(lab.get("/api/v1/nodes/node2").await?.is_none(), "it is no node");
        Ok(())
    })
}
