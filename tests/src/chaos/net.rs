//! A network between processes on this machine: each listener has a door, which is a
//! UDP proxy whose datagrams are subject to the [`Conditions`].

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::seed;
use tokio::net::UdpSocket;
use tokio::runtime::Runtime;

use super::conditions::{Conditions, Fate, Link, Node};

/// The largest datagram, in bytes.
const MAX_DATAGRAM: usize = 65_535;

/// The numbers of datagrams so far by what happened to them: the proof that a fault
/// was there.
#[derive(Debug, Default)]
pub struct Counts {
    pub passed: AtomicU64,
    pub lost: AtomicU64,
    pub delayed: AtomicU64,
    pub late: AtomicU64,
}

struct Shared {
    conditions: Mutex<Conditions>,
    counts: Counts,
    seed: u64,
    /// The node that sends from each port, where one door serves several nodes.
    nodes: Mutex<BTreeMap<u16, Node>>,
    /// Bytes that arrived, by (sender, receiver).
    carried: Mutex<BTreeMap<(Node, Node), u64>>,
}

/// The network; it ends when the value is dropped.
pub struct Net {
    runtime: Runtime,
    shared: Arc<Shared>,
}

impl Net {
    pub fn new(seed: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap_or_else(|e| panic!("no runtime: {e}"));
        let shared =
            Shared { conditions: Mutex::default(), counts: Counts::default(), seed, nodes: Mutex::default(), carried: Mutex::default() };
        Self { runtime, shared: Arc::new(shared) }
    }

    /// Changes the conditions, from the next datagram on.
    pub fn change(&self, change: impl FnOnce(&mut Conditions)) {
        change(&mut self.shared.conditions.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    /// Bytes that arrived so far between the nodes (from, to) that `which` selects.
    pub fn carried(&self, which: impl Fn(Node, Node) -> bool) -> u64 {
        let carried = self.shared.carried.lock().unwrap_or_else(PoisonError::into_inner);
        carried.iter().filter(|((from, to), _)| which(*from, *to)).map(|(_, bytes)| bytes).sum()
    }

    /// Makes a port known as that of `node`.
    pub fn name(&self, port: u16, node: Node) {
        self.shared.nodes.lock().unwrap_or_else(PoisonError::into_inner).insert(port, node);
    }

    /// Opens a door to `to`, the address of `node`. Its users are `from`; if that is
    /// `None`, they are identified by their ports. Returns the door's address.
    pub fn door(&self, to: SocketAddr, node: Node, from: Option<Node>) -> SocketAddr {
        let shared = Arc::clone(&self.shared);
        let door = self.runtime.block_on(UdpSocket::bind("127.0.0.1:0")).unwrap_or_else(|e| panic!("no door: {e}"));
        let address = door.local_addr().unwrap_or_else(|e| panic!("{e}"));
        self.runtime.spawn(keep(shared, Arc::new(door), to, node, from));
        address
    }
}

/// One sender that uses a door.
struct Guest {
    out: Link,
    socket: Arc<UdpSocket>,
}

async fn keep(shared: Arc<Shared>, door: Arc<UdpSocket>, to: SocketAddr, node: Node, from: Option<Node>) {
    let mut guests: BTreeMap<SocketAddr, Guest> = BTreeMap::new();
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        // An error here comes from an earlier datagram to a receiver that is gone.
        let Ok((bytes, guest)) = door.recv_from(&mut buffer).await else { continue };
        let known = match guests.entry(guest) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let node_of_port = shared.nodes.lock().unwrap_or_else(PoisonError::into_inner).get(&guest.port()).copied();
                let who = from.or(node_of_port).unwrap_or(Node::Stranger);
                let Ok(socket) = UdpSocket::bind("127.0.0.1:0").await else { continue };
                if socket.connect(to).await.is_err() {
                    continue;
                }
                let socket = Arc::new(socket);
                let rng = |direction| seed::stream(shared.seed, direction, &[u64::from(guest.port()), u64::from(to.port())]);
                let (out, back) = (Link::new(who, node, rng("there"), Instant::now()), Link::new(node, who, rng("back"), Instant::now()));
                tokio::spawn(answers(Arc::clone(&shared), Arc::clone(&door), Arc::clone(&socket), guest, back));
                place.insert(Guest { out, socket })
            }
        };
        let Some(wait) = pass(&shared, &mut known.out, bytes) else { continue };
        if wait.is_zero() {
            _ = known.socket.send(&buffer[..bytes]).await;
        } else {
            let (socket, bytes) = (Arc::clone(&known.socket), buffer[..bytes].to_vec());
            tokio::spawn(async move {
                tokio::time::sleep(wait).await;
                _ = socket.send(&bytes).await;
            });
        }
    }
}

async fn answers(shared: Arc<Shared>, door: Arc<UdpSocket>, socket: Arc<UdpSocket>, guest: SocketAddr, mut back: Link) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        // A listener that is gone may come back on its port.
        let Ok(bytes) = socket.recv(&mut buffer).await else { continue };
        let Some(wait) = pass(&shared, &mut back, bytes) else { continue };
        if wait.is_zero() {
            _ = door.send_to(&buffer[..bytes], guest).await;
        } else {
            let (door, bytes) = (Arc::clone(&door), buffer[..bytes].to_vec());
            tokio::spawn(async move {
                tokio::time::sleep(wait).await;
                _ = door.send_to(&bytes, guest).await;
            });
        }
    }
}

/// How long a datagram is on its way; `None` if it is lost.
fn pass(shared: &Shared, link: &mut Link, bytes: usize) -> Option<Duration> {
    let now = Instant::now();
    let fate = link.send(&shared.conditions.lock().unwrap_or_else(PoisonError::into_inner), bytes, now);
    let counts = &shared.counts;
    let Fate::Arrives { at, late } = fate else {
        counts.lost.fetch_add(1, Ordering::Relaxed);
        return None;
    };
    counts.passed.fetch_add(1, Ordering::Relaxed);
    *shared.carried.lock().unwrap_or_else(PoisonError::into_inner).entry(link.ends()).or_default() += bytes as u64;
    counts.late.fetch_add(u64::from(late), Ordering::Relaxed);
    counts.delayed.fetch_add(u64::from(at > now), Ordering::Relaxed);
    Some(at.saturating_duration_since(now))
}
