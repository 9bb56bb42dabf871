//! `worker bench ring`: the all-reduce of one gradient between processes of this
//! machine, over encrypted QUIC on loopback.
//!
//! The command starts itself once for each rank and hands each, on stdin, the
//! folder of a throw-away authority. Before each round the ranks meet in an
//! all-reduce of the statistics; a round takes as long as its slowest rank.

pub(super) mod rank;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use common::config::WireEncoding;
use common::net::Authority;
use common::net::transport::{NETWORK_PACKET, SMALLEST_PACKET};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{median, name, show};

#[derive(Debug, Clone, Args)]
pub struct RingArgs {
    #[command(flatten)]
    pub load: Load,
    /// Print the result as one line of JSON.
    #[arg(long)]
    pub json: bool,
}

/// What is reduced, by whom, and how.
#[derive(Debug, Clone, PartialEq, Args, Serialize, Deserialize)]
pub struct Load {
    /// Processes in the ring.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(2..=64))]
    pub world: u32,
    /// Bytes of f32 gradient; AlexNet's by default.
    #[arg(long, default_value_t = 249_513_376, value_parser = clap::value_parser!(u64).range(4..=1 << 34))]
    pub bytes: u64,
    /// The number format between processes.
    #[arg(long, value_enum, default_value = "f32")]
    pub wire: WireEncoding,
    /// Rounds that are counted; two more come before them.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub rounds: u64,
    /// QUIC connections side by side from each process to the next.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub connections: u32,
    /// Bytes of f32 gradient that are reduced as one.
    #[arg(long, value_name = "BYTES", default_value_t = 8 << 20, value_parser = clap::value_parser!(u64).range(4096..=1 << 30))]
    pub bucket_bytes: u64,
    /// Threads of each process's runtime.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub threads: u32,
    /// The largest UDP payload, as on a network: 1452 is what 1500-byte Ethernet
    /// carries [default: loopback's own, 65000].
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(i64::from(SMALLEST_PACKET)..=i64::from(NETWORK_PACKET)))]
    pub packet: Option<u16>,
}

impl Load {
    /// Values of the gradient.
    pub fn elements(&self) -> u64 {
        self.bytes / 4
    }

    /// Bytes that each rank sends in a round, headers not counted: `2 (world - 1)
    /// / world` of the gradient as it travels.
    pub fn sent_bytes(&self) -> f64 {
        let width = common::ring::Encoding::from(self.wire).width() as f64;
        2.0 * f64::from(self.world - 1) / f64::from(self.world) * self.elements() as f64 * width
    }
}

/// A round: how long the slowest rank took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Round {
    pub ms: f64,
    /// CPU time, the most of any rank.
    pub cpu_ms: f64,
}

/// The rounds of one ring.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rounds {
    pub(super) rounds: Vec<Round>,
    /// The share of this machine's cores that others used meanwhile.
    pub(super) others: f64,
}

/// What one measurement gave.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    pub world: u32,
    pub bytes: u64,
    pub wire: WireEncoding,
    pub median_ms: f64,
    pub best_ms: f64,
    /// 10^9 bytes a second that each rank sent in the median round.
    pub bus_gb_per_s: f64,
    /// CPU time of a rank in the median round.
    pub cpu_ms: f64,
    /// The share of this machine's cores that others used meanwhile, who make
    /// the result worse.
    pub others: f64,
}

/// `worker bench ring`.
///
/// # Errors
/// A process could not be started, or the ring broke.
pub fn run(args: &RingArgs) -> Result<()> {
    show(args.json, &measure(&args.load)?, |m| {
        format!(
            "world {}, {} bytes, {}: median {:.1} ms, best {:.1} ms; each rank sends {:.2} GB/s and computes for {:.1} ms; others used {:.0}% of the cores",
            m.world,
            m.bytes,
            name(m.wire),
            m.median_ms,
            m.best_ms,
            m.bus_gb_per_s,
            m.cpu_ms,
            100.0 * m.others
        )
    })
}

/// What a rank is told first.
#[derive(Debug, Serialize, Deserialize)]
struct Assignment {
    /// The folder of the authority that all ranks trust, readable by this user only.
    authority: std::path::PathBuf,
    rank: u32,
    load: Load,
}

