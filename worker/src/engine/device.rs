//! The devices that compute, and the functions that depend on a device's library.
//!
//! All code for libtorch is in one module behind the feature `libtorch`, so that
//! another burn backend can take its place.

use common::config::{Precision, TrainConfig};
pub use common::simd::cpu_has_bf16;

#[cfg(feature = "flex")]
use super::autodiff;
#[cfg(feature = "libtorch")]
use super::libtorch;
use super::machine::{Choice, Machine};
pub use super::machine::{DeviceError, NoCuda, Share};
use super::{Engine, EngineError, EngineSetup};
#[cfg(feature = "libtorch")]
use crate::models::Model;

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

/// This machine as the build sees it.
fn machine() -> Machine {
    #[cfg(feature = "libtorch")]
    return Machine::here(libtorch::cuda_devices(), libtorch::CUDA_BUILD);
    #[cfg(not(feature = "libtorch"))]
    return Machine::here(0, false);
}

/// Prepares the process for training: for large tensors, and for CUDA. Must be called
/// before other threads start.
pub fn prepare_process() {
    #[cfg(feature = "libtorch")]
    {
        libtorch::keep_memory();
        libtorch::shim::prepare_process();
    }
}

/// The version of libtorch, and whether it has CUDA; none without libtorch.
pub fn libtorch_version() -> Option<String> {
    #[cfg(feature = "libtorch")]
    return Some(format!("{}, {} CUDA", libtorch::shim::version(), if libtorch::CUDA_BUILD { "with" } else { "without" }));
    #[cfg(not(feature = "libtorch"))]
    None
}

/// How CUDA computes, in words; none without libtorch.
pub fn cuda_arithmetic() -> Option<String> {
    #[cfg(feature = "libtorch")]
    {
        let set = |train: &TrainConfig| libtorch::shim::Arithmetic::of(train);
        let (usual, reproducible) = (set(&TrainConfig::default()), set(&TrainConfig { reproducible: true, ..TrainConfig::default() }));
        let f32_is = if usual.tf32 { "f32 products are TF32" } else { "f32 is f32; TF32 with train.precision = \"tf32\"" };
        let kernels = if usual.benchmark { "cuDNN takes its fastest kernels" } else { "cuDNN takes its usual kernels" };
        let exact = if reproducible.deterministic { "deterministic ones with train.reproducible" } else { "with train.reproducible too" };
        Some(format!("{f32_is}; {kernels}, {exact}"))
    }
    #[cfg(not(feature = "libtorch"))]
    None
}

impl ComputeDevice {
    /// Reads `auto`, `cpu`, `cpu:resident`, `cuda` or `cuda:N`, or `flex`. `auto` is CUDA
    /// device 0 where libtorch sees one, else the CPU with libtorch, else flex; if that
    /// leaves a GPU unused, it says why in the log.
    ///
    /// # Errors
    /// The name is unknown, or this build or this machine has no such device.
    pub fn parse(text: &str) -> Result<Self, DeviceError> {
        let (choice, warning) = machine().choose(text)?;
        if let Some(warning) = warning {
            tracing::warn!("{warning}");
        }
        Self::of(choice)
    }

