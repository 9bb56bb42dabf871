//! Mixup and CutMix: each picture of a shard's part of a step is mixed with the one before
//! it, the first with the last. That part, and so what is drawn and mixed, is the same
//! whichever worker has the shard.

use std::ops::Range;

use common::config::{Augment, Pixels};
use common::seed::below;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Beta, Distribution};

use super::inputs::InputBuffer;

/// The other label of a mixed sample, and its share of the loss: at most a half.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Second {
    pub label: i32,
    pub share: f32,
}

/// What is taken of the other picture, as torchvision's `MixUp` and `CutMix` draw it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Mix {
    /// This share of every value (Zhang et al., "mixup: Beyond Empirical Risk Minimization",
    /// 2017).
    Mixup { share: f32 },
    /// The pixels of a part: left, top, width and height (Yun et al., "CutMix:
    /// Regularization Strategy to Train Strong Classifiers with Localizable Features", 2019).
    Cutmix { part: [usize; 4] },
}

impl Mix {
    /// Draws one of those that the config's `augment` lists, for a shard's part of a step;
    /// none if there is none. The random stream is made only if there is one.
    pub(super) fn draw(pixels: &Pixels, stream: impl FnOnce() -> ChaCha8Rng) -> Option<Self> {
        let listed: Vec<Augment> = pixels.augment.iter().copied().filter(|augment| augment.mixes()).collect();
        if listed.is_empty() {
            return None;
        }
        let rng = &mut stream();
        let is_mixup = listed[below(rng, listed.len() as u32) as usize] == Augment::Mixup;
        let alpha = f64::from(if is_mixup { pixels.mixup_alpha } else { pixels.cutmix_alpha });
        // Alpha is above 0, so there is such a distribution.
        let share = 1.0 - Beta::new(alpha, alpha).ok()?.sample(rng);
        if is_mixup {
            return Some(Self::Mixup { share: share as f32 });
        }
        let size = pixels.image_size;
        let half = (0.5 * share.sqrt() * f64::from(size)) as u32;
        let [left, top] = [below(rng, size), below(rng, size)];
        let side = |centre: u32| (centre.saturating_sub(half), (centre + half).min(size));
        let ((x, right), (y, bottom)) = (side(left), side(top));
        Some(Self::Cutmix { part: [x, y, right - x, bottom - y].map(|n| n as usize) })
    }

    /// Mixes the pictures at these places, and with them their labels: `labels` keeps the one
    /// with the larger share, and `seconds` gets the others. The pictures have `size` pixels
    /// on each side, and the same normalisation.
    pub(super) fn apply(self, inputs: &mut InputBuffer, labels: &mut [i32], seconds: &mut Vec<Second>, places: &Range<usize>, size: usize) {
        let own = &mut labels[places.clone()];
        self.mix(inputs.pictures_mut(places), own.len(), size);
        let share = self.share(size);
        let Some(mut before) = own.last().copied() else { return };
        for label in own {
            let other = std::mem::replace(&mut before, *label);
            seconds.push(if share > 0.5 {
                Second { label: std::mem::replace(label, other), share: 1.0 - share }
            } else {
                Second { label: other, share }
            });
        }
    }

    /// The share of the other picture.
    fn share(self, size: usize) -> f32 {
        match self {
            Self::Mixup { share } => share,
            Self::Cutmix { part: [_, _, width, height] } => (width * height) as f32 / (size * size) as f32,
        }
    }

    /// Mixes `n` pictures that lie one after the other.
    fn mix(self, bytes: &mut [u8], n: usize, size: usize) {
        let each = bytes.len() / n.max(1);
        let last = bytes[n.saturating_sub(1) * each..].to_vec();
        // From the end, so that the one before is still what it was.
        for at in (0..n).rev() {
            let (before, from) = bytes.split_at_mut(at * each);
            let other = if at == 0 { &last } else { &before[(at - 1) * each..] };
            self.one(&mut from[..each], other, size);
        }
    }

