//! The training thread of a cluster's worker: opens its data, builds the model,
//! and trains in one generation after the other until the run is over. Between
//! two generations it holds nothing but its replica.

mod cluster_record;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use common::config::Config;
use common::dataset::{self, DatasetError, DatasetInfo, SampleSource};
use common::dense::Factored;
use common::digest::Digest;
use common::objects;
use common::plan::Ownership;
use common::ring::{ExchangePlan, Ring, RingError, RingPeer, RingSpec};
use common::run_dir::peak_rss_bytes;
use common::timing::reach_timeout;
use common::trace;
use common::wire::messages::{Finished, Generation, StateSource, ToCoordinator};

use super::{checkpoints, state_transfer};
use crate::cluster::link::{Link, Order};
use crate::cluster::streamed_source::StreamedSource;
use crate::data::LoadError;
use crate::engine::device::Devices;
use crate::replica::{Replica, ReplicaError, State};
use crate::training::exchange::{Exchange, Summation};
use crate::training::initial::begin_with;
use crate::training::job::Job;
use crate::training::left_out::TooManyLeftOut;
use crate::training::train::{Diverged, Start, TrainingEnd, train};
use cluster_record::ClusterRecord;

/// This worker's settings, from the coordinator and from its command line.
pub struct Member {
    pub config: Config,
    pub info: DatasetInfo,
    pub data: Option<PathBuf>,
    pub devices: Devices,
    pub cache_dir: PathBuf,
    pub cache_bytes: u64,
}

/// Runs one worker to its end. Failures are reported to the coordinator too.
pub fn run(member: Member, link: Link) -> Result<()> {
    let to_coordinator = link.to_coordinator.clone();
    let own_data = member.data.as_deref().is_some_and(|data| member.config.data.path() != Some(data));
    let outcome = run_inner(member, link);
    if let Err(e) = &outcome {
        let failed = ToCoordinator::Failed { reason: format!("failed: {e:#}"), run: is_of_the_run(e, own_data) };
        // If the coordinator is lost for good, the report cannot be sent and is not needed.
        let _ = to_coordinator.blocking_send(failed);
    }
    outcome
}

/// Whether every other worker would fail in the same way: the loss is the same
/// everywhere, and so are weights that do not fit the model, and a damaged picture, unless
/// this worker reads a copy of its own.
fn is_of_the_run(error: &anyhow::Error, own_data: bool) -> bool {
    let of_all = |e: &ReplicaError| matches!(e, ReplicaError::NotFinite { .. } | ReplicaError::Weights(_));
    error.chain().any(|cause| {
        cause.is::<Diverged>()
            || cause.is::<TooManyLeftOut>()
            || cause.downcast_ref().is_some_and(of_all)
            || (!own_data && matches!(cause.downcast_ref(), Some(LoadError::Corrupt { .. })))
    })
}

/// The worker's state between two generations.
struct Standing {
    replica: Replica,
    device: String,
    /// The generation that committed the newest step of the state, or began with it.
    committed: u64,
    /// What the replica makes of the run's seeded factors.
    products: Option<Digest>,
}

impl Standing {
    /// Tells the coordinator, after `generation`, that this worker is ready and which
    /// step it holds.
    fn ready(&self, link: &Link, generation: u64) -> Result<()> {
        let (device, step, committed) = (self.device.clone(), self.replica.step(), self.committed);
        link.send(ToCoordinator::Ready { device, generation, step, committed, products: self.products })
    }

    /// Multiplies the run's seeded factors, if the config has factors exchanged.
    fn try_factors(&mut self, member: &Member) -> Result<()> {
        let factored = Factored::of(&member.config, Job::input(&member.config, &member.info));
        self.products = self.replica.products_of_seeded_factors(&factored, &member.config.train)?;
        Ok(())
    }
}

