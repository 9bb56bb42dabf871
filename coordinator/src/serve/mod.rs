//! The coordinator of one run: lets workers in, forms their ring, keeps the run's
//! files. It takes no part in a step: the ring trains on while the coordinator is
//! busy.
//!
//! `serve` is the library's entry point. It takes a bound endpoint, so that a test
//! can run it in-process on any port. Its main loop only decides: each connection is
//! read by a task of its own, which timestamps what it reads, and the record is
//! written by a thread of its own.

mod control;
mod effects;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use common::config::Config;
use common::dataset::{DatasetInfo, SampleSource};
use common::dense::Factored;
use common::diagnosis::Diagnoses;
use common::net::enrolment::admit;
use common::net::rate_limited_log::RateLimitedLog;
use common::net::{Alpn, Authority, Endpoint, Peer};
use common::recorder::{Length, Recorder, plan};
use common::run_dir::{Event, RunDir, Summary};
use common::status::Status;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::admissions::{Admissions, REVOKED};
use crate::bulk::{self, BulkService};
use crate::inbox::{Inbox, LauncherEvent, News, Step, after_news};
use crate::limits::Limits;
use crate::membership::{Input, Lineage, Membership, Rules, WorkerId};
use crate::page::{self, Page, Source};
use crate::record_writer::RecordWriter;
use crate::relay::Relay;
use effects::{Effects, RunEnd};

/// Inputs that may wait for the main loop before workers are held back.
const QUEUE: usize = 1024;

/// How long workers get to end by themselves when a run is over.
const GOODBYE: Duration = Duration::from_secs(3);

/// How often the token files are checked for revoked tokens.
const LOOK_AT_TOKENS: Duration = Duration::from_secs(1);

