//! Ring all-reduce. Pure parts: what to send to which rank ([`schedule`]), in which
//! spans ([`bucket`]) and rows ([`Gathers`]), in which number format ([`encoding`]), how sums are made
//! independent of their order ([`fixed`]), and a simulation of the time a step takes
//! in a cluster that is not available ([`sim`]). [`Ring`] is the driver that moves the
//! bytes.

pub mod bucket;
mod channel;
mod driver;
pub mod encoding;
mod exchange_plan;
pub mod fixed;
pub(crate) mod form;
mod gather;
pub mod header;
pub mod schedule;
mod shared;
pub mod sim;
mod spec;
mod values;

#[cfg(test)]
mod tests;

pub use bucket::{BucketLayout, STATISTICS};
pub use driver::{Ring, RingAborter};
pub use encoding::Encoding;
pub use exchange_plan::ExchangePlan;
pub use gather::Gathers;
pub use shared::RingError;
pub use spec::{RingPeer, RingSpec};
pub use values::{Bucket, Span, SpanMut, Values};
