//! Packets between two workers of which one does not reach the other, by way of the
//! coordinator.
//!
//! Such a pair has an ordinary QUIC connection from end to end, with its own TLS and
//! certificates: only its packets travel differently. To the worker's endpoint the other
//! worker has a made-up address ([`address_of`]). What is sent there does not go by UDP: it
//! goes in a [`Frame`] over a stream of the worker's connection for [`super::Alpn::Relay`],
//! and the coordinator passes it on over the stream of the worker that it is for. It is a
//! stream, because QUIC's datagrams have no room for another connection's first packets. What
//! finds its mailbox full is dropped, as a router does, and QUIC sends it again.

mod address;
mod frame;
mod mailbox;
mod port;
mod stream;

#[cfg(test)]
mod tests;

pub use address::{Shown, address_of, is_relayed, number_of};
pub use frame::{Frame, FrameError, MAX_PACKET};
pub use stream::{Outlet, RelayError, carry};

pub(super) use address::number_at;
#[cfg(fuzzing)]
pub(crate) use frame::read_any;
pub(super) use port::RelayPort;
