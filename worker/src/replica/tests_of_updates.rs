//! Updates on a device against updates in host memory, bit for bit: ranks with either engine
//! may be in one ring, and their weights must stay the same bytes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use common::config::{OptimizerKind, Precision};
use common::ring::Values;
use common::seed;

use super::tests::{at, batch, devices, distance, gradient, replica, train};
use super::*;
use crate::engine::device::{ComputeDevice, Share};

const BATCH: usize = 6;

/// Every optimizer, with what changes its rule.
fn recipes() -> Vec<TrainConfig> {
    let plain = || TrainConfig { weight_decay: 0.01, ..train() };
    let kinds = [OptimizerKind::Sgd, OptimizerKind::Adam, OptimizerKind::Adamw, OptimizerKind::Lars, OptimizerKind::Lamb];
    let all = kinds.into_iter().flat_map(|optimizer| [true, false].map(|decay_bias| TrainConfig { optimizer, decay_bias, ..plain() }));
    let with_average = TrainConfig { ema: Some(0.7), optimizer: OptimizerKind::Lamb, ..plain() };
    let freeze = vec!["conv2".to_owned(), "dense1".to_owned()];
    let frozen = TrainConfig { freeze, ..with_average.clone() };
    all.chain([TrainConfig { nesterov: true, ..plain() }, TrainConfig { ema: Some(0.9), ..plain() }, with_average, frozen]).collect()
}

fn noise(len: usize, place: u64) -> Vec<f32> {
    let mut rng = seed::stream(11, "gradient", &[place]);
    (0..len).map(|_| (seed::unit(&mut rng) - 0.5) * 10f32.powi(seed::below(&mut rng, 6) as i32 - 4)).collect()
}

#[test]
fn all_engines_of_libtorch_make_the_same_bits_of_a_gradient() {
    let group = Devices::parse("cpu,cpu,cpu", Share::WHOLE).unwrap();
    for recipe in recipes() {
        for (precision, clip_norm) in [(Precision::F32, None), (Precision::F32, Some(0.3)), (Precision::Bf16, Some(0.3))] {
            let train = TrainConfig { precision, clip_norm, ..recipe.clone() };
            let what = format!("{:?} {} {} {precision:?} {clip_norm:?}", train.optimizer, train.decay_bias, train.nesterov);
            let mut host = replica(0.0, &train, &ComputeDevice::Cpu.into());
            let mut others = [ComputeDevice::ResidentCpu.into(), group.clone()].map(|devices: Devices| replica(0.0, &train, &devices));
            for step in 0..4 {
                let flat = noise(host.layout().trained_total(), step);
                let (front, back) = flat.split_at(12_345);
                let values = |part: &[f32]| {
                    let mut values = Values::zeros(precision == Precision::Bf16, part.len());
                    values.write(0, Span::F32(part));
                    values
                };
                let buckets = [values(front), values(back)];
                let update = Update { factor: 1.1, ..at(step, 3e-3) };
                let report = host.update(&buckets, update).unwrap();
                for other in &mut others {
                    assert_eq!(other.update(&buckets, update).unwrap(), report, "{what}");
                    assert!(host.export().unwrap() == other.export().unwrap(), "{what}, step {step}");
                }
                // Other buckets on another rank.
                let cut = [values(&flat[..777]), values(&flat[777..20_000]), values(&flat[20_000..])];
                let mut again = replica(0.0, &train, &ComputeDevice::Cpu.into());
                if step == 0 {
                    again.update(&cut, update).unwrap();
                    // The norm for clipping is summed in the order of the buckets.
                    assert!(clip_norm.is_some() || host.export().unwrap() == again.export().unwrap(), "{what}, other buckets");
                }
            }
            // The next gradient is of the same weights, by the same kernels.
            let (images, labels) = batch(BATCH, 0);
            let expected = gradient(&mut host, &images, &labels, 0.1, 0).0;
            for other in &mut others {
                let found = gradient(other, &images, &labels, 0.1, 0).0;
                assert!(distance(&expected, &found) < if precision == Precision::F32 { 1e-5 } else { 0.02 }, "{what}");
            }
        }
    }
}

