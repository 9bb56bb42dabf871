//! Logging by `tracing`, on stderr, above the progress bar if there is one.

use std::io::{self, Write};
use std::sync::OnceLock;

use indicatif::MultiProgress;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How much to log, and in which form.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogOptions {
    /// Warnings and errors only, and no progress.
    pub quiet: bool,
    /// 1 for debug, 2 for trace.
    pub verbose: u8,
    pub format: LogFormat,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The one place that draws on the terminal: whatever is written while a bar
/// stands must go through it.
pub fn screen() -> &'static MultiProgress {
    static SCREEN: OnceLock<MultiProgress> = OnceLock::new();
    SCREEN.get_or_init(MultiProgress::new)
}

/// Sets up logging for this process. `RUST_LOG` overrides the flags. Safe to
/// call again: the first call wins.
pub fn init(options: LogOptions) {
    let level = match (options.quiet, options.verbose) {
        (true, _) => "warn",
        (false, 0) => "info",
        (false, 1) => "debug",
        (false, _) => "trace",
    };
    // quinn and rustls speak at debug about every packet; theirs stay at warn
    // until trace is asked for.
    let others = if options.verbose >= 2 { level } else { "warn" };
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("{others},common={level},worker={level},coordinator={level}")));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(AboveTheBar);
    let outcome = match options.format {
        LogFormat::Json => builder.json().try_init(),
        LogFormat::Text => builder.with_target(false).with_ansi(std::io::IsTerminal::is_terminal(&io::stderr())).compact().try_init(),
    };
    if outcome.is_err() {
        tracing::debug!("logging was set up before");
    }
}

/// Writes each log line to stderr while the bar is out of the way.
struct AboveTheBar;

impl Write for AboveTheBar {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        screen().suspend(|| io::stderr().write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl MakeWriter<'_> for AboveTheBar {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}

/// The flags that every command shares.
#[derive(Debug, Clone, clap::Args)]
pub struct LogArgs {
    /// Only warnings and errors, no progress.
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// More detail; twice for everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// The form of log lines.
    #[arg(long, global = true, value_enum, default_value_t)]
    pub log_format: LogFormat,
}

impl LogArgs {
    pub fn options(&self) -> LogOptions {
        LogOptions { quiet: self.quiet, verbose: self.verbose, format: self.log_format }
    }
}

/// Prints what went wrong, cause by cause, and turns it into an exit code: 0
/// done, 1 failed, 2 bad usage or config.
pub fn exit_code(outcome: anyhow::Result<()>) -> std::process::ExitCode {
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            screen().suspend(|| {
                let mut chain: Vec<String> = error.chain().map(ToString::to_string).collect();
                // A cause that its parent has already quoted says nothing new.
                chain.dedup_by(|later, earlier| earlier.contains(later.as_str()));
                let last = chain.len() - 1;
                for (i, cause) in chain.iter().enumerate() {
                    eprintln!("{}{cause}", if i == last { "error: " } else { "" });
                }
            });
            let config = error.chain().any(|e| e.is::<crate::config::ConfigError>());
            std::process::ExitCode::from(if config { 2 } else { 1 })
        }
    }
}
