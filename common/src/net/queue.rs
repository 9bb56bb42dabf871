//! Peers that have connected and that no caller has taken yet: bounded, in shares.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::peer::Peer;
use super::slots::largest_share;

/// Peers with a certificate that may wait at once.
const MOST: usize = 64;

/// Peers with a certificate go first, and strangers never occupy their places.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    arrived: Notify,
}

#[derive(Default)]
struct State {
    members: VecDeque<Peer>,
    /// The acceptor's slots for strangers bound their number.
    strangers: VecDeque<Peer>,
    closed: bool,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change below is complete when the lock is given up.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a peer. If the queue is full, returns the peer that is removed for it: of
    /// the name with the most waiting peers, the one that has waited longest.
    pub(super) fn push(&self, peer: Peer) -> Option<Peer> {
        let mut state = self.state();
        if state.closed {
            return Some(peer);
        }
        let is_member = peer.name.is_some();
        let queue = if is_member { &mut state.members } else { &mut state.strangers };
        queue.retain(|waiting| waiting.connection.close_reason().is_none());
        queue.push_back(peer);
        let names: Vec<&Option<String>> = queue.iter().map(|waiting| &waiting.name).collect();
        let excess = if is_member && names.len() > MOST { largest_share(&names, |_| true) } else { None };
        let gone = excess.and_then(|(index, _)| queue.remove(index));
        self.arrived.notify_one();
        gone
    }

    /// The next peer; none once the queue is closed and empty. Dropping the future
    /// loses no peer.
    pub(super) async fn pop(&self) -> Option<Peer> {
        loop {
            let arrived = self.arrived.notified();
            {
                let mut state = self.state();
                if let Some(peer) = state.members.pop_front().or_else(|| state.strangers.pop_front()) {
                    if !(state.members.is_empty() && state.strangers.is_empty()) {
                        // One call to notify may have stood for several peers.
                        self.arrived.notify_one();
                    }
                    return Some(peer);
                }
                if state.closed {
                    return None;
                }
            }
            arrived.await;
        }
    }

    /// No peer is added any more.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.arrived.notify_waiters();
    }
}
