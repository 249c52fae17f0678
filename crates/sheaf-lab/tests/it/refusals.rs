//! Bad input: refused with the field and the rule, or kept with a condition that names what is missing and that goes when it
//! comes.

use anyhow::{Result, ensure};
use serde_json::Value;
use sheaf_lab::{Deadline, Lab, condition, run, small_guest_image, wait_for};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const VM: &str = "apiVersion: kubevirt.io/v1\nkind: VirtualMachine\n";
const VMI: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances/";

/// What the API refuses at once, and the words that a user needs in the answer.
#[test]
fn what_can_never_work_is_refused() -> Result<()> {
    run("what can never work is refused", async |lab| {
        let spec =
            "spec: {runStrategy: Halted, template: {spec: {domain: {memory: {guest: 64Mi}, devices: {}}}}}";
        let table: &[(&str, String, &[&str])] = &[
            (
                "an unknown field",
                format!("{VM}metadata: {{name: x}}\n{}", spec.replace("devices", "cpuu: {cores: 1}, devices")),
                &[r#"unknown field "spec.template.spec.domain.cpuu""#],
            ),
            (
                "a wrong type",
                format!("{VM}metadata: {{name: x}}\n{}", spec.replace("devices", "cpu: {cores: two}, devices")),
                &["spec.template.spec.domain.cpu.cores", "integer"],
            ),
            (
                "a quantity that is none",
                format!("{VM}metadata: {{name: x}}\n{}", spec.replace("64Mi", "64 megs")),
                &["spec.template.spec.domain.memory.guest"],
            ),
            (
                "a name that is no DNS label",
                format!("{VM}metadata: {{name: Bad_Name}}\n{spec}"),
                &["metadata.name", "Bad_Name", "RFC 1123"],
            ),
            (
                "two ways to say whether it runs",
                format!("{VM}metadata: {{name: x}}\n{}", spec.replace("runStrategy", "running: true, runStrategy")),
                &["running", "runStrategy"],
            ),
            (
                "a run strategy that does not exist",
                format!("{VM}metadata: {{name: x}}\n{}", spec.replace("Halted", "Sometimes")),
                &["spec.runStrategy", "Sometimes", "RerunOnFailure"],
            ),
            (
                "a namespace that does not exist",
                format!("{VM}metadata: {{name: x, namespace: nowhere}}\n{spec}"),
                &[r#"namespaces "nowhere" not found"#],
            ),
            (
                "a kind that does not exist",
                format!("{}metadata: {{name: x}}\n{spec}", VM.replace("VirtualMachine", "VirtualMashine")),
                &["VirtualMashine", "no matches for kind"],
            ),
            (
                "a network configuration with a comma too many",
                r#"
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: x}
spec:
  config: '{"cniVersion":"0.3.1","name":"vlan100","type":"bridge","bridge":"mgmt-br","promiscMode":true,"vlan":100,}'
"#
                .to_owned(),
                &["spec.config", "column"],
            ),
        ];
        for (what, manifest, words) in table {
            let said = lab.kubectl_input(&["apply", "-f", "-"], Some(manifest)).await?.refused()?;
            for word in *words {
                ensure!(said.contains(word), "{what}: the answer does not name {word:?}:\n{said}");
            }
        }
        let said = lab
            .kubectl(&[
                "get",
                "vm",
                "--token=wrong",
                "--kubeconfig=/dev/null",
                "--server=https://127.0.0.1:6443",
                "--insecure-skip-tls-verify",
            ])
            .await?
            .refused()?;
        ensure!(said.contains("Unauthorized") || said.contains("must be logged in"), "a wrong token: {said}");
        Ok(())
    })
}

/// What is not there yet is waited for, by name; it heals when it comes.
#[test]
fn what_is_missing_is_named_and_heals() -> Result<()> {
    run("what is missing is named and heals", async |lab| {
        // In one go: the VM first, its claim later, the claim's image last.
        let manifest = Lab::small_vm("late", "Always", "");
        let (claim, vm) = manifest.split_once("---").unwrap_or_default();
        lab.apply(vm).await?;
        said(lab, "late", "the missing claim", &["late-root"]).await?;
        lab.apply(claim).await?;
        said(lab, "late", "the missing image", &["default/small"]).await?;
        lab.import_small_guest().await?;
        lab.wait_vm("late", "Running", Deadline::GUEST).await?;
        delete(lab, "late").await?;

        // A network that does not exist, and then does.
        let net = Lab::small_vm("wired", "Always", "")
            .replace("masquerade: {}", "bridge: {}")
            .replace("pod: {}", "multus: {networkName: default/platform}");
        lab.apply(&net).await?;
        said(lab, "wired", "the missing network", &["default/platform"]).await?;
        lab.server().ip(&["link", "add", "oob-br", "type", "bridge"])?;
        lab.server().ip(&["link", "set", "oob-br", "up"])?;
        lab.apply(
            r#"
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: platform, namespace: default}
spec:
  config: '{"cniVersion":"0.3.1","name":"untagged-network","type":"bridge","bridge":"oob-br","promiscMode":true,"ipam":{}}'
"#,
        )
        .await?;
        lab.wait_vm("wired", "Running", Deadline::GUEST).await?;
        delete(lab, "wired").await?;

        // More memory than there is.
        lab.apply(&Lab::small_vm("huge", "Always", "").replace("guest: 160Mi", "guest: 90Ti")).await?;
        lab.wait_vm("huge", "ErrorUnschedulable", Deadline::SOON).await?;
        said(lab, "huge", "the lack of memory", &["memory"]).await?;
        delete(lab, "huge").await
    })
}

