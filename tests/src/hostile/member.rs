//! A peer that becomes a member, or tries to, and then does not do a member's part.

use common::digest::Digest;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use common::config::Config;
use common::dataset::DatasetInfo;
use common::net::Alpn;
use common::ring::{ExchangePlan, Ring, RingPeer, RingSpec};
use common::wire::messages::{BulkReply, BulkRequest, FileSize, Generation, MAX_CONTROL, MAX_REQUEST, ToCoordinator, ToWorker};
use common::wire::{read_message, write_message};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{Conversation, HostilePeer, ready};

const HEARTBEAT: Duration = Duration::from_millis(250);
const AGAIN: Duration = Duration::from_millis(200);

/// How it behaves in a ring that it was let into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InRing {
    NeverForms,
    /// Accepts its connections, and then sends nothing.
    NeverSends,
}

/// How it answers workers that request the state from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AsDonor {
    Refuses,
    /// Sends bytes that are no state, with their digest or with another one.
    Garbage {
        digest: bool,
    },
}

/// How it behaves.
#[derive(Debug, Clone, Copy)]
pub struct Behaviour {
    /// The step that it says it holds.
    pub claim: u64,
    pub ring: InRing,
    pub donor: AsDonor,
}

/// What has happened so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// Welcomes that it got from the coordinator.
    pub welcomed: AtomicU32,
    /// Generations that it was told to be a member of.
    pub generations: AtomicU32,
    /// Requests for its state.
    pub asked: AtomicU32,
}

