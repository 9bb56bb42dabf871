//! The coordinator's bulk service: samples for workers without a local copy,
//! and checkpoints to and from the run directory. One request a stream.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use common::dataset::SampleSource;
use common::net::Peer;
use common::run_dir::{CHECKPOINT_FILES, CheckpointFiles, CheckpointMeta};
use common::wire::messages::{BulkReply, BulkRequest, FileSize, MAX_REQUEST, MAX_SAMPLES, split};
use common::wire::{read_message, write_message};
use quinn::{RecvStream, SendStream};
use tokio::io::AsyncReadExt;
use tokio::sync::{Semaphore, mpsc};

use crate::limits::{Limits, digest};
use crate::peer::broke_off;
use crate::roster::Roster;
use crate::serve::News;

/// Requests that are read from disk at the same time, over all workers.
const CONCURRENT_READS: usize = 8;

/// Bytes moved at once between the network and a checkpoint file.
const CHUNK: usize = 1 << 20;

/// What bulk requests are served from.
pub struct BulkService {
    source: Arc<dyn SampleSource>,
    checkpoints: CheckpointFiles,
    config_identity: String,
    news: mpsc::Sender<News>,
    reads: Semaphore,
    roster: Arc<Roster>,
    limits: Limits,
}

impl BulkService {
    pub fn new(
        source: Arc<dyn SampleSource>,
        checkpoints: CheckpointFiles,
        config_identity: String,
        news: mpsc::Sender<News>,
        roster: Arc<Roster>,
        limits: Limits,
    ) -> Self {
        Self { source, checkpoints, config_identity, news, reads: Semaphore::new(CONCURRENT_READS), roster, limits }
    }
}

/// Serves one bulk connection until it closes. A request that makes no sense
/// ends its own connection only.
pub async fn serve(service: Arc<BulkService>, peer: Peer) {
    let name = peer.name.clone().unwrap_or_default();
    while let Ok((send, recv)) = peer.connection.accept_bi().await {
        if service.roster.is_revoked(&name) {
            peer.connection.close(1u32.into(), b"the token of this worker was revoked");
            break;
        }
        let (service, name, connection) = (Arc::clone(&service), name.clone(), peer.connection.clone());
        tokio::spawn(async move {
            match answer(&service, &name, send, recv).await {
                Ok(()) => {}
                // Whoever asked has thought better of it, or is gone.
                Err(e) if broke_off(&e) => tracing::debug!("a bulk request of {name} broke off: {e:#}"),
                Err(e) => {
                    tracing::warn!("a bulk request of {name} failed: {e:#}");
                    connection.close(1u32.into(), b"bad request");
                }
            }
        });
    }
}

async fn answer(service: &BulkService, asker: &str, mut send: SendStream, mut recv: RecvStream) -> Result<()> {
    let Some(request) = read_message::<BulkRequest>(&mut recv, MAX_REQUEST).await? else { return Ok(()) };
    match request {
        BulkRequest::Samples { val, ids } => samples(service, &mut send, val, ids).await?,
        BulkRequest::PutCheckpoint { step, weights_blake3, files } => {
            let reply = match put_checkpoint(service, asker, &mut recv, step, weights_blake3, &files).await {
                Ok(()) => BulkReply::Stored,
                Err(reason) => {
                    tracing::error!("could not store the checkpoint of step {step}: {reason}");
                    BulkReply::Failed { reason }
                }
            };
            write_message(&mut send, &reply).await?;
        }
        BulkRequest::GetCheckpoint { step } => get_checkpoint(service, &mut send, step).await?,
        BulkRequest::GetState { .. } => bail!("asked the coordinator for a state that only workers hold"),
    }
    Ok(send.finish()?)
}

