//! Where each parameter lies in the flat f32 vector that is reduced, updated and saved.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use burn::module::ParamId;
use common::config::TrainConfig;

use super::model::Model;
use super::network::Role;
use super::own::layer_of;

/// One parameter's place in the flat vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamSpec {
    name: String,
    shape: Vec<usize>,
    role: Role,
    offset: usize,
    len: usize,
    frozen: bool,
}

impl ParamSpec {
    /// Its path in the model, such as `conv1.weight`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path of its layer, such as `conv1`.
    fn layer(&self) -> &str {
        layer_of(&self.name)
    }

    /// Convolutions: `[out, in, height, width]`; dense layers: `[in, out]`; biases: `[out]`.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether it has one dimension: a bias, or the scale or shift of a norm.
    pub fn is_vector(&self) -> bool {
        self.shape.len() == 1
    }

    /// Whether a backward pass gives its gradient.
    pub(crate) fn has_gradient(&self) -> bool {
        !self.frozen && !self.role.is_running()
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

/// The batch normalisations of a model, each by its scale, in the order of their running
/// statistics.
#[derive(Debug, Default)]
pub(crate) struct BatchNorms {
    /// Those whose statistics follow the batches.
    pub(crate) trained: Vec<ParamId>,
    /// Those that go by their running statistics, in training too.
    pub(crate) frozen: Vec<ParamId>,
}

/// All parameters of a model in the order of its layers, and then the running statistics of
/// its batch normalisations. In the flat vector, what training changes comes first: parameters,
/// and after them the statistics. What is frozen follows in the same order. Gradients and the
/// optimizer's state are as long as the first part.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ParamLayout {
    params: Vec<ParamSpec>,
}

impl ParamLayout {
    /// The layout of a model that is trained like this.
    pub fn of(model: &Model, train: &TrainConfig) -> Self {
        let mut layout = Self::of_all(model);
        let features: BTreeSet<String> =
            layout.params[..layout.feature_parameters()].iter().map(|param| param.layer().to_owned()).collect();
        for param in &mut layout.params {
            param.frozen = train.freezes(param.layer(), features.contains(param.layer()));
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
        let mut layout = Self::default();
        model.visit(&mut |leaf| layout.push(leaf.name, leaf.tensor.shape(), leaf.role));
        layout
    }

    fn push(&mut self, name: String, shape: Vec<usize>, role: Role) {
        let (offset, len) = (self.total(), shape.iter().product());
        self.params.push(ParamSpec { name, shape, role, offset, len, frozen: false });
    }

    /// Parameters of these shapes, without a model.
    #[cfg(test)]
    pub(crate) fn of_shapes(shapes: &[&[usize]]) -> Self {
        let mut layout = Self::default();
        for (number, shape) in shapes.iter().enumerate() {
            layout.push(format!("p{number}"), shape.to_vec(), Role::Trained);
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

    /// How many of [`Self::params`], from the first, follow their gradients: the others are
    /// running statistics.
    pub fn parameters(&self) -> usize {
        self.params.partition_point(|p| !p.role.is_running())
    }

    /// How many values of a gradient, from the last one, are of running statistics.
    pub fn running(&self) -> usize {
        self.trained_params().filter(|param| param.role.is_running()).map(|param| param.len).sum()
    }

    /// How many parameters, from the first, belong to [`Model::features`]: those before
    /// the first dense layer, which is where the classifier begins.
    pub fn feature_parameters(&self) -> usize {
        self.params.iter().position(|p| p.shape.len() == 2).unwrap_or_else(|| self.parameters())
    }

    /// The batch normalisations of a model that has this layout.
    pub(crate) fn batch_norms(&self, model: &Model) -> BatchNorms {
        let (mut scales, mut norms) = (HashMap::new(), BatchNorms::default());
        let mut params = self.params.iter();
        model.visit(&mut |leaf| {
            let Some(param) = params.next() else { return };
            if leaf.role == Role::Scale {
                scales.insert(param.layer(), leaf.tensor.id());
            }
            if leaf.role == Role::RunningMean {
                let norms = if param.frozen { &mut norms.frozen } else { &mut norms.trained };
                norms.extend(scales.get(param.layer()));
            }
        });
        norms
    }

    /// The parameter that holds the flat vector's value at `at`.
    pub fn param_at(&self, at: usize) -> Option<&ParamSpec> {
        self.params.iter().find(|param| param.range().contains(&at))
    }
}
