//! Applies a recipe: crop, resize and flip at once, straight into the batch's memory;
//! colours, normalisation and erasing as what is left to do with the bytes.

use common::config::Pixels;
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use super::augment::{Colour, Recipe};
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
        let affine = if channels == 3 {
            affine::<3>(out, &recipe.colours, pixels)
        } else {
            let [only] = affine::<1>(out, &recipe.colours, pixels);
            [only; 3]
        };
        if recipe.flip {
            out.chunks_exact_mut(size * channels).for_each(|row| mirror(row, channels));
        }
        let erased = recipe.erased.map(|part| part.map(|share| (share * size as f64).round() as usize));
        // A part is cut where rounding moved it past the edge.
        let erased = erased.map(|[left, top, width, height]| [left, top, width.min(size - left), height.min(size - top)]);
        Ok(Finish { affine, erased })
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
