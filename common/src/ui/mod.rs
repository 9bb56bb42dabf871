//! What a person sees while a run goes on: log lines, and one progress bar on a
//! terminal or plain lines where there is none.

mod logging;
mod progress;

pub use logging::{LogArgs, LogFormat, LogOptions, exit_code, init, screen};
pub use progress::{Progress, counter, duration, group, index_progress};
