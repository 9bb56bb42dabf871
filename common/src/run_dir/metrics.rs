//! metrics.jsonl: one line for each step, one for each evaluation. JSON has no infinity
//! and no NaN: such a number is written as the string "inf", "-inf" or "nan".

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::error::{RunDirError, write_whole};
use super::lines::{self, Lines};
use crate::metrics::{Evaluation, StepMetrics};

/// How long a line may wait in memory.
const FLUSH_EVERY: Duration = Duration::from_millis(200);

#[derive(Serialize)]
struct EvaluationLine<'a> {
    eval: &'a Evaluation,
}

/// Either kind of line, reduced to what the order of steps needs.
#[derive(Deserialize)]
#[serde(untagged)]
enum Place {
    Step { step: u64 },
    Evaluation { eval: At },
}

#[derive(Deserialize)]
struct At {
    step: u64,
}

/// A whole line of either kind.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Line {
    Step(StepMetrics),
    Evaluation { eval: Evaluation },
}

/// All steps and evaluations of a metrics.jsonl, in their order.
pub(super) fn read(path: &Path) -> Result<(Vec<StepMetrics>, Vec<Evaluation>), RunDirError> {
    let (mut steps, mut evaluations) = (Vec::new(), Vec::new());
    for line in lines::parse(path)? {
        match line {
            Line::Step(step) => steps.push(step),
            Line::Evaluation { eval } => evaluations.push(eval),
        }
    }
    Ok((steps, evaluations))
}

#[derive(Debug)]
pub(super) struct Metrics {
    lines: Lines,
    flushed: Instant,
    next_step: u64,
    /// The steps after which an evaluation is recorded.
    evaluated: BTreeSet<u64>,
}

impl Metrics {
    /// Opens or creates the file; every whole line is kept.
    pub(super) fn open(path: &Path) -> Result<Self, RunDirError> {
        let mut metrics = Self { lines: Lines::open(path)?, flushed: Instant::now(), next_step: 0, evaluated: BTreeSet::new() };
        for place in lines::parse(path)? {
            match place {
                Place::Step { step } => metrics.next_step = metrics.next_step.max(step.saturating_add(1)),
                Place::Evaluation { eval } => {
                    metrics.evaluated.insert(eval.step);
                }
            }
        }
        Ok(metrics)
    }

    /// Removes the lines of `first_step` and later ones, which are about to be
    /// trained again.
    pub(super) fn cut(mut self, first_step: u64) -> Result<Self, RunDirError> {
        self.flush()?;
        let path = self.lines.path().to_owned();
        let bytes = lines::read(&path)?;
        // An evaluation at step s follows the commit of step s-1.
        let kept: Vec<&[u8]> = bytes
            .split_inclusive(|&b| b == b'\n')
            .filter(|line| match serde_json::from_slice(line) {
                Ok(Place::Step { step }) => step < first_step,
                Ok(Place::Evaluation { eval }) => eval.step <= first_step,
                Err(_) => false,
            })
            .collect();
        let kept = kept.concat();
        if kept.len() < bytes.len() {
            write_whole(&path, &kept)?;
        }
        Ok(Self { next_step: first_step, ..Self::open(&path)? })
    }

    pub(super) fn next_step(&self) -> u64 {
        self.next_step
    }

    /// The newest step after which there is an evaluation.
    pub(super) fn evaluated(&self) -> Option<u64> {
        self.evaluated.last().copied()
    }

    pub(super) fn has_evaluation(&self, step: u64) -> bool {
        self.evaluated.contains(&step)
    }

    pub(super) fn step(&mut self, metrics: &StepMetrics) -> Result<(), RunDirError> {
        if metrics.step < self.next_step {
            return Ok(());
        }
        self.next_step = metrics.step.saturating_add(1);
        self.lines.push(metrics);
        if self.flushed.elapsed() >= FLUSH_EVERY { self.flush() } else { Ok(()) }
    }

    pub(super) fn evaluation(&mut self, evaluation: &Evaluation) -> Result<(), RunDirError> {
        if !self.evaluated.insert(evaluation.step) {
            return Ok(());
        }
        self.lines.push(&EvaluationLine { eval: evaluation });
        self.flush()
    }

    pub(super) fn flush(&mut self) -> Result<(), RunDirError> {
        self.flushed = Instant::now();
        self.lines.flush()
    }

    pub(super) fn sync(&mut self) -> Result<(), RunDirError> {
        self.flushed = Instant::now();
        self.lines.sync()
    }
}
