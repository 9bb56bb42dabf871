//! The trait of all figures, and how a figure becomes a file: PNG or SVG, by the file's
//! name. A figure is drawn as SVG, in units finer than a pixel, so that lines run smoothly;
//! a PNG is made of that, with letters placed as the font says.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, anyhow, bail};
use data_encoding::BASE64;
use plotters::coord::Shift;
use plotters::prelude::*;
use resvg::usvg::fontdb::Database;
use resvg::{tiny_skia, usvg};

use super::style::{FONT, UNIT, fonts};
use super::tile::Tile;
use crate::data::{Picture, png_of, write_png};

/// Where a figure is drawn, in units.
pub(crate) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The outcome of drawing.
pub(crate) type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// Pixels that lie below what is drawn.
pub struct Placed {
    /// Left, top, right and bottom, in units.
    pub(crate) corners: [i32; 4],
    pub(crate) tile: Tile,
    /// Whether its pixels blend where they are enlarged; else they become squares.
    pub(crate) smooth: bool,
}

/// Something that can be drawn.
pub trait Figure {
    /// Width and height in pixels.
    fn size(&self) -> (u32, u32);
    /// Draws on a white area of that size, `UNIT` units to the pixel, and adds what is made
    /// of pixels to `below`.
    fn draw(&self, area: &Area<'_>, below: &mut Vec<Placed>) -> Drawn;
}

/// The formats that [`save`] writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Png,
    Svg,
}

impl Format {
    pub fn ending(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Svg => "svg",
        }
    }

    /// The format of a file by its name.
    fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|e| e.to_str()) {
            Some("png") => Ok(Self::Png),
            Some("svg") => Ok(Self::Svg),
            _ => bail!("`{}` should end in .png or .svg, which says what to write", path.display()),
        }
    }
}

/// Draws `figure` into the file `path`.
pub fn save(figure: &impl Figure, path: &Path) -> Result<()> {
    match Format::of(path)? {
        Format::Png => {
            let picture = pixels(figure)?;
            write_png(path, picture.width, picture.height, picture.channels, &picture.pixels)
        }
        Format::Svg => std::fs::write(path, svg(figure)?).with_context(|| format!("could not write `{}`", path.display())),
    }
}

/// The content of a PNG file with `figure`.
pub fn png(figure: &impl Figure) -> Result<Vec<u8>> {
    png_of(&pixels(figure)?).map_err(|e| anyhow!("could not make a PNG file: {e}"))
}

fn svg(figure: &impl Figure) -> Result<String> {
    fonts()?;
    let (width, height) = figure.size();
    let (mut drawn, mut below) = (String::new(), Vec::new());
    {
        let area = SVGBackend::with_string(&mut drawn, (width * UNIT, height * UNIT)).into_drawing_area();
        let outcome = figure.draw(&area, &mut below).and_then(|()| area.present());
        outcome.map_err(|e| anyhow!("could not draw: {e}"))?;
    }
    // The backend's first line says the size in units.
    let (_, elements) = drawn.split_once('\n').unwrap_or_default();
    let (right, bottom) = (width * UNIT, height * UNIT);
    let mut text = format!(
        "<svg width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {right} {bottom}\" xmlns=\"http://www.w3.org/2000/svg\">\n<rect width=\"{right}\" height=\"{bottom}\" fill=\"#FFFFFF\"/>\n"
    );
    for Placed { corners: [left, top, right, bottom], tile, smooth } in below {
        let picture = Picture { width: tile.width, height: tile.height, channels: 3, pixels: tile.pixels };
        let content = png_of(&picture).map_err(|e| anyhow!("could not make a PNG file: {e}"))?;
        let rendering = if smooth { "smooth" } else { "pixelated" };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "<image x=\"{left}\" y=\"{top}\" width=\"{}\" height=\"{}\" preserveAspectRatio=\"none\" style=\"image-rendering:{rendering}\" href=\"data:image/png;base64,{}\"/>",
            right - left,
            bottom - top,
            BASE64.encode(&content)
        );
    }
    Ok(text + elements)
}

/// The figure as pixels.
fn pixels(figure: &impl Figure) -> Result<Picture> {
    let (width, height) = figure.size();
    let options = usvg::Options { fontdb: letters(), font_family: FONT.to_owned(), ..usvg::Options::default() };
    let tree = usvg::Tree::from_str(&svg(figure)?, &options).context("a figure is no valid SVG")?;
    let mut map = tiny_skia::Pixmap::new(width, height).with_context(|| format!("a figure of {width}x{height} pixels is too large"))?;
    resvg::render(&tree, tiny_skia::Transform::default(), &mut map.as_mut());
    // The background is white, so that no pixel is transparent.
    let pixels = map.data().as_chunks::<4>().0.iter().flat_map(|p| [p[0], p[1], p[2]]).collect();
    Ok(Picture { width, height, channels: 3, pixels })
}

/// The one font that figures have, for all families.
fn letters() -> Arc<Database> {
    static LETTERS: OnceLock<Arc<Database>> = OnceLock::new();
    let load = || {
        let mut letters = Database::new();
        letters.load_font_data(epaint_default_fonts::UBUNTU_LIGHT.to_vec());
        let family = letters.faces().next().and_then(|face| face.families.first()).map(|(name, _)| name.clone());
        letters.set_sans_serif_family(family.unwrap_or_default());
        Arc::new(letters)
    };
    Arc::clone(LETTERS.get_or_init(load))
}
