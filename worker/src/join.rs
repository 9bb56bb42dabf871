//! `worker join`: one worker of a cluster. The async side speaks with the
//! coordinator; a plain thread trains, and the two exchange a few messages.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use common::config::Config;
use common::dataset::DatasetInfo;
use common::net::enrolment::enrol;
use common::net::{Alpn, COORDINATOR, Endpoint, Identity, Role, Token};
use common::wire::messages::{MAX_CONTROL, ToCoordinator, ToWorker};
use common::wire::{PROTOCOL, WireError, read_message, write_message};
use quinn::{RecvStream, SendStream};
use tokio::sync::{mpsc, watch};

use crate::donor::Donor;
use crate::link::{self, CurrentRing, Link, Order};
use crate::member::{self, Member};

/// Messages to the coordinator that may wait to be written.
const QUEUE: usize = 256;

/// How long a failing worker waits for its last message to leave.
const PARTING: Duration = Duration::from_millis(200);

/// How to join.
#[derive(Debug, Clone)]
pub struct JoinOptions {
    pub coordinator: SocketAddr,
    pub token: Token,
    /// A local copy of the data; without one, samples are streamed.
    pub data: Option<PathBuf>,
    pub device: String,
    /// Where to listen for the predecessor in the ring.
    pub ring_listen: SocketAddr,
    /// What to tell others to connect to, if not the address seen by the coordinator.
    pub advertise: Option<String>,
    pub preferred_rank: Option<u32>,
    pub cache_dir: PathBuf,
    pub cache_bytes: u64,
}

/// How long a worker that has lost its coordinator tries to get back in.
const REJOIN_WITHIN: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(200);

