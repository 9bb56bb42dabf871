//! The files that grow while a run goes on.

pub(super) const JOURNAL: &str = "journal.jsonl";
pub(super) const METRICS: &str = "metrics.jsonl";
pub(super) const SKIPPED: &str = "skipped.jsonl";

/// And the one that is replaced by each evaluation.
pub(super) const PREDICTIONS: &str = "predictions.json";
