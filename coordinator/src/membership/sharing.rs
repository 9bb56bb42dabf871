//! Gives the shards to the members of a ring, and has a ring that trains formed anew where
//! others should own them. [`super::balance`] decides by the speeds.

use std::collections::BTreeMap;

use common::config::Balance;
use common::plan::Ownership;

use super::balance::by_speed;
use super::events::{Output, WorkerId};
use super::state::{Membership, State, Worker};

impl Membership {
    /// The speeds of these workers, and who owns how many shards if they form a ring.
    pub(super) fn share_out(&self, members: &[WorkerId]) -> (Vec<Option<f64>>, Ownership) {
        let speeds = self.balancing.speeds(&names(&self.workers, members));
        let ownership = match self.rules.balance {
            Balance::Speed => by_speed(&speeds, self.rules.shards),
            Balance::Equal => Ownership::equal(members.len() as u32, self.rules.shards),
        };
        (speeds, ownership)
    }

    /// Judges the ownership of the ring, now that it may have committed a step.
    pub(super) fn weigh(&mut self) {
        let State::Running { members, .. } = &self.state else { return };
        if self.rules.balance == Balance::Equal || members.len() < 2 {
            return;
        }
        let names = names(&self.workers, members);
        self.balancing.stepped(&names, self.newest, self.listening.now(), &self.rules);
    }

    /// What is to be said when the ring is formed anew for its shares; `None` if it is not.
    pub(super) fn moves_shards(&self) -> Option<Output> {
        let State::Running { members, .. } = &self.state else { return None };
        if !self.balancing.is_due() {
            return None;
        }
        let (from, to, gain) = self.balancing.moves(&names(&self.workers, members), self.rules.shards)?;
        Some(Output::Balance { from, to, gain })
    }
}

/// The names of these workers, in this order.
fn names<'a>(workers: &'a BTreeMap<WorkerId, Worker>, members: &[WorkerId]) -> Vec<&'a str> {
    members.iter().map(|id| workers.get(id).map_or("", |w| w.name.as_str())).collect()
}
