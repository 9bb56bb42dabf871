//! The coordinator's bulk service: samples for workers without a local copy, checkpoints
//! to and from the run directory, and pictures for its record. Each stream carries one request.

mod budget;
mod checkpoints;
mod clients;
mod pictures;
mod service;
#[cfg(test)]
mod tests;
mod writing;

use std::sync::Arc;

use anyhow::{Result, bail};
use common::dataset::Split;
use common::net::Peer;
use common::wire::messages::{BulkReply, BulkRequest, MAX_REQUEST, MAX_SAMPLES, split};
use common::wire::{STALLED, WireError, read_message, write_message};
use quinn::{RecvStream, SendStream};

pub use clients::OnAlive;
pub use service::BulkService;

use clients::Client;
use writing::{Stalled, within, write};

/// Samples are read and sent in groups of at most this many bytes, or of one sample.
const GROUP: u64 = 2 << 20;

/// Serves one bulk connection until it closes. An invalid request ends only its own
/// connection.
pub async fn serve(service: Arc<BulkService>, peer: Peer) {
    let name = peer.name.clone().unwrap_or_default();
    let client = service.clients.connected(&name, &peer.connection, &service.on_alive);
    while let Ok((send, recv)) = peer.connection.accept_bi().await {
        if service.admissions.is_revoked(&name) {
            peer.connection.close(1u32.into(), b"the token of this worker was revoked");
            break;
        }
        let (service, client, connection) = (Arc::clone(&service), Arc::clone(&client), peer.connection.clone());
        tokio::spawn(async move {
            let name = &client.name;
            match respond(&service, &client, send, recv).await {
                Ok(()) => {}
                // The peer has cancelled the request, or is gone.
                Err(e) if broke_off(&e) => tracing::debug!("a bulk request of {name} broke off: {e:#}"),
                Err(e) => {
                    tracing::warn!("a bulk request of {name} failed: {e:#}");
                    connection.close(1u32.into(), b"bad request");
                }
            }
        });
    }
    service.clients.disconnected(&name, &peer.connection);
}

async fn respond(service: &BulkService, client: &Client, mut send: SendStream, mut recv: RecvStream) -> Result<()> {
    let Some(request) = read_message::<BulkRequest>(&mut recv, MAX_REQUEST).await? else { return Ok(()) };
    client.report_alive();
    let answered = match request {
        BulkRequest::Samples { val, ids } => samples(service, client, &mut send, split(val), &ids).await,
        BulkRequest::PutCheckpoint { step, weights_blake3, files } => {
            let stored = checkpoints::put(service, client, &mut recv, step, weights_blake3, &files).await;
            if let Err(reason) = &stored {
                tracing::error!("could not store the checkpoint of step {step} from {}: {reason}", client.name);
            }
            answer(&mut send, stored).await
        }
        BulkRequest::PutPicture { shown, step, bytes } => {
            let stored = pictures::put(service, client, &mut recv, shown, step, bytes).await;
            answer(&mut send, stored).await
        }
        BulkRequest::PutPredictions(predictions) => answer(&mut send, pictures::put_predictions(service, client, predictions)).await,
        BulkRequest::GetCheckpoint { step } => checkpoints::get(service, client, &mut send, step).await,
        BulkRequest::GetWeights => checkpoints::get_weights(service, client, &mut send).await,
        BulkRequest::GetState { .. } => bail!("asked the coordinator for a state that only workers hold"),
        BulkRequest::Measure { .. } => bail!("sent the coordinator a test transfer that is meant for workers"),
    };
    match answered {
        Err(e) if e.is::<Stalled>() => {
            tracing::debug!("a bulk request of {} ends: {e}", client.name);
            let _ = send.reset(STALLED.into());
            Ok(())
        }
        Err(e) => Err(e),
        Ok(()) => Ok(send.finish()?),
    }
}

/// Says that something was stored, or why not.
async fn answer(send: &mut SendStream, stored: Result<(), String>) -> Result<()> {
    let reply = stored.map_or_else(|reason| BulkReply::Failed { reason }, |()| BulkReply::Stored);
    within(write_message(send, &reply)).await
}

/// Answers group by group: the memory of one group is given back before the next is read.
async fn samples(service: &BulkService, client: &Client, send: &mut SendStream, split: Split, ids: &[u32]) -> Result<()> {
    if ids.len() > MAX_SAMPLES {
        bail!("asked for {} samples at once; {MAX_SAMPLES} is the most", ids.len());
    }
    let mut left = ids;
    loop {
        let (group, bytes) = next_group(left, |id| service.source.size_hint(split, id));
        let _taken = service.budget.take(&client.share, bytes).await;
        let read = {
            let _turn = service.reads.acquire().await?;
            let (source, ids) = (Arc::clone(&service.source), group.to_vec());
            tokio::task::spawn_blocking(move || source.read(split, &ids)).await?
        };
        let samples = match read {
            Ok(samples) => samples,
            Err(e) => return within(write_message(send, &BulkReply::Failed { reason: e.to_string() })).await,
        };
        let labels = samples.iter().map(|s| s.label).collect();
        let lengths = samples.iter().map(|s| s.bytes.len() as u64).collect();
        within(write_message(send, &BulkReply::Samples { labels, lengths })).await?;
        for sample in samples {
            write(send, sample.bytes).await?;
        }
        left = &left[group.len()..];
        if left.is_empty() {
            return Ok(());
        }
    }
}

/// The next samples to read at once, and their bytes as far as is known.
fn next_group(ids: &[u32], size: impl Fn(u32) -> u64) -> (&[u32], u64) {
    let mut bytes = 0u64;
    let mut count = 0;
    for &id in ids {
        let more = bytes.saturating_add(size(id));
        if count > 0 && more > GROUP {
            break;
        }
        (bytes, count) = (more, count + 1);
    }
    (&ids[..count], bytes)
}

/// Whether the error is only that the connection ended, and not an invalid message.
pub fn broke_off(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(WireError::Io(_) | WireError::Truncated { .. }))
            || cause.is::<quinn::WriteError>()
            || cause.is::<quinn::ConnectionError>()
            || cause.is::<quinn::ReadError>()
    })
}
