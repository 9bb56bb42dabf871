//! `worker join`: one worker of a cluster. The async side talks to the coordinator; a
//! plain thread trains, and the two exchange a few messages.
//!
//! The worker's state outlives its connections: if the coordinator gives the worker up
//! or is lost, the worker keeps its state and reconnects.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use common::config::Config;
use common::dataset::DatasetInfo;
use common::net::enrolment::{Enrolled, enrol_by};
use common::net::{BoundSocket, Endpoint, Role, Token, addresses};
use tokio::sync::{mpsc, oneshot, watch};

use crate::cluster::bulk::Bulk;
use crate::cluster::control::{ConnectError, Connected, Expected, Greeting, Session, SessionEnd, connect};
use crate::cluster::link::{self, CurrentRing, KnownShares, KnownSpeed, Link, Order};
use crate::cluster::member::{self, Member};
use crate::cluster::replay_log::{Outbox, ReplayLog};
use crate::cluster::state_transfer::Donor;
use crate::engine::device::Devices;

/// Messages to the coordinator that may wait to be written.
const QUEUE: usize = 256;

/// How to join.
#[derive(Debug, Clone)]
pub struct JoinOptions {
    /// The coordinator's addresses (host:port), best first.
    pub coordinator: Vec<String>,
    /// How long to wait for a coordinator that does not answer yet.
    pub wait: Option<Duration>,
    pub token: Token,
    /// A local copy of the data; without one, samples are streamed.
    pub data: Option<PathBuf>,
    pub devices: Devices,
    /// The UDP port of this worker, for the coordinator and for other workers.
    pub listen: SocketAddr,
    /// The address for other workers to connect to, if not one of those that this worker
    /// has, or at which the coordinator sees it.
    pub advertise: Option<SocketAddr>,
    pub preferred_rank: Option<u32>,
    pub cache_dir: PathBuf,
    pub cache_bytes: u64,
}

/// How long a worker that has its certificate tries to connect for the first time.
const FIRST_CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(200);

