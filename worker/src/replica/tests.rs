//! Every test runs on all devices that this build has, on a narrow AlexNet.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use common::config::{AlexnetConfig, AlexnetPreset, OptimizerKind, Precision};
use common::seed;

use super::*;
use crate::data::{MaskRows, Second};
#[cfg(feature = "libtorch")]
use crate::engine::device::ComputeDevice;
use crate::engine::{Sink, device::Share};

const INPUT: InputShape = InputShape { channels: 3, image_size: 63, classes: 10 };
const BATCH: usize = 6;

pub(super) fn devices() -> Vec<Devices> {
    let names = ["cpu", "cpu:resident", "flex", "cpu,cpu,cpu", "cuda:0", "cuda:0,cuda:0"];
    let devices: Vec<_> = names.iter().filter_map(|name| Devices::parse(name, Share::WHOLE).ok()).collect();
    for devices in &devices {
        devices.prepare(&train()).unwrap();
    }
    assert!(!devices.is_empty());
    devices
}

fn model(dropout: f64, preset: AlexnetPreset) -> ModelConfig {
    ModelConfig::Alexnet(AlexnetConfig { preset, width: 0.04, dropout, ..AlexnetConfig::default() })
}

pub(super) fn train() -> TrainConfig {
    TrainConfig { threads: Some(2), weight_decay: 0.0, ..TrainConfig::default() }
}

pub(super) fn replica(dropout: f64, train: &TrainConfig, device: &Devices) -> Replica {
    Replica::new(&model(dropout, AlexnetPreset::Notes), train, INPUT, 1, device.clone()).unwrap()
}

/// The gradient of one batch: to a sink, or added to what the engine holds.
impl Replica {
    pub(super) fn gradient(
        &mut self,
        inputs: &[f32],
        labels: &[i32],
        scale: f32,
        masks: MaskRows<'_>,
        sink: Sink<'_>,
    ) -> Result<Sums, ReplicaError> {
        self.mixed_gradient(inputs, labels, &[], scale, masks, sink)
    }
    pub(super) fn mixed_gradient(
        &mut self,
        inputs: &[f32],
        labels: &[i32],
        seconds: &[Second],
        scale: f32,
        masks: MaskRows<'_>,
        sink: Sink<'_>,
    ) -> Result<Sums, ReplicaError> {
        let part = BatchPart { inputs: inputs.into(), labels, seconds, masks, name: None };
        self.gradients(&[part], None, scale, Delivery::Sum, &mut |_, piece| _ = piece.values().map(|(offset, span)| sink(offset, span)))
    }
    fn add_gradient(&mut self, inputs: &[f32], labels: &[i32], scale: f32, masks: MaskRows<'_>) -> Result<Sums, ReplicaError> {
        let part = BatchPart { inputs: inputs.into(), labels, seconds: &[], masks, name: None };
        self.gradients(&[part], None, scale, Delivery::Keep, &mut |_, _| ())
    }
}

pub(super) fn at(step: u64, lr: f64) -> Update {
    Update { step, lr, factor: 1.0 }
}

pub(super) fn batch(n: usize, place: u64) -> (Vec<f32>, Vec<i32>) {
    let mut rng = seed::stream(9, "test batch", &[place]);
    let images = (0..n * INPUT.values()).map(|_| 4.0 * seed::unit(&mut rng) - 2.0).collect();
    let labels = (0..n).map(|_| seed::below(&mut rng, INPUT.classes as u32) as i32).collect();
    (images, labels)
}

/// Masks for groups of samples: the seed of each, and how many they are.
fn masks(replica: &Replica, groups: &[(u64, usize)]) -> Masks {
    let groups: Vec<MaskGroup> = groups.iter().map(|&(seed, samples)| MaskGroup { seed, samples }).collect();
    Masks::drawn(replica.dropouts(), &groups)
}

/// The flat gradient; also checks that the sink was handed every value once.
pub(super) fn gradient(replica: &mut Replica, images: &[f32], labels: &[i32], scale: f32, dropout_seed: u64) -> (Vec<f32>, Sums) {
    mixed_gradient(replica, images, labels, &[], scale, dropout_seed)
}

