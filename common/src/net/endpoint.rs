//! One UDP socket that makes and accepts authenticated connections. It decides
//! who may connect for what; what is said then is for others.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{ConnectionError, TokioRuntime, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::identity::Identity;
use super::quiet::Quiet;
use super::socket::SmallBatches;
use super::tls;
use super::transport::{self, Route};

/// What a connection is for, agreed in its handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alpn {
    /// A newcomer without a certificate gets one.
    Enrol,
    /// Small messages between coordinator and worker.
    Control,
    /// State, data and checkpoints.
    Bulk,
    /// Gradients from one worker to the next.
    Ring,
}

impl Alpn {
    pub fn as_bytes(self) -> &'static [u8] {
        match self {
            Self::Enrol => b"ringleader-enroll/1",
            Self::Control => b"ringleader-control/1",
            Self::Bulk => b"ringleader-bulk/1",
            Self::Ring => b"ringleader-ring/1",
        }
    }
}

/// What an endpoint accepts connections for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Enrolment without a certificate; control and bulk with one.
    Coordinator,
    /// Ring and bulk, with a certificate only.
    Worker,
}

impl Role {
    pub(super) fn alpns(self) -> &'static [Alpn] {
        match self {
            Self::Coordinator => &[Alpn::Enrol, Alpn::Control, Alpn::Bulk],
            Self::Worker => &[Alpn::Ring, Alpn::Bulk],
        }
    }
}

/// A peer that has connected to this node.
#[derive(Debug)]
pub struct Peer {
    /// The name in its certificate of this run; none only for [`Alpn::Enrol`].
    pub name: Option<String>,
    pub alpn: Alpn,
    pub connection: quinn::Connection,
    /// A stranger counts as a handshake until it is gone.
    _slot: Option<OwnedSemaphorePermit>,
}

#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("could not open UDP {address}: {source}")]
    Bind { address: SocketAddr, source: std::io::Error },
    #[error("could not set up TLS: {0}")]
    Setup(String),
    #[error("could not connect to `{name}` at {address}: {cause}")]
    Connect { name: String, address: SocketAddr, cause: String },
}

impl From<rustls::Error> for NetError {
    fn from(error: rustls::Error) -> Self {
        Self::Setup(error.to_string())
    }
}

/// The close code for a peer without a certificate where one is needed.
const NO_CERTIFICATE: VarInt = VarInt::from_u32(1);
/// The close code for a peer for which there is no place now.
const BUSY: VarInt = VarInt::from_u32(2);

/// Handshakes in progress and strangers enrolling, together.
const HANDSHAKES: usize = 64;
/// From this many on, newcomers must first prove that their address is theirs.
const HANDSHAKES_UNPROVEN: usize = 16;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Accepted peers that nobody has taken yet, each for rings and for the rest.
const WAITING: usize = 64;

/// A socket bound for one role. Control and gradients should not share one: a
/// ring that fills the socket's buffer would delay heartbeats.
pub struct Endpoint {
    quinn: quinn::Endpoint,
    identity: Identity,
    /// What lies between this node and all others, if addresses do not say it.
    route: Option<Route>,
    socket_buffer: usize,
    peers: Mutex<mpsc::Receiver<Peer>>,
    rings: Mutex<mpsc::Receiver<Peer>>,
    accepting: JoinHandle<()>,
}

impl Endpoint {
    /// Binds `address` (port 0 for any) and accepts connections at once. Must be
    /// called within the tokio runtime that is to drive the endpoint.
    pub fn bind(address: SocketAddr, identity: &Identity, role: Role) -> Result<Self, NetError> {
        Self::bind_on(address, identity, role, None)
    }

    /// Like [`Endpoint::bind`], taking every peer to be at the end of `route`:
    /// for measuring, on one machine, what a network would do. By default a
    /// peer's address says what lies between.
    pub fn bind_on(address: SocketAddr, identity: &Identity, role: Role, route: Option<Route>) -> Result<Self, NetError> {
        let server = tls::quic_server(identity.server_config(role)?)?;
        let bound = |source| NetError::Bind { address, source };
        let (socket, socket_buffer) = transport::bind(address).map_err(bound)?;
        let socket = Arc::new(SmallBatches::new(socket).map_err(bound)?);
        let config = transport::endpoint();
        let quinn =
            quinn::Endpoint::new_with_abstract_socket(config, Some(server.clone()), socket, Arc::new(TokioRuntime)).map_err(bound)?;
        let (peers_in, peers) = mpsc::channel(WAITING);
        let (rings_in, rings) = mpsc::channel(WAITING);
        let with = |route| {
            let mut config = server.clone();
            config.transport_config(Arc::new(transport::incoming(route, socket_buffer)));
            config.migration(false);
            Arc::new(config)
        };
        let door = Door {
            handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
            route,
            socket_buffer,
            loopback: with(route.unwrap_or(Route::Loopback)),
            network: with(route.unwrap_or(Route::NETWORK)),
            peers: peers_in,
            rings: rings_in,
            complaints: Quiet::default(),
        };
        let accepting = tokio::spawn(Arc::new(door).keep(quinn.clone()));
        Ok(Self { quinn, identity: identity.clone(), route, socket_buffer, peers: Mutex::new(peers), rings: Mutex::new(rings), accepting })
    }

