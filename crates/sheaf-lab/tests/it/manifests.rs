//! Manifests of real installations, as they stand.

use anyhow::{Context, Result, ensure};
use sheaf_lab::{Deadline, Lab, run};

/// A VM on a VLAN network with an existing claim; no `interfaces`, the old `running`. Less memory than in the original, which
/// has 16 GiB.
const CP_2: &str = r#"
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata:
  name: cp-2
  namespace: default
spec:
  running: true
  template:
    spec:
      domain:
        cpu:
          cores: 4
        memory:
          guest: 128Mi
        devices:
          disks:
            - name: root
              disk:
                bus: virtio
      volumes:
        - name: root
          persistentVolumeClaim:
            claimName: cp-2-root
      networks:
        - name: platform
          multus:
            networkName: default/platform
"#;

/// The network part alone, without disks, of another VM.
const NETWORK_ONLY: &str = r#"
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata:
  name: network-only
  namespace: default
spec:
  running: true
  template:
    spec:
      domain:
        memory:
          guest: 64Mi
        devices: {}
      networks:
        - name: platform
          multus:
            networkName: default/platform
"#;

const CLAIM: &str = r#"
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: cp-2-root, namespace: default}
spec:
  accessModes: [ReadWriteOnce]
  volumeMode: Block
  resources: {requests: {storage: 1Gi}}
"#;

const NETWORK: &str = r#"
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: platform, namespace: default}
spec:
  config: '{"cniVersion":"0.3.1","name":"untagged-network","type":"bridge","bridge":"oob-br","promiscMode":true,"ipam":{}}'
"#;

const NETWORK_DATA: &str = "            networkData: |
              version: 1
              config:
                - type: physical
                  name: eth0
                  subnets:
                    - type: dhcp
                - type: physical
                  name: eth1
                  subnets:
                    - type: dhcp
";

#[test]
fn manifests_of_real_installations_run() -> Result<()> {
    run("manifests of real installations run", async |lab| {
        lab.server().ip(&["link", "add", "oob-br", "type", "bridge"])?;
        lab.server().ip(&["link", "set", "oob-br", "up"])?;
        for manifest in [CP_2, NETWORK_ONLY, CLAIM, NETWORK] {
            lab.apply(manifest).await?;
        }
        for name in ["cp-2", "network-only"] {
            lab.wait_vm(name, "Running", Deadline::GUEST).await?;
            let vm = lab.vm(name).await?.context("the VM")?;
            ensure!(vm["spec"]["running"] == true, "what was written stays as it was: {}", vm["spec"]);
        }
        // The NIC is in the bridge that the network names.
        let ports = lab.command("bridge", &["link", "show"]).await?.ok()?;
        ensure!(ports.matches("master oob-br").count() == 2, "two NICs in oob-br: {ports}");
        // There is no system in them that could hear a power button: no grace.
        for name in ["cp-2", "network-only"] {
            lab.act_with("virtualmachines", name, "stop", r#"{"gracePeriod":0}"#).await?;
            lab.wait_vm(name, "Stopped", Deadline::SOON).await?;
        }
        lab.kubectl(&["delete", "vm", "cp-2", "network-only", "--wait=false"]).await?.ok()?;
        for name in ["cp-2", "network-only"] {
            lab.wait_gone(
                &format!("/apis/kubevirt.io/v1/namespaces/default/virtualmachines/{name}"),
                Deadline::GUEST,
            )
            .await?;
        }

        // Cloud-init with network data for two NICs: the guest finds its disk and both addresses.
        lab.import_small_guest().await?;
        let mut two = Lab::small_vm("two", "Always", NETWORK_DATA);
        two = two.replace(
            "            - name: default\n",
            "            - name: extra\n              masquerade: {}\n            - name: default\n",
        );
        two = two.replace("        - name: default\n          pod: {}", "        - name: default\n          pod: {}\n        - name: extra\n          multus: {networkName: default/platform}");
        two = two.replace(
            "- name: extra\n              masquerade: {}",
            "- name: extra\n              bridge: {}",
        );
        lab.apply(&two).await?;
        let console = lab.console("two").await?;
        let cidata = console.wait_mark("SHEAF-GUEST cidata", Deadline::GUEST).await?;
        ensure!(cidata.contains("#cloud-config"), "{cidata}");
        console.type_line("cat /cidata/network-config").await?;
        console.wait_line("name: eth1", Deadline::GUEST).await?;
        Ok(())
    })
}
