//! The names of nodes in their certificates.

/// The coordinator's name in its certificate.
pub const COORDINATOR: &str = "coordinator";

/// The name of worker `id` in its certificate.
pub fn worker_name(id: u64) -> String {
    format!("worker-{id}")
}

/// The number in a worker's name.
pub fn worker_number(name: &str) -> Option<u64> {
    let number = name.rsplit_once('-').and_then(|(_, number)| number.parse().ok());
    number.filter(|&number| worker_name(number) == name)
}
