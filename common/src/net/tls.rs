//! What all TLS configurations here share: the crypto provider, fingerprints, names in
//! certificates, and the verifier that pins an authority.

use std::sync::{Arc, OnceLock};

use data_encoding::HEXLOWER;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::error::NetError;

/// aws-lc-rs with AES-128-GCM first: the cheapest cipher per gradient byte where
/// the processor has AES instructions, and as safe as the others.
pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let make = || {
        let cipher_suites =
            vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256, aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256];
        Arc::new(CryptoProvider { cipher_suites, ..aws_lc_rs::default_provider() })
    };
    PROVIDER.get_or_init(make).clone()
}

/// Fills `bytes` with random numbers fit for keys.
pub(crate) fn random(bytes: &mut [u8]) -> Option<()> {
    provider().secure_random.fill(bytes).ok()
}

/// A word that nobody can guess: 128 random bits in hex. `None` where there are no random
/// numbers.
pub fn random_word() -> Option<String> {
    let mut bytes = [0; 16];
    random(&mut bytes)?;
    Some(HEXLOWER.encode(&bytes))
}

/// The fingerprint by which a token pins an authority.
pub(super) fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    *blake3::hash(certificate).as_bytes()
}

/// The node named in a certificate, which must name exactly one.
pub(crate) fn name_in(certificate: &CertificateDer<'_>) -> Option<String> {
    let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
    let mut names = parsed.valid_dns_names();
    let name = names.next()?.to_owned();
    names.next().is_none().then_some(name)
}

pub(super) fn roots(authority: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone())?;
    Ok(Arc::new(roots))
}

pub(super) fn quic_client(config: rustls::ClientConfig) -> Result<quinn::ClientConfig, NetError> {
    let crypto = QuicClientConfig::try_from(config).map_err(|e| NetError::Setup(e.into()))?;
    Ok(quinn::ClientConfig::new(Arc::new(crypto)))
}

pub(super) fn quic_server(config: rustls::ServerConfig) -> Result<quinn::ServerConfig, NetError> {
    let crypto = QuicServerConfig::try_from(config).map_err(|e| NetError::Setup(e.into()))?;
    Ok(quinn::ServerConfig::with_crypto(Arc::new(crypto)))
}

/// Accepts a server whose chain holds the authority with the pinned fingerprint
/// and whose own certificate that authority signed for the expected name.
#[derive(Debug)]
pub(super) struct PinnedAuthority {
    fingerprint: [u8; 32],
    /// The authority, once a handshake has shown it.
    found: OnceLock<CertificateDer<'static>>,
    /// Some server has shown a chain without the pinned authority.
    other: OnceLock<()>,
}

impl PinnedAuthority {
    pub(super) fn new(fingerprint: [u8; 32]) -> Arc<Self> {
        Arc::new(Self { fingerprint, found: OnceLock::new(), other: OnceLock::new() })
    }

    pub(super) fn found(&self) -> Option<&CertificateDer<'static>> {
        self.found.get()
    }

    /// Whether a server was refused for belonging to another authority.
    pub(super) fn met_another(&self) -> bool {
        self.other.get().is_some()
    }
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(authority) = intermediates.iter().find(|c| fingerprint(c) == self.fingerprint) else {
            self.other.get_or_init(|| ());
            return Err(CertificateError::UnknownIssuer.into());
        };
        let authority = authority.clone().into_owned();
        let verifier = WebPkiServerVerifier::builder_with_provider(roots(&authority)?, provider())
            .build()
            .map_err(|e| Error::General(e.to_string()))?;
        let verified = verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)?;
        self.found.get_or_init(|| authority);
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("QUIC speaks TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
