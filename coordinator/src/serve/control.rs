//! One worker's control connection: reads the worker's messages, and writes the
//! messages that the main loop has for it. Nothing is decided here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use common::config::Config;
use common::net::addresses::candidates;
use common::net::{Peer, closed_by_peer};
use common::timing::HELLO;
use common::wire::messages::{Dataset, MAX_CONTROL, Member, ToCoordinator, ToWorker};
use common::wire::{PROTOCOL, read_message, write_message};
use tokio::sync::{Semaphore, mpsc};

use crate::admissions::{Admissions, REVOKED};
use crate::bulk::broke_off;
use crate::inbox::{Fact, Inbox, News};
use crate::limits::Limits;
use crate::membership::{Input, WorkerId};
use crate::record_writer::Place;

/// Messages to a worker that may wait to be written.
const OUTBOX: usize = 64;

/// How long a connection may stay open after its last message.
const GOODBYE: Duration = Duration::from_millis(500);

/// How often to check whether a worker whose reports wait for the disk is alive.
const STILL_THERE: Duration = Duration::from_millis(100);

/// What every control connection needs.
pub(super) struct ControlContext {
    pub config: Config,
    pub dataset: Dataset,
    pub limits: Limits,
    /// The first step that the record lacks.
    pub recorded: Arc<AtomicU64>,
    /// Each report holds one of these places until it is on the record.
    pub places: Arc<Semaphore>,
    pub admissions: Arc<Admissions>,
    pub inbox: Inbox,
}

/// Serves one control connection until it closes.
pub(super) async fn control(shared: Arc<ControlContext>, peer: Peer, worker: WorkerId) {
    let input = match converse(&shared, &peer, worker).await {
        Ok(()) if says_goodbye(&peer.connection).await => Input::Left { worker, reason: "closed its connection".to_owned() },
        // The worker ended the stream without a goodbye, because it considers the
        // connection broken; it still has its state.
        Ok(()) => Input::Disconnected { worker },
        Err(e) if broke_off(&e) && !peer.connection.close_reason().is_some_and(|reason| closed_by_peer(&reason)) => {
            tracing::debug!("worker {worker}: {e:#}");
            Input::Disconnected { worker }
        }
        Err(e) => {
            let reason = format!("{e:#}");
            if !broke_off(&e) {
                let name = peer.name.as_deref().unwrap_or("a peer");
                tracing::warn!("{name} at {} is cut off: {reason}", peer.connection.remote_address());
            }
            Input::Left { worker, reason }
        }
    };
    // The main loop may have ended already; then this input is not needed.
    shared.inbox.send(News::Membership(input)).await;
}

/// A process that ends closes its connections, soon after its streams.
async fn says_goodbye(connection: &quinn::Connection) -> bool {
    let closed = tokio::time::timeout(GOODBYE, connection.closed()).await;
    closed.is_ok_and(|reason| closed_by_peer(&reason))
}

async fn converse(shared: &ControlContext, peer: &Peer, worker: WorkerId) -> Result<()> {
    let (mut send, mut recv) = tokio::time::timeout(HELLO, peer.connection.accept_bi()).await.context("said nothing")??;
    let first = tokio::time::timeout(HELLO, read_message::<ToCoordinator>(&mut recv, MAX_CONTROL)).await.context("said nothing")??;
    let Some(ToCoordinator::Hello { protocol, ring_port, addresses, advertise, preferred_rank, generation }) = first else {
        bail!("did not say hello");
    };
    let name = peer.name.clone().unwrap_or_default();
    if protocol != PROTOCOL {
        let reason = format!("this coordinator speaks protocol {PROTOCOL} and the worker {protocol}: use the same version on all machines");
        write_message(&mut send, &ToWorker::Refused { reason }).await?;
        let _ = send.finish();
        let _ = send.stopped().await;
        return Ok(());
    }
    // The connection may be older than the revocation.
    if shared.admissions.is_revoked(&name) {
        write_message(&mut send, &ToWorker::Refused { reason: REVOKED.to_owned() }).await?;
        let _ = send.finish();
        let _ = send.stopped().await;
        return Ok(());
    }
    let mut at = candidates(peer.connection.remote_address(), advertise, ring_port, &addresses);
    if at.is_empty() {
        bail!("has no address");
    }
    let member = Member { name: name.clone(), addr: at.remove(0), others: at };
    let (config_toml, recorded) = (shared.config.to_toml(), shared.recorded.load(Ordering::Relaxed));
    write_message(&mut send, &ToWorker::Welcome { config_toml, dataset: shared.dataset.clone(), recorded }).await?;

    let (outbox, mut to_send) = mpsc::channel(OUTBOX);
    let input = Input::Joined { worker, member, preferred_rank, generation };
    if !shared.inbox.send(News::Connected { worker, name, outbox, input }).await {
        return Ok(());
    }
    let writer = async {
        while let Some(message) = to_send.recv().await {
            let last = matches!(message, ToWorker::Goodbye | ToWorker::Abort { .. } | ToWorker::Refused { .. } | ToWorker::Dropped { .. });
            write_message(&mut send, &message).await?;
            if last {
                break;
            }
        }
        let _ = send.finish();
        let _ = send.stopped().await;
        Ok(())
    };
    let reader = async {
        while let Some(message) = read_message::<ToCoordinator>(&mut recv, MAX_CONTROL).await? {
            if let Err(lie) = shared.limits.check(&message) {
                bail!("sent what cannot be true: {lie}");
            }
            for news in translate(shared, peer, worker, message).await? {
                if !shared.inbox.send(news).await {
                    return Ok(());
                }
            }
        }
        Ok(())
    };
    tokio::select! {
        outcome = reader => outcome,
        outcome = writer => outcome,
    }
}

