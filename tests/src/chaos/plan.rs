//! What is done to a run, and when: by name, or drawn from a seed.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use common::seed;
use rand_chacha::ChaCha8Rng;

use super::weather::Weather;

/// Something that is done to a run.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// SIGKILL; another worker is started in its place.
    Kill { worker: usize },
    /// SIGSTOP, and SIGCONT later.
    Stop { worker: usize, millis: u64 },
    /// Nothing reaches this worker, or comes from it, for a while.
    Partition { worker: usize, millis: u64 },
    /// The coordinator is killed, and started again later.
    Coordinator { millis: u64 },
    /// The network is bad, for a while or for good.
    Weather { weather: Weather, millis: Option<u64> },
}

/// The kinds of faults that can be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Kill,
    Stop,
    Partition,
    Coordinator,
    Delay,
    Jitter,
    Loss,
    Reorder,
    Bandwidth,
}

impl Kind {
    pub const ALL: [Self; 9] =
        [Self::Kill, Self::Stop, Self::Partition, Self::Coordinator, Self::Delay, Self::Jitter, Self::Loss, Self::Reorder, Self::Bandwidth];

    /// One fault of this kind, of up to some seconds.
    fn draw(self, rng: &mut ChaCha8Rng, workers: usize) -> Fault {
        let worker = seed::below(rng, workers as u32) as usize;
        let millis = u64::from(200 + seed::below(rng, 3000));
        let weather = |weather| Fault::Weather { weather, millis: Some(millis) };
        let ms = |rng: &mut ChaCha8Rng, most| Duration::from_millis(u64::from(5 + seed::below(rng, most)));
        match self {
            Self::Kill => Fault::Kill { worker },
            Self::Stop => Fault::Stop { worker, millis },
            Self::Partition => Fault::Partition { worker, millis },
            Self::Coordinator => Fault::Coordinator { millis },
            Self::Delay => weather(Weather { delay: ms(rng, 60), ..Weather::default() }),
            Self::Jitter => weather(Weather { jitter: ms(rng, 40), ..Weather::default() }),
            Self::Loss => weather(Weather { loss: 0.01 + 0.04 * f64::from(seed::unit(rng)), ..Weather::default() }),
            Self::Reorder => weather(Weather { reorder: 0.01 + 0.2 * f64::from(seed::unit(rng)), ..Weather::default() }),
            Self::Bandwidth => weather(Weather { bandwidth: Some(1_000_000 + seed::below(rng, 4_000_000)), ..Weather::default() }),
        }
    }
}

/// `count` faults of these kinds, each with the step at which it is done: one
/// every `spacing` steps.
pub fn draw(seed: u64, kinds: &[Kind], count: usize, spacing: usize, workers: usize) -> Vec<(usize, Fault)> {
    let mut rng = seed::stream(seed, "chaos", &[]);
    let one = |n: usize| {
        let kind = kinds[seed::below(&mut rng, kinds.len() as u32) as usize];
        (spacing * (n + 1), kind.draw(&mut rng, workers))
    };
    (0..count).map(one).collect()
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(|kind| kind.to_string()).join(", ");
        Self::ALL.into_iter().find(|kind| kind.to_string() == text).ok_or_else(|| format!("`{text}` is no fault; these are: {}", names()))
    }
}

impl Fault {
    /// The kind's name, for the table.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kill { .. } => "kill",
            Self::Stop { .. } => "stop",
            Self::Partition { .. } => "partition",
            Self::Coordinator { .. } => "coordinator",
            Self::Weather { .. } => "weather",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_everything() {
        let draw = |seed| draw(seed, &Kind::ALL, 30, 40, 4);
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert_eq!(draw(1).iter().map(|(step, _)| *step).collect::<Vec<_>>(), (1..=30).map(|n| n * 40).collect::<Vec<_>>());
        let names: std::collections::BTreeSet<&str> = (0..10).flat_map(draw).map(|(_, fault)| fault.name()).collect();
        assert_eq!(names.len(), 5, "{names:?}");
    }

    #[test]
    fn kinds_have_names() {
        for kind in Kind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert!("flood".parse::<Kind>().is_err_and(|e| e.contains("kill, stop")));
    }
}
