//! The streams of machines: console, VNC, port-forward, and what the guest agent answers, on the agent's listener.
//!
//! The API server relays these requests with their paths unchanged, after it has authorised the user. WebSocket is
//! spoken here: raw bytes as binary messages, subprotocol `plain.kubevirt.io` echoed if it is offered. The far end
//! (socket of QEMU, port of the guest) is dialled before the upgrade, so that its errors are plain HTTP answers.
//! Owns the table of sessions: console and VNC have one viewer each, and a newer one takes over.

mod act;
mod guest;
mod relay;
mod session;
mod ws;

use std::collections::HashMap;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use sheaf_meta::status::Status;
use sheaf_qemu::process;
use sheaf_runtime::TaskGroup;
use tokio::net::{TcpStream, UdpSocket, UnixStream};
use tokio::time::timeout;

use crate::http::{API_SERVER, Params, Request, Response, Routes, answer, answer_error};
use crate::machines::Machines;
use crate::machines::monitor::{Machine, Run};
use crate::parts::Network;
use relay::{Far, relay};
use session::{Kind, Sessions};

/// For connecting to a port of a guest.
const DIAL_DEADLINE: Duration = Duration::from_secs(10);
/// What of the console's past a new viewer is shown, in bytes.
const SCROLLBACK: u64 = 8 << 10;
/// Largest picture of a screen, in bytes.
const PICTURE_MAX: u64 = 64 << 20;

type Answer = Result<Response, Box<Status>>;

/// What the handlers share. Cheap to clone.
#[derive(Clone)]
pub struct Streams {
    machines: Machines,
    network: Arc<dyn Network>,
    sessions: Sessions,
    group: TaskGroup,
}

fn fail<T>(code: u16, reason: &'static str, message: impl Into<String>) -> Result<T, Box<Status>> {
    Err(Box::new(Status::new(code, reason, message)))
}

/// `PREFIX/virtualmachineinstances/{name}` and what follows.
macro_rules! instance {
    ($tail:literal) => {
        concat!(
            "/apis/subresources.kubevirt.io/{version}/namespaces/{namespace}/virtualmachineinstances/{name}/",
            $tail
        )
    };
}

impl Streams {
    /// Streams of these machines; tasks end with the group.
    pub fn new(machines: Machines, network: Arc<dyn Network>, group: &TaskGroup) -> Self {
        Self { machines, network, sessions: Sessions::default(), group: group.clone() }
    }

    /// Adds the routes of all streams.
    pub fn routes(&self, routes: &mut Routes) {
        self.route(routes, instance!("console"), |s, r, p| async move { s.console(r, &p).await });
        self.route(routes, instance!("vnc"), |s, r, p| async move { s.vnc(r, &p).await });
        self.route(routes, instance!("vnc/screenshot"), |s, _, p| async move { s.screenshot(&p).await });
        self.route(
            routes,
            instance!("portforward/{port...}"),
            |s, r, p| async move { s.forward(r, &p).await },
        );
        self.route(
            routes,
            "/apis/subresources.kubevirt.io/{version}/namespaces/{namespace}/virtualmachines/{name}/portforward/{port...}",
            |s, r, p| async move { s.forward(r, &p).await },
        );
        self.put(routes, instance!("freeze"), |s, r, p| async move { s.freeze(r, &p).await });
        self.put(routes, instance!("unfreeze"), |s, _, p| async move { s.unfreeze(&p).await });
        self.put(routes, instance!("reset"), |s, _, p| async move { s.reset(&p).await });
        self.route(routes, instance!("vsock"), |s, r, p| async move { s.vsock(r, &p).await });
        self.route(routes, instance!("usbredir"), |s, r, p| async move { s.usb(r, &p).await });
        self.route(routes, instance!("guestosinfo"), |s, _, p| async move {
            guest::os_info(&s.running(&p)?).await
        });
        self.route(
            routes,
            instance!("userlist"),
            |s, _, p| async move { guest::users(&s.running(&p)?).await },
        );
        self.route(routes, instance!("filesystemlist"), |s, _, p| async move {
            guest::file_systems(&s.running(&p)?).await
        });
    }

