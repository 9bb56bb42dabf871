//! Hostile peers with a true certificate of the run: they send false messages,
//! request more than they read, and join rings without doing their part.
//!
//! Each message is built in one place ([`hello`], [`ready`], [`trained`]), so that a
//! change of the protocol changes only these functions.

pub mod member;
pub mod strangers;

use common::digest::Digest;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::audit::TrainedSamples;
use common::net::enrolment::enrol;
use common::net::{Alpn, Authority, COORDINATOR, Endpoint, Identity, Role, Token};
use common::wire::messages::{BulkReply, BulkRequest, FileSize, MAX_CONTROL, MAX_SAMPLES, ToCoordinator, ToWorker};
use common::wire::{PROTOCOL, read_message, write_message};
use quinn::{Connection, RecvStream, SendStream};
use tokio::io::AsyncWriteExt;

/// A peer that answers at all has answered within this time.
pub const SOON: Duration = Duration::from_secs(10);

/// How soon a peer that was thrown out connects again.
const AGAIN: Duration = Duration::from_millis(500);

/// A node with a certificate of the run.
pub struct HostilePeer {
    endpoint: Endpoint,
    coordinator: SocketAddr,
}

/// A connection that is not refused within this time was let in.
const STANDS: Duration = Duration::from_millis(500);

impl HostilePeer {
    /// A peer that knows the run's keys, as a compromised machine would: it can have
    /// any name.
    pub fn named(run: &Path, coordinator: &str, name: &str) -> Self {
        let authority = Authority::open(&run.join("keys")).unwrap_or_else(|e| panic!("{e}"));
        let identity = authority.identity(name).unwrap_or_else(|e| panic!("{e}"));
        Self::with(&identity, coordinator)
    }

    /// A peer that was admitted with this token.
    pub async fn enrolled(coordinator: &str, token: &str) -> Self {
        let (address, token): (SocketAddr, Token) = (parsed(coordinator), token.parse().unwrap_or_else(|e| panic!("{e}")));
        let identity = enrol(address, &token).await.unwrap_or_else(|e| panic!("{e}"));
        Self::with(&identity, coordinator)
    }

    fn with(identity: &Identity, coordinator: &str) -> Self {
        let endpoint = Endpoint::bind(([127, 0, 0, 1], 0).into(), identity, Role::Worker).unwrap_or_else(|e| panic!("{e}"));
        Self { endpoint, coordinator: parsed(coordinator) }
    }

    /// The name in its certificate.
    pub fn name(&self) -> &str {
        &self.endpoint.identity().name
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        let port = self.endpoint.local_addr().unwrap_or_else(|e| panic!("{e}")).port();
        (Ipv4Addr::LOCALHOST, port).into()
    }

    pub async fn connect(&self, alpn: Alpn) -> Connection {
        self.endpoint.connect(self.coordinator, COORDINATOR, alpn).await.unwrap_or_else(|e| panic!("{e}"))
    }

    /// Connects to a worker; `None` if the worker does not let this peer in.
    pub async fn reach(&self, worker: SocketAddr, name: &str, alpn: Alpn) -> Option<Connection> {
        self.endpoint.connect(worker, name, alpn).await.ok()
    }

    /// Sends these messages over a control connection, raw bytes first, and asserts
    /// that the coordinator ends the connection.
    pub async fn is_thrown_out(&self, what: &str, raw: &[u8], messages: &[ToCoordinator]) {
        let connection = self.connect(Alpn::Control).await;
        let (mut send, mut receive) = connection.open_bi().await.unwrap_or_else(|e| panic!("{what}: {e}"));
        // The connection may be ended before all is sent.
        let _ = send.write_all(raw).await;
        for message in messages {
            let _ = write_message(&mut send, message).await;
        }
        let _ = send.flush().await;
        let end = async { while let Ok(Some(_)) = read_message::<ToWorker>(&mut receive, MAX_CONTROL).await {} };
        assert!(tokio::time::timeout(SOON, end).await.is_ok(), "{what}: the coordinator still talks");
    }

    /// The coordinator's answer to a bulk request; `None` if it ended the connection.
    pub async fn ask(&self, request: &BulkRequest, content: &[u8]) -> Option<BulkReply> {
        let connection = self.connect(Alpn::Bulk).await;
        let (mut send, mut receive) = connection.open_bi().await.ok()?;
        write_message(&mut send, request).await.ok()?;
        let _ = send.write_all(content).await;
        let _ = send.finish();
        let answer = tokio::time::timeout(SOON, read_message::<BulkReply>(&mut receive, MAX_CONTROL)).await;
        answer.unwrap_or_else(|_| panic!("{request:?} is not answered")).ok().flatten()
    }

    /// A control connection over which nothing has been sent yet.
    pub async fn speak(&self) -> Conversation {
        let connection = self.connect(Alpn::Control).await;
        let (send, receive) = connection.open_bi().await.unwrap_or_else(|e| panic!("{e}"));
        Conversation { _connection: connection, send, receive }
    }

    /// The hello that it sends when it joins.
    pub fn greeting(&self) -> ToCoordinator {
        ToCoordinator::Hello {
            protocol: PROTOCOL,
            ring_port: self.address().port(),
            addresses: Vec::new(),
            advertise: None,
            preferred_rank: None,
            generation: None,
        }
    }

