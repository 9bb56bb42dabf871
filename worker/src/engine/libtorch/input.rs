//! Numbers of pictures: normalised, in the number format of the pass, channels last.

use tch::{Kind, Tensor};

use super::super::{EngineError, Images};
use super::slice_mut;
use crate::data::{Dropout, Filling, Finish, Pictures};
use crate::models::InputShape;
use crate::optim::Threads;

fn shape(n: usize, input: InputShape) -> [i64; 4] {
    [n, input.image_size, input.image_size, input.channels].map(|n| n as i64)
}

/// Numbers that come as such, channels first.
pub(super) fn of_numbers(images: Images<'_>, numbers: &[f32], kind: Kind, device: tch::Device) -> Result<Tensor, EngineError> {
    let host = Tensor::f_from_slice(numbers)?.f_view(images.shape().map(|n| n as i64))?;
    channels_last(&host.f_to_device(device)?, kind)
}

/// Of f32 `[n, channels, size, size]` on their device.
pub(super) fn channels_last(numbers: &Tensor, kind: Kind) -> Result<Tensor, EngineError> {
    Ok(numbers.f_to_kind(kind)?.f_permute([0, 2, 3, 1])?.f_contiguous()?)
}

/// In one pass over the bytes, in host memory.
pub(super) fn on_host(pictures: Pictures<'_>, input: InputShape, kind: Kind, threads: &Threads) -> Result<Tensor, EngineError> {
    let (size, channels, each) = (input.image_size, input.channels, input.values());
    let mut numbers = Tensor::f_empty(shape(pictures.finishes.len(), input), (kind, tch::Device::Cpu))?;
    let len = numbers.numel();
    let parts = pictures.finishes.iter().zip(pictures.bytes.chunks_exact(each));
    if kind == Kind::Float {
        // SAFETY: f32, contiguous, in host memory, and nothing else knows of it yet.
        let numbers: &mut [f32] = unsafe { slice_mut(&mut numbers, len) };
        let parts = parts.zip(numbers.chunks_exact_mut(each)).collect();
        threads.map(parts, |((finish, bytes), numbers)| finish.write_f32(bytes, size, channels, numbers));
    } else {
        // SAFETY: as above, of 16 bits each.
        let numbers: &mut [u16] = unsafe { slice_mut(&mut numbers, len) };
        let parts = parts.zip(numbers.chunks_exact_mut(each)).collect();
        threads.map(parts, |((finish, bytes), numbers)| finish.write_bf16(bytes, size, channels, numbers));
    }
    Ok(numbers)
}

/// On the device, to which the bytes go as they are.
pub(super) fn on_device(pictures: Pictures<'_>, input: InputShape, kind: Kind, device: tch::Device) -> Result<Tensor, EngineError> {
    let n = pictures.finishes.len();
    let bytes = Tensor::f_from_slice(pictures.bytes)?.f_view(shape(n, input))?.f_to_device(device)?;
    let constants = Tensor::f_from_slice(&constants(pictures, input))?.f_to_device(device)?;
    finish(&bytes, &constants.f_view([4, n as i64, 1, 1, input.channels as i64])?, pictures.finishes, kind)
}

/// The constants of the finishes: `[4, n, channels]`.
pub(super) fn constants(pictures: Pictures<'_>, input: InputShape) -> Vec<f32> {
    (0..4).flat_map(|i| pictures.finishes.iter().flat_map(move |f| f.affine[..input.channels].iter().map(move |c| c[i]))).collect()
}

/// Numbers of bytes `[n, size, size, channels]` on their device, by constants
/// `[4, n, 1, 1, channels]`. Every operation is rounded as on the host, so the numbers are
/// the same.
pub(super) fn finish(bytes: &Tensor, constants: &Tensor, finishes: &[Finish], kind: Kind) -> Result<Tensor, EngineError> {
    let [scale, offset, low, high] = [0, 1, 2, 3].map(|i| constants.f_select(0, i));
    let mut numbers = bytes.f_to_kind(Kind::Float)?;
    let _ = numbers.f_mul_(&scale?)?.f_add_(&offset?)?;
    let numbers = numbers.f_clamp_tensor(Some(low?), Some(high?))?;
    for (at, finish) in finishes.iter().enumerate() {
        let Some(erased) = finish.erased else { continue };
        let [left, top, width, height] = erased.part.map(|n| n as i64);
        let mut part = numbers.f_select(0, at as i64)?.f_narrow(0, top, height)?.f_narrow(1, left, width)?;
        if erased.filling == Filling::Numbers([0.0; 3]) {
            let _ = part.f_zero_()?;
        } else {
            let filling = erased.numbers(bytes.size()[3] as usize);
            part.f_copy_(&Tensor::f_from_slice(&filling)?.f_view_as(&part)?)?;
        }
    }
    Ok(numbers.f_to_kind(kind)?)
}

/// What dropout multiplies by, of a mask's bytes.
pub(super) fn mask(bytes: &Tensor, dropout: Dropout, kind: Kind) -> Result<Tensor, EngineError> {
    Ok(bytes.f_to_kind(kind)?.f_mul_scalar(f64::from(dropout.scale()))?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::data::Erased;

    #[test]
    fn host_and_device_make_the_same_numbers() {
        for channels in [1, 3] {
            let input = InputShape { channels, image_size: 9, classes: 2 };
            let bytes: Vec<u8> = (0..4 * input.values()).map(|i| (i * 73 % 256) as u8).collect();
            let finish = |n: usize| Finish {
                affine: std::array::from_fn(|c| [0.0123 * (n + c + 1) as f32, -0.7 + c as f32 * 0.31, -0.5, 1.9]),
                erased: [Filling::Numbers([0.0; 3]), Filling::Numbers([1.5, -2.0, 0.0]), Filling::Noise { seed: 1 }]
                    .get(n)
                    .map(|&filling| Erased { part: [2, 1, 4, 6], filling }),
            };
            let finishes: Vec<Finish> = (0..4).map(finish).collect();
            let pictures = Pictures { bytes: &bytes, finishes: &finishes };
            for kind in [Kind::Float, Kind::BFloat16] {
                let host = on_host(pictures, input, kind, &Threads::new(2).unwrap()).unwrap();
                let device = on_device(pictures, input, kind, tch::Device::Cpu).unwrap();
                assert_eq!(host.size(), device.size());
                assert!(host.equal(&device), "{channels} channels, {kind:?}");
            }
        }
    }
}
