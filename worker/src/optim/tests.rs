#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use common::seed;
use common::simd::bf16_to_f32;

fn settings(optimizer: OptimizerKind) -> TrainConfig {
    TrainConfig { optimizer, momentum: 0.9, weight_decay: 0.01, ..TrainConfig::default() }
}

/// Two updates of one weight with the gradients 0.5 and -0.25.
fn two_updates(optimizer: OptimizerKind) -> f32 {
    let mut optimizer = Optimizer::new(&settings(optimizer), 1, Threads::new(1).unwrap());
    let mut weights = [1.0];
    optimizer.step(&mut weights, None, &[vec![0.5]], 0, 0.1, 1.0);
    optimizer.step(&mut weights, None, &[vec![-0.25]], 1, 0.1, 1.0);
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
    let total = 3 * CHUNK + 1234;
    let gradient = noise(total, 0);
    for kind in [OptimizerKind::Sgd, OptimizerKind::Adam, OptimizerKind::Adamw] {
        let run = |threads, bucket: usize| {
            let mut optimizer = Optimizer::new(&settings(kind), total, Threads::new(threads).unwrap());
            let mut weights = noise(total, 1);
            let mut mirror = vec![0; total];
            let buckets: Vec<Vec<f32>> = gradient.chunks(bucket).map(<[f32]>::to_vec).collect();
            for step in 0..3 {
                optimizer.step(&mut weights, Some(&mut mirror), &buckets, step, 0.1, 0.5);
            }
            (weights, mirror)
        };
        let expected = run(1, total);
        assert!(expected.0.iter().zip(&expected.1).all(|(&w, &m)| half::bf16::from_f32(w).to_bits() == m));
        assert_eq!(expected, run(3, total));
        assert_eq!(expected, run(2, 10_007));
    }
}

#[test]
fn norm_is_the_same_for_any_number_of_threads() {
    let gradient = [noise(2 * CHUNK + 5, 2), noise(100, 3)];
    let norms = [1, 2, 5].map(|threads| Threads::new(threads).unwrap().norm(&gradient).unwrap());
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
        assert_eq!(threads.norm(&gradient), Err(NotFinite { at: 100 + CHUNK + 7 }));
    }
    assert!(threads.norm(&[vec![f32::MAX; 10]]).unwrap().is_finite());
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
