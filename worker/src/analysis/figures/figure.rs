//! The trait of all figures, and how a figure becomes a file: PNG or SVG, by the file's
//! name.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use plotters::coord::Shift;
use plotters::prelude::*;

/// Where a figure is drawn.
pub(crate) type Area<DB> = DrawingArea<DB, Shift>;

/// The outcome of drawing.
pub(crate) type Drawn<DB> = Result<(), DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>>;

/// Something that can be drawn on any backend.
pub trait Figure {
    /// Width and height in pixels.
    fn size(&self) -> (u32, u32);
    /// Draws on a white area of that size.
    fn draw<DB: DrawingBackend>(&self, area: &Area<DB>) -> Drawn<DB>
    where
        DB::ErrorType: 'static;
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
    super::style::register_fonts()?;
    let (width, height) = figure.size();
    match Format::of(path)? {
        Format::Png => {
            let mut pixels = vec![0; width as usize * height as usize * 3];
            {
                let area = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
                render(figure, &area)?;
            }
            crate::data::write_png(path, width, height, 3, &pixels)
        }
        Format::Svg => {
            let mut text = String::new();
            {
                let area = SVGBackend::with_string(&mut text, (width, height)).into_drawing_area();
                render(figure, &area)?;
            }
            std::fs::write(path, text).with_context(|| format!("could not write `{}`", path.display()))
        }
    }
}

fn render<DB: DrawingBackend>(figure: &impl Figure, area: &Area<DB>) -> Result<()>
where
    DB::ErrorType: 'static,
{
    let drawn = area.fill(&WHITE).and_then(|()| figure.draw(area)).and_then(|()| area.present());
    drawn.map_err(|e| anyhow!("could not draw: {e}"))
}
