//! What has happened in a run, gathered from its record in bounded space. Pure.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use common::config::Config;
use common::metrics::Evaluation;
use common::plan::Ownership;
use common::run_dir::{Added, Dated, Event, SkippedSample};
use common::status::{MemberStatus, Status};
use serde::Serialize;

use super::curve::Curve;
use super::predicted::Predicted;

/// Events, checkpoints and skipped samples that are kept: the newest.
const EVENTS: usize = 200;
const CHECKPOINTS: usize = 20;
const SKIPPED: usize = 50;

/// Evaluations that are kept; from more, every second.
const EVALUATIONS: usize = 1024;

/// Workers that have joined and are in no ring yet: no more are timed.
const JOINING: usize = 1024;

/// The longest text of an event, in bytes: a worker's reason may be longer.
const LONGEST: usize = 400;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Happened {
    pub unix_seconds: f64,
    /// In the words of docs/page.md.
    pub kind: &'static str,
    pub text: String,
    /// How long it took or was waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
}

/// A checkpoint of the state after `step` steps.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Stored {
    pub step: u64,
    pub unix_seconds: f64,
    /// Whether it is still on disk.
    pub kept: bool,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum End {
    Finished { step: u64 },
    Failed { reason: String },
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    pub curve: Curve,
    pub evaluations: Vec<Evaluation>,
    pub events: VecDeque<Happened>,
    pub checkpoints: VecDeque<Stored>,
    pub skipped: VecDeque<SkippedSample>,
    /// Of the newest evaluation that has any.
    pub predicted: Option<Arc<Predicted>>,
    /// The lines of skipped.jsonl so far.
    pub skipped_listed: u64,
    /// When the run was started first, and last.
    pub started: Option<f64>,
    pub resumed: Option<f64>,
    /// When the newest event was.
    pub newest: Option<f64>,
    pub end: Option<End>,
    /// The status as far as the record tells it.
    pub status: Status,
    /// Raised with each change of anything but the curves.
    pub facts: u64,
    /// When each newcomer joined.
    joining: BTreeMap<String, f64>,
    /// Keeps every so many evaluations.
    seen: usize,
    stride: usize,
}

impl History {
    /// Of a run of this config over `steps` steps and `epochs` epochs.
    pub(super) fn new(steps: u64, epochs: u64) -> Self {
        Self { status: Status { steps, epochs, ..Status::default() }, stride: 1, ..Self::default() }
    }

    /// Adds what was added to the record.
    pub(super) fn add(&mut self, added: Added, config: &Config) {
        if added.metrics_anew {
            self.curve.clear();
            (self.evaluations, self.seen, self.stride) = (Vec::new(), 0, 1);
            (self.status.step, self.status.rates, self.status.evaluation) = (None, None, None);
            self.facts += 1;
        }
        for step in &added.steps {
            self.curve.add(step);
            self.status.stepped(step);
        }
        let facts = added.evaluations.len() + added.events.len() + added.skipped.len();
        self.facts += u64::from(facts > 0);
        added.evaluations.into_iter().for_each(|evaluation| self.evaluated(evaluation));
        added.events.into_iter().for_each(|event| self.happened(event, config));
        for sample in added.skipped {
            self.skipped_listed += 1;
            keep(&mut self.skipped, sample, SKIPPED);
        }
        self.status.skipped = self.skipped_listed;
    }

    /// Takes the predictions of an evaluation in place of those before.
    pub(super) fn predicted(&mut self, predicted: Predicted) {
        self.predicted = Some(Arc::new(predicted));
        self.facts += 1;
    }

    /// The checkpoints that are on disk, by their steps in order.
    pub(super) fn on_disk(&mut self, steps: &[u64]) {
        for stored in &mut self.checkpoints {
            let kept = steps.binary_search(&stored.step).is_ok();
            self.facts += u64::from(kept != stored.kept);
            stored.kept = kept;
        }
    }

    fn evaluated(&mut self, evaluation: Evaluation) {
        self.status.evaluation = Some(evaluation.clone());
        self.seen += 1;
        if !(self.seen - 1).is_multiple_of(self.stride) {
            return;
        }
        self.evaluations.push(evaluation);
        if self.evaluations.len() > EVALUATIONS {
            let mut place = 0;
            self.evaluations.retain(|_| {
                place += 1;
                (place - 1) % 2 == 0
            });
            self.stride *= 2;
        }
    }

