//! Which peers can delay a ring that forms, and which neighbour the error names.

use super::*;
use crate::net::transport::SMALLEST_PACKET;
use crate::net::{Alpn, Route};

/// An endpoint of the run `workers` by another name.
fn another(workers: &Workers, name: &str) -> Endpoint {
    let authority = Authority::open(workers._dir.path()).unwrap();
    let _inside = workers.runtime.enter();
    // Small packets: discovering the largest takes longer than the handshake.
    let route = Route::Network { packet: SMALLEST_PACKET };
    Endpoint::bind_on((Ipv4Addr::LOCALHOST, 0).into(), &authority.identity(name).unwrap(), Role::Worker, Some(route)).unwrap()
}

/// A worker with a certificate that is not in the ring connects ninety times to the
/// first rank and sends nothing; this rank's predecessor does so too.
#[test]
fn silent_connections_do_not_delay_a_ring() {
    let workers = workers(3);
    let layout = BucketLayout::new(100, 40);
    let silent = another(&workers, "worker-66");
    let kept = workers.runtime.block_on(async {
        let mut kept = Vec::new();
        let first = &workers.peers[0];
        for _ in 0..90 {
            kept.push(silent.connect(first.addresses[0], &first.name, Alpn::Ring).await.unwrap());
        }
        for _ in 0..5 {
            kept.push(workers.endpoints[2].connect(first.addresses[0], &first.name, Alpn::Ring).await.unwrap());
        }
        kept
    });
    let began = Instant::now();
    workers.run(
        |rank| RingSpec { connections: 2, ..workers.spec(rank, layout, Encoding::F32) },
        |_, mut ring| {
            assert!(began.elapsed() < Duration::from_secs(3), "formed after {:?}", began.elapsed());
            ring.submit(0, 0, vec![1.0; 10]).unwrap();
            assert_eq!(ring.wait(0, 0).unwrap().into_f32(), vec![3.0; 10]);
            workers.runtime.block_on(ring.close());
        },
    );
    drop(kept);
}

/// The neighbour that each of `waiting` names, as (rank, reached), while all of
/// `others` form the ring too.
fn missing(workers: &Workers, waiting: &[u32], others: &[u32]) -> Vec<(u32, bool)> {
    let layout = BucketLayout::new(10, 40);
    let within = Duration::from_millis(1500);
    let form = |rank: u32| {
        let spec = RingSpec { form_within: within, reach_within: within, ..workers.spec(rank, layout, Encoding::F32) };
        workers.runtime.block_on(Ring::form(&workers.endpoints[rank as usize], spec))
    };
    let form = &form;
    thread::scope(|scope| {
        others.iter().for_each(|&rank| drop(scope.spawn(move || form(rank).map(|_ring| thread::sleep(within)))));
        let threads: Vec<_> = waiting
            .iter()
            .map(|&rank| {
                scope.spawn(move || {
                    let began = Instant::now();
                    let error = form(rank).map(drop).unwrap_err();
                    assert!(began.elapsed() >= within, "rank {rank} gave up early: {error}");
                    let text = error.to_string();
                    let RingError::Form { rank, name, reached, .. } = error else { panic!("{error:?}") };
                    assert_eq!(name, workers.peers[rank as usize].name);
                    assert!(text.contains(&format!("`{name}` (rank {rank})")), "{text}");
                    (rank, reached)
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

#[test]
fn a_ring_that_does_not_form_names_the_neighbour_that_was_not_there() {
    let mut workers = workers(4);
    // Rank 1 is there but forms no ring: the rank that tries to reach it succeeds.
    assert_eq!(missing(&workers, &[0, 2], &[3]), [(1, true), (1, false)]);
    // Rank 3 never connected, while rank 1 may itself be waiting for another.
    assert_eq!(missing(&workers, &[0], &[]), [(3, false)]);
    // Rank 1 cannot be reached, whether or not rank 3 is there.
    let nobody = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    workers.peers[1].addresses = vec![nobody.local_addr().unwrap()];
    assert_eq!(missing(&workers, &[0, 2], &[3]), [(1, false), (1, false)]);
    assert_eq!(missing(&workers, &[0], &[]), [(1, false)]);
}

/// While others fetch their state, a ring takes long to form. A successor that never
/// answers is reported before that; a successor that answers is waited for.
#[test]
fn a_successor_that_never_answers_is_missed_soon() {
    let mut workers = workers(2);
    let (soon, late) = (Duration::from_millis(400), Duration::from_secs(2));
    let took = |workers: &Workers| {
        let layout = BucketLayout::new(10, 40);
        let spec = RingSpec { form_within: late, reach_within: soon, ..workers.spec(0, layout, Encoding::F32) };
        let began = Instant::now();
        let error = workers.runtime.block_on(Ring::form(&workers.endpoints[0], spec)).map(drop).unwrap_err();
        let RingError::Form { rank: 1, reached, .. } = error else { panic!("{error:?}") };
        (reached, began.elapsed() >= late)
    };
    assert_eq!(took(&workers), (true, true));
    let nobody = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    workers.peers[1].addresses = vec![nobody.local_addr().unwrap()];
    assert_eq!(took(&workers), (false, false));
}

#[test]
fn in_a_ring_of_two_it_counts_whether_this_rank_has_reached_the_other() {
    let mut workers = workers(2);
    assert_eq!(missing(&workers, &[0], &[]), [(1, true)]);
    // Rank 0 cannot be reached, but reaches rank 1 itself.
    let nobody = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    workers.peers[0].addresses = vec![nobody.local_addr().unwrap()];
    assert_eq!(missing(&workers, &[0, 1], &[]), [(1, true), (0, false)]);
    workers.peers[1].addresses = workers.peers[0].addresses.clone();
    assert_eq!(missing(&workers, &[0, 1], &[]), [(1, false), (0, false)]);
}

#[test]
fn a_neighbours_words_are_escaped() {
    let workers = workers(2);
    let layout = BucketLayout::new(10, 40);
    let errors = workers.run(
        |rank| workers.spec(rank, layout, Encoding::F32),
        |rank, mut ring| {
            let mut reduce = |step| ring.submit(step, 0, vec![1.0; 10]).and_then(|()| ring.wait(step, 0)).map(drop);
            if rank == 1 {
                return (0..2).try_for_each(reduce).unwrap_err().to_string();
            }
            reduce(0).unwrap();
            ring.aborter().abort("over\n\x1b[2Jerror: all is lost");
            String::new()
        },
    );
    assert!(errors[1].contains("over\\n\\u{1b}[2Jerror"), "{:?}", errors[1]);
}
