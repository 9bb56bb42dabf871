//! What strangers cost the peers that may connect.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use quinn::{Connection, VarInt};

use super::*;

/// The environment variable that makes a copy of this test program the server under
/// attack.
const FOLDER: &str = "RINGLEADER_TEST_KEYS";

/// Opens this many connections without a certificate and sends nothing.
async fn idle_strangers(authority: &Authority, address: SocketAddr, number: usize) -> (quinn::Endpoint, Vec<Connection>) {
    let mut config = stranger(authority, Alpn::Enrol);
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_secs(1)));
    config.transport_config(Arc::new(transport));
    let endpoint = quinn::Endpoint::client(local()).unwrap();
    let (mut connecting, mut connections) = (tokio::task::JoinSet::new(), Vec::new());
    for _ in 0..number {
        if connecting.len() == 100 {
            connections.extend(connecting.join_next().await.unwrap().unwrap());
        }
        let (endpoint, config) = (endpoint.clone(), config.clone());
        connecting.spawn(async move { endpoint::connect(&endpoint, config, address, COORDINATOR).await.ok() });
    }
    while let Some(connected) = connecting.join_next().await {
        connections.extend(connected.unwrap());
    }
    (endpoint, connections)
}

/// A coordinator that serves newcomers until it is dropped.
fn serve(coordinator: Arc<Endpoint>, authority: Arc<Authority>) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let numbers = Arc::new(AtomicU32::new(0));
        while let Some(peer) = coordinator.accept().await {
            let (authority, numbers) = (authority.clone(), numbers.clone());
            tokio::spawn(async move {
                let number = async |_| Ok(worker_name(numbers.fetch_add(1, Ordering::Relaxed).into()));
                let _ = enrolment::admit(peer, &authority, number).await;
            });
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_strangers_keep_no_newcomer_and_no_member_out() {
    let (_dir, authority) = authority();
    let authority = Arc::new(authority);
    let (coordinator, address) = bind(&authority, COORDINATOR, Role::Coordinator);
    // While the coordinator serves no newcomer, strangers fill only their own places.
    let (_endpoint, strangers) = idle_strangers(&authority, address, 200).await;
    assert!(strangers.len() > 150, "only {} have connected", strangers.len());
    let (worker, _) = bind(&authority, "worker-1", Role::Worker);
    let _connection = worker.connect(address, COORDINATOR, Alpn::Control).await.unwrap();
    // The worker's side of the handshake completes a little before the coordinator's.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let first = coordinator.accept().await.unwrap();
    assert_eq!(first.name.as_deref(), Some("worker-1"), "the member comes first");

    let serving = serve(Arc::new(coordinator), authority.clone());
    let start = Instant::now();
    for _ in 0..3 {
        enrolment::enrol(address, &token(&authority)).await.unwrap();
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    // Silent strangers are soon closed, with a reason.
    let reason = tokio::time::timeout(Duration::from_secs(5), strangers.last().unwrap().closed()).await.expect("it is still there");
    assert!(closing::explain(&reason).contains("try again"), "{reason:?}");
    serving.abort();
}

#[tokio::test]
async fn whoever_is_turned_away_tries_again_and_whoever_is_refused_does_not() {
    let (_dir, authority) = authority();
    let (coordinator, address) = bind(&authority, COORDINATOR, Role::Coordinator);
    let came = AtomicU32::new(0);
    let busy_at_first = async {
        while let Some(peer) = coordinator.accept().await {
            match came.fetch_add(1, Ordering::Relaxed) {
                0 => peer.connection.close(closing::BUSY, b"try again"),
                // As when a coordinator ends and another is started.
                1 => peer.connection.close(VarInt::from_u32(0), b""),
                _ => drop(enrolment::admit(peer, &authority, async |_| Ok(worker_name(5))).await),
            }
        }
    };
    tokio::pin!(busy_at_first);
    let good = token(&authority);
    let wrong = Token { secret: [7; 16], ..good.clone() };
    let identity = tokio::select! { got = enrolment::enrol(address, &good) => got.unwrap(), () = &mut busy_at_first => unreachable!() };
    assert_eq!((identity.name.as_str(), came.load(Ordering::Relaxed)), ("worker-5", 3));
    let refused = tokio::select! { got = enrolment::enrol(address, &wrong) => got, () = &mut busy_at_first => unreachable!() };
    let refused = refused.unwrap_err();
    assert!(matches!(refused, EnrolmentError::Refused { .. }) && !refused.is_transient(), "{refused}");
    assert_eq!(came.load(Ordering::Relaxed), 4, "a refusal is final");
}

#[tokio::test]
async fn trying_again_has_an_end() {
    let (_dir, authority) = authority();
    let (coordinator, address) = bind(&authority, COORDINATOR, Role::Coordinator);
    let never = async {
        while let Some(peer) = coordinator.accept().await {
            peer.connection.close(closing::BUSY, b"try again");
        }
    };
    let start = Instant::now();
    let token = token(&authority);
    let patience = Duration::from_secs(1);
    let (socket, named) = (BoundSocket::bind(local()).unwrap().open().unwrap(), [address.to_string()]);
    let trying = enrolment::enrol_by(&socket, &named, &token, Some(patience));
    let error = tokio::select! { got = trying => got.unwrap_err(), () = never => unreachable!() };
    assert!(error.is_transient() && error.to_string().contains("try again"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

/// Not a test by itself: the process whose memory the next test measures. It has a
/// coordinator's endpoint and a worker's that expects `worker-2` alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connected_to() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let authority = Arc::new(Authority::open(std::path::Path::new(&folder)).unwrap());
    let (coordinator, at_coordinator) = bind(&authority, COORDINATOR, Role::Coordinator);
    let (worker, at_worker) = bind(&authority, "worker-1", Role::Worker);
    worker.expect(["worker-2".to_owned()]);
    println!("\n{at_coordinator}\n{at_worker}");
    let serving = serve(Arc::new(coordinator), authority);
    let _ = tokio::task::spawn_blocking(|| std::io::stdin().lines().count()).await;
    serving.abort();
}

struct KnockedAt(Child);

impl Drop for KnockedAt {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl KnockedAt {
    fn start(folder: &std::path::Path) -> (Self, SocketAddr, SocketAddr) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "--nocapture", "net::tests::strangers::connected_to"]).env(FOLDER, folder);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut addresses = lines.map_while(Result::ok).filter_map(|line| line.parse().ok());
        let (coordinator, worker) = (addresses.next().unwrap(), addresses.next().unwrap());
        (Self(child), coordinator, worker)
    }

    /// Resident memory in megabytes.
    fn resident(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_strangers_and_ninety_unexpected_connections_cost_little() {
    let (dir, authority) = authority();
    let token = token(&authority);
    let (process, at_coordinator, at_worker) = KnockedAt::start(dir.path());
    let newcomer = async || {
        let start = Instant::now();
        enrolment::enrol(at_coordinator, &token).await.unwrap();
        start.elapsed()
    };
    let alone = newcomer().await;
    let before = process.resident();

    let (unexpected, _) = bind(&authority, "worker-66", Role::Worker);
    let (expected, _) = bind(&authority, "worker-2", Role::Worker);
    let ninety = async {
        let mut closed = 0;
        for _ in 0..90 {
            if let Ok(connection) = unexpected.connect(at_worker, "worker-1", Alpn::Ring).await {
                let reason = tokio::time::timeout(Duration::from_secs(5), connection.closed()).await.expect("it must be closed");
                assert!(closing::explain(&reason).contains("does not know"), "{reason:?}");
            }
            closed += 1;
        }
        closed
    };
    let among_them = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        newcomer().await
    };
    let ((_endpoint, strangers), closed, among_them) = tokio::join!(idle_strangers(&authority, at_coordinator, 1000), ninety, among_them);
    let meanwhile = process.resident();
    let mut after = [Duration::ZERO; 5];
    for took in &mut after {
        *took = newcomer().await;
    }
    let start = Instant::now();
    let member = expected.connect(at_worker, "worker-1", Alpn::Ring).await.unwrap();
    let connected = start.elapsed();
    assert!(tokio::time::timeout(Duration::from_millis(200), member.closed()).await.is_err(), "it is expected");
    let grown = meanwhile.max(process.resident()) - before;
    println!(
        "{} of 1,000 idle strangers connected and {closed} connections of an unexpected name: memory + {grown:.1} MB; a newcomer took \
         {alone:.1?} before, {among_them:.1?} while they came, {after:.1?} after; a ring connection of an expected name {connected:.1?}",
        strangers.len()
    );
    assert!(strangers.len() > 500, "only {} strangers came", strangers.len());
    assert!(grown < 50.0, "memory grew by {grown:.1} MB");
    assert!(after.into_iter().chain([among_them, connected]).all(|took| took < Duration::from_secs(5)));
}