/// Starts the ranks, has them reduce, and collects their times: the slowest
/// rank's of each round.
pub(super) fn rounds(load: &Load) -> Result<Rounds> {
    let before = Ticks::now();
    let folder = tempfile::tempdir().context("could not make a temporary folder: free some space, or set TMPDIR")?;
    Authority::open(folder.path())?;
    let mut ranks = (0..load.world).map(Rank::start).collect::<Result<Vec<_>>>()?;
    for (number, rank) in (0..).zip(&mut ranks) {
        rank.tell(&Assignment { authority: folder.path().to_owned(), rank: number, load: load.clone() })?;
    }
    let addresses = ranks.iter_mut().map(Rank::hear).collect::<Result<Vec<SocketAddr>>>()?;
    // Every rank has its certificate: nobody needs the authority any more.
    drop(folder);
    ranks.iter_mut().try_for_each(|rank| rank.tell(&addresses))?;
    let mut slowest = vec![Round { ms: 0.0, cpu_ms: 0.0 }; load.rounds as usize];
    for rank in &mut ranks {
        let rounds: Vec<Round> = rank.hear()?;
        for (slow, round) in slowest.iter_mut().zip(rounds) {
            *slow = Round { ms: slow.ms.max(round.ms), cpu_ms: slow.cpu_ms.max(round.cpu_ms) };
        }
    }
    // What they used is known once they have ended.
    drop(ranks);
    Ok(Rounds { rounds: slowest, others: Ticks::now().others_since(&before) })
}

/// Clock ticks of all cores so far, as the system counts them; zeros where it
/// does not tell.
struct Ticks {
    all: u64,
    busy: u64,
    /// Of what this process has started and seen to its end.
    own: u64,
}

impl Ticks {
    fn now() -> Self {
        let machine = numbers("/proc/stat", "cpu ");
        // User, nice, system, idle, waiting, interrupts of two kinds, stolen by the
        // host. Interrupts are left out: packets cause them, too.
        let busy = [0, 1, 2, 7].into_iter().filter_map(|at| machine.get(at)).sum();
        // User and system, of this process and of its children.
        let own = numbers("/proc/self/stat", ") ").into_iter().skip(11).take(4).sum();
        Self { all: machine.iter().take(8).sum(), busy, own }
    }

    /// The share of all cores that others have used since `before`.
    fn others_since(&self, before: &Self) -> f64 {
        // The system takes back now and then what it has counted.
        let passed = |now: u64, then: u64| now.saturating_sub(then);
        let others = passed(passed(self.busy, before.busy), passed(self.own, before.own));
        others as f64 / passed(self.all, before.all).max(1) as f64
    }
}

/// The words of a file's first line after `mark`: 0 for what is no number.
fn numbers(path: &str, mark: &str) -> Vec<u64> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().next().and_then(|line| line.rsplit_once(mark)).map_or("", |(_, rest)| rest);
    line.split_whitespace().map(|word| word.parse().unwrap_or_default()).collect()
}

fn measure(load: &Load) -> Result<Measured> {
    let Rounds { rounds, others } = rounds(load)?;
    let median_ms = median(rounds.iter().map(|r| r.ms));
    Ok(Measured {
        world: load.world,
        bytes: 4 * load.elements(),
        wire: load.wire,
        median_ms,
        best_ms: rounds.iter().map(|r| r.ms).fold(f64::INFINITY, f64::min),
        bus_gb_per_s: load.sent_bytes() / median_ms / 1e6,
        cpu_ms: median(rounds.iter().map(|r| r.cpu_ms)),
        others,
    })
}

/// A process of the ring. It ends with this value.
struct Rank {
    number: u32,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Rank {
    fn start(number: u32) -> Result<Self> {
        let program = std::env::current_exe().context("could not find this program, which is its own other ranks")?;
        let mut command = Command::new(program);
        command.args(["--quiet", "bench", "ring-rank"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("could not start the process of rank {number}"))?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(input), Some(output)) => Ok(Self { number, child, input, output: BufReader::new(output) }),
            _ => bail!("the process of rank {number} has no pipes"),
        }
    }

    fn tell(&mut self, message: &impl Serialize) -> Result<()> {
        let line = serde_json::to_string(message)?;
        writeln!(self.input, "{line}").with_context(|| self.gone())
    }

    fn hear<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        self.output.read_line(&mut line).with_context(|| self.gone())?;
        if line.is_empty() {
            return Err(anyhow!(self.gone()));
        }
        serde_json::from_str(&line).with_context(|| format!("rank {} said something else than a result: {line}", self.number))
    }

    fn gone(&self) -> String {
        format!("the process of rank {} has ended early; what it said stands above", self.number)
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        // It has ended already if all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