/// A gradient that stays in the engine, on every device: norms of layers are those of what the
/// device holds.
#[test]
fn layerwise_updates_with_an_own_gradient_are_those_of_the_handed_one() {
    for device in devices() {
        for optimizer in [OptimizerKind::Lars, OptimizerKind::Lamb] {
            let train = TrainConfig { optimizer, weight_decay: 1e-3, ..train() };
            let (mut handed, mut own) = (replica(0.0, &train, &device), replica(0.0, &train, &device));
            for step in 0..2 {
                let (images, labels) = batch(BATCH, step);
                let (flat, _) = gradient(&mut handed, &images, &labels, 0.2, 0);
                handed.update(&[flat], at(step, 0.01)).unwrap();
                let masks = Masks::drawn(own.dropouts(), &[MaskGroup { seed: 0, samples: labels.len() }]);
                let part = BatchPart { inputs: (&images).into(), labels: &labels, seconds: &[], masks: masks.all(), name: None };
                own.gradients(&[part], None, 0.2, Delivery::Keep, &mut |_, _| ()).unwrap();
                own.update_with_own(at(step, 0.01)).unwrap();
            }
            let far = distance(&handed.weights().unwrap(), &own.weights().unwrap());
            assert!(far < 1e-5, "{device} {optimizer:?}: {far}");
        }
    }
}

/// Everywhere, on any engine: evaluated, in the digest, and in the state that others take over.
#[test]
fn the_average_of_the_weights_is_kept_evaluated_and_handed_on() {
    for device in devices() {
        for precision in [Precision::F32, Precision::Bf16] {
            let train = TrainConfig { precision, ema: Some(0.5), ..train() };
            let mut one = replica(0.0, &train, &device);
            let (images, labels) = batch(BATCH, 0);
            let mut average: Vec<f32> = Vec::new();
            for step in 0..3 {
                let flat = noise(one.layout().total(), step);
                one.update(&[flat], at(step, 0.05)).unwrap();
                let weights = one.weights().unwrap();
                if average.is_empty() {
                    average = weights.to_vec();
                }
                average.iter_mut().zip(weights.iter()).for_each(|(e, w)| *e += 0.5 * (w - *e));
            }
            let (digest, state) = (one.weights_blake3().unwrap(), one.export().unwrap());
            let raw = one.evaluate(&images, &labels).unwrap();
            let (found, averaged) = one.averaged(|one| (one.weights().unwrap().to_vec(), one.evaluate(&images, &labels).unwrap())).unwrap();
            assert!(found == average, "{device} {precision:?}");
            assert!(averaged.loss != raw.loss);
            assert_eq!((one.weights_blake3().unwrap(), one.evaluate(&images, &labels).unwrap()), (digest, raw), "{device} {precision:?}");
            assert!(one.export().unwrap() == state);
            // Another worker that takes it over, and one that is to evaluate it.
            let mut other = replica(0.0, &train, &device);
            other.import(&state).unwrap();
            assert_eq!(
                (other.weights_blake3().unwrap(), other.averaged(|r| r.evaluate(&images, &labels).unwrap()).unwrap()),
                (digest, averaged)
            );
            let mut evaluating = replica(0.0, &train, &device);
            evaluating.import_average(&state.optimizer).unwrap();
            assert_eq!(evaluating.evaluate(&images, &labels).unwrap(), averaged);
            // The digest covers both.
            other.engine.write_optimizer_state(&mut |slot, values| values[7] += slot as f32).unwrap();
            assert_ne!(other.weights_blake3().unwrap(), digest);
            let mut without = replica(0.0, &TrainConfig { ema: None, ..train.clone() }, &device);
            assert!(without.import(&state).is_err());
            assert!(without.import_average(&state.optimizer).unwrap_err().to_string().contains("train.ema"));
        }
    }
}