/// As [`gradient`], of samples that may be mixed.
pub(super) fn mixed_gradient(
    replica: &mut Replica,
    images: &[f32],
    labels: &[i32],
    seconds: &[Second],
    scale: f32,
    dropout_seed: u64,
) -> (Vec<f32>, Sums) {
    let mut flat = vec![f32::NAN; replica.layout().trained_total()];
    let mut handed = 0;
    let masks = masks(replica, &[(dropout_seed, labels.len())]);
    let sums = replica
        .mixed_gradient(images, labels, seconds, scale, masks.all(), &mut |at, span| {
            span.read(&mut flat[at..at + span.len()]);
            handed += span.len();
        })
        .unwrap();
    assert_eq!(handed, flat.len());
    assert!(flat.iter().all(|g| g.is_finite()));
    (flat, sums)
}

pub(super) fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

/// Distance of two vectors relative to the length of the first.
pub(super) fn distance(a: &[f32], b: &[f32]) -> f64 {
    let difference: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    norm(&difference) / norm(a)
}

#[test]
fn gradient_matches_finite_differences_in_every_parameter() {
    for device in devices() {
        for preset in [AlexnetPreset::Notes, AlexnetPreset::Torchvision] {
            let smoothed = TrainConfig { label_smoothing: 0.1, ..train() };
            let mut replica = Replica::new(&model(0.0, preset), &smoothed, INPUT, 1, device.clone()).unwrap();
            let (images, labels) = batch(BATCH, 0);
            let (flat, _) = gradient(&mut replica, &images, &labels, 1.0, 0);
            for param in replica.layout().clone().params() {
                let slope = norm(&flat[param.range()]);
                // Along the gradient the loss changes by the gradient's norm per unit.
                let mut loss_at = |distance: f64| {
                    let kept = replica.weights().unwrap().to_vec();
                    let write = &mut |weights: &mut [f32]| {
                        for (w, g) in weights[param.range()].iter_mut().zip(&flat[param.range()]) {
                            *w += (distance * f64::from(*g) / slope) as f32;
                        }
                    };
                    replica.engine.write_weights(write).unwrap();
                    let loss = gradient(&mut replica, &images, &labels, 1.0, 0).1.loss;
                    replica.engine.write_weights(&mut |weights| weights.copy_from_slice(&kept)).unwrap();
                    loss
                };
                let step = 2e-3 / slope.max(1.0);
                let measured = (loss_at(step) - loss_at(-step)) / (2.0 * step);
                assert!((measured / slope - 1.0).abs() < 0.03, "{device} {preset:?} {}: {measured} is not {slope}", param.name());
            }
        }
    }
}

#[test]
fn devices_agree_on_loss_and_gradient_with_dropout() {
    let results: Vec<_> = devices()
        .into_iter()
        .map(|device| {
            let mut replica = replica(0.5, &train(), &device);
            let (images, labels) = batch(BATCH, 0);
            gradient(&mut replica, &images, &labels, 0.25, 3)
        })
        .collect();
    for (flat, sums) in &results[1..] {
        assert!((sums.loss - results[0].1.loss).abs() < 1e-4);
        assert!(distance(&results[0].0, flat) < 1e-4);
    }
}

#[cfg(feature = "libtorch")]
#[test]
fn libtorchs_own_autograd_agrees_with_burns() {
    let (images, labels) = batch(BATCH, 0);
    for precision in [Precision::F32, Precision::Bf16] {
        let train = TrainConfig { precision, ..train() };
        let mut native = replica(0.5, &train, &ComputeDevice::Cpu.into());
        let mut burns = replica(0.5, &train, &ComputeDevice::Cpu.into());
        let weights = native.weights().unwrap().to_vec();
        let device = ComputeDevice::Cpu.burn();
        let setup = EngineSetup {
            model: &model(0.5, AlexnetPreset::Notes),
            input: INPUT,
            train: &train,
            trained: weights.len(),
            weights,
            threads: 1,
        };
        burns.engine = Box::new(crate::engine::autodiff::AutodiffEngine::new(setup, device).unwrap());
        let (expected, _) = gradient(&mut burns, &images, &labels, 1.0, 3);
        let (found, _) = gradient(&mut native, &images, &labels, 1.0, 3);
        let tolerance = if precision == Precision::F32 { 1e-4 } else { 0.05 };
        assert!(distance(&expected, &found) < tolerance, "{precision:?}: {}", distance(&expected, &found));
    }
}

