//! Tests whether another worker can be reached, and how fast, before a ring is formed
//! with it and while the current ring trains on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use common::net::{Alpn, Endpoint};
use common::timing::{CONNECTION_SILENCE, PROBE, PROBE_TRANSFER};
use common::wire::messages::{BulkReply, BulkRequest, MAX_CONTROL, Member, PROBE_BYTES, ToCoordinator};
use common::wire::{read_message, write_message};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::mpsc;

/// How soon a peer is tried again. The coordinator may not have told it of this worker yet.
const RETRY: Duration = Duration::from_millis(100);

/// Bytes that are written at once.
const PIECE: usize = 64 << 10;

/// Tries to reach each of `peers`, all at the same time, and reports to the
/// coordinator. If `bytes` is not 0, times the transfer of so many bytes.
pub fn start(endpoint: &Arc<Endpoint>, to_coordinator: &mpsc::Sender<ToCoordinator>, peers: Vec<Member>, bytes: u64) {
    for peer in peers {
        let (endpoint, to_coordinator) = (Arc::clone(endpoint), to_coordinator.clone());
        tokio::spawn(async move {
            let (problem, millis) = match reach(&endpoint, &peer, bytes.min(PROBE_BYTES)).await {
                Ok(took) => (None, took.as_millis() as u64),
                Err(e) => (Some(format!("{e:#}")), 0),
            };
            // If the coordinator is gone, the result is not needed.
            let _ = to_coordinator.send(ToCoordinator::Probed { peer: peer.name, problem, millis }).await;
        });
    }
}

/// Connects to one peer; returns how long the transfer takes.
async fn reach(endpoint: &Endpoint, peer: &Member, bytes: u64) -> Result<Duration> {
    let (deadline, addresses) = (Instant::now() + PROBE, peer.addresses());
    // The network may have changed since the relay was needed.
    endpoint.forget(&peer.name);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let problem = match tokio::time::timeout(left, endpoint.connect_any(&addresses, &peer.name, Alpn::Bulk, CONNECTION_SILENCE)).await {
            Ok(Ok(connection)) => return measure(&connection, bytes).await,
            Ok(Err(e)) => anyhow::Error::from(e),
            Err(_) => bail!(
                "nothing was heard from it at {} in {} s; the address may be wrong, or UDP blocked on the way",
                addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
                PROBE.as_secs()
            ),
        };
        if Instant::now() + RETRY >= deadline {
            return Err(problem);
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// How long a transfer of `bytes` takes; extrapolated if it takes longer than
/// `PROBE_TRANSFER`.
async fn measure(connection: &Connection, bytes: u64) -> Result<Duration> {
    if bytes == 0 {
        return Ok(Duration::ZERO);
    }
    let (mut send, mut receive) = connection.open_bi().await?;
    write_message(&mut send, &BulkRequest::Measure { bytes }).await?;
    let (start, mut sent) = (Instant::now(), 0u64);
    let piece = Bytes::from(vec![0; PIECE]);
    let transfer = async {
        while sent < bytes {
            let part = piece.slice(..PIECE.min((bytes - sent) as usize));
            let length = part.len() as u64;
            send.write_chunk(part).await?;
            sent += length;
        }
        send.finish()?;
        match read_message::<BulkReply>(&mut receive, MAX_CONTROL).await? {
            Some(BulkReply::Stored) => Ok(()),
            _ => bail!("it did not acknowledge a test transfer"),
        }
    };
    match tokio::time::timeout(PROBE_TRANSFER, transfer).await {
        Ok(done) => done.map(|()| start.elapsed()),
        // Bytes that were written but not yet acknowledged make the link look faster
        // than it is.
        Err(_) => Ok(start.elapsed().mul_f64(bytes as f64 / connection.stats().udp_tx.bytes.clamp(1, bytes) as f64)),
    }
}

/// Receives and acknowledges a test transfer.
pub async fn serve(send: &mut SendStream, receive: &mut RecvStream, bytes: u64) -> Result<()> {
    if bytes > PROBE_BYTES {
        bail!("announced a test transfer of {bytes} bytes; {PROBE_BYTES} are the most");
    }
    let mut left = bytes;
    while left > 0 {
        let piece = receive.read_chunk(left as usize, true).await?;
        left -= piece.context("a test transfer ended early")?.bytes.len() as u64;
    }
    write_message(send, &BulkReply::Stored).await?;
    Ok(send.finish()?)
}
