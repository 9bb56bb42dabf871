#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use common::config::{Activation, AlexnetConfig, AlexnetPreset, InputShape, LenetConfig, MlpConfig, ModelConfig, Pool, TrainConfig};
use tempfile::tempdir;

use super::*;
use crate::engine::device::ComputeDevice;
use crate::models::{Model, ParamLayout, initial_weights};
use crate::replica::{Replica, ReplicaError};

/// What worker/golden/weights.py makes.
fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/weights").join(name)
}

fn mlp() -> (ModelConfig, InputShape) {
    let config = MlpConfig { hidden: vec![6, 6], activation: Activation::Tanh, weights: None };
    (ModelConfig::Mlp(config), InputShape { channels: 3, image_size: 2, classes: 4 })
}

fn lenet() -> (ModelConfig, InputShape) {
    let config = LenetConfig { pool: Pool::Max, activation: Activation::Relu, weights: None };
    (ModelConfig::Lenet(config), InputShape { channels: 1, image_size: 16, classes: 10 })
}

fn layout((model, input): &(ModelConfig, InputShape)) -> ParamLayout {
    ParamLayout::of_all(&Model::new(model, *input, &ComputeDevice::parse("auto").unwrap().burn()).unwrap())
}

fn replica((model, input): &(ModelConfig, InputShape), seed: u64) -> Replica {
    Replica::new(model, &TrainConfig { threads: Some(1), ..TrainConfig::default() }, *input, seed, ComputeDevice::parse("auto").unwrap())
        .unwrap()
}

fn open(path: &Path) -> Result<WeightsFile, WeightsError> {
    WeightsFile::open(path, path)
}

/// The weights of a file in a model of this kind, over those of seed 1.
fn filled(path: &Path, of: &(ModelConfig, InputShape)) -> Result<(Vec<f32>, Loaded), WeightsError> {
    let layout = layout(of);
    let mut weights = initial_weights(&layout, &of.0, 1);
    let loaded = open(path)?.fill(&of.0, &layout, &mut weights)?;
    Ok((weights, loaded))
}

#[test]
fn weights_of_pytorch_give_its_scores() {
    let scores: serde_json::Value = serde_json::from_slice(&std::fs::read(golden("scores.json")).unwrap()).unwrap();
    let numbers = |model: &str, key: &str| -> Vec<f32> {
        scores[model][key].as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
    };
    // Halves have 11 bits.
    for (file, of, within) in [
        ("mlp.pth", mlp(), 1e-6),
        ("mlp-legacy.pth", mlp(), 1e-6),
        ("mlp-checkpoint.pt", mlp(), 1e-6),
        ("mlp.safetensors", mlp(), 1e-6),
        ("mlp-f16.safetensors", mlp(), 1e-3),
        ("lenet.pt", lenet(), 1e-6),
    ] {
        let mut replica = replica(&of, 1);
        let loaded = replica.begin_with(&of.0, &open(&golden(file)).unwrap()).unwrap();
        assert_eq!((loaded.values, loaded.new_head), (replica.layout().total(), None), "{file}");
        let kind = of.0.kind();
        let found = replica.scores(&numbers(kind, "inputs"), &[0, 0]).unwrap().1;
        for (found, expected) in found.iter().zip(numbers(kind, "scores")) {
            assert!((found - expected).abs() < within, "{file}: {found} is not {expected}");
        }
    }
}

#[test]
fn a_head_of_another_size_is_new_and_the_rest_is_not() {
    let of = |classes| (mlp().0, InputShape { classes, ..mlp().1 });
    let (whole, _) = filled(&golden("mlp.pth"), &of(4)).unwrap();
    for file in ["mlp.pth", "mlp.safetensors"] {
        let (weights, loaded) = filled(&golden(file), &of(7)).unwrap();
        let head = NewHead { layer: "output".to_owned(), had: 4, has: 7 };
        assert_eq!(loaded.new_head.as_ref(), Some(&head));
        assert!(head.describe().contains("`output` is new") && head.describe().contains("4 outputs in the file, and 7 here"));
        let layout = layout(&of(7));
        let begins = layout.params()[4].range().start;
        assert_eq!((layout.params()[4].name(), loaded.tensors, loaded.values), ("output.weight", 4, begins));
        assert_eq!(weights[..begins], whole[..begins]);
        assert_eq!(weights[begins..], initial_weights(&layout, &mlp().0, 1)[begins..], "as the seed says");
    }
}

