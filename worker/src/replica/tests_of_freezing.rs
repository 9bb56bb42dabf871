//! Layers that training leaves as they are, on every device.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use common::config::Precision;

use super::tests::{at, batch, devices, distance, gradient, replica, train};
use super::*;

const BATCH: usize = 6;

fn freezing(layers: &[&str]) -> TrainConfig {
    TrainConfig { freeze: layers.iter().map(|&layer| layer.to_owned()).collect(), momentum: 0.5, ..train() }
}

const CHOICES: [&[&str]; 4] = [&["features"], &["classifier"], &["conv1", "dense2"], &["conv3", "dense1", "dense3"]];

/// The values of each parameter, by its name: of a flat vector of all, or of those trained.
fn by_name<'a>(layout: &ParamLayout, flat: &'a [f32]) -> HashMap<String, &'a [f32]> {
    let there = layout.params().iter().filter(|param| param.range().end <= flat.len());
    there.map(|param| (param.name().to_owned(), &flat[param.range()])).collect()
}

#[test]
fn trained_layers_have_the_gradient_that_they_have_without_freezing() {
    for device in devices() {
        let (images, labels) = batch(BATCH, 0);
        let mut whole = replica(0.5, &train(), &device);
        let (expected, sums) = gradient(&mut whole, &images, &labels, 0.2, 3);
        let expected = by_name(whole.layout(), &expected);
        for choice in CHOICES {
            let mut frozen = replica(0.5, &freezing(choice), &device);
            assert_eq!(by_name(frozen.layout(), &frozen.weights().unwrap()), by_name(whole.layout(), &whole.weights().unwrap()));
            let (found, same) = gradient(&mut frozen, &images, &labels, 0.2, 3);
            assert_eq!(same, sums, "{device} {choice:?}");
            let found = by_name(frozen.layout(), &found);
            assert_eq!(found.len(), frozen.layout().trained().count());
            for (name, values) in found {
                assert!(distance(expected[&name], values) < 1e-6, "{device} {choice:?} {name}");
            }
        }
    }
}

#[test]
fn updates_change_trained_layers_only_and_states_are_handed_on() {
    for device in devices() {
        for (choice, precision) in CHOICES.into_iter().zip([Precision::F32, Precision::Bf16].into_iter().cycle()) {
            let train = TrainConfig { precision, ema: Some(0.5), ..freezing(choice) };
            let mut one = replica(0.0, &train, &device);
            let before = one.weights().unwrap().into_owned();
            let (images, labels) = batch(BATCH, 1);
            let (flat, _) = gradient(&mut one, &images, &labels, 0.2, 0);
            one.update(&[flat], at(0, 0.05)).unwrap();
            // The gradient stays in the engine.
            let masks = Masks::drawn(one.dropouts(), &[MaskGroup { seed: 0, samples: BATCH }]);
            let part = BatchPart { inputs: (&images).into(), labels: &labels, seconds: &[], masks: masks.all(), name: None };
            one.gradients(&[part], None, 0.2, Delivery::Keep, &mut |_, _| ()).unwrap();
            one.update_with_own(at(1, 0.05)).unwrap();
            let after = one.weights().unwrap().into_owned();
            let layout = one.layout().clone();
            for param in layout.params() {
                let unchanged = before[param.range()] == after[param.range()];
                assert_eq!(unchanged, param.is_frozen(), "{device} {choice:?} {}", param.name());
            }
            let state = one.export().unwrap();
            let slots = safetensors::SafeTensors::deserialize(&state.optimizer).unwrap();
            assert_eq!(slots.len(), 2 * layout.trained().count(), "the momentum and the average");
            let mut other = replica(0.0, &train, &device);
            other.import(&state).unwrap();
            assert_eq!(other.weights_blake3().unwrap(), one.weights_blake3().unwrap());
            let averaged = |replica: &mut Replica| replica.averaged(|r| r.evaluate(&images, &labels).unwrap()).unwrap();
            assert_eq!(averaged(&mut other), averaged(&mut one));
            let mut evaluating = replica(0.0, &train, &device);
            evaluating.import_weights(&state.model).unwrap();
            evaluating.import_average(&state.optimizer).unwrap();
            assert_eq!(evaluating.evaluate(&images, &labels).unwrap(), averaged(&mut one));
            // A run that trains everything is another run.
            let mut whole = replica(0.0, &TrainConfig { freeze: Vec::new(), ..train }, &device);
            assert!(whole.import(&state).is_err());
        }
    }
}
