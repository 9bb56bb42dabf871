//! A worker's conversation with the coordinator over one control connection.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use common::config::Config;
use common::dataset::DatasetInfo;
use common::net::enrolment::resolve;
use common::net::{Alpn, COORDINATOR, Endpoint};
use common::timing::{COORDINATOR_ATTEMPT, COORDINATOR_SILENCE, PROBED_MAY_CONNECT};
use common::ui::visible_within;
use common::wire::messages::{Generation, MAX_CONTROL, Member, ToCoordinator, ToWorker};
use common::wire::{PROTOCOL, WireError, read_message, write_message};
use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use tokio::sync::{mpsc, oneshot, watch};

use crate::cluster::link::{self, CurrentRing, KnownShares, KnownSpeed, Order};
use crate::cluster::probe;
use crate::cluster::replay_log::Outbox;

/// The most messages from the coordinator that may wait to be handled.
const QUEUE: usize = 256;

/// How long a failing worker waits for each of its last messages before it ends.
const LAST_MESSAGE_TIMEOUT: Duration = Duration::from_millis(200);

/// The pause before each attempt to reconnect to the coordinator.
const RETRY: Duration = Duration::from_millis(250);

/// The most characters that are shown of why a worker is left out, or relayed.
const MAX_REASON_CHARS: usize = 1000;

/// The most peers that may connect for probes at a time.
const PROBED: usize = 256;

/// Why there is no connection to the coordinator.
#[derive(Debug)]
pub enum ConnectError {
    /// The connection is lost: a new one may succeed.
    Lost(anyhow::Error),
    /// The coordinator refused this worker: reconnecting would not help.
    Refused(anyhow::Error),
}

/// The connections to the coordinator, and its answer to the greeting.
pub struct Connected {
    pub bulk: Connection,
    /// For packets of workers that do not reach each other; none if the run does not relay.
    pub relay: Option<Connection>,
    pub config_toml: String,
    pub info: DatasetInfo,
    /// The first step that the coordinator's record lacks.
    pub recorded: u64,
    send: SendStream,
    recv: RecvStream,
}

impl Connected {
    /// The run's config, as it was sent.
    pub fn config(&self) -> Result<Config> {
        Ok(Config::parse(&self.config_toml, "the coordinator's config", &[])?)
    }
}

/// A worker's message about itself to the coordinator when it connects.
#[derive(Debug, Clone)]
pub struct Greeting {
    /// The coordinator's addresses, as this worker was told them.
    pub named: Vec<String>,
    /// The same, as they were last resolved.
    pub coordinator: Vec<SocketAddr>,
    pub ring_port: u16,
    /// Where this worker may be reached by its interfaces.
    pub own: Vec<SocketAddr>,
    pub advertise: Option<SocketAddr>,
    pub preferred_rank: Option<u32>,
}

/// Connects and greets, as a newcomer or as a member of `generation`.
pub async fn connect(endpoint: &Endpoint, greeting: &Greeting, generation: Option<u64>) -> Result<Connected, ConnectError> {
    let lost = |e: anyhow::Error| ConnectError::Lost(e.context(format!("lost the coordinator at {}", greeting.named.join(", "))));
    let control = endpoint.connect_any(&greeting.coordinator, COORDINATOR, Alpn::Control, COORDINATOR_SILENCE).await;
    let control = control.map_err(|e| lost(e.into()))?;
    let bulk = endpoint.connect(control.remote_address(), COORDINATOR, Alpn::Bulk).await.map_err(|e| lost(e.into()))?;
    let (mut send, mut recv) = control.open_bi().await.map_err(|e| lost(e.into()))?;
    let hello = ToCoordinator::Hello {
        protocol: PROTOCOL,
        ring_port: greeting.ring_port,
        addresses: greeting.own.clone(),
        advertise: greeting.advertise,
        preferred_rank: greeting.preferred_rank,
        generation,
    };
    write_message(&mut send, &hello).await.map_err(|e| lost(e.into()))?;
    match read_message::<ToWorker>(&mut recv, MAX_CONTROL).await.map_err(|e| lost(e.into()))? {
        Some(ToWorker::Welcome { config_toml, dataset, recorded }) => {
            let mut connected = Connected { bulk, relay: None, config_toml, info: dataset.into(), recorded, send, recv };
            if connected.config().is_ok_and(|config| config.cluster.relay) {
                let relay = endpoint.connect(control.remote_address(), COORDINATOR, Alpn::Relay).await;
                connected.relay = Some(relay.map_err(|e| lost(e.into()))?);
            }
            Ok(connected)
        }
        Some(ToWorker::Refused { reason }) => Err(ConnectError::Refused(anyhow!("the coordinator refused this worker: {reason}"))),
        _ => Err(lost(anyhow!("it did not answer the greeting"))),
    }
}

