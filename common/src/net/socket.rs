//! The UDP socket as quinn sees it: tokio's, a few datagrams at a time, and beside it the
//! relay of a worker that others do not reach.

use std::io::{IoSliceMut, Result};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};

use super::addresses::any_like;
use super::error::NetError;
use super::relay::{RelayPort, number_at};
use super::transport;

/// A UDP port that this process has bound but does not serve yet: a caller learns
/// whether the port is free before it starts anything that must be reachable there.
#[derive(Debug)]
pub struct BoundSocket {
    pub(super) address: SocketAddr,
    pub(super) socket: UdpSocket,
    /// Bytes of receive buffer.
    pub(super) buffer: usize,
}

impl BoundSocket {
    /// Binds `address`; port 0 for any.
    pub fn bind(address: SocketAddr) -> std::result::Result<Self, NetError> {
        let (socket, buffer) = transport::bind(address).map_err(|source| NetError::Bind { address, source })?;
        Ok(Self { address, socket, buffer })
    }

    /// Serves the port, to make connections only. Must be called within the tokio runtime
    /// that is to drive it.
    pub fn open(self) -> std::result::Result<OpenSocket, NetError> {
        let Self { address, socket, buffer } = self;
        let bound = |source| NetError::Bind { address, source };
        let relay = Arc::new(RelayPort::default());
        let socket = Arc::new(EndpointSocket::new(socket, Arc::clone(&relay)).map_err(bound)?);
        let quinn =
            quinn::Endpoint::new_with_abstract_socket(transport::endpoint(), None, socket, Arc::new(TokioRuntime)).map_err(bound)?;
        Ok(OpenSocket { quinn, relay, buffer })
    }
}

/// A UDP port that makes connections and does not accept any yet: a worker enrols over the
/// one port that it also has later.
#[derive(Debug)]
pub struct OpenSocket {
    pub(super) quinn: quinn::Endpoint,
    pub(super) relay: Arc<RelayPort>,
    /// Bytes of receive buffer.
    pub(super) buffer: usize,
}

impl OpenSocket {
    /// A free port by which `address` can be reached. Must be called within a tokio runtime.
    pub(super) fn towards(address: SocketAddr) -> std::result::Result<Self, NetError> {
        BoundSocket::bind(SocketAddr::new(any_like(address.ip()), 0))?.open()
    }

    /// Whether it sends to addresses of this one's family.
    pub(super) fn has_family_of(&self, address: SocketAddr) -> bool {
        self.quinn.local_addr().is_ok_and(|bound| bound.is_ipv6() == address.is_ipv6() || (bound.is_ipv6() && bound.ip().is_unspecified()))
    }
}

/// Datagrams that are received at a time. Quinn offers room for 32, which on loopback
/// are two megabytes: each has left the cache before it is decrypted. Receiving one at
/// a time costs more in calls than that saves where packets are small.
const BATCH: usize = 4;

#[derive(Debug)]
struct EndpointSocket {
    udp: Arc<dyn AsyncUdpSocket>,
    ipv6: bool,
    relay: Arc<RelayPort>,
    /// The relay is read next, if both have something: neither keeps the other waiting.
    relays_turn: AtomicBool,
}

impl EndpointSocket {
    fn new(socket: UdpSocket, relay: Arc<RelayPort>) -> Result<Self> {
        let udp = TokioRuntime.wrap_udp_socket(socket)?;
        Ok(Self { ipv6: udp.local_addr()?.is_ipv6(), udp, relay, relays_turn: AtomicBool::new(true) })
    }
}

impl AsyncUdpSocket for EndpointSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.udp.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> Result<()> {
        match number_at(transmit.destination.ip()) {
            None => self.udp.try_send(transmit),
            Some(worker) => {
                self.relay.send(worker, transmit.contents, transmit.segment_size);
                Ok(())
            }
        }
    }

    fn poll_recv(&self, cx: &mut Context<'_>, buffers: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Poll<Result<usize>> {
        let batch = BATCH.min(buffers.len()).min(meta.len());
        let (buffers, meta) = (&mut buffers[..batch], &mut meta[..batch]);
        if self.relay.has_arrived()
            && self.relays_turn.swap(false, Ordering::Relaxed)
            && let read @ Poll::Ready(_) = self.relay.poll_receive(cx.waker(), self.ipv6, buffers, meta)
        {
            return read;
        }
        self.relays_turn.store(true, Ordering::Relaxed);
        match self.udp.poll_recv(cx, buffers, meta) {
            Poll::Pending => self.relay.poll_receive(cx.waker(), self.ipv6, buffers, meta),
            read => read,
        }
    }

    fn local_addr(&self) -> Result<SocketAddr> {
        self.udp.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.udp.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.udp.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.udp.may_fragment()
    }
}
