//! The training thread of a cluster's worker: opens its data, builds the model,
//! waits for a generation, trains in it, reports.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use common::config::Config;
use common::dataset::{self, DatasetInfo, SampleSource};
use common::ring::{BucketLayout, Encoding, Ring, RingPeer, RingSpec};
use common::run_dir::{Evaluation, StepMetrics, peak_rss_bytes};
use common::wire::messages::{Finished, Generation, ToCoordinator};
use tokio::task::JoinHandle;

use crate::checkpoints;
use crate::device::ComputeDevice;
use crate::exchange::Exchange;
use crate::job::Job;
use crate::join::Link;
use crate::remote::RemoteSource;
use crate::replica::Replica;
use crate::train::{Record, Snapshot, train};

/// What this worker was told, by the coordinator and on its command line.
pub struct Member {
    pub config: Config,
    pub info: DatasetInfo,
    /// Where the run starts.
    pub first_step: u64,
    pub data: Option<PathBuf>,
    pub device: String,
    pub cache_dir: PathBuf,
    pub cache_bytes: u64,
}

/// Runs one worker to its end. Failures are reported to the coordinator too.
pub fn run(member: Member, link: Link) -> Result<()> {
    let to_coordinator = link.to_coordinator.clone();
    let outcome = run_inner(member, link);
    if let Err(e) = &outcome {
        // The coordinator may be what failed; then nobody needs to know.
        let _ = to_coordinator.blocking_send(ToCoordinator::Failed { reason: format!("{e:#}") });
    }
    outcome
}

fn run_inner(member: Member, link: Link) -> Result<()> {
    let device = ComputeDevice::parse(&member.device)?;
    let source = open_source(&member, &link)?;
    device.set_threads(Job::threads(&member.config));
    let input = Job::input(&member.config, &member.info);
    let mut replica = Replica::new(&member.config.model, &member.config.train, input, member.config.seed, device)?;
    if member.first_step > 0 {
        let state = link.runtime.block_on(checkpoints::get(&link.bulk, member.first_step))?;
        replica.import(&state)?;
    }
    say(&link, ToCoordinator::Ready { device: device.describe() })?;

    let generation = link.generation.recv().map_err(|_| anyhow!("the coordinator ended the connection before the run began"))?;
    if generation.first_step != replica.step() {
        bail!("the generation starts at step {}, this worker is at step {}", generation.first_step, replica.step());
    }
    let job = Job::new(member.config, member.info, generation.rank, generation.members.len() as u32).map_err(|e| anyhow!(e))?;
    let layout = BucketLayout::new(replica.layout().total(), job.config.cluster.bucket_bytes);
    let ring = link.runtime.block_on(Ring::form(&link.ring_endpoint, ring_spec(&job, &generation, &layout)?))?;
    let mut exchange = Exchange::new(Some(ring), layout, job.reproducible());
    tracing::info!("rank {} of {}: shards {:?}", job.rank, job.world, job.shards());

    let mut record = Report { link: &link, rank: job.rank, upload: None };
    link.step.store(generation.first_step, Ordering::Relaxed);
    let step = train(&job, &mut replica, &mut exchange, &source, &mut record, generation.first_step)?;
    record.wait_for_upload()?;
    let bytes_sent = exchange.bytes_sent();
    if let Some(ring) = exchange.into_ring() {
        link.runtime.block_on(ring.close());
    }
    say(
        &link,
        ToCoordinator::Finished(Finished { step, weights_blake3: replica.weights_blake3(), bytes_sent, peak_rss_bytes: peak_rss_bytes() }),
    )
}

/// The local copy if there is one and it is the same data; the coordinator's
/// stream otherwise. Generated data needs neither.
fn open_source(member: &Member, link: &Link) -> Result<Arc<dyn SampleSource>> {
    let mut data = member.config.data.clone();
    if let Some(path) = &member.data {
        data.set_path(path.clone());
    } else if data.path().is_some() {
        tracing::info!("no --data: samples come from the coordinator");
        let remote = RemoteSource::new(member.info.clone(), link.bulk.clone(), link.runtime.clone(), &member.cache_dir, member.cache_bytes)
            .with_context(|| format!("could not make a cache in `{}`: choose another --cache-dir", member.cache_dir.display()))?;
        return Ok(Arc::new(remote));
    }
    Ok(dataset::open_matching(&data, member.config.seed, &member.info)?)
}

fn ring_spec(job: &Job, generation: &Generation, layout: &BucketLayout) -> Result<RingSpec> {
    let mut peers = Vec::with_capacity(generation.members.len());
    for (rank, member) in generation.members.iter().enumerate() {
        let Ok(addr) = member.addr.parse() else { bail!("the coordinator named `{}` as the address of rank {rank}", member.addr) };
        peers.push(RingPeer { rank: rank as u32, name: member.name.clone(), addr });
    }
    Ok(RingSpec {
        generation: generation.number,
        rank: job.rank,
        peers,
        layout: *layout,
        encoding: if job.config.train.reproducible { Encoding::Fixed } else { job.config.cluster.wire.into() },
        connections: job.config.cluster.connections,
        timeout: Duration::from_millis(job.config.cluster.timeout_ms),
    })
}

fn say(link: &Link, message: ToCoordinator) -> Result<()> {
    link.to_coordinator.blocking_send(message).map_err(|_| anyhow!("the connection to the coordinator is gone"))
}

/// Reports to the coordinator. Metrics and checkpoints are the same on every
/// rank, so rank 0 sends them for all.
struct Report<'a> {
    link: &'a Link,
    rank: u32,
    upload: Option<JoinHandle<Result<()>>>,
}

impl Report<'_> {
    /// A checkpoint is stored before the next one starts, so that at most one
    /// copy of the weights waits in memory.
    fn wait_for_upload(&mut self) -> Result<()> {
        match self.upload.take() {
            Some(upload) => self.link.runtime.block_on(upload)?,
            None => Ok(()),
        }
    }
}

impl Record for Report<'_> {
    fn step(&mut self, metrics: &StepMetrics) -> Result<()> {
        self.link.step.store(metrics.step + 1, Ordering::Relaxed);
        if self.rank == 0 { say(self.link, ToCoordinator::Step(metrics.clone())) } else { Ok(()) }
    }

    fn evaluation(&mut self, evaluation: &Evaluation) -> Result<()> {
        if self.rank == 0 { say(self.link, ToCoordinator::Evaluation(evaluation.clone())) } else { Ok(()) }
    }

    fn skipped(&mut self, name: &str, problem: &str) -> Result<()> {
        say(self.link, ToCoordinator::Skipped { name: name.to_owned(), problem: problem.to_owned() })
    }

    fn checkpoint(&mut self, export: &mut dyn FnMut() -> Result<Snapshot>) -> Result<()> {
        if self.rank == 0 {
            self.wait_for_upload()?;
            let (bulk, snapshot) = (self.link.bulk.clone(), export()?);
            self.upload = Some(self.link.runtime.spawn(async move { checkpoints::put(&bulk, snapshot).await }));
        }
        Ok(())
    }

    fn stop_requested(&self) -> bool {
        self.link.stop.load(Ordering::Relaxed)
    }
}
