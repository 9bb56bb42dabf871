//! Writes to a peer that may have stopped reading.

use anyhow::Result;
use bytes::Bytes;
use common::timing::BULK_STALL;
use quinn::SendStream;

/// Bytes written at once: few enough to pass a slow link within [`BULK_STALL`].
const PIECE: usize = 64 << 10;

/// The peer has not read for [`BULK_STALL`].
#[derive(Debug, thiserror::Error)]
#[error("it has not read for {} s", BULK_STALL.as_secs())]
pub(super) struct Stalled;

/// Writes all of `content`; an error if the peer takes none of it for [`BULK_STALL`].
pub(super) async fn write(send: &mut SendStream, mut content: Bytes) -> Result<()> {
    while !content.is_empty() {
        let piece = content.split_to(PIECE.min(content.len()));
        tokio::time::timeout(BULK_STALL, send.write_chunk(piece)).await.map_err(|_| Stalled)??;
    }
    Ok(())
}

/// Puts the same time limit on the write of a message.
pub(super) async fn within<T, E>(work: impl Future<Output = Result<T, E>>) -> Result<T>
where
    anyhow::Error: From<E>,
{
    Ok(tokio::time::timeout(BULK_STALL, work).await.map_err(|_| Stalled)??)
}
