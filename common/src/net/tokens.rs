//! The join tokens of one run, in the file `tokens.json` beside its authority: each
//! admits workers until it expires or is revoked. Every user who may read the file may
//! make tokens, so `coordinator token` needs no connection to a coordinator, which
//! reads the file again for each newcomer. Revocations are kept a second time, in the
//! file `revoked`, and hold even if `tokens.json` is damaged or removed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use super::error::AuthorityError;
use super::revoked::{Revoked, is_id};
use super::tls;
use super::token::{SECRET, Token};
use crate::files::{open_lock, replace_private};

/// How long a token admits workers by default.
pub const LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// The longest that a token may admit workers: ten years of 365.25 days, as `10y` is
/// parsed.
pub const MAX_LIFETIME: Duration = Duration::from_secs(10 * 31_557_600);

/// How long another process may hold the tokens' lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// The least time left of the token that is handed out by default.
const MIN_REMAINING: Duration = Duration::from_secs(24 * 3600);

/// Expired tokens that were never revoked are removed after this long.
const KEEP_EXPIRED_FOR: Duration = Duration::from_secs(90 * 24 * 3600);

/// The tokens of one run.
#[derive(Debug, Clone)]
pub struct Tokens {
    path: PathBuf,
    revoked: Revoked,
    fingerprint: [u8; 32],
}

/// Tells whether tokens or revocations have changed since it was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp([Option<(u64, u64, i64, i64)>; 2]);

/// A token without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub id: String,
    pub created: SystemTime,
    pub expires: SystemTime,
    pub revoked: bool,
}

/// A token as the file stores it.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Entry {
    id: String,
    /// In hex.
    secret: String,
    /// Unix seconds.
    created: u64,
    expires: u64,
    revoked: bool,
}

impl Entry {
    /// None if the file is damaged.
    fn secret(&self) -> Option<[u8; SECRET]> {
        HEXLOWER.decode(self.secret.as_bytes()).ok()?.try_into().ok()
    }
}

/// What a newcomer that names a token must prove, and why it may be refused even then.
pub(super) struct Found {
    pub secret: [u8; SECRET],
    pub refused: Option<&'static str>,
}

/// Eight hex digits that name a token without giving its secret away.
pub fn id(secret: &[u8; SECRET]) -> String {
    HEXLOWER.encode(&blake3::derive_key("ringleader 1 token id", secret)[..4])
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn time(unix: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(unix)).unwrap_or(SystemTime::UNIX_EPOCH)
}

impl Tokens {
    /// The tokens of the authority in `dir` whose certificate has `fingerprint`.
    pub(super) fn new(dir: &Path, fingerprint: [u8; 32]) -> Self {
        Self { path: dir.join("tokens.json"), revoked: Revoked::new(dir), fingerprint }
    }

    /// The state of the files now, without reading their content. Each replacement is a
    /// new file, and each appended line makes its file longer.
    pub fn stamp(&self) -> Stamp {
        let of = |path: &Path| fs::metadata(path).ok().map(|m| (m.ino(), m.len(), m.mtime(), m.mtime_nsec()));
        Stamp([of(&self.path), of(self.revoked.path())])
    }

    /// Makes a token that admits workers for `lifetime`, at most [`MAX_LIFETIME`],
    /// from `now` on.
    pub fn create(&self, lifetime: Duration, now: SystemTime) -> Result<Token, AuthorityError> {
        if lifetime > MAX_LIFETIME {
            return Err(AuthorityError::Lifetime { seconds: lifetime.as_secs() });
        }
        self.change(|entries| self.add(entries, lifetime, now))
    }

    /// A token that admits workers for another day at least; a new one of
    /// [`LIFETIME`] if there is none.
    pub fn standing(&self, now: SystemTime) -> Result<Token, AuthorityError> {
        self.change(|entries| {
            let revoked = self.revocations()?;
            let lasting = |e: &&Entry| !e.revoked && !revoked.contains(&e.id) && e.expires >= unix(now + MIN_REMAINING);
            match entries.iter().rev().find(lasting).and_then(|e| e.secret()) {
                Some(secret) => Ok(Token { fingerprint: self.fingerprint, secret }),
                None => self.add(entries, LIFETIME, now),
            }
        })
    }

    fn add(&self, entries: &mut Vec<Entry>, lifetime: Duration, now: SystemTime) -> Result<Token, AuthorityError> {
        let mut secret = [0; SECRET];
        tls::random(&mut secret).ok_or(AuthorityError::Random)?;
        entries.retain(|e| e.revoked || e.expires.saturating_add(KEEP_EXPIRED_FOR.as_secs()) > unix(now));
        let expires = unix(now).saturating_add(lifetime.as_secs());
        entries.push(Entry { id: id(&secret), secret: HEXLOWER.encode(&secret), created: unix(now), expires, revoked: false });
        Ok(Token { fingerprint: self.fingerprint, secret })
    }

