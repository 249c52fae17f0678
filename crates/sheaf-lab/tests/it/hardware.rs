//! What a machine gets of the node, and in which order it boots: disks by their order, huge pages, processors of its own,
//! what its firmware hands on.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sheaf_lab::{Deadline, Lab, condition, run, wait_for};

use crate::life::only_qemu;

/// A machine without an operating system.
fn bare(name: &str, domain: &Value) -> String {
    let mut all = json!({"memory": {"guest": "64Mi"}, "devices": {"autoattachPodInterface": false}});
    for (key, value) in domain.as_object().into_iter().flatten() {
        all[key] = value.clone();
    }
    json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": name, "namespace": "default"},
        "spec": {"runStrategy": "Always", "template": {"spec": {"terminationGracePeriodSeconds": 0, "domain": all}}},
    })
    .to_string()
}

/// Waits until a condition of the instance has these words.
async fn named(lab: &Lab, name: &str, words: &[&str]) -> Result<()> {
    wait_for(&format!("{name} to say {words:?}"), Deadline::SOON, async || {
        let vmi = lab.vmi(name).await.map_err(|e| format!("{e:#}"))?.unwrap_or_default();
        let (status, reason, message) = condition(&vmi, "Synchronized");
        let text = format!("{status} {reason}: {message}");
        if words.iter().all(|w| text.contains(w)) { Ok(text) } else { Err(text) }
    })
    .await
    .map(|text| eprintln!("lab: it says: {text}"))
}

async fn delete(lab: &Lab, name: &str) -> Result<()> {
    lab.kubectl(&["delete", "vm", name, "--wait=false"]).await?.ok()?;
    let path = format!("/apis/kubevirt.io/v1/namespaces/default/virtualmachines/{name}");
    lab.wait_gone(&path, Deadline::GUEST).await
}

/// A disk that prints `text` on the serial port and halts.
fn boot_sector(text: &str) -> Vec<u8> {
    // ds = 0, si = where the text is; again: lodsb, until it is 0: out to the serial port; then halt.
    let mut code =
        vec![0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0xbe, 0x00, 0x7d, 0xac, 0x84, 0xc0, 0x74, 0x06, 0xba, 0xf8, 0x03];
    code.extend([0xee, 0xeb, 0xf5, 0xf4, 0xeb, 0xfd]);
    code.resize(256, 0);
    code.extend_from_slice(text.as_bytes());
    code.resize(510, 0);
    code.extend([0x55, 0xaa]);
    code.resize(1 << 20, 0);
    code
}

