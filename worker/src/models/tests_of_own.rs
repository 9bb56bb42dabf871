//! Models of one's own: what is found out about them, and which are refused.
#![allow(clippy::unwrap_used)]

use std::sync::Once;

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use common::config::{InputShape, Layer, LayerKind, ModelConfig, OwnConfig};
use serde::Deserialize;

use super::*;
use crate::data::Dropout;
use crate::engine::device::ComputeDevice;

pub(crate) const INPUT: InputShape = InputShape { channels: 3, image_size: 8, classes: 4 };

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    #[serde(default)]
    width: usize,
    /// Which rule it breaks.
    #[serde(default)]
    fault: String,
}

/// Its first layer normalises the pictures themselves, so that a test knows the statistics.
#[derive(Module, Debug)]
struct Normed {
    first: BatchNorm,
    conv: Conv2d,
    bn: BatchNorm,
    dense: Linear,
    between: BatchNorm,
    head: Linear,
    #[module(skip)]
    fault: String,
}

impl Normed {
    fn new(keys: Keys, input: InputShape, device: &Device) -> Result<Self, String> {
        let Keys { width, fault } = keys;
        if width == 0 {
            return Err("width = 0".to_owned());
        }
        assert!(fault != "assertion", "the module says no");
        let side = input.image_size - 2;
        let norm = |channels: usize| BatchNormConfig::new(channels).init(device);
        Ok(Self {
            first: norm(input.channels),
            conv: Conv2dConfig::new([input.channels, width], [3, 3]).init(device),
            bn: norm(width),
            dense: LinearConfig::new(width * side * side, 5).with_bias(false).init(device),
            between: norm(5),
            head: LinearConfig::new(5, if fault == "scores" { 9 } else { input.classes }).init(device),
            fault,
        })
    }
}

impl Network for Normed {
    fn features(&self, images: Tensor<4>, pass: &mut Pass) -> Tensor<2> {
        let x = if self.fault == "norm" { self.first.forward(images) } else { pass.batch_norm(&self.first, images) };
        let x = pass.convolution(&self.conv, x);
        let x = match &self.conv.bias {
            Some(bias) if self.fault == "sides" => pass.cut(x) + bias.val().sum().reshape([1, 1, 1, 1]),
            _ => x,
        };
        let x = relu(pass.batch_norm(&self.bn, x)).flatten(1, 3);
        if self.fault == "cut" { pass.dense(&self.dense, x) } else { x }
    }

    fn classifier(&self, features: Tensor<2>, pass: &mut Pass) -> Tensor<2> {
        let x = if self.fault == "cut" { features } else { pass.dense(&self.dense, features) };
        let x = pass.batch_norm(&self.between, x);
        let x = if self.fault == "twice" { pass.batch_norm(&self.between, x) } else { x };
        let x = if self.fault == "dropout" { pass.dropout(x, 0.5) } else { x };
        if self.fault == "dense" { self.head.forward(x) } else { pass.dense(&self.head, x) }
    }

    fn dropouts(&self) -> Vec<Dropout> {
        Vec::new()
    }
}

fn device() -> Device {
    ComputeDevice::any_cpu().unwrap().burn()
}

fn config(own: &str) -> ModelConfig {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| register([Own::new("normed", Normed::new)]).unwrap());
    ModelConfig::Own(OwnConfig { name: "normed".to_owned(), own: toml::from_str(own).unwrap(), ..OwnConfig::default() })
}

/// A model with batch normalisation, ready for a replica.
pub(crate) fn normed(width: usize, input: InputShape) -> ModelConfig {
    normed_with(&format!("width = {width}"), input)
}

/// The same with these keys.
pub(crate) fn normed_with(own: &str, input: InputShape) -> ModelConfig {
    let mut model = config(own);
    describe(&mut model, input, &device()).unwrap();
    model
}

fn refused(own: &str) -> String {
    describe(&mut config(own), INPUT, &device()).unwrap_err().to_string()
}

#[test]
fn a_model_is_described_by_a_pass_through_it() {
    let layers = normed(6, INPUT).layers(INPUT);
    let layer = |name: &str, kind, output: &[u64], parameters, statistics, macs| Layer {
        name: name.to_owned(),
        kind,
        output: output.to_vec(),
        parameters,
        statistics,
        macs,
    };
    let convolution = LayerKind::Convolution { kernel: 3, stride: 1, padding: 0 };
    let expected = [
        layer("first", LayerKind::BatchNorm, &[3, 8, 8], 6, 6, 0),
        layer("conv", convolution, &[6, 6, 6], 6 * 27 + 6, 0, 6 * 27 * 36),
        layer("bn", LayerKind::BatchNorm, &[6, 6, 6], 12, 12, 0),
        layer("dense", LayerKind::Dense { inputs: 216, units: 5 }, &[5], 1080, 0, 1080),
        layer("between", LayerKind::BatchNorm, &[5], 10, 10, 0),
        layer("head", LayerKind::Dense { inputs: 5, units: 4 }, &[4], 24, 0, 20),
    ];
    assert_eq!(layers, expected);
}