    /// Every token of the run, oldest first.
    pub fn list(&self) -> Result<Vec<Listed>, AuthorityError> {
        let revoked = self.revocations()?;
        let listed = |e: Entry| {
            let revoked = e.revoked || revoked.contains(&e.id);
            Listed { id: e.id, created: time(e.created), expires: time(e.expires), revoked }
        };
        Ok(self.read()?.into_iter().map(listed).collect())
    }

    /// The ids of revoked tokens according to the file of revocations: the file of
    /// tokens may be damaged or gone.
    pub fn revocations(&self) -> Result<BTreeSet<String>, AuthorityError> {
        self.revoked.read().map_err(|source| AuthorityError::File { path: self.revoked.path().to_owned(), source })
    }

    /// Revokes the token of this id: it admits no worker any more, and the workers that
    /// it admitted are removed. Where the tokens cannot be read, any id is accepted.
    pub fn revoke(&self, id: &str) -> Result<(), AuthorityError> {
        let known = self.change(|entries| match entries.iter_mut().find(|e| e.id == id) {
            Some(entry) => {
                entry.revoked = true;
                Ok(())
            }
            None => Err(AuthorityError::NoToken { id: id.to_owned() }),
        });
        match known {
            Err(AuthorityError::Tokens { .. }) => self.revoke_unlisted(id),
            known => known,
        }
    }

    /// Revokes a token of which only its id is known, because `tokens.json` is lost
    /// or damaged.
    pub fn revoke_unlisted(&self, id: &str) -> Result<(), AuthorityError> {
        if !is_id(id) {
            return Err(AuthorityError::NoToken { id: id.to_owned() });
        }
        let _held = self.lock()?;
        self.note_revoked(id)
    }

    fn note_revoked(&self, id: &str) -> Result<(), AuthorityError> {
        self.revoked.add(id).map_err(|source| AuthorityError::File { path: self.revoked.path().to_owned(), source })
    }

    /// The token with the id that a newcomer gives.
    pub(super) fn find(&self, id: &str, now: SystemTime) -> Result<Option<Found>, AuthorityError> {
        let revoked = self.revocations()?;
        let found = self.read()?.into_iter().find(|e| e.id == id);
        Ok(found.and_then(|e| {
            let refused = match () {
                () if e.revoked || revoked.contains(&e.id) => Some("this token was revoked"),
                () if e.expires <= unix(now) => Some("this token has expired"),
                () => None,
            };
            e.secret().map(|secret| Found { secret, refused })
        }))
    }

    fn read(&self) -> Result<Vec<Entry>, AuthorityError> {
        let damaged = |problem: String| AuthorityError::Tokens { path: self.path.clone(), problem };
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(AuthorityError::File { path: self.path.clone(), source }),
        };
        let entries: Vec<Entry> = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
        match entries.iter().find(|e| e.secret().is_none_or(|secret| id(&secret) != e.id)) {
            Some(entry) => Err(damaged(format!("the secret of token `{}` is not its own", entry.id))),
            None => Ok(entries),
        }
    }

    /// Lets one process at a time change the files.
    fn lock(&self) -> Result<File, AuthorityError> {
        let path = self.path.with_extension("lock");
        let file = |source| AuthorityError::File { path: path.clone(), source };
        let lock = open_lock(&path).map_err(file)?;
        let start = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(lock),
                Err(fs::TryLockError::WouldBlock) if start.elapsed() < LOCK_TIMEOUT => std::thread::sleep(Duration::from_millis(10)),
                Err(fs::TryLockError::WouldBlock) => return Err(AuthorityError::Busy { path, held: LOCK_TIMEOUT }),
                Err(fs::TryLockError::Error(source)) => return Err(file(source)),
            }
        }
    }

    /// Reads, changes and writes the file. Revocations are written to disk first.
    fn change<T>(&self, change: impl FnOnce(&mut Vec<Entry>) -> Result<T, AuthorityError>) -> Result<T, AuthorityError> {
        let _held = self.lock()?;
        let before = self.read()?;
        let mut entries = before.clone();
        let result = change(&mut entries)?;
        let revoked = self.revocations()?;
        for entry in entries.iter().filter(|e| e.revoked && !revoked.contains(&e.id)) {
            self.note_revoked(&entry.id)?;
        }
        if entries != before {
            let text = serde_json::to_string_pretty(&entries).unwrap_or_else(|e| unreachable!("tokens are plain data: {e}"));
            replace_private(&self.path, text.as_bytes()).map_err(AuthorityError::file(&self.path))?;
        }
        Ok(result)
    }
}

#[cfg(test)]
mod tests;
