//! NVIDIA GPUs, their driver and their free memory, as the driver's own library (NVML)
//! tells them: it says so to every build, with or without CUDA.

use common::ui::Finding;
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

/// Below this share of free memory, another program uses the GPU.
const FREE: f64 = 0.8;

pub(super) fn findings() -> Vec<Finding> {
    let nvml = match Nvml::init() {
        Ok(nvml) => nvml,
        Err(e) => return vec![no_driver(&e, std::path::Path::new("/proc/driver/nvidia/version").exists())],
    };
    let cuda = nvml.sys_cuda_driver_version().map(|version| format!(", for CUDA up to {}.{}", version / 1000, version % 1000 / 10));
    let mut findings = vec![match nvml.sys_driver_version() {
        Ok(version) => Finding::ok("driver", format!("NVIDIA {version}{}", cuda.unwrap_or_default())),
        Err(e) => failed("driver", &e),
    }];
    for index in 0..nvml.device_count().unwrap_or(0) {
        let name = format!("GPU {index}");
        let seen = nvml.device_by_index(index).and_then(|device| {
            let memory = device.memory_info()?;
            Ok((device.name()?, memory.free, memory.total))
        });
        findings.push(match seen {
            Ok((model, free, total)) => memory(&name, &model, free, total),
            Err(e) => failed(&name, &e),
        });
    }
    findings
}

/// Without its library there is no driver, unless its module is `loaded`.
fn no_driver(problem: &NvmlError, loaded: bool) -> Finding {
    if !loaded {
        return Finding::ok("driver", "no NVIDIA driver");
    }
    let advice = "install the driver's libraries; in a container, start it with the NVIDIA runtime and the capability `utility`";
    Finding::warn("driver", format!("loaded, but its library does not answer: {problem}"), advice)
}

fn failed(name: &str, problem: &NvmlError) -> Finding {
    Finding::warn(name, format!("not known: {problem}"), "see what nvidia-smi says")
}

/// Memory in bytes.
fn memory(name: &str, model: &str, free: u64, total: u64) -> Finding {
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    let value = format!("{model}, {:.1} of {:.1} GB free", gigabytes(free), gigabytes(total));
    if free as f64 >= FREE * total as f64 {
        return Finding::ok(name, value);
    }
    Finding::warn(name, value, "another program holds memory of it: nvidia-smi names it; CUDA_VISIBLE_DEVICES chooses another GPU")
}

#[cfg(test)]
mod tests {
    use common::ui::Verdict;

    use super::*;

    #[test]
    fn a_gpu_that_others_use_is_warned_of() {
        let free = memory("GPU 0", "H200", 149_000_000_000, 150_754_820_096);
        assert_eq!(free, Finding::ok("GPU 0", "H200, 149.0 of 150.8 GB free"));
        let used = memory("GPU 0", "H200", 60_000_000_000, 150_754_820_096);
        assert!(used.verdict == Verdict::Warn && used.advice.is_some_and(|advice| advice.contains("nvidia-smi")));
    }

    #[test]
    fn a_driver_without_its_library_is_told_from_none() {
        let verdicts = [false, true].map(|loaded| no_driver(&NvmlError::DriverNotLoaded, loaded).verdict);
        assert_eq!(verdicts, [Verdict::Ok, Verdict::Warn]);
    }
}