/// Joins, trains and returns when the coordinator says goodbye. A worker that the
/// coordinator gave up, or that lost the coordinator, reconnects with the state that it
/// holds. When `shutdown` turns true, the worker asks to leave after the step in
/// flight.
pub async fn join(options: JoinOptions, shutdown: watch::Receiver<bool>) -> Result<()> {
    let socket = BoundSocket::bind(options.listen).context("choose another --listen")?.open()?;
    let mut asked = shutdown.clone();
    let Enrolled { identity, coordinator } = tokio::select! {
        enrolled = enrol_by(&socket, &options.coordinator, &options.token, options.wait) => enrolled?,
        Ok(_) = asked.wait_for(|asked| *asked) => bail!("stopped before this worker had joined"),
    };
    let endpoint = Arc::new(Endpoint::serve_on(socket, &identity, Role::Worker, None)?);
    // No peer may connect until the coordinator names one.
    endpoint.expect([]);
    let mut greeting = Greeting {
        named: options.coordinator,
        coordinator,
        ring_port: endpoint.local_addr()?.port(),
        own: addresses::listening(endpoint.local_addr()?),
        advertise: options.advertise,
        preferred_rank: options.preferred_rank,
    };
    let mut connected = first_contact(&endpoint, &greeting).await?;
    let mut run = Terms { config_toml: connected.config_toml.clone(), config: connected.config()?, info: connected.info.clone() };

    let (to_coordinator, queue) = mpsc::channel(QUEUE);
    let (orders_in, orders) = std::sync::mpsc::channel();
    let (over_in, over) = watch::channel(0);
    let (bulk_in, bulk) = Bulk::new(connected.bulk.clone());
    let (done, trained) = oneshot::channel();
    let log = ReplayLog::default();
    let link = Link {
        runtime: tokio::runtime::Handle::current(),
        to_coordinator: to_coordinator.clone(),
        orders,
        stop: Arc::default(),
        pause: Arc::default(),
        over,
        ring: CurrentRing::default(),
        step: Arc::default(),
        speed: KnownSpeed::default(),
        shares: KnownShares::default(),
        endpoint: Arc::clone(&endpoint),
        bulk,
        donor: Donor::default(),
        log: log.clone(),
    };
    let mut session = Session {
        outbox: Outbox::new(queue, log),
        to_coordinator,
        orders: orders_in,
        over: over_in,
        ring: Arc::clone(&link.ring),
        stop: Arc::clone(&link.stop),
        pause: Arc::clone(&link.pause),
        step: Arc::clone(&link.step),
        speed: link.speed.clone(),
        shares: link.shares.clone(),
        heartbeat: Duration::from_millis(run.config.cluster.heartbeat_ms),
        orphaned_after: Duration::from_millis(run.config.cluster.orphan_ms),
        endpoint: Arc::clone(&endpoint),
        expected: Expected::default(),
        trained: Some(trained),
        shutdown,
    };
    let giving = tokio::spawn(link.donor.clone().serve(Arc::clone(&endpoint)));
    let member = Member {
        config: run.config.clone(),
        info: run.info.clone(),
        data: options.data,
        devices: options.devices,
        cache_dir: options.cache_dir,
        cache_bytes: options.cache_bytes,
    };
    std::thread::Builder::new().name("train".to_owned()).spawn(move || {
        let _ = done.send(member::run(member, link));
    })?;

    let outcome = loop {
        if let Some(relay) = connected.relay.clone() {
            let endpoint = Arc::clone(&endpoint);
            // It ends with the connection; the next conversation has the next one.
            tokio::spawn(async move {
                let ended = endpoint.relay_over(relay).await;
                tracing::debug!("the relay's connection: {ended}");
            });
        }
        match session.converse(connected).await {
            SessionEnd::Done(outcome) => break outcome,
            SessionEnd::OutOfReach(lost) => tracing::warn!(
                "the coordinator at {} is out of reach ({lost:#}): training goes on, and it is looked for",
                greeting.named.join(", ")
            ),
            SessionEnd::GivenUp(reason) => {
                tracing::warn!("the coordinator has given this worker up: it {reason}; coming back with the state that it holds")
            }
        }
        match session.find_again(&endpoint, &mut greeting).await {
            Ok(again) => {
                if let Err(e) = run.accept(&again, &session) {
                    break Err(e);
                }
                tracing::info!("the coordinator is back");
                bulk_in.send_replace(again.bulk.clone());
                connected = again;
            }
            Err(e) => break Err(e),
        }
    };
    // The training thread may be in a ring, in a step, or waiting for the coordinator;
    // it ends when its queue of orders closes.
    let Session { orders, over, ring, .. } = session;
    over.send_replace(u64::MAX);
    link::abort(&ring, u64::MAX, "this worker has left the run");
    drop((orders, bulk_in));
    giving.abort();
    endpoint.close().await;
    outcome
}

/// Connects for the first time. The coordinator may not let the worker in at once.
async fn first_contact(endpoint: &Endpoint, greeting: &Greeting) -> Result<Connected> {
    let start = Instant::now();
    loop {
        match connect(endpoint, greeting, None).await {
            Ok(connected) => return Ok(connected),
            Err(ConnectError::Refused(e)) => return Err(e),
            Err(ConnectError::Lost(e)) if start.elapsed() > FIRST_CONNECT_TIMEOUT => return Err(e),
            Err(ConnectError::Lost(e)) => tracing::debug!("{e:#}; trying again"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// The run's config and dataset, as the coordinator sent them.
struct Terms {
    config_toml: String,
    config: Config,
    info: DatasetInfo,
}

impl Terms {
    /// Checks what a restarted coordinator sent. It may have changed how long to train,
    /// and the settings of the cluster. If the data or any other setting that affects
    /// the weights differs, it is another run.
    fn accept(&mut self, again: &Connected, session: &Session) -> Result<()> {
        if again.info != self.info {
            let describe = |info: &DatasetInfo| {
                format!(
                    "{} training and {} validation samples of {} classes, fingerprint {}",
                    info.train,
                    info.val,
                    info.classes.len(),
                    info.fingerprint
                )
            };
            bail!("the coordinator is back with other data: {}; this worker has {}", describe(&again.info), describe(&self.info));
        }
        if again.config_toml != self.config_toml {
            let config = again.config()?;
            if config.identity() != self.config.identity() {
                return Err(anyhow!(
                    "the coordinator is back with another config, which would train other weights: start this worker again"
                ));
            }
            tracing::info!("the coordinator is back with a changed config, which this worker takes over");
            let _ = session.orders.send(Order::Config(Box::new(config.clone())));
            (self.config_toml, self.config) = (again.config_toml.clone(), config);
        }
        Ok(())
    }
}
