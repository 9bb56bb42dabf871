//! What this build and this machine have to compute with, and which device a name means
//! there. Decided from facts that a test can make up.

use std::path::Path;

/// Why a CUDA device cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoCuda {
    #[error("this program was built with a libtorch without CUDA: export LIBTORCH=a CUDA build of libtorch, and build again")]
    CpuBuild,
    #[error("there is no NVIDIA GPU in this machine")]
    NoGpu,
    #[error("the NVIDIA driver is not loaded: install it, and see that nvidia-smi lists the GPU")]
    NoDriver,
    #[error("CUDA_VISIBLE_DEVICES is `{visible}`, which leaves libtorch no GPU")]
    Hidden { visible: String },
    #[error(
        "libtorch can use none of this machine's GPUs: the driver may be too old for its CUDA (nvidia-smi shows the newest that it supports)"
    )]
    Unusable,
    #[error("libtorch sees {found}, numbered from 0{among}")]
    TooHigh { found: usize, among: String },
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
    #[error("device `cuda:{index}` cannot be used: {reason}")]
    Cuda { index: usize, reason: NoCuda },
}

/// The device that a name means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    Cpu,
    ResidentCpu,
    Cuda(usize),
    Flex,
}

/// The name of the CPU with the engine that keeps its state on the device.
pub(super) const RESIDENT_CPU: &str = "cpu:resident";

/// The facts on which a choice depends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Machine {
    pub(super) libtorch: bool,
    pub(super) flex: bool,
    /// Whether libtorch was linked with CUDA.
    pub(super) cuda_build: bool,
    /// CUDA devices that libtorch sees.
    pub(super) seen: usize,
    /// Whether the NVIDIA driver is loaded.
    pub(super) driver: bool,
    /// NVIDIA GPUs on this machine's buses.
    pub(super) gpus: usize,
    /// CUDA_VISIBLE_DEVICES.
    pub(super) visible: Option<String>,
}

impl Machine {
    /// This machine; `seen` and `cuda_build` come from libtorch.
    pub(super) fn here(seen: usize, cuda_build: bool) -> Self {
        Self {
            libtorch: cfg!(feature = "libtorch"),
            flex: cfg!(feature = "flex"),
            cuda_build,
            seen,
            driver: Path::new("/proc/driver/nvidia/version").exists(),
            gpus: nvidia_gpus(Path::new("/sys/bus/pci/devices")),
            visible: std::env::var("CUDA_VISIBLE_DEVICES").ok(),
        }
    }

    /// What `text` means here, and a warning for the user if there is one.
    pub(super) fn choose(&self, text: &str) -> Result<(Choice, Option<String>), DeviceError> {
        let with_libtorch = |choice| if self.libtorch { Ok((choice, None)) } else { Err(DeviceError::NoLibtorch(text.to_owned())) };
        match text {
            "auto" => self.auto(),
            "cpu" => with_libtorch(Choice::Cpu),
            RESIDENT_CPU => with_libtorch(Choice::ResidentCpu),
            "flex" => self.flex.then_some((Choice::Flex, None)).ok_or(DeviceError::NoFlex),
            _ => {
                let index = if text == "cuda" { Some(0) } else { text.strip_prefix("cuda:").and_then(|number| number.parse().ok()) };
                let index = index.ok_or_else(|| DeviceError::Unknown(text.to_owned()))?;
                let found = with_libtorch(Choice::Cuda(index))?;
                if index < self.seen { Ok(found) } else { Err(DeviceError::Cuda { index, reason: self.no_cuda() }) }
            }
        }
    }

    fn auto(&self) -> Result<(Choice, Option<String>), DeviceError> {
        if self.libtorch && self.seen > 0 {
            return Ok((Choice::Cuda(0), None));
        }
        let choice = if self.libtorch {
            Choice::Cpu
        } else if self.flex {
            Choice::Flex
        } else {
            return Err(DeviceError::None);
        };
        let reason = if self.libtorch { self.no_cuda().to_string() } else { "this build has no libtorch".to_owned() };
        let unused = self.gpus > 0 || self.driver;
        Ok((choice, unused.then(|| format!("this machine has a GPU, and training takes the CPU: {reason}"))))
    }

    /// Why libtorch does not see the device that is asked for.
    fn no_cuda(&self) -> NoCuda {
        match &self.visible {
            _ if self.seen > 0 => {
                let found = self.seen;
                let among = self.visible.as_ref().map_or_else(String::new, |v| format!(" among those of CUDA_VISIBLE_DEVICES=`{v}`"));
                NoCuda::TooHigh { found, among }
            }
            _ if self.gpus == 0 && !self.driver => NoCuda::NoGpu,
            _ if !self.cuda_build => NoCuda::CpuBuild,
            _ if !self.driver => NoCuda::NoDriver,
            Some(visible) => NoCuda::Hidden { visible: visible.clone() },
            None => NoCuda::Unusable,
        }
    }
}

