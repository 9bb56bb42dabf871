//! The activation functions and their slopes.

use plotters::prelude::*;

use super::figure::{Area, Drawn, Figure};
use super::style::{FONT, GRID, INK, LABEL, TITLE, colour, font};

/// Values of one function and of its derivative: (name, x and f(x), x and f'(x)).
pub(super) type Function = (&'static str, Vec<(f64, f64)>, Vec<(f64, f64)>);

/// Several functions side by side, as the model computes them.
pub struct Activations(pub Vec<Function>);

impl Figure for Activations {
    fn size(&self) -> (u32, u32) {
        (400 * self.0.len().max(1) as u32, 480)
    }

    fn draw<DB: DrawingBackend>(&self, area: &Area<DB>) -> Drawn<DB>
    where
        DB::ErrorType: 'static,
    {
        for ((name, values, slopes), area) in self.0.iter().zip(area.split_evenly((1, self.0.len()))) {
            let ends = |f: fn(f64, f64) -> f64, start| values.iter().chain(slopes).map(|p| p.1).fold(start, f);
            let (low, high) = (ends(f64::min, 0.0), ends(f64::max, 1.0));
            let room = 0.08 * (high - low);
            let x = values.first().map_or(-1.0, |p| p.0)..values.last().map_or(1.0, |p| p.0);
            let mut chart = ChartBuilder::on(&area)
                .margin(16)
                .caption(name, (FONT, TITLE).into_font().color(&INK))
                .x_label_area_size(36)
                .y_label_area_size(46)
                .build_cartesian_2d(x, low - room..high + room)?;
            chart
                .configure_mesh()
                .light_line_style(WHITE)
                .bold_line_style(GRID)
                .axis_style(INK)
                .label_style(font(LABEL))
                .x_labels(7)
                .y_labels(6)
                .draw()?;
            for (points, n, label) in [(values, 0, "f(x)"), (slopes, 1, "f'(x)")] {
                let line = colour(n).stroke_width(3);
                chart
                    .draw_series(LineSeries::new(points.iter().copied(), line))?
                    .label(label)
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], line));
            }
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperLeft)
                .margin(10)
                .background_style(WHITE.mix(0.85))
                .border_style(GRID)
                .label_font(font(LABEL))
                .draw()?;
        }
        Ok(())
    }
}
