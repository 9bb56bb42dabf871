//! Which class a model gives to each point of a plane, and the data on it.

use std::ops::Range;

use plotters::prelude::*;

use super::curves::short;
use super::figure::{Area, Drawn, Figure};
use super::style::{FONT, INK, LABEL, TITLE, colour, font, tint};

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

    fn draw<DB: DrawingBackend>(&self, area: &Area<DB>) -> Drawn<DB>
    where
        DB::ErrorType: 'static,
    {
        let mut chart = ChartBuilder::on(area)
            .margin(18)
            .margin_right(150)
            .caption(&self.title, (FONT, TITLE).into_font().color(&INK))
            .x_label_area_size(50)
            .y_label_area_size(70)
            .build_cartesian_2d(self.x.clone(), self.y.clone())?;
        let (rows, columns) = (self.classes.len(), self.classes.first().map_or(0, Vec::len));
        let place = |range: &Range<f64>, n: usize, of: usize| range.start + (range.end - range.start) * n as f64 / of as f64;
        for (r, row) in self.classes.iter().enumerate() {
            // Neighbouring points of one class become one rectangle.
            let mut from = 0;
            while from < columns {
                let class = row[from];
                let to = from + row[from..].iter().take_while(|&&c| c == class).count();
                let corners =
                    [(place(&self.x, from, columns), place(&self.y, r, rows)), (place(&self.x, to, columns), place(&self.y, r + 1, rows))];
                chart.draw_series(std::iter::once(Rectangle::new(corners, tint(colour(class), 0.25).filled())))?;
                from = to;
            }
        }
        chart
            .configure_mesh()
            .disable_mesh()
            .axis_style(INK)
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
        let dots = |n: usize| self.points.iter().map(move |&(x, y, c)| Circle::new((x, y), radius + n as i32, dot(n, c)));
        chart.draw_series(dots(1))?;
        chart.draw_series(dots(0))?;
        let right = area.dim_in_pixel().0 as i32 - 138;
        for (n, name) in self.names.iter().take(MAX_NAMES).enumerate() {
            let y = 90 + 30 * n as i32;
            area.draw(&Circle::new((right, y), 7, colour(n).filled()))?;
            area.draw(&Text::new(name.clone(), (right + 16, y - LABEL as i32 / 2), font(LABEL)))?;
        }
        Ok(())
    }
}

/// The style of a dot in its class's colour (`n` = 0), or of the larger white dot
/// behind it (`n` = 1).
fn dot(n: usize, class: usize) -> ShapeStyle {
    if n == 1 { WHITE.filled() } else { colour(class).filled() }
}

impl Regions {
    /// An axis that holds all values, with room around them.
    pub fn range(values: impl Iterator<Item = f64>) -> Range<f64> {
        let (least, most) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        let room = (0.15 * (most - least)).max(1e-3);
        if least.is_finite() { least - room..most + room } else { 0.0..1.0 }
    }
}
