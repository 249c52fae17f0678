//! The API server's own certificate: made from the names the machine has now, swapped while connections go on.
//!
//! Owns `<data>/pki/server.{crt,key}`. [`Serving::ensure`] is called at start and daily; it issues a new leaf when
//! the old one nears its end (or passed it, while the machine slept), lacks a name, or comes from another CA.

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, RwLock},
};

use jiff::Timestamp;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::{Ca, KeyedCert, LEAF_DAYS, PkiError, addresses, read, write_file};

/// Renewed when less than this part of its life is left: a third of a year.
const RENEW_BEFORE_S: i64 = 120 * 86_400;

/// The serving certificate and what it is made from.
pub struct Serving {
    ca: Arc<Ca>,
    dir: PathBuf,
    extra_names: Vec<String>,
    current: RwLock<Option<Arc<CertifiedKey>>>,
}

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serving").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

impl Serving {
    /// Reads or issues the leaf. `extra_names` are names or addresses beyond those found on the machine.
    pub fn open(ca: Arc<Ca>, dir: PathBuf, extra_names: Vec<String>) -> Result<Arc<Self>, PkiError> {
        let serving = Arc::new(Self { ca, dir, extra_names, current: RwLock::new(None) });
        serving.ensure(Timestamp::now())?;
        Ok(serving)
    }

    /// Issues a new leaf if the present one will not do at `now`; says whether it did. Connections that are
    /// open keep the old one.
    pub fn ensure(&self, now: Timestamp) -> Result<bool, PkiError> {
        let (cert_path, key_path) = (self.dir.join("server.crt"), self.dir.join("server.key"));
        let names = self.names();
        let kept = match (read(&cert_path)?, read(&key_path)?) {
            (Some(cert_pem), Some(key_pem)) if good_enough(&cert_pem, &self.ca, &names, now) => {
                Some(KeyedCert { cert_pem, key_pem })
            }
            _ => None,
        };
        // A key may have been written whose certificate was not.
        let kept = kept.filter(|pair| certified(pair).is_ok_and(|pair| pair.keys_match().is_ok()));
        let renewed = kept.is_none();
        let pair = match kept {
            Some(pair) => pair,
            None => {
                let pair = self.ca.issue_server("sheaf-apiserver", &names, LEAF_DAYS)?;
                let written = write_file(&key_path, pair.key_pem.as_bytes(), 0o600)
                    .and_then(|()| write_file(&cert_path, pair.cert_pem.as_bytes(), 0o644));
                if let Err(error) = written {
                    // It serves as well from memory, and the next start makes another: a disk that is full is no reason not to start.
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "the server's new certificate could not be written");
                }
                pair
            }
        };
        let mut current = self.current.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if renewed || current.is_none() {
            *current = Some(Arc::new(certified(&pair)?));
        }
        Ok(renewed)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ]
        .map(String::from)
        .to_vec();
        names.extend(addresses::hostname());
        names.extend(addresses::local().iter().map(IpAddr::to_string));
        names.extend(["127.0.0.1".into(), "::1".into()]);
        names.extend(self.extra_names.iter().cloned());
        names.sort();
        names.dedup();
        names
    }
}

/// Key material as rustls takes it.
pub(crate) fn certified(pair: &KeyedCert) -> Result<CertifiedKey, PkiError> {
    let chain = CertificateDer::pem_slice_iter(pair.cert_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| PkiError::Tls(Box::new(e)))?;
    let key =
        PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes()).map_err(|e| PkiError::Tls(Box::new(e)))?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key).map_err(|e| PkiError::Tls(Box::new(e)))?;
    Ok(CertifiedKey::new(chain, key))
}

fn good_enough(cert_pem: &str, ca: &Ca, names: &[String], now: Timestamp) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(cert_pem.as_bytes()) else { return false };
    let Ok((_, cert)) = x509_parser::parse_x509_certificate(&der) else { return false };
    let Ok((_, authority)) = x509_parser::parse_x509_certificate(ca.cert_der()) else { return false };
    let valid = cert.validity();
    let left = valid.not_after.timestamp() - now.as_second();
    let begun = valid.not_before.timestamp() <= now.as_second();
    begun
        && left > RENEW_BEFORE_S
        && cert.verify_signature(Some(authority.public_key())).is_ok()
        && names.iter().all(|n| has_name(&cert, n))
}

fn has_name(cert: &x509_parser::certificate::X509Certificate<'_>, name: &str) -> bool {
    use x509_parser::extensions::GeneralName;
    let Ok(Some(sans)) = cert.subject_alternative_name() else { return false };
    let ip = name.parse::<IpAddr>().ok().map(|ip| match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    });
    sans.value.general_names.iter().any(|general| match (general, &ip) {
        (GeneralName::IPAddress(bytes), Some(ip)) => *bytes == ip.as_slice(),
        (GeneralName::DNSName(dns), None) => *dns == name,
        _ => false,
    }) || (ip.is_none() && !name.is_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_that_cannot_be_written_serves_and_one_without_its_key_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::load_or_create(dir.path()).unwrap();
        // Where a directory lies, no file can be made.
        std::fs::create_dir_all(dir.path().join("server.new/x")).unwrap();
        let serving = Serving::open(ca.clone(), dir.path().into(), vec![]).unwrap();
        assert!(serving.current.read().unwrap().is_some());
        assert!(!dir.path().join("server.key").exists());
        std::fs::remove_dir_all(dir.path().join("server.new")).unwrap();
        assert!(serving.ensure(Timestamp::now()).unwrap(), "tried again");
        assert!(!serving.ensure(Timestamp::now()).unwrap(), "kept");
        let other = ca.issue_server("other", &[], LEAF_DAYS).unwrap();
        std::fs::write(dir.path().join("server.key"), other.key_pem).unwrap();
        assert!(serving.ensure(Timestamp::now()).unwrap(), "the key is another's");
    }

    #[test]
    fn the_leaf_is_kept_while_it_will_do_and_renewed_when_it_will_not() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::load_or_create(dir.path()).unwrap();
        let serving = Serving::open(ca.clone(), dir.path().into(), vec!["10.9.9.9".into()]).unwrap();
        let now = Timestamp::now();
        assert!(!serving.ensure(now).unwrap(), "nothing changed");
        let in_a_year = now + jiff::SignedDuration::from_hours(24 * 300);
        assert!(serving.ensure(in_a_year).unwrap(), "near its end");
        let more = Serving::open(ca, dir.path().into(), vec!["sheaf.example".into()]).unwrap();
        assert!(!more.ensure(now).unwrap());
        let pem = std::fs::read_to_string(dir.path().join("server.crt")).unwrap();
        assert!(good_enough(&pem, &more.ca, &["sheaf.example".into(), "127.0.0.1".into()], now));
        assert!(!good_enough(&pem, &more.ca, &["10.9.9.9".into()], now));
    }
}
