//! What this build and this machine have to compute with, and which device a name means
//! there. Decided from facts that a test can make up.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

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
    #[error("device `cuda:{index}` has no bf16 arithmetic: set train.precision = \"f32\", or \"tf32\"")]
    NoBf16 { index: usize },
    #[error("device `{device}` failed: {cause}")]
    Failed { device: String, cause: String },
    #[error("device `{0}` works alone: several devices of one worker are CUDA devices, or cpu")]
    Alone(String),
    #[error(
        "{workers} workers on this machine cannot share {devices} unasked: start fewer workers, or give each its device; who is named twice is shared, as in --devices {example}"
    )]
    TooFew { workers: u32, devices: String, example: String },
}

/// Which of the devices of a machine a worker takes: the part number `index`, from 0, of
/// `of` parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    index: u32,
    of: u32,
}

impl Share {
    /// All of them.
    pub const WHOLE: Self = Self { index: 0, of: 1 };
}

/// Reads `2/3`: the second of three.
impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(number, of)| Some((number.parse::<u32>().ok()?, of.parse::<u32>().ok()?)));
        match numbers {
            Some((number, of)) if (1..=of).contains(&number) => Ok(Self { index: number - 1, of }),
            _ => Err(format!("`{text}` is no share: write 2/3 for the second of three")),
        }
    }
}

/// The device that a name means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    Cpu,
    ResidentCpu,
    Cuda(usize),
    Flex,
}

