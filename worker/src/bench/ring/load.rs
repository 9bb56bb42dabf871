//! The load of `worker bench ring`, and the messages between its processes.

use clap::Args;
use common::config::WireEncoding;
use common::net::transport::{NETWORK_PACKET, SMALLEST_PACKET};
use serde::{Deserialize, Serialize};

/// The gradient to reduce, and the ring that reduces it.
#[derive(Debug, Clone, PartialEq, Args, Serialize, Deserialize)]
pub struct Load {
    /// Processes in the ring.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(2..=64))]
    pub world: u32,
    /// Bytes of f32 gradient; AlexNet's by default.
    #[arg(long, default_value_t = 249_513_376, value_parser = clap::value_parser!(u64).range(4..=1 << 34))]
    pub bytes: u64,
    /// The number format between processes.
    #[arg(long, value_enum, default_value = "f32")]
    pub wire: WireEncoding,
    /// Rounds that are counted; two more come before them.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub rounds: u64,
    /// QUIC connections side by side from each process to the next.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub connections: u32,
    /// Bytes of f32 gradient in one bucket.
    #[arg(long, value_name = "BYTES", default_value_t = 8 << 20, value_parser = clap::value_parser!(u64).range(4096..=1 << 30))]
    pub bucket_bytes: u64,
    /// Threads of each process's runtime.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub threads: u32,
    /// The largest UDP payload, as on a network: 1452 is what 1500-byte Ethernet
    /// carries [default: loopback's own, 65000].
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(i64::from(SMALLEST_PACKET)..=i64::from(NETWORK_PACKET)))]
    pub packet: Option<u16>,
}

impl Load {
    /// Values of the gradient.
    pub fn elements(&self) -> u64 {
        self.bytes / 4
    }

    /// Bytes that each rank sends in a round, headers not counted:
    /// `2 (world - 1) / world` of the encoded gradient.
    pub fn sent_bytes(&self) -> f64 {
        let width = common::ring::Encoding::from(self.wire).width() as f64;
        2.0 * f64::from(self.world - 1) / f64::from(self.world) * self.elements() as f64 * width
    }
}

/// A round: how long the slowest rank took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Round {
    pub ms: f64,
    /// CPU time, the most of any rank.
    pub cpu_ms: f64,
}

/// The first message to a rank.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Assignment {
    /// The folder of the authority that all ranks trust, readable by this user only.
    pub(super) authority: std::path::PathBuf,
    pub(super) rank: u32,
    pub(super) load: Load,
}