    fn of(choice: Choice) -> Result<Self, DeviceError> {
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

    /// The CPU, with whatever this build has for it.
    ///
    /// # Errors
    /// This build can compute on nothing.
    pub fn any_cpu() -> Result<Self, DeviceError> {
        Self::parse("cpu").or_else(|_| Self::parse("flex"))
    }

    /// The engine that computes on this device.
    fn engine(self, setup: EngineSetup<'_>) -> Result<Box<dyn Engine>, EngineError> {
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

    /// Whether it computes on the processor's cores.
    fn is_cpu(self) -> bool {
        match self {
            #[cfg(feature = "libtorch")]
            Self::Cuda(_) => false,
            #[allow(unreachable_patterns)]
            _ => true,
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

/// The devices of one worker: one, or several that train one replica together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices {
    first: ComputeDevice,
    others: Vec<ComputeDevice>,
}

impl From<ComputeDevice> for Devices {
    fn from(first: ComputeDevice) -> Self {
        Self { first, others: Vec::new() }
    }
}

impl Devices {
    /// Reads names, as in [`ComputeDevice::parse`], between commas; or `auto`, which means
    /// all CUDA devices that libtorch sees. Of what is named, this process takes `share`.
    ///
    /// # Errors
    /// A name is unknown, this build or this machine has no such device, or there are too
    /// few for all shares.
    pub fn parse(text: &str, share: Share) -> Result<Self, DeviceError> {
        let (choices, warning) = machine().choose_all(text, share)?;
        if let Some(warning) = warning {
            tracing::warn!("{warning}");
        }
        let mut devices = choices.into_iter().map(ComputeDevice::of);
        let first = devices.next().ok_or(DeviceError::None)??;
        Ok(Self { first, others: devices.collect::<Result<_, _>>()? })
    }

    /// The device for what one device does alone.
    pub fn first(&self) -> ComputeDevice {
        self.first
    }

    fn all(&self) -> impl Iterator<Item = ComputeDevice> {
        std::iter::once(self.first).chain(self.others.iter().copied())
    }

    /// Prepares for the training of a run: sets the number of threads and how CUDA
    /// computes, and warns if a CPU emulates the precision.
    ///
    /// # Errors
    /// A GPU has no such arithmetic, or failed.
    pub fn prepare(&self, train: &TrainConfig) -> Result<(), DeviceError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // Devices that compute on the cores share the worker's threads.
        let cpus = self.all().filter(|device| device.is_cpu()).count().max(1);
        self.first.set_threads((train.compute_threads(cores) / cpus).max(1));
        if self.all().any(|device| device.emulates(train.precision)) {
            tracing::warn!(
                "this processor has no bf16 arithmetic: libtorch makes it out of f32, which takes several times as long; set train.precision = \"f32\""
            );
        }
        #[cfg(feature = "libtorch")]
        for device in self.all() {
            let ComputeDevice::Cuda(index) = device else { continue };
            let failed = |error: EngineError| DeviceError::Failed { device: device.to_string(), cause: error.to_string() };
            libtorch::shim::Arithmetic::of(train).set().map_err(failed)?;
            if train.precision == Precision::Bf16 && !libtorch::shim::has_bf16(index).map_err(failed)? {
                return Err(DeviceError::NoBf16 { index });
            }
        }
        Ok(())
    }

    /// The engine that computes on these devices.
    pub(crate) fn engine(&self, setup: EngineSetup<'_>) -> Result<Box<dyn Engine>, EngineError> {
        #[cfg(feature = "libtorch")]
        if setup.train.reproducible
            && self.all().any(|device| !device.is_cpu())
            && let Some(layer) = Model::new(setup.model, setup.input, &self.first.burn())?.not_deterministic_on_cuda()
        {
            return Err(EngineError::NotDeterministic { layer });
        }
        #[cfg(feature = "libtorch")]
        if !self.others.is_empty() {
            let cuda = |device| if let ComputeDevice::Cuda(index) = device { Some(index) } else { None };
            return Ok(Box::new(libtorch::group::GroupEngine::new(&setup, &self.all().map(cuda).collect::<Vec<_>>())?));
        }
        self.first.engine(setup)
    }

    /// One line for logs.
    pub fn describe(&self) -> String {
        match self.others.len() {
            0 => self.first.describe(),
            others => format!("{} devices, {self}: {}", others + 1, self.first.describe()),
        }
    }
}

/// The names that [`Devices::parse`] reads.
impl std::fmt::Display for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.all().map(|device| device.to_string()).collect::<Vec<_>>().join(","))
    }
}

/// The name that [`ComputeDevice::parse`] reads.
impl std::fmt::Display for ComputeDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            #[cfg(feature = "libtorch")]
            Self::Cpu => Choice::Cpu,
            #[cfg(feature = "libtorch")]
            Self::ResidentCpu => Choice::ResidentCpu,
            #[cfg(feature = "libtorch")]
            Self::Cuda(index) => Choice::Cuda(*index),
            #[cfg(feature = "flex")]
            Self::Flex => Choice::Flex,
        }
        .fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::super::machine::RESIDENT_CPU;
    use super::*;

    #[test]
    fn devices_read_back_from_their_names() {
        for text in ["auto", "cpu", RESIDENT_CPU, "flex"] {
            if let Ok(device) = ComputeDevice::parse(text) {
                assert_eq!(ComputeDevice::parse(&device.to_string()), Ok(device));
            }
            if let Ok(devices) = Devices::parse(&format!("{text},{text}"), Share::WHOLE) {
                assert_eq!(Devices::parse(&devices.to_string(), Share::WHOLE), Ok(devices));
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
