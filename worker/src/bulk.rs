//! The connection for what is large, to a coordinator that may be started again
//! meanwhile: what was asked for is asked for again over the next connection.

use std::future::Future;

use anyhow::Result;
use quinn::{Connection, ConnectionError};
use tokio::sync::watch;

/// The newest bulk connection to the coordinator.
#[derive(Debug, Clone)]
pub struct Bulk(watch::Receiver<Connection>);

impl Bulk {
    /// With the end that replaces the connection. Once that is dropped, nothing
    /// is waited for any more.
    pub fn new(connection: Connection) -> (watch::Sender<Connection>, Self) {
        let (replace, newest) = watch::channel(connection);
        (replace, Self(newest))
    }

    /// Whether the coordinator is there, as far as is known.
    pub fn is_up(&self) -> bool {
        self.0.borrow().close_reason().is_none()
    }

    /// Does `work` over the newest connection, and again over the next one as
    /// often as one is lost.
    pub async fn with<T, F: Future<Output = Result<T>>>(&self, work: impl Fn(Connection) -> F) -> Result<T> {
        let mut newest = self.0.clone();
        loop {
            let connection = newest.borrow_and_update().clone();
            let failed = match work(connection.clone()).await {
                Ok(done) => return Ok(done),
                Err(e) => e,
            };
            // What the other side ended for a reason would end for it again.
            let refused =
                matches!(connection.close_reason(), Some(ConnectionError::ApplicationClosed(close)) if close.error_code != 0u32.into());
            if connection.close_reason().is_none() || refused || newest.changed().await.is_err() {
                return Err(failed);
            }
        }
    }
}
