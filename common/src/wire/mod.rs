//! What is said between coordinator and workers, and how it is framed. It knows
//! no QUIC: frames go over any asynchronous stream of bytes.

pub mod frame;
pub mod messages;

pub use frame::{WireError, read_message, write_message};

/// The version of all messages and stream headers. Peers of different versions
/// do not talk to each other.
pub const PROTOCOL: u32 = 3;
