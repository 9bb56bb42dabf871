//! `worker bench ring-sim --check`: compares the simulation with rings on this machine.
//!
//! The costs are fitted to rings of two processes with the smallest and the largest
//! gradient. The times of rings of two to four processes with all gradients are then
//! predicted and compared with measured ones. All measurements are repeated in turns,
//! of which those count in which other processes used the machine least; the simulated
//! machine has the cores that these left free.

use anyhow::Result;
use clap::ValueEnum as _;
use common::config::{WireEncoding, name_of};
use common::net::transport::STREAMS_IN_FLIGHT;
use common::ring::BucketLayout;
use common::ring::sim::{Costs, Machines, Part, Work, simulate};
use serde::Serialize;

use super::arguments::RingSimArgs;
use crate::bench::report::{cores, median, show};
use crate::bench::ring::load::Load;
use crate::bench::ring::{Rounds, rounds};

const WORLDS: [u32; 3] = [2, 3, 4];
/// Turns of all measurements. Each turn forms a new ring for each measurement.
const TURNS: u64 = 7;
/// If other processes use more than this share of the cores, the result is a rough one.
const QUIET: f64 = 0.1;

/// The result of all turns of one measurement.
struct Measured {
    ms: f64,
    /// The share of all cores that other processes used.
    others: f64,
}

impl Measured {
    /// The median over the turns of the ring's median round, and the mean share that
    /// other processes used. Only turns count in which that share was hardly larger
    /// than in the quietest turn. Many rounds of few rings would not do: of two rings
    /// of the same processes one may take a third longer in every round.
    fn of(turns: &[Rounds]) -> Self {
        let least = turns.iter().map(|turn| turn.others).fold(f64::INFINITY, f64::min);
        let quiet: Vec<&Rounds> = turns.iter().filter(|turn| turn.others <= least + QUIET / 2.0).collect();
        let others = quiet.iter().map(|turn| turn.others).sum::<f64>() / quiet.len().max(1) as f64;
        Self { ms: median(quiet.iter().map(|turn| typical(turn))), others }
    }
}

/// The median round of one ring.
fn typical(turn: &Rounds) -> f64 {
    median(turn.rounds.iter().map(|round| round.ms))
}

/// The predicted and the measured time of a ring.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Check {
    pub world: u32,
    pub bytes: u64,
    pub wire: WireEncoding,
    pub predicted_ms: f64,
    pub measured_ms: f64,
    /// The difference, as a share of the measured time.
    pub error: f64,
    /// The share of this machine's cores that other processes used meanwhile.
    pub others: f64,
    /// Whether this measurement is one of those that the costs were fitted to.
    pub fitted: bool,
}

/// All comparisons, with the costs that were fitted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct CheckReport {
    pub costs: Costs,
    pub cores: f64,
    pub checks: Vec<Check>,
}

pub(super) fn run(args: &RingSimArgs) -> Result<()> {
    let mut sizes = args.check_bytes.clone();
    sizes.sort_unstable();
    sizes.dedup();
    let mut loads = Vec::new();
    for &wire in WireEncoding::value_variants() {
        for world in WORLDS {
            loads.extend(sizes.iter().map(|&bytes| load(args, world, bytes, wire)));
        }
    }
    let mut turns: Vec<Vec<Rounds>> = vec![Vec::new(); loads.len()];
    for turn in 1..=TURNS {
        for (load, turns) in loads.iter().zip(&mut turns) {
            let found = rounds(load)?;
            let (ms, others) = (typical(&found), 100.0 * found.others);
            let what = format!("{} processes, {} bytes, {}", load.world, load.bytes, name_of(load.wire));
            tracing::info!("turn {turn} of {TURNS}: {what}: {ms:.1} ms, others {others:.0}%");
            turns.push(found);
        }
    }
    let measured: Vec<(Load, Measured)> = loads.into_iter().zip(turns.iter().map(|turns| Measured::of(turns))).collect();
    let ends = [sizes.first(), sizes.last()];
    let fitted = |load: &Load| load.world == WORLDS[0] && ends.contains(&Some(&load.bytes));
    let known: Vec<&(Load, Measured)> = measured.iter().filter(|(load, _)| fitted(load)).collect();
    let cores = f64::from(cores());
    let predict = |load: &Load, found: &Measured, costs: &Costs| {
        let left = Machines { cores: cores * (1.0 - found.others), workers_each: load.world as usize, compute_cores: 0.0 };
        simulate(load.world as usize, &work(load), costs, &left, 1.0).step_ms
    };
    let costs = fit(&args.costs, |costs| {
        let error = |(load, found): &&(Load, Measured)| (predict(load, found, costs) / found.ms).ln().powi(2);
        known.iter().map(error).sum()
    });
    let checks = measured.iter().map(|(load, found)| {
        let predicted_ms = predict(load, found, &costs);
        Check {
            world: load.world,
            bytes: load.bytes,
            wire: load.wire,
            predicted_ms,
            measured_ms: found.ms,
            error: (predicted_ms - found.ms).abs() / found.ms,
            others: found.others,
            fitted: fitted(load),
        }
    });
    let busiest = measured.iter().map(|(_, found)| found.others).fold(0.0, f64::max);
    if busiest > QUIET {
        tracing::warn!("others used up to {:.0}% of the cores: repeat this when nothing else runs here", 100.0 * busiest);
    }
    let report = CheckReport { costs, cores, checks: checks.collect() };
    show(args.json, &report, text)
}

