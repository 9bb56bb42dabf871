//! The coordinator of one run: lets workers in, forms their ring, keeps the
//! run's files. It is not in the step: a ring trains on while this is busy.
//!
//! `serve` is the library's door. It takes a bound endpoint, so that a test
//! can run it in-process on any port.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use common::config::Config;
use common::dataset::SampleSource;
use common::net::enrolment::admit;
use common::net::{Alpn, Authority, Endpoint, Peer, worker_name};
use common::recorder::{Length, Recorder, plan};
use common::run_dir::{Event, Recovery, RunDir, Summary};
use common::wire::messages::{Generation, ToWorker};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::bulk::{self, BulkService};
use crate::membership::{Input, Membership, Output, Rules, WorkerId};
use crate::peer;

/// Inputs that may wait for the main loop before workers are held back.
const QUEUE: usize = 1024;

/// How long workers get to end by themselves when a run is over.
const GOODBYE: Duration = Duration::from_secs(3);

/// A run to serve.
pub struct Run {
    pub config: Config,
    pub source: Arc<dyn SampleSource>,
    pub run_dir: RunDir,
    /// Signs the certificates of workers that know its token's secret.
    pub authority: Arc<Authority>,
    /// Workers to wait for before the first step; at least `cluster.min_workers`.
    pub start_workers: u32,
    pub quiet: bool,
}

/// What connections tell the main loop.
#[derive(Debug)]
pub enum News {
    /// A control connection was accepted and said hello.
    Connected {
        worker: WorkerId,
        outbox: mpsc::Sender<ToWorker>,
        input: Input,
    },
    Membership(Input),
    Record(Fact),
}

/// What workers report for the record.
#[derive(Debug)]
pub enum Fact {
    Step(common::run_dir::StepMetrics),
    Evaluation(common::run_dir::Evaluation),
    Skipped { name: String, problem: String },
    CheckpointStored { step: u64 },
}

/// How a run went.
#[derive(Debug)]
pub struct Outcome {
    pub summary: Summary,
    pub run_dir: PathBuf,
    /// The run was stopped by a person before its last step.
    pub stopped: bool,
}

