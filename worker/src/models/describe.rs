//! What a model of one's own consists of, found by one pass through it.

use burn::module::ParamId;
use burn::tensor::{Device, Tensor};
use common::config::{Described, InputShape, Layer, LayerKind, ModelConfig, OwnConfig};
use common::contained;

use super::error::ModelError;
use super::model::Model;
use super::network::Role;
use super::own::layer_of;
use super::pass::{Pass, Passed, Record};

/// Adds to the config of a model of one's own what the model consists of; other models are
/// left as they are.
///
/// # Errors
/// This worker has no such model, it cannot be built, or it does not keep to the rules of
/// [`super::Network`].
pub fn describe(model: &mut ModelConfig, input: InputShape, device: &Device) -> Result<(), ModelError> {
    let ModelConfig::Own(own) = model else { return Ok(()) };
    // What another binary, or this one for another input, has said does not bind.
    own.described = None;
    let layers = layers(own, input, device)?;
    own.described = Some(Described { input, layers });
    Ok(())
}

/// A parameter of the model.
struct Found {
    id: ParamId,
    name: String,
    role: Role,
    shape: Vec<usize>,
}

fn layers(own: &OwnConfig, input: InputShape, device: &Device) -> Result<Vec<Layer>, ModelError> {
    let broken = |problem: String| ModelError::Rules { name: own.name.clone(), problem };
    let model = Model::new(&ModelConfig::Own(own.clone()), input, device)?;
    let mut found = Vec::new();
    model.visit(&mut |leaf| {
        found.push(Found { id: leaf.tensor.id(), name: leaf.name, role: leaf.role, shape: leaf.tensor.shape() });
    });
    let passed = contained::run(|| {
        let mut pass = Pass::recording();
        let side = input.image_size;
        let features = model.features(Tensor::zeros([1, input.channels, side, side], device), &mut pass);
        let of_features = pass.record().map_or(0, |record| record.layers.len());
        let logits = model.classifier(features, &mut pass).dims();
        (pass.into_record(), of_features, logits)
    });
    let (record, of_features, logits) =
        passed.map_err(|problem| broken(format!("it fails at a picture of {}: {problem}", input.image_size)))?;
    if logits != [1, input.classes] {
        return Err(broken(format!("it gives {logits:?} for one picture, which should be [1, {}]", input.classes)));
    }
    check(&found, &record, of_features).map_err(broken)?;
    if record.dropouts != model.dropouts() {
        return Err(broken(format!("`dropouts` says {:?}, and a pass meets {:?}", model.dropouts(), record.dropouts)));
    }
    Ok(collected(&found, &record))
}

/// Whether what the engines rely on holds. The error says which layer breaks it.
fn check(found: &[Found], record: &Record, of_features: usize) -> Result<(), String> {
    let is_dense = |passed: &&Passed| matches!(passed.kind, LayerKind::Dense { .. });
    let matrices: Vec<&Found> = found.iter().filter(|found| found.shape.len() == 2).collect();
    let dense: Vec<&Passed> = record.layers.iter().filter(is_dense).collect();
    if let Some(matrix) = matrices.iter().find(|matrix| !dense.iter().any(|passed| passed.id == matrix.id)) {
        return Err(format!("`{}` has two dimensions and belongs to no dense layer that goes through Pass::dense", matrix.name));
    }
    let order = matrices.iter().zip(&dense).find(|(matrix, passed)| matrix.id != passed.id);
    if let (Some((matrix, _)), _) | (None, Some(matrix)) = (order, (dense.len() > matrices.len()).then(|| matrices.last()).flatten()) {
        return Err(format!("dense layers pass in another order than the module's fields have, or twice: see `{}`", matrix.name));
    }
    if record.layers[..of_features].iter().any(|passed| is_dense(&passed)) {
        return Err("`features` passes a dense layer: it ends before the first one".to_owned());
    }
    let norms: Vec<ParamId> = record.layers.iter().filter(|passed| passed.kind == LayerKind::BatchNorm).map(|passed| passed.id).collect();
    let running = found.iter().filter(|found| found.role == Role::RunningMean);
    for mean in running {
        let scale = found.iter().find(|found| found.role == Role::Scale && layer_of(&found.name) == layer_of(&mean.name));
        let times = norms.iter().filter(|norm| scale.is_some_and(|scale| scale.id == **norm)).count();
        if times != 1 {
            let layer = layer_of(&mean.name);
            return Err(format!("the batch normalisation `{layer}` goes through Pass::batch_norm {times} times, and should once"));
        }
    }
    // The gradients of what lies before the first dense layer come from the second half of
    // the backward pass.
    let first = matrices.first().and_then(|matrix| found.iter().position(|found| found.id == matrix.id)).unwrap_or(found.len());
    for (number, passed) in record.layers.iter().enumerate() {
        let at = found.iter().position(|found| found.id == passed.id).unwrap_or(0);
        if (number < of_features) != (at < first) {
            return Err(format!(
                "`{}` is passed in the other half than its place among the fields says: what stands before the first dense layer belongs to `features`, and the rest to `classifier`",
                found[at].name
            ));
        }
    }
    Ok(())
}

/// The layers in the order of the state.
fn collected(found: &[Found], record: &Record) -> Vec<Layer> {
    let mut layers: Vec<Layer> = Vec::new();
    for Found { id, name, role, shape } in found {
        let values = shape.iter().product::<usize>() as u64;
        let name = layer_of(name);
        if role.is_running() {
            if let Some(layer) = layers.iter_mut().find(|layer| layer.name == name) {
                layer.statistics += values;
            }
            continue;
        }
        if layers.last().is_none_or(|layer| layer.name != name) {
            let kind = LayerKind::Other;
            layers.push(Layer { name: name.to_owned(), kind, output: Vec::new(), parameters: 0, statistics: 0, macs: 0 });
        }
        let Some(layer) = layers.last_mut() else { continue };
        layer.parameters += values;
        if let Some(passed) = record.layers.iter().find(|passed| passed.id == *id) {
            layer.kind = passed.kind;
            layer.output = passed.output[1..].iter().map(|&n| n as u64).collect();
            layer.macs = match passed.kind {
                // Each output value of a channel takes each weight of that channel once.
                LayerKind::Convolution { .. } => values * layer.output.iter().skip(1).product::<u64>(),
                LayerKind::Dense { .. } => values,
                _ => 0,
            };
        }
    }
    layers
}
