//! The cluster's own certificate authority: who may speak to the API server, and as whom.
//!
//! Owns `<data>/pki/`: `ca.crt`, `ca.key` (ECDSA P-256, mode 0600) and the serving leaf (see [`serving`]). Makes the
//! administrator's kubeconfig. Does not decide who gets a certificate: the certificates controller does, and calls
//! [`Ca::sign_csr`]. No private key but the CA's and the server's own is ever written here, except inside the
//! administrator's kubeconfig.

pub mod addresses;
pub mod kubeconfig;
mod leaf;
pub mod serving;

use std::{
    fs,
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::{Span, Timestamp, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use sha2::{Digest, Sha256};

pub use leaf::{Grant, LeafError, Usage};

/// Why the PKI could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("cannot access {path}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A key or certificate could not be made or understood.
    #[error("certificate {what} cannot be made")]
    Certificate {
        /// Which one.
        what: String,
        /// What rcgen said.
        #[source]
        source: rcgen::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} holds no usable {what}")]
    Content {
        /// Which file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// TLS refuses the key material.
    #[error("the TLS configuration cannot be made")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What a certificate may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Proves an identity to a server.
    Client,
    /// Proves a server's names.
    Server,
}

/// A certificate with its private key, both as PEM.
#[derive(Clone)]
pub struct KeyedCert {
    /// Leaf first, then the CA.
    pub cert_pem: String,
    /// PKCS#8.
    pub key_pem: String,
}

/// The certificate authority. Cheap to share.
pub struct Ca {
    cert_pem: String,
    cert: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// Days a leaf is valid unless its asker says otherwise.
pub const LEAF_DAYS: i32 = 365;
/// A hundred years: a cluster that slept for ten comes back.
const CA_DAYS: i32 = 36_500;

impl Ca {
    /// Reads the CA in `dir`, or makes one.
    pub fn load_or_create(dir: &Path) -> Result<Arc<Self>, PkiError> {
        let (cert_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
        fs::create_dir_all(dir).map_err(|source| PkiError::File { path: dir.into(), source })?;
        match (read(&cert_path)?, read(&key_path)?) {
            (Some(cert_pem), Some(key_pem)) => Self::from_pem(cert_pem, &key_pem, &cert_path),
            // A certificate without its key signs nothing; a key without its certificate was never handed out.
            // Making a new CA over either would lock every member out, so only the empty directory gets one.
            (Some(_), None) => Err(PkiError::Content { path: key_path, what: "key of the CA" }),
            (None, _) => {
                let (cert_pem, key_pem) = new_ca()?;
                write_file(&key_path, key_pem.as_bytes(), 0o600)?;
                write_file(&cert_path, cert_pem.as_bytes(), 0o644)?;
                Self::from_pem(cert_pem, &key_pem, &cert_path)
            }
        }
    }

    fn from_pem(cert_pem: String, key_pem: &str, path: &Path) -> Result<Arc<Self>, PkiError> {
        let made = |source| PkiError::Certificate { what: "authority".into(), source };
        let key = KeyPair::from_pem(key_pem).map_err(made)?;
        let cert = CertificateDer::from_pem_slice(cert_pem.as_bytes())
            .map_err(|_| PkiError::Content { path: path.into(), what: "certificate" })?;
        let issuer = Issuer::from_ca_cert_der(&cert, key).map_err(made)?;
        Ok(Arc::new(Self { cert_pem, cert, issuer }))
    }

    /// The CA's certificate as PEM.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The CA's certificate as DER.
    pub fn cert_der(&self) -> &CertificateDer<'static> {
        &self.cert
    }

    /// Lower-case hex SHA-256 of the certificate's DER: the first part of a join token.
    pub fn fingerprint(&self) -> String {
        hex(&Sha256::digest(self.cert.as_ref()))
    }

    /// Issues a client certificate: `cn` is the user, `org` the group. (rcgen keeps one organization in a name.)
    pub fn issue_client(&self, cn: &str, org: &str, days: i32) -> Result<KeyedCert, PkiError> {
        self.issue(subject(cn, org), Vec::new(), &[Purpose::Client], days)
    }

    /// Issues a server certificate for names and addresses. What is neither is left out.
    pub fn issue_server(&self, cn: &str, names: &[String], days: i32) -> Result<KeyedCert, PkiError> {
        let sans = names.iter().filter_map(|n| san(n)).collect();
        self.issue(subject(cn, ""), sans, &[Purpose::Server, Purpose::Client], days)
    }

    fn issue(
        &self,
        subject: DistinguishedName,
        sans: Vec<SanType>,
        purposes: &[Purpose],
        days: i32,
    ) -> Result<KeyedCert, PkiError> {
        let what = || format!("{subject:?}");
        let made = |source| PkiError::Certificate { what: what(), source };
        let key = KeyPair::generate().map_err(made)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject.clone();
        params.subject_alt_names = sans;
        for_purposes(&mut params, purposes, days);
        let cert = params.signed_by(&key, &self.issuer).map_err(made)?;
        Ok(KeyedCert { cert_pem: cert.pem() + &self.cert_pem, key_pem: key.serialize_pem() })
    }

    /// Signs a certificate request (PEM): subject, key and names are its own, usages and validity what is granted. The
    /// caller has checked that the requester may have them. Gives the certificate as PEM.
    pub fn sign_csr(&self, csr_pem: &str, grant: &Grant) -> Result<String, LeafError> {
        leaf::sign(csr_pem, grant, &self.cert, &self.issuer).map(|der| pem("CERTIFICATE", &der))
    }
}

/// DER in its text form.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned());
    let body: String = lines.map(|line| line + "\n").collect();
    format!("-----BEGIN {label}-----\n{body}-----END {label}-----\n")
}

fn new_ca() -> Result<(String, String), PkiError> {
    let made = |source| PkiError::Certificate { what: "authority".into(), source };
    let key = KeyPair::generate().map_err(made)?;
    let mut params = CertificateParams::default();
    let id = uuid::Uuid::new_v4().simple().to_string();
    // The name carries a random part, so that two clusters' authorities are never confused in one trust store.
    params.distinguished_name = subject(&format!("sheaf-ca-{}", &id[..12]), "sheaf");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    validity(&mut params, CA_DAYS);
    let cert = params.self_signed(&key).map_err(made)?;
    Ok((cert.pem(), key.serialize_pem()))
}

fn for_purposes(params: &mut CertificateParams, purposes: &[Purpose], days: i32) {
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = purposes
        .iter()
        .map(|p| match p {
            Purpose::Client => ExtendedKeyUsagePurpose::ClientAuth,
            Purpose::Server => ExtendedKeyUsagePurpose::ServerAuth,
        })
        .collect();
    params.use_authority_key_identifier_extension = true;
    validity(params, days);
}

/// Valid from yesterday (clocks of machines differ) for `days` from today, to whole days.
fn validity(params: &mut CertificateParams, days: i32) {
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let day = |d: jiff::civil::Date| {
        rcgen::date_time_ymd(
            i32::from(d.year()),
            u8::try_from(d.month()).unwrap_or(1),
            u8::try_from(d.day()).unwrap_or(1),
        )
    };
    params.not_before = day(today.saturating_sub(Span::new().days(1)));
    params.not_after = day(today.saturating_add(Span::new().days(days)));
}

fn subject(cn: &str, org: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if !org.is_empty() {
        name.push(DnType::OrganizationName, org);
    }
    name.push(DnType::CommonName, cn);
    name
}

fn san(name: &str) -> Option<SanType> {
    match name.parse::<IpAddr>() {
        Ok(ip) => Some(SanType::IpAddress(ip)),
        Err(_) => name.try_into().ok().map(SanType::DnsName),
    }
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::File { path: path.into(), source }),
    }
}

