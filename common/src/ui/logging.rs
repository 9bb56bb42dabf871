//! Logging by `tracing`, on stderr, above the progress bar if there is one.

use std::fmt::{self, Write as _};
use std::io::{self, Write};

use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{Writer, debug_fn};

use super::output;
use super::visible::{Visible, is_hidden};

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

/// Sets up logging for this process. `RUST_LOG` overrides the flags. Safe to
/// call again: the first call wins.
pub fn init(options: LogOptions) {
    let level = match (options.quiet, options.verbose) {
        (true, _) => "warn",
        (false, 0) => "info",
        (false, 1) => "debug",
        (false, _) => "trace",
    };
    // quinn and rustls log every packet at debug; they stay at warn until trace is
    // requested.
    let others = if options.verbose >= 2 { level } else { "warn" };
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("{others},common={level},worker={level},coordinator={level}")));
    let builder = tracing_subscriber::fmt().with_env_filter(filter);
    let outcome = match options.format {
        LogFormat::Json => builder.json().with_writer(ToStderr { escapes: true }).try_init(),
        LogFormat::Text => {
            let ansi = std::io::IsTerminal::is_terminal(&io::stderr());
            let text = builder.with_target(false).with_ansi(ansi).compact();
            text.fmt_fields(debug_fn(field).delimited(" ")).with_writer(ToStderr { escapes: false }).try_init()
        }
    };
    if outcome.is_err() {
        tracing::debug!("logging was set up before");
    }
}

/// Writes a field of a log line. Messages quote files and peers, so their control
/// characters are shown as escapes; the colours around them are the formatter's own.
fn field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let mut writer = Visible(writer);
    match field.name() {
        "message" => write!(writer, "{value:?}"),
        // The origin of a line from a library that uses the `log` crate.
        name if name.starts_with("log.") => Ok(()),
        name => write!(writer, "{name}={value:?}"),
    }
}

/// Takes whole log lines for stderr.
#[derive(Clone, Copy)]
struct ToStderr {
    /// The lines are JSON, in which only some control characters are escaped.
    escapes: bool,
}

impl Write for ToStderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        output::log(if self.escapes { escaped(bytes) } else { bytes.to_owned() });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Equivalent JSON, in one line that has no effect on a terminal.
fn escaped(json: &[u8]) -> Vec<u8> {
    let mut out = String::with_capacity(json.len());
    for c in String::from_utf8_lossy(json).chars() {
        // Outside of strings, the only such character is the end of the line.
        if c == '\n' || !is_hidden(c) {
            out.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            // Writing to a string does not fail.
            let _ = write!(out, "\\u{unit:04x}");
        }
    }
    out.into_bytes()
}

impl MakeWriter<'_> for ToStderr {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
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

/// Prints what went wrong, cause by cause, and turns it into an exit code: 0 done, 1
/// failed, 2 bad usage or config. Earlier output is written first, if there is a
/// reader.
pub fn exit_code(outcome: anyhow::Result<()>) -> std::process::ExitCode {
    let code = match outcome {
        // A reader that closed the output early has what it wanted.
        Err(error) if error.chain().any(|e| e.is::<output::Unread>()) => 0,
        Ok(()) => 0,
        Err(error) => {
            output::print_stderr(&explained(&error));
            if error.chain().any(|e| e.is::<crate::config::ConfigError>()) { 2 } else { 1 }
        }
    };
    output::flush();
    std::process::ExitCode::from(code)
}

/// The lines that say what went wrong, the innermost cause last.
fn explained(error: &anyhow::Error) -> String {
    let mut chain: Vec<String> = error.chain().map(ToString::to_string).collect();
    // A cause that its parent has already quoted adds nothing.
    chain.dedup_by(|later, earlier| earlier.contains(later.as_str()));
    if let Some(last) = chain.last_mut() {
        last.insert_str(0, "error: ");
    }
    chain.join("\n")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Collects what is logged.
    #[derive(Clone, Default)]
    struct Collected(Arc<Mutex<Vec<u8>>>);

    impl Write for Collected {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().map_err(|_| io::ErrorKind::Other)?.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_message_quotes_cannot_act_on_the_terminal() {
        let collected = Collected::default();
        let writer = collected.clone();
        let text = tracing_subscriber::fmt().with_target(false).with_ansi(true).compact();
        let subscriber = text.fmt_fields(debug_fn(field).delimited(" ")).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(class = "a\rb", "skipped `{}`", "\x1b[2J\nERROR forged\u{9b}A");
        });
        let bytes = collected.0.lock().map(|b| b.clone()).unwrap_or_default();
        let line = String::from_utf8_lossy(&bytes);
        let (own, message) = line.split_at(line.find("skipped").unwrap_or_default());
        assert!(own.contains("\x1b[33m") && own.contains("WARN"), "{own:?}");
        assert!(message.starts_with("skipped `\\u{1b}[2J\\nERROR forged\\u{9b}A`"), "{message:?}");
        assert!(message.contains("class=\"a\\rb\""), "{message:?}");
        assert_eq!(message.chars().filter(|&c| is_hidden(c)).collect::<String>(), "\n");
    }

    #[test]
    fn json_means_the_same_after_it_was_escaped() {
        let text = "{\"m\":\"\u{7f}\u{9b}A\u{202e}\u{e0041}\\u001b\\n\u{fc}\"}\n";
        let safe = escaped(text.as_bytes());
        let safe = String::from_utf8_lossy(&safe);
        assert_eq!(safe.chars().filter(|&c| is_hidden(c)).collect::<String>(), "\n");
        let value = |json: &str| serde_json::from_str::<serde_json::Value>(json).ok();
        assert!(value(text).is_some());
        assert_eq!(value(text), value(&safe));
    }

    #[test]
    fn an_error_is_told_cause_by_cause() {
        let error = anyhow::anyhow!("no such file\nsecond line").context("could not read it").context("the run did not start");
        assert_eq!(explained(&error), "the run did not start\ncould not read it\nerror: no such file\nsecond line");
        let quoted = anyhow::anyhow!("cause").context("trouble: cause");
        assert_eq!(explained(&quoted), "error: trouble: cause");
    }
}
