//! What is recorded.

use std::time::{SystemTime, UNIX_EPOCH};

/// Keys and values of tags or parameters.
pub type Pairs = Vec<(String, String)>;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Finished,
    /// A person stopped it before its last step.
    Killed,
    Failed,
}

/// A figure of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Metric {
    pub(super) key: &'static str,
    pub(super) value: f64,
    pub(super) step: u64,
    /// Milliseconds since 1970.
    pub(super) timestamp: u64,
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
