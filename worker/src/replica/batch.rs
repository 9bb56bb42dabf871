//! Batches, and whether they fit a model.

use super::error::ReplicaError;
use crate::data::{BatchName, Dropout, Inputs, MaskRows, Second};
use crate::engine::{Images, TrainBatch};
use crate::models::InputShape;

/// Neighbouring samples of a batch whose gradient is computed at once.
#[derive(Debug, Clone, Copy)]
pub struct BatchPart<'a> {
    pub inputs: Inputs<'a>,
    /// `[n]`
    pub labels: &'a [i32],
    /// Of mixed samples, `[n]`; empty if none are mixed.
    pub seconds: &'a [Second],
    /// Of all samples, and of the model's [`dropouts`](super::Replica::dropouts).
    pub masks: MaskRows<'a>,
    /// By which it is known again if it was announced as the next one.
    pub name: Option<BatchName>,
}

/// A part of a batch to train on, if it fits a model with this input and these dropouts.
pub(super) fn train_batch<'a>(
    input: InputShape,
    dropouts: &[Dropout],
    part: &BatchPart<'a>,
    scale: f32,
) -> Result<TrainBatch<'a>, ReplicaError> {
    let BatchPart { inputs, labels, seconds, masks, name } = *part;
    let images = images(input, inputs, labels, 1)?;
    let fits = masks.places().map(|(dropout, _)| dropout).eq(dropouts.iter().copied());
    if masks.samples() != labels.len() || !fits {
        return Err(ReplicaError::Masks { masks: masks.samples(), labels: labels.len() });
    }
    if !seconds.is_empty() && seconds.len() != labels.len() {
        return Err(ReplicaError::Seconds { seconds: seconds.len(), labels: labels.len() });
    }
    check(seconds.iter().map(|second| second.label), input.classes)?;
    Ok(TrainBatch { images, labels, seconds, masks, scale, name })
}

/// The inputs of samples, of which each has so many.
pub(super) fn images<'a>(input: InputShape, inputs: Inputs<'a>, labels: &[i32], crops: usize) -> Result<Images<'a>, ReplicaError> {
    let (n, per_image) = (labels.len() * crops, input.values());
    let finished = if let Inputs::Pictures(pictures) = inputs { pictures.finishes.len() } else { n };
    if inputs.len() != n * per_image || finished != n {
        return Err(ReplicaError::Batch { images: inputs.len(), labels: labels.len(), per_image: crops * per_image });
    }
    check(labels.iter().copied(), input.classes)?;
    Ok(Images { values: inputs, n, input })
}

/// Whether labels are classes.
fn check(labels: impl Iterator<Item = i32>, classes: usize) -> Result<(), ReplicaError> {
    let first = labels.enumerate().find(|(_, label)| usize::try_from(*label).map_or(true, |label| label >= classes));
    first.map_or(Ok(()), |(index, label)| Err(ReplicaError::Label { index, label, classes }))
}