    fn one(self, own: &mut [u8], other: &[u8], size: usize) {
        match self {
            Self::Mixup { share } => {
                for (own, other) in own.iter_mut().zip(other) {
                    let value = f32::from(*own);
                    *own = (value + share * (f32::from(*other) - value)).round() as u8;
                }
            }
            Self::Cutmix { part: [left, top, width, height] } => {
                let channels = own.len() / (size * size);
                for y in top..top + height {
                    let row = (y * size + left) * channels..(y * size + left + width) * channels;
                    own[row.clone()].copy_from_slice(&other[row]);
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use common::config::DataConfig;
    use common::seed::stream;

    use super::*;
    use crate::data::Finish;

    const SIZE: usize = 12;

    fn pixels(augment: &[Augment]) -> Pixels {
        let config: DataConfig = toml::from_str("kind = \"idx\"\npath = \"x\"").unwrap();
        Pixels { image_size: SIZE as u32, augment: augment.to_vec(), mixup_alpha: 0.8, cutmix_alpha: 1.0, ..config.pixels }
    }

    fn draws(augment: &[Augment]) -> Vec<Mix> {
        let pixels = pixels(augment);
        (0..4000).filter_map(|case| Mix::draw(&pixels, || stream(case, "mix", &[]))).collect()
    }

    #[test]
    fn shares_are_of_the_beta_distribution() {
        assert!(draws(&[Augment::Flip]).is_empty());
        let shares: Vec<f64> = draws(&[Augment::Mixup]).iter().map(|mix| mix.share(SIZE).into()).collect();
        assert_eq!(shares.len(), 4000);
        let mean = shares.iter().sum::<f64>() / 4000.0;
        let variance = shares.iter().map(|share| (share - mean).powi(2)).sum::<f64>() / 4000.0;
        // Of Beta(0.8, 0.8): 1 / (4 (2 0.8 + 1)).
        assert!((mean - 0.5).abs() < 0.02 && (variance - 0.0962).abs() < 0.005, "{mean} {variance}");
    }

    #[test]
    fn parts_lie_in_the_picture_and_one_of_several_is_drawn() {
        let both = draws(&[Augment::Cutmix, Augment::Flip, Augment::Mixup]);
        let parts: Vec<[usize; 4]> =
            both.iter().filter_map(|mix| if let Mix::Cutmix { part } = mix { Some(*part) } else { None }).collect();
        assert!(parts.len().abs_diff(2000) < 150, "{} of 4000", parts.len());
        assert!(parts.iter().all(|[left, top, width, height]| left + width <= SIZE && top + height <= SIZE));
        let mean = parts.iter().map(|[_, _, width, height]| width * height).sum::<usize>() as f64 / (parts.len() * SIZE * SIZE) as f64;
        // Half of the area on average, less what lies outside and what rounding takes.
        assert!((0.15..0.45).contains(&mean), "{mean}");
    }

    /// A picture of one value, number 0, 1, ..., is mixed with the one before it.
    #[test]
    fn each_is_mixed_with_the_one_before() {
        let finish = Finish { affine: [[1.0; 4]; 3], erased: None };
        let each = SIZE * SIZE * 3;
        for (mix, share) in [
            (Mix::Mixup { share: 0.25 }, 0.25),
            (Mix::Mixup { share: 0.75 }, 0.75),
            (Mix::Cutmix { part: [2, 3, 4, 6] }, 24.0 / 144.0),
            (Mix::Cutmix { part: [0, 0, 12, 9] }, 0.75),
        ] {
            let mut inputs = InputBuffer::default();
            for value in [9, 100, 20, 60, 7] {
                let filled: Result<_, ()> = inputs.add_picture(each, |bytes| {
                    bytes.fill(value);
                    Ok(finish)
                });
                filled.unwrap();
            }
            let (mut labels, mut seconds) = (vec![5, 0, 1, 2, 6], Vec::new());
            mix.apply(&mut inputs, &mut labels, &mut seconds, &(1..4), SIZE);
            let bytes = inputs.pictures_mut(&(0..5)).to_vec();
            assert!(bytes[..each].iter().all(|&byte| byte == 9) && bytes[4 * each..].iter().all(|&byte| byte == 7), "of other places");
            for (at, (own, other)) in [(100.0, 60.0), (20.0, 100.0), (60.0, 20.0)].into_iter().enumerate() {
                let picture = &bytes[(at + 1) * each..(at + 2) * each];
                let mean = picture.iter().map(|&byte| f64::from(byte)).sum::<f64>() / each as f64;
                assert!((mean - (own + share * (other - own))).abs() < 1e-9, "{mix:?} {at}: {mean}");
                if let Mix::Cutmix { part: [left, top, width, height] } = mix {
                    for (place, &byte) in picture.iter().enumerate() {
                        let (x, y) = (place / 3 % SIZE, place / 3 / SIZE);
                        let inside = (left..left + width).contains(&x) && (top..top + height).contains(&y);
                        assert_eq!(f64::from(byte), if inside { other } else { own });
                    }
                }
            }
            let found: Vec<(i32, i32, f32)> = labels[1..4].iter().zip(&seconds).map(|(&label, s)| (label, s.label, s.share)).collect();
            let share = share as f32;
            let expected = if share > 0.5 {
                [(2, 0, 1.0 - share), (0, 1, 1.0 - share), (1, 2, 1.0 - share)]
            } else {
                [(0, 2, share), (1, 0, share), (2, 1, share)]
            };
            assert_eq!((found.as_slice(), labels[0], labels[4]), (expected.as_slice(), 5, 6), "{mix:?}");
        }
    }

    #[test]
    fn one_picture_is_mixed_with_itself_and_none_with_none() {
        let mut inputs = InputBuffer::default();
        let filled: Result<_, ()> = inputs.add_picture(SIZE * SIZE, |bytes| {
            bytes.iter_mut().enumerate().for_each(|(at, byte)| *byte = at as u8);
            Ok(Finish { affine: [[1.0; 4]; 3], erased: None })
        });
        filled.unwrap();
        let before = inputs.clone();
        let (mut labels, mut seconds) = (vec![3], Vec::new());
        for mix in [Mix::Mixup { share: 0.3 }, Mix::Cutmix { part: [1, 1, 5, 5] }] {
            mix.apply(&mut inputs, &mut labels, &mut seconds, &(1..1), SIZE);
            mix.apply(&mut inputs, &mut labels, &mut seconds, &(0..1), SIZE);
        }
        assert_eq!((inputs, labels.as_slice(), seconds.len()), (before, [3].as_slice(), 2));
        assert!(seconds.iter().all(|second| second.label == 3));
    }
}
