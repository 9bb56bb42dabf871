//! Products of factors beside libtorch's own gradients.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use common::config::Config;
use common::ring::{Gathers, Values};

use super::*;
use crate::data::{MaskGroup, Masks};
use crate::engine::device::Share;

const SAMPLES: usize = 12;

fn config(model: &str, precision: &str) -> Config {
    let text = format!(
        "name = \"t\"\nmodel = {model}\n[data]\nkind = \"synthetic\"\nclasses = 5\ntrain = 64\nval = 8\nimage_size = 64\n[train]\nglobal_batch = {SAMPLES}\nshards = 4\nthreads = 1\nmomentum = 0.0\nweight_decay = 0.0\nschedule = \"constant\"\nlr = 1.0\nprecision = \"{precision}\"\n[cluster]\ndense = \"factors\"\n"
    );
    Config::parse(&text, "test", &[]).unwrap()
}

/// The weights after one step of pseudo-random pictures; see [`step_of`].
fn step(config: &Config, device: &str, part: usize, factors: bool) -> Vec<f32> {
    let input = InputShape { channels: 3, image_size: 64, classes: 5 };
    let devices = Devices::parse(device, Share::WHOLE).unwrap();
    let mut replica = Replica::new(&config.model, &config.train, input, 1, devices).unwrap();
    let factored = if factors { Factored::of(config, input) } else { Factored::nothing(replica.layout().trained_total()) };
    assert!(factored.layers.is_empty() != factors);
    let mut rng = seed::stream(3, "factors test", &[]);
    let pictures: Vec<f32> = (0..SAMPLES * input.values()).map(|_| 2.0 * seed::unit(&mut rng) - 1.0).collect();
    let labels: Vec<i32> = (0..SAMPLES).map(|_| seed::below(&mut rng, input.classes as u32) as i32).collect();
    let masks = Masks::drawn(replica.dropouts(), &[MaskGroup { seed: 7, samples: SAMPLES }]);
    step_of(&mut replica, &factored, config.train.precision == Precision::Bf16, part, &pictures, &labels, &masks);
    replica.weights().unwrap().into_owned()
}

/// One step at a learning rate of 1, whose batch is computed in parts of so many samples, as ranks
/// compute theirs: what all of them give is gathered, or summed, before the products are made.
fn step_of(replica: &mut Replica, factored: &Factored, bf16: bool, part: usize, pictures: &[f32], labels: &[i32], masks: &Masks) {
    let values = pictures.len() / SAMPLES;
    assert!(replica.factor(factored).unwrap());
    let parts: Vec<BatchPart<'_>> = (0..SAMPLES)
        .step_by(part)
        .map(|at| BatchPart {
            inputs: pictures[at * values..(at + part) * values].into(),
            labels: &labels[at..at + part],
            seconds: &[],
            masks: masks.rows(&(at..at + part)),
            name: None,
        })
        .collect();
    let widths = factored.layers.iter().flat_map(|layer| [layer.inputs, layer.units]).collect();
    let gathers = Gathers::new(&[SAMPLES], widths, bf16);
    let mut matrices: Vec<Values> = (0..gathers.len()).map(|m| Values::zeros(bf16, gathers.values(m))).collect();
    let mut flat = vec![f32::NAN; replica.layout().trained_total()];
    replica
        .gradients(&parts, None, 1.0 / SAMPLES as f32, Delivery::Sum, &mut |number, piece| match piece {
            Piece::Values(at, span) => span.read(&mut flat[at..at + span.len()]),
            Piece::Factors { layer, inputs, slopes } => {
                for (matrix, values) in [(2 * layer, inputs), (2 * layer + 1, slopes)] {
                    matrices[matrix].write(number * part * gathers.width(matrix), values);
                }
            }
        })
        .unwrap();
    for layer in 0..factored.layers.len() {
        replica.multiply(layer, matrices[2 * layer].span(), matrices[2 * layer + 1].span()).unwrap();
    }
    let summed: Vec<f32> = factored.regions.summed().flat_map(|range| flat[range].to_vec()).collect();
    replica.update(&[summed], Update { step: 0, lr: 1.0, factor: 1.0 }).unwrap();
}

const MODELS: [&str; 6] = [
    "{kind=\"softmax\"}",
    "{kind=\"mlp\", hidden=[40, 30]}",
    "{kind=\"lenet\"}",
    "{kind=\"alexnet\", preset=\"notes\", width=0.05}",
    "{kind=\"alexnet\", preset=\"original\", width=0.05}",
    "{kind=\"alexnet\", preset=\"torchvision\", width=0.05}",
];

#[test]
fn products_have_the_bits_of_the_backward_pass() {
    for model in MODELS {
        for precision in ["f32", "bf16"] {
            let all = config(model, precision);
            // Where the model has such layers.
            let frozen = all.with(&["train.freeze=[\"conv1\", \"dense1\"]".to_owned()]).ok();
            for config in [Some(all), frozen].into_iter().flatten() {
                for device in ["cpu", "cpu:resident"] {
                    let (own, products) = (step(&config, device, SAMPLES, false), step(&config, device, SAMPLES, true));
                    let unlike = own.iter().zip(&products).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
                    assert_eq!(unlike, 0, "{model} in {precision} on {device}, frozen: {:?}", config.train.freeze);
                }
            }
        }
    }
}

