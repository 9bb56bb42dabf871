//! Ring all-reduce: what to send to whom ([`schedule`]), in which spans
//! ([`bucket`]) in which number format ([`encoding`]), and how sums are made
//! independent of their order ([`fixed`]), and what all that takes in a cluster
//! that is not at hand ([`sim`]), all pure; and the driver that moves the bytes
//! ([`Ring`]).

pub mod bucket;
mod driver;
pub mod encoding;
pub mod fixed;
pub(crate) mod form;
pub mod header;
mod lane;
pub mod schedule;
mod shared;
pub mod sim;
mod values;

#[cfg(test)]
mod tests;

pub use bucket::{BucketLayout, STATISTICS};
pub use driver::{Ring, RingAborter, RingPeer, RingSpec};
pub use encoding::Encoding;
pub use shared::RingError;
pub use values::{Bucket, Span, SpanMut, Values};
