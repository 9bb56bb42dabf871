//! `worker data verify`: whether every sample of a dataset decodes, and whether those of a
//! pack are what was packed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use common::dataset::{SampleFormat, SampleSource, Split};
use common::digest::Digest;
use common::ui::counter;
use rayon::prelude::*;

use super::{AT_A_TIME, PACK, Packed, Shard, read_pack};
use crate::data::decode;

/// Problems that are named; of the others only the number is.
const NAMED: usize = 20;

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub samples: u64,
    pub bad: u64,
    /// The first of them: where and what.
    pub problems: Vec<String>,
}

impl Report {
    fn add(&mut self, problem: String) {
        self.bad += 1;
        if self.problems.len() < NAMED {
            self.problems.push(problem);
        }
    }

    pub fn text(&self) -> String {
        let mut text: String = self.problems.iter().map(|p| format!("{p}\n")).collect();
        if self.bad > self.problems.len() as u64 {
            text += &format!("... and {} more\n", self.bad - self.problems.len() as u64);
        }
        text + &format!("{} samples, {} bad", self.samples, self.bad)
    }
}

/// Whether `place` is a folder that `worker data pack` wrote.
pub fn is_pack(place: &Path) -> bool {
    place.join(PACK).is_file()
}

/// Compares every picture of a pack with the hash in its shard's index, and decodes it.
pub fn pack(place: &Path) -> Result<Report> {
    let pack = read_pack(place)?;
    let mut report = Report::default();
    let bar = counter("verifying", Some(pack.samples()));
    for part in &pack.parts {
        for number in 0..part.samples.div_ceil(pack.samples_per_shard.max(1)) as usize {
            let shard = Shard::new(place, &part.name, number);
            let Some(index) = shard.index()? else {
                report.add(format!(
                    "`{}` is missing: the pack is not whole, the same `worker data pack` goes on with it",
                    shard.index.display()
                ));
                continue;
            };
            match fs::metadata(&shard.tar).and_then(|_| File::open(&shard.tar)) {
                Ok(tar) => {
                    let found: Vec<Option<String>> = index.par_iter().map(|packed| differs(&tar, packed)).collect();
                    for problem in found.into_iter().flatten() {
                        report.add(format!("`{}`: {problem}", shard.tar.display()));
                    }
                }
                Err(e) => report.add(format!("could not read `{}`: {e}", shard.tar.display())),
            }
            report.samples += index.len() as u64;
            bar.inc(index.len() as u64);
        }
    }
    bar.finish_and_clear();
    Ok(report)
}

/// What is wrong with a packed picture.
fn differs(tar: &File, packed: &Packed) -> Option<String> {
    let mut bytes = vec![0; usize::try_from(packed.bytes).ok()?];
    if let Err(e) = tar.read_exact_at(&mut bytes, packed.offset) {
        return Some(format!("sample {} at byte {} cannot be read: {e}", packed.key, packed.offset));
    }
    if Digest::of(&bytes) != packed.blake3 {
        return Some(format!("sample {} at byte {} is not what was packed", packed.key, packed.offset));
    }
    decode(SampleFormat::Encoded, &bytes).err().map(|e| format!("sample {} {e}", packed.key))
}

/// Decodes every sample of a dataset.
pub fn samples(source: &Arc<dyn SampleSource>) -> Result<Report> {
    let info = source.info();
    let mut report = Report::default();
    let bar = counter("verifying", Some(u64::from(info.train) + u64::from(info.val)));
    for split in [Split::Train, Split::Val] {
        let ids: Vec<u32> = (0..info.len(split)).collect();
        for ids in ids.chunks(AT_A_TIME) {
            let outcomes: Vec<Option<String>> = ids.par_iter().map(|&id| unreadable(source, split, id)).collect();
            outcomes.into_iter().flatten().for_each(|problem| report.add(problem));
            report.samples += ids.len() as u64;
            bar.inc(ids.len() as u64);
        }
    }
    bar.finish_and_clear();
    Ok(report)
}

fn unreadable(source: &Arc<dyn SampleSource>, split: Split, id: u32) -> Option<String> {
    let sample = match source.read(split, &[id]).context("cannot be read") {
        Ok(samples) => samples.into_iter().next()?,
        Err(e) => return Some(format!("`{}` {e:#}", source.name(split, id))),
    };
    if matches!(source.info().format, SampleFormat::Features { .. }) {
        return None;
    }
    decode(source.info().format, &sample.bytes).err().map(|e| format!("`{}` {e}", source.name(split, id)))
}
