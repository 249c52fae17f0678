//! Kubeconfig files with everything embedded, so that one file is all a client needs.

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use std::path::Path;

use super::{Ca, KeyedCert, LEAF_DAYS, PkiError, read, write_file};

/// A kubeconfig of one cluster, user and context, all called `sheaf`.
pub fn render(server: &str, ca_pem: &str, pair: &KeyedCert) -> String {
    let b64 = |s: &str| STANDARD.encode(s);
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: sheaf\nclusters:\n- name: sheaf\n  cluster:\n    server: {server}\n    certificate-authority-data: {}\ncontexts:\n- name: sheaf\n  context:\n    cluster: sheaf\n    user: sheaf\nusers:\n- name: sheaf\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
        b64(ca_pem),
        b64(&pair.cert_pem),
        b64(&pair.key_pem)
    )
}

/// Writes the administrator's kubeconfig (mode 0600) unless the present one still serves: same server, same CA,
/// more than half a year of validity left.
pub fn ensure_admin(path: &Path, server: &str, ca: &Ca, now: Timestamp) -> Result<(), PkiError> {
    if read(path)?.is_some_and(|text| still_serves(&text, server, ca, now)) {
        return Ok(());
    }
    let pair = ca.issue_client("sheaf-admin", "system:masters", LEAF_DAYS)?;
    write_file(path, render(server, ca.cert_pem(), &pair).as_bytes(), 0o600)
}

fn still_serves(text: &str, server: &str, ca: &Ca, now: Timestamp) -> bool {
    let field = |key: &str| {
        text.lines()
            .find_map(|l| l.trim().strip_prefix(key).and_then(|v| v.strip_prefix(": ")))
            .map(str::to_string)
    };
    let decode = |key: &str| field(key).and_then(|v| STANDARD.decode(v).ok());
    let Some(cert) = decode("client-certificate-data") else { return false };
    let Ok(der) = CertificateDer::from_pem_slice(&cert) else { return false };
    let Ok((_, cert)) = x509_parser::parse_x509_certificate(&der) else { return false };
    field("server").as_deref() == Some(server)
        && decode("certificate-authority-data").as_deref() == Some(ca.cert_pem().as_bytes())
        && cert.validity().not_after.timestamp() - now.as_second() > 180 * 86_400
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_rewritten_only_when_it_no_longer_serves() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::load_or_create(dir.path()).unwrap();
        let path = dir.path().join("admin.kubeconfig");
        let now = Timestamp::now();
        ensure_admin(&path, "https://127.0.0.1:6443", &ca, now).unwrap();
        let first = std::fs::read_to_string(&path).unwrap();
        ensure_admin(&path, "https://127.0.0.1:6443", &ca, now).unwrap();
        assert_eq!(first, std::fs::read_to_string(&path).unwrap());
        ensure_admin(&path, "https://127.0.0.1:7443", &ca, now).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().contains("7443"));
    }
}
