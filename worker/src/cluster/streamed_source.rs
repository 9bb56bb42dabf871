//! Samples streamed from the coordinator, for a worker without a local copy.
//!
//! Fetched samples stay in a bounded file on disk. An epoch visits every sample of a
//! shard once, so the cache keeps the samples that came first: evicting the oldest
//! would evict exactly those that the next epoch needs first.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Result, bail};
use bytes::Bytes;
use common::dataset::{DatasetError, DatasetInfo, Sample, SampleSource, Split};
use common::wire::messages::{BulkReply, BulkRequest, MAX_CONTROL, MAX_SAMPLE_BYTES, MAX_SAMPLES};
use common::wire::{STALLED, WireError, read_message, write_message};
use quinn::{Connection, ReadError, ReadExactError, RecvStream, VarInt};
use tokio::runtime::Handle;

use crate::cluster::bulk::Bulk;

/// How many requests in a row may bring nothing before the transfer fails.
pub(crate) const TRIES: usize = 20;

/// A dataset behind a bulk connection. Its methods block, so they must not be
/// called from the runtime's own threads.
pub struct StreamedSource {
    info: DatasetInfo,
    bulk: Bulk,
    runtime: Handle,
    cache: Cache,
}

impl StreamedSource {
    /// `cache_bytes` bounds the file in `cache_folder`; the file vanishes when the
    /// process ends.
    pub fn new(info: DatasetInfo, bulk: Bulk, runtime: Handle, cache_folder: &Path, cache_bytes: u64) -> std::io::Result<Self> {
        Ok(Self { info, bulk, runtime, cache: Cache::create(cache_folder, cache_bytes)? })
    }

    /// Fetches samples; waits while the coordinator is restarted.
    async fn fetch(&self, split: Split, ids: &[u32]) -> Result<Vec<Sample>, DatasetError> {
        let mut samples = Vec::with_capacity(ids.len());
        let mut in_vain = 0;
        while samples.len() < ids.len() {
            let left = &ids[samples.len()..];
            let got = self.bulk.with(|connection| self.fetch_over(connection, split, left)).await;
            let got = got.map_err(|e| DatasetError::Remote(format!("{e:#}")))?;
            in_vain = if got.is_empty() { in_vain + 1 } else { 0 };
            if in_vain > TRIES {
                return Err(DatasetError::Remote(format!("it ended {TRIES} requests because nothing of them was read here")));
            }
            samples.extend(got);
        }
        Ok(samples)
    }

    /// Requests samples, which arrive in groups. Returns fewer than all if the
    /// coordinator ended the request because this process did not read them in time (it
    /// was suspended, say).
    async fn fetch_over(&self, connection: Connection, split: Split, ids: &[u32]) -> Result<Vec<Sample>> {
        let (mut send, mut recv) = connection.open_bi().await?;
        write_message(&mut send, &BulkRequest::Samples { val: split == Split::Val, ids: ids.to_vec() }).await?;
        send.finish()?;
        let mut samples = Vec::with_capacity(ids.len());
        while samples.len() < ids.len() {
            match self.read_group(&mut recv, ids, &mut samples).await {
                Err(e) if has_stalled(&e) => break,
                other => other?,
            }
        }
        Ok(samples)
    }

    /// Reads the next group of `ids`, which follows the `samples` that have arrived
    /// already.
    async fn read_group(&self, recv: &mut RecvStream, ids: &[u32], samples: &mut Vec<Sample>) -> Result<()> {
        let left = &ids[samples.len()..];
        let (labels, lengths) = match read_message::<BulkReply>(recv, MAX_CONTROL).await? {
            Some(BulkReply::Samples { labels, lengths })
                if labels.len() == lengths.len() && !labels.is_empty() && labels.len() <= left.len() =>
            {
                (labels, lengths)
            }
            Some(BulkReply::Failed { reason }) => bail!(reason),
            _ => bail!("it answered with something else than the samples asked for"),
        };
        for ((&id, label), length) in left.iter().zip(labels).zip(lengths) {
            if length > MAX_SAMPLE_BYTES || label as usize >= self.info.classes.len() {
                bail!("sample {id} came with label {label} and {length} bytes, which cannot be");
            }
            let mut bytes = vec![0; length as usize];
            recv.read_exact(&mut bytes).await?;
            samples.push(Sample { id, label, bytes: Bytes::from(bytes) });
        }
        Ok(())
    }
}

/// Whether the coordinator has ended an answer because it was not read in time: the
/// request may be repeated.
pub(crate) fn has_stalled(error: &anyhow::Error) -> bool {
    let reset = |e: &ReadError| matches!(e, ReadError::Reset(code) if *code == VarInt::from_u32(STALLED));
    let in_sample = matches!(error.downcast_ref(), Some(ReadExactError::ReadError(e)) if reset(e));
    let in_message =
        matches!(error.downcast_ref(), Some(WireError::Io(e)) if e.get_ref().and_then(|e| e.downcast_ref()).is_some_and(reset));
    in_sample || in_message || error.downcast_ref().is_some_and(reset)
}

