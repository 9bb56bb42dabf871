//! How a ring forms: every rank connects to its successor and accepts its predecessor,
//! and both check that they mean the same ring.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, VarInt};
use rkyv::{Archive, Deserialize, Serialize};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::schedule;
use super::shared::RingError;
use super::spec::{RingPeer, RingSpec};
use crate::digest::Digest;
use crate::net::relay::Shown;
use crate::net::{Alpn, Endpoint, Peer};
use crate::net::{explain, explain_failure};
use crate::timing::{RING_HELLO, ring_idle_timeout};
use crate::ui::visible_within;
use crate::wire::PROTOCOL;
use crate::wire::frame::{read_message, write_message};

const HELLO_MAX: usize = 1 << 10;
/// The wait before a second attempt; it doubles up to `MOST_DOUBLINGS` times.
const RETRY: Duration = Duration::from_millis(20);
const MOST_DOUBLINGS: u32 = 3;
/// Simultaneous introductions of peers other than the predecessor.
const OTHERS: usize = 64;
/// The most characters of a peer's own text in an error.
const MAX_REASON_CHARS: usize = 300;
/// The close code of a connection that the ring does not use.
const NOT_TAKEN: VarInt = VarInt::from_u32(18);

/// The first message on a ring connection. All fields but the ranks and the index must
/// be the same on both sides.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
struct Hello {
    protocol: u32,
    generation: u64,
    world: u32,
    /// The rank that connects.
    rank: u32,
    /// Which of `connections` this is.
    index: u32,
    connections: u32,
    elements: u64,
    bucket_elements: u64,
    /// As in the header of gradient streams.
    encoding: u32,
    /// Of the rows of all ranks and the matrices that are gathered.
    gathers: Digest,
}

#[derive(Debug, Archive, Serialize, Deserialize)]
enum Reply {
    Joined,
    /// The generation of the ring that this rank is forming.
    Generation(u64),
    Refused(String),
}

impl Hello {
    fn new(spec: &RingSpec, rank: u32, index: u32) -> Self {
        Self {
            protocol: PROTOCOL,
            generation: spec.generation,
            world: spec.world(),
            rank,
            index,
            connections: spec.connections,
            elements: spec.layout.elements() as u64,
            bucket_elements: spec.layout.bucket_elements() as u64,
            encoding: spec.encoding.code(),
            gathers: spec.gathers.digest(),
        }
    }
}

/// Connections to the successor and from the predecessor, by index.
pub(super) struct Neighbours {
    pub(super) outgoing: Vec<Connection>,
    pub(super) incoming: Vec<Connection>,
}

/// A neighbour for which this rank waits, or has waited until the deadline.
#[derive(Debug, Clone, PartialEq)]
struct Missing {
    rank: u32,
    name: String,
    /// A handshake with it was completed.
    reached: bool,
    cause: String,
}

impl Missing {
    fn new(peer: &RingPeer, cause: String) -> Self {
        Self { rank: peer.rank, name: peer.name.clone(), reached: false, cause }
    }
}

/// The result of one half of a ring. An error that time cannot mend ends the other half
/// too; for a missing neighbour both halves wait until the deadline.
type Half<T> = Result<Result<Vec<T>, Missing>, RingError>;

pub(super) async fn form(endpoint: &Endpoint, spec: &RingSpec) -> Result<Neighbours, RingError> {
    let deadline = Instant::now() + spec.form_within;
    let missing = match tokio::try_join!(reach_all(endpoint, spec, deadline), let_in_until(endpoint, spec, deadline))? {
        (Ok(outgoing), Ok(incoming)) => {
            let incoming = incoming.into_iter().map(Incoming::keep).collect();
            return Ok(Neighbours { outgoing, incoming });
        }
        (Err(successor), Err(predecessor)) => likelier(successor, predecessor),
        (Err(successor), Ok(_)) => successor,
        // In a ring of two the predecessor is also the successor, which has been
        // reached.
        (Ok(_), Err(predecessor)) => Missing { reached: predecessor.reached || spec.world() == 2, ..predecessor },
    };
    let Missing { rank, name, reached, cause } = missing;
    Err(RingError::Form { generation: spec.generation, within: spec.form_within, rank, name, reached, cause })
}

/// The neighbour to name when both are missing: one that was never reached rather than
/// one that may only be waiting for others itself. In a ring of two both are the same
/// worker, and the attempt of this rank to reach it says more.
fn likelier(successor: Missing, predecessor: Missing) -> Missing {
    if successor.rank != predecessor.rank && successor.reached && !predecessor.reached { predecessor } else { successor }
}

