//! A peer with a certificate of the run lies to the coordinator and to a worker: each
//! lie ends its own connection, and the run ends as if there had been none.

use std::time::Duration;

use cluster_tests::hostile::{HostilePeer, hello, put, ready, trained};
use cluster_tests::join_line;
use cluster_tests::record::wait_for_ring;
use cluster_tests::scenario::{Scenario, free_port, join};
use common::net::Alpn;
use common::wire::messages::{BulkReply, BulkRequest, ToCoordinator};
use common::wire::{PROTOCOL, read_message, write_message};

async fn control(hostile: &HostilePeer) {
    let good = || hello(PROTOCOL);
    hostile.is_thrown_out("four gigabytes", &u32::MAX.to_le_bytes(), &[]).await;
    hostile.is_thrown_out("noise", &[&[64, 0, 0, 0], &[0xa5; 64][..]].concat(), &[]).await;
    hostile.is_thrown_out("no hello", &[], &[ToCoordinator::Leaving]).await;
    hostile.is_thrown_out("another protocol", &[], &[hello(PROTOCOL + 1)]).await;
    hostile.is_thrown_out("two hellos", &[], &[good(), good()]).await;
    hostile.is_thrown_out("a generation to come", &[], &[good(), ready(u64::MAX, 0)]).await;
    hostile.is_thrown_out("a step after the end", &[], &[good(), ready(0, u64::MAX)]).await;
    hostile.is_thrown_out("a rank out of range", &[], &[good(), trained(1, 4_000_000_000, vec![])]).await;
    hostile.is_thrown_out("samples that are none", &[], &[good(), trained(1, 0, vec![u32::MAX])]).await;
    hostile.is_thrown_out("more samples than a batch", &[], &[good(), trained(1, 0, vec![0; 100_000])]).await;
}

async fn bulk(hostile: &HostilePeer) {
    let refused = [
        put("../../../tmp/evil", 5, 4),
        put("model.safetensors", u64::MAX, 4),
        put("model.safetensors", 5, u64::MAX),
        // A peer that is not in the ring stores nothing, even with a well-formed request.
        put("model.safetensors", 5, 4),
        BulkRequest::GetCheckpoint { step: u64::MAX },
        BulkRequest::Samples { val: false, ids: vec![u32::MAX] },
    ];
    for request in refused {
        let reply = hostile.ask(&request, &[0; 8]).await;
        assert!(matches!(reply, Some(BulkReply::Failed { .. })), "{request:?}: {reply:?}");
    }
    let closed = [BulkRequest::Samples { val: false, ids: vec![0; 5000] }, BulkRequest::GetState { generation: 1, step: 0 }];
    for request in closed {
        let reply = hostile.ask(&request, &[]).await;
        assert!(reply.is_none(), "{request:?}: {reply:?}");
    }
}

/// Lies to a worker, over its bulk and ring connections. The worker does not expect this
/// peer: it may end a connection at once, or after some of what is sent has arrived.
async fn worker(hostile: &HostilePeer, address: std::net::SocketAddr) {
    // The first worker that enrols has this name.
    let connect = async |alpn| hostile.reach(address, "worker-1", alpn).await;
    if let Some(connection) = connect(Alpn::Bulk).await
        && let Ok((mut send, mut receive)) = connection.open_bi().await
    {
        let _ = write_message(&mut send, &BulkRequest::GetState { generation: 1, step: 0 }).await;
        let _ = send.finish();
        let answer = tokio::time::timeout(Duration::from_secs(1), read_message::<BulkReply>(&mut receive, 4 << 20)).await;
        assert!(!matches!(answer, Ok(Ok(Some(BulkReply::State { .. })))), "it gave its state away");
    }
    for raw in [&u32::MAX.to_le_bytes()[..], &[0xff; 2000], b"\0\0\0\0"] {
        let Some(connection) = connect(Alpn::Ring).await else { continue };
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
    let scenario = Scenario::open_to_hostile_peers();
    let mut coordinator = scenario.serve(free_port(), 1, &[]);
    let (addr, token) = join_line(&scenario.run_dir());
    let ring_port = free_port();
    let first = join(&addr, &token, &["--listen", &format!("127.0.0.1:{ring_port}")]);
    coordinator.wait_for_steps(3);
    let second = join(&addr, &token, &[]);
    let runtime = tokio::runtime::Runtime::new().unwrap_or_else(|e| panic!("{e}"));
    runtime.block_on(async {
        let hostile = HostilePeer::named(&scenario.run_dir(), &addr, "worker-99");
        control(&hostile).await;
        bulk(&hostile).await;
        worker(&hostile, ([127, 0, 0, 1], ring_port).into()).await;
    });
    wait_for_ring(&scenario.run_dir(), 2);
    let run = Scenario::stop(coordinator);
    for worker in [first, second] {
        worker.wait().succeeded();
    }
    for word in ["cannot be true: step", "cannot be true: rank 4000000000", "did not say hello", "is not in the run's ring"] {
        assert!(run.stderr.contains(word), "`{word}` is not in:\n{}", run.stderr);
    }
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
    scenario.assert_undisturbed(&run);
}
