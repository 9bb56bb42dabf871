//! A peer that has connected, and the place that a stranger holds while it enrols.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quinn::{Connection, VarInt};

use super::protocol::Alpn;
use super::slots::Slots;
use super::transport::{self, Route};

/// A peer that has connected to this node. A worker's endpoint also holds the
/// connections that it accepts (see [`super::Endpoint::expect`]): dropping one does not
/// end it, closing it does.
#[derive(Debug)]
pub struct Peer {
    /// The name in its certificate of this run; none only for [`Alpn::Enrol`] and
    /// [`Alpn::Doctor`].
    pub name: Option<String>,
    pub alpn: Alpn,
    pub connection: quinn::Connection,
    /// A stranger's place, held with its connection until this is dropped.
    pub(super) place: Option<Place>,
}

impl Peer {
    /// The peer has shown that it knows the secret of a token.
    pub(super) fn prove(&self) {
        if let Some(place) = &self.place {
            place.prove();
        }
    }

    /// Gives a peer without a certificate, which has proved a secret, the limits that its
    /// protocol needs.
    pub(super) fn raise(&self) {
        if let Some(place) = &self.place {
            transport::raise(&self.connection, self.alpn, place.route, place.socket_buffer);
        }
    }
}

/// Peers without a certificate that have come to enrol.
pub(super) type Strangers = Arc<Mutex<Slots<Connection>>>;

/// A stranger's place. Its connection ends with it.
pub(super) struct Place {
    pub(super) strangers: Strangers,
    pub(super) id: u64,
    pub(super) connection: Connection,
    pub(super) route: Route,
    pub(super) socket_buffer: usize,
}

impl Place {
    /// The stranger knows a token's secret: it is no longer evicted for others.
    pub(super) fn prove(&self) {
        lock(&self.strangers).prove(self.id);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.strangers).leave(self.id);
        self.connection.close(VarInt::from_u32(0), b"");
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("id", &self.id).finish_non_exhaustive()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is complete when the lock is given up.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
