//! The messages between coordinator and workers. Plain data, validated by bytecheck
//! before use; every count and length in a message is checked again where it is used.
//!
//! Control: one bidirectional stream on its own connection, opened by the worker. Bulk:
//! one bidirectional stream per request, also opened by the worker; it carries a
//! message, then raw bytes.

use crate::digest::Digest;
use rkyv::{Archive, Deserialize, Serialize};
use std::net::SocketAddr;

use crate::audit::TrainedSamples;
use crate::dataset::{DatasetInfo, SampleFormat, Split};
use crate::metrics::{Evaluation, Shown, StepMetrics, TimeShares};
use crate::predictions::Predictions;

/// The largest control message. A config and the names of some thousand classes fit
/// many times over.
pub const MAX_CONTROL: usize = 4 << 20;

/// The largest bulk request: some thousand sample ids.
pub const MAX_REQUEST: usize = 1 << 20;

/// The most samples that one request may ask for.
pub const MAX_SAMPLES: usize = 4096;

/// The most bytes of a test transfer.
pub const PROBE_BYTES: u64 = 4 << 20;

/// The largest undecoded sample, and the largest checkpoint file.
pub const MAX_SAMPLE_BYTES: u64 = 1 << 30;
pub const MAX_CHECKPOINT_BYTES: u64 = 1 << 40;

/// From a worker to the coordinator.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub enum ToCoordinator {
    /// The first message. The coordinator answers `Welcome` or `Refused`.
    Hello {
        protocol: u32,
        /// Where this worker listens: a port at the address from which it connects, or a
        /// whole address if it was configured to advertise one.
        ring_port: u16,
        /// Where else it may be reached, best first: the addresses of its interfaces.
        addresses: Vec<SocketAddr>,
        advertise: Option<SocketAddr>,
        /// Workers are ranked by this first, then by when they joined.
        preferred_rank: Option<u32>,
        /// The generation of this worker, if it has lost its connection and trains on.
        generation: Option<u64>,
    },
    /// This worker is in no ring, and ready for the next one. Sent once the data is
    /// open and the model is built, and again whenever a generation has ended at this
    /// worker.
    Ready {
        device: String,
        /// The generation that ended at this worker; 0 before the first.
        generation: u64,
        /// The number of steps behind the state that the worker holds, and the
        /// generation that committed the last of them (or that began with this state);
        /// 0 for the initial state.
        step: u64,
        committed: u64,
        /// The digest of the products that it makes of the run's seeded factors; none if
        /// nothing is exchanged as factors, or if it cannot multiply them.
        products: Option<Digest>,
    },
    /// This worker wants to leave: answered by `Goodbye` once the others can continue
    /// without it.
    Leaving,
    /// Sent every `cluster.heartbeat_ms`. `waiting`: the worker waits for what others
    /// must send round the ring. `speed`: the samples of its own that it computes in a
    /// second, waiting for others left out; none before it is known. `shares`: where its
    /// time goes, averaged over its last steps; none before its first step.
    Heartbeat { step: u64, waiting: bool, speed: Option<f64>, shares: Option<TimeShares> },
    /// A step that was committed in this generation, from rank 0; or in an earlier one
    /// whose rank 0 was lost before the coordinator received it.
    Step { generation: u64, metrics: StepMetrics },
    /// A finished evaluation, from rank 0.
    Evaluation(Evaluation),
    /// A sample that was left out because it does not decode.
    Skipped { step: u64, name: String, problem: String },
    /// What this worker put into a step that was committed, with `train.audit`.
    Trained(TrainedSamples),
    /// Training is over: all steps are committed, or all workers agreed to stop.
    Finished(Finished),
    /// This worker cannot continue. `run`: no other worker could either (the loss is
    /// not finite, a picture that all must use is damaged).
    Failed { reason: String, run: bool },
    /// The worker has tried to reach `peer`, and why it could not; `millis` is the time
    /// of the test transfer, if one was requested.
    Probed { peer: String, problem: Option<String>, millis: u64 },
    /// The ring of `generation` could not form because of its member `peer`, or that
    /// member, the `donor`, did not send its state.
    Missed { generation: u64, peer: String, donor: bool, reason: String },
    /// In the ring of `generation` the worker reaches its successor `peer` only through the
    /// coordinator.
    Relayed { generation: u64, peer: String },
}

/// What each worker reports at the end.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub struct Finished {
    /// Steps committed over the whole run.
    pub step: u64,
    pub weights_blake3: Digest,
    /// Bytes of gradients that this worker sent.
    pub bytes_sent: u64,
    pub peak_rss_bytes: u64,
}