/// State that outlives a control connection: the training thread, and the channels to it.
pub struct Session {
    pub outbox: Outbox,
    pub to_coordinator: mpsc::Sender<ToCoordinator>,
    pub orders: std::sync::mpsc::Sender<Order>,
    pub over: watch::Sender<u64>,
    pub ring: CurrentRing,
    pub stop: Arc<AtomicBool>,
    pub pause: Arc<AtomicU64>,
    pub step: Arc<AtomicU64>,
    pub speed: KnownSpeed,
    pub shares: KnownShares,
    pub heartbeat: Duration,
    /// How long this worker tries to reconnect to a coordinator that is out of reach.
    pub orphaned_after: Duration,
    pub endpoint: Arc<Endpoint>,
    /// The peers that may connect to it.
    pub expected: Expected,
    /// Receives the result of the training thread; none once the thread has ended.
    pub trained: Option<oneshot::Receiver<Result<()>>>,
    pub shutdown: watch::Receiver<bool>,
}

/// The names of the peers that may connect to a worker.
#[derive(Debug, Default)]
pub struct Expected {
    /// The members of the newest generation.
    members: Vec<String>,
    /// Peers that may connect for a probe, and until when.
    probes: VecDeque<(String, Instant)>,
}

impl Expected {
    fn names(&self) -> impl Iterator<Item = String> {
        self.members.iter().chain(self.probes.iter().map(|(name, _)| name)).cloned()
    }
}

/// How a conversation ended.
pub enum SessionEnd {
    /// This worker is done with the run.
    Done(Result<()>),
    /// The coordinator is out of reach.
    OutOfReach(anyhow::Error),
    /// The coordinator no longer counts this worker as a member, for this reason.
    GivenUp(String),
}

impl Session {
    /// Exchanges messages with the coordinator until it says goodbye or is lost.
    pub async fn converse(&mut self, mut connected: Connected) -> SessionEnd {
        let mut inbox = read(connected.recv);
        let again = self.outbox.again(connected.recorded);
        let mut beat = tokio::time::interval(self.heartbeat);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for message in again {
            if let Err(e) = write_message(&mut connected.send, &message).await {
                return SessionEnd::OutOfReach(e.into());
            }
        }
        loop {
            let message = tokio::select! {
                message = inbox.recv() => match message {
                    Some(Ok(Some(message))) => {
                        if let Some(end) = self.hear(message) {
                            return end;
                        }
                        continue;
                    }
                    Some(Err(e)) => return SessionEnd::OutOfReach(e.into()),
                    _ => return SessionEnd::OutOfReach(anyhow!("it closed the connection")),
                },
                message = self.outbox.next() => message,
                problem = closed(connected.relay.as_ref()) => {
                    return self.last_word(&mut inbox, anyhow!("its relay's connection ended: {problem}")).await;
                }
                problem = connected.bulk.closed() => {
                    return self.last_word(&mut inbox, anyhow!("its bulk connection ended: {problem}")).await;
                }
                _ = beat.tick() => {
                    self.forget_probes(Instant::now());
                    let (step, waiting) = (self.step.load(Ordering::Relaxed), link::waits(&self.ring));
                    ToCoordinator::Heartbeat { step, waiting, speed: self.speed.get(), shares: self.shares.get() }
                }
                Ok(()) = self.shutdown.changed() => {
                    if *self.shutdown.borrow() {
                        tracing::info!("leaving the run after this step");
                        let _ = self.to_coordinator.try_send(ToCoordinator::Leaving);
                    }
                    continue;
                }
                e = trained(&mut self.trained) => {
                    // The coordinator is sent the reason before this process ends.
                    while let Ok(message) = tokio::time::timeout(LAST_MESSAGE_TIMEOUT, self.outbox.next()).await {
                        let _ = write_message(&mut connected.send, &message).await;
                    }
                    return SessionEnd::Done(Err(e));
                }
            };
            if let Err(e) = write_message(&mut connected.send, &message).await {
                return SessionEnd::OutOfReach(e.into());
            }
        }
    }

