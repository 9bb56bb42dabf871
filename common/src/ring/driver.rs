//! The ring as a worker uses it: submit buckets, wait for their sums.

use std::sync::Arc;
use std::time::Duration;

use quinn::Connection;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::channel::{self, BucketJob, Context};
use super::encoding::Encoding;
use super::form;
use super::schedule;
use super::shared::{DONE, RingError, RingState};
use super::spec::RingSpec;
use super::values::Values;
use crate::net::{Endpoint, Route};

/// A formed ring. All ranks must submit the same buckets in the same order;
/// waiting may follow any order. Dropping it leaves the ring at once, which ends
/// it for all ranks; [`Ring::close`] leaves in order.
pub struct Ring {
    context: Arc<Context>,
    channels: Vec<mpsc::Sender<BucketJob>>,
    tasks: JoinSet<()>,
    /// The successor, if it is reached through the coordinator.
    relayed: Option<String>,
    timeout: Duration,
    crosses_network: bool,
}

/// Observes a ring from another thread and can end it, for instance because the
/// coordinator has declared a new generation.
#[derive(Clone)]
pub struct RingAborter(Arc<RingState>);

impl RingAborter {
    /// Every thread that waits on the ring, here and on other ranks, gets an error at
    /// once.
    pub fn abort(&self, cause: &str) {
        self.0.fail(RingError::Left { cause: cause.to_owned() });
    }

    /// Whether a thread of this rank is now waiting for the other ranks.
    pub fn is_waiting(&self) -> bool {
        self.0.is_waiting()
    }
}

impl Ring {
    /// The number of ranks.
    pub fn world(&self) -> usize {
        self.context.world
    }

    /// Whether a neighbour is on another machine, as far as its address tells.
    pub fn crosses_network(&self) -> bool {
        self.crosses_network
    }

    /// Connects to the successor and accepts the predecessor; a world of one needs no
    /// sockets. The ring's tasks run on the tokio runtime in which this is called.
    /// Dropping the future gives up. On failure [`RingError::Stale`] means that a
    /// neighbour is in a newer generation, and [`RingError::Form`] names the missing
    /// neighbour and says whether it was ever reached.
    pub async fn form(endpoint: &Endpoint, spec: RingSpec) -> Result<Self, RingError> {
        spec.check().map_err(|problem| RingError::Left { cause: format!("what it was to be makes no sense: {problem}") })?;
        let neighbours = match spec.world() {
            1 => form::Neighbours { outgoing: Vec::new(), incoming: Vec::new() },
            _ => form::form(endpoint, &spec).await?,
        };
        let by = |route: Route| move |connection: &Connection| Route::to(connection.remote_address()) == route;
        let relayed = neighbours.outgoing.iter().any(by(Route::Relayed));
        let successor = &spec.peers[schedule::successor(spec.rank as usize, spec.peers.len())];
        let relayed = relayed.then(|| successor.name.clone());
        let names = spec.peers.iter().map(|p| p.name.clone()).collect();
        let connections: Vec<_> = neighbours.outgoing.iter().chain(&neighbours.incoming).cloned().collect();
        let crosses_network = !connections.iter().all(by(Route::Loopback));
        let context = Arc::new(Context {
            shared: Arc::new(RingState::new(spec.rank, names, connections)),
            generation: spec.generation,
            world: spec.peers.len(),
            rank: spec.rank as usize,
            layout: spec.layout,
            encoding: spec.encoding,
            gathers: spec.gathers,
        });
        let mut ring = Self { context, channels: Vec::new(), tasks: JoinSet::new(), relayed, timeout: spec.timeout, crosses_network };
        for (outgoing, incoming) in neighbours.outgoing.into_iter().zip(neighbours.incoming) {
            let (jobs_in, jobs) = mpsc::channel(ring.most_outstanding());
            ring.channels.push(jobs_in);
            ring.tasks.spawn(channel::run(ring.context.clone(), outgoing, incoming, jobs));
        }
        Ok(ring)
    }

    /// The name of the successor, if this rank reaches it only through the coordinator.
    pub fn relayed_to(&self) -> Option<&str> {
        self.relayed.as_deref()
    }

    /// Two steps' buckets.
    fn most_outstanding(&self) -> usize {
        2 * self.context.all()
    }

    /// Submits this rank's values of a bucket (or of [`super::BucketLayout::statistics`]), or
    /// a matrix ([`super::BucketLayout::gathered`]) that has the rows of this rank; its other
    /// values are replaced. Does not wait for the network. Values stored as bf16 are accepted
    /// where bf16 travels.
    pub fn submit(&self, step: u64, bucket: usize, data: impl Into<Values>) -> Result<(), RingError> {
        let data = data.into();
        let misuse = |problem: String| RingError::Misuse { step, bucket, problem };
        if bucket >= self.context.all() {
            return Err(misuse(format!("there are {} buckets", self.context.all())));
        }
        let length = self.context.values(bucket);
        if data.len() != length {
            return Err(misuse(format!("{} values were handed in for {length}", data.len())));
        }
        if matches!(data, Values::Bf16(_)) && self.context.encoding(bucket) != Encoding::Bf16 {
            return Err(misuse("bf16 values were handed in for a bucket that travels in another format".to_owned()));
        }
        // Rows that are rounded on the way would be other ones on their own rank.
        if matches!(data, Values::F32(_)) && self.context.matrix(bucket).is_some() && self.context.encoding(bucket) == Encoding::Bf16 {
            return Err(misuse("f32 values were handed in for a matrix that travels as bf16".to_owned()));
        }
        let key = (step, bucket);
        self.context.shared.begin(key, self.most_outstanding())?;
        match self.channels.len() {
            0 => self.context.shared.complete(key, data),
            // There is room: the queue holds as many buckets as may be outstanding.
            channels => self.channels[bucket % channels]
                .try_send(BucketJob { key, values: data })
                .map_err(|_| misuse("the ring's tasks have ended: is their runtime still running?".to_owned()))?,
        }
        Ok(())
    }

    /// Blocks the thread until a submitted bucket is the sum over all ranks, or a matrix has
    /// the rows of all: the same bits on every rank, in the format in which it was submitted. Must not be called
    /// on a thread of the ring's runtime.
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

    /// Leaves in order, after sending what this rank owes the others.
    pub async fn close(mut self) {
        self.channels.clear();
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
