//! `/status.json`: what a run is doing, as one document. docs/page.md describes it for
//! readers; [`VERSION`] is raised when a field changes its meaning or goes. Pure.

use common::config::Config;
use common::metrics::{Recovery, TimeShares};
use common::status::{MemberStatus, Status};
use serde::Serialize;

use super::history::{End, History};

/// The version of the document. Fields may be added to one.
pub(super) const VERSION: u32 = 1;

/// What of a run does not change.
#[derive(Debug, Clone)]
pub(super) struct About {
    pub config: Config,
    pub directory: String,
    pub steps: u64,
    pub epochs: u64,
}

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RunState {
    /// For workers, before its first generation.
    Waiting,
    Training,
    Finished,
    Failed,
    /// Its record has no end, and this process does not run it.
    Unfinished,
}

impl RunState {
    pub(super) const ALL: [Self; 5] = [Self::Waiting, Self::Training, Self::Finished, Self::Failed, Self::Unfinished];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Training => "training",
            Self::Finished => "finished",
            Self::Failed => "failed",
            Self::Unfinished => "unfinished",
        }
    }
}

/// The whole document. Numbers that are not finite, and those that are not known, are null.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct StatusDocument {
    pub version: u32,
    pub unix_seconds: f64,
    pub name: String,
    pub model: String,
    pub directory: String,
    pub state: RunState,
    /// Why it failed.
    pub reason: Option<String>,
    /// When it was started first, and last.
    pub started_unix_seconds: Option<f64>,
    pub resumed_unix_seconds: Option<f64>,
    /// When the newest line was added to its journal.
    pub newest_event_unix_seconds: Option<f64>,
    /// Committed steps, and those of the whole run.
    pub step: u64,
    pub steps: u64,
    /// Epochs that have begun, and those of the whole run.
    pub epoch: u64,
    pub epochs: u64,
    pub seconds_left: Option<f64>,
    pub training: Option<Training>,
    pub evaluation: Option<Validation>,
    pub generation: u64,
    pub workers: Vec<Worker>,
    pub checkpoint_step: Option<u64>,
    pub recoveries: u64,
    pub last_recovery: Option<Recovery>,
    pub skipped_samples: u64,
}

/// Averages over the newest steps, the newest weighing a tenth.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Training {
    pub loss: Option<f64>,
    /// Share of the samples that were classified right.
    pub top1: Option<f64>,
    pub images_per_second: Option<f64>,
    pub step_seconds: Option<f64>,
    /// Of the newest step.
    pub learning_rate: Option<f64>,
    pub gradient_norm: Option<f64>,
}

/// The newest evaluation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Validation {
    pub step: u64,
    pub loss: Option<f64>,
    pub top1: Option<f64>,
    pub top5: Option<f64>,
}

/// A member of the ring.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Worker {
    pub rank: usize,
    pub name: String,
    /// Its machine: where it listens in the ring, without the port.
    pub machine: String,
    pub device: Option<String>,
    /// How many shards it owns, and the first of them.
    pub shards: u32,
    pub first_shard: u32,
    pub step: u64,
    pub images_per_second: Option<f64>,
    /// The samples that it would compute in a second if it never waited for others.
    pub speed: Option<f64>,
    /// Shares of its time.
    pub shares: Option<TimeShares>,
    /// It computes while others wait for it: see [`slowest`].
    pub slow: bool,
}

/// How much more of its time than the others' least a worker must compute to be called
/// slow: less is what equal machines differ by.
const SLOWER: f64 = 0.2;

