//! Rows of numbers with a label each, held in memory: what CSV files and
//! generated points have in common.

use bytes::Bytes;

use super::source::{Column, DatasetError, DatasetInfo, Sample, SampleFormat, SampleSource, Split, read_each};

impl Column {
    /// A feature that the model receives unscaled.
    pub fn plain(name: impl Into<String>) -> Self {
        Self { name: name.into(), mean: 0.0, deviation: 1.0 }
    }

    /// A raw value as the model receives it.
    pub fn scaled(&self, raw: f64) -> f32 {
        ((raw - self.mean) / self.deviation) as f32
    }

    /// The raw value of what the model receives.
    pub fn raw(&self, scaled: f32) -> f64 {
        f64::from(scaled) * self.deviation + self.mean
    }
}

/// The rows of one split.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// `[n, features]`, as the model receives them.
    pub(super) values: Vec<f32>,
    pub(super) labels: Vec<u32>,
    /// Each row's place in its file (its line), for messages.
    pub(super) places: Vec<u32>,
}

impl Rows {
    pub(super) fn push(&mut self, values: &[f32], label: u32, place: u32) {
        self.values.extend_from_slice(values);
        self.labels.push(label);
        self.places.push(place);
    }
}

/// A dataset of rows.
pub struct Table {
    info: DatasetInfo,
    columns: Vec<Column>,
    train: Rows,
    val: Rows,
    /// The unit of a row's place, for messages: "line" of a file, or "point".
    place: String,
}

impl Table {
    pub(super) fn new(columns: Vec<Column>, classes: Vec<String>, train: Rows, val: Rows, place: String) -> Self {
        let mut hasher = blake3::Hasher::new();
        for name in columns.iter().map(|c| &c.name).chain(&classes) {
            hasher.update(name.as_bytes()).update(b"\0");
        }
        for rows in [&train, &val] {
            hasher.update(&(rows.labels.len() as u64).to_le_bytes());
            rows.labels.iter().for_each(|l| _ = hasher.update(&l.to_le_bytes()));
            rows.values.iter().for_each(|v| _ = hasher.update(&v.to_le_bytes()));
        }
        let info = DatasetInfo {
            format: SampleFormat::Features { count: columns.len() as u32 },
            classes,
            train: train.labels.len() as u32,
            val: val.labels.len() as u32,
            fingerprint: hasher.finalize().into(),
        };
        Self { info, columns, train, val, place }
    }

    fn rows(&self, split: Split) -> &Rows {
        match split {
            Split::Train => &self.train,
            Split::Val => &self.val,
        }
    }
}

impl SampleSource for Table {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn read(&self, split: Split, ids: &[u32]) -> Result<Vec<Sample>, DatasetError> {
        let (rows, width) = (self.rows(split), self.columns.len());
        read_each(ids, self.info.len(split), |id| {
            let at = id as usize;
            let bytes: Vec<u8> = rows.values[at * width..(at + 1) * width].iter().flat_map(|v| v.to_le_bytes()).collect();
            Ok(Sample { id, label: rows.labels[at], bytes: Bytes::from(bytes) })
        })
    }

    fn size_hint(&self, _split: Split, _id: u32) -> u64 {
        4 * self.columns.len() as u64
    }

    fn name(&self, split: Split, id: u32) -> String {
        let place = self.rows(split).places.get(id as usize).copied().unwrap_or(id);
        format!("{} {place}", self.place)
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }
}
