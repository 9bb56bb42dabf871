//! Passes packets on between workers that reach this coordinator but not each other. What
//! is in them it cannot read: each pair's connection is encrypted from end to end. A packet
//! goes only between two that this coordinator has named to each other (`allowed.rs`); it
//! waits in the mailbox of the worker that it is for, or is dropped if that is full. So
//! nobody who sends much, or reads nothing, takes more than a bounded amount of memory here,
//! or another's share of it.

mod allowed;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::net::Peer;
use common::net::relay::{Frame, Outlet, RelayError, carry, number_of};
use common::timing::PROBED_MAY_CONNECT;
use common::wire::messages::Member;
use quinn::Connection;

use allowed::Allowed;

/// Called with the name of a worker while its packets arrive, which shows that it is alive.
pub type OnAlive = Arc<dyn Fn(&str) + Send + Sync>;

/// A worker is reported at most once in this time.
const REPORT: Duration = Duration::from_millis(100);

/// The relay of one run.
pub struct Relay {
    state: Mutex<State>,
    on_alive: OnAlive,
}

#[derive(Default)]
struct State {
    allowed: Allowed,
    /// The newest connection of each worker, by its number, and what waits for it.
    workers: BTreeMap<u32, (Connection, Arc<Outlet>)>,
}

impl Relay {
    pub fn new(on_alive: OnAlive) -> Self {
        Self { state: Mutex::default(), on_alive }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is complete when the lock is given up.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on these may send to each other, and no longer those of an older generation.
    pub fn set_members(&self, members: &[Member]) {
        self.state().allowed.set_members(members.iter().filter_map(|member| number_of(&member.name)));
    }

    /// `asker` and each of `peers` may send to each other for as long as a probe takes.
    pub fn probes(&self, asker: &str, peers: &[Member]) {
        let Some(asker) = number_of(asker) else { return };
        let now = Instant::now();
        let peers = peers.iter().filter_map(|peer| number_of(&peer.name));
        self.state().allowed.probes(asker, peers, now, now + PROBED_MAY_CONNECT);
    }

    /// Ends the connection of a worker that is not let in any more.
    pub fn expel(&self, name: &str) {
        let gone = number_of(name).and_then(|number| self.state().workers.remove(&number));
        if let Some((connection, _)) = gone {
            connection.close(1u32.into(), b"this worker is not let in any more");
        }
    }

    /// Serves one worker's connection until it closes.
    pub async fn serve(self: Arc<Self>, peer: Peer) {
        let connection = &peer.connection;
        let Some((name, number)) = peer.name.as_deref().and_then(|name| Some((name, number_of(name)?))) else {
            return connection.close(1u32.into(), b"only workers are relayed");
        };
        let outlet = Arc::new(Outlet::default());
        let former = self.state().workers.insert(number, (connection.clone(), Arc::clone(&outlet)));
        if let Some((former, _)) = former {
            former.close(0u32.into(), b"there is a newer connection");
        }
        let mut reported: Option<Instant> = None;
        let pass_on = |frame: Frame| {
            let now = Instant::now();
            if reported.is_none_or(|at| now >= at + REPORT) {
                reported = Some(now);
                (self.on_alive)(name);
            }
            self.pass_on(number, frame, now);
        };
        let ended = carry(connection, &outlet, pass_on).await;
        match &ended {
            RelayError::Frame(problem) => {
                tracing::warn!("the relay's connection of {name} is cut off: {problem}");
                connection.close(1u32.into(), b"not a packet");
            }
            _ => {
                tracing::debug!("the relay's connection of {name}: {ended}");
                connection.close(0u32.into(), b"the relay's stream has ended");
            }
        }
        let mut state = self.state();
        if state.workers.get(&number).is_some_and(|(newest, _)| newest.stable_id() == connection.stable_id()) {
            state.workers.remove(&number);
        }
    }

    /// Puts a packet of worker `from` into the mailbox of the worker that it is for.
    fn pass_on(&self, from: u32, frame: Frame, now: Instant) {
        let to = frame.number();
        let outlet = {
            let state = self.state();
            let found = state.allowed.may(from, to, now).then(|| state.workers.get(&to)).flatten();
            found.map(|(_, outlet)| Arc::clone(outlet))
        };
        if let Some(outlet) = outlet {
            outlet.put(from, frame.with_number(from));
        }
    }
}
