//! Decoded pictures.

/// A decoded picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    pub width: u32,
    pub height: u32,
    /// 1 or 3.
    pub channels: u32,
    /// `[height, width, channels]`
    pub pixels: Vec<u8>,
}

/// Left, top, width and height of a part, in pixels of the upright picture.
pub type Region = [u32; 4];

/// The smallest region that holds both.
pub(super) fn union([x, y, width, height]: Region, [left, top, w, h]: Region) -> Region {
    let (first, second) = (x.min(left), y.min(top));
    [first, second, (x + width).max(left + w) - first, (y + height).max(top + h) - second]
}

/// A decoded part of a picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub picture: Picture,
    /// Where its upper left corner lies in the whole picture.
    pub left: u32,
    pub top: u32,
}
