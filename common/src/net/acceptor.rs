//! Accepts peers: a bounded number, in limited time, and only for what they may do.
//!
//! Every connection begins as a handshake in a bounded set of places. A peer with a
//! certificate of the run leaves these places for good; a peer without one that comes
//! to enrol moves to the strangers' places. So neither idle strangers nor peers that
//! wait to be served can keep a member out. In both sets the oldest holder is evicted
//! when a newcomer needs its place.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quinn::{Connection, ConnectionError, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::allow_list::AllowList;
use super::closing::BUSY;
use super::peer::{Peer, Place, Strangers, lock};
use super::protocol::{Alpn, Role};
use super::queue::Queue;
use super::rate_limited_log::RateLimitedLog;
use super::relay::Shown;
use super::slots::{Entered, Slots, source};
use super::tls;
use super::transport::{self, Route};
use crate::timing::HANDSHAKE;
use crate::ui::visible_within;

/// The close code for a peer without a certificate where one is needed.
const NO_CERTIFICATE: VarInt = VarInt::from_u32(1);
/// The close code for a peer that is not expected here now.
const NOT_EXPECTED: VarInt = VarInt::from_u32(3);

/// Handshakes in progress.
const HANDSHAKES: usize = 64;
/// From this many on, newcomers must first prove that their address is theirs.
const HANDSHAKES_UNPROVEN: usize = 16;
/// Peers without a certificate that are enrolling.
const STRANGERS: usize = 128;
/// How long a holder keeps its place where all sources hold equally many. A handshake
/// takes several round trips; an enrolling peer sends its request as soon as it has
/// connected.
const HANDSHAKE_GRACE: Duration = Duration::from_millis(500);
const STRANGER_GRACE: Duration = Duration::from_millis(250);

pub(super) struct Acceptor {
    role: Role,
    route: Option<Route>,
    socket_buffer: usize,
    loopback: Arc<quinn::ServerConfig>,
    network: Arc<quinn::ServerConfig>,
    relayed: Arc<quinn::ServerConfig>,
    handshakes: Mutex<Slots<Arc<Notify>>>,
    strangers: Strangers,
    members: Mutex<AllowList<Connection>>,
    /// Peers that connected for any protocol but the ring.
    pub(super) peers: Queue,
    pub(super) rings: Queue,
    complaints: RateLimitedLog,
}

/// Closes the queues however the acceptor's task ends.
struct Closing<'a>(&'a Acceptor);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.peers.close();
        self.0.rings.close();
    }
}

impl Acceptor {
    pub(super) fn new(role: Role, route: Option<Route>, server: &quinn::ServerConfig, socket_buffer: usize) -> Self {
        let with = |route| {
            let mut config = server.clone();
            config.transport_config(Arc::new(transport::incoming(route, socket_buffer)));
            config.migration(false);
            Arc::new(config)
        };
        Self {
            role,
            route,
            socket_buffer,
            loopback: with(route.unwrap_or(Route::Loopback)),
            network: with(route.unwrap_or(Route::NETWORK)),
            relayed: with(Route::Relayed),
            handshakes: Mutex::new(Slots::new(HANDSHAKES, HANDSHAKE_GRACE)),
            strangers: Arc::new(Mutex::new(Slots::new(STRANGERS, STRANGER_GRACE))),
            members: Mutex::new(AllowList::new()),
            peers: Queue::default(),
            rings: Queue::default(),
            complaints: RateLimitedLog::default(),
        }
    }

    /// Admits connections until the endpoint is closed.
    pub(super) async fn keep(self: Arc<Self>, endpoint: quinn::Endpoint) {
        let _closing = Closing(&self);
        let mut admitting = JoinSet::new();
        loop {
            let incoming = tokio::select! {
                incoming = endpoint.accept() => incoming,
                Some(_) = admitting.join_next() => continue,
            };
            let Some(incoming) = incoming else { return };
            let mut handshakes = lock(&self.handshakes);
            if handshakes.taken() >= HANDSHAKES_UNPROVEN && !incoming.remote_address_validated() {
                let _ = incoming.retry();
                continue;
            }
            let give_way = Arc::new(Notify::new());
            let Some(Entered { id, gave_way }) = handshakes.enter(source(incoming.remote_address()), Instant::now(), Arc::clone(&give_way))
            else {
                incoming.refuse();
                continue;
            };
            if let Some(other) = gave_way {
                other.notify_one();
            }
            drop(handshakes);
            admitting.spawn(Arc::clone(&self).handshake(incoming, id, give_way));
        }
    }

    /// From now on only these names may have ring and bulk connections.
    pub(super) fn expect(&self, names: HashSet<String>) {
        for connection in lock(&self.members).expect(names) {
            connection.close(NOT_EXPECTED, b"this worker has no ring with that one any more");
        }
    }