/// The name that [`Machine::choose`] reads.
impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::ResidentCpu => f.write_str(RESIDENT_CPU),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::Flex => f.write_str("flex"),
        }
    }
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
    /// This process among those of a Slurm step that have been given the same devices.
    pub(super) slurm: Option<Share>,
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
            slurm: slurm_share(|name| std::env::var(name).ok()),
        }
    }

    /// What the names between the commas of `text` mean for the worker that takes `share`
    /// of the devices, and a warning for the user if there is one.
    pub(super) fn choose_all(&self, text: &str, share: Share) -> Result<(Vec<Choice>, Option<String>), DeviceError> {
        let (mut all, mut warning) = (Vec::new(), None);
        let mut share = share;
        if text == "auto" && self.libtorch && self.seen > 0 {
            all.extend((0..self.seen).map(Choice::Cuda));
            share = self.slurm.filter(|_| share == Share::WHOLE).unwrap_or(share);
        } else {
            for name in text.split(',') {
                let (choice, about) = self.choose(name)?;
                all.push(choice);
                warning = warning.or(about);
            }
        }
        let (index, of, len) = (share.index as usize, share.of as usize, all.len());
        let mine: Vec<Choice> = match all[..] {
            // Cores are shared by whoever computes on them.
            [only] if !matches!(only, Choice::Cuda(_)) => vec![only],
            _ if len < of => return Err(too_few(&all, share.of)),
            _ => all[len * index / of..len * (index + 1) / of].to_vec(),
        };
        if mine.len() > 1 && mine.contains(&Choice::Flex) {
            return Err(DeviceError::Alone("flex".to_owned()));
        }
        Ok((mine, warning))
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

fn too_few(devices: &[Choice], workers: u32) -> DeviceError {
    let names: Vec<String> = devices.iter().map(Choice::to_string).collect();
    let example: Vec<String> = names.iter().cycle().take(workers as usize).cloned().collect();
    DeviceError::TooFew { workers, devices: names.join(" and "), example: example.join(",") }
}

/// The share of this process where Slurm has started several on this machine and has given
/// all of them the same devices. `variable` reads the environment; srun documents the names.
fn slurm_share(variable: impl Fn(&str) -> Option<String>) -> Option<Share> {
    let bound = ["SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_GPU_BIND", "SLURM_TRES_BIND"];
    if bound.into_iter().any(|name| variable(name).is_some()) {
        return None;
    }
    let number = |name: &str| variable(name)?.parse::<u32>().ok();
    let (index, node) = (number("SLURM_LOCALID")?, number("SLURM_NODEID")?);
    let of = tasks_of_node(&variable("SLURM_STEP_TASKS_PER_NODE")?, node)?;
    (index < of).then_some(Share { index, of })
}

/// The entry of a node in a list like `4(x2),3`: four on each of two nodes, three on the
/// next.
fn tasks_of_node(list: &str, node: u32) -> Option<u32> {
    let mut before = 0;
    for entry in list.split(',') {
        let (tasks, nodes) = match entry.split_once("(x") {
            Some((tasks, nodes)) => (tasks, nodes.strip_suffix(')')?.parse::<u32>().ok()?),
            None => (entry, 1),
        };
        before += nodes;
        if node < before {
            return tasks.parse().ok();
        }
    }
    None
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
        Machine { libtorch: true, flex: true, cuda_build: true, seen: 2, driver: true, gpus: 2, visible: None, slurm: None }
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

    fn share(text: &str) -> Share {
        text.parse().unwrap()
    }

    #[test]
    fn workers_share_devices_and_nobody_shares_a_gpu_unasked() {
        let gpus = |list: &[usize]| Ok((list.iter().map(|&n| Choice::Cuda(n)).collect::<Vec<_>>(), None));
        let four = Machine { seen: 4, gpus: 4, ..two() };
        assert_eq!(four.choose_all("auto", Share::WHOLE), gpus(&[0, 1, 2, 3]));
        assert_eq!(four.choose_all("auto", share("2/2")), gpus(&[2, 3]));
        assert_eq!(["1/3", "2/3", "3/3"].map(|s| four.choose_all("auto", share(s))), [gpus(&[0]), gpus(&[1]), gpus(&[2, 3])]);
        assert_eq!(four.choose_all("cuda:3,cuda:1", Share::WHOLE), gpus(&[3, 1]));
        assert_eq!(two().choose_all("cuda:0,cuda:0", share("2/2")), gpus(&[0]), "who names it twice shares it");
        let refused = two().choose_all("auto", share("1/3")).unwrap_err().to_string();
        assert!(refused.contains("3 workers") && refused.contains("--devices cuda:0,cuda:1,cuda:0"), "{refused}");
        assert!(two().choose_all("cuda", share("1/2")).is_err());
        for s in ["1/3", "3/3"] {
            assert_eq!(two().choose_all("cpu", share(s)), Ok((vec![Choice::Cpu], None)));
        }
        assert_eq!(two().choose_all("cpu,cuda:1", share("1/2")), Ok((vec![Choice::Cpu], None)));
        assert_eq!(two().choose_all("cpu,cpu", Share::WHOLE), Ok((vec![Choice::Cpu; 2], None)));
        assert_eq!(two().choose_all("cpu,flex", Share::WHOLE), Err(DeviceError::Alone("flex".to_owned())));
        assert_eq!(two().choose_all("cpu,,cpu", Share::WHOLE), Err(DeviceError::Unknown(String::new())));
        let none = Machine { seen: 0, gpus: 0, driver: false, cuda_build: false, ..two() };
        assert_eq!(none.choose_all("auto", share("2/3")), Ok((vec![Choice::Cpu], None)));
        for text in ["", "2", "0/2", "3/2", "a/b", "1/0"] {
            assert!(text.parse::<Share>().is_err(), "{text}");
        }
    }

    #[test]
    fn under_slurm_the_tasks_of_a_machine_share_its_devices() {
        let environment = |pairs: &'static [(&str, &str)]| {
            move |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        let second = environment(&[("SLURM_LOCALID", "1"), ("SLURM_NODEID", "2"), ("SLURM_STEP_TASKS_PER_NODE", "4(x2),2")]);
        assert_eq!(slurm_share(second), Some(share("2/2")));
        let bound = [("SLURM_LOCALID", "1"), ("SLURM_NODEID", "0"), ("SLURM_STEP_TASKS_PER_NODE", "2"), ("SLURM_GPUS_PER_TASK", "1")];
        assert_eq!(slurm_share(|name| bound.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())), None);
        assert_eq!(slurm_share(|_| None), None);
        for (list, node, tasks) in [("3", 0, Some(3)), ("3", 1, None), ("4(x2),3", 1, Some(4)), ("4(x2),3", 2, Some(3)), ("x", 0, None)] {
            assert_eq!(tasks_of_node(list, node), tasks, "{list} {node}");
        }
        let machine = Machine { slurm: Some(share("2/2")), ..two() };
        assert_eq!(machine.choose_all("auto", Share::WHOLE), Ok((vec![Choice::Cuda(1)], None)));
        assert_eq!(machine.choose_all("cuda:0", Share::WHOLE), Ok((vec![Choice::Cuda(0)], None)), "whoever names one means it");
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
