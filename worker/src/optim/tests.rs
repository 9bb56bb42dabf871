#![allow(clippy::unwrap_used, clippy::expect_used)]

use common::config::OptimizerKind;
use common::seed;
use common::simd::bf16_to_f32;

use super::*;

const ALL: [OptimizerKind; 5] = [OptimizerKind::Sgd, OptimizerKind::Adam, OptimizerKind::Adamw, OptimizerKind::Lars, OptimizerKind::Lamb];

fn settings(optimizer: OptimizerKind) -> TrainConfig {
    TrainConfig { optimizer, momentum: 0.9, weight_decay: 0.01, ..TrainConfig::default() }
}

fn at(step: u64) -> Update {
    Update { step, lr: 0.1, factor: 1.0 }
}

/// Two updates of one weight with the gradients 0.5 and -0.25.
fn two_updates(optimizer: OptimizerKind) -> f32 {
    let mut optimizer = Optimizer::new(&settings(optimizer), &ParamLayout::of_shapes(&[&[1]]), Threads::new(1).unwrap());
    let mut weights = [1.0];
    optimizer.step(&mut weights, None, &[vec![0.5]], at(0));
    optimizer.step(&mut weights, None, &[vec![-0.25]], at(1));
    weights[0]
}

fn assert_near(value: f32, expected: f64) {
    assert!((f64::from(value) - expected).abs() < 1e-6, "{value} is not {expected}");
}

#[test]
fn sgd_follows_pytorch() {
    // d = 0.5 + 0.01 = 0.51, w = 1 - 0.051 = 0.949;
    // d = -0.25 + 0.00949 = -0.24051, buf = 0.9 * 0.51 - 0.24051 = 0.21849, w = 0.949 - 0.021849
    assert_near(two_updates(OptimizerKind::Sgd), 0.927151);
}

#[test]
fn adam_and_adamw_follow_pytorch() {
    for decoupled in [false, true] {
        let (mut w, mut m, mut v) = (1.0f64, 0.0, 0.0);
        for (t, g) in [(1, 0.5), (2, -0.25)] {
            let g = if decoupled { g } else { g + 0.01 * w };
            w *= if decoupled { 1.0 - 0.1 * 0.01 } else { 1.0 };
            m = 0.9 * m + 0.1 * g;
            v = 0.999 * v + 0.001 * g * g;
            let (m_hat, v_hat) = (m / (1.0 - 0.9f64.powi(t)), v / (1.0 - 0.999f64.powi(t)));
            w -= 0.1 * m_hat / (v_hat.sqrt() + 1e-8);
        }
        assert_near(two_updates(if decoupled { OptimizerKind::Adamw } else { OptimizerKind::Adam }), w);
    }
}

fn noise(len: usize, place: u64) -> Vec<f32> {
    let mut rng = seed::stream(7, "test", &[place]);
    (0..len).map(|_| seed::unit(&mut rng) - 0.5).collect()
}

#[test]
fn neither_threads_nor_buckets_change_the_result() {
    let layout = ParamLayout::of_shapes(&[&[2, CHUNK], &[33], &[1200, 50], &[1], &[1, 1200], &[4096]]);
    let total = layout.total();
    let gradient = noise(total, 0);
    for (kind, decay_bias) in ALL.into_iter().flat_map(|kind| [(kind, true), (kind, false)]) {
        let run = |threads, bucket: usize| {
            let settings = TrainConfig { decay_bias, ..settings(kind) };
            let mut optimizer = Optimizer::new(&settings, &layout, Threads::new(threads).unwrap());
            let mut weights = noise(total, 1);
            let mut mirror = vec![0; total];
            let buckets: Vec<Vec<f32>> = gradient.chunks(bucket).map(<[f32]>::to_vec).collect();
            for step in 0..3 {
                optimizer.step(&mut weights, Some(&mut mirror), &buckets, Update { factor: 0.5, ..at(step) });
            }
            (weights, mirror)
        };
        let expected = run(1, total);
        assert!(expected.0.iter().zip(&expected.1).all(|(&w, &m)| half::bf16::from_f32(w).to_bits() == m));
        assert_eq!(expected, run(3, total));
        assert_eq!(expected, run(2, 10_007));
    }
}

/// The formulas of the papers in f64, for a matrix and a bias that has no rate of its own.
#[test]
fn lars_and_lamb_follow_their_papers() {
    let layout = ParamLayout::of_shapes(&[&[30, 7], &[11]]);
    let norm = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
    for (kind, decay_bias) in [(OptimizerKind::Lars, true), (OptimizerKind::Lars, false), (OptimizerKind::Lamb, false)] {
        let settings = TrainConfig { decay_bias, trust_coefficient: 0.02, ..settings(kind) };
        let mut optimizer = Optimizer::new(&settings, &layout, Threads::new(1).unwrap());
        let mut found = noise(layout.total(), 1);
        let mut weights: Vec<f64> = found.iter().map(|&w| w.into()).collect();
        let (mut first, mut second) = (vec![0.0; weights.len()], vec![0.0; weights.len()]);
        for step in 0..4 {
            let gradient = noise(layout.total(), 10 + step);
            optimizer.step(&mut found, None, std::slice::from_ref(&gradient), Update { factor: 0.5, ..at(step) });
            for param in layout.params() {
                let range = param.range();
                let decay = if param.is_vector() && !decay_bias { 0.0 } else { 0.01 };
                let w = &mut weights[range.clone()];
                let g: Vec<f64> = gradient[range.clone()].iter().map(|&g| 0.5 * f64::from(g)).collect();
                let (m, v) = (&mut first[range.clone()], &mut second[range]);
                if kind == OptimizerKind::Lars {
                    let ratio = if param.is_vector() { 1.0 } else { 0.02 * norm(w) / (norm(&g) + 0.01 * norm(w)) };
                    for ((w, g), m) in w.iter_mut().zip(&g).zip(m) {
                        *m = 0.9 * *m + 0.1 * ratio * (g + decay * *w);
                        *w -= *m;
                    }
                    continue;
                }
                let correct = |beta: f64| 1.0 - beta.powi(step as i32 + 1);
                let mut u = Vec::new();
                for (((w, g), m), v) in w.iter().zip(&g).zip(m).zip(v) {
                    *m = 0.9 * *m + 0.1 * g;
                    *v = 0.999 * *v + 0.001 * g * g;
                    u.push(*m / correct(0.9) / ((*v / correct(0.999)).sqrt() + 1e-8) + decay * w);
                }
                let ratio = if param.is_vector() { 1.0 } else { norm(w) / norm(&u) };
                w.iter_mut().zip(&u).for_each(|(w, u)| *w -= 0.1 * ratio * u);
            }
            for (at, (found, expected)) in found.iter().zip(&weights).enumerate() {
                assert!((f64::from(*found) - expected).abs() < 5e-6, "{kind:?}, step {step}, weight {at}: {found} is not {expected}");
            }
        }
    }
}

