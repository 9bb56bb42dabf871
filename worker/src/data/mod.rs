//! The input pipeline: from undecoded samples to batches of pictures of the model's size,
//! on threads of its own, ahead of training and in bounded memory.
//!
//! Nothing here depends on a model or a device. The content of a batch depends on the
//! plan and the seed alone, never on the number of threads.

mod augment;
mod decode;
mod encode;
mod inputs;
mod loader;
mod masks;
mod mix;
mod operations;
mod picture;
mod pipeline;
mod policies;
mod render;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_augmentation;

pub use augment::Recipe;
pub use decode::{DecodeError, SampleFile, decode};
pub use encode::{jpeg_of, png_of, write_png};
pub use inputs::{Erased, Filling, Finish, InputBuffer, Inputs, Pictures};
pub use loader::{EvalLoader, Input, TrainLoader, evaluation_batch};
pub use masks::{Dropout, MaskGroup, MaskRows, Masks};
pub use mix::Second;
pub use picture::{Part, Picture, Region};
pub use pipeline::{Batch, BatchName, LoadError, LoaderOptions, Skipped};
pub use render::Renderer;
