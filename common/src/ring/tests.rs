#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rand_chacha::rand_core::RngCore;
use tokio::runtime::Runtime;

use super::encoding::Encoding;
use super::*;
use crate::net::{Authority, Endpoint, Role, worker_name};
use crate::seed;

mod forming;

/// Long, so that a busy machine does not look like a lost one.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Endpoints of some workers of one run, all on this machine.
struct Workers {
    _dir: tempfile::TempDir,
    runtime: Runtime,
    endpoints: Vec<Endpoint>,
    peers: Vec<RingPeer>,
}

fn workers(world: u32) -> Workers {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let _inside = runtime.enter();
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open(dir.path()).unwrap();
    let (mut endpoints, mut peers) = (Vec::new(), Vec::new());
    for rank in 0..world {
        let name = worker_name(u64::from(rank) + 10);
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let endpoint = Endpoint::bind(local, &authority.identity(&name).unwrap(), Role::Worker).unwrap();
        peers.push(RingPeer { rank, name, addresses: vec![endpoint.local_addr().unwrap()] });
        endpoints.push(endpoint);
    }
    drop(_inside);
    Workers { _dir: dir, runtime, endpoints, peers }
}

impl Workers {
    fn spec(&self, rank: u32, layout: BucketLayout, encoding: Encoding) -> RingSpec {
        RingSpec {
            generation: 4,
            rank,
            peers: self.peers.clone(),
            layout,
            encoding,
            gathers: Gathers::default(),
            connections: 1,
            timeout: TIMEOUT,
            form_within: Duration::from_secs(5),
            reach_within: Duration::from_secs(5),
        }
    }

