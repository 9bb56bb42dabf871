//! RandAugment and TrivialAugment: which operations a picture gets, and how strong they are.
//! Both are torchvision's, with 31 magnitudes, the nearest pixel and black outside.

use common::seed::below;
use rand_chacha::rand_core::RngCore;

use super::operations::Operation;

/// Magnitudes are numbered from 0 to this.
const LARGEST: u32 = 30;

/// What both choose from, in torchvision's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Identity,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    Brightness,
    Colour,
    Contrast,
    Sharpness,
    Posterize,
    Solarize,
    AutoContrast,
    Equalize,
}

pub(super) const KINDS: [Kind; 14] = [
    Kind::Identity,
    Kind::ShearX,
    Kind::ShearY,
    Kind::TranslateX,
    Kind::TranslateY,
    Kind::Rotate,
    Kind::Brightness,
    Kind::Colour,
    Kind::Contrast,
    Kind::Sharpness,
    Kind::Posterize,
    Kind::Solarize,
    Kind::AutoContrast,
    Kind::Equalize,
];

/// The strengths of the largest magnitude.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Strengths {
    shear: f32,
    /// In pixels.
    translation: f32,
    /// In degrees.
    rotation: f32,
    /// By how much factors differ from 1.
    factor: f32,
    /// How many bits of eight are lost.
    bits: f32,
}

impl Strengths {
    /// Those of Cubuk et al., "RandAugment: Practical automated data augmentation with a
    /// reduced search space", 2019, for pictures of `size` pixels on each side.
    pub(super) fn rand_augment(size: u32) -> Self {
        Self { shear: 0.3, translation: (150.0 / 331.0 * f64::from(size)) as f32, rotation: 30.0, factor: 0.9, bits: 4.0 }
    }

    /// The wide ones of Mueller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art
    /// Data Augmentation", 2021.
    pub(super) const TRIVIAL_AUGMENT: Self = Self { shear: 0.99, translation: 32.0, rotation: 135.0, factor: 0.99, bits: 6.0 };

    /// The strength of a kind at a magnitude, without its sign; none if it has only one.
    pub(super) fn at(self, kind: Kind, magnitude: u32) -> Option<f64> {
        let most = match kind {
            Kind::Identity | Kind::AutoContrast | Kind::Equalize => return None,
            Kind::ShearX | Kind::ShearY => self.shear,
            Kind::TranslateX | Kind::TranslateY => self.translation,
            Kind::Rotate => self.rotation,
            Kind::Brightness | Kind::Colour | Kind::Contrast | Kind::Sharpness => self.factor,
            Kind::Posterize => return Some(f64::from(8.0 - (magnitude as f32 / (LARGEST as f32 / self.bits)).round_ties_even())),
            Kind::Solarize => return Some(f64::from(255.0 - 255.0 / LARGEST as f32 * magnitude as f32)),
        };
        // In f32, and from the nearer end, as torch's `linspace`.
        let step = most / LARGEST as f32;
        let from_end = LARGEST - magnitude.min(LARGEST);
        Some(f64::from(if 2 * magnitude < LARGEST { step * magnitude as f32 } else { most - step * from_end as f32 }))
    }

    /// Whether a kind may act in the opposite direction too.
    pub(super) fn is_signed(self, kind: Kind) -> bool {
        !matches!(kind, Kind::Posterize | Kind::Solarize) && self.at(kind, 0).is_some()
    }

    /// What a kind does at a magnitude, turned round if it is `negative`; none if nothing.
    pub(super) fn operation(self, kind: Kind, magnitude: u32, negative: bool) -> Option<Operation> {
        let strength = self.at(kind, magnitude).unwrap_or_default();
        let signed = if negative { -strength } else { strength };
        let factor = (1.0 + signed) as f32;
        Some(match kind {
            Kind::Identity => return None,
            Kind::ShearX => Operation::ShearX(signed),
            Kind::ShearY => Operation::ShearY(signed),
            Kind::TranslateX => Operation::TranslateX(signed as i32),
            Kind::TranslateY => Operation::TranslateY(signed as i32),
            Kind::Rotate => Operation::Rotate(signed),
            Kind::Brightness => Operation::Brightness(factor),
            Kind::Colour => Operation::Saturation(factor),
            Kind::Contrast => Operation::Contrast(factor),
            Kind::Sharpness => Operation::Sharpness(factor),
            Kind::Posterize => Operation::Posterize(strength as u32),
            Kind::Solarize => Operation::Solarize(strength),
            Kind::AutoContrast => Operation::AutoContrast,
            Kind::Equalize => Operation::Equalize,
        })
    }

    /// Draws a kind and its sign; `magnitude` gives the magnitude of a kind that has several.
    fn draw<R: RngCore>(self, rng: &mut R, magnitude: impl FnOnce(&mut R) -> u32) -> Option<Operation> {
        let kind = KINDS[below(rng, KINDS.len() as u32) as usize];
        let magnitude = if self.at(kind, 0).is_some() { magnitude(rng) } else { 0 };
        let negative = self.is_signed(kind) && rng.next_u32() & 1 == 1;
        self.operation(kind, magnitude, negative)
    }
}

/// So many operations of this magnitude, one after the other, for a picture of `size` pixels
/// on each side.
pub(super) fn rand_augment<R: RngCore>(operations: u32, magnitude: u32, size: u32, rng: &mut R) -> Vec<Operation> {
    let strengths = Strengths::rand_augment(size);
    (0..operations).filter_map(|_| strengths.draw(rng, |_| magnitude)).collect()
}

/// One operation of any magnitude, if it changes anything.
pub(super) fn trivial_augment(rng: &mut impl RngCore) -> Option<Operation> {
    Strengths::TRIVIAL_AUGMENT.draw(rng, |rng| below(rng, LARGEST + 1))
}
