//! Colours and fonts that all figures share.

use std::sync::OnceLock;

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::register_font;

pub(super) const FONT: &str = "sans-serif";
pub(super) const TITLE: u32 = 26;
pub(super) const LABEL: u32 = 19;
pub(super) const INK: RGBColor = RGBColor(34, 34, 34);
pub(super) const GRID: RGBColor = RGBColor(225, 225, 225);

/// Colours that stay apart for colour-blind readers (Okabe and Ito, "Color
/// Universal Design", 2008), without its yellow, which is too light for lines.
const PALETTE: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(80, 80, 80),
];

pub(super) fn colour(n: usize) -> RGBColor {
    PALETTE[n % PALETTE.len()]
}

/// `colour` mixed with white: `share` of it stays.
pub(super) fn tint(colour: RGBColor, share: f64) -> RGBColor {
    let mix = |c: u8| (255.0 - share * (255.0 - f64::from(c))).round() as u8;
    RGBColor(mix(colour.0), mix(colour.1), mix(colour.2))
}

pub(super) fn font(size: u32) -> TextStyle<'static> {
    (FONT, size).into_font().color(&INK)
}

/// Registers the font with the bitmap backend; an SVG uses the viewer's fonts.
pub(super) fn register_fonts() -> Result<()> {
    static DONE: OnceLock<bool> = OnceLock::new();
    let done = *DONE.get_or_init(|| register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT).is_ok());
    if done { Ok(()) } else { Err(anyhow!("the built-in font is damaged")) }
}

/// Text of a size, centred vertically at its position and aligned by `horizontal`.
pub(super) fn anchored(size: u32, horizontal: plotters::style::text_anchor::HPos) -> TextStyle<'static> {
    use plotters::style::text_anchor::{Pos, VPos};
    font(size).pos(Pos::new(horizontal, VPos::Center))
}
