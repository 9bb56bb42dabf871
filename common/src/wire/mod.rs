//! The messages between coordinator and workers, and how they are framed. It knows no
//! QUIC: frames go over any asynchronous stream of bytes.

pub mod frame;
pub mod messages;

pub use frame::{WireError, read_message, write_message};

/// The version of all messages and stream headers. Peers of different versions
/// do not talk to each other.
pub const PROTOCOL: u32 = 9;

/// The code with which a bulk answer is reset if its reader took nothing for a while:
/// the resources it held were needed elsewhere, and it may be requested again.
pub const STALLED: u32 = 2;
