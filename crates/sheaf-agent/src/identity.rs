//! Who this node is: its certificates, on disk and in use.
//!
//! A node has a client certificate (user `system:node:NAME`, group `system:nodes`) and a serving certificate for its
//! stream endpoints. Both are swapped under running connections when they are renewed. Owns the two key pairs.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use k8s_openapi::jiff::Timestamp;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SignatureScheme};

/// Why an identity could not be read, used or stored.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file of the identity could not be read or written.
    #[error("{what} {}", path.display())]
    File {
        /// What was being done.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// Bytes that should be a certificate or a key are none.
    #[error("{0}")]
    Malformed(String),
    /// TLS refuses the material.
    #[error("using the node's certificates")]
    Tls(#[source] rustls::Error),
}

/// A private key with its certificate chain, as PEM.
#[derive(Clone)]
pub struct KeyedCertificate {
    /// Certificate chain, leaf first.
    pub certificate_pem: String,
    /// PKCS#8 private key.
    pub key_pem: String,
}

/// The node's certificates in use. Share it by `Arc`; swap with [`Identity::renew`].
pub struct Identity {
    ca_pem: String,
    client: Slot,
    serving: Slot,
    /// The same as text, client's first, for a process that reads files.
    pairs: RwLock<[KeyedCertificate; 2]>,
    dir: Option<PathBuf>,
}

/// Which of the two certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Towards the API server and other nodes.
    Client,
    /// For the stream endpoints.
    Serving,
}

impl Purpose {
    fn stem(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Serving => "serving",
        }
    }
}

struct Slot(RwLock<Arc<CertifiedKey>>);

impl Slot {
    fn get(&self) -> Arc<CertifiedKey> {
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
    fn set(&self, key: Arc<CertifiedKey>) {
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = key;
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Identity {
    /// An identity that lives in memory (the server's own node) or, with a directory, also on disk.
    pub fn new(
        ca_pem: String,
        client: &KeyedCertificate,
        serving: &KeyedCertificate,
        dir: Option<PathBuf>,
    ) -> Result<Arc<Self>, IdentityError> {
        let identity = Self {
            client: Slot(RwLock::new(certified(client)?)),
            serving: Slot(RwLock::new(certified(serving)?)),
            pairs: RwLock::new([client.clone(), serving.clone()]),
            ca_pem,
            dir,
        };
        if let Some(dir) = &identity.dir {
            std::fs::create_dir_all(dir).map_err(file("creating", dir))?;
            write_private(&dir.join("ca.crt"), identity.ca_pem.as_bytes())?;
            store(dir, Purpose::Client, client)?;
            store(dir, Purpose::Serving, serving)?;
        }
        Ok(Arc::new(identity))
    }

    /// The identity kept in a directory; `None` if this node has not joined yet.
    pub fn load(dir: &Path) -> Result<Option<Arc<Self>>, IdentityError> {
        let ca = dir.join("ca.crt");
        if !ca.exists() || !dir.join("serving.crt").exists() {
            return Ok(None);
        }
        let ca_pem = std::fs::read_to_string(&ca).map_err(file("reading", &ca))?;
        let pairs = [read_pair(dir, Purpose::Client)?, read_pair(dir, Purpose::Serving)?];
        let (client, serving) = (certified(&pairs[0])?, certified(&pairs[1])?);
        Ok(Some(Arc::new(Self {
            ca_pem,
            client: Slot(RwLock::new(client)),
            serving: Slot(RwLock::new(serving)),
            pairs: RwLock::new(pairs),
            dir: Some(dir.to_owned()),
        })))
    }

    /// Replaces one of the certificates; new connections use it at once.
    pub fn renew(&self, purpose: Purpose, pair: &KeyedCertificate) -> Result<(), IdentityError> {
        let key = certified(pair)?;
        if let Some(dir) = &self.dir {
            store(dir, purpose, pair)?;
        }
        let at = usize::from(purpose == Purpose::Serving);
        self.pairs.write().unwrap_or_else(std::sync::PoisonError::into_inner)[at] = pair.clone();
        match purpose {
            Purpose::Client => self.client.set(key),
            Purpose::Serving => self.serving.set(key),
        }
        Ok(())
    }

    /// A certificate with its key, as text.
    pub fn pair(&self, purpose: Purpose) -> KeyedCertificate {
        let pairs = self.pairs.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        pairs[usize::from(purpose == Purpose::Serving)].clone()
    }

    /// When a certificate begins and ends to be valid.
    pub fn validity(&self, purpose: Purpose) -> Result<(Timestamp, Timestamp), IdentityError> {
        let key = match purpose {
            Purpose::Client => self.client.get(),
            Purpose::Serving => self.serving.get(),
        };
        let der = key.cert.first().ok_or_else(|| IdentityError::Malformed("an empty chain".into()))?;
        let (_, certificate) = x509_parser::parse_x509_certificate(der).map_err(|e| {
            IdentityError::Malformed(format!("the node's {} certificate: {e}", purpose.stem()))
        })?;
        let at = |t: x509_parser::time::ASN1Time| {
            Timestamp::from_second(t.timestamp())
                .map_err(|e| IdentityError::Malformed(format!("a certificate's date: {e}")))
        };
        Ok((at(certificate.validity().not_before)?, at(certificate.validity().not_after)?))
    }

    /// The cluster's CA certificates.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// TLS towards the API server and other nodes: trusts the cluster's CA only, shows the client certificate.
    pub fn client_config(self: &Arc<Self>) -> Result<ClientConfig, IdentityError> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(IdentityError::Tls)?
            .with_root_certificates(roots(&self.ca_pem)?)
            .with_client_cert_resolver(self.clone());
        config.alpn_protocols = Vec::new();
        Ok(config)
    }

    /// TLS of the stream endpoints: requires a client certificate of the cluster's CA. HTTP/1.1 only, since streams
    /// are upgrades.
    pub fn server_config(self: &Arc<Self>) -> Result<ServerConfig, IdentityError> {
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&self.ca_pem)?), provider())
                .build()
                .map_err(|e| IdentityError::Malformed(format!("the cluster's CA: {e}")))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(IdentityError::Tls)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.client.get())
    }
    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.serving.get())
    }
}

pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The trust anchors of a PEM bundle.
pub(crate) fn roots(pem: &str) -> Result<RootCertStore, IdentityError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).map_err(IdentityError::Tls)?;
    }
    Ok(roots)
}

pub(crate) fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let found = parsed.map_err(|e| IdentityError::Malformed(format!("not a PEM certificate: {e}")))?;
    if found.is_empty() {
        return Err(IdentityError::Malformed("no certificate in the PEM text".into()));
    }
    Ok(found)
}

fn certified(pair: &KeyedCertificate) -> Result<Arc<CertifiedKey>, IdentityError> {
    let key = PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes())
        .map_err(|e| IdentityError::Malformed(format!("not a PEM private key: {e}")))?;
    let key = provider().key_provider.load_private_key(key).map_err(IdentityError::Tls)?;
    Ok(Arc::new(CertifiedKey::new(certificates(&pair.certificate_pem)?, key)))
}

fn store(dir: &Path, purpose: Purpose, pair: &KeyedCertificate) -> Result<(), IdentityError> {
    // The key first: a certificate without its key would be found and believed at the next start.
    write_private(&dir.join(format!("{}.key", purpose.stem())), pair.key_pem.as_bytes())?;
    write_private(&dir.join(format!("{}.crt", purpose.stem())), pair.certificate_pem.as_bytes())
}

fn read_pair(dir: &Path, purpose: Purpose) -> Result<KeyedCertificate, IdentityError> {
    let read = |suffix: &str| {
        let path = dir.join(format!("{}.{suffix}", purpose.stem()));
        std::fs::read_to_string(&path).map_err(file("reading", &path))
    };
    Ok(KeyedCertificate { certificate_pem: read("crt")?, key_pem: read("key")? })
}

/// Writes a file that only its owner reads, whole or not at all.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    let fresh = path.with_extension("new");
    let write = || {
        let mut f =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        f.write_all(bytes)?;
        f.sync_all()?;
        std::fs::rename(&fresh, path)
    };
    write().map_err(file("writing", path))
}

fn file(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::File { what, path, source }
}
