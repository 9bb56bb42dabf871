//! Applies a recipe: crop, resize, flip, colour and normalisation, straight into
//! the batch's memory.

use common::config::Pixels;
use common::vectorised;
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use super::augment::{Colour, Recipe};
use super::decode::Picture;

/// Rec. 601 luma, the grey that contrast is measured from.
const LUMA: [f32; 3] = [0.299, 0.587, 0.114];

/// The resizer and the buffer of one thread, which are used for all its pictures.
#[derive(Default)]
pub struct Renderer {
    resizer: Resizer,
    resized: Vec<u8>,
}

impl Renderer {
    /// Writes a picture as normalised `[channels, image_size, image_size]` values.
    /// `out` must have exactly that size.
    pub fn render(&mut self, picture: &Picture, recipe: &Recipe, pixels: &Pixels, out: &mut [f32]) -> Result<(), String> {
        let (size, channels) = (pixels.image_size as usize, picture.channels as usize);
        if out.len() != channels * size * size {
            return Err(format!("a picture of {channels} channels does not fit a place for {} values", out.len()));
        }
        let same = recipe.crop == [0.0, 0.0, f64::from(pixels.image_size), f64::from(pixels.image_size)]
            && (picture.width, picture.height) == (pixels.image_size, pixels.image_size);
        let source = if same {
            &picture.pixels
        } else {
            self.resize(picture, recipe.crop, pixels.image_size)?;
            &self.resized
        };
        if channels == 3 {
            let affine = affine::<3>(source, &recipe.colours, pixels);
            write_colour(source, size, recipe.flip, affine, out);
        } else {
            let affine = affine::<1>(source, &recipe.colours, pixels);
            write_grey(source, size, recipe.flip, affine, out);
        }
        if let Some(part) = recipe.erased {
            erase(out, size, part);
        }
        Ok(())
    }

    fn resize(&mut self, picture: &Picture, crop: [f64; 4], size: u32) -> Result<(), String> {
        let kind = if picture.channels == 3 { PixelType::U8x3 } else { PixelType::U8 };
        let source = ImageRef::new(picture.width, picture.height, &picture.pixels, kind).map_err(|e| e.to_string())?;
        self.resized.resize(size as usize * size as usize * picture.channels as usize, 0);
        let mut target = Image::from_slice_u8(size, size, &mut self.resized, kind).map_err(|e| e.to_string())?;
        // Rounding must not push the crop past the edge of the picture.
        let [left, top, width, height] = crop;
        let (width, height) = (width.min(f64::from(picture.width) - left), height.min(f64::from(picture.height) - top));
        // Bilinear interpolation by convolution, which averages when it scales down.
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).crop(left, top, width, height);
        self.resizer.resize(&source, &mut target, &options).map_err(|e| e.to_string())
    }
}

/// Fills a part of every channel with the mean, which is 0 after normalisation.
fn erase(out: &mut [f32], size: usize, part: [f64; 4]) {
    let [left, top, width, height] = part.map(|share| (share * size as f64).round() as usize);
    for plane in out.chunks_exact_mut(size * size) {
        for row in plane.chunks_exact_mut(size).skip(top).take(height) {
            row.iter_mut().skip(left).take(width).for_each(|value| *value = 0.0);
        }
    }
}

/// Every change of colour is affine in each channel, so all of them and the
/// normalisation become one multiplication and one addition a value.
/// Returns scale, offset, and the lowest and highest result of each channel.
fn affine<const C: usize>(source: &[u8], colours: &[Colour], pixels: &Pixels) -> [[f32; 4]; C] {
    // From bytes to 0..1.
    let (mut scale, mut offset) = ([1.0 / 255.0; C], [0.0; C]);
    let mut means = None;
    for colour in colours {
        match *colour {
            Colour::Brightness(b) => {
                scale = scale.map(|s| s * b);
                offset = offset.map(|o| o * b);
            }
            Colour::Contrast(c) => {
                let means = means.get_or_insert_with(|| channel_means::<C>(source));
                let grey: f32 = (0..C).map(|i| (scale[i] * means[i] + offset[i]) * if C == 3 { LUMA[i] } else { 1.0 }).sum();
                scale = scale.map(|s| s * c);
                offset = offset.map(|o| o * c + (1.0 - c) * grey);
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
    std::array::from_fn(|i| {
        let (mean, std) = (pixels.mean[i], pixels.std[i]);
        [scale[i] / std, (offset[i] - mean) / std, -mean / std, (1.0 - mean) / std]
    })
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

vectorised! {
    fn write_colour(source: &[u8], size: usize, flip: bool, affine: [[f32; 4]; 3], out: &mut [f32]) {
        write_planes::<3>(source, size, flip, affine, out);
    }
}

vectorised! {
    fn write_grey(source: &[u8], size: usize, flip: bool, affine: [[f32; 4]; 1], out: &mut [f32]) {
        write_planes::<1>(source, size, flip, affine, out);
    }
}

/// A plane of each channel, mirrored where `flip` says so.
#[inline(always)]
fn write_planes<const C: usize>(source: &[u8], size: usize, flip: bool, affine: [[f32; 4]; C], out: &mut [f32]) {
    for (channel, (plane, [scale, offset, low, high])) in out.chunks_exact_mut(size * size).zip(affine).enumerate() {
        for (row, values) in source.chunks_exact(size * C).zip(plane.chunks_exact_mut(size)) {
            let (pixels, _) = row.as_chunks::<C>();
            let value = |pixel: &[u8; C]| (f32::from(pixel[channel]) * scale + offset).clamp(low, high);
            if flip {
                values.iter_mut().zip(pixels.iter().rev()).for_each(|(v, p)| *v = value(p));
            } else {
                values.iter_mut().zip(pixels).for_each(|(v, p)| *v = value(p));
            }
        }
    }
}