    fn route<F, A>(&self, routes: &mut Routes, pattern: &'static str, handler: F)
    where
        F: Fn(Self, Request, Params) -> A + Send + Sync + Clone + 'static,
        A: Future<Output = Answer> + Send + 'static,
    {
        self.add(routes, Method::GET, pattern, handler);
    }

    fn put<F, A>(&self, routes: &mut Routes, pattern: &'static str, handler: F)
    where
        F: Fn(Self, Request, Params) -> A + Send + Sync + Clone + 'static,
        A: Future<Output = Answer> + Send + 'static,
    {
        self.add(routes, Method::PUT, pattern, handler);
    }

    fn add<F, A>(&self, routes: &mut Routes, method: Method, pattern: &'static str, handler: F)
    where
        F: Fn(Self, Request, Params) -> A + Send + Sync + Clone + 'static,
        A: Future<Output = Answer> + Send + 'static,
    {
        let streams = self.clone();
        routes.add(method, pattern, &[API_SERVER], move |request, params| {
            let answer = handler(streams.clone(), request, params);
            async move { answer.await.unwrap_or_else(|status| answer_error(&status)) }
        });
    }

    fn running(&self, params: &Params) -> Result<Machine, Box<Status>> {
        let (namespace, name) = (params.get("namespace"), params.get("name"));
        match self.machines.get(namespace, name) {
            Some(machine) if machine.seen().run != Run::Starting => Ok(machine),
            // 400 is what makes virtctl wait and try again.
            _ => fail(400, "BadRequest", format!("VirtualMachineInstance {namespace}/{name} is not running")),
        }
    }

    async fn console(self, request: Request, params: &Params) -> Answer {
        let machine = self.running(params)?;
        if !machine.spec().serial_console {
            return fail(
                400,
                "BadRequest",
                "the machine has no serial console (autoattachSerialConsole: false)",
            );
        }
        let session = self.sessions.take_over(Kind::Console, params);
        let socket = dial(&machine.files().serial()).await?;
        let log = machine.files().serial_log();
        let past = tokio::task::spawn_blocking(move || process::tail(&log, SCROLLBACK)).await;
        let past = scrollback(past.ok().flatten().unwrap_or_default());
        let (response, upgrade) = ws::accept(request)?;
        self.group.spawn(async move {
            let Some(client) = upgrade.finish().await else { return };
            relay(client, Far::stream(socket), past, session.ended(), None).await;
        });
        Ok(response)
    }

    async fn vnc(self, request: Request, params: &Params) -> Answer {
        let machine = self.running(params)?;
        if !machine.spec().graphics {
            return fail(400, "BadRequest", "the machine has no screen (autoattachGraphicsDevice: false)");
        }
        let preserve = query(&request).get("preserveSession").is_some_and(|v| v == "true");
        let session = if preserve {
            match self.sessions.if_free(Kind::Vnc, params) {
                Some(session) => session,
                None => return fail(503, "ServiceUnavailable", "another viewer is connected to the screen"),
            }
        } else {
            self.sessions.take_over(Kind::Vnc, params)
        };
        let socket = match screen(&machine).await {
            Ok(socket) => socket,
            Err(error) => return fail(500, "InternalError", format!("QEMU does not answer: {error}")),
        };
        let (response, upgrade) = ws::accept(request)?;
        self.group.spawn(async move {
            let Some(client) = upgrade.finish().await else { return };
            relay(client, Far::stream(socket), Vec::new(), session.ended(), None).await;
        });
        Ok(response)
    }

    async fn screenshot(self, params: &Params) -> Answer {
        let machine = self.running(params)?;
        if !machine.spec().graphics {
            return fail(400, "BadRequest", "the machine has no screen (autoattachGraphicsDevice: false)");
        }
        let Some(qmp) = machine.qmp() else { return fail(500, "InternalError", "QEMU does not answer") };
        let picture = match Picture::new() {
            Ok(picture) => picture,
            Err(error) => return fail(500, "InternalError", format!("no memory for a picture: {error}")),
        };
        if let Err(error) = qmp.screendump(picture.canvas).await {
            return fail(500, "InternalError", error.to_string());
        }
        let mut image = Vec::new();
        match picture.file.take(PICTURE_MAX).read_to_end(&mut image) {
            Ok(_) => Ok(answer(StatusCode::OK, "image/png", image)),
            Err(error) => fail(500, "InternalError", format!("the picture of the screen is gone: {error}")),
        }
    }

    async fn forward(self, request: Request, params: &Params) -> Answer {
        let (port, protocol) = params.get("port").split_once('/').unwrap_or((params.get("port"), "tcp"));
        let Some(port) = port.parse::<u16>().ok().filter(|p| *p != 0) else {
            return fail(400, "BadRequest", format!("{port:?} is no port; a number from 1 to 65535"));
        };
        let machine = self.running(params)?;
        if let Run::Paused(_) = machine.seen().run {
            return fail(409, "Conflict", "the machine is paused");
        }
        let Some(address) = self.address(params) else {
            let message =
                "no address of the machine is known yet: it has none by DHCP, and no guest agent tells";
            return fail(400, "BadRequest", message);
        };
        let to = SocketAddr::new(address, port);
        let far = match protocol.to_ascii_lowercase().as_str() {
            "tcp" => match timeout(DIAL_DEADLINE, TcpStream::connect(to)).await {
                Ok(Ok(socket)) => {
                    let _ = socket.set_nodelay(true);
                    Far::stream(socket)
                }
                Ok(Err(error)) => {
                    return fail(500, "InternalError", format!("cannot reach {to} in the guest: {error}"));
                }
                Err(_) => return fail(500, "InternalError", format!("the guest does not answer at {to}")),
            },
            "udp" => match udp(to).await {
                Ok(socket) => Far::Datagrams(socket),
                Err(error) => {
                    return fail(500, "InternalError", format!("cannot reach {to} in the guest: {error}"));
                }
            },
            other => return fail(400, "BadRequest", format!("{other:?} is no protocol; tcp or udp")),
        };
        let (response, upgrade) = ws::accept(request)?;
        self.group.spawn(async move {
            let Some(client) = upgrade.finish().await else { return };
            let never = std::future::pending();
            relay(client, far, Vec::new(), never, Some(relay::KEEP_ALIVE)).await;
        });
        Ok(response)
    }

    /// The address of the first NIC that has one.
    fn address(&self, params: &Params) -> Option<IpAddr> {
        let (namespace, name) = (params.get("namespace"), params.get("name"));
        self.machines.address(namespace, name, self.network.as_ref())
    }
}

async fn dial(path: &std::path::Path) -> Result<UnixStream, Box<Status>> {
    match UnixStream::connect(path).await {
        Ok(socket) => Ok(socket),
        Err(error) => fail(500, "InternalError", format!("QEMU does not answer: {error}")),
    }
}

/// A connection to the screen of a machine: one end is QEMU's.
async fn screen(machine: &Machine) -> Result<UnixStream, Box<dyn std::error::Error + Send + Sync>> {
    let qmp = machine.qmp().ok_or("its control connection is down")?;
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    qmp.show_screen(theirs.into()).await?;
    Ok(UnixStream::from_std(ours)?)
}

/// A file in memory for a picture: one end to read, and one that may only be written to.
struct Picture {
    file: std::fs::File,
    canvas: OwnedFd,
}

impl Picture {
    fn new() -> std::io::Result<Self> {
        let memory = rustix::fs::memfd_create("screen", rustix::fs::MemfdFlags::CLOEXEC)?;
        let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
        let canvas = std::fs::OpenOptions::new().write(true).open(path)?.into();
        Ok(Self { file: memory.into(), canvas })
    }
}

async fn udp(to: SocketAddr) -> std::io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(to).await?;
    Ok(socket)
}

/// The parameters after `?`; none of ours needs decoding.
fn query(request: &Request) -> HashMap<String, String> {
    let pairs = request.uri().query().unwrap_or_default().split('&');
    pairs.filter_map(|p| p.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// The past of a console as a new viewer may see it: whole lines, and without the questions that a terminal would
/// answer, as its answers would be typed into the guest.
fn scrollback(log: Vec<u8>) -> Vec<u8> {
    let whole = if log.len() as u64 >= SCROLLBACK {
        let start = log.iter().position(|b| *b == b'\n').map_or(0, |i| i + 1);
        log.get(start..).unwrap_or_default().to_vec()
    } else {
        log
    };
    let mut out = Vec::with_capacity(whole.len());
    let mut rest = whole.as_slice();
    while let Some(at) = rest.windows(2).position(|w| w == b"\x1b[") {
        out.extend_from_slice(&rest[..at]);
        let end = rest[at + 2..].iter().position(|b| (0x40..=0x7e).contains(b));
        let Some(end) = end.map(|e| at + 2 + e) else { return out };
        if !matches!(rest[end], b'n' | b'c' | b't' | b'x') {
            out.extend_from_slice(&rest[at..=end]);
        }
        rest = &rest[end + 1..];
    }
    out.extend_from_slice(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scrollback_has_whole_lines_and_no_questions() {
        assert_eq!(scrollback(b"a\x1b[6nb\x1b[1;31mc\x1b[c\n".to_vec()), b"ab\x1b[1;31mc\n");
        assert_eq!(scrollback(b"half a sequence\x1b[6".to_vec()), b"half a sequence");
        let mut long = vec![b'x'; SCROLLBACK as usize];
        long.extend_from_slice(b"\nline\n");
        assert_eq!(scrollback(long), b"line\n");
    }
}
