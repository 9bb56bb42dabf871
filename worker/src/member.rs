//! The training thread of a cluster's worker: opens its data, builds the model,
//! and trains in one generation after the other until the run is over. Between
//! two generations it holds nothing but its replica.

mod report;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use common::config::Config;
use common::dataset::{self, DatasetInfo, SampleSource};
use common::ring::{BucketLayout, Encoding, Ring, RingError, RingPeer, RingSpec};
use common::run_dir::peak_rss_bytes;
use common::trace;
use common::wire::messages::{Finished, Generation, StateSource, ToCoordinator};

use crate::device::ComputeDevice;
use crate::exchange::{Exchange, Summation};
use crate::job::Job;
use crate::link::{Link, Order};
use crate::remote::RemoteSource;
use crate::replica::Replica;
use crate::train::{Ended, Start, train};
use crate::{checkpoints, donor};
use report::Report;

/// How long a ring may take to form: others may have to get gigabytes of state
/// first. When somebody is lost meanwhile, the coordinator says so at once.
const FORM_WITHIN: Duration = Duration::from_secs(120);

/// What this worker was told, by the coordinator and on its command line.
pub struct Member {
    pub config: Config,
    pub info: DatasetInfo,
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
        let _ = to_coordinator.blocking_send(ToCoordinator::Failed { reason: format!("failed: {e:#}") });
    }
    outcome
}

fn run_inner(member: Member, link: Link) -> Result<()> {
    let device = ComputeDevice::parse(&member.device)?;
    let source = open_source(&member, &link)?;
    device.prepare(Job::threads(&member.config), member.config.train.precision);
    let input = Job::input(&member.config, &member.info);
    let mut replica = Replica::new(&member.config.model, &member.config.train, input, member.config.seed, device)?;
    let mut report = Report::new(&link, member.config.records_samples());
    let ready =
        |replica: &Replica, generation: u64| link.say(ToCoordinator::Ready { device: device.describe(), generation, step: replica.step() });
    ready(&replica, 0)?;
    // The generation that this worker is in, or has finished the run in.
    let mut current = None;
    // The coordinator closes the queue of orders when nothing more is to be done.
    while let Ok(order) = link.orders.recv() {
        match order {
            Order::End(number) if current == Some(number) => {
                // It had finished here, but others need one more generation.
                current = None;
                ready(&replica, number)?;
            }
            Order::End(_) => {}
            Order::Generation(generation) => {
                let number = generation.number;
                current = Some(number);
                match take_part(&member, &link, &source, &mut replica, &mut report, generation) {
                    Ok(Ended::Run { .. }) => {}
                    Ok(Ended::Generation { .. }) => {
                        current = None;
                        ready(&replica, number)?;
                    }
                    Err(e) => {
                        let broken = e.downcast_ref::<RingError>().filter(|e| !matches!(e, RingError::Misuse { .. }));
                        let Some(reason) = broken else { return Err(e) };
                        tracing::info!("generation {number} ended after step {}: {reason}", replica.step());
                        link.forget_ring();
                        current = None;
                        ready(&replica, number)?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// One generation: gets the state, forms the ring, trains. A [`RingError`] means
/// that the generation is over and this worker is ready for the next.
fn take_part(
    member: &Member,
    link: &Link,
    source: &Arc<dyn SampleSource>,
    replica: &mut Replica,
    report: &mut Report<'_>,
    generation: Generation,
) -> Result<Ended> {
    let job =
        Job::new(member.config.clone(), member.info.clone(), generation.rank, generation.members.len() as u32).map_err(|e| anyhow!(e))?;
    let layout = BucketLayout::new(replica.layout().total(), job.config.cluster.bucket_bytes);
    let spec = ring_spec(&job, &generation, &layout)?;
    trace::set_rank(job.rank);
    if let StateSource::Donor { rank } = generation.state
        && rank == generation.rank
    {
        let members = generation.members.iter().map(|m| m.name.clone()).collect();
        link.donor.offer(generation.number, members, replica.export()?);
    }
    if replica.step() != generation.first_step {
        catch_up(link, replica, &generation)?;
    }
    let ring = link.unless_over(generation.number, Ring::form(&link.ring_endpoint, spec))??;
    link.keep_ring(generation.number, &ring)?;
    let mut exchange = Exchange::new(Some(ring), layout, Summation::of(&job.config.train, Some(job.config.cluster.wire)));
    tracing::info!(
        "generation {}, rank {} of {}: shards {:?} from step {}",
        generation.number,
        job.rank,
        job.world,
        job.shards(),
        replica.step()
    );

    report.begin(&generation)?;
    let start = Start { step: generation.first_step, evaluated: generation.evaluated, stored: generation.stored };
    let ended = train(&job, replica, &mut exchange, source, report, start)?;
    let bytes_sent = report.count_sent(exchange.bytes_sent());
    link.forget_ring();
    if let Some(ring) = exchange.into_ring() {
        link.runtime.block_on(ring.close());
    }
    if let Ended::Run { step } = ended {
        report.finish()?;
        let weights_blake3 = replica.weights_blake3();
        link.say(ToCoordinator::Finished(Finished { step, weights_blake3, bytes_sent, peak_rss_bytes: peak_rss_bytes() }))?;
    }
    Ok(ended)
}

/// Takes over the state that the generation starts from.
fn catch_up(link: &Link, replica: &mut Replica, generation: &Generation) -> Result<()> {
    let step = generation.first_step;
    let state = match generation.state {
        StateSource::Everywhere => bail!("the generation starts at step {step}, and this worker is at step {}", replica.step()),
        StateSource::Checkpoint => link.runtime.block_on(checkpoints::get(&link.bulk, step))?,
        StateSource::Donor { rank } => {
            let donor = generation
                .members
                .get(rank as usize)
                .ok_or_else(|| anyhow!("the coordinator named rank {rank} as donor, which is none"))?;
            let address = address(&donor.addr, rank)?;
            let _span = trace::span("state from the donor", Some(step));
            let fetching = donor::fetch(&link.ring_endpoint, address, &donor.name, generation.number, step, replica.largest_state_file());
            let got = link.unless_over(generation.number, fetching)?;
            // A donor that is gone ends the generation like any lost neighbour.
            got.map_err(|e| RingError::PeerLost { rank, name: donor.name.clone(), cause: format!("{e:#}") })?
        }
    };
    let _span = trace::span("import of the state", Some(step));
    replica.import(&state)?;
    tracing::info!("took over the state of step {step}");
    Ok(())
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

fn address(text: &str, rank: u32) -> Result<SocketAddr> {
    text.parse().map_err(|_| anyhow!("the coordinator named `{text}` as the address of rank {rank}"))
}

fn ring_spec(job: &Job, generation: &Generation, layout: &BucketLayout) -> Result<RingSpec> {
    let mut peers = Vec::with_capacity(generation.members.len());
    for (rank, member) in (0..).zip(&generation.members) {
        peers.push(RingPeer { rank, name: member.name.clone(), addr: address(&member.addr, rank)? });
    }
    Ok(RingSpec {
        generation: generation.number,
        rank: job.rank,
        peers,
        layout: *layout,
        encoding: if job.config.train.reproducible { Encoding::Fixed } else { job.config.cluster.wire.into() },
        connections: job.config.cluster.connections,
        timeout: Duration::from_millis(job.config.cluster.timeout_ms),
        form_within: FORM_WITHIN,
    })
}
