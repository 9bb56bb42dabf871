//! A run as a page shows it: its record, followed, and its status where this process runs
//! it. What was found is published as one value, which readers take as it is: none of them
//! touches a file or waits for another.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, anyhow};
use common::config::Config;
use common::recorder::{Length, plan};
use common::run_dir::{RunFollower, RunView};
use common::status::Status;
use serde::Serialize;
use tokio::sync::watch;

use super::curve::Columns;
use super::document::{About, StatusDocument};
use super::history::History;
use super::predicted::Predicted;

/// How often the run is looked at, and its readers are told.
pub(super) const EVERY: Duration = Duration::from_millis(500);

/// Readers hear this often even if nothing has changed: so they know that it is so.
const AT_LEAST_EVERY: Duration = Duration::from_secs(10);

/// A run at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub status: StatusDocument,
    pub history: History,
}

/// What readers are told of a change.
#[derive(Serialize)]
struct Update<'a> {
    status: &'a StatusDocument,
    /// The points that have changed since the last update.
    curve: Columns,
    /// Whoever has other facts asks for them.
    facts: u64,
}

impl Snapshot {
    /// The update for readers that have the points before the place `from`.
    pub(super) fn update(&self, from: usize) -> Arc<str> {
        let update = Update { status: &self.status, curve: self.history.curve.columns(from), facts: self.history.facts };
        serde_json::to_string(&update).unwrap_or_else(|e| unreachable!("a status is plain data: {e}")).into()
    }

    /// The update for a reader that has just come.
    pub(super) fn first_update(&self) -> Arc<str> {
        self.update(self.history.curve.len().saturating_sub(1))
    }

    fn differs(&self, other: &Self) -> bool {
        let timeless = |status: &StatusDocument| StatusDocument { unix_seconds: 0.0, ..status.clone() };
        self.history.facts != other.history.facts || timeless(&self.status) != timeless(&other.status)
    }
}

/// Where readers find a run.
#[derive(Debug)]
pub(super) struct Feed {
    pub config_toml: String,
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    /// Each replaces the one before it: whoever is slow misses some.
    pub updates: watch::Sender<Arc<str>>,
}

/// Follows one run.
pub struct Source {
    about: About,
    follower: RunFollower,
    history: History,
    classes: Vec<String>,
    live: Option<watch::Receiver<Status>>,
    complained: bool,
}

impl Source {
    /// The run in `path`, which this process runs. Errors if the config does not fit the data
    /// that the run directory describes.
    pub fn live(path: &Path, status: watch::Receiver<Status>) -> Result<Self> {
        Ok(Self { live: Some(status), ..Self::recorded(path)? })
    }

    /// The run in `path`, by its record alone.
    pub fn recorded(path: &Path) -> Result<Self> {
        let view = RunView::open(path)?;
        let config: &Config = view.config();
        let length = Length::of(config, &plan(config, &view.data().info).map_err(|e| anyhow!(e))?);
        let epochs = length.steps.div_ceil(length.steps_per_epoch);
        let about = About { config: config.clone(), directory: path.display().to_string(), steps: length.steps, epochs };
        let history = History::new(length.steps, epochs);
        let classes = view.data().info.classes.clone();
        Ok(Self { about, follower: RunFollower::new(path), history, classes, live: None, complained: false })
    }

    /// Takes in some of what was added to the record; true if there is more.
    fn look(&mut self) -> bool {
        match self.follower.look() {
            Ok(mut added) => {
                let (more, journaled) = (added.more, !added.events.is_empty());
                match added.predictions.take().map(|predictions| Predicted::new(predictions, &self.classes)) {
                    Some(Ok(predicted)) => self.history.predicted(predicted),
                    Some(Err(problem)) => tracing::debug!("the page does not show the predictions of an evaluation: {problem}"),
                    None => {}
                }
                self.history.add(added, &self.about.config);
                if journaled && let Ok(steps) = self.follower.checkpoints() {
                    self.history.on_disk(&steps);
                }
                self.complained = false;
                more
            }
            Err(e) => {
                if !std::mem::replace(&mut self.complained, true) {
                    tracing::warn!("the page shows what was read before: {e}");
                }
                false
            }
        }
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        // The lock is held for a copy, so that no reader of the page delays the record.
        let live = self.live.as_ref().map(|status| status.borrow().clone());
        Arc::new(Snapshot { status: StatusDocument::new(&self.about, &self.history, live.as_ref(), now), history: self.history.clone() })
    }

    /// Begins to publish.
    pub(super) fn publish(self) -> (Feed, Publisher) {
        let snapshot = self.snapshot();
        let (updates, _) = watch::channel(snapshot.first_update());
        let (publish, receiver) = watch::channel(Arc::clone(&snapshot));
        let config_toml = self.about.config.to_toml();
        let told = Told { at: Instant::now(), points: 0, snapshot };
        let publisher = Publisher { source: Some(self), publish, updates: updates.clone(), told };
        (Feed { config_toml, snapshot: receiver, updates }, publisher)
    }
}

/// What readers were told last.
struct Told {
    at: Instant,
    points: usize,
    snapshot: Arc<Snapshot>,
}

/// Keeps a [`Feed`] up to date.
pub(super) struct Publisher {
    /// Away while it reads.
    source: Option<Source>,
    publish: watch::Sender<Arc<Snapshot>>,
    updates: watch::Sender<Arc<str>>,
    told: Told,
}

impl Publisher {
    /// Publishes until the sender of `ended` is gone, and the end of the record then.
    pub(super) async fn run(&mut self, mut ended: watch::Receiver<()>) {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let over = tokio::select! {
                _ = tick.tick() => false,
                _ = ended.changed() => true,
            };
            self.refresh().await;
            if over {
                return;
            }
        }
    }

    /// Reads what is new and publishes it; a long record in parts.
    async fn refresh(&mut self) {
        while let Some(mut source) = self.source.take() {
            // Files may take long: other tasks of this thread go on.
            let looked = tokio::task::spawn_blocking(move || {
                let more = source.look();
                (source.snapshot(), more, source)
            });
            let Ok((snapshot, more, source)) = looked.await else {
                tracing::error!("the page could not follow the run and shows what it knew");
                return;
            };
            self.source = Some(source);
            self.publish.send_replace(Arc::clone(&snapshot));
            if !more {
                return self.tell(snapshot);
            }
        }
    }

    fn tell(&mut self, snapshot: Arc<Snapshot>) {
        // A point that was not whole is sent again.
        let (points, told) = (snapshot.history.curve.len(), self.told.points.saturating_sub(1));
        let same = snapshot.history.curve.revision() == self.told.snapshot.history.curve.revision();
        if self.told.at.elapsed() < AT_LEAST_EVERY && !snapshot.differs(&self.told.snapshot) {
            return;
        }
        if self.updates.receiver_count() > 0 {
            self.updates.send_replace(snapshot.update(if same { told } else { points }));
        }
        self.told = Told { at: Instant::now(), points, snapshot };
    }
}
