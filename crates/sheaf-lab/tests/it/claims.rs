//! Machines on replicated volumes: one node and several, with real guests that write.

use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sheaf_lab::{Console, Deadline, Lab, condition, run, small_guest_image, wait_for};

use crate::life::only_qemu;

/// A claim of the replicated class.
pub(crate) fn claim(name: &str, size: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{accessModes: [ReadWriteMany], volumeMode: Block, storageClassName: harvester-longhorn, \
         resources: {{requests: {{storage: {size}}}}}{more}}}\n"
    )
}

/// The small guest on a replicated root disk, with a blank data disk `NAME-data`.
pub(crate) fn vm(name: &str) -> String {
    let with_data = Lab::small_vm(name, "Always", "")
        .replace("accessModes: [ReadWriteOnce]", "accessModes: [ReadWriteMany]\n  storageClassName: harvester-longhorn")
        .replace(
            "            - name: cloudinit\n              disk",
            "            - name: data\n              disk:\n                bus: virtio\n            - name: cloudinit\n              disk",
        )
        .replace(
            "        - name: cloudinit\n          cloudInit",
            &format!("        - name: data\n          persistentVolumeClaim:\n            claimName: {name}-data\n        - name: cloudinit\n          cloudInit"),
        );
    format!("{}---{with_data}", claim(&format!("{name}-data"), "32Mi", ""))
}

pub(crate) const LONGHORN: &str = "/apis/longhorn.io/v1beta2/namespaces/longhorn-system";

pub(crate) async fn volume_of(lab: &Lab, claim: &str) -> Result<String> {
    let path = format!("/api/v1/namespaces/default/persistentvolumeclaims/{claim}");
    let bound = |pvc: &Value| pvc["status"]["phase"] == "Bound";
    let pvc = lab.wait_object(&format!("claim {claim} to be bound"), &path, Deadline::GUEST, bound).await?;
    Ok(pvc["spec"]["volumeName"].as_str().context("a volume")?.to_owned())
}

pub(crate) async fn wait_volume(lab: &Lab, volume: &str, state: &str, robustness: &str) -> Result<Value> {
    let path = format!("{LONGHORN}/volumes/{volume}");
    let holds = |v: &Value| v["status"]["state"] == state && v["status"]["robustness"] == robustness;
    lab.wait_object(&format!("volume {volume} to be {state}, {robustness}"), &path, Deadline::GUEST, holds)
        .await
}

/// Replicas that are lost are replaced at once.
async fn replaced_soon(lab: &Lab) -> Result<()> {
    lab.set_storage("replica-replenishment-wait-interval", "2").await
}

/// Waits until the first nodes have disks.
async fn disks_ready(lab: &Lab, nodes: usize) -> Result<()> {
    for number in 1..=nodes {
        let ready = |n: &Value| condition(n, "Ready").0 == "True" && n["status"]["diskStatus"].is_object();
        let path = format!("{LONGHORN}/nodes/node{number}");
        lab.wait_object(&format!("node{number} to have disks"), &path, Deadline::GUEST, ready).await?;
    }
    Ok(())
}

/// A cluster of three nodes, whose disks take replicas however full they are.
pub(crate) async fn three_nodes(lab: &mut Lab) -> Result<()> {
    for _ in 0..2 {
        lab.add_agent().await?;
    }
    replaced_soon(lab).await?;
    disks_ready(lab, 3).await
}

/// The manifest of a machine, for the first node.
pub(crate) fn on_node1(manifest: &str) -> String {
    manifest.replace(
        "      terminationGracePeriodSeconds",
        "      nodeSelector: {kubernetes.io/hostname: node1}\n      terminationGracePeriodSeconds",
    )
}

/// Makes a machine on the first node, and waits until its guest is ready and the volume of this claim of it has all its replicas; the guest's console, and
/// the volume.
pub(crate) async fn starts_whole(
    lab: &Lab,
    manifest: &str,
    name: &str,
    claim: &str,
) -> Result<(Console, String)> {
    lab.apply(&on_node1(manifest)).await?;
    let console = lab.console(name).await?;
    console.wait_mark("SHEAF-GUEST ready", Deadline::GUEST).await?;
    let volume = volume_of(lab, claim).await?;
    wait_volume(lab, &volume, "attached", "healthy").await?;
    Ok((console, volume))
}

/// The storage process of a node.
fn storage_process(lab: &Lab, number: usize) -> Result<i32> {
    let path = lab.node_ref(number).data_dir().join("storage/state/process.json");
    let record: Value = serde_json::from_slice(&std::fs::read(&path).context("the record of the process")?)?;
    i32::try_from(record["pid"].as_i64().context("its number")?).context("a number")
}