#[test]
fn disks_boot_by_their_order_and_firmware_hands_on() -> Result<()> {
    run("disks boot by their order and firmware hands on", async |lab| {
        lab.import_small_guest().await?;
        let sector = lab.file("sector.img", "")?;
        std::fs::write(&sector, boot_sector("booted from the other disk\r\n"))?;
        lab.import_image("sector", &sector).await?;
        lab.apply(
            "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: other, namespace: default, annotations: {harvesterhci.io/imageId: default/sector}}\n\
             spec: {accessModes: [ReadWriteOnce], volumeMode: Block, resources: {requests: {storage: 8Mi}}}\n",
        )
        .await?;
        // The one that is to boot is not the first.
        let manifest = Lab::small_vm("a", "Always", "")
            .replace(
                "            - name: root\n",
                "            - name: other\n              bootOrder: 2\n              disk:\n                bus: virtio\n            - name: root\n              bootOrder: 1\n",
            )
            .replace(
                "        - name: root\n          persistent",
                "        - name: other\n          persistentVolumeClaim:\n            claimName: other\n        - name: root\n          persistent",
            )
            .replace("masquerade: {}", "masquerade: {}\n              bootOrder: 3")
            .replace(
                "  template:\n    spec:\n",
                "  template:\n    metadata:\n      annotations:\n        kubevirt.io/ignitiondata: '{\"ignition\": {\"version\": \"3.4.0\"}}'\n    spec:\n",
            );
        lab.apply(&manifest).await?;
        let console = lab.console("a").await?;
        console.wait_mark("SHEAF-GUEST ready", Deadline::GUEST).await?;
        ensure!(!console.text().contains("booted from the other disk"), "only one disk boots");
        console
            .type_line("echo ignition: $(cat /sys/firmware/qemu_fw_cfg/by_name/opt/com.coreos/config/raw)")
            .await?;
        console.wait_line(r#"ignition: {"ignition": {"version": "3.4.0"}}"#, Deadline::GUEST).await?;

        lab.act_with("virtualmachines", "a", "stop", r#"{"gracePeriod": 0}"#).await?;
        lab.wait_vm("a", "Stopped", Deadline::SOON).await?;
        let order = |disk: usize, order: u32| json!({"op": "replace", "path": format!("/spec/template/spec/domain/devices/disks/{disk}/bootOrder"), "value": order});
        let swap = json!([order(0, 1), order(1, 2)]).to_string();
        lab.kubectl(&["patch", "vm", "a", "--type=json", "-p", &swap]).await?.ok()?;
        lab.act("virtualmachines", "a", "start").await?;
        let console = lab.console("a").await?;
        console.wait_line("booted from the other disk", Deadline::GUEST).await?;
        ensure!(!console.text().contains("SHEAF-GUEST"), "only one disk boots");

        // What is not to be had is said with upstream's path.
        let kernel = json!({"firmware": {"kernelBoot": {"container": {"image": "k", "kernelPath": "/k"}}}});
        lab.apply(&bare("k", &kernel)).await?;
        named(lab, "k", &["spec.domain.firmware.kernelBoot", "boot from a disk"]).await
    })
}

/// Huge pages that are set aside for the time of the test, as far as the kernel has them.
struct Pages {
    before: u64,
}

const POOL: &str = "/proc/sys/vm/nr_hugepages";

impl Pages {
    fn number() -> Result<u64> {
        std::fs::read_to_string(POOL).context(POOL)?.trim().parse().context(POOL)
    }

    /// `None` if the kernel does not give as many.
    fn reserve(more: u64) -> Result<Option<Self>> {
        let pages = Self { before: Self::number()? };
        std::fs::write(POOL, (pages.before + more).to_string()).context("setting pages aside")?;
        // Dropped if they are too few, which gives them back.
        Ok((Self::number()? >= pages.before + more).then_some(pages))
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if let Err(error) = std::fs::write(POOL, self.before.to_string()) {
            eprintln!("lab: huge pages are not given back: {error}");
        }
    }
}

/// KiB of huge pages that a process has mapped.
fn huge_kib(pid: i32) -> Result<u64> {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).context("its memory")?;
    let of = |line: &str| line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok();
    let huge =
        smaps.lines().filter(|l| l.starts_with("Private_Hugetlb:") || l.starts_with("Shared_Hugetlb:"));
    Ok(huge.filter_map(of).sum())
}

#[test]
fn memory_lies_on_huge_pages_and_processors_are_bound() -> Result<()> {
    run("memory lies on huge pages and processors are bound", async |lab| {
        let huge = json!({"memory": {"guest": "64Mi", "hugepages": {"pageSize": "2Mi"}}});
        if Pages::number()? == 0 {
            lab.apply(&bare("huge", &huge)).await?;
            named(lab, "huge", &["InsufficientHugepages", "needs 32 huge pages of 2Mi", "0 free of 0"])
                .await?;
            ensure!(lab.server().qemus().is_empty(), "no QEMU was begun");
        }
        match Pages::reserve(33)? {
            None => {
                eprintln!("SKIPPED: the kernel sets no 33 huge pages aside; what is on them was not tested")
            }
            Some(_pages) => {
                lab.apply(&bare("huge", &huge)).await?;
                lab.wait_vm("huge", "Running", Deadline::SOON).await?;
                let on = huge_kib(only_qemu(lab)?)?;
                ensure!(on == 64 << 10, "{on} KiB are on huge pages");
                // One is left.
                lab.apply(&bare("more", &huge)).await?;
                named(lab, "more", &["InsufficientHugepages", "1 free of"]).await?;
                delete(lab, "more").await?;
                delete(lab, "huge").await?;
            }
        }
        match Pages::reserve(512)? {
            None => eprintln!(
                "SKIPPED: the kernel sets no 512 huge pages aside; a guest that can grow was not tested"
            ),
            Some(_pages) => {
                // One that could be given more.
                let large = json!({"memory": {"guest": "1Gi", "hugepages": {"pageSize": "2Mi"}}});
                lab.apply(&bare("large", &large)).await?;
                lab.wait_vm("large", "Running", Deadline::SOON).await?;
                let on = huge_kib(only_qemu(lab)?)?;
                ensure!(on == 1 << 20, "{on} KiB are on huge pages");
                delete(lab, "large").await?;
            }
        }
        let sizes = json!({"memory": {"guest": "64Mi", "hugepages": {"pageSize": "4Mi"}}});
        lab.apply(&bare("odd", &sizes)).await?;
        named(lab, "odd", &["hugepages.pageSize", "no huge pages of 4Mi; it has", "2Mi"]).await?;
        delete(lab, "odd").await?;
        bound(lab).await
    })
}

/// The processors that a thread may run on, by name of the thread.
fn threads(pid: i32) -> Result<Vec<(String, BTreeSet<u32>)>> {
    let mut out = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).context("its threads")?.flatten() {
        // A thread may end meanwhile.
        let Ok(status) = std::fs::read_to_string(task.path().join("status")) else { continue };
        let field = |name: &str| {
            status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default().trim().to_owned()
        };
        out.push((field("Name:"), processors(&field("Cpus_allowed_list:"))));
    }
    Ok(out)
}