/// A layer of zeros, or without a gradient, moves at the global rate.
#[test]
fn a_layer_without_a_norm_has_the_ratio_one() {
    let layout = ParamLayout::of_shapes(&[&[2, 2], &[2, 2]]);
    let settings = TrainConfig { weight_decay: 0.0, ..settings(OptimizerKind::Lars) };
    let mut optimizer = Optimizer::new(&settings, &layout, Threads::new(1).unwrap());
    let mut weights = [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0];
    optimizer.step(&mut weights, None, &[vec![1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]], at(0));
    assert_eq!(weights, [-0.1, -0.1, -0.1, -0.1, 1.0, 1.0, 1.0, 1.0]);
}

#[test]
fn biases_do_not_decay_where_the_config_says_so() {
    let layout = ParamLayout::of_shapes(&[&[1, 2], &[2]]);
    for kind in ALL {
        let after = |decay_bias| {
            let settings = TrainConfig { decay_bias, momentum: 0.0, weight_decay: 0.5, ..settings(kind) };
            let mut optimizer = Optimizer::new(&settings, &layout, Threads::new(1).unwrap());
            let mut weights = [1.0; 4];
            optimizer.step(&mut weights, None, &[vec![0.0; 4]], at(0));
            weights
        };
        let (all, matrices) = (after(true), after(false));
        assert!(all[2] < 1.0 && all[3] < 1.0, "{kind:?}: {all:?}");
        assert_eq!((&matrices[..2], &matrices[2..]), (&all[..2], &[1.0, 1.0][..]), "{kind:?}");
    }
}

#[test]
fn nesterov_looks_ahead() {
    let settings = TrainConfig { nesterov: true, weight_decay: 0.0, ..settings(OptimizerKind::Sgd) };
    let mut optimizer = Optimizer::new(&settings, &ParamLayout::of_shapes(&[&[1]]), Threads::new(1).unwrap());
    let mut weights = [1.0];
    // buf = 1, w = 1 - 0.1 * (1 + 0.9); buf = 1.9, w = 0.81 - 0.1 * (1 + 1.71).
    for (step, expected) in [(0, 0.81), (1, 0.539)] {
        optimizer.step(&mut weights, None, &[vec![1.0]], at(step));
        assert_near(weights[0], expected);
    }
}

#[test]
fn norm_is_the_same_for_any_number_of_threads() {
    let gradient = [noise(2 * CHUNK + 5, 2), noise(100, 3)];
    let norms = [1, 2, 5].map(|threads| Threads::new(threads).unwrap().norm(&gradient, 0).unwrap());
    let expected: f64 = gradient.iter().flatten().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    assert!((norms[0] - expected).abs() < 1e-9 * expected);
    assert!(norms.iter().all(|n| n.to_bits() == norms[0].to_bits()));
}

#[test]
fn values_that_are_not_finite_are_found() {
    let threads = Threads::new(2).unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut gradient = [noise(100, 4), noise(CHUNK + 50, 5)];
        gradient[1][CHUNK + 7] = bad;
        assert_eq!(threads.norm(&gradient, 0), Err(NotFinite { at: 100 + CHUNK + 7 }));
    }
    assert!(threads.norm(&[vec![f32::MAX; 10]], 0).unwrap().is_finite());
    // What counts for nothing must be finite too.
    let parts = [vec![3.0, 4.0, 100.0], vec![100.0; 5]];
    assert_eq!(threads.norm(&parts, 6), Ok(5.0));
    assert_eq!(threads.norm(&[vec![3.0, 4.0], vec![f32::NAN]], 1), Err(NotFinite { at: 2 }));
}

#[test]
fn bf16_conversion_rounds_like_half() {
    let mut values = noise(1000, 6);
    values.extend([0.0, -0.0, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MIN_POSITIVE, 1.003_906_2, 1.011_718_8]);
    let mut bits = vec![0; values.len()];
    f32_to_bf16(&values, &mut bits);
    let mut back = vec![0.0; values.len()];
    bf16_to_f32(&bits, &mut back);
    for ((&value, &bits), &back) in values.iter().zip(&bits).zip(&back) {
        assert_eq!(bits, half::bf16::from_f32(value).to_bits(), "{value}");
        assert_eq!(back.to_bits(), half::bf16::from_bits(bits).to_f32().to_bits());
    }
}
