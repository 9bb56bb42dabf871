//! The config that fits data and machine. Pure. The recipes are those of configs/, which
//! were tried.

use std::fmt::Write as _;

use common::dataset::{DatasetInfo, SampleFormat};

/// What is known of the data.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) name: String,
    /// `[data]`, as far as it says where the data is.
    pub(super) section: toml::Table,
    pub(super) info: DatasetInfo,
    /// Of pictures: the shorter side of most, in pixels.
    pub(super) side: Option<u32>,
    /// Whether the data was looked at, rather than assumed.
    pub(super) is_there: bool,
}

/// What decides how to train on a machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Machine {
    pub(super) cores: u32,
    pub(super) gpus: u32,
    /// Whether it computes faster in bf16.
    pub(super) bf16: bool,
}

impl Machine {
    /// Workers that `coordinator local` would start here: one for each GPU, else two.
    pub(super) fn workers(&self) -> u32 {
        if self.gpus > 0 { self.gpus } else { self.cores.clamp(1, 2) }
    }

    fn describe(&self) -> String {
        let count = |n: u32, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        if self.gpus > 0 { count(self.gpus, "GPU") } else { format!("{} and no GPU", count(self.cores, "core")) }
    }
}

/// The sides of pictures that AlexNet is given.
const SIDES: [u32; 6] = [64, 96, 128, 160, 192, 224];

/// The largest of them on a machine without a GPU, where 224 pixels take three times as long.
const LARGEST_ON_CPU: u32 = 128;

/// Below this side pictures are LeNet's: AlexNet's first convolution has a stride of 4.
const SMALL: u32 = 48;

