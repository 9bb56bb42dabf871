//! Which class a model gives to each point of a plane, and the data on it.

use std::ops::Range;

use plotters::prelude::*;

use super::curves::short;
use super::figure::{Area, Drawn, Figure, Placed};
use super::style::{INK, LABEL, TITLE, colour, font, px, stroke, tint};
use super::tile::Tile;

pub struct Regions {
    pub title: String,
    /// Names of the two axes.
    pub axes: [String; 2],
    pub x: Range<f64>,
    pub y: Range<f64>,
    /// `[rows, columns]`, the first row at the bottom.
    pub classes: Vec<Vec<usize>>,
    pub points: Vec<(f64, f64, usize)>,
    pub names: Vec<String>,
}

/// The most names that fit beside the picture.
const MAX_NAMES: usize = 12;

impl Figure for Regions {
    fn size(&self) -> (u32, u32) {
        (820, 720)
    }

    fn draw(&self, area: &Area<'_>, below: &mut Vec<Placed>) -> Drawn {
        let mut chart = ChartBuilder::on(area)
            .margin(px(18))
            .margin_right(px(150))
            .caption(&self.title, font(TITLE))
            .x_label_area_size(px(50))
            .y_label_area_size(px(70))
            .build_cartesian_2d(self.x.clone(), self.y.clone())?;
        if let Some(tile) = self.background() {
            let (x, y) = chart.plotting_area().get_pixel_range();
            below.push(Placed { corners: [x.start, y.start, x.end, y.end], tile, smooth: true });
        }
        chart
            .configure_mesh()
            .disable_mesh()
            .axis_style(stroke(INK, 1.2))
            .set_all_tick_mark_size(px(5))
            .label_style(font(LABEL))
            .axis_desc_style(font(LABEL))
            .x_desc(&self.axes[0])
            .y_desc(&self.axes[1])
            .x_labels(7)
            .y_labels(7)
            .x_label_formatter(&|v| short(*v))
            .y_label_formatter(&|v| short(*v))
            .draw()?;
        let radius = if self.points.len() <= 20 { 9 } else { 5 };
        // A white edge keeps dots apart that lie over each other.
        for &(x, y, class) in &self.points {
            chart.draw_series([
                Circle::new((x, y), px(radius + 1), WHITE.filled()),
                Circle::new((x, y), px(radius), colour(class).filled()),
            ])?;
        }
        let right = self.size().0 as i32 - 138;
        for (n, name) in self.names.iter().take(MAX_NAMES).enumerate() {
            let y = 90 + 30 * n as i32;
            area.draw(&Circle::new((px(right), px(y)), px(7), colour(n).filled()))?;
            area.draw(&Text::new(name.clone(), (px(right + 16), px(y - LABEL / 2)), font(LABEL)))?;
        }
        Ok(())
    }
}

impl Regions {
    /// A pixel for each point of the plane; none without any.
    fn background(&self) -> Option<Tile> {
        let width = self.classes.first().filter(|row| !row.is_empty())?.len();
        let pixels = self.classes.iter().rev().flatten().flat_map(|&class| {
            let RGBColor(r, g, b) = tint(colour(class), 0.25);
            [r, g, b]
        });
        Some(Tile { width: width as u32, height: self.classes.len() as u32, pixels: pixels.collect() })
    }

    /// An axis that holds all values, with room around them.
    pub fn range(values: impl Iterator<Item = f64>) -> Range<f64> {
        let (least, most) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        let room = (0.15 * (most - least)).max(1e-3);
        if least.is_finite() { least - room..most + room } else { 0.0..1.0 }
    }
}
