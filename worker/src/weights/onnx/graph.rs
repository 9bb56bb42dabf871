//! The layers of a model as nodes of ONNX: each takes the value of the one before it.

use bytes::Bytes;
use common::config::{Activation, InputShape, Layer, LayerKind, Pool};

use super::messages::{Attribute, FLOAT, INT, INTS, Node, Tensor};
use crate::models::ParamLayout;

/// The nodes so far, and the value that the last one gives.
#[derive(Default)]
pub(super) struct Nodes {
    pub(super) nodes: Vec<Node>,
    pub(super) constants: Vec<Tensor>,
    pub(super) value: String,
    /// Of one sample of that value: `[channels, height, width]` or `[units]`.
    shape: Vec<u64>,
}

impl Nodes {
    /// Nothing yet: the value is the input, which is a table's rows or pictures.
    pub(super) fn of_input(name: &str, input: InputShape, rows: bool) -> Self {
        let [channels, size] = [input.channels, input.image_size].map(|n| n as u64);
        let shape = if rows { vec![channels] } else { vec![channels, size, size] };
        Self { value: name.to_owned(), shape, ..Self::default() }
    }

    pub(super) fn shape(&self) -> &[u64] {
        &self.shape
    }

    fn push(&mut self, op: &str, inputs: &[&str], attribute: Vec<Attribute>) {
        let output = format!("{}_{}", op.to_lowercase(), self.nodes.len());
        let value = std::mem::replace(&mut self.value, output.clone());
        let input = std::iter::once(value).chain(inputs.iter().map(|&name| name.to_owned())).collect();
        self.nodes.push(Node { input, output: vec![output.clone()], name: Some(output), op_type: Some(op.to_owned()), attribute });
    }

    /// An operation on the value and a constant, `[dims]`.
    pub(super) fn with_constant(&mut self, op: &str, name: &str, dims: &[usize], values: &[f32]) {
        self.constants.push(constant(name, dims, values));
        self.push(op, &[name], Vec::new());
    }

    /// A layer of a model, whose parameters are in `constants` by their names.
    pub(super) fn layer(&mut self, layer: &Layer) {
        let square = |n: u64| vec![n as i64; 2];
        match layer.kind {
            LayerKind::Convolution { kernel, stride, padding } => {
                let attributes =
                    vec![ints("kernel_shape", square(kernel)), ints("strides", square(stride)), ints("pads", vec![padding as i64; 4])];
                self.push("Conv", &[&format!("{}.weight", layer.name), &format!("{}.bias", layer.name)], attributes);
            }
            LayerKind::Pool { kind, kernel, stride } => {
                let op = match kind {
                    Pool::Max => "MaxPool",
                    Pool::Average => "AveragePool",
                };
                self.push(op, &[], vec![ints("kernel_shape", square(kernel)), ints("strides", square(stride))]);
            }
            LayerKind::AdaptivePool { side } => self.adaptive_pool(side as usize),
            LayerKind::Activation(Activation::Relu) => self.push("Relu", &[], Vec::new()),
            LayerKind::Activation(Activation::Sigmoid) => self.push("Sigmoid", &[], Vec::new()),
            LayerKind::Activation(Activation::Tanh) => self.push("Tanh", &[], Vec::new()),
            LayerKind::Activation(Activation::Identity) => {}
            // Of models of one's own, which are refused.
            LayerKind::BatchNorm | LayerKind::Other => {}
            LayerKind::Dense { .. } => {
                if self.shape.len() > 1 {
                    self.push("Flatten", &[], vec![int("axis", 1)]);
                }
                self.push("Gemm", &[&format!("{}.weight", layer.name), &format!("{}.bias", layer.name)], Vec::new());
            }
        }
        self.shape = layer.output.clone();
    }

    /// ONNX has no adaptive pool. The mean over a window of rows and columns is a mean over
    /// rows of means over columns, so A x Aᵀ is the same for a matrix A of means.
    fn adaptive_pool(&mut self, side: usize) {
        let from = self.shape.last().map_or(side, |&from| from as usize);
        if from == side {
            return;
        }
        let means = means(from, side);
        let turned: Vec<f32> = (0..from).flat_map(|column| means.chunks(from).map(move |row| row[column])).collect();
        self.with_constant("MatMul", "pool.columns", &[from, side], &turned);
        self.constants.push(constant("pool.rows", &[side, from], &means));
        let value = std::mem::replace(&mut self.value, "pool.rows".to_owned());
        self.push("MatMul", &[&value], Vec::new());
    }

    /// The perceptron's score s as the logits -s and s.
    pub(super) fn both_signs(&mut self) {
        let score = self.value.clone();
        self.push("Neg", &[], Vec::new());
        self.push("Concat", &[&score], vec![int("axis", 1)]);
    }
}

/// `[side, from]`: row i has the mean over the i-th window of torch.nn.AdaptiveAvgPool2d,
/// from floor(i from / side) to ceil((i + 1) from / side).
fn means(from: usize, side: usize) -> Vec<f32> {
    let row = |i: usize| {
        let window = i * from / side..((i + 1) * from).div_ceil(side);
        let share = 1.0 / window.len() as f32;
        (0..from).map(move |at| if window.contains(&at) { share } else { 0.0 })
    };
    (0..side).flat_map(row).collect()
}

/// The parameters of a model, in their own order: Gemm takes `[in, out]` as it is.
pub(super) fn parameters(layout: &ParamLayout, weights: &[f32]) -> Vec<Tensor> {
    layout.params().iter().map(|param| constant(param.name(), param.shape(), &weights[param.range()])).collect()
}

fn constant(name: &str, dims: &[usize], values: &[f32]) -> Tensor {
    Tensor {
        dims: dims.iter().map(|&n| n as i64).collect(),
        data_type: Some(FLOAT),
        name: Some(name.to_owned()),
        raw_data: Some(Bytes::copy_from_slice(bytemuck::cast_slice(values))),
    }
}

fn int(name: &str, i: i64) -> Attribute {
    Attribute { name: Some(name.to_owned()), i: Some(i), ints: Vec::new(), kind: Some(INT) }
}

fn ints(name: &str, ints: Vec<i64>) -> Attribute {
    Attribute { name: Some(name.to_owned()), i: None, ints, kind: Some(INTS) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_of_an_adaptive_pool_are_those_of_pytorch() {
        // From 4 to 3: windows 0..2, 1..3, 2..4. From 2 to 3: 0..1, 0..2, 1..2.
        assert_eq!(means(4, 3), [0.5, 0.5, 0.0, 0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.0, 0.5, 0.5]);
        assert_eq!(means(2, 3), [1.0, 0.0, 0.5, 0.5, 0.0, 1.0]);
    }
}
