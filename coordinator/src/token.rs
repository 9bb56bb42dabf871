//! `coordinator token`: makes, lists and revokes the join tokens of a run, while
//! its coordinator runs or not.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};
use clap::Subcommand;
use common::net::AuthorityError;
use common::net::tokens::MAX_LIFETIME;
use common::net::{Authority, tokens};
use common::run_dir::{self, Event};

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it.
    New {
        /// The run's directory.
        run: PathBuf,
        /// How long it admits workers, for example 30m, 24h or 7d; 10y at most.
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = lifetime)]
        expires: Duration,
    },
    /// List the run's tokens, without their secrets.
    List {
        /// The run's directory.
        run: PathBuf,
    },
    /// Revoke a token: workers that joined with it are sent away.
    Revoke {
        /// The run's directory.
        run: PathBuf,
        /// The token's id, as `list` shows it.
        id: String,
    },
}

/// Parses how long a token lasts.
fn lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    if lifetime > MAX_LIFETIME {
        return Err("a token lasts ten years at most: 10y".to_owned());
    }
    Ok(lifetime)
}

/// Carries out one command; returns what to print.
pub fn run(command: &TokenCommand) -> Result<String> {
    let (TokenCommand::New { run, .. } | TokenCommand::List { run } | TokenCommand::Revoke { run, .. }) = command;
    let authority = open(run)?;
    Ok(match command {
        TokenCommand::New { expires, .. } => {
            let token = authority.tokens().create(*expires, SystemTime::now())?;
            let id = tokens::id(&token.secret);
            common::ui::print_stderr(&format!("token {id} admits workers for {}", humantime::format_duration(*expires)));
            format!("{token}\n")
        }
        TokenCommand::List { .. } => list(&authority)?,
        TokenCommand::Revoke { id, .. } => {
            match authority.tokens().revoke(id) {
                // The token's file is lost, but a worker enrolled with it.
                Err(AuthorityError::NoToken { .. }) if enrolled(run, id)? => authority.tokens().revoke_unlisted(id)?,
                other => other?,
            }
            format!("token {id} is revoked: it admits nobody, and a running coordinator sends away whoever came with it\n")
        }
    })
}

/// Opens the authority of an existing run; none is made.
fn open(run: &Path) -> Result<Authority> {
    let keys = run.join("keys");
    if !keys.join("ca.pem").is_file() {
        bail!("`{}` holds no keys: name the run directory of a cluster", run.display());
    }
    Ok(Authority::open(&keys)?)
}

/// Whether the run's journal knows of a worker with this token.
fn enrolled(run: &Path, id: &str) -> Result<bool> {
    let with = |event: &Event| matches!(event, Event::Enrolled { token, .. } if token == id);
    Ok(run_dir::events(run)?.iter().any(with))
}

fn list(authority: &Authority) -> Result<String> {
    let now = SystemTime::now();
    let mut text = format!("{:<10}{:<22}{:<22}{}\n", "ID", "CREATED", "EXPIRES", "STATE");
    for token in authority.tokens().list()? {
        let state = match () {
            () if token.revoked => "revoked",
            () if token.expires <= now => "expired",
            () => "valid",
        };
        text += &format!("{:<10}{:<22}{:<22}{state}\n", token.id, date(token.created), date(token.expires));
    }
    Ok(text)
}

/// A time in a readable form. A file may hold any number; years of five digits have
/// no such form.
fn date(time: SystemTime) -> String {
    let mut text = String::new();
    match write!(text, "{}", humantime::format_rfc3339_seconds(time)) {
        Ok(()) => text,
        Err(_) => "after the year 9999".to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn run_with_keys() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        Authority::open(&dir.path().join("keys")).unwrap();
        dir
    }

    #[test]
    fn absurd_numbers_in_the_file_are_listed_all_the_same() {
        let dir = run_with_keys();
        let path = dir.path().to_owned();
        run(&TokenCommand::New { run: path.clone(), expires: Duration::from_secs(60) }).unwrap();
        let file = path.join("keys/tokens.json");
        let text = std::fs::read_to_string(&file).unwrap();
        for absurd in [u64::MAX, 1 << 62, 400_000_000_000, 253_402_300_800] {
            let lines = text.lines().map(|l| match l.split_once(": ") {
                Some((key, _)) if key.contains("expires") || key.contains("created") => format!("{key}: {absurd},\n"),
                _ => format!("{l}\n"),
            });
            std::fs::write(&file, lines.collect::<String>()).unwrap();
            let listed = run(&TokenCommand::List { run: path.clone() }).unwrap();
            assert_eq!(listed.lines().count(), 2, "{listed}");
        }
    }

    #[test]
    fn a_token_whose_file_is_lost_can_be_revoked_if_somebody_came_with_it() {
        let dir = run_with_keys();
        let line = r#"{"unix_seconds":1.0,"event":"enrolled","name":"worker-1","token":"0badcafe"}"#;
        std::fs::write(dir.path().join("journal.jsonl"), format!("{line}\n")).unwrap();
        let revoke = |id: &str| run(&TokenCommand::Revoke { run: dir.path().to_owned(), id: id.to_owned() });
        revoke("0badcafe").unwrap();
        assert!(revoke("0badcaff").unwrap_err().to_string().contains("0badcaff"));
        let authority = Authority::open(&dir.path().join("keys")).unwrap();
        assert_eq!(authority.tokens().revocations().unwrap().into_iter().collect::<Vec<_>>(), ["0badcafe"]);
    }
}
