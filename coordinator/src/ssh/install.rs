//! Makes hosts ready for workers: asks each what it has, and copies the archive to those
//! that lack it.

use std::fs::File;
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use common::ui::print_stderr;
use futures_util::{StreamExt, stream};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::archive::Archive;
use super::hosts::Host;
use super::session::{SSH_FAILED, Ssh, explained};

/// Says, after a word by which the line is known whatever a login shell writes: system,
/// cores, whether the archive of the hash $1 and the data at $2 are there, and by which
/// address this machine is seen.
const ASK: &str = "d=${XDG_CACHE_HOME:-$HOME/.cache}/ringleader/dist; a=no; [ -x \"$d/$1/bin/worker\" ] && a=yes; \
    p=no; [ -n \"$2\" ] && [ -e \"$2\" ] && p=yes; \
    echo ringleader-host $(uname -s) $(getconf _NPROCESSORS_ONLN || echo 0) $a $p ${SSH_CONNECTION%% *}";

/// Unpacks the archive from stdin under its hash $1, in one step once it is whole and its
/// worker runs; removes archives that no run has used for 30 days.
const INSTALL: &str = "umask 077; d=${XDG_CACHE_HOME:-$HOME/.cache}/ringleader/dist; mkdir -p \"$d\" || exit 3; \
    t=$(mktemp -d \"$d/.$1.XXXXXX\") || exit 3; end() { rm -rf \"$t\"; }; trap end EXIT; trap \"exit 3\" HUP INT TERM; \
    tar -xzf - -C \"$t\" --strip-components 1 || exit 3; \"$t/bin/worker\" --version || exit 3; touch \"$t\"; \
    find \"$d\" -mindepth 1 -maxdepth 1 -mtime +30 -exec rm -rf {} +; \
    [ -e \"$d/$1\" ] || mv \"$t\" \"$d/$1\" || exit 3";

/// Hosts that are asked, or copied to, at a time.
const AT_A_TIME: usize = 16;

/// Bytes of the archive that are read at a time.
const PIECE: usize = 1 << 20;

/// A host on which workers can be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    pub host: Host,
    /// Its cores; 0 if it could not say.
    pub cores: u32,
    /// The data is there too, at the path that was asked for.
    pub has_data: bool,
    /// The address by which it sees this machine.
    pub sees: Option<IpAddr>,
}

/// What a host answered.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    cores: u32,
    has_archive: bool,
    has_data: bool,
    sees: Option<IpAddr>,
}

/// Makes all hosts ready, several at a time. What is copied is said, unless `quiet`.
///
/// # Errors
/// Hosts that cannot be used, each with the cause and what to do.
pub async fn install(ssh: &Ssh, hosts: Vec<Host>, archive: &Archive, data: Option<&Path>, quiet: bool) -> Result<Vec<Ready>> {
    let data = data.map_or_else(PathBuf::new, Path::to_owned);
    let each = hosts.into_iter().map(|host| {
        let data = data.as_path();
        async move {
            let name = host.name.clone();
            make_ready(ssh, host, archive, data, quiet).await.map_err(|e| format!("{name}: {e:#}"))
        }
    });
    let results: Vec<Result<Ready, String>> = stream::iter(each).buffered(AT_A_TIME).collect().await;
    let (ready, failed): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    let failed: Vec<String> = failed.into_iter().filter_map(Result::err).collect();
    if !failed.is_empty() {
        bail!("no worker was started:\n  {}", failed.join("\n  "));
    }
    Ok(ready.into_iter().flatten().collect())
}

async fn make_ready(ssh: &Ssh, host: Host, archive: &Archive, data: &Path, quiet: bool) -> Result<Ready> {
    let mut asking = ssh.command(&host.name, ASK, &[archive.hash.clone(), data.display().to_string()]);
    asking.stdin(Stdio::null()).kill_on_drop(true);
    let output = asking.output().await.context("could not start ssh: install OpenSSH's client")?;
    let answer = answer(&host.name, &output)?;
    if !answer.has_archive {
        copy(ssh, &host.name, archive, quiet).await?;
    }
    Ok(Ready { host, cores: answer.cores, has_data: answer.has_data, sees: answer.sees })
}

fn answer(host: &str, output: &Output) -> Result<Answer> {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("ringleader-host "));
    let words: Vec<&str> = line.unwrap_or_default().split_whitespace().collect();
    let [system, cores, archive, data, ref rest @ ..] = words[..] else { return Err(failed(host, output)) };
    if system != "Linux" {
        bail!("it runs {system}: workers run on Linux");
    }
    let sees = rest.first().and_then(|ip| ip.parse().ok());
    Ok(Answer { cores: cores.parse().unwrap_or(0), has_archive: archive == "yes", has_data: data == "yes", sees })
}

/// Why ssh, or the script that it ran, failed.
fn failed(host: &str, output: &Output) -> anyhow::Error {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let who = if output.status.code() == Some(SSH_FAILED) { "ssh" } else { "its shell" };
    match explained(host, &stderr) {
        reason if reason.is_empty() => anyhow!("{who} ended with {}: try `ssh {host}` by hand", output.status),
        reason => anyhow!("{reason}"),
    }
}