#[test]
fn an_output_layer_that_would_be_new_cannot_be_frozen() {
    let (model, input) = mlp();
    let input = InputShape { classes: input.classes + 3, ..input };
    let model_of = Model::new(&model, input, &ComputeDevice::parse("auto").unwrap().burn()).unwrap();
    let file = open(&golden("mlp.pth")).unwrap();
    for (freeze, refused) in [("hidden", false), ("output", true), ("classifier", true)] {
        let train = common::config::TrainConfig { freeze: vec![freeze.to_owned()], ..Default::default() };
        let checked = file.check(&model, &ParamLayout::of(&model_of, &train));
        let text = checked.err().map(|e| e.to_string()).unwrap_or_default();
        assert_eq!(text.contains("take `output` out of train.freeze"), refused, "{freeze}: {text}");
    }
}

#[test]
fn weights_of_another_model_are_refused_with_names_and_shapes_on_both_sides() {
    let wider = (ModelConfig::Mlp(MlpConfig { hidden: vec![6, 9], activation: Activation::Tanh, weights: None }), mlp().1);
    let mut replica = replica(&wider, 1);
    let before = replica.weights().unwrap().into_owned();
    let refused = replica.begin_with(&wider.0, &open(&golden("mlp.pth")).unwrap()).unwrap_err();
    assert_eq!(replica.weights().unwrap(), before);
    assert!(matches!(refused, ReplicaError::Weights(WeightsError::Mismatch { .. })));
    let text = refused.to_string();
    for words in
        ["mlp.pth", "this one has hidden.1.weight [9, 6], hidden.1.bias [9]", "the file has hidden.1.bias [6], hidden.1.weight [6, 6]"]
    {
        assert!(text.contains(words), "{text}");
    }
    let text = filled(&golden("mlp.pth"), &lenet()).unwrap_err().to_string();
    assert!(text.contains("conv1.weight [6, 1, 5, 5]") && text.contains("output.weight [4, 6]"), "{text}");
    // Of softmax regression nothing but the output layer would be left.
    let softmax = (ModelConfig::Softmax(common::config::SoftmaxConfig::default()), InputShape { classes: 5, ..mlp().1 });
    assert!(filled(&golden("mlp.pth"), &softmax).is_err());
}

#[test]
fn what_cannot_be_read_is_named() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("model.bin");
    let of = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        open(&path).err().unwrap().to_string()
    };
    for (bytes, words) in [
        (&b""[..], "is empty"),
        (b"\x89HDF\r\n\x1a\n and so on", "HDF5"),
        (b"\x93NUMPY\x01\x00", "NumPy"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12", "Git LFS"),
        (b"<!DOCTYPE html><html>Not found</html>", "web page"),
        (b"x,y,label\n1,2,a\n", "neither what torch.save writes nor safetensors"),
        (b"\x40\x00\x00\x00\x00\x00\x00\x00{\"a\"", "damaged or incomplete"),
    ] {
        let text = of(bytes);
        assert!(text.contains("model.bin") && text.contains(words), "{text}");
    }
    let text = open(&golden("mlp-script.pt")).err().unwrap().to_string();
    assert!(text.contains("TorchScript") && text.contains("state_dict()"), "{text}");
    let text = filled(&golden("mlp-int.pth"), &mlp()).unwrap_err().to_string();
    assert!(text.contains("`hidden.0.weight`") && text.contains("I32"), "{text}");
    let text = open(&dir.path().join("none.pth")).err().unwrap().to_string();
    assert!(text.contains("none.pth") && text.contains("No such file"), "{text}");
    let mut values = vec![0.0; layout(&mlp()).total()];
    values[80] = f32::NAN;
    std::fs::write(&path, pth_bytes(&named(&mlp().0, &layout(&mlp()), &values)).unwrap()).unwrap();
    let text = filled(&path, &mlp()).unwrap_err().to_string();
    assert!(text.contains("`hidden.1.weight`") && text.contains("NaN"), "{text}");
}

