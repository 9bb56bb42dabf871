//! Small pictures in rows: a model's filters, or samples of a dataset.

use common::config::InputShape;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::figure::{Area, Drawn, Figure};
use super::style::{FONT, INK, LABEL, TITLE, anchored};

/// A small picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tile {
    pub width: u32,
    pub height: u32,
    /// RGB, `[height, width, 3]`
    pub pixels: Vec<u8>,
}

/// Rows of tiles of one size, each row with a name or without.
pub struct Tiles {
    pub title: String,
    pub rows: Vec<(String, Vec<Tile>)>,
    /// The side of a tile in the figure; its pixels become squares.
    pub side: u32,
}

const GAP: i32 = 6;
const TOP: i32 = 60;
const MARGIN: i32 = 20;

impl Tiles {
    fn names(&self) -> i32 {
        let longest = self.rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).min(28) as i32;
        if longest == 0 { 0 } else { 24 + 10 * longest }
    }
}

impl Figure for Tiles {
    fn size(&self) -> (u32, u32) {
        let columns = self.rows.iter().map(|(_, tiles)| tiles.len()).max().unwrap_or(0) as i32;
        let step = self.side as i32 + GAP;
        let title = 12 * self.title.chars().count() as i32;
        let width = (2 * MARGIN + self.names() + columns * step).max(2 * MARGIN + title);
        (width as u32, (TOP + MARGIN + self.rows.len() as i32 * step) as u32)
    }

    fn draw<DB: DrawingBackend>(&self, area: &Area<DB>) -> Drawn<DB>
    where
        DB::ErrorType: 'static,
    {
        area.draw(&Text::new(self.title.clone(), (MARGIN, 18), (FONT, TITLE).into_font().color(&INK)))?;
        let (step, names, side) = (self.side as i32 + GAP, self.names(), self.side);
        for (r, (name, tiles)) in self.rows.iter().enumerate() {
            let y = TOP + r as i32 * step;
            let name: String = name.chars().take(28).collect();
            area.draw(&Text::new(name, (MARGIN + names - 14, y + side as i32 / 2), anchored(LABEL, HPos::Right)))?;
            for (c, tile) in tiles.iter().enumerate() {
                self.tile(area, (MARGIN + names + c as i32 * step, y), tile)?;
            }
        }
        Ok(())
    }
}

impl Tiles {
    fn tile<DB: DrawingBackend>(&self, area: &Area<DB>, (left, top): (i32, i32), tile: &Tile) -> Drawn<DB>
    where
        DB::ErrorType: 'static,
    {
        let edge = |n: u32, of: u32| (u64::from(n) * u64::from(self.side) / u64::from(of.max(1))) as i32;
        for (at, pixel) in tile.pixels.as_chunks::<3>().0.iter().enumerate() {
            let (x, y) = (at as u32 % tile.width, at as u32 / tile.width);
            let from = (left + edge(x, tile.width), top + edge(y, tile.height));
            let to = (left + edge(x + 1, tile.width), top + edge(y + 1, tile.height));
            if to.0 > from.0 && to.1 > from.1 {
                area.draw(&Rectangle::new([from, to], RGBColor(pixel[0], pixel[1], pixel[2]).filled()))?;
            }
        }
        Ok(())
    }
}

/// A weight by filter, channel and pixel.
type Weight<'a> = Box<dyn Fn(usize, usize, usize) -> f32 + 'a>;

/// The filters of a first layer: a convolution's `[out, in, height, width]`, or the
/// columns of a dense layer on pictures `[pixels, out]`. None for other layers. Each
/// filter is scaled by its largest weight, and zero is grey. Filters with three
/// channels are shown in colour.
pub fn filters(shape: &[usize], values: &[f32], input: InputShape) -> Option<Vec<Tile>> {
    let size = input.image_size;
    let (count, channels, side, at): (usize, usize, usize, Weight<'_>) = match *shape {
        [out, channels, height, width] if height == width => {
            let plane = height * width;
            (out, channels, height, Box::new(move |filter, channel, pixel| values[(filter * channels + channel) * plane + pixel]))
        }
        [inputs, out] if size > 1 && inputs == input.values() => {
            let plane = size * size;
            (out, input.channels, size, Box::new(move |filter, channel, pixel| values[(channel * plane + pixel) * out + filter]))
        }
        _ => return None,
    };
    let tile = |filter: usize| {
        let colours = if channels == 3 { 3 } else { 1 };
        let all = || (0..colours).flat_map(|c| (0..side * side).map(move |p| (c, p)));
        let largest = all().map(|(c, p)| at(filter, c, p).abs()).fold(1e-12, f32::max);
        let byte = |value: f32| (127.5 + 127.5 * value / largest).round() as u8;
        let pixels = (0..side * side).flat_map(|p| [0, 1, 2].map(|c| byte(at(filter, if colours == 3 { c } else { 0 }, p)))).collect();
        Tile { width: side as u32, height: side as u32, pixels }
    };
    Some((0..count).map(tile).collect())
}
