//! Pixels that a figure shows as they are.

/// A small picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tile {
    pub width: u32,
    pub height: u32,
    /// RGB, `[height, width, 3]`
    pub pixels: Vec<u8>,
}
