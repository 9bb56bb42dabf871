//! `worker doctor`: what this build and this machine support, and what the network between
//! this machine and a coordinator is like, to find out why something does not work.

mod gpus;

use std::path::{Path, PathBuf};

use common::diagnosis::{disk, socket_buffers};
use common::ui::Finding;

use crate::engine::device::{ComputeDevice, DeviceError, NoCuda, cpu_has_bf16, cuda_arithmetic, libtorch_version};

/// What this machine has, one finding for each thing that a run depends on. `cache` is where
/// samples are kept that are streamed, of which there may be so many bytes.
pub fn machine(cache: Option<&Path>, cache_bytes: u64) -> Vec<Finding> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let features: Vec<&str> = [("libtorch", cfg!(feature = "libtorch")), ("flex", cfg!(feature = "flex"))]
        .iter()
        .filter(|(_, on)| *on)
        .map(|(name, _)| *name)
        .collect();
    let mut findings = vec![
        Finding::ok("version", env!("CARGO_PKG_VERSION")),
        Finding::ok("built with", features.join(", ")),
        Finding::ok("libtorch", libtorch_version().unwrap_or_else(|| "not in this build".to_owned())),
        Finding::ok("cores", cores.to_string()),
        if cpu_has_bf16() {
            Finding::ok("bf16", "yes")
        } else {
            Finding::warn("bf16", "not on the CPU", "on the CPU, train.precision = \"f32\" is several times as fast")
        },
        match cache {
            Some(folder) => disk("cache", folder, cache_bytes, "streamed samples"),
            None => Finding::warn("cache", "none: HOME is not set", "name a folder with --cache-dir"),
        },
        socket_buffers(),
    ];
    findings.extend(["auto", "cpu", "cuda:0", "flex"].map(|name| device(name, ComputeDevice::parse(name))));
    findings.extend(cuda_arithmetic().map(|arithmetic| Finding::ok("on CUDA", arithmetic)));
    findings.extend(gpus::findings());
    findings
}

/// Where streamed samples are kept by default.
pub fn default_cache() -> Option<PathBuf> {
    dirs::cache_dir().map(|d| d.join("ringleader"))
}

/// A device by its name. One that is not there is of no consequence, unless nothing is, or a
/// GPU is there that cannot be used.
fn device(name: &str, parsed: Result<ComputeDevice, DeviceError>) -> Finding {
    match parsed {
        Ok(device) => Finding::ok(name, device.describe()),
        Err(e) if name == "auto" => Finding::fail(name, format!("not here: {e}"), "build with the cargo feature `libtorch` or `flex`"),
        Err(e @ DeviceError::Cuda { .. }) if !matches!(e, DeviceError::Cuda { reason: NoCuda::NoGpu, .. }) => {
            Finding::warn(name, format!("not here: {e}"), "training takes the CPU until this is mended")
        }
        Err(e) => Finding::ok(name, format!("not here: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use common::ui::Verdict;

    use super::*;

    #[test]
    fn a_device_that_is_missing_matters_where_there_is_none_or_a_gpu_is_idle() {
        let cuda = |reason| device("cuda:0", Err(DeviceError::Cuda { index: 0, reason })).verdict;
        assert_eq!([cuda(NoCuda::NoGpu), cuda(NoCuda::CpuBuild), cuda(NoCuda::Unusable)], [Verdict::Ok, Verdict::Warn, Verdict::Warn]);
        assert_eq!(device("auto", Err(DeviceError::None)).verdict, Verdict::Fail);
        assert_eq!(device("flex", Err(DeviceError::NoFlex)).verdict, Verdict::Ok);
    }

    #[test]
    fn all_that_a_run_depends_on_is_named() {
        let folder = std::env::temp_dir();
        let findings = machine(Some(&folder), 1);
        let names: Vec<&str> = findings.iter().map(|finding| finding.name.as_str()).collect();
        let first = ["version", "built with", "libtorch", "cores", "bf16", "cache", "UDP buffers", "auto", "cpu", "cuda:0", "flex"];
        assert_eq!(names[..first.len()], first);
        assert!(names.contains(&"driver"), "{names:?}");
        assert_eq!(machine(None, 1)[5].verdict, Verdict::Warn);
    }
}