    /// Where this endpoint is bound.
    pub fn local_addr(&self) -> Result<SocketAddr, NetError> {
        self.quinn.local_addr().map_err(|e| NetError::Setup(e.to_string()))
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The next peer that has connected for anything but a ring; none once the
    /// endpoint is closed.
    pub async fn accept(&self) -> Option<Peer> {
        self.peers.lock().await.recv().await
    }

    /// The next peer that has connected for a ring.
    pub async fn accept_ring(&self) -> Option<Peer> {
        self.rings.lock().await.recv().await
    }

    /// Connects to the node that is `name` in its certificate.
    pub async fn connect(&self, address: SocketAddr, name: &str, alpn: Alpn) -> Result<quinn::Connection, NetError> {
        self.connect_with_idle(address, name, alpn, transport::IDLE).await
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

    /// Closes all connections and waits, briefly, until the peers know.
    pub async fn close(&self) {
        self.accepting.abort();
        self.quinn.close(VarInt::from_u32(0), b"closed");
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
    let failed = |cause| NetError::Connect { name: name.to_owned(), address, cause };
    let connecting = endpoint.connect_with(config, address, name).map_err(|e| failed(e.to_string()))?;
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(failed(explain(&error))),
        Err(_) => Err(failed(explain(&ConnectionError::TimedOut))),
    }
}

/// Why a connection ended, in words for a person.
pub(crate) fn explain(error: &ConnectionError) -> String {
    match error {
        ConnectionError::TimedOut => "nothing was heard from it; it may be gone, the address wrong, or UDP blocked on the way".to_owned(),
        ConnectionError::ApplicationClosed(close) => {
            let reason = String::from_utf8_lossy(&close.reason);
            if reason.is_empty() { "it closed the connection".to_owned() } else { format!("it closed the connection: {reason}") }
        }
        ConnectionError::TransportError(error) if error.reason.contains("UnknownIssuer") => "its certificate is not of this run".to_owned(),
        ConnectionError::TransportError(error) if error.reason.contains("not valid for name") => {
            format!("its certificate is for another node ({})", error.reason)
        }
        ConnectionError::ConnectionClosed(close) => format!("it refused the connection: {close}"),
        ConnectionError::LocallyClosed => "the connection was closed here".to_owned(),
        other => other.to_string(),
    }
}

/// Lets peers in: bounded, in limited time, and only for what they may do.
struct Door {
    handshakes: Arc<Semaphore>,
    route: Option<Route>,
    socket_buffer: usize,
    loopback: Arc<quinn::ServerConfig>,
    network: Arc<quinn::ServerConfig>,
    peers: mpsc::Sender<Peer>,
    rings: mpsc::Sender<Peer>,
    complaints: Quiet,
}

impl Door {
    async fn keep(self: Arc<Self>, endpoint: quinn::Endpoint) {
        while let Some(incoming) = endpoint.accept().await {
            let crowded = self.handshakes.available_permits() < HANDSHAKES - HANDSHAKES_UNPROVEN;
            if crowded && !incoming.remote_address_validated() {
                let _ = incoming.retry();
                continue;
            }
            let Ok(slot) = self.handshakes.clone().try_acquire_owned() else {
                incoming.refuse();
                continue;
            };
            tokio::spawn(self.clone().admit(incoming, slot));
        }
    }

    async fn admit(self: Arc<Self>, incoming: quinn::Incoming, slot: OwnedSemaphorePermit) {
        let from = incoming.remote_address();
        let route = self.route.unwrap_or_else(|| Route::to(from));
        let config = match route {
            Route::Loopback => self.loopback.clone(),
            Route::Network { .. } => self.network.clone(),
        };
        let Ok(connecting) = incoming.accept_with(config) else { return };
        let connection = match tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(problem)) => return self.complaints.warn(&format!("refused a connection from {from}: {problem}")),
            Err(_) => return self.complaints.warn(&format!("a connection from {from} was not completed in time")),
        };
        let Some(alpn) = agreed(&connection) else { return connection.close(NO_CERTIFICATE, b"unknown protocol") };
        let name = certified_name(&connection);
        if name.is_none() && alpn != Alpn::Enrol {
            self.complaints.warn(&format!("refused a connection from {from} without a certificate of this run"));
            return connection.close(NO_CERTIFICATE, b"a certificate of this run is needed: enrol first");
        }
        if name.is_some() {
            transport::raise(&connection, alpn, route, self.socket_buffer);
        }
        let slot = name.is_none().then_some(slot);
        let queue = if alpn == Alpn::Ring { &self.rings } else { &self.peers };
        if let Err(refused) = queue.try_send(Peer { name, alpn, connection, _slot: slot }) {
            let (mpsc::error::TrySendError::Full(peer) | mpsc::error::TrySendError::Closed(peer)) = refused;
            peer.connection.close(BUSY, b"too many peers are waiting here: try again");
        }
    }
}

fn agreed(connection: &quinn::Connection) -> Option<Alpn> {
    let data = connection.handshake_data()?.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?;
    let protocol = data.protocol?;
    [Alpn::Enrol, Alpn::Control, Alpn::Bulk, Alpn::Ring].into_iter().find(|a| a.as_bytes() == protocol)
}

/// The name in the certificate that the handshake has verified.
fn certified_name(connection: &quinn::Connection) -> Option<String> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    tls::name_in(chain.first()?)
}
