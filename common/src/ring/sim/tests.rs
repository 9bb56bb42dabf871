#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use super::model::ready;
use super::*;
use crate::config::{
    AlexnetConfig, AlexnetPreset, ClusterConfig, DenseExchange, InputShape, ModelConfig, Precision, TrainConfig, WireEncoding,
};
use crate::ring::bucket::BucketLayout;
use crate::ring::encoding::Encoding;
use crate::ring::schedule::{SEGMENT, chunk, hops};
use crate::seed;

/// All costs are zero.
const FREE: Costs = Costs {
    latency_us: 0.0,
    local_latency_us: 0.0,
    link_gbit_per_s: 1e10,
    send_ns_per_byte: 0.0,
    receive_ns_per_byte: 0.0,
    encrypt_ns_per_byte: 0.0,
    sum_ns_per_value: 0.0,
    message_us: 0.0,
};

/// A network of 10 Gbit/s.
const USUAL: Costs = Costs {
    latency_us: 50.0,
    local_latency_us: 20.0,
    link_gbit_per_s: 10.0,
    send_ns_per_byte: 0.2,
    receive_ns_per_byte: 0.2,
    encrypt_ns_per_byte: 0.1,
    sum_ns_per_value: 0.5,
    message_us: 4.0,
};

const ALONE: Machines = Machines { cores: 2.0, workers_each: 1, compute_cores: 0.0 };

/// A gradient that is ready at the start.
fn gradient(elements: usize, bucket_bytes: usize) -> Work {
    Work {
        parts: vec![Part { elements, ready_ms: 0.0 }],
        compute_ms: 0.0,
        update_ms: 0.0,
        layout: BucketLayout::new(elements, bucket_bytes),
        encoding: Encoding::F32,
        gathered: Vec::new(),
        product_ms: 0.0,
        in_flight: 4,
    }
}

/// A small AlexNet: most of the gradient is ready after a third of the backward pass.
fn step(encoding: Encoding) -> Work {
    let parts = vec![Part { elements: 240_000, ready_ms: 30.0 }, Part { elements: 5_760_001, ready_ms: 16.0 }];
    Work { parts, compute_ms: 30.0, update_ms: 2.0, encoding, layout: BucketLayout::new(6_000_001, 2 << 20), ..gradient(0, 4) }
}

fn close(a: f64, b: f64, within: f64) -> bool {
    (a - b).abs() <= within * b.abs().max(1e-9)
}

#[test]
fn large_buckets_take_what_the_link_takes() {
    let elements = 16 << 20;
    let work = gradient(elements, 4 << 20);
    let costs = Costs { link_gbit_per_s: 8.0, ..FREE };
    for world in 2..=64 {
        let n = world as f64;
        let expected = 2.0 * (n - 1.0) / n * (elements * 4) as f64 / 1e9 * 1e3;
        let took = simulate(world, &work, &costs, &ALONE, 1.0).step_ms;
        assert!(close(took, expected, 0.02), "world {world}: {took} ms, not {expected}");
        let half = simulate(world, &Work { encoding: Encoding::Bf16, ..work.clone() }, &costs, &ALONE, 1.0).step_ms;
        assert!(close(half, expected / 2.0, 0.02), "world {world}: {half} ms, not {}", expected / 2.0);
    }
}

#[test]
fn tiny_buckets_take_a_latency_for_each_hop() {
    let costs = Costs { latency_us: 100.0, ..FREE };
    for world in 1..=64 {
        let took = simulate(world, &gradient(world, 1 << 20), &costs, &ALONE, 1.0).step_ms;
        assert!(close(took, 2.0 * (world - 1) as f64 * 0.1, 1e-9), "world {world}: {took} ms");
        // Buckets beyond the in-flight limit go in batches; the statistics bucket is
        // one more.
        let many = simulate(world, &gradient(11 * world, 4 * world), &costs, &ALONE, 1.0).step_ms;
        assert!(close(many, 3.0 * took, 1e-9), "world {world}: {many} ms, not thrice {took}");
    }
}

