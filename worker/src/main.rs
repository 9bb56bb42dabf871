//! The `worker` binary: parses arguments, sets up logging, calls the library.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = worker::cli::Cli::parse();
    common::ui::init(cli.log.options());
    common::ui::exit_code(worker::commands::run(cli))
}
