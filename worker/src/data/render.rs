//! Applies a recipe: crop, resize and flip at once, straight into the batch's memory; then
//! changes, up to the last one that mixes channels or pixels, to the bytes there; the other
//! changes, normalisation and erasing as what is left to do with the bytes.

use common::config::Pixels;
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use super::augment::{Change, Colour, Recipe};
use super::inputs::Finish;
use super::picture::Picture;

/// Rec. 601 luma, the grey that contrast is measured from.
const LUMA: [f32; 3] = [0.299, 0.587, 0.114];

/// The resizer of one thread, which is used for all its pictures.
#[derive(Default)]
pub struct Renderer {
    resizer: Resizer,
}

impl Renderer {
    /// Writes a picture as `[image_size, image_size, channels]` bytes; `out` must have
    /// exactly that size. What is returned makes normalised numbers of them.
    pub fn render(&mut self, picture: &Picture, recipe: &Recipe, pixels: &Pixels, out: &mut [u8]) -> Result<Finish, String> {
        let (size, channels) = (pixels.image_size as usize, picture.channels as usize);
        if out.len() != channels * size * size {
            return Err(format!("a picture of {channels} channels does not fit a place for {} values", out.len()));
        }
        let same = recipe.crop == [0.0, 0.0, f64::from(pixels.image_size), f64::from(pixels.image_size)]
            && (picture.width, picture.height) == (pixels.image_size, pixels.image_size);
        if same {
            out.copy_from_slice(&picture.pixels);
        } else {
            self.resize(picture, recipe.crop, pixels.image_size, out)?;
        }
        if recipe.flip {
            out.chunks_exact_mut(size * channels).for_each(|row| mirror(row, channels));
        }
        let affine = if channels == 3 {
            change::<3>(out, &recipe.changes, pixels)
        } else {
            let [only] = change::<1>(out, &recipe.changes, pixels);
            [only; 3]
        };
        Ok(Finish { affine, erased: recipe.erased })
    }

    /// The picture as normalised `[channels, image_size, image_size]` numbers.
    pub fn numbers(&mut self, picture: &Picture, recipe: &Recipe, pixels: &Pixels) -> Result<Vec<f32>, String> {
        let (size, channels) = (pixels.image_size as usize, picture.channels as usize);
        let mut bytes = vec![0; channels * size * size];
        let finish = self.render(picture, recipe, pixels, &mut bytes)?;
        let mut numbers = vec![0.0; bytes.len()];
        finish.write_planes(&bytes, size, channels, &mut numbers);
        Ok(numbers)
    }

    fn resize(&mut self, picture: &Picture, crop: [f64; 4], size: u32, out: &mut [u8]) -> Result<(), String> {
        let kind = if picture.channels == 3 { PixelType::U8x3 } else { PixelType::U8 };
        let source = ImageRef::new(picture.width, picture.height, &picture.pixels, kind).map_err(|e| e.to_string())?;
        let mut target = Image::from_slice_u8(size, size, out, kind).map_err(|e| e.to_string())?;
        // Rounding must not push the crop past the edge of the picture.
        let [left, top, width, height] = crop;
        let (width, height) = (width.min(f64::from(picture.width) - left), height.min(f64::from(picture.height) - top));
        // Bilinear interpolation by convolution, which averages when it scales down.
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).crop(left, top, width, height);
        self.resizer.resize(&source, &mut target, &options).map_err(|e| e.to_string())
    }
}

/// Reverses the pixels of a row.
fn mirror(row: &mut [u8], channels: usize) {
    row.reverse();
    // Each pixel's channels are in reverse order now.
    row.chunks_exact_mut(channels).for_each(<[u8]>::reverse);
}