#[test]
fn cores_that_are_short_are_shared() {
    let work = gradient(4 << 20, 2 << 20);
    let costs = Costs { send_ns_per_byte: 1.0, ..FREE };
    let each = |world: f64| 2.0 * (world - 1.0) / world * 16.777216;
    for (world, cores, slower) in [(2, 2.0, 1.0), (2, 1.0, 2.0), (3, 2.0, 1.75), (4, 2.0, 2.0), (8, 2.0, 4.0), (8, 16.0, 1.0)] {
        let machines = Machines { cores, workers_each: 8, compute_cores: 1.0 };
        let took = simulate(world, &work, &costs, &machines, 1.0).step_ms;
        assert!(close(took, slower * each(world as f64), 0.03), "world {world} on {cores} cores: {took} ms");
    }
}

#[test]
fn a_world_of_one_computes_and_updates() {
    for spread in [1.0, 1.5] {
        let outcome = simulate(1, &step(Encoding::F32), &USUAL, &ALONE, spread);
        assert!(close(outcome.step_ms, 30.0 * spread + 2.0, 1e-9) && outcome.exposed_ms == 0.0, "{outcome:?}");
    }
}

#[test]
fn every_message_is_one_of_the_schedule_and_none_is_missing() {
    for world in 1..=16usize {
        for (elements, bucket_bytes) in [(5, 8), (1000, 1200), (100_003, 140_000), (16 * 2 * SEGMENT, 16 * 6 * SEGMENT)] {
            let work = gradient(elements, bucket_bytes);
            let machines = Machines { cores: 2.0, workers_each: world, compute_cores: 0.0 };
            let mut sent: HashMap<(usize, usize, usize), Vec<usize>> = HashMap::new();
            engine::run(world, &work, &USUAL, &machines, &|_| 1.0, &mut |s| {
                sent.entry((s.rank, s.bucket, s.hop)).or_default().push(s.values);
            });
            for rank in 0..world {
                for bucket in 0..=work.layout.statistics() {
                    let length = work.layout.range(bucket).len();
                    for (hop, planned) in hops(rank, world).iter().enumerate() {
                        let chunk = chunk(length, world, planned.send_chunk).len();
                        let segments = sent.remove(&(rank, bucket, hop)).unwrap_or_default();
                        assert_eq!(segments.iter().sum::<usize>(), chunk, "world {world}, rank {rank}, bucket {bucket}, hop {hop}");
                        assert_eq!(segments.len(), chunk.div_ceil(SEGMENT));
                    }
                }
            }
            assert!(sent.is_empty(), "world {world}: {sent:?}");
        }
    }
}

#[test]
fn one_machine_stands_for_all() {
    for world in [2, 3, 5, 8, 16] {
        let elements = world * 100_000;
        let work = Work { parts: vec![Part { elements, ready_ms: 3.0 }], compute_ms: 5.0, ..gradient(elements, world * 80_000) };
        // The same costs, on one machine with a core for each worker or with a machine
        // for each worker.
        let costs = Costs { link_gbit_per_s: 1e10, local_latency_us: USUAL.latency_us, ..USUAL };
        let together = Machines { cores: world as f64, workers_each: world, compute_cores: 0.0 };
        let (one, all) = (simulate(world, &work, &costs, &ALONE, 1.0), simulate(world, &work, &costs, &together, 1.0));
        assert!(close(one.step_ms, all.step_ms, 1e-3), "world {world}: {one:?} {all:?}");
    }
}

#[test]
fn one_late_rank_holds_up_the_others_as_long_as_if_all_were_late() {
    let work = step(Encoding::F32);
    for world in [2, 3, 4, 8] {
        let machines = Machines { cores: world as f64, workers_each: world, compute_cores: 0.0 };
        let all = simulate(world, &work, &USUAL, &machines, 2.0);
        for late in 0..world {
            let factor = |rank: usize| if rank == late { 2.0 } else { 1.0 };
            let one = engine::run(world, &work, &USUAL, &machines, &factor, &mut |_| {});
            assert!(close(one.step_ms, all.step_ms, 0.02), "world {world}: {one:?} {all:?}");
        }
    }
}

