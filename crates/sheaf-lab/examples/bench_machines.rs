//! `make bench-machines`: how long it takes from a request to a machine that runs, to a change in it, to a copy of it with
//! its memory; and what each machine costs beside its QEMU. Prints a table; asserts nothing about time.
//!
//! Words on the command line name the parts that are wanted: `one`, `burst`, `clone`; without any, all.
//!
//! Guests need no operating system for most of this: a machine runs when its processors do.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sheaf_lab::{Deadline, Lab, run, small_guest_image, wait_for};

const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";
const VMS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines";
const VMIS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances";
const SNAPSHOTS: &str = "/apis/snapshot.kubevirt.io/v1beta1/namespaces/default";
/// Machines of the burst.
const BURST: usize = 20;
/// Machines that are made one after the other.
const SINGLE: usize = 5;

fn main() -> Result<()> {
    run("bench-machines", async |lab| {
        // What is measured is the machine, not its storage.
        lab.set_default_class("local").await?;
        let only: Vec<String> = std::env::args().skip(1).collect();
        let wanted = |part: &str| only.is_empty() || only.iter().any(|o| o == part);
        if wanted("one") {
            one_by_one(lab).await?;
        }
        if wanted("burst") {
            burst(lab).await?;
        }
        if wanted("clone") {
            large_image(lab).await?;
            replicated(lab).await?;
            clone(lab).await?;
            changes(lab).await?;
            memory(lab).await?;
        }
        Ok(())
    })
}

fn row(what: &str, measured: &str, goal: &str) {
    println!("| {what} | {measured} | {goal} |");
}

fn ms(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}

/// A machine without disks.
fn bare(name: &str) -> Value {
    json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": name, "namespace": "default"},
        "spec": {"runStrategy": "Always", "template": {"spec": {
            "terminationGracePeriodSeconds": 0,
            "domain": {"cpu": {"cores": 1}, "memory": {"guest": "64Mi"},
                "devices": {"interfaces": [{"name": "default", "masquerade": {}}]}},
            "networks": [{"name": "default", "pod": {}}],
        }}},
    })
}

async fn post(lab: &Lab, path: &str, object: &Value) -> Result<()> {
    let body = serde_json::to_vec(object)?;
    let request = http::Request::post(path).header("content-type", "application/json").body(body)?;
    lab.client().await?.request::<Value>(request).await.map(drop).with_context(|| format!("POST {path}"))
}

async fn delete(lab: &Lab, path: &str) -> Result<()> {
    let request = http::Request::delete(path).body(Vec::new())?;
    lab.client()
        .await?
        .request::<Value>(request)
        .await
        .map(drop)
        .with_context(|| format!("DELETE {path}"))?;
    lab.wait_gone(path, Deadline::GUEST).await
}

async fn running(lab: &Lab, name: &str) -> Result<()> {
    let path = format!("{VMIS}/{name}");
    wait_for("a machine to run", Deadline::GUEST, async || {
        let vmi = lab.get(&path).await.map_err(|e| format!("{e:#}"))?.unwrap_or_default();
        if vmi["status"]["phase"] == "Running" { Ok(()) } else { Err(vmi["status"].to_string()) }
    })
    .await
}

/// Memory that Sheaf itself holds: its anonymous pages, as those of files are shared.
fn resident(lab: &mut Lab) -> Result<u64> {
    let pid = lab.server().pid().context("the server runs")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).context("RssAnon")?;
    Ok(line.split_ascii_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0))
}

async fn one_by_one(lab: &Lab) -> Result<()> {
    let mut times = Vec::new();
    for n in 0..SINGLE {
        let name = format!("one-{n}");
        let began = Instant::now();
        post(lab, VMS, &bare(&name)).await?;
        running(lab, &name).await?;
        times.push(began.elapsed());
        delete(lab, &format!("{VMS}/{name}")).await?;
    }
    times.sort();
    let text = format!("median {}, {} to {}", ms(times[SINGLE / 2]), ms(times[0]), ms(times[SINGLE - 1]));
    row(&format!("created (POST) to running, {SINGLE} machines one after the other"), &text, "300 ms");
    Ok(())
}

