//! A server whose own disk is full: what was acknowledged stays and can be read, writes are refused with the reason, it starts, and goes on when
//! there is room.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sheaf_lab::{Deadline, Lab, run, wait_for};

use crate::small::Small;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Names of the config maps of this test, sorted.
async fn names(lab: &Lab, query: &str) -> Result<Vec<String>> {
    let list = lab.get(&format!("{MAPS}?{query}")).await?.context("a list")?;
    let names = list["items"].as_array().context("items")?.iter().map(|map| &map["metadata"]["name"]);
    let mut names: Vec<String> = names.filter_map(Value::as_str).map(str::to_owned).collect();
    names.retain(|name| name.starts_with("full-"));
    names.sort();
    Ok(names)
}

/// Creates one of 100 KB; `Err`: what was said.
async fn create(lab: &Lab, name: &str) -> Result<std::result::Result<(), String>> {
    let file = lab.file("map", &"x".repeat(100_000))?;
    let from = format!("--from-file=text={}", file.display());
    let out = lab.kubectl(&["create", "configmap", name, &from]).await?;
    Ok(if out.code == 0 { Ok(()) } else { Err(out.stderr) })
}

#[test]
fn a_server_on_a_full_disk_reads_and_starts() -> Result<()> {
    run("a server on a full disk reads and starts", async |lab| {
        lab.server().stop(Deadline::SOON).await?;
        let small = Small::over(&lab.server().data_dir(), 256)?;
        lab.server().start()?;
        lab.server_ready().await?;
        create(lab, "full-000").await?.map_err(anyhow::Error::msg)?;
        let list = lab.get(MAPS).await?.context("a list")?;
        let then = list["metadata"]["resourceVersion"].as_str().context("a revision")?.to_owned();

        small.fill(0)?;
        let mut made = vec!["full-000".to_owned()];
        // Room for some was reserved.
        let refused = loop {
            ensure!(made.len() < 600, "writes are accepted on a full disk");
            let name = format!("full-{:03}", made.len());
            match create(lab, &name).await? {
                Ok(()) => made.push(name),
                Err(said) => break said,
            }
        };
        ensure!(refused.contains("no room is left on the disk"), "{refused}");
        ensure!(names(lab, "").await? == made, "what was acknowledged is there");
        // From the database rather than from memory.
        let exact = format!("resourceVersion={then}&resourceVersionMatch=Exact");
        ensure!(names(lab, &exact).await? == made[..1], "and what was before");

        lab.server().kill().await?;
        lab.server().start()?;
        lab.server_ready().await?;
        ensure!(names(lab, "").await? == made, "after a new start, too");
        let refused = create(lab, "full-999").await?.err().context("there is still no room")?;
        ensure!(refused.contains("no room is left on the disk"), "{refused}");

        small.make_room()?;
        wait_for("a write to be accepted again", Deadline::SOON, async || {
            create(lab, "full-999").await.map_err(|e| format!("{e:#}"))?
        })
        .await?;
        made.push("full-999".to_owned());
        ensure!(names(lab, "").await? == made, "and nothing is lost");
        lab.server().stop(Deadline::SOON).await
    })
}
