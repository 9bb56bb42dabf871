#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};

use common::net::relay::{MAX_PACKET, is_relayed};
use common::net::{Alpn, Authority, COORDINATOR, Endpoint, Role};

use super::*;

/// An address at which nothing answers, and no reply says so.
const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1)), 9);
const SOON: Duration = Duration::from_secs(10);

struct Rig {
    authority: Authority,
    relay: Arc<Relay>,
    address: SocketAddr,
    heard: Arc<AtomicU32>,
    _dir: tempfile::TempDir,
}

/// A coordinator that does nothing but relay.
fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open(dir.path()).unwrap();
    let endpoint = Endpoint::bind((Ipv4Addr::LOCALHOST, 0).into(), &authority.identity(COORDINATOR).unwrap(), Role::Coordinator).unwrap();
    let address = endpoint.local_addr().unwrap();
    let heard = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&heard);
    let relay = Arc::new(Relay::new(Arc::new(move |_| _ = count.fetch_add(1, Ordering::Relaxed))));
    let serving = Arc::clone(&relay);
    tokio::spawn(async move {
        while let Some(peer) = endpoint.accept().await {
            assert_eq!(peer.alpn, Alpn::Relay);
            tokio::spawn(Arc::clone(&serving).serve(peer));
        }
    });
    Rig { authority, relay, address, heard, _dir: dir }
}

fn member(name: &str) -> Member {
    Member { name: name.to_owned(), addr: NOWHERE, others: Vec::new() }
}

impl Rig {
    /// A worker that listens at any port of this address and has a connection to the relay.
    async fn worker(&self, name: &str, listen: &str) -> Arc<Endpoint> {
        let endpoint = Endpoint::bind(listen.parse().unwrap(), &self.authority.identity(name).unwrap(), Role::Worker).unwrap();
        let endpoint = Arc::new(endpoint);
        self.attach(&endpoint).await;
        endpoint
    }