/// Serves `run` on `endpoint` until it is over. `shutdown` resolves once for
/// each time a person asks to stop.
pub async fn serve(run: Run, endpoint: Endpoint, mut shutdown: mpsc::Receiver<()>) -> Result<Outcome> {
    let Run { config, source, run_dir, authority, start_workers, quiet } = run;
    let plan = plan(&config, source.info()).map_err(|e| anyhow!(e))?;
    let length = Length::of(&config, &plan);
    let checkpoint = run_dir.newest_checkpoint()?;
    let first_step = checkpoint.as_ref().map_or(0, |c| c.step);
    if first_step >= length.steps {
        bail!("the run in `{}` is complete at step {first_step}: raise train.epochs to go on", run_dir.path().display());
    }
    let mut membership = Membership::new(Rules {
        start_workers: start_workers.max(config.cluster.min_workers),
        min_workers: config.cluster.min_workers,
        shards: config.train.shards,
        timeout: Duration::from_millis(config.cluster.timeout_ms),
        first_step,
        last_generation: run_dir.last_generation()?,
    });
    let files = run_dir.checkpoints();
    let mut recorder = Recorder::new(run_dir, &config, source.as_ref(), &plan, config.cluster.min_workers, first_step, quiet)?;
    recorder.event(&Event::RunStarted { name: config.name.clone(), step: first_step })?;

    let (news, mut inbox) = mpsc::channel(QUEUE);
    let shared = Arc::new(peer::Shared { config: config.clone(), dataset: source.info().into(), news: news.clone() });
    let bulk = Arc::new(BulkService::new(source, files, config.identity(), news));
    let mut outboxes: BTreeMap<WorkerId, mpsc::Sender<ToWorker>> = BTreeMap::new();
    let mut tick = tokio::time::interval(Duration::from_millis((config.cluster.heartbeat_ms / 2).max(10)));
    let mut next_worker: WorkerId = 0;
    let enrolled = Arc::new(AtomicU64::new(0));
    let mut conversations = JoinSet::new();
    let mut stops = 0;
    let mut ended: Option<Result<Vec<common::wire::messages::Finished>, String>> = None;
    let mut interrupted = false;
    let mut evaluated = first_step;
    let mut recovery = Recovering::default();

    let result = loop {
        let inputs = tokio::select! {
            peer = endpoint.accept() => {
                let Some(peer) = peer else { break Err(anyhow!("the network endpoint closed")) };
                match peer.alpn {
                    Alpn::Control => {
                        next_worker += 1;
                        conversations.spawn(peer::control(Arc::clone(&shared), peer, next_worker));
                    }
                    Alpn::Bulk => { tokio::spawn(bulk::serve(Arc::clone(&bulk), peer)); }
                    Alpn::Enrol => { tokio::spawn(enrol(Arc::clone(&authority), peer, Arc::clone(&enrolled))); }
                    Alpn::Ring => tracing::debug!("a peer asked the coordinator for a ring"),
                }
                Vec::new()
            }
            Some(news) = inbox.recv() => match news {
                News::Connected { worker, outbox, input } => { outboxes.insert(worker, outbox); vec![input] }
                News::Membership(input) => vec![input],
                News::Record(fact) => {
                    if let Fact::Step(metrics) = &fact {
                        recovery.stepped(metrics.step, &mut recorder);
                    }
                    if let Fact::Evaluation(evaluation) = &fact {
                        evaluated = evaluated.max(evaluation.step);
                    }
                    let stored = if let Fact::CheckpointStored { step } = &fact { Some(Input::Stored { step: *step }) } else { None };
                    record(&mut recorder, fact, &config)?;
                    stored.into_iter().collect()
                }
            },
            _ = tick.tick() => vec![Input::Tick],
            Some(()) = shutdown.recv() => {
                stops += 1;
                interrupted = true;
                if stops > 1 {
                    break Err(anyhow!("stopped at once; the newest checkpoint is kept"));
                }
                tracing::info!("stopping after this step with a checkpoint; once more to stop at once");
                vec![Input::StopRequested]
            }
        };
        for input in inputs {
            note(&mut recorder, &input)?;
            for output in membership.handle(Instant::now(), input) {
                match output {
                    Output::Refuse { worker, reason } => send(&outboxes, worker, ToWorker::Refused { reason }),
                    Output::Waiting { ready, needed } => tracing::info!("{ready} of {needed} workers are ready"),
                    Output::Lost { name, reason, silent } => {
                        tracing::warn!("{name} is lost: it {reason}");
                        recovery.lost(silent);
                    }
                    Output::End { members, generation, reason } => {
                        let end = ToWorker::End { generation, reason };
                        members.into_iter().for_each(|m| send(&outboxes, m, end.clone()));
                    }
                    Output::Yield { members, generation } => {
                        members.into_iter().for_each(|m| send(&outboxes, m, ToWorker::Yield { generation }));
                    }
                    Output::Spare { worker } => send(&outboxes, worker, ToWorker::Spare),
                    Output::Goodbye { worker } => send(&outboxes, worker, ToWorker::Goodbye),
                    Output::Drop { worker, reason } => send(&outboxes, worker, ToWorker::Dropped { reason }),
                    Output::Start { members, generation } => {
                        let generation = Generation { evaluated, ..generation };
                        recovery.started(generation.first_step);
                        recorder.generation(generation.members.len() as u32);
                        recorder.event(&Event::Generation {
                            generation: generation.number,
                            workers: generation.members.len() as u32,
                            step: generation.first_step,
                        })?;
                        announce(&outboxes, &members, &generation);
                    }
                    Output::Stop { members } => members.into_iter().for_each(|m| send(&outboxes, m, ToWorker::Stop)),
                    Output::Done { reports } => ended = Some(Ok(reports)),
                    Output::Fail { members, reason } => {
                        members.into_iter().for_each(|m| send(&outboxes, m, ToWorker::Abort { reason: reason.clone() }));
                        ended = Some(Err(reason));
                    }
                }
            }
        }
        if let Some(ended) = ended.take() {
            break ended.map_err(|reason| anyhow!(reason));
        }
    };
    // What was sent before the end has to be on the record before it is closed.
    while let Ok(news) = inbox.try_recv() {
        if let News::Record(fact) = news {
            record(&mut recorder, fact, &config)?;
        }
    }
    let path = recorder.run_dir().path().to_owned();
    let outcome = match result {
        Ok(reports) => {
            outboxes.keys().for_each(|&w| send(&outboxes, w, ToWorker::Goodbye));
            let stopped = interrupted && reports.iter().any(|r| r.step < length.steps);
            Ok(Outcome { summary: recorder.finish(&reports)?, run_dir: path, stopped })
        }
        Err(error) => {
            recorder.fail(&format!("{error:#}"));
            Err(error.context(format!(
                "the run did not finish; its files are in `{}`, and --resume goes on from its newest checkpoint",
                path.display()
            )))
        }
    };
    drop(outboxes);
    // Each conversation ends when its worker has read the last word.
    let farewell = async { while conversations.join_next().await.is_some() {} };
    if tokio::time::timeout(GOODBYE, farewell).await.is_err() {
        tracing::debug!("a worker did not take leave in time");
    }
    endpoint.close().await;
    outcome
}

