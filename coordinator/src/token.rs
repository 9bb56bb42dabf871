//! `coordinator token`: makes, lists and revokes the join tokens of a run, while
//! its coordinator runs or not.

use std::path::Path;
use std::time::SystemTime;

use anyhow::{Result, bail};
use common::net::{Authority, tokens};

use crate::cli::TokenCommand;

/// Carries out one command; returns what to print.
pub fn run(command: &TokenCommand) -> Result<String> {
    let (TokenCommand::New { run, .. } | TokenCommand::List { run } | TokenCommand::Revoke { run, .. }) = command;
    let authority = open(run)?;
    Ok(match command {
        TokenCommand::New { expires, .. } => {
            let token = authority.tokens().create(*expires, SystemTime::now())?;
            let id = tokens::id(&token.secret);
            eprintln!("token {id} admits workers for {}", humantime::format_duration(*expires));
            format!("{token}\n")
        }
        TokenCommand::List { .. } => list(&authority)?,
        TokenCommand::Revoke { id, .. } => {
            authority.tokens().revoke(id)?;
            format!("token {id} is revoked: it admits nobody, and a running coordinator sends away whoever came with it\n")
        }
    })
}

/// The authority of a run that is there; none is made.
fn open(run: &Path) -> Result<Authority> {
    let keys = run.join("keys");
    if !keys.join("ca.pem").is_file() {
        bail!("`{}` holds no keys: name the run directory of a cluster", run.display());
    }
    Ok(Authority::open(&keys)?)
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
        let at = |time| humantime::format_rfc3339_seconds(time).to_string();
        text += &format!("{:<10}{:<22}{:<22}{state}\n", token.id, at(token.created), at(token.expires));
    }
    Ok(text)
}
