//! The client of a node without a certificate, which knows the coordinator by the
//! fingerprint in its token.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;

use super::error::NetError;
use super::names::COORDINATOR;
use super::protocol::Alpn;
use super::socket::OpenSocket;
use super::token::Token;
use super::transport::{self, Route};
use super::{endpoint, tls};

/// What connections to the coordinator must show, over a socket that others may share.
pub(super) struct PinnedClient {
    address: SocketAddr,
    authority: Arc<tls::PinnedAuthority>,
    endpoint: quinn::Endpoint,
    config: quinn::ClientConfig,
}

impl PinnedClient {
    /// For connections over `socket` to `address` that are lost after `idle` without a packet.
    pub(super) fn new(socket: &OpenSocket, address: SocketAddr, token: &Token, alpn: Alpn, idle: Duration) -> Result<Self, NetError> {
        let authority = tls::PinnedAuthority::new(token.fingerprint);
        let mut config = rustls::ClientConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(authority.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        config.resumption = Resumption::disabled();
        let mut config = tls::quic_client(config)?;
        config.transport_config(Arc::new(transport::outgoing(alpn, Route::to(address), socket.buffer, idle)));
        Ok(Self { address, authority, endpoint: socket.quinn.clone(), config })
    }

    pub(super) async fn connect(&self) -> Result<quinn::Connection, NetError> {
        endpoint::connect(&self.endpoint, self.config.clone(), self.address, COORDINATOR).await
    }

    /// Whether a server was refused for belonging to another run.
    pub(super) fn met_another(&self) -> bool {
        self.authority.met_another()
    }

    /// The authority's certificate, once a handshake has shown it.
    pub(super) fn authority(&self) -> Option<CertificateDer<'static>> {
        self.authority.found().cloned()
    }
}
