//! Certificates for signing requests: subject, key and alternative names are the request's own, bit by bit; everything
//! else is decided here.
//!
//! Written in DER by hand, since a subject may name several organizations (a user in several groups), which rcgen's form of a
//! name cannot hold. Pure but for the serial number.

use jiff::{Timestamp, tz::TimeZone};
use rcgen::{Issuer, KeyPair, SigningKey};
use ring::rand::{SecureRandom, SystemRandom};
use rustls_pki_types::CertificateDer;
use x509_parser::{
    certification_request::X509CertificationRequest, cri_attributes::ParsedCriAttribute, error::X509Error,
    extensions::ParsedExtension, prelude::FromDer,
};

/// What a certificate is for, as requests for it spell it; of Kubernetes' words those that our signers allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// `digital signature`, `signing`.
    DigitalSignature,
    /// `key encipherment`.
    KeyEncipherment,
    /// `client auth`.
    ClientAuth,
    /// `server auth`.
    ServerAuth,
}

impl Usage {
    /// The usage of a word.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "digital signature" | "signing" => Self::DigitalSignature,
            "key encipherment" => Self::KeyEncipherment,
            "client auth" => Self::ClientAuth,
            "server auth" => Self::ServerAuth,
            _ => return None,
        })
    }
}

/// What is granted of a request.
#[derive(Debug, Clone)]
pub struct Grant {
    /// For what.
    pub usages: Vec<Usage>,
    /// From when on.
    pub from: Timestamp,
    /// Until when.
    pub to: Timestamp,
}

/// Why a request cannot be signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeafError {
    /// It is no PEM certificate request.
    #[error("the request is no PEM certificate request: {0}")]
    Malformed(String),
    /// Its signature was not made with its key.
    #[error("the request is not signed with its own key")]
    Signature,
    /// The CA's own certificate is broken.
    #[error("the CA's certificate cannot be read")]
    Authority,
    /// The CA's key fails.
    #[error("the CA's key cannot sign")]
    Key,
}

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const BOOLEAN: u8 = 0x01;
const OID: u8 = 0x06;

/// `id-kp`, the arc of extended key usages.
const KEY_PURPOSE: [u8; 7] = [0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03];
/// `id-ce`, the arc of extensions.
const EXTENSION: [u8; 2] = [0x55, 0x1d];
const SUBJECT_ALT_NAME: u8 = 17;

/// A value with its tag and length.
fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|p| p.len()).sum();
    let mut out = vec![tag];
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            let bytes = length.to_be_bytes();
            let bytes = bytes.get(bytes.iter().take_while(|b| **b == 0).count()..).unwrap_or_default();
            out.push(0x80 | u8::try_from(bytes.len()).unwrap_or_default());
            out.extend_from_slice(bytes);
        }
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

/// UTCTime until 2049, GeneralizedTime from then on.
fn time(at: Timestamp) -> Vec<u8> {
    let at = at.to_zoned(TimeZone::UTC);
    match at.year() {
        1950..=2049 => tlv(0x17, &[at.strftime("%y%m%d%H%M%SZ").to_string().as_bytes()]),
        _ => tlv(0x18, &[at.strftime("%Y%m%d%H%M%SZ").to_string().as_bytes()]),
    }
}

fn extension(number: u8, critical: bool, value: &[u8]) -> Vec<u8> {
    let id = tlv(OID, &[&EXTENSION, &[number]]);
    let flag = tlv(BOOLEAN, &[&[0xff]]);
    let value = tlv(OCTET_STRING, &[value]);
    match critical {
        true => tlv(SEQUENCE, &[&id, &flag, &value]),
        false => tlv(SEQUENCE, &[&id, &value]),
    }
}

