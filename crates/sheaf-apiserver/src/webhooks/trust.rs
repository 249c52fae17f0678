//! Which certificates of webhooks are trusted: those that the named authorities issued, and those that are named
//! themselves. Of the latter rustls takes none that may issue others, which is what a certificate made by hand mostly says of
//! itself; clients of Kubernetes know no such difference.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::CryptoProvider,
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// See the module.
#[derive(Debug)]
pub(super) struct Trust {
    authorities: Arc<WebPkiServerVerifier>,
    named: Vec<CertificateDer<'static>>,
}

impl Trust {
    /// Trusts what `roots` issued, and those of `named` that come themselves.
    pub(super) fn new(
        roots: Arc<RootCertStore>,
        named: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let authorities = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
        Ok(Self { authorities: authorities.map_err(|e| e.to_string())?, named })
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let issued =
            self.authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        if issued.is_ok() || !self.named.iter().any(|named| **named == **end_entity) {
            return issued;
        }
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(end_entity)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let (from, until) = (parsed.validity().not_before, parsed.validity().not_after);
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        match now {
            now if now < from.timestamp() => Err(Error::InvalidCertificate(CertificateError::NotValidYet)),
            now if now > until.timestamp() => Err(Error::InvalidCertificate(CertificateError::Expired)),
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}
