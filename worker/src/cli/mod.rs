//! The command line of `worker`: its [`arguments`] and what each command does.

pub mod arguments;
pub mod commands;
mod inspect;

use std::process::ExitCode;

use anyhow::anyhow;
use clap::Parser;
use common::run_dir::Resume;

use crate::models::{self, Own};
use arguments::Cli;

/// All of a worker binary: parses the arguments of this process, sets up logging and carries
/// out the command. Configs may name these models besides those of this project. To be called
/// once, by `main`.
pub fn run(models: impl IntoIterator<Item = Own>) -> ExitCode {
    let cli = Cli::parse_from(Resume::joined(std::env::args_os()));
    common::ui::init(cli.log.options());
    let registered = models::register(models).map_err(|problem| anyhow!(problem));
    common::ui::exit_code(registered.and_then(|()| commands::run(cli)))
}