fn extensions(grant: &Grant, authority_key: &[u8], names: Option<&[u8]>, nameless: bool) -> Vec<u8> {
    let has = |usage| grant.usages.contains(&usage);
    let mut all = Vec::new();
    // Bits from the left: digitalSignature, nonRepudiation, keyEncipherment.
    let bits = u8::from(has(Usage::DigitalSignature)) << 7 | u8::from(has(Usage::KeyEncipherment)) << 5;
    if bits != 0 {
        let unused = u8::try_from(bits.trailing_zeros()).unwrap_or_default();
        all.extend(extension(15, true, &tlv(BIT_STRING, &[&[unused, bits]])));
    }
    let purposes: Vec<u8> = [(Usage::ServerAuth, 1u8), (Usage::ClientAuth, 2)]
        .iter()
        .filter(|(usage, _)| has(*usage))
        .flat_map(|(_, number)| tlv(OID, &[&KEY_PURPOSE, &[*number]]))
        .collect();
    if !purposes.is_empty() {
        all.extend(extension(37, false, &tlv(SEQUENCE, &[&purposes])));
    }
    // No authority: the sequence says nothing, which is false.
    all.extend(extension(19, true, &tlv(SEQUENCE, &[])));
    if !authority_key.is_empty() {
        all.extend(extension(35, false, &tlv(SEQUENCE, &[&tlv(0x80, &[authority_key])])));
    }
    if let Some(names) = names {
        all.extend(extension(SUBJECT_ALT_NAME, nameless, names));
    }
    tlv(0xa3, &[&tlv(SEQUENCE, &[&all])])
}

/// The algorithm with which the CA signed itself, as it is written in its certificate: after the first element.
fn own_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    /// Where the content of an element begins, and where it ends.
    fn element(der: &[u8]) -> Option<(usize, usize)> {
        let first = usize::from(*der.get(1)?);
        let (start, length) = match first {
            0..0x80 => (2, first),
            _ => {
                let count = first & 0x7f;
                let bytes = der.get(2..2 + count).filter(|_| (1..=4).contains(&count))?;
                (2 + count, bytes.iter().fold(0, |n, b| n << 8 | usize::from(*b)))
            }
        };
        (start + length <= der.len()).then_some((start, start + length))
    }
    let (start, end) = element(certificate)?;
    let content = certificate.get(start..end)?;
    let rest = content.get(element(content)?.1..)?;
    rest.get(..element(rest)?.1)
}

