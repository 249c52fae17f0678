//! Beside TCP over IPv4: datagrams through a forwarded port, and guests that have IPv6.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sheaf_lab::{Deadline, Lab, condition, run, wait_for};

const VMI: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances/a";

/// Sends datagrams to the guest, which sends them back, each as it was.
async fn datagrams(lab: &Lab) -> Result<()> {
    let mut port = lab.forward("a", "7/udp").await?;
    // The last one is more than a packet can carry.
    for size in [1, 512, 1400, 9000] {
        let sent: Vec<u8> = (0..size).map(|n: u32| (n % 251) as u8).collect();
        port.send(&sent).await?;
        let got = port.receive(Deadline::SOON).await?;
        ensure!(got == sent, "{size} bytes were sent, and {} came back", got.len());
    }
    // Two at once stay two.
    port.send(b"one").await?;
    port.send(b"two").await?;
    let both = [port.receive(Deadline::SOON).await?, port.receive(Deadline::SOON).await?];
    ensure!(both == [b"one".to_vec(), b"two".to_vec()], "{both:?}");
    Ok(())
}

/// The first NIC is in a bridge that has IPv6 only; the second in the management network.
#[test]
fn guests_speak_udp_and_ipv6() -> Result<()> {
    run("guests speak UDP and IPv6", async |lab| {
        lab.import_small_guest().await?;
        lab.server().ip(&["link", "add", "six-br", "type", "bridge"])?;
        lab.server().ip(&["link", "set", "six-br", "up"])?;
        lab.server().ip(&["addr", "add", "fd5e:af::1/64", "dev", "six-br", "nodad"])?;
        lab.apply(
            "apiVersion: k8s.cni.cncf.io/v1\nkind: NetworkAttachmentDefinition\nmetadata: {name: six, namespace: default}\n\
             spec: {config: '{\"cniVersion\":\"0.3.1\",\"name\":\"six\",\"type\":\"bridge\",\"bridge\":\"six-br\"}'}\n",
        )
        .await?;
        let manifest = Lab::small_vm("a", "Always", "")
            .replace(
                "            - name: default\n",
                "            - name: six\n              bridge: {}\n            - name: default\n",
            )
            .replace(
                "        - name: default\n          pod: {}",
                "        - name: six\n          multus: {networkName: default/six}\n        - name: default\n          pod: {}",
            );
        lab.apply(&manifest).await?;
        let console = lab.console("a").await?;
        console.wait_mark("SHEAF-GUEST eth1 ip=", Deadline::GUEST).await?;
        datagrams(lab).await?;
        // A port where nobody listens is no reason to end the stream for others.
        let mut silent = lab.forward("a", "9/udp").await?;
        silent.send(b"anybody?").await?;
        datagrams(lab).await?;

        // As a router would tell it; the guest agent tells it on.
        console.type_line("ip -6 addr add fd5e:af::2/64 dev eth0 && echo six-$((5+1))").await?;
        console.wait_line("six-6", Deadline::GUEST).await?;
        let six = |vmi: &Value| {
            let all = vmi["status"]["interfaces"].as_array();
            let six = all.and_then(|all| all.iter().find(|i| i["name"] == "six")).unwrap_or(&Value::Null);
            six["ipAddress"] == "fd5e:af::2"
        };
        let vmi = lab.wait_object("the guest's IPv6 address to be told", VMI, Deadline::GUEST, six).await?;
        ensure!(condition(&vmi, "AgentConnected").0 == "True", "{}", vmi["status"]["conditions"]);
        let url = "http://[fd5e:af::2]/";
        let said = wait_for("the guest to answer by IPv6", Deadline::GUEST, async || {
            let out =
                lab.command("curl", &["-gsS", "--max-time", "5", url]).await.map_err(|e| e.to_string())?;
            if out.code == 0 { Ok(out.stdout) } else { Err(out.stderr) }
        })
        .await?;
        ensure!(said.contains("sheaf-guest a boots=1"), "{said}");
        // Its first NIC has an address now, so that is where its ports are.
        datagrams(lab).await?;
        let mut web = lab.forward("a", "80/tcp").await?;
        web.send(b"GET / HTTP/1.0\r\n\r\n").await?;
        let head = web.receive(Deadline::SOON).await?;
        ensure!(head.starts_with(b"HTTP/1.0 200"), "{}", String::from_utf8_lossy(&head));

        // On the management network there is none, and nobody is left to find that out.
        let machine = json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": "b", "namespace": "default"},
            "spec": {"runStrategy": "Always", "template": {"spec": {
                "domain": {"memory": {"guest": "64Mi"}, "devices": {"interfaces": [{"name": "default", "masquerade": {}}]}},
                "networks": [{"name": "default", "pod": {"vmIPv6NetworkCIDR": "fd10:0:2::/120"}}],
            }}},
        });
        lab.apply(&machine.to_string()).await?;
        let path = VMI.replace("instances/a", "instances/b");
        let says = |vmi: &Value| {
            condition(vmi, "Synchronized")
                .2
                .contains("spec.networks[0].pod.vmIPv6NetworkCIDR: guests have no IPv6")
        };
        lab.wait_object("the refusal", &path, Deadline::SOON, says).await.map(drop)
    })
}
