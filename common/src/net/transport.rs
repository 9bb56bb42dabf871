//! QUIC transport settings: one profile for control, one for large transfers, on
//! loopback or on a network. It knows no certificates and no messages.
//!
//! What decides the throughput, as measured: the size of packets, whether the
//! kernel cuts them (GSO), and windows that fit in the socket's buffer. A GSO
//! batch is ten packets and fails over 64 KiB, so packets beyond 6,500 bytes and
//! GSO exclude each other. Loopback takes the largest packets UDP has; a network
//! starts at what every path carries and discovers more, up to what GSO bears.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{Connection, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use socket2::{Domain, Protocol, Socket, Type};

use super::protocol::Alpn;
use super::relay::{MAX_PACKET, is_relayed};
use crate::timing::CONNECTION_SILENCE;

/// The buffer size requested from the kernel for a socket, each way. It may grant less.
const SOCKET_BUFFER: usize = 4 << 20;
/// Bytes in flight on loopback, which has no delay to fill: this much stays in a core's
/// cache between sender and receiver.
const LOOPBACK_WINDOW: usize = 1 << 20;
/// The largest UDP payload over IPv4, with room for IPv6's header too.
const LOOPBACK_PACKET: u16 = 65_000;
/// The largest that handshake packets may be, with or without discovery.
const LOOPBACK_FIRST_PACKET: u16 = 16_000;
/// Every path carries this much: QUIC demands it.
pub const SMALLEST_PACKET: u16 = 1_200;
/// Ten of these make a GSO batch that the kernel still takes.
pub const NETWORK_PACKET: u16 = 6_500;
/// Streams of gradients that a ring keeps in flight on one connection. Each has
/// its own share of the connection's window, so that one that is not read yet
/// cannot hold up the others.
pub const STREAMS_IN_FLIGHT: u32 = 4;
/// Bytes in flight through the coordinator's relay: less than what waits there without
/// loss (`relay/mailbox.rs`), and 10 MB/s over a path that takes 100 ms.
const RELAY_WINDOW: usize = 1 << 20;
/// What a peer may have in flight before it has authenticated.
const STRANGER_WINDOW: u32 = 64 << 10;
/// The path between two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    Loopback,
    /// `packet` is the largest UDP payload that path MTU discovery tries, from
    /// [`SMALLEST_PACKET`] to [`NETWORK_PACKET`] bytes.
    Network {
        packet: u16,
    },
    /// Through the coordinator.
    Relayed,
}

impl Route {
    /// A network with unknown properties.
    pub const NETWORK: Self = Self::Network { packet: NETWORK_PACKET };

    /// To a node at this address.
    pub fn to(address: SocketAddr) -> Self {
        if is_relayed(address) {
            return Self::Relayed;
        }
        let loopback = match address.ip() {
            IpAddr::V4(ip) => ip.is_loopback(),
            IpAddr::V6(ip) => ip.is_loopback() || ip.to_ipv4_mapped().is_some_and(|ip| ip.is_loopback()),
        };
        // Elsewhere the loopback device does not carry 64 KiB packets.
        if loopback && cfg!(target_os = "linux") { Self::Loopback } else { Self::NETWORK }
    }
}