/// Times how long the loss of a worker holds the run up.
#[derive(Default)]
struct Recovering {
    /// When somebody was lost, and for how long nothing had been heard of it then.
    lost: Option<(Instant, Duration)>,
    /// The first step of the generation that followed.
    first_step: Option<u64>,
}

impl Recovering {
    fn lost(&mut self, silent: Duration) {
        self.first_step = None;
        self.lost.get_or_insert((Instant::now(), silent));
    }

    fn started(&mut self, first_step: u64) {
        self.first_step = self.lost.map(|_| first_step);
    }

    /// A step is on the record.
    fn stepped(&mut self, step: u64, recorder: &mut Recorder) {
        if self.first_step.is_none_or(|first| step < first) {
            return;
        }
        self.first_step = None;
        if let Some((since, silent)) = self.lost.take() {
            let ms = |d: Duration| d.as_secs_f64() * 1e3;
            recorder.recovery(Recovery { detect_ms: ms(silent), resume_ms: ms(since.elapsed()) });
        }
    }
}

/// Gives a newcomer its certificate if it knows the token's secret.
async fn enrol(authority: Arc<Authority>, peer: Peer, enrolled: Arc<AtomicU64>) {
    match admit(peer, &authority, || worker_name(enrolled.fetch_add(1, Ordering::Relaxed) + 1)).await {
        Ok(name) => tracing::debug!("{name} has enrolled"),
        Err(e) => tracing::warn!("{e}"),
    }
}

fn send(outboxes: &BTreeMap<WorkerId, mpsc::Sender<ToWorker>>, worker: WorkerId, message: ToWorker) {
    if let Some(outbox) = outboxes.get(&worker)
        && outbox.try_send(message).is_err()
    {
        tracing::debug!("worker {worker} no longer takes messages");
    }
}

fn announce(outboxes: &BTreeMap<WorkerId, mpsc::Sender<ToWorker>>, members: &[WorkerId], generation: &Generation) {
    tracing::info!("generation {}: {} workers, from step {}", generation.number, members.len(), generation.first_step);
    for (rank, &member) in members.iter().enumerate() {
        send(outboxes, member, ToWorker::Generation(Generation { rank: rank as u32, ..generation.clone() }));
    }
}

fn record(recorder: &mut Recorder, fact: Fact, config: &Config) -> Result<()> {
    match fact {
        Fact::Step(metrics) => recorder.step(&metrics).context("could not record a step")?,
        Fact::Evaluation(evaluation) => recorder.evaluation(&evaluation)?,
        Fact::Skipped { name, problem } => recorder.skipped(&name, &problem),
        Fact::CheckpointStored { step } => {
            recorder.event(&Event::Checkpoint { step })?;
            recorder.run_dir().prune_checkpoints(config.train.keep_checkpoints as usize)?;
        }
    }
    Ok(())
}

/// Membership events that belong in the journal.
fn note(recorder: &mut Recorder, input: &Input) -> Result<()> {
    match input {
        Input::Joined { name, addr, .. } => recorder.event(&Event::WorkerJoined { name: name.clone(), addr: addr.clone() })?,
        Input::Failed { worker, reason } | Input::Left { worker, reason } => {
            recorder.event(&Event::WorkerLeft { name: format!("connection {worker}"), reason: reason.clone() })?;
        }
        _ => {}
    }
    Ok(())
}
