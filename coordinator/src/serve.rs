//! The coordinator of one run: lets workers in, forms their ring, keeps the
//! run's files. It is not in the step: a ring trains on while this is busy.
//!
//! `serve` is the library's door. It takes a bound endpoint, so that a test
//! can run it in-process on any port.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use common::audit::Trained;
use common::config::Config;
use common::dataset::SampleSource;
use common::net::enrolment::admit;
use common::net::quiet::Quiet;
use common::net::{Alpn, Authority, Endpoint, Peer};
use common::recorder::{Length, Recorder, plan};
use common::run_dir::{Evaluation, Event, RunDir, StepMetrics, Summary};
use common::wire::messages::ToWorker;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::bulk::{self, BulkService};
use crate::desk::Desk;
use crate::limits::Limits;
use crate::membership::{Input, Membership, Rules, WorkerId};
use crate::peer;
use crate::roster::Roster;

/// Inputs that may wait for the main loop before workers are held back.
const QUEUE: usize = 1024;

/// How long workers get to end by themselves when a run is over.
const GOODBYE: Duration = Duration::from_secs(3);

/// How soon a token that is revoked is heard of.
const LOOK_AT_TOKENS: Duration = Duration::from_secs(1);

/// A run to serve.
pub struct Run {
    pub config: Config,
    pub source: Arc<dyn SampleSource>,
    pub run_dir: RunDir,
    /// Signs the certificates of workers that know its token's secret.
    pub authority: Arc<Authority>,
    /// Workers to wait for before the first step; at least `cluster.min_workers`.
    pub start_workers: u32,
    /// Workers of an earlier coordinator may still train; those that this process
    /// starts itself never do.
    pub may_return: bool,
    pub quiet: bool,
}

/// What connections tell the main loop.
#[derive(Debug)]
pub enum News {
    /// A control connection was accepted and said hello.
    Connected {
        worker: WorkerId,
        name: String,
        outbox: mpsc::Sender<ToWorker>,
        input: Input,
    },
    Membership(Input),
    Record(WorkerId, Fact),
    /// A checkpoint is on disk.
    Stored {
        step: u64,
    },
    /// A newcomer has proved the secret of this token, and needs a name.
    Enrol {
        token: String,
        name: oneshot::Sender<String>,
    },
}

/// What comes from outside of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// A person asks to stop; the second time means at once.
    Stop,
    /// The process of the worker that prefers this rank has ended: nobody needs to
    /// wait until it is missed.
    Ended { preferred_rank: u32 },
}

/// What workers report for the record.
#[derive(Debug)]
pub enum Fact {
    Step { generation: u64, metrics: StepMetrics },
    Evaluation(Evaluation),
    Skipped { step: u64, name: String, problem: String },
    Trained(Trained),
}

/// How a run went.
#[derive(Debug)]
pub struct Outcome {
    pub summary: Summary,
    pub run_dir: PathBuf,
    /// The run was stopped by a person before its last step.
    pub stopped: bool,
}

