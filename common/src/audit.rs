//! Proof of what a run trained on. Beside the gradient travels a checksum of the
//! samples that went into it; the record of every committed step holds the sum over all
//! ranks. So the proof needs no surviving worker: a worker may have died right after
//! its part of a step was used.
//!
//! With `train.audit` (always in reproducible mode) each worker also records the ids
//! themselves, so that the samples behind a wrong checksum can be found.
//!
//! It knows no file and no socket.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::plan::{Ownership, Plan};

/// What one worker put into one step: a line of audit.jsonl.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct TrainedSamples {
    pub generation: u64,
    pub step: u64,
    pub rank: u32,
    pub ids: Vec<u32>,
    /// Left out because they do not decode.
    pub skipped: Vec<u32>,
}

/// The start of a generation, as journal.jsonl has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerationStart {
    pub generation: u64,
    pub first_step: u64,
    /// Who owned which shards; `None` if the record does not make sense.
    pub ownership: Option<Ownership>,
}

/// A committed step, as metrics.jsonl has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    pub step: u64,
    pub samples: u64,
    /// The [`checksum`] of all its samples; `None` in the record of an older version.
    pub checksum: Option<u64>,
}

/// A 64-bit fingerprint of a sample: SplitMix64's finalizer (Steele, Lea and Flood,
/// "Fast splittable pseudorandom number generators", 2014).
fn fingerprint(id: u32) -> u64 {
    let mut z = (u64::from(id) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The sum of the samples' fingerprints, modulo 2^64. It is the same for any order and
/// any division into parts, and differs if a sample is missing or occurs twice, except
/// with probability 2^-64.
pub fn checksum(ids: &[u32]) -> u64 {
    ids.iter().fold(0, |sum: u64, &id| sum.wrapping_add(fingerprint(id)))
}

/// A deviation of the record from the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// None of these steps, from the first to the last, is recorded.
    NotRecorded { first: u64, last: u64 },
    /// The step is recorded twice.
    RecordedTwice { step: u64 },
    /// The record has no checksum of the step.
    NoChecksum { step: u64 },
    /// The step was trained on other samples than the plan's; the ids, as far as they
    /// are known.
    Samples { step: u64, missing: Vec<u32>, twice: Vec<u32>, foreign: Vec<u32> },
    /// All together trained on the plan's samples, and this rank says that its own were
    /// others than those of its shards.
    Owner { step: u64, rank: u32, missing: Vec<u32>, foreign: Vec<u32> },
    /// In one epoch, these samples were used more than once, or not at all.
    Epoch { epoch: u64, ids: Vec<u32> },
}

/// What an audit found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AuditReport {
    pub steps: u64,
    pub samples: u64,
    pub whole_epochs: u64,
    /// Samples that do not decode, as (step, id).
    pub skipped: Vec<(u64, u32)>,
    pub findings: Vec<Finding>,
}

