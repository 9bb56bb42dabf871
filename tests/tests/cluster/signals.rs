//! What a process does when it is told to stop, when another process of the run
//! fails, and when its output cannot be written.

mod place;
mod unheard;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use cluster_tests::scenario::{events, free_port, join};
use cluster_tests::{Running, binary, join_line, signal};
use place::{CONFIG, Place, Process, wait};
use tempfile::TempDir;

/// Every signal that asks to stop ends a run in the same way.
fn stops_cleanly(words: &[&str], number: i32) {
    let place = Place::new();
    let process = place.start(words, &[]);
    place.wait_for_steps(3);
    process.signal(number);
    let (code, out, err) = process.end();
    assert_eq!(code, Some(0), "{words:?}, signal {number}: {out}\n{err}");
    assert!(out.contains("stopped; go on with --resume"), "{out}");
    assert_eq!(place.checkpoints(), [place.steps()], "{err}");
    assert_eq!(events(&place.run(), "run_finished"), 1);
}

#[test]
fn a_single_run_stops_with_a_checkpoint_whatever_signal_asks() {
    [libc::SIGINT, libc::SIGTERM, libc::SIGHUP].into_iter().for_each(|number| stops_cleanly(&["worker", "train"], number));
}

#[test]
fn a_local_cluster_stops_with_a_checkpoint_whatever_signal_asks() {
    [libc::SIGTERM, libc::SIGHUP].into_iter().for_each(|number| stops_cleanly(&["coordinator", "local", "--workers", "2"], number));
}

#[test]
fn coordinator_and_workers_of_a_cluster_heed_the_end_of_their_terminal() {
    let place = Place::new();
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let coordinator = place.start(&["coordinator", "serve", "--listen", &listen, "--workers", "2"], &[]);
    let (_, token) = join_line(&place.run());
    let (leaver, stayer) = (join(&listen, &token, &[]), join(&listen, &token, &[]));
    place.wait_for_steps(3);
    leaver.signal(libc::SIGHUP);
    leaver.wait().succeeded();
    let steps = place.steps();
    place.wait_for_steps(steps + 3);
    coordinator.signal(libc::SIGHUP);
    let (code, out, err) = coordinator.end();
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("stopped; go on with --resume"), "{out}");
    stayer.wait().succeeded();
    assert_eq!(place.checkpoints(), [place.steps()]);
}

#[test]
fn a_closed_terminal_reaches_launcher_and_workers_and_nothing_is_lost() {
    let place = Place::new();
    let mut command = place.command(&["coordinator", "local", "--workers", "2"], &[]);
    let process = Process(command.process_group(0).spawn().unwrap_or_else(|e| panic!("{e}")));
    place.wait_for_steps(3);
    // The whole group gets the signal twice: from the kernel for the terminal, then
    // from the shell for its jobs.
    let group = -(process.0.id() as i32);
    signal(group, libc::SIGHUP);
    signal(group, libc::SIGCONT);
    std::thread::sleep(Duration::from_millis(20));
    let _ = std::panic::catch_unwind(|| signal(group, libc::SIGHUP));
    let (code, out, err) = process.end();
    assert_eq!(code, Some(0), "{out}\n{err}");
    assert_eq!(place.checkpoints(), [place.steps()], "{err}");
    assert!(!err.contains("starting another"), "{err}");
}

#[test]
fn nohup_is_obeyed() {
    let place = Place::new();
    let trained = place.command(&["worker", "train"], &[]);
    let mut command = Command::new("sh");
    command.arg("-c").arg("trap '' HUP; exec \"$@\"").arg("sh").arg(trained.get_program()).args(trained.get_args());
    let child = command.current_dir(place.folder.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let process = Process(child.unwrap_or_else(|e| panic!("{e}")));
    place.wait_for_steps(3);
    process.signal(libc::SIGHUP);
    std::thread::sleep(Duration::from_millis(100));
    let steps = place.steps();
    place.wait_for_steps(steps + 50);
    process.signal(libc::SIGTERM);
    assert_eq!(process.end().0, Some(0));
}

/// `.writing-*` in the checkpoints folder.
fn is_writing(run: &Path) -> bool {
    let folder = std::fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
    folder.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(".writing-"))
}

