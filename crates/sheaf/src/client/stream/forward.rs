//! `sheaf port-forward`: ports of a guest on this machine, or one on standard input and output.

use std::net::IpAddr;

use anyhow::{Context, Result};
use clap::Args;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::super::fail::Exit;
use super::super::print::say;
use super::super::{Connection, EXIT_CODES, Session};
use super::pump::{pump, stdio};
use super::ws::connect;

/// Connections at the same time; further ones wait.
const CONNECTIONS_MAX: usize = 256;

/// Options of `sheaf port-forward`.
#[derive(Args)]
#[command(after_help = format!("Examples:
  sheaf port-forward web 8080:80 2222:22
  sheaf port-forward web 80 --address 0.0.0.0
  ssh -o ProxyCommand='sheaf port-forward --stdio web 22' debian@web

The guest is reached from its own node, so this needs no route to its network.

{EXIT_CODES}"))]
pub(crate) struct ForwardArgs {
    #[command(flatten)]
    connection: Connection,
    /// Name of the VM.
    vm: String,
    /// Ports: PORT, LOCAL:PORT, or :PORT for a free local one.
    #[arg(required = true, value_name = "[LOCAL:]PORT", value_parser = ports)]
    ports: Vec<Ports>,
    /// Connect standard input and output to the port, in place of listening.
    #[arg(long)]
    stdio: bool,
    /// Local address to listen at.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    address: IpAddr,
}

/// A local port (0 for any) and the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ports {
    local: u16,
    guest: u16,
}

fn ports(text: &str) -> Result<Ports, String> {
    let bad = || format!("{text:?} is no port: expected PORT, LOCAL:PORT or :PORT, each from 1 to 65535");
    let port = |text: &str| text.parse().ok().filter(|port| *port != 0).ok_or_else(bad);
    match text.split_once(':') {
        None => port(text).map(|guest| Ports { local: guest, guest }),
        Some(("", guest)) => Ok(Ports { local: 0, guest: port(guest)? }),
        Some((local, guest)) => Ok(Ports { local: port(local)?, guest: port(guest)? }),
    }
}

/// Runs until it is interrupted; with --stdio until one side ends.
pub(crate) fn run(args: ForwardArgs) -> Result<()> {
    super::super::run(&args.connection, async |session| {
        let (namespace, name) = session.name(&args.vm);
        if args.stdio {
            let [ports] = args.ports[..] else {
                return Err(Exit::usage("--stdio takes one port"));
            };
            let sub = format!("portforward/{}/tcp", ports.guest);
            let socket = connect(session, namespace, name, &sub)
                .await
                .with_context(|| format!("port {} of VM {namespace}/{name}", ports.guest))?;
            let (input, output) = stdio()?;
            return pump(socket, input, output).await;
        }
        let mut listeners = Vec::new();
        for ports in &args.ports {
            let listener = TcpListener::bind((args.address, ports.local))
                .await
                .with_context(|| format!("listening at {} port {}", args.address, ports.local))?;
            say(&format!("{} is port {} of VM {namespace}/{name}", listener.local_addr()?, ports.guest));
            listeners.push((listener, format!("portforward/{}/tcp", ports.guest)));
        }
        // One runs for ever or fails, and then all end.
        let mut all = JoinSet::new();
        for (listener, sub) in listeners {
            all.spawn(serve(session.share(), listener, namespace.to_owned(), name.to_owned(), sub));
        }
        match all.join_next().await {
            Some(Ok(result)) => result,
            Some(Err(error)) => Err(error.into()),
            None => Ok(()),
        }
    })
}

/// Accepts connections and carries each over a WebSocket of its own.
pub(super) async fn serve(
    session: Session,
    listener: TcpListener,
    namespace: String,
    name: String,
    sub: String,
) -> Result<()> {
    let session = std::sync::Arc::new(session);
    let mut connections = JoinSet::new();
    loop {
        let (stream, peer) = listener.accept().await.context("accepting a connection")?;
        while connections.len() >= CONNECTIONS_MAX || connections.try_join_next().is_some() {
            if connections.len() >= CONNECTIONS_MAX {
                connections.join_next().await;
            }
        }
        let (session, namespace, name, sub) = (session.clone(), namespace.clone(), name.clone(), sub.clone());
        connections.spawn(async move {
            let carried = async {
                // Small packets, as of a shell, are not to wait for each other.
                stream.set_nodelay(true)?;
                let socket = connect(&session, &namespace, &name, &sub).await?;
                let (reader, writer) = stream.into_split();
                pump(socket, reader, writer).await
            };
            if let Err(error) = carried.await {
                let error = super::super::fail::explain(error, Some(&session));
                say(&format!("connection from {peer}: {error:#}"));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_ports() {
        for (text, local, guest) in [("80", 80, 80), ("8080:80", 8080, 80), (":22", 0, 22)] {
            assert_eq!(ports(text), Ok(Ports { local, guest }), "{text}");
        }
        for bad in ["", "0", "x", "1:2:3", "70000", "80:", "0:80"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }
}
