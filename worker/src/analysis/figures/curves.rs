//! Loss, accuracy and learning rate over the epochs of one or several runs.

use common::metrics::{Evaluation, StepMetrics};
use plotters::prelude::*;

use super::figure::{Area, Drawn, Figure};
use super::style::{FONT, GRID, INK, LABEL, TITLE, colour, font, tint};

/// The most points of one line: more could not be told apart.
const MAX_POINTS: usize = 160;

/// One run's numbers, over epochs.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    pub name: String,
    pub train_loss: Vec<(f64, f64)>,
    pub train_top1: Vec<(f64, f64)>,
    pub lr: Vec<(f64, f64)>,
    pub val_loss: Vec<(f64, f64)>,
    pub val_top1: Vec<(f64, f64)>,
}

impl Curve {
    /// `steps_per_epoch` converts steps to epochs. If there are many steps, each point
    /// is the mean of several.
    pub fn new(name: String, steps: &[StepMetrics], evaluations: &[Evaluation], steps_per_epoch: u64) -> Self {
        let epoch = |step: u64| step as f64 / steps_per_epoch.max(1) as f64;
        let group = steps.len().div_ceil(MAX_POINTS).max(1);
        let mean = |value: fn(&StepMetrics) -> f64| {
            let point = |part: &[StepMetrics]| {
                let n = part.len() as f64;
                let x = part.iter().map(|m| epoch(m.step + 1)).sum::<f64>() / n;
                (x, part.iter().map(value).sum::<f64>() / n)
            };
            steps.chunks(group).map(point).collect()
        };
        let at = |value: fn(&Evaluation) -> f64| evaluations.iter().map(|e| (epoch(e.step), value(e))).collect();
        Self {
            name,
            train_loss: mean(|m| m.loss),
            train_top1: mean(|m| m.top1),
            lr: mean(|m| m.lr),
            val_loss: at(|e| e.loss),
            val_top1: at(|e| e.top1),
        }
    }
}

/// The curves of several runs in one picture.
pub struct Curves(pub Vec<Curve>);

/// One panel, which shows a thin line and a thick line with marks for each run.
struct Panel<'a> {
    title: &'a str,
    range: std::ops::Range<f64>,
    thin: fn(&Curve) -> &[(f64, f64)],
    thick: fn(&Curve) -> &[(f64, f64)],
    legend: bool,
    number: fn(&f64) -> String,
}

impl Figure for Curves {
    fn size(&self) -> (u32, u32) {
        (1280, 860)
    }

    fn draw<DB: DrawingBackend>(&self, area: &Area<DB>) -> Drawn<DB>
    where
        DB::ErrorType: 'static,
    {
        let (upper, lower) = area.split_vertically(560);
        let (left, right) = upper.split_horizontally(640);
        let losses = self.0.iter().flat_map(|c| c.train_loss.iter().chain(&c.val_loss)).map(|p| p.1);
        let rates = self.0.iter().flat_map(|c| &c.lr).map(|p| p.1);
        let panels = [
            Panel {
                title: "loss",
                range: 0.0..top(losses),
                thin: |c| &c.train_loss,
                thick: |c| &c.val_loss,
                legend: false,
                number: |v| short(*v),
            },
            Panel {
                title: "accuracy (top-1)",
                range: self.lowest_accuracy()..1.0,
                thin: |c| &c.train_top1,
                thick: |c| &c.val_top1,
                legend: true,
                number: |v| format!("{:.0}%", 100.0 * v),
            },
            Panel { title: "learning rate", range: 0.0..top(rates), thin: |c| &c.lr, thick: |_| &[], legend: false, number: |v| short(*v) },
        ];
        for (panel, area) in panels.iter().zip([&left, &right, &lower]) {
            self.panel(panel, area)?;
        }
        Ok(())
    }
}

