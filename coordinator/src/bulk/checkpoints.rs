//! Checkpoints on their way between a worker and the run directory.

use common::digest::Digest;
use std::fs::File;
use std::io::Read;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use common::run_dir::{CHECKPOINT_FILES, CheckpointFiles, CheckpointLayout, CheckpointMeta, RunDirError};
use common::wire::messages::{BulkReply, FileSize};
use common::wire::write_message;
use quinn::{RecvStream, SendStream};
use tokio::sync::mpsc;

use super::clients::Client;
use super::service::BulkService;
use super::writing::{within, write};
use crate::inbox::News;

/// Bytes moved at once between the network and a checkpoint file.
const CHUNK: usize = 1 << 20;

/// Pieces that have arrived and wait for the disk.
const WAITING: usize = 4;

/// How long a checkpoint waits for the news that the step before it is committed.
/// That news comes over another connection and may arrive later than the checkpoint.
const NEWS: Duration = Duration::from_secs(5);

/// How often to check for that news.
const LOOK: Duration = Duration::from_millis(10);

/// Receives a checkpoint. The error is the reason for refusing it, which is sent to
/// the worker.
pub(super) async fn put(
    service: &BulkService,
    client: &Client,
    recv: &mut RecvStream,
    step: u64,
    weights_blake3: Digest,
    files: &[FileSize],
) -> Result<(), String> {
    let names: Vec<&str> = files.iter().map(|f| f.name.as_str()).collect();
    if names != CHECKPOINT_FILES || files.iter().any(|f| f.bytes > service.limits.checkpoint_bytes) {
        let most = service.limits.checkpoint_bytes;
        return Err(format!("a checkpoint consists of {} of at most {most} bytes each", CHECKPOINT_FILES.join(" and ")));
    }
    service.limits.step(step)?;
    // Members of the ring have the run's weights; other workers could only send worse ones.
    if !service.admissions.is_member(&client.name) {
        return Err(format!("{} is not in the run's ring", client.name));
    }
    let _turn = client.uploads.try_acquire().map_err(|_| "too many checkpoints are under way from this worker")?;
    committed(service, step).await?;

    let meta = CheckpointMeta { config_identity: service.config_identity, weights_blake3 };
    let (pieces, inbox) = mpsc::channel(WAITING);
    let (all, layout) = (service.checkpoints.clone(), service.layout.clone());
    let storing = tokio::task::spawn_blocking(move || store(&all, &layout, step, &meta, inbox));
    let sent = receive(client, recv, files, pieces).await;
    // An error of the disk comes first: it explains why the received pieces were not taken.
    storing.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string()).and_then(|stored| match sent {
        Ok(()) if stored => Ok(()),
        Ok(()) => Err("the checkpoint broke off".to_owned()),
        Err(reason) => Err(reason),
    })?;
    if service.inbox.send(News::Stored { step }).await { Ok(()) } else { Err("the run is over".to_owned()) }
}

/// Waits until the run has committed the step before `step`, at least.
async fn committed(service: &BulkService, step: u64) -> Result<(), String> {
    let start = Instant::now();
    loop {
        let committed = service.committed.load(Ordering::Relaxed);
        if step <= committed.saturating_add(1) {
            return Ok(());
        }
        if start.elapsed() > NEWS {
            return Err(format!("the state after step {step} cannot be there: the run has committed {committed} steps"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What the receiving task hands to the thread that writes.
enum Piece {
    File(String),
    Bytes(Bytes),
    /// The whole checkpoint has arrived.
    End,
}

/// Passes on the bytes that arrive. A slow disk holds up this transfer and nothing else.
async fn receive(client: &Client, recv: &mut RecvStream, files: &[FileSize], pieces: mpsc::Sender<Piece>) -> Result<(), String> {
    let pass = async |piece| pieces.send(piece).await.map_err(|_| "the disk takes no more".to_owned());
    for file in files {
        pass(Piece::File(file.name.clone())).await?;
        let mut left = file.bytes;
        while left > 0 {
            let most = CHUNK.min(left as usize);
            let chunk = recv.read_chunk(most, true).await.map_err(|e| e.to_string())?;
            let bytes = chunk.ok_or("the worker sent less than it announced")?.bytes;
            client.report_alive();
            left -= bytes.len() as u64;
            pass(Piece::Bytes(bytes)).await?;
        }
    }
    pass(Piece::End).await
}

/// Writes what arrives, on a thread that may wait for the disk. True once the
/// checkpoint is complete on disk; false if its end did not arrive.
fn store(
    all: &CheckpointFiles,
    layout: &CheckpointLayout,
    step: u64,
    meta: &CheckpointMeta,
    mut inbox: mpsc::Receiver<Piece>,
) -> Result<bool, RunDirError> {
    let mut writer = all.begin(step)?;
    while let Some(piece) = inbox.blocking_recv() {
        match piece {
            Piece::File(name) => writer.start_file(&name)?,
            Piece::Bytes(bytes) => writer.write(&bytes)?,
            Piece::End => {
                writer.check(layout)?;
                return writer.commit(meta).map(|()| true);
            }
        }
    }
    Ok(false)
}

/// Sends the checkpoint of `step`, or says why there is none.
pub(super) async fn get(service: &BulkService, client: &Client, send: &mut SendStream, step: u64) -> Result<()> {
    let checkpoints = service.checkpoints.clone();
    let opened = tokio::task::spawn_blocking(move || checkpoints.open(step)).await?;
    let files = match opened {
        Ok((_, files)) => files,
        Err(e) => return within(write_message(send, &BulkReply::Failed { reason: e.to_string() })).await,
    };
    let sizes = files.iter().map(|f| FileSize { name: f.name.clone(), bytes: f.bytes }).collect();
    within(write_message(send, &BulkReply::Checkpoint { files: sizes })).await?;
    for verified in files {
        send_file(service, client, send, verified.file, verified.bytes, &format!("the {} of step {step}", verified.name)).await?;
    }
    Ok(())
}

/// Sends the weights that the run began with, or says why there are none.
pub(super) async fn get_weights(service: &BulkService, client: &Client, send: &mut SendStream) -> Result<()> {
    let failed = |reason: String| BulkReply::Failed { reason };
    let Some(weights) = service.weights.clone() else {
        return within(write_message(send, &failed("this run's weights come from its seed".to_owned()))).await;
    };
    let name = format!("`{}`", weights.path.display());
    let file = match tokio::task::spawn_blocking(move || File::open(&weights.path)).await? {
        Ok(file) => file,
        Err(e) => return within(write_message(send, &failed(format!("could not open {name}: {e}")))).await,
    };
    within(write_message(send, &BulkReply::Weights { bytes: weights.bytes, blake3: weights.blake3 })).await?;
    send_file(service, client, send, file, weights.bytes, &name).await
}

/// Sends so many bytes of a file from its place on. `what` names it in errors.
async fn send_file(service: &BulkService, client: &Client, send: &mut SendStream, mut file: File, bytes: u64, what: &str) -> Result<()> {
    let mut left = bytes;
    while left > 0 {
        let _taken = service.budget.take(&client.share, CHUNK as u64).await;
        let mut chunk = vec![0; CHUNK.min(left as usize)];
        left -= chunk.len() as u64;
        let read = tokio::task::spawn_blocking(move || file.read_exact(&mut chunk).map(|()| (file, chunk))).await?;
        let chunk;
        (file, chunk) = read.with_context(|| format!("could not read {what}"))?;
        write(send, chunk.into()).await?;
    }
    Ok(())
}
