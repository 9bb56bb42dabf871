//! Who may measure how much, and when. Pure: `now` is an argument.

use std::time::{Duration, Instant};

/// Connections of one visit.
pub(super) const CONNECTIONS: usize = 4;

/// How long a visit may last.
pub(super) const LIFETIME: Duration = Duration::from_secs(30);

/// Measurements of a visit: up and down, over one connection and over several.
const MEASUREMENTS: u64 = 4;

/// Bytes of one measurement while nobody trains, and while a ring does: those take a
/// quarter of a second of a link of 1 Gbit/s.
const BYTES_IDLE: u64 = 256 << 20;
const BYTES_TRAINING: u64 = 32 << 20;

/// The pause after a visit while a ring trains.
const PAUSE: Duration = Duration::from_secs(10);

/// Requests to be sent datagrams.
const KNOCKS: u32 = 4;

/// Bytes of one measurement.
pub(super) fn bytes(trains: bool) -> u64 {
    if trains { BYTES_TRAINING } else { BYTES_IDLE }
}

/// The visit that is under way, if there is one. `V` names it.
#[derive(Debug)]
pub(super) struct Ledger<V> {
    current: Option<Current<V>>,
    /// No visit may begin before.
    free_at: Option<Instant>,
}

#[derive(Debug)]
struct Current<V> {
    visit: V,
    since: Instant,
    connections: usize,
    trains: bool,
    bytes_left: u64,
    knocks_left: u32,
}

impl<V: PartialEq + Copy> Ledger<V> {
    pub(super) fn new() -> Self {
        Self { current: None, free_at: None }
    }

    /// One more connection of a visit, unless it must not be. The error is for the visitor.
    pub(super) fn enter(&mut self, now: Instant, visit: V, trains: bool) -> Result<(), String> {
        match &mut self.current {
            Some(current) if current.visit != visit => Err("another machine measures now: try again in half a minute".to_owned()),
            Some(current) if now.saturating_duration_since(current.since) > LIFETIME => Err("this visit has lasted too long".to_owned()),
            Some(current) if current.connections == CONNECTIONS => Err(format!("a visit has at most {CONNECTIONS} connections")),
            Some(current) => {
                current.connections += 1;
                Ok(())
            }
            None => {
                let wait = self.free_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
                if trains && !wait.is_zero() {
                    let seconds = wait.as_secs() + 1;
                    return Err(format!("somebody measured a moment ago, and the run trains: try again in {seconds} s"));
                }
                let bytes_left = MEASUREMENTS * bytes(trains);
                self.current = Some(Current { visit, since: now, connections: 1, trains, bytes_left, knocks_left: KNOCKS });
                Ok(())
            }
        }
    }

    /// A connection of a visit has ended. The visit ends with its last one.
    pub(super) fn leave(&mut self, now: Instant, visit: V) {
        if let Some(current) = self.current.as_mut().filter(|current| current.visit == visit) {
            current.connections -= 1;
            if current.connections == 0 {
                self.free_at = current.trains.then(|| now + PAUSE);
                self.current = None;
            }
        }
    }

    /// How many of the bytes that a visit asks for it gets.
    pub(super) fn take(&mut self, visit: V, wanted: u64) -> u64 {
        let Some(current) = self.current.as_mut().filter(|current| current.visit == visit) else { return 0 };
        let granted = wanted.min(current.bytes_left);
        current.bytes_left -= granted;
        granted
    }

    /// Whether datagrams may be sent to a visitor once more.
    pub(super) fn knock(&mut self, visit: V) -> bool {
        let left = self.current.as_mut().filter(|current| current.visit == visit).map(|current| &mut current.knocks_left);
        left.is_some_and(|left| {
            let may = *left > 0;
            *left = left.saturating_sub(1);
            may
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn one_visit_at_a_time_with_a_few_connections() {
        let (mut ledger, now) = (Ledger::new(), Instant::now());
        for _ in 0..CONNECTIONS {
            ledger.enter(now, 'a', false).unwrap();
        }
        assert!(ledger.enter(now, 'a', false).unwrap_err().contains("at most 4"));
        assert!(ledger.enter(now, 'b', false).unwrap_err().contains("try again"));
        ledger.leave(now, 'b');
        for _ in 0..CONNECTIONS {
            assert!(ledger.enter(now, 'b', false).is_err());
            ledger.leave(now, 'a');
        }
        ledger.enter(now, 'b', false).unwrap();
        assert!(ledger.enter(now + LIFETIME, 'b', false).is_ok());
        assert!(ledger.enter(now + LIFETIME + Duration::from_millis(1), 'b', false).unwrap_err().contains("too long"));
    }

    #[test]
    fn while_a_ring_trains_visits_are_small_and_seldom() {
        let (mut ledger, now) = (Ledger::new(), Instant::now());
        ledger.enter(now, 'a', true).unwrap();
        let taken: u64 = (0..100).map(|_| ledger.take('a', BYTES_TRAINING)).sum();
        assert_eq!(taken, MEASUREMENTS * BYTES_TRAINING, "however often it asks");
        assert_eq!(ledger.take('b', 1), 0, "somebody else");
        ledger.leave(now, 'a');
        assert_eq!(ledger.take('a', 1), 0, "it is over");
        assert!(ledger.enter(now, 'b', true).unwrap_err().contains("in 11 s"));
        assert!(ledger.enter(now + PAUSE / 2, 'b', true).unwrap_err().contains("in 6 s"));
        ledger.enter(now + PAUSE, 'b', true).unwrap();
        ledger.leave(now + PAUSE, 'b');
        ledger.enter(now + PAUSE, 'c', false).unwrap();
        assert_eq!(ledger.take('c', u64::MAX), MEASUREMENTS * BYTES_IDLE);
        ledger.leave(now, 'c');
        ledger.enter(now, 'd', false).unwrap();
    }

    #[test]
    fn datagrams_are_sent_a_few_times() {
        let (mut ledger, now) = (Ledger::new(), Instant::now());
        assert!(!ledger.knock('a'));
        ledger.enter(now, 'a', false).unwrap();
        assert_eq!((0..20).filter(|_| ledger.knock('a')).count(), KNOCKS as usize);
        assert!(!ledger.knock('b'));
    }
}
