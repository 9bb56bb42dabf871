//! `worker summary`: what a model consists of, and how two compare. Computed
//! from the config: nothing is trained or allocated.

use std::fmt::Write as _;

use common::config::{Config, DataSource, InputShape, Layer, LayerKind, ModelConfig, Precision};
use common::dataset;
use indicatif::HumanCount;

/// The input that a model is assumed to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssumedInput {
    pub input: InputShape,
    /// What was assumed because the data is not available.
    pub note: Option<String>,
}

/// Classes of ImageNet, and of MNIST and CIFAR-10, for configs whose data is not available.
const IMAGENET_CLASSES: usize = 1000;
const SMALL_CLASSES: usize = 10;

/// The model's input: from the data if it is available, else what such data usually
/// has. `classes` overrides the number of classes.
pub fn input_of(config: &Config, classes: Option<usize>) -> AssumedInput {
    let size = config.data.pixels.image_size;
    let (mut input, mut note) = match dataset::open(&config.data, config.seed, &|_| {}) {
        Ok(source) => (source.info().input(size), None),
        Err(_) => {
            let (channels, classes) = match &config.data.source {
                DataSource::Idx { .. } => (1, SMALL_CLASSES),
                DataSource::Cifar { .. } => (3, SMALL_CLASSES),
                _ => (3, IMAGENET_CLASSES),
            };
            let input = InputShape { channels, image_size: size as usize, classes };
            (input, Some(format!("the data is not here: {channels} channels and {classes} classes are assumed (--classes says otherwise)")))
        }
    };
    if let Some(classes) = classes {
        input.classes = classes;
        note = None;
    }
    AssumedInput { input, note }
}

/// Sums over the layers of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerTotals {
    pub parameters: u64,
    pub convolution_parameters: u64,
    pub macs: u64,
    pub convolution_macs: u64,
    /// Output values of all layers for one sample.
    pub activations: u64,
}

impl LayerTotals {
    pub fn of(layers: &[Layer]) -> Self {
        let sum = |value: fn(&Layer) -> u64| layers.iter().map(value).sum();
        let convolutions =
            |value: fn(&Layer) -> u64| layers.iter().filter(|l| matches!(l.kind, LayerKind::Convolution { .. })).map(value).sum();
        Self {
            parameters: sum(|l| l.parameters),
            convolution_parameters: convolutions(|l| l.parameters),
            macs: sum(|l| l.macs),
            convolution_macs: convolutions(|l| l.macs),
            activations: sum(Layer::activations),
        }
    }
}

/// The table of one model.
pub fn table(config: &Config, assumed: &AssumedInput) -> String {
    let input = assumed.input;
    let layers = config.model.layers(input);
    let totals = LayerTotals::of(&layers);
    let shape = |output: &[u64]| output.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ");
    let mut text =
        format!("{} ({}), input {} x {} x {}\n", config.name, config.model.kind(), input.channels, input.image_size, input.image_size);
    if let Some(note) = &assumed.note {
        let _ = writeln!(text, "{note}");
    }
    let _ =
        writeln!(text, "\n{:<11} {:<36} {:>15} {:>14} {:>16} {:>12}", "layer", "", "output", "parameters", "multiply-adds", "activations");
    for l in &layers {
        let _ = writeln!(
            text,
            "{:<11} {:<36} {:>15} {:>14} {:>16} {:>12}",
            l.name,
            l.kind,
            shape(&l.output),
            HumanCount(l.parameters).to_string(),
            HumanCount(l.macs).to_string(),
            HumanCount(l.activations()).to_string()
        );
    }
    let _ = writeln!(
        text,
        "{:<11} {:<36} {:>15} {:>14} {:>16} {:>12}\n",
        "in all",
        "",
        "",
        HumanCount(totals.parameters).to_string(),
        HumanCount(totals.macs).to_string(),
        HumanCount(totals.activations).to_string()
    );
    let batch = u64::from(config.train.global_batch);
    let width = if config.train.precision == Precision::Bf16 { 2 } else { 4 };
    let _ = writeln!(text, "weights               {:>12} as f32", bytes(4 * totals.parameters));
    let _ = writeln!(
        text,
        "activations           {:>12} a sample, {} a batch of {batch}",
        bytes(width * totals.activations),
        bytes(width * totals.activations * batch)
    );
    let _ = writeln!(
        text,
        "forward pass          {:>12}FLOP a sample; a training step about three times that",
        scaled(2.0 * totals.macs as f64)
    );
    text
}