#[test]
fn a_second_signal_ends_it_at_once_and_damages_no_checkpoint() {
    let place = Place::new();
    // 20 MB of state after every second step: it is being written most of the time.
    let sets = ["model.hidden=[3000]", "train.checkpoint_steps=2"];
    let mut more: &[&str] = &[];
    for (first, second) in [(libc::SIGINT, libc::SIGINT), (libc::SIGTERM, libc::SIGINT), (libc::SIGHUP, libc::SIGINT)] {
        let mut attempts = 0;
        loop {
            let before = place.checkpoints().last().copied().unwrap_or(0);
            let process = place.start(&[&["worker", "train"], more].concat(), &sets);
            wait("a checkpoint", || place.checkpoints().last().is_some_and(|&newest| newest > before) && is_writing(&place.run()));
            process.signal(first);
            // Late enough that the kernel does not merge the two signals.
            std::thread::sleep(Duration::from_millis(2 + 4 * attempts));
            process.signal(second);
            let (code, _, err) = process.end();
            more = &["--resume"];
            attempts += 1;
            // The process may have ended before the second signal came, or the two
            // may have been merged.
            if code == Some(0) && attempts < 10 {
                continue;
            }
            assert!(code == Some(1) && err.ends_with("stopped at once\n"), "{code:?} {err}");
            break;
        }
    }
    let process = place.start(&["worker", "train", "--resume"], &sets);
    let newest = place.checkpoints().last().copied().unwrap_or(0);
    wait("a step after the checkpoint", || place.checkpoints().last().is_some_and(|&step| step > newest));
    process.signal(libc::SIGTERM);
    let (code, _, err) = process.end();
    assert_eq!(code, Some(0), "{err}");
    for word in ["broken", "damaged", "passed over"] {
        assert!(!err.contains(word), "{err}");
    }
}

#[test]
fn a_worker_that_fails_by_itself_is_done_without() {
    let place = Place::new();
    // A worker that trains until it fails like a process whose device is lost.
    let script = place.folder.path().join("worker");
    let text = format!(
        "#!/bin/sh\ncase \"$*\" in *'--preferred-rank 1'*) ;; *) exec '{worker}' \"$@\" ;; esac\nexec 3<&0\n'{worker}' \"$@\" <&3 &\n\
         while [ ! -e '{go}' ]; do sleep 0.02; done\nkill -9 $!\necho 'error: the device is lost' >&2\nexit 3\n",
        worker = binary("worker").display(),
        go = place.folder.path().join("fail").display(),
    );
    std::fs::write(&script, text).unwrap_or_else(|e| panic!("{e}"));
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, mode).unwrap_or_else(|e| panic!("{e}"));
    let script = script.display().to_string();
    let words = ["coordinator", "local", "--worker-binary", &script, "--workers"];

    // Two workers are left, which are enough.
    let process = place.start(&[&words[..], &["3"]].concat(), &["cluster.min_workers=2"]);
    place.wait_for_steps(3);
    std::fs::write(place.folder.path().join("fail"), "").unwrap_or_else(|e| panic!("{e}"));
    wait("a ring of two", || events(&place.run(), "generation") >= 2);
    let steps = place.steps();
    place.wait_for_steps(steps + 20);
    process.signal(libc::SIGTERM);
    let (code, _, err) = process.end();
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains("worker 1 ended with exit status: 3: the device is lost: it is not replaced"), "{err}");

    // One worker is left, which is not enough.
    let place = Place { folder: TempDir::new_in(place.folder.path()).unwrap_or_else(|e| panic!("{e}")) };
    std::fs::write(place.folder.path().join("config.toml"), CONFIG).unwrap_or_else(|e| panic!("{e}"));
    let process = place.start(&[&words[..], &["2"]].concat(), &["cluster.min_workers=2", "cluster.timeout_ms=500"]);
    let (code, _, err) = process.end();
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("worker 1 ended with exit status: 3: the device is lost"), "{err}");
}

#[test]
fn a_cluster_that_stops_at_the_end_of_an_epoch_evaluates_it_when_it_goes_on() {
    let place = Place::new();
    // Every step is an epoch.
    let sets = ["data.train=16"];
    let words = ["coordinator", "local", "--workers", "1", "--resume"];
    let process = place.start(&words[..4], &sets);
    place.wait_for_steps(3);
    process.signal(libc::SIGTERM);
    assert_eq!(process.end().0, Some(0));
    let stopped = place.steps();
    assert!(place.evaluated(stopped - 1) && !place.evaluated(stopped));

    let process = place.start(&words, &sets);
    wait("the evaluation", || place.evaluated(stopped));
    process.signal(libc::SIGTERM);
    assert_eq!(process.end().0, Some(0));
}

#[test]
fn leave_asks_the_worker_that_it_names() {
    let place = Place::new();
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let coordinator = place.start(&["coordinator", "serve", "--listen", &listen, "--workers", "1"], &[]);
    let (_, token) = join_line(&place.run());
    let worker = join(&listen, &token, &[]);
    place.wait_for_steps(3);
    let left = Running::start("worker", &["leave", &worker.id().to_string()]).wait().succeeded();
    assert_eq!(left.stdout, format!("worker {} leaves the run of {listen}\n", worker.id()));
    worker.wait().succeeded();
    assert_eq!(coordinator.end().0, Some(0));
    assert_eq!(place.checkpoints(), [place.steps()]);
}
