//! One worker's control connection: reads what it says, writes what the main
//! loop has for it. Nothing is decided here.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use common::config::Config;
use common::net::Peer;
use common::wire::messages::{Dataset, MAX_CONTROL, ToCoordinator, ToWorker};
use common::wire::{PROTOCOL, WireError, read_message, write_message};
use tokio::sync::mpsc;

use crate::limits::Limits;
use crate::membership::{Input, WorkerId};
use crate::serve::{Fact, News};

/// Messages to a worker that may wait to be written.
const OUTBOX: usize = 64;

/// How long a new connection may take to say hello.
const HELLO: Duration = Duration::from_secs(10);

/// What every control connection needs.
pub struct Shared {
    pub config: Config,
    pub dataset: Dataset,
    pub limits: Limits,
    /// The first step that the record lacks.
    pub recorded: Arc<AtomicU64>,
    pub news: mpsc::Sender<News>,
}

/// Serves one control connection until it closes.
pub async fn control(shared: Arc<Shared>, peer: Peer, worker: WorkerId) {
    let reason = match converse(&shared, &peer, worker).await {
        Ok(()) => "closed its connection".to_owned(),
        Err(e) => {
            let reason = format!("{e:#}");
            if !broke_off(&e) {
                let name = peer.name.as_deref().unwrap_or("a peer");
                tracing::warn!("{name} at {} is cut off: {reason}", peer.connection.remote_address());
            }
            reason
        }
    };
    tracing::debug!("worker {worker}: {reason}");
    // The main loop may be gone already; then nobody needs to know.
    let _ = shared.news.send(News::Membership(Input::Left { worker, reason })).await;
}

/// The connection ended, as connections do, and nothing wrong was said.
pub fn broke_off(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(WireError::Io(_) | WireError::Truncated { .. }))
            || cause.is::<quinn::WriteError>()
            || cause.is::<quinn::ConnectionError>()
            || cause.is::<quinn::ReadError>()
    })
}

async fn converse(shared: &Shared, peer: &Peer, worker: WorkerId) -> Result<()> {
    let (mut send, mut recv) = tokio::time::timeout(HELLO, peer.connection.accept_bi()).await.context("said nothing")??;
    let first = tokio::time::timeout(HELLO, read_message::<ToCoordinator>(&mut recv, MAX_CONTROL)).await.context("said nothing")??;
    let Some(ToCoordinator::Hello { protocol, ring_port, advertise, preferred_rank, generation }) = first else {
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
    let addr = match advertise.as_deref().map(str::parse::<SocketAddr>) {
        None => SocketAddr::new(peer.connection.remote_address().ip().to_canonical(), ring_port),
        Some(Ok(addr)) => addr,
        Some(Err(_)) => bail!("advertised an address that is none"),
    };
    let (config_toml, recorded) = (shared.config.to_toml(), shared.recorded.load(Ordering::Relaxed));
    write_message(&mut send, &ToWorker::Welcome { config_toml, dataset: shared.dataset.clone(), recorded }).await?;

    let (outbox, mut to_send) = mpsc::channel(OUTBOX);
    let input = Input::Joined { worker, name: name.clone(), addr: addr.to_string(), preferred_rank, generation };
    if shared.news.send(News::Connected { worker, name, outbox, input }).await.is_err() {
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
                bail!("told of {lie}");
            }
            for news in translate(worker, message)? {
                if shared.news.send(news).await.is_err() {
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

/// A worker's message as news for the main loop. Every message shows that the
/// worker is alive.
fn translate(worker: WorkerId, message: ToCoordinator) -> Result<Vec<News>> {
    let alive = News::Membership(Input::Alive { worker });
    Ok(match message {
        ToCoordinator::Hello { .. } => bail!("said hello twice"),
        ToCoordinator::Ready { device, generation, step } => {
            if generation == 0 {
                tracing::info!("worker {worker} is ready on {device}");
            }
            vec![News::Membership(Input::Ready { worker, generation, step })]
        }
        ToCoordinator::Leaving => vec![News::Membership(Input::Leaving { worker })],
        ToCoordinator::Heartbeat { step, waiting } => vec![News::Membership(Input::Beat { worker, step, waiting })],
        ToCoordinator::Step { generation, metrics } => vec![alive, News::Record(worker, Fact::Step { generation, metrics })],
        ToCoordinator::Trained(trained) => vec![alive, News::Record(worker, Fact::Trained(trained))],
        ToCoordinator::Evaluation(evaluation) => vec![alive, News::Record(worker, Fact::Evaluation(evaluation))],
        ToCoordinator::Skipped { step, name, problem } => vec![alive, News::Record(worker, Fact::Skipped { step, name, problem })],
        ToCoordinator::Finished(report) => vec![News::Membership(Input::Finished { worker, report })],
        ToCoordinator::Failed { reason } => vec![News::Membership(Input::Failed { worker, reason })],
    })
}
