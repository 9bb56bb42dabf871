//! Bounds the memory of all bulk requests together: bytes are taken before they
//! are read from disk, and given back once they were written to the network. Each
//! peer has a share, so that none can take what the others need.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The bytes that all requests may hold at once, and those of one peer.
const ALL: u64 = 256 << 20;
const EACH: u64 = 32 << 20;

/// Permits are acquired in numbers of 32 bits, so each permit stands for this many bytes.
const UNIT: u64 = 1 << 10;

/// The bytes of all peers.
#[derive(Debug)]
pub(super) struct Budget(Arc<Semaphore>);

/// The bytes of one peer.
#[derive(Debug, Clone)]
pub(super) struct Share(Arc<Semaphore>);

/// Bytes that are given back when this is dropped.
#[derive(Debug)]
pub(super) struct Taken {
    _share: Option<OwnedSemaphorePermit>,
    _all: Option<OwnedSemaphorePermit>,
}

impl Default for Budget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new((ALL / UNIT) as usize)))
    }
}

impl Default for Share {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new((EACH / UNIT) as usize)))
    }
}

impl Budget {
    /// Waits until this many bytes are free, first in the peer's own share, so that a
    /// peer's requests wait for each other and do not hold up those of others. A
    /// request for more than a share has (one huge sample) takes the whole share.
    pub(super) async fn take(&self, share: &Share, bytes: u64) -> Taken {
        let units = bytes.clamp(1, EACH).div_ceil(UNIT) as u32;
        // The semaphores are never closed.
        let share = Arc::clone(&share.0).acquire_many_owned(units).await.ok();
        let all = Arc::clone(&self.0).acquire_many_owned(units).await.ok();
        Taken { _share: share, _all: all }
    }

    #[cfg(test)]
    pub(super) fn free(&self) -> u64 {
        self.0.available_permits() as u64 * UNIT
    }
}

#[cfg(test)]
pub(super) const TOTAL: u64 = ALL;
#[cfg(test)]
pub(super) const SHARE: u64 = EACH;
