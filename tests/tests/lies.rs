//! Somebody with a certificate of the run lies to everybody: each lie ends its
//! own connection, and the run ends as if nobody had spoken.

use std::path::Path;
use std::time::Duration;

use cluster_tests::join_line;
use cluster_tests::scenario::{Scenario, free_port, join};
use common::audit::Trained;
use common::net::{Alpn, Authority, COORDINATOR, Endpoint, Role};
use common::wire::messages::{BulkReply, BulkRequest, FileSize, ToCoordinator, ToWorker};
use common::wire::{PROTOCOL, read_message, write_message};
use tokio::io::AsyncWriteExt;

const SOON: Duration = Duration::from_secs(10);

/// A node that knows the run's keys, as one that was broken into would.
struct Liar {
    endpoint: Endpoint,
    coordinator: std::net::SocketAddr,
}

impl Liar {
    fn new(run: &Path, coordinator: &str) -> Self {
        let authority = Authority::open(&run.join("keys")).unwrap_or_else(|e| panic!("{e}"));
        let identity = authority.identity("worker-99").unwrap_or_else(|e| panic!("{e}"));
        let endpoint = Endpoint::bind(([127, 0, 0, 1], 0).into(), &identity, Role::Worker).unwrap_or_else(|e| panic!("{e}"));
        Self { endpoint, coordinator: coordinator.parse().unwrap_or_else(|e| panic!("{coordinator}: {e}")) }
    }

    async fn connect(&self, alpn: Alpn) -> quinn::Connection {
        self.endpoint.connect(self.coordinator, COORDINATOR, alpn).await.unwrap_or_else(|e| panic!("{e}"))
    }

    /// Says these over a control connection, raw bytes first, and asserts that
    /// the coordinator ends it.
    async fn is_thrown_out(&self, what: &str, raw: &[u8], messages: &[ToCoordinator]) {
        let connection = self.connect(Alpn::Control).await;
        let (mut send, mut receive) = connection.open_bi().await.unwrap_or_else(|e| panic!("{what}: {e}"));
        // It may be thrown out before it has said all.
        let _ = send.write_all(raw).await;
        for message in messages {
            let _ = write_message(&mut send, message).await;
        }
        let _ = send.flush().await;
        let end = async { while let Ok(Some(_)) = read_message::<ToWorker>(&mut receive, 4 << 20).await {} };
        assert!(tokio::time::timeout(SOON, end).await.is_ok(), "{what}: the coordinator still talks");
    }

    /// The coordinator's answer to a bulk request; none if it ended the connection.
    async fn ask(&self, request: &BulkRequest, content: &[u8]) -> Option<BulkReply> {
        let connection = self.connect(Alpn::Bulk).await;
        let (mut send, mut receive) = connection.open_bi().await.ok()?;
        write_message(&mut send, request).await.ok()?;
        let _ = send.write_all(content).await;
        let _ = send.finish();
        let answer = tokio::time::timeout(SOON, read_message::<BulkReply>(&mut receive, 4 << 20)).await;
        answer.unwrap_or_else(|_| panic!("{request:?} is not answered")).ok().flatten()
    }
}

fn hello(protocol: u32, advertise: Option<&str>) -> ToCoordinator {
    let advertise = advertise.map(str::to_owned);
    ToCoordinator::Hello { protocol, ring_port: 9, advertise, preferred_rank: Some(u32::MAX), generation: None }
}

fn ready(generation: u64, step: u64) -> ToCoordinator {
    ToCoordinator::Ready { device: "none".to_owned(), generation, step }
}

fn trained(rank: u32, ids: Vec<u32>) -> ToCoordinator {
    ToCoordinator::Trained(Trained { generation: 1, step: 1, rank, ids, skipped: vec![] })
}

async fn control(liar: &Liar) {
    let good = || hello(PROTOCOL, None);
    liar.is_thrown_out("four gigabytes", &u32::MAX.to_le_bytes(), &[]).await;
    liar.is_thrown_out("noise", &[&[64, 0, 0, 0], &[0xa5; 64][..]].concat(), &[]).await;
    liar.is_thrown_out("no hello", &[], &[ToCoordinator::Leaving]).await;
    liar.is_thrown_out("another protocol", &[], &[hello(PROTOCOL + 1, None)]).await;
    liar.is_thrown_out("an address that is none", &[], &[hello(PROTOCOL, Some("../../etc/passwd"))]).await;
    liar.is_thrown_out("two hellos", &[], &[good(), good()]).await;
    liar.is_thrown_out("a generation to come", &[], &[good(), ready(u64::MAX, 0)]).await;
    liar.is_thrown_out("a step after the end", &[], &[good(), ready(0, u64::MAX)]).await;
    liar.is_thrown_out("a rank out of range", &[], &[good(), trained(4_000_000_000, vec![])]).await;
    liar.is_thrown_out("samples that are none", &[], &[good(), trained(0, vec![u32::MAX])]).await;
    liar.is_thrown_out("more samples than a batch", &[], &[good(), trained(0, vec![0; 100_000])]).await;
}