#[test]
fn halves_of_a_batch_add_up() {
    for device in devices() {
        let mut replica = replica(0.0, &train(), &device);
        let (images, labels) = batch(BATCH, 0);
        let (whole, sums) = gradient(&mut replica, &images, &labels, 1.0 / BATCH as f32, 0);
        let half = BATCH / 2;
        let (images0, images1) = images.split_at(half * INPUT.values());
        let (first, mut added) = gradient(&mut replica, images0, &labels[..half], 1.0 / BATCH as f32, 0);
        let (second, other) = gradient(&mut replica, images1, &labels[half..], 1.0 / BATCH as f32, 0);
        let total: Vec<f32> = first.iter().zip(&second).map(|(a, b)| a + b).collect();
        assert!(distance(&whole, &total) < 1e-4, "{device}: {}", distance(&whole, &total));
        added += other;
        assert!((added.loss - sums.loss).abs() < 1e-3);
        assert_eq!((added.top1, added.top5, added.count), (sums.top1, sums.top5, sums.count));
    }
}

#[test]
fn an_empty_batch_has_a_zero_gradient() {
    for device in devices() {
        let mut replica = replica(0.5, &train(), &device);
        let (flat, sums) = gradient(&mut replica, &[], &[], 1.0, 0);
        assert!(flat.iter().all(|&g| g == 0.0));
        assert_eq!(sums, Sums::default());
        assert_eq!(replica.evaluate(&[][..], &[]).unwrap(), Sums::default());
    }
}

#[test]
fn dropout_follows_its_seed_and_is_off_in_evaluation() {
    for device in devices() {
        let mut replica = replica(0.5, &train(), &device);
        let (images, labels) = batch(BATCH, 0);
        let first = gradient(&mut replica, &images, &labels, 1.0, 7);
        assert!(first == gradient(&mut replica, &images, &labels, 1.0, 7));
        assert!(first != gradient(&mut replica, &images, &labels, 1.0, 8));
        let evaluated = replica.evaluate(&images, &labels).unwrap();
        assert_eq!(evaluated, replica.evaluate(&images, &labels).unwrap());
        let mut without = self::replica(0.0, &train(), &device);
        let (_, sums) = gradient(&mut without, &images, &labels, 1.0, 7);
        assert!((sums.loss - evaluated.loss).abs() < 1e-4);
    }
}

#[test]
fn dropout_of_a_sample_does_not_depend_on_the_rest_of_the_batch() {
    for device in devices() {
        let mut replica = replica(0.5, &train(), &device);
        let (images, labels) = batch(BATCH, 0);
        let (first, rest) = images.split_at(2 * INPUT.values());
        let both = masks(&replica, &[(5, 2), (6, BATCH - 2)]);
        let whole = replica.gradient(&images, &labels, 1.0, both.all(), &mut |_, _| ()).unwrap().loss;
        let parts = gradient(&mut replica, first, &labels[..2], 1.0, 5).1.loss + gradient(&mut replica, rest, &labels[2..], 1.0, 6).1.loss;
        assert!((whole - parts).abs() < 1e-4 * whole, "{device}: {whole} and {parts}");
    }
}

#[test]
fn loss_falls_in_both_precisions() {
    for device in devices() {
        for precision in [Precision::F32, Precision::Bf16] {
            let train = TrainConfig { precision, ..train() };
            let mut replica = replica(0.1, &train, &device);
            let (images, labels) = batch(BATCH, 0);
            let mut losses = Vec::new();
            for step in 0..20 {
                let (flat, sums) = gradient(&mut replica, &images, &labels, 1.0 / BATCH as f32, step);
                losses.push(sums.loss / BATCH as f64);
                let (front, back) = flat.split_at(1000);
                replica.update(&[front.to_vec(), back.to_vec()], at(step, 0.02)).unwrap();
            }
            // A batch is so small that single steps go astray.
            let last = losses[15..].iter().sum::<f64>() / 5.0;
            assert!(last < 0.6 * losses[0], "{device} {precision:?}: {losses:?}");
            assert_eq!(replica.step(), 20);
        }
    }
}

