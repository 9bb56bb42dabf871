//! The coordinator of a run: membership, data and checkpoint service, and the
//! launcher of workers here and over ssh. It trains nothing and knows no tensor.
//!
//! [`membership`] decides and [`serve`] carries out. The modules below are in the
//! order of their dependencies: none imports from a later one.

// The bounds of what a worker can truthfully report in a run.
pub mod limits;

// The membership of the run.
pub mod membership;

// Which worker enrolled with which token, and which tokens are revoked.
pub mod admissions;

// Writes the run's record on a thread of its own.
pub mod record_writer;

// The news for the main loop, in order.
pub mod inbox;

// Samples and checkpoints, over connections of their own.
pub mod bulk;

// Packets between workers that do not reach each other.
pub mod relay;

// A live page of a run, its status and its metrics.
pub mod page;

// The coordinator of one run.
pub mod serve;

// What a model of one's own consists of.
pub mod describe;

// Words of a POSIX shell.
pub mod shell;

// Starts worker processes, prefixes their lines, replaces those that die.
pub mod supervisor;

// The worker processes of a cluster on one machine.
pub mod local;

// Workers on other machines, over ssh.
pub mod ssh;

// `coordinator audit`.
pub mod audit;

// What more machines would bring.
pub mod forecast;

// `coordinator check`.
pub mod check;

// `coordinator doctor`.
pub mod doctor;

// `coordinator token`.
pub mod token;

// `coordinator slurm`.
pub mod slurm;

// `coordinator init`.
pub mod init;

// `coordinator runs`.
pub mod runs;

// The command line.
pub mod cli;
