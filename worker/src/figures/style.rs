//! Colours, fonts and measures that all figures share.

use std::sync::OnceLock;

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Units of a figure to a pixel.
pub(super) const UNIT: u32 = 16;

pub(super) const FONT: &str = "sans-serif";
pub(super) const TITLE: i32 = 26;
pub(super) const LABEL: i32 = 19;
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

/// Pixels as units.
pub(super) const fn px(pixels: i32) -> i32 {
    pixels * UNIT as i32
}

pub(super) fn colour(n: usize) -> RGBColor {
    PALETTE[n % PALETTE.len()]
}

/// `colour` mixed with white: `share` of it stays.
pub(super) fn tint(colour: RGBColor, share: f64) -> RGBColor {
    let mix = |c: u8| (255.0 - share * (255.0 - f64::from(c))).round() as u8;
    RGBColor(mix(colour.0), mix(colour.1), mix(colour.2))
}

/// A line of so many pixels.
pub(super) fn stroke(colour: RGBColor, pixels: f64) -> ShapeStyle {
    colour.stroke_width((pixels * f64::from(UNIT)).round() as u32)
}

/// A line through these points; one point alone is none.
pub(super) fn line(points: impl IntoIterator<Item = (f64, f64)>, style: ShapeStyle) -> Option<PathElement<(f64, f64)>> {
    let points: Vec<_> = points.into_iter().collect();
    (points.len() > 1).then(|| PathElement::new(points, style))
}

/// The short line of so many pixels by which a legend shows a style.
pub(super) fn key(style: ShapeStyle, pixels: i32) -> impl Fn((i32, i32)) -> PathElement<(i32, i32)> {
    move |(x, y)| PathElement::new([(x, y), (x + px(pixels), y)], style)
}

/// Text of so many pixels.
pub(super) fn font(pixels: i32) -> TextStyle<'static> {
    (FONT, px(pixels)).into_font().color(&INK)
}

/// Text of a size, centred vertically at its position and aligned by `horizontal`.
pub(super) fn anchored(pixels: i32, horizontal: HPos) -> TextStyle<'static> {
    font(pixels).pos(Pos::new(horizontal, VPos::Center))
}

/// Has the font measured by which axes and legends make room for their texts.
pub(super) fn fonts() -> Result<()> {
    static DONE: OnceLock<bool> = OnceLock::new();
    let done = *DONE.get_or_init(|| register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT).is_ok());
    if done { Ok(()) } else { Err(anyhow!("the built-in font is damaged")) }
}

/// The room that so many letters of a label take, in pixels.
pub(super) fn room_for(letters: usize) -> i32 {
    9 * letters as i32
}
