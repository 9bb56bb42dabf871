//! Prints the results of the benchmarks, and computes their medians.

use anyhow::Result;
use serde::Serialize;

/// Prints a result: as one line of JSON, or as `text`.
pub(super) fn show<T: Serialize>(json: bool, result: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
    print_line(&if json { serde_json::to_string(result)? } else { text(result) })
}

pub(super) fn print_line(line: &str) -> Result<()> {
    common::ui::print_result(line)
}

/// Cores that this process may use.
pub(super) fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as u32)
}

/// The median; the higher of the two middle values if their number is even; 0 of none.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}
