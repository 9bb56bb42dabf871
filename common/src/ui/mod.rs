//! The terminal output of a run: log lines, and one progress bar on a terminal or plain
//! lines elsewhere. None of it can delay or end a run. And what shells and `man` know of
//! the command lines.

mod findings;
mod logging;
mod manual;
mod output;
mod progress;
mod screen;
mod visible;
mod writer;

pub use findings::{Finding, Verdict, print_findings};
pub use logging::{LogArgs, LogFormat, LogOptions, exit_code, init};
pub use manual::{CompletionsArgs, ManArgs};
pub use output::{Unread, exit, flush, print_result, print_stderr, print_stdout};
pub use progress::{StepProgress, busy, counter, duration, index_progress};
pub use visible::{visible, visible_within};