/// Applies changes to the bytes of a picture, up to the last one that is not affine in each
/// channel. Those after it and the normalisation become one multiplication and one addition
/// a value: returns scale, offset, and the lowest and highest result of each channel.
fn change<const C: usize>(bytes: &mut [u8], changes: &[Change], pixels: &Pixels) -> [[f32; 4]; C] {
    let mut affine = Affine::<C>::default();
    for change in changes {
        match *change {
            Change::Colour(colour) => affine.add(colour, bytes),
            Change::Operation(operation) => {
                affine.settle(bytes);
                operation.apply(bytes, pixels.image_size as usize, C);
            }
        }
    }
    if pixels.mixes() {
        // Pictures are mixed as bytes.
        affine.settle(bytes);
    }
    let Affine { scale, offset, .. } = affine;
    std::array::from_fn(|i| {
        let (mean, std) = (pixels.mean[i], pixels.std[i]);
        [scale[i] / std, (offset[i] - mean) / std, -mean / std, (1.0 - mean) / std]
    })
}

/// Changes of colour that the bytes do not have yet: a value of 0..1 is
/// `byte * scale + offset`.
struct Affine<const C: usize> {
    scale: [f32; C],
    offset: [f32; C],
    /// Of the bytes, once they are known.
    means: Option<[f32; C]>,
    is_changed: bool,
}

impl<const C: usize> Default for Affine<C> {
    fn default() -> Self {
        Self { scale: [1.0 / 255.0; C], offset: [0.0; C], means: None, is_changed: false }
    }
}

impl<const C: usize> Affine<C> {
    fn add(&mut self, colour: Colour, bytes: &[u8]) {
        self.is_changed = true;
        let Self { scale, offset, means, .. } = self;
        match colour {
            Colour::Brightness(b) => {
                *scale = scale.map(|s| s * b);
                *offset = offset.map(|o| o * b);
            }
            Colour::Contrast(c) => {
                let means = means.get_or_insert_with(|| channel_means::<C>(bytes));
                let grey: f32 = (0..C).map(|i| (scale[i] * means[i] + offset[i]) * if C == 3 { LUMA[i] } else { 1.0 }).sum();
                *scale = scale.map(|s| s * c);
                *offset = offset.map(|o| o * c + (1.0 - c) * grey);
            }
            // Temperature and lighting change colour pictures only.
            Colour::Temperature(t) if C == 3 => {
                for (i, factor) in [(0, 1.0 + t), (2, 1.0 - t)] {
                    scale[i] *= factor;
                    offset[i] *= factor;
                }
            }
            Colour::Lighting(shift) if C == 3 => (0..C).for_each(|i| offset[i] += shift[i]),
            Colour::Temperature(_) | Colour::Lighting(_) => {}
        }
    }

    /// Gives the bytes these changes, rounded, and has none any more.
    fn settle(&mut self, bytes: &mut [u8]) {
        if self.is_changed {
            let of_channel = |i: usize| {
                let (scale, offset) = (255.0 * self.scale[i], 255.0 * self.offset[i]);
                // A conversion to u8 keeps within its bounds.
                std::array::from_fn(|byte| (byte as f32 * scale + offset).round() as u8)
            };
            let tables: [[u8; 256]; C] = std::array::from_fn(of_channel);
            for pixel in bytes.as_chunks_mut::<C>().0 {
                pixel.iter_mut().zip(&tables).for_each(|(byte, table)| *byte = table[usize::from(*byte)]);
            }
        }
        // What follows changes the means.
        *self = Self::default();
    }
}

fn channel_means<const C: usize>(source: &[u8]) -> [f32; C] {
    let mut sums = [0u64; C];
    let (pixels, _) = source.as_chunks::<C>();
    for row in pixels.chunks(4096) {
        let mut part = [0u32; C];
        for pixel in row {
            for i in 0..C {
                part[i] += u32::from(pixel[i]);
            }
        }
        for i in 0..C {
            sums[i] += u64::from(part[i]);
        }
    }
    sums.map(|s| s as f32 / pixels.len().max(1) as f32)
}
