//! How long the steps of a run take, as far as heartbeats show it.

use std::time::Duration;

use super::listening::At;

/// How long steps take, as far as heartbeats show it.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// The newest step, and when it was first reported.
    newest: Option<(u64, At)>,
    slowest: Option<Duration>,
}

impl Pace {
    /// A generation starts at this step.
    pub(super) fn starts(&mut self, step: u64, at: At) {
        self.newest = Some((step, at));
    }

    /// Some member has committed this many steps.
    pub(super) fn stepped(&mut self, step: u64, at: At) {
        if let Some((before, since)) = self.newest
            && step > before
        {
            let each = (at - since) / u32::try_from(step - before).unwrap_or(u32::MAX);
            self.slowest = self.slowest.max(Some(each));
            self.newest = Some((step, at));
        }
    }

    /// The longest time that a step has taken, including evaluations.
    pub(super) fn slowest(&self) -> Option<Duration> {
        self.slowest
    }
}