/// Two models side by side, with the ratio of the second to the first.
pub fn compare(first: (&Config, &AssumedInput), second: (&Config, &AssumedInput)) -> String {
    let totals = |(config, assumed): (&Config, &AssumedInput)| LayerTotals::of(&config.model.layers(assumed.input));
    let (a, b) = (totals(first), totals(second));
    let mut text = format!("{:<26} {:>18} {:>18} {:>12}\n", "", first.0.name, second.0.name, "ratio");
    type Row = (&'static str, fn(&LayerTotals) -> u64);
    let rows: [Row; 6] = [
        ("parameters", |t| t.parameters),
        ("  in convolutions", |t| t.convolution_parameters),
        ("  in dense layers", |t| t.parameters - t.convolution_parameters),
        ("multiply-adds a sample", |t| t.macs),
        ("  in convolutions", |t| t.convolution_macs),
        ("activations a sample", |t| t.activations),
    ];
    for (name, value) in rows {
        let (x, y) = (value(&a), value(&b));
        let ratio = if x == 0 { "-".to_owned() } else { ratio(y as f64 / x as f64) };
        let _ = writeln!(text, "{name:<26} {:>18} {:>18} {ratio:>12}", HumanCount(x).to_string(), HumanCount(y).to_string());
    }
    for (which, assumed) in [first, second] {
        if let Some(note) = &assumed.note {
            let _ = writeln!(text, "{}: {note}", which.name);
        }
    }
    if let (ModelConfig::Lenet(_), ModelConfig::Alexnet(_)) = (&first.0.model, &second.0.model) {
        let parameters = b.parameters as f64 / a.parameters as f64;
        let compute = b.macs as f64 / a.macs as f64;
        let _ = writeln!(
            text,
            "\nThe course notes give AlexNet 10 times LeNet's parameters and 260 times its compute.\nCounted layer by layer it is {} times the parameters and {} times the compute.",
            ratio(parameters),
            ratio(compute)
        );
    }
    text
}

/// The size of a hidden layer of `hidden` units on a colour picture of `megapixels`,
/// compared with a convolution.
pub fn megapixels(megapixels: f64, hidden: u64, classes: u64) -> String {
    let inputs = (megapixels * 1e6).round() as u64 * 3;
    let first = inputs * hidden + hidden;
    let all = first + hidden * classes + classes;
    let convolution = 6 * 3 * 25 + 6;
    format!(
        "A picture of {megapixels} megapixels has {} values (red, green, blue).\n\
         An MLP with one hidden layer of {hidden} units and {classes} classes on it:\n  \
         parameters        {}, of which {:.4}% in the first layer\n  \
         weights           {} as f32\n  \
         while training    {} more: gradient and momentum of the same size each\n  \
         forward pass      {}FLOP a picture\n\
         LeNet's first convolution on the same picture, six 5x5 filters: {convolution} parameters, {} times fewer:\n\
         a filter is the same everywhere (translation invariance) and sees only its surroundings (locality).\n",
        HumanCount(inputs),
        HumanCount(all),
        100.0 * first as f64 / all as f64,
        bytes(4 * all),
        bytes(8 * all),
        scaled(2.0 * (all - hidden - classes) as f64),
        ratio(first as f64 / convolution as f64)
    )
}

fn ratio(value: f64) -> String {
    if value >= 100.0 { HumanCount(value.round() as u64).to_string() } else { format!("{value:.1}") }
}

fn bytes(n: u64) -> String {
    scaled(n as f64) + "B"
}

/// `1234567` as `1.23 M`.
fn scaled(value: f64) -> String {
    let units = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    match units.iter().find(|(unit, _)| value >= *unit) {
        Some((unit, name)) => format!("{:.3} {name}", value / unit),
        None => format!("{value} "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::config::{AlexnetConfig, LenetConfig};

    #[test]
    fn alexnet_and_lenet_compare_as_counted_by_hand() {
        let lenet =
            LayerTotals::of(&ModelConfig::Lenet(LenetConfig::default()).layers(InputShape { channels: 1, image_size: 28, classes: 10 }));
        // 6*25*28² + 16*150*10² + 400*120 + 120*84 + 84*10
        assert_eq!((lenet.parameters, lenet.macs), (61_706, 117_600 + 240_000 + 48_000 + 10_080 + 840));
        let input = InputShape { channels: 3, image_size: 224, classes: 1000 };
        let alexnet = LayerTotals::of(&ModelConfig::Alexnet(AlexnetConfig::default()).layers(input));
        let by_hand = 96 * 363 * 55 * 55
            + 256 * 96 * 25 * 27 * 27
            + (384 * 256 + 2 * 384 * 384) * 9 * 13 * 13
            + 384 * 36 * 4096
            + 4096 * 4096
            + 4_096_000;
        assert_eq!(alexnet.macs, by_hand);
    }

    #[test]
    fn the_question_of_twelve_megapixels_has_the_notes_answer() {
        let text = megapixels(12.0, 100, 2);
        assert!(text.contains("36,000,000 values") && text.contains("3,600,000,302") && text.contains("14.400 GB"), "{text}");
    }

    #[test]
    fn numbers_are_scaled() {
        assert_eq!([scaled(12.0), scaled(61_706.0), scaled(3.6e9)], ["12 ", "61.706 k", "3.600 G"]);
    }
}