/// Whose time of its own (computing, waiting for data) is longer than that of the fastest by
/// more than [`SLOWER`]; steps take as long as it does.
fn slowest(members: &[MemberStatus]) -> Option<usize> {
    let own = |m: &MemberStatus| m.shares.map(|shares| 1.0 - shares.others);
    let known: Vec<(usize, f64)> = members.iter().enumerate().filter_map(|(rank, m)| Some((rank, own(m)?))).collect();
    let least = known.iter().map(|(_, own)| *own).min_by(f64::total_cmp)?;
    let (rank, most) = known.into_iter().max_by(|a, b| a.1.total_cmp(&b.1))?;
    (most - least > SLOWER).then_some(rank)
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

impl StatusDocument {
    /// Of a run whose record is `history`. `live`: its status, where this process runs it,
    /// which is newer than the record.
    pub(super) fn new(about: &About, history: &History, live: Option<&Status>, unix_seconds: f64) -> Self {
        let status = live.unwrap_or(&history.status);
        let step = status.step.as_ref().or(history.status.step.as_ref());
        let rates = status.rates.or(history.status.rates);
        let (state, reason) = match (&history.end, live) {
            (Some(End::Finished { .. }), _) => (RunState::Finished, None),
            (Some(End::Failed { reason }), _) => (RunState::Failed, Some(reason.clone())),
            (None, None) => (RunState::Unfinished, None),
            (None, Some(live)) if live.generation == 0 => (RunState::Waiting, None),
            (None, Some(_)) => (RunState::Training, None),
        };
        let slow = slowest(&status.members);
        let worker = |(rank, m): (usize, &MemberStatus)| Worker {
            rank,
            name: m.name.clone(),
            machine: m.address.parse::<std::net::SocketAddr>().map_or_else(|_| m.address.clone(), |a| a.ip().to_string()),
            device: Some(m.device.clone()).filter(|device| !device.is_empty()),
            shards: m.shards.1.saturating_sub(m.shards.0),
            first_shard: m.shards.0,
            step: m.step,
            images_per_second: finite(m.images_per_second),
            speed: m.speed.and_then(finite),
            shares: m.shares,
            slow: slow == Some(rank),
        };
        let training = step.zip(rates).map(|(m, rates)| Training {
            loss: finite(rates.loss),
            top1: finite(rates.top1),
            images_per_second: finite(rates.images_per_second),
            step_seconds: finite(rates.step_ms / 1e3),
            learning_rate: finite(m.lr),
            gradient_norm: finite(m.grad_norm),
        });
        let evaluation = status.evaluation.as_ref().or(history.status.evaluation.as_ref()).map(|e| Validation {
            step: e.step,
            loss: finite(e.loss),
            top1: finite(e.top1),
            top5: finite(e.top5),
        });
        let seconds_left = status.seconds_left().filter(|_| state == RunState::Training).and_then(finite);
        Self {
            version: VERSION,
            unix_seconds,
            name: about.config.name.clone(),
            model: about.config.model.kind().to_owned(),
            directory: about.directory.clone(),
            state,
            reason,
            started_unix_seconds: history.started,
            resumed_unix_seconds: history.resumed,
            newest_event_unix_seconds: history.newest,
            step: step.map_or(0, |m| m.step.saturating_add(1)),
            steps: about.steps,
            epoch: step.map_or(0, |m| m.epoch.saturating_add(1)),
            epochs: about.epochs,
            seconds_left,
            training,
            evaluation,
            generation: status.generation,
            workers: status.members.iter().enumerate().map(worker).collect(),
            checkpoint_step: status.checkpoint.or(history.status.checkpoint),
            recoveries: status.recoveries,
            last_recovery: status.recovery,
            skipped_samples: status.skipped.max(history.skipped_listed),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use common::run_dir::{Added, Event};

    use super::*;
    use crate::page::curve::tests::step;
    use crate::page::history::tests::{config, dated, generation};

    pub(in crate::page) fn about() -> About {
        About { config: config(), directory: "runs/t".to_owned(), steps: 100, epochs: 2 }
    }

    pub(in crate::page) fn trained() -> History {
        let mut history = History::new(100, 2);
        let events =
            vec![dated(1.0, Event::RunStarted { name: "t".to_owned(), step: 0 }), dated(2.0, generation(1, &["worker-1", "worker-2"], 0))];
        history.add(Added { events, steps: (0..50).map(|n| step(n, 1.5)).collect(), ..Added::default() }, &config());
        history
    }

    #[test]
    fn a_run_is_told_by_its_record_and_by_what_is_newer() {
        let history = trained();
        let record = StatusDocument::new(&about(), &history, None, 9.0);
        assert_eq!((record.state, record.step, record.steps, record.epoch), (RunState::Unfinished, 50, 100, 1));
        assert_eq!(record.seconds_left, None, "nobody trains it");
        let mut live = history.status.clone();
        live.stepped(&step(50, 1.5));
        live.members[1].device = "CPU".to_owned();
        let document = StatusDocument::new(&about(), &history, Some(&live), 9.0);
        assert_eq!((document.state, document.step), (RunState::Training, 51));
        assert!(document.seconds_left.is_some_and(|left| (left - 4.9).abs() < 1e-9));
        assert_eq!((document.workers[1].machine.as_str(), document.workers[1].device.as_deref()), ("10.0.0.7", Some("CPU")));
        assert_eq!((document.workers[1].shards, document.workers[1].first_shard), (2, 2));
    }

    #[test]
    fn the_fields_of_this_version_stay() {
        let history = trained();
        let value = serde_json::to_value(StatusDocument::new(&about(), &history, Some(&history.status), 9.0)).unwrap();
        let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        let documented = include_str!("../../../docs/page.md");
        for key in keys {
            assert!(documented.contains(&format!("`{key}`")), "docs/page.md does not say what `{key}` is");
        }
        for key in value["workers"][0].as_object().unwrap().keys().chain(value["training"].as_object().unwrap().keys()) {
            assert!(documented.contains(&format!("`{key}`")), "docs/page.md does not say what `{key}` is");
        }
        assert_eq!((&value["version"], &value["state"]), (&VERSION.into(), &"training".into()));
    }

    #[test]
    fn the_slow_one_is_the_one_that_others_wait_for() {
        let shares = |others| Some(TimeShares { computing: 1.0 - others, data: 0.0, others });
        let members =
            |waits: &[f64]| waits.iter().map(|w| MemberStatus { shares: shares(*w), ..MemberStatus::default() }).collect::<Vec<_>>();
        assert_eq!(slowest(&members(&[0.5, 0.05, 0.45])), Some(1));
        assert_eq!(slowest(&members(&[0.3, 0.2, 0.35])), None);
        assert_eq!(slowest(&[MemberStatus::default()]), None);
    }
}
