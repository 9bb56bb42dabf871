//! `worker join`: one worker of a cluster. The async side speaks with the
//! coordinator; a plain thread trains, and the two exchange a few messages.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use common::net::enrolment::enrol;
use common::net::{Endpoint, Identity, Role, Token};
use tokio::sync::{mpsc, oneshot, watch};

use crate::bulk::Bulk;
use crate::control::{End, Greeting, Session, connect};
use crate::donor::Donor;
use crate::link::{self, CurrentRing, Link};
use crate::member::{self, Member};
use crate::voice::Voice;

/// Messages to the coordinator that may wait to be written.
const QUEUE: usize = 256;

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
#[derive(Debug)]
pub enum Parted {
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
pub async fn join(options: JoinOptions, shutdown: watch::Receiver<bool>) -> Result<()> {
    let identity = enrol(options.coordinator, &options.token).await?;
    // When the coordinator was last there: what was never reached cannot be lost.
    let mut welcomed: Option<Instant> = None;
    loop {
        match stay(&options, &identity, &shutdown, &mut welcomed).await {
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
    shutdown: &watch::Receiver<bool>,
    welcomed: &mut Option<Instant>,
) -> Result<(), Parted> {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let client_addr = if options.coordinator.is_ipv4() { SocketAddr::from(([0, 0, 0, 0], 0)) } else { any };
    let endpoint = Endpoint::bind(client_addr, identity, Role::Worker)?;
    let ring_endpoint = Arc::new(Endpoint::bind(options.ring_listen, identity, Role::Worker).context("choose another --ring-listen")?);
    let greeting = Greeting {
        coordinator: options.coordinator,
        ring_port: ring_endpoint.local_addr()?.port(),
        advertise: options.advertise.clone(),
        preferred_rank: options.preferred_rank,
    };
    let mut connected = connect(&endpoint, &greeting, None).await?;
    let config = connected.config()?;
    let config_toml = connected.config_toml.clone();

    let (to_coordinator, outbox) = mpsc::channel(QUEUE);
    let (orders_in, orders) = std::sync::mpsc::channel();
    let (over_in, over) = watch::channel(0);
    let (bulk_in, bulk) = Bulk::new(connected.bulk.clone());
    let (done, trained) = oneshot::channel();
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
    let mut session = Session {
        voice: Voice::new(outbox),
        to_coordinator,
        orders: orders_in,
        over: over_in,
        ring: Arc::clone(&link.ring),
        stop: Arc::clone(&link.stop),
        pause: Arc::clone(&link.pause),
        step: Arc::clone(&link.step),
        heartbeat: Duration::from_millis(config.cluster.heartbeat_ms),
        trained: Some(trained),
        shutdown: shutdown.clone(),
    };
    let giving = tokio::spawn(link.donor.clone().serve(Arc::clone(&ring_endpoint)));
    let member = Member {
        config,
        info: connected.info.clone(),
        data: options.data.clone(),
        device: options.device.clone(),
        cache_dir: options.cache_dir.clone(),
        cache_bytes: options.cache_bytes,
    };
    std::thread::Builder::new().name("train".to_owned()).spawn(move || {
        let _ = done.send(member::run(member, link));
    })?;

    let outcome = loop {
        let lost = match session.converse(connected).await {
            End::Parted(outcome) => break outcome,
            End::OutOfReach(e) => e,
        };
        tracing::warn!("the coordinator at {} is out of reach ({lost:#}): training goes on, and it is looked for", options.coordinator);
        match session.find_again(&endpoint, &greeting).await {
            Ok(again) if again.config_toml == config_toml => {
                tracing::info!("the coordinator is back");
                bulk_in.send_replace(again.bulk.clone());
                connected = again;
            }
            Ok(_) => break Err(Parted::Lost(anyhow::anyhow!("the coordinator is back with another config"))),
            Err(parted) => break Err(parted),
        }
    };
    *welcomed = Some(Instant::now());
    // The training thread may sit in a ring, in a step, or wait for the coordinator;
    // it ends with its queue of orders.
    let Session { orders, over, ring, trained, .. } = session;
    over.send_replace(u64::MAX);
    link::abort(&ring, u64::MAX, "this worker has left the run");
    drop((orders, bulk_in));
    if let (Err(Parted::Lost(_)), Some(trained)) = (&outcome, trained) {
        let _ = trained.await;
    }
    giving.abort();
    tokio::join!(ring_endpoint.close(), endpoint.close());
    outcome
}