/// Signs a request (PEM); gives the certificate as DER.
pub(super) fn sign(
    csr_pem: &str,
    grant: &Grant,
    authority: &CertificateDer<'_>,
    issuer: &Issuer<'static, KeyPair>,
) -> Result<Vec<u8>, LeafError> {
    let malformed = |e: &dyn std::fmt::Display| LeafError::Malformed(e.to_string());
    let (_, pem) = x509_parser::pem::parse_x509_pem(csr_pem.as_bytes()).map_err(|e| malformed(&e))?;
    let (_, csr) = X509CertificationRequest::from_der(&pem.contents).map_err(|e| malformed(&e))?;
    match csr.verify_signature() {
        // Of an algorithm that is not known here nothing can be said; the key's owner will have to prove it anyway.
        Ok(()) | Err(X509Error::SignatureUnsupportedAlgorithm) => {}
        Err(_) => return Err(LeafError::Signature),
    }
    let (_, ca) = x509_parser::parse_x509_certificate(authority).map_err(|_| LeafError::Authority)?;
    let key_id = ca.iter_extensions().find_map(|e| match e.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
        _ => None,
    });
    let info = &csr.certification_request_info;
    let names = info.iter_attributes().find_map(|attribute| match attribute.parsed_attribute() {
        ParsedCriAttribute::ExtensionRequest(wanted) => {
            let alt = |oid: &[u8]| oid == [EXTENSION[0], EXTENSION[1], SUBJECT_ALT_NAME];
            wanted.extensions.iter().find(|e| alt(e.oid.as_bytes())).map(|e| e.value)
        }
        _ => None,
    });
    let mut serial = [0u8; 16];
    SystemRandom::new().fill(&mut serial).map_err(|_| LeafError::Key)?;
    // Positive, and no shorter than it looks.
    serial[0] = serial[0] & 0x7f | 0x40;
    let algorithm = own_algorithm(authority).ok_or(LeafError::Authority)?;
    let ca_ends = Timestamp::from_second(ca.validity().not_after.timestamp()).unwrap_or(grant.to);
    let validity = tlv(SEQUENCE, &[&time(grant.from), &time(grant.to.min(ca_ends))]);
    let nameless = info.subject.iter_rdn().next().is_none();
    let tbs = tlv(
        SEQUENCE,
        &[
            &tlv(0xa0, &[&tlv(INTEGER, &[&[2]])]),
            &tlv(INTEGER, &[&serial]),
            algorithm,
            ca.subject().as_raw(),
            &validity,
            info.subject.as_raw(),
            info.subject_pki.raw,
            &extensions(grant, key_id.unwrap_or_default(), names, nameless),
        ],
    );
    let signature = issuer.key().sign(&tbs).map_err(|_| LeafError::Key)?;
    Ok(tlv(SEQUENCE, &[&tbs, algorithm, &tlv(BIT_STRING, &[&[0], &signature])]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{Ca, tests::request};

    #[test]
    fn what_is_asked_is_kept_and_the_rest_decided_here() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::load_or_create(dir.path()).unwrap();
        let csr = request("joe", &["dev", "ops"], &["joe.example", "192.0.2.1"]);
        let from = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
        let to = from + jiff::SignedDuration::from_secs(600);
        let grant = Grant {
            usages: vec![Usage::DigitalSignature, Usage::KeyEncipherment, Usage::ClientAuth],
            from,
            to,
        };
        let pem = ca.sign_csr(&csr, &grant).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let (_, cert) = x509_parser::parse_x509_certificate(&pem.contents).unwrap();
        let (_, authority) = x509_parser::parse_x509_certificate(ca.cert_der()).unwrap();
        cert.verify_signature(Some(authority.public_key())).unwrap();
        let organizations: Vec<&str> =
            cert.subject().iter_organization().map(|o| o.as_str().unwrap()).collect();
        assert_eq!(organizations, ["dev", "ops"]);
        assert_eq!(cert.issuer(), authority.subject());
        assert_eq!(
            (cert.validity().not_before.timestamp(), cert.validity().not_after.timestamp()),
            (from.as_second(), to.as_second())
        );
        let usage = cert.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign());
        let purposes = cert.extended_key_usage().unwrap().unwrap().value;
        assert!(purposes.client_auth && !purposes.server_auth);
        assert!(!cert.is_ca());
        let names = cert.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.len(), 2);
        let user = crate::authn::UserInfo::from_certificate(&pem.contents.as_slice().into()).unwrap();
        assert_eq!(user.groups, ["dev", "ops", "system:authenticated"]);
    }

    #[test]
    fn a_certificate_does_not_outlive_its_authority_nor_sign_for_another_key() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::load_or_create(dir.path()).unwrap();
        let csr = request("joe", &[], &[]);
        let from = Timestamp::now();
        let far = Timestamp::MAX;
        let grant = Grant { usages: vec![Usage::ClientAuth], from, to: far };
        let pem = ca.sign_csr(&csr, &grant).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let (_, cert) = x509_parser::parse_x509_certificate(&pem.contents).unwrap();
        let (_, authority) = x509_parser::parse_x509_certificate(ca.cert_der()).unwrap();
        assert_eq!(cert.validity().not_after, authority.validity().not_after);

        let (_, pem) = x509_parser::pem::parse_x509_pem(csr.as_bytes()).unwrap();
        let mut der = pem.contents.clone();
        let last = der.len() - 1;
        der[last] ^= 1;
        let forged = super::super::pem("CERTIFICATE REQUEST", &der);
        assert!(matches!(ca.sign_csr(&forged, &grant), Err(LeafError::Signature | LeafError::Malformed(_))));
        assert!(matches!(ca.sign_csr("nonsense", &grant), Err(LeafError::Malformed(_))));
    }
}
