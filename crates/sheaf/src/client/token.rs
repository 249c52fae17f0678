//! `sheaf token`: what a further machine needs to join the cluster. The token is a Secret of the cluster
//! (`bootstrap.kubernetes.io/token`), checked by the API server; nothing of it is kept here.

use std::io::{IsTerminal, Read};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use k8s_openapi::jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sheaf_meta::object;

use super::api::{NODES, SECRETS};
use super::print::{put, say};
use super::progress::duration;
use super::{Connection, Session};

const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";

/// Options of `sheaf token`.
#[derive(Args)]
#[command(after_help = concat!("Example, on the server:
  sheaf token --ttl 1h
and on the machine that is to join:
  sheaf agent --server https://SERVER:6443 --token TOKEN

The token names the cluster's CA by its hash, so the joining machine talks to no other server. Whoever has it can join until it expires.

Exit codes: 0 done; 1 failed; 2 wrong usage."))]
pub(crate) struct TokenArgs {
    #[command(flatten)]
    connection: Connection,
    /// How long the token may be used, as 90s, 30m, 24h or 7d.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    ttl: Duration,
}

/// Makes a token and prints it, alone on standard output.
pub(crate) fn run(args: TokenArgs) -> Result<()> {
    super::run(&args.connection, async |session| {
        let pem = session.text("/cacerts").await.context("reading the cluster's CA")?;
        let hash = ca_hash(&pem).context("reading the cluster's CA")?;
        let (id, secret) = (random(6)?, random(16)?);
        let now = Timestamp::now();
        remove_expired(session, now).await.context("removing expired tokens")?;
        let object = secret_object(&id, &secret, now, args.ttl);
        session.create(SECRETS, NAMESPACE, &object, false).await.context("creating the token's secret")?;
        let token = format!("{hash}.{id}.{secret}");
        put(&format!("{token}\n"))?;
        if std::io::stderr().is_terminal() {
            let server = server_for_others(session).await;
            say(&format!(
                "\nOn the machine that is to join, until {}:\n  sheaf agent --server {server} --token {token}",
                object["stringData"]["expiration"].as_str().unwrap_or_default()
            ));
        }
        Ok(())
    })
}

/// SHA-256 of the only certificate of a bundle, as joiners compute it.
fn ca_hash(pem: &str) -> Result<String> {
    let der =
        CertificateDer::from_pem_slice(pem.as_bytes()).context("the server's /cacerts is no certificate")?;
    Ok(Sha256::digest(&der).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Letters and digits that nobody can guess.
fn random(len: usize) -> Result<String> {
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut source = std::fs::File::open("/dev/urandom").context("opening /dev/urandom")?;
    let mut text = String::new();
    let mut byte = [0];
    while text.len() < len {
        source.read_exact(&mut byte).context("reading /dev/urandom")?;
        // 252 is the largest multiple of 36 in a byte; what lies above would make some letters likelier.
        if byte[0] < 252 {
            text.push(char::from(ALPHABET[usize::from(byte[0] % 36)]));
        }
    }
    Ok(text)
}

fn secret_object(id: &str, secret: &str, now: Timestamp, ttl: Duration) -> Value {
    // Whole seconds, which is what the format has; the ttl is bounded by its parser.
    let expiration = i64::try_from(ttl.as_secs())
        .ok()
        .and_then(|seconds| Timestamp::from_second(now.as_second().checked_add(seconds)?).ok())
        .unwrap_or(Timestamp::MAX);
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": NAMESPACE},
        "type": TYPE,
        "stringData": {
            "token-id": id,
            "token-secret": secret,
            "usage-bootstrap-authentication": "true",
            "expiration": expiration.to_string(),
            "description": "Lets machines join the cluster; made by `sheaf token`.",
        },
    })
}

/// Whether a secret is a token whose time is over.
fn is_expired(secret: &Value, now: Timestamp) -> bool {
    let encoded = secret.pointer("/data/expiration").and_then(Value::as_str).unwrap_or_default();
    let expiration = decode(encoded).and_then(|text| text.trim().parse::<Timestamp>().ok());
    secret["type"] == TYPE && expiration.is_some_and(|at| at <= now)
}

/// Base64 of a short text.
fn decode(encoded: &str) -> Option<String> {
    let bytes: k8s_openapi::ByteString = serde_json::from_value(json!(encoded)).ok()?;
    String::from_utf8(bytes.0).ok()
}

async fn remove_expired(session: &Session, now: Timestamp) -> Result<()> {
    for secret in session.list(SECRETS, Some(NAMESPACE)).await? {
        if is_expired(&secret, now) {
            match session.delete(SECRETS, NAMESPACE, object::name(&secret)).await {
                Err(error) if super::fail::status(&error).is_some_and(|s| s.code == 404) => {}
                other => other?,
            }
        }
    }
    Ok(())
}

/// The server's address as other machines can use it: that of the kubeconfig, unless it is this machine's loopback.
async fn server_for_others(session: &Session) -> String {
    let uri = &session.config.cluster_url;
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let loopback = host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    if !loopback {
        return session.url.clone();
    }
    let nodes = session.list(NODES, None).await.unwrap_or_default();
    let port = uri.port_u16().unwrap_or(6443);
    let address = nodes.iter().find_map(control_plane_address).unwrap_or_else(|| "SERVER".into());
    format!("https://{address}:{port}")
}

fn control_plane_address(node: &Value) -> Option<String> {
    object::label(node, "node-role.kubernetes.io/control-plane")?;
    let addresses = node.pointer("/status/addresses")?.as_array()?;
    let ip = addresses.iter().find(|a| a["type"] == "InternalIP")?["address"].as_str()?;
    Some(if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_as_the_agent_reads_it() {
        let token = format!("{}.{}.{}", "0f".repeat(32), random(6).unwrap(), random(16).unwrap());
        assert!(token.parse::<sheaf_agent::join::Token>().is_ok(), "{token}");
        assert_ne!(random(16).unwrap(), random(16).unwrap());
    }

    #[test]
    fn the_secret_and_its_end() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let secret = secret_object("abcdef", "0123456789abcdef", now, Duration::from_secs(3600));
        assert_eq!(secret["metadata"]["name"], "bootstrap-token-abcdef");
        assert_eq!(secret["stringData"]["expiration"], "2026-01-01T01:00:00Z");
        let stored = |at: &str| {
            let bytes = k8s_openapi::ByteString(at.as_bytes().to_vec());
            json!({"type": TYPE, "data": {"expiration": bytes}})
        };
        assert!(is_expired(&stored("2025-12-31T00:00:00Z"), now));
        assert!(!is_expired(&stored("2026-01-02T00:00:00Z"), now));
        assert!(!is_expired(&stored("garbage"), now), "what cannot be read is not ours to remove");
        assert!(!is_expired(&json!({"type": "Opaque"}), now));
    }

    #[test]
    fn the_address_for_others() {
        let node = json!({
            "metadata": {"labels": {"node-role.kubernetes.io/control-plane": "true"}},
            "status": {"addresses": [{"type": "InternalIP", "address": "fd00::1"}]},
        });
        assert_eq!(control_plane_address(&node).as_deref(), Some("[fd00::1]"));
        assert_eq!(control_plane_address(&json!({})), None);
    }
}