/// Replaces `path` as a whole: a reader sees the old content or the new, also after a power cut.
pub(crate) fn write_file(path: &Path, content: &[u8], mode: u32) -> Result<(), PkiError> {
    let temporary = path.with_extension("new");
    let write = || {
        let _ = fs::remove_file(&temporary);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        if let Some(dir) = path.parent() {
            fs::File::open(dir)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(|source| PkiError::File { path: path.into(), source })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn the_authority_survives_a_restart_and_its_key_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let first = Ca::load_or_create(dir.path()).unwrap();
        let again = Ca::load_or_create(dir.path()).unwrap();
        assert_eq!(first.fingerprint(), again.fingerprint());
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_lost_key_is_not_papered_over() {
        let dir = tempfile::tempdir().unwrap();
        Ca::load_or_create(dir.path()).unwrap();
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        assert!(matches!(Ca::load_or_create(dir.path()), Err(PkiError::Content { .. })));
    }

    /// A request for a certificate, as PEM.
    pub(crate) fn request(name: &str, organizations: &[&str], names: &[&str]) -> String {
        let key = KeyPair::generate().unwrap();
        let mut params =
            CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        let mut subject = subject(name, "");
        // The same attribute under two names is two for rcgen.
        let kinds = [DnType::OrganizationName, DnType::CustomDnType(vec![2, 5, 4, 10])];
        for (kind, organization) in kinds.into_iter().zip(organizations) {
            subject.push(kind, *organization);
        }
        params.distinguished_name = subject;
        params.serialize_request(&key).unwrap().pem().unwrap()
    }
}