impl SampleSource for StreamedSource {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn read(&self, split: Split, ids: &[u32]) -> Result<Vec<Sample>, DatasetError> {
        let mut found: Vec<Option<Sample>> = ids.iter().map(|&id| self.cache.get(split, id)).collect();
        let missing: Vec<u32> = ids.iter().zip(&found).filter(|(_, s)| s.is_none()).map(|(&id, _)| id).collect();
        let mut fetched = Vec::with_capacity(missing.len());
        for some in missing.chunks(MAX_SAMPLES) {
            fetched.extend(self.runtime.block_on(self.fetch(split, some))?);
        }
        let mut fetched = fetched.into_iter();
        for slot in found.iter_mut().filter(|s| s.is_none()) {
            *slot = fetched.next().inspect(|sample| self.cache.put(split, sample));
        }
        Ok(found.into_iter().flatten().collect())
    }

    fn name(&self, split: Split, id: u32) -> String {
        format!("sample {id} of the coordinator's {} set", if split == Split::Val { "validation" } else { "training" })
    }
}

/// Samples in one unnamed file of bounded size.
struct Cache {
    file: File,
    limit: u64,
    state: Mutex<CacheState>,
}

#[derive(Default)]
struct CacheState {
    used: u64,
    places: HashMap<(Split, u32), Place>,
}

#[derive(Clone, Copy)]
struct Place {
    offset: u64,
    length: usize,
    label: u32,
}

impl Cache {
    fn create(folder: &Path, limit: u64) -> std::io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        Ok(Self { file: tempfile::tempfile_in(folder)?, limit, state: Mutex::default() })
    }

    fn get(&self, split: Split, id: u32) -> Option<Sample> {
        let place = *self.state.lock().ok()?.places.get(&(split, id))?;
        let mut bytes = vec![0; place.length];
        self.file.read_exact_at(&mut bytes, place.offset).ok()?;
        Some(Sample { id, label: place.label, bytes: Bytes::from(bytes) })
    }

    /// Keeps a sample if there is room. A write that fails costs speed, but does not
    /// fail the run.
    fn put(&self, split: Split, sample: &Sample) {
        let length = sample.bytes.len();
        let offset = {
            let Ok(mut state) = self.state.lock() else { return };
            if state.used + length as u64 > self.limit || state.places.contains_key(&(split, sample.id)) {
                return;
            }
            let offset = state.used;
            state.used += length as u64;
            offset
        };
        if let Err(e) = self.file.write_all_at(&sample.bytes, offset) {
            tracing::debug!("could not keep a sample on disk: {e}");
        } else if let Ok(mut state) = self.state.lock() {
            state.places.insert((split, sample.id), Place { offset, length, label: sample.label });
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sample(id: u32, length: usize) -> Sample {
        Sample { id, label: id % 3, bytes: Bytes::from(vec![id as u8; length]) }
    }

    #[test]
    fn an_answer_that_was_reset_for_not_being_read_is_told_from_others() {
        let reset = |code: u32| ReadError::Reset(VarInt::from_u32(code));
        let in_message = |code| anyhow::Error::from(WireError::Io(reset(code).into()));
        let in_sample = |code| anyhow::Error::from(ReadExactError::ReadError(reset(code)));
        assert!(has_stalled(&in_message(STALLED)) && has_stalled(&in_sample(STALLED)));
        assert!(has_stalled(&anyhow::Error::from(reset(STALLED)).context("the model").context("a checkpoint")));
        assert!(!has_stalled(&in_message(STALLED + 1)) && !has_stalled(&in_sample(STALLED + 1)));
        assert!(!has_stalled(&anyhow::anyhow!("else")) && !has_stalled(&ReadExactError::FinishedEarly(3).into()));
    }

    #[test]
    fn the_cache_returns_what_it_was_given_and_keeps_to_its_limit() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::create(folder.path(), 250).unwrap();
        for id in 0..4 {
            cache.put(Split::Train, &sample(id, 100));
        }
        assert_eq!(cache.get(Split::Train, 0), Some(sample(0, 100)));
        assert_eq!(cache.get(Split::Train, 1), Some(sample(1, 100)));
        assert_eq!(cache.get(Split::Train, 2), None);
        assert_eq!(cache.get(Split::Val, 0), None);
        cache.put(Split::Val, &sample(9, 50));
        assert_eq!(cache.get(Split::Val, 9), Some(sample(9, 50)));
        assert!(cache.file.metadata().unwrap().len() <= 250);
    }
}
