//! The output of a process cannot be written: the process does what it would have
//! done otherwise.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::{Command, Stdio};

use cluster_tests::binary;

use super::place::{Place, Process};

/// Ends after two epochs, with an evaluation and a checkpoint.
const SHORT: [&str; 1] = ["train.epochs=2"];

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap_or_else(|e| panic!("{e}")).into()
}

/// The writing end of a pipe that nobody reads any more.
fn broken() -> Stdio {
    let (_, writer) = std::io::pipe().unwrap_or_else(|e| panic!("{e}"));
    writer.into()
}

#[test]
fn training_goes_on_when_nothing_can_be_said() {
    for words in [&["worker", "train"][..], &["coordinator", "local", "--workers", "2", "-v"]] {
        for output in [full, broken] {
            let place = Place::new();
            let child = place.command(words, &SHORT).stdout(output()).stderr(output()).spawn();
            let mut process = Process(child.unwrap_or_else(|e| panic!("{e}")));
            assert_eq!(process.code(), Some(0), "{words:?}");
            assert_eq!(place.checkpoints(), [20]);
        }
    }
}

#[test]
fn a_closed_pipe_in_the_middle_of_a_run_changes_nothing() {
    // As in `2>&1 | head -1`.
    let place = Place::new();
    let (reader, writer) = std::io::pipe().unwrap_or_else(|e| panic!("{e}"));
    let same = writer.try_clone().unwrap_or_else(|e| panic!("{e}"));
    let child =
        place.command(&["coordinator", "local", "--workers", "2", "-vv"], &["train.max_steps=60"]).stdout(same).stderr(writer).spawn();
    let mut process = Process(child.unwrap_or_else(|e| panic!("{e}")));
    let mut line = String::new();
    BufReader::new(reader).read_line(&mut line).unwrap_or_else(|e| panic!("{e}"));
    assert!(line.ends_with('\n'));
    assert_eq!(process.code(), Some(0));
    assert_eq!(place.checkpoints(), [60]);
}

#[test]
fn a_reader_that_stops_reading_holds_nobody_up() {
    let place = Place::new();
    // At this level of detail much more is written than a pipe holds.
    let words = ["coordinator", "local", "--workers", "2", "-vv"];
    let mut process = place.start(&words, &["train.max_steps=60"]);
    assert_eq!(process.code(), Some(0));
    assert_eq!(place.checkpoints(), [60]);
    // The pipe, of 64 KiB, holds the whole lines that were written first; some have 8 KiB.
    let mut text = Vec::new();
    let _ = process.0.stderr.take().map(|mut err| err.read_to_end(&mut text));
    assert!(text.len() > 48 << 10, "only {} bytes were said: that stops nobody", text.len());
}

/// A terminal: the end that a person sees, and the end that the process gets.
fn terminal() -> (File, OwnedFd) {
    let (mut ours, mut theirs) = (-1, -1);
    let size = libc::winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: two places for descriptors and a size are passed, no name and no modes;
    // the descriptors are new, and owned by nobody yet.
    unsafe {
        let made = libc::openpty(&mut ours, &mut theirs, std::ptr::null_mut(), std::ptr::null(), &size);
        assert_eq!(made, 0, "no terminal: {}", std::io::Error::last_os_error());
        (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs))
    }
}

#[test]
fn a_terminal_that_goes_away_changes_nothing() {
    for words in [&["worker", "train"][..], &["coordinator", "local", "--workers", "2"]] {
        let place = Place::new();
        let (mut person, process) = terminal();
        let mut command = place.command(words, &[]);
        for set in [Command::stdin, Command::stdout, Command::stderr] {
            set(&mut command, Stdio::from(process.try_clone().unwrap_or_else(|e| panic!("{e}"))));
        }
        let mut running = Process(command.spawn().unwrap_or_else(|e| panic!("{e}")));
        drop((command, process));
        // Waits until the progress bar is drawn.
        let (mut seen, mut chunk) = (String::new(), [0; 4096]);
        while !seen.contains("step ") {
            let n = person.read(&mut chunk).unwrap_or_else(|e| panic!("{e} after {seen}"));
            seen += &String::from_utf8_lossy(&chunk[..n]);
        }
        drop(person);
        let steps = place.steps();
        place.wait_for_steps(steps + 50);
        running.signal(libc::SIGTERM);
        assert_eq!(running.code(), Some(0), "{words:?}");
        assert_eq!(place.checkpoints(), [place.steps()]);
    }
}

#[test]
fn a_command_whose_output_is_lost_says_so_unless_nobody_wants_it() {
    let place = Place::new();
    let config = place.folder.path().join("config.toml");
    for (name, word) in [("worker", "summary"), ("coordinator", "check")] {
        let run = |stdout: Stdio| {
            let mut command = Command::new(binary(name));
            let child = command.arg(word).arg(&config).stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped()).spawn();
            Process(child.unwrap_or_else(|e| panic!("{e}"))).end()
        };
        let (code, _, err) = run(full());
        assert_eq!(code, Some(1), "{name}: {err}");
        assert!(err.starts_with("could not write to stdout\n"), "{name}: {err}");
        assert_eq!(run(broken()), (Some(0), String::new(), String::new()), "{name}");
    }
}