    async fn handshake(self: Arc<Self>, incoming: quinn::Incoming, place: u64, give_way: Arc<Notify>) {
        let from = incoming.remote_address();
        let route = self.route.unwrap_or_else(|| Route::to(from));
        let config = match route {
            Route::Loopback => self.loopback.clone(),
            Route::Network { .. } => self.network.clone(),
            Route::Relayed => self.relayed.clone(),
        };
        let outcome = match incoming.accept_with(config) {
            Err(problem) => Err(in_words(&problem)),
            Ok(connecting) => tokio::select! {
                biased;
                outcome = connecting => outcome.map_err(|problem| in_words(&problem)),
                () = give_way.notified() => Err("it was not completed before others came".to_owned()),
                () = tokio::time::sleep(HANDSHAKE) => Err("it was not completed in time".to_owned()),
            },
        };
        lock(&self.handshakes).leave(place);
        match outcome {
            Ok(connection) => self.admit(connection, route).await,
            Err(problem) => self.complaints.warn(&format!("refused a connection from {}: {problem}", Shown(from))),
        }
    }

    /// Decides what a peer whose handshake is complete may do here.
    async fn admit(&self, connection: Connection, route: Route) {
        let from = Shown(connection.remote_address());
        let Some(alpn) = agreed(&connection) else { return connection.close(NO_CERTIFICATE, b"unknown protocol") };
        match certified_name(&connection) {
            None if matches!(alpn, Alpn::Enrol | Alpn::Doctor) => self.admit_stranger(connection, alpn, route),
            None => {
                self.complaints.warn(&format!("refused a connection from {from} without a certificate of this run"));
                connection.close(NO_CERTIFICATE, b"a certificate of this run is needed: enrol first");
            }
            Some(name) => {
                transport::raise(&connection, alpn, route, self.socket_buffer);
                match self.role {
                    Role::Coordinator => self.hand_over(Peer { name: Some(name), alpn, connection, place: None }),
                    Role::Worker => self.admit_member(connection, name, alpn).await,
                }
            }
        }
    }

    fn admit_stranger(&self, connection: Connection, alpn: Alpn, route: Route) {
        let entered = lock(&self.strangers).enter(source(connection.remote_address()), Instant::now(), connection.clone());
        let Some(Entered { id, gave_way }) = entered else {
            return connection.close(BUSY, b"others are enrolling now: try again");
        };
        if let Some(other) = gave_way {
            other.close(BUSY, b"others came to enrol, and this one had not done so: try again");
        }
        let socket_buffer = self.socket_buffer;
        let place = Place { strangers: Arc::clone(&self.strangers), id, connection: connection.clone(), route, socket_buffer };
        self.hand_over(Peer { name: None, alpn, connection, place: Some(place) });
    }

    /// Returns once the connection has ended.
    async fn admit_member(&self, connection: Connection, name: String, alpn: Alpn) {
        let Some(admitted) = lock(&self.members).admit(&name, alpn, connection.clone()) else {
            // Logged at debug only: a member may learn of a new generation a moment
            // before this one.
            tracing::debug!("refused a connection of `{name}` at {}, which is not expected", Shown(connection.remote_address()));
            return connection.close(NOT_EXPECTED, b"this worker does not know that one as a member yet, or any more");
        };
        if let Some(oldest) = admitted.replaced {
            oldest.close(BUSY, b"newer connections of the same worker have taken its place");
        }
        self.hand_over(Peer { name: Some(name.clone()), alpn, connection: connection.clone(), place: None });
        connection.closed().await;
        lock(&self.members).leave(&name, alpn, admitted.id);
    }

    fn hand_over(&self, peer: Peer) {
        let queue = if peer.alpn == Alpn::Ring { &self.rings } else { &self.peers };
        if let Some(other) = queue.push(peer) {
            other.connection.close(BUSY, b"too many peers are waiting here: try again");
        }
    }
}

/// Why a handshake failed. May contain text from the peer.
fn in_words(problem: &ConnectionError) -> String {
    visible_within(&problem.to_string(), 200)
}

fn agreed(connection: &Connection) -> Option<Alpn> {
    let data = connection.handshake_data()?.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?;
    let protocol = data.protocol?;
    [Alpn::Enrol, Alpn::Doctor, Alpn::Control, Alpn::Bulk, Alpn::Ring, Alpn::Relay].into_iter().find(|a| a.as_bytes() == protocol)
}

/// The name in the certificate that the handshake has verified.
fn certified_name(connection: &Connection) -> Option<String> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    tls::name_in(chain.first()?)
}
