//! `train.freeze`: layers that training leaves as they are.

use super::data::DataConfig;
use super::error::{ConfigError, invalid};
use super::layers::{InputShape, Layer, LayerKind};
use super::model::ModelConfig;
use super::train::TrainConfig;

/// The names of a model's two parts: what comes before its first dense layer, and the rest.
const FEATURES: &str = "features";
const CLASSIFIER: &str = "classifier";

impl TrainConfig {
    /// Whether training leaves a layer as it is: `train.freeze` has its name, the beginning of
    /// it up to a dot, or the name of the part of the model that it is in.
    pub fn freezes(&self, layer: &str, in_features: bool) -> bool {
        self.freeze.iter().any(|entry| names(entry, layer, in_features))
    }

    /// Those of a model's layers that are trained. Layers without parameters are not.
    pub fn trained_layers<'a>(&self, layers: &'a [Layer]) -> impl Iterator<Item = &'a Layer> {
        let trained = with_parts(layers).filter(|(layer, in_features)| layer.parameters > 0 && !self.freezes(&layer.name, *in_features));
        trained.map(|(layer, _)| layer)
    }

    /// How many values of a model's state training changes: parameters and running statistics.
    pub fn trained_values(&self, model: &ModelConfig, input: InputShape) -> u64 {
        self.trained_layers(&model.layers(input)).map(Layer::values).sum()
    }

    /// For a model whose other keys are valid. Of one that nobody has described, nothing is
    /// known yet.
    pub(super) fn validate_freeze(&self, model: &ModelConfig, data: &DataConfig) -> Result<(), ConfigError> {
        if self.freeze.is_empty() || matches!(model, ModelConfig::Own(own) if own.described.is_none()) {
            return Ok(());
        }
        if model.stops_when_right() {
            return Err(invalid("train.freeze", "must be left out with model.kind = \"perceptron\", which has one layer"));
        }
        // Names do not depend on channels and classes.
        let layers = model.layers(InputShape { channels: 1, image_size: data.pixels.image_size as usize, classes: 2 });
        let has = || with_parts(&layers).filter(|(layer, _)| layer.parameters > 0);
        if let Some(odd) = self.freeze.iter().find(|entry| !has().any(|(layer, in_features)| names(entry, &layer.name, in_features))) {
            let names: Vec<&str> = has().map(|(layer, _)| layer.name.as_str()).collect();
            let parts = if has().any(|(_, in_features)| in_features) {
                format!(", and the parts {FEATURES} and {CLASSIFIER}")
            } else {
                String::new()
            };
            let message = format!("has `{odd}`, which names no layer of this model: its layers are {}{parts}", names.join(", "));
            return Err(invalid("train.freeze", message));
        }
        if self.trained_layers(&layers).next().is_none() {
            return Err(invalid("train.freeze", "has every layer, so nothing would be trained: leave out those to train"));
        }
        Ok(())
    }
}

fn names(entry: &str, layer: &str, in_features: bool) -> bool {
    match entry {
        FEATURES => in_features,
        CLASSIFIER => !in_features,
        name => layer.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')),
    }
}

/// The layers, and whether each comes before the first dense one.
fn with_parts(layers: &[Layer]) -> impl Iterator<Item = (&Layer, bool)> {
    let features = layers.iter().position(|layer| matches!(layer.kind, LayerKind::Dense { .. })).unwrap_or(layers.len());
    layers.iter().enumerate().map(move |(number, layer)| (layer, number < features))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn config(model: &str, freeze: &str) -> Result<Config, ConfigError> {
        let text = format!(
            "name = \"t\"\nmodel = {model}\n[data]\nkind = \"synthetic\"\nclasses = 10\ntrain = 64\nval = 20\nimage_size = 64\n[train]\nglobal_batch = 8\nfreeze = {freeze}\n"
        );
        Config::parse(&text, "test", &[])
    }

    fn trained(model: &str, freeze: &str) -> Vec<String> {
        let config = config(model, freeze).unwrap();
        let layers = config.model.layers(InputShape { channels: 3, image_size: 64, classes: 10 });
        config.train.trained_layers(&layers).map(|layer| layer.name.clone()).collect()
    }

    #[test]
    fn entries_name_layers_groups_and_parts() {
        let alexnet = "{kind=\"alexnet\"}";
        assert_eq!(trained(alexnet, "[\"features\"]"), ["dense1", "dense2", "dense3"]);
        assert_eq!(trained(alexnet, "[\"classifier\"]"), ["conv1", "conv2", "conv3", "conv4", "conv5"]);
        assert_eq!(trained(alexnet, "[\"features\", \"dense2\"]"), ["dense1", "dense3"]);
        let mlp = "{kind=\"mlp\", hidden=[8,8,8,8,8,8,8,8,8,8,8]}";
        assert_eq!(trained(mlp, "[\"hidden\"]"), ["output"]);
        // Not hidden.10.
        assert_eq!(trained(mlp, "[\"hidden.1\"]").len(), 11);
    }

    #[test]
    fn only_the_rest_is_counted() {
        let config = config("{kind=\"lenet\"}", "[\"features\"]").unwrap();
        let input = InputShape { channels: 1, image_size: 28, classes: 10 };
        assert_eq!(config.train.trained_values(&config.model, input), 120 * 401 + 84 * 121 + 10 * 85);
    }

    #[test]
    fn what_freezes_nothing_or_everything_is_refused() {
        let refused = |model: &str, freeze: &str| config(model, freeze).unwrap_err().to_string();
        let odd = refused("{kind=\"lenet\"}", "[\"conv1\", \"conv9\"]");
        assert!(odd.contains("`conv9`") && odd.contains("conv1, conv2, dense1") && odd.contains("features"), "{odd}");
        assert!(refused("{kind=\"lenet\"}", "[\"conv\"]").contains("`conv`"));
        assert!(refused("{kind=\"softmax\"}", "[\"features\"]").contains("`features`"));
        assert!(refused("{kind=\"lenet\"}", "[\"features\", \"classifier\"]").contains("nothing would be trained"));
    }
}
