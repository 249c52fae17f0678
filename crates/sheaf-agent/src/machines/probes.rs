//! Readiness and liveness of guests: by HTTP, TCP, a command in the guest, or a ping of its agent.
//!
//! One task for each probe of a machine. What a probe has found is a [`Verdict`]; the counting is pure. A guest that fails its
//! liveness probe is ended, and its run strategy decides what follows.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use sheaf_api::kubevirt as kv;
use sheaf_runtime::TaskGroup;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tracing::info;

use super::monitor::{Machine, Run};

/// What is read of an HTTP answer.
const ANSWER_MAX: u64 = 4 << 10;

/// What a probe has found so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it counts as passed; `None` before the first decision.
    pub passed: Option<bool>,
    /// Why the last attempt failed.
    pub why: String,
}

/// Attempts in a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    good: i32,
    bad: i32,
}

impl Count {
    /// Takes in an attempt; says whether the verdict is decided by it.
    fn on(&mut self, ok: bool, success: i32, failure: i32) -> Option<bool> {
        if ok {
            (self.good, self.bad) = (self.good.saturating_add(1), 0);
            (self.good >= success.max(1)).then_some(true)
        } else {
            (self.good, self.bad) = (0, self.bad.saturating_add(1));
            (self.bad >= failure.max(1)).then_some(false)
        }
    }
}

/// A probe that runs.
#[derive(Debug, Clone, Default)]
pub struct Probe(Arc<Mutex<Verdict>>);