/// An image whose server does not answer says so, and is fetched when it does; one that is no image is refused with the reason.
#[test]
fn an_image_that_cannot_be_fetched_says_why() -> Result<()> {
    run("an image that cannot be fetched says why", async |lab| {
        let closed = TcpListener::bind("127.0.0.1:0").await?;
        let port = closed.local_addr()?.port();
        drop(closed);
        lab.apply(&image("later", &format!("http://127.0.0.1:{port}/small.img"))).await?;
        let path = "/apis/harvesterhci.io/v1beta1/namespaces/default/virtualmachineimages/";
        let refused = |image: &Value| {
            let (status, _, message) = condition(image, "Imported");
            status != "True" && message.contains("127.0.0.1")
        };
        lab.wait_object("the image to say why", &format!("{path}later"), Deadline::SOON, refused).await?;
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let server = tokio::spawn(serve(listener, std::fs::read(small_guest_image()?)?));
        let imported = |image: &Value| condition(image, "Imported").0 == "True";
        lab.wait_object("the image to be fetched", &format!("{path}later"), Deadline::GUEST, imported)
            .await?;
        server.abort();

        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let server = tokio::spawn(serve(listener, b"<html>404 page that says 200</html>".to_vec()));
        lab.apply(&image("page", &format!("http://127.0.0.1:{port}/x.qcow2"))).await?;
        let refused = |image: &Value| {
            let (status, _, message) = condition(image, "Imported");
            status != "True" && message.contains("HTML")
        };
        lab.wait_object("a page to be refused as image", &format!("{path}page"), Deadline::SOON, refused)
            .await?;
        server.abort();
        for name in ["later", "page"] {
            lab.kubectl(&["delete", "virtualmachineimages.harvesterhci.io", name, "--wait=false"])
                .await?
                .ok()?;
            lab.wait_gone(&format!("{path}{name}"), Deadline::SOON).await?;
        }
        Ok(())
    })
}

fn image(name: &str, url: &str) -> String {
    format!(
        "apiVersion: harvesterhci.io/v1beta1\nkind: VirtualMachineImage\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{displayName: {name}, sourceType: download, url: '{url}'}}\n"
    )
}

/// Answers every request with the same bytes.
async fn serve(listener: TcpListener, body: Vec<u8>) {
    while let Ok((mut socket, _)) = listener.accept().await {
        let body = body.clone();
        tokio::spawn(async move {
            let mut request = [0; 4096];
            let read = socket.read(&mut request).await.unwrap_or(0);
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            let body = if request[..read].starts_with(b"HEAD") { &[][..] } else { &body[..] };
            let _ = socket.write_all(head.as_bytes()).await;
            let _ = socket.write_all(body).await;
        });
    }
}

/// Waits until a VM or its instance has a condition whose message has all these words.
async fn said(lab: &Lab, name: &str, what: &str, words: &[&str]) -> Result<()> {
    wait_for(&format!("{name} to name {what}"), Deadline::SOON, async || {
        let mut all = String::new();
        for object in [lab.vm(name).await, lab.vmi(name).await] {
            let object = object.map_err(|e| format!("{e:#}"))?.unwrap_or_default();
            for c in object["status"]["conditions"].as_array().into_iter().flatten() {
                all.push_str(&format!("{} {} {}: {}\n", c["type"], c["status"], c["reason"], c["message"]));
            }
        }
        if words.iter().all(|w| all.contains(w)) { Ok(()) } else { Err(all) }
    })
    .await
}

async fn delete(lab: &Lab, name: &str) -> Result<()> {
    lab.kubectl(&["delete", "vm", name, "--wait=false"]).await?.ok()?;
    lab.wait_gone(
        &format!("/apis/kubevirt.io/v1/namespaces/default/virtualmachines/{name}"),
        Deadline::GUEST,
    )
    .await?;
    lab.wait_gone(&format!("{VMI}{name}"), Deadline::SOON).await
}