async fn burst(lab: &mut Lab) -> Result<()> {
    let before = resident(lab)?;
    let began = Instant::now();
    for n in 0..BURST {
        post(lab, VMS, &bare(&format!("many-{n}"))).await?;
    }
    let mut times: Vec<Option<Duration>> = vec![None; BURST];
    wait_for("the burst to run", Deadline::GUEST, async || {
        let all = lab.get(VMIS).await.map_err(|e| format!("{e:#}"))?.unwrap_or_default();
        for vmi in all["items"].as_array().into_iter().flatten().filter(|v| v["status"]["phase"] == "Running")
        {
            let name = vmi["metadata"]["name"].as_str().unwrap_or_default();
            let number = name.strip_prefix("many-").and_then(|n| n.parse::<usize>().ok());
            if let Some(time) = number.and_then(|n| times.get_mut(n)) {
                time.get_or_insert_with(|| began.elapsed());
            }
        }
        let left = times.iter().filter(|t| t.is_none()).count();
        if left == 0 { Ok(()) } else { Err(format!("{left} do not run yet")) }
    })
    .await?;
    let mut times: Vec<Duration> = times.into_iter().flatten().collect();
    times.sort();
    let p95 = times[BURST * 95 / 100 - 1];
    let text = format!("p95 {}, all after {}", ms(p95), ms(times[BURST - 1]));
    row(&format!("{BURST} machines asked for at once, from the first POST to running"), &text, "p95 3000 ms");
    let each = resident(lab)?.saturating_sub(before) as f64 / BURST as f64 / 1024.0;
    row("memory of Sheaf for each machine, beside its QEMU", &format!("{each:.1} MiB"), "4 MB");
    for n in 0..BURST {
        delete(lab, &format!("{VMS}/many-{n}")).await?;
    }
    Ok(())
}

/// The small guest's disk, made 10 GB large.
async fn large_image(lab: &Lab) -> Result<()> {
    let file = lab.file("large.qcow2", "")?;
    let (small, large) = (small_guest_image()?.display().to_string(), file.display().to_string());
    for args in [
        vec!["convert", "-q", "-f", "raw", "-O", "qcow2", &small, &large],
        vec!["resize", "-q", "-f", "qcow2", &large, "10G"],
    ] {
        lab.command("qemu-img", &args).await?.ok()?;
    }
    lab.import_image("large", &file).await
}

/// A machine `name` on a claim of the large image in this class, made and waited for.
async fn of_image(lab: &Lab, name: &str, class: &str) -> Result<Duration> {
    let began = Instant::now();
    post(lab, CLAIMS, &json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": "default", "annotations": {"harvesterhci.io/imageId": "default/large"}},
        "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Block", "storageClassName": class,
            "resources": {"requests": {"storage": "10Gi"}}},
    }))
    .await?;
    let mut vm = bare(name);
    let spec = &mut vm["spec"]["template"]["spec"];
    spec["domain"]["memory"]["guest"] = json!("1Gi");
    spec["domain"]["cpu"] = json!({"cores": 1, "sockets": 1, "maxSockets": 4});
    spec["domain"]["devices"]["disks"] = json!([{"name": "root", "disk": {"bus": "virtio"}}]);
    spec["volumes"] = json!([{"name": "root", "persistentVolumeClaim": {"claimName": name}}]);
    post(lab, VMS, &vm).await?;
    running(lab, name).await?;
    Ok(began.elapsed())
}

/// The same on replicated volumes: the first makes the base, the others share it.
async fn replicated(lab: &Lab) -> Result<()> {
    let mut times = Vec::new();
    for n in 0..=SINGLE {
        let name = format!("replicated-{n}");
        times.push(of_image(lab, &name, "harvester-longhorn").await?);
        delete(lab, &format!("{VMS}/{name}")).await?;
    }
    let first = times.remove(0);
    times.sort();
    let text = format!(
        "median {}, {} to {}; the first {}",
        ms(times[SINGLE / 2]),
        ms(times[0]),
        ms(times[SINGLE - 1]),
        ms(first)
    );
    row(
        "machine of an image of 10 GB on replicated volumes, one node: claim and machine created, to running",
        &text,
        "1000 ms",
    );
    Ok(())
}

async fn clone(lab: &Lab) -> Result<()> {
    let took = of_image(lab, "clone", "local").await?;
    row("linked clone of an image of 10 GB: claim and machine created, to running", &ms(took), "1000 ms");
    let console = lab.console("clone").await?;
    console.wait_mark("SHEAF-GUEST ready", Deadline::GUEST).await.map(drop)
}

