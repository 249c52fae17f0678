//! `sheaf image`: what disks are made from. Images are objects of the cluster; downloads are made by a node, uploads
//! go through the API server to one.

mod state;
mod upload;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use sheaf_meta::object;

use self::state::ImageState;
use super::api::IMAGES;
use super::fail::Exit;
use super::print::{self, Format, Table, Tone, age, cell, put, say, size};
use super::progress::{Progress, duration};
use super::{Connection, EXIT_CODES, Session};

pub(crate) use self::state::{Stage, image_state};

/// Options of `sheaf image`.
#[derive(Args)]
pub(crate) struct ImageArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show images: how far they are, and how big.
    #[command(visible_alias = "ls", after_help = format!("Example:\n  sheaf image list -A -o wide\n\n{EXIT_CODES}"))]
    List {
        /// Images of all namespaces.
        #[arg(short = 'A', long)]
        all_namespaces: bool,
        /// Format of the output.
        #[arg(short, long, value_enum)]
        output: Option<Format>,
    },
    /// Have the cluster download an image from a web server.
    #[command(after_help = format!("Example:\n  sheaf image import debian-12 https://HOST/debian-12.qcow2\n\nFormats: raw, qcow2, iso. A broken download is resumed; a failed one is tried again, and its reason told.\n\n{EXIT_CODES}"))]
    Import {
        /// Name of the image, in the namespace of -n unless given as NAMESPACE/NAME.
        name: String,
        /// http:// or https:// address of the file.
        url: String,
        /// SHA-512 of the file, in hexadecimal; another file is refused.
        #[arg(long, value_name = "SHA512")]
        checksum: Option<String>,
        #[command(flatten)]
        common: Making,
    },
    /// Send a file from this machine as an image.
    #[command(after_help = format!("Example:\n  sheaf image upload debian-12 ./debian-12-generic-amd64.qcow2\n\nFormats: raw, qcow2, iso. What is no such file is refused with the reason. After a failed upload the same command may be given again.\n\n{EXIT_CODES}"))]
    Upload {
        /// Name of the image, in the namespace of -n unless given as NAMESPACE/NAME.
        name: String,
        /// The file.
        file: PathBuf,
        /// SHA-512 of the file, in hexadecimal; another file is refused.
        #[arg(long, value_name = "SHA512")]
        checksum: Option<String>,
        #[command(flatten)]
        common: Making,
    },
    /// Delete images. Disks that were made of them keep their data.
    #[command(visible_alias = "rm", after_help = format!("Example:\n  sheaf image delete debian-12\n\n{EXIT_CODES}"))]
    Delete {
        /// Names of images.
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// Options of what makes an image.
#[derive(Args)]
struct Making {
    /// Name for people; the image's own name if absent.
    #[arg(long, value_name = "TEXT")]
    display_name: Option<String>,
    /// Do not wait until the image can be used.
    #[arg(long)]
    no_wait: bool,
    /// How long to wait, as 90s or 30m. The import itself goes on afterwards.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
    timeout: Duration,
}

/// Runs a command of `sheaf image`.
pub(crate) fn run(args: ImageArgs) -> Result<()> {
    super::run(&args.connection, async |session| match &args.command {
        Command::List { all_namespaces, output } => list(session, *all_namespaces, *output).await,
        Command::Import { name, url, checksum, common } => {
            import(session, name, url, checksum.as_deref(), common).await
        }
        Command::Upload { name, file, checksum, common } => {
            let (namespace, name) = session.name(name);
            let image = image_object(namespace, name, "upload", None, checksum.as_deref(), common);
            let timeout = (!common.no_wait).then_some(common.timeout);
            upload::upload(session, namespace, name, file, &image, timeout).await
        }
        Command::Delete { names } => {
            for name in names {
                let (namespace, name) = session.name(name);
                session
                    .delete(IMAGES, namespace, name)
                    .await
                    .with_context(|| format!("deleting image {name}"))?;
                say(&format!("image {namespace}/{name} is deleted"));
            }
            Ok(())
        }
    })
}

async fn list(session: &Session, all: bool, output: Option<Format>) -> Result<()> {
    let items = session.list(IMAGES, (!all).then_some(session.namespace.as_str())).await?;
    match output {
        None | Some(Format::Wide) => {
            if items.is_empty() {
                let place =
                    if all { "any namespace".into() } else { format!("namespace {}", session.namespace) };
                say(&format!("There are no images in {place}. `sheaf image import NAME URL` makes one."));
                return Ok(());
            }
            let wide = output.is_some();
            put(&table(&items, all, wide, Timestamp::now()).render(0, print::coloured()))
        }
        Some(format) => print::objects(IMAGES, &items, format, false),
    }
}

fn table(items: &[Value], all: bool, wide: bool, now: Timestamp) -> Table {
    let mut head = vec!["NAME", "DISPLAY-NAME", "STATE", "SIZE", "DISK-SIZE", "AGE"];
    if all {
        head.insert(0, "NAMESPACE");
    }
    if wide {
        head.extend(["SOURCE", "WHY"]);
    }
    let mut table = Table::new(&head);
    for image in items {
        let state = image_state(image);
        let bytes =
            |field: &str| image["status"][field].as_u64().filter(|n| *n > 0).map(size).unwrap_or_default();
        let mut row = vec![
            cell(object::name(image)),
            cell(object::str_at(image, &["spec", "displayName"])),
            (state.words(), state.tone()),
            cell(bytes("size")),
            cell(bytes("virtualSize")),
            cell(age(object::creation_timestamp(image), now)),
        ];
        if all {
            row.insert(0, cell(object::namespace(image)));
        }
        if wide {
            let url = object::str_at(image, &["spec", "url"]);
            let source = object::str_at(image, &["spec", "sourceType"]);
            row.push(cell(if url.is_empty() { source } else { url }));
            row.push(cell(state.why));
        }
        table.row(row);
    }
    table
}

fn image_object(
    namespace: &str,
    name: &str,
    source: &str,
    url: Option<&str>,
    checksum: Option<&str>,
    making: &Making,
) -> Value {
    let mut image = json!({
        "apiVersion": "harvesterhci.io/v1beta1",
        "kind": "VirtualMachineImage",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "displayName": making.display_name.as_deref().unwrap_or(name),
            "sourceType": source,
        },
    });
    if let Some(url) = url {
        image["spec"]["url"] = url.into();
    }
    if let Some(checksum) = checksum {
        image["spec"]["checksum"] = checksum.into();
    }
    image
}

