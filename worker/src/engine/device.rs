//! The devices that compute, and the functions that depend on a device's library.
//!
//! All code for libtorch is in one module behind the feature `libtorch`, so that
//! another burn backend can take its place.

use common::config::Precision;

#[cfg(feature = "flex")]
use super::autodiff;
#[cfg(feature = "libtorch")]
use super::libtorch;
use super::machine::{Choice, Machine, RESIDENT_CPU};
pub use super::machine::{DeviceError, NoCuda};
use super::{Engine, EngineError, EngineSetup};

/// A device that this build and this machine have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComputeDevice {
    /// libtorch on the CPU.
    #[cfg(feature = "libtorch")]
    Cpu,
    /// libtorch on the CPU, by the engine that GPUs use: to test it where there is none.
    #[cfg(feature = "libtorch")]
    ResidentCpu,
    /// libtorch on the CUDA device with this index.
    #[cfg(feature = "libtorch")]
    Cuda(usize),
    /// burn's pure-Rust CPU backend.
    #[cfg(feature = "flex")]
    Flex,
}

/// Prepares the process for the large tensors of training. Must be called before other
/// threads start.
pub fn keep_memory() {
    #[cfg(feature = "libtorch")]
    libtorch::keep_memory();
}

impl ComputeDevice {
    /// Reads `auto`, `cpu`, `cpu:resident`, `cuda` or `cuda:N`, or `flex`. `auto` is CUDA
    /// device 0 where libtorch sees one, else the CPU with libtorch, else flex; if that
    /// leaves a GPU unused, it says why in the log.
    ///
    /// # Errors
    /// The name is unknown, or this build or this machine has no such device.
    pub fn parse(text: &str) -> Result<Self, DeviceError> {
        #[cfg(feature = "libtorch")]
        let machine = Machine::here(libtorch::cuda_devices(), libtorch::CUDA_BUILD);
        #[cfg(not(feature = "libtorch"))]
        let machine = Machine::here(0, false);
        let (choice, warning) = machine.choose(text)?;
        if let Some(warning) = warning {
            tracing::warn!("{warning}");
        }
        match choice {
            #[cfg(feature = "libtorch")]
            Choice::Cpu => Ok(Self::Cpu),
            #[cfg(feature = "libtorch")]
            Choice::ResidentCpu => Ok(Self::ResidentCpu),
            #[cfg(feature = "libtorch")]
            Choice::Cuda(index) => Ok(Self::Cuda(index)),
            #[cfg(feature = "flex")]
            Choice::Flex => Ok(Self::Flex),
            #[allow(unreachable_patterns)]
            _ => Err(DeviceError::None),
        }
    }

    /// Makes the device's library compute with `threads` threads. Call it once, before
    /// the first tensor: flex cannot change the number later.
    pub fn set_threads(self, threads: usize) {
        match self {
            #[cfg(feature = "libtorch")]
            Self::Cpu | Self::ResidentCpu | Self::Cuda(_) => libtorch::set_threads(threads),
            // An error means that the pool exists already: the first call decides.
            #[cfg(feature = "flex")]
            Self::Flex => drop(rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()),
        }
    }

    /// This device as burn's type.
    pub(crate) fn burn(self) -> burn::tensor::Device {
        match self {
            #[cfg(feature = "libtorch")]
            Self::Cpu | Self::ResidentCpu => libtorch::device(None),
            #[cfg(feature = "libtorch")]
            Self::Cuda(index) => libtorch::device(Some(index)),
            #[cfg(feature = "flex")]
            Self::Flex => burn::tensor::Device::flex(),
        }
    }

    /// The engine that computes on this device.
    pub(crate) fn engine(self, setup: EngineSetup<'_>) -> Result<Box<dyn Engine>, EngineError> {
        Ok(match self {
            #[cfg(feature = "libtorch")]
            Self::Cpu => Box::new(libtorch::host::HostEngine::new(setup)?),
            #[cfg(feature = "libtorch")]
            Self::ResidentCpu => Box::new(libtorch::resident::ResidentEngine::new(setup, None)?),
            #[cfg(feature = "libtorch")]
            Self::Cuda(index) => Box::new(libtorch::resident::ResidentEngine::new(setup, Some(index))?),
            #[cfg(feature = "flex")]
            Self::Flex => Box::new(autodiff::AutodiffEngine::new(setup, self.burn())?),
        })
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
            Self::Cpu | Self::ResidentCpu => !cpu_has_bf16(),
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
            Self::ResidentCpu => format!("CPU with libtorch and the engine of GPUs, {} compute threads", libtorch::threads()),
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
            Self::ResidentCpu => f.write_str(RESIDENT_CPU),
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
    fn devices_read_back_from_their_names() {
        for text in ["auto", "cpu", RESIDENT_CPU, "flex"] {
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
}
