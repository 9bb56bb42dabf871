//! Fits the tensors of a file to a model: by name, by shape, in the model's order.

use std::collections::BTreeMap;

use common::config::ModelConfig;
use rayon::prelude::*;

use super::error::WeightsError;
use super::file::{DenseOrder, WeightsFile};
use super::names::{counts_batches, elsewhere};
use super::stored::{Stored, Unreadable};
use crate::models::{ParamLayout, ParamSpec};

/// The most tensors that a message names on each side.
const NAMED: usize = 24;

/// Columns that are transposed at a time, so that what is read of a row is a cache line.
const COLUMNS: usize = 16;

/// What a model took from a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    pub tensors: usize,
    pub values: usize,
    pub new_head: Option<NewHead>,
}

/// An output layer that was not taken from the file, because it has another size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewHead {
    pub layer: String,
    /// Outputs in the file, and in the model.
    pub had: usize,
    pub has: usize,
}

impl Loaded {
    /// For the log.
    pub fn describe(&self) -> String {
        format!("{} tensors with {} values", self.tensors, self.values)
    }
}

impl NewHead {
    /// For the log.
    pub fn describe(&self) -> String {
        let Self { layer, had, has } = self;
        format!("the output layer `{layer}` is new, drawn by the seed: it has {had} outputs in the file, and {has} here")
    }
}

/// Which tensor of the file each parameter takes.
struct Fit<'a> {
    taken: Vec<(&'a ParamSpec, &'a str, &'a Stored)>,
    order: DenseOrder,
    new_head: Option<NewHead>,
}

impl WeightsFile {
    /// Whether the file fits a model, by names and shapes alone.
    ///
    /// # Errors
    /// [`WeightsError::Mismatch`] names what does not fit, on both sides.
    pub fn check(&self, model: &ModelConfig, layout: &ParamLayout) -> Result<(), WeightsError> {
        self.fit(model, layout).map(drop)
    }

    /// Copies the values to their places in the flat `weights`. An output layer of another
    /// size keeps what is there.
    ///
    /// # Errors
    /// The file does not fit the model, or its values cannot be read; `weights` may then
    /// hold a part of them.
    pub fn fill(&self, model: &ModelConfig, layout: &ParamLayout, weights: &mut [f32]) -> Result<Loaded, WeightsError> {
        let fit = self.fit(model, layout)?;
        let mut values = 0;
        for (param, name, stored) in &fit.taken {
            let read = stored.read().map_err(|e| match e {
                Unreadable::Numbers(found) => WeightsError::Numbers { path: self.origin.clone(), tensor: (*name).to_owned(), found },
                Unreadable::Io(source) => WeightsError::Read { path: self.origin.clone(), source },
            })?;
            if !read.par_iter().all(|value| value.is_finite()) {
                return Err(WeightsError::NotFinite { path: self.origin.clone(), tensor: (*name).to_owned() });
            }
            let place = &mut weights[param.range()];
            values += place.len();
            match (param.shape(), fit.order) {
                ([inputs, units], DenseOrder::OutIn) => transpose(&read, *units, *inputs, place),
                _ => place.copy_from_slice(&read),
            }
        }
        Ok(Loaded { tensors: fit.taken.len(), values, new_head: fit.new_head })
    }

