//! The terminal output of a run: log lines, and one progress bar on a terminal or plain
//! lines elsewhere. None of it can delay or end a run.

mod logging;
mod output;
mod progress;
mod screen;
mod visible;
mod writer;

pub use logging::{LogArgs, LogFormat, LogOptions, exit_code, init};
pub use output::{Unread, exit, flush, print_result, print_stderr, print_stdout};
pub use progress::{StepProgress, counter, duration, index_progress};
pub use visible::{visible, visible_within};
