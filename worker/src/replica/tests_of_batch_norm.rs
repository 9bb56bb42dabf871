//! Batch normalisation: its statistics are a part of the state that every engine makes alike.
#![allow(clippy::unwrap_used)]
// A batch in one part is meant so.
#![allow(clippy::single_range_in_vec_init)]

use std::ops::Range;

use common::config::{OptimizerKind, Precision};
use common::seed;

use super::tests::{at, devices, train};
use super::*;
use crate::models::ParamSpec;
use crate::models::tests_of_own::{INPUT, normed};

const BATCH: usize = 6;

fn replica_on(devices: &Devices, train: &TrainConfig) -> Replica {
    Replica::new(&normed(4, INPUT), train, INPUT, 1, devices.clone()).unwrap()
}

fn pictures(n: usize, place: u64) -> (Vec<f32>, Vec<i32>) {
    let mut rng = seed::stream(21, "pictures", &[place]);
    let pictures = (0..n * INPUT.values()).map(|at| 3.0 * seed::unit(&mut rng) + (at % 5) as f32).collect();
    (pictures, (0..n).map(|_| seed::below(&mut rng, INPUT.classes as u32) as i32).collect())
}

/// Computes these parts of a batch; returns the flat gradient if it is delivered.
fn compute(replica: &mut Replica, (pictures, labels): &(Vec<f32>, Vec<i32>), parts: &[Range<usize>], delivery: Delivery) -> Vec<f32> {
    let each = INPUT.values();
    let masks = Masks::drawn(&[], &[MaskGroup { seed: 1, samples: labels.len() }]);
    let part = |places: &Range<usize>| BatchPart {
        inputs: pictures[places.start * each..places.end * each].into(),
        labels: &labels[places.clone()],
        seconds: &[],
        masks: masks.rows(places),
        name: None,
    };
    let mut flat = vec![f32::NAN; replica.layout().trained_total()];
    let parts: Vec<BatchPart<'_>> = parts.iter().map(part).collect();
    replica
        .gradients(&parts, None, 1.0 / labels.len() as f32, delivery, &mut |_, piece| {
            let (offset, span) = piece.values().unwrap();
            span.read(&mut flat[offset..offset + span.len()]);
        })
        .unwrap();
    flat
}

fn values(replica: &Replica, name: &str) -> Vec<f32> {
    let weights = replica.weights().unwrap();
    let param = replica.layout().params().iter().find(|p| p.name() == name).unwrap();
    weights[param.range()].to_vec()
}

fn near(found: &[f32], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((f64::from(*found) - expected).abs() < 1e-5 * expected.abs().max(1.0), "{what}: {found} is not {expected}");
    }
}

/// What PyTorch's running mean and variance become of the first layer, whose values are the
/// pictures, with a momentum of 0.1: those of the parts, weighed by their samples.
fn expected(pictures: &[f32], parts: &[Range<usize>]) -> [Vec<f64>; 2] {
    let (each, area) = (INPUT.values(), INPUT.values() / INPUT.channels);
    let total = parts.iter().map(Range::len).sum::<usize>() as f64;
    let of = |channel: usize| {
        let (mut mean, mut variance) = (0.0, 0.0);
        for part in parts {
            let plane = |row: usize| pictures[row * each + channel * area..][..area].iter().map(|v| f64::from(*v));
            let all: Vec<f64> = part.clone().flat_map(plane).collect();
            let own = all.iter().sum::<f64>() / all.len() as f64;
            let share = part.len() as f64 / total;
            mean += share * own;
            variance += share * all.iter().map(|v| (v - own).powi(2)).sum::<f64>() / (all.len() - 1) as f64;
        }
        (0.1 * mean, 0.9 + 0.1 * variance)
    };
    let (means, variances) = (0..INPUT.channels).map(of).unzip();
    [means, variances]
}

fn parts_on(devices: &Devices) -> Vec<Range<usize>> {
    // Several devices share the rows.
    let count = devices.to_string().split(',').count();
    (0..count).map(|n| BATCH * n / count..BATCH * (n + 1) / count).collect()
}

#[test]
fn running_statistics_are_those_of_pytorch() {
    let batch = pictures(BATCH, 1);
    for devices in devices() {
        let mut replica = replica_on(&devices, &train());
        compute(&mut replica, &batch, &[0..BATCH], Delivery::Keep);
        replica.update_with_own(at(0, 0.1)).unwrap();
        let [mean, variance] = expected(&batch.0, &parts_on(&devices));
        near(&values(&replica, "first.running_mean"), &mean, &format!("mean on {devices}"));
        near(&values(&replica, "first.running_var"), &variance, &format!("variance on {devices}"));
        assert!(values(&replica, "between.running_var").iter().all(|v| (0.9..10.0).contains(v) && *v != 1.0));
    }
}

