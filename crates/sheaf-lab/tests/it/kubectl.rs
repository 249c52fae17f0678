//! kubectl as it is: every verb that the first users need, on a kind of core Kubernetes and on one of ours.

use anyhow::{Result, ensure};
use sheaf_lab::{Lab, run};

const MAP: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m, labels: {a: b}}\ndata: {one: '1'}\n";

#[test]
fn kubectl_verbs() -> Result<()> {
    run("kubectl verbs", async |lab| {
        let k = async |args: &[&str]| lab.kubectl(args).await?.ok();
        let has = |what: &str, text: &str, words: &[&str]| -> Result<()> {
            for word in words {
                ensure!(text.contains(word), "{what}: {word:?} is not in:\n{text}");
            }
            Ok(())
        };

        let kinds = [
            "virtualmachines",
            "vm,vms",
            "kubevirt.io/v1",
            "virtualmachineimages",
            "persistentvolumeclaims",
            "nodes",
        ];
        has("api-resources", &k(&["api-resources"]).await?, &kinds)?;
        has(
            "explain",
            &k(&["explain", "vm.spec.runStrategy"]).await?,
            &["VirtualMachine", "runStrategy", "string"],
        )?;
        has("explain", &k(&["explain", "pod.metadata.name"]).await.unwrap_or_default(), &[])?;
        has("get nodes", &k(&["get", "nodes", "-o", "wide"]).await?, &["node1", "Ready", "INTERNAL-IP"])?;
        has("describe node", &k(&["describe", "node", "node1"]).await?, &["Capacity:", "memory"])?;

        // A core kind, through its whole life.
        lab.kubectl_input(&["create", "-f", "-"], Some(MAP)).await?.ok()?;
        let again = lab.kubectl_input(&["create", "-f", "-"], Some(MAP)).await?.refused()?;
        has("create again", &again, &["AlreadyExists", r#"configmaps "m" already exists"#])?;
        lab.apply(&MAP.replace("one: '1'", "one: '1', two: '2'")).await?;
        has("jsonpath", &k(&["get", "cm", "m", "-o", "jsonpath={.data.two}"]).await?, &["2"])?;
        lab.apply(&MAP.replace("one: '1'", "two: '3'")).await?;
        let yaml = k(&["get", "cm", "m", "-o", "yaml"]).await?;
        has("apply", &yaml, &["two: \"3\"", "resourceVersion:", "uid:"])?;
        ensure!(!yaml.contains("one: \"1\""), "apply removes what was applied and is no longer: {yaml}");
        k(&["patch", "cm", "m", "--type=merge", "-p", r#"{"data":{"four":"4"}}"#]).await?;
        k(&["patch", "cm", "m", "--type=json", "-p", r#"[{"op":"remove","path":"/data/four"}]"#]).await?;
        k(&["patch", "cm", "m", "-p", r#"{"data":{"five":"5"}}"#]).await?;
        k(&["label", "cm", "m", "c=d", "a-"]).await?;
        k(&["annotate", "cm", "m", "note=x"]).await?;
        has("selector", &k(&["get", "cm", "-l", "c=d", "-o", "name"]).await?, &["configmap/m"])?;
        ensure!(k(&["get", "cm", "-l", "a", "-o", "name"]).await?.is_empty(), "the label a is gone");
        has(
            "fields",
            &k(&["get", "cm", "--field-selector", "metadata.name=m", "-o", "name"]).await?,
            &["configmap/m"],
        )?;
        k(&["delete", "cm", "m"]).await?;
        let gone = lab.kubectl(&["get", "cm", "m"]).await?.refused()?;
        has("get after delete", &gone, &["NotFound", r#"configmaps "m" not found"#])?;

        // One of ours.
        let vm = Lab::small_vm("k", "Halted", "");
        has("apply", &lab.apply(&vm).await?, &["virtualmachine.kubevirt.io/k created"])?;
        // Defaults in lists (the NIC's address) make kubectl patch; the result has to be the same.
        let spec = ["get", "vm", "k", "-o", "jsonpath={.spec}"];
        let before = k(&spec).await?;
        lab.apply(&vm).await?;
        ensure!(before == k(&spec).await?, "applied again, the spec is what it was: {before}");
        k(&["wait", "--for=jsonpath={.status.printableStatus}=Stopped", "vm/k", "--timeout=30s"]).await?;
        has("get vm", &k(&["get", "vm"]).await?, &["NAME", "AGE", "STATUS", "READY", "Stopped"])?;
        has(
            "wide",
            &k(&["get", "vm,vmi,pvc", "-o", "wide"]).await?,
            &["virtualmachine.kubevirt.io/k", "k-root"],
        )?;
        has("describe", &k(&["describe", "vm", "k"]).await?, &["Kind:", "VirtualMachine", "Halted"])?;
        k(&["label", "vm", "k", "tier=test"]).await?;
        k(&["annotate", "vm", "k", "note=x"]).await?;
        let patch = r#"{"spec":{"template":{"spec":{"domain":{"cpu":{"cores":2}}}}}}"#;
        k(&["patch", "vm", "k", "--type=merge", "-p", patch]).await?;
        let out =
            lab.kubectl_edit(&["edit", "vm", "k"], "sed -i s/guest:.160Mi/guest:\\ 192Mi/").await?.ok()?;
        has("edit", &out, &["edited"])?;
        let spec = k(&["get", "vm", "k", "-o", "jsonpath={.spec.template.spec.domain}"]).await?;
        has("after patch and edit", &spec, &[r#""cores":2"#, "192Mi"])?;

        // Server-side apply: fields have owners.
        let green = ["apply", "--server-side", "--field-manager=green", "-f", "-"];
        let applied = lab.kubectl_input(&green, Some(&vm.replace("name: k", "name: s"))).await?.ok()?;
        has("server-side apply", &applied, &["virtualmachine.kubevirt.io/s serverside-applied"])?;
        let part =
            "apiVersion: kubevirt.io/v1\nkind: VirtualMachine\nmetadata: {name: s, labels: {team: blue}}\n";
        let blue = ["apply", "--server-side", "--field-manager=blue", "-f", "-"];
        lab.kubectl_input(&blue, Some(part)).await?.ok()?;
        let theirs = format!("{part}spec: {{runStrategy: Manual}}\n");
        let conflict = lab.kubectl_input(&blue, Some(&theirs)).await?.refused()?;
        has("a conflict", &conflict, &["conflict", "green", ".spec.runStrategy"])?;
        let force = ["apply", "--server-side", "--field-manager=blue", "--force-conflicts", "-f", "-"];
        lab.kubectl_input(&force, Some(&theirs)).await?.ok()?;
        has("forced", &k(&["get", "vm", "s", "-o", "jsonpath={.spec.runStrategy}"]).await?, &["Manual"])?;
        k(&["delete", "vm", "s", "--timeout=30s"]).await?;
        has(
            "dry run",
            &lab.kubectl_input(&["apply", "--dry-run=server", "-f", "-"], Some(&vm)).await?.ok()?,
            &["dry run"],
        )?;

        // A watch sees what happens while it is open.
        let watch = lab.command("timeout", &["10", "kubectl", "get", "vm", "-w", "-o", "name"]);
        let change = async {
            lab.apply(&vm.replace("name: k", "name: w")).await?;
            lab.kubectl(&["delete", "vm", "w", "--wait=true", "--timeout=30s"]).await?.ok()
        };
        let (seen, changed) = tokio::join!(watch, change);
        changed?;
        has("watch", &seen?.stdout, &["virtualmachine.kubevirt.io/k", "virtualmachine.kubevirt.io/w"])?;

        k(&["delete", "vm", "k", "--timeout=30s"]).await?;
        k(&["wait", "--for=delete", "vm/k", "--timeout=30s"]).await?;
        Ok(())
    })
}
