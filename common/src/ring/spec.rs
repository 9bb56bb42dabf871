//! Defines a ring: its members, and what they exchange.

use std::net::SocketAddr;
use std::time::Duration;

use super::bucket::BucketLayout;
use super::encoding::Encoding;
use super::gather::Gathers;
use super::schedule;

/// A worker of the ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingPeer {
    pub rank: u32,
    /// Its name in its certificate.
    pub name: String,
    /// Where it may be reached, best first.
    pub addresses: Vec<SocketAddr>,
}

impl RingPeer {
    /// Its addresses in words.
    pub(super) fn at(&self) -> String {
        self.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

/// One ring: its members in order, and what they exchange. The same on every rank but
/// for `rank`.
#[derive(Debug, Clone)]
pub struct RingSpec {
    pub generation: u64,
    pub rank: u32,
    /// By rank.
    pub peers: Vec<RingPeer>,
    pub layout: BucketLayout,
    pub encoding: Encoding,
    /// What is gathered beside the buckets: none, or of as many ranks as there are peers.
    pub gathers: Gathers,
    /// Connections side by side to the successor: bucket b takes number
    /// b % connections. At least 1.
    pub connections: u32,
    /// A neighbour that is silent for this long is lost.
    pub timeout: Duration,
    /// How long the ring may take to form: members may have to fetch state first.
    pub form_within: Duration,
    /// How long the successor may take to answer at all, whatever it must do before
    /// that.
    pub reach_within: Duration,
}

impl RingSpec {
    pub fn world(&self) -> u32 {
        self.peers.len() as u32
    }

    pub(super) fn predecessor(&self) -> u32 {
        schedule::predecessor(self.rank as usize, self.peers.len()) as u32
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if self.rank >= self.world() {
            return Err(format!("rank {} in a world of {}", self.rank, self.world()));
        }
        if self.peers.iter().zip(0..).any(|(peer, rank)| peer.rank != rank) {
            return Err("the peers are not in the order of their ranks".to_owned());
        }
        if !self.gathers.is_empty() && self.gathers.ranks() != self.peers.len() {
            return Err(format!("rows of {} ranks in a world of {}", self.gathers.ranks(), self.world()));
        }
        if self.connections == 0 || u32::try_from(self.layout.len()).is_err() {
            return Err(format!("{} connections, {} buckets", self.connections, self.layout.len()));
        }
        Ok(())
    }
}
