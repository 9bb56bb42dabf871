//! Transfers of checkpoints between a worker and the coordinator, and of the weights that a
//! run begins with.

use common::digest::Digest;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use common::run_dir::CHECKPOINT_FILES;
use common::wire::messages::{BulkReply, BulkRequest, FileSize, MAX_CHECKPOINT_BYTES, MAX_CONTROL};
use common::wire::{read_message, write_message};
use quinn::Connection;
use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::cluster::bulk::{Bulk, read_state};
use crate::cluster::streamed_source::{TRIES, has_stalled};
use crate::replica::State;
use crate::training::record::{STORE_RETRY, STORE_TIMEOUT, Snapshot};

/// A snapshot in memory that can be sent more than once.
struct Encoded {
    step: u64,
    weights_blake3: Digest,
    files: Vec<(&'static str, Bytes)>,
}

/// How far the upload of a checkpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UploadState {
    UnderWay,
    /// The coordinator is out of reach or cannot store the checkpoint: the upload is
    /// retried.
    Held,
    Stored,
}

/// The upload of a checkpoint to the coordinator's disk. A failure does not stop
/// training: it is logged, and the checkpoint is sent again until it is stored or a
/// newer one takes its place.
pub struct Upload {
    task: JoinHandle<()>,
    progress: watch::Receiver<UploadState>,
}

impl Upload {
    pub fn start(runtime: &Handle, bulk: Bulk, snapshot: Snapshot) -> Self {
        let Snapshot { state, weights_blake3 } = snapshot;
        let files = CHECKPOINT_FILES.into_iter().zip([state.model.into(), state.optimizer.into()]).collect();
        let snapshot = Encoded { step: state.step, weights_blake3, files };
        let (state, progress) = watch::channel(UploadState::UnderWay);
        let task = runtime.spawn(async move {
            loop {
                let sent = bulk.with(|connection| {
                    state.send_replace(UploadState::UnderWay);
                    let (snapshot, state) = (&snapshot, &state);
                    async move { put(connection, snapshot).await.inspect_err(|_| _ = state.send_replace(UploadState::Held)) }
                });
                match sent.await {
                    Ok(()) => break,
                    Err(e) => tracing::warn!("the checkpoint of step {} is not stored, training goes on: {e:#}", snapshot.step),
                }
                state.send_replace(UploadState::Held);
                tokio::time::sleep(STORE_RETRY).await;
            }
            state.send_replace(UploadState::Stored);
        });
        Self { task, progress }
    }

    /// Whether the checkpoint is being sent, rather than stored or held for a retry.
    pub fn is_under_way(&self) -> bool {
        *self.progress.borrow() == UploadState::UnderWay
    }

    pub fn is_stored(&self) -> bool {
        *self.progress.borrow() == UploadState::Stored
    }

    /// Waits until the last checkpoint of a run is on disk. The transfer may take any
    /// time; if the checkpoint cannot be stored, it is retried for [`STORE_TIMEOUT`].
    pub async fn stored(&mut self) -> Result<()> {
        let mut held = Duration::ZERO;
        while held < STORE_TIMEOUT {
            let stored = tokio::time::timeout(LOOK, self.progress.wait_for(|p| *p == UploadState::Stored)).await.map(|found| found.is_ok());
            match stored {
                Ok(true) => return Ok(()),
                Ok(false) => bail!("the last checkpoint was given up"),
                Err(_) if self.is_under_way() => {}
                Err(_) => held += LOOK,
            }
        }
        bail!("the last checkpoint could not be stored within {} s", STORE_TIMEOUT.as_secs())
    }
}

/// How often [`Upload::stored`] checks the progress.
const LOOK: Duration = Duration::from_secs(1);

