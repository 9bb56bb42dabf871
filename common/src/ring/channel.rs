//! Moves buckets, and matrices that are gathered, over one connection to the successor and one from the
//! predecessor: at most [`STREAMS_IN_FLIGHT`] buckets at a time, begun in the
//! order in which they were submitted, which is the same on every rank.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use quinn::{Connection, ConnectionError, ReadError, ReadExactError, RecvStream, SendStream, VarInt, WriteError};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;

use super::bucket::BucketLayout;
use super::encoding::Encoding;
use super::encoding::{Decoder, Merge, encode};
use super::gather::Gathers;
use super::header::StreamHeader;
use super::schedule::{self, Hop, Phase, SEGMENT};
use super::shared::{DONE, Key, RingError, RingState};
use super::values::{Bucket, Values};
use crate::net::transport::STREAMS_IN_FLIGHT;
use crate::trace;

/// The state that all channels of a ring share.
pub(super) struct Context {
    pub(super) shared: Arc<RingState>,
    pub(super) generation: u64,
    pub(super) world: usize,
    pub(super) rank: usize,
    pub(super) layout: BucketLayout,
    pub(super) encoding: Encoding,
    pub(super) gathers: Gathers,
}

impl Context {
    fn successor(&self) -> u32 {
        schedule::successor(self.rank, self.world) as u32
    }

    fn predecessor(&self) -> u32 {
        schedule::predecessor(self.rank, self.world) as u32
    }

    /// Buckets and gathered matrices: their indices are below this.
    pub(super) fn all(&self) -> usize {
        self.layout.gathered(self.gathers.len())
    }

    /// The number of the matrix that has this index; none for a bucket.
    pub(super) fn matrix(&self, bucket: usize) -> Option<usize> {
        bucket.checked_sub(self.layout.gathered(0))
    }

    /// Values of a bucket or a matrix.
    pub(super) fn values(&self, bucket: usize) -> usize {
        self.matrix(bucket).map_or_else(|| self.layout.range(bucket).len(), |matrix| self.gathers.values(matrix))
    }

    /// The chunks of a bucket, or the rows of each rank of a matrix.
    fn chunks(&self, bucket: usize) -> Vec<Range<usize>> {
        let chunk = |index| match self.matrix(bucket) {
            Some(matrix) => self.gathers.block(matrix, index),
            None => schedule::chunk(self.layout.range(bucket).len(), self.world, index),
        };
        (0..self.world).map(chunk).collect()
    }

    fn hops(&self, rank: usize, bucket: usize) -> Vec<Hop> {
        match self.matrix(bucket) {
            Some(_) => schedule::gather_hops(rank, self.world),
            None => schedule::hops(rank, self.world),
        }
    }

    /// Statistics are few and their sums are reported: they stay exact, and so do counts.
    pub(super) fn encoding(&self, bucket: usize) -> Encoding {
        match bucket {
            b if self.matrix(b).is_some() => self.gathers.encoding(),
            b if b == self.layout.statistics() || b == self.layout.counts() => Encoding::F32,
            b if b == self.layout.exponents() => Encoding::Largest,
            _ => self.encoding,
        }
    }

    /// The header of the stream that `rank` sends for a bucket.
    fn header(&self, rank: usize, (step, bucket): Key) -> StreamHeader {
        let (hops, chunks, encoding) = (self.hops(rank, bucket), self.chunks(bucket), self.encoding(bucket));
        let values: usize = hops.iter().map(|h| chunks[h.send_chunk].len()).sum();
        StreamHeader {
            generation: self.generation,
            step,
            bucket: bucket as u32,
            encoding,
            first_chunk: hops.first().map_or(0, |h| h.send_chunk as u32),
            length: (values * encoding.width()) as u64,
        }
    }

    fn lost_successor(&self, error: &WriteError) -> RingError {
        match error {
            WriteError::ConnectionLost(error) => self.shared.lost(self.successor(), error),
            other => self.shared.peer_lost(self.successor(), other.to_string()),
        }
    }

    fn lost_predecessor(&self, error: &ReadError) -> RingError {
        match error {
            ReadError::ConnectionLost(error) => self.shared.lost(self.predecessor(), error),
            other => self.shared.peer_lost(self.predecessor(), other.to_string()),
        }
    }
}

pub(super) struct BucketJob {
    pub(super) key: Key,
    pub(super) values: Values,
}

