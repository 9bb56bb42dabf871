//! Checkpoints on their way between a worker and the coordinator.

use std::time::Duration;

use anyhow::{Result, bail};
use bytes::Bytes;
use common::run_dir::CHECKPOINT_FILES;
use common::wire::messages::{BulkReply, BulkRequest, FileSize, MAX_CHECKPOINT_BYTES, MAX_CONTROL};
use common::wire::{read_message, write_message};
use quinn::Connection;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::bulk::{Bulk, read_state};
use crate::replica::State;
use crate::train::Snapshot;

/// A snapshot in memory that can be sent more than once.
struct Encoded {
    step: u64,
    weights_blake3: String,
    files: Vec<(&'static str, Bytes)>,
}

/// Where a checkpoint is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    UnderWay,
    /// The coordinator is out of reach or cannot store it: tried again.
    Held,
    Stored,
}

/// A checkpoint on its way to the coordinator's disk. Trouble there is not the
/// training's: it is told, and the checkpoint is sent again until it is stored or
/// a newer one takes its place.
pub struct Upload {
    task: JoinHandle<()>,
    progress: watch::Receiver<Progress>,
}

impl Upload {
    pub fn start(runtime: &Handle, bulk: Bulk, snapshot: Snapshot) -> Self {
        let Snapshot { state, weights_blake3 } = snapshot;
        let files = CHECKPOINT_FILES.into_iter().zip([state.model.into(), state.optimizer.into()]).collect();
        let snapshot = Encoded { step: state.step, weights_blake3, files };
        let (told, progress) = watch::channel(Progress::UnderWay);
        let task = runtime.spawn(async move {
            loop {
                let sent = bulk.with(|connection| {
                    told.send_replace(Progress::UnderWay);
                    let (snapshot, told) = (&snapshot, &told);
                    async move { put(connection, snapshot).await.inspect_err(|_| _ = told.send_replace(Progress::Held)) }
                });
                match sent.await {
                    Ok(()) => break,
                    Err(e) => tracing::warn!("the checkpoint of step {} is not stored, training goes on: {e:#}", snapshot.step),
                }
                told.send_replace(Progress::Held);
                tokio::time::sleep(AGAIN).await;
            }
            told.send_replace(Progress::Stored);
        });
        Self { task, progress }
    }

    /// Returns once nothing is gained by waiting any longer: it is stored, or held up.
    pub async fn settled(&mut self) {
        let _ = self.progress.wait_for(|p| *p != Progress::UnderWay).await;
    }

    /// Waits until the last checkpoint of a run is on disk.
    pub async fn stored(&mut self) -> Result<()> {
        match tokio::time::timeout(PATIENCE, self.progress.wait_for(|p| *p == Progress::Stored)).await {
            Ok(Ok(_)) => Ok(()),
            _ => bail!("the last checkpoint could not be stored within {} s", PATIENCE.as_secs()),
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How soon a checkpoint that could not be stored is sent again, and how long a
/// run waits at its end for somebody to make room.
pub const AGAIN: Duration = Duration::from_secs(5);
pub const PATIENCE: Duration = Duration::from_secs(600);

/// Sends a checkpoint to the coordinator and returns when it is on its disk.
async fn put(connection: Connection, snapshot: &Encoded) -> Result<()> {
    let (mut send, mut recv) = connection.open_bi().await?;
    let request = BulkRequest::PutCheckpoint {
        step: snapshot.step,
        weights_blake3: snapshot.weights_blake3.clone(),
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
    // A coordinator that cannot store it stops listening and says why.
    match read_message::<BulkReply>(&mut recv, MAX_CONTROL).await? {
        Some(BulkReply::Stored) => sent,
        Some(BulkReply::Failed { reason }) => bail!("the coordinator could not store the checkpoint: {reason}"),
        _ => bail!("the coordinator gave no answer to a checkpoint"),
    }
}

/// Fetches the checkpoint of `step` from the coordinator.
pub async fn get(bulk: &Bulk, step: u64) -> Result<State> {
    bulk.with(|connection| get_over(connection, step)).await
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
