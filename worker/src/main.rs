//! The `worker` binary, with the models of this project.

use std::process::ExitCode;

fn main() -> ExitCode {
    worker::cli::run([])
}
