//! A real Debian guest: cloud-init, the guest agent and all that is asked of it. Slow without hardware virtualization, so it is a
//! suite of its own (`make test-debian`).

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sheaf_lab::{Deadline, Lab, condition, run, wait_for};

const VMI: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances/deb";
const ACTIONS: &str = "/apis/subresources.kubevirt.io/v1/namespaces/default/virtualmachineinstances/deb";
/// systemd, cloud-init and sshd, emulated on a busy machine.
const BOOT: Deadline = Deadline::secs(900);

const MANIFEST: &str = r#"
apiVersion: v1
kind: Secret
metadata: {name: seed, namespace: default}
stringData:
  userdata: |
    #cloud-config
    hostname: deb
    users:
      - {name: keeper, shell: /bin/bash, sudo: 'ALL=(ALL) NOPASSWD:ALL', lock_passwd: false}
    write_files:
      - {path: /etc/sheaf-seed, content: 'from a secret'}
    runcmd:
      - [touch, /run/seeded]
---
apiVersion: v1
kind: Secret
metadata: {name: keys, namespace: default}
stringData: {mine: KEY}
---
apiVersion: v1
kind: Secret
metadata: {name: passwords, namespace: default}
stringData: {keeper: the-agents-password}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: deb-root, namespace: default, annotations: {harvesterhci.io/imageId: default/debian}}
spec: {accessModes: [ReadWriteOnce], volumeMode: Block, resources: {requests: {storage: 4Gi}}}
---
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: deb, namespace: default}
spec:
  runStrategy: Always
  template:
    spec:
      terminationGracePeriodSeconds: 180
      domain:
        cpu: {cores: 2}
        memory: {guest: 1Gi}
        features: {acpi: {}, smm: {enabled: true}}
        firmware: {bootloader: {efi: {secureBoot: true}}}
        devices:
          disks:
            - {name: root, disk: {bus: virtio}}
            - {name: seed, disk: {bus: virtio}}
          interfaces: [{name: default, masquerade: {}}]
          rng: {}
      networks: [{name: default, pod: {}}]
      readinessProbe: {exec: {command: [test, -e, /run/seeded]}, periodSeconds: 5, timeoutSeconds: 20, failureThreshold: 3}
      accessCredentials:
        - sshPublicKey: {source: {secret: {secretName: keys}}, propagationMethod: {qemuGuestAgent: {users: [keeper]}}}
        - userPassword: {source: {secret: {secretName: passwords}}, propagationMethod: {qemuGuestAgent: {}}}
      volumes:
        - {name: root, persistentVolumeClaim: {claimName: deb-root}}
        - {name: seed, cloudInitNoCloud: {secretRef: {name: seed}}}
"#;