fn trained(optimizer: OptimizerKind, precision: Precision, device: &Devices) -> (Replica, TrainConfig) {
    let train = TrainConfig { optimizer, precision, ..train() };
    let mut replica = replica(0.5, &train, device);
    let (images, labels) = batch(BATCH, 0);
    for step in 0..2 {
        let (flat, _) = gradient(&mut replica, &images, &labels, 0.1, step);
        replica.update(&[flat], at(step, 1e-3)).unwrap();
    }
    (replica, train)
}

#[test]
fn exported_state_goes_on_bit_for_bit() {
    for device in devices() {
        for (optimizer, precision) in
            [(OptimizerKind::Sgd, Precision::F32), (OptimizerKind::Lamb, Precision::Bf16), (OptimizerKind::Adamw, Precision::F32)]
        {
            let (mut one, train) = trained(optimizer, precision, &device);
            let mut other = Replica::new(&model(0.5, AlexnetPreset::Notes), &train, INPUT, 2, device.clone()).unwrap();
            assert_ne!(one.weights_blake3().unwrap(), other.weights_blake3().unwrap());
            let state = one.export().unwrap();
            other.import(&state).unwrap();
            assert_eq!(other.step(), 2);
            assert!(other.export().unwrap() == state);
            assert_eq!(one.weights_blake3().unwrap(), other.weights_blake3().unwrap());
            let (images, labels) = batch(BATCH, 1);
            for replica in [&mut one, &mut other] {
                let (flat, _) = gradient(replica, &images, &labels, 0.1, 2);
                replica.update(&[flat], at(2, 1e-3)).unwrap();
            }
            assert_eq!(one.weights_blake3().unwrap(), other.weights_blake3().unwrap());
            assert!(one.export().unwrap() == other.export().unwrap());
        }
    }
}

#[test]
fn state_of_another_model_or_optimizer_is_refused_and_changes_nothing() {
    let device = devices().remove(0);
    let (mut replica, _) = trained(OptimizerKind::Sgd, Precision::F32, &device);
    let before = replica.export().unwrap();
    let (adam, _) = trained(OptimizerKind::Adam, Precision::F32, &device);
    let wide = Replica::new(&model(0.5, AlexnetPreset::Torchvision), &train(), INPUT, 1, device.clone()).unwrap();
    for state in [
        adam.export().unwrap(),
        wide.export().unwrap(),
        State { model: vec![1, 2, 3], ..before.clone() },
        State { step: 9, ..before.clone() },
    ] {
        assert!(matches!(replica.import(&state), Err(ReplicaError::State(_))));
    }
    assert!(replica.export().unwrap() == before);
}

