//! Generated pictures: each class is a pattern of its own, shifted and under
//! noise. For trying things where there is no data, and for tests.

use crate::digest::Digest;
use bytes::Bytes;
use rand_chacha::rand_core::RngCore;

use super::source::{DatasetError, DatasetInfo, Sample, SampleFormat, SampleSource, Split, read_each};
use crate::seed::{self, below, unit};

/// Waves that make up a class's pattern in each channel.
const WAVES: usize = 3;

/// A dataset that is computed, not read. Sample i has the label `i % classes`.
pub struct Synthetic {
    info: DatasetInfo,
    side: u32,
    seed: u64,
    /// Per class and channel: waves as (x frequency, y frequency, phase).
    patterns: Vec<[[(f32, f32, f32); WAVES]; 3]>,
}

impl Synthetic {
    /// `side` is the width and height of the pictures.
    pub fn new(classes: u32, train: u32, val: u32, side: u32, seed: u64) -> Self {
        let patterns = (0..classes)
            .map(|class| {
                let mut rng = seed::stream(seed, "synthetic pattern", &[u64::from(class)]);
                [(); 3].map(|()| [(); WAVES].map(|()| (unit(&mut rng) * 4.0, unit(&mut rng) * 4.0, unit(&mut rng))))
            })
            .collect();
        let identity = format!("synthetic/2 {classes} {train} {val} {side} {seed}");
        let info = DatasetInfo {
            format: SampleFormat::Raw { height: side, width: side, channels: 3 },
            classes: (0..classes).map(|c| format!("pattern {c}")).collect(),
            train,
            val,
            fingerprint: Digest::of(identity.as_bytes()),
        };
        Self { info, side, seed, patterns }
    }

    fn picture(&self, split: Split, id: u32, label: u32) -> Bytes {
        let mut rng = seed::stream(self.seed, "synthetic sample", &[split as u64, u64::from(id)]);
        let side = self.side as usize;
        let (dx, dy) = (below(&mut rng, 1 + self.side / 4) as f32, below(&mut rng, 1 + self.side / 4) as f32);
        let mut noise = vec![0; side * side * 3];
        rng.fill_bytes(&mut noise);
        // sin(a + b) from the sines and cosines of columns and rows: making a picture
        // should cost less than training on it.
        let patterns = &self.patterns[label as usize];
        let turn = |angle: f32| (std::f32::consts::TAU * angle).sin_cos();
        let at = |place: usize, shift: f32| (place as f32 + shift) / self.side as f32;
        let columns: Vec<_> = (0..side).map(|x| patterns.map(|waves| waves.map(|(fx, _, _)| turn(fx * at(x, dx))))).collect();
        for (y, row) in noise.chunks_exact_mut(3 * side).enumerate() {
            let of_row = patterns.map(|waves| waves.map(|(_, fy, phase)| turn(fy * at(y, dy) + phase)));
            for (pixel, of_column) in row.as_chunks_mut::<3>().0.iter_mut().zip(&columns) {
                for (value, (row, column)) in pixel.iter_mut().zip(of_row.iter().zip(of_column)) {
                    let wave: f32 = row.iter().zip(column).map(|((sin, cos), (s, c))| sin * c + cos * s).sum();
                    // A weak pattern under strong noise: learnt in a minute, not at once.
                    *value = (52.0 + 8.0 * wave) as u8 + *value / 2;
                }
            }
        }
        Bytes::from(noise)
    }
}

impl SampleSource for Synthetic {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn read(&self, split: Split, ids: &[u32]) -> Result<Vec<Sample>, DatasetError> {
        read_each(ids, self.info.len(split), |id| {
            let label = id % self.info.classes.len() as u32;
            Ok(Sample { id, label, bytes: self.picture(split, id, label) })
        })
    }

    fn size_hint(&self, _split: Split, _id: u32) -> u64 {
        3 * u64::from(self.side) * u64::from(self.side)
    }

    fn name(&self, split: Split, id: u32) -> String {
        format!("generated picture {id} of the {split} set")
    }
}
