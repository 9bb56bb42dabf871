//! All code for libtorch: threads, CUDA checks, and the engine that works on libtorch's
//! own memory. No other module names libtorch, tch or burn-tch.
//!
//! The model runs on burn's libtorch backend without burn's automatic
//! differentiation: its parameters are libtorch leaves that require a gradient,
//! so libtorch records the operations itself and uses its native backward
//! kernels (burn's backward of a convolution goes through forward convolutions,
//! which are slower). On the CPU the parameters are views of one flat tensor
//! that the optimizer writes in place: a step copies nothing.
#![allow(deprecated)] // burn-tch is deprecated upstream as a whole.

use std::ops::Range;
use std::time::Instant;

use burn::backend::LibTorch;
use burn::backend::libtorch::TchTensor;
use burn::module::{ModuleMapper, Param};
use burn::tensor::{Device, Tensor};
use common::config::{ModelConfig, Precision};
use common::ring::Span;
use tch::{Kind, no_grad};

use super::{Engine, EngineError, Head, Images, Phases, Sink, Write, lap};
use crate::models::{DropoutGroup, InputShape, Model, ParamLayout, Pass};

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

pub(crate) struct LibtorchEngine {
    model: Model,
    layout: ParamLayout,
    /// The model's parameters, in the order of the layout: views of `flat`.
    leaves: Vec<tch::Tensor>,
    /// The weights that the model computes with, flat, in the run's precision, on the
    /// device.
    flat: tch::Tensor,
    /// f32 master weights in host memory. On the CPU in f32 the same memory as `flat`.
    master: tch::Tensor,
    /// bf16 weights in host memory. On the CPU the same memory as `flat`.
    mirror: Option<tch::Tensor>,
    kind: Kind,
    device: tch::Device,
}

impl LibtorchEngine {
    /// An engine on the CUDA device `cuda`, else on the CPU.
    pub(crate) fn new(config: &ModelConfig, input: InputShape, precision: Precision, weights: &[f32], cuda: Option<usize>) -> Self {
        let torch = cuda.map_or(tch::Device::Cpu, tch::Device::Cuda);
        let kind = match precision {
            Precision::F32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
        };
        let model = Model::new(config, input, &device(cuda));
        let layout = ParamLayout::of(&model);
        let master = tch::Tensor::from_slice(weights);
        let mirror = (kind == Kind::BFloat16).then(|| master.to_kind(kind));
        let host = mirror.as_ref().unwrap_or(&master);
        let flat = if cuda.is_some() { host.to_device(torch) } else { host.shallow_clone() };
        let leaves: Vec<tch::Tensor> = layout
            .params()
            .iter()
            .map(|spec| {
                let range = spec.range();
                let view = flat.narrow(0, range.start as i64, range.len() as i64);
                let shape: Vec<i64> = spec.shape().iter().map(|&n| n as i64).collect();
                view.view(shape.as_slice()).detach().set_requires_grad(true)
            })
            .collect();
        let model = model.map(&mut Loader { next: 0, leaves: &leaves });
        Self { model, layout, leaves, flat, master, mirror, kind, device: torch }
    }

    /// The batch on the device, in the run's precision, stored with the channels
    /// last: libtorch's CPU pools are vectorised over channels only, and all later
    /// layers keep the order of their input.
    fn images(&self, images: Images<'_>) -> tch::Tensor {
        let shape = images.shape().map(|n| n as i64);
        let host = tch::Tensor::from_slice(images.values).view(shape);
        let device = host.to_device(self.device).to_kind(self.kind);
        device.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
    }

    /// Hands the gradients of the parameters in `range` to `sink`.
    fn collect(&self, range: Range<usize>, grads: &[tch::Tensor], sink: Sink<'_>) {
        // The last parameters first: their gradients were the first to be ready.
        for (spec, grad) in self.layout.params()[range].iter().zip(grads).rev() {
            let grad = grad.to_device(tch::Device::Cpu).contiguous();
            let (offset, len) = (spec.range().start, spec.range().len());
            assert_eq!(grad.numel(), len, "gradient of {}", spec.name());
            match grad.kind() {
                // SAFETY: f32, contiguous, in host memory; `grad` outlives the slice.
                Kind::Float => sink(offset, Span::F32(unsafe { slice(&grad, len) })),
                kind => {
                    assert_eq!(kind, Kind::BFloat16, "gradient of {}", spec.name());
                    // SAFETY: as above, of 16 bits each.
                    sink(offset, Span::Bf16(unsafe { slice(&grad, len) }));
                }
            }
        }
    }
}

impl Engine for LibtorchEngine {
    fn weights(&self) -> &[f32] {
        // SAFETY: f32, contiguous, in host memory; changed only through `&mut self`.
        unsafe { slice(&self.master, self.layout.total()) }
    }