    async fn attach(&self, endpoint: &Arc<Endpoint>) {
        let connection = endpoint.connect(self.address, COORDINATOR, Alpn::Relay).await.unwrap();
        let carrying = Arc::clone(endpoint);
        tokio::spawn(async move { carrying.relay_over(connection).await });
        let name = number_of(&endpoint.identity().name).unwrap();
        let stands = async {
            while !self.relay.state().workers.contains_key(&name) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(SOON, stands).await.expect("the relay has the worker");
    }
}

async fn connect(from: &Endpoint, name: &str, within: Duration) -> Option<quinn::Connection> {
    let connecting = from.connect_any(&[NOWHERE], name, Alpn::Ring, Duration::from_secs(2));
    tokio::time::timeout(within, connecting).await.ok()?.ok()
}

/// Sends `bytes` one way and back over one connection, several streams at a time.
async fn exchange(near: &quinn::Connection, far: &quinn::Connection, bytes: usize) {
    let content: Vec<u8> = (0..bytes).map(|n| (n % 251) as u8).collect();
    let send = async |over: &quinn::Connection| {
        let mut stream = over.open_uni().await.unwrap();
        stream.write_all(&content).await.unwrap();
        stream.finish().unwrap();
        stream.stopped().await.unwrap();
    };
    let receive = async |over: &quinn::Connection| {
        let mut stream = over.accept_uni().await.unwrap();
        stream.read_to_end(bytes).await.unwrap()
    };
    let ((), (), forth, back) = tokio::join!(send(near), send(far), receive(far), receive(near));
    assert!(forth == content && back == content);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_do_not_reach_each_other_exchange_as_over_any_connection() {
    let rig = rig();
    // Sockets of either family, and of both.
    let mut listen = vec!["127.0.0.1:0", "0.0.0.0:0"];
    listen.extend(std::net::UdpSocket::bind("[::1]:0").is_ok().then_some("[::]:0"));
    let names = ["worker-1", "worker-2", "worker-70000"];
    let mut workers = Vec::new();
    for (name, listen) in names.iter().zip(&listen) {
        workers.push(rig.worker(name, listen).await);
    }
    rig.relay.set_members(&names.map(member));
    for (place, near) in workers.iter().enumerate() {
        let next = (place + 1) % workers.len();
        let (far, name) = (&workers[next], names[next]);
        let connection = connect(near, name, SOON).await.expect("a way through the coordinator");
        let accepted = tokio::time::timeout(SOON, far.accept_ring()).await.unwrap().unwrap();
        assert_eq!(accepted.name.as_deref(), Some(names[place]));
        for end in [&connection, &accepted.connection] {
            assert!(is_relayed(end.remote_address()));
        }
        exchange(&connection, &accepted.connection, 3_000_000).await;
        // Large packets were found, and nearly all arrived.
        let stats = connection.stats();
        assert_eq!(stats.path.current_mtu, MAX_PACKET);
        assert!(stats.path.lost_packets < 20, "{:?}", stats.path);
        // The second time it needs no patience.
        let start = Instant::now();
        connect(near, name, SOON).await.expect("the same way again");
        assert!(start.elapsed() < Duration::from_millis(900), "{:?}", start.elapsed());
        tokio::time::timeout(SOON, far.accept_ring()).await.unwrap().unwrap();
    }
    assert!(rig.heard.load(Ordering::Relaxed) > 0, "packets show that their sender is alive");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_passes_between_those_that_were_not_named_to_each_other() {
    let rig = rig();
    let one = rig.worker("worker-1", "127.0.0.1:0").await;
    let other = rig.worker("worker-2", "127.0.0.1:0").await;
    rig.relay.set_members(&[member("worker-2"), member("worker-3")]);
    assert!(connect(&one, "worker-2", Duration::from_millis(1600)).await.is_none());
    rig.relay.probes("worker-2", &[member("worker-1")]);
    assert!(connect(&one, "worker-2", SOON).await.is_some(), "both ways");
    assert!(tokio::time::timeout(SOON, other.accept_ring()).await.is_ok());
    // A worker that is sent away is not reached any more, and comes back by a new connection.
    rig.relay.set_members(&[member("worker-1"), member("worker-2")]);
    rig.relay.expel("worker-2");
    one.forget("worker-2");
    assert!(connect(&one, "worker-2", Duration::from_millis(1600)).await.is_none());
    rig.attach(&other).await;
    assert!(connect(&one, "worker-2", SOON).await.is_some());
    // Nobody but workers has a place here, and what is no packet ends its connection.
    let stranger = Endpoint::bind((Ipv4Addr::LOCALHOST, 0).into(), &rig.authority.identity("somebody").unwrap(), Role::Worker).unwrap();
    let connection = stranger.connect(rig.address, COORDINATOR, Alpn::Relay).await.unwrap();
    assert!(tokio::time::timeout(SOON, connection.closed()).await.is_ok());
    let liar = Endpoint::bind((Ipv4Addr::LOCALHOST, 0).into(), &rig.authority.identity("worker-5").unwrap(), Role::Worker).unwrap();
    let connection = liar.connect(rig.address, COORDINATOR, Alpn::Relay).await.unwrap();
    let mut stream = connection.open_uni().await.unwrap();
    stream.write_all(&[0xff; 64]).await.unwrap();
    assert!(tokio::time::timeout(SOON, connection.closed()).await.is_ok());
}

/// Its reader is stopped, so all that is sent to it must wait or be dropped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_reads_nothing_costs_a_bounded_amount_and_holds_nobody_up() {
    let rig = rig();
    let sender = rig.worker("worker-1", "127.0.0.1:0").await;
    let friend = rig.worker("worker-2", "127.0.0.1:0").await;
    let dead = Endpoint::bind((Ipv4Addr::LOCALHOST, 0).into(), &rig.authority.identity("worker-3").unwrap(), Role::Worker).unwrap();
    let _unread = dead.connect(rig.address, COORDINATOR, Alpn::Relay).await.unwrap();
    rig.relay.set_members(&["worker-1", "worker-2", "worker-3"].map(member));
    let flood = rig.authority.identity("worker-4").unwrap();
    let flood = Endpoint::bind((Ipv4Addr::LOCALHOST, 0).into(), &flood, Role::Worker).unwrap();
    rig.relay.set_members(&["worker-1", "worker-2", "worker-3", "worker-4"].map(member));
    let connection = flood.connect(rig.address, COORDINATOR, Alpn::Relay).await.unwrap();
    let mut stream = connection.open_uni().await.unwrap();
    let packet = Frame::new(3, &[7; MAX_PACKET as usize]).unwrap().into_bytes();
    let flooding = tokio::spawn(async move {
        for _ in 0..8000 {
            stream.write_all(&packet).await.unwrap();
        }
        connection
    });
    let near = connect(&sender, "worker-2", SOON).await.expect("a way through the coordinator");
    let far = tokio::time::timeout(SOON, friend.accept_ring()).await.unwrap().unwrap();
    tokio::time::timeout(SOON, exchange(&near, &far.connection, 1_000_000)).await.expect("the others go on");
    tokio::time::timeout(SOON, flooding).await.expect("50 MB to a dead worker are taken and dropped").unwrap();
}
