//! The values to filter.

/// A signal, picture or film: separate `channels`, each of `shape`.
#[derive(Debug, Clone, PartialEq)]
pub struct Signal {
    /// One to three sides, the slowest first.
    pub shape: Vec<usize>,
    pub channels: usize,
    /// `[channels, shape..]`
    pub values: Vec<f32>,
}
