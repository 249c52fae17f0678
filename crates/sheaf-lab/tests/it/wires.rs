//! A guest's file system on a volume of three replicas while wires are cut, slow and open in one direction, and while storage processes die: every
//! file is read as it was written, and at the end all replicas hold the same.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sheaf_lab::{Console, Deadline, Wire, run, wait_for};

use crate::claims::{kill_storage_process, starts_whole, three_nodes, vm, wait_volume};

/// A guest that has written nothing for so long waits: a file takes it a fraction of that.
const STILL: Duration = Duration::from_secs(8);

/// What `keeps show` said last: files written, files that differed.
async fn kept(console: &Console, asked: &mut u32) -> Result<(u64, u64)> {
    *asked += 1;
    console.type_line(&format!("keeps show {asked}")).await?;
    let line = console.wait_line(&format!("look={asked}."), Deadline::GUEST).await?;
    let number = |name: &str| {
        let at = line.split_whitespace().find_map(|word| word.strip_prefix(name))?;
        at.parse().ok()
    };
    number("n=").zip(number("bad=")).with_context(|| format!("numbers in {line:?}"))
}

/// Waits until the guest has written some more files, all of them well.
async fn goes_on(console: &Console, asked: &mut u32, more: u64) -> Result<u64> {
    let (from, _) = kept(console, asked).await?;
    wait_for(&format!("{more} files more"), Deadline::GUEST, async || {
        let (n, bad) = kept(console, asked).await.map_err(|e| format!("{e:#}"))?;
        if n >= from + more && bad == 0 {
            Ok(n)
        } else {
            Err(format!("{from}, then {n} files, {bad} differ"))
        }
    })
    .await
}

/// Waits until the guest has written nothing for a while: what it has asked for cannot be decided.
async fn waits(console: &Console, asked: &mut u32) -> Result<u64> {
    let mut last = (0, Instant::now());
    wait_for("the guest to wait", Deadline::GUEST, async || {
        let (n, _) = kept(console, asked).await.map_err(|e| format!("{e:#}"))?;
        if n != last.0 {
            last = (n, Instant::now());
        }
        if last.1.elapsed() >= STILL { Ok(n) } else { Err(format!("{n} files")) }
    })
    .await
}

#[test]
fn a_file_system_outlives_what_wires_do() -> Result<()> {
    run("a file system outlives what wires do", async |lab| {
        three_nodes(lab).await?;
        lab.import_small_guest().await?;
        let (console, data) = starts_whole(lab, &vm("a"), "a", "a-data").await?;
        console.type_line("keeps begin /dev/vdb").await?;
        console.wait_line("SHEAF-GUEST keeps n=0 bad=0", Deadline::GUEST).await?;
        let mut asked = 0;
        goes_on(&console, &mut asked, 10).await?;

        // A replica is lost, and comes back, by each way of losing it.
        for (node, wire) in [(2, Wire::Cut), (3, Wire::Mute), (2, Wire::Deaf), (3, Wire::Slow)] {
            lab.spoil(node, wire)?;
            if wire != Wire::Slow {
                wait_volume(lab, &data, "attached", "degraded").await?;
            }
            let n = goes_on(&console, &mut asked, 5).await?;
            eprintln!("lab: node{node} {wire:?}: {n} files");
            lab.mend(node);
            wait_volume(lab, &data, "attached", "healthy").await?;
        }
        // The machine's own node: nothing can be decided there, so the guest waits.
        lab.spoil(1, Wire::Cut)?;
        let before = waits(&console, &mut asked).await?;
        lab.mend(1);
        goes_on(&console, &mut asked, 5).await?;
        wait_volume(lab, &data, "attached", "healthy").await?;
        // Storage processes die, one after the other, and the one that the guest talks to with them.
        for node in [2, 1, 3] {
            kill_storage_process(lab, node)?;
            goes_on(&console, &mut asked, 5).await?;
        }
        wait_volume(lab, &data, "attached", "healthy").await?;

        console.type_line("keeps end").await?;
        let end = console.wait_line("SHEAF-GUEST kept ", Deadline::GUEST).await?;
        eprintln!("lab: {end} (n={before} when its node was cut off)");
        ensure!(end.contains("bad=0 errors=0 fsck=0"), "{end}\n{}", console.text());
        // Block for block, while it is attached.
        let checked = lab.sheaf(&["volume", "check", "a-data"]).await?.ok()?;
        eprintln!("lab: {}", checked.trim());
        Ok(())
    })
}
