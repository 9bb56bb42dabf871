//! `worker doctor`: reports what this build and this machine support, to find out why
//! something does not work.

use crate::engine::device::{ComputeDevice, cpu_has_bf16, cuda_arithmetic};

/// A line for each thing that a run depends on.
pub fn report() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let features: Vec<&str> = [("libtorch", cfg!(feature = "libtorch")), ("flex", cfg!(feature = "flex"))]
        .iter()
        .filter(|(_, on)| *on)
        .map(|(name, _)| *name)
        .collect();
    let mut rows = vec![
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("built with", features.join(", ")),
        ("cores", cores.to_string()),
        ("bf16", if cpu_has_bf16() { "yes" } else { "not on the CPU: train.precision = \"f32\" is several times as fast" }.to_owned()),
        ("cache", dirs::cache_dir().map_or("none: HOME is not set".to_owned(), |d| d.join("ringleader").display().to_string())),
        ("UDP buffers", udp_buffers()),
    ];
    for name in ["auto", "cpu", "cuda:0", "flex"] {
        let line = match ComputeDevice::parse(name) {
            Ok(device) => device.describe(),
            Err(e) => format!("not here: {e}"),
        };
        rows.push((name, line));
    }
    if let Some(arithmetic) = cuda_arithmetic() {
        rows.push(("on CUDA", arithmetic));
    }
    rows.iter().map(|(name, value)| format!("{name:>12}  {value}\n")).collect()
}

/// Gradients travel over UDP sockets, whose buffers the system may limit.
fn udp_buffers() -> String {
    let limit = |name: &str| std::fs::read_to_string(format!("/proc/sys/net/core/{name}")).ok()?.trim().parse::<u64>().ok();
    match (limit("rmem_max"), limit("wmem_max")) {
        (Some(receive), Some(send)) if receive.min(send) < 4 << 20 => {
            format!("at most {receive} and {send} bytes; for fast links: sysctl -w net.core.rmem_max=4194304 net.core.wmem_max=4194304")
        }
        (Some(receive), Some(send)) => format!("at most {receive} and {send} bytes"),
        _ => "unknown".to_owned(),
    }
}