/// A line of a config, and what it is for.
struct Line(String, &'static str);

/// The config as a commented text.
pub(super) fn config(found: &Found, machine: &Machine) -> String {
    let (info, section) = (&found.info, &found.section);
    let mut text = format!("# {}\n", about(found, machine));
    let _ = writeln!(text, "name = {}", quoted(&found.name));
    let mut add = |head: &str, lines: Vec<Line>| {
        let _ = writeln!(text, "\n[{head}]");
        for Line(line, comment) in lines {
            let _ = match comment {
                "" => writeln!(text, "{line}"),
                comment => writeln!(text, "{line:<28}# {comment}"),
            };
        }
    };
    let line = |text: &str, comment| Line(text.to_owned(), comment);
    let place = |(key, value): (&String, &toml::Value)| {
        let comment = match key.as_str() {
            "path" if !found.is_there => "put the data's place here",
            "val_fraction" => "of each class, since nothing is for validation by itself",
            "label" => "the column of classes",
            _ => "",
        };
        Line(format!("{key} = {value}"), comment)
    };
    let mut data: Vec<Line> = ["kind", "path"].iter().filter_map(|&key| section.get_key_value(key)).map(place).collect();
    data.extend(section.iter().filter(|(key, _)| !["kind", "path"].contains(&key.as_str())).map(place));
    let batch = batch(info, machine);
    let shards = shards(info, machine, batch);
    let run = |epochs: u32, lr: &str| {
        vec![
            Line(format!("epochs = {epochs}"), "passes over the training set"),
            Line(format!("global_batch = {batch}"), "samples of a step, over all workers"),
            Line(format!("shards = {shards}"), "the most workers; eight for each, so that faster ones own more"),
            Line(format!("lr = {lr}"), "lower it if the loss becomes NaN"),
            line("momentum = 0.9", ""),
        ]
    };
    let precision = |lines: &mut Vec<Line>| {
        let slow = "\"bf16\" where the processor has it is faster: see `worker doctor`";
        lines.push(if machine.bf16 {
            line("precision = \"bf16\"", "this machine computes it faster than f32")
        } else {
            line("precision = \"f32\"", slow)
        });
    };
    let kept = |lines: &mut Vec<Line>| lines.push(line("keep = \"best\"", "beside the newest checkpoints, that of the best evaluation"));
    match (info.format, found.side) {
        (SampleFormat::Features { .. }, _) => {
            add(
                "model",
                vec![
                    line("kind = \"mlp\"", ""),
                    line("hidden = [64, 64]", "units of each hidden layer"),
                    line("activation = \"relu\"", ""),
                ],
            );
            add("data", data);
            let mut train = run(100, "0.05");
            train.extend([
                line("weight_decay = 1e-4", ""),
                line("schedule = \"cosine\"", ""),
                line("eval_epochs = 10", "an evaluation after so many epochs"),
            ]);
            kept(&mut train);
            add("train", train);
        }
        (_, Some(side)) if side < SMALL => {
            add("model", vec![line("kind = \"lenet\"", ""), line("pool = \"max\"", ""), line("activation = \"relu\"", "")]);
            data.push(Line(format!("image_size = {}", side.max(12)), "as the pictures are"));
            add("data", data);
            let mut train = run(15, "0.05");
            train.extend([line("weight_decay = 5e-4", ""), line("schedule = \"cosine\"", ""), line("warmup_epochs = 1", "")]);
            kept(&mut train);
            add("train", train);
        }
        (_, side) => {
            let most = if machine.gpus > 0 { 224 } else { LARGEST_ON_CPU };
            let size = SIDES.into_iter().rfind(|&size| size <= most && size <= side.unwrap_or(most).max(SIDES[0])).unwrap_or(SIDES[0]);
            let narrow = machine.gpus == 0;
            let width = if narrow {
                line("width = 0.5", "half as many channels, for a CPU; 1 as published")
            } else {
                line("width = 1.0", "as published")
            };
            add("model", vec![line("kind = \"alexnet\"", ""), width, line("dropout = 0.5", "")]);
            data.push(Line(format!("image_size = {size}"), "larger is slower, and often better"));
            data.push(line("augment = [\"crop\", \"flip\"]", "of training pictures; leave out \"flip\" where sides matter"));
            data.push(line("crop_scale = [0.35, 1.0]", "how much of a picture a crop keeps"));
            if info.train >= 100_000 {
                data.push(line("on_corrupt = \"skip\"", "of so many pictures some are damaged"));
            }
            add("data", data);
            let epochs = match info.train {
                0..5_000 => 60,
                5_000..200_000 => 30,
                _ => 90,
            };
            let mut train = run(epochs, if batch >= 128 { "0.03" } else { "0.01" });
            train.extend([
                line("weight_decay = 5e-4", ""),
                line("schedule = \"cosine\"", ""),
                line("warmup_epochs = 2", ""),
                line("clip_norm = 5.0", ""),
                line("label_smoothing = 0.1", ""),
            ]);
            precision(&mut train);
            kept(&mut train);
            if machine.gpus > 0 {
                train.push(line("micro_batch = \"auto\"", "in parts, if a GPU's memory is too small for a batch"));
            }
            add("train", train);
            add("cluster", vec![line("wire = \"bf16\"", "half the bytes between workers")]);
        }
    }
    text
}

fn about(found: &Found, machine: &Machine) -> String {
    let info = &found.info;
    let data = match (info.format, found.side) {
        _ if !found.is_there => "data that is still to be put in place".to_owned(),
        (SampleFormat::Features { count }, _) => {
            format!("{} rows of {count} features in {} classes", info.train + info.val, info.classes.len())
        }
        (_, side) => {
            let size = side.map_or_else(String::new, |side| format!(" of about {side} pixels"));
            format!("{} training and {} validation pictures{size} in {} classes", info.train, info.val, info.classes.len())
        }
    };
    format!("For {data}, on {}.", machine.describe())
}

/// The samples of a step: a power of two, 32 steps an epoch at least where there are enough.
fn batch(info: &DatasetInfo, machine: &Machine) -> u32 {
    let usual = if machine.gpus > 0 && info.train >= 200_000 { 256 } else { 128 };
    let most = (info.train / 32).max(1);
    (1u32 << most.ilog2()).clamp(info.train.clamp(1, 8).next_power_of_two().min(8), usual)
}

/// Eight for each worker, of as many samples each as a step needs; a power of two, so that
/// they divide the batch.
fn shards(info: &DatasetInfo, machine: &Machine, batch: u32) -> u32 {
    let wanted = (8 * machine.workers()).next_power_of_two();
    let most = info.train.max(1);
    wanted.min(batch).min(1 << most.ilog2())
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}
