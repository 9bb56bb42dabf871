//! Pictures of runs and data: curves, filters, decision regions, confusion, small pictures
//! in rows, and the activation functions. A [`Figure`] draws itself, [`save`] writes it to a
//! file, and [`png()`] makes the content of one.

mod activations;
mod confusion;
mod curves;
mod figure;
mod regions;
mod style;
mod tile;
mod tiles;

pub use activations::Activations;
pub use confusion::Confusion;
pub use curves::{Curve, Curves};
pub use figure::{Figure, Format, png, save};
pub use regions::Regions;
pub use tile::Tile;
pub use tiles::{Tiles, filter_sheet, filters};

#[cfg(test)]
mod tests;