    fn fit<'a>(&'a self, model: &ModelConfig, layout: &'a ParamLayout) -> Result<Fit<'a>, WeightsError> {
        let ours: Vec<String> = layout.params().iter().map(|p| p.name().to_owned()).collect();
        let theirs: Option<Vec<String>> = ours.iter().map(|name| elsewhere(model, name)).collect();
        let present = |names: &[String]| names.iter().filter(|name| self.tensors.contains_key(*name)).count();
        // Whichever the file has more of; what is missing is then an error.
        let (names, order) = match theirs {
            Some(theirs) if present(&theirs) > present(&ours) => (theirs, DenseOrder::OutIn),
            _ => {
                let order = self.order.or_else(|| self.order_by_shapes(layout, &ours)).unwrap_or(DenseOrder::OutIn);
                (ours, order)
            }
        };
        let (new_head, head) = self.new_head(layout, &names, order).unzip();
        let head = head.unwrap_or_else(|| layout.params().len());
        if let (Some(new), Some(param)) = (&new_head, layout.params().get(head))
            && param.is_frozen()
        {
            let NewHead { layer, had, has } = new.clone();
            return Err(WeightsError::FrozenHead { path: self.origin.clone(), layer, had, has });
        }
        let mut model_has = Vec::new();
        let mut taken = Vec::new();
        let mut left: BTreeMap<&str, &Stored> = self.tensors.iter().map(|(name, stored)| (name.as_str(), stored)).collect();
        for (index, (param, name)) in layout.params().iter().zip(&names).enumerate() {
            let expected = shape_in(param, order);
            if index >= head {
                left.remove(name.as_str());
            } else if let Some((name, stored)) = self.tensors.get_key_value(name).filter(|(_, stored)| stored.shape == expected) {
                left.remove(name.as_str());
                taken.push((param, name.as_str(), stored));
            } else {
                model_has.push(format!("{name} {expected:?}"));
            }
        }
        left.retain(|name, _| !counts_batches(name));
        if model_has.is_empty() && left.is_empty() {
            return Ok(Fit { taken, order, new_head });
        }
        let file_has = left.iter().map(|(name, stored)| format!("{name} {:?}", stored.shape)).collect();
        Err(WeightsError::Mismatch { path: self.origin.clone(), model: listed(model_has), file: listed(file_has) })
    }

    /// The order in which the first dense weight that fits one way only lies.
    fn order_by_shapes(&self, layout: &ParamLayout, names: &[String]) -> Option<DenseOrder> {
        layout.params().iter().zip(names).find_map(|(param, name)| {
            let shape = &self.tensors.get(name)?.shape;
            let fits = |order| *shape == shape_in(param, order);
            match (fits(DenseOrder::InOut), fits(DenseOrder::OutIn)) {
                (true, false) if param.shape().len() == 2 => Some(DenseOrder::InOut),
                (false, true) => Some(DenseOrder::OutIn),
                _ => None,
            }
        })
    }

    /// The output layer, if it is there with another number of outputs and there are layers
    /// before it; and the place of its first parameter.
    fn new_head(&self, layout: &ParamLayout, names: &[String], order: DenseOrder) -> Option<(NewHead, usize)> {
        let at = layout.params().iter().rposition(|p| p.shape().len() == 2).filter(|at| *at > 0)?;
        let [inputs, has] = *layout.params()[at].shape() else { return None };
        let found = &self.tensors.get(&names[at])?.shape;
        let had = match (<[usize; 2]>::try_from(&found[..]).ok()?, order) {
            ([first, had], DenseOrder::InOut) | ([had, first], DenseOrder::OutIn) if first == inputs => had,
            _ => return None,
        };
        let layer = names[at].rsplit_once('.').map_or("", |(layer, _)| layer).to_owned();
        // All parameters after it are its own: its bias.
        let own = names[at + 1..].iter().all(|name| self.tensors.get(name).is_some_and(|bias| bias.shape == [had]));
        (had != has && own).then_some((NewHead { layer, had, has }, at))
    }
}

/// The shape of a parameter in a file.
fn shape_in(param: &ParamSpec, order: DenseOrder) -> Vec<usize> {
    match (param.shape(), order) {
        ([inputs, units], DenseOrder::OutIn) => vec![*units, *inputs],
        (shape, _) => shape.to_vec(),
    }
}

fn listed(mut names: Vec<String>) -> String {
    let more = names.len().saturating_sub(NAMED);
    names.truncate(NAMED);
    match (names.is_empty(), more) {
        (true, _) => "nothing else".to_owned(),
        (false, 0) => names.join(", "),
        (false, more) => format!("{} and {more} more", names.join(", ")),
    }
}

/// `[rows, columns]`, row-major, to `[columns, rows]`.
pub(super) fn transpose(from: &[f32], rows: usize, columns: usize, to: &mut [f32]) {
    to.par_chunks_mut((rows * COLUMNS).max(1)).enumerate().for_each(|(block, part)| {
        let first = block * COLUMNS;
        let width = part.len() / rows.max(1);
        for (row, values) in from.chunks_exact(columns).enumerate() {
            for (column, value) in values[first..first + width].iter().enumerate() {
                part[column * rows + row] = *value;
            }
        }
    });
}