async fn samples(service: &BulkService, send: &mut SendStream, val: bool, ids: Vec<u32>) -> Result<()> {
    if ids.len() > MAX_SAMPLES {
        bail!("asked for {} samples at once; {MAX_SAMPLES} is the most", ids.len());
    }
    let _turn = service.reads.acquire().await?;
    let source = Arc::clone(&service.source);
    let read = tokio::task::spawn_blocking(move || source.read(split(val), &ids)).await?;
    match read {
        Ok(samples) => {
            let labels = samples.iter().map(|s| s.label).collect();
            let lengths = samples.iter().map(|s| s.bytes.len() as u64).collect();
            write_message(send, &BulkReply::Samples { labels, lengths }).await?;
            for sample in samples {
                send.write_chunk(sample.bytes).await?;
            }
        }
        Err(e) => write_message(send, &BulkReply::Failed { reason: e.to_string() }).await?,
    }
    Ok(())
}

async fn put_checkpoint(
    service: &BulkService,
    asker: &str,
    recv: &mut RecvStream,
    step: u64,
    weights_blake3: String,
    files: &[FileSize],
) -> Result<(), String> {
    let names: Vec<&str> = files.iter().map(|f| f.name.as_str()).collect();
    if names != CHECKPOINT_FILES || files.iter().any(|f| f.bytes > service.limits.checkpoint_bytes) {
        let most = service.limits.checkpoint_bytes;
        return Err(format!("a checkpoint consists of {} of at most {most} bytes each", CHECKPOINT_FILES.join(" and ")));
    }
    service.limits.step(step).and_then(|()| digest(&weights_blake3))?;
    // Whoever is in the ring has the run's weights; others could only bring worse ones.
    if !service.roster.is_member(asker) {
        return Err(format!("{asker} is not in the run's ring"));
    }
    let mut writer = service.checkpoints.begin(step).map_err(|e| e.to_string())?;
    let mut chunk = vec![0; CHUNK];
    for file in files {
        writer.start_file(&file.name).map_err(|e| e.to_string())?;
        let mut left = file.bytes;
        while left > 0 {
            let want = CHUNK.min(left as usize);
            let got = recv.read(&mut chunk[..want]).await.map_err(|e| e.to_string())?.ok_or("the worker sent less than it announced")?;
            // A chunk goes to the page cache; what blocks is the fsync in commit.
            writer.write(&chunk[..got]).map_err(|e| e.to_string())?;
            left -= got as u64;
        }
    }
    let meta = CheckpointMeta { config_identity: service.config_identity.clone(), weights_blake3 };
    tokio::task::spawn_blocking(move || writer.commit(&meta)).await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    service.news.send(News::Stored { step }).await.map_err(|_| "the run is over".to_owned())
}

async fn get_checkpoint(service: &BulkService, send: &mut SendStream, step: u64) -> Result<()> {
    let unreadable = |path: &Path| format!("could not read `{}`", path.display());
    let checkpoints = service.checkpoints.clone();
    let verified = tokio::task::spawn_blocking(move || checkpoints.verify(step)).await?;
    let folder = match verified {
        Ok(checkpoint) => checkpoint.path,
        Err(e) => return Ok(write_message(send, &BulkReply::Failed { reason: e.to_string() }).await?),
    };
    let mut files = Vec::new();
    for name in CHECKPOINT_FILES {
        let path = folder.join(name);
        let bytes = tokio::fs::metadata(&path).await.with_context(|| unreadable(&path))?.len();
        files.push(FileSize { name: name.to_owned(), bytes });
    }
    write_message(send, &BulkReply::Checkpoint { files }).await?;
    let mut chunk = vec![0; CHUNK];
    for name in CHECKPOINT_FILES {
        let path = folder.join(name);
        let mut file = tokio::fs::File::open(&path).await.with_context(|| unreadable(&path))?;
        loop {
            let n = file.read(&mut chunk).await.with_context(|| unreadable(&path))?;
            if n == 0 {
                break;
            }
            send.write_all(&chunk[..n]).await?;
        }
    }
    Ok(())
}