#[test]
fn gradients_that_are_not_finite_are_refused_by_name() {
    let mut replica = replica(0.0, &train(), &devices()[0]);
    let before = replica.weights_blake3().unwrap();
    let bad = replica.layout().params()[2].range().start;
    assert_eq!(replica.layout().params()[2].name(), "conv2.weight");
    let mut gradient = vec![vec![0.0; 10], vec![0.0; replica.layout().total() - 10]];
    gradient[1][bad - 10] = f32::NAN;
    match replica.update(&gradient, at(5, 0.1)) {
        Err(ReplicaError::NotFinite { parameter, step: 5 }) => assert_eq!(parameter, "conv2.weight"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(replica.update(&gradient[..1], at(5, 0.1)), Err(ReplicaError::GradientSize { found: 10, .. })));
    assert_eq!((replica.weights_blake3().unwrap(), replica.step()), (before, 0));
}

#[test]
fn clipping_scales_the_gradient_to_its_limit() {
    let plain = TrainConfig { momentum: 0.0, ..train() };
    let clipped = TrainConfig { clip_norm: Some(0.5), ..plain.clone() };
    let mut moved = Vec::new();
    for train in [plain, clipped] {
        let mut replica = replica(0.0, &train, &devices()[0]);
        let before = replica.weights().unwrap().to_vec();
        let report = replica.update(&[vec![1e-2; before.len()]], at(0, 1.0)).unwrap();
        let expected = 1e-2 * (before.len() as f64).sqrt();
        assert!((report.grad_norm / expected - 1.0).abs() < 1e-5);
        assert_eq!(report.clipped, train.clip_norm.is_some());
        let change: Vec<f32> = before.iter().zip(replica.weights().unwrap().iter()).map(|(a, b)| a - b).collect();
        moved.push((norm(&change), expected));
    }
    assert!((moved[0].0 / moved[0].1 - 1.0).abs() < 1e-3);
    assert!((moved[1].0 / 0.5 - 1.0).abs() < 1e-3, "{moved:?}");
}

/// The parts of a reproducible step: each gradient comes by itself, also those of parts
/// without samples, and is the same bits on one device and on several.
#[test]
fn gradients_of_parts_come_by_themselves() {
    let of_device = |device: Devices| {
        let mut replica = replica(0.5, &train(), &device);
        let (images, labels) = batch(BATCH, 0);
        let masks = masks(&replica, &[(1, 2), (2, 0), (3, 3), (4, 1)]);
        let inputs = Inputs::Numbers(&images);
        let part = |places: std::ops::Range<usize>| BatchPart {
            inputs: inputs.part(&places, BATCH),
            labels: &labels[places.clone()],
            seconds: &[],
            masks: masks.rows(&places),
            name: None,
        };
        let parts = [part(0..2), part(2..2), part(2..5), part(5..6)];
        let mut flat = vec![vec![f32::NAN; replica.layout().total()]; parts.len()];
        let sums = replica
            .gradients(&parts, None, 0.1, Delivery::Each, &mut |part, piece| {
                _ = piece.values().map(|(at, span)| span.read(&mut flat[part][at..at + span.len()]))
            })
            .unwrap();
        assert_eq!(sums.count, BATCH as u32, "{device}");
        assert!(flat[1].iter().all(|&g| g == 0.0) && flat.iter().flatten().all(|g| g.is_finite()), "{device}");
        let alone = replica.gradients(&parts[2..3], None, 0.1, Delivery::Sum, &mut |_, _| ()).unwrap();
        assert_eq!(alone.count, 3);
        flat
    };
    let all: Vec<_> = devices().into_iter().map(|device| (device.to_string(), of_device(device))).collect();
    for (device, flat) in &all[1..] {
        let furthest = flat.iter().zip(&all[0].1).map(|(a, b)| if norm(b) > 0.0 { distance(b, a) } else { 0.0 }).fold(0.0, f64::max);
        assert!(furthest < 1e-4, "{device}: {furthest}");
    }
    let of = |name: &str| all.iter().find(|(device, _)| device == name).map(|(_, flat)| flat);
    assert_eq!(of("cpu:resident").is_some(), of("cpu,cpu,cpu").is_some());
    assert!(of("cpu:resident") == of("cpu,cpu,cpu"), "the bits of one device and of three differ");
}

#[test]
fn a_gradient_that_stays_in_the_engine_gives_the_same_update() {
    for device in devices() {
        for precision in [Precision::F32, Precision::Bf16] {
            let train = TrainConfig { precision, clip_norm: Some(0.5), weight_decay: 1e-3, ..train() };
            let (mut handed, mut own) = (replica(0.5, &train, &device), replica(0.5, &train, &device));
            for step in 0..3 {
                let (images, labels) = batch(BATCH, step);
                let groups = masks(&own, &[(step, BATCH)]);
                let (flat, sums) = gradient(&mut handed, &images, &labels, 0.2, step);
                assert_eq!(own.add_gradient(&images, &labels, 0.2, groups.all()).unwrap(), sums);
                let update = Update { factor: 1.25, ..at(step, 0.01) };
                let (one, other) = (handed.update(&[flat], update).unwrap(), own.update_with_own(update).unwrap());
                assert!((one.grad_norm / other.grad_norm - 1.0).abs() < 1e-12, "{device} {precision:?}: {one:?} {other:?}");
                assert!(one.clipped && other.clipped);
            }
            // The norms' sums are grouped differently: a weight may differ by its last bit.
            assert!(distance(&handed.weights().unwrap(), &own.weights().unwrap()) < 1e-7, "{device} {precision:?}");
        }
    }
}

#[test]
fn parts_of_a_batch_add_up_in_the_engine() {
    for device in devices() {
        for precision in [Precision::F32, Precision::Bf16] {
            let train = TrainConfig { precision, momentum: 0.0, ..train() };
            let (images, labels) = batch(BATCH, 0);
            let (first, rest) = images.split_at(2 * INPUT.values());
            let moved = |parts: bool, by_sink: bool| {
                let mut replica = replica(0.5, &train, &device);
                let before = replica.weights().unwrap().into_owned();
                let mut flat = vec![0.0; before.len()];
                let mut sink = |at: usize, span: Span<'_>| span.read(&mut flat[at..at + span.len()]);
                let (own, last) = if parts { (&images[..0], rest) } else { (&images[..0], &images[..]) };
                let masks = masks(&replica, &[(5, 2), (6, BATCH - 2)]);
                let (labels_of_last, masks_of_last) =
                    if parts { (&labels[2..], masks.rows(&(2..BATCH))) } else { (&labels[..], masks.all()) };
                assert_eq!(replica.add_gradient(own, &[], 0.1, masks.rows(&(0..0))).unwrap(), Sums::default());
                if parts {
                    replica.add_gradient(first, &labels[..2], 0.1, masks.rows(&(0..2))).unwrap();
                }
                if by_sink {
                    replica.gradient(last, labels_of_last, 0.1, masks_of_last, &mut sink).unwrap();
                    replica.update(&[flat], at(0, 1.0)).unwrap();
                } else {
                    replica.add_gradient(last, labels_of_last, 0.1, masks_of_last).unwrap();
                    replica.update_with_own(at(0, 1.0)).unwrap();
                }
                let after = replica.weights().unwrap();
                before.iter().zip(after.iter()).map(|(a, b)| a - b).collect::<Vec<f32>>()
            };
            let whole = moved(false, false);
            let tolerance = if precision == Precision::F32 { 1e-4 } else { 0.02 };
            for by_sink in [false, true] {
                let found = distance(&whole, &moved(true, by_sink));
                assert!(found < tolerance, "{device} {precision:?} {by_sink}: {found}");
            }
        }
    }
}

#[test]
fn an_update_without_a_gradient_only_decays() {
    for device in devices() {
        let train = TrainConfig { weight_decay: 0.5, momentum: 0.0, ..train() };
        let mut replica = replica(0.0, &train, &device);
        let before = replica.weights().unwrap().into_owned();
        let report = replica.update_with_own(at(0, 0.5)).unwrap();
        assert_eq!(report, UpdateReport { grad_norm: 0.0, clipped: false });
        assert!(before.iter().zip(replica.weights().unwrap().iter()).all(|(b, a)| (0.75 * b - a).abs() <= 1e-7 * b.abs()));
    }
}

#[test]
fn an_own_gradient_that_is_not_finite_is_refused_by_name() {
    for device in devices() {
        let mut replica = replica(0.0, &train(), &device);
        let before = replica.weights_blake3().unwrap();
        let (mut images, labels) = batch(2, 0);
        images[INPUT.values() + 3] = f32::NAN;
        let sums = replica.add_gradient(&images, &labels, 1.0, masks(&replica, &[(0, 2)]).all()).unwrap();
        assert!(sums.loss.is_nan(), "{device}");
        match replica.update_with_own(at(4, 0.1)) {
            Err(ReplicaError::NotFinite { parameter, step: 4 }) => assert_eq!(parameter, "conv1.weight", "{device}"),
            other => panic!("{device}: {other:?}"),
        }
        assert_eq!((replica.weights_blake3().unwrap(), replica.step()), (before, 0));
    }
}
