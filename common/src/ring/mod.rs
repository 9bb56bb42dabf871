//! Ring all-reduce: what to send to whom ([`schedule`]), in which spans
//! ([`bucket`]) and in which number format ([`encoding`]), all pure; and the
//! driver that moves the bytes ([`Ring`]).

pub mod bucket;
pub mod encoding;
pub mod schedule;

pub use bucket::{BucketLayout, STATISTICS};