/// From the coordinator to a worker.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub enum ToWorker {
    Welcome {
        config_toml: String,
        dataset: Dataset,
        /// The first step that the record lacks: reports of it and of later steps were
        /// lost with the coordinator that received them.
        recorded: u64,
    },
    Refused {
        reason: String,
    },
    /// Form this ring and train.
    Generation(Generation),
    /// This generation is over: the worker leaves its ring at once and sends `Ready`.
    End {
        generation: u64,
        reason: String,
    },
    /// The worker leaves this generation after the step in flight, together with all
    /// others, and sends `Ready`: a worker joins or leaves.
    Yield {
        generation: u64,
    },
    /// There are as many workers as shards already: the worker waits to replace one.
    Spare,
    /// The worker of this name is left out of all rings for a while. Told to that worker,
    /// and to the one that it does not reach or that does not reach it.
    LeftOut {
        name: String,
        reason: String,
        again_ms: u64,
    },
    /// This worker and another one exchange their packets through the coordinator, as
    /// `reason` says.
    Relayed {
        reason: String,
    },
    /// The worker tries to reach each of these, and answers `Probed` for each. If
    /// `bytes` is not 0, it times the transfer of that many bytes, at most
    /// [`PROBE_BYTES`].
    Probe {
        peers: Vec<Member>,
        bytes: u64,
    },
    /// The worker stores the state that it holds as a checkpoint: no other worker has
    /// it.
    Store,
    /// The coordinator has given this worker up: it may join again, with its state.
    Dropped {
        reason: String,
    },
    /// End the run after the step in flight, together with all others.
    Stop,
    /// The run is over for this reason; the worker need not answer.
    Abort {
        reason: String,
    },
    /// Everything is stored: the worker may exit.
    Goodbye,
}

/// One ring of workers: its members in order, and the step from which it starts.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Generation {
    pub number: u64,
    /// The receiver's place in `members`.
    pub rank: u32,
    pub members: Vec<Member>,
    /// How many shards each member owns, by rank: at least one each, all of the run's
    /// together. A rank's shards follow those of the rank before it.
    pub shards: Vec<u32>,
    /// The step to execute first. A worker without the state before it gets that state
    /// as `state` says.
    pub first_step: u64,
    pub state: StateSource,
    /// The ranks that hold this state already. A worker may hold another state of the
    /// same step, committed by a generation that is no longer part of the run.
    pub holders: Vec<u32>,
    /// How long the members may take to get their state and find each other.
    pub form_ms: u64,
    /// The first step that the record lacks: the other workers report this step and
    /// later ones if an earlier rank 0 did not.
    pub recorded: u64,
    /// The newest step after which an evaluation is recorded.
    pub evaluated: u64,
    /// The newest step after which there is a checkpoint.
    pub stored: u64,
    /// Dense layers exchange factors: all members make these products of the run's seeded
    /// factors. None: all gradients are summed.
    pub products: Option<Digest>,
}

/// Where a generation's state is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum StateSource {
    /// Every member holds it.
    Everywhere,
    /// The member of this rank holds it and gives it to those that do not.
    Donor { rank: u32 },
    /// Only a checkpoint holds it.
    Checkpoint,
}

/// A worker, as its neighbours need to know it.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct Member {
    /// The name in its certificate.
    pub name: String,
    /// Where it listens for other workers.
    pub addr: SocketAddr,
    /// Where else they may reach it, best first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<SocketAddr>,
}

impl Member {
    /// Where it may be reached, best first.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        [self.addr].iter().chain(&self.others).copied().collect()
    }

    /// The same worker as `receiver` may reach it: a loopback address leads there only from
    /// the same machine, which a worker shows by a loopback address of its own. It is kept
    /// where there is no other.
    pub fn seen_by(&self, receiver: &Self) -> Self {
        let mut addresses = self.addresses();
        if !receiver.addr.ip().is_loopback() && addresses.iter().any(|address| !address.ip().is_loopback()) {
            addresses.retain(|address| !address.ip().is_loopback());
        }
        let addr = addresses.remove(0);
        Self { name: self.name.clone(), addr, others: addresses }
    }
}

impl Generation {
    /// This generation as it is sent to the member of this rank.
    pub fn for_rank(&self, rank: u32) -> Self {
        let seen = |receiver: &Member| self.members.iter().map(|member| member.seen_by(receiver)).collect();
        let members = self.members.get(rank as usize).map_or_else(|| self.members.clone(), seen);
        Self { rank, members, ..self.clone() }
    }
}

/// [`DatasetInfo`] on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Dataset {
    pub format: Format,
    pub classes: Vec<String>,
    pub train: u32,
    pub val: u32,
    pub fingerprint: Digest,
}

