//! One UDP socket that makes and accepts authenticated connections. `acceptor` decides
//! which peer may connect for what; other modules define the messages.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::{ConnectError, ConnectionError};
use tokio::task::JoinHandle;

use super::acceptor::Acceptor;
use super::closing::{ENDED, explain, is_transient};
use super::error::NetError;
use super::identity::Identity;
use super::peer::Peer;
use super::protocol::{Alpn, Role};
use super::race;
use super::relay::{self, RelayError, RelayPort};
use super::socket::{BoundSocket, OpenSocket};
use super::tls;
use super::transport::{self, Route};
use crate::timing::{CONNECTION_SILENCE, HANDSHAKE};

/// Connections whose first packet has arrived and that the acceptor has not taken yet,
/// and the bytes that they may have sent, each and together.
const MAX_PENDING: usize = 1024;
const PENDING_BYTES: u64 = 64 << 10;
const PENDING_BYTES_TOTAL: u64 = 4 << 20;
/// The most nodes of which it is remembered by which address they were reached.
const MAX_REACHED: usize = 4096;

/// A socket bound for one role.
pub struct Endpoint {
    quinn: quinn::Endpoint,
    relay: Arc<RelayPort>,
    identity: Identity,
    /// The route to all other nodes, if their addresses do not say it.
    route: Option<Route>,
    socket_buffer: usize,
    acceptor: Arc<Acceptor>,
    accepting: JoinHandle<()>,
    /// By which of its addresses a node was reached last.
    reached: Mutex<HashMap<String, SocketAddr>>,
}

impl Endpoint {
    /// Binds `address` (port 0 for any) and accepts connections at once. Must be
    /// called within the tokio runtime that is to drive the endpoint.
    pub fn bind(address: SocketAddr, identity: &Identity, role: Role) -> Result<Self, NetError> {
        Self::bind_on(address, identity, role, None)
    }

    /// Like [`Endpoint::bind`], but assumes `route` to every peer: for measuring on one
    /// machine what a network would do. By default the route follows from a peer's
    /// address.
    pub fn bind_on(address: SocketAddr, identity: &Identity, role: Role, route: Option<Route>) -> Result<Self, NetError> {
        Self::serve(BoundSocket::bind(address)?, identity, role, route)
    }

    /// Like [`Endpoint::bind_on`], on a port that this process has bound already.
    pub fn serve(socket: BoundSocket, identity: &Identity, role: Role, route: Option<Route>) -> Result<Self, NetError> {
        Self::serve_on(socket.open()?, identity, role, route)
    }

    /// Like [`Endpoint::serve`], on a port that has made connections already.
    pub fn serve_on(socket: OpenSocket, identity: &Identity, role: Role, route: Option<Route>) -> Result<Self, NetError> {
        let mut server = tls::quic_server(identity.server_config(role)?)?;
        server.max_incoming(MAX_PENDING).incoming_buffer_size(PENDING_BYTES).incoming_buffer_size_total(PENDING_BYTES_TOTAL);
        let OpenSocket { quinn, relay, buffer: socket_buffer } = socket;
        quinn.set_server_config(Some(server.clone()));
        let acceptor = Arc::new(Acceptor::new(role, route, &server, socket_buffer));
        let accepting = tokio::spawn(Arc::clone(&acceptor).keep(quinn.clone()));
        Ok(Self { quinn, relay, identity: identity.clone(), route, socket_buffer, acceptor, accepting, reached: Mutex::default() })
    }