/// Waits for a place on the record for one report. While the disk is stalled, the
/// worker is held back, and counts as alive for as long as its packets arrive.
async fn place(shared: &ControlContext, connection: &quinn::Connection, worker: WorkerId) -> Result<Place> {
    let mut place = std::pin::pin!(Arc::clone(&shared.places).acquire_owned());
    let mut arrived = connection.stats().udp_rx.datagrams;
    loop {
        match tokio::time::timeout(STILL_THERE, &mut place).await {
            Ok(place) => return Ok(place?),
            Err(_) => {
                let now = connection.stats().udp_rx.datagrams;
                if std::mem::replace(&mut arrived, now) < now {
                    shared.inbox.send(News::Membership(Input::Alive { worker })).await;
                }
            }
        }
    }
}

/// A worker's message as news for the main loop. Every message shows that the
/// worker is alive.
async fn translate(shared: &ControlContext, peer: &Peer, worker: WorkerId, message: ToCoordinator) -> Result<Vec<News>> {
    let report = async |fact| {
        let place = place(shared, &peer.connection, worker).await?;
        Ok(vec![News::Membership(Input::Alive { worker }), News::Report(worker, fact, place)])
    };
    let input = match message {
        ToCoordinator::Hello { .. } => bail!("said hello twice"),
        ToCoordinator::Ready { device, generation, step, committed, products } => {
            if generation == 0 {
                tracing::info!("{} is ready on {device}", peer.name.as_deref().unwrap_or_default());
            }
            let ready = Input::Ready { worker, generation, step, committed, products };
            return Ok(vec![News::Device(worker, device), News::Membership(ready)]);
        }
        ToCoordinator::Leaving => Input::Leaving { worker },
        ToCoordinator::Heartbeat { step, waiting, speed, shares } => {
            let beat = News::Membership(Input::Beat { worker, step, waiting, speed });
            return Ok(shares.map(|shares| News::Spends(worker, shares)).into_iter().chain([beat]).collect());
        }
        ToCoordinator::Step { generation, metrics } => return report(Fact::Step { generation, metrics }).await,
        ToCoordinator::Trained(trained) => return report(Fact::Trained(trained)).await,
        ToCoordinator::Evaluation(evaluation) => return report(Fact::Evaluation(evaluation)).await,
        ToCoordinator::Skipped { step, name, problem } => return report(Fact::Skipped { step, name, problem }).await,
        ToCoordinator::Finished(report) => Input::Finished { worker, report },
        ToCoordinator::Failed { reason, run } => Input::Failed { worker, reason, run },
        ToCoordinator::Probed { peer, problem, millis } => Input::Probed { worker, peer, problem, millis },
        ToCoordinator::Relayed { generation, peer } => Input::Relayed { worker, generation, peer },
        ToCoordinator::Missed { generation, peer, donor, reason } => Input::Missed { worker, generation, peer, donor, reason },
    };
    Ok(vec![News::Membership(input)])
}