/// Serves `run` on `endpoint` until it is over.
pub async fn serve(run: Run, endpoint: Endpoint, mut told: mpsc::Receiver<Told>) -> Result<Outcome> {
    let Run { config, source, run_dir, authority, start_workers, may_return, quiet } = run;
    let plan = plan(&config, source.info()).map_err(|e| anyhow!(e))?;
    let length = Length::of(&config, &plan);
    let checkpoint = run_dir.newest_checkpoint()?;
    let first_step = checkpoint.as_ref().map_or(0, |c| c.step);
    let last = run_dir.last_generation()?;
    if first_step >= length.steps && !last.under_way {
        bail!("the run in `{}` is complete at step {first_step}: raise train.epochs to go on", run_dir.path().display());
    }
    let rules = Rules {
        start_workers: start_workers.max(config.cluster.min_workers),
        min_workers: config.cluster.min_workers,
        shards: config.train.shards,
        timeout: Duration::from_millis(config.cluster.timeout_ms),
        stall: Duration::from_millis(config.cluster.stall_ms),
        first_step,
        last_generation: last.number,
    };
    let expected = if may_return && last.under_way { last.members.as_slice() } else { &[] };
    if !expected.is_empty() {
        tracing::info!("generation {} may still train: its {} workers are expected back", last.number, expected.len());
    }
    let mut membership = Membership::returning(rules, expected, Instant::now());
    let mut next_worker: WorkerId = expected.len() as u64;
    let roster = Arc::new(Roster::new(authority.tokens().clone(), &run_dir.events()?));
    let files = run_dir.checkpoints();
    let recorded = Arc::new(AtomicU64::new(0));
    let recorder = Recorder::new(run_dir, &config, source.as_ref(), &plan, config.cluster.min_workers, quiet)?;
    let mut desk = Desk::new(recorder, config.train.keep_checkpoints as usize, &last, Arc::clone(&recorded), Arc::clone(&roster));
    desk.recorder.event(&Event::RunStarted { name: config.name.clone(), step: first_step });

    let (news, mut inbox) = mpsc::channel(QUEUE);
    let limits = Limits::new(&config, source.info(), length.steps);
    let shared = Arc::new(peer::Shared { config: config.clone(), dataset: source.info().into(), limits, recorded, news: news.clone() });
    let bulk = Arc::new(BulkService::new(source, files, config.identity(), news.clone(), Arc::clone(&roster), limits));
    let mut tick = tokio::time::interval(Duration::from_millis((config.cluster.heartbeat_ms / 2).max(10)));
    let mut look_at_tokens = tokio::time::interval(LOOK_AT_TOKENS);
    let mut conversations = JoinSet::new();
    let complaints = Arc::new(Quiet::default());
    let mut stops = 0;

    let result = 'run: loop {
        let inputs: Vec<Input> = tokio::select! {
            peer = endpoint.accept() => {
                let Some(peer) = peer else { break Err(anyhow!("the network endpoint closed")) };
                match peer.alpn {
                    Alpn::Control | Alpn::Bulk if peer.name.as_deref().is_some_and(|name| roster.is_revoked(name)) => {
                        peer.connection.close(1u32.into(), b"the token of this worker was revoked");
                    }
                    Alpn::Control => {
                        next_worker += 1;
                        conversations.spawn(peer::control(Arc::clone(&shared), peer, next_worker));
                    }
                    Alpn::Bulk => { tokio::spawn(bulk::serve(Arc::clone(&bulk), peer)); }
                    Alpn::Enrol => { tokio::spawn(enrol(Arc::clone(&authority), peer, news.clone(), Arc::clone(&complaints))); }
                    Alpn::Ring => tracing::debug!("a peer asked the coordinator for a ring"),
                }
                Vec::new()
            }
            Some(news) = inbox.recv() => match news {
                News::Connected { worker, name, outbox, input } => { desk.connected(worker, name, outbox); vec![input] }
                News::Membership(input) => vec![input],
                News::Record(worker, fact) => { desk.record(worker, fact); Vec::new() }
                News::Stored { step } => vec![desk.stored(step)],
                News::Enrol { token, name } => {
                    let given = roster.admit(&token);
                    desk.recorder.event(&Event::Enrolled { name: given.clone(), token });
                    // It may have given up waiting: then the name goes unused.
                    let _ = name.send(given);
                    Vec::new()
                }
            },
            _ = tick.tick() => vec![Input::Tick],
            _ = look_at_tokens.tick() => {
                let revoked = roster.refresh();
                revoked.iter().flat_map(|name| desk.expel(name, "its token was revoked")).collect()
            }
            Some(told) = told.recv() => match told {
                Told::Ended { preferred_rank } => vec![Input::Ended { preferred_rank }],
                Told::Stop if stops > 0 => break Err(anyhow!("stopped at once; the newest checkpoint is kept")),
                Told::Stop => {
                    stops += 1;
                    tracing::info!("stopping after this step with a checkpoint; once more to stop at once");
                    vec![Input::StopRequested]
                }
            }
        };
        for input in inputs {
            desk.note(&input);
            for output in membership.handle(Instant::now(), input) {
                if let Some(ended) = desk.carry_out(output) {
                    break 'run ended.map_err(|reason| anyhow!(reason));
                }
            }
        }
    };
    // What was sent before the end has to be on the record before it is closed.
    while let Ok(news) = inbox.try_recv() {
        match news {
            News::Record(worker, fact) => desk.record(worker, fact),
            News::Stored { step } => _ = desk.stored(step),
            _ => {}
        }
    }
    if result.is_ok() {
        desk.dismiss();
    }
    let recorder = desk.close();
    let path = recorder.run_dir().path().to_owned();
    let outcome = match result {
        Ok(reports) => {
            let stopped = stops > 0 && reports.iter().any(|r| r.step < length.steps);
            recorder.finish(&reports).map(|summary| Outcome { summary, run_dir: path, stopped }).map_err(Into::into)
        }
        Err(error) => {
            recorder.fail(&format!("{error:#}"));
            Err(error.context(format!(
                "the run did not finish; its files are in `{}`, and --resume goes on from its newest checkpoint",
                path.display()
            )))
        }
    };
    // Each conversation ends when its worker has read the last word.
    let farewell = async { while conversations.join_next().await.is_some() {} };
    if tokio::time::timeout(GOODBYE, farewell).await.is_err() {
        tracing::debug!("a worker did not take leave in time");
    }
    endpoint.close().await;
    outcome
}

/// Gives a newcomer its certificate if it knows a token's secret.
async fn enrol(authority: Arc<Authority>, peer: Peer, news: mpsc::Sender<News>, complaints: Arc<Quiet>) {
    let over = |_| "the run is over".to_owned();
    let name = async |token| {
        let (name, given) = oneshot::channel();
        news.send(News::Enrol { token, name }).await.map_err(|_| "the run is over".to_owned())?;
        given.await.map_err(over)
    };
    match admit(peer, &authority, name).await {
        Ok(name) => tracing::debug!("{name} has enrolled"),
        Err(e) => complaints.warn(&e),
    }
}