/// Binds a UDP socket with large buffers and returns it with the bytes of receive
/// buffer that the kernel granted. Any address, of either family, means those of both,
/// where the system has IPv6.
pub(super) fn bind(address: SocketAddr) -> std::io::Result<(UdpSocket, usize)> {
    if !address.ip().is_unspecified() {
        return bind_to(address);
    }
    match bind_to((Ipv6Addr::UNSPECIFIED, address.port()).into()) {
        Err(e) if !matches!(e.kind(), ErrorKind::AddrInUse | ErrorKind::PermissionDenied) => {
            bind_to((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        bound => bound,
    }
}

fn bind_to(address: SocketAddr) -> std::io::Result<(UdpSocket, usize)> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.bind(&address.into())?;
    let granted = socket.recv_buffer_size()?;
    // Linux reports twice the usable size: the other half is for its own bookkeeping.
    Ok((socket.into(), if cfg!(target_os = "linux") { granted / 2 } else { granted }))
}

pub(super) fn endpoint() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    if let Err(problem) = config.max_udp_payload_size(LOOPBACK_PACKET) {
        tracing::debug!(%problem, "large packets are not available");
    }
    config
}

/// Bytes that peers may have in flight to this node on one connection: not more
/// than the socket's buffer holds, or packets are lost in it.
fn window(route: Route, socket_buffer: usize) -> u32 {
    let most = match route {
        Route::Loopback => LOOPBACK_WINDOW,
        Route::Network { .. } => SOCKET_BUFFER,
        Route::Relayed => RELAY_WINDOW,
    };
    socket_buffer.clamp(256 << 10, most) as u32
}

fn base(route: Route, socket_buffer: usize) -> TransportConfig {
    let mut config = TransportConfig::default();
    let window = window(route, socket_buffer);
    config.stream_receive_window(VarInt::from_u32(window / STREAMS_IN_FLIGHT));
    config.receive_window(VarInt::from_u32(window));
    config.send_window(u64::from(window));
    config.datagram_receive_buffer_size(None);
    // Between machines of one cluster there is little to probe for: start with a full
    // window.
    let mut congestion = CubicConfig::default();
    congestion.initial_window(u64::from(window));
    config.congestion_controller_factory(Arc::new(congestion));
    let mut discovery = MtuDiscoveryConfig::default();
    match route {
        Route::Loopback => {
            config.initial_mtu(LOOPBACK_FIRST_PACKET).min_mtu(LOOPBACK_FIRST_PACKET).enable_segmentation_offload(false);
            config.initial_rtt(Duration::from_millis(5));
            discovery.upper_bound(LOOPBACK_PACKET);
        }
        Route::Network { packet } => {
            config.initial_rtt(Duration::from_millis(50));
            discovery.upper_bound(packet);
        }
        // A packet takes two ways, and waits at each for others.
        Route::Relayed => {
            config.initial_rtt(Duration::from_millis(100));
            discovery.upper_bound(MAX_PACKET);
        }
    }
    config.mtu_discovery_config(Some(discovery));
    config
}

/// The streams that a peer may have open at once: (bidirectional, one-way).
fn streams(alpn: Alpn) -> (u32, u32) {
    match alpn {
        Alpn::Enrol => (1, 0),
        Alpn::Doctor => (STREAMS_IN_FLIGHT, 0),
        Alpn::Control => (16, 16),
        Alpn::Bulk => (16, 0),
        // A stream's slot is free again only once its end was acknowledged.
        Alpn::Ring => (1, 2 * STREAMS_IN_FLIGHT),
        Alpn::Relay => (0, 1),
    }
}

/// For a connection that this node makes. `idle` is how long the peer may be silent;
/// keep-alives are sent six times as often.
pub(super) fn outgoing(alpn: Alpn, route: Route, socket_buffer: usize, idle: Duration) -> TransportConfig {
    let mut config = base(route, socket_buffer);
    let (both, one_way) = streams(alpn);
    config.max_concurrent_bidi_streams(VarInt::from_u32(both));
    config.max_concurrent_uni_streams(VarInt::from_u32(one_way));
    if matches!(alpn, Alpn::Bulk | Alpn::Relay) {
        // Who requests a gigabyte of state, or is sent what is relayed, reads nothing else over it.
        config.stream_receive_window(VarInt::from_u32(window(route, socket_buffer)));
    }
    config.max_idle_timeout(IdleTimeout::try_from(idle).ok());
    config.keep_alive_interval(Some(idle / 6));
    config
}

/// For a connection that a peer makes to this node, before the peer has authenticated:
/// almost nothing is allowed until [`raise`].
pub(super) fn incoming(route: Route, socket_buffer: usize) -> TransportConfig {
    let mut config = base(route, socket_buffer);
    config.receive_window(VarInt::from_u32(STRANGER_WINDOW));
    config.max_concurrent_bidi_streams(VarInt::from_u32(1));
    config.max_concurrent_uni_streams(VarInt::from_u32(0));
    config.max_idle_timeout(IdleTimeout::try_from(CONNECTION_SILENCE).ok());
    config
}

/// Gives a peer with a certificate of the run the limits that its protocol needs.
pub(super) fn raise(connection: &Connection, alpn: Alpn, route: Route, socket_buffer: usize) {
    let (both, one_way) = streams(alpn);
    connection.set_receive_window(VarInt::from_u32(window(route, socket_buffer)));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(both));
    connection.set_max_concurrent_uni_streams(VarInt::from_u32(one_way));
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_gets_large_packets() {
        for address in ["127.0.0.1:1", "127.8.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(Route::to(address.parse().unwrap()) == Route::Loopback, cfg!(target_os = "linux"), "{address}");
        }
        for address in ["10.0.0.1:1", "[fe80::1]:1", "[::ffff:10.0.0.1]:1"] {
            assert_eq!(Route::to(address.parse().unwrap()), Route::NETWORK);
        }
    }

    /// On a system without IPv6 this would be IPv4 alone.
    #[test]
    fn any_address_is_that_of_both_families() {
        for any in ["0.0.0.0:0", "[::]:0"] {
            let (socket, _) = bind(any.parse().unwrap()).unwrap();
            let port = socket.local_addr().unwrap().port();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let mut reached: Vec<SocketAddr> = vec![(Ipv4Addr::LOCALHOST, port).into()];
            if UdpSocket::bind("[::1]:0").is_ok() {
                reached.push((Ipv6Addr::LOCALHOST, port).into());
            }
            for to in reached {
                let (from, _) = bind_to(SocketAddr::new(to.ip(), 0)).unwrap();
                from.send_to(b"x", to).unwrap();
                assert_eq!(socket.recv(&mut [0; 9]).unwrap(), 1, "{any} by {to}");
            }
            assert_eq!(bind((Ipv4Addr::UNSPECIFIED, port).into()).unwrap_err().kind(), ErrorKind::AddrInUse);
        }
    }

    #[test]
    fn all_streams_in_flight_fit_in_the_window_together() {
        for buffer in [0, 212_992, 1 << 20, 4 << 20, 1 << 30] {
            for (route, most) in [(Route::Loopback, 1 << 20), (Route::NETWORK, 4 << 20)] {
                let window = window(route, buffer);
                assert!((256 << 10..=most).contains(&window));
                assert!(window / STREAMS_IN_FLIGHT * STREAMS_IN_FLIGHT <= window);
            }
        }
    }
}
