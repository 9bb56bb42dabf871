//! Where each parameter lies in the flat f32 vector that is reduced, updated and saved.

use std::ops::Range;

use burn::module::{ModuleVisitor, Param};
use burn::tensor::Tensor;

use super::model::Model;

/// One parameter's place in the flat vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamSpec {
    name: String,
    shape: Vec<usize>,
    offset: usize,
    len: usize,
}

impl ParamSpec {
    /// Its path in the model, such as `conv1.weight`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Convolutions: `[out, in, height, width]`; dense layers: `[in, out]`; biases: `[out]`.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Whether it has one dimension: a bias, or the scale or shift of a norm.
    pub fn is_vector(&self) -> bool {
        self.shape.len() == 1
    }

    /// Its values in the flat vector.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len
    }
}

/// All parameters of a model, back to back in the order of its layers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ParamLayout {
    params: Vec<ParamSpec>,
}

impl ParamLayout {
    pub fn of(model: &Model) -> Self {
        let mut collector = Collector::default();
        model.visit(&mut collector);
        collector.layout
    }

    /// Parameters of these shapes, without a model.
    #[cfg(test)]
    pub(crate) fn of_shapes(shapes: &[&[usize]]) -> Self {
        let mut layout = Self::default();
        for (number, shape) in shapes.iter().enumerate() {
            let (offset, len) = (layout.total(), shape.iter().product());
            layout.params.push(ParamSpec { name: format!("p{number}"), shape: shape.to_vec(), offset, len });
        }
        layout
    }

    pub fn params(&self) -> &[ParamSpec] {
        &self.params
    }

    /// Values in the flat vector.
    pub fn total(&self) -> usize {
        self.params.last().map_or(0, |p| p.range().end)
    }

    /// How many parameters, from the first, belong to [`Model::features`]: those before
    /// the first dense layer, which is where the classifier begins.
    pub fn feature_parameters(&self) -> usize {
        self.params.iter().position(|p| p.shape.len() == 2).unwrap_or(self.params.len())
    }

    /// The parameter that holds the flat vector's value at `at`.
    pub fn param_at(&self, at: usize) -> Option<&ParamSpec> {
        let after = self.params.partition_point(|p| p.offset <= at);
        self.params.get(after.checked_sub(1)?).filter(|p| p.range().contains(&at))
    }
}

#[derive(Default)]
struct Collector {
    path: Vec<String>,
    layout: ParamLayout,
}

impl ModuleVisitor for Collector {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let shape: Vec<usize> = param.lazy_shape().iter().copied().collect();
        let (offset, len) = (self.layout.total(), shape.iter().product());
        self.layout.params.push(ParamSpec { name: self.path.join("."), shape, offset, len });
    }
}