/// A run to serve.
pub struct Run {
    pub config: Config,
    pub source: Arc<dyn SampleSource>,
    pub run_dir: RunDir,
    /// Signs the certificates of workers that know the secret of one of its tokens.
    pub authority: Arc<Authority>,
    /// Workers to wait for before the first step; at least `cluster.min_workers`.
    pub start_workers: u32,
    /// Workers of an earlier coordinator may still be training. Workers that the
    /// coordinator process starts itself never are.
    pub may_return: bool,
    /// Shows the run, if there is one.
    pub page: Option<Page>,
    pub quiet: bool,
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
pub async fn serve(run: Run, endpoint: Endpoint, mut launcher: mpsc::Receiver<LauncherEvent>) -> Result<Outcome> {
    let Run { config, source, run_dir, authority, start_workers, may_return, page, quiet } = run;
    let path = run_dir.path().to_owned();
    let plan = plan(&config, source.info()).map_err(|e| anyhow!(e))?;
    let length = Length::of(&config, &plan);
    let weights = run_dir.keep_weights(&config)?;
    let checkpoint = run_dir.newest_checkpoint()?;
    let first_step = checkpoint.as_ref().map_or(0, |c| c.step);
    let last = run_dir.last_generation()?;
    if first_step >= length.steps && !last.under_way {
        bail!("the run in `{}` is complete at step {first_step}: raise train.epochs to go on", run_dir.path().display());
    }
    let events = run_dir.events()?;
    let expected = if may_return && last.under_way { last.members.as_slice() } else { &[] };
    if !expected.is_empty() {
        tracing::info!("generation {} may still train: its {} workers are expected back", last.number, expected.len());
    }
    let admissions = Arc::new(Admissions::new(authority.tokens().clone(), &events));
    admissions.set_members(&last.members);
    let files = run_dir.checkpoints();
    let limits = Limits::new(&config, source.info(), length.steps);
    let mut recorder = Recorder::new(run_dir, &config, source.as_ref(), &plan, config.cluster.min_workers, quiet)?;
    let rules = Rules {
        recorded: if expected.is_empty() { first_step } else { recorder.recorded().0 },
        ..rules(&config, source.info(), &limits, length, start_workers, [first_step, last.number])
    };
    let mut membership = Membership::returning(rules, &last, expected, lineage(&events), Instant::now());
    let mut next_worker: WorkerId = expected.len() as u64;
    recorder.event(&Event::RunStarted { name: config.name.clone(), step: first_step });
    let record = RecordWriter::start(recorder)?;
    let page = page.and_then(|page| show(page, &path, record.status().subscribe()));

    let (news, mut inbox) = mpsc::channel(QUEUE);
    let to_loop = Inbox(news.clone());
    let shared = Arc::new(control::ControlContext {
        config: config.clone(),
        dataset: source.info().into(),
        limits,
        recorded: record.recorded(),
        places: record.places(),
        admissions: Arc::clone(&admissions),
        inbox: to_loop.clone(),
    });
    let committed = Arc::new(AtomicU64::new(first_step));
    let on_alive: bulk::OnAlive = {
        let to_loop = to_loop.clone();
        // May be dropped if the main loop is behind: its queue then has news of this
        // worker anyway.
        Arc::new(move |name: &str| to_loop.try_send(News::Alive { name: name.to_owned() }))
    };
    let relay = Arc::new(Relay::new(Arc::clone(&on_alive)));
    relay.set_members(&last.members);
    let bulk = BulkService::new(&config, source, files, to_loop.clone(), Arc::clone(&admissions), limits, Arc::clone(&committed));
    let bulk = Arc::new(bulk.beginning_with(weights).reporting_to(on_alive).showing_to(record.pictures()));
    let mut effects = Effects::new(record, news, last.number, Arc::clone(&admissions), Arc::clone(&relay), &config);
    let mut tick = tokio::time::interval(Duration::from_millis((config.cluster.heartbeat_ms / 2).max(10)));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let watching = tokio::spawn(watch_tokens(Arc::clone(&admissions), to_loop.clone()));
    let mut conversations = JoinSet::new();
    let complaints = Arc::new(RateLimitedLog::default());
    let diagnoses = Arc::new(Diagnoses::default());
    let mut stops = 0;
    // Inputs are handled in the order of their timestamps.
    let mut clock = Instant::now();

    let result = 'run: loop {
        let mut batch: Vec<(Instant, Step)> = Vec::new();
        tokio::select! {
            peer = endpoint.accept() => {
                let Some(peer) = peer else { break Err(anyhow!("the network endpoint closed")) };
                match peer.alpn {
                    Alpn::Control | Alpn::Bulk | Alpn::Relay if peer.name.as_deref().is_some_and(|name| admissions.is_revoked(name)) => {
                        peer.connection.close(1u32.into(), REVOKED.as_bytes());
                    }
                    Alpn::Control => {
                        next_worker += 1;
                        conversations.spawn(control::control(Arc::clone(&shared), peer, next_worker));
                    }
                    Alpn::Bulk => { tokio::spawn(bulk::serve(Arc::clone(&bulk), peer)); }
                    Alpn::Relay if config.cluster.relay => { tokio::spawn(Arc::clone(&relay).serve(peer)); }
                    Alpn::Relay => peer.connection.close(1u32.into(), b"cluster.relay is false"),
                    Alpn::Enrol => { tokio::spawn(enrol(Arc::clone(&authority), peer, to_loop.clone(), Arc::clone(&complaints))); }
                    Alpn::Doctor => {
                        let (diagnoses, authority, trains) = (Arc::clone(&diagnoses), Arc::clone(&authority), admissions.has_members());
                        let complaints = Arc::clone(&complaints);
                        tokio::spawn(async move {
                            let from = peer.connection.remote_address();
                            if let Err(e) = diagnoses.serve(peer, &authority, trains).await {
                                complaints.warn(&format!("a visitor at {from} is sent away: {e}"));
                            }
                        });
                    }
                    Alpn::Ring => tracing::debug!("a peer asked the coordinator for a ring"),
                }
            }
            Some((at, news)) = inbox.recv() => batch.push((at, Step::News(news))),
            _ = tick.tick() => batch = after_news(&mut inbox, Instant::now(), Input::Tick),
            Some(event) = launcher.recv() => match event {
                LauncherEvent::Ended { preferred_rank } => batch = after_news(&mut inbox, Instant::now(), Input::Ended { preferred_rank }),
                LauncherEvent::Leave { name } => {
                    let leaving = effects.worker(&name).map(|worker| Input::Leaving { worker });
                    tracing::info!("{name} is asked to leave after this step");
                    batch = leaving.into_iter().flat_map(|input| after_news(&mut inbox, Instant::now(), input)).collect();
                }
                LauncherEvent::StopWithCheckpoint if stops > 0 => {}
                LauncherEvent::Stop if stops > 0 => break Err(anyhow!("stopped at once; {}", membership.kept())),
                LauncherEvent::Stop | LauncherEvent::StopWithCheckpoint => {
                    stops += 1;
                    tracing::info!("stopping after this step with a checkpoint; once more to stop at once");
                    batch = after_news(&mut inbox, Instant::now(), Input::StopRequested);
                }
            }
        }
        for (at, step) in batch {
            clock = clock.max(at);
            let inputs = match step {
                Step::Input(input) => vec![input],
                Step::News(news) => hear(&mut effects, &admissions, membership.lineage(), clock, news),
            };
            for input in inputs {
                if let Some(ended) = decide(&mut membership, &mut effects, clock, input) {
                    break 'run ended.map_err(|reason| anyhow!(reason));
                }
            }
        }
        committed.store(membership.committed(), Ordering::Relaxed);
    };
    watching.abort();
    // Everything sent before the end has to be on the record before the record is closed.
    while let Ok((at, news)) = inbox.try_recv() {
        match news {
            News::Report(worker, fact, place) => effects.report(at, worker, fact, place, membership.lineage()),
            News::Stored { step } => _ = effects.stored(step),
            _ => {}
        }
    }
    if result.is_ok() {
        effects.dismiss();
    }
    let recorder = effects.close().await?;
    let outcome = match result {
        Ok(reports) => {
            let stopped = stops > 0 && reports.iter().any(|r| r.step < length.steps);
            recorder.finish(&reports).map(|summary| Outcome { summary, run_dir: path, stopped }).map_err(Into::into)
        }
        Err(error) => {
            recorder.fail(&format!("{error:#}"));
            Err(error.context(format!(
                "the run did not finish; its files are in `{}`, and --resume goes on from its newest checkpoint, if it has one",
                path.display()
            )))
        }
    };
    if let Some(page) = page {
        page.finish().await;
    }
    // Each conversation ends when its worker has read the last message.
    let farewell = async { while conversations.join_next().await.is_some() {} };
    if tokio::time::timeout(GOODBYE, farewell).await.is_err() {
        tracing::debug!("a worker did not take leave in time");
    }
    endpoint.close().await;
    outcome
}

