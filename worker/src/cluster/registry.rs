//! The workers of this user that run on this machine, for `worker leave`. Each worker
//! listens on a socket of its own, in a folder that belongs to this user alone, and is
//! asked to leave over it. A process id is only a name here: it may belong to another
//! process by now, or to two workers in different containers.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use common::private_folder;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

/// How long either end waits for a message of the other.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The most bytes of one line.
const MAX_LINE: u64 = 4096;

/// The request to a worker, and its answer.
const LEAVE: &str = "leave\n";
const LEAVING: &str = "leaving\n";

/// A running worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningWorker {
    pub pid: u32,
    pub coordinator: String,
    socket: PathBuf,
}

/// The message that a worker sends to each client that connects.
#[derive(Debug, Serialize, Deserialize)]
struct Introduction {
    pid: u32,
    coordinator: String,
}

/// This worker's socket, which is removed when this value is dropped.
#[derive(Debug)]
pub struct WorkerSocket {
    path: PathBuf,
    listening: tokio::task::JoinHandle<()>,
}

impl Drop for WorkerSocket {
    fn drop(&mut self) {
        self.listening.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The folder of the sockets of this user's workers. It is created if it does not exist.
pub fn folder() -> Result<PathBuf> {
    let path = private_folder::runtime(dirs::cache_dir().map(|cache| cache.join("ringleader")))?.join("workers");
    private_folder::folder(&path)?;
    Ok(path)
}

/// Announces this process as a worker of `coordinator`. `leave` is called when the
/// worker is asked to leave. Must be called within a runtime.
pub fn announce(folder: &Path, coordinator: &str, leave: impl Fn() + Send + 'static) -> Result<WorkerSocket> {
    let place = folder.to_owned();
    tokio::task::spawn_blocking(move || sweep(&place));
    let pid = std::process::id();
    // The socket gets its name once it accepts connections: before that, `sweep` would
    // take it for the socket of a dead worker. The name has a random part, since
    // process ids are not unique where containers share the folder.
    let bind = || {
        let made = tempfile::Builder::new().prefix(&format!(".{pid}-")).rand_bytes(12).make_in(folder, |path| UnixListener::bind(path))?;
        let name = made.path().file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let path = folder.join(name.trim_start_matches('.'));
        Ok::<_, std::io::Error>((made.persist(&path)?, path))
    };
    let (listener, path) =
        bind().with_context(|| format!("no socket could be made in `{}`: `worker leave` will not find this worker", folder.display()))?;
    let introduction = format!("{}\n", serde_json::to_string(&Introduction { pid, coordinator: coordinator.to_owned() })?);
    let listening = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Clients are served one after the other, since only this user can connect.
            match tokio::time::timeout(ANSWER_TIMEOUT, converse(stream, &introduction)).await {
                Ok(Ok(true)) => leave(),
                Ok(Ok(false)) | Err(_) => {}
                Ok(Err(e)) => tracing::debug!("a conversation of `worker leave` ended: {e}"),
            }
        }
    });
    Ok(WorkerSocket { path, listening })
}

/// Sends the introduction and reads the request; true if it asks this worker to leave.
async fn converse(mut stream: tokio::net::UnixStream, introduction: &str) -> std::io::Result<bool> {
    stream.write_all(introduction.as_bytes()).await?;
    let mut asked = String::new();
    tokio::io::BufReader::new((&mut stream).take(MAX_LINE)).read_line(&mut asked).await?;
    if asked != LEAVE {
        return Ok(false);
    }
    stream.write_all(LEAVING.as_bytes()).await?;
    Ok(true)
}

/// The sockets in the folder, each with the process id in its name.
fn sockets(folder: &Path) -> impl Iterator<Item = (u32, PathBuf)> {
    let pid = |name: &str| name.split('-').next()?.parse().ok();
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(move |entry| Some((pid(entry.file_name().to_str()?)?, entry.path())))
}

/// Removes the sockets of workers that were killed: connections to them are refused.
fn sweep(folder: &Path) {
    for (_, socket) in sockets(folder) {
        if UnixStream::connect(&socket).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused) {
            let _ = std::fs::remove_file(&socket);
        }
    }
}

/// The running workers.
pub fn present(folder: &Path) -> Vec<RunningWorker> {
    sweep(folder);
    let mut found = Vec::new();
    for (pid, socket) in sockets(folder) {
        match connect(&socket) {
            Ok((_, Introduction { pid, coordinator })) => found.push(RunningWorker { pid, coordinator, socket }),
            // The worker has just ended.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {}
            Err(e) => found.push(RunningWorker { pid, coordinator: format!("a coordinator that it does not name: {e}"), socket }),
        }
    }
    found.sort_by(|a, b| (a.pid, &a.socket).cmp(&(b.pid, &b.socket)));
    found
}

/// Connects to a worker and reads its introduction.
fn connect(socket: &Path) -> std::io::Result<(BufReader<UnixStream>, Introduction)> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    let mut stream = BufReader::new(stream);
    let line = hear(&mut stream)?;
    let introduction = serde_json::from_str(&line).map_err(std::io::Error::other)?;
    Ok((stream, introduction))
}

fn hear(stream: &mut BufReader<UnixStream>) -> std::io::Result<String> {
    let mut line = String::new();
    match stream.take(MAX_LINE).read_line(&mut line) {
        Err(e) if e.kind() == ErrorKind::WouldBlock => {
            Err(std::io::Error::other(format!("it does not answer within {} s", ANSWER_TIMEOUT.as_secs())))
        }
        heard => heard.map(|_| line),
    }
}

