//! The changes of one picture. They are drawn here and applied later (`render`), so
//! that each half can be read and tested by itself.

use common::config::{Augment, EraseValue, EvalCrops, Pixels};
use common::seed::{below, normal, unit};
use rand_chacha::rand_core::RngCore;

use super::inputs::{Erased, Filling};
use super::operations::Operation;
use super::picture::Region;
use super::policies::{rand_augment, trivial_augment};

/// How often a random crop, or a part to erase, is tried.
const ATTEMPTS: u32 = 10;

/// Krizhevsky et al. 2012, section 4.1: principal components of ImageNet's RGB
/// values in 0..1 units (as published with fb.resnet.torch), a column each.
const LIGHTING_VALUES: [f32; 3] = [0.2175, 0.0188, 0.0045];
const LIGHTING_VECTORS: [[f32; 3]; 3] = [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]];

/// One change of a picture, as it was drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Change {
    Colour(Colour),
    Operation(Operation),
}

/// A change of colour that is affine in each channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Colour {
    /// Multiplies every channel.
    Brightness(f32),
    /// Multiplies the distance from the picture's mean grey.
    Contrast(f32),
    /// Red is multiplied by 1 + this, blue by 1 - this.
    Temperature(f32),
    /// Added to the channels, in 0..1 units.
    Lighting([f32; 3]),
}

/// Which part of a picture is shown, and how it changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// Left, top, width and height of the part, in pixels of the picture.
    pub crop: [f64; 4],
    pub flip: bool,
    /// After crop and flip, in this order.
    pub changes: Vec<Change>,
    /// At last.
    pub erased: Option<Erased>,
}

impl Recipe {
    /// Draws the changes in the config's `augment` list, in its order. The random
    /// stream is made only if the list is not empty.
    pub fn draw<R: RngCore>(pixels: &Pixels, width: u32, height: u32, whole: bool, stream: impl FnOnce() -> R) -> Self {
        let crop = if whole { [0.0, 0.0, width.into(), height.into()] } else { centre(width, height, 1.0) };
        let mut recipe = Self { crop, flip: false, changes: Vec::new(), erased: None };
        if pixels.augment.is_empty() {
            return recipe;
        }
        let rng = &mut stream();
        for augment in &pixels.augment {
            let factor = |strength: f32, rng: &mut _| 1.0 + strength * (2.0 * unit(rng) - 1.0);
            let changes = &mut recipe.changes;
            let mut colour = |colour| changes.push(Change::Colour(colour));
            match augment {
                Augment::Crop => recipe.crop = random_crop(pixels, width, height, rng),
                Augment::Flip => recipe.flip = rng.next_u32() & 1 == 1,
                Augment::Brightness => colour(Colour::Brightness(factor(pixels.brightness, rng))),
                Augment::Contrast => colour(Colour::Contrast(factor(pixels.contrast, rng))),
                Augment::Temperature => colour(Colour::Temperature(factor(pixels.temperature, rng) - 1.0)),
                Augment::Lighting => colour(Colour::Lighting(lighting(pixels.lighting, rng))),
                Augment::Saturation => changes.push(Change::Operation(Operation::Saturation(factor(pixels.saturation, rng)))),
                Augment::Hue => changes.push(Change::Operation(Operation::Hue(pixels.hue * (2.0 * unit(rng) - 1.0)))),
                Augment::Grey if unit(rng) < pixels.grey => changes.push(Change::Operation(Operation::Grey)),
                Augment::Grey => {}
                Augment::RandAugment => {
                    let drawn = rand_augment(pixels.randaugment_operations, pixels.randaugment_magnitude, pixels.image_size, rng);
                    changes.extend(drawn.into_iter().map(Change::Operation));
                }
                Augment::TrivialAugment => changes.extend(trivial_augment(rng).map(Change::Operation)),
                // Drawn for several pictures together.
                Augment::Mixup | Augment::Cutmix => {}
                Augment::Erase => recipe.erased = (unit(rng) < pixels.erase).then(|| erased(pixels, rng)).flatten(),
            }
        }
        recipe
    }

    /// The recipe of evaluation: the shorter side becomes `image_size * eval_resize`
    /// pixels, and the centre is taken. `whole` takes all of a small raw picture.
    pub fn evaluation(pixels: &Pixels, width: u32, height: u32, whole: bool) -> Self {
        let crop = if whole { [0.0, 0.0, width.into(), height.into()] } else { centre(width, height, pixels.eval_resize.into()) };
        Self { crop, flip: false, changes: Vec::new(), erased: None }
    }