    /// Forms the ring and runs `work` on a thread per rank.
    fn run<T: Send>(&self, spec: impl Fn(u32) -> RingSpec + Sync, work: impl Fn(u32, Ring) -> T + Sync) -> Vec<T> {
        let (spec, work) = (&spec, &work);
        thread::scope(|scope| {
            let threads: Vec<_> = (0..self.peers.len() as u32)
                .map(|rank| {
                    scope.spawn(move || {
                        let ring = self.runtime.block_on(Ring::form(&self.endpoints[rank as usize], spec(rank))).unwrap();
                        work(rank, ring)
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        })
    }
}

/// The values that `rank` submits for a bucket.
fn values(rank: u32, step: u64, bucket: usize, length: usize) -> Vec<f32> {
    let mut rng = seed::stream(9, "ring test", &[u64::from(rank), step, bucket as u64]);
    (0..length).map(|_| (rng.next_u32() as i32) as f32 / 1e6).collect()
}

/// The sum in the order in which the ring adds, starting at the rank that sends the
/// chunk first.
fn ring_order_sum(world: u32, step: u64, bucket: usize, length: usize) -> Vec<f32> {
    let inputs: Vec<_> = (0..world).map(|rank| values(rank, step, bucket, length)).collect();
    let mut sum = vec![0.0; length];
    for first in 0..world as usize {
        let index = schedule::hops(first, world as usize).first().map_or(0, |hop| hop.send_chunk);
        let chunk = schedule::chunk(length, world as usize, index);
        let mut partial = inputs[first][chunk.clone()].to_vec();
        for next in 1..world as usize {
            let own = &inputs[(first + next) % world as usize][chunk.clone()];
            partial.iter_mut().zip(own).for_each(|(p, own)| *p += own);
        }
        sum[chunk].copy_from_slice(&partial);
    }
    sum
}

#[test]
fn sums_are_exact_in_f32_and_the_same_bits_everywhere_in_bf16() {
    for world in 1..=4u32 {
        let workers = workers(world);
        for (encoding, connections) in [(Encoding::F32, 1), (Encoding::Bf16, 1), (Encoding::F32, 2)] {
            // The last bucket has fewer values than there are ranks.
            let layout = BucketLayout::new(140_002, 280_000);
            let spec = |rank| RingSpec { connections, ..workers.spec(rank, layout, encoding) };
            let results = workers.run(spec, |rank, mut ring| {
                let mut results = Vec::new();
                for step in 1000..1002u64 {
                    for bucket in 0..=layout.statistics() {
                        ring.submit(step, bucket, values(rank, step, bucket, layout.range(bucket).len())).unwrap();
                    }
                    for bucket in (0..=layout.statistics()).rev() {
                        results.push((step, bucket, ring.wait(step, bucket).unwrap().into_f32()));
                    }
                }
                let sent = ring.bytes_sent();
                workers.runtime.block_on(ring.close());
                (results, sent)
            });
            for (step, bucket, sum) in &results[0].0 {
                let expected = ring_order_sum(world, *step, *bucket, layout.range(*bucket).len());
                if encoding == Encoding::F32 || world == 1 || *bucket == layout.statistics() {
                    assert_eq!(*sum, expected, "world {world}, step {step}, bucket {bucket}");
                } else {
                    // Each addition on the way rounds to 8 bits.
                    let bound = |v: f32| world as f32 * (v.abs() + 4000.0) / 256.0;
                    assert!(sum.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= bound(*b)));
                    assert!(sum.iter().all(|v| v.to_bits() & 0xffff == 0));
                }
            }
            for (rank, (other, sent)) in results.iter().enumerate() {
                assert_eq!(*other, results[0].0, "world {world}, {encoding:?}, rank {rank}");
                let each = 2 * 2 * (world - 1) as usize * layout.elements() * encoding.width() / world as usize;
                assert!((*sent as usize).abs_diff(each) < 2 * 4 * (40 + 200), "{sent} bytes sent, not {each}");
            }
        }
    }
}

#[test]
fn buckets_far_larger_than_all_windows_do_not_block_each_other() {
    let workers = workers(2);
    let layout = BucketLayout::new(6 << 20, 8 << 20);
    workers.run(
        |rank| workers.spec(rank, layout, Encoding::F32),
        |rank, mut ring| {
            // Rank 1 submits all at once, rank 0 one after the other.
            if rank == 1 {
                (0..layout.len()).for_each(|b| ring.submit(0, b, vec![1.0; layout.range(b).len()]).unwrap());
            }
            for bucket in 0..layout.len() {
                if rank == 0 {
                    ring.submit(0, bucket, vec![2.0; layout.range(bucket).len()]).unwrap();
                }
                assert!(ring.wait(0, bucket).unwrap().into_f32().iter().all(|&v| v == 3.0));
            }
            workers.runtime.block_on(ring.close());
        },
    );
}

#[test]
fn a_rank_that_leaves_is_named_by_all_others_at_once() {
    let workers = workers(4);
    let layout = BucketLayout::new(100_000, 40_000);
    let began = Instant::now();
    let errors = workers.run(
        |rank| workers.spec(rank, layout, Encoding::F32),
        |rank, mut ring| {
            if rank == 2 {
                ring.submit(0, 0, vec![1.0; 10_000]).unwrap();
                assert_eq!(ring.wait(0, 0).unwrap().into_f32()[0], 4.0);
                ring.aborter().abort("a test says so");
                return ring.submit(0, 1, vec![0.0; 10_000]).unwrap_err();
            }
            let mut go_on = || {
                (0..layout.len()).try_for_each(|b| ring.submit(0, b, vec![1.0; layout.range(b).len()]))?;
                (0..layout.len()).try_for_each(|b| ring.wait(0, b).map(drop))
            };
            go_on().unwrap_err()
        },
    );
    assert!(began.elapsed() < TIMEOUT, "{:?}", began.elapsed());
    assert_eq!(errors[2], RingError::Left { cause: "a test says so".to_owned() });
    for rank in [0, 1, 3] {
        let RingError::PeerLost { rank: lost, name, cause } = &errors[rank] else { panic!("{:?}", errors[rank]) };
        assert_eq!((*lost, name.as_str()), (2, "worker-12"), "rank {rank}: {cause}");
        assert!(cause.contains("a test says so"), "{cause}");
    }
}

#[test]
fn a_silent_rank_is_noticed_by_all_others_within_the_timeout() {
    let timeout = Duration::from_millis(800);
    let mut workers = workers(3);
    // Rank 1 has a runtime of its own that stops without closing connections, as when
    // killed.
    let doomed = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    {
        let _inside = doomed.enter();
        let identity = workers.endpoints[1].identity().clone();
        workers.endpoints[1] = Endpoint::bind((Ipv4Addr::LOCALHOST, 0).into(), &identity, Role::Worker).unwrap();
        workers.peers[1].addresses = vec![workers.endpoints[1].local_addr().unwrap()];
    }
    let layout = BucketLayout::new(10_000, 4000);
    let first_bucket_done = Barrier::new(3);
    thread::scope(|scope| {
        for rank in [0, 2usize] {
            let (workers, first_bucket_done) = (&workers, &first_bucket_done);
            scope.spawn(move || {
                let spec = RingSpec { timeout, ..workers.spec(rank as u32, layout, Encoding::F32) };
                let mut ring = workers.runtime.block_on(Ring::form(&workers.endpoints[rank], spec)).unwrap();
                ring.submit(0, 0, vec![1.0; 1000]).unwrap();
                ring.wait(0, 0).unwrap();
                first_bucket_done.wait();
                let killed = Instant::now();
                // A neighbour may have failed the ring already.
                let _ = ring.submit(0, 1, vec![1.0; 1000]);
                let error = ring.wait(0, 1).unwrap_err();
                assert!(matches!(&error, RingError::PeerLost { rank: 1, .. }), "rank {rank}: {error}");
                assert!(killed.elapsed() < timeout + Duration::from_millis(300), "{:?}", killed.elapsed());
            });
        }
        let spec = RingSpec { timeout, ..workers.spec(1, layout, Encoding::F32) };
        let endpoint = &workers.endpoints[1];
        let (stuck, stop) = mpsc::channel::<()>();
        let mut ring = doomed.block_on(Ring::form(endpoint, spec)).unwrap();
        ring.submit(0, 0, vec![1.0; 1000]).unwrap();
        ring.wait(0, 0).unwrap();
        first_bucket_done.wait();
        // The runtime's only thread never returns to its sockets.
        doomed.spawn(async move {
            let _ = stop.recv();
        });
        thread::sleep(timeout + Duration::from_millis(500));
        drop(stuck);
    });
    doomed.shutdown_background();
}

#[test]
fn a_stale_generation_is_told_and_another_layout_refused() {
    let workers = workers(2);
    let layout = BucketLayout::new(10, 40);
    let form = |spec: RingSpec| {
        let endpoint = &workers.endpoints[spec.rank as usize];
        async move { Ring::form(endpoint, spec).await.map(drop) }
    };
    let spec = |rank| workers.spec(rank, layout, Encoding::F32);
    workers.runtime.block_on(async {
        let newer = RingSpec { generation: 5, ..spec(1) };
        let (stale, _) = tokio::select! { r = form(spec(0)) => (r, ()), _ = form(newer) => panic!("it cannot form") };
        assert_eq!(stale, Err(RingError::Stale { generation: 4, newer: 5, name: "worker-11".to_owned() }));

        let other = RingSpec { layout: BucketLayout::new(11, 40), ..spec(1) };
        let (refused, _) = tokio::select! { r = form(spec(0)) => (r, ()), r = form(other) => (r, ()) };
        assert!(matches!(&refused, Err(RingError::Protocol { problem, .. }) if problem.contains("another ring")), "{refused:?}");
    });
}

#[test]
fn a_rank_that_is_late_is_waited_for() {
    let workers = workers(2);
    let layout = BucketLayout::new(10, 40);
    let spec = |rank| workers.spec(rank, layout, Encoding::F32);
    workers.runtime.block_on(async {
        // Rank 1 first forms the previous generation, gives up, and then forms this
        // one.
        let older = RingSpec { generation: 3, ..spec(1) };
        let late = async {
            let before = tokio::time::timeout(Duration::from_millis(300), Ring::form(&workers.endpoints[1], older)).await;
            assert!(matches!(before, Err(_) | Ok(Err(RingError::Stale { newer: 4, .. }))));
            Ring::form(&workers.endpoints[1], spec(1)).await
        };
        let (early, late) = tokio::join!(Ring::form(&workers.endpoints[0], spec(0)), late);
        let (early, late) = (early.unwrap(), late.unwrap());
        tokio::join!(early.close(), late.close());
    });
}

#[test]
fn integers_and_largest_values_are_reduced_exactly() {
    for world in 1..=4u32 {
        let workers = workers(world);
        let layout = BucketLayout::new(1001, 1200);
        let whole = |rank: u32, i: usize| (i as i32 - 500).wrapping_mul(4_000_001 + 77 * rank as i32);
        let results = workers.run(
            |rank| workers.spec(rank, layout, Encoding::Fixed),
            |rank, mut ring| {
                let largest: Vec<f32> = (0..layout.len()).map(|b| ((b * 7 + rank as usize * 3) % 5) as f32 - 90.0).collect();
                ring.submit(3, layout.exponents(), largest).unwrap();
                let largest = ring.wait(3, layout.exponents()).unwrap().into_f32();
                for bucket in 0..layout.len() {
                    ring.submit(3, bucket, layout.range(bucket).map(|i| f32::from_bits(whole(rank, i) as u32)).collect::<Vec<f32>>())
                        .unwrap();
                }
                let sums: Vec<i32> =
                    (0..layout.len()).flat_map(|b| ring.wait(3, b).unwrap().into_f32()).map(|v| v.to_bits() as i32).collect();
                workers.runtime.block_on(ring.close());
                (largest, sums)
            },
        );
        let sums: Vec<i32> = (0..1001).map(|i| (0..world).fold(0i32, |sum, rank| sum.wrapping_add(whole(rank, i)))).collect();
        let largest: Vec<f32> =
            (0..layout.len()).map(|b| (0..world as usize).map(|rank| (b * 7 + rank * 3) % 5).max().unwrap_or(0) as f32 - 90.0).collect();
        assert!(results.iter().all(|r| *r == (largest.clone(), sums.clone())), "world {world}");
    }
}

#[test]
fn values_kept_as_bf16_are_summed_to_the_bits_of_f32_values() {
    for world in [2, 3, 4] {
        let workers = workers(world);
        let layout = BucketLayout::new(5000, 4 * 1800);
        let own = |rank: u32, bucket: usize| -> Vec<f32> {
            let mut rng = seed::stream(5, "bf16", &[rank.into(), bucket as u64]);
            layout.range(bucket).map(|_| crate::simd::from_bf16(crate::simd::to_bf16(seed::unit(&mut rng) - 0.5))).collect()
        };
        let sums = workers.run(
            |rank| workers.spec(rank, layout, Encoding::Bf16),
            |rank, mut ring| {
                let mut sums = Vec::new();
                for compact in [false, true] {
                    for bucket in 0..layout.len() {
                        let mut values = Values::zeros(compact, layout.range(bucket).len());
                        values.write(0, Span::F32(&own(rank, bucket)));
                        ring.submit(u64::from(compact), bucket, values).unwrap();
                    }
                    let wait = |bucket| ring.wait(u64::from(compact), bucket).unwrap().into_f32();
                    sums.push((0..layout.len()).flat_map(wait).collect::<Vec<f32>>());
                }
                workers.runtime.block_on(ring.close());
                sums
            },
        );
        for of_rank in &sums {
            assert_eq!(of_rank[0], sums[0][0], "{world}");
            assert_eq!(of_rank[0], of_rank[1], "{world}");
        }
    }
}

#[test]
fn misuse_is_an_error() {
    let workers = workers(1);
    let layout = BucketLayout::new(10, 20);
    let mut ring = workers.runtime.block_on(Ring::form(&workers.endpoints[0], workers.spec(0, layout, Encoding::F32))).unwrap();
    assert!(matches!(ring.submit(0, 5, vec![]), Err(RingError::Misuse { .. })));
    assert!(matches!(ring.submit(0, 0, Values::Bf16(vec![0; 5])), Err(RingError::Misuse { .. })));
    assert!(matches!(ring.submit(0, 0, vec![1.0; 4]), Err(RingError::Misuse { .. })));
    assert!(matches!(ring.wait(0, 0), Err(RingError::Misuse { .. })));
    ring.submit(0, 0, vec![1.0; 5]).unwrap();
    assert!(matches!(ring.submit(0, 0, vec![1.0; 5]), Err(RingError::Misuse { .. })));
    assert_eq!(ring.wait(0, 0).unwrap().into_f32(), vec![1.0; 5]);
    assert_eq!(ring.bytes_sent(), 0);
    for step in 0..2 {
        (0..5).for_each(|b| ring.submit(step, b, vec![1.0; layout.range(b).len()]).unwrap());
    }
    assert!(matches!(ring.submit(2, 0, vec![1.0; 5]), Err(RingError::Misuse { .. })));
}

#[test]
fn a_stream_for_a_step_that_cannot_be_ends_the_ring_and_names_its_sender() {
    let workers = workers(2);
    let layout = BucketLayout::new(10, 40);
    let errors = workers.run(
        |rank| workers.spec(rank, layout, Encoding::F32),
        |rank, mut ring| {
            ring.submit(0, 0, vec![1.0; 10]).unwrap();
            ring.wait(0, 0).unwrap();
            let step = if rank == 0 { 7 } else { 1 };
            ring.submit(step, 0, vec![1.0; 10]).and_then(|()| ring.wait(step, 0)).unwrap_err()
        },
    );
    let rejected = |e: &RingError| matches!(e, RingError::Protocol { problem, .. } if problem.contains("more than one step away"));
    assert!(errors.iter().any(rejected), "{errors:?}");
}

/// Rows that depend on the place alone, so that each rank knows what the others have.
fn matrix(gathers: &Gathers, step: u64, number: usize, bf16: bool) -> Values {
    let numbers = values(77, step, number, gathers.values(number));
    let mut all = Values::zeros(bf16, numbers.len());
    all.write(0, Span::F32(&numbers));
    all
}

#[test]
fn matrices_of_ragged_rows_are_gathered_beside_sums() {
    for world in [1, 2, 3, 5] {
        let workers = workers(world);
        for (bf16, connections) in [(false, 1), (true, 2)] {
            // A rank may have no rows; a matrix is larger than all windows.
            let rows: Vec<usize> = (0..world as usize).map(|rank| [3, 0, 7, 1, 2][rank]).collect();
            let gathers = Gathers::new(&rows, vec![1, 90_000, 17], bf16);
            let layout = BucketLayout::new(1001, 1200);
            let spec = |rank| RingSpec { connections, gathers: gathers.clone(), ..workers.spec(rank, layout, Encoding::F32) };
            let sent = workers.run(spec, |rank, mut ring| {
                for step in 0..3 {
                    for number in 0..gathers.len() {
                        let whole = matrix(&gathers, step, number, bf16);
                        let mut own = Values::zeros(bf16, whole.len());
                        own.fill(f32::NAN);
                        let block = gathers.block(number, rank as usize);
                        own.write(block.start, whole.span().range(block));
                        ring.submit(step, layout.gathered(number), own).unwrap();
                    }
                    for bucket in 0..=layout.statistics() {
                        ring.submit(step, bucket, values(rank, step, bucket, layout.range(bucket).len())).unwrap();
                    }
                    for number in 0..gathers.len() {
                        let got = ring.wait(step, layout.gathered(number)).unwrap();
                        assert!(got == matrix(&gathers, step, number, bf16), "world {world}, rank {rank}, matrix {number}");
                    }
                    for bucket in 0..=layout.statistics() {
                        let sum = ring.wait(step, bucket).unwrap().into_f32();
                        assert_eq!(sum, ring_order_sum(world, step, bucket, layout.range(bucket).len()));
                    }
                }
                let sent = ring.bytes_sent();
                workers.runtime.block_on(ring.close());
                sent
            });
            // All blocks but the one that the successor contributes, and the chunks of buckets.
            for (rank, sent) in sent.into_iter().enumerate() {
                let next = schedule::successor(rank, world as usize);
                let blocks: usize = (0..gathers.len()).map(|m| gathers.values(m) - gathers.block(m, next).len()).sum();
                let chunks: usize = (0..=layout.statistics())
                    .flat_map(|b| schedule::hops(rank, world as usize).into_iter().map(move |hop| (b, hop)))
                    .map(|(b, hop)| schedule::chunk(layout.range(b).len(), world as usize, hop.send_chunk).len())
                    .sum();
                let streams = if world == 1 { 0 } else { gathers.len() + layout.statistics() + 1 };
                let step = blocks * gathers.encoding().width() + 4 * chunks + header::StreamHeader::BYTES * streams;
                assert_eq!(sent as usize, if world == 1 { 0 } else { 3 * step }, "world {world}, rank {rank}");
            }
        }
    }
}

#[test]
fn a_matrix_of_another_shape_or_format_is_refused() {
    let workers = workers(2);
    let layout = BucketLayout::new(10, 40);
    let gathers = Gathers::new(&[1, 2], vec![4], true);
    let spec = |rank| RingSpec { gathers: gathers.clone(), ..workers.spec(rank, layout, Encoding::F32) };
    // Nobody leaves before both are in the ring.
    let formed = Barrier::new(2);
    workers.run(spec, |_, ring| {
        formed.wait();
        for (values, problem) in
            [(Values::zeros(true, 11), "11 values were handed in for 12"), (Values::zeros(false, 12), "f32 values were handed in")]
        {
            let error = ring.submit(0, layout.gathered(0), values).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
        let error = ring.submit(0, layout.gathered(1), Values::zeros(true, 12)).unwrap_err().to_string();
        assert!(error.contains("there are"), "{error}");
    });
    // Ranks that mean other rows form no ring.
    let form = |rank: u32, rows: &[usize]| {
        let spec = RingSpec { gathers: Gathers::new(rows, vec![4], true), ..workers.spec(rank, layout, Encoding::F32) };
        let endpoint = &workers.endpoints[rank as usize];
        async move { Ring::form(endpoint, spec).await.map(drop) }
    };
    let (zero, one) = workers.runtime.block_on(async { tokio::join!(form(0, &[1, 2]), form(1, &[2, 1])) });
    assert!(zero.is_err() && one.is_err(), "{zero:?} {one:?}");
    let error = workers.runtime.block_on(form(0, &[1])).unwrap_err().to_string();
    assert!(error.contains("rows of 1 ranks in a world of 2"), "{error}");
}