    fn happened(&mut self, Dated { unix_seconds, event }: Dated, config: &Config) {
        self.newest = Some(unix_seconds);
        let mut tell = |kind, text: String, seconds| {
            let text = cut(text);
            keep(&mut self.events, Happened { unix_seconds, kind, text, seconds }, EVENTS);
        };
        match event {
            Event::RunStarted { step, .. } => {
                (self.end, self.resumed) = (None, Some(unix_seconds));
                self.started.get_or_insert(unix_seconds);
                (self.status.generation, self.status.members) = (0, Vec::new());
                let text = if step == 0 { "the run starts".to_owned() } else { format!("the run goes on after step {step}") };
                tell("start", text, None);
            }
            Event::Enrolled { .. } => {}
            Event::Revoked { token } => tell("revoked", format!("the token {token} is revoked"), None),
            Event::WorkerJoined { name, addr } => {
                tell("joined", format!("{name} joins from {addr}"), None);
                if self.joining.len() < JOINING {
                    self.joining.insert(name, unix_seconds);
                }
            }
            Event::WorkerLeft { name, reason } => {
                self.joining.remove(&name);
                tell("left", format!("{name} is gone: {reason}"), None);
            }
            Event::WorkerLost { name, reason, silent_ms } => {
                tell("lost", format!("{name} is lost: it {reason}"), Some(silent_ms / 1e3).filter(|silent| *silent >= 0.001));
            }
            Event::LeftOut { name, reason } => tell("left-out", format!("{name} is left out for a while: {reason}"), None),
            Event::Relayed { reason, .. } => tell("relayed", reason, None),
            Event::Generation { generation, workers, step, members, shards, speeds, .. } => {
                let newcomers = members.iter().filter_map(|m| Some((m.name.as_str(), unix_seconds - self.joining.get(&m.name)?)));
                let newcomers: Vec<(&str, f64)> = newcomers.collect();
                let waited = newcomers.iter().map(|(_, seconds)| *seconds).reduce(f64::max).filter(|seconds| *seconds >= 0.0);
                let names: Vec<&str> = newcomers.iter().map(|(name, _)| *name).take(8).collect();
                let with = if names.is_empty() { String::new() } else { format!("; new: {}", names.join(", ")) };
                let ownership = Ownership::recorded(&shards, workers as usize, config.train.shards).ok();
                let owned = ownership.map(|owned| format!("; shards {owned}")).unwrap_or_default();
                let plural = if workers == 1 { "" } else { "s" };
                tell("generation", format!("generation {generation}: {workers} worker{plural} from step {step}{owned}{with}"), waited);
                for member in &members {
                    self.joining.remove(&member.name);
                }
                self.end = None;
                let mut end = 0;
                let member = |(rank, member): (usize, &common::wire::messages::Member)| {
                    let start = end;
                    end += shards.get(rank).copied().unwrap_or_default();
                    MemberStatus {
                        name: member.name.clone(),
                        address: member.addr.to_string(),
                        shards: (start, end),
                        step,
                        speed: speeds.get(rank).copied().flatten(),
                        ..MemberStatus::default()
                    }
                };
                self.status.members = members.iter().enumerate().map(member).collect();
                self.status.generation = generation;
            }
            Event::Recovered(recovery) => {
                self.status.recovered(recovery);
                let seconds = (recovery.detect_ms + recovery.resume_ms) / 1e3;
                let text = format!(
                    "goes on after a loss: noticed after {:.2} s, the next step {:.2} s later",
                    recovery.detect_ms / 1e3,
                    recovery.resume_ms / 1e3
                );
                tell("recovered", text, Some(seconds));
            }
            Event::WentBack { from, to } => tell("went-back", format!("nobody holds step {from} any more: goes back to step {to}"), None),
            Event::Checkpoint { step } => {
                self.status.checkpoint = Some(step);
                keep(&mut self.checkpoints, Stored { step, unix_seconds, kept: true }, CHECKPOINTS);
            }
            Event::DataAccepted { differences } => tell("data", format!("goes on with other data: {differences}"), None),
            Event::RunFinished { step } => {
                self.end = Some(End::Finished { step });
                tell("finished", format!("the run ends after step {step}"), None);
            }
            Event::RunFailed { reason } => {
                tell("failed", format!("the run fails: {reason}"), None);
                self.end = Some(End::Failed { reason: cut(reason) });
            }
        }
    }
}

fn keep<T>(newest: &mut VecDeque<T>, value: T, most: usize) {
    if newest.len() == most {
        newest.pop_front();
    }
    newest.push_back(value);
}

