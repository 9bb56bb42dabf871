//! Small pictures in rows: a model's filters, or samples of a dataset.

use common::config::InputShape;
use plotters::prelude::Text;
use plotters::style::text_anchor::HPos;

use super::figure::{Area, Drawn, Figure, Placed};
use super::style::{LABEL, TITLE, anchored, font, px, room_for};
use super::tile::Tile;

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

/// The most letters of a row's name.
const LETTERS: usize = 28;

impl Tiles {
    fn names(&self) -> i32 {
        let longest = self.rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).min(LETTERS);
        if longest == 0 { 0 } else { 24 + room_for(longest) }
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

    fn draw(&self, area: &Area<'_>, below: &mut Vec<Placed>) -> Drawn {
        area.draw(&Text::new(self.title.clone(), (px(MARGIN), px(18)), font(TITLE)))?;
        let (side, names) = (self.side as i32, self.names());
        for (r, (name, tiles)) in self.rows.iter().enumerate() {
            let y = TOP + r as i32 * (side + GAP);
            let name: String = name.chars().take(LETTERS).collect();
            area.draw(&Text::new(name, (px(MARGIN + names - 14), px(y + side / 2)), anchored(LABEL, HPos::Right)))?;
            for (c, tile) in tiles.iter().enumerate() {
                let x = MARGIN + names + c as i32 * (side + GAP);
                below.push(Placed { corners: [x, y, x + side, y + side].map(px), tile: tile.clone(), smooth: false });
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

/// Filters in a row, the most of them, and the side of each in the picture.
const COLUMNS: usize = 16;
const MOST_FILTERS: usize = 256;
const FILTER_SIDE: u32 = 64;

/// The [`filters`] of `layer` as a figure; none for other layers. `run` and `step` say whose
/// they are.
pub fn filter_sheet(run: &str, layer: &str, step: u64, shape: &[usize], values: &[f32], input: InputShape) -> Option<Tiles> {
    let mut tiles = filters(shape, values, input)?;
    let all = tiles.len();
    tiles.truncate(MOST_FILTERS);
    let number = if all > tiles.len() { format!("{} of {all}", tiles.len()) } else { all.to_string() };
    let rows = tiles.chunks(COLUMNS).map(|row| (String::new(), row.to_vec())).collect();
    Some(Tiles { title: format!("{run}: {number} filters of {layer} after step {step}"), rows, side: FILTER_SIDE })
}
