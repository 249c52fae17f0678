//! Replicated volumes as people handle them: `sheaf volume`, volumes that nobody uses made whole, nodes and disks emptied.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sheaf_lab::{Deadline, Lab, condition, run, wait_for};

use crate::claims::{LONGHORN, on_node1, starts_whole, three_nodes, vm, wait_volume, write_and_read};

/// `sheaf volume`, which has to succeed.
async fn volume(lab: &Lab, args: &[&str]) -> Result<String> {
    lab.sheaf(&[&["volume"], args].concat()).await?.ok()
}

/// `sheaf volume`, which has to fail with this code, and to say these words.
async fn refused(lab: &Lab, args: &[&str], code: i32, words: &[&str]) -> Result<()> {
    let out = lab.sheaf(&[&["volume"], args].concat()).await?;
    ensure!(out.code == code, "`{}` ended with {}: {}{}", out.command, out.code, out.stdout, out.stderr);
    for word in words {
        ensure!(out.stderr.contains(word), "`{}` does not say {word:?}: {}", out.command, out.stderr);
    }
    Ok(())
}

async fn shown(lab: &Lab, name: &str) -> Result<Value> {
    serde_json::from_str(&volume(lab, &["show", name, "-o", "json"]).await?).context("JSON")
}

/// Node, name and directory of each replica that holds everything.
async fn replicas(lab: &Lab, name: &str) -> Result<Vec<(String, String, PathBuf)>> {
    let seen = shown(lab, name).await?;
    let text = |r: &Value, field: &str| r["spec"][field].as_str().unwrap_or_default().to_owned();
    let all = seen["replicas"].as_array().cloned().unwrap_or_default();
    let good = all.iter().filter(|r| {
        text(r, "failedAt").is_empty()
            && !text(r, "healthyAt").is_empty()
            && r["metadata"]["deletionTimestamp"].is_null()
    });
    let mut out: Vec<_> = good
        .map(|r| {
            let dir = Path::new(&text(r, "diskPath")).join("replicas").join(text(r, "dataDirectoryName"));
            (text(r, "nodeID"), r["metadata"]["name"].as_str().unwrap_or_default().to_owned(), dir)
        })
        .collect();
    out.sort();
    Ok(out)
}

/// Waits until a volume that nobody uses has exactly these nodes' replicas, none of them called `not`, and is at rest.
async fn rests_on(lab: &Lab, name: &str, nodes: &[&str], not: &[&str]) -> Result<()> {
    wait_for(&format!("volume {name} to rest on {nodes:?} without {not:?}"), Deadline::GUEST, async || {
        let told = |e: anyhow::Error| format!("{e:#}");
        let good = replicas(lab, name).await.map_err(told)?;
        let seen = shown(lab, name).await.map_err(told)?;
        let all = seen["replicas"].as_array().map_or(0, Vec::len);
        let on: Vec<&str> = good.iter().map(|(node, ..)| node.as_str()).collect();
        let fresh = good.iter().all(|(_, name, _)| !not.contains(&name.as_str()));
        let rests = seen["volume"]["status"]["state"] == "detached";
        if on == nodes && all == nodes.len() && fresh && rests {
            return Ok(());
        }
        Err(format!("{good:?} of {all}; {}", seen["volume"]["status"]))
    })
    .await
}

async fn events(lab: &Lab, name: &str) -> Result<BTreeSet<String>> {
    let list = lab.get("/api/v1/namespaces/longhorn-system/events").await?.context("a list")?;
    let all = list["items"].as_array().into_iter().flatten();
    let of = all.filter(|e| e["involvedObject"]["name"] == name);
    Ok(of.filter_map(|e| e["reason"].as_str().map(str::to_owned)).collect())
}

/// A replica directory as Longhorn leaves it, with a file of data in it.
fn longhorn_directory(disk: &Path, name: &str, bytes: usize, word: &str) -> Result<PathBuf> {
    let dir = disk.join("replicas").join(name);
    std::fs::create_dir_all(&dir)?;
    let head = "volume-head-000.img";
    // Nothing in it is zero, and no two parts are equal.
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut data: Vec<u8> = Vec::with_capacity(bytes);
    while data.len() < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        data.extend((state | 0x0101_0101_0101_0101).to_le_bytes());
    }
    data[..word.len()].copy_from_slice(word.as_bytes());
    std::fs::write(dir.join(head), data)?;
    let meta = json!({"Name": head, "Parent": "", "Removed": false, "UserCreated": false,
        "Created": "2026-01-01T00:00:00Z", "Labels": null});
    std::fs::write(dir.join(format!("{head}.meta")), format!("{meta}\n"))?;
    let whole = json!({"Size": bytes, "Head": head, "Dirty": false, "Rebuilding": false, "Error": "", "Parent": "",
        "SectorSize": 512, "BackingFilePath": "", "Encrypted": false});
    std::fs::write(dir.join("volume.meta"), format!("{whole}\n"))?;
    Ok(dir)
}