/// Why one stay in the run ended, if it did not end well.
enum Parted {
    /// This worker was given up, or the connection is gone: it may come back.
    Lost(anyhow::Error),
    /// There is no point in coming back.
    Ended(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Parted {
    fn from(error: E) -> Self {
        Self::Ended(error.into())
    }
}

/// Joins, trains and returns when the coordinator says goodbye. A worker that
/// was frozen or cut off, and was given up for it, joins again as a newcomer.
/// `shutdown` turning true asks to leave after the step in flight.
pub async fn join(options: JoinOptions, mut shutdown: watch::Receiver<bool>) -> Result<()> {
    let identity = enrol(options.coordinator, &options.token).await?;
    // When the coordinator was last there: what was never reached cannot be lost.
    let mut welcomed: Option<Instant> = None;
    loop {
        match stay(&options, &identity, &mut shutdown, &mut welcomed).await {
            Ok(()) => return Ok(()),
            Err(Parted::Ended(e)) => return Err(e),
            Err(Parted::Lost(e)) => {
                if welcomed.is_none_or(|at| at.elapsed() > REJOIN_WITHIN) || *shutdown.borrow() {
                    return Err(e);
                }
                tracing::warn!("{e:#}; joining again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// One stay in the run, from the greeting to the parting. `welcomed` keeps the
/// time at which the coordinator was last there.
async fn stay(
    options: &JoinOptions,
    identity: &Identity,
    shutdown: &mut watch::Receiver<bool>,
    welcomed: &mut Option<Instant>,
) -> Result<(), Parted> {
    let coordinator = options.coordinator;
    let lost = |e: anyhow::Error| Parted::Lost(e.context(format!("lost the coordinator at {coordinator}")));
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let client_addr = if coordinator.is_ipv4() { SocketAddr::from(([0, 0, 0, 0], 0)) } else { any };
    let endpoint = Endpoint::bind(client_addr, identity, Role::Worker)?;
    let ring_endpoint = Arc::new(Endpoint::bind(options.ring_listen, identity, Role::Worker).context("choose another --ring-listen")?);

    let control = endpoint.connect(coordinator, COORDINATOR, Alpn::Control).await.map_err(|e| lost(e.into()))?;
    let bulk = endpoint.connect(coordinator, COORDINATOR, Alpn::Bulk).await.map_err(|e| lost(e.into()))?;
    let (mut send, mut recv) = control.open_bi().await.map_err(|e| lost(e.into()))?;
    let hello = ToCoordinator::Hello {
        protocol: PROTOCOL,
        ring_port: ring_endpoint.local_addr()?.port(),
        advertise: options.advertise.clone(),
        preferred_rank: options.preferred_rank,
    };
    write_message(&mut send, &hello).await.map_err(|e| lost(e.into()))?;
    let Welcomed { config, info } = welcome(&mut recv).await?;

    let (to_coordinator, outbox) = mpsc::channel(QUEUE);
    let (orders_in, orders) = std::sync::mpsc::channel();
    let (over_in, over) = watch::channel(0);
    let heartbeat = Duration::from_millis(config.cluster.heartbeat_ms);
    let link = Link {
        runtime: tokio::runtime::Handle::current(),
        to_coordinator: to_coordinator.clone(),
        orders,
        stop: Arc::default(),
        pause: Arc::default(),
        over,
        ring: CurrentRing::default(),
        step: Arc::default(),
        ring_endpoint: Arc::clone(&ring_endpoint),
        bulk,
        donor: Donor::default(),
    };
    let (stop, pause, step, ring) = (Arc::clone(&link.stop), Arc::clone(&link.pause), Arc::clone(&link.step), Arc::clone(&link.ring));
    let giving = tokio::spawn(link.donor.clone().serve(Arc::clone(&ring_endpoint)));
    let member = Member {
        config,
        info,
        data: options.data.clone(),
        device: options.device.clone(),
        cache_dir: options.cache_dir.clone(),
        cache_bytes: options.cache_bytes,
    };
    let (done, mut trained) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("train".to_owned()).spawn(move || {
        let _ = done.send(member::run(member, link));
    })?;

    let writer = tokio::spawn(write(send, outbox, heartbeat, step));
    let mut inbox = read(recv);
    let mut training = true;
    let outcome = loop {
        tokio::select! {
            Some(message) = inbox.recv() => match message {
                Ok(Some(ToWorker::Generation(generation))) => { let _ = orders_in.send(Order::Generation(generation)); }
                Ok(Some(ToWorker::End { generation, reason })) => {
                    over_in.send_replace(generation);
                    link::abort(&ring, generation, &reason);
                    let _ = orders_in.send(Order::End(generation));
                }
                Ok(Some(ToWorker::Yield { generation })) => pause.store(generation, Ordering::Relaxed),
                Ok(Some(ToWorker::Spare)) => tracing::info!("there are as many workers as shards: waiting as a spare"),
                Ok(Some(ToWorker::Stop)) => stop.store(true, Ordering::Relaxed),
                Ok(Some(ToWorker::Goodbye)) => break Ok(()),
                Ok(Some(ToWorker::Dropped { reason })) => break Err(Parted::Lost(anyhow!("the coordinator has given this worker up: it {reason}"))),
                Ok(Some(ToWorker::Abort { reason })) => break Err(Parted::Ended(anyhow!("the run was ended: {reason}"))),
                Ok(Some(ToWorker::Refused { reason })) => break Err(Parted::Ended(anyhow!("the coordinator refused this worker: {reason}"))),
                Ok(Some(ToWorker::Welcome { .. })) => break Err(Parted::Ended(anyhow!("the coordinator welcomed this worker twice"))),
                Ok(None) => break Err(Parted::Lost(anyhow!("the coordinator at {coordinator} closed the connection"))),
                Err(e) => break Err(lost(anyhow!(e))),
            },
            Ok(()) = shutdown.changed() => if *shutdown.borrow() {
                tracing::info!("leaving the run after this step");
                let _ = to_coordinator.try_send(ToCoordinator::Leaving);
            },
            result = &mut trained, if training => match result {
                Ok(Ok(())) => training = false,
                // The reason is told to the coordinator before this process ends.
                Ok(Err(e)) => { tokio::time::sleep(PARTING).await; break Err(Parted::Ended(e)) }
                Err(_) => break Err(Parted::Ended(anyhow!("the training thread panicked"))),
            },
        }
    };
    *welcomed = Some(Instant::now());
    // The training thread may sit in a ring, or in a step; it ends with its queue of orders.
    over_in.send_replace(u64::MAX);
    link::abort(&ring, u64::MAX, "this worker has left the run");
    drop(orders_in);
    if matches!(outcome, Err(Parted::Lost(_))) && training {
        let _ = trained.await;
    }
    writer.abort();
    giving.abort();
    tokio::join!(ring_endpoint.close(), endpoint.close());
    outcome
}

struct Welcomed {
    config: Config,
    info: DatasetInfo,
}

async fn welcome(recv: &mut RecvStream) -> Result<Welcomed> {
    match read_message::<ToWorker>(recv, MAX_CONTROL).await? {
        Some(ToWorker::Welcome { config_toml, dataset }) => {
            let config = Config::parse(&config_toml, "the coordinator's config", &[])?;
            Ok(Welcomed { config, info: dataset.into() })
        }
        Some(ToWorker::Refused { reason }) => bail!("the coordinator refused this worker: {reason}"),
        _ => bail!("the coordinator did not answer the greeting"),
    }
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

/// Writes what the training thread has to say, and heartbeats in between.
async fn write(mut send: SendStream, mut outbox: mpsc::Receiver<ToCoordinator>, every: Duration, step: Arc<AtomicU64>) -> Result<()> {
    let mut beat = tokio::time::interval(every);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            message = outbox.recv() => match message {
                Some(message) => message,
                // The training thread is done; keep saying that we are alive.
                None => { beat.tick().await; ToCoordinator::Heartbeat { step: step.load(Ordering::Relaxed) } }
            },
            _ = beat.tick() => ToCoordinator::Heartbeat { step: step.load(Ordering::Relaxed) },
        };
        write_message(&mut send, &message).await?;
    }
}