/// A higher cost does not make a step take less. Where buckets share a thread in the
/// order of arrival, another order may gain a little (Graham, "Bounds on
/// Multiprocessing Timing Anomalies", 1969): at most a share `slack` of the time.
fn assert_monotonic(world: usize, work: &Work, costs: &Costs, machines: &Machines, slack: f64) {
    let worse: [fn(&mut Costs); 8] = [
        |c| c.latency_us *= 1.7,
        |c| c.local_latency_us *= 1.7,
        |c| c.link_gbit_per_s /= 1.7,
        |c| c.send_ns_per_byte *= 1.7,
        |c| c.receive_ns_per_byte *= 1.7,
        |c| c.encrypt_ns_per_byte *= 1.7,
        |c| c.sum_ns_per_value *= 1.7,
        |c| c.message_us *= 1.7,
    ];
    let base = simulate(world, work, costs, machines, 1.0).step_ms;
    let not_less = |what: &str, took: f64| assert!(took >= base * (1.0 - slack), "world {world}, {what}: {took} after {base}, {costs:?}");
    for (i, worsen) in worse.iter().enumerate() {
        let mut costs = *costs;
        worsen(&mut costs);
        not_less(&format!("cost {i}"), simulate(world, work, &costs, machines, 1.0).step_ms);
    }
    let fewer = Machines { cores: machines.cores / 2.0, ..*machines };
    not_less("cores", simulate(world, work, costs, &fewer, 1.0).step_ms);
    not_less("compute", simulate(world, work, costs, machines, 1.2).step_ms);
}

#[test]
fn nothing_gets_faster_by_costing_more() {
    for case in 0..40u64 {
        let mut rng = seed::stream(case, "costs", &[]);
        let mut scale = || f64::from(2.0f32.powf(4.0 * seed::unit(&mut rng) - 2.0));
        let costs = Costs {
            latency_us: USUAL.latency_us * scale(),
            local_latency_us: USUAL.local_latency_us * scale(),
            link_gbit_per_s: USUAL.link_gbit_per_s * scale(),
            send_ns_per_byte: USUAL.send_ns_per_byte * scale(),
            receive_ns_per_byte: USUAL.receive_ns_per_byte * scale(),
            encrypt_ns_per_byte: USUAL.encrypt_ns_per_byte * scale(),
            sum_ns_per_value: USUAL.sum_ns_per_value * scale(),
            message_us: USUAL.message_us * scale(),
        };
        let (world, workers_each) = (2 + case as usize % 15, 1 + case as usize % 4);
        let machines = Machines { cores: 1.0 + (case % 5) as f64, workers_each, compute_cores: (case % 3) as f64 };
        let work = step(if case % 2 == 0 { Encoding::F32 } else { Encoding::Bf16 });
        assert_monotonic(world, &work, &costs, &machines, 0.01);
        // One message after the other: there is no order to change.
        assert_monotonic(world, &Work { in_flight: 1, ..gradient(world * 1000, 1 << 20) }, &costs, &ALONE, 1e-9);
    }
}

#[test]
fn delays_follow_the_seed_and_grow_with_spread_and_world() {
    assert_eq!(slowest(1, 4, 64, 0.1).to_bits(), slowest(1, 4, 64, 0.1).to_bits());
    assert_ne!(slowest(1, 4, 64, 0.1), slowest(2, 4, 64, 0.1));
    assert_ne!(slowest(1, 4, 64, 0.1), slowest(1, 5, 64, 0.1));
    assert_eq!(slowest(1, 4, 1024, 0.0), 1.0);
    for step in 0..20 {
        for world in 1..64 {
            assert!(slowest(1, step, world + 1, 0.1) >= slowest(1, step, world, 0.1));
        }
        assert!(slowest(1, step, 8, 0.2) > slowest(1, step, 8, 0.1));
    }
    let work = step(Encoding::Bf16);
    let run = || simulate(7, &work, &USUAL, &Machines { cores: 3.0, workers_each: 2, compute_cores: 1.0 }, slowest(1, 2, 7, 0.2));
    assert_eq!(run(), run());
}

