//! Loss, accuracy and learning rate over the epochs of one or several runs.

use common::metrics::{Evaluation, StepMetrics};
use plotters::prelude::*;

use super::figure::{Area, Drawn, Figure, Placed};
use super::style::{GRID, INK, LABEL, TITLE, colour, font, key, line, px, stroke, tint};

/// The most points of one line: more could not be told apart.
const MAX_POINTS: usize = 600;

/// The part of a run over which smoothing reaches.
const REACH: usize = 50;

/// Points over epochs.
type Line = Vec<(f64, f64)>;

/// One run's numbers, over epochs.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    pub name: String,
    /// As measured; of a run of many steps, means of a few.
    pub raw_loss: Line,
    pub raw_top1: Line,
    /// Smoothed.
    pub train_loss: Line,
    pub train_top1: Line,
    pub lr: Line,
    pub val_loss: Line,
    pub val_top1: Line,
}

impl Curve {
    /// `steps_per_epoch` converts steps to epochs. If there are many steps, each point
    /// is the mean of several.
    pub fn new(name: String, steps: &[StepMetrics], evaluations: &[Evaluation], steps_per_epoch: u64) -> Self {
        let epoch = |step: u64| step as f64 / steps_per_epoch.max(1) as f64;
        let line = |value: fn(&StepMetrics) -> f64| steps.iter().map(|m| (epoch(m.step + 1), value(m))).collect::<Line>();
        let (loss, top1) = (line(|m| m.loss), line(|m| m.top1));
        let at = |value: fn(&Evaluation) -> f64| evaluations.iter().map(|e| (epoch(e.step), value(e))).collect();
        Self {
            name,
            train_loss: thinned(&smoothed(&loss)),
            train_top1: thinned(&smoothed(&top1)),
            raw_loss: thinned(&loss),
            raw_top1: thinned(&top1),
            lr: thinned(&line(|m| m.lr)),
            val_loss: at(|e| e.loss),
            val_top1: at(|e| e.top1),
        }
    }
}

/// Means of neighbours, so that there are at most [`MAX_POINTS`].
fn thinned(line: &[(f64, f64)]) -> Line {
    let group = line.len().div_ceil(MAX_POINTS).max(1);
    let mean = |part: &[(f64, f64)]| {
        let sum = part.iter().fold((0.0, 0.0), |sum, p| (sum.0 + p.0, sum.1 + p.1));
        (sum.0 / part.len() as f64, sum.1 / part.len() as f64)
    };
    line.chunks(group).map(mean).collect()
}

/// The exponential moving average of what came up to each point, over about a fiftieth of
/// the run. Its first values are not drawn towards 0 (the correction of Kingma and Ba,
/// "Adam", 2014). Values that are not finite count for nothing.
fn smoothed(line: &[(f64, f64)]) -> Line {
    let share = 1.0 / line.len().div_ceil(REACH).max(1) as f64;
    let (mut sum, mut weight) = (0.0, 0.0);
    let point = |&(x, value): &(f64, f64)| {
        if value.is_finite() {
            (sum, weight) = (sum + share * (value - sum), weight + share * (1.0 - weight));
        }
        (x, if weight > 0.0 { sum / weight } else { value })
    };
    line.iter().map(point).collect()
}

/// The curves of several runs in one picture.
pub struct Curves(pub Vec<Curve>);

/// One panel, which shows for each run a thin line with what it smooths behind it, and a
/// thick line with marks.
struct Panel<'a> {
    title: &'a str,
    range: std::ops::Range<f64>,
    raw: fn(&Curve) -> &[(f64, f64)],
    thin: fn(&Curve) -> &[(f64, f64)],
    thick: fn(&Curve) -> &[(f64, f64)],
    legend: bool,
    number: fn(&f64) -> String,
}

impl Figure for Curves {
    fn size(&self) -> (u32, u32) {
        (1280, 860)
    }

    fn draw(&self, area: &Area<'_>, _: &mut Vec<Placed>) -> Drawn {
        let (upper, lower) = area.split_vertically(px(560));
        let (left, right) = upper.split_horizontally(px(640));
        let losses = self.0.iter().flat_map(|c| c.train_loss.iter().chain(&c.val_loss)).map(|p| p.1);
        let rates = self.0.iter().flat_map(|c| &c.lr).map(|p| p.1);
        let panels = [
            Panel {
                title: "loss",
                range: 0.0..top(losses),
                raw: |c| &c.raw_loss,
                thin: |c| &c.train_loss,
                thick: |c| &c.val_loss,
                legend: false,
                number: |v| short(*v),
            },
            Panel {
                title: "accuracy (top-1)",
                range: self.lowest_accuracy()..1.0,
                raw: |c| &c.raw_top1,
                thin: |c| &c.train_top1,
                thick: |c| &c.val_top1,
                legend: true,
                number: |v| format!("{:.0}%", 100.0 * v),
            },
            Panel {
                title: "learning rate",
                range: 0.0..top(rates),
                raw: |_| &[],
                thin: |c| &c.lr,
                thick: |_| &[],
                legend: false,
                number: |v| short(*v),
            },
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

    fn panel(&self, panel: &Panel<'_>, area: &Area<'_>) -> Drawn {
        let last = |c: &Curve| c.lr.last().map_or(0.0, |p| p.0).max(c.val_loss.last().map_or(0.0, |p| p.0));
        let epochs = self.0.iter().map(last).fold(0.0, f64::max).max(1e-9);
        let mut chart = ChartBuilder::on(area)
            .margin(px(18))
            .caption(panel.title, font(TITLE))
            .x_label_area_size(px(48))
            .y_label_area_size(px(84))
            .build_cartesian_2d(0.0..epochs * 1.01, panel.range.clone())?;
        chart
            .configure_mesh()
            .max_light_lines(0)
            .bold_line_style(stroke(GRID, 1.0))
            .axis_style(stroke(INK, 1.2))
            .set_all_tick_mark_size(px(5))
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
        let alone = self.0.len() == 1;
        for (n, run) in self.0.iter().enumerate() {
            let behind = stroke(tint(colour(n), if alone { 0.28 } else { 0.16 }), 1.2);
            chart.draw_series(line(shown((panel.raw)(run)), behind))?;
        }
        for (n, run) in self.0.iter().enumerate() {
            let (thin, thick) = (shown((panel.thin)(run)), shown((panel.thick)(run)));
            let pale = thick.len() > 1 && !alone;
            let style = stroke(if pale { tint(colour(n), 0.55) } else { colour(n) }, 2.0);
            let drawn = chart.draw_series(line(thin, style))?;
            if panel.legend && alone {
                drawn.label("training").legend(key(style, 28));
            }
            // A single run has a second colour for its validation curve.
            let strong = if alone { colour(1) } else { colour(n) };
            let style = stroke(strong, 2.6);
            let drawn = chart.draw_series(line(thick.iter().copied(), style))?;
            if panel.legend {
                let name = if alone { "validation".to_owned() } else { run.name.clone() };
                drawn.label(name).legend(key(style, 28));
            }
            if thick.len() <= 60 {
                chart.draw_series(thick.iter().map(|&p| Circle::new(p, px(4), strong.filled())))?;
            }
        }
        if panel.legend {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::LowerRight)
                .margin(px(14))
                .legend_area_size(px(38))
                .background_style(WHITE.mix(0.85))
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