async fn copy(ssh: &Ssh, host: &str, archive: &Archive, quiet: bool) -> Result<()> {
    let file = archive.file().await?;
    let bytes = file.metadata()?.len();
    if !quiet {
        print_stderr(&format!("{host}: copying the archive, {} MB", bytes.div_ceil(1_000_000)));
    }
    let started = Instant::now();
    let output = fed(ssh.command(host, INSTALL, std::slice::from_ref(&archive.hash)), &file).await?;
    if !output.status.success() {
        return Err(failed(host, &output).context("the archive could not be installed"));
    }
    if !quiet {
        print_stderr(&format!("{host}: the archive is there after {:.1} s", started.elapsed().as_secs_f64()));
    }
    Ok(())
}

/// Runs a command with a file's contents as its stdin. The file goes through this process,
/// so that the other side sees a broken archive, and no whole one, if this process dies.
async fn fed(mut command: Command, file: &Arc<File>) -> Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().context("could not start ssh: install OpenSSH's client")?;
    let stdin = child.stdin.take();
    let feeding = async {
        let Some(mut stdin) = stdin else { return Ok(()) };
        let mut at = 0;
        loop {
            let from = Arc::clone(file);
            let piece = tokio::task::spawn_blocking(move || {
                let mut piece = vec![0; PIECE];
                let n = from.read_at(&mut piece, at)?;
                piece.truncate(n);
                std::io::Result::Ok(piece)
            });
            let piece = piece.await?.context("the archive cannot be read")?;
            // The reason of an ssh that reads no more is in its output.
            if piece.is_empty() || stdin.write_all(&piece).await.is_err() {
                return Ok::<_, anyhow::Error>(());
            }
            at += piece.len() as u64;
        }
    };
    let (fed, output) = tokio::join!(feeding, child.wait_with_output());
    fed?;
    output.context("ssh could not be waited for")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    fn output(code: i32, stdout: &str, stderr: &str) -> Output {
        Output { status: ExitStatus::from_raw(code << 8), stdout: stdout.into(), stderr: stderr.into() }
    }

    #[test]
    fn a_host_says_what_it_has_amid_what_its_shell_says() {
        let said = answer("b", &output(0, "Welcome!\nringleader-host Linux 8 yes no 10.0.0.1\nbye\n", "")).unwrap();
        assert_eq!(said, Answer { cores: 8, has_archive: true, has_data: false, sees: Some([10, 0, 0, 1].into()) });
        assert_eq!(answer("b", &output(0, "ringleader-host Linux 0 no yes\n", "")).unwrap().sees, None);
        let other = answer("b", &output(0, "ringleader-host Darwin 8 no no 10.0.0.1\n", "")).unwrap_err().to_string();
        assert!(other.contains("Darwin"), "{other}");
        let refused = answer("b", &output(255, "", "b: Permission denied (publickey).\n")).unwrap_err().to_string();
        assert!(refused.contains("ssh-copy-id b"), "{refused}");
        assert!(answer("b", &output(1, "", "")).unwrap_err().to_string().contains("by hand"));
    }

    /// What the scripts do on a host, with this machine's shell.
    #[tokio::test]
    async fn an_archive_is_installed_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().join("made/ringleader/bin");
        std::fs::create_dir_all(&made).unwrap();
        // Random bytes, so that half of the archive is not all of it.
        let mut noise = vec![0; 300_000];
        File::open("/dev/urandom").and_then(|mut from| std::io::Read::read_exact(&mut from, &mut noise)).unwrap();
        std::fs::write(made.join("noise"), &noise).unwrap();
        std::fs::write(made.join("worker"), "#!/bin/sh\necho worker 1\n").unwrap();
        std::fs::set_permissions(made.join("worker"), PermissionsExt::from_mode(0o755)).unwrap();
        let packed = dir.path().join("a.tar.gz");
        let mut tar = std::process::Command::new("tar");
        tar.arg("-C").arg(dir.path().join("made")).arg("-czf").arg(&packed).arg("ringleader");
        assert!(tar.status().unwrap().success());
        let cache = dir.path().join("cache");
        let sh = |script: &str, arguments: &[&str]| {
            let mut command = Command::new("sh");
            command
                .args(["-c", script, "sh"])
                .args(arguments)
                .env("XDG_CACHE_HOME", &cache)
                .env("SSH_CONNECTION", "10.0.0.1 5 10.0.0.2 22");
            command
        };
        let ask = async |data: &str| answer("b", &sh(ASK, &["hash", data]).output().await.unwrap()).unwrap();
        let dist = cache.join("ringleader/dist");
        let there = || std::fs::read_dir(&dist).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>();

        let before = ask("").await;
        assert!(!before.has_archive && !before.has_data && before.cores > 0);
        assert_eq!(before.sees, Some([10, 0, 0, 1].into()));
        let mut half = tempfile::tempfile().unwrap();
        half.write_all(&std::fs::read(&packed).unwrap()[..150_000]).unwrap();
        assert!(!fed(sh(INSTALL, &["hash"]), &Arc::new(half)).await.unwrap().status.success());
        assert!(there().is_empty() && !ask("").await.has_archive);

        let whole = Arc::new(File::open(&packed).unwrap());
        for _ in 0..2 {
            let installed = fed(sh(INSTALL, &["hash"]), &whole).await.unwrap();
            assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
            assert_eq!(there(), ["hash"]);
        }
        let after = ask(&dir.path().display().to_string()).await;
        assert!(after.has_archive && after.has_data);
    }

    #[test]
    fn scripts_are_one_line_that_any_login_shell_passes_on() {
        for script in [ASK, INSTALL] {
            assert!(!script.contains(['\'', '\\', '!', '\n']), "{script}");
        }
    }
}