#[test]
fn a_bucket_is_ready_with_the_last_of_its_parts_and_no_earlier_than_those_after_it() {
    let layout = BucketLayout::new(100, 4 * 30);
    let parts = [Part { elements: 20, ready_ms: 9.0 }, Part { elements: 50, ready_ms: 7.0 }, Part { elements: 30, ready_ms: 4.0 }];
    let work = Work { parts: parts.to_vec(), compute_ms: 10.0, layout, ..gradient(0, 4) };
    assert_eq!(ready(&work), [(3, 0.004), (2, 0.007), (1, 0.007), (0, 0.009), (4, 0.010)]);
    // Matrices come first, and no bucket before them.
    let matrix = |ready_ms| Gathered { values_each: 1, ready_ms, encoding: Encoding::F32 };
    let work = Work { gathered: vec![matrix(3.0), matrix(5.0)], ..work };
    assert_eq!(ready(&work), [(5, 0.003), (6, 0.005), (3, 0.005), (2, 0.007), (1, 0.007), (0, 0.009), (4, 0.010)]);
}

#[test]
fn a_matrix_takes_what_the_link_takes_for_the_rows_of_the_others() {
    let costs = Costs { link_gbit_per_s: 8.0, ..FREE };
    for world in 1..=16 {
        for (encoding, width) in [(Encoding::F32, 4), (Encoding::Bf16, 2)] {
            let matrix = Gathered { values_each: 4 << 20, ready_ms: 0.0, encoding };
            let work = Work { gathered: vec![matrix; 3], product_ms: 7.0, ..gradient(0, 4) };
            let expected = 3.0 * (world - 1) as f64 * f64::from(width * (4 << 20)) / 1e9 * 1e3 + 7.0;
            let outcome = simulate(world, &work, &costs, &ALONE, 1.0);
            assert!(close(outcome.step_ms, expected, 0.03), "world {world}: {outcome:?}, not {expected} ms");
        }
    }
}

/// AlexNet of 32 samples a worker in bf16, over links of 1 Gb/s.
#[test]
fn factors_make_more_machines_worth_while_where_sums_do_not() {
    let model = ModelConfig::Alexnet(AlexnetConfig { preset: AlexnetPreset::Original, ..AlexnetConfig::default() });
    let input = InputShape { channels: 3, image_size: 224, classes: 1000 };
    let compute = Compute { forward_ms: 400.0, backward_ms: 800.0, dense_at: 0.33, update_ms: 60.0 };
    let costs = Costs { link_gbit_per_s: 1.0, ..USUAL };
    let efficiency = |dense: DenseExchange, world: u32| {
        let train = TrainConfig { global_batch: 32 * world, precision: Precision::Bf16, ..TrainConfig::default() };
        let cluster = ClusterConfig { wire: WireEncoding::Bf16, dense, ..ClusterConfig::default() };
        let work = work(&model, input, &train, &cluster, world, compute);
        let alone = compute.forward_ms + compute.backward_ms + compute.update_ms;
        alone / simulate(world as usize, &work, &costs, &ALONE, 1.0).step_ms
    };
    for world in [2, 4, 8] {
        let (sums, factors) = (efficiency(DenseExchange::Sum, world), efficiency(DenseExchange::Auto, world));
        assert!(sums < 0.75 && factors > 0.85, "{world} workers: {sums} with sums, {factors} with factors");
    }
    assert!(close(efficiency(DenseExchange::Auto, 1), 1.0, 1e-9));
}

#[test]
fn a_thousand_workers_are_simulated_in_moments() {
    let work = Work { in_flight: 4, ..gradient(62_378_344, 8 << 20) };
    let outcome = simulate(1024, &work, &USUAL, &ALONE, 1.0);
    // 31 buckets, four at a time, a latency for each of 2046 hops.
    assert!(outcome.step_ms > 8.0 * 2046.0 * 0.05, "{outcome:?}");
}