#[test]
fn a_debian_guest_is_known_and_served() -> Result<()> {
    let Some(image) = std::env::var_os("SHEAF_DEBIAN_GUEST").map(PathBuf::from) else {
        eprintln!("SKIPPED: SHEAF_DEBIAN_GUEST names no image; `make test-debian` makes it and runs this");
        return Ok(());
    };
    run("a Debian guest is known and served", async |lab| {
        lab.import_image("debian", &image).await?;
        let key = key_pair(lab).await?;
        let public = std::fs::read_to_string(format!("{key}.pub")).context("the public key")?;
        lab.apply(&MANIFEST.replace("KEY", public.trim())).await?;
        lab.wait_vm("deb", "Running", Deadline::SOON).await?;

        // The agent: who it is, who is there, what is mounted.
        let agent = |v: &Value| condition(v, "AgentConnected").0 == "True";
        lab.wait_object("the guest agent", VMI, BOOT, agent).await?;
        let told = |v: &Value| v["status"]["guestOSInfo"]["id"] == "debian";
        let vmi = lab.wait_object("the operating system", VMI, BOOT, told).await?;
        ensure!(condition(&vmi, "AgentVersionNotSupported").0.is_empty(), "{}", vmi["status"]["conditions"]);
        let info = get(lab, "guestosinfo").await?;
        ensure!(info["os"]["id"] == "debian" && info["guestAgentVersion"].is_string(), "{info}");
        ensure!(info["supportedCommands"].as_array().is_some_and(|c| c.len() > 20), "{info}");
        let mounts = get(lab, "filesystemlist").await?;
        let root = mounts["items"].as_array().into_iter().flatten().find(|f| f["mountPoint"] == "/");
        let root = root.with_context(|| format!("no root in {mounts}"))?;
        ensure!(root["fileSystemType"] == "ext4", "{root}");
        let users = get(lab, "userlist").await?;
        ensure!(users["items"].is_array(), "{users}");

        // Ready when its exec probe says so, which is after what the Secret's user-data says.
        let ready = |v: &Value| condition(v, "Ready").0 == "True";
        lab.wait_object("the exec probe to pass", VMI, BOOT, ready).await?;

        // The agent puts keys and passwords in place as soon as their user is there.
        let placed = |v: &Value| condition(v, "AccessCredentialsSynchronized").0 == "True";
        lab.wait_object("credentials to be in place", VMI, BOOT, placed).await?;
        let address = lab.wait_address("deb").await?;
        let said =
            ssh(lab, &key, &address, "hostname; id -un; cat /etc/sheaf-seed; sudo grep ^keeper: /etc/shadow")
                .await?;
        let mut lines = said.lines();
        ensure!(lines.next() == Some("deb") && lines.next() == Some("keeper"), "{said}");
        ensure!(lines.next().is_some_and(|l| l.starts_with("from a secret")), "{said}");
        ensure!(said.contains("keeper:$"), "the agent has set a password: {said}");
        // Every step from the firmware to the kernel was signed.
        let secure =
            ssh(lab, &key, &address, "sudo dmesg | grep -o 'Secure boot [a-z]*' | head -n 1").await?;
        ensure!(secure.trim() == "Secure boot enabled", "{secure}");
        // The root file system has grown to its claim.
        let size = ssh(lab, &key, &address, "df -k --output=size / | tail -n 1").await?;
        ensure!(
            size.trim().parse::<u64>().is_ok_and(|k| k > 3_500_000),
            "the root file system has {size} KiB"
        );

        // A file there and back, through the API.
        let there = lab.file("there", "copied\n")?;
        let back = lab.file("back", "")?;
        let (there, back) = (there.display().to_string(), back.display().to_string());
        lab.sheaf(&["scp", "-i", &key, &there, "keeper@deb:by scp"]).await?.ok()?;
        lab.sheaf(&["scp", "-p", "-i", &key, "keeper@default/deb:by scp", &back]).await?.ok()?;
        ensure!(std::fs::read_to_string(&back)? == "copied\n", "what came back is not what was sent");
        let seen = lab.sheaf(&["ssh", "-i", &key, "keeper@deb", "--", "cat", "'by scp'"]).await?.ok()?;
        ensure!(seen == "copied\n", "{seen}");

        // Frozen, a write waits; thawed, it goes on.
        lab.act_with("virtualmachineinstances", "deb", "freeze", r#"{"unfreezeTimeout": "300s"}"#).await?;
        let frozen = |v: &Value| v["status"]["fsFreezeStatus"] == "frozen";
        lab.wait_object("the guest to be frozen", VMI, Deadline::GUEST, frozen).await?;
        lab.act("virtualmachineinstances", "deb", "unfreeze").await?;
        let thawed = |v: &Value| v["status"]["fsFreezeStatus"].is_null();
        lab.wait_object("the guest to be thawed", VMI, Deadline::GUEST, thawed).await?;
        ssh(lab, &key, &address, "echo thawed >thawed && sync && cat thawed").await?;

        // Restarted from inside by the agent: the same instance, and cloud-init does not begin anew.
        let before = crate::life::uid(lab, "deb").await?;
        let booted = ssh(lab, &key, &address, "cat /proc/sys/kernel/random/boot_id").await?;
        lab.act("virtualmachineinstances", "deb", "softreboot").await?;
        wait_for("another boot", BOOT, async || {
            match once(lab, &key, &address, "cat /proc/sys/kernel/random/boot_id").await {
                Ok(now) if now != booted => Ok(()),
                Ok(_) => Err("it has not restarted".to_owned()),
                Err(error) => Err(format!("{error:#}")),
            }
        })
        .await?;
        ensure!(crate::life::uid(lab, "deb").await? == before, "the same instance");
        let instances = ssh(lab, &key, &address, "ls /var/lib/cloud/instances | wc -l").await?;
        ensure!(instances.trim() == "1", "cloud-init has seen {instances} instances");

        // Shut down by the agent, in good order.
        lab.kubectl(&["delete", "vm", "deb", "--wait=false"]).await?.ok()?;
        lab.wait_gone(VMI, BOOT).await
    })
}

async fn get(lab: &Lab, what: &str) -> Result<Value> {
    let text = lab.kubectl(&["get", "--raw", &format!("{ACTIONS}/{what}")]).await?.ok()?;
    serde_json::from_str(&text).with_context(|| format!("{what} answers {text}"))
}

async fn key_pair(lab: &Lab) -> Result<String> {
    let key = lab.file("id", "")?;
    std::fs::remove_file(&key)?;
    let key = key.to_string_lossy().into_owned();
    lab.command("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &key]).await?.ok()?;
    Ok(key)
}

async fn once(lab: &Lab, key: &str, address: &str, command: &str) -> Result<String> {
    let to = format!("keeper@{address}");
    let args = [
        "-i",
        key,
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "LogLevel=ERROR",
        "-o",
        "BatchMode=yes",
        "-o",
        "ConnectTimeout=20",
        &to,
        command,
    ];
    lab.command("ssh", &args).await?.ok()
}

async fn ssh(lab: &Lab, key: &str, address: &str, command: &str) -> Result<String> {
    wait_for(&format!("ssh: {command}"), Deadline::GUEST, async || {
        once(lab, key, address, command).await.map_err(|e| format!("{e:#}"))
    })
    .await
}
