//! The addresses by which others may reach this machine, best first. What the interfaces
//! are is read from the system; their order is decided without it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// The most addresses that one node offers to others.
pub const MOST: usize = 16;

/// Names with which interfaces begin that join what runs on this machine: from another
/// machine their addresses lead elsewhere, most often to a bridge of its own.
const BRIDGES: [&str; 12] = ["docker", "br-", "virbr", "veth", "cni", "flannel", "cali", "lxc", "lxdbr", "podman", "vmnet", "vboxnet"];

/// One address of one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub ip: IpAddr,
    pub up: bool,
    /// A tunnel, as those of VPNs are.
    pub point_to_point: bool,
}

/// The addresses that others may use, best first: interfaces of networks before tunnels
/// before bridges; `outward`, the ones by which this machine reaches other networks, before
/// others of the same kind; then IPv4, in the order of the interfaces. Of an interface that
/// is down, and of link-local addresses, which name no interface, none is usable. Loopback
/// addresses come only where there is nothing else.
pub fn ranked(interfaces: &[Interface], outward: &[IpAddr]) -> Vec<IpAddr> {
    let usable = |i: &&Interface| i.up && !i.ip.is_unspecified() && !i.ip.is_multicast() && !is_link_local(i.ip);
    let kind = |i: &Interface| match () {
        () if BRIDGES.iter().any(|bridge| i.name.starts_with(bridge)) => 2,
        () if i.point_to_point => 1,
        () => 0,
    };
    let loopback = |i: &&Interface| i.ip.is_loopback();
    let mut found: Vec<&Interface> = interfaces.iter().filter(usable).filter(|i| !loopback(i)).collect();
    if found.is_empty() {
        found = interfaces.iter().filter(usable).filter(loopback).collect();
    }
    found.sort_by_key(|i| (kind(i), !outward.contains(&i.ip), i.ip.is_ipv6()));
    let mut ips: Vec<IpAddr> = Vec::new();
    for interface in found {
        if !ips.contains(&interface.ip) {
            ips.push(interface.ip);
        }
    }
    ips
}

/// The addresses of this machine that others may use, best first: see [`ranked`].
pub fn of_this_machine() -> Vec<IpAddr> {
    ranked(&interfaces(), &outward())
}

