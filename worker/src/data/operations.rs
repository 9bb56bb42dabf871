//! Operations on a picture's bytes: those of torchvision's transforms on Pillow's pictures,
//! to the byte.

/// An operation, as it was drawn. Those that need colours leave grey pictures what they are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Operation {
    /// Multiplies the distance from each pixel's own grey.
    Saturation(f32),
    /// Moves hues by this share of the colour circle, -0.5 to 0.5.
    Hue(f32),
    /// Takes the colours away.
    Grey,
    /// Moves each row to the left by this share of its distance from the top.
    ShearX(f64),
    /// Moves each column up by this share of its distance from the left edge.
    ShearY(f64),
    /// Moves the picture to the right by so many pixels.
    TranslateX(i32),
    /// Moves the picture down by so many pixels.
    TranslateY(i32),
    /// Turns the picture counterclockwise about its centre, by an angle in degrees.
    Rotate(f64),
    /// Multiplies every value.
    Brightness(f32),
    /// Multiplies the distance from the picture's mean grey.
    Contrast(f32),
    /// Multiplies the distance from the smoothed picture.
    Sharpness(f32),
    /// Keeps so many bits of each value, 1 to 8.
    Posterize(u32),
    /// Inverts values from this one on.
    Solarize(f64),
    /// Stretches the values of each channel to all of 0 to 255.
    AutoContrast,
    /// Spreads the values of each channel so that all are about as frequent.
    Equalize,
}

impl Operation {
    /// Changes a picture of `[size, size, channels]` bytes. What comes into it from outside
    /// is black.
    pub(super) fn apply(self, bytes: &mut [u8], size: usize, channels: usize) {
        match self {
            Self::Saturation(factor) => each_colour(bytes, channels, |pixel| pixel.map(|value| blend(luma(pixel), value, factor))),
            Self::Hue(shift) => {
                // Pillow's hues are bytes, whose sum overflows as the circle does.
                let shift = (f64::from(shift) * 255.0) as i32 as u8;
                each_colour(bytes, channels, |pixel| {
                    let [hue, saturation, value] = hsv(pixel);
                    rgb([hue.wrapping_add(shift), saturation, value])
                });
            }
            Self::Grey => each_colour(bytes, channels, |pixel| [luma(pixel); 3]),
            Self::ShearX(share) => warp(bytes, size, channels, [1.0, share, 0.0, 0.0, 1.0, 0.0]),
            Self::ShearY(share) => warp(bytes, size, channels, [1.0, 0.0, 0.0, share, 1.0, 0.0]),
            Self::TranslateX(pixels) => warp(bytes, size, channels, [1.0, 0.0, f64::from(-pixels), 0.0, 1.0, 0.0]),
            Self::TranslateY(pixels) => warp(bytes, size, channels, [1.0, 0.0, 0.0, 0.0, 1.0, f64::from(-pixels)]),
            Self::Rotate(degrees) => warp(bytes, size, channels, rotation(degrees, size)),
            Self::Brightness(factor) => each_value(bytes, |value| blend(0, value, factor)),
            Self::Contrast(factor) => {
                let grey = mean_grey(bytes, channels);
                each_value(bytes, |value| blend(grey, value, factor));
            }
            Self::Sharpness(factor) => {
                let smooth = smoothed(bytes, size, channels);
                bytes.iter_mut().zip(smooth).for_each(|(value, smooth)| *value = blend(smooth, *value, factor));
            }
            Self::Posterize(bits) => each_value(bytes, |value| value & !(0xff >> bits.min(8)) as u8),
            Self::Solarize(threshold) => each_value(bytes, |value| if f64::from(value) < threshold { value } else { 255 - value }),
            Self::AutoContrast => each_channel(bytes, channels, stretched),
            Self::Equalize => each_channel(bytes, channels, equalized),
        }
    }
}

/// Changes each pixel of a picture that has colours.
fn each_colour(bytes: &mut [u8], channels: usize, change: impl Fn([u8; 3]) -> [u8; 3]) {
    if channels == 3 {
        bytes.as_chunks_mut::<3>().0.iter_mut().for_each(|pixel| *pixel = change(*pixel));
    }
}

/// Changes values, each by itself.
fn each_value(bytes: &mut [u8], change: impl Fn(u8) -> u8) {
    let table: [u8; 256] = std::array::from_fn(|value| change(value as u8));
    bytes.iter_mut().for_each(|value| *value = table[usize::from(*value)]);
}

/// Changes the values of each channel by a table that `table` makes of their histogram,
/// where it makes one.
fn each_channel(bytes: &mut [u8], channels: usize, table: impl Fn(&[u32; 256]) -> Option<[u8; 256]>) {
    for channel in 0..channels {
        let mut histogram = [0; 256];
        bytes.iter().skip(channel).step_by(channels).for_each(|&value| histogram[usize::from(value)] += 1);
        if let Some(table) = table(&histogram) {
            bytes.iter_mut().skip(channel).step_by(channels).for_each(|value| *value = table[usize::from(*value)]);
        }
    }
}

/// Pillow's `autocontrast`.
fn stretched(histogram: &[u32; 256]) -> Option<[u8; 256]> {
    let is_there = |count: &u32| *count > 0;
    let (least, most) = (histogram.iter().position(is_there)?, histogram.iter().rposition(is_there)?);
    let scale = 255.0 / (most - least) as f64;
    let offset = -(least as f64) * scale;
    (most > least).then(|| std::array::from_fn(|value| (value as f64 * scale + offset) as u8))
}