async fn import(
    session: &Session,
    name: &str,
    url: &str,
    checksum: Option<&str>,
    making: &Making,
) -> Result<()> {
    let (namespace, name) = session.name(name);
    let image = image_object(namespace, name, "download", Some(url), checksum, making);
    session
        .create(IMAGES, namespace, &image, false)
        .await
        .with_context(|| format!("creating image {name}"))?;
    if making.no_wait {
        say(&format!("image {namespace}/{name} is created; the cluster downloads it"));
        return Ok(());
    }
    follow(session, namespace, name, &mut Progress::percent(), making.timeout, Duration::ZERO).await
}

/// Waits until an image can be used; fails when it never will without help. A failure that is told within `grace` is one
/// of an attempt before, which the status still shows.
async fn follow(
    session: &Session,
    namespace: &str,
    name: &str,
    progress: &mut Progress,
    timeout: Duration,
    grace: Duration,
) -> Result<()> {
    let what = format!("importing image {namespace}/{name}");
    let begun = Instant::now();
    let image = progress
        .until(&what, timeout, async |progress| {
            let image = session.get(IMAGES, namespace, name).await?;
            let state = image_state(&image);
            progress.at(state.progress);
            match state.stage {
                Stage::Ready => Ok(Some(image)),
                Stage::Failed if begun.elapsed() < grace => Ok(None),
                Stage::Failed => bail!("image {namespace}/{name} failed: {}", state.why),
                Stage::Deleting => Err(Exit::error(
                    super::fail::NOT_FOUND,
                    format!("image {namespace}/{name} is being deleted"),
                )),
                Stage::Waiting | Stage::Importing => {
                    progress.tell(&told(&state));
                    Ok(None)
                }
            }
        })
        .await?;
    let virtual_size = image["status"]["virtualSize"].as_u64().unwrap_or(0);
    say(&format!("image {namespace}/{name} is ready; its disks have {}", size(virtual_size)));
    Ok(())
}

/// What is going on, without numbers: those are the bar's.
fn told(state: &ImageState) -> String {
    if state.why.is_empty() {
        state.stage.word().to_owned()
    } else {
        format!("{}: {}", state.stage.word(), state.why)
    }
}

impl ImageState {
    /// The state in a table.
    fn words(&self) -> String {
        match self.stage {
            Stage::Importing => format!("{} {} %", self.stage.word(), self.progress),
            _ => self.stage.word().to_owned(),
        }
    }

    fn tone(&self) -> Tone {
        match self.stage {
            Stage::Ready => Tone::Good,
            Stage::Failed => Tone::Bad,
            Stage::Waiting | Stage::Importing | Stage::Deleting => Tone::Busy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_in_a_table() {
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let items = [
            json!({
                "metadata": {"name": "a", "namespace": "x", "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"displayName": "A", "sourceType": "upload"},
                "status": {"size": 1_073_741_824_u64, "virtualSize": 2_147_483_648_u64, "progress": 100,
                    "conditions": [{"type": "Imported", "status": "True"}]},
            }),
            json!({
                "metadata": {"name": "b", "namespace": "x"},
                "spec": {"displayName": "B", "sourceType": "download", "url": "http://h/b"},
                "status": {"progress": 40, "conditions": [{"type": "Imported", "status": "Unknown"}]},
            }),
        ];
        let expected = "\
NAME   DISPLAY-NAME   STATE            SIZE    DISK-SIZE   AGE
a      A              Ready            1 GiB   2 GiB       10m
b      B              Importing 40 %   -       -           -
";
        assert_eq!(table(&items, false, false, now).render(0, false), expected);
        let wide = table(&items, true, true, now).render(0, false);
        assert!(wide.starts_with("NAMESPACE   NAME"), "{wide}");
        assert!(wide.contains("http://h/b"), "{wide}");
    }
}
