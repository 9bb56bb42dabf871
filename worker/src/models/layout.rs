//! Where each parameter lies in the flat f32 vector that is reduced, updated and saved.

use std::ops::Range;

use super::model::Model;
use super::network::Role;

/// One parameter's place in the flat vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamSpec {
    name: String,
    shape: Vec<usize>,
    role: Role,
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

    pub fn role(&self) -> Role {
        self.role
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

/// All parameters of a model, back to back in the order of its layers, and after them the
/// running statistics of its batch normalisations.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ParamLayout {
    params: Vec<ParamSpec>,
}

impl ParamLayout {
    pub fn of(model: &Model) -> Self {
        let mut layout = Self::default();
        model.visit(&mut |leaf| layout.push(leaf.name, leaf.tensor.shape(), leaf.role));
        layout
    }

    fn push(&mut self, name: String, shape: Vec<usize>, role: Role) {
        let (offset, len) = (self.total(), shape.iter().product());
        self.params.push(ParamSpec { name, shape, role, offset, len });
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

    /// Values in the flat vector.
    pub fn total(&self) -> usize {
        self.params.last().map_or(0, |p| p.range().end)
    }

    /// How many parameters, from the first, are trained: the others are running statistics.
    pub fn trained_parameters(&self) -> usize {
        self.params.partition_point(|p| !p.role.is_running())
    }

    /// How many values, from the last one, are running statistics.
    pub fn running(&self) -> usize {
        self.params[self.trained_parameters()..].iter().map(|p| p.len).sum()
    }

    /// How many parameters, from the first, belong to [`Model::features`]: those before
    /// the first dense layer, which is where the classifier begins.
    pub fn feature_parameters(&self) -> usize {
        self.params.iter().position(|p| p.shape.len() == 2).unwrap_or_else(|| self.trained_parameters())
    }

    /// The parameter that holds the flat vector's value at `at`.
    pub fn param_at(&self, at: usize) -> Option<&ParamSpec> {
        let after = self.params.partition_point(|p| p.offset <= at);
        self.params.get(after.checked_sub(1)?).filter(|p| p.range().contains(&at))
    }
}