#[test]
fn parts_of_a_batch_give_the_rows_of_the_whole() {
    for model in MODELS {
        let config = config(model, "f32");
        let whole = step(&config, "cpu", SAMPLES, true);
        for (device, part) in [("cpu", 3), ("cpu:resident", 3), ("cpu,cpu", SAMPLES), ("cpu,cpu,cpu,cpu", 3)] {
            let parts = step(&config, device, part, true);
            let farthest = whole.iter().zip(&parts).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(farthest < 1e-5, "{model} on {device}: {farthest}");
        }
    }
}

#[test]
fn all_engines_of_a_processor_make_the_same_products() {
    let config = config(MODELS[1], "f32");
    let input = InputShape { channels: 3, image_size: 64, classes: 5 };
    let factored = Factored::of(&config, input);
    let products = |device: &str| {
        let devices = Devices::parse(device, Share::WHOLE).unwrap();
        let mut replica = Replica::new(&config.model, &config.train, input, 1, devices).unwrap();
        replica.products_of_seeded_factors(&factored, &config.train).unwrap()
    };
    assert!(products("cpu").is_some());
    assert!(["cpu", "cpu:resident", "cpu,cpu"].iter().all(|device| products(device) == products("cpu")));
}

#[test]
fn products_of_whole_numbers_are_the_sums_of_the_ranks() {
    let config = config(MODELS[1], "f32");
    let input = InputShape { channels: 3, image_size: 64, classes: 5 };
    let factored = Factored::of(&config, input);
    let mut replica = Replica::new(&config.model, &config.train, input, 1, Devices::parse("cpu", Share::WHOLE).unwrap()).unwrap();
    let before = replica.weights().unwrap().into_owned();
    replica.factor(&factored).unwrap();
    let mut rng = seed::stream(5, "whole numbers", &[]);
    let mut whole = |n: usize| -> Vec<f32> { (0..n).map(|_| seed::below(&mut rng, 17) as f32 - 8.0).collect() };
    let mut sums = vec![0.0f32; replica.layout().trained_total()];
    for (number, layer) in factored.layers.iter().enumerate() {
        let (inputs, slopes) = (whole(SAMPLES * layer.inputs), whole(SAMPLES * layer.units));
        // Rank by rank, as a ring adds their gradients.
        for rows in (0..SAMPLES).collect::<Vec<_>>().chunks(3) {
            for &row in rows {
                let weights = &mut sums[layer.weights.clone()];
                for (x, weights) in inputs[row * layer.inputs..].iter().zip(weights.chunks_mut(layer.units)) {
                    weights.iter_mut().zip(&slopes[row * layer.units..]).for_each(|(w, d)| *w += x * d);
                }
            }
        }
        replica.multiply(number, Span::F32(&inputs), Span::F32(&slopes)).unwrap();
    }
    let zeros = vec![0.0; factored.regions.summed_len()];
    replica.update(&[zeros], Update { step: 0, lr: 1.0, factor: 1.0 }).unwrap();
    let after = replica.weights().unwrap();
    assert!(before.iter().zip(&sums).zip(&*after).all(|((before, sum), after)| before - sum == *after));
}

#[test]
fn products_of_parts_with_dropout_are_pytorchs_gradient() {
    const INPUT: InputShape = InputShape { channels: 3, image_size: 63, classes: 10 };
    let config = config("{kind=\"alexnet\", preset=\"notes\", width=0.125}", "f32");
    let factored = Factored::of(&config, INPUT);
    assert_eq!(factored.layers.len(), 3);
    let pictures: Vec<f32> = golden::numbers(SAMPLES * INPUT.values(), 50).iter().map(|x| 4.0 * x).collect();
    let labels: Vec<i32> = (0..SAMPLES as i32).map(|i| (3 * i) % 10).collect();
    let kept = |salt: u32, values: usize| golden::numbers(SAMPLES * values, salt).iter().map(|&x| u8::from(x >= 0.0)).collect();
    // All samples at once, and as three ranks compute theirs.
    for (device, part) in [("cpu", SAMPLES), ("cpu", 4), ("cpu:resident", 4), ("cpu,cpu,cpu", 4)] {
        let devices = Devices::parse(device, Share::WHOLE).unwrap();
        let mut replica = Replica::new(&config.model, &config.train, INPUT, 1, devices).unwrap();
        golden::write_weights(&mut replica);
        let before = replica.weights().unwrap().into_owned();
        let masks = (60..).zip(replica.dropouts()).map(|(salt, place)| (*place, kept(salt, place.values))).collect();
        step_of(&mut replica, &factored, false, part, &pictures, &labels, &Masks::given(SAMPLES, masks));
        let gradient: Vec<f32> = before.iter().zip(&*replica.weights().unwrap()).map(|(before, after)| before - after).collect();
        let layout = replica.layout();
        let expected = golden::figures().gradient_with_dropout;
        assert_eq!(expected.len(), layout.params().len());
        for (param, expected) in layout.params().iter().zip(&expected) {
            assert_eq!(param.name(), expected.name);
            let found = &gradient[param.range()];
            for (n, value) in expected.values.iter().enumerate() {
                let found = found[n * (found.len() / 100).max(1)];
                let apart = (found - value).abs() / expected.largest;
                assert!(apart <= 1e-5, "{} in parts of {part} on {device}, value {n}: {found}, {value} by PyTorch", param.name());
            }
        }
    }
}
