//! Checkpoints on their way between a worker and the coordinator.

use anyhow::{Context, Result, bail};
use common::run_dir::CHECKPOINT_FILES;
use common::wire::messages::{BulkReply, BulkRequest, FileSize, MAX_CHECKPOINT_BYTES, MAX_CONTROL};
use common::wire::{read_message, write_message};
use quinn::Connection;

use crate::replica::State;
use crate::train::Snapshot;

/// Sends a checkpoint to the coordinator and returns when it is on its disk.
pub async fn put(connection: &Connection, snapshot: Snapshot) -> Result<()> {
    let Snapshot { state, weights_blake3 } = snapshot;
    let (mut send, mut recv) = connection.open_bi().await?;
    let files = CHECKPOINT_FILES.into_iter().zip([state.model, state.optimizer]).collect::<Vec<_>>();
    let request = BulkRequest::PutCheckpoint {
        step: state.step,
        weights_blake3,
        files: files.iter().map(|(name, bytes)| FileSize { name: (*name).to_owned(), bytes: bytes.len() as u64 }).collect(),
    };
    write_message(&mut send, &request).await?;
    for (_, bytes) in files {
        send.write_chunk(bytes.into()).await?;
    }
    send.finish()?;
    match read_message::<BulkReply>(&mut recv, MAX_CONTROL).await? {
        Some(BulkReply::Stored) => Ok(()),
        Some(BulkReply::Failed { reason }) => bail!("the coordinator could not store the checkpoint: {reason}"),
        _ => bail!("the coordinator gave no answer to a checkpoint"),
    }
}

/// Fetches the checkpoint of `step` from the coordinator.
pub async fn get(connection: &Connection, step: u64) -> Result<State> {
    let (mut send, mut recv) = connection.open_bi().await?;
    write_message(&mut send, &BulkRequest::GetCheckpoint { step }).await?;
    send.finish()?;
    let files = match read_message::<BulkReply>(&mut recv, MAX_CONTROL).await? {
        Some(BulkReply::Checkpoint { files }) if files.len() == 2 => files,
        Some(BulkReply::Failed { reason }) => bail!("the coordinator has no checkpoint of step {step}: {reason}"),
        _ => bail!("the coordinator gave no checkpoint of step {step}"),
    };
    let mut contents = Vec::with_capacity(2);
    for file in files {
        if file.bytes > MAX_CHECKPOINT_BYTES {
            bail!("the checkpoint's `{}` is said to have {} bytes", file.name, file.bytes);
        }
        let mut bytes = vec![0; usize::try_from(file.bytes)?];
        recv.read_exact(&mut bytes).await.with_context(|| format!("the checkpoint's `{}` came incomplete", file.name))?;
        contents.push(bytes);
    }
    let optimizer = contents.pop().unwrap_or_default();
    let model = contents.pop().unwrap_or_default();
    Ok(State { step, model, optimizer })
}