/// Selects workers: the one with this process id, all, or the only one that there is.
pub fn choose(present: &[RunningWorker], pid: Option<u32>, all: bool) -> Result<Vec<RunningWorker>> {
    let list = || present.iter().map(|w| format!("  {} (of {})", w.pid, w.coordinator)).collect::<Vec<_>>().join("\n");
    let named: Vec<&RunningWorker> = present.iter().filter(|w| pid.is_some_and(|pid| w.pid == pid)).collect();
    match (present, pid, &named[..]) {
        ([], _, _) => bail!("no worker of yours runs on this machine"),
        (_, Some(_), [worker]) => Ok(vec![(*worker).clone()]),
        (_, Some(pid), []) => bail!("process {pid} is no worker of yours; these are:\n{}", list()),
        (_, Some(pid), _) => {
            bail!("{} workers call themselves {pid}, each in a container of its own: say --all, or stop one there", named.len())
        }
        ([only], None, _) => Ok(vec![only.clone()]),
        (_, None, _) if all => Ok(present.to_vec()),
        _ => bail!("there are {} workers here: name the process of one, or say --all:\n{}", present.len(), list()),
    }
}

/// Asks a worker to leave its run; returns when the worker has answered.
pub fn ask_to_leave(worker: &RunningWorker) -> Result<()> {
    let ask = || {
        let (mut stream, _) = connect(&worker.socket)?;
        stream.get_mut().write_all(LEAVE.as_bytes())?;
        hear(&mut stream)
    };
    let answer = ask().map_err(|e| anyhow!("{e}: it may be stopped, or have ended just now"));
    match answer.with_context(|| format!("worker {} could not be asked to leave", worker.pid))?.as_str() {
        LEAVING => Ok(()),
        _ => bail!("worker {} did not say that it leaves", worker.pid),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Arc, mpsc};

    use super::*;

    fn who(folder: &Path) -> Vec<(u32, String)> {
        present(folder).into_iter().map(|w| (w.pid, w.coordinator)).collect()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_worker_is_there_while_it_lives() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("4000000"), "dead").unwrap();
        std::fs::write(folder.path().join("notes"), "not a worker").unwrap();
        let here = announce(folder.path(), "10.0.0.1:4000", || {}).unwrap();
        let expected = (std::process::id(), "10.0.0.1:4000".to_owned());
        assert_eq!(who(folder.path()), [expected]);
        assert!(!folder.path().join("4000000").exists());
        assert!(folder.path().join("notes").exists());
        drop(here);
        assert_eq!(who(folder.path()), []);
        assert_eq!(who(&folder.path().join("nowhere")), []);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn workers_with_one_id_do_not_stand_in_each_others_way() {
        let folder = tempfile::tempdir().unwrap();
        let left = Arc::new(AtomicU32::new(0));
        let worker = |coordinator: &str| {
            let left = Arc::clone(&left);
            announce(folder.path(), coordinator, move || _ = left.fetch_add(1, Ordering::SeqCst)).unwrap()
        };
        let both = [worker("a:1"), worker("b:2")];
        let found = present(folder.path());
        let pid = std::process::id();
        assert_eq!(found.iter().map(|w| w.pid).collect::<Vec<_>>(), [pid, pid]);
        let error = choose(&found, Some(pid), false).unwrap_err().to_string();
        assert!(error.contains("2 workers") && error.contains("--all"), "{error}");
        for worker in choose(&found, None, true).unwrap() {
            ask_to_leave(&worker).unwrap();
        }
        let start = std::time::Instant::now();
        while left.load(Ordering::SeqCst) < 2 {
            assert!(start.elapsed() < Duration::from_secs(10), "a worker was not told to leave");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(both);
        let error = format!("{:#}", ask_to_leave(&found[0]).unwrap_err());
        assert!(error.contains("could not be asked to leave"), "{error}");
    }

    #[test]
    fn what_nobody_listens_to_is_removed_and_what_does_not_answer_is_named() {
        let folder = tempfile::tempdir().unwrap();
        // Left by a worker that was killed.
        drop(std::os::unix::net::UnixListener::bind(folder.path().join("7-dead")).unwrap());
        let frozen = std::os::unix::net::UnixListener::bind(folder.path().join("8-frozen")).unwrap();
        let found = present(folder.path());
        assert!(!folder.path().join("7-dead").exists());
        assert!(matches!(&found[..], [w] if w.pid == 8 && w.coordinator.contains("does not answer")), "{found:?}");

        // A process that is not a worker, and sends more bytes than a line may have.
        let (hold, done) = mpsc::channel::<()>();
        let babbler = std::thread::spawn(move || {
            while done.try_recv() != Err(mpsc::TryRecvError::Disconnected) {
                let (mut stream, _) = frozen.accept().unwrap();
                let _ = stream.write_all(&[b'x'; 10_000]);
            }
        });
        assert_eq!(present(folder.path()).len(), 1);
        drop(hold);
        let _ = present(folder.path());
        babbler.join().unwrap();
    }

    #[test]
    fn the_only_one_needs_no_name() {
        let worker = |pid| RunningWorker { pid, coordinator: "a:1".to_owned(), socket: PathBuf::new() };
        let pids = |chosen: Result<Vec<RunningWorker>>| chosen.unwrap().iter().map(|w| w.pid).collect::<Vec<_>>();
        let two = [worker(3), worker(5)];
        assert_eq!(pids(choose(&two[..1], None, false)), [3]);
        assert_eq!(pids(choose(&two, Some(5), false)), [5]);
        assert_eq!(pids(choose(&two, None, true)), [3, 5]);
        for (present, pid, word) in [(&two[..], None, "--all"), (&two[..], Some(9), "process 9"), (&[][..], None, "no worker of yours")] {
            let error = choose(present, pid, false).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
