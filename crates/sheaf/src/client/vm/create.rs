//! `sheaf vm create`: gathers what the options name, has the server check the objects, makes them, and follows the VM
//! until it runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use sheaf_meta::object;
use sheaf_meta::quantity::Quantity;

use super::super::api::{IMAGES, INSTANCES, KEY_PAIRS, SECRETS, VMS};
use super::super::fail::Exit;
use super::super::image::image_state;
use super::super::print::{self, Format, put, say, size};
use super::super::progress::{Progress, duration};
use super::super::{EXIT_CODES, Session, fail};
use super::compose::{MANAGEMENT, Named, Size, Wanted, public_key, user_data};
use super::view::VmView;

/// Size of a root disk, unless its image needs more.
const DISK: &str = "10Gi";

/// Options of `sheaf vm create`.
#[derive(Args)]
#[command(after_help = format!("Examples:
  sheaf vm create web --image debian-12 --cpus 2 --memory 2Gi --disk 20Gi --ssh-key ~/.ssh/id_ed25519.pub
  sheaf vm create db --image debian-12 --disk 10Gi --disk 100Gi --network management --network default/vlan100 --user-data db.yaml
  sheaf vm create web --image debian-12 --instancetype u1.small --preference debian
  sheaf vm create web --image debian-12 --dry-run > web.yaml

The VM brings its disks along (claims NAME-root, NAME-data1, ...); `sheaf vm delete` removes them with it. User data is kept in the secret NAME-cloudinit, which goes with the VM.

{EXIT_CODES}"))]
pub(crate) struct CreateArgs {
    /// Name of the VM, in the namespace of -n unless given as NAMESPACE/NAME.
    name: String,
    /// Image that the root disk begins as: NAME or NAMESPACE/NAME. Without it the disk is empty.
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Number of virtual processors; 1 if absent.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=512))]
    cpus: Option<u32>,
    /// Memory, as 512Mi or 2Gi; 1Gi if absent.
    #[arg(long, value_name = "SIZE", value_parser = quantity)]
    memory: Option<String>,
    /// Instance type in place of --cpus and --memory: NAME of the cluster's, or virtualmachineinstancetype/NAME of the namespace's.
    #[arg(long, value_name = "[KIND/]NAME", value_parser = instance_type, conflicts_with_all = ["cpus", "memory"])]
    instancetype: Option<Named>,
    /// What suits the guest: NAME of a preference of the cluster, or virtualmachinepreference/NAME of the namespace's.
    #[arg(long, value_name = "[KIND/]NAME", value_parser = preference)]
    preference: Option<Named>,
    /// Size of the root disk; given again, sizes of further, empty disks. Default: 10Gi, or what the image needs.
    #[arg(long = "disk", value_name = "SIZE", value_parser = quantity)]
    disks: Vec<String>,
    /// A claim that is there already, as a further disk; it stays when the VM is deleted. Can be repeated.
    #[arg(long = "volume", value_name = "CLAIM")]
    claims: Vec<String>,
    /// A public SSH key for the guest's default user: a file, or the name of a KeyPair of the cluster. Can be repeated.
    #[arg(long = "ssh-key", value_name = "FILE|KEYPAIR")]
    ssh_keys: Vec<String>,
    /// File with cloud-init user data; - is standard input. --ssh-key adds its key to a #cloud-config.
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,
    /// Network of a NIC: `management` (the default; DHCP and NAT), or [NAMESPACE/]NAME of a network attachment
    /// definition. Each use adds a NIC.
    #[arg(long = "network", value_name = "NETWORK")]
    networks: Vec<String>,
    /// Node that it has to run on; any if absent.
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// When it should run.
    #[arg(long, value_enum, value_name = "STRATEGY", ignore_case = true, default_value_t = RunStrategy::Always)]
    run_strategy: RunStrategy,
    /// Seconds that the guest has for shutting down before it is ended by force.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    termination_grace_period: u32,
    /// Do not wait until it runs.
    #[arg(long)]
    no_wait: bool,
    /// How long to wait until it runs, as 90s or 5m.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration)]
    timeout: Duration,
    /// Make nothing: have the server check the objects, and print them.
    #[arg(long)]
    dry_run: bool,
    /// Format in which the VM is printed.
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

/// When a VM should run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
enum RunStrategy {
    /// Always; it is started again whenever it ends.
    Always,
    /// Started again when it fails, not when its guest shuts down.
    RerunOnFailure,
    /// Started and stopped by `sheaf vm start` and `stop` only.
    Manual,
    /// Not at all for now.
    Halted,
    /// Once; not started again.
    Once,
}

