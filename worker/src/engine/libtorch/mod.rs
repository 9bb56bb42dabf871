//! All code for libtorch: threads, CUDA checks, and its engines. [`host`] keeps the
//! state in host memory, for the CPU; [`resident`] keeps it on the device; [`group`] has
//! several devices. No other module names libtorch, tch or burn-tch.
#![allow(deprecated)] // burn-tch is deprecated upstream as a whole.

mod batch_norm;
mod bridge;
pub(super) mod group;
pub(super) mod host;
mod input;
#[cfg(test)]
mod late;
mod loss;
mod network;
mod parcel;
mod products;
pub(super) mod resident;
pub(crate) mod shim;
mod streams;
mod update;

use burn::tensor::Device;
use common::config::Precision;
use common::ring::Span;
use tch::{Kind, TchError, Tensor};

use super::EngineError;

/// Whether this program was linked with a libtorch that has CUDA.
pub(super) const CUDA_BUILD: bool = option_env!("LIBTORCH_HAS_CUDA").is_some();

/// How many CUDA devices libtorch sees.
pub(super) fn cuda_devices() -> usize {
    usize::try_from(tch::Cuda::device_count()).unwrap_or(0)
}

/// Sets libtorch's compute threads, process-wide.
pub(super) fn set_threads(threads: usize) {
    tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
}

/// burn's libtorch device: a CUDA device, else the CPU.
pub(super) fn device(cuda: Option<usize>) -> Device {
    cuda.map_or_else(Device::libtorch, Device::libtorch_cuda)
}

pub(super) fn threads() -> i32 {
    tch::get_num_threads()
}

/// Makes glibc keep freed memory. By default it gives every large tensor back to the
/// system, which then has to clear the pages again in the next step: 8 % of AlexNet's
/// step at 128 pixels. The number of arenas is set to one, since only the main arena
/// can keep blocks of that size; a thread that has another arena already keeps it.
pub(super) fn keep_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt may be called at any time; a refused setting changes nothing.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

impl From<TchError> for EngineError {
    fn from(error: TchError) -> Self {
        Self::Compute(error.to_string())
    }
}

/// The number format of forward and backward pass.
fn kind_of(precision: Precision) -> Kind {
    match precision {
        // TF32 is how a device multiplies, not how values are stored.
        Precision::F32 | Precision::Tf32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
    }
}

/// The values of a contiguous tensor of f32 or bf16 in host memory.
fn span(tensor: &Tensor) -> Result<Span<'_>, EngineError> {
    let len = tensor.numel();
    if !tensor.is_contiguous() || tensor.device() != tch::Device::Cpu {
        return Err(EngineError::Compute("a gradient is not contiguous in host memory".to_owned()));
    }
    match tensor.kind() {
        // SAFETY: f32, contiguous, in host memory, borrowed with the tensor.
        Kind::Float => Ok(Span::F32(unsafe { slice(tensor, len) })),
        // SAFETY: as above, of 16 bits each.
        Kind::BFloat16 => Ok(Span::Bf16(unsafe { slice(tensor, len) })),
        kind => Err(EngineError::Compute(format!("a gradient of type {kind:?}"))),
    }
}

/// The memory of a tensor.
///
/// # Safety
/// `tensor` is contiguous, in host memory, holds at least `len` values of the
/// size of `T`, and nothing writes to them while the slice lives.
unsafe fn slice<T>(tensor: &Tensor, len: usize) -> &[T] {
    if len == 0 {
        return &[];
    }
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), len) }
}

/// The memory of a tensor, to be written.
///
/// # Safety
/// As `slice`, and nothing else reads it while the slice lives.
unsafe fn slice_mut<T>(tensor: &mut Tensor, len: usize) -> &mut [T] {
    if len == 0 {
        return &mut [];
    }
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), len) }
}
