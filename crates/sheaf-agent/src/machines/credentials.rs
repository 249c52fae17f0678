//! Access credentials that a guest's agent puts in place while the guest runs: SSH keys and passwords, from Secrets.
//!
//! Looked at while an agent answers: what differs from what was put in place last is put in place, and everything now and then
//! anyway, as guests are reinstalled and restored. What went wrong is said in a condition.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use serde_json::json;
use sha2::{Digest, Sha256};
use sheaf_api::kubevirt as kv;
use sheaf_qemu::qga::{CALL_DEADLINE, Qga};

use super::cloudinit::{Data, public_keys};

/// How often Secrets are looked at.
pub(super) const LOOK: Duration = Duration::from_secs(15);

/// One thing to put in place.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wish {
    /// These keys, and no others, for a user.
    Keys(String, Vec<String>),
    /// A password for a user.
    Password(String, String),
}

/// The Secrets that are named for the agent.
fn secrets(credentials: &[kv::AccessCredential]) -> Vec<String> {
    let mut out = Vec::new();
    for credential in credentials {
        let keys =
            credential.ssh_public_key.as_ref().filter(|k| k.propagation_method.qemu_guest_agent.is_some());
        let password =
            credential.user_password.as_ref().filter(|p| p.propagation_method.qemu_guest_agent.is_some());
        let sources = [keys.map(|k| &k.source), password.map(|p| &p.source)];
        out.extend(
            sources.into_iter().flatten().filter_map(|s| Some(s.secret.as_ref()?.secret_name.clone())),
        );
    }
    out.sort();
    out.dedup();
    out
}

/// What an instance wants, given the Secrets.
fn wishes(credentials: &[kv::AccessCredential], data: &BTreeMap<String, Data>) -> Vec<Wish> {
    let mut keys: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut out = Vec::new();
    for credential in credentials {
        if let Some(ssh) = &credential.ssh_public_key
            && let Some(agent) = &ssh.propagation_method.qemu_guest_agent
            && let Some(secret) = ssh.source.secret.as_ref().and_then(|s| data.get(&s.secret_name))
        {
            for user in &agent.users {
                keys.entry(user.clone()).or_default().extend(public_keys(secret));
            }
        }
        if let Some(password) = &credential.user_password
            && password.propagation_method.qemu_guest_agent.is_some()
            && let Some(secret) = password.source.secret.as_ref().and_then(|s| data.get(&s.secret_name))
        {
            // Each key is a user.
            for (user, value) in secret {
                let text = String::from_utf8_lossy(value).trim_end_matches('\n').to_owned();
                out.push(Wish::Password(user.clone(), text));
            }
        }
    }
    out.extend(keys.into_iter().map(|(user, keys)| Wish::Keys(user, keys)));
    out
}

/// Whether an instance has credentials for its agent.
pub(super) fn wanted(vmi: &kv::VirtualMachineInstance) -> bool {
    !secrets(&vmi.spec.access_credentials).is_empty()
}

/// Puts everything in place whose digest is not `before`. Gives the digest of what is in place, or why it is not.
pub(super) async fn sync(
    client: &Client,
    namespace: &str,
    credentials: &[kv::AccessCredential],
    agent: &Qga,
    before: Option<&str>,
) -> Result<String, String> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let mut data = BTreeMap::new();
    for name in secrets(credentials) {
        let found =
            api.get_opt(&name).await.map_err(|e| format!("cannot read Secret {namespace}/{name}: {e}"))?;
        let found = found.ok_or_else(|| format!("Secret {namespace}/{name} does not exist"))?;
        let values: Data = found.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect();
        data.insert(name, values);
    }
    let all = wishes(credentials, &data);
    let digest = Sha256::digest(format!("{all:?}")).iter().map(|b| format!("{b:02x}")).collect::<String>();
    if before == Some(digest.as_str()) {
        return Ok(digest);
    }
    for wish in all {
        let (command, arguments, user) = match wish {
            Wish::Keys(user, keys) => (
                "guest-ssh-add-authorized-keys",
                json!({"username": user, "keys": keys, "reset": true}),
                user,
            ),
            Wish::Password(user, password) => {
                let encoded = base64::engine::general_purpose::STANDARD.encode(password);
                (
                    "guest-set-user-password",
                    json!({"username": user, "password": encoded, "crypted": false}),
                    user,
                )
            }
        };
        let done = agent.call(command, Some(arguments), CALL_DEADLINE).await;
        done.map_err(|e| format!("user {user}: {e}"))?;
    }
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_user_come_together() {
        let credentials: Vec<kv::AccessCredential> = serde_json::from_value(json!([
            {"sshPublicKey": {"source": {"secret": {"secretName": "a"}}, "propagationMethod": {"qemuGuestAgent": {"users": ["me"]}}}},
            {"sshPublicKey": {"source": {"secret": {"secretName": "b"}}, "propagationMethod": {"qemuGuestAgent": {"users": ["me"]}}}},
            {"sshPublicKey": {"source": {"secret": {"secretName": "c"}}, "propagationMethod": {"noCloud": {}}}},
            {"userPassword": {"source": {"secret": {"secretName": "p"}}, "propagationMethod": {"qemuGuestAgent": {}}}},
        ]))
        .expect("credentials");
        assert_eq!(secrets(&credentials), ["a", "b", "p"]);
        let secret = |pairs: &[(&str, &str)]| -> Data {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect()
        };
        let data = BTreeMap::from([
            ("a".to_owned(), secret(&[("key", "ssh-ed25519 A\n")])),
            ("b".to_owned(), secret(&[("key", "ssh-ed25519 B\n# note\n")])),
            ("p".to_owned(), secret(&[("root", "secret\n")])),
        ]);
        assert_eq!(
            wishes(&credentials, &data),
            [
                Wish::Password("root".into(), "secret".into()),
                Wish::Keys("me".into(), vec!["ssh-ed25519 A".into(), "ssh-ed25519 B".into()]),
            ]
        );
    }
}