/// The numbers in a list such as `0-2,5`.
fn processors(list: &str) -> BTreeSet<u32> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u32>().ok()?..=last.parse().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

async fn bound(lab: &mut Lab) -> Result<()> {
    let all = std::thread::available_parallelism().context("processors")?.get();
    if all < 2 {
        eprintln!("SKIPPED: this machine has one processor; none can be a guest's alone");
        return Ok(());
    }
    // One that shares, and one that has its own.
    lab.apply(&bare("shares", &json!({}))).await?;
    lab.wait_vm("shares", "Running", Deadline::SOON).await?;
    let shares = only_qemu(lab)?;
    let own = json!({"cpu": {"cores": 1, "dedicatedCpuPlacement": true}});
    lab.apply(&bare("own", &own)).await?;
    lab.wait_vm("own", "Running", Deadline::SOON).await?;
    let own_pid = lab.server().qemus().into_iter().find(|pid| *pid != shares).context("the second QEMU")?;
    let cpu = wait_for("the guest's processor to be bound", Deadline::SOON, async || {
        let threads = threads(own_pid).map_err(|e| format!("{e:#}"))?;
        let cpu = threads.iter().find(|(name, _)| name.starts_with("CPU 0/")).map(|(_, cpus)| cpus.clone());
        cpu.filter(|cpus| cpus.len() == 1).ok_or_else(|| format!("{threads:?}"))
    })
    .await?;
    ensure!(threads(own_pid)?.iter().all(|(_, cpus)| *cpus == cpu), "{:?}", threads(own_pid)?);
    wait_for("the other guest to keep off it", Deadline::SOON, async || {
        let threads = threads(shares).map_err(|e| format!("{e:#}"))?;
        if threads.iter().all(|(_, cpus)| cpus.is_disjoint(&cpu)) {
            Ok(())
        } else {
            Err(format!("{threads:?}"))
        }
    })
    .await?;

    // More than there are, as one stays for everybody.
    let greedy = json!({"cpu": {"cores": all, "dedicatedCpuPlacement": true}});
    lab.apply(&bare("greedy", &greedy)).await?;
    named(lab, "greedy", &["InsufficientCPU", &format!("needs {all} processors")]).await?;
    ensure!(lab.server().qemus().len() == 2, "no QEMU was begun for it");
    delete(lab, "greedy").await?;

    // Given back: the other guest may run everywhere again.
    delete(lab, "own").await?;
    wait_for("the processor to be everybody's", Deadline::SOON, async || {
        let threads = threads(shares).map_err(|e| format!("{e:#}"))?;
        if threads.iter().all(|(_, cpus)| cpus.is_superset(&cpu)) {
            Ok(())
        } else {
            Err(format!("{threads:?}"))
        }
    })
    .await
}
