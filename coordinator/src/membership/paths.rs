//! What is known of the paths between newcomers and members, and of earlier newcomers
//! that failed: which workers are left out of the ring, and for how long.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::back_off::doubled;
use super::listening::At;

/// A newcomer that was a member for this long, and has completed steps, has proved itself.
pub(super) const PROBATION: Duration = Duration::from_secs(10);

/// How long newcomers must be ready before a ring yields, once there are two strikes.
const PROVING: Duration = Duration::from_millis(2500);

/// For how long a worker is left out the first time that it is not reached.
pub(super) const FIRST_EXCLUSION: Duration = Duration::from_secs(5);

/// For how long a worker is left out at most, unless its first exclusion is longer.
const LONGEST_EXCLUSION: Duration = Duration::from_secs(300);

/// For how long a worker is left out at least for which a ring had yielded and then did not
/// form, and how many times as long as the ring stood still for it. Whatever the worker does,
/// and however slow a link it feigns, it costs the ring no more than a twentieth of its time.
pub(super) const AFTER_A_RING: Duration = Duration::from_secs(60);
pub(super) const TIMES_STOOD_STILL: u32 = 20;

/// The number of exclusions remembered.
pub(super) const REMEMBERED: usize = 1024;

/// After this long without a loss of a newcomer, earlier losses are forgotten: longer after
/// one for which the ring stood still for long.
const FORGIVEN: Duration = Duration::from_secs(60);

/// What is known of the network path between a worker that is in no ring and the members.
#[derive(Debug, Clone, Default)]
pub(super) enum Path {
    #[default]
    Unknown,
    Probing {
        since: At,
        /// The members.
        names: BTreeSet<String>,
        /// Attempts without a result yet: (the worker that tries, the worker it tries
        /// to reach).
        missing: BTreeSet<(String, String)>,
        /// How long the transfer of its state will take.
        handover: Duration,
    },
    /// The worker reaches these members, and they reach it.
    Proven { names: BTreeSet<String> },
}

/// The history of newcomers.
#[derive(Debug, Default)]
pub(super) struct Paths {
    excluded: BTreeMap<String, Exclusion>,
    /// Losses of newcomers soon after they had joined, and until when they count.
    strikes: u32,
    forgiven: At,
    /// Pairs of proved members that did not find each other, once.
    pub(super) missed: BTreeSet<(String, String)>,
}

#[derive(Debug)]
struct Exclusion {
    since: At,
    until: At,
    times: u32,
}

impl Paths {
    /// A newcomer was lost soon after it had joined, or no ring formed for want of it.
    /// `gone`: its end was seen. Otherwise the ring stood still for so long until that was
    /// noticed. A newcomer that comes back under other names is not known again, but makes
    /// the ring yield less and less often.
    pub(super) fn strike(&mut self, at: At, gone: bool, stood_still: Duration) {
        let weight = if gone { 1 } else { 2 };
        self.strikes = if self.forgives(at) { weight } else { self.strikes.saturating_add(weight) };
        self.forgiven = at + stood_still.saturating_mul(TIMES_STOOD_STILL).max(FORGIVEN);
    }

    fn forgives(&self, at: At) -> bool {
        at > self.forgiven
    }

    /// How long a newcomer must have been ready before a ring yields for it.
    pub(super) fn proving(&self, at: At) -> Duration {
        match self.strikes {
            0 | 1 => Duration::ZERO,
            _ if self.forgives(at) => Duration::ZERO,
            n => doubled(PROVING, (n - 2) / 2, LONGEST_EXCLUSION),
        }
    }

    pub(super) fn excludes(&self, name: &str, at: At) -> bool {
        self.excluded.get(name).is_some_and(|e| e.until > at)
    }

    /// Whether this worker is left out even where the run stands still without it: a longer
    /// exclusion protects a ring, and there is none.
    pub(super) fn excludes_from_any(&self, name: &str, at: At) -> bool {
        self.excluded.get(name).is_some_and(|e| e.until.min(e.since + FIRST_EXCLUSION) > at)
    }

    /// Ends the exclusion of a worker that is a member now.
    pub(super) fn includes(&mut self, name: &str, at: At) {
        if let Some(exclusion) = self.excluded.get_mut(name) {
            exclusion.until = exclusion.until.min(at);
        }
    }

    /// Leaves a worker out; returns for how long.
    pub(super) fn exclude(&mut self, name: &str, at: At, first: Duration) -> Duration {
        if self.excluded.len() >= REMEMBERED {
            self.excluded.retain(|_, e| e.until > at);
            if self.excluded.len() >= REMEMBERED {
                self.excluded.pop_first();
            }
        }
        let entry = self.excluded.entry(name.to_owned()).or_insert(Exclusion { since: at, until: at, times: 0 });
        let time = doubled(first, entry.times, LONGEST_EXCLUSION.max(first));
        (entry.since, entry.until, entry.times) = (at, at + time, entry.times.saturating_add(1));
        time
    }
}
