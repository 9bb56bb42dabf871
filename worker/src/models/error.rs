//! Why there is no network for a config.

/// `name` is that of a model of one's own.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error(
        "the model `{name}` is somebody's own, and this worker has {has}: start the worker binary of the crate that has it (with `coordinator local`, --worker-binary FILE)"
    )]
    Unknown { name: String, has: String },
    #[error("the keys of [model.own] are not those of the model `{name}`: {problem}")]
    Keys { name: String, problem: String },
    #[error("the model `{name}` cannot be built for {input}: {problem}")]
    Built { name: String, input: common::config::InputShape, problem: String },
    #[error("the model `{name}` does not keep to the rules of worker::models::Network: {problem}")]
    Rules { name: String, problem: String },
    #[error(
        "the model `{name}` of this worker has other layers than that of the run: {problem}; start the worker binary that began the run, or begin another run"
    )]
    OtherLayers { name: String, problem: String },
}
