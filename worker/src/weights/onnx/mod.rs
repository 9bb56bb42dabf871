//! A model as ONNX: its layers, its weights, its classes, and the normalisation of its
//! input if asked for.

mod graph;
mod messages;

use common::config::{InputShape, ModelConfig};
use prost::Message;

use super::error::WeightsError;
use crate::models::ParamLayout;
use graph::Nodes;
use messages::{Dimension, FLOAT, Graph, Model, OperatorSet, Property, Shape, TensorType, Type, ValueInfo};

/// Readers of 2022 and later know these: ONNX 1.12.
const IR_VERSION: i64 = 8;
const OPSET: i64 = 17;

/// The most bytes that a message of protobuf may have.
const MOST_BYTES: u64 = (1 << 31) - 1;
/// Room for names and the graph beside the weights.
const AROUND_WEIGHTS: u64 = 16 << 20;

const INPUT: &str = "input";
const OUTPUT: &str = "logits";
const BATCH: &str = "batch";

/// How a raw value becomes the model's input, for each channel or column:
/// `(value - mean) / deviation`.
#[derive(Debug, Clone, PartialEq)]
pub struct Scaling {
    pub means: Vec<f32>,
    pub deviations: Vec<f32>,
}

/// What an ONNX file says of a model.
#[derive(Debug)]
pub struct OnnxModel<'a> {
    pub name: &'a str,
    pub model: &'a ModelConfig,
    pub input: InputShape,
    /// Whether the input is rows of a table, `[batch, columns]`, and not pictures, `[batch,
    /// channels, height, width]`.
    pub rows: bool,
    /// Put before the first layer; without it the input must have been scaled.
    pub scaling: Option<&'a Scaling>,
    /// What the input is, in words.
    pub input_text: &'a str,
    /// Names and values for programs.
    pub metadata: Vec<(String, String)>,
}

/// The bytes of an ONNX file with the flat `weights`.
///
/// # Errors
/// The model is one's own, of which no graph is known, or larger than a protobuf message may
/// be.
pub fn onnx_bytes(onnx: &OnnxModel<'_>, layout: &ParamLayout, weights: &[f32]) -> Result<Vec<u8>, WeightsError> {
    if let ModelConfig::Own(own) = onnx.model {
        return Err(WeightsError::Write(format!(
            "what the layers of `{}` do with each other is known to its own code alone: take --to pth or safetensors, load the file into the same network in PyTorch, and write ONNX from there",
            own.name
        )));
    }
    if 4 * weights.len() as u64 + AROUND_WEIGHTS > MOST_BYTES {
        return Err(WeightsError::Write(format!(
            "{} weights are more than an ONNX file can hold, which ends at 2 GiB: take --to safetensors or pth",
            weights.len()
        )));
    }
    let mut nodes = Nodes::of_input(INPUT, onnx.input, onnx.rows);
    let input = value_info(INPUT, nodes.shape(), onnx.input_text);
    if let Some(Scaling { means, deviations }) = onnx.scaling {
        let dims: &[usize] = if onnx.rows { &[means.len()] } else { &[means.len(), 1, 1] };
        nodes.with_constant("Sub", "mean", dims, means);
        nodes.with_constant("Div", "deviation", dims, deviations);
    }
    onnx.model.layers(onnx.input).iter().for_each(|layer| nodes.layer(layer));
    if matches!(onnx.model, ModelConfig::Perceptron(_)) {
        nodes.both_signs();
    }
    if let Some(last) = nodes.nodes.last_mut() {
        last.output = vec![OUTPUT.to_owned()];
    }
    let output = value_info(OUTPUT, &[onnx.input.classes as u64], "A score for each class, in the order of the metadata's classes.");
    let mut initializer = graph::parameters(layout, weights);
    initializer.append(&mut nodes.constants);
    let property = |(key, value): &(String, String)| Property { key: Some(key.clone()), value: Some(value.clone()) };
    let model = Model {
        ir_version: Some(IR_VERSION),
        producer_name: Some("ringleader".to_owned()),
        producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        doc_string: Some(format!("{} of the run {}", onnx.model.kind(), onnx.name)),
        graph: Some(Graph {
            node: nodes.nodes,
            name: Some(onnx.model.kind().to_owned()),
            initializer,
            input: vec![input],
            output: vec![output],
        }),
        opset_import: vec![OperatorSet { domain: Some(String::new()), version: Some(OPSET) }],
        metadata_props: onnx.metadata.iter().map(property).collect(),
    };
    Ok(model.encode_to_vec())
}

/// A value of any number of samples of this shape.
fn value_info(name: &str, sample: &[u64], text: &str) -> ValueInfo {
    let batch = Dimension { value: None, param: Some(BATCH.to_owned()) };
    let sizes = sample.iter().map(|&n| Dimension { value: Some(n as i64), param: None });
    let shape = Shape { dim: std::iter::once(batch).chain(sizes).collect() };
    ValueInfo {
        name: Some(name.to_owned()),
        kind: Some(Type { tensor_type: Some(TensorType { elem_type: Some(FLOAT), shape: Some(shape) }) }),
        doc_string: Some(text.to_owned()),
    }
}
