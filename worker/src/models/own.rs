//! Models of one's own: burn modules in a crate of the user's, whose binary is the worker.
//! Which a worker has is a fact of its binary, as the models of this crate are; so the list of
//! them is one of the process, set before anything else and never changed.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use burn::tensor::Device;
use common::config::{InputShape, OwnConfig};
use common::contained;
use serde::de::DeserializeOwned;

use super::error::ModelError;
use super::network::{AnyNetwork, Network};

/// A model of one's own, by the name that configs have for it.
pub struct Own {
    name: &'static str,
    build: Box<Build>,
}

type Build = dyn Fn(toml::Table, InputShape, &Device) -> Result<Box<dyn AnyNetwork>, Refused> + Send + Sync;

enum Refused {
    Keys(String),
    Built(String),
}

static MODELS: OnceLock<Vec<Own>> = OnceLock::new();

impl Own {
    /// `build` makes the module from the keys of `[model.own]`, which `Keys` reads, for this
    /// input and on this device; its error says which value cannot be. What the module's
    /// parameters begin as does not matter: they are drawn by the run's seed (see
    /// docs/own-model.md).
    pub fn new<Keys, N>(name: &'static str, build: impl Fn(Keys, InputShape, &Device) -> Result<N, String> + Send + Sync + 'static) -> Self
    where
        Keys: DeserializeOwned,
        N: Network,
    {
        let build = move |own: toml::Table, input: InputShape, device: &Device| -> Result<Box<dyn AnyNetwork>, Refused> {
            let keys = own.try_into::<Keys>().map_err(|e| Refused::Keys(e.to_string().trim_end().to_owned()))?;
            // A module's own assertions are about its keys and its input.
            let built = contained::run(|| build(keys, input, device)).and_then(|built| built);
            Ok(Box::new(built.map_err(Refused::Built)?))
        };
        Self { name, build: Box::new(build) }
    }
}

/// Gives this process its models.
///
/// # Errors
/// It has some already, or two have the same name.
pub fn register(models: impl IntoIterator<Item = Own>) -> Result<(), String> {
    let models: Vec<Own> = models.into_iter().collect();
    for (number, model) in models.iter().enumerate() {
        if models[..number].iter().any(|other| other.name == model.name) {
            return Err(format!("two models of this worker have the name `{}`: give one another name", model.name));
        }
    }
    MODELS.set(models).map_err(|_| "this worker has its models already: name all of them in one list".to_owned())
}

/// The network of a config that names a model of one's own.
pub(super) fn build(config: &OwnConfig, input: InputShape, device: &Device) -> Result<Box<dyn AnyNetwork>, ModelError> {
    let models = MODELS.get().map_or(&[][..], Vec::as_slice);
    let name = || config.name.clone();
    let Some(own) = models.iter().find(|own| own.name == config.name) else {
        let names: Vec<String> = models.iter().map(|own| format!("`{}`", own.name)).collect();
        let has = if names.is_empty() { "none such".to_owned() } else { names.join(", ") };
        return Err(ModelError::Unknown { name: name(), has });
    };
    let network = (own.build)(config.own.clone(), input, device).map_err(|refused| match refused {
        Refused::Keys(problem) => ModelError::Keys { name: name(), problem },
        Refused::Built(problem) => ModelError::Built { name: name(), input, problem },
    })?;
    same_layers(config, network.as_ref())?;
    Ok(network)
}

/// Refuses a network that is not what the config's description says: places in the flat state
/// follow from that.
fn same_layers(config: &OwnConfig, network: &dyn AnyNetwork) -> Result<(), ModelError> {
    let Some(described) = &config.described else { return Ok(()) };
    let mut expected: BTreeMap<&str, i128> = BTreeMap::new();
    for layer in &described.layers {
        *expected.entry(&layer.name).or_default() += i128::from(layer.values());
    }
    let mut problem = None;
    network.visit(&mut |leaf| {
        let values = leaf.tensor.shape().iter().product::<usize>() as i128;
        match expected.get_mut(layer_of(&leaf.name)) {
            Some(rest) => *rest -= values,
            None => problem = Some(format!("the run's has no parameter `{}`", leaf.name)),
        }
    });
    let unlike = || expected.iter().find(|(_, rest)| **rest != 0);
    let problem = problem.or_else(|| unlike().map(|(layer, rest)| format!("the layer `{layer}` has {rest} values too few")));
    problem.map_or(Ok(()), |problem| Err(ModelError::OtherLayers { name: config.name.clone(), problem }))
}

/// The name of the layer that a parameter belongs to.
pub(super) fn layer_of(parameter: &str) -> &str {
    parameter.rsplit_once('.').map_or("", |(layer, _)| layer)
}