fn run_inner(mut member: Member, link: Link) -> Result<()> {
    let source = open_source(&member, &link)?;
    member.devices.prepare(&member.config.train)?;
    let input = Job::input(&member.config, &member.info);
    let mut replica = Replica::new(&member.config.model, &member.config.train, input, member.config.seed, member.devices.clone())?;
    if let Some(origin) = member.config.model.weights() {
        // From the coordinator always, so that all begin with the same bytes.
        let file = link.runtime.block_on(checkpoints::get_weights(&link.bulk))?;
        begin_with(&mut replica, &member.config.model, file.path(), origin)?;
    }
    let mut standing = Standing { replica, device: member.devices.describe(), committed: 0, products: None };
    standing.try_factors(&member)?;
    let mut report = ClusterRecord::new(&link, member.config.records_samples());
    standing.ready(&link, 0)?;
    // The generation that this worker is in, or has finished the run in.
    let mut current = None;
    // The async side closes the queue of orders when this worker is done with the run.
    while let Ok(order) = link.orders.recv() {
        match order {
            Order::End(number) if current == Some(number) => {
                // This worker had finished the run, but other workers need one more
                // generation.
                current = None;
                standing.ready(&link, number)?;
            }
            Order::End(_) => {}
            Order::Store => report.store(&standing.replica)?,
            Order::Config(config) => {
                member.config = *config;
                standing.try_factors(&member)?;
            }
            Order::Generation(generation) => {
                let number = generation.number;
                current = Some(number);
                match take_part(&member, &link, &source, &mut standing, &mut report, generation) {
                    Ok(TrainingEnd::Run { .. }) => {}
                    Ok(TrainingEnd::Generation { .. } | TrainingEnd::Interrupted { .. }) => {
                        current = None;
                        standing.ready(&link, number)?;
                    }
                    Err(e) => {
                        let broken = e.downcast_ref::<RingError>().filter(|e| !matches!(e, RingError::Misuse { .. }));
                        let Some(reason) = broken else { return Err(e) };
                        tracing::info!("generation {number} ended after step {}: {reason}", standing.replica.step());
                        if let RingError::Form { name, .. } = reason {
                            let (peer, reason) = (name.clone(), reason.to_string());
                            link.send(ToCoordinator::Missed { generation: number, peer, donor: false, reason })?;
                        }
                        link.forget_ring();
                        current = None;
                        standing.ready(&link, number)?;
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
    standing: &mut Standing,
    report: &mut ClusterRecord<'_>,
    generation: Generation,
) -> Result<TrainingEnd> {
    let ownership = Ownership::of(&generation.shards, generation.members.len(), member.config.train.shards)
        .map_err(|problem| anyhow!("the coordinator's generation {} {problem}", generation.number))?;
    let job = Job::new(member.config.clone(), member.info.clone(), generation.rank, ownership).map_err(|e| anyhow!(e))?;
    if generation.products.is_some() && generation.products != standing.products {
        bail!("the coordinator says that this worker makes the products {:?}, and it makes {:?}", generation.products, standing.products);
    }
    let plan = job.exchange_plan(generation.products.is_some());
    let spec = ring_spec(&job, &generation, &plan);
    trace::set_rank(job.rank);
    standing.replica.factor(&plan.factored)?;
    let replica = &mut standing.replica;
    if let StateSource::Donor { rank } = generation.state
        && rank == generation.rank
    {
        let members = generation.members.iter().map(|m| m.name.clone()).collect();
        link.donor.offer(generation.number, members, replica.export()?);
    }
    if !generation.holders.contains(&generation.rank) {
        catch_up(link, replica, &generation)?;
    } else if replica.step() != generation.first_step {
        bail!("the generation starts at step {}, and this worker is at step {}", generation.first_step, replica.step());
    }
    standing.committed = generation.number;
    let ring = link.unless_over(generation.number, Ring::form(&link.endpoint, spec))??;
    link.keep_ring(generation.number, &ring)?;
    if let Some(peer) = ring.relayed_to() {
        link.send(ToCoordinator::Relayed { generation: generation.number, peer: peer.to_owned() })?;
    }
    let mut exchange = Exchange::new(Some(ring), plan, job.rank, Summation::of(&job.config.train, Some(job.config.cluster.wire)));
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
    if let TrainingEnd::Run { step } = ended {
        report.finish(replica)?;
        let weights_blake3 = replica.weights_blake3()?;
        link.send(ToCoordinator::Finished(Finished { step, weights_blake3, bytes_sent, peak_rss_bytes: peak_rss_bytes() }))?;
    }
    Ok(ended)
}

/// Takes over the state that the generation starts from.
fn catch_up(link: &Link, replica: &mut Replica, generation: &Generation) -> Result<()> {
    let step = generation.first_step;
    let state = match generation.state {
        StateSource::Everywhere => {
            bail!("the coordinator says that everybody holds the state of step {step}, and that this worker does not")
        }
        StateSource::Checkpoint => link.runtime.block_on(checkpoints::get(&link.bulk, step))?,
        StateSource::Donor { rank } => {
            let donor = generation
                .members
                .get(rank as usize)
                .ok_or_else(|| anyhow!("the coordinator named rank {rank} as donor, which is none"))?;
            let _span = trace::span("state from the donor", Some(step));
            let within = Duration::from_millis(generation.form_ms);
            let fetching = state_transfer::fetch(&link.endpoint, donor, generation.number, step, replica.largest_state_file());
            let fetching = async {
                let late = |_| anyhow!("its state did not arrive within {} s", within.as_secs());
                tokio::time::timeout(within, fetching).await.map_err(late).flatten()
            };
            let taken = link.unless_over(generation.number, fetching)?.and_then(|state| import(replica, &state));
            return taken.or_else(|e| missed(link, generation, rank, &donor.name, &e));
        }
    };
    import(replica, &state)
}

fn import(replica: &mut Replica, state: &State) -> Result<()> {
    let _span = trace::span("import of the state", Some(state.step));
    replica.import(state)?;
    tracing::info!("took over the state of step {}", state.step);
    Ok(())
}

/// Tells the coordinator that the donor's state did not arrive. Returns the error of a
/// lost neighbour, since the generation is over without the state.
fn missed(link: &Link, generation: &Generation, rank: u32, donor: &str, problem: &anyhow::Error) -> Result<()> {
    let (peer, reason) = (donor.to_owned(), format!("{problem:#}"));
    link.send(ToCoordinator::Missed { generation: generation.number, peer, donor: true, reason: reason.clone() })?;
    Err(RingError::PeerLost { rank, name: donor.to_owned(), cause: reason }.into())
}

/// The local copy if there is one, which must hold the run's data; otherwise samples
/// streamed from the coordinator. Generated data needs neither.
fn open_source(member: &Member, link: &Link) -> Result<Arc<dyn SampleSource>> {
    let mut data = member.config.data.clone();
    if let Some(path) = &member.data {
        data.set_path(path.clone());
    } else if data.path().is_some_and(objects::is_address) {
        match dataset::open_matching(&data, member.config.seed, &member.info) {
            Err(e @ DatasetError::Object(_)) => tracing::warn!("{e}: samples come from the coordinator"),
            opened => return Ok(opened?),
        }
    }
    if member.data.is_none() && data.path().is_some() {
        tracing::info!("no --data: samples come from the coordinator");
        let remote =
            StreamedSource::new(member.info.clone(), link.bulk.clone(), link.runtime.clone(), &member.cache_dir, member.cache_bytes)
                .with_context(|| format!("could not make a cache in `{}`: choose another --cache-dir", member.cache_dir.display()))?;
        return Ok(Arc::new(remote));
    }
    Ok(dataset::open_matching(&data, member.config.seed, &member.info)?)
}

fn ring_spec(job: &Job, generation: &Generation, plan: &ExchangePlan) -> RingSpec {
    let peer = |(rank, member): (u32, &common::wire::messages::Member)| RingPeer {
        rank,
        name: member.name.clone(),
        addresses: member.addresses(),
    };
    let peers = (0..).zip(&generation.members).map(peer).collect();
    let timeout = Duration::from_millis(job.config.cluster.timeout_ms);
    let form_within = Duration::from_millis(generation.form_ms);
    RingSpec {
        generation: generation.number,
        rank: job.rank,
        peers,
        layout: plan.layout,
        encoding: plan.encoding,
        gathers: plan.gathers.clone(),
        connections: job.config.cluster.connections,
        timeout,
        form_within,
        // A successor answers even while it fetches its state.
        reach_within: if matches!(generation.state, StateSource::Donor { .. }) {
            form_within.min(reach_timeout(timeout))
        } else {
            form_within
        },
    }
}
