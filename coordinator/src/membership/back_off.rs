//! A pause before the next generation, after several that completed no step.

use std::time::Duration;

/// Generations in a row that may end without a step before the next one waits,
/// and for how long it waits at first and at most.
const EMPTY: u32 = 3;
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A time that doubles so many times, up to a longest one.
pub(super) fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    first.saturating_mul(2u32.saturating_pow(times)).min(longest)
}

/// Generations that end without a step.
#[derive(Debug, Default)]
pub(super) struct EmptyGenerations {
    in_a_row: u32,
    until: Duration,
}

impl EmptyGenerations {
    /// A generation has ended, with or without a step.
    pub(super) fn ended(&mut self, fruitful: bool, at: Duration) {
        self.in_a_row = if fruitful { 0 } else { self.in_a_row.saturating_add(1) };
        if let Some(times) = self.in_a_row.checked_sub(EMPTY) {
            self.until = at + doubled(PAUSE, times, LONGEST_PAUSE);
        }
    }

    /// Whether the next generation is to wait.
    pub(super) fn pauses(&self, at: Duration) -> bool {
        at < self.until
    }
}
