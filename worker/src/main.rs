//! The `worker` binary: parses arguments, sets up logging, calls the library.

use std::process::ExitCode;

use clap::Parser;
use common::run_dir::Resume;

fn main() -> ExitCode {
    let cli = worker::cli::arguments::Cli::parse_from(Resume::joined(std::env::args_os()));
    common::ui::init(cli.log.options());
    common::ui::exit_code(worker::cli::commands::run(cli))
}