/// Pillow's `equalize`.
fn equalized(histogram: &[u32; 256]) -> Option<[u8; 256]> {
    let last = histogram.iter().rev().find(|count| **count > 0)?;
    let step = (histogram.iter().sum::<u32>() - last) / 255;
    let mut sum = step / 2;
    (step > 0).then(|| {
        histogram.map(|count| {
            let value = (sum / step).min(255) as u8;
            sum += count;
            value
        })
    })
}

/// The mean of a picture's greys, rounded.
fn mean_grey(bytes: &[u8], channels: usize) -> u8 {
    let (sum, count) = if channels == 3 {
        let (pixels, _) = bytes.as_chunks::<3>();
        (pixels.iter().map(|pixel| u64::from(luma(*pixel))).sum::<u64>(), pixels.len())
    } else {
        (bytes.iter().map(|value| u64::from(*value)).sum(), bytes.len())
    };
    (sum as f64 / count.max(1) as f64 + 0.5) as u8
}

/// Pillow's filter `SMOOTH`: a pixel counts five times as much as each of its eight
/// neighbours. Pixels at the edge stay what they are.
fn smoothed(bytes: &[u8], size: usize, channels: usize) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let row = size * channels;
    for y in 1..size.saturating_sub(1) {
        for at in y * row + channels..(y + 1) * row - channels {
            let of_row = |middle: usize| [middle - channels, middle, middle + channels].map(|at| u32::from(bytes[at])).iter().sum::<u32>();
            let sum = of_row(at - row) + of_row(at) + of_row(at + row) + 4 * u32::from(bytes[at]);
            // To the nearest: a thirteenth is never a half.
            out[at] = ((2 * sum + 13) / 26) as u8;
        }
    }
    out
}

/// Where Pillow's `rotate` finds the pixels of the turned picture.
fn rotation(degrees: f64, size: usize) -> [f64; 6] {
    let angle = -degrees.rem_euclid(360.0).to_radians();
    // So that a quarter turn is exact.
    let round = |x: f64| (x * 1e15).round() / 1e15;
    let (cos, sin) = (round(angle.cos()), round(angle.sin()));
    let centre = size as f64 / 2.0;
    [cos, sin, centre - cos * centre - sin * centre, -sin, cos, centre + sin * centre - cos * centre]
}

/// Pillow's affine transform: the pixel at (x, y) is the one that lies nearest to
/// `(a x + b y + c, d x + e y + f)`, where that is in the picture. Places are integers with
/// 16 bits of fraction.
fn warp(bytes: &mut [u8], size: usize, channels: usize, [a, b, c, d, e, f]: [f64; 6]) {
    let fixed = |x: f64| (x * 65536.0 + 0.5).floor() as i64;
    let source = bytes.to_vec();
    let (right, down) = ([fixed(a), fixed(d)], [fixed(b), fixed(e)]);
    // The centre of the first pixel.
    let mut start = [fixed(c + a * 0.5 + b * 0.5), fixed(f + d * 0.5 + e * 0.5)];
    for row in bytes.chunks_exact_mut(size * channels) {
        let mut place = start;
        for pixel in row.chunks_exact_mut(channels) {
            match place.map(|at| usize::try_from(at >> 16).ok().filter(|&at| at < size)) {
                [Some(x), Some(y)] => pixel.copy_from_slice(&source[(y * size + x) * channels..][..channels]),
                _ => pixel.fill(0),
            }
            place = [place[0] + right[0], place[1] + right[1]];
        }
        start = [start[0] + down[0], start[1] + down[1]];
    }
}

/// Pillow's grey of a pixel: Rec. 601 luma in 16 bits of fraction, rounded.
fn luma([r, g, b]: [u8; 3]) -> u8 {
    ((19595 * u32::from(r) + 38470 * u32::from(g) + 7471 * u32::from(b) + 0x8000) >> 16) as u8
}

/// Pillow's `blend` of one value with another: `from` for a factor of 0, `to` for 1. It
/// rounds towards zero.
fn blend(from: u8, to: u8, factor: f32) -> u8 {
    (f32::from(from) + factor * (f32::from(to) - f32::from(from))) as u8
}

/// Pillow's hue, saturation and value, each as a byte.
fn hsv(pixel @ [r, g, b]: [u8; 3]) -> [u8; 3] {
    let (most, least) = (r.max(g).max(b), r.min(g).min(b));
    if most == least {
        return [0, 0, most];
    }
    let range = f32::from(most - least);
    let [rc, gc, bc] = pixel.map(|value| f32::from(most - value) / range);
    let sixths = if r == most {
        bc - gc
    } else if g == most {
        (2.0 + f64::from(rc) - f64::from(bc)) as f32
    } else {
        (4.0 + f64::from(gc) - f64::from(rc)) as f32
    };
    let hue = ((f64::from(sixths) / 6.0 + 1.0) % 1.0) as f32;
    let byte = |share: f32| (f64::from(share) * 255.0) as u8;
    [byte(hue), byte(range / f32::from(most)), most]
}

/// The way back from [`hsv`].
fn rgb([hue, saturation, value]: [u8; 3]) -> [u8; 3] {
    if saturation == 0 {
        return [value; 3];
    }
    let sixths = f64::from(hue) * 6.0 / 255.0;
    let rest = f64::from((sixths - sixths.floor()) as f32);
    let saturation = f64::from((f64::from(saturation) / 255.0) as f32);
    let part = |share: f64| (f64::from(value) * (1.0 - share)).round() as u8;
    let (p, q, t) = (part(saturation), part(saturation * rest), part(saturation * (1.0 - rest)));
    match sixths as u8 % 6 {
        0 => [value, t, p],
        1 => [q, value, p],
        2 => [p, value, t],
        3 => [p, q, value],
        4 => [t, p, value],
        _ => [value, p, q],
    }
}