impl RunStrategy {
    fn name(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::RerunOnFailure => "RerunOnFailure",
            Self::Manual => "Manual",
            Self::Halted => "Halted",
            Self::Once => "Once",
        }
    }
}

/// `[KIND/]NAME`: without a kind, the cluster's.
fn named(text: &str, namespaced: &'static str, of_cluster: &'static str) -> Result<Named, String> {
    let (kind, name) = match text.split_once('/') {
        None => (of_cluster, text),
        Some((kind, name)) if kind.eq_ignore_ascii_case(namespaced) => (namespaced, name),
        Some((kind, name)) if kind.eq_ignore_ascii_case(of_cluster) => (of_cluster, name),
        Some((kind, _)) => {
            let (a, b) = (namespaced.to_lowercase(), of_cluster.to_lowercase());
            return Err(format!("{kind:?} is none of the kinds {a} and {b}"));
        }
    };
    if name.is_empty() {
        return Err("the name is empty".into());
    }
    Ok(Named { kind, name: name.to_owned() })
}

fn instance_type(text: &str) -> Result<Named, String> {
    named(text, "VirtualMachineInstancetype", "VirtualMachineClusterInstancetype")
}

fn preference(text: &str) -> Result<Named, String> {
    named(text, "VirtualMachinePreference", "VirtualMachineClusterPreference")
}

/// A size, as Kubernetes writes it; positive.
fn quantity(text: &str) -> Result<String, String> {
    match Quantity::parse(text).ok().and_then(|q| q.bytes()) {
        Some(bytes) if bytes > 0 => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is no size: expected a number with Mi, Gi or Ti, as 512Mi or 10Gi")),
    }
}

/// Runs `sheaf vm create`.
pub(super) async fn create(session: &Session, args: &CreateArgs) -> Result<()> {
    let (namespace, name) = session.name(&args.name);
    let mut wanted = Wanted {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        size: match &args.instancetype {
            Some(of) => Size::Type(of.clone()),
            None => Size::Own {
                cpus: args.cpus.unwrap_or(1),
                memory: args.memory.clone().unwrap_or_else(|| "1Gi".into()),
            },
        },
        preference: args.preference.clone(),
        disks: args.disks.clone(),
        claims: args.claims.clone(),
        grace_period: args.termination_grace_period,
        networks: networks(namespace, &args.networks),
        node: args.node.clone(),
        run_strategy: args.run_strategy.name().to_owned(),
        ..Wanted::default()
    };
    let mut virtual_size = 0;
    if let Some(text) = &args.image {
        let image = find_image(session, text).await?;
        virtual_size = image.pointer("/status/virtualSize").and_then(Value::as_u64).unwrap_or(0);
        wanted.image = Some(format!("{}/{}", object::namespace(&image), object::name(&image)));
    }
    root_size(&mut wanted, virtual_size)?;
    let keys = ssh_keys(session, &args.ssh_keys).await?;
    let given = args.user_data.as_deref().map(read_user_data).transpose()?;
    wanted.user_data = user_data(given.as_deref(), &keys).map_err(Exit::usage)?;

    let (vm, secret) = (wanted.vm(), wanted.secret());
    // First without effect: nothing is left behind by a VM that the server refuses.
    session.create(VMS, namespace, &vm, true).await.with_context(|| format!("creating VM {name}"))?;
    if args.dry_run {
        if let Some(secret) = &secret {
            session
                .create(SECRETS, namespace, secret, true)
                .await
                .context("creating the secret of its user data")?;
        }
        let objects: Vec<Value> = secret.into_iter().chain([vm]).collect();
        return match args.output {
            Some(Format::Json | Format::Name) => {
                print::objects(VMS, &objects, args.output.unwrap_or(Format::Json), false)
            }
            _ => {
                let documents: Result<Vec<String>> = objects.iter().map(print::yaml).collect();
                put(&documents?.join("---\n"))
            }
        };
    }
    if wanted.image.is_some() && wanted.user_data.is_none() {
        say("There is neither --ssh-key nor --user-data: the guest has the users of its image only.");
    }
    let created = make(session, &wanted, &vm, secret.as_ref()).await?;
    let runs =
        matches!(args.run_strategy, RunStrategy::Always | RunStrategy::RerunOnFailure | RunStrategy::Once);
    if args.no_wait || !runs {
        say(&format!("VM {namespace}/{name} is created"));
        return print_vm(args.output, created);
    }
    let vm = until_running(session, namespace, name, wanted.image.as_deref(), args.timeout).await?;
    print_vm(args.output, vm)
}

