//! A worker's end of the relay, beside its UDP socket.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use quinn::udp::RecvMeta;
use quinn::{Connection, VarInt};

use super::address::{PORT, address_at};
use super::frame::Frame;
use super::stream::{Outlet, RelayError, carry};

/// Packets that have arrived and that the endpoint has not read yet. It reads them as fast
/// as those of its socket.
const ARRIVED: usize = 2048;

/// What a worker's socket and its connection to the coordinator's relay share.
#[derive(Debug, Default)]
pub(in super::super) struct RelayPort {
    outgoing: Outlet,
    arrived: Mutex<VecDeque<(u32, Bytes)>>,
    /// How many have arrived: known without the lock.
    count: AtomicUsize,
    /// Who reads.
    reader: AtomicWaker,
    connection: Mutex<Option<Connection>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is complete when the lock is given up.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RelayPort {
    /// Carries packets over this connection instead of any other, until it ends.
    pub(in super::super) async fn carry(&self, connection: Connection) -> RelayError {
        let close = |former: Connection| former.close(VarInt::from_u32(0), b"there is a newer connection");
        // What was sent to those that the former connection led to is late by now.
        self.outgoing.clear();
        let former = lock(&self.connection).replace(connection.clone());
        former.into_iter().for_each(close);
        let ended = carry(&connection, &self.outgoing, |frame| self.take(frame)).await;
        let mut current = lock(&self.connection);
        if current.as_ref().is_some_and(|current| current.stable_id() == connection.stable_id()) {
            *current = None;
        }
        connection.close(VarInt::from_u32(0), b"the relay's stream has ended");
        ended
    }

    /// Whether there is a connection, as far as is known.
    pub(in super::super) fn is_connected(&self) -> bool {
        lock(&self.connection).as_ref().is_some_and(|connection| connection.close_reason().is_none())
    }

    /// Sends what a socket would send as these datagrams.
    pub(in super::super) fn send(&self, to: u32, contents: &[u8], segment: Option<usize>) {
        for packet in contents.chunks(segment.unwrap_or(contents.len()).max(1)) {
            if let Some(frame) = Frame::new(to, packet) {
                self.outgoing.put(to, frame);
            }
        }
    }

    fn take(&self, frame: Frame) {
        let mut arrived = lock(&self.arrived);
        if arrived.len() >= ARRIVED {
            return;
        }
        arrived.push_back((frame.number(), frame.into_packet()));
        self.count.store(arrived.len(), Ordering::Release);
        drop(arrived);
        self.reader.wake();
    }

    /// Whether a packet can be read.
    pub(in super::super) fn has_arrived(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// Reads packets as from a socket, of IPv6 or not; if there are none, `waker` is woken by
    /// the next one.
    pub(in super::super) fn poll_receive(
        &self,
        waker: &Waker,
        ipv6: bool,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<std::io::Result<usize>> {
        self.reader.register(waker);
        if !self.has_arrived() {
            return Poll::Pending;
        }
        let mut arrived = lock(&self.arrived);
        let mut read = 0;
        for (buffer, meta) in buffers.iter_mut().zip(meta) {
            let Some((from, packet)) = arrived.pop_front() else { break };
            let length = packet.len().min(buffer.len());
            buffer[..length].copy_from_slice(&packet[..length]);
            let ip = address_at(from);
            let ip = if ipv6 { IpAddr::V6(ip.to_ipv6_mapped()) } else { ip.into() };
            *meta = RecvMeta { addr: SocketAddr::new(ip, PORT), len: length, stride: length, ecn: None, dst_ip: None };
            read += 1;
        }
        self.count.store(arrived.len(), Ordering::Release);
        if read == 0 { Poll::Pending } else { Poll::Ready(Ok(read)) }
    }
}
