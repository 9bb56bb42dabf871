//! What a machine by itself shows: the buffers of sockets, room on disks, the clock,
//! and how many files a process may open.

use std::path::Path;

use super::verdicts;
use crate::ui::Finding;

/// The largest buffers that the system gives a UDP socket.
pub fn socket_buffers() -> Finding {
    let limit = |name: &str| std::fs::read_to_string(format!("/proc/sys/net/core/{name}")).ok()?.trim().parse::<u64>().ok();
    verdicts::socket_buffers(limit("rmem_max").zip(limit("wmem_max")))
}

/// Room in `folder`, of which `wanted` bytes are wanted by `what`, and whether files can be
/// written there. The folder may not exist yet; nothing is left in it.
pub fn disk(name: &str, folder: &Path, wanted: u64, what: &str) -> Finding {
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let existing = absolute.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    let free = tempfile::tempfile_in(existing).and_then(|_| {
        let space = rustix::fs::statvfs(existing)?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    });
    verdicts::disk(name, folder, free.map_err(|e| format!("no file can be written in `{}`: {e}", existing.display())), wanted, what)
}

/// Whether the system keeps its clock with those of others, as far as it says.
pub fn clock() -> Finding {
    #[cfg(target_os = "linux")]
    let state = {
        // SAFETY: all zeros are a valid `timex`, whose `modes` of 0 change nothing; the call
        // writes into it and keeps no pointer.
        unsafe {
            let mut clock: libc::timex = std::mem::zeroed();
            libc::adjtimex(&raw mut clock)
        }
    };
    #[cfg(target_os = "linux")]
    let synchronised = (state >= 0).then_some(state != libc::TIME_ERROR);
    #[cfg(not(target_os = "linux"))]
    let synchronised = None;
    verdicts::synchronised(synchronised)
}

/// How many files this process may have open at once.
pub fn descriptors() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    verdicts::descriptors(limit.current, limit.maximum)
}
