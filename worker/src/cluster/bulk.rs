//! The bulk connection, for large transfers from and to the coordinator. If the
//! coordinator is restarted meanwhile, unfinished requests are repeated over the next
//! connection.

use std::future::Future;

use anyhow::{Context, Result, bail};
use common::wire::messages::FileSize;
use quinn::{Connection, ConnectionError, RecvStream};
use tokio::sync::watch;

use crate::replica::State;

/// The newest bulk connection to the coordinator.
#[derive(Debug, Clone)]
pub struct Bulk(watch::Receiver<Connection>);

impl Bulk {
    /// Also returns the sender that replaces the connection. Once the sender is
    /// dropped, requests no longer wait for another connection.
    pub fn new(connection: Connection) -> (watch::Sender<Connection>, Self) {
        let (replace, newest) = watch::channel(connection);
        (replace, Self(newest))
    }

    /// Whether the connection is open, as far as is known.
    pub fn is_up(&self) -> bool {
        self.0.borrow().close_reason().is_none()
    }

    /// Does `work` over the newest connection. Whenever a connection is lost, does it
    /// again over the next one.
    pub async fn with<T, F: Future<Output = Result<T>>>(&self, work: impl Fn(Connection) -> F) -> Result<T> {
        let mut newest = self.0.clone();
        loop {
            let connection = newest.borrow_and_update().clone();
            // A newer connection shows that this one is dead, which its own timeout may
            // show much later.
            let mut replaced = newest.clone();
            let failed = tokio::select! {
                outcome = work(connection.clone()) => match outcome {
                    Ok(done) => return Ok(done),
                    Err(e) => e,
                },
                Ok(()) = replaced.changed() => continue,
            };
            // The other side closed the connection with an error code: it would close
            // the next one for the same reason.
            let refused =
                matches!(connection.close_reason(), Some(ConnectionError::ApplicationClosed(close)) if close.error_code != 0u32.into());
            if connection.close_reason().is_none() || refused || newest.changed().await.is_err() {
                return Err(failed);
            }
        }
    }
}

/// Reads the two files of a state, model and optimizer, whose sizes the sender has
/// announced. Neither may have more than `largest` bytes. `of` names the sender in
/// errors.
pub async fn read_state(receive: &mut RecvStream, step: u64, files: &[FileSize], largest: u64, of: &str) -> Result<State> {
    let mut contents = Vec::with_capacity(files.len());
    for FileSize { name, bytes } in files {
        if *bytes > largest {
            bail!("the {name} of {of} is said to have {bytes} bytes");
        }
        contents.push(read_whole(receive, *bytes).await.with_context(|| format!("the {name} of {of} came incomplete"))?);
    }
    let optimizer = contents.pop().unwrap_or_default();
    let model = contents.pop().unwrap_or_default();
    Ok(State { step, model, optimizer })
}

/// Reads exactly `bytes` bytes. Their memory is reserved at once, and used only as they
/// arrive.
async fn read_whole(receive: &mut RecvStream, bytes: u64) -> Result<Vec<u8>> {
    let bytes = usize::try_from(bytes)?;
    let mut content = Vec::new();
    content.try_reserve_exact(bytes)?;
    while content.len() < bytes {
        let piece = receive.read_chunk(bytes - content.len(), true).await?;
        content.extend_from_slice(&piece.context("the stream ended early")?.bytes);
    }
    Ok(content)
}
