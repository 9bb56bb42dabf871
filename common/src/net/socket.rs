//! The UDP socket as quinn sees it: tokio's, a few datagrams at a time.

use std::io::{IoSliceMut, Result};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};

use super::addresses::any_like;
use super::error::NetError;
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
        let socket = Arc::new(SmallBatches::new(socket).map_err(bound)?);
        let quinn =
            quinn::Endpoint::new_with_abstract_socket(transport::endpoint(), None, socket, Arc::new(TokioRuntime)).map_err(bound)?;
        Ok(OpenSocket { quinn, buffer })
    }
}

/// A UDP port that makes connections and does not accept any yet: a worker enrols over the
/// one port that it also has later.
#[derive(Debug)]
pub struct OpenSocket {
    pub(super) quinn: quinn::Endpoint,
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
pub(super) struct SmallBatches(Arc<dyn AsyncUdpSocket>);

impl SmallBatches {
    pub(super) fn new(socket: UdpSocket) -> Result<Self> {
        Ok(Self(TokioRuntime.wrap_udp_socket(socket)?))
    }
}

impl AsyncUdpSocket for SmallBatches {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.0.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> Result<()> {
        self.0.try_send(transmit)
    }

    fn poll_recv(&self, cx: &mut Context<'_>, buffers: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Poll<Result<usize>> {
        let batch = BATCH.min(buffers.len()).min(meta.len());
        self.0.poll_recv(cx, &mut buffers[..batch], &mut meta[..batch])
    }

    fn local_addr(&self) -> Result<SocketAddr> {
        self.0.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.0.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.0.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.0.may_fragment()
    }
}
