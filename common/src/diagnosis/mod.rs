//! What is wrong with a machine, or with the network between a machine and a coordinator.
//!
//! A worker's side looks for the coordinator (`reach.rs`), then pays it a visit that proves
//! a token's secret and enrols nobody, and measures ([`examine`]). The coordinator's side
//! answers within bounds ([`Diagnoses`]): one visit at a time, a few connections, a bounded
//! number of bytes, fewer while a ring trains. What figures mean is decided in
//! `verdicts.rs`, which measures nothing.

mod examine;
mod ledger;
mod machine;
mod messages;
mod reach;
mod server;
#[cfg(test)]
mod tests;
mod verdicts;
mod visitor;

pub use examine::{Examination, examine};
pub use machine::{clock, descriptors, disk, socket_buffers};
pub use reach::quic_answers;
pub use server::Diagnoses;
