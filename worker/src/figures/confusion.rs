//! The confusion matrix: how often each class was predicted as each other class.

use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::figure::{Area, Drawn, Figure, Placed};
use super::style::{GRID, INK, LABEL, TITLE, anchored, colour, font, px, room_for, stroke, tint};
use super::tile::Tile;

pub struct Confusion {
    pub title: String,
    pub classes: Vec<String>,
    /// `[true class][predicted class]`
    pub counts: Vec<Vec<u64>>,
}

/// Above this many classes the cells are too small for numbers and names.
const MAX_NUMBERED: usize = 30;

/// The most letters of a class's name.
const LETTERS: usize = 24;

/// Where the matrix begins, from the top.
const TOP: i32 = 60;

impl Confusion {
    fn cell(&self) -> i32 {
        match self.classes.len() {
            0..=12 => 64,
            13..=MAX_NUMBERED => 44,
            n => (1000 / n as i32).max(1),
        }
    }

    fn numbered(&self) -> bool {
        self.classes.len() <= MAX_NUMBERED
    }

    fn body(&self) -> i32 {
        self.cell() * self.classes.len() as i32
    }

    /// Room for the class names.
    fn names(&self) -> i32 {
        let longest = self.classes.iter().map(|c| c.chars().count()).max().unwrap_or(0).min(LETTERS);
        if self.numbered() { 10 + room_for(longest) } else { 0 }
    }

    /// Room on the left for the class names and the title of their axis.
    fn side(&self) -> i32 {
        50 + self.names()
    }

    /// A cell for each pixel, in the colour of its count.
    fn cells(&self) -> Tile {
        let mut pixels = Vec::with_capacity(3 * self.counts.len() * self.classes.len());
        for (r, row) in self.counts.iter().enumerate() {
            let total = row.iter().sum::<u64>().max(1) as f64;
            for (c, &count) in row.iter().enumerate() {
                let (hue, strength) = strength(r == c, count as f64 / total);
                let RGBColor(red, green, blue) = tint(colour(hue), strength);
                pixels.extend([red, green, blue]);
            }
        }
        Tile { width: self.classes.len() as u32, height: self.counts.len() as u32, pixels }
    }
}

/// The colour and its strength: correct predictions in one, mistakes in another that is
/// strong at smaller shares already.
fn strength(correct: bool, share: f64) -> (usize, f64) {
    if correct { (0, 0.85 * share) } else { (1, (3.0 * share).min(0.9)) }
}

impl Figure for Confusion {
    fn size(&self) -> (u32, u32) {
        ((self.side() + self.body() + 40).max(420) as u32, (self.names() + self.body() + 110) as u32)
    }

    fn draw(&self, area: &Area<'_>, below: &mut Vec<Placed>) -> Drawn {
        let (cell, side, body) = (self.cell(), self.side(), self.body());
        area.draw(&Text::new(self.title.clone(), (px(side), px(18)), font(TITLE)))?;
        below.push(Placed { corners: [side, TOP, side + body, TOP + body].map(px), tile: self.cells(), smooth: false });
        // A cell has edges where there is room for them.
        let every = if self.numbered() { cell } else { body.max(1) };
        for at in (0..=body).step_by(every as usize) {
            for ends in [[(side + at, TOP), (side + at, TOP + body)], [(side, TOP + at), (side + body, TOP + at)]] {
                area.draw(&PathElement::new(ends.map(|(x, y)| (px(x), px(y))), stroke(GRID, 1.0)))?;
            }
        }
        if self.numbered() {
            self.numbers(area)?;
            for (n, name) in self.classes.iter().enumerate() {
                let name: String = name.chars().take(LETTERS).collect();
                let middle = n as i32 * cell + cell / 2;
                area.draw(&Text::new(name.clone(), (px(side - 10), px(TOP + middle)), anchored(LABEL, HPos::Right)))?;
                let turned = anchored(LABEL, HPos::Left).transform(FontTransform::Rotate90);
                area.draw(&Text::new(name, (px(side + middle), px(TOP + body + 10)), turned))?;
            }
        }
        let bottom = self.size().1 as i32 - 18;
        area.draw(&Text::new("predicted class", (px(side + body / 2), px(bottom)), anchored(LABEL, HPos::Center)))?;
        let turned = anchored(LABEL, HPos::Center).transform(FontTransform::Rotate270);
        area.draw(&Text::new("true class", (px(20), px(TOP + body / 2)), turned))
    }
}

impl Confusion {
    fn numbers(&self, area: &Area<'_>) -> Drawn {
        let (cell, side) = (self.cell(), self.side());
        for (r, row) in self.counts.iter().enumerate() {
            let total = row.iter().sum::<u64>().max(1) as f64;
            for (c, &count) in row.iter().enumerate() {
                let (x, y) = (side + c as i32 * cell, TOP + r as i32 * cell);
                let (_, strength) = strength(r == c, count as f64 / total);
                let ink = if strength > 0.55 { WHITE } else { INK };
                let size = if count > 9999 { 14 } else { LABEL - 2 };
                let style = anchored(size, HPos::Center).color(&ink);
                area.draw(&Text::new(count.to_string(), (px(x + cell / 2), px(y + cell / 2)), style))?;
            }
        }
        Ok(())
    }
}
