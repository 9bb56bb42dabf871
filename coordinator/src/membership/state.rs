//! The state of the membership: the workers, the ring, and earlier attempts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::digest::Digest;
use common::plan::Ownership;
use common::run_dir::Dense;
use common::wire::messages::{Finished, Member};

use super::back_off::EmptyGenerations;
use super::balance::Balancing;
use super::events::{Rules, WorkerId};
use super::lineage::Lineage;
use super::listening::{At, Listening};
use super::pace::Pace;
use super::pairs::Pairs;
use super::paths::{Path, Paths};

#[derive(Debug)]
pub(super) struct Worker {
    pub(super) name: String,
    pub(super) addr: SocketAddr,
    /// Where else other workers may reach it.
    pub(super) others: Vec<SocketAddr>,
    pub(super) preferred_rank: Option<u32>,
    pub(super) phase: Phase,
    pub(super) leaving: bool,
    pub(super) spare_notified: bool,
    /// Its connection is open; if not, the worker may come back over another one.
    pub(super) connected: bool,
    pub(super) heard: At,
    /// Since when it has been in this phase.
    pub(super) since: At,
    /// Steps that it is known to have committed in this generation.
    pub(super) step: u64,
    /// After which step, and since when, it has been waiting for the others in its ring.
    pub(super) waiting: Option<(u64, At)>,
    /// It joined a ring that was already training, and has not been in it for long.
    pub(super) fresh: bool,
    /// It has completed a step with others.
    pub(super) proved: bool,
    pub(super) path: Path,
    /// The products that it makes of the run's seeded factors.
    pub(super) products: Option<Digest>,
    /// How long the transfer of its state takes, as measured last.
    pub(super) handover: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It opens its data and builds its model.
    Joining,
    /// In no ring, with the run's state after this many steps; `None` for a state
    /// that is not the run's.
    Ready(Option<u64>),
    /// A member of the generation that runs, or of the one that is ending.
    Member,
}

impl Worker {
    pub(super) fn new(member: Member, preferred_rank: Option<u32>, at: At) -> Self {
        let Member { name, addr, others } = member;
        Self {
            name,
            addr,
            others,
            preferred_rank,
            phase: Phase::Joining,
            leaving: false,
            spare_notified: false,
            connected: true,
            heard: at,
            since: at,
            step: 0,
            waiting: None,
            fresh: false,
            proved: false,
            path: Path::Unknown,
            products: None,
            handover: None,
        }
    }

    /// Its name and address, as its neighbours in the ring need them.
    pub(super) fn as_member(&self) -> Member {
        Member { name: self.name.clone(), addr: self.addr, others: self.others.clone() }
    }

    /// The step of the run's state that it holds while it is in no ring.
    pub(super) fn holds(&self) -> Option<u64> {
        if let Phase::Ready(held) = self.phase { held } else { None }
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Ready(_)) && self.connected
    }
}

#[derive(Debug)]
pub(super) enum State {
    /// No ring: short of workers.
    Waiting,
    Running {
        members: Vec<WorkerId>,
        reports: BTreeMap<WorkerId, Finished>,
        yielding: bool,
    },
    /// A generation is over; the `remaining` members have not reported yet which step
    /// they hold.
    Ending {
        remaining: BTreeSet<WorkerId>,
        since: At,
    },
    Over,
}

/// The membership of one run.
#[derive(Debug)]
pub struct Membership {
    pub(super) rules: Rules,
    pub(super) workers: BTreeMap<WorkerId, Worker>,
    pub(super) state: State,
    /// The newest generation.
    pub(super) generation: u64,
    /// When the newest generation that this process started began.
    pub(super) generation_began: At,
    /// The first generation has started: from then on `min_workers` are enough.
    pub(super) begun: bool,
    /// The newest checkpoint is of the state before this step.
    pub(super) stored: u64,
    /// The most steps that any worker is known to have committed.
    pub(super) newest: u64,
    /// Former members out of reach that may hold the newest step, and until when the
    /// run waits for each.
    pub(super) absent: BTreeMap<String, At>,
    pub(super) lineage: Lineage,
    /// The names of those that held the state from which the newest generation began.
    pub(super) initial_holders: BTreeSet<String>,
    pub(super) listening: Listening,
    pub(super) paths: Paths,
    pub(super) pairs: Pairs,
    /// The pairs of the newest generation that were said to be relayed.
    pub(super) relayed: BTreeSet<[String; 2]>,
    pub(super) empty_generations: EmptyGenerations,
    pub(super) pace: Pace,
    pub(super) balancing: Balancing,
    pub(super) stopping: bool,
    /// What is exchanged of dense layers in all generations of a reproducible run, once the
    /// first has decided it.
    pub(super) decided: Option<Dense>,
    /// The names of members that reported that no worker can go on.
    pub(super) reported_fatal: BTreeSet<String>,
    /// How often a worker did not get the state from the donor.
    pub(super) failed_donors: u32,
    /// The worker that was asked to store the state that it alone holds.
    pub(super) storing: Option<WorkerId>,
    /// The number of ready workers that was last reported while the run was short of
    /// workers, and whether it was reported that the run waits for former members out
    /// of reach.
    pub(super) told_waiting: Option<u32>,
    pub(super) announced_awaiting: bool,
}

impl Membership {
    pub fn new(rules: Rules, now: Instant) -> Self {
        Self {
            rules,
            workers: BTreeMap::new(),
            state: State::Waiting,
            generation: rules.last_generation,
            generation_began: At::default(),
            begun: false,
            stored: rules.first_step,
            newest: rules.first_step,
            absent: BTreeMap::new(),
            lineage: Lineage::default(),
            initial_holders: BTreeSet::new(),
            listening: Listening::new(rules.timeout, now),
            paths: Paths::default(),
            pairs: Pairs::default(),
            relayed: BTreeSet::new(),
            empty_generations: EmptyGenerations::default(),
            pace: Pace::default(),
            balancing: Balancing::new(Ownership::equal(1, rules.shards)),
            stopping: false,
            decided: None,
            reported_fatal: BTreeSet::new(),
            failed_donors: 0,
            storing: None,
            told_waiting: None,
            announced_awaiting: false,
        }
    }
}
