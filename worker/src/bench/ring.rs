//! `worker bench ring`: the all-reduce of one gradient between processes of this
//! machine, over encrypted QUIC on loopback.
//!
//! The command starts itself once for each rank and hands each, on stdin, the folder of
//! a temporary certificate authority. Before each round an all-reduce of the statistics
//! synchronises the ranks; a round takes as long as its slowest rank.

pub mod load;
pub(super) mod rank;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use common::config::{WireEncoding, name_of};
use common::net::Authority;
use serde::Serialize;
use serde::de::DeserializeOwned;

use load::{Assignment, Load, Round};

use super::report::{median, show};

#[derive(Debug, Clone, Args)]
pub struct RingArgs {
    #[command(flatten)]
    pub load: Load,
    /// Print the result as one line of JSON.
    #[arg(long)]
    pub json: bool,
}

/// The rounds of one ring.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rounds {
    pub(super) rounds: Vec<Round>,
    /// The share of this machine's cores that other processes used meanwhile.
    pub(super) others: f64,
}

/// The result of one measurement.
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
    /// The share of this machine's cores that other processes used meanwhile, which
    /// makes the result worse.
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
            name_of(m.wire),
            m.median_ms,
            m.best_ms,
            m.bus_gb_per_s,
            m.cpu_ms,
            100.0 * m.others
        )
    })
}

/// Starts the ranks, runs the rounds, and collects the time of the slowest rank in each.
pub(super) fn rounds(load: &Load) -> Result<Rounds> {
    let before = Ticks::now();
    let folder = tempfile::tempdir().context("could not make a temporary folder: free some space, or set TMPDIR")?;
    Authority::open(folder.path())?;
    let mut ranks = (0..load.world).map(Rank::start).collect::<Result<Vec<_>>>()?;
    for (number, rank) in (0..).zip(&mut ranks) {
        rank.write(&Assignment { authority: folder.path().to_owned(), rank: number, load: load.clone() })?;
    }
    let addresses = ranks.iter_mut().map(Rank::hear).collect::<Result<Vec<SocketAddr>>>()?;
    // Every rank has its certificate: the authority is no longer needed.
    drop(folder);
    ranks.iter_mut().try_for_each(|rank| rank.write(&addresses))?;
    let mut slowest = vec![Round { ms: 0.0, cpu_ms: 0.0 }; load.rounds as usize];
    for rank in &mut ranks {
        let rounds: Vec<Round> = rank.hear()?;
        for (slow, round) in slowest.iter_mut().zip(rounds) {
            *slow = Round { ms: slow.ms.max(round.ms), cpu_ms: slow.cpu_ms.max(round.cpu_ms) };
        }
    }
    // The system adds up the CPU time of child processes only once they have ended.
    drop(ranks);
    Ok(Rounds { rounds: slowest, others: Ticks::now().others_since(&before) })
}

/// Clock ticks of all cores so far, as the system counts them; zeros on systems that do
/// not report them.
struct Ticks {
    all: u64,
    busy: u64,
    /// Ticks of this process, and of its child processes that have ended.
    own: u64,
}

impl Ticks {
    fn now() -> Self {
        let machine = numbers("/proc/stat", "cpu ");
        // The columns are user, nice, system, idle, waiting, interrupts of two kinds,
        // and stolen by the host. Interrupts are left out, since the ring's packets
        // cause them too.
        let busy = [0, 1, 2, 7].into_iter().filter_map(|at| machine.get(at)).sum();
        // User and system, of this process and of its children.
        let own = numbers("/proc/self/stat", ") ").into_iter().skip(11).take(4).sum();
        Self { all: machine.iter().take(8).sum(), busy, own }
    }

    /// The share of all cores that other processes have used since `before`.
    fn others_since(&self, before: &Self) -> f64 {
        // The system's counters decrease now and then.
        let passed = |now: u64, then: u64| now.saturating_sub(then);
        let others = passed(passed(self.busy, before.busy), passed(self.own, before.own));
        others as f64 / passed(self.all, before.all).max(1) as f64
    }
}

/// The numbers in a file's first line after `mark`; a word that is not a number becomes 0.
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

/// A process of the ring. It is killed when this value is dropped.
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

    fn write(&mut self, message: &impl Serialize) -> Result<()> {
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
        // The process has ended already if all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