impl Probe {
    /// What it has found.
    pub fn verdict(&self) -> Verdict {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
    fn set(&self, verdict: Verdict) -> bool {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *held != verdict;
        *held = verdict;
        changed
    }
}

/// Starts a probe. `address` gives the guest's address as it is then; `lethal` ends the machine when the probe has failed.
pub(super) fn watch(
    machine: &Machine,
    spec: kv::Probe,
    address: impl Fn() -> Option<IpAddr> + Send + Sync + 'static,
    lethal: bool,
    changed: impl Fn() + Send + Sync + 'static,
    group: &TaskGroup,
) -> Probe {
    let probe = Probe::default();
    let (held, machine) = (probe.clone(), machine.clone());
    group.spawn(async move {
        let seconds = |n: Option<i32>, default: u64| {
            Duration::from_secs(n.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(default))
        };
        sleep(seconds(spec.initial_delay_seconds, 0)).await;
        let (period, limit) = (seconds(spec.period_seconds, 10), seconds(spec.timeout_seconds, 1));
        let mut count = Count::default();
        while !machine.ended() {
            // A guest that stands still is neither well nor ill.
            if machine.seen().run == Run::Running {
                let attempt = timeout(limit, attempt(&machine, &spec, address(), limit)).await;
                let why = match attempt {
                    Ok(Ok(())) => String::new(),
                    Ok(Err(why)) => why,
                    Err(_) => format!("no answer within {} s", limit.as_secs()),
                };
                let decided = count.on(
                    why.is_empty(),
                    spec.success_threshold.unwrap_or(1),
                    spec.failure_threshold.unwrap_or(3),
                );
                if let Some(passed) = decided {
                    if held.set(Verdict { passed: Some(passed), why: why.clone() }) {
                        changed();
                    }
                    if lethal && !passed {
                        info!(machine = machine.spec().name, why, "the liveness probe has failed: ended");
                        machine.doom(format!("Liveness probe failed: {why}"));
                        return;
                    }
                }
            }
            sleep(period).await;
        }
    });
    probe
}

async fn attempt(
    machine: &Machine,
    spec: &kv::Probe,
    address: Option<IpAddr>,
    limit: Duration,
) -> Result<(), String> {
    if spec.guest_agent_ping.is_some() {
        let pong = machine.guest_agent().call("guest-ping", None, limit).await;
        return pong.map(drop).map_err(|e| e.to_string());
    }
    if let Some(exec) = &spec.exec {
        return command(machine, exec.command.as_deref().unwrap_or_default(), limit).await;
    }
    let address = address.ok_or("the guest has no address yet")?;
    if let Some(http) = &spec.http_get {
        return get(address, http).await;
    }
    if let Some(tcp) = &spec.tcp_socket {
        let port = port(&tcp.port)?;
        let to = SocketAddr::new(address, port);
        return TcpStream::connect(to).await.map(drop).map_err(|e| format!("{to}: {e}"));
    }
    Err("the probe has no handler".into())
}

fn port(port: &k8s_openapi::apimachinery::pkg::util::intstr::IntOrString) -> Result<u16, String> {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    let number = match port {
        IntOrString::Int(n) => u16::try_from(*n).ok(),
        IntOrString::String(text) => text.parse().ok(),
    };
    number.filter(|n| *n > 0).ok_or_else(|| format!("{port:?} is no port; a guest's ports have no names"))
}

async fn get(address: IpAddr, http: &k8s_openapi::api::core::v1::HTTPGetAction) -> Result<(), String> {
    let secure = http.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https"));
    let to = SocketAddr::new(address, port(&http.port)?);
    let fail = |e: std::io::Error| format!("{to}: {e}");
    let stream = TcpStream::connect(to).await.map_err(fail)?;
    let host = http.host.clone().unwrap_or_else(|| to.to_string());
    let path = http.path.as_deref().filter(|p| p.starts_with('/')).unwrap_or("/");
    let mut request =
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: kube-probe\r\nConnection: close\r\n");
    for header in http.http_headers.iter().flatten() {
        let clean = |text: &str| text.replace(['\r', '\n'], "");
        request.push_str(&format!("{}: {}\r\n", clean(&header.name), clean(&header.value)));
    }
    request.push_str("\r\n");
    let answer = if secure {
        // As upstream, whoever answers is believed: the question is whether somebody does.
        let name = rustls::pki_types::ServerName::IpAddress(address.into());
        let stream = tls().map_err(fail)?.connect(name, stream).await.map_err(fail)?;
        exchange(stream, &request).await.map_err(fail)?
    } else {
        exchange(stream, &request).await.map_err(fail)?
    };
    let head = String::from_utf8_lossy(&answer);
    let code: u16 = head.split_ascii_whitespace().nth(1).and_then(|c| c.parse().ok()).unwrap_or(0);
    if (200..400).contains(&code) {
        Ok(())
    } else {
        Err(format!("HTTP probe failed with statuscode: {code}"))
    }
}

/// Sends a request and reads the beginning of the answer.
async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &str,
) -> std::io::Result<Vec<u8>> {
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    match stream.take(ANSWER_MAX).read_to_end(&mut answer).await {
        // Many servers end without saying goodbye, after they have said all.
        Err(e) if answer.is_empty() => Err(e),
        _ => Ok(answer),
    }
}

/// TLS that asks for no name and no authority.
fn tls() -> std::io::Result<TlsConnector> {
    let config = rustls::ClientConfig::builder_with_provider(crate::identity::provider())
        .with_safe_default_protocol_versions()
        .map_err(std::io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(crate::join::Unverified))
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Runs a command in the guest; it has to end with 0.
pub(super) async fn command(machine: &Machine, words: &[String], limit: Duration) -> Result<(), String> {
    let Some((program, arguments)) = words.split_first() else { return Err("the command is empty".into()) };
    let agent = machine.guest_agent();
    let args = json!({"path": program, "arg": arguments, "capture-output": false});
    let begun = agent.call("guest-exec", Some(args), limit).await.map_err(|e| e.to_string())?;
    let pid = begun["pid"].clone();
    loop {
        let state = agent.call("guest-exec-status", Some(json!({"pid": pid})), limit).await;
        let state = state.map_err(|e| e.to_string())?;
        if state["exited"] == true {
            return match state["exitcode"].as_i64() {
                Some(0) => Ok(()),
                Some(code) => Err(format!("{program} ended with {code}")),
                None => Err(format!("{program} ended by signal {}", state["signal"])),
            };
        }
        sleep(Duration::from_millis(100)).await;
    }
}