    /// After another connection has ended: why it was closed may be on its way over this one.
    async fn last_word(&mut self, inbox: &mut mpsc::Receiver<Result<Option<ToWorker>, WireError>>, lost: anyhow::Error) -> SessionEnd {
        let heard = async {
            while let Some(Ok(Some(message))) = inbox.recv().await {
                if let Some(end) = self.hear(message) {
                    return Some(end);
                }
            }
            None
        };
        let end = tokio::time::timeout(LAST_MESSAGE_TIMEOUT, heard).await.ok().flatten();
        end.unwrap_or(SessionEnd::OutOfReach(lost))
    }

    /// Acts on a message of the coordinator. Returns an [`SessionEnd`] if it is the last message.
    fn hear(&mut self, message: ToWorker) -> Option<SessionEnd> {
        let ended = |text: String| Some(SessionEnd::Done(Err(anyhow!(text))));
        match message {
            ToWorker::Generation(generation) => {
                self.outbox.joins(generation.number);
                self.expect(&generation);
                let _ = self.orders.send(Order::Generation(generation));
                None
            }
            ToWorker::End { generation, reason } => {
                self.leave_ring(generation, &reason);
                None
            }
            ToWorker::Yield { generation } => {
                self.pause.store(generation, Ordering::Relaxed);
                None
            }
            ToWorker::Spare => {
                tracing::info!("there are as many workers as shards: waiting as a spare");
                None
            }
            ToWorker::LeftOut { name, reason, again_ms } => {
                let seconds = Duration::from_millis(again_ms).as_secs();
                tracing::warn!(
                    "{name} is left out of the ring and tried again in {seconds} s: {}",
                    visible_within(&reason, MAX_REASON_CHARS)
                );
                None
            }
            ToWorker::Relayed { reason } => {
                tracing::warn!("{}", visible_within(&reason, MAX_REASON_CHARS));
                None
            }
            ToWorker::Stop => {
                self.stop.store(true, Ordering::Relaxed);
                None
            }
            ToWorker::Probe { peers, bytes } => {
                self.expect_probes(&peers);
                probe::start(&self.endpoint, &self.to_coordinator, peers, bytes);
                None
            }
            ToWorker::Store => {
                tracing::info!("this worker alone holds the newest step: storing it");
                let _ = self.orders.send(Order::Store);
                None
            }
            ToWorker::Goodbye => Some(SessionEnd::Done(Ok(()))),
            ToWorker::Dropped { reason } => {
                if let Some(generation) = self.outbox.is_given_up() {
                    self.leave_ring(generation, "the coordinator has given this worker up");
                }
                Some(SessionEnd::GivenUp(reason))
            }
            ToWorker::Abort { reason } => ended(format!("the run was ended: {reason}")),
            ToWorker::Refused { reason } => ended(format!("the coordinator refused this worker: {reason}")),
            ToWorker::Welcome { .. } => ended("the coordinator welcomed this worker twice".to_owned()),
        }
    }

    /// Makes the training thread leave this generation and report the state that it holds.
    fn leave_ring(&self, generation: u64, reason: &str) {
        self.over.send_if_modified(|over| {
            let newer = generation > *over;
            *over = generation.max(*over);
            newer
        });
        link::abort(&self.ring, generation, reason);
        let _ = self.orders.send(Order::End(generation));
    }