#[test]
fn running_statistics_follow_all_that_is_trained() {
    let model = normed(6, INPUT);
    let layout = ParamLayout::of_all(&Model::new(&model, INPUT, &device()).unwrap());
    let names: Vec<&str> = layout.params().iter().map(ParamSpec::name).collect();
    assert_eq!(names[..4], ["first.gamma", "first.beta", "conv.weight", "conv.bias"]);
    let running = ["first.running_mean", "first.running_var", "bn.running_mean", "bn.running_var", "between.running_mean"];
    assert_eq!(names[layout.parameters()..][..5], running);
    assert_eq!((layout.running(), layout.total() as u64), (28, model.values(INPUT)));
    assert_eq!(names[layout.feature_parameters()], "dense.weight");
    let weights = initial_weights(&layout, &model, 1);
    let of = |name: &str| layout.params().iter().find(|p| p.name() == name).map(|p| weights[p.range()].to_vec()).unwrap();
    assert_eq!((of("bn.gamma"), of("bn.beta")), (vec![1.0; 6], vec![0.0; 6]));
    assert_eq!((of("bn.running_mean"), of("bn.running_var")), (vec![0.0; 6], vec![1.0; 6]));
    assert!(of("conv.weight").iter().all(|w| *w != 0.0));
}

#[test]
fn what_breaks_the_rules_is_refused_by_name() {
    for (own, words) in [
        ("width = 2\nfault = \"dense\"", "`head.weight` has two dimensions"),
        ("width = 2\nfault = \"norm\"", "`first` goes through Pass::batch_norm 0 times"),
        ("width = 2\nfault = \"twice\"", "`between` goes through Pass::batch_norm 2 times"),
        ("width = 2\nfault = \"cut\"", "`features` passes a dense layer"),
        ("width = 2\nfault = \"scores\"", "[1, 9] for one picture, which should be [1, 4]"),
        ("width = 2\nfault = \"dropout\"", "`dropouts` says []"),
        ("width = 2\nfault = \"assertion\"", "the module says no"),
        ("width = 0", "width = 0"),
        ("widht = 2", "unknown field `widht`"),
    ] {
        let said = refused(own);
        assert!(said.contains(words) && said.contains("`normed`"), "{own}: {said}");
    }
}

#[test]
fn a_worker_without_the_model_or_with_another_of_that_name_says_so() {
    let other = ModelConfig::Own(OwnConfig { name: "mine".to_owned(), ..OwnConfig::default() });
    config("");
    let said = Model::new(&other, INPUT, &device()).unwrap_err().to_string();
    assert!(said.contains("`mine`") && said.contains("has `normed`") && said.contains("--worker-binary"), "{said}");
    let ModelConfig::Own(mut own) = normed(6, INPUT) else { panic!("another model") };
    own.own.insert("width".to_owned(), 7.into());
    let said = Model::new(&ModelConfig::Own(own), INPUT, &device()).unwrap_err().to_string();
    assert!(said.contains("other layers"), "{said}");
    assert!(register([]).unwrap_err().contains("already"));
    let twice = || Own::new("a", Normed::new);
    assert!(register([twice(), twice()]).unwrap_err().contains("`a`"));
}

#[test]
fn a_description_is_for_one_input() {
    let ModelConfig::Own(own) = normed(6, INPUT) else { panic!("another model") };
    assert!(own.described_for(INPUT).is_ok());
    let other = InputShape { classes: 5, ..INPUT };
    assert!(own.described_for(other).unwrap_err().contains("4 classes, and the data gives 3 channels of 8 x 8 and 5 classes"));
    let none = OwnConfig { described: None, ..own.clone() };
    assert!(none.described_for(INPUT).unwrap_err().contains("--worker-binary"));
    // Through the file in the run directory.
    let model = ModelConfig::Own(own);
    let text = toml::to_string(&model).unwrap();
    assert_eq!(toml::from_str::<ModelConfig>(&text).unwrap(), model);
}

/// The way past libtorch's fault gives what burn's own layer gives.
#[test]
fn a_convolution_of_1x1_that_strides_is_what_it_says() {
    let device = device();
    for (size, stride) in [(8, 2), (9, 2), (9, 3), (7, 1)] {
        let layer = Conv2dConfig::new([4, 8], [1, 1]).with_stride([stride, stride]).init(&device);
        let images = Tensor::<1>::from_floats(&(0..4 * size * size).map(|n| (n * 37 % 101) as f32).collect::<Vec<_>>()[..], &device);
        let images = images.reshape([1, 4, size, size]);
        let found = Pass::evaluate().convolution(&layer, images.clone());
        let expected = layer.forward(images);
        assert_eq!(found.dims(), expected.dims());
        let apart = (found - expected).abs().max().into_scalar::<f32>();
        assert!(apart < 1e-4, "{size} by {stride}: {apart}");
    }
}
