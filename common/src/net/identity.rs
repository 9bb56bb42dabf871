//! The identity of a node: its name, its certificate and key, and the authority whose
//! certificates it accepts.

use std::fmt;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};

use super::error::NetError;
use super::protocol::{Alpn, Role};
use super::tls;

/// A node's certificate of the run and its key.
pub struct Identity {
    pub name: String,
    certificate: CertificateDer<'static>,
    authority: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            name: self.name.clone(),
            certificate: self.certificate.clone(),
            authority: self.authority.clone(),
            key: self.key.clone_key(),
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("name", &self.name).field("key", &"(hidden)").finish_non_exhaustive()
    }
}

impl Identity {
    pub(super) fn new(
        name: String,
        certificate: CertificateDer<'static>,
        authority: CertificateDer<'static>,
        key: PrivateKeyDer<'static>,
    ) -> Self {
        Self { name, certificate, authority, key }
    }

    /// The chain includes the authority, so that a newcomer that knows only its
    /// fingerprint can check it.
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone(), self.authority.clone()]
    }

    /// For connections that this node makes: the server must have a certificate of the
    /// run for the name that this node connects to.
    pub(super) fn client_config(&self, alpn: Alpn) -> Result<rustls::ClientConfig, NetError> {
        let mut config = rustls::ClientConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(tls::roots(&self.authority)?)
            .with_client_auth_cert(self.chain(), self.key.clone_key())?;
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        // Every connection proves its certificate anew.
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    /// For connections that others make to this node.
    pub(super) fn server_config(&self, role: Role) -> Result<rustls::ServerConfig, NetError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(tls::roots(&self.authority)?, tls::provider());
        let verifier = match role {
            // A newcomer has no certificate yet; the endpoint lets it enrol and nothing else.
            Role::Coordinator => verifier.allow_unauthenticated(),
            Role::Worker => verifier,
        };
        let verifier = verifier.build().map_err(|e| NetError::Setup(e.into()))?;
        let mut config = rustls::ServerConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain(), self.key.clone_key())?;
        config.alpn_protocols = role.alpns().iter().map(|a| a.as_bytes().to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}
