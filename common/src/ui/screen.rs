//! Where bars are drawn: a terminal on stderr, through the queue of [`super::writer`],
//! so that drawing a bar waits no more than printing a line does.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, OnceLock, PoisonError};

use indicatif::{MultiProgress, ProgressDrawTarget, TermLike};

use super::writer::output;

/// How often a bar is drawn in a second.
const FRAMES: u8 = 15;

/// The fewest columns that a bar is drawn for, whatever width a terminal reports.
const NARROWEST: u16 = 20;

/// All bars of this process; none of them is visible without a terminal.
pub(super) fn screen() -> &'static MultiProgress {
    static SCREEN: OnceLock<MultiProgress> = OnceLock::new();
    SCREEN.get_or_init(|| {
        if !io::stderr().is_terminal() {
            return MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        }
        // Bars are drawn on stderr, so stdout does not decide whether they have
        // colours.
        console::set_colors_enabled(console::colors_enabled_stderr());
        MultiProgress::with_draw_target(ProgressDrawTarget::term_like_with_hz(Box::new(Terminal::default()), FRAMES))
    })
}

/// Calls `write` while the bars are hidden.
pub(super) fn above_the_bar(write: impl FnOnce()) {
    screen().suspend(write);
}

/// Collects the bytes of a bar's frame. It never fails, since it writes nothing.
#[derive(Debug, Default)]
struct Terminal {
    frame: Mutex<Vec<u8>>,
}

impl Terminal {
    fn add(&self, text: &str) -> io::Result<()> {
        self.frame.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(text.as_bytes());
        Ok(())
    }

    /// Moves the cursor by `n` places; `way` ends the control sequence.
    fn go(&self, n: usize, way: char) -> io::Result<()> {
        if n == 0 { Ok(()) } else { self.add(&format!("\x1b[{n}{way}")) }
    }
}

impl TermLike for Terminal {
    fn width(&self) -> u16 {
        console::Term::stderr().size().1.max(NARROWEST)
    }

    fn height(&self) -> u16 {
        console::Term::stderr().size().0
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.go(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.go(n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.go(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.go(n, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.add(text)?;
        self.add("\n")
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.add(text)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.add("\r\x1b[2K")
    }

    fn flush(&self) -> io::Result<()> {
        let frame = std::mem::take(&mut *self.frame.lock().unwrap_or_else(PoisonError::into_inner));
        if !frame.is_empty() {
            output().frame(frame);
        }
        Ok(())
    }
}
