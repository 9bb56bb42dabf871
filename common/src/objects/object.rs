//! One object, read at offsets by any number of threads.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use object_store::GetOptions;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::blocks::{BLOCK, Blocks};
use super::client::{PATIENCE, PATIENCE_AT_OPENING, Place, in_order, start, tag, wait};
use super::error::ObjectError;

/// Requests that read ahead, at a time: fewer than there may be, so that others find a turn.
static AHEAD: Semaphore = Semaphore::const_new(24);

/// Objects that are opened at a time.
const OPENED_AT_ONCE: usize = 32;

/// An object of known size and content: one that is replaced meanwhile is an error.
#[derive(Debug)]
pub struct Object {
    place: Place,
    bytes: u64,
    tag: String,
    /// The tag is one that the server compares.
    e_tag: Option<String>,
    blocks: Option<Arc<Blocks>>,
}

/// Opens objects, in this order; many at a time.
pub fn open(urls: &[String]) -> Result<Vec<Object>, ObjectError> {
    let mut opened = Vec::with_capacity(urls.len());
    for urls in urls.chunks(OPENED_AT_ONCE) {
        let places: Vec<Place> = urls.iter().map(|url| Place::of(url, PATIENCE)).collect::<Result<_, _>>()?;
        let Some(first) = urls.first() else { break };
        let found = wait(first, async move {
            let mut heads = JoinSet::new();
            for (n, place) in places.into_iter().enumerate() {
                let asked = Place::of(&place.url, PATIENCE_AT_OPENING)?;
                heads.spawn(async move {
                    let options = GetOptions { head: true, ..GetOptions::default() };
                    let head = asked.store.get_opts(&asked.path, options).await.map_err(|e| asked.error("read", &e))?;
                    Ok((n, (place, head.meta)))
                });
            }
            in_order(heads).await
        })?;
        for (place, meta) in found {
            let tag = tag(&meta);
            let blocks = Blocks::open(&place.url, &tag, meta.size).map(Arc::new);
            opened.push(Object { place, bytes: meta.size, tag, e_tag: meta.e_tag, blocks });
        }
    }
    Ok(opened)
}

impl Object {
    pub fn url(&self) -> &str {
        &self.place.url
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What says that it is still the same object.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The blocks that hold a range.
    fn in_blocks(&self, wanted: &Range<u64>) -> Range<u64> {
        wanted.start / BLOCK * BLOCK..wanted.end.next_multiple_of(BLOCK).min(self.bytes)
    }

    fn part(&self, range: Range<u64>) -> Part {
        Part { place: self.place.clone(), range, tag: self.tag.clone(), e_tag: self.e_tag.clone() }
    }
}

/// A range of an object, to be fetched.
struct Part {
    place: Place,
    range: Range<u64>,
    tag: String,
    e_tag: Option<String>,
}

impl Part {
    /// As long as it should be, and of the object that was opened.
    async fn fetch(self) -> Result<Bytes, ObjectError> {
        let length = self.range.end - self.range.start;
        let options = GetOptions { range: Some(self.range.into()), if_match: self.e_tag, ..GetOptions::default() };
        let (meta, bytes) = self.place.fetch(options).await?;
        if tag(&meta) != self.tag || bytes.len() as u64 != length {
            return Err(ObjectError::Replaced { url: self.place.url });
        }
        Ok(bytes)
    }
}

/// Fetches ranges that will be read soon, as far as they are not kept here, and does not
/// wait for them. Where nothing is kept it does nothing, and a failure is left to the
/// reading that follows.
pub fn read_ahead(ranges: &[(&Object, Range<u64>)]) {
    for (object, wanted) in ranges {
        let Some(blocks) = object.blocks.as_ref().filter(|_| wanted.end <= object.bytes) else { continue };
        for gap in blocks.gaps(object.in_blocks(wanted)) {
            let (part, blocks) = (object.part(gap.clone()), Arc::clone(blocks));
            start(async move {
                let _turn = AHEAD.acquire().await;
                match part.fetch().await {
                    Ok(bytes) => blocks.write(gap.start, &bytes),
                    Err(e) => tracing::debug!("could not read ahead: {e}"),
                }
            });
        }
    }
}

/// A range to be read, rounded to blocks where they are kept.
struct Reading {
    /// What is read, as far as it is there.
    content: Vec<u8>,
    start: u64,
    wanted: Range<u64>,
}

/// Reads ranges of objects, many at a time; results are in the order of `ranges`.
///
/// # Errors
/// A range beyond its object's end, and any that cannot be read.
pub fn read(ranges: &[(&Object, Range<u64>)]) -> Result<Vec<Bytes>, ObjectError> {
    let mut readings = Vec::with_capacity(ranges.len());
    let mut missing: Vec<(usize, Range<u64>)> = Vec::new();
    for (n, (object, wanted)) in ranges.iter().enumerate() {
        if wanted.start > wanted.end || wanted.end > object.bytes {
            let cause = format!("bytes {} to {} are wanted of {}", wanted.start, wanted.end, object.bytes);
            return Err(ObjectError::Failed { action: "read", url: object.url().to_owned(), cause });
        }
        let span = if object.blocks.is_some() { object.in_blocks(wanted) } else { wanted.clone() };
        let mut content = vec![0; (span.end - span.start) as usize];
        match &object.blocks {
            Some(blocks) => missing.extend(blocks.read(span.start, &mut content).into_iter().map(|gap| (n, gap))),
            None if span.is_empty() => {}
            None => missing.push((n, span.clone())),
        }
        readings.push(Reading { content, start: span.start, wanted: wanted.clone() });
    }
    if !missing.is_empty() {
        for ((n, gap), bytes) in missing.iter().zip(fetch(ranges, &missing)?) {
            let (reading, object) = (&mut readings[*n], ranges[*n].0);
            reading.content[(gap.start - reading.start) as usize..(gap.end - reading.start) as usize].copy_from_slice(&bytes);
            if let Some(blocks) = &object.blocks {
                blocks.write(gap.start, &bytes);
            }
        }
    }
    let cut = |reading: Reading| {
        let from = (reading.wanted.start - reading.start) as usize;
        Bytes::from(reading.content).slice(from..from + (reading.wanted.end - reading.wanted.start) as usize)
    };
    Ok(readings.into_iter().map(cut).collect())
}

/// Fetches parts of the objects, many at a time.
fn fetch(ranges: &[(&Object, Range<u64>)], missing: &[(usize, Range<u64>)]) -> Result<Vec<Bytes>, ObjectError> {
    let first = missing.first().map_or("", |(n, _)| ranges[*n].0.url()).to_owned();
    let parts: Vec<Part> = missing.iter().map(|(n, gap)| ranges[*n].0.part(gap.clone())).collect();
    wait(&first, async move {
        let mut requests = JoinSet::new();
        for (n, part) in parts.into_iter().enumerate() {
            requests.spawn(async move { Ok((n, part.fetch().await?)) });
        }
        in_order(requests).await
    })
}