/// Starts the run's page. A page that fails is missed, and nothing else.
fn show(page: Page, run: &Path, status: watch::Receiver<Status>) -> Option<page::Running> {
    let shown = Source::live(run, status).and_then(|source| Ok(page.start(vec![source])?));
    shown.inspect_err(|e| tracing::warn!("the run goes on without a page: {e:#}")).ok()
}

/// Gives one input to the membership, and carries out its outputs.
fn decide(membership: &mut Membership, effects: &mut Effects, at: Instant, input: Input) -> Option<RunEnd> {
    effects.note(&input);
    membership.handle(at, input).into_iter().find_map(|output| effects.carry_out(at, output))
}

/// Handles one piece of news; returns the inputs for the membership.
fn hear(effects: &mut Effects, admissions: &Arc<Admissions>, lineage: &Lineage, at: Instant, news: News) -> Vec<Input> {
    match news {
        News::Connected { worker, name, outbox, input } => {
            let revoked = admissions.is_revoked(&name);
            effects.connected(worker, name.clone(), outbox);
            // The token may have been revoked since the worker sent its hello.
            if revoked { effects.expel(&name, REVOKED) } else { vec![input] }
        }
        // A worker whose token was revoked meanwhile must not be in the next ring.
        News::Membership(input @ Input::Ready { worker, .. }) => {
            let revoked = effects.name(worker).filter(|name| admissions.is_revoked(name)).map(str::to_owned);
            revoked.map_or_else(|| vec![input], |name| effects.expel(&name, REVOKED))
        }
        News::Membership(input) => vec![input],
        News::Device(worker, device) => {
            effects.describe(worker, device);
            Vec::new()
        }
        News::Spends(worker, shares) => {
            effects.spends(worker, shares);
            Vec::new()
        }
        News::Report(worker, fact, place) => {
            effects.report(at, worker, fact, place, lineage);
            Vec::new()
        }
        News::Alive { name } => effects.worker(&name).map(|worker| Input::Alive { worker }).into_iter().collect(),
        News::Stored { step } => vec![effects.stored(step)],
        News::Recorded { members, generation } => {
            effects.started(&members, &generation);
            Vec::new()
        }
        News::Enrol { token, name } => {
            effects.enrol(admissions, token, name);
            Vec::new()
        }
        News::Revoked { names, tokens } => {
            tokens.into_iter().for_each(|token| effects.event(Event::Revoked { token }));
            let gone = |name: &String| Input::Revoked { name: name.clone() };
            names.iter().flat_map(|name| effects.expel(name, "its token was revoked").into_iter().chain([gone(name)])).collect()
        }
    }
}

