//! The progress of a run: a bar on a terminal, a line every few seconds elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::screen;
use crate::run_dir::{Evaluation, StepMetrics};

/// How often a plain line is printed.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// Steps over which the bar's figures are averaged.
const SMOOTH: f64 = 0.1;

/// Shows a run's steps to whoever watches.
pub struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
    total: u64,
    epochs: u64,
    smoothed: Option<Smoothed>,
    last_line: Option<Instant>,
    last_eval: Option<f64>,
}

/// Running averages of what one step reports.
struct Smoothed {
    loss: f64,
    top1: f64,
    step_ms: f64,
    images: f64,
    data_ms: f64,
    reduce_ms: f64,
}

impl Progress {
    /// `total` steps in `epochs` epochs, of which `done` steps are committed.
    pub fn new(quiet: bool, total: u64, epochs: u64, done: u64) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = screen().add(ProgressBar::new(total));
            if let Ok(style) = ProgressStyle::with_template("{elapsed_precise} [{bar:24.green/dim}] step {pos}/{len} ~{eta} {wide_msg}") {
                bar.set_style(style.progress_chars("━╸ "));
            }
            bar.set_position(done);
            bar.reset_eta();
            bar
        });
        Self { bar, quiet, total, epochs, smoothed: None, last_line: None, last_eval: None }
    }

    /// A committed step.
    pub fn step(&mut self, m: &StepMetrics) {
        let s = self.smoothed.get_or_insert(Smoothed {
            loss: m.loss,
            top1: m.top1,
            step_ms: m.step_ms,
            images: m.samples as f64,
            data_ms: m.data_wait_ms,
            reduce_ms: m.all_reduce_exposed_ms,
        });
        for (average, now) in [
            (&mut s.loss, m.loss),
            (&mut s.top1, m.top1),
            (&mut s.step_ms, m.step_ms),
            (&mut s.images, m.samples as f64),
            (&mut s.data_ms, m.data_wait_ms),
            (&mut s.reduce_ms, m.all_reduce_exposed_ms),
        ] {
            *average += SMOOTH * (now - *average);
        }
        let text = format!(
            "epoch {}/{}  loss {:.3}  top1 {:.1}%{}  {:.1} images/s  waiting: data {:.0}% gradients {:.0}%",
            m.epoch + 1,
            self.epochs,
            s.loss,
            100.0 * s.top1,
            self.last_eval.map(|v| format!("  val {:.1}%", 100.0 * v)).unwrap_or_default(),
            1000.0 * s.images / s.step_ms.max(1e-9),
            100.0 * s.data_ms / s.step_ms.max(1e-9),
            100.0 * s.reduce_ms / s.step_ms.max(1e-9),
        );
        if let Some(bar) = &self.bar {
            bar.set_position(m.step + 1);
            bar.set_message(text);
        } else if !self.quiet && (m.step + 1 == self.total || self.last_line.is_none_or(|t| t.elapsed() >= PLAIN_EVERY)) {
            self.last_line = Some(Instant::now());
            eprintln!("step {}/{}  {text}", m.step + 1, self.total);
        }
    }

    /// A finished evaluation.
    pub fn evaluation(&mut self, e: &Evaluation) {
        self.last_eval = Some(e.top1);
        self.say(&format!(
            "epoch {}: validation loss {:.4}, top-1 {:.2}%, top-5 {:.2}% of {} samples",
            e.epoch,
            e.loss,
            100.0 * e.top1,
            100.0 * e.top5,
            e.samples
        ));
    }

    /// A line above the bar.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            screen().suspend(|| eprintln!("{text}"));
        }
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A bar for work that counts items (files read, bytes fetched): hidden where
/// there is no terminal.
pub fn counter(label: &str, total: Option<u64>) -> ProgressBar {
    let bar = screen().add(match total {
        Some(n) => ProgressBar::new(n),
        None => ProgressBar::new_spinner(),
    });
    let template = if total.is_some() { "{msg} [{bar:24.green/dim}] {pos}/{len} {per_sec}" } else { "{spinner} {msg} {pos} {per_sec}" };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸ "));
    }
    bar.set_message(label.to_owned());
    bar
}

/// `95 s` as `1 min 35 s`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, _) => format!("{seconds:.1} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

/// `1234567` as `1,234,567`.
pub fn group(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, d) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(d);
    }
    out
}

/// Shows how far the indexing of a dataset is.
pub fn index_progress(quiet: bool) -> impl Fn(crate::dataset::Progress) {
    let bar = if quiet { ProgressBar::hidden() } else { counter("indexing", None) };
    let cleanup = ClearOnDrop(bar);
    move |progress| cleanup.0.set_position(progress.files)
}

struct ClearOnDrop(ProgressBar);

impl Drop for ClearOnDrop {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::group;

    #[test]
    fn digits_are_grouped_by_three() {
        assert_eq!([group(7), group(999), group(1000), group(61_100_840)], ["7", "999", "1,000", "61,100,840"]);
    }
}