#[test]
fn damaged_files_are_refused_or_read_and_nothing_panics() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("damaged");
    for name in ["mlp.pth", "mlp-legacy.pth", "mlp.safetensors", "mlp-checkpoint.pt"] {
        let whole = std::fs::read(golden(name)).unwrap();
        let tried = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            filled(&path, &mlp())
        };
        for length in (0..whole.len()).step_by(37) {
            assert!(tried(&whole[..length]).is_err(), "{name}: {length} of {} bytes", whole.len());
        }
        for at in (0..whole.len()).step_by(13) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            let _ = tried(&bytes);
        }
    }
}

#[test]
fn a_checkpoint_of_a_run_is_read_in_its_own_order() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    // Dense layers that are square look the same in either order.
    let square = (
        ModelConfig::Mlp(MlpConfig { hidden: vec![12, 12], activation: Activation::Relu, weights: None }),
        InputShape { classes: 12, ..mlp().1 },
    );
    for of in [mlp(), lenet(), square] {
        let giver = replica(&of, 3);
        std::fs::write(&path, giver.export().unwrap().model).unwrap();
        let mut taker = replica(&of, 4);
        assert_ne!(taker.weights().unwrap(), giver.weights().unwrap());
        taker.begin_with(&of.0, &open(&path).unwrap()).unwrap();
        assert_eq!(taker.weights_blake3().unwrap(), giver.weights_blake3().unwrap());
    }
    // What an earlier version wrote does not say its order; its shapes do.
    let bytes = replica(&mlp(), 3).export().unwrap().model;
    let at = bytes.windows(6).position(|window| window == b"in,out").unwrap();
    let mut unmarked = bytes.clone();
    assert_eq!(bytes[at - 8..at - 3], *b"dense");
    unmarked[at - 8..at - 3].copy_from_slice(b"other");
    std::fs::write(&path, unmarked).unwrap();
    assert_eq!(filled(&path, &mlp()).unwrap().0, *replica(&mlp(), 3).weights().unwrap());
}

#[test]
fn what_is_written_is_read_again() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("model");
    let alexnet = |preset| {
        let config = AlexnetConfig { preset, width: 0.05, ..AlexnetConfig::default() };
        (ModelConfig::Alexnet(config), InputShape { channels: 3, image_size: 64, classes: 5 })
    };
    for of in [mlp(), lenet(), alexnet(AlexnetPreset::Torchvision), alexnet(AlexnetPreset::Notes)] {
        let layout = layout(&of);
        let weights = initial_weights(&layout, &of.0, 5);
        let tensors = named(&of.0, &layout, &weights);
        for bytes in [pth_bytes(&tensors).unwrap(), safetensors_bytes(&tensors).unwrap()] {
            std::fs::write(&path, &bytes).unwrap();
            let (again, loaded) = filled(&path, &of).unwrap();
            assert!(again == weights && loaded.new_head.is_none(), "{:?}", of.0);
        }
        assert_eq!(pth_bytes(&tensors).unwrap(), pth_bytes(&tensors).unwrap());
    }
    let of = alexnet(AlexnetPreset::Torchvision);
    let tensors = named(&of.0, &layout(&of), &initial_weights(&layout(&of), &of.0, 5));
    let shapes: Vec<_> = tensors.iter().map(|t| (t.name.as_str(), &t.shape[..])).collect();
    assert_eq!(shapes[0], ("features.0.weight", &[3, 3, 11, 11][..]));
    assert_eq!(shapes[10], ("classifier.1.weight", &[205, 13 * 36][..]));
    assert_eq!(shapes[15], ("classifier.6.bias", &[5][..]));
}

#[test]
fn an_onnx_file_ends_at_2_gib() {
    let of = (
        ModelConfig::Alexnet(AlexnetConfig { width: 4.0, ..AlexnetConfig::default() }),
        InputShape { channels: 3, image_size: 224, classes: 10 },
    );
    let layout = layout(&of);
    // Zeros that nobody touches take no memory.
    let weights = vec![0.0; layout.total()];
    let onnx = OnnxModel { name: "t", model: &of.0, input: of.1, rows: false, scaling: None, input_text: "", metadata: Vec::new() };
    let refused = onnx_bytes(&onnx, &layout, &weights).unwrap_err().to_string();
    assert!(refused.contains("2 GiB") && refused.contains("--to safetensors"), "{refused}");
}