fn load(args: &RingSimArgs, world: u32, bytes: u64, wire: WireEncoding) -> Load {
    let rounds = args.check_rounds;
    Load { world, bytes, wire, rounds, connections: args.step.connections, bucket_bytes: args.step.bucket_bytes, threads: 1, packet: None }
}

/// A gradient that is ready from the start.
fn work(load: &Load) -> Work {
    let elements = load.elements() as usize;
    Work {
        parts: vec![Part { elements, ready_ms: 0.0 }],
        compute_ms: 0.0,
        update_ms: 0.0,
        layout: BucketLayout::new(elements, load.bucket_bytes as usize),
        encoding: load.wire.into(),
        gathered: Vec::new(),
        product_ms: 0.0,
        in_flight: (STREAMS_IN_FLIGHT * load.connections) as usize,
    }
}

/// The costs that rings of two processes can tell apart: of a byte on the wire (half
/// for the sender and half for the receiver, encryption included), of a value
/// (including its share of the cost of a message, since all messages have one size
/// here), and the latency between processes.
fn costs_of(base: &Costs, [per_byte, per_value, latency_us]: [f64; 3]) -> Costs {
    Costs {
        local_latency_us: latency_us,
        send_ns_per_byte: per_byte / 2.0,
        receive_ns_per_byte: per_byte / 2.0,
        encrypt_ns_per_byte: 0.0,
        sum_ns_per_value: per_value,
        message_us: 0.0,
        ..*base
    }
}

/// Searches for the costs with the smallest `error`: multiplies or divides each of the
/// three by a factor for as long as that helps, then goes on with smaller factors.
fn fit(base: &Costs, error: impl Fn(&Costs) -> f64) -> Costs {
    let mut best = [0.5, 0.5, 500.0];
    let mut least = error(&costs_of(base, best));
    for step in [4.0, 2.0, 1.4, 1.2, 1.1, 1.05, 1.02, 1.01f64] {
        let mut better = true;
        while better {
            better = false;
            for place in 0..best.len() {
                for factor in [step, 1.0 / step] {
                    let mut tried = best;
                    tried[place] *= factor;
                    let found = error(&costs_of(base, tried));
                    if found < least * (1.0 - 1e-6) {
                        (best, least, better) = (tried, found, true);
                    }
                }
            }
        }
    }
    costs_of(base, best)
}

fn text(report: &CheckReport) -> String {
    let costs = &report.costs;
    let mut lines = vec![
        format!(
            "fitted to 2 processes with the smallest and the largest gradient: {:.2} ns for a byte on the wire, {:.2} ns for a value, {:.0} us between processes",
            costs.send_ns_per_byte + costs.receive_ns_per_byte,
            costs.sum_ns_per_value,
            costs.local_latency_us
        ),
        format!(
            "{:>5}  {:>10}  {:>5}  {:>12}  {:>11}  {:>6}  {:>6}",
            "world", "bytes", "wire", "predicted ms", "measured ms", "error", "others"
        ),
    ];
    for check in &report.checks {
        lines.push(format!(
            "{:>5}  {:>10}  {:>5}  {:>12.1}  {:>11.1}  {:>5.1}%  {:>5.1}%{}",
            check.world,
            check.bytes,
            name_of(check.wire),
            check.predicted_ms,
            check.measured_ms,
            100.0 * check.error,
            100.0 * check.others,
            if check.fitted { "  (fitted)" } else { "" }
        ));
    }
    lines.join("\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: RingSimArgs,
    }

    #[test]
    fn costs_are_found_again_in_what_they_cost() {
        let args = Line::parse_from(["x"]).args;
        let truth = costs_of(&args.costs, [0.8, 0.9, 1500.0]);
        let machine = Machines { cores: 2.0, workers_each: 2, compute_cores: 0.0 };
        let took = |costs: &Costs, bytes, wire| simulate(2, &work(&load(&args, 2, bytes, wire)), costs, &machine, 1.0).step_ms;
        let points: Vec<(u64, WireEncoding, f64)> = [32 << 20, 128 << 20]
            .into_iter()
            .flat_map(|b| WireEncoding::value_variants().iter().map(move |&w| (b, w)))
            .map(|(b, w)| (b, w, took(&truth, b, w)))
            .collect();
        let found = fit(&args.costs, |costs| points.iter().map(|(b, w, ms)| (took(costs, *b, *w) / ms).ln().powi(2)).sum());
        for (bytes, wire, ms) in points {
            assert!((took(&found, bytes, wire) / ms - 1.0).abs() < 0.02, "{bytes} {wire:?}: {found:?}");
        }
        assert!((found.send_ns_per_byte / truth.send_ns_per_byte - 1.0).abs() < 0.1, "{found:?}");
    }
}