/// Counts the display controllers of NVIDIA's among the PCI devices of a folder of sysfs.
fn nvidia_gpus(devices: &Path) -> usize {
    let read = |device: &Path, file: &str| std::fs::read_to_string(device.join(file)).unwrap_or_default();
    let is_gpu = |device: &Path| read(device, "vendor").trim() == "0x10de" && read(device, "class").starts_with("0x03");
    std::fs::read_dir(devices).map_or(0, |all| all.flatten().filter(|entry| is_gpu(&entry.path())).count())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A machine with two GPUs that libtorch sees.
    fn two() -> Machine {
        Machine { libtorch: true, flex: true, cuda_build: true, seen: 2, driver: true, gpus: 2, visible: None }
    }

    fn refused(machine: &Machine, text: &str) -> String {
        machine.choose(text).unwrap_err().to_string()
    }

    #[test]
    fn names_mean_devices() {
        for (text, choice) in [
            ("auto", Choice::Cuda(0)),
            ("cuda", Choice::Cuda(0)),
            ("cuda:1", Choice::Cuda(1)),
            ("cpu", Choice::Cpu),
            (RESIDENT_CPU, Choice::ResidentCpu),
            ("flex", Choice::Flex),
        ] {
            assert_eq!(two().choose(text), Ok((choice, None)), "{text}");
        }
        for text in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "cpu:0"] {
            assert_eq!(two().choose(text), Err(DeviceError::Unknown(text.to_owned())));
        }
    }

    #[test]
    fn each_reason_for_no_gpu_has_a_sentence_of_its_own() {
        let none = Machine { seen: 0, ..two() };
        let cases = [
            (Machine { visible: Some("1,3".to_owned()), ..two() }, "sees 2, numbered from 0 among those of CUDA_VISIBLE_DEVICES=`1,3`"),
            (two(), "sees 2, numbered from 0"),
            (Machine { gpus: 0, driver: false, ..none.clone() }, "no NVIDIA GPU in this machine"),
            (Machine { cuda_build: false, ..none.clone() }, "libtorch without CUDA"),
            (Machine { driver: false, ..none.clone() }, "driver is not loaded"),
            (Machine { visible: Some(String::new()), ..none.clone() }, "CUDA_VISIBLE_DEVICES is ``"),
            (none, "driver may be too old"),
        ];
        for (machine, words) in &cases {
            let found = refused(machine, "cuda:5");
            assert!(found.contains("`cuda:5`") && found.contains(words), "{found}");
        }
        let sentences: std::collections::BTreeSet<String> = cases.iter().map(|(machine, _)| refused(machine, "cuda:5")).collect();
        assert_eq!(sentences.len(), cases.len());
    }

    #[test]
    fn the_cpu_is_never_taken_in_silence_where_there_is_a_gpu() {
        let blind = Machine { seen: 0, ..two() };
        for machine in [blind.clone(), Machine { cuda_build: false, ..blind.clone() }, Machine { driver: false, ..blind.clone() }] {
            let (choice, warning) = machine.choose("auto").unwrap();
            assert_eq!(choice, Choice::Cpu);
            assert!(warning.unwrap().contains("has a GPU, and training takes the CPU"));
            assert_eq!(machine.choose("cpu"), Ok((Choice::Cpu, None)), "whoever asks for the CPU knows");
        }
        let without = Machine { gpus: 0, driver: false, ..blind };
        assert_eq!(without.choose("auto"), Ok((Choice::Cpu, None)));
        let flex = Machine { libtorch: false, ..two() };
        assert!(flex.choose("auto").unwrap().1.unwrap().contains("has no libtorch"));
        assert_eq!(flex.choose("cuda:0"), Err(DeviceError::NoLibtorch("cuda:0".to_owned())));
        assert_eq!(Machine::default().choose("auto"), Err(DeviceError::None));
    }

    #[test]
    fn gpus_are_counted_by_vendor_and_class() {
        let folder = tempfile::tempdir().unwrap();
        for (name, vendor, class) in [
            ("0", "0x10de\n", "0x030200\n"),
            ("1", "0x10de\n", "0x030000\n"),
            ("2", "0x10de\n", "0x040300\n"),
            ("3", "0x8086\n", "0x030000\n"),
        ] {
            let device = folder.path().join(name);
            std::fs::create_dir(&device).unwrap();
            std::fs::write(device.join("vendor"), vendor).unwrap();
            std::fs::write(device.join("class"), class).unwrap();
        }
        assert_eq!(nvidia_gpus(folder.path()), 2);
        assert_eq!(nvidia_gpus(&folder.path().join("none")), 0);
    }
}