impl Drop for Upload {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The most bytes of weights that are written at once.
const PIECE: usize = 1 << 20;

/// Sends a checkpoint to the coordinator and returns when it is on the coordinator's disk.
async fn put(connection: Connection, snapshot: &Encoded) -> Result<()> {
    let (mut send, mut recv) = connection.open_bi().await?;
    let request = BulkRequest::PutCheckpoint {
        step: snapshot.step,
        weights_blake3: snapshot.weights_blake3,
        files: snapshot.files.iter().map(|(name, bytes)| FileSize { name: (*name).to_owned(), bytes: bytes.len() as u64 }).collect(),
    };
    write_message(&mut send, &request).await?;
    let sending = async {
        for (_, bytes) in &snapshot.files {
            send.write_chunk(bytes.clone()).await?;
        }
        Ok::<(), anyhow::Error>(send.finish()?)
    };
    let sent = sending.await;
    // A coordinator that cannot store the checkpoint stops reading and answers with the
    // reason.
    match read_message::<BulkReply>(&mut recv, MAX_CONTROL).await? {
        Some(BulkReply::Stored) => sent,
        Some(BulkReply::Failed { reason }) => bail!("the coordinator could not store the checkpoint: {reason}"),
        _ => bail!("the coordinator gave no answer to a checkpoint"),
    }
}

/// Fetches the checkpoint of `step` from the coordinator.
pub async fn get(bulk: &Bulk, step: u64) -> Result<State> {
    let mut tries = TRIES;
    loop {
        match bulk.with(|connection| get_over(connection, step)).await {
            Err(e) if has_stalled(&e) && tries > 0 => tries -= 1,
            other => return other,
        }
    }
}

async fn get_over(connection: Connection, step: u64) -> Result<State> {
    let (mut send, mut recv) = connection.open_bi().await?;
    write_message(&mut send, &BulkRequest::GetCheckpoint { step }).await?;
    send.finish()?;
    let files = match read_message::<BulkReply>(&mut recv, MAX_CONTROL).await? {
        Some(BulkReply::Checkpoint { files }) if files.len() == 2 => files,
        Some(BulkReply::Failed { reason }) => bail!("the coordinator has no checkpoint of step {step}: {reason}"),
        _ => bail!("the coordinator gave no checkpoint of step {step}"),
    };
    read_state(&mut recv, step, &files, MAX_CHECKPOINT_BYTES, "the checkpoint").await
}

/// Fetches the weights that the run began with from the coordinator, into a file of their
/// own.
pub async fn get_weights(bulk: &Bulk) -> Result<NamedTempFile> {
    let mut tries = TRIES;
    loop {
        match bulk.with(get_weights_over).await {
            Err(e) if has_stalled(&e) && tries > 0 => tries -= 1,
            other => return other,
        }
    }
}

async fn get_weights_over(connection: Connection) -> Result<NamedTempFile> {
    let (mut send, mut recv) = connection.open_bi().await?;
    write_message(&mut send, &BulkRequest::GetWeights).await?;
    send.finish()?;
    let (bytes, blake3) = match read_message::<BulkReply>(&mut recv, MAX_CONTROL).await? {
        Some(BulkReply::Weights { bytes, blake3 }) if bytes <= MAX_CHECKPOINT_BYTES => (bytes, blake3),
        Some(BulkReply::Failed { reason }) => bail!("the coordinator gave no weights to begin with: {reason}"),
        _ => bail!("the coordinator gave no weights to begin with"),
    };
    let place = NamedTempFile::new().context("there is no room for the weights to begin with: name another folder by TMPDIR")?;
    let mut file = tokio::fs::File::from_std(place.reopen()?);
    let (mut hasher, mut left) = (blake3::Hasher::new(), bytes);
    while left > 0 {
        let piece = recv.read_chunk(PIECE.min(left as usize), true).await?;
        let piece = piece.context("the weights to begin with came incomplete")?.bytes;
        left -= piece.len() as u64;
        hasher.update(&piece);
        let written = file.write_all(&piece).await;
        written.with_context(|| format!("could not write the weights to begin with to `{}`", place.path().display()))?;
    }
    file.flush().await?;
    if Digest::from(hasher.finalize()) != blake3 {
        bail!("the weights to begin with are not what the coordinator says they are: the digests differ");
    }
    Ok(place)
}
