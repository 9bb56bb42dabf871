//! `coordinator audit`: shows from a run's record alone that each epoch used every
//! sample exactly once, or names what is wrong.

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use common::audit::{AuditReport, Committed, Finding, TrainedSamples, audit};
use common::dataset::{self, SampleSource, Split};
use common::recorder::plan;
use common::run_dir::{Event, RunView};

/// The most findings that are written out, and the most samples that are named in one.
const FINDINGS: usize = 20;
const NAMES: usize = 5;

/// Audits the run in `path`. Returns the report as text, or as an error if it is not clean.
pub fn run(path: &Path) -> Result<String> {
    let view = RunView::open(path)?;
    let plan = plan(view.config(), &view.data().info).map_err(|e| anyhow!(e))?;
    let (steps, _) = view.metrics()?;
    let committed: Vec<Committed> = steps
        .iter()
        .map(|m| Committed { step: m.step, samples: m.samples, checksum: u64::from_str_radix(&m.samples_checksum, 16).ok() })
        .collect();
    let trained: Vec<TrainedSamples> = view.trained()?;
    let last = committed.iter().map(|c| c.step.saturating_add(1)).max().unwrap_or(0);
    if last == 0 {
        bail!("the run in `{}` has no committed step on its record", path.display());
    }
    let events = view.events()?;
    let accepted = events.iter().filter_map(|event| match event {
        Event::DataAccepted { differences } => {
            Some(format!("the run went on with other data ({differences}): steps before that are held against the plan for the new data\n"))
        }
        _ => None,
    });
    let accepted: String = accepted.collect();
    let report = audit(&plan, last, &committed, &view.generations()?, &trained);
    // The data is needed only for the names of samples; without it their ids are shown.
    let source = dataset::open(&view.config().data, view.config().seed, &|_| {}).ok();
    let text = accepted + &describe(&report, !trained.is_empty(), &Names(source));
    if report.findings.is_empty() { Ok(text) } else { bail!("{text}the record of the run in `{}` is not clean", path.display()) }
}

fn describe(report: &AuditReport, samples_recorded: bool, names: &Names) -> String {
    let mut text = format!("{} steps, {} samples, {} whole epochs\n", report.steps, report.samples, report.whole_epochs);
    for (step, id) in report.skipped.iter().take(FINDINGS) {
        _ = writeln!(text, "step {step}: {} was left out, because it does not decode", names.of(*id));
    }
    if report.skipped.len() > FINDINGS {
        _ = writeln!(text, "... and {} more were left out", report.skipped.len() - FINDINGS);
    }
    for finding in report.findings.iter().take(FINDINGS) {
        _ = match finding {
            Finding::NotRecorded { first, last } if first == last => writeln!(text, "step {first}: is not on the record"),
            Finding::NotRecorded { first, last } => writeln!(text, "steps {first} to {last}: are not on the record"),
            Finding::RecordedTwice { step } => writeln!(text, "step {step}: is on the record twice"),
            Finding::NoChecksum { step } => writeln!(text, "step {step}: its samples have no checksum"),
            Finding::Samples { step, .. } if !samples_recorded => writeln!(
                text,
                "step {step}: was trained on other samples than the plan's; which ones only a run with --set train.audit=true can tell"
            ),
            Finding::Samples { step, missing, twice, foreign } => {
                let parts = [("not used", missing), ("used twice", twice), ("used and not planned", foreign)];
                let parts = parts.into_iter().filter(|(_, ids)| !ids.is_empty()).map(|(what, ids)| format!("{what}: {}", names.list(ids)));
                let parts: Vec<String> = parts.collect();
                writeln!(text, "step {step}: was trained on other samples than the plan's; {}", parts.join("; "))
            }
            Finding::Owner { step, rank, missing, foreign } => {
                let parts = [("its own and not named", missing), ("named and not its own", foreign)];
                let parts = parts.into_iter().filter(|(_, ids)| !ids.is_empty()).map(|(what, ids)| format!("{what}: {}", names.list(ids)));
                let parts: Vec<String> = parts.collect();
                writeln!(
                    text,
                    "step {step}: rank {rank} says that it trained on other samples than those of its shards; {}",
                    parts.join("; ")
                )
            }
            Finding::Epoch { epoch, ids } => writeln!(text, "epoch {epoch}: not used exactly once: {}", names.list(ids)),
        };
    }
    if report.findings.len() > FINDINGS {
        _ = writeln!(text, "... and {} more findings", report.findings.len() - FINDINGS);
    }
    if report.findings.is_empty() {
        text += "clean: every sample of every step was what the plan says, and every whole epoch used each sample exactly once";
        text += if report.skipped.is_empty() { "\n" } else { ", but for those left out\n" };
    }
    text
}

/// The names of samples.
struct Names(Option<Arc<dyn SampleSource>>);

impl Names {
    fn of(&self, id: u32) -> String {
        match &self.0 {
            Some(source) if id < source.info().train => format!("`{}` (sample {id})", source.name(Split::Train, id)),
            _ => format!("sample {id}"),
        }
    }

    fn list(&self, ids: &[u32]) -> String {
        let named: Vec<String> = ids.iter().take(NAMES).map(|&id| self.of(id)).collect();
        let more = ids.len().saturating_sub(NAMES);
        if more > 0 { format!("{} and {more} more", named.join(", ")) } else { named.join(", ") }
    }
}