impl Curves {
    /// The start of the accuracy axis: 0, or a value just below all curves if they are
    /// above 0.5.
    fn lowest_accuracy(&self) -> f64 {
        let values = || self.0.iter().flat_map(|c| c.train_top1.iter().skip(c.train_top1.len() / 20).chain(&c.val_top1)).map(|p| p.1);
        let lowest = values().fold(1.0, f64::min);
        if lowest > 0.5 { (lowest * 10.0).floor() / 10.0 } else { 0.0 }
    }

    fn panel<DB: DrawingBackend>(&self, panel: &Panel<'_>, area: &Area<DB>) -> Drawn<DB>
    where
        DB::ErrorType: 'static,
    {
        let last = |c: &Curve| c.lr.last().map_or(0.0, |p| p.0).max(c.val_loss.last().map_or(0.0, |p| p.0));
        let epochs = self.0.iter().map(last).fold(0.0, f64::max).max(1e-9);
        let mut chart = ChartBuilder::on(area)
            .margin(18)
            .caption(panel.title, (FONT, TITLE).into_font().color(&INK))
            .x_label_area_size(48)
            .y_label_area_size(84)
            .build_cartesian_2d(0.0..epochs * 1.01, panel.range.clone())?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .bold_line_style(GRID)
            .axis_style(INK)
            .label_style(font(LABEL))
            .x_desc("epochs")
            .axis_desc_style(font(LABEL))
            .x_labels(8)
            .y_labels(7)
            .x_label_formatter(&|x| short(*x))
            .y_label_formatter(&panel.number)
            .draw()?;
        // Values beyond the axis, infinite ones too, are drawn at its end, not over the
        // title. NaN values are left out.
        let inside = |p: &(f64, f64)| (p.0, p.1.clamp(panel.range.start, panel.range.end));
        let shown = |line: &[(f64, f64)]| line.iter().filter(|p| !p.1.is_nan()).map(inside).collect::<Vec<_>>();
        for (n, run) in self.0.iter().enumerate() {
            let (thin, thick) = (shown((panel.thin)(run)), shown((panel.thick)(run)));
            let pale = thick.len() > 1 && self.0.len() > 1;
            let line = if pale { tint(colour(n), 0.45).stroke_width(2) } else { colour(n).stroke_width(2) };
            let drawn = chart.draw_series(LineSeries::new(thin, line))?;
            if panel.legend && self.0.len() == 1 {
                drawn.label("training").legend(move |(x, y)| PathElement::new([(x, y), (x + 28, y)], line));
            }
            // A single run has a second colour for its validation curve.
            let strong = if self.0.len() == 1 { colour(1) } else { colour(n) };
            let drawn = chart.draw_series(LineSeries::new(thick.iter().copied(), strong.stroke_width(3)))?;
            if panel.legend {
                let name = if self.0.len() == 1 { "validation".to_owned() } else { run.name.clone() };
                drawn.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 28, y)], strong.stroke_width(3)));
            }
            if thick.len() <= 60 {
                chart.draw_series(thick.iter().map(|&p| Circle::new(p, 4, strong.filled())))?;
            }
        }
        if panel.legend {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::LowerRight)
                .margin(14)
                .background_style(WHITE.mix(0.85))
                .border_style(GRID)
                .label_font(font(LABEL))
                .draw()?;
        }
        Ok(())
    }
}

/// The end of an axis from 0: above nearly all values, so that a single spike at
/// the start does not flatten the rest.
fn top(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.filter(|v| v.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * 0.99) as usize;
    let most = values.get(at.min(values.len().saturating_sub(1))).copied().unwrap_or(1.0);
    if most > 0.0 { most * 1.08 } else { 1.0 }
}

/// A number with no more digits than it needs.
pub(super) fn short(value: f64) -> String {
    let digits = match value.abs() {
        v if v == 0.0 || v >= 10.0 => 0,
        v if v >= 1.0 => 1,
        v => (-v.log10()).ceil() as usize + 1,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}
