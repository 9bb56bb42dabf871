//! Which peers a worker admits once it knows the members of its ring.

use quinn::Connection;

use super::*;

const SOON: Duration = Duration::from_secs(5);

async fn why_closed(connection: &Connection) -> String {
    closing::explain(&tokio::time::timeout(SOON, connection.closed()).await.expect("it must be closed"))
}

#[tokio::test]
async fn only_expected_names_are_admitted_and_others_that_stand_are_closed() {
    let (_dir, authority) = authority();
    let (worker, address) = bind(&authority, "worker-1", Role::Worker);
    let (friend, _) = bind(&authority, "worker-2", Role::Worker);
    let (revoked, _) = bind(&authority, "worker-66", Role::Worker);
    let connect = async |who: &Endpoint, alpn| who.connect(address, "worker-1", alpn).await.unwrap();
    let (ring, bulk) = (connect(&friend, Alpn::Ring).await, connect(&friend, Alpn::Bulk).await);
    let old = [connect(&revoked, Alpn::Ring).await, connect(&revoked, Alpn::Bulk).await];
    for name in ["worker-2", "worker-66"] {
        assert_eq!(worker.accept_ring().await.unwrap().name.as_deref(), Some(name));
        assert_eq!(worker.accept().await.unwrap().name.as_deref(), Some(name));
    }

    worker.expect(["worker-2".to_owned(), "worker-3".to_owned()]);
    for connection in &old {
        assert!(why_closed(connection).await.contains("no ring with that one any more"));
    }
    assert!(ring.close_reason().is_none() && bulk.close_reason().is_none());
    // More than would fit in the queue: the refused connections occupy none of it.
    for _ in 0..70 {
        assert!(why_closed(&connect(&revoked, Alpn::Ring).await).await.contains("does not know that one"));
    }
    let again = connect(&friend, Alpn::Ring).await;
    assert_eq!(worker.accept_ring().await.unwrap().name.as_deref(), Some("worker-2"));
    assert!(again.close_reason().is_none());
    // A ring without `worker-2`, and `worker-66` back with a certificate of its name.
    worker.expect(["worker-66".to_owned()]);
    for connection in [&ring, &bulk, &again] {
        why_closed(connection).await;
    }
    let back = connect(&revoked, Alpn::Ring).await;
    assert_eq!(worker.accept_ring().await.unwrap().name.as_deref(), Some("worker-66"));
    drop(back);
}

#[tokio::test]
async fn a_name_has_few_connections_and_the_newest_replace_the_oldest() {
    let (_dir, authority) = authority();
    let (worker, address) = bind(&authority, "worker-1", Role::Worker);
    let (many, _) = bind(&authority, "worker-2", Role::Worker);
    let (other, _) = bind(&authority, "worker-3", Role::Worker);
    worker.expect(["worker-2".to_owned(), "worker-3".to_owned()]);
    let one = other.connect(address, "worker-1", Alpn::Bulk).await.unwrap();
    for (alpn, most) in [(Alpn::Ring, 32), (Alpn::Bulk, 8)] {
        let mut connections = Vec::new();
        for _ in 0..most + 5 {
            connections.push(many.connect(address, "worker-1", alpn).await.unwrap());
        }
        for connection in &connections[..5] {
            assert!(why_closed(connection).await.contains("newer connections"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(connections[5..].iter().all(|c| c.close_reason().is_none()));
        // A connection that ends makes room.
        connections[5].close(0u32.into(), b"");
        tokio::time::sleep(Duration::from_millis(100)).await;
        connections.push(many.connect(address, "worker-1", alpn).await.unwrap());
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(connections[6..].iter().all(|c| c.close_reason().is_none()));
    }
    assert!(one.close_reason().is_none(), "another's connections are not touched");
}

/// A peer that fills the queue of rings leaves the other peers' share of it alone.
#[tokio::test]
async fn in_the_queue_everybody_has_a_share() {
    let (_dir, authority) = authority();
    let (worker, address) = bind(&authority, "worker-1", Role::Worker);
    let mut kept = Vec::new();
    for (name, times) in [("worker-2", 1), ("worker-3", 32), ("worker-4", 32), ("worker-5", 1)] {
        let (peer, _) = bind(&authority, name, Role::Worker);
        for _ in 0..times {
            kept.push(peer.connect(address, "worker-1", Alpn::Ring).await.unwrap());
        }
        kept.push(peer.connect(address, "worker-1", Alpn::Bulk).await.unwrap());
        std::mem::forget(peer);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut names = Vec::new();
    while let Ok(Some(peer)) = tokio::time::timeout(Duration::from_millis(100), worker.accept_ring()).await {
        names.push(peer.name.unwrap());
    }
    assert_eq!(names.len(), 64);
    for name in ["worker-2", "worker-5"] {
        assert_eq!(names.iter().filter(|n| *n == name).count(), 1, "{name} had to go for those that came often");
    }
}

#[tokio::test]
async fn nobody_waits_at_an_endpoint_that_is_closed() {
    let (_dir, authority) = authority();
    let (worker, _) = bind(&authority, "worker-1", Role::Worker);
    let closing = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        worker.close().await;
    };
    let (peer, ring, ()) = tokio::join!(worker.accept(), worker.accept_ring(), closing);
    assert!(peer.is_none() && ring.is_none());
}