/// Runs until `jobs` is closed and all is sent, or until the ring fails.
pub(super) async fn run(context: Arc<Context>, outgoing: Connection, incoming: Connection, mut jobs: mpsc::Receiver<BucketJob>) {
    let (arrived, mut arrivals) = mpsc::channel(STREAMS_IN_FLIGHT as usize);
    let mut background = JoinSet::new();
    background.spawn(watch(context.clone(), outgoing.clone(), context.successor()));
    background.spawn(watch(context.clone(), incoming.clone(), context.predecessor()));
    background.spawn(accept(context.clone(), incoming, arrived));

    let mut active: JoinSet<Option<Outgoing>> = JoinSet::new();
    let mut unacknowledged = JoinSet::new();
    // Buckets begun here whose stream has not arrived, and streams whose bucket has not
    // begun here.
    let mut expected: HashMap<Key, oneshot::Sender<RecvStream>> = HashMap::new();
    let mut parked: HashMap<Key, RecvStream> = HashMap::new();
    let (mut open, mut connected) = (true, true);
    while open || !active.is_empty() {
        tokio::select! {
            job = jobs.recv(), if open && active.len() < STREAMS_IN_FLIGHT as usize => match job {
                None => open = false,
                Some(job) => {
                    let (give, stream) = oneshot::channel();
                    if let Some(stream) = parked.remove(&job.key) {
                        let _ = give.send(stream);
                    } else if connected {
                        expected.insert(job.key, give);
                    }
                    active.spawn(transfer(context.clone(), job, outgoing.clone(), stream));
                }
            },
            arrival = arrivals.recv(), if connected => match arrival {
                // No stream will arrive any more: dropping the senders tells the
                // buckets that wait.
                None => {
                    connected = false;
                    expected.clear();
                }
                Some((key, stream)) => {
                    if let Some(bucket) = expected.remove(&key) {
                        let _ = bucket.send(stream);
                    } else if parked.insert(key, stream).is_some() {
                        let problem = format!("bucket {} of step {} came twice", key.1, key.0);
                        context.shared.fail(context.shared.protocol(context.predecessor(), problem));
                    }
                }
            },
            Some(finished) = active.join_next() => {
                if let Ok(Some(outgoing)) = finished {
                    unacknowledged.spawn(async move { drop(outgoing.stream.stopped().await) });
                }
            }
            Some(_) = unacknowledged.join_next() => {}
        }
    }
    // Closing a connection drops what the peer has not acknowledged.
    while unacknowledged.join_next().await.is_some() {}
}

/// Fails the ring when a neighbour's connection ends, unless the neighbour left in
/// order: then only the buckets that still need it fail.
async fn watch(context: Arc<Context>, connection: Connection, neighbour: u32) {
    let error = connection.closed().await;
    if !matches!(&error, ConnectionError::ApplicationClosed(close) if close.error_code == DONE) {
        context.shared.fail(context.shared.lost(neighbour, &error));
    }
}

/// Takes the predecessor's streams and checks their headers.
async fn accept(context: Arc<Context>, connection: Connection, arrived: mpsc::Sender<(Key, RecvStream)>) {
    while let Ok(mut stream) = connection.accept_uni().await {
        let mut bytes = [0; StreamHeader::BYTES];
        let header = match stream.read_exact(&mut bytes).await {
            Ok(()) => StreamHeader::parse(&bytes),
            Err(ReadExactError::FinishedEarly(_)) => Err("a gradient stream without a header".to_owned()),
            Err(ReadExactError::ReadError(error)) => return context.shared.fail(context.lost_predecessor(&error)),
        };
        match header.and_then(|header| check(&context, &header)) {
            Ok(key) => {
                if arrived.send((key, stream)).await.is_err() {
                    return;
                }
            }
            Err(problem) => return context.shared.fail(context.shared.protocol(context.predecessor(), problem)),
        }
    }
}

fn check(context: &Context, header: &StreamHeader) -> Result<Key, String> {
    let key = (header.step, header.bucket as usize);
    if key.1 >= context.all() {
        return Err(format!("bucket {} of {}", key.1, context.all()));
    }
    if !context.shared.plausible(header.step) {
        return Err(format!("bucket {} of step {}, more than one step away", key.1, header.step));
    }
    let expected = context.header(context.predecessor() as usize, key);
    if *header != expected {
        return Err(format!("a gradient stream with {header:?} where {expected:?} was expected"));
    }
    Ok(key)
}

/// A bucket during its round.
struct InFlight {
    /// Never contended: sender and receiver are one task.
    values: Mutex<Values>,
    /// Values merged so far, over all hops.
    merged: AtomicUsize,
    progress: Notify,
    hops: Vec<Hop>,
    chunks: Vec<Range<usize>>,
    encoding: Encoding,
}