#[test]
fn parts_weigh_by_their_samples_and_ranks_are_summed() {
    let batch = pictures(BATCH, 2);
    let parts = [0..4, 4..BATCH];
    for devices in devices().into_iter().filter(|devices| !devices.to_string().contains(',')) {
        let [mean, variance] = expected(&batch.0, &parts);
        let mut alone = replica_on(&devices, &train());
        compute(&mut alone, &batch, &parts, Delivery::Keep);
        alone.update_with_own(at(0, 0.1)).unwrap();
        // Two ranks, of which each has one part.
        let mut ranks = [replica_on(&devices, &train()), replica_on(&devices, &train())];
        let own = |rank: &mut Replica, place: usize| compute(rank, &batch, &parts[place..=place], Delivery::Sum);
        let flats = [own(&mut ranks[0], 0), own(&mut ranks[1], 1)];
        let sum: Vec<f32> = flats[0].iter().zip(&flats[1]).map(|(a, b)| a + b).collect();
        let [first, second] = &mut ranks;
        first.update(std::slice::from_ref(&sum), at(0, 0.1)).unwrap();
        second.update(&[sum], at(0, 0.1)).unwrap();
        assert_eq!(first.weights_blake3().unwrap(), second.weights_blake3().unwrap());
        for replica in [&alone, first] {
            near(&values(replica, "first.running_mean"), &mean, &format!("mean on {devices}"));
            near(&values(replica, "first.running_var"), &variance, &format!("variance on {devices}"));
        }
    }
}

#[test]
fn an_optimizer_sees_no_running_statistics() {
    let kinds = [OptimizerKind::Sgd, OptimizerKind::Adam, OptimizerKind::Adamw, OptimizerKind::Lars, OptimizerKind::Lamb];
    for optimizer in kinds {
        let train = TrainConfig { optimizer, weight_decay: 0.1, decay_bias: true, clip_norm: Some(0.01), ema: Some(0.5), ..train() };
        let mut first: Option<State> = None;
        for devices in devices() {
            let mut replica = replica_on(&devices, &train);
            let (total, running) = (replica.layout().total(), replica.layout().running());
            for step in 0..3 {
                let mut rng = seed::stream(5, "flat", &[step]);
                let flat: Vec<f32> = (0..total).map(|_| seed::unit(&mut rng) - 0.5).collect();
                let before = replica.weights().unwrap().into_owned();
                let report = replica.update(std::slice::from_ref(&flat), Update { factor: 1.5, ..at(step, 0.1) }).unwrap();
                let norm = flat[..total - running].iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
                assert!((report.grad_norm - 1.5 * norm).abs() < 1e-6 * norm && report.clipped, "{optimizer:?} on {devices}");
                let after = replica.weights().unwrap();
                let reduced = (total - running..total).all(|at| after[at] == before[at] - flat[at]);
                assert!(reduced, "{optimizer:?} on {devices}");
            }
            let weights = replica.weights().unwrap().into_owned();
            for (name, values) in replica.engine.optimizer_state().unwrap() {
                let own = &values[total - running..];
                assert!(if name == AVERAGE { *own == weights[total - running..] } else { own.iter().all(|v| *v == 0.0) }, "{name}");
            }
            // The same bits on every engine.
            let state = replica.export().unwrap();
            assert!(*first.get_or_insert_with(|| state.clone()) == state, "{optimizer:?} on {devices}");
        }
    }
}

#[test]
fn statistics_that_are_not_finite_are_refused() {
    for devices in devices() {
        let mut replica = replica_on(&devices, &train());
        let total = replica.layout().total();
        let before = replica.weights().unwrap().into_owned();
        let mut flat = vec![0.25; total];
        flat[total - 1] = f32::INFINITY;
        let error = replica.update(&[flat], at(0, 0.1)).unwrap_err();
        assert!(matches!(&error, ReplicaError::NotFinite { parameter, .. } if parameter == "between.running_var"), "{error}");
        assert_eq!(*replica.weights().unwrap(), *before);
        // And those that the engine has computed itself: 1e20 squared is no f32.
        let (mut pictures, labels) = pictures(BATCH, 3);
        pictures[0] = 1e25;
        compute(&mut replica, &(pictures, labels), &[0..BATCH], Delivery::Keep);
        assert!(matches!(replica.update_with_own(at(0, 0.1)).unwrap_err(), ReplicaError::NotFinite { .. }), "{devices}");
    }
}

#[test]
fn all_engines_normalise_alike_forward_and_backward() {
    let batch = pictures(BATCH, 4);
    for precision in [Precision::F32, Precision::Bf16] {
        let train = TrainConfig { precision, ..train() };
        let bound = if precision == Precision::F32 { 1e-4 } else { 0.1 };
        let mut first: Option<Vec<f32>> = None;
        for devices in devices().into_iter().filter(|devices| !devices.to_string().contains(',')) {
            let flat = compute(&mut replica_on(&devices, &train), &batch, &[0..BATCH], Delivery::Sum);
            let first = first.get_or_insert_with(|| flat.clone());
            let most = first.iter().fold(0.0f32, |most, v| most.max(v.abs()));
            let farthest = first.iter().zip(&flat).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(farthest <= bound * most, "{precision:?} on {devices}: {farthest} of {most}");
        }
    }
}