    /// From now on only this generation's members may connect, for the ring or for a state.
    fn expect(&mut self, generation: &Generation) {
        self.expected.members = generation.members.iter().map(|Member { name, .. }| name.clone()).collect();
        self.expected.probes.clear();
        self.endpoint.expect(self.expected.names());
    }

    /// Lets `peers` connect to this worker for a while, since they may probe it too.
    fn expect_probes(&mut self, peers: &[Member]) {
        let until = Instant::now() + PROBED_MAY_CONNECT;
        for Member { name, .. } in peers.iter().take(PROBED) {
            self.expected.probes.push_back((name.clone(), until));
        }
        while self.expected.probes.len() > PROBED {
            self.expected.probes.pop_front();
        }
        self.endpoint.expect(self.expected.names());
    }

    /// Peers whose time for probes is over may no longer connect.
    fn forget_probes(&mut self, now: Instant) {
        let before = self.expected.probes.len();
        self.expected.probes.retain(|(_, until)| *until > now);
        if self.expected.probes.len() < before {
            self.endpoint.expect(self.expected.names());
        }
    }

    /// Reconnects to a coordinator that is out of reach, while training goes on.
    pub async fn find_again(&mut self, endpoint: &Endpoint, greeting: &mut Greeting) -> Result<Connected> {
        let since = Instant::now();
        loop {
            if since.elapsed() > self.orphaned_after {
                return Err(anyhow!(
                    "the coordinator at {} was out of reach for {} s (cluster.orphan_ms): the state of this worker is lost",
                    greeting.named.join(", "),
                    self.orphaned_after.as_secs()
                ));
            }
            let generation = self.outbox.generation();
            let mut attempt = std::pin::pin!(async {
                tokio::time::sleep(RETRY).await;
                // Started anew, it may have another address under the same name.
                if let Ok(Ok(addresses)) = tokio::time::timeout(RETRY, resolve(&greeting.named)).await {
                    greeting.coordinator = addresses;
                }
                tokio::time::timeout(COORDINATOR_ATTEMPT, connect(endpoint, greeting, generation)).await
            });
            let found = loop {
                tokio::select! {
                    found = &mut attempt => break found,
                    // The outbox remembers the message, if it must be sent after
                    // reconnecting.
                    _ = self.outbox.next() => {}
                    e = trained(&mut self.trained) => return Err(e),
                    Ok(()) = self.shutdown.changed() => if *self.shutdown.borrow() {
                        tracing::warn!("this worker leaves once the coordinator is back, for its state would be lost; once more to leave at once");
                        let _ = self.to_coordinator.try_send(ToCoordinator::Leaving);
                    },
                }
            };
            match found {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(ConnectError::Lost(e))) => tracing::debug!("{e:#}"),
                Ok(Err(ConnectError::Refused(e))) => return Err(e),
                Err(_) => {}
            }
        }
    }
}

/// Why a connection was closed; does not return if there is none.
async fn closed(connection: Option<&Connection>) -> ConnectionError {
    match connection {
        Some(connection) => connection.closed().await,
        None => std::future::pending().await,
    }
}

/// Returns why the training thread failed; does not return if it ends as it should.
async fn trained(thread: &mut Option<oneshot::Receiver<Result<()>>>) -> anyhow::Error {
    if let Some(ended) = thread {
        let ended = ended.await;
        *thread = None;
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return e,
            Err(_) => return anyhow!("the training thread panicked"),
        }
    }
    std::future::pending().await
}

/// Reads messages in a task of its own, because a read that is cancelled halfway would
/// lose the message. After the end of the stream or an error the channel closes.
fn read(mut recv: RecvStream) -> mpsc::Receiver<Result<Option<ToWorker>, WireError>> {
    let (messages, inbox) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        loop {
            let message = read_message::<ToWorker>(&mut recv, MAX_CONTROL).await;
            let last = !matches!(message, Ok(Some(_)));
            if messages.send(message).await.is_err() || last {
                break;
            }
        }
    });
    inbox
}
