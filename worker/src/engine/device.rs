//! The devices that compute, and the functions that depend on a device's library.
//!
//! All code for libtorch is in one module behind the feature `libtorch`, so that
//! another burn backend can take its place.

use common::config::{ModelConfig, Precision};

use super::Engine;
#[cfg(feature = "flex")]
use super::autodiff;
#[cfg(feature = "libtorch")]
use super::libtorch;
use crate::models::InputShape;

/// A device that this build and this machine have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComputeDevice {
    /// libtorch on the CPU.
    #[cfg(feature = "libtorch")]
    Cpu,
    /// libtorch on the CUDA device with this index.
    #[cfg(feature = "libtorch")]
    Cuda(usize),
    /// burn's pure-Rust CPU backend.
    #[cfg(feature = "flex")]
    Flex,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DeviceError {
    #[error("device `{0}` is unknown: use auto, cpu, cuda:N or flex")]
    Unknown(String),
    #[error("this build has no libtorch: device `{0}` needs the cargo feature `libtorch`; use `flex`")]
    NoLibtorch(String),
    #[error("this build has no burn-flex: device `flex` needs the cargo feature `flex`")]
    NoFlex,
    #[error("this build has no compute device: build with the cargo feature `libtorch` or `flex`")]
    None,
    #[error(
        "libtorch sees no CUDA device {index} (found {found}): check the driver, and that LIBTORCH was a CUDA build when this was built"
    )]
    NoCuda { index: usize, found: usize },
}

/// Prepares the process for the large tensors of training. Must be called before other
/// threads start.
pub fn keep_memory() {
    #[cfg(feature = "libtorch")]
    libtorch::keep_memory();
}

impl ComputeDevice {
    /// Reads `auto`, `cpu`, `cuda` or `cuda:N`, or `flex`. `auto` is CUDA device 0
    /// where libtorch sees one, else the CPU with libtorch, else flex.
    ///
    /// # Errors
    /// The name is unknown, or this build or this machine has no such device.
    pub fn parse(text: &str) -> Result<Self, DeviceError> {
        match text {
            "auto" => Self::auto(),
            "cpu" => Self::cpu(),
            "flex" => Self::flex(),
            "cuda" => Self::cuda(text, 0),
            _ => match text.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(index)) => Self::cuda(text, index),
                _ => Err(DeviceError::Unknown(text.to_owned())),
            },
        }
    }

    #[cfg(feature = "libtorch")]
    fn auto() -> Result<Self, DeviceError> {
        Ok(if libtorch::cuda_devices() > 0 { Self::Cuda(0) } else { Self::Cpu })
    }

    #[cfg(not(feature = "libtorch"))]
    fn auto() -> Result<Self, DeviceError> {
        Self::flex().map_err(|_| DeviceError::None)
    }

    #[cfg(feature = "libtorch")]
    fn cpu() -> Result<Self, DeviceError> {
        Ok(Self::Cpu)
    }

    #[cfg(not(feature = "libtorch"))]
    fn cpu() -> Result<Self, DeviceError> {
        Err(DeviceError::NoLibtorch("cpu".to_owned()))
    }

    #[cfg(feature = "libtorch")]
    fn cuda(_text: &str, index: usize) -> Result<Self, DeviceError> {
        let found = libtorch::cuda_devices();
        if index < found { Ok(Self::Cuda(index)) } else { Err(DeviceError::NoCuda { index, found }) }
    }

    #[cfg(not(feature = "libtorch"))]
    fn cuda(text: &str, _index: usize) -> Result<Self, DeviceError> {
        Err(DeviceError::NoLibtorch(text.to_owned()))
    }

    #[cfg(feature = "flex")]
    fn flex() -> Result<Self, DeviceError> {
        Ok(Self::Flex)
    }

    #[cfg(not(feature = "flex"))]
    fn flex() -> Result<Self, DeviceError> {
        Err(DeviceError::NoFlex)
    }

    /// Makes the device's library compute with `threads` threads. Call it once, before
    /// the first tensor: flex cannot change the number later.
    pub fn set_threads(self, threads: usize) {
        match self {
            #[cfg(feature = "libtorch")]
            Self::Cpu | Self::Cuda(_) => libtorch::set_threads(threads),
            // An error means that the pool exists already: the first call decides.
            #[cfg(feature = "flex")]
            Self::Flex => drop(rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()),
        }
    }

    /// This device as burn's type.
    pub(crate) fn burn(self) -> burn::tensor::Device {
        match self {
            #[cfg(feature = "libtorch")]
            Self::Cpu => libtorch::device(None),
            #[cfg(feature = "libtorch")]
            Self::Cuda(index) => libtorch::device(Some(index)),
            #[cfg(feature = "flex")]
            Self::Flex => burn::tensor::Device::flex(),
        }
    }

    /// The engine that computes on this device, with a network of `model` and its
    /// flat `weights`.
    pub(crate) fn engine(self, model: &ModelConfig, input: InputShape, precision: Precision, weights: Vec<f32>) -> Box<dyn Engine> {
        match self {
            #[cfg(feature = "libtorch")]
            Self::Cpu => Box::new(libtorch::LibtorchEngine::new(model, input, precision, &weights, None)),
            #[cfg(feature = "libtorch")]
            Self::Cuda(index) => Box::new(libtorch::LibtorchEngine::new(model, input, precision, &weights, Some(index))),
            #[cfg(feature = "flex")]
            Self::Flex => Box::new(autodiff::AutodiffEngine::new(model, input, precision, weights, self.burn())),
        }
    }

    /// Prepares for the training of a run: sets the number of threads, and warns if the
    /// device emulates the precision.
    pub fn prepare(self, threads: usize, precision: Precision) {
        self.set_threads(threads);
        if self.emulates(precision) {
            tracing::warn!(
                "this processor has no bf16 arithmetic: libtorch makes it out of f32, which takes several times as long; set train.precision = \"f32\""
            );
        }
    }

    /// Whether the device emulates this precision with another one.
    pub fn emulates(self, precision: Precision) -> bool {
        let makes = match self {
            #[cfg(feature = "libtorch")]
            Self::Cpu => !cpu_has_bf16(),
            _ => false,
        };
        makes && precision == Precision::Bf16
    }

    /// One line for logs.
    pub fn describe(self) -> String {
        match self {
            #[cfg(feature = "libtorch")]
            Self::Cpu => format!("CPU with libtorch, {} compute threads", libtorch::threads()),
            #[cfg(feature = "libtorch")]
            Self::Cuda(index) => format!("CUDA device {index} of {} with libtorch", libtorch::cuda_devices()),
            #[cfg(feature = "flex")]
            Self::Flex => format!("CPU with burn-flex, {} compute threads", rayon::current_num_threads()),
        }
    }
}

