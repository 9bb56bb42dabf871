//! What the fuzz targets share.

use std::path::Path;

use common::config::Config;
use tempfile::TempDir;

const SMALL: &str = include_str!("../small.toml");

/// Runs a future that never waits for anything outside itself.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(future)
}

/// A folder of this process's own, in memory where the system has such a place.
pub fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    TempDir::new_in(place).expect("a temporary folder")
}

/// Cuts the input at its zero bytes, which no text file holds, into `N` parts;
/// missing ones are empty.
pub fn parts<const N: usize>(input: &[u8]) -> [&[u8]; N] {
    let mut parts = input.splitn(N, |&b| b == 0);
    [(); N].map(|()| parts.next().unwrap_or_default())
}

/// The small run's config.
pub fn config() -> Config {
    Config::parse(SMALL, "small.toml", &[]).expect("a valid config")
}

/// The same on other data: the lines of its section.
pub fn config_on(data: &str) -> Config {
    let (before, _) = SMALL.split_once("[data]\n").expect("a section of data");
    Config::parse(&format!("{before}[data]\n{data}\n"), "small.toml", &[]).expect("a valid config")
}