    /// Requests as many samples as one request may name, again and again, and reads
    /// no answer. Returns what it holds open.
    pub async fn asks_and_does_not_read(&self, connections: usize, requests: usize) -> Vec<Unread> {
        let request = BulkRequest::Samples { val: false, ids: (0..MAX_SAMPLES as u32).collect() };
        let mut held = Vec::new();
        for _ in 0..connections {
            let connection = self.connect(Alpn::Bulk).await;
            let mut streams = Vec::new();
            for _ in 0..requests {
                // The coordinator may allow no further stream, or may end the
                // connection for it.
                let Ok(Ok((mut send, receive))) = tokio::time::timeout(Duration::from_secs(1), connection.open_bi()).await else { break };
                if write_message(&mut send, &request).await.is_err() {
                    break;
                }
                let _ = send.finish();
                streams.push((send, receive));
            }
            held.push(Unread { _connection: connection, streams });
        }
        held
    }

    /// Holds `count` silent ring connections to a worker, and replaces those that are
    /// ended, until told to stop: where one is refused, after a while. `held` is the number
    /// of open ones.
    pub async fn holds_rings(
        self: Arc<Self>,
        worker: SocketAddr,
        name: String,
        count: usize,
        refused: Duration,
        held: Arc<AtomicUsize>,
        stop: Arc<AtomicBool>,
    ) {
        let mut holding = tokio::task::JoinSet::new();
        for _ in 0..count {
            let (hostile, name, held, stop) = (Arc::clone(&self), name.clone(), Arc::clone(&held), Arc::clone(&stop));
            holding.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    if let Some(connection) = hostile.reach(worker, &name, Alpn::Ring).await {
                        // A connection that is refused looks open on this side for a
                        // moment.
                        tokio::time::sleep(STANDS).await;
                        if connection.close_reason().is_some() {
                            tokio::time::sleep(refused).await;
                            continue;
                        }
                        held.fetch_add(1, Ordering::Relaxed);
                        while !stop.load(Ordering::Relaxed) && connection.close_reason().is_none() {
                            tokio::time::sleep(AGAIN / 10).await;
                        }
                        held.fetch_sub(1, Ordering::Relaxed);
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            });
        }
        while holding.join_next().await.is_some() {}
    }
}

/// Streams of requests whose answers are not read.
pub struct Unread {
    _connection: Connection,
    pub streams: Vec<(SendStream, RecvStream)>,
}

/// A control connection in use.
pub struct Conversation {
    _connection: Connection,
    send: SendStream,
    receive: RecvStream,
}

impl Conversation {
    /// Sends a message; returns whether that succeeded.
    pub async fn send(&mut self, message: &ToCoordinator) -> bool {
        write_message(&mut self.send, message).await.is_ok()
    }

    /// The coordinator's next message; `None` if there is none any more, or none
    /// within [`SOON`].
    pub async fn hear(&mut self) -> Option<ToWorker> {
        let heard = tokio::time::timeout(SOON, read_message::<ToWorker>(&mut self.receive, MAX_CONTROL)).await;
        heard.ok()?.ok().flatten()
    }

    /// All messages that the coordinator sends within this time.
    pub async fn listen(&mut self, time: Duration) -> Vec<ToWorker> {
        let mut heard = Vec::new();
        let listening = async {
            while let Ok(Some(message)) = read_message::<ToWorker>(&mut self.receive, MAX_CONTROL).await {
                heard.push(message);
            }
        };
        let _ = tokio::time::timeout(time, listening).await;
        heard
    }
}

pub fn hello(protocol: u32) -> ToCoordinator {
    ToCoordinator::Hello {
        protocol,
        ring_port: 9,
        addresses: Vec::new(),
        advertise: None,
        preferred_rank: Some(u32::MAX),
        generation: None,
    }
}

pub fn ready(generation: u64, step: u64) -> ToCoordinator {
    ready_on("none", generation, step)
}

pub fn ready_on(device: &str, generation: u64, step: u64) -> ToCoordinator {
    // It claims that its state was committed in the generation that it was in, or in
    // the first one.
    ToCoordinator::Ready { device: device.to_owned(), generation, step, committed: generation.max(1), products: None }
}

pub fn trained(step: u64, rank: u32, ids: Vec<u32>) -> ToCoordinator {
    ToCoordinator::Trained(TrainedSamples { generation: 1, step, rank, ids, skipped: vec![] })
}

/// The request to store a checkpoint whose first file has this name; each file has
/// this many bytes.
pub fn put(name: &str, step: u64, bytes: u64) -> BulkRequest {
    let file = |name: &str| FileSize { name: name.to_owned(), bytes };
    BulkRequest::PutCheckpoint { step, weights_blake3: Digest::of(&[]), files: [name, "optimizer.safetensors"].map(file).to_vec() }
}

fn parsed(address: &str) -> SocketAddr {
    address.parse().unwrap_or_else(|e| panic!("{address}: {e}"))
}

/// A runtime for hostile peers.
pub fn runtime() -> tokio::runtime::Runtime {
    built(tokio::runtime::Builder::new_multi_thread().worker_threads(1))
}

/// A runtime for crowds of peers, which compute on machines of their own: its threads
/// have the lowest priority.
pub fn runtime_aside() -> tokio::runtime::Runtime {
    built(tokio::runtime::Builder::new_multi_thread().worker_threads(1).on_thread_start(crate::aside))
}

fn built(builder: &mut tokio::runtime::Builder) -> tokio::runtime::Runtime {
    builder.enable_all().build().unwrap_or_else(|e| panic!("no runtime: {e}"))
}
