//! All output of this program on stdout and stderr. The callers neither wait nor fail:
//! [`super::writer`] writes it.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::time::Duration;

use super::screen;
use super::visible::visible_lines;
use super::writer::{To, output};

/// How long the end of the process waits for the last output.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The reader of a command's output has closed it (`| head`).
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output any more")]
pub struct Unread;

/// Prints one or more lines on stderr, above the bar if there is one. Quoted text in
/// them cannot control a terminal.
pub fn print_stderr(text: &str) {
    let line = visible_lines(text) + "\n";
    screen::above_the_bar(|| output().line(To::Stderr, line.into_bytes()));
}

/// Writes a finished log line to stderr, above the bar if there is one.
pub(super) fn log(line: Vec<u8>) {
    screen::above_the_bar(|| output().line(To::Stderr, line));
}

/// Prints to stdout something that is not worth failing for: how a run went.
pub fn print_stdout(text: &str) {
    let line = for_stdout(text) + "\n";
    screen::above_the_bar(|| output().line(To::Stdout, line.into_bytes()));
}

/// Writes to stdout the result of a command, and a newline. It waits for the reader.
/// Errors when that fails; with [`Unread`] when the reader is gone, which
/// [`super::exit_code`] counts as success.
pub fn print_result(text: &str) -> anyhow::Result<()> {
    print_styled(&for_stdout(text))
}

/// Like [`print_result`], for text with colours, in which the caller has made whatever it
/// quotes visible.
pub(super) fn print_styled(text: &str) -> anyhow::Result<()> {
    flush();
    let text = text.to_owned() + "\n";
    let mut written = Ok(());
    screen::above_the_bar(|| {
        let mut stdout = io::stdout().lock();
        written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    });
    written.map_err(|e| match e.kind() {
        ErrorKind::BrokenPipe => Unread.into(),
        _ => anyhow::Error::new(e).context("could not write to stdout"),
    })
}

/// Names of files and classes go unchanged to a file or another program; on a terminal
/// their control characters are escaped.
fn for_stdout(text: &str) -> String {
    if io::stdout().is_terminal() { visible_lines(text) } else { text.to_owned() }
}

/// Waits a bounded time until the output so far is written.
pub fn flush() {
    output().flush(FLUSH_TIMEOUT);
}

/// Ends the process now, whatever its other threads are doing. The output so far is
/// written first, if there is a reader.
pub fn exit(code: i32) -> ! {
    flush();
    // SAFETY: ends the process. The destructors of libraries are skipped: they would
    // free what other threads still use.
    unsafe { libc::_exit(code) }
}
