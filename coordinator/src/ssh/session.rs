//! The system's `ssh`: how it is called, and what its failures mean.

use std::path::PathBuf;

use tokio::process::Command;

use crate::shell::quoted;

/// The exit code with which ssh reports failures of its own.
pub(super) const SSH_FAILED: i32 = 255;

/// Which ssh is meant. Its own configuration, agent and known hosts apply.
#[derive(Debug, Clone, Default)]
pub struct Ssh {
    /// Read instead of ~/.ssh/config.
    pub config: Option<PathBuf>,
    /// Options as in ~/.ssh/config, `Port=2222`.
    pub options: Vec<String>,
}

/// These follow the user's options, because ssh takes the first value that it finds.
/// Nobody is there to answer questions; a connection that breaks is noticed within 15
/// seconds; and what a person's configuration asks for at a prompt is not wanted here. A
/// master connection that stands is used, but none is made, which would stay behind.
const OPTIONS: [&str; 9] = [
    "BatchMode=yes",
    "ConnectTimeout=10",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "ControlMaster=no",
    "ClearAllForwardings=yes",
    "RemoteCommand=none",
    "RequestTTY=no",
    "ForkAfterAuthentication=no",
];

impl Ssh {
    /// Runs `script` on `host` by its `sh`, with `arguments` as $1, $2 and so on. The script
    /// is one line without single quotes, backslashes and exclamation marks, because the
    /// login shell that passes it to `sh` may be any.
    pub(super) fn command(&self, host: &str, script: &str, arguments: &[String]) -> Command {
        let mut command = Command::new("ssh");
        if let Some(config) = &self.config {
            command.arg("-F").arg(config);
        }
        for option in self.options.iter().map(String::as_str).chain(OPTIONS) {
            command.args(["-o", option]);
        }
        let mut line = format!("exec sh -c '{script}' sh");
        for argument in arguments {
            line.push(' ');
            line.push_str(&quoted(argument));
        }
        command.args(["-a", "-x", "--", host]).arg(line);
        command
    }
}

/// What the words of ssh and of the other side's tools mean, and what to do.
const CAUSES: [(&str, &str); 20] = [
    ("Could not resolve hostname", "its name is unknown here: check it, or name it in ~/.ssh/config"),
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key is not the one that is known: if that is right, remove the old one with `ssh-keygen -R HOST`",
    ),
    ("Host key verification failed", "its host key is not known here: connect once by hand with `ssh HOST` and accept it"),
    ("Permission denied (", "it lets nobody in without a password: run `ssh-copy-id HOST`, or load the key with `ssh-add`"),
    ("Too many authentication failures", "none of the many keys is accepted: name one with IdentityFile in ~/.ssh/config"),
    ("No route to host", "no route leads to it: check that it is up, and its address"),
    ("Network is unreachable", "no route leads to it: check this machine's network, and the address"),
    ("Connection timed out", "it does not answer: check that it is up, its address, and firewalls"),
    ("Operation timed out", "it does not answer: check that it is up, its address, and firewalls"),
    ("Connection refused", "no ssh server listens there: start sshd, or name its port with --ssh-option Port=N"),
    ("Bad configuration option", "ssh does not know an option: check --ssh-option and the ssh config"),
    ("Can't open user config file", "the file of --ssh-config cannot be read"),
    ("No space left on device", "its disk is full: free space below ~/.cache/ringleader there"),
    ("Disk quota exceeded", "the quota of this user is used up there: free space below ~/.cache/ringleader"),
    ("Read-only file system", "~/.cache cannot be written there: mount it writable"),
    ("GLIBC_", "its glibc is older than the archive needs: make the archive on a system that is as old as that host's"),
    ("Exec format error", "the archive is for another kind of processor: make one on a machine like that host"),
    ("error while loading shared libraries", "the archive lacks a library: make it with `make dist`"),
    ("tar: not found", "tar is missing there: install it"),
    ("gzip: Cannot exec", "gzip is missing there: install it"),
];

/// What ssh, or a script on `host`, has failed at: the cause in words that say what to
/// do, with what was written to stderr.
pub(super) fn explained(host: &str, stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let known = CAUSES.iter().find(|(words, _)| stderr.contains(words));
    let told = known.and_then(|(words, _)| lines.iter().find(|line| line.contains(words))).or(lines.last()).copied().unwrap_or_default();
    match known {
        Some((_, cause)) => format!("{} ({told})", cause.replace("HOST", host)),
        None => told.to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn arguments_reach_the_script_as_they_are() {
        let words = ["plain", "two words", "it's", "$HOME", "", "a\\b"].map(str::to_owned);
        let ssh = Ssh { options: vec!["Port=2222".to_owned()], ..Ssh::default() };
        let command = ssh.command("node1", "for word in \"$@\"; do printf \"[%s]\\n\" \"$word\"; done", &words);
        let args: Vec<String> = command.as_std().get_args().map(|a| a.to_string_lossy().into_owned()).collect();
        // The user's options count before those that stand here.
        assert!(args.iter().position(|a| a == "Port=2222") < args.iter().position(|a| a == "BatchMode=yes"), "{args:?}");
        assert_eq!(args[args.len() - 3..][..2], ["--", "node1"]);
        let shown = std::process::Command::new("sh").args(["-c", args.last().unwrap()]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&shown.stdout), "[plain]\n[two words]\n[it's]\n[$HOME]\n[]\n[a\\b]\n");
    }

    #[test]
    fn failures_say_the_cause_and_what_to_do() {
        for (stderr, words) in [
            ("ssh: connect to host b port 22: No route to host\n", "no route leads to it"),
            ("Warning: x\nme@b: Permission denied (publickey).\n", "ssh-copy-id b"),
            ("No ED25519 host key is known for b and you have requested strict checking.\nHost key verification failed.\n", "`ssh b`"),
            ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.\n", "ssh-keygen -R b"),
            ("tar: lib/x.so: Cannot write: No space left on device\ntar: Error is not recoverable\n", "its disk is full"),
            ("worker: /lib/libc.so.6: version `GLIBC_2.38' not found (required by worker)\n", "its glibc is older"),
        ] {
            let said = explained("b", stderr);
            assert!(said.contains(words), "{stderr}: {said}");
        }
        assert_eq!(explained("b", "kex: banner\n  something new \n\n"), "something new");
    }
}
