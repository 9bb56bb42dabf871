//! What the bulk service knows of the peers that it serves: their connections,
//! their share of its memory, and when they were on_alive.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use quinn::Connection;
use tokio::sync::Semaphore;

use super::budget::Share;

/// The most connections of one peer. It needs one; others may have broken without
/// this being known yet. Beyond this number the oldest ones are closed.
const CONNECTIONS: usize = 4;

/// Checkpoints that one peer may be sending at once: the newest, and one whose
/// connection was lost.
const UPLOADS: usize = 2;

/// A peer is reported at most once in this time.
const REPORT_MS: u64 = 100;

/// Called with the name of a peer while its bytes arrive, which shows that it is alive.
pub type OnAlive = Arc<dyn Fn(&str) + Send + Sync>;

/// One peer, for as long as it has a connection.
pub(super) struct Client {
    pub name: String,
    pub share: Share,
    pub uploads: Arc<Semaphore>,
    on_alive: OnAlive,
    since: Instant,
    /// When it was reported last, in milliseconds after `since`, plus one.
    reported: AtomicU64,
}

impl Client {
    /// Reports that bytes of this peer have arrived.
    pub(super) fn report_alive(&self) {
        let now = self.since.elapsed().as_millis() as u64 + 1;
        let last = self.reported.load(Ordering::Relaxed);
        let due = last == 0 || now >= last + REPORT_MS;
        if due && self.reported.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            (self.on_alive)(&self.name);
        }
    }
}

/// A peer and its connections, the oldest first.
type Connected = (Arc<Client>, VecDeque<Connection>);

/// All peers that have a connection.
#[derive(Default)]
pub(super) struct Clients(Mutex<BTreeMap<String, Connected>>);

impl Clients {
    /// A connection of this peer begins.
    pub(super) fn connected(&self, name: &str, connection: &Connection, on_alive: &OnAlive) -> Arc<Client> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (client, connections) = all.entry(name.to_owned()).or_insert_with(|| {
            let client = Client {
                name: name.to_owned(),
                share: Share::default(),
                uploads: Arc::new(Semaphore::new(UPLOADS)),
                on_alive: Arc::clone(on_alive),
                since: Instant::now(),
                reported: AtomicU64::new(0),
            };
            (Arc::new(client), VecDeque::new())
        });
        connections.push_back(connection.clone());
        while connections.len() > CONNECTIONS
            && let Some(oldest) = connections.pop_front()
        {
            oldest.close(1u32.into(), b"too many connections of one worker");
        }
        Arc::clone(client)
    }

    /// A connection of this peer has ended.
    pub(super) fn disconnected(&self, name: &str, connection: &Connection) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, connections)) = all.get_mut(name) {
            connections.retain(|c| c.stable_id() != connection.stable_id());
            if connections.is_empty() {
                all.remove(name);
            }
        }
    }
}
