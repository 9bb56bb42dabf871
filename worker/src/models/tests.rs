use super::*;
use crate::device::ComputeDevice;
use crate::replica::ParamLayout;
use common::config::{AlexnetConfig, AlexnetPreset};

fn layout(preset: AlexnetPreset, width: f64, input: InputShape) -> ParamLayout {
    let config = ModelConfig::Alexnet(AlexnetConfig { preset, width, ..AlexnetConfig::default() });
    #[allow(clippy::unwrap_used)]
    let device = ComputeDevice::parse("auto").unwrap();
    ParamLayout::of(&Model::new(&config, input, &device.burn()))
}

const IMAGENET: InputShape = InputShape { channels: 3, image_size: 224, classes: 1000 };

#[test]
fn parameter_counts_are_those_of_the_literature() {
    assert_eq!(layout(AlexnetPreset::Original, 1.0, IMAGENET).total(), 62_378_344);
    assert_eq!(layout(AlexnetPreset::Torchvision, 1.0, IMAGENET).total(), 61_100_840);
    // A last convolution of 384 channels instead of 256, and the dense layer behind it.
    let wider = 128 * (384 * 9 + 1) + 128 * 36 * 4096;
    assert_eq!(layout(AlexnetPreset::Notes, 1.0, IMAGENET).total(), 62_378_344 + wider);
}

#[test]
fn torchvision_keeps_its_size_at_any_resolution() {
    let small = InputShape { image_size: 96, ..IMAGENET };
    assert_eq!(layout(AlexnetPreset::Torchvision, 1.0, small).total(), 61_100_840);
}

#[test]
fn layout_names_layers_and_leaves_no_gaps() {
    let layout = layout(AlexnetPreset::Notes, 0.5, InputShape { channels: 1, image_size: 63, classes: 10 });
    let names: Vec<&str> = layout.params().iter().map(|p| p.name()).collect();
    assert_eq!(names[..2], ["conv1.weight", "conv1.bias"]);
    assert_eq!(names[10..], ["dense1.weight", "dense1.bias", "dense2.weight", "dense2.bias", "dense3.weight", "dense3.bias"]);
    assert_eq!(layout.params()[0].shape(), [48, 1, 11, 11]);
    assert_eq!(layout.params()[10].shape(), [192, 2048]);
    let mut next = 0;
    for param in layout.params() {
        assert_eq!(param.range().start, next);
        assert_eq!(layout.param_at(next), Some(param));
        next = param.range().end;
        assert_eq!(layout.param_at(next - 1), Some(param));
    }
    assert_eq!((layout.total(), layout.param_at(next)), (next, None));
}

#[test]
fn initial_weights_follow_their_distribution_and_seed() {
    let layout = layout(AlexnetPreset::Notes, 0.25, InputShape { channels: 3, image_size: 63, classes: 10 });
    let weights = initial_weights(&layout, 1);
    assert_eq!(weights, initial_weights(&layout, 1));
    assert_ne!(weights, initial_weights(&layout, 2));
    for (name, expected) in
        [("conv2.weight", (2.0f64 / (24.0 * 25.0)).sqrt()), ("dense2.weight", (2.0f64 / 1024.0).sqrt()), ("dense3.weight", 0.01)]
    {
        #[allow(clippy::unwrap_used)]
        let values = &weights[layout.params().iter().find(|p| p.name() == name).unwrap().range()];
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let deviation = (values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n).sqrt();
        assert!((deviation / expected - 1.0).abs() < 0.03, "{name}: {deviation} is not {expected}");
        assert!(mean.abs() < 5.0 * expected / n.sqrt(), "{name}: mean {mean}");
    }
    assert!(layout.params().iter().filter(|p| p.name().ends_with("bias")).all(|p| weights[p.range()].iter().all(|&w| w == 0.0)));
}
