//! Both ends of a relay's streams: what waits for one, and what comes out of one.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quinn::{Connection, ConnectionError, ReadError, RecvStream, SendStream, WriteError};
use tokio::sync::Notify;

use super::frame::{Frame, FrameError, Frames};
use super::mailbox::Mailbox;

/// Packets that are written at once.
const BATCH: usize = 32;
/// Bytes that are read at once.
const PIECE: usize = 64 << 10;

/// Why a relay's connection ended.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error("the connection was lost: {0}")]
    Connection(#[from] ConnectionError),
    #[error("the stream failed: {0}")]
    Write(#[from] WriteError),
    #[error("the stream failed: {0}")]
    Read(#[from] ReadError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the other side ended the stream")]
    Ended,
}

/// What waits for one stream.
#[derive(Debug, Default)]
pub struct Outlet {
    mailbox: Mutex<Mailbox>,
    filled: Notify,
}

impl Outlet {
    fn mailbox(&self) -> MutexGuard<'_, Mailbox> {
        // Every change is complete when the lock is given up.
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a packet written, if there is room for it. Never waits.
    pub fn put(&self, of: u32, frame: Frame) {
        self.mailbox().put(of, frame.into_bytes());
        self.filled.notify_one();
    }

    pub(super) fn clear(&self) {
        self.mailbox().clear();
    }

    /// Writes what comes, until the stream fails.
    async fn write_to(&self, stream: &mut SendStream) -> RelayError {
        loop {
            let mut batch: Vec<Bytes> = {
                let mut mailbox = self.mailbox();
                std::iter::from_fn(|| mailbox.pop()).take(BATCH).collect()
            };
            if batch.is_empty() {
                self.filled.notified().await;
            } else if let Err(problem) = stream.write_all_chunks(&mut batch).await {
                return problem.into();
            }
        }
    }
}

/// Serves one end of a relay's connection, by a stream each way, until it ends: writes what
/// is put into `outlet`, and hands over `each` frame that arrives.
pub async fn carry(connection: &Connection, outlet: &Outlet, each: impl FnMut(Frame)) -> RelayError {
    let outgoing = async {
        match connection.open_uni().await {
            Ok(mut stream) => outlet.write_to(&mut stream).await,
            Err(problem) => problem.into(),
        }
    };
    let incoming = async {
        match connection.accept_uni().await {
            Ok(mut stream) => read_frames(&mut stream, each).await,
            Err(problem) => problem.into(),
        }
    };
    tokio::select! {
        ended = outgoing => ended,
        ended = incoming => ended,
    }
}

/// Hands over each frame that arrives, until the stream ends or makes no sense.
async fn read_frames(stream: &mut RecvStream, mut each: impl FnMut(Frame)) -> RelayError {
    let mut frames = Frames::default();
    loop {
        match stream.read_chunk(PIECE, true).await {
            Ok(Some(piece)) => frames.push(&piece.bytes),
            Ok(None) => return RelayError::Ended,
            Err(problem) => return problem.into(),
        }
        loop {
            match frames.next() {
                Ok(Some(frame)) => each(frame),
                Ok(None) => break,
                Err(problem) => return problem.into(),
            }
        }
    }
}
