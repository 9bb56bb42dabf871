//! What is said between coordinator and workers, and how it is framed. It knows
//! no QUIC: frames go over any asynchronous stream of bytes.

pub mod frame;

/// The version of all messages and stream headers. Peers of different versions
/// do not talk to each other.
pub const PROTOCOL: u32 = 1;
