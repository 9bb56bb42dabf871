//! A worker's conversation with the coordinator over one control connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use common::config::Config;
use common::dataset::DatasetInfo;
use common::net::{Alpn, COORDINATOR, Endpoint};
use common::wire::messages::{MAX_CONTROL, ToCoordinator, ToWorker};
use common::wire::{PROTOCOL, WireError, read_message, write_message};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{mpsc, oneshot, watch};

use crate::join::Parted;
use crate::link::{self, CurrentRing, Order};
use crate::voice::Voice;

/// Messages from the coordinator that may wait to be read.
const QUEUE: usize = 256;

/// How long a failing worker waits for its last message to leave.
const PARTING: Duration = Duration::from_millis(200);

/// A coordinator that is silent for so long is gone, or out of reach: training
/// goes on, and it is looked for.
const SILENCE: Duration = Duration::from_secs(3);

/// How often a coordinator that is out of reach is looked for, and how long
/// one attempt may take.
const RETRY: Duration = Duration::from_millis(250);
const ATTEMPT: Duration = Duration::from_secs(2);

/// For how long it is looked for in all.
const PATIENCE: Duration = Duration::from_secs(600);

/// Two connections to the coordinator, and what it answered to the greeting.
pub struct Connected {
    pub bulk: Connection,
    pub config_toml: String,
    pub info: DatasetInfo,
    /// The first step that its record lacks.
    pub recorded: u64,
    send: SendStream,
    recv: RecvStream,
}

impl Connected {
    pub fn config(&self) -> Result<Config> {
        Ok(Config::parse(&self.config_toml, "the coordinator's config", &[])?)
    }
}

/// What a worker says of itself when it comes.
#[derive(Debug, Clone)]
pub struct Greeting {
    pub coordinator: SocketAddr,
    pub ring_port: u16,
    pub advertise: Option<String>,
    pub preferred_rank: Option<u32>,
}

/// Connects and greets, as a newcomer or as a member of `generation`.
pub async fn connect(endpoint: &Endpoint, greeting: &Greeting, generation: Option<u64>) -> Result<Connected, Parted> {
    let coordinator = greeting.coordinator;
    let lost = |e: anyhow::Error| Parted::Lost(e.context(format!("lost the coordinator at {coordinator}")));
    let control = endpoint.connect_with_idle(coordinator, COORDINATOR, Alpn::Control, SILENCE).await.map_err(|e| lost(e.into()))?;
    let bulk = endpoint.connect(coordinator, COORDINATOR, Alpn::Bulk).await.map_err(|e| lost(e.into()))?;
    let (mut send, mut recv) = control.open_bi().await.map_err(|e| lost(e.into()))?;
    let hello = ToCoordinator::Hello {
        protocol: PROTOCOL,
        ring_port: greeting.ring_port,
        advertise: greeting.advertise.clone(),
        preferred_rank: greeting.preferred_rank,
        generation,
    };
    write_message(&mut send, &hello).await.map_err(|e| lost(e.into()))?;
    match read_message::<ToWorker>(&mut recv, MAX_CONTROL).await.map_err(|e| lost(e.into()))? {
        Some(ToWorker::Welcome { config_toml, dataset, recorded }) => {
            Ok(Connected { bulk, config_toml, info: dataset.into(), recorded, send, recv })
        }
        Some(ToWorker::Refused { reason }) => Err(Parted::Ended(anyhow!("the coordinator refused this worker: {reason}"))),
        _ => Err(lost(anyhow!("it did not answer the greeting"))),
    }
}

/// What outlives a control connection: the training thread, and the way to it.
pub struct Session {
    pub voice: Voice,
    pub to_coordinator: mpsc::Sender<ToCoordinator>,
    pub orders: std::sync::mpsc::Sender<Order>,
    pub over: watch::Sender<u64>,
    pub ring: CurrentRing,
    pub stop: Arc<AtomicBool>,
    pub pause: Arc<AtomicU64>,
    pub step: Arc<AtomicU64>,
    pub heartbeat: Duration,
    /// How the training thread ended; none once it has.
    pub trained: Option<oneshot::Receiver<Result<()>>>,
    pub shutdown: watch::Receiver<bool>,
}

/// How a conversation ended.
pub enum End {
    /// This worker is done with the run.
    Parted(Result<(), Parted>),
    /// The coordinator is out of reach.
    OutOfReach(anyhow::Error),
}