/// Compares the record of the first `steps` steps with the plan. `starts` are the
/// generations, in order. `trained` may lack lines that died with their worker, and may
/// hold steps that were trained but never committed.
pub fn audit(plan: &Plan, steps: u64, committed: &[Committed], starts: &[GenerationStart], trained: &[TrainedSamples]) -> AuditReport {
    let mut record: BTreeMap<u64, Committed> = BTreeMap::new();
    let mut report = AuditReport { steps, ..AuditReport::default() };
    for line in committed.iter().filter(|line| line.step < steps) {
        if record.insert(line.step, *line).is_some() {
            report.findings.push(Finding::RecordedTwice { step: line.step });
        }
    }
    let mut reported: BTreeMap<u64, BTreeMap<u32, &TrainedSamples>> = BTreeMap::new();
    for line in trained.iter().filter(|t| t.generation == number(committed_in(starts, t.step))) {
        // A later line of a rank does not replace its first one.
        reported.entry(line.step).or_default().entry(line.rank).or_insert(line);
    }
    let mut next = 0;
    for &step in record.keys().chain([&steps]) {
        if next < step {
            report.findings.push(Finding::NotRecorded { first: next, last: step - 1 });
        }
        next = step.saturating_add(1);
    }
    // Checks only recorded steps: a damaged line may claim any step.
    let per_epoch = plan.steps_per_epoch();
    let epochs: BTreeSet<u64> = record.keys().map(|step| step / per_epoch).collect();
    for epoch in epochs {
        let orders: Vec<Vec<u32>> = (0..plan.shards()).map(|shard| plan.shard_order(epoch, shard)).collect();
        let mut used = vec![0u32; plan.samples() as usize];
        let lines = record.range(epoch * per_epoch..).take_while(|(step, _)| *step / per_epoch == epoch);
        let mut recorded = 0;
        for (&step, line) in lines {
            let at = plan.position(step).step_in_epoch;
            let planned: Vec<&[u32]> = (0..).zip(&orders).map(|(shard, order)| &order[plan.span(at, shard)]).collect();
            planned.iter().copied().flatten().for_each(|&id| used[id as usize] += 1);
            let nothing = BTreeMap::new();
            let reported = reported.get(&step).unwrap_or(&nothing);
            if check_step(&mut report, step, &planned.concat(), line, reported)
                && let Some(ownership) = committed_in(starts, step).and_then(|start| start.ownership.as_ref())
            {
                report.findings.extend(reported.values().filter_map(|trained| check_owner(ownership, &planned, trained)));
            }
            recorded += 1;
        }
        if recorded == per_epoch {
            report.whole_epochs += 1;
            let wrong: Vec<u32> = (0..).zip(&used).filter(|&(_, &n)| n != 1).map(|(id, _)| id).collect();
            if !wrong.is_empty() {
                report.findings.push(Finding::Epoch { epoch, ids: wrong });
            }
        }
    }
    report
}

/// The generation in which a step was committed: the last one that started at or before
/// it, since a later start at or before it would have undone it.
fn committed_in(starts: &[GenerationStart], step: u64) -> Option<&GenerationStart> {
    starts.iter().rev().find(|start| start.first_step <= step)
}

/// Its number; 0 before the first.
fn number(start: Option<&GenerationStart>) -> u64 {
    start.map_or(0, |start| start.generation)
}

/// What one rank says that it trained on, against the shards that it owned. `planned` has
/// the samples of each shard.
fn check_owner(ownership: &Ownership, planned: &[&[u32]], trained: &TrainedSamples) -> Option<Finding> {
    let own = ownership.range(trained.rank);
    let wanted: BTreeSet<u32> = planned.get(own.start as usize..own.end as usize).unwrap_or_default().concat().into_iter().collect();
    let taken: BTreeSet<u32> = trained.ids.iter().chain(&trained.skipped).copied().collect();
    let (missing, foreign) = (wanted.difference(&taken).copied().collect(), taken.difference(&wanted).copied().collect());
    (wanted != taken).then_some(Finding::Owner { step: trained.step, rank: trained.rank, missing, foreign })
}

/// Whether the step was trained on the plan's samples.
fn check_step(report: &mut AuditReport, step: u64, planned: &[u32], line: &Committed, reported: &BTreeMap<u32, &TrainedSamples>) -> bool {
    report.samples += line.samples;
    let skipped: BTreeSet<u32> = reported.values().flat_map(|t| t.skipped.iter().copied()).collect();
    report.skipped.extend(skipped.iter().map(|&id| (step, id)));
    let expected: Vec<u32> = planned.iter().copied().filter(|id| !skipped.contains(id)).collect();
    let Some(found) = line.checksum else {
        report.findings.push(Finding::NoChecksum { step });
        return false;
    };
    if found == checksum(&expected) && line.samples == expected.len() as u64 {
        return true;
    }
    let mut seen: BTreeMap<u32, u32> = BTreeMap::new();
    reported.values().flat_map(|t| &t.ids).for_each(|&id| *seen.entry(id).or_default() += 1);
    let wanted: BTreeSet<u32> = expected.into_iter().collect();
    report.findings.push(Finding::Samples {
        step,
        missing: wanted.iter().copied().filter(|id| !seen.contains_key(id)).collect(),
        twice: seen.iter().filter(|(_, n)| **n > 1).map(|(&id, _)| id).collect(),
        foreign: seen.keys().copied().filter(|id| !wanted.contains(id)).collect(),
    });
    false
}

#[cfg(test)]
mod tests;