/// Any address of this machine, of the family of `ip`: what a socket that is to reach `ip` is
/// bound to.
pub(crate) fn any_like(ip: IpAddr) -> IpAddr {
    if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// Whether it is an address of a single link, which leads nowhere without the link's name.
pub fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// Where others may reach a socket that is bound to `bound`, best first, at most [`MOST`]:
/// that address itself, or those of this machine if it is bound to any address. A socket
/// that is bound to any IPv6 address has the IPv4 ones too, as those that
/// [`super::BoundSocket::bind`] makes.
pub fn listening(bound: SocketAddr) -> Vec<SocketAddr> {
    if !bound.ip().is_unspecified() {
        return vec![bound];
    }
    let mut ips: Vec<IpAddr> = of_this_machine().into_iter().filter(|ip| ip.is_ipv4() || bound.is_ipv6()).take(MOST).collect();
    if ips.is_empty() {
        ips.push(Ipv4Addr::LOCALHOST.into());
    }
    ips.into_iter().map(|ip| SocketAddr::new(ip, bound.port())).collect()
}

/// Where others may try a worker, best first, at most [`MOST`]: where it says that it is
/// to be reached, if it was told so; else the address from which the coordinator hears it,
/// and the `offered` ones of its interfaces.
pub fn candidates(seen: SocketAddr, advertised: Option<SocketAddr>, port: u16, offered: &[SocketAddr]) -> Vec<SocketAddr> {
    if let Some(address) = advertised {
        return vec![address];
    }
    let ip = seen.ip().to_canonical();
    // Behind a router the port that is seen is the router's; the worker's own may be open.
    let mut candidates: Vec<SocketAddr> = Vec::new();
    for address in [SocketAddr::new(ip, port), SocketAddr::new(ip, seen.port())].iter().chain(offered).take(MOST) {
        let unusable = address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast();
        if !unusable && !candidates.contains(address) {
            candidates.push(*address);
        }
    }
    candidates
}

fn interfaces() -> Vec<Interface> {
    let found = if_addrs::get_if_addrs().unwrap_or_else(|e| {
        tracing::debug!("the interfaces of this machine are not known: {e}");
        Vec::new()
    });
    found.into_iter().map(|i| Interface { ip: i.ip(), up: i.is_oper_up(), point_to_point: i.is_p2p(), name: i.name }).collect()
}

/// The addresses from which this machine reaches other networks. No packet is sent: the
/// destinations are of ranges that documentation has.
fn outward() -> Vec<IpAddr> {
    let from = |to: IpAddr| {
        let socket = UdpSocket::bind((any_like(to), 0)).ok()?;
        socket.connect((to, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    let v4 = from(Ipv4Addr::new(192, 0, 2, 1).into());
    let v6 = from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into());
    v4.into_iter().chain(v6).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(name: &str, ip: &str) -> Interface {
        Interface { name: name.to_owned(), ip: ip.parse().unwrap(), up: true, point_to_point: name.starts_with("wg") }
    }

    fn order(interfaces: &[Interface], outward: &[&str]) -> Vec<String> {
        let outward: Vec<IpAddr> = outward.iter().map(|ip| ip.parse().unwrap()).collect();
        ranked(interfaces, &outward).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn networks_come_before_tunnels_before_bridges_and_the_way_out_first() {
        let all = [
            of("lo", "127.0.0.1"),
            of("lo", "::1"),
            of("docker0", "172.17.0.1"),
            of("br-5e1f", "172.18.0.1"),
            of("eth0", "2001:db9::7"),
            of("eth0", "fe80::1"),
            of("eth0", "192.168.1.7"),
            of("wg0", "10.9.0.2"),
            of("ib0", "10.0.0.7"),
            of("ib0", "169.254.3.4"),
        ];
        let ranked = order(&all, &["10.0.0.7"]);
        assert_eq!(ranked, ["10.0.0.7", "192.168.1.7", "2001:db9::7", "10.9.0.2", "172.17.0.1", "172.18.0.1"]);
        assert_eq!(order(&all, &[])[..2], ["192.168.1.7", "10.0.0.7"], "without a way out, as the system lists them");
    }

    #[test]
    fn loopback_comes_only_where_nothing_else_is_up() {
        let down = Interface { up: false, ..of("eth0", "10.0.0.7") };
        let local = of("eth1", "fe80::2");
        assert_eq!(order(&[of("lo", "::1"), down.clone(), local.clone(), of("lo", "127.0.0.1")], &[]), ["127.0.0.1", "::1"]);
        assert_eq!(order(&[of("lo", "127.0.0.1"), down, local, of("docker0", "172.17.0.1")], &[]), ["172.17.0.1"]);
        assert_eq!(order(&[of("eth0", "10.0.0.7"), of("eth0", "10.0.0.7")], &[]), ["10.0.0.7"], "each once");
    }

    #[test]
    fn a_socket_is_where_it_is_bound_or_at_every_address_of_its_families() {
        let bound: SocketAddr = "127.0.0.1:7".parse().unwrap();
        assert_eq!(listening(bound), [bound]);
        let (v4, both) = (listening("0.0.0.0:9".parse().unwrap()), listening("[::]:9".parse().unwrap()));
        assert!(!v4.is_empty() && v4.iter().all(|a| a.is_ipv4() && a.port() == 9), "{v4:?}");
        assert!(v4.iter().all(|a| both.contains(a) || a.ip().is_loopback()), "{v4:?} {both:?}");
    }

    #[test]
    fn others_try_a_worker_where_it_was_told_to_be_else_where_it_is_seen_and_where_it_says() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let offered = [address("10.0.0.7:44"), address("[fd00::7]:44"), address("0.0.0.0:44"), address("10.0.0.8:0")];
        let of = |seen: &str| candidates(address(seen), None, 44, &offered);
        assert_eq!(of("127.0.0.1:44"), [address("127.0.0.1:44"), offered[0], offered[1]]);
        assert_eq!(of("[::ffff:10.0.0.7]:44"), [offered[0], offered[1]]);
        assert_eq!(of("192.0.2.9:61000"), [address("192.0.2.9:44"), address("192.0.2.9:61000"), offered[0], offered[1]]);
        assert_eq!(candidates(address("10.0.0.7:44"), Some(address("192.0.2.1:5")), 44, &offered), [address("192.0.2.1:5")]);
        assert!(candidates(address("10.0.0.7:1"), None, 44, &vec![address("10.0.0.9:1"); 90]).len() <= MOST);
    }
}