/// `kill -9` of the storage process of a node.
pub(crate) fn kill_storage_process(lab: &Lab, number: usize) -> Result<()> {
    let pid = rustix::process::Pid::from_raw(storage_process(lab, number)?).context("a pid")?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).context("killing it")
}

/// Writes a number to the data disk and reads it back from the disk itself. A disk that was just plugged in is waited for: before it is there, its
/// name would become that of a file.
pub(crate) async fn write_and_read(console: &Console, disk: &str, word: &str) -> Result<()> {
    let line = format!(
        "while [ ! -b /dev/{disk} ]; do sleep 0.1; done; echo {word} | dd of=/dev/{disk} bs=4096 conv=sync,fsync 2>/dev/null; echo 3 > /proc/sys/vm/drop_caches; \
         dd if=/dev/{disk} bs=4096 count=1 2>/dev/null | head -c {} | sed 's/^/read-/'; echo",
        word.len()
    );
    console.type_line(&line).await?;
    console.wait_line(&format!("read-{word}"), Deadline::GUEST).await.map(drop)
}

#[test]
fn a_machine_lives_on_a_replicated_volume() -> Result<()> {
    run("a machine lives on a replicated volume", async |lab| {
        lab.import_small_guest().await?;
        replaced_soon(lab).await?;
        lab.apply(&vm("a")).await?;
        let console = lab.console("a").await?;
        console.wait_mark("SHEAF-GUEST ready", Deadline::GUEST).await?;
        let qemu = only_qemu(lab)?;

        // One node holds one of three replicas, and says so.
        let (root, data) = (volume_of(lab, "a-root").await?, volume_of(lab, "a-data").await?);
        for volume in [&root, &data] {
            let seen = wait_volume(lab, volume, "attached", "degraded").await?;
            ensure!(seen["status"]["currentNodeID"] == "node1", "{}", seen["status"]);
            let (status, reason, message) = condition(&seen, "Scheduled");
            ensure!(status == "False" && reason == "ReplicaSchedulingFailure", "{message}");
            ensure!(message.contains("1 of 3 replicas have a place"), "{message}");
        }
        let attachments = lab.get("/apis/storage.k8s.io/v1/volumeattachments").await?.context("a list")?;
        let attached = attachments["items"].as_array().into_iter().flatten();
        ensure!(attached.filter(|va| va["status"]["attached"] == true).count() == 2, "{attachments}");
        write_and_read(&console, "vdb", "hello-1").await?;

        // Its storage process dies, and comes back: the guest waits, and notices nothing.
        let process = storage_process(lab, 1)?;
        kill_storage_process(lab, 1)?;
        write_and_read(&console, "vdb", "hello-2").await?;
        ensure!(storage_process(lab, 1)? != process, "another process");

        // So does the server, while the guest goes on writing.
        let process = storage_process(lab, 1)?;
        let loop_ = "(for i in 1 2 3 4 5 6; do echo w$i | dd of=/dev/vdb bs=4096 conv=sync,fsync 2>/dev/null || echo bad; \
            sleep 1; done) > /tmp/loop &";
        console.type_line(loop_).await?;
        // What is on its way to the console goes with the server.
        console.type_line("echo begun-$((1+1))").await?;
        console.wait_line("begun-2", Deadline::GUEST).await?;
        lab.node(1).kill().await?;
        lab.node(1).start()?;
        lab.server_ready().await?;
        let console = lab.console("a").await?;
        console
            .type_line("wait; cat /tmp/loop; dd if=/dev/vdb bs=4096 count=1 2>/dev/null | head -c 2 | sed 's/^/last-/'; echo")
            .await?;
        console.wait_line("last-w6", Deadline::GUEST).await?;
        ensure!(storage_process(lab, 1)? == process, "the process is adopted");
        ensure!(only_qemu(lab)? == qemu, "the same QEMU");

        grows(lab, &console, &data).await?;
        plugs(lab, &console).await?;
        copies(lab).await?;

        // Stopped, it lets go of its volumes; deleted, they go.
        lab.act_with("virtualmachines", "a", "stop", r#"{"gracePeriod":0}"#).await?;
        lab.wait_vm("a", "Stopped", Deadline::GUEST).await?;
        wait_volume(lab, &root, "detached", "unknown").await?;
        lab.kubectl(&["delete", "vm", "a", "--wait=false"]).await?.ok()?;
        lab.kubectl(&["delete", "pvc", "--all", "--wait=false"]).await?.ok()?;
        for volume in [&root, &data] {
            lab.wait_gone(&format!("{LONGHORN}/volumes/{volume}"), Deadline::GUEST).await?;
            lab.wait_gone(&format!("/api/v1/persistentvolumes/{volume}"), Deadline::GUEST).await?;
        }
        let left = std::fs::read_dir(lab.node_ref(1).data_dir().join("storage/replicas"))?;
        let left: Vec<_> = left.flatten().map(|entry| entry.file_name()).collect();
        ensure!(left.is_empty(), "no data is left: {left:?}");
        Ok(())
    })
}

/// The data disk grows while it is in use.
async fn grows(lab: &Lab, console: &Console, volume: &str) -> Result<()> {
    let patch = r#"{"spec":{"resources":{"requests":{"storage":"64Mi"}}}}"#;
    lab.kubectl(&["patch", "pvc", "a-data", "-p", patch]).await?.ok()?;
    let path = "/api/v1/namespaces/default/persistentvolumeclaims/a-data";
    let grown = |pvc: &Value| pvc["status"]["capacity"]["storage"] == "64Mi";
    lab.wait_object("the claim to have grown", path, Deadline::GUEST, grown).await?;
    console.type_line("echo size-$(cat /sys/block/vdb/size)").await?;
    console.wait_line("size-131072", Deadline::GUEST).await?;
    let engine = lab.get(&format!("{LONGHORN}/engines/{volume}-e-0")).await?.context("the engine")?;
    ensure!(engine["status"]["currentSize"] == "67108864", "{}", engine["status"]);
    write_and_read(console, "vdb", "hello-5").await
}

/// Another disk is plugged in and out.
async fn plugs(lab: &Lab, console: &Console) -> Result<()> {
    lab.apply(&claim("more", "16Mi", "")).await?;
    volume_of(lab, "more").await?;
    let add = json!({"name": "more", "disk": {"disk": {"bus": "scsi"}, "serial": "more"},
        "volumeSource": {"persistentVolumeClaim": {"claimName": "more"}}});
    lab.act_with("virtualmachines", "a", "addvolume", &add.to_string()).await?;
    let vmi = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances/a";
    let status = |vmi: &Value| vmi["status"]["volumeStatus"].as_array().cloned().unwrap_or_default();
    let ready = |vmi: &Value| status(vmi).iter().any(|v| v["name"] == "more" && v["phase"] == "Ready");
    lab.wait_object("the disk to be ready", vmi, Deadline::GUEST, ready).await?;
    write_and_read(console, "sda", "plugged").await?;
    lab.act_with("virtualmachines", "a", "removevolume", r#"{"name": "more"}"#).await?;
    let gone = |vmi: &Value| !status(vmi).iter().any(|v| v["name"] == "more");
    lab.wait_object("the disk to be gone", vmi, Deadline::GUEST, gone).await?;
    let volume = volume_of(lab, "more").await?;
    wait_volume(lab, &volume, "detached", "unknown").await.map(drop)
}

/// What a volume of `more` holds, in the replica on a node.
fn first_bytes(lab: &Lab, number: usize, volume: &str) -> Result<Vec<u8>> {
    let root = lab.node_ref(number).data_dir().join("storage/replicas");
    let dir =
        std::fs::read_dir(&root)?.flatten().find(|e| e.file_name().to_string_lossy().starts_with(volume));
    let dir = dir.with_context(|| format!("no replica of {volume} in {}", root.display()))?.path();
    let heads = std::fs::read_dir(&dir)?.flatten().filter(|e| {
        let name = e.file_name().to_string_lossy().into_owned();
        name.ends_with(".img") && name.starts_with("volume-head")
    });
    let head = heads.map(|e| e.path()).next().context("a head")?;
    Ok(std::fs::read(head)?.into_iter().take(7).collect())
}

/// A snapshot of a volume that nobody uses, a volume of it, and one of the claim itself.
async fn copies(lab: &Lab) -> Result<()> {
    lab.apply(
        "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshot\nmetadata: {name: moment, namespace: default}\n\
         spec: {volumeSnapshotClassName: longhorn-snapshot, source: {persistentVolumeClaimName: more}}\n",
    )
    .await?;
    let path = "/apis/snapshot.storage.k8s.io/v1/namespaces/default/volumesnapshots/moment";
    let ready = |s: &Value| s["status"]["readyToUse"] == true;
    lab.wait_object("the snapshot to be ready", path, Deadline::GUEST, ready).await?;
    let of_moment = ", dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: moment}";
    lab.apply(&claim("from-moment", "16Mi", of_moment)).await?;
    lab.apply(&claim("from-claim", "16Mi", ", dataSource: {kind: PersistentVolumeClaim, name: more}"))
        .await?;
    for name in ["from-moment", "from-claim"] {
        let volume = volume_of(lab, name).await?;
        wait_volume(lab, &volume, "detached", "unknown").await?;
        let bytes = first_bytes(lab, 1, &volume)?;
        ensure!(bytes == b"plugged", "{name} holds {bytes:?}");
    }
    lab.kubectl(&["delete", "volumesnapshot", "moment", "--wait=false"]).await?.ok()?;
    lab.wait_gone(path, Deadline::GUEST).await?;
    let none = |list: &Value| list["items"].as_array().is_some_and(Vec::is_empty);
    let path = format!("{LONGHORN}/snapshots");
    lab.wait_object("no snapshot to be left", &path, Deadline::GUEST, none).await.map(drop)
}

#[test]
fn a_machine_survives_the_loss_of_a_node_with_a_replica() -> Result<()> {
    run("a machine survives the loss of a node with a replica", async |lab| {
        three_nodes(lab).await?;
        lab.import_small_guest().await?;
        let (console, data) = starts_whole(lab, &vm("a"), "a", "a-data").await?;
        write_and_read(&console, "vdb", "three").await?;

        // A node with a replica is cut off: the guest goes on, with two.
        lab.set_connected(3, false)?;
        write_and_read(&console, "vdb", "two").await?;
        wait_volume(lab, &data, "attached", "degraded").await?;
        write_and_read(&console, "vdb", "still-two").await?;
        // Another one: now the API's vote is needed, and had.
        lab.set_connected(2, false)?;
        write_and_read(&console, "vdb", "one").await?;
        let vote = lab.get(&format!("{LONGHORN}/volumes/{data}")).await?.context("the volume")?;
        ensure!(vote["metadata"]["annotations"]["storage.sheaf.io/vote"].is_string(), "{}", vote["metadata"]);

        // They come back, and are made equal.
        for number in [2, 3] {
            lab.set_connected(number, true)?;
        }
        wait_volume(lab, &data, "attached", "healthy").await?;
        write_and_read(&console, "vdb", "again3").await?;
        lab.act_with("virtualmachines", "a", "stop", r#"{"gracePeriod":0}"#).await?;
        lab.wait_vm("a", "Stopped", Deadline::GUEST).await?;
        wait_volume(lab, &data, "detached", "unknown").await?;
        for number in [1, 2, 3] {
            let bytes = first_bytes(lab, number, &data)?;
            ensure!(bytes.starts_with(b"again3"), "node{number} holds {bytes:?}");
        }
        // The machine begins on another node, with what it wrote on the first.
        let elsewhere =
            json!({"spec": {"template": {"spec": {"nodeSelector": {"kubernetes.io/hostname": "node2"}}}}});
        lab.kubectl(&["patch", "vm", "a", "--type=merge", "-p", &elsewhere.to_string()]).await?.ok()?;
        lab.act("virtualmachines", "a", "start").await?;
        let path = format!("{LONGHORN}/volumes/{data}");
        let moved =
            |v: &Value| v["status"]["currentNodeID"] == "node2" && v["status"]["robustness"] == "healthy";
        lab.wait_object("the volume to be attached to node2", &path, Deadline::GUEST, moved).await?;
        wait_for("the guest to run on node2", Deadline::GUEST, async || match lab.node_ref(2).qemus().len() {
            1 => Ok(()),
            n => Err(format!("{n} guests")),
        })
        .await
    })
}

/// The small guest on a replicated root disk of the image.
fn of_image(name: &str) -> String {
    Lab::small_vm(name, "Always", "").replace(
        "accessModes: [ReadWriteOnce]",
        "accessModes: [ReadWriteMany]\n  storageClassName: harvester-longhorn",
    )
}

/// The bases on a node: how often each is linked, and the bytes that it takes.
fn bases(lab: &Lab, number: usize) -> Result<Vec<(u64, u64)>> {
    let root = lab.node_ref(number).data_dir().join("storage/bases");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&root).with_context(|| root.display().to_string())?.flatten() {
        let meta = entry.metadata()?;
        ensure!(entry.file_name().to_string_lossy().ends_with(".img"), "{:?} is none", entry.file_name());
        found.push((meta.nlink(), meta.blocks() * 512));
    }
    Ok(found)
}

/// Bytes of the layers that a volume has for itself on a node.
fn own_bytes(lab: &Lab, number: usize, volume: &str) -> Result<u64> {
    let root = lab.node_ref(number).data_dir().join("storage/replicas");
    let dirs = std::fs::read_dir(&root)?.flatten();
    let dir =
        dirs.map(|e| e.path()).find(|path| path.to_string_lossy().contains(volume)).context("a replica")?;
    let mut bytes = 0;
    for file in
        std::fs::read_dir(dir)?.flatten().filter(|e| e.file_name().to_string_lossy().ends_with(".img"))
    {
        let meta = file.metadata()?;
        bytes += if meta.nlink() == 1 { meta.blocks() * 512 } else { 0 };
    }
    Ok(bytes)
}

/// Reads all of the root disk from the disk itself.
async fn reads_all(console: &Console, word: &str) -> Result<()> {
    let line = format!(
        "echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vda of=/dev/null bs=1M 2>/dev/null && echo all-{word}-$((1+1))"
    );
    console.type_line(&line).await?;
    console.wait_line(&format!("all-{word}-2"), Deadline::GUEST).await.map(drop)
}

#[test]
fn machines_of_an_image_share_what_it_holds() -> Result<()> {
    run("machines of an image share what it holds", async |lab| {
        three_nodes(lab).await?;
        lab.import_small_guest().await?;
        let (_console, first) = starts_whole(lab, &of_image("a"), "a", "a-root").await?;
        // One file on each node, with all that the image has, and a replica that has it, too.
        let image = std::fs::read(small_guest_image()?)?;
        let mut held = 0;
        for number in 1..=3 {
            let found = bases(lab, number)?;
            let root = lab.node_ref(number).data_dir().join("storage/bases");
            let file = std::fs::read_dir(root)?.flatten().map(|e| e.path()).next().context("a base")?;
            ensure!(std::fs::read(file)?.starts_with(&image), "node{number} has something else");
            ensure!(found.len() == 1 && found[0].0 == 2, "node{number}: {found:?}");
            held = found[0].1;
        }

        // The next machine copies nothing, anywhere.
        let (other, second) = starts_whole(lab, &of_image("b"), "b", "b-root").await?;
        for number in 1..=3 {
            let found = bases(lab, number)?;
            ensure!(found.len() == 1 && found[0].0 == 3, "node{number}: {found:?}");
            let own = own_bytes(lab, number, &second)?;
            ensure!(own < held / 4, "node{number} has written {own} bytes of {held} for the second machine");
        }
        let engine = lab.get(&format!("{LONGHORN}/engines/{second}-e-0")).await?.context("the engine")?;
        let layers = engine["status"]["snapshots"].as_object().context("its layers")?;
        let base = layers.iter().find(|(name, _)| name.starts_with("base-")).context("its base")?.1;
        ensure!(base["size"] == "0" && base["labels"]["storage.sheaf.io/shared"].is_string(), "{base}");
        lab.sheaf(&["volume", "check", &second]).await?.ok()?;

        // The image goes: machines go on, and its bases have no name of their own any more.
        lab.kubectl(&["delete", "virtualmachineimages.harvesterhci.io", "small", "--wait=false"])
            .await?
            .ok()?;
        wait_for("the bases to be swept", Deadline::GUEST, async || {
            let left: Vec<_> = (1..=3).map(|number| bases(lab, number)).collect::<Result<_>>()?;
            ensure!(left.iter().all(Vec::is_empty), "{left:?}");
            anyhow::Ok(())
        })
        .await?;
        reads_all(&other, "b").await?;
        lab.kubectl(&["delete", "vm", "a", "--wait=false"]).await?.ok()?;
        lab.kubectl(&["delete", "pvc", "a-root", "--wait=false"]).await?.ok()?;
        lab.wait_gone(&format!("{LONGHORN}/volumes/{first}"), Deadline::GUEST).await?;
        reads_all(&other, "alone").await?;
        // It starts again from what it holds by itself.
        lab.act_with("virtualmachines", "b", "stop", r#"{"gracePeriod":0}"#).await?;
        lab.wait_vm("b", "Stopped", Deadline::GUEST).await?;
        lab.act("virtualmachines", "b", "start").await?;
        let other = lab.console("b").await?;
        other.wait_mark("SHEAF-GUEST ready", Deadline::GUEST).await.map(drop)
    })
}
