//! What a bad network does to a datagram: drawn from a seed, pure.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use common::seed;
use rand_chacha::ChaCha8Rng;

/// A place in the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    Coordinator,
    /// By its place in the test.
    Worker(usize),
    /// Somebody who is not part of the run.
    Stranger,
}

/// The state of all links. The default is a network without faults.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Weather {
    pub delay: Duration,
    /// Added to the delay, evenly from nothing to this; it reorders too.
    pub jitter: Duration,
    /// Share of the datagrams that vanish.
    pub loss: f64,
    /// Share of the datagrams that arrive [`LATE`] later than the others.
    pub reorder: f64,
    /// Bytes a second of each link in each direction.
    pub bandwidth: Option<u32>,
    /// Nothing reaches these, and nothing comes from them.
    pub cut: BTreeSet<Node>,
}

/// How much later a reordered datagram arrives.
pub const LATE: Duration = Duration::from_millis(10);

/// What a link of limited bandwidth holds before it drops what comes.
const QUEUE: Duration = Duration::from_millis(200);

/// What becomes of one datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Lost,
    /// It arrives at this time; whether after later ones was drawn.
    Arrives {
        at: Instant,
        late: bool,
    },
}

/// One direction of one link.
#[derive(Debug)]
pub struct Link {
    from: Node,
    to: Node,
    rng: ChaCha8Rng,
    /// When the last byte of what was sent before leaves the sender.
    free: Instant,
}

impl Link {
    pub fn new(from: Node, to: Node, rng: ChaCha8Rng, now: Instant) -> Self {
        Self { from, to, rng, free: now }
    }

    /// Sends `bytes` at `now`.
    pub fn send(&mut self, weather: &Weather, bytes: usize, now: Instant) -> Fate {
        if weather.cut.contains(&self.from) || weather.cut.contains(&self.to) || self.drawn(weather.loss) {
            return Fate::Lost;
        }
        let mut at = now;
        if let Some(bandwidth) = weather.bandwidth {
            let start = self.free.max(now);
            if start > now + QUEUE {
                return Fate::Lost;
            }
            self.free = start + Duration::from_secs_f64(bytes as f64 / f64::from(bandwidth.max(1)));
            at = self.free;
        }
        let late = self.drawn(weather.reorder);
        let jitter = weather.jitter.mul_f64(self.share());
        Fate::Arrives { at: at + weather.delay + jitter + if late { LATE } else { Duration::ZERO }, late }
    }

    fn share(&mut self) -> f64 {
        f64::from(seed::unit(&mut self.rng))
    }

    fn drawn(&mut self, share: f64) -> bool {
        share > 0.0 && self.share() < share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fates(weather: &Weather, n: usize, spacing: Duration) -> Vec<(Instant, Fate)> {
        let start = Instant::now();
        let mut link = Link::new(Node::Worker(0), Node::Worker(1), seed::stream(7, "weather", &[]), start);
        (0..n as u32).map(|i| (start + spacing * i, link.send(weather, 1000, start + spacing * i))).collect()
    }

    fn lost(fates: &[(Instant, Fate)]) -> usize {
        fates.iter().filter(|(_, fate)| *fate == Fate::Lost).count()
    }

    #[test]
    fn good_weather_changes_nothing() {
        let all = fates(&Weather::default(), 100, Duration::from_millis(1));
        assert!(all.iter().all(|&(sent, fate)| fate == Fate::Arrives { at: sent, late: false }));
    }

    #[test]
    fn shares_are_what_was_asked_for() {
        let weather = Weather { loss: 0.02, reorder: 0.1, delay: Duration::from_millis(50), ..Weather::default() };
        let all = fates(&weather, 20_000, Duration::from_millis(1));
        assert!((300..500).contains(&lost(&all)), "{}", lost(&all));
        let late = all.iter().filter(|(_, fate)| matches!(fate, Fate::Arrives { late: true, .. })).count();
        assert!((1700..2300).contains(&late), "{late}");
        for (sent, fate) in all {
            if let Fate::Arrives { at, late } = fate {
                assert_eq!(at - sent, Duration::from_millis(50) + if late { LATE } else { Duration::ZERO });
            }
        }
    }

    #[test]
    fn a_narrow_link_delays_then_drops() {
        // A megabyte a second offered to a tenth of that.
        let all = fates(&Weather { bandwidth: Some(100_000), ..Weather::default() }, 2000, Duration::from_millis(1));
        let arrived = all.len() - lost(&all);
        assert!((200..250).contains(&arrived), "{arrived} of 2000 in two seconds");
        assert!(all.iter().all(|&(sent, fate)| !matches!(fate, Fate::Arrives { at, .. } if at > sent + QUEUE * 2)));
    }

    #[test]
    fn a_cut_node_is_cut_both_ways() {
        let cut = |node| fates(&Weather { cut: [node].into(), ..Weather::default() }, 10, Duration::ZERO);
        assert_eq!(lost(&cut(Node::Worker(0))), 10);
        assert_eq!(lost(&cut(Node::Worker(1))), 10);
        assert_eq!(lost(&cut(Node::Worker(2))), 0);
        assert_eq!(lost(&cut(Node::Coordinator)), 0);
    }
}