fn print_vm(output: Option<Format>, vm: Value) -> Result<()> {
    match output {
        Some(format) => print::objects(VMS, &[vm], format, true),
        None => Ok(()),
    }
}

/// The secret, the VM, and the VM as the secret's owner. A VM that could not be made leaves no secret behind.
async fn make(session: &Session, wanted: &Wanted, vm: &Value, secret: Option<&Value>) -> Result<Value> {
    let (namespace, name) = (wanted.namespace.as_str(), wanted.name.as_str());
    if let Some(secret) = secret {
        session
            .create(SECRETS, namespace, secret, false)
            .await
            .context("creating the secret of its user data")?;
    }
    let created = match session.create(VMS, namespace, vm, false).await {
        Ok(created) => created,
        Err(error) => {
            if secret.is_some() {
                // The error that counts is the first one.
                let _ = session.delete(SECRETS, namespace, &wanted.secret_name()).await;
            }
            return Err(error.context(format!("creating VM {name}")));
        }
    };
    if secret.is_some() {
        let owner = json!({
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachine",
            "name": name,
            "uid": object::uid(&created),
        });
        let patch = json!({"metadata": {"ownerReferences": [owner]}});
        session
            .merge(SECRETS, namespace, &wanted.secret_name(), &patch)
            .await
            .context("making the VM the owner of its user data")?;
    }
    Ok(created)
}

/// NICs: the management network unless others are named; names without a namespace are of the VM's.
fn networks(namespace: &str, given: &[String]) -> Vec<String> {
    if given.is_empty() {
        return vec![MANAGEMENT.into()];
    }
    let full = |name: &String| match name.as_str() {
        MANAGEMENT => MANAGEMENT.into(),
        name if name.contains('/') => name.into(),
        name => format!("{namespace}/{name}"),
    };
    given.iter().map(full).collect()
}

/// The image of this name, or the only one of this display name.
async fn find_image(session: &Session, text: &str) -> Result<Value> {
    let (namespace, name) = session.name(text);
    // A display name may hold what no name may.
    let by_name = session.find(IMAGES, namespace, name).await.unwrap_or(None);
    if let Some(image) = by_name {
        return Ok(image);
    }
    let images = session.list(IMAGES, Some(namespace)).await?;
    let mut same = images.iter().filter(|i| object::str_at(i, &["spec", "displayName"]) == name);
    match (same.next(), same.next()) {
        (Some(image), None) => Ok(image.clone()),
        _ => {
            let names: Vec<&str> = images.iter().map(object::name).collect();
            let there = if names.is_empty() {
                "There are none; `sheaf image import NAME URL` makes one.".to_owned()
            } else {
                format!("There are: {}.", names.join(", "))
            };
            Err(Exit::error(
                fail::NOT_FOUND,
                format!("there is no image {name} in namespace {namespace}. {there}"),
            ))
        }
    }
}

/// The root disk is as large as its image at least.
fn root_size(wanted: &mut Wanted, virtual_size: u64) -> Result<()> {
    let bytes = |text: &str| Quantity::parse(text).ok().and_then(|q| q.bytes()).unwrap_or(0);
    match wanted.disks.first() {
        Some(given) if bytes(given) < virtual_size => {
            let image = wanted.image.as_deref().unwrap_or_default();
            Err(Exit::usage(format!(
                "--disk {given} is too small: disks of image {image} have {} at least",
                size(virtual_size)
            )))
        }
        Some(_) => Ok(()),
        None => {
            let default = bytes(DISK);
            let size = if virtual_size > default { virtual_size.to_string() } else { DISK.to_owned() };
            wanted.disks.push(size);
            Ok(())
        }
    }
}

async fn ssh_keys(session: &Session, given: &[String]) -> Result<Vec<String>> {
    let mut keys = Vec::new();
    for text in given {
        let path = Path::new(text);
        // A private key next to its public one is what people have at hand.
        let public = PathBuf::from(format!("{text}.pub"));
        let file = if public.is_file() { public.as_path() } else { path };
        if file.is_file() {
            let content = std::fs::read_to_string(file)
                .with_context(|| format!("reading the SSH key {}", file.display()))?;
            keys.push(
                public_key(&content)
                    .map_err(|why| Exit::usage(format!("--ssh-key {} {why}", file.display())))?,
            );
            continue;
        }
        let (namespace, name) = session.name(text);
        let pair = if text.starts_with(['.', '/', '~']) || text.ends_with(".pub") {
            None
        } else {
            session.find(KEY_PAIRS, namespace, name).await?
        };
        let key = pair.as_ref().map(|pair| object::str_at(pair, &["spec", "publicKey"]).trim().to_owned());
        match key.filter(|key| !key.is_empty()) {
            Some(key) => keys.push(key),
            None => {
                let text = format!(
                    "--ssh-key {text}: there is no such file, and no KeyPair of that name in the cluster"
                );
                return Err(Exit::error(fail::NOT_FOUND, text));
            }
        }
    }
    Ok(keys)
}

