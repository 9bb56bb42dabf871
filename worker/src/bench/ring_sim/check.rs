//! `worker bench ring-sim --check`: holds the simulation against this machine.
//!
//! Rings of two processes with the smallest and the largest gradient give the
//! costs; what rings of two to four processes take for all gradients is then
//! foretold and measured. Measurements take turns, of which those count in which
//! others used the machine least; the simulation has the cores that these left.

use anyhow::Result;
use common::config::WireEncoding;
use common::net::transport::STREAMS_IN_FLIGHT;
use common::ring::BucketLayout;
use common::ring::sim::{Costs, Machines, Part, Work, simulate};
use serde::Serialize;

use super::RingSimArgs;
use crate::bench::ring::{Load, Rounds, rounds};
use crate::bench::{cores, median, name, show};

const WORLDS: [u32; 3] = [2, 3, 4];
const WIRES: [WireEncoding; 2] = [WireEncoding::F32, WireEncoding::Bf16];
/// Turns of all measurements, each with a ring of its own.
const TURNS: u64 = 7;
/// What others may use of the cores: from there on the result is a rough one.
const QUIET: f64 = 0.1;

/// What all turns of one measurement came to.
struct Measured {
    ms: f64,
    /// The share of all cores that others used.
    others: f64,
}

impl Measured {
    /// The median ring's median round, and what others used on average, of the
    /// turns in which that was hardly more than in the quietest. Rounds of few
    /// rings would not do: of two rings of the same processes one may take a third
    /// longer in every round.
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

/// What a ring takes by the simulation, and what it took.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Check {
    pub world: u32,
    pub bytes: u64,
    pub wire: WireEncoding,
    pub predicted_ms: f64,
    pub measured_ms: f64,
    /// The difference, as a share of what was measured.
    pub error: f64,
    /// The share of this machine's cores that others used meanwhile.
    pub others: f64,
    /// The costs were fitted to this measurement among others.
    pub fitted: bool,
}

/// All comparisons, with the costs that were fitted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Report {
    pub costs: Costs,
    pub cores: f64,
    pub checks: Vec<Check>,
}

pub(super) fn run(args: &RingSimArgs) -> Result<()> {
    let mut sizes = args.check_bytes.clone();
    sizes.sort_unstable();
    sizes.dedup();
    let mut loads = Vec::new();
    for wire in WIRES {
        for world in WORLDS {
            loads.extend(sizes.iter().map(|&bytes| load(args, world, bytes, wire)));
        }
    }
    let mut turns: Vec<Vec<Rounds>> = vec![Vec::new(); loads.len()];
    for turn in 1..=TURNS {
        for (load, turns) in loads.iter().zip(&mut turns) {
            let found = rounds(load)?;
            let (ms, others) = (typical(&found), 100.0 * found.others);
            let what = format!("{} processes, {} bytes, {}", load.world, load.bytes, name(load.wire));
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
    let report = Report { costs, cores, checks: checks.collect() };
    show(args.json, &report, text)
}

fn load(args: &RingSimArgs, world: u32, bytes: u64, wire: WireEncoding) -> Load {
    let rounds = args.check_rounds;
    Load { world, bytes, wire, rounds, connections: args.step.connections, bucket_bytes: args.step.bucket_bytes, threads: 1, packet: None }
}

/// A gradient that is there from the start.
fn work(load: &Load) -> Work {
    let elements = load.elements() as usize;
    Work {
        parts: vec![Part { elements, ready_ms: 0.0 }],
        compute_ms: 0.0,
        update_ms: 0.0,
        layout: BucketLayout::new(elements, load.bucket_bytes as usize),
        encoding: load.wire.into(),
        in_flight: (STREAMS_IN_FLIGHT * load.connections) as usize,
    }
}

/// The costs that two processes can tell apart: of a byte on the wire (halved
/// between sender and receiver, who encrypt in it), of a value (with its share of
/// a message, all of one size here), and the time between processes.
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

/// Looks for the costs of the smallest `error`: each of the three is made larger
/// or smaller for as long as that helps, in smaller and smaller steps.
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

fn text(report: &Report) -> String {
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
            name(check.wire),
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
        let points: Vec<(u64, WireEncoding, f64)> =
            [32 << 20, 128 << 20].into_iter().flat_map(|b| WIRES.map(|w| (b, w, took(&truth, b, w)))).collect();
        let found = fit(&args.costs, |costs| points.iter().map(|(b, w, ms)| (took(costs, *b, *w) / ms).ln().powi(2)).sum());
        for (bytes, wire, ms) in points {
            assert!((took(&found, bytes, wire) / ms - 1.0).abs() < 0.02, "{bytes} {wire:?}: {found:?}");
        }
        assert!((found.send_ns_per_byte / truth.send_ns_per_byte - 1.0).abs() < 0.1, "{found:?}");
    }
}