/// Behaves like this, again and again, until told to stop or until the
/// run is over.
pub async fn play(hostile: Arc<HostilePeer>, behaviour: Behaviour, counts: Arc<Counts>, stop: Arc<AtomicBool>) {
    let mut giving = JoinSet::new();
    giving.spawn(give(Arc::clone(&hostile), behaviour.donor, Arc::clone(&counts)));
    while !stop.load(Ordering::Relaxed) {
        if stay(&hostile, behaviour, &counts, &stop).await {
            break;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// One stay in the run. Returns whether the run is over.
async fn stay(hostile: &Arc<HostilePeer>, behaviour: Behaviour, counts: &Counts, stop: &AtomicBool) -> bool {
    let Some(connection) = hostile.reach(hostile.coordinator, common::net::COORDINATOR, Alpn::Control).await else { return false };
    let Ok((send, receive)) = connection.open_bi().await else { return false };
    let mut conversation = Conversation { _connection: connection, send, receive };
    if !conversation.send(&hostile.greeting()).await {
        return false;
    }
    let Some(ToWorker::Welcome { config_toml, dataset, .. }) = conversation.hear().await else { return false };
    counts.welcomed.fetch_add(1, Ordering::Relaxed);
    let config = Config::parse(&config_toml, "the coordinator's config", &[]).unwrap_or_else(|e| panic!("{e}"));
    let info = DatasetInfo::from(dataset);
    if !conversation.send(&ready(0, behaviour.claim)).await {
        return false;
    }
    let Conversation { _connection, mut send, mut receive } = conversation;
    // A task of its own reads: a read that the loop cancels halfway would lose the message.
    let (heard, mut inbox) = mpsc::channel(64);
    let mut reading = JoinSet::new();
    reading.spawn(async move {
        while let Ok(Some(message)) = read_message::<ToWorker>(&mut receive, MAX_CONTROL).await {
            if heard.send(message).await.is_err() {
                break;
            }
        }
    });
    let mut rings: JoinSet<()> = JoinSet::new();
    let mut beat = tokio::time::interval(HEARTBEAT);
    while !stop.load(Ordering::Relaxed) {
        let say = tokio::select! {
            message = inbox.recv() => match message {
                Some(ToWorker::Generation(generation)) => {
                    counts.generations.fetch_add(1, Ordering::Relaxed);
                    if behaviour.ring == InRing::NeverSends {
                        rings.spawn(sit(Arc::clone(hostile), spec(&config, &info, &generation)));
                    }
                    continue;
                }
                Some(ToWorker::End { generation, .. } | ToWorker::Yield { generation }) => {
                    rings.abort_all();
                    ready(generation, behaviour.claim)
                }
                // It wants to be let in, so it reports that it reaches every peer.
                Some(ToWorker::Probe { peers, .. }) => {
                    for peer in peers {
                        let probed = ToCoordinator::Probed { peer: peer.name, problem: None, millis: 1 };
                        if write_message(&mut send, &probed).await.is_err() {
                            return false;
                        }
                    }
                    continue;
                }
                Some(ToWorker::Goodbye | ToWorker::Abort { .. }) => return true,
                Some(ToWorker::Refused { .. } | ToWorker::Dropped { .. }) | None => return false,
                Some(_) => continue,
            },
            // It pretends to compute: it does not report that it waits for others.
            _ = beat.tick() => ToCoordinator::Heartbeat { step: behaviour.claim, waiting: false, speed: None, shares: None },
        };
        if write_message(&mut send, &say).await.is_err() {
            return false;
        }
    }
    false
}

/// Forms a ring, and does nothing in it until this task is aborted.
async fn sit(hostile: Arc<HostilePeer>, spec: RingSpec) {
    if let Ok(_ring) = Ring::form(&hostile.endpoint, spec).await {
        std::future::pending::<()>().await;
    }
}

fn spec(config: &Config, info: &DatasetInfo, generation: &Generation) -> RingSpec {
    let plan = ExchangePlan::new(config, info.input(config.data.pixels.image_size), &generation.shards, generation.products.is_some());
    let peer = |(rank, member): (u32, &common::wire::messages::Member)| RingPeer {
        rank,
        name: member.name.clone(),
        addresses: member.addresses(),
    };
    RingSpec {
        generation: generation.number,
        rank: generation.rank,
        peers: (0..).zip(&generation.members).map(peer).collect(),
        layout: plan.layout,
        encoding: plan.encoding,
        gathers: plan.gathers,
        connections: config.cluster.connections,
        timeout: Duration::from_millis(config.cluster.timeout_ms),
        form_within: Duration::from_millis(generation.form_ms),
        reach_within: Duration::from_millis(generation.form_ms),
    }
}

/// Answers requests for the state.
async fn give(hostile: Arc<HostilePeer>, as_donor: AsDonor, counts: Arc<Counts>) {
    while let Some(peer) = hostile.endpoint.accept().await {
        let counts = Arc::clone(&counts);
        tokio::spawn(async move {
            while let Ok((mut send, mut receive)) = peer.connection.accept_bi().await {
                match read_message::<BulkRequest>(&mut receive, MAX_REQUEST).await {
                    Ok(Some(BulkRequest::GetState { .. })) => {}
                    Ok(Some(BulkRequest::Measure { bytes })) => {
                        let _ = receive.read_to_end(bytes as usize).await;
                        let _ = write_message(&mut send, &BulkReply::Stored).await;
                        let _ = send.finish();
                        continue;
                    }
                    _ => return,
                }
                counts.asked.fetch_add(1, Ordering::Relaxed);
                let content = [0xa5; 4096];
                let said = match as_donor {
                    AsDonor::Refuses => write_message(&mut send, &BulkReply::Failed { reason: "it does not care to".to_owned() }).await,
                    AsDonor::Garbage { digest } => {
                        let files = ["model", "optimizer"].map(|name| FileSize { name: name.to_owned(), bytes: content.len() as u64 });
                        let blake3 = if digest { digest_of(&content) } else { Digest::of(&[]) };
                        write_message(&mut send, &BulkReply::State { files: files.to_vec(), blake3 }).await
                    }
                };
                if said.is_err() {
                    return;
                }
                for _ in 0..if as_donor == AsDonor::Refuses { 0 } else { 2 } {
                    let _ = send.write_all(&content).await;
                }
                let _ = send.finish();
            }
        });
    }
}

/// The digest of a state of two files, both of this content.
fn digest_of(content: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for _ in 0..2 {
        hasher.update(&(content.len() as u64).to_le_bytes()).update(content);
    }
    hasher.finalize().into()
}
