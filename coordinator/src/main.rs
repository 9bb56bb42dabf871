//! The `coordinator` binary: parses arguments, sets up logging, calls the library.

use std::process::ExitCode;

use clap::Parser;
use common::run_dir::Resume;

fn main() -> ExitCode {
    let cli = coordinator::cli::arguments::Cli::parse_from(Resume::joined(std::env::args_os()));
    common::ui::init(cli.log.options());
    common::ui::exit_code(coordinator::cli::commands::run(cli))
}