/// The rules of the run that a config and its data imply.
fn rules(
    config: &Config,
    info: &DatasetInfo,
    limits: &Limits,
    length: Length,
    start_workers: u32,
    [first_step, last_generation]: [u64; 2],
) -> Rules {
    let cluster = &config.cluster;
    let input = info.input(config.data.pixels.image_size);
    Rules {
        start_workers: start_workers.max(cluster.min_workers),
        min_workers: cluster.min_workers,
        shards: config.train.shards,
        balance: cluster.balance,
        steps_per_epoch: length.steps_per_epoch,
        steps: length.steps,
        timeout: Duration::from_millis(cluster.timeout_ms),
        stall: Duration::from_millis(cluster.stall_ms),
        rejoin: Duration::from_millis(cluster.rejoin_ms),
        handover: Duration::from_millis(cluster.handover_ms),
        factors: !Factored::of(config, input).layers.is_empty(),
        reproducible: config.train.reproducible,
        state_bytes: limits.state_bytes,
        first_step,
        last_generation,
        recorded: first_step,
    }
}

/// The generations in a journal.
fn lineage(events: &[Event]) -> Lineage {
    Lineage::of(events.iter().filter_map(|event| match event {
        Event::Generation { generation, step, members, .. } => Some((*generation, *step, members.as_slice())),
        _ => None,
    }))
}

/// Looks for revoked tokens. They are in files, so this does not run on the main loop.
async fn watch_tokens(admissions: Arc<Admissions>, inbox: Inbox) {
    loop {
        tokio::time::sleep(LOOK_AT_TOKENS).await;
        let looking = Arc::clone(&admissions);
        let Ok(names) = tokio::task::spawn_blocking(move || looking.refresh()).await else { continue };
        let tokens = admissions.revocations_to_record();
        if names.is_empty() && tokens.is_empty() {
            continue;
        }
        if !inbox.send(News::Revoked { names, tokens }).await {
            return;
        }
    }
}

/// Gives a newcomer its certificate if it knows a token's secret.
async fn enrol(authority: Arc<Authority>, peer: Peer, inbox: Inbox, complaints: Arc<RateLimitedLog>) {
    let name = async |token| {
        let (name, given) = oneshot::channel();
        if !inbox.send(News::Enrol { token, name }).await {
            return Err("the run is over".to_owned());
        }
        given.await.map_err(|_| "the coordinator cannot record it now; its disk may be full: try again".to_owned())
    };
    match admit(peer, &authority, name).await {
        Ok(name) => tracing::debug!("{name} has enrolled"),
        Err(e) => complaints.warn(&e),
    }
}
