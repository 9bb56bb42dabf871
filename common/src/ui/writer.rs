//! The thread that writes to stdout and stderr. A write may block or fail: a full disk,
//! a closed pipe, a terminal that is gone or stopped. So the thread reads from a
//! bounded queue. Lines that find the queue full are counted, and the count is printed
//! once there is room again.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// Bytes that may wait to be written.
const MOST_BYTES: usize = 1 << 20;

/// What one entry of the queue takes beside its bytes.
const ENTRY_BYTES: usize = 64;

/// A frame of a bar is soon outdated: while more than this waits, no frame is added.
const MOST_BEFORE_A_FRAME: usize = 1 << 14;

/// The wait before a non-blocking descriptor is tried again.
const AGAIN: Duration = Duration::from_millis(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    Stdout,
    Stderr,
}

/// The queue to the thread that writes.
#[derive(Debug, Default)]
pub(super) struct Output {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<(To, Vec<u8>)>,
    /// Size of the waiting entries.
    bytes: usize,
    /// Lines that found the queue full since the count was last printed.
    lost: u64,
    /// An entry was taken from the queue and is not written yet.
    writing: bool,
}

pub(super) fn output() -> &'static Output {
    static OUTPUT: OnceLock<&Output> = OnceLock::new();
    OUTPUT.get_or_init(|| {
        // Separate descriptors: a write that blocks holds no lock of the standard
        // library.
        let own = |fd: io::Result<std::os::fd::OwnedFd>| fd.ok().map(File::from);
        let stdout = own(io::stdout().as_fd().try_clone_to_owned());
        let stderr = own(io::stderr().as_fd().try_clone_to_owned());
        Output::start(stdout, stderr)
    })
}

impl Output {
    /// Starts the thread that writes. It lives as long as the process.
    fn start(mut stdout: Option<impl Write + Send + 'static>, mut stderr: Option<impl Write + Send + 'static>) -> &'static Self {
        let output: &'static Self = Box::leak(Box::default());
        // Without the thread nothing is printed, and the queue stays bounded.
        let _ = std::thread::Builder::new().name("output".to_owned()).spawn(move || {
            loop {
                let (to, bytes) = output.next();
                match to {
                    To::Stdout => stdout.as_mut().map_or((), |out| write(out, &bytes)),
                    To::Stderr => stderr.as_mut().map_or((), |out| write(out, &bytes)),
                }
            }
        });
        output
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn line(&self, to: To, bytes: Vec<u8>) {
        let mut state = self.lock();
        state.report_lost_lines();
        if state.lost > 0 || state.bytes + cost(&bytes) > MOST_BYTES {
            state.lost += 1;
        } else {
            state.push(to, bytes);
        }
        drop(state);
        self.changed.notify_all();
    }

    pub(super) fn frame(&self, bytes: Vec<u8>) {
        let mut state = self.lock();
        if state.bytes <= MOST_BEFORE_A_FRAME {
            state.push(To::Stderr, bytes);
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Waits for something to write.
    fn next(&self) -> (To, Vec<u8>) {
        let mut state = self.lock();
        state.writing = false;
        loop {
            state.report_lost_lines();
            if let Some((to, bytes)) = state.waiting.pop_front() {
                state.bytes -= cost(&bytes);
                state.writing = true;
                return (to, bytes);
            }
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn flush(&self, within: Duration) {
        let busy = |state: &mut State| state.writing || !state.waiting.is_empty();
        drop(self.changed.wait_timeout_while(self.lock(), within, busy));
    }
}

impl State {
    fn push(&mut self, to: To, bytes: Vec<u8>) {
        self.bytes += cost(&bytes);
        self.waiting.push_back((to, bytes));
    }

    /// Prints how many lines are missing, where they are missing, once there is a
    /// reader again.
    fn report_lost_lines(&mut self) {
        if self.lost > 0 && self.bytes <= MOST_BYTES / 2 {
            let lost = std::mem::take(&mut self.lost);
            self.push(To::Stderr, format!("({lost} lines are missing here: they were not read in time)\n").into_bytes());
        }
    }
}

fn cost(bytes: &[u8]) -> usize {
    bytes.len() + ENTRY_BYTES
}

/// Writes all bytes, or as many as the destination takes.
fn write(out: &mut impl Write, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return,
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(AGAIN),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    /// A destination, and the reader's end of it.
    fn pair() -> (Started, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Started(Output::start(Some(io::sink()), Some(ours))), theirs)
    }

    struct Started(&'static Output);

    impl Started {
        fn line(&self, text: &str) {
            self.0.line(To::Stderr, format!("{text}\n").into_bytes());
        }
    }

    #[test]
    fn a_reader_that_stopped_holds_nobody_up_and_learns_what_it_missed() {
        let (output, mut reader) = pair();
        let line = "x".repeat(1000);
        let start = Instant::now();
        (0..20_000).for_each(|_| output.line(&line));
        assert!(start.elapsed() < Duration::from_secs(5), "saying took {:?}", start.elapsed());
        assert!(output.0.lock().bytes <= MOST_BYTES);
        // The end of the process does not wait for the reader either.
        let start = Instant::now();
        output.0.flush(Duration::from_millis(200));
        assert!((200..5000).contains(&start.elapsed().as_millis()));
        let bars = output.0.lock().waiting.len();
        output.0.frame(b"a bar".to_vec());
        assert_eq!(output.0.lock().waiting.len(), bars);

        // It reads again: the lines that waited, how many are missing, and new lines.
        reader.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut text = String::new();
        let mut chunk = [0; 1 << 16];
        while !text.contains("missing here") {
            let n = reader.read(&mut chunk).unwrap();
            text += std::str::from_utf8(&chunk[..n]).unwrap();
        }
        output.line("and on it goes");
        output.0.flush(Duration::from_secs(20));
        let n = reader.read(&mut chunk).unwrap();
        text += std::str::from_utf8(&chunk[..n]).unwrap();
        let whole = text.lines().filter(|l| *l == line).count() as u64;
        let missing: u64 = text.lines().find_map(|l| l.strip_prefix('(')?.split(' ').next()?.parse().ok()).unwrap();
        assert_eq!(whole + missing, 20_000);
        assert!(text.ends_with("\nand on it goes\n"), "{:?}", &text[text.len() - 100..]);
    }

    #[test]
    fn who_is_gone_costs_nothing_and_what_was_said_last_is_written() {
        let (output, reader) = pair();
        drop(reader);
        (0..1000).for_each(|i| output.line(&i.to_string()));
        output.0.flush(Duration::from_secs(20));
        assert!(output.0.lock().waiting.is_empty());

        let (output, mut reader) = pair();
        output.line("first");
        output.line("last words");
        output.0.flush(Duration::from_secs(20));
        let mut text = [0; 17];
        reader.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"first\nlast words\n");
    }

    /// Takes three bytes at a time, after failing twice at first.
    struct Slow(mpsc::Sender<Vec<u8>>, u32);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 += 1;
            match self.1 {
                1 => Err(ErrorKind::WouldBlock.into()),
                2 => Err(ErrorKind::Interrupted.into()),
                _ => {
                    let n = bytes.len().min(3);
                    self.0.send(bytes[..n].to_vec()).map_err(io::Error::other)?;
                    Ok(n)
                }
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_descriptor_that_does_not_block_gets_all_of_it() {
        let (sent, received) = mpsc::channel();
        write(&mut Slow(sent, 0), b"a whole line\n");
        assert_eq!(received.iter().collect::<Vec<_>>().concat(), b"a whole line\n");
    }
}