/// Whether this processor has the bf16 instructions that oneDNN and the Arm Compute
/// Library look for.
pub fn cpu_has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512bf16");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("bf16");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// The name that [`ComputeDevice::parse`] reads.
impl std::fmt::Display for ComputeDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            #[cfg(feature = "libtorch")]
            Self::Cpu => f.write_str("cpu"),
            #[cfg(feature = "libtorch")]
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            #[cfg(feature = "flex")]
            Self::Flex => f.write_str("flex"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_names_are_refused() {
        for text in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU"] {
            assert_eq!(ComputeDevice::parse(text), Err(DeviceError::Unknown(text.to_owned())));
        }
    }

    #[test]
    fn devices_read_back_from_their_names() {
        for text in ["auto", "cpu", "flex"] {
            if let Ok(device) = ComputeDevice::parse(text) {
                assert_eq!(ComputeDevice::parse(&device.to_string()), Ok(device));
            }
        }
    }

    #[cfg(feature = "libtorch")]
    #[test]
    fn only_bf16_on_a_processor_without_it_is_emulated() {
        // The processor's features as the system lists them, if it does.
        let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let reported = flags.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
        if let Some(reported) = reported {
            let has = reported.split_whitespace().any(|flag| flag == "avx512_bf16" || flag == "bf16");
            assert_eq!(ComputeDevice::Cpu.emulates(Precision::Bf16), !has);
        }
        assert!(!ComputeDevice::Cpu.emulates(Precision::F32));
    }

    #[cfg(feature = "libtorch")]
    #[test]
    fn a_missing_gpu_is_an_error_that_counts_the_present_ones() {
        let found = libtorch::cuda_devices();
        assert_eq!(ComputeDevice::parse("cuda:999"), Err(DeviceError::NoCuda { index: 999, found }));
    }
}
