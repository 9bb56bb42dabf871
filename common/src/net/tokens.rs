//! The join tokens of one run, in the file `tokens.json` beside its authority:
//! each admits workers until it expires or is revoked. Whoever may read the file
//! may make tokens, so `coordinator token` needs no connection to a coordinator,
//! which reads the file again for each newcomer.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::authority::{AuthorityError, hex, unhex, write_private};
use super::tls;
use super::token::{SECRET, Token};

/// How long a token admits workers if nothing else was asked for.
pub const LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// The token that is handed out by itself has at least so much time left.
const LEFT: Duration = Duration::from_secs(24 * 3600);

/// Expired tokens that were never revoked are forgotten after so long.
const FORGET: Duration = Duration::from_secs(90 * 24 * 3600);

/// The tokens of one run.
#[derive(Debug, Clone)]
pub struct Tokens {
    path: PathBuf,
    fingerprint: [u8; 32],
}

/// A token without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub id: String,
    pub created: SystemTime,
    pub expires: SystemTime,
    pub revoked: bool,
}

/// A token as the file has it.
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

/// What a newcomer that names a token is to prove, and why it may be refused
/// even then.
pub(super) struct Found {
    pub secret: [u8; SECRET],
    pub refused: Option<&'static str>,
}

/// Eight hex digits that name a token without giving its secret away.
pub fn id(secret: &[u8; SECRET]) -> String {
    hex(&blake3::derive_key("ringleader 1 token id", secret)[..4])
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
        Self { path: dir.join("tokens.json"), fingerprint }
    }

    /// The file, to be looked at for changes.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a token that admits workers for `lifetime` from `now` on.
    pub fn create(&self, lifetime: Duration, now: SystemTime) -> Result<Token, AuthorityError> {
        self.change(|entries| self.add(entries, lifetime, now))
    }

    /// A token that admits workers for another day at least; a new one of
    /// [`LIFETIME`] if there is none.
    pub fn standing(&self, now: SystemTime) -> Result<Token, AuthorityError> {
        self.change(|entries| {
            let lasting = |e: &&Entry| !e.revoked && e.expires >= unix(now + LEFT);
            match entries.iter().rev().find(lasting).and_then(|e| unhex(&e.secret)) {
                Some(secret) => Ok(Token { fingerprint: self.fingerprint, secret }),
                None => self.add(entries, LIFETIME, now),
            }
        })
    }

    fn add(&self, entries: &mut Vec<Entry>, lifetime: Duration, now: SystemTime) -> Result<Token, AuthorityError> {
        let mut secret = [0; SECRET];
        tls::random(&mut secret).ok_or(AuthorityError::Random)?;
        entries.retain(|e| e.revoked || e.expires.saturating_add(FORGET.as_secs()) > unix(now));
        let expires = unix(now).saturating_add(lifetime.as_secs());
        entries.push(Entry { id: id(&secret), secret: hex(&secret), created: unix(now), expires, revoked: false });
        Ok(Token { fingerprint: self.fingerprint, secret })
    }

    /// Every token of the run, oldest first.
    pub fn list(&self) -> Result<Vec<Listed>, AuthorityError> {
        let listed = |e: Entry| Listed { id: e.id, created: time(e.created), expires: time(e.expires), revoked: e.revoked };
        Ok(self.read()?.into_iter().map(listed).collect())
    }

    /// Revokes the token of this id: it admits nobody any more, and whoever it
    /// admitted has to go.
    pub fn revoke(&self, id: &str) -> Result<(), AuthorityError> {
        self.change(|entries| match entries.iter_mut().find(|e| e.id == id) {
            Some(entry) => {
                entry.revoked = true;
                Ok(())
            }
            None => Err(AuthorityError::NoToken { id: id.to_owned() }),
        })
    }

    /// The token that a newcomer names.
    pub(super) fn find(&self, id: &str, now: SystemTime) -> Result<Option<Found>, AuthorityError> {
        let found = self.read()?.into_iter().find(|e| e.id == id);
        Ok(found.and_then(|e| {
            let refused = match () {
                () if e.revoked => Some("this token was revoked"),
                () if e.expires <= unix(now) => Some("this token has expired"),
                () => None,
            };
            unhex(&e.secret).map(|secret| Found { secret, refused })
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
        match entries.iter().find(|e| unhex(&e.secret).is_none_or(|secret| id(&secret) != e.id)) {
            Some(entry) => Err(damaged(format!("the secret of token `{}` is not its own", entry.id))),
            None => Ok(entries),
        }
    }

    /// Reads, changes and writes the file; one process at a time.
    fn change<T>(&self, change: impl FnOnce(&mut Vec<Entry>) -> Result<T, AuthorityError>) -> Result<T, AuthorityError> {
        let lock = self.path.with_extension("lock");
        let file = |source| AuthorityError::File { path: lock.clone(), source };
        let held = File::options().create(true).write(true).truncate(false).open(&lock).map_err(file)?;
        held.lock().map_err(file)?;
        let before = self.read()?;
        let mut entries = before.clone();
        let result = change(&mut entries)?;
        if entries != before {
            let text = serde_json::to_string_pretty(&entries).unwrap_or_else(|e| unreachable!("tokens are plain data: {e}"));
            write_private(&self.path, text.as_bytes())?;
        }
        Ok(result)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn tokens() -> (tempfile::TempDir, Tokens) {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::new(dir.path(), [7; 32]);
        (dir, tokens)
    }

    #[test]
    fn a_token_admits_until_it_expires_or_is_revoked() {
        let (_dir, tokens) = tokens();
        let now = SystemTime::now();
        let token = tokens.create(DAY, now).unwrap();
        let id = id(&token.secret);
        let refused = |at| tokens.find(&id, at).unwrap().unwrap().refused;
        assert_eq!(tokens.find(&id, now).unwrap().unwrap().secret, token.secret);
        assert_eq!((refused(now), refused(now + DAY / 2)), (None, None));
        assert_eq!(refused(now + DAY), Some("this token has expired"));
        assert!(tokens.find("00000000", now).unwrap().is_none());
        tokens.revoke(&id).unwrap();
        assert_eq!(refused(now), Some("this token was revoked"));
        assert!(tokens.revoke("00000000").unwrap_err().to_string().contains("00000000"));
    }

    #[test]
    fn the_standing_token_is_replaced_in_time() {
        let (_dir, tokens) = tokens();
        let now = SystemTime::now();
        let first = tokens.standing(now).unwrap();
        assert!(first == tokens.standing(now + 5 * DAY).unwrap());
        let second = tokens.standing(now + 7 * DAY).unwrap();
        assert!(first != second);
        tokens.revoke(&id(&second.secret)).unwrap();
        assert!(second != tokens.standing(now + 7 * DAY).unwrap());
        let listed = tokens.list().unwrap();
        assert_eq!(listed.iter().map(|t| t.revoked).collect::<Vec<_>>(), [false, true, false]);
        assert_eq!(listed[0].expires.duration_since(listed[0].created).unwrap(), LIFETIME);
    }

    #[test]
    fn old_tokens_are_forgotten_and_revoked_ones_are_not() {
        let (_dir, tokens) = tokens();
        let now = SystemTime::now();
        let revoked = tokens.create(DAY, now).unwrap();
        tokens.create(DAY, now).unwrap();
        tokens.revoke(&id(&revoked.secret)).unwrap();
        let new = tokens.create(DAY, now + 100 * DAY).unwrap();
        let ids: Vec<_> = tokens.list().unwrap().into_iter().map(|t| t.id).collect();
        assert_eq!(ids, [id(&revoked.secret), id(&new.secret)]);
    }

    #[test]
    fn the_file_is_private_and_its_damage_is_named() {
        let (dir, tokens) = tokens();
        let token = tokens.standing(SystemTime::now()).unwrap();
        let path = dir.path().join("tokens.json");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let text = fs::read_to_string(&path).unwrap();
        for damage in ["", "[{}]", &text.replace(&hex(&token.secret), &hex(&[0; SECRET]))] {
            fs::write(&path, damage).unwrap();
            let error = tokens.list().unwrap_err().to_string();
            assert!(error.contains("tokens.json"), "{error}");
            assert!(tokens.standing(SystemTime::now()).is_err(), "a damaged file is not replaced");
        }
    }
}