fn read_user_data(path: &Path) -> Result<String> {
    let text = if path == Path::new("-") {
        std::io::read_to_string(std::io::stdin()).context("reading the user data from standard input")?
    } else {
        std::fs::read_to_string(path).with_context(|| format!("reading the user data {}", path.display()))?
    };
    if text.trim().is_empty() {
        bail!("the user data in {} is empty", path.display());
    }
    Ok(text)
}

/// Follows a VM until its guest runs, telling why it does not yet.
pub(super) async fn until_running(
    session: &Session,
    namespace: &str,
    name: &str,
    image: Option<&str>,
    timeout: Duration,
) -> Result<Value> {
    let mut progress = Progress::spinner();
    let (vm, node) = progress
        .until(&format!("starting VM {namespace}/{name}"), timeout, async |progress| {
            let vm = session.get(VMS, namespace, name).await?;
            let instance = session.find(INSTANCES, namespace, name).await?;
            let view = VmView { vm: &vm, instance: instance.as_ref() };
            if view.phase() == "Running" {
                let node = view.node().to_owned();
                return Ok(Some((vm, node)));
            }
            let mut words = format!("VM {namespace}/{name}: {}", view.status());
            if let Some(image) = image {
                words += &importing(session, image).await?;
            }
            for why in view.why() {
                words += &format!("; {why}");
            }
            progress.tell(&words);
            Ok(None)
        })
        .await?;
    drop(progress);
    let name = if namespace == session.namespace { name.to_owned() } else { format!("{namespace}/{name}") };
    say(&format!(
        "VM {name} runs on node {node}; `sheaf console {name}` shows its boot, `sheaf ssh USER@{name}` logs in"
    ));
    Ok(vm)
}

/// An image that is not ready yet, in words.
async fn importing(session: &Session, image: &str) -> Result<String> {
    let (namespace, name) = session.name(image);
    let Some(image) = session.find(IMAGES, namespace, name).await? else {
        return Ok(format!("; its image {namespace}/{name} has been deleted"));
    };
    let state = image_state(&image);
    Ok(match state.stage.word() {
        "Ready" => String::new(),
        stage => format!("; image {name}: {stage} {} % {}", state.progress, state.why).trim_end().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_root_disks() {
        let root = |given: &[&str], virtual_size: u64| {
            let disks = given.iter().map(|s| (*s).to_owned()).collect();
            let mut wanted = Wanted { disks, image: Some("a/b".into()), ..Wanted::default() };
            root_size(&mut wanted, virtual_size).map(|()| wanted.disks.join(" ")).map_err(|e| e.to_string())
        };
        assert_eq!(root(&[], 0), Ok("10Gi".into()));
        assert_eq!(root(&[], 11 << 30), Ok("11811160064".into()));
        assert_eq!(root(&["2Gi", "1Gi"], 2 << 30), Ok("2Gi 1Gi".into()));
        let refused = root(&["1Gi"], 2 << 30).unwrap_err();
        assert_eq!(refused, "--disk 1Gi is too small: disks of image a/b have 2 GiB at least");
    }

    #[test]
    fn nics() {
        assert_eq!(networks("x", &[]), ["management"]);
        let given = ["vlan1", "management", "y/vlan2"].map(String::from);
        assert_eq!(networks("x", &given), ["x/vlan1", "management", "y/vlan2"]);
    }

    #[test]
    fn kinds_of_types() {
        let cluster = Named { kind: "VirtualMachineClusterInstancetype", name: "u1.small".into() };
        assert_eq!(instance_type("u1.small"), Ok(cluster));
        let own = Named { kind: "VirtualMachinePreference", name: "mine".into() };
        assert_eq!(preference("virtualmachinepreference/mine"), Ok(own));
        let wrong = preference("pod/mine").unwrap_err();
        assert_eq!(
            wrong,
            "\"pod\" is none of the kinds virtualmachinepreference and virtualmachineclusterpreference"
        );
        assert!(instance_type("virtualmachineinstancetype/").is_err());
    }

    #[test]
    fn quantities() {
        assert!(quantity("10Gi").is_ok() && quantity("512M").is_ok());
        for bad in ["0", "-1Gi", "ten", "10GB", ""] {
            assert!(quantity(bad).is_err(), "{bad}");
        }
    }
}
