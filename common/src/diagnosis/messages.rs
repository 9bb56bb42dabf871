//! What is said on a visit. Each question has a stream of its own.

use std::net::SocketAddr;

use rkyv::{Archive, Deserialize, Serialize};

/// The largest message.
pub(super) const MESSAGE_MAX: usize = 1 << 10;

/// Bytes that are written at once.
pub(super) const PIECE: usize = 64 << 10;

/// From the visitor.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(super) enum Question {
    /// Answered by [`Answer::Terms`].
    Terms,
    /// Answered at once by [`Answer::Clock`].
    Clock,
    /// The coordinator sends `word` in datagrams to this port of the visitor's address, from
    /// a socket that the visitor has sent nothing to: answered by [`Answer::Knocked`].
    Knock { port: u16, word: u64 },
    /// Answered by at most so many bytes, for a bounded time.
    Download { bytes: u64 },
    /// Followed by at most so many bytes; answered by [`Answer::Received`] once they have
    /// come, or after a bounded time.
    Upload { bytes: u64 },
}

/// From the coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(super) enum Answer {
    Terms(Terms),
    Clock { unix_micros: u64 },
    Knocked,
    Received { bytes: u64 },
    Refused { reason: String },
}

/// What the visitor may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(super) struct Terms {
    /// The version of the coordinator's program.
    pub version: String,
    /// Whether a ring trains.
    pub trains: bool,
    /// Bytes of one measurement.
    pub bytes: u64,
    /// The address from which the visitor seems to come.
    pub seen: SocketAddr,
}
