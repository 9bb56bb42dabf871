//! How a ring forms: every rank connects to its successor and lets its
//! predecessor in, and both make sure that they mean the same ring.

use std::time::Duration;

use quinn::Connection;
use rkyv::{Archive, Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::driver::RingSpec;
use super::schedule;
use super::shared::RingError;
use crate::net::{Alpn, Endpoint, Peer};
use crate::wire::PROTOCOL;
use crate::wire::frame::{read_message, write_message};

const HELLO_TIMEOUT: Duration = Duration::from_secs(1);
const HELLO_MAX: usize = 1 << 10;
const RETRY: Duration = Duration::from_millis(20);

/// The first words on a ring connection. All but the ranks and the index must be
/// the same on both sides.
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
        }
    }
}

/// Connections to the successor and from the predecessor, by index.
pub(super) struct Neighbours {
    pub(super) outgoing: Vec<Connection>,
    pub(super) incoming: Vec<Connection>,
}

pub(super) async fn form(endpoint: &Endpoint, spec: &RingSpec) -> Result<Neighbours, RingError> {
    let within = spec.form_within;
    let deadline = Instant::now() + within;
    let mut trouble = format!("`{}` has not connected", spec.peers[spec.predecessor() as usize].name);
    let incoming = async {
        match timeout_at(deadline, let_in(endpoint, spec, &mut trouble)).await {
            Ok(result) => result,
            Err(_) => Err(RingError::Form { generation: spec.generation, within, cause: trouble }),
        }
    };
    let outgoing = async {
        let mut connections = Vec::new();
        for index in 0..spec.connections {
            connections.push(reach(endpoint, spec, index, deadline, within).await?);
        }
        Ok(connections)
    };
    let (outgoing, incoming) = tokio::try_join!(outgoing, incoming)?;
    Ok(Neighbours { outgoing, incoming })
}

/// Connects to the successor, again and again until it is there.
async fn reach(endpoint: &Endpoint, spec: &RingSpec, index: u32, deadline: Instant, within: Duration) -> Result<Connection, RingError> {
    let peer = &spec.peers[schedule::successor(spec.rank as usize, spec.world() as usize)];
    let mut trouble = format!("`{}` at {} does not answer", peer.name, peer.addr);
    loop {
        match timeout_at(deadline, introduce(endpoint, spec, index)).await {
            Err(_) => return Err(RingError::Form { generation: spec.generation, within, cause: trouble }),
            Ok(Ok((connection, Reply::Joined))) => return Ok(connection),
            Ok(Ok((_, Reply::Generation(theirs)))) if theirs > spec.generation => {
                return Err(RingError::Stale { generation: spec.generation, newer: theirs, name: peer.name.clone() });
            }
            Ok(Ok((_, Reply::Generation(theirs)))) => trouble = format!("`{}` is still in generation {theirs}", peer.name),
            Ok(Ok((_, Reply::Refused(problem)))) => {
                return Err(RingError::Protocol { rank: peer.rank, name: peer.name.clone(), problem });
            }
            Ok(Err(cause)) => trouble = cause,
        }
        sleep(RETRY).await;
    }
}

async fn introduce(endpoint: &Endpoint, spec: &RingSpec, index: u32) -> Result<(Connection, Reply), String> {
    let peer = &spec.peers[schedule::successor(spec.rank as usize, spec.world() as usize)];
    // With a sign of life every eighth of the timeout, a silent peer is noticed before it is over.
    let idle = spec.timeout * 3 / 4;
    let connection = endpoint.connect_with_idle(peer.addr, &peer.name, Alpn::Ring, idle).await.map_err(|e| e.to_string())?;
    let broken = |problem: String| format!("the introduction to `{}` broke off: {problem}", peer.name);
    let (mut send, mut receive) = connection.open_bi().await.map_err(|e| broken(e.to_string()))?;
    write_message(&mut send, &Hello::new(spec, spec.rank, index)).await.map_err(|e| broken(e.to_string()))?;
    let _ = send.finish();
    let reply = read_message(&mut receive, HELLO_MAX).await.map_err(|e| broken(e.to_string()))?;
    Ok((connection, reply.ok_or_else(|| broken("no answer".to_owned()))?))
}

/// Waits for all connections of the predecessor; others are told why not.
async fn let_in(endpoint: &Endpoint, spec: &RingSpec, trouble: &mut String) -> Result<Vec<Connection>, RingError> {
    let mut connections: Vec<Option<Connection>> = vec![None; spec.connections as usize];
    while connections.iter().any(Option::is_none) {
        let Some(peer) = endpoint.accept_ring().await else {
            return Err(RingError::Left { cause: "the endpoint was closed".to_owned() });
        };
        match timeout(HELLO_TIMEOUT, welcome(spec, &peer)).await {
            // A second connection with one index: the predecessor has given up the first.
            Ok(Ok(index)) => connections[index] = Some(peer.connection),
            Ok(Err(problem)) => *trouble = problem,
            Err(_) => *trouble = format!("`{}` connected but did not introduce itself", peer.name.as_deref().unwrap_or("?")),
        }
    }
    Ok(connections.into_iter().flatten().collect())
}

async fn welcome(spec: &RingSpec, peer: &Peer) -> Result<usize, String> {
    let name = peer.name.as_deref().unwrap_or_default();
    let broken = |problem: String| format!("the introduction of `{name}` broke off: {problem}");
    let (mut send, mut receive) = peer.connection.accept_bi().await.map_err(|e| broken(e.to_string()))?;
    let hello: Option<Hello> = read_message(&mut receive, HELLO_MAX).await.map_err(|e| broken(e.to_string()))?;
    let hello = hello.ok_or_else(|| broken("no message".to_owned()))?;
    let (reply, verdict) = judge(spec, name, &hello);
    write_message(&mut send, &reply).await.map_err(|e| broken(e.to_string()))?;
    let _ = send.finish();
    if verdict.is_err() {
        // Closing at once would overtake the answer.
        let _ = peer.connection.closed().await;
    }
    verdict
}

fn judge(spec: &RingSpec, name: &str, hello: &Hello) -> (Reply, Result<usize, String>) {
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