fn cut(mut text: String) -> String {
    if text.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|&end| text.is_char_boundary(end)).unwrap_or_default();
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use common::metrics::Recovery;
    use common::wire::messages::Member;

    use super::*;
    use crate::page::curve::tests::step;

    pub(in crate::page) fn config() -> Config {
        let text = "name = \"t\"\n[model]\nkind = \"mlp\"\n[data]\nkind = \"xor\"\n[train]\nglobal_batch = 4\nshards = 4\n";
        Config::parse(text, "test", &[]).unwrap()
    }

    pub(in crate::page) fn dated(unix_seconds: f64, event: Event) -> Dated {
        Dated { unix_seconds, event }
    }

    pub(in crate::page) fn generation(number: u64, names: &[&str], step: u64) -> Event {
        let members: Vec<Member> =
            names.iter().map(|name| Member { name: (*name).to_owned(), addr: ([10, 0, 0, 7], 9).into(), others: Vec::new() }).collect();
        let workers = members.len() as u32;
        let shards = vec![4 / workers; workers as usize];
        let speeds = vec![Some(10.0); workers as usize];
        Event::Generation { generation: number, workers, step, members, dense: None, shards, speeds }
    }

    fn told(history: &History) -> Vec<(&'static str, Option<f64>)> {
        history.events.iter().map(|event| (event.kind, event.seconds)).collect()
    }

    #[test]
    fn a_loss_and_what_followed_are_told_with_how_long_they_took() {
        let mut history = History::new(10, 1);
        let joined = |name: &str| Event::WorkerJoined { name: name.to_owned(), addr: ([10, 0, 0, 7], 9).into() };
        let events = vec![
            dated(100.0, Event::RunStarted { name: "t".to_owned(), step: 0 }),
            dated(101.0, joined("worker-1")),
            dated(101.5, joined("worker-2")),
            dated(103.0, generation(1, &["worker-1", "worker-2"], 0)),
            dated(110.0, Event::WorkerLost { name: "worker-2".to_owned(), reason: "was silent".to_owned(), silent_ms: 1250.0 }),
            dated(110.1, generation(2, &["worker-1"], 5)),
            dated(110.4, Event::Recovered(Recovery { detect_ms: 1250.0, resume_ms: 400.0 })),
        ];
        history.add(Added { events, steps: (0..6).map(|n| step(n, 1.0)).collect(), ..Added::default() }, &config());
        let expected = [
            ("start", None),
            ("joined", None),
            ("joined", None),
            ("generation", Some(2.0)),
            ("lost", Some(1.25)),
            ("generation", None),
            ("recovered", Some(1.65)),
        ];
        assert_eq!(told(&history), expected);
        assert!(history.events[3].text.contains("2 workers from step 0; shards 2, 2; new: worker-1, worker-2"), "{:?}", history.events[3]);
        assert_eq!((history.status.generation, history.status.members.len(), history.status.recoveries), (2, 1, 1));
        assert_eq!(history.status.members[0].shards, (0, 4));
        assert_eq!((history.started, history.end.clone()), (Some(100.0), None));
        let ended = dated(120.0, Event::RunFailed { reason: "the loss is NaN".to_owned() });
        history.add(Added { events: vec![ended], ..Added::default() }, &config());
        assert_eq!(history.end, Some(End::Failed { reason: "the loss is NaN".to_owned() }));
    }

    #[test]
    fn a_record_without_end_is_kept_in_bounded_space() {
        let mut history = History::new(10, 1);
        let long = "x".repeat(5000);
        for n in 0..3000u64 {
            let left = Event::LeftOut { name: long.clone(), reason: long.clone() };
            let events = vec![dated(n as f64, left), dated(n as f64, Event::Checkpoint { step: n })];
            let evaluations = vec![Evaluation { step: n, epoch: n, loss: 1.0, top1: 0.5, top5: 1.0, samples: 4 }];
            let skipped = vec![SkippedSample { step: n, sample: n.to_string(), problem: String::new() }];
            history.add(Added { events, evaluations, skipped, ..Added::default() }, &config());
        }
        assert_eq!((history.events.len(), history.checkpoints.len(), history.skipped.len()), (EVENTS, CHECKPOINTS, SKIPPED));
        assert!(history.events.iter().all(|event| event.text.len() < LONGEST + 4));
        assert!((EVALUATIONS / 2..=EVALUATIONS).contains(&history.evaluations.len()));
        assert!(history.evaluations.is_sorted_by_key(|e| e.step) && history.evaluations[0].step == 0);
        assert_eq!((history.skipped_listed, history.status.checkpoint), (3000, Some(2999)));
        let before = history.facts;
        history.on_disk(&[2990, 2999]);
        assert_eq!(history.checkpoints.iter().filter(|c| c.kept).map(|c| c.step).collect::<Vec<_>>(), [2990, 2999]);
        assert!(history.facts > before);
    }

    #[test]
    fn metrics_that_were_written_anew_replace_those_before() {
        let mut history = History::new(10, 1);
        history.add(Added { steps: (0..8).map(|n| step(n, 1.0)).collect(), ..Added::default() }, &config());
        let revision = history.curve.revision();
        let again = Added { metrics_anew: true, steps: (0..5).map(|n| step(n, 2.0)).collect(), ..Added::default() };
        history.add(again, &config());
        assert_eq!((history.curve.len(), history.curve.revision()), (5, revision + 1));
        assert_eq!(history.status.step.map(|m| m.step), Some(4));
    }
}
