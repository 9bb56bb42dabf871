//! Ring all-reduce: what to send to whom ([`schedule`]), in which spans
//! ([`bucket`]) and in which number format ([`encoding`]), all pure; and the
//! driver that moves the bytes ([`Ring`]).

pub mod bucket;
mod driver;
pub mod encoding;
mod form;
pub mod header;
mod lane;
pub mod schedule;
mod shared;

#[cfg(test)]
mod tests;

pub use bucket::{BucketLayout, STATISTICS};
pub use driver::{Ring, RingAborter, RingPeer, RingSpec};
pub use shared::RingError;
