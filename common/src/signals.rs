//! Ctrl-C, SIGTERM and SIGHUP. For every command that trains, the first request means:
//! stop after the step in flight, without loss. The second means: stop at once.

use std::io;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// A request that is not typed may come as several signals: `timeout` and some service
/// managers send two, and a terminal that closes sends one for the terminal and one for
/// its shell. Signals within this time are one request.
const ONE_REQUEST: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// SIGINT: Ctrl-C in the terminal.
    Typed,
    /// SIGTERM, or SIGHUP: another process, or the end of the terminal.
    Sent,
}

/// How often this process was asked to stop.
#[derive(Debug, Default)]
struct Requests {
    count: u32,
    sent: Option<Instant>,
}

impl Requests {
    /// Counts a signal. Returns the number of the request if it is a new one.
    fn count(&mut self, now: Instant, signal: Origin) -> Option<u32> {
        if signal == Origin::Sent
            && let Some(before) = self.sent.replace(now)
            && now.saturating_duration_since(before) < ONE_REQUEST
        {
            return None;
        }
        self.count += 1;
        Some(self.count)
    }
}

/// Listens for requests to stop, from its creation to the end of the process.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// None if the process was started to outlive its terminal (nohup).
    hangup: Option<Signal>,
    supervised: bool,
    requests: Requests,
}

impl Signals {
    /// Must be called within a runtime. A `supervised` process shares its terminal with
    /// its launcher, which receives the same Ctrl-C and the same end of the terminal
    /// and forwards the request: the process itself reacts only to SIGTERM.
    pub fn listen(supervised: bool) -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: if ignored(libc::SIGHUP) { None } else { Some(signal(SignalKind::hangup())?) },
            supervised,
            requests: Requests::default(),
        })
    }

    /// Waits for the next request to stop; the first is 1. May be cancelled.
    pub async fn request(&mut self) -> u32 {
        loop {
            let hangup = async {
                match &mut self.hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            let (signal, terminal) = tokio::select! {
                _ = self.interrupt.recv() => (Origin::Typed, true),
                _ = self.terminate.recv() => (Origin::Sent, false),
                _ = hangup => (Origin::Sent, true),
            };
            if terminal && self.supervised {
                continue;
            }
            if let Some(number) = self.requests.count(Instant::now(), signal) {
                return number;
            }
        }
    }
}

/// Whether this process was started with a signal ignored.
fn ignored(signal: i32) -> bool {
    // SAFETY: reads a signal disposition and changes none; the zeroed one is valid
    // memory to overwrite.
    unsafe {
        let mut disposition: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut disposition) == 0 && disposition.sa_sigaction == libc::SIG_IGN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_request_is_one_that_somebody_made() {
        let start = Instant::now();
        let mut requests = Requests::default();
        let mut at = |ms, signal| requests.count(start + Duration::from_millis(ms), signal);
        assert_eq!(at(0, Origin::Sent), Some(1));
        // The additional signals of a closing terminal, or of `timeout`.
        assert_eq!(at(1, Origin::Sent), None);
        assert_eq!(at(400, Origin::Sent), None);
        assert_eq!(at(800, Origin::Sent), None);
        assert_eq!(at(1400, Origin::Sent), Some(2));
        // A repeated Ctrl-C is deliberate: each one counts.
        assert_eq!(at(1401, Origin::Typed), Some(3));
        assert_eq!(at(1402, Origin::Typed), Some(4));
    }
}