async fn patch(lab: &Lab, path: &str, patch: &Value) -> Result<()> {
    let request = http::Request::patch(path)
        .header("content-type", "application/merge-patch+json")
        .body(serde_json::to_vec(patch)?)?;
    lab.client().await?.request::<Value>(request).await.map(drop).with_context(|| format!("PATCH {path}"))
}

async fn changes(lab: &Lab) -> Result<()> {
    let vmi = format!("{VMIS}/clone");
    lab.apply(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data, namespace: default}\n\
         spec: {accessModes: [ReadWriteOnce], volumeMode: Block, resources: {requests: {storage: 1Gi}}}\n",
    )
    .await?;
    let options = json!({"name": "data", "disk": {"disk": {"bus": "scsi"}}, "volumeSource": {"persistentVolumeClaim": {"claimName": "data"}}});
    let began = Instant::now();
    lab.act_with("virtualmachines", "clone", "addvolume", &options.to_string()).await?;
    let ready = |v: &Value| {
        let volumes = v["status"]["volumeStatus"].as_array();
        volumes.is_some_and(|all| all.iter().any(|s| s["name"] == "data" && s["phase"] == "Ready"))
    };
    lab.wait_object("the disk", &vmi, Deadline::GUEST, ready).await?;
    row(
        "a new disk plugged in: addvolume to Ready, making the volume included",
        &ms(began.elapsed()),
        "1000 ms",
    );

    let began = Instant::now();
    let more = json!({"spec": {"template": {"spec": {"domain": {"cpu": {"sockets": 2}}}}}});
    patch(lab, &format!("{VMS}/clone"), &more).await?;
    let two = |v: &Value| v["status"]["currentCPUTopology"]["sockets"] == 2;
    lab.wait_object("the processor", &vmi, Deadline::GUEST, two).await?;
    row("a processor plugged in", &ms(began.elapsed()), "1000 ms");

    let began = Instant::now();
    lab.act_with("virtualmachines", "clone", "removevolume", r#"{"name": "data"}"#).await?;
    let gone = |v: &Value| {
        let volumes = v["status"]["volumeStatus"].as_array();
        volumes.is_some_and(|all| all.iter().all(|s| s["name"] != "data"))
    };
    lab.wait_object("the disk to be gone", &vmi, Deadline::GUEST, gone).await?;
    row("that disk unplugged", &ms(began.elapsed()), "1000 ms");
    Ok(())
}

async fn memory(lab: &Lab) -> Result<()> {
    let object = |kind: &str, name: &str, spec: Value| {
        json!({"apiVersion": "snapshot.kubevirt.io/v1beta1", "kind": kind,
            "metadata": {"name": name, "namespace": "default", "annotations": {"sheaf.io/memory": "true"}}, "spec": spec})
    };
    let vm = json!({"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": "clone"});
    let began = Instant::now();
    post(
        lab,
        &format!("{SNAPSHOTS}/virtualmachinesnapshots"),
        &object("VirtualMachineSnapshot", "s", json!({"source": vm})),
    )
    .await?;
    let path = format!("{SNAPSHOTS}/virtualmachinesnapshots/s");
    let made = lab
        .wait_object("the snapshot", &path, Deadline::GUEST, |s| s["status"]["readyToUse"] == true)
        .await?;
    ensure!(made["status"]["indications"][1] == "Memory", "{}", made["status"]);
    row(
        "snapshot with memory (1 GiB, a small part of it used) and disk",
        &ms(began.elapsed()),
        "2000 ms beside the copy",
    );
    let unlocked = |vm: &Value| vm["status"]["snapshotInProgress"].is_null();
    lab.wait_object("the VM to be unlocked", &format!("{VMS}/clone"), Deadline::SOON, unlocked).await?;
    let before = lab.vmi("clone").await?.context("the instance")?["metadata"]["uid"].clone();
    let began = Instant::now();
    let spec = json!({"target": vm, "virtualMachineSnapshotName": "s"});
    post(lab, &format!("{SNAPSHOTS}/virtualmachinerestores"), &object("VirtualMachineRestore", "r", spec))
        .await?;
    let again = |v: &Value| v["status"]["phase"] == "Running" && v["metadata"]["uid"] != before;
    lab.wait_object("the machine to run again", &format!("{VMIS}/clone"), Deadline::GUEST, again).await?;
    row(
        "restored, stopping it included, to running where it was",
        &ms(began.elapsed()),
        "2000 ms beside the copy",
    );
    Ok(())
}
