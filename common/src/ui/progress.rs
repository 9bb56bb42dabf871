//! The progress of a run: a bar on a terminal, a line every few seconds elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::output::print_stderr;
use super::screen::screen;
use crate::metrics::Evaluation;
use crate::status::Status;

/// How often a plain line is printed.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// How often a bar's clock is drawn while nothing is counted.
const TICK: Duration = Duration::from_millis(500);

/// Shows the progress of a run's steps.
pub struct StepProgress {
    bar: Option<ProgressBar>,
    quiet: bool,
    last_line: Option<Instant>,
    /// What the bar says of the newest step.
    text: String,
}

impl StepProgress {
    /// For a run of `total` steps, of which `done` are committed.
    pub fn new(quiet: bool, total: u64, done: u64) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = screen().add(ProgressBar::new(total));
            if let Ok(style) = ProgressStyle::with_template("{elapsed_precise} [{bar:24.green/dim}] step {pos}/{len} ~{eta} {wide_msg}") {
                bar.set_style(style.progress_chars("━╸ "));
            }
            bar.set_position(done);
            bar.reset_eta();
            bar
        });
        Self { bar, quiet, last_line: None, text: String::new() }
    }

    /// Shows the current step. `evaluates`: an evaluation follows it.
    pub fn show(&mut self, status: &Status, evaluates: bool) {
        let (Some(m), Some(rates)) = (&status.step, &status.rates) else { return };
        let text = format!(
            "epoch {}/{}  loss {:.3}  top1 {:.1}%{}  {:.1} images/s  waiting: data {:.0}% gradients {:.0}%{}",
            m.epoch + 1,
            status.epochs,
            rates.loss,
            100.0 * rates.top1,
            status.evaluation.as_ref().map(|e| format!("  val {:.1}%", 100.0 * e.top1)).unwrap_or_default(),
            rates.images_per_second,
            100.0 * rates.data_wait,
            100.0 * rates.gradient_wait,
            status.unequal_shards().map(|shards| format!("  shards {shards}")).unwrap_or_default(),
        );
        if let Some(bar) = &self.bar {
            bar.set_position(m.step + 1);
            // An evaluation takes its time, and the bar's clock goes on meanwhile.
            if evaluates {
                bar.enable_steady_tick(TICK);
                bar.set_message(format!("evaluating  {text}"));
            } else {
                bar.disable_steady_tick();
                bar.set_message(text.clone());
            }
            self.text = text;
        } else if !self.quiet && (m.step + 1 == status.steps || self.last_line.is_none_or(|t| t.elapsed() >= PLAIN_EVERY)) {
            self.last_line = Some(Instant::now());
            print_stderr(&format!("step {}/{}  {text}", m.step + 1, status.steps));
        }
    }

    /// Shows how far an evaluation is, in samples.
    pub fn evaluating(&self, done: u64, of: u64) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("evaluating {done}/{of}  {}", self.text));
        }
    }

    /// Shows a finished evaluation.
    pub fn evaluation(&self, e: &Evaluation) {
        self.print(&format!(
            "epoch {}: validation loss {:.4}, top-1 {:.2}%, top-5 {:.2}% of {} samples",
            e.epoch,
            e.loss,
            100.0 * e.top1,
            100.0 * e.top5,
            e.samples
        ));
    }

    /// Prints a line above the bar.
    pub fn print(&self, text: &str) {
        if !self.quiet {
            print_stderr(text);
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

/// Shows that something is under way whose length nobody knows, until it is dropped; hidden
/// where there is no terminal.
pub fn busy(label: &str) -> impl Drop {
    let bar = screen().add(ProgressBar::new_spinner());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.set_message(label.to_owned());
    bar.enable_steady_tick(TICK);
    ClearOnDrop(bar)
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

/// Shows the progress of indexing a dataset.
pub fn index_progress(quiet: bool) -> impl Fn(crate::dataset::IndexProgress) {
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
