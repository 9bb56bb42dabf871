//! `worker filter`: cross-correlation with a small kernel, the operation that
//! convolutional networks are made of. A column of a CSV file has one dimension, a
//! picture two, a folder of frames three (time, height, width); the channels of
//! pictures are filtered separately.

mod files;
mod kernel;
mod signal;

use std::path::Path;

use anyhow::{Result, bail};
use burn::tensor::module::{conv1d, conv2d, conv3d};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Tensor, TensorData};

pub use kernel::Kernel;
pub use signal::Signal;

/// How to filter.
#[derive(Debug, Clone)]
pub struct Options {
    /// edge, sharpen, gaussian, or a file.
    pub kernel: String,
    /// Turn the kernel around first, which makes it a convolution.
    pub flip: bool,
    /// Zeros around the input on every side; by default as many as keep its size.
    pub padding: Option<usize>,
    pub stride: usize,
    /// The column of a CSV file.
    pub column: Option<String>,
}

/// Filters the file or folder `input` into `output`; returns a line that says so.
pub fn run(input: &Path, output: &Path, options: &Options, device: &Device) -> Result<String> {
    if options.stride == 0 {
        bail!("--stride must be at least 1");
    }
    let source = files::read(input, options.column.as_deref())?;
    let kernel = Kernel::of(&options.kernel, source.signal.shape.len())?;
    let kernel = if options.flip { kernel.flip() } else { kernel };
    let named = |e: String| anyhow::anyhow!("`{}` {e}", input.display());
    let result = correlate(&source.signal, &kernel, options.padding, options.stride, device).map_err(named)?;
    let line = format!("{} -> {}: {}", text(&source.signal.shape), text(&result.shape), output.display());
    files::write(output, &source, &result)?;
    Ok(line)
}

fn text(shape: &[usize]) -> String {
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x")
}

/// The most values that a film may have.
const MAX_VALUES: usize = 1 << 29;

/// Cross-correlation of each channel with `kernel`:
/// `out[i]` = sum over a of `kernel[a] in[stride i + a - padding]`.
pub fn correlate(signal: &Signal, kernel: &Kernel, padding: Option<usize>, stride: usize, device: &Device) -> Result<Signal, String> {
    let (sides, window) = (&signal.shape, &kernel.shape);
    let padding: Vec<usize> = window.iter().map(|k| padding.unwrap_or(k / 2)).collect();
    for ((side, k), p) in sides.iter().zip(window).zip(&padding) {
        if side + 2 * p < *k {
            return Err(format!(
                "is {}, which is too small for a kernel of {} with a padding of {p}: enlarge --padding",
                text(sides),
                text(window)
            ));
        }
    }
    if signal.values.len() > MAX_VALUES {
        return Err(format!("has {} values, and {MAX_VALUES} are the most: filter it in parts", signal.values.len()));
    }
    let shape: Vec<usize> = sides.iter().zip(window).zip(&padding).map(|((n, k), p)| (n + 2 * p - k) / stride + 1).collect();
    // Each channel is a sample of the batch, so that channels do not mix.
    let data = |values: &[f32], first: [usize; 2], sides: &[usize]| TensorData::new(values.to_vec(), [&first, sides].concat());
    let x = data(&signal.values, [signal.channels, 1], sides);
    let w = data(&kernel.values, [1, 1], window);
    let values = match *padding {
        [p] => values(conv1d(load(x, device), load(w, device), None, ConvOptions::new([stride], [p], [1], 1))),
        [p, q] => values(conv2d(load(x, device), load(w, device), None, ConvOptions::new([stride; 2], [p, q], [1; 2], 1))),
        [p, q, r] => values(conv3d(load(x, device), load(w, device), None, ConvOptions::new([stride; 3], [p, q, r], [1; 3], 1))),
        _ => return Err(format!("has {} dimensions: one to three can be filtered", sides.len())),
    };
    Ok(Signal { shape, channels: signal.channels, values: values? })
}

fn load<const D: usize>(data: TensorData, device: &Device) -> Tensor<D> {
    Tensor::from_data(data, device)
}

fn values<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, String> {
    tensor.into_data().try_to_vec().map_err(|e| format!("could not be filtered: {e:?}"))
}

#[cfg(test)]
mod tests;