async fn bulk(liar: &Liar) {
    let put = |name: &str, step, bytes| BulkRequest::PutCheckpoint {
        step,
        weights_blake3: "0".repeat(64),
        files: [name, "optimizer.safetensors"].map(|name| FileSize { name: name.to_owned(), bytes }).to_vec(),
    };
    let refused = [
        put("../../../tmp/evil", 5, 4),
        put("model.safetensors", u64::MAX, 4),
        put("model.safetensors", 5, u64::MAX),
        // Whoever is not in the ring stores nothing, be it well-formed.
        put("model.safetensors", 5, 4),
        BulkRequest::GetCheckpoint { step: u64::MAX },
        BulkRequest::Samples { val: false, ids: vec![u32::MAX] },
    ];
    for request in refused {
        let reply = liar.ask(&request, &[0; 8]).await;
        assert!(matches!(reply, Some(BulkReply::Failed { .. })), "{request:?}: {reply:?}");
    }
    let closed = [BulkRequest::Samples { val: false, ids: vec![0; 5000] }, BulkRequest::GetState { generation: 1, step: 0 }];
    for request in closed {
        let reply = liar.ask(&request, &[]).await;
        assert!(reply.is_none(), "{request:?}: {reply:?}");
    }
}

/// Lies to a worker, where the ring and the state are.
async fn worker(liar: &Liar, address: std::net::SocketAddr) {
    // The first worker that enrols has this name.
    let connect = async |alpn| liar.endpoint.connect(address, "worker-1", alpn).await.unwrap_or_else(|e| panic!("{e}"));
    let connection = connect(Alpn::Bulk).await;
    let (mut send, mut receive) = connection.open_bi().await.unwrap_or_else(|e| panic!("{e}"));
    let _ = write_message(&mut send, &BulkRequest::GetState { generation: 1, step: 0 }).await;
    let _ = send.finish();
    // A member that forms no ring now gives nothing; it may wait for a generation first.
    let answer = tokio::time::timeout(Duration::from_secs(1), read_message::<BulkReply>(&mut receive, 4 << 20)).await;
    assert!(!matches!(answer, Ok(Ok(Some(BulkReply::State { .. })))), "it gave its state away");
    for raw in [&u32::MAX.to_le_bytes()[..], &[0xff; 2000], b"\0\0\0\0"] {
        let connection = connect(Alpn::Ring).await;
        if let Ok((mut send, _)) = connection.open_bi().await {
            let _ = send.write_all(raw).await;
            let _ = send.finish();
        }
        if let Ok(mut send) = connection.open_uni().await {
            let _ = send.write_all(raw).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn lies_end_their_own_connection_only() {
    let scenario = Scenario::new(400);
    let expected = scenario.quiet();
    let mut coordinator = scenario.serve(free_port(), 1, &[]);
    let (addr, token) = join_line(&scenario.run_dir());
    let ring_port = free_port();
    let first = join(&addr, &token, &["--ring-listen", &format!("127.0.0.1:{ring_port}")]);
    coordinator.wait_for_steps(3);
    let second = join(&addr, &token, &[]);
    let runtime = tokio::runtime::Runtime::new().unwrap_or_else(|e| panic!("{e}"));
    runtime.block_on(async {
        let liar = Liar::new(&scenario.run_dir(), &addr);
        control(&liar).await;
        bulk(&liar).await;
        worker(&liar, ([127, 0, 0, 1], ring_port).into()).await;
    });
    let steps = coordinator.step_count();
    assert!(steps < 380, "the run was over ({steps} steps) before all lies were told: lengthen it");
    let run = coordinator.wait().succeeded();
    for worker in [first, second] {
        worker.wait().succeeded();
    }
    for word in ["told of step", "told of rank 4000000000", "did not say hello", "is not in the run's ring"] {
        assert!(run.stderr.contains(word), "`{word}` is not in:\n{}", run.stderr);
    }
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
    scenario.assert_whole(&run, &expected);
}
