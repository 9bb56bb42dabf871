//! The made-up addresses by which workers reach each other through the coordinator.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::super::names::worker_number;

/// Of 0.0.0.0/8, "this network", no host has an address (RFC 1122, section 3.2.1.3). An IPv4
/// address is usable by sockets of either family.
const NETWORK: u8 = 0;
/// The largest number that the other three bytes hold.
const MOST: u32 = (1 << 24) - 1;
/// QUIC refuses port 0.
pub(super) const PORT: u16 = 1;

/// The number of a worker in its made-up address; none for other nodes, and for a worker
/// whose number is too large for one.
pub fn number_of(name: &str) -> Option<u32> {
    worker_number(name).and_then(|number| u32::try_from(number).ok()).filter(|number| (1..=MOST).contains(number))
}

/// The address that stands for the way through the coordinator to the worker of this name.
pub fn address_of(name: &str) -> Option<SocketAddr> {
    let [_, a, b, c] = number_of(name)?.to_be_bytes();
    Some(SocketAddr::from(([NETWORK, a, b, c], PORT)))
}

/// The address of the worker of this number.
pub(super) fn address_at(number: u32) -> Ipv4Addr {
    let [_, a, b, c] = number.to_be_bytes();
    Ipv4Addr::new(NETWORK, a, b, c)
}

/// The number in a made-up address; none in any other.
pub(in super::super) fn number_at(ip: IpAddr) -> Option<u32> {
    let ip = match ip {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(ip) => ip.to_ipv4_mapped()?,
    };
    let [network, a, b, c] = ip.octets();
    Some(u32::from_be_bytes([0, a, b, c])).filter(|number| network == NETWORK && *number > 0)
}

/// Whether it stands for the way through the coordinator.
pub fn is_relayed(address: SocketAddr) -> bool {
    number_at(address.ip()).is_some()
}

/// An address as it is shown to people.
#[derive(Debug, Clone, Copy)]
pub struct Shown(pub SocketAddr);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_relayed(self.0) { f.write_str("the coordinator's relay") } else { self.0.fmt(f) }
    }
}
