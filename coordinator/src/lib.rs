//! The coordinator of a run: membership, data and checkpoint service, and the
//! launcher of local workers.
//!
//! [`membership`] decides, [`serve`] carries out, [`peer`] and [`bulk`] speak
//! with workers. It trains nothing and knows no tensor.

pub mod audit;
pub mod bulk;
pub mod check;
pub mod cli;
pub mod commands;
pub mod desk;
pub mod limits;
pub mod local;
pub mod membership;
pub mod peer;
pub mod roster;
pub mod serve;
pub mod token;
