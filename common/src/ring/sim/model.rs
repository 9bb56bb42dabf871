//! What a simulated step consists of and what it costs.

use serde::Serialize;

use crate::ring::bucket::BucketLayout;
use crate::ring::encoding::Encoding;
#[cfg(doc)]
use crate::ring::schedule;
use crate::seed;

/// The largest number that any cost may be.
const MOST: f64 = 1e9;

/// What messages cost. A *message* is a [segment](schedule::SEGMENT) of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, clap::Args)]
pub struct Costs {
    /// Time from one machine to the next, beside what the link takes.
    #[arg(long, value_name = "US", default_value_t = Costs::USUAL.latency_us, value_parser = not_negative)]
    pub latency_us: f64,
    /// Time from one process to another of the same machine.
    #[arg(long, value_name = "US", default_value_t = Costs::USUAL.local_latency_us, value_parser = not_negative)]
    pub local_latency_us: f64,
    /// What a machine's link carries each way, in 10^9 bits a second. Within a
    /// machine there is no link: copies are CPU time.
    #[arg(long, value_name = "GBIT", default_value_t = Costs::USUAL.link_gbit_per_s, value_parser = positive)]
    pub link_gbit_per_s: f64,
    /// The sender's CPU time for each byte on the wire, encryption apart.
    #[arg(long, value_name = "NS", default_value_t = Costs::USUAL.send_ns_per_byte, value_parser = not_negative)]
    pub send_ns_per_byte: f64,
    /// The receiver's CPU time for each byte on the wire, decryption apart.
    #[arg(long, value_name = "NS", default_value_t = Costs::USUAL.receive_ns_per_byte, value_parser = not_negative)]
    pub receive_ns_per_byte: f64,
    /// CPU time for each byte on the wire to encrypt it, and again to decrypt it.
    #[arg(long, value_name = "NS", default_value_t = Costs::USUAL.encrypt_ns_per_byte, value_parser = not_negative)]
    pub encrypt_ns_per_byte: f64,
    /// CPU time for each value, half of it at either end: encoding, decoding, adding.
    #[arg(long, value_name = "NS", default_value_t = Costs::USUAL.sum_ns_per_value, value_parser = not_negative)]
    pub sum_ns_per_value: f64,
    /// CPU time for each message, once at either end.
    #[arg(long, value_name = "US", default_value_t = Costs::USUAL.message_us, value_parser = not_negative)]
    pub message_us: f64,
}

impl Costs {
    /// Of processors of today, over 10 Gb/s.
    pub const USUAL: Self = Self {
        latency_us: 50.0,
        local_latency_us: 20.0,
        link_gbit_per_s: 10.0,
        send_ns_per_byte: 1.3,
        receive_ns_per_byte: 1.3,
        encrypt_ns_per_byte: 0.2,
        sum_ns_per_value: 0.5,
        message_us: 10.0,
    };
}

/// What the workers run on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Machines {
    pub cores: f64,
    /// At least 1.
    pub workers_each: usize,
    /// Cores that the compute of one worker keeps busy; 0 if it is on a GPU.
    pub compute_cores: f64,
}

/// Parameters that are neighbours in the flat gradient and whose gradients are
/// there at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    pub elements: usize,
    /// Compute of the step until they are there.
    pub ready_ms: f64,
}

/// A matrix of which every rank contributes as many values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gathered {
    pub values_each: usize,
    /// Compute of the step until a rank's own values are there.
    pub ready_ms: f64,
    pub encoding: Encoding,
}

/// One step of one worker.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    /// In the order of the flat gradient; together they are the layout's elements.
    pub parts: Vec<Part>,
    /// The whole compute: forward and backward. No part is ready later.
    pub compute_ms: f64,
    /// From the summed gradient to the next step.
    pub update_ms: f64,
    pub layout: BucketLayout,
    pub encoding: Encoding,
    /// What is gathered, in the order in which it is handed to the ring: before any bucket.
    pub gathered: Vec<Gathered>,
    /// What follows both the compute and the last matrix, while buckets may be on their way:
    /// the products of the factors.
    pub product_ms: f64,
    /// Buckets on their way at a time: [`STREAMS_IN_FLIGHT`](crate::net::transport::STREAMS_IN_FLIGHT)
    /// for each connection.
    pub in_flight: usize,
}

/// The times of one simulated step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    pub step_ms: f64,
    /// Until the last gradient is computed: longer than the compute by itself
    /// where messages take cores from it.
    pub compute_ms: f64,
    /// The wait for gradients after that.
    pub exposed_ms: f64,
}

/// A message as it is handed to the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    pub rank: usize,
    /// A bucket, the statistics after those, or a matrix after those.
    pub bucket: usize,
    /// Place in the rank's hops.
    pub hop: usize,
    pub values: usize,
}

/// How much longer than planned the slowest of `world` workers computes in one
/// step: each takes `1 + spread |n|` times as long, n standard normal.
pub fn slowest(seed: u64, step: u64, world: usize, spread: f64) -> f64 {
    let delay = |rank: u64| f64::from(seed::normal(&mut seed::stream(seed, "straggler", &[step, rank])).abs());
    if spread == 0.0 { 1.0 } else { 1.0 + spread * (0..world as u64).map(delay).fold(0.0, f64::max) }
}

/// When each matrix and each bucket is ready, in seconds of compute, in the order in which
/// they are handed to the ring: matrices first, buckets from the last to the first, the
/// statistics at the end.
pub(super) fn ready(work: &Work) -> Vec<(usize, f64)> {
    let Work { layout, parts, compute_ms, gathered, .. } = work;
    let compute_ms = *compute_ms;
    let mut spans = Vec::with_capacity(parts.len());
    let mut start = 0;
    for part in parts {
        spans.push((start..start + part.elements, part.ready_ms));
        start += part.elements;
    }
    let mut due = Vec::with_capacity(layout.len() + 1 + gathered.len());
    let mut latest: f64 = 0.0;
    for (number, matrix) in gathered.iter().enumerate() {
        latest = latest.max(matrix.ready_ms.min(compute_ms));
        due.push((layout.statistics() + 1 + number, latest / 1e3));
    }
    for bucket in (0..layout.len()).rev() {
        let range = layout.range(bucket);
        // A bucket is full once the last of its values is there.
        for (span, ready_ms) in &spans {
            if span.start < range.end && range.start < span.end {
                latest = latest.max(ready_ms.min(compute_ms));
            }
        }
        due.push((bucket, latest / 1e3));
    }
    due.push((layout.statistics(), compute_ms / 1e3));
    due
}

/// Reads a number that may be 0 but no less, for a command line.
pub fn not_negative(text: &str) -> Result<f64, String> {
    let number = text.parse().map_err(|_| "a number is needed".to_owned())?;
    if (0.0..=MOST).contains(&number) { Ok(number) } else { Err(format!("it must be between 0 and {MOST}")) }
}

/// Reads a number above 0, for a command line.
pub fn positive(text: &str) -> Result<f64, String> {
    match not_negative(text)? {
        0.0 => Err("it must be above 0".to_owned()),
        number => Ok(number),
    }
}