/// [`SampleFormat`] on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Format {
    Encoded,
    Raw { height: u32, width: u32, channels: u32 },
    Features { count: u32 },
}

/// From a worker, on a stream of its bulk connection.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub enum BulkRequest {
    /// Answered by [`BulkReply::Samples`] and the samples' bytes end to end.
    Samples { val: bool, ids: Vec<u32> },
    /// Followed by the files' bytes end to end; answered by [`BulkReply::Stored`].
    PutCheckpoint { step: u64, weights_blake3: Digest, files: Vec<FileSize> },
    /// A picture of the run, for its record: followed by the bytes of a PNG file; answered by
    /// [`BulkReply::Stored`].
    PutPicture { shown: Shown, step: u64, bytes: u64 },
    /// What the model says of a few pictures, for the page; answered by [`BulkReply::Stored`].
    PutPredictions(Predictions),
    /// Answered by [`BulkReply::Checkpoint`] and the files' bytes end to end.
    GetCheckpoint { step: u64 },
    /// The file of `model.weights`, with which the run began: answered by
    /// [`BulkReply::Weights`] and its bytes.
    GetWeights,
    /// To a donor: answered by [`BulkReply::State`] and the files' bytes end to end.
    GetState { generation: u64, step: u64 },
    /// To a worker, followed by `bytes` meaningless bytes, at most [`PROBE_BYTES`];
    /// answered by [`BulkReply::Stored`] once they have arrived.
    Measure { bytes: u64 },
}

#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct FileSize {
    pub name: String,
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum BulkReply {
    Samples {
        labels: Vec<u32>,
        lengths: Vec<u64>,
    },
    Stored,
    Checkpoint {
        files: Vec<FileSize>,
    },
    /// With the digest of the bytes that follow.
    Weights {
        bytes: u64,
        blake3: Digest,
    },
    /// With the digest of all bytes that follow.
    State {
        files: Vec<FileSize>,
        blake3: Digest,
    },
    Failed {
        reason: String,
    },
}

impl From<&DatasetInfo> for Dataset {
    fn from(info: &DatasetInfo) -> Self {
        Self {
            format: match info.format {
                SampleFormat::Encoded => Format::Encoded,
                SampleFormat::Raw { height, width, channels } => Format::Raw { height, width, channels },
                SampleFormat::Features { count } => Format::Features { count },
            },
            classes: info.classes.clone(),
            train: info.train,
            val: info.val,
            fingerprint: info.fingerprint,
        }
    }
}

impl From<Dataset> for DatasetInfo {
    fn from(wire: Dataset) -> Self {
        Self {
            format: match wire.format {
                Format::Encoded => SampleFormat::Encoded,
                Format::Raw { height, width, channels } => SampleFormat::Raw { height, width, channels },
                Format::Features { count } => SampleFormat::Features { count },
            },
            classes: wire.classes,
            train: wire.train,
            val: wire.val,
            fingerprint: wire.fingerprint,
        }
    }
}

/// The split that a request means.
pub fn split(val: bool) -> Split {
    if val { Split::Val } else { Split::Train }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn member(name: &str, addresses: &[&str]) -> Member {
        let mut addresses = addresses.iter().map(|address| address.parse().unwrap());
        Member { name: name.to_owned(), addr: addresses.next().unwrap(), others: addresses.collect() }
    }

    #[test]
    fn a_loopback_address_is_for_those_on_the_same_machine() {
        let here = member("worker-1", &["127.0.0.1:7", "10.0.0.7:7", "[fd00::7]:7"]);
        let elsewhere = member("worker-2", &["10.0.0.8:9"]);
        let neighbour = member("worker-3", &["[::1]:8", "10.0.0.7:8"]);
        assert_eq!(here.seen_by(&elsewhere), member("worker-1", &["10.0.0.7:7", "[fd00::7]:7"]));
        assert_eq!(here.seen_by(&neighbour), here);
        assert_eq!(elsewhere.seen_by(&here), elsewhere);
        let only_here = member("worker-4", &["127.0.0.1:7"]);
        assert_eq!(only_here.seen_by(&elsewhere), only_here, "so that the attempt fails by its name");
    }

    #[test]
    fn a_member_of_an_older_journal_has_one_address() {
        let older = r#"{"name":"worker-2","addr":"10.0.0.8:9"}"#;
        let read: Member = serde_json::from_str(older).unwrap();
        assert_eq!(read, member("worker-2", &["10.0.0.8:9"]));
        assert_eq!(serde_json::to_string(&read).unwrap(), older);
    }
}
