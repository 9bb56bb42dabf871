//! Complaints about strangers, which can cause any number of them: a few are logged
//! each minute, the others are counted.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_secs(60);
const AT_MOST: u32 = 5;

/// Decides which complaints are logged.
#[derive(Debug, Default)]
pub struct RateLimitedLog(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    since: Option<Instant>,
    logged: u32,
    withheld: u64,
}

impl RateLimitedLog {
    /// Whether to log a complaint now; if so, how many were withheld before.
    fn admits(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.since.is_none_or(|since| now.saturating_duration_since(since) >= EVERY) {
            (state.since, state.logged) = (Some(now), 0);
        }
        if state.logged == AT_MOST {
            state.withheld += 1;
            return None;
        }
        state.logged += 1;
        Some(std::mem::take(&mut state.withheld))
    }

    /// Logs the complaint, or counts it.
    pub fn warn(&self, complaint: &dyn std::fmt::Display) {
        match self.admits(Instant::now()) {
            Some(0) => tracing::warn!("{complaint}"),
            Some(withheld) => tracing::warn!("{complaint} (and {withheld} more such complaints before this one)"),
            None => tracing::debug!("{complaint}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_few_lines_a_minute() {
        let (quiet, start) = (RateLimitedLog::default(), Instant::now());
        let logged = |second: u64| (0..1000).filter_map(|_| quiet.admits(start + Duration::from_secs(second))).collect::<Vec<_>>();
        assert_eq!(logged(0), [0; 5]);
        assert!(logged(59).is_empty());
        assert_eq!(logged(60), [1995, 0, 0, 0, 0]);
    }
}