impl Session {
    /// Speaks with the coordinator until it says goodbye or is lost.
    pub async fn converse(&mut self, mut connected: Connected) -> End {
        let mut inbox = read(connected.recv);
        let again = self.voice.again(connected.recorded);
        let mut beat = tokio::time::interval(self.heartbeat);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for message in again {
            if let Err(e) = write_message(&mut connected.send, &message).await {
                return End::OutOfReach(e.into());
            }
        }
        loop {
            let message = tokio::select! {
                message = inbox.recv() => match message {
                    Some(Ok(Some(message))) => {
                        if let Some(end) = self.hear(message) {
                            return End::Parted(end);
                        }
                        continue;
                    }
                    Some(Err(e)) => return End::OutOfReach(e.into()),
                    _ => return End::OutOfReach(anyhow!("it closed the connection")),
                },
                message = self.voice.next() => message,
                problem = connected.bulk.closed() => return End::OutOfReach(anyhow!("its bulk connection ended: {problem}")),
                _ = beat.tick() => ToCoordinator::Heartbeat { step: self.step.load(Ordering::Relaxed), waiting: link::waits(&self.ring) },
                Ok(()) = self.shutdown.changed() => {
                    if *self.shutdown.borrow() {
                        tracing::info!("leaving the run after this step");
                        let _ = self.to_coordinator.try_send(ToCoordinator::Leaving);
                    }
                    continue;
                }
                e = trained(&mut self.trained) => {
                    // The reason is told to the coordinator before this process ends.
                    while let Ok(message) = tokio::time::timeout(PARTING, self.voice.next()).await {
                        let _ = write_message(&mut connected.send, &message).await;
                    }
                    return End::Parted(Err(Parted::Ended(e)));
                }
            };
            if let Err(e) = write_message(&mut connected.send, &message).await {
                return End::OutOfReach(e.into());
            }
        }
    }

    /// Acts on what the coordinator says; something if that was its last word.
    fn hear(&mut self, message: ToWorker) -> Option<Result<(), Parted>> {
        let ended = |text: String| Some(Err(Parted::Ended(anyhow!(text))));
        match message {
            ToWorker::Generation(generation) => {
                self.voice.joins(generation.number);
                let _ = self.orders.send(Order::Generation(generation));
                None
            }
            ToWorker::End { generation, reason } => {
                self.over.send_replace(generation);
                link::abort(&self.ring, generation, &reason);
                let _ = self.orders.send(Order::End(generation));
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
            ToWorker::Stop => {
                self.stop.store(true, Ordering::Relaxed);
                None
            }
            ToWorker::Goodbye => Some(Ok(())),
            ToWorker::Dropped { reason } => Some(Err(Parted::Lost(anyhow!("the coordinator has given this worker up: it {reason}")))),
            ToWorker::Abort { reason } => ended(format!("the run was ended: {reason}")),
            ToWorker::Refused { reason } => ended(format!("the coordinator refused this worker: {reason}")),
            ToWorker::Welcome { .. } => ended("the coordinator welcomed this worker twice".to_owned()),
        }
    }

    /// Looks for a coordinator that is out of reach, while training goes on.
    pub async fn find_again(&mut self, endpoint: &Endpoint, greeting: &Greeting) -> Result<Connected, Parted> {
        let since = Instant::now();
        loop {
            if since.elapsed() > PATIENCE {
                let coordinator = greeting.coordinator;
                return Err(Parted::Ended(anyhow!("the coordinator at {coordinator} was out of reach for {} s", PATIENCE.as_secs())));
            }
            let generation = self.voice.generation();
            let mut attempt = std::pin::pin!(async {
                tokio::time::sleep(RETRY).await;
                tokio::time::timeout(ATTEMPT, connect(endpoint, greeting, generation)).await
            });
            let found = loop {
                tokio::select! {
                    found = &mut attempt => break found,
                    // It is remembered.
                    _ = self.voice.next() => {}
                    e = trained(&mut self.trained) => return Err(Parted::Ended(e)),
                    Ok(()) = self.shutdown.changed() => if *self.shutdown.borrow() {
                        return Err(Parted::Ended(anyhow!("asked to leave while the coordinator is out of reach")));
                    },
                }
            };
            match found {
                Ok(Err(Parted::Lost(e))) => tracing::debug!("{e:#}"),
                Ok(found) => return found,
                Err(_) => {}
            }
        }
    }
}

/// Why the training thread failed; never, if it ends as it should.
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

/// Reads on a task of its own: reading half a message and then doing something
/// else would lose it. After an end or an error nothing more comes.
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