#[test]
fn evaluation_goes_by_running_statistics() {
    let (pictures, labels) = pictures(BATCH, 5);
    let each = INPUT.values();
    for devices in devices() {
        let mut replica = replica_on(&devices, &train());
        for step in 0..3 {
            compute(&mut replica, &(pictures.clone(), labels.clone()), &[0..BATCH], Delivery::Keep);
            replica.update_with_own(at(step, 0.05)).unwrap();
        }
        let (_, together) = replica.scores(&pictures[..], &labels).unwrap();
        for row in 0..BATCH {
            let (_, alone) = replica.scores(&pictures[row * each..(row + 1) * each], &labels[row..=row]).unwrap();
            let scores = together[row * INPUT.classes..(row + 1) * INPUT.classes].iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
            near(&alone, &scores, &format!("{devices}"));
        }
        // Another replica has the same scores from the state alone.
        let mut other = replica_on(&devices, &train());
        other.import(&replica.export().unwrap()).unwrap();
        assert_eq!(other.scores(&pictures[..], &labels).unwrap().1, together);
        assert_eq!(other.weights_blake3().unwrap(), replica.weights_blake3().unwrap());
        let at = replica.layout().total() - 1;
        other.engine.write_weights(&mut |weights| weights[at] += 0.5).unwrap();
        assert_ne!(other.weights_blake3().unwrap(), replica.weights_blake3().unwrap(), "running statistics are in the digest");
    }
}

#[test]
fn one_row_has_no_variance() {
    let batch = pictures(1, 6);
    for devices in devices() {
        let mut replica = replica_on(&devices, &train());
        compute(&mut replica, &batch, &[0..1], Delivery::Keep);
        replica.update_with_own(at(0, 0.1)).unwrap();
        // Of one value in each channel.
        near(&values(&replica, "between.running_var"), &[0.9; 5], &format!("{devices}"));
    }
}

#[test]
fn frozen_layers_keep_their_statistics_and_go_by_them() {
    let batch = pictures(BATCH, 7);
    for freeze in [&["features"][..], &["first", "between"], &["bn", "dense"], &["conv", "head"]] {
        let train = TrainConfig { freeze: freeze.iter().map(|&layer| layer.to_owned()).collect(), ema: Some(0.5), ..train() };
        let mut first: Option<Vec<f32>> = None;
        for devices in devices() {
            let what = format!("{freeze:?} on {devices}");
            let mut replica = replica_on(&devices, &train);
            let before = replica.weights().unwrap().into_owned();
            // Statistics of a batch would depend on how devices share its rows.
            if !devices.to_string().contains(',') {
                let flat = compute(&mut replica, &batch, &[0..BATCH], Delivery::Sum);
                let first = first.get_or_insert_with(|| flat.clone());
                let most = first.iter().fold(0.0f32, |most, v| most.max(v.abs()));
                let farthest = first.iter().zip(&flat).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(farthest <= 1e-4 * most, "{what}: {farthest} of {most}");
            }
            for step in 0..2 {
                compute(&mut replica, &batch, &[0..BATCH], Delivery::Keep);
                replica.update_with_own(at(step, 0.05)).unwrap();
            }
            let layout = replica.layout().clone();
            let after = replica.weights().unwrap().into_owned();
            let frozen = |name: &str| {
                let layer = name.split('.').next().unwrap();
                freeze.contains(&layer) || (freeze[0] == "features" && ["first", "conv", "bn"].contains(&layer))
            };
            for param in layout.params() {
                assert_eq!(param.is_frozen(), frozen(param.name()), "{what} {}", param.name());
                assert_eq!(before[param.range()] == after[param.range()], param.is_frozen(), "{what} {}", param.name());
            }
            // Statistics that follow batches are the last values of a gradient.
            let statistics = layout.trained_total() - layout.running()..layout.trained_total();
            let follows = |param: &&ParamSpec| param.role().is_running() && !param.is_frozen();
            assert!(layout.params().iter().filter(follows).all(|param| statistics.contains(&param.range().start)), "{what}");
            let mut other = replica_on(&devices, &train);
            other.import(&replica.export().unwrap()).unwrap();
            assert_eq!(other.weights_blake3().unwrap(), replica.weights_blake3().unwrap());
            assert_eq!(other.scores(&batch.0[..], &batch.1).unwrap(), replica.scores(&batch.0[..], &batch.1).unwrap(), "{what}");
        }
    }
}