async fn stop(lab: &Lab, name: &str) -> Result<()> {
    lab.act_with("virtualmachines", name, "stop", r#"{"gracePeriod":0}"#).await?;
    lab.wait_vm(name, "Stopped", Deadline::GUEST).await.map(drop)
}

#[test]
fn the_command_line_keeps_volumes() -> Result<()> {
    run("the command line keeps volumes", async |lab| {
        three_nodes(lab).await?;
        by_itself(lab).await?;

        lab.import_small_guest().await?;
        let (console, data) = starts_whole(lab, &vm("a"), "a", "a-data").await?;
        let listed: Value = serde_json::from_str(&volume(lab, &["list", "-o", "json"]).await?)?;
        let names: Vec<&str> = listed["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|v| v["metadata"]["name"].as_str())
            .collect();
        ensure!(names.contains(&data.as_str()) && names.contains(&"plain"), "{names:?}");

        // A moment is kept and the disk grows while the guest runs, by the claim's name.
        write_and_read(&console, "vdb", "first-1").await?;
        volume(lab, &["snapshot", "a-data", "before"]).await?;
        write_and_read(&console, "vdb", "later-2").await?;
        volume(lab, &["expand", "a-data", "--size", "64Mi"]).await?;
        console.type_line("echo size-$(cat /sys/block/vdb/size)").await?;
        console.wait_line("size-131072", Deadline::GUEST).await?;
        refused(
            lab,
            &["revert", "a-data", "before"],
            1,
            &["VirtualMachineInstance default/a", "stop it first"],
        )
        .await?;
        refused(lab, &["revert", "plain", "before"], 3, &["before", &data, "plain"]).await?;
        stop(lab, "a").await?;
        volume(lab, &["revert", "a-data", "before"]).await?;

        // Nothing differs; then one replica's part of the snapshot does, and is made as the others have it.
        volume(lab, &["check", "a-data"]).await?;
        rests_on(lab, &data, &["node1", "node2", "node3"], &[]).await?;
        let all = replicas(lab, &data).await?;
        let file = |at: usize| all[at].2.join("volume-snap-before.img");
        let sound = std::fs::read(file(0)).context("a snapshot's file")?;
        ensure!(sound.starts_with(b"first-1"), "it holds {:?}", &sound[..8]);
        let mut damaged = sound.clone();
        damaged[100] ^= 0x55;
        std::fs::write(file(1), &damaged)?;
        std::fs::File::open(file(1))?.sync_all()?;
        refused(lab, &["check", "a-data"], 1, &["differed between replicas and were made equal"]).await?;
        volume(lab, &["check", "a-data"]).await?;
        rests_on(lab, &data, &["node1", "node2", "node3"], &[]).await?;
        ensure!(std::fs::read(file(1))? == sound, "it is as it was");

        // A directory is lost while nobody uses the volume, and another replica takes its place; one is given up by name.
        std::fs::remove_dir_all(&all[2].2)?;
        rests_on(lab, &data, &["node1", "node2", "node3"], &[&all[2].1]).await?;
        let told = events(lab, &data).await?;
        for reason in ["Faulted", "OfflineRebuilding", "OfflineRebuilt"] {
            ensure!(told.contains(reason), "no event {reason}: {told:?}");
        }
        volume(lab, &["rebuild", "a-data", "--replica", &all[1].1]).await?;
        rests_on(lab, &data, &["node1", "node2", "node3"], &[&all[1].1, &all[2].1]).await?;
        refused(lab, &["rebuild", "a-data"], 2, &["--replica", "0 of the replicas"]).await?;

        // All of it is in what was made anew: the machine starts, and finds what was there at the snapshot.
        lab.act("virtualmachines", "a", "start").await?;
        let console = lab.console("a").await?;
        console.wait_mark("SHEAF-GUEST ready", Deadline::GUEST).await?;
        console
            .type_line("dd if=/dev/vdb bs=4096 count=1 2>/dev/null | head -c 7 | sed 's/^/holds-/'; echo")
            .await?;
        console.wait_line("holds-first-1", Deadline::GUEST).await.map(drop)
    })
}

/// A volume that no claim knows.
async fn by_itself(lab: &Lab) -> Result<()> {
    volume(lab, &["create", "plain", "--size", "16Mi", "--replicas", "2"]).await?;
    refused(lab, &["create", "plain", "--size", "16Mi"], 1, &["plain", "already exists"]).await?;
    refused(
        lab,
        &["create", "many", "--size", "16Mi", "--replicas", "9"],
        1,
        &["spec.numberOfReplicas", "between 1 and 8"],
    )
    .await?;
    refused(lab, &["show", "nothing"], 3, &["no volume nothing"]).await?;
    ensure!(replicas(lab, "plain").await?.len() == 2, "two replicas");
    let text = volume(lab, &["show", "plain"]).await?;
    for word in ["State:", "detached", "Replicas:", "in sync"] {
        ensure!(text.contains(word), "no {word:?} in:\n{text}");
    }
    let table = volume(lab, &["list"]).await?;
    ensure!(
        table.lines().any(|l| l.starts_with("plain ") && l.contains("2/2") && l.contains("16 MiB")),
        "{table}"
    );
    volume(lab, &["expand", "plain", "--size", "32Mi"]).await?;
    refused(lab, &["expand", "plain", "--size", "16Mi"], 2, &["plain", "spec.size", "cannot shrink"]).await?;
    volume(lab, &["snapshot", "plain", "empty"]).await?;
    let seen = shown(lab, "plain").await?;
    ensure!(seen["engine"]["status"]["currentSize"] == "33554432", "{}", seen["engine"]["status"]);
    ensure!(seen["snapshots"][0]["metadata"]["name"] == "empty", "{}", seen["snapshots"]);
    volume(lab, &["revert", "plain", "empty"]).await?;
    volume(lab, &["snapshot", "plain", "empty", "--delete"]).await?;
    lab.wait_gone(&format!("{LONGHORN}/snapshots/empty"), Deadline::GUEST).await?;
    // What has no room is refused with the disk's name, and keeps nothing attached.
    volume(lab, &["create", "huge", "--size", "16Mi", "--replicas", "1"]).await?;
    refused(
        lab,
        &["expand", "huge", "--size", "100Ti"],
        1,
        &["huge", "disk default-disk-", "insufficient storage"],
    )
    .await?;
    wait_volume(lab, "huge", "detached", "unknown").await.map(drop)
}

#[test]
fn a_directory_of_longhorns_is_adopted_and_in_use_while_it_is_made_whole() -> Result<()> {
    run("a directory of Longhorn's is adopted", async |lab| {
        three_nodes(lab).await?;
        lab.import_small_guest().await?;
        let disk = lab.node_ref(2).data_dir().join("storage");
        let dir = longhorn_directory(&disk, "pvc-old-0a1b2c3d", 256 << 20, "from-longhorn")?;
        let path = dir.to_string_lossy().into_owned();
        let elsewhere = lab.file("other", "")?;
        refused(lab, &["adopt", &elsewhere.to_string_lossy()], 2, &["does not lie in replicas/"]).await?;
        volume(lab, &["adopt", &path, "--replicas", "2", "--claim", "a-data"]).await?;
        refused(lab, &["adopt", &path], 2, &["already"]).await?;

        // It is made whole at once, as nobody uses it; and a machine that wants it meanwhile has it, though on another node.
        let copying =
            |v: &Value| condition(v, "OfflineRebuilding").0 == "True" && v["status"]["state"] == "attached";
        let of = format!("{LONGHORN}/volumes/pvc-old");
        lab.wait_object("the volume to be made whole", &of, Deadline::GUEST, copying).await?;
        let mut manifest = on_node1(&vm("a"));
        manifest = manifest.split_once("---").map(|(_, rest)| rest.to_owned()).context("two documents")?;
        lab.apply(&manifest).await?;
        let used = |v: &Value| v["status"]["currentNodeID"] == "node1" && v["status"]["state"] == "attached";
        let seen = lab.wait_object("the volume to be on node1", &of, Deadline::GUEST, used).await?;
        eprintln!("lab: it is {} then", seen["status"]["robustness"]);
        let console = lab.console("a").await?;
        console.wait_mark("SHEAF-GUEST ready", Deadline::GUEST).await?;
        console
            .type_line("dd if=/dev/vdb bs=4096 count=1 2>/dev/null | head -c 13 | sed 's/^/holds-/'; echo")
            .await?;
        console.wait_line("holds-from-longhorn", Deadline::GUEST).await?;
        wait_volume(lab, "pvc-old", "attached", "healthy").await?;
        stop(lab, "a").await?;
        let good = replicas(lab, "pvc-old").await?;
        ensure!(good.len() == 2 && good.iter().any(|(node, ..)| node == "node2"), "{good:?}");
        wait_volume(lab, "pvc-old", "detached", "unknown").await?;
        let mut heads = Vec::new();
        for (_, _, dir) in &good {
            heads.push(std::fs::read(dir.join("volume-head-000.img"))?);
        }
        let differs = heads[0].iter().zip(&heads[1]).position(|(a, b)| a != b);
        ensure!(heads[0].len() == heads[1].len() && differs.is_none(), "they differ at byte {differs:?}");
        Ok(())
    })
}

/// Merge patch of a node as a place for replicas.
async fn patch_node(lab: &Lab, node: &str, spec: Value) -> Result<()> {
    let patch = json!({"spec": spec}).to_string();
    let args = ["patch", "nodes.longhorn.io", node, "-n", "longhorn-system", "--type=merge", "-p", &patch];
    lab.kubectl(&args).await?.ok().map(drop)
}

#[test]
fn nodes_and_disks_are_emptied_and_added() -> Result<()> {
    run("nodes and disks are emptied and added", async |lab| {
        three_nodes(lab).await?;
        // A node where nothing may be put is not used.
        patch_node(lab, "node3", json!({"allowScheduling": false})).await?;
        volume(lab, &["create", "v", "--size", "32Mi", "--replicas", "2"]).await?;
        rests_on(lab, "v", &["node1", "node2"], &[]).await?;
        // A node that is to be emptied keeps what has nowhere to go, and says why.
        patch_node(lab, "node2", json!({"evictionRequested": true})).await?;
        let held = |v: &Value| {
            condition(v, "Scheduled").0 == "False" && condition(v, "Scheduled").2.contains("node3")
        };
        let of = format!("{LONGHORN}/volumes/v");
        let seen = lab.wait_object("the volume to say what holds it", &of, Deadline::GUEST, held).await?;
        let why = condition(&seen, "Scheduled").2;
        ensure!(why.contains("allowScheduling is false") && why.contains("evictionRequested"), "{why}");
        patch_node(lab, "node3", json!({"allowScheduling": true})).await?;
        rests_on(lab, "v", &["node1", "node3"], &[]).await?;
        patch_node(lab, "node2", json!({"evictionRequested": false})).await?;

        // Another disk, with a tag, is used by who asks for that, and no more of it than may be.
        let path = lab.node_ref(2).data_dir().join("fast");
        std::fs::create_dir_all(&path)?;
        let place = path.to_string_lossy().into_owned();
        let all = rustix::fs::statvfs(&path)?;
        let reserved = (all.f_blocks * all.f_frsize).saturating_sub(128 << 20);
        let disk = json!({"path": place, "diskType": "filesystem", "allowScheduling": true, "evictionRequested": false,
            "storageReserved": reserved, "tags": ["fast"]});
        patch_node(lab, "node2", json!({"disks": {"fast": disk}})).await?;
        let node = format!("{LONGHORN}/nodes/node2");
        let ready = |n: &Value| {
            let disk = &n["status"]["diskStatus"]["fast"];
            disk["diskUUID"].is_string() && condition(&json!({"status": disk}), "Ready").0 == "True"
        };
        lab.wait_object("the disk to be ready", &node, Deadline::GUEST, ready).await?;
        let tagged = |name: &str, size: &str| {
            json!({"apiVersion": "longhorn.io/v1beta2", "kind": "Volume",
                "metadata": {"name": name, "namespace": "longhorn-system"},
                "spec": {"size": size, "numberOfReplicas": 1, "frontend": "blockdev", "diskSelector": ["fast"]}})
        };
        lab.apply(&tagged("w", "67108864").to_string()).await?;
        rests_on(lab, "w", &["node2"], &[]).await?;
        let on = replicas(lab, "w").await?;
        ensure!(on[0].2.starts_with(&path), "{on:?}");
        lab.apply(&tagged("x", "67108864").to_string()).await?;
        rests_on(lab, "x", &["node2"], &[]).await?;
        lab.apply(&tagged("y", "67108864").to_string()).await?;
        let full = |v: &Value| condition(v, "Scheduled").2.contains("node2/fast: insufficient storage");
        lab.wait_object("no room to be left", &format!("{LONGHORN}/volumes/y"), Deadline::GUEST, full)
            .await?;
        // More may be promised than there is.
        let more = r#"{"value":"200"}"#;
        let setting = "storage-over-provisioning-percentage";
        let args =
            ["patch", "settings.longhorn.io", setting, "-n", "longhorn-system", "--type=merge", "-p", more];
        lab.kubectl(&args).await?.ok()?;
        rests_on(lab, "y", &["node2"], &[]).await?;

        // The disk is emptied to another with its tag.
        let second = lab.node_ref(3).data_dir().join("fast");
        std::fs::create_dir_all(&second)?;
        let disk = json!({"path": second.to_string_lossy(), "diskType": "filesystem", "allowScheduling": true,
            "tags": ["fast"]});
        patch_node(lab, "node3", json!({"disks": {"fast": disk}})).await?;
        patch_node(lab, "node2", json!({"disks": {"fast": {"evictionRequested": true}}})).await?;
        for name in ["w", "x", "y"] {
            rests_on(lab, name, &["node3"], &[]).await?;
        }
        let left: Vec<_> =
            std::fs::read_dir(path.join("replicas"))?.flatten().map(|e| e.file_name()).collect();
        ensure!(left.is_empty(), "nothing is left on the disk: {left:?}");
        Ok(())
    })
}
