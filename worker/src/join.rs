//! `worker join`: one worker of a cluster. The async side speaks with the
//! coordinator; a plain thread trains, and the two exchange a few messages.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use common::config::Config;
use common::dataset::DatasetInfo;
use common::net::enrolment::enrol;
use common::net::{Alpn, COORDINATOR, Endpoint, Role, Token};
use common::wire::messages::{Generation, MAX_CONTROL, ToCoordinator, ToWorker};
use common::wire::{PROTOCOL, WireError, read_message, write_message};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{mpsc, watch};

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

/// What the training thread and the async side share.
pub struct Link {
    pub runtime: tokio::runtime::Handle,
    pub to_coordinator: mpsc::Sender<ToCoordinator>,
    pub generation: std::sync::mpsc::Receiver<Generation>,
    pub stop: Arc<AtomicBool>,
    /// Steps committed so far, for heartbeats.
    pub step: Arc<AtomicU64>,
    pub ring_endpoint: Arc<Endpoint>,
    pub bulk: Connection,
}

/// Joins, trains and returns when the coordinator says goodbye. `shutdown`
/// turning true asks the run to stop after the step in flight.
pub async fn join(options: JoinOptions, mut shutdown: watch::Receiver<bool>) -> Result<()> {
    let coordinator = options.coordinator;
    let identity = enrol(coordinator, &options.token).await?;
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let client_addr = if coordinator.is_ipv4() { SocketAddr::from(([0, 0, 0, 0], 0)) } else { any };
    let endpoint = Endpoint::bind(client_addr, &identity, Role::Worker)?;
    let ring_endpoint = Arc::new(Endpoint::bind(options.ring_listen, &identity, Role::Worker).context("choose another --ring-listen")?);

    let control = endpoint.connect(coordinator, COORDINATOR, Alpn::Control).await?;
    let bulk = endpoint.connect(coordinator, COORDINATOR, Alpn::Bulk).await?;
    let (mut send, mut recv) = control.open_bi().await?;
    let hello = ToCoordinator::Hello {
        protocol: PROTOCOL,
        ring_port: ring_endpoint.local_addr()?.port(),
        advertise: options.advertise.clone(),
        preferred_rank: options.preferred_rank,
    };
    write_message(&mut send, &hello).await?;
    let Welcomed { config, info, first_step } = welcome(&mut recv).await?;

    let (to_coordinator, outbox) = mpsc::channel(QUEUE);
    let (generations, generation) = std::sync::mpsc::sync_channel(1);
    let (stop, step) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let heartbeat = Duration::from_millis(config.cluster.heartbeat_ms);
    let link = Link {
        runtime: tokio::runtime::Handle::current(),
        to_coordinator,
        generation,
        stop: Arc::clone(&stop),
        step: Arc::clone(&step),
        ring_endpoint: Arc::clone(&ring_endpoint),
        bulk,
    };
    let member = Member {
        config,
        info,
        first_step,
        data: options.data,
        device: options.device,
        cache_dir: options.cache_dir,
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
                Ok(Some(ToWorker::Generation(generation))) => { let _ = generations.try_send(generation); }
                Ok(Some(ToWorker::Stop)) => stop.store(true, Ordering::Relaxed),
                Ok(Some(ToWorker::Goodbye)) => break Ok(()),
                Ok(Some(ToWorker::Abort { reason })) => break Err(anyhow!("the run was ended: {reason}")),
                Ok(Some(ToWorker::Refused { reason })) => break Err(anyhow!("the coordinator refused this worker: {reason}")),
                Ok(Some(ToWorker::Welcome { .. })) => break Err(anyhow!("the coordinator welcomed this worker twice")),
                Ok(None) => break Err(anyhow!("the coordinator at {coordinator} closed the connection")),
                Err(e) => break Err(anyhow!(e).context(format!("lost the coordinator at {coordinator}"))),
            },
            Ok(()) = shutdown.changed() => if *shutdown.borrow() {
                tracing::info!("asking the run to stop after this step");
                stop.store(true, Ordering::Relaxed);
            },
            result = &mut trained, if training => match result {
                // The report is on its way; the goodbye comes when all have reported.
                Ok(Ok(())) => training = false,
                // The reason is told to the coordinator before this process ends.
                Ok(Err(e)) => { tokio::time::sleep(PARTING).await; break Err(e) }
                Err(_) => break Err(anyhow!("the training thread panicked")),
            },
        }
    };
    drop(generations);
    writer.abort();
    tokio::join!(ring_endpoint.close(), endpoint.close());
    outcome
}

struct Welcomed {
    config: Config,
    info: DatasetInfo,
    first_step: u64,
}

async fn welcome(recv: &mut RecvStream) -> Result<Welcomed> {
    match read_message::<ToWorker>(recv, MAX_CONTROL).await? {
        Some(ToWorker::Welcome { config_toml, dataset, first_step }) => {
            let config = Config::parse(&config_toml, "the coordinator's config", &[])?;
            Ok(Welcomed { config, info: dataset.into(), first_step })
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