    /// The recipes of evaluation, whose predictions are averaged. Of five or ten crops, the
    /// first four are the corners of the central square that becomes `image_size *
    /// eval_resize` pixels on each side, and the fifth is its centre; the other five of ten
    /// are their mirror images (Krizhevsky et al. 2012, section 4.1).
    pub fn evaluations(pixels: &Pixels, width: u32, height: u32, whole: bool) -> Vec<Self> {
        let flips: &[bool] = match pixels.eval_crops {
            EvalCrops::Centre => return vec![Self::evaluation(pixels, width, height, whole)],
            EvalCrops::Five => &[false],
            EvalCrops::Ten => &[false, true],
        };
        let [left, top, square, _] = centre(width, height, 1.0);
        let middle @ [_, _, side, _] = centre(width, height, pixels.eval_resize.into());
        let corner = |x: f64, y: f64| [left + x * (square - side), top + y * (square - side), side, side];
        let crops = [corner(0.0, 0.0), corner(1.0, 0.0), corner(0.0, 1.0), corner(1.0, 1.0), middle];
        flips.iter().flat_map(|&flip| crops.map(|crop| Self { crop, flip, changes: Vec::new(), erased: None })).collect()
    }

    /// The part of the picture from which the crop is made when it becomes `image_size`
    /// pixels on each side: bilinear interpolation averages over the pixels round each
    /// point, as far as the points lie apart.
    pub fn region(&self, image_size: u32) -> Region {
        let [left, top, width, height] = self.crop;
        let side = |start: f64, length: f64| {
            let reach = (length / f64::from(image_size)).max(1.0) + 1.0;
            let (first, end) = ((start - reach).floor().max(0.0) as u32, (start + length + reach).ceil() as u32);
            (first, end - first)
        };
        let ((x, w), (y, h)) = (side(left, width), side(top, height));
        [x, y, w, h]
    }

    /// The recipe for a part of the picture, whose upper left corner lies there.
    pub fn within(mut self, left: u32, top: u32) -> Self {
        self.crop[0] -= f64::from(left);
        self.crop[1] -= f64::from(top);
        self
    }
}

/// The central square whose side is the picture's shorter side over `zoom`.
fn centre(width: u32, height: u32, zoom: f64) -> [f64; 4] {
    let side = f64::from(width.min(height)) / zoom;
    [(f64::from(width) - side) / 2.0, (f64::from(height) - side) / 2.0, side, side]
}

/// A crop of random area and aspect ratio (Szegedy et al., "Going Deeper with
/// Convolutions", 2015); the largest central one if no attempt fits.
fn random_crop(pixels: &Pixels, width: u32, height: u32, rng: &mut impl RngCore) -> [f64; 4] {
    let (w, h) = (f64::from(width), f64::from(height));
    let (areas, ratios @ [low, high]) = (pixels.crop_scale.map(f64::from), pixels.crop_ratio.map(f64::from));
    let attempt = |_| {
        let area = w * h * uniform(areas, rng);
        let ratio = uniform(ratios.map(f64::ln), rng).exp();
        let (width, height) = ((area * ratio).sqrt(), (area / ratio).sqrt());
        let (x, y) = (f64::from(unit(rng)), f64::from(unit(rng)));
        let fits = width <= w && height <= h && width >= 1.0 && height >= 1.0;
        fits.then_some([(w - width) * x, (h - height) * y, width, height])
    };
    (0..ATTEMPTS).find_map(attempt).unwrap_or_else(|| {
        let ratio = (w / h).clamp(low, high);
        let (cw, ch) = if w / h < ratio { (w, w / ratio) } else { (h * ratio, h) };
        [(w - cw) / 2.0, (h - ch) / 2.0, cw, ch]
    })
}

/// A part to erase, as torchvision's `RandomErasing` draws it: of whole pixels, and smaller
/// than the picture on both sides. None if no attempt fits.
fn erased(pixels: &Pixels, rng: &mut impl RngCore) -> Option<Erased> {
    let size = pixels.image_size;
    let [width, height] = (0..ATTEMPTS).find_map(|_| {
        let area = f64::from(size).powi(2) * uniform(pixels.erase_scale.map(f64::from), rng);
        let ratio = uniform(pixels.erase_ratio.map(|ratio| f64::from(ratio).ln()), rng).exp();
        let sides = [area / ratio, area * ratio].map(|square| square.sqrt().round_ties_even() as u32);
        sides.iter().all(|&side| side < size).then_some(sides)
    })?;
    let (top, left) = (below(rng, size - height + 1), below(rng, size - width + 1));
    let filling = match pixels.erase_value {
        EraseValue::Same(value) => Filling::Numbers([value; 3]),
        EraseValue::Channels(values) => Filling::Numbers(values),
        EraseValue::Random(_) => Filling::Noise { seed: rng.next_u64() },
    };
    Some(Erased { part: [left, top, width, height].map(|n| n as usize), filling })
}

fn uniform([low, high]: [f64; 2], rng: &mut impl RngCore) -> f64 {
    low + (high - low) * f64::from(unit(rng))
}

fn lighting(deviation: f32, rng: &mut impl RngCore) -> [f32; 3] {
    let alphas = LIGHTING_VALUES.map(|value| value * deviation * normal(rng));
    LIGHTING_VECTORS.map(|row| row.iter().zip(alphas).map(|(v, a)| v * a).sum())
}