/// Makes all connections to the successor.
async fn reach_all(endpoint: &Endpoint, spec: &RingSpec, deadline: Instant) -> Half<Connection> {
    let peer = &spec.peers[schedule::successor(spec.rank as usize, spec.world() as usize)];
    let mut missing = Missing::new(peer, format!("`{}` at {} does not answer", peer.name, peer.at()));
    let mut connections = Vec::new();
    // While the other half waits for state, this half must not wait for a successor
    // that never answers.
    let answers_by = (spec.reach_within < spec.form_within).then(|| Instant::now() + spec.reach_within);
    let all = async {
        for index in 0..spec.connections {
            connections.push(reach(endpoint, spec, peer, index, answers_by, &mut missing).await?);
        }
        Ok(())
    };
    match timeout_at(deadline, all).await {
        Ok(result) => result.map(|()| Ok(connections)),
        Err(_) => Ok(Err(missing)),
    }
}

/// Connects to the successor, and tries again until it joins.
async fn reach(
    endpoint: &Endpoint,
    spec: &RingSpec,
    peer: &RingPeer,
    index: u32,
    answers_by: Option<Instant>,
    missing: &mut Missing,
) -> Result<Connection, RingError> {
    let mut doublings = 0;
    loop {
        let introduced = match answers_by.filter(|_| !missing.reached) {
            Some(at) => {
                let connected = timeout_at(at, connect(endpoint, spec, peer)).await;
                connected.map_err(|_| {
                    let Missing { rank, name, cause, .. } = missing.clone();
                    RingError::Form { generation: spec.generation, within: spec.reach_within, rank, name, reached: false, cause }
                })?
            }
            None => connect(endpoint, spec, peer).await,
        };
        let introduced = match introduced {
            Ok(connection) => introduce(connection, spec, peer, index, missing).await,
            Err(cause) => Err(cause),
        };
        match introduced {
            Ok((connection, Reply::Joined)) => return Ok(connection),
            Ok((_, Reply::Generation(theirs))) if theirs > spec.generation => {
                return Err(RingError::Stale { generation: spec.generation, newer: theirs, name: peer.name.clone() });
            }
            Ok((_, Reply::Generation(theirs))) => missing.cause = format!("`{}` is still in generation {theirs}", peer.name),
            Ok((_, Reply::Refused(problem))) => {
                return Err(RingError::Protocol {
                    rank: peer.rank,
                    name: peer.name.clone(),
                    problem: visible_within(&problem, MAX_REASON_CHARS),
                });
            }
            Err(cause) => missing.cause = visible_within(&cause, MAX_REASON_CHARS),
        }
        sleep(RETRY * (1 << doublings)).await;
        doublings = MOST_DOUBLINGS.min(doublings + 1);
    }
}

async fn connect(endpoint: &Endpoint, spec: &RingSpec, peer: &RingPeer) -> Result<Connection, String> {
    let idle = ring_idle_timeout(spec.timeout);
    endpoint.connect_any(&peer.addresses, &peer.name, Alpn::Ring, idle).await.map_err(|e| e.to_string())
}

async fn introduce(
    connection: Connection,
    spec: &RingSpec,
    peer: &RingPeer,
    index: u32,
    missing: &mut Missing,
) -> Result<(Connection, Reply), String> {
    missing.reached = true;
    missing.cause = format!("`{}` at {} is there, but has not begun to form this ring", peer.name, Shown(connection.remote_address()));
    let broken = |problem: String| format!("the introduction to `{}` broke off: {problem}", peer.name);
    let (mut send, mut receive) = connection.open_bi().await.map_err(|e| broken(explain(&e)))?;
    let said = async {
        write_message(&mut send, &Hello::new(spec, spec.rank, index)).await?;
        let _ = send.finish();
        read_message(&mut receive, HELLO_MAX).await
    };
    let reply = said.await.map_err(|e| broken(explain_failure(&connection, &e)))?;
    Ok((connection, reply.ok_or_else(|| broken("no answer".to_owned()))?))
}

/// A connection that is closed when this is dropped: the endpoint holds it too, so
/// dropping the connection would not close it.
struct Incoming {
    name: String,
    connection: Connection,
    kept: bool,
}

impl Incoming {
    fn new(peer: Peer) -> Self {
        Self { name: peer.name.unwrap_or_default(), connection: peer.connection, kept: false }
    }

    fn keep(mut self) -> Connection {
        self.kept = true;
        self.connection.clone()
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.kept {
            self.connection.close(NOT_TAKEN, b"the ring is not formed with this connection");
        }
    }
}

/// Accepts all connections of the predecessor, until the deadline.
async fn let_in_until(endpoint: &Endpoint, spec: &RingSpec, deadline: Instant) -> Half<Incoming> {
    let peer = &spec.peers[spec.predecessor() as usize];
    let mut missing = Missing::new(peer, format!("`{}` has not connected", peer.name));
    match timeout_at(deadline, accept_predecessor(endpoint, spec, &mut missing)).await {
        Ok(result) => result.map(Ok),
        Err(_) => Ok(Err(missing)),
    }
}

/// Introductions in progress, side by side: a silent peer delays no other. The oldest
/// is aborted when there are too many.
struct Introductions {
    tasks: JoinSet<(u64, Incoming, Result<usize, String>)>,
    handles: VecDeque<AbortHandle>,
    most: usize,
}

impl Introductions {
    fn new(most: usize) -> Self {
        Self { tasks: JoinSet::new(), handles: VecDeque::new(), most }
    }

