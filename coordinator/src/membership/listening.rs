//! How long a worker has been silent, counting only the time during which this
//! coordinator listened.
//!
//! A coordinator that was stopped, or whose own link is cut, hears no worker, and
//! that is no worker's fault. So the clock stands still while the coordinator did not
//! run (two calls far apart), and no worker is blamed while none at all is heard:
//! only a worker that is heard proves that the others could be heard.

use std::time::{Duration, Instant};

use common::timing::{isolated_after, longest_counted_pause};

/// Times in this module count from the start of the membership and leave out
/// the coordinator's own absences.
pub(super) type At = Duration;

#[derive(Debug)]
pub(super) struct Listening {
    timeout: Duration,
    last_call: Instant,
    now: At,
    /// When any worker was last heard.
    last_heard: At,
    /// Silence counts from here at the earliest: the end of the last period in which
    /// no worker was heard.
    floor: At,
    reported_isolated: bool,
}

impl Listening {
    pub(super) fn new(timeout: Duration, now: Instant) -> Self {
        let start = Duration::ZERO;
        Self { timeout, last_call: now, now: start, last_heard: start, floor: start, reported_isolated: false }
    }

    /// Time passes. Calls must not go back in time.
    pub(super) fn advance(&mut self, now: Instant) {
        assert!(now >= self.last_call, "the membership was called with a time before that of the call before");
        self.now += (now - self.last_call).min(longest_counted_pause(self.timeout));
        self.last_call = now;
    }

    pub(super) fn now(&self) -> At {
        self.now
    }

    /// A worker was heard.
    pub(super) fn hear(&mut self) {
        if self.isolated() {
            self.floor = self.now;
        }
        self.last_heard = self.now;
        self.reported_isolated = false;
    }

    /// Whether no worker is heard: the coordinator itself may be cut off.
    pub(super) fn isolated(&self) -> bool {
        self.now - self.last_heard > isolated_after(self.timeout)
    }

    /// True once each time that no worker has been heard for the whole timeout.
    pub(super) fn becomes_isolated(&mut self) -> bool {
        self.now - self.last_heard > self.timeout && !std::mem::replace(&mut self.reported_isolated, true)
    }

    /// How long a worker that was last heard at `heard` has been silent.
    pub(super) fn silence(&self, heard: At) -> Duration {
        self.now.saturating_sub(heard.max(self.floor))
    }
}