    fn write(&mut self, write: Write<'_>) {
        let total = self.layout.total();
        // SAFETY: as above; the two do not overlap, and nothing computes while `&mut self` is held.
        let (master, mirror) = unsafe { (slice_mut(&mut self.master, total), self.mirror.as_mut().map(|m| slice_mut(m, total))) };
        write(master, mirror);
        if self.device != tch::Device::Cpu {
            let host = self.mirror.as_ref().unwrap_or(&self.master);
            no_grad(|| self.flat.copy_(host));
        }
    }

    fn gradient(&mut self, images: Images<'_>, dropout: &[DropoutGroup], head: Head<'_>, sink: Sink<'_>) -> Result<Phases, EngineError> {
        let mut phases = Phases::default();
        let start = Instant::now();
        let mut pass = Pass::train(dropout);
        let split = self.layout.feature_parameters();
        let features = inner(self.model.features(wrap(self.images(images)), &mut pass))?;
        // The graph is cut here, so that the classifier's gradients are final before
        // the backward pass of the features begins.
        let cut = features.detach().set_requires_grad(split > 0);
        let input = wrap(cut.shallow_clone());
        // While this clone lives, burn does not write into the leaf in place.
        let kept = input.clone();
        let logits = inner(self.model.classifier(input, &mut pass))?.to_kind(Kind::Float);
        let shape = logits.size();
        let slope = head(&to_host(&logits)?);
        let slope = tch::Tensor::from_slice(&slope).view(shape.as_slice()).to_device(self.device);
        phases.forward = lap("forward", start);

        let start = Instant::now();
        let root = (&logits * slope).sum(Kind::Float);
        drop((logits, kept));
        let mut inputs: Vec<&tch::Tensor> = self.leaves[split..].iter().collect();
        if split > 0 {
            inputs.push(&cut);
        }
        let grads = backward(&root, &inputs)?;
        drop(root);
        phases.backward = lap("backward of the classifier", start);
        let start = Instant::now();
        let params = self.leaves.len();
        self.collect(split..params, &grads[..params - split], sink);
        phases.copy = lap("gradient copy", start);

        if let Some(slope) = grads.get(params - split) {
            let start = Instant::now();
            let root = (&features * slope).sum(Kind::Float);
            drop(features);
            let grads = backward(&root, &self.leaves[..split].iter().collect::<Vec<_>>())?;
            phases.backward += lap("backward of the features", start);
            let start = Instant::now();
            self.collect(0..split, &grads, sink);
            phases.copy += lap("gradient copy", start);
        }
        Ok(phases)
    }

    fn logits(&self, images: Images<'_>) -> Result<Vec<f32>, EngineError> {
        no_grad(|| {
            let logits = self.model.forward(wrap(self.images(images)), &mut Pass::evaluate());
            to_host(&inner(logits)?.to_kind(Kind::Float))
        })
    }
}

fn backward(root: &tch::Tensor, inputs: &[&tch::Tensor]) -> Result<Vec<tch::Tensor>, EngineError> {
    tch::Tensor::f_run_backward(&[root], inputs, false, false).map_err(|error| EngineError::Compute(error.to_string()))
}

fn to_host(tensor: &tch::Tensor) -> Result<Vec<f32>, EngineError> {
    Vec::try_from(tensor.detach().reshape([-1])).map_err(|error: tch::TchError| EngineError::Compute(error.to_string()))
}

/// A libtorch tensor as burn's.
fn wrap<const D: usize>(tensor: tch::Tensor) -> Tensor<D> {
    Tensor::from_primitive::<LibTorch>(TchTensor::new(tensor))
}

/// The libtorch tensor that burn holds.
fn inner<const D: usize>(tensor: Tensor<D>) -> Result<tch::Tensor, EngineError> {
    match tensor.try_into_primitive::<LibTorch>() {
        Ok(primitive) => Ok(primitive.tensor),
        Err(error) => Err(EngineError::Compute(format!("{error:?}"))),
    }
}

/// Puts the leaves in the place of the model's parameters.
struct Loader<'a> {
    next: usize,
    leaves: &'a [tch::Tensor],
}

impl ModuleMapper for Loader<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let leaf = self.leaves[self.next].shallow_clone();
        self.next += 1;
        Param::initialized(param.id, wrap(leaf))
    }
}

/// The memory of a tensor.
///
/// # Safety
/// `tensor` is contiguous, in host memory, holds at least `len` values of the
/// size of `T`, and nothing writes to them while the slice lives.
unsafe fn slice<T>(tensor: &tch::Tensor, len: usize) -> &[T] {
    if len == 0 {
        return &[];
    }
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), len) }
}

/// The memory of a tensor, to be written.
///
/// # Safety
/// As `slice`, and nothing else reads it while the slice lives.
unsafe fn slice_mut<T>(tensor: &mut tch::Tensor, len: usize) -> &mut [T] {
    if len == 0 {
        return &mut [];
    }
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), len) }
}
