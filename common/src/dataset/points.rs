//! Points generated from the run's seed: the exclusive or, and two classes that
//! a hyperplane separates.

use rand_chacha::ChaCha8Rng;

use super::source::Column;
use super::table::{Rows, Table};
use crate::seed::{self, unit};

fn columns(features: u32) -> Vec<Column> {
    (1..=features).map(|n| Column::plain(format!("x{n}"))).collect()
}

/// The corners of the unit square in turn; the class is whether exactly one coordinate
/// is 1. `noise` is the standard deviation of the noise added to each coordinate. No
/// line separates the classes (Minsky and Papert, "Perceptrons", 1969).
pub(super) fn xor(train: u32, val: u32, noise: f32, seed: u64) -> Table {
    let rows = |n: u32, split: u64| {
        let mut rows = Rows::default();
        for id in 0..n {
            let mut rng = seed::stream(seed, "xor", &[split, u64::from(id)]);
            let corner = [(id >> 1) & 1, id & 1];
            let point = corner.map(|c| c as f32 + if noise > 0.0 { noise * seed::normal(&mut rng) } else { 0.0 });
            rows.push(&point, corner[0] ^ corner[1], id);
        }
        rows
    };
    Table::new(columns(2), vec!["0".to_owned(), "1".to_owned()], rows(train, 0), rows(val, 1), "generated point".to_owned())
}

/// Points uniform in the unit ball that lie at least `margin` from a random hyperplane;
/// the class is the side. The margin must be below 0.5 to leave room for points.
pub(super) fn separable(train: u32, val: u32, features: u32, margin: f32, seed: u64) -> Table {
    let mut rng = seed::stream(seed, "separable plane", &[]);
    let normal = direction(features, &mut rng);
    let offset = 0.4 * unit(&mut rng) - 0.2;
    let rows = |n: u32, split: u64| {
        let mut rows = Rows::default();
        for id in 0..n {
            let mut rng = seed::stream(seed, "separable", &[split, u64::from(id)]);
            // The classes alternate, so that both occur however few points are
            // requested.
            let label = id % 2;
            let point = loop {
                // Marsaglia 1972: a direction, and a radius whose power is uniform.
                let radius = unit(&mut rng).powf(1.0 / features as f32);
                let point: Vec<f32> = direction(features, &mut rng).iter().map(|d| radius * d).collect();
                let distance = offset + point.iter().zip(&normal).map(|(p, n)| p * n).sum::<f32>();
                if distance.abs() >= margin && u32::from(distance > 0.0) == label {
                    break point;
                }
            };
            rows.push(&point, label, id);
        }
        rows
    };
    Table::new(columns(features), vec!["-1".to_owned(), "+1".to_owned()], rows(train, 0), rows(val, 1), "generated point".to_owned())
}

/// A direction uniform on the sphere.
fn direction(features: u32, rng: &mut ChaCha8Rng) -> Vec<f32> {
    loop {
        let values: Vec<f32> = (0..features).map(|_| seed::normal(rng)).collect();
        let length = values.iter().map(|v| v * v).sum::<f32>().sqrt();
        if length > 1e-3 {
            return values.iter().map(|v| v / length).collect();
        }
    }
}
