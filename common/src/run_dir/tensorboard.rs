//! The record of a run as TensorBoard reads it: `events.out.tfevents.*`, a file for each
//! start of the run, with scalars of every step and evaluation, pictures of what is trained
//! on and of what comes of it, and the config's values as hyper-parameters. Its steps are steps that are done: the first one is 1, as an evaluation
//! after it. It is made from what metrics.jsonl has too: nothing reads it back, and
//! one that cannot be written is given up with a warning.
//!
//! The format is TensorFlow's: records of `event.proto`, each with its length and CRC-32C
//! checksums (tensorflow/core/lib/io/record_writer.h).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::metrics::{Evaluation, RunPicture, StepMetrics};

/// How long an event may wait in memory, and how many bytes of them.
const FLUSH_EVERY: Duration = Duration::from_secs(2);
const FLUSH_BYTES: usize = 1 << 20;

/// The plugin of hyper-parameters, and the tag under which it looks for those of a run.
const HPARAMS: &str = "hparams";
const SESSION_START: &str = "_hparams_/session_start_info";

/// What TensorFlow adds to a rotated checksum, so that one of checksums is none.
const MASK: u32 = 0xa282_ead8;

/// `event.proto`, `summary.proto` and the plugin's `plugin_data.proto`, of which these parts
/// are written.
mod messages {
    use std::collections::BTreeMap;

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Event {
        /// Seconds since 1970.
        #[prost(double, tag = "1")]
        pub wall_time: f64,
        #[prost(int64, tag = "2")]
        pub step: i64,
        #[prost(string, optional, tag = "3")]
        pub file_version: Option<String>,
        #[prost(message, optional, tag = "5")]
        pub summary: Option<Summary>,
        #[prost(message, optional, tag = "7")]
        pub session_log: Option<SessionLog>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct SessionLog {
        /// 1: what was recorded of the event's step and later ones is void.
        #[prost(int32, tag = "1")]
        pub status: i32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Summary {
        #[prost(message, repeated, tag = "1")]
        pub value: Vec<Value>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Value {
        #[prost(string, tag = "1")]
        pub tag: String,
        #[prost(float, optional, tag = "2")]
        pub simple_value: Option<f32>,
        #[prost(message, optional, tag = "4")]
        pub image: Option<Image>,
        #[prost(message, optional, tag = "9")]
        pub metadata: Option<Metadata>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Image {
        #[prost(int32, tag = "1")]
        pub height: i32,
        #[prost(int32, tag = "2")]
        pub width: i32,
        /// 3: RGB.
        #[prost(int32, tag = "3")]
        pub colorspace: i32,
        #[prost(bytes = "vec", tag = "4")]
        pub encoded_image_string: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Metadata {
        #[prost(message, optional, tag = "1")]
        pub plugin_data: Option<PluginData>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct PluginData {
        #[prost(string, tag = "1")]
        pub plugin_name: String,
        #[prost(bytes = "vec", tag = "2")]
        pub content: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct HParamsPluginData {
        #[prost(message, optional, tag = "3")]
        pub session_start_info: Option<SessionStartInfo>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct SessionStartInfo {
        #[prost(btree_map = "string, message", tag = "1")]
        pub hparams: BTreeMap<String, AnyValue>,
        #[prost(double, tag = "5")]
        pub start_time_secs: f64,
    }

    /// `google.protobuf.Value`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct AnyValue {
        #[prost(oneof = "Kind", tags = "2, 3, 4")]
        pub kind: Option<Kind>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum Kind {
        #[prost(double, tag = "2")]
        Number(f64),
        #[prost(string, tag = "3")]
        Text(String),
        #[prost(bool, tag = "4")]
        Truth(bool),
    }
}

use messages::{AnyValue, Event, HParamsPluginData, Image, Kind, Metadata, PluginData, SessionLog, SessionStartInfo, Summary, Value};

/// The events of a run. A file is made when there is something to write.
#[derive(Debug)]
pub(super) struct TensorBoard {
    folder: PathBuf,
    /// The config's values.
    values: BTreeMap<String, toml::Value>,
    /// What was recorded after so many steps does not count.
    void_from: Option<u64>,
    file: Option<File>,
    waiting: Vec<u8>,
    flushed: Instant,
    given_up: bool,
}

impl TensorBoard {
    pub(super) fn new(folder: &Path, values: BTreeMap<String, toml::Value>) -> Self {
        let (folder, waiting) = (folder.to_owned(), Vec::new());
        Self { folder, values, void_from: None, file: None, waiting, flushed: Instant::now(), given_up: false }
    }

    /// Says that the run goes on after so many steps, and that what it recorded of later ones
    /// is void.
    pub(super) fn goes_on_from(&mut self, step: u64) {
        self.void_from = Some(step);
    }

    pub(super) fn step(&mut self, metrics: &StepMetrics) {
        self.scalars(metrics.step + 1, &metrics.scalars());
    }

    pub(super) fn evaluation(&mut self, evaluation: &Evaluation) {
        self.scalars(evaluation.step, &evaluation.scalars());
        self.flush();
    }

    /// A picture that is no PNG file is left out.
    pub(super) fn picture(&mut self, picture: &RunPicture) {
        let Some((width, height)) = picture.size() else { return };
        let encoded_image_string = picture.png.clone();
        let image = Image { height: height as i32, width: width as i32, colorspace: 3, encoded_image_string };
        self.values(picture.step, vec![Value { tag: picture.shown.name().to_owned(), image: Some(image), ..Value::default() }]);
    }

    fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) {
        let value = |(tag, value): &(&str, f64)| Value { tag: (*tag).to_owned(), simple_value: Some(*value as f32), ..Value::default() };
        self.values(step, scalars.iter().map(value).collect());
    }

    fn values(&mut self, step: u64, value: Vec<Value>) {
        if self.given_up {
            return;
        }
        if self.file.is_none() && self.waiting.is_empty() {
            self.push(&Event { wall_time: now(), file_version: Some("brain.Event:2".to_owned()), ..Event::default() });
            let hparams = self.hyper_parameters();
            self.push(&hparams);
        }
        if let Some(from) = self.void_from.take() {
            self.push(&Event { wall_time: now(), step: from as i64 + 1, session_log: Some(SessionLog { status: 1 }), ..Event::default() });
        }
        self.push(&Event { wall_time: now(), step: step as i64, summary: Some(Summary { value }), ..Event::default() });
        if self.waiting.len() >= FLUSH_BYTES || self.flushed.elapsed() >= FLUSH_EVERY {
            self.flush();
        }
    }

    fn hyper_parameters(&self) -> Event {
        let hparams = self.values.iter().map(|(key, value)| (key.clone(), value_of(value))).collect();
        let info = SessionStartInfo { hparams, start_time_secs: now() };
        let content = HParamsPluginData { session_start_info: Some(info) }.encode_to_vec();
        let metadata = Metadata { plugin_data: Some(PluginData { plugin_name: HPARAMS.to_owned(), content }) };
        let value = Value { tag: SESSION_START.to_owned(), metadata: Some(metadata), ..Value::default() };
        Event { wall_time: now(), summary: Some(Summary { value: vec![value] }), ..Event::default() }
    }

    fn push(&mut self, event: &Event) {
        record(&event.encode_to_vec(), &mut self.waiting);
    }

    /// Writes what waits.
    pub(super) fn flush(&mut self) {
        self.flushed = Instant::now();
        if self.given_up || self.waiting.is_empty() {
            return;
        }
        if let Err(e) = self.write() {
            tracing::warn!("no events for TensorBoard are written any more in `{}`: {e}", self.folder.display());
            (self.given_up, self.file) = (true, None);
        }
        self.waiting.clear();
    }

    fn write(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let host = rustix::system::uname().nodename().to_string_lossy().replace('/', "-");
                let name = format!("events.out.tfevents.{:010}.{host}.{}", now() as u64, std::process::id());
                // A process that has written one within this second appends to it.
                let file = File::options().create(true).append(true).open(self.folder.join(name))?;
                self.file.insert(file)
            }
        };
        file.write_all(&self.waiting)
    }
}

impl Drop for TensorBoard {
    fn drop(&mut self) {
        self.flush();
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Appends a record: its length, the length's checksum, the content and its checksum.
fn record(content: &[u8], to: &mut Vec<u8>) {
    let length = (content.len() as u64).to_le_bytes();
    to.extend(length);
    to.extend(masked(&length).to_le_bytes());
    to.extend(content);
    to.extend(masked(content).to_le_bytes());
}

fn masked(content: &[u8]) -> u32 {
    crc32c::crc32c(content).rotate_right(15).wrapping_add(MASK)
}

/// A value of the config as the plugin takes it.
fn value_of(value: &toml::Value) -> AnyValue {
    let kind = match value {
        toml::Value::Integer(number) => Kind::Number(*number as f64),
        toml::Value::Float(number) => Kind::Number(*number),
        toml::Value::Boolean(truth) => Kind::Truth(*truth),
        toml::Value::String(text) => Kind::Text(text.clone()),
        other => Kind::Text(other.to_string()),
    };
    AnyValue { kind: Some(kind) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::metrics::Shown;
    use crate::run_dir::tests::{config, step};

    fn lossy(number: u64, loss: f64) -> StepMetrics {
        StepMetrics { loss, ..step(number) }
    }

    fn evaluation(step: u64, top1: f64) -> Evaluation {
        Evaluation { step, epoch: 0, loss: 1.0, top1, top5: 1.0, samples: 10 }
    }

    /// The events of all files of a folder, whose checksums must fit.
    fn events(folder: &Path) -> Vec<Event> {
        let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        let mut found = Vec::new();
        for file in files {
            let bytes = std::fs::read(file).unwrap();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
                let sum = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
                let content = &rest[12..12 + length];
                assert_eq!((sum(8), sum(12 + length)), (masked(&rest[..8]), masked(content)));
                found.push(Event::decode(content).unwrap());
                rest = &rest[16 + length..];
            }
        }
        found
    }

    #[test]
    fn steps_evaluations_and_the_config_are_events() {
        let dir = tempfile::tempdir().unwrap();
        let mut board = TensorBoard::new(dir.path(), config(&[]).values());
        board.step(&lossy(0, 2.5));
        board.evaluation(&evaluation(1, 0.5));
        board.goes_on_from(1);
        board.step(&lossy(1, f64::INFINITY));
        drop(board);
        let found = events(dir.path());
        assert_eq!(found.len(), 6);
        assert_eq!(found[0].file_version.as_deref(), Some("brain.Event:2"));
        let metadata = found[1].summary.as_ref().unwrap().value[0].metadata.clone().unwrap();
        let content = HParamsPluginData::decode(&metadata.plugin_data.unwrap().content[..]).unwrap();
        let hparams = content.session_start_info.unwrap().hparams;
        assert!(matches!(hparams["train.lr"].kind, Some(Kind::Number(lr)) if lr > 0.0));
        let scalar = |event: usize, tag: &str| {
            let value = found[event].summary.as_ref().unwrap().value.iter().find(|value| value.tag == tag).unwrap().simple_value;
            (found[event].step, value.unwrap())
        };
        assert_eq!(scalar(2, "train/loss"), (1, 2.5));
        assert_eq!(scalar(3, "val/top1"), (1, 0.5));
        assert_eq!((found[4].step, found[4].session_log.as_ref().unwrap().status), (2, 1));
        assert_eq!(scalar(5, "train/loss"), (2, f32::INFINITY));
    }

    #[test]
    fn pictures_are_events_and_what_is_no_picture_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let mut board = TensorBoard::new(dir.path(), BTreeMap::new());
        let png = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\x07\0\0\0\x05".to_vec();
        board.picture(&RunPicture { shown: Shown::Confusion, step: 4, png: b"none".to_vec() });
        board.picture(&RunPicture { shown: Shown::Confusion, step: 4, png: png.clone() });
        drop(board);
        let found = events(dir.path());
        let value = &found[2].summary.as_ref().unwrap().value[0];
        let image = value.image.as_ref().unwrap();
        assert_eq!((found.len(), found[2].step, value.tag.as_str()), (3, 4, "val/confusion"));
        assert_eq!((image.width, image.height, &image.encoded_image_string), (7, 5, &png));
    }

    #[test]
    fn a_folder_that_takes_no_file_ends_the_events_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let mut board = TensorBoard::new(&dir.path().join("gone"), BTreeMap::new());
        board.evaluation(&evaluation(1, 0.5));
        assert!(board.given_up);
        board.step(&lossy(1, 1.0));
        assert!(board.waiting.is_empty());
    }

    #[test]
    fn the_checksum_is_that_of_tensorflow() {
        // From the tests of TensorFlow's crc32c: 32 bytes of zeros.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(masked(&[0; 32]), 0x8a91_36aau32.rotate_right(15).wrapping_add(MASK));
    }
}
