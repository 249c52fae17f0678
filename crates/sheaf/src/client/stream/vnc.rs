//! `sheaf vnc`: the screen of a VM, for a viewer on this machine.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;

use anyhow::{Context, Result};
use clap::Args;
use tokio::net::TcpListener;
use tokio::process::Command;

use super::super::api::INSTANCES;
use super::super::fail::{Exit, FAILED};
use super::super::print::{put, say};
use super::super::{Connection, EXIT_CODES, Session};
use super::forward::serve;

/// Viewers that are looked for, and the form in which they take an address.
const VIEWERS: [(&str, Form); 4] = [
    ("remote-viewer", Form::Url),
    ("vncviewer", Form::DoubleColon),
    ("gvncviewer", Form::DoubleColon),
    ("krdc", Form::Url),
];

#[derive(Debug, Clone, Copy)]
enum Form {
    Url,
    DoubleColon,
}

impl Form {
    fn of(self, port: u16) -> String {
        match self {
            Self::Url => format!("vnc://127.0.0.1:{port}"),
            Self::DoubleColon => format!("127.0.0.1::{port}"),
        }
    }
}

/// Options of `sheaf vnc`.
#[derive(Args)]
#[command(after_help = format!("Examples:
  sheaf vnc web
  sheaf vnc web --proxy-only --port 5901 &

Starts remote-viewer, vncviewer, gvncviewer or krdc, whichever is there first. With --proxy-only it prints {{\"port\":N}} and serves viewers at 127.0.0.1 until it is interrupted.

{EXIT_CODES}"))]
pub(crate) struct VncArgs {
    #[command(flatten)]
    connection: Connection,
    /// Name of the VM.
    vm: String,
    /// Start no viewer: print the local port and serve it.
    #[arg(long)]
    proxy_only: bool,
    /// Local port; any free one if absent.
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    port: u16,
}

/// Runs until the viewer ends, or it is interrupted.
pub(crate) fn run(args: VncArgs) -> Result<()> {
    super::super::run(&args.connection, async |session| vnc(session, &args).await)
}

async fn vnc(session: &Session, args: &VncArgs) -> Result<()> {
    let (namespace, name) = session.name(&args.vm);
    let instance = session.find(INSTANCES, namespace, name).await?;
    if instance.is_none() {
        // Says whether there is such a VM at all.
        session.get(super::super::api::VMS, namespace, name).await?;
        return Err(Exit::error(
            FAILED,
            format!("VM {namespace}/{name} is not running; `sheaf vm start {name}` starts it"),
        ));
    }
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, args.port)))
        .await
        .with_context(|| format!("listening at 127.0.0.1 port {}", args.port))?;
    let port = listener.local_addr()?.port();
    let proxy = serve(session.share(), listener, namespace.to_owned(), name.to_owned(), "vnc".to_owned());
    if args.proxy_only {
        put(&format!("{{\"port\":{port}}}\n"))?;
        return proxy.await;
    }
    for (viewer, form) in VIEWERS {
        let started = Command::new(viewer).arg(form.of(port)).stdin(Stdio::null()).kill_on_drop(true).spawn();
        let mut child = match started {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.with_context(|| format!("starting {viewer}"))?,
        };
        say(&format!("{viewer} shows VM {namespace}/{name}"));
        return tokio::select! {
            result = proxy => result,
            ended = child.wait() => {
                let ended = ended.with_context(|| format!("waiting for {viewer}"))?;
                if ended.success() { Ok(()) } else { Err(Exit::error(FAILED, format!("{viewer} failed: {ended}"))) }
            }
        };
    }
    Err(Exit::error(
        FAILED,
        "there is no VNC viewer on this machine (Debian's package virt-viewer has one); --proxy-only serves any",
    ))
}
