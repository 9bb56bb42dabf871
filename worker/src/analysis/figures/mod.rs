//! Pictures of a run: curves, filters, decision regions, confusion, and the activation
//! functions. A [`Figure`] draws itself, [`save`] writes it to a file, and [`of_runs`]
//! makes figures from run directories.

mod activations;
mod confusion;
mod curves;
mod figure;
pub mod of_runs;
mod regions;
mod style;
mod tiles;

pub use activations::Activations;
pub use confusion::Confusion;
pub use curves::{Curve, Curves};
pub use figure::{Figure, Format, save};
pub use regions::Regions;
pub use tiles::{Tile, Tiles, filters};

#[cfg(test)]
mod tests;
