//! The confusion matrix: how often each class was predicted as each other class.

use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::figure::{Area, Drawn, Figure};
use super::style::{FONT, GRID, INK, LABEL, TITLE, anchored, colour, tint};

pub struct Confusion {
    pub title: String,
    pub classes: Vec<String>,
    /// `[true class][predicted class]`
    pub counts: Vec<Vec<u64>>,
}

/// Above this many classes the cells are too small for numbers and names.
const MAX_NUMBERED: usize = 30;

impl Confusion {
    fn cell(&self) -> i32 {
        match self.classes.len() {
            0..=12 => 64,
            13..=MAX_NUMBERED => 44,
            n => (1000 / n as i32).max(2),
        }
    }

    fn numbered(&self) -> bool {
        self.classes.len() <= MAX_NUMBERED
    }

    /// Room for the class names.
    fn names(&self) -> i32 {
        let longest = self.classes.iter().map(|c| c.chars().count()).max().unwrap_or(0).min(24);
        if self.numbered() { 10 + 9 * longest as i32 } else { 0 }
    }

    /// Room on the left for the class names and the title of their axis.
    fn side(&self) -> i32 {
        50 + self.names()
    }
}

impl Figure for Confusion {
    fn size(&self) -> (u32, u32) {
        let body = self.cell() * self.classes.len() as i32;
        ((self.side() + body + 40).max(420) as u32, (self.names() + body + 110) as u32)
    }

    fn draw<DB: DrawingBackend>(&self, area: &Area<DB>) -> Drawn<DB>
    where
        DB::ErrorType: 'static,
    {
        let (cell, side, top) = (self.cell(), self.side(), 60);
        let body = cell * self.classes.len() as i32;
        area.draw(&Text::new(self.title.clone(), (side, 18), (FONT, TITLE).into_font().color(&INK)))?;
        for (r, row) in self.counts.iter().enumerate() {
            let total = row.iter().sum::<u64>().max(1) as f64;
            for (c, &count) in row.iter().enumerate() {
                let share = count as f64 / total;
                let (x, y) = (side + c as i32 * cell, top + r as i32 * cell);
                // Correct predictions in one colour, mistakes in another that is strong
                // at smaller shares already.
                let (hue, strength) = if r == c { (0, 0.85 * share) } else { (1, (3.0 * share).min(0.9)) };
                let rectangle = [(x, y), (x + cell, y + cell)];
                area.draw(&Rectangle::new(rectangle, tint(colour(hue), strength).filled()))?;
                if self.numbered() {
                    area.draw(&Rectangle::new(rectangle, GRID.stroke_width(1)))?;
                    let ink = if strength > 0.55 { WHITE } else { INK };
                    let size = if count > 9999 { 14 } else { LABEL - 2 };
                    let style = anchored(size, HPos::Center).color(&ink);
                    area.draw(&Text::new(count.to_string(), (x + cell / 2, y + cell / 2), style))?;
                }
            }
        }
        if self.numbered() {
            for (n, name) in self.classes.iter().enumerate() {
                let name: String = name.chars().take(24).collect();
                let middle = n as i32 * cell + cell / 2;
                area.draw(&Text::new(name.clone(), (side - 10, top + middle), anchored(LABEL, HPos::Right)))?;
                let turned = anchored(LABEL, HPos::Left).transform(FontTransform::Rotate90);
                area.draw(&Text::new(name, (side + middle, top + body + 10), turned))?;
            }
        }
        let below = self.size().1 as i32 - 18;
        area.draw(&Text::new("predicted class", (side + body / 2, below), anchored(LABEL, HPos::Center)))?;
        let turned = anchored(LABEL, HPos::Center).transform(FontTransform::Rotate270);
        area.draw(&Text::new("true class", (20, top + body / 2), turned))
    }
}