    /// Where this endpoint is bound.
    pub fn local_addr(&self) -> Result<SocketAddr, NetError> {
        self.quinn.local_addr().map_err(|e| NetError::Setup(e.into()))
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The next peer that has connected for anything but a ring; none once the
    /// endpoint is closed.
    pub async fn accept(&self) -> Option<Peer> {
        self.acceptor.peers.pop().await
    }

    /// The next peer that has connected for a ring.
    pub async fn accept_ring(&self) -> Option<Peer> {
        self.acceptor.rings.pop().await
    }

    /// For a worker: from now on it admits ring and bulk connections only from peers
    /// with one of these names in their certificate, and closes those of other peers at
    /// once. Until the first call, every node with a certificate of the run is
    /// admitted. A peer has a bounded number of connections for each protocol; the
    /// newest replaces the oldest.
    pub fn expect(&self, names: impl IntoIterator<Item = String>) {
        self.acceptor.expect(names.into_iter().collect());
    }

    /// Connects to the node that has `name` in its certificate.
    pub async fn connect(&self, address: SocketAddr, name: &str, alpn: Alpn) -> Result<quinn::Connection, NetError> {
        self.connect_with_idle(address, name, alpn, CONNECTION_SILENCE).await
    }

    /// Like [`Endpoint::connect`]; the connection is lost, on both sides, once
    /// nothing has arrived for `idle`.
    pub async fn connect_with_idle(
        &self,
        address: SocketAddr,
        name: &str,
        alpn: Alpn,
        idle: Duration,
    ) -> Result<quinn::Connection, NetError> {
        let mut config = tls::quic_client(self.identity.client_config(alpn)?)?;
        let route = self.route.unwrap_or_else(|| Route::to(address));
        config.transport_config(Arc::new(transport::outgoing(alpn, route, self.socket_buffer, idle)));
        connect(&self.quinn, config, address, name).await
    }

    /// Like [`Endpoint::connect_with_idle`], to a node that has several addresses, best
    /// first: they are tried side by side, the one by which it was reached last before all
    /// others, and the first by which the node with this name answers is used. Where none
    /// does, a worker is tried through the coordinator, if that relays (see
    /// [`Endpoint::relay_over`]). The error says of each why it was not.
    pub async fn connect_any(
        &self,
        addresses: &[SocketAddr],
        name: &str,
        alpn: Alpn,
        idle: Duration,
    ) -> Result<quinn::Connection, NetError> {
        let last = self.reached.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied();
        let through = relay::address_of(name).filter(|_| self.relay.is_connected());
        let mut addresses: Vec<SocketAddr> = addresses.iter().copied().chain(through).collect();
        addresses.sort_by_key(|address| Some(*address) != last);
        let connected = race::first(&addresses, |address| self.connect_with_idle(address, name, alpn, idle)).await;
        let (address, connection) = connected.map_err(|tried| NetError::of_all(name, tried))?;
        let mut reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        if reached.len() >= MAX_REACHED {
            reached.clear();
        }
        reached.insert(name.to_owned(), address);
        Ok(connection)
    }

    /// Forgets by which address a node was reached last: the next time a worker's own ones
    /// are tried before the relay.
    pub fn forget(&self, name: &str) {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// For a worker: reaches workers through the coordinator too, over this connection for
    /// [`Alpn::Relay`], and is reached so by them, until the connection ends. A newer one
    /// takes its place.
    pub async fn relay_over(&self, connection: quinn::Connection) -> RelayError {
        self.relay.carry(connection).await
    }

    /// Closes all connections and waits, briefly, until the peers know.
    pub async fn close(&self) {
        self.accepting.abort();
        self.quinn.close(ENDED, b"closed");
        let _ = tokio::time::timeout(Duration::from_secs(1), self.quinn.wait_idle()).await;
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

pub(super) async fn connect(
    endpoint: &quinn::Endpoint,
    config: quinn::ClientConfig,
    address: SocketAddr,
    name: &str,
) -> Result<quinn::Connection, NetError> {
    let failed = |cause, transient| NetError::Connect { name: name.to_owned(), address, cause, transient };
    let connecting = endpoint.connect_with(config, address, name).map_err(|e| match e {
        ConnectError::InvalidRemoteAddress(_) => failed("this end's UDP port has no addresses of that family".to_owned(), false),
        e => failed(e.to_string(), false),
    })?;
    let outcome = tokio::time::timeout(HANDSHAKE, connecting).await.unwrap_or(Err(ConnectionError::TimedOut));
    outcome.map_err(|error| failed(explain(&error), is_transient(&error)))
}