    fn begin(&mut self, spec: &Arc<RingSpec>, number: u64, incoming: Incoming) {
        let spec = Arc::clone(spec);
        let handle = self.tasks.spawn(async move {
            let verdict = match timeout(RING_HELLO, answer_hello(&spec, &incoming)).await {
                Ok(verdict) => verdict,
                Err(_) => Err(format!("`{}` connected but did not introduce itself", incoming.name)),
            };
            (number, incoming, verdict)
        });
        self.handles.retain(|handle| !handle.is_finished());
        self.handles.push_back(handle);
        if self.handles.len() > self.most
            && let Some(oldest) = self.handles.pop_front()
        {
            oldest.abort();
        }
    }
}

/// Accepts the predecessor; other peers are refused with a reason.
async fn accept_predecessor(endpoint: &Endpoint, spec: &RingSpec, missing: &mut Missing) -> Result<Vec<Incoming>, RingError> {
    let spec = Arc::new(spec.clone());
    let mut connections: Vec<Option<(u64, Incoming)>> = (0..spec.connections).map(|_| None).collect();
    // The predecessor's introductions have places of their own.
    let mut expected = Introductions::new(2 * spec.connections as usize);
    let mut others = Introductions::new(OTHERS);
    let mut came = 0;
    while connections.iter().any(Option::is_none) {
        let introduced = tokio::select! {
            peer = endpoint.accept_ring() => {
                let Some(peer) = peer else { return Err(RingError::Left { cause: "the endpoint was closed".to_owned() }) };
                let incoming = Incoming::new(peer);
                let awaited = incoming.name == missing.name;
                missing.reached |= awaited;
                came += 1;
                if awaited { &mut expected } else { &mut others }.begin(&spec, came, incoming);
                continue;
            }
            Some(introduced) = expected.tasks.join_next() => introduced,
            Some(introduced) = others.tasks.join_next() => introduced,
        };
        // An error means that the introduction was aborted for newer ones.
        let Ok((number, incoming, verdict)) = introduced else { continue };
        match verdict {
            // A second connection with the same index: the predecessor has given up the
            // first.
            Ok(index) if connections[index].as_ref().is_none_or(|(older, _)| *older < number) => {
                connections[index] = Some((number, incoming))
            }
            Ok(_) => {}
            Err(problem) if incoming.name == missing.name => missing.cause = visible_within(&problem, MAX_REASON_CHARS),
            Err(problem) => tracing::debug!("refused in the ring: {}", visible_within(&problem, MAX_REASON_CHARS)),
        }
    }
    Ok(connections.into_iter().flatten().map(|(_, incoming)| incoming).collect())
}

async fn answer_hello(spec: &RingSpec, incoming: &Incoming) -> Result<usize, String> {
    let Incoming { name, connection, .. } = incoming;
    let broken = |problem: String| format!("the introduction of `{name}` broke off: {problem}");
    let (mut send, mut receive) = connection.accept_bi().await.map_err(|e| broken(explain(&e)))?;
    let hello: Option<Hello> = read_message(&mut receive, HELLO_MAX).await.map_err(|e| broken(explain_failure(connection, &e)))?;
    let hello = hello.ok_or_else(|| broken("no message".to_owned()))?;
    let (reply, verdict) = verdict_on(spec, name, &hello);
    write_message(&mut send, &reply).await.map_err(|e| broken(explain_failure(connection, &e)))?;
    let _ = send.finish();
    if verdict.is_err() {
        // Closing at once would overtake the answer.
        let _ = timeout(RING_HELLO / 2, connection.closed()).await;
    }
    verdict
}

fn verdict_on(spec: &RingSpec, name: &str, hello: &Hello) -> (Reply, Result<usize, String>) {
    let refused = |problem: String| (Reply::Refused(problem.clone()), Err(problem));
    if hello.protocol != PROTOCOL {
        return refused(format!("`{name}` speaks protocol {}, not {PROTOCOL}: use one version everywhere", hello.protocol));
    }
    if hello.generation != spec.generation {
        let problem = format!("`{name}` is in generation {}, not {}", hello.generation, spec.generation);
        return (Reply::Generation(spec.generation), Err(problem));
    }
    let predecessor = spec.predecessor();
    let expected = &spec.peers[predecessor as usize].name;
    if name != expected {
        return refused(format!("`{name}` is not the predecessor of rank {}, which is `{expected}`", spec.rank));
    }
    if hello.index >= spec.connections || *hello != Hello::new(spec, predecessor, hello.index) {
        return refused(format!("`{name}` means another ring: {hello:?} where {:?} was expected", Hello::new(spec, predecessor, 0)));
    }
    (Reply::Joined, Ok(hello.index as usize))
}

#[cfg(fuzzing)]
pub(crate) async fn read_any(bytes: &[u8]) {
    let _ = read_message::<Hello>(&mut &*bytes, HELLO_MAX).await;
    let _ = read_message::<Reply>(&mut &*bytes, HELLO_MAX).await;
}
