//! Where each parameter lies in the flat f32 vector that is reduced, updated and saved.

use std::ops::Range;

use burn::module::{ModuleVisitor, Param};
use burn::tensor::Tensor;
use common::config::TrainConfig;

use super::model::Model;

/// One parameter's place in the flat vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamSpec {
    name: String,
    shape: Vec<usize>,
    offset: usize,
    len: usize,
    frozen: bool,
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

    /// Whether training leaves it as it is.
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// Its values in the flat vector.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len
    }
}

/// All parameters of a model, in the order of its layers. In the flat vector those that are
/// trained come first, back to back, and those that are frozen after them: gradients and the
/// optimizer's state are as long as the first part.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ParamLayout {
    params: Vec<ParamSpec>,
}

impl ParamLayout {
    /// The layout of a model that is trained like this.
    pub fn of(model: &Model, train: &TrainConfig) -> Self {
        let mut layout = Self::of_all(model);
        let features = layout.feature_parameters();
        for (number, param) in layout.params.iter_mut().enumerate() {
            let layer = param.name.rsplit_once('.').map_or("", |(layer, _)| layer);
            param.frozen = train.freezes(layer, number < features);
        }
        let mut offset = 0;
        for frozen in [false, true] {
            for param in layout.params.iter_mut().filter(|param| param.frozen == frozen) {
                param.offset = offset;
                offset += param.len;
            }
        }
        layout
    }

    /// The layout of a model of which everything is trained.
    pub fn of_all(model: &Model) -> Self {
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
            layout.params.push(ParamSpec { name: format!("p{number}"), shape: shape.to_vec(), offset, len, frozen: false });
        }
        layout
    }

    pub fn params(&self) -> &[ParamSpec] {
        &self.params
    }

    /// Those that are trained, each with its number among all; in the order of the flat vector.
    pub fn trained(&self) -> impl Iterator<Item = (usize, &ParamSpec)> + Clone {
        self.params.iter().enumerate().filter(|(_, param)| !param.frozen)
    }

    /// Those that are trained, in the order of the flat vector.
    pub fn trained_params(&self) -> impl Iterator<Item = &ParamSpec> + Clone {
        self.trained().map(|(_, param)| param)
    }

    /// Values in the flat vector.
    pub fn total(&self) -> usize {
        self.params.iter().map(|param| param.len).sum()
    }

    /// Values in the part of the flat vector that is trained, and in a gradient.
    pub fn trained_total(&self) -> usize {
        self.trained_params().map(|param| param.len).sum()
    }

    /// How many parameters, from the first, belong to [`Model::features`]: those before
    /// the first dense layer, which is where the classifier begins.
    pub fn feature_parameters(&self) -> usize {
        self.params.iter().position(|p| p.shape.len() == 2).unwrap_or(self.params.len())
    }

    /// The parameter that holds the flat vector's value at `at`.
    pub fn param_at(&self, at: usize) -> Option<&ParamSpec> {
        self.params.iter().find(|param| param.range().contains(&at))
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
        self.layout.params.push(ParamSpec { name: self.path.join("."), shape, offset, len, frozen: false });
    }
}
