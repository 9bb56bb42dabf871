//! The activation functions and their slopes.

use plotters::prelude::*;

use super::figure::{Area, Drawn, Figure, Placed};
use super::style::{GRID, INK, LABEL, TITLE, colour, font, key, line, px, stroke};

/// Values of one function and of its derivative: (name, x and f(x), x and f'(x)).
pub(crate) type Function = (&'static str, Vec<(f64, f64)>, Vec<(f64, f64)>);

/// Several functions side by side, as the model computes them.
pub struct Activations(pub Vec<Function>);

impl Figure for Activations {
    fn size(&self) -> (u32, u32) {
        (400 * self.0.len().max(1) as u32, 480)
    }

    fn draw(&self, area: &Area<'_>, _: &mut Vec<Placed>) -> Drawn {
        for ((name, values, slopes), area) in self.0.iter().zip(area.split_evenly((1, self.0.len()))) {
            let ends = |f: fn(f64, f64) -> f64, start| values.iter().chain(slopes).map(|p| p.1).fold(start, f);
            let (low, high) = (ends(f64::min, 0.0), ends(f64::max, 1.0));
            let room = 0.08 * (high - low);
            let x = values.first().map_or(-1.0, |p| p.0)..values.last().map_or(1.0, |p| p.0);
            let mut chart = ChartBuilder::on(&area)
                .margin(px(16))
                .caption(name, font(TITLE))
                .x_label_area_size(px(36))
                .y_label_area_size(px(46))
                .build_cartesian_2d(x, low - room..high + room)?;
            chart
                .configure_mesh()
                .max_light_lines(0)
                .bold_line_style(stroke(GRID, 1.0))
                .axis_style(stroke(INK, 1.2))
                .set_all_tick_mark_size(px(5))
                .label_style(font(LABEL))
                .x_labels(7)
                .y_labels(6)
                .draw()?;
            for (points, n, label) in [(values, 0, "f(x)"), (slopes, 1, "f'(x)")] {
                let style = stroke(colour(n), 3.0);
                chart.draw_series(line(points.iter().copied(), style))?.label(label).legend(key(style, 24));
            }
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperLeft)
                .margin(px(10))
                .legend_area_size(px(32))
                .background_style(WHITE.mix(0.85))
                .label_font(font(LABEL))
                .draw()?;
        }
        Ok(())
    }
}