/// Reduces one bucket, or gathers one matrix, and completes it. Returns the outgoing stream, fully written but
/// perhaps not yet acknowledged.
async fn transfer(
    context: Arc<Context>,
    job: BucketJob,
    connection: Connection,
    stream: oneshot::Receiver<RecvStream>,
) -> Option<Outgoing> {
    let (step, number) = job.key;
    let what = if context.matrix(number).is_some() { "factors" } else { "bucket" };
    let _span = trace::overlapping(what, step * context.all() as u64 + number as u64, Some(number as u64));
    let bucket = InFlight {
        values: Mutex::new(job.values),
        merged: AtomicUsize::new(0),
        progress: Notify::new(),
        hops: context.hops(context.rank, number),
        chunks: context.chunks(number),
        encoding: context.encoding(number),
    };
    // An error must end the ring, with its reason, before the other half is dropped.
    let fail = |error: &RingError| context.shared.fail(error.clone());
    let sending = async { send(&context, job.key, &bucket, &connection).await.inspect_err(fail) };
    let receiving = async { receive(&context, &bucket, stream).await.inspect_err(fail) };
    let (sent, ()) = tokio::try_join!(sending, receiving).ok()?;
    context.shared.complete(job.key, bucket.values.into_inner().unwrap_or_else(PoisonError::into_inner));
    Some(sent)
}

/// A gradient stream to the successor. Reset if dropped before it is complete:
/// otherwise it would end as if it were complete.
struct Outgoing {
    stream: SendStream,
    complete: bool,
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        if !self.complete {
            let _ = self.stream.reset(VarInt::from_u32(0));
        }
    }
}

async fn send(context: &Context, key: Key, bucket: &InFlight, connection: &Connection) -> Result<Outgoing, RingError> {
    let lost = |e: ConnectionError| context.shared.lost(context.successor(), &e);
    let failed = |e: WriteError| context.lost_successor(&e);
    let mut outgoing = Outgoing { stream: connection.open_uni().await.map_err(lost)?, complete: false };
    let header = context.header(context.rank, key).to_bytes();
    outgoing.stream.write_all(&header).await.map_err(failed)?;
    context.shared.count_sent(header.len());
    // Values that must have been merged before this hop's chunk, which the previous hop
    // received.
    let mut before = None;
    for hop in &bucket.hops {
        let chunk = bucket.chunks[hop.send_chunk].clone();
        for start in chunk.clone().step_by(SEGMENT) {
            let end = (start + SEGMENT).min(chunk.end);
            if let Some(before) = before {
                while bucket.merged.load(Ordering::Acquire) < before + end - chunk.start {
                    bucket.progress.notified().await;
                }
            }
            let mut bytes = Vec::with_capacity((end - start) * bucket.encoding.width());
            encode(bucket.encoding, bucket.values.lock().unwrap_or_else(PoisonError::into_inner).span().range(start..end), &mut bytes);
            context.shared.count_sent(bytes.len());
            outgoing.stream.write_chunk(Bytes::from(bytes)).await.map_err(failed)?;
        }
        before = Some(before.map_or(0, |b| b + chunk.len()));
    }
    outgoing.complete = outgoing.stream.finish().is_ok();
    Ok(outgoing)
}

async fn receive(context: &Context, bucket: &InFlight, stream: oneshot::Receiver<RecvStream>) -> Result<(), RingError> {
    let from = context.predecessor();
    let Ok(mut stream) = stream.await else {
        return Err(context.shared.peer_lost(from, "it left the ring before its part of a bucket came".to_owned()));
    };
    let failed = |e: ReadError| context.lost_predecessor(&e);
    let mut before = 0;
    for hop in &bucket.hops {
        let chunk = bucket.chunks[hop.recv_chunk].clone();
        let merge = match hop.phase {
            Phase::AllGather => Merge::Store,
            Phase::ReduceScatter if hop.completes => Merge::AddAndRound,
            Phase::ReduceScatter => Merge::Add,
        };
        let mut decoder = Decoder::new(bucket.encoding, merge);
        let mut left = chunk.len() * bucket.encoding.width();
        while left > 0 {
            let Some(piece) = stream.read_chunk(left, true).await.map_err(failed)? else {
                return Err(context.shared.protocol(from, "a gradient stream ended early".to_owned()));
            };
            left -= piece.bytes.len();
            let mut values = bucket.values.lock().unwrap_or_else(PoisonError::into_inner);
            decoder.push(&piece.bytes, values.range_mut(chunk.clone()));
            drop(values);
            bucket.merged.store(before + decoder.done(), Ordering::Release);
            bucket.progress.notify_one();
        }
        before += chunk.len();
    }
    match stream.read_chunk(1, true).await.map_err(failed)? {
        None => Ok(()),
        Some(_) => Err(context.shared.protocol(from, "a gradient stream is longer than announced".to_owned())),
    }
}
