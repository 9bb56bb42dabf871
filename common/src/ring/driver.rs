//! The ring as a worker uses it: hand in buckets, wait for their sums.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::bucket::BucketLayout;
use super::encoding::Encoding;
use super::form;
use super::lane::{self, Context, Job};
use super::schedule;
use super::shared::{DONE, RingError, Shared};
use super::values::Values;
use crate::net::Endpoint;

/// A worker of the ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingPeer {
    pub rank: u32,
    /// Its name in its certificate.
    pub name: String,
    /// Where its ring endpoint listens.
    pub addr: SocketAddr,
}

/// One ring: who, in which order, and what they exchange. The same on every rank
/// but for `rank`.
#[derive(Debug, Clone)]
pub struct RingSpec {
    pub generation: u64,
    pub rank: u32,
    /// By rank.
    pub peers: Vec<RingPeer>,
    pub layout: BucketLayout,
    pub encoding: Encoding,
    /// Connections side by side to the successor: bucket b takes number
    /// b % connections. At least 1.
    pub connections: u32,
    /// A neighbour that is silent for this long is lost.
    pub timeout: Duration,
    /// How long the ring may take to form: members may have to get state first.
    pub form_within: Duration,
}

impl RingSpec {
    pub fn world(&self) -> u32 {
        self.peers.len() as u32
    }

    pub(super) fn predecessor(&self) -> u32 {
        schedule::predecessor(self.rank as usize, self.peers.len()) as u32
    }

    fn check(&self) -> Result<(), String> {
        if self.rank >= self.world() {
            return Err(format!("rank {} in a world of {}", self.rank, self.world()));
        }
        if self.peers.iter().zip(0..).any(|(peer, rank)| peer.rank != rank) {
            return Err("the peers are not in the order of their ranks".to_owned());
        }
        if self.connections == 0 || u32::try_from(self.layout.len()).is_err() {
            return Err(format!("{} connections, {} buckets", self.connections, self.layout.len()));
        }
        Ok(())
    }
}

/// A formed ring. All ranks must submit the same buckets in the same order;
/// waiting may follow any order. Dropping it leaves the ring at once, which ends
/// it for all ranks; [`Ring::close`] leaves in order.
pub struct Ring {
    context: Arc<Context>,
    lanes: Vec<mpsc::Sender<Job>>,
    tasks: JoinSet<()>,
    timeout: Duration,
}

/// Watches a ring from another thread, and ends it, for instance because the
/// coordinator has declared a new generation.
#[derive(Clone)]
pub struct RingAborter(Arc<Shared>);

impl RingAborter {
    /// Whoever waits on the ring, here and on other ranks, gets an error at once.
    pub fn abort(&self, cause: &str) {
        self.0.fail(RingError::Left { cause: cause.to_owned() });
    }

    /// Whether a thread of this rank waits for the others now.
    pub fn is_waiting(&self) -> bool {
        self.0.is_waiting()
    }
}

impl Ring {
    /// Connects to the next rank and lets the previous one in; a world of one
    /// needs no sockets. The ring's tasks run on the tokio runtime that this is
    /// called in. Dropping the future gives up. On failure [`RingError::Stale`]
    /// means that a neighbour is ahead; after [`RingError::Form`] the coordinator
    /// knows who is missing.
    pub async fn form(endpoint: &Endpoint, spec: RingSpec) -> Result<Self, RingError> {
        let within = spec.form_within;
        spec.check().map_err(|cause| RingError::Form { generation: spec.generation, within, cause })?;
        let neighbours = match spec.world() {
            1 => form::Neighbours { outgoing: Vec::new(), incoming: Vec::new() },
            _ => form::form(endpoint, &spec).await?,
        };
        let names = spec.peers.iter().map(|p| p.name.clone()).collect();
        let connections = neighbours.outgoing.iter().chain(&neighbours.incoming).cloned().collect();
        let context = Arc::new(Context {
            shared: Arc::new(Shared::new(spec.rank, names, connections)),
            generation: spec.generation,
            world: spec.peers.len(),
            rank: spec.rank as usize,
            layout: spec.layout,
            encoding: spec.encoding,
        });
        let mut ring = Self { context, lanes: Vec::new(), tasks: JoinSet::new(), timeout: spec.timeout };
        for (outgoing, incoming) in neighbours.outgoing.into_iter().zip(neighbours.incoming) {
            let (jobs_in, jobs) = mpsc::channel(ring.most_outstanding());
            ring.lanes.push(jobs_in);
            ring.tasks.spawn(lane::run(ring.context.clone(), outgoing, incoming, jobs));
        }
        Ok(ring)
    }

    /// Two steps' buckets.
    fn most_outstanding(&self) -> usize {
        2 * (self.context.layout.len() + 2)
    }

    /// Hands in this rank's values of a bucket (or of
    /// [`BucketLayout::statistics`]). Does not wait for the network. Values that
    /// lie as bf16 are taken where bf16 travels.
    pub fn submit(&self, step: u64, bucket: usize, data: impl Into<Values>) -> Result<(), RingError> {
        let data = data.into();
        let misuse = |problem: String| RingError::Misuse { step, bucket, problem };
        let layout = &self.context.layout;
        if bucket > layout.exponents() {
            return Err(misuse(format!("there are {} buckets", layout.len())));
        }
        let length = layout.range(bucket).len();
        if data.len() != length {
            return Err(misuse(format!("{} values were handed in for {length}", data.len())));
        }
        if matches!(data, Values::Bf16(_)) && self.context.encoding(bucket) != Encoding::Bf16 {
            return Err(misuse("bf16 values were handed in for a bucket that travels in another format".to_owned()));
        }
        let key = (step, bucket);
        self.context.shared.begin(key, self.most_outstanding())?;
        match self.lanes.len() {
            0 => self.context.shared.complete(key, data),
            // There is room: the queue takes all that may be outstanding.
            lanes => self.lanes[bucket % lanes]
                .try_send(Job { key, values: data })
                .map_err(|_| misuse("the ring's tasks have ended: is their runtime still running?".to_owned()))?,
        }
        Ok(())
    }

    /// Blocks the thread until a submitted bucket is the sum over all ranks: the
    /// same bits on every rank, in the format that was handed in. Not for use on a
    /// thread of the ring's runtime.
    pub fn wait(&mut self, step: u64, bucket: usize) -> Result<Values, RingError> {
        self.context.shared.take((step, bucket))
    }

    /// Bytes of gradient streams handed to the network so far.
    pub fn bytes_sent(&self) -> u64 {
        self.context.shared.bytes_sent()
    }

    pub fn aborter(&self) -> RingAborter {
        RingAborter(self.context.shared.clone())
    }

    /// Leaves in order: what this rank owes the others is sent first.
    pub async fn close(mut self) {
        self.lanes.clear();
        let finish = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(self.timeout, finish).await;
        self.context.shared.close(DONE, b"done");
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.aborter().abort("it was dropped");
    }
}
