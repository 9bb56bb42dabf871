//! A worker of a cluster. [`join`] holds its connections and its conversation with the
//! coordinator ([`control`]); [`member`] is the thread that trains; [`link`] is what
//! the two share. [`probe`] tries the paths to other workers, [`state_transfer`] gives
//! them the state, [`checkpoints`], [`pictures`] and [`streamed_source`] transfer checkpoints,
//! pictures and samples over [`bulk`], and [`replay_log`] keeps the reports that a restarted
//! coordinator needs again. [`registry`] lists this machine's workers.

pub mod bulk;
pub mod checkpoints;
pub mod control;
pub mod join;
pub mod link;
pub mod member;
pub mod pictures;
pub mod probe;
pub mod registry;
pub mod replay_log;
pub mod state_transfer;
pub mod streamed_source;
pub mod supervised;
