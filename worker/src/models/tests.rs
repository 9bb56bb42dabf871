use super::*;
use crate::engine::device::ComputeDevice;
use common::config::{AlexnetConfig, AlexnetPreset, LenetConfig, MlpConfig, ModelConfig, PerceptronConfig, SoftmaxConfig};

#[allow(clippy::unwrap_used)]
fn layout_of(config: &ModelConfig, input: InputShape) -> ParamLayout {
    let device = ComputeDevice::parse("auto").unwrap();
    ParamLayout::of_all(&Model::new(config, input, &device.burn()).unwrap())
}

fn layout(preset: AlexnetPreset, width: f64, input: InputShape) -> ParamLayout {
    layout_of(&ModelConfig::Alexnet(AlexnetConfig { preset, width, ..AlexnetConfig::default() }), input)
}

/// `worker summary` and `coordinator check` compute the layers from the config: they
/// must be those that burn builds.
#[test]
fn every_model_has_the_layers_that_its_config_says() {
    let alexnet = |preset| ModelConfig::Alexnet(AlexnetConfig { preset, width: 0.1, ..AlexnetConfig::default() });
    let models = [
        ModelConfig::Perceptron(PerceptronConfig::default()),
        ModelConfig::Softmax(SoftmaxConfig::default()),
        ModelConfig::Mlp(MlpConfig { hidden: vec![7, 5], ..MlpConfig::default() }),
        ModelConfig::Lenet(LenetConfig::default()),
        alexnet(AlexnetPreset::Notes),
        alexnet(AlexnetPreset::Original),
        alexnet(AlexnetPreset::Torchvision),
    ];
    for (model, size) in models.iter().flat_map(|m| [(m, 64), (m, 97)]) {
        let input = InputShape { channels: 3, image_size: size, classes: 2 };
        let layout = layout_of(model, input);
        for layer in model.layers(input).iter().filter(|l| l.parameters > 0) {
            let own = layout.params().iter().filter(|p| p.name().strip_prefix(&layer.name).is_some_and(|rest| rest.starts_with('.')));
            let parameters: usize = own.map(|p| p.range().len()).sum();
            assert_eq!(parameters as u64, layer.parameters, "{model:?} at {size}: {}", layer.name);
        }
        assert_eq!(layout.total() as u64, model.parameters(input), "{model:?} at {size}");
    }
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
    let model = ModelConfig::Alexnet(AlexnetConfig::default());
    let weights = initial_weights(&layout, &model, 1);
    assert_eq!(weights, initial_weights(&layout, &model, 1));
    assert_ne!(weights, initial_weights(&layout, &model, 2));
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

/// Without an activation two layers are one: W2 (W1 x + b1) + b2 is (W2 W1) x + (W2 b1 + b2).
#[test]
fn an_mlp_with_identity_collapses_to_softmax_regression() {
    use crate::optim::Update;
    use crate::replica::Replica;
    use common::config::{Activation, TrainConfig};
    let input = InputShape { channels: 3, image_size: 1, classes: 4 };
    for name in ["cpu", "flex"] {
        let Ok(device) = ComputeDevice::parse(name) else { continue };
        let outputs = |activation| {
            let model = ModelConfig::Mlp(MlpConfig { hidden: vec![5], activation, ..MlpConfig::default() });
            let train = TrainConfig { threads: Some(1), ..TrainConfig::default() };
            #[allow(clippy::unwrap_used)]
            let mut replica = Replica::new(&model, &train, input, 3, device).unwrap();
            // Biases start at 0, which would hide their effect: one update changes them.
            let gradient = vec![(0..replica.layout().total()).map(|i| ((i * 37 % 11) as f32 - 5.0) / 10.0).collect::<Vec<f32>>()];
            #[allow(clippy::unwrap_used)]
            replica.update(&gradient, Update { step: 0, lr: 1.0, factor: 1.0 }).unwrap();
            let images: Vec<f32> = (0..6 * 3).map(|i| ((i * 29 % 13) as f32 - 6.0) / 5.0).collect();
            #[allow(clippy::unwrap_used)]
            let scores = replica.scores(&images, &[0; 6]).unwrap().1;
            #[allow(clippy::unwrap_used)]
            let weights = replica.weights().unwrap();
            let param = |name: &str| {
                let spec = replica.layout().params().iter().find(|p| p.name() == name);
                spec.map_or_else(Vec::new, |p| weights[p.range()].to_vec())
            };
            let (w1, b1, w2, b2) = (param("hidden.0.weight"), param("hidden.0.bias"), param("output.weight"), param("output.bias"));
            let linear: Vec<f32> = images
                .chunks(3)
                .flat_map(|x| {
                    // The product of the two layers: one matrix [3, 4] and one bias.
                    let w = |i: usize, o: usize| (0..5).map(|h| w1[i * 5 + h] * w2[h * 4 + o]).sum::<f32>();
                    let b = |o: usize| b2[o] + (0..5).map(|h| b1[h] * w2[h * 4 + o]).sum::<f32>();
                    (0..4).map(|o| b(o) + (0..3).map(|i| x[i] * w(i, o)).sum::<f32>()).collect::<Vec<_>>()
                })
                .collect();
            scores.iter().zip(&linear).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
        };
        assert!(outputs(Activation::Identity) < 1e-4);
        for activation in [Activation::Relu, Activation::Sigmoid, Activation::Tanh] {
            assert!(outputs(activation) > 0.05, "{activation:?} should not be linear");
        }
    }
}
