//! Which worker came with which token, whose token was revoked since, and who is
//! in the ring.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use common::net::tokens::Tokens;
use common::net::worker_name;
use common::run_dir::Event;
use common::wire::messages::Member;

/// Everybody who was ever admitted to a run.
pub struct Roster {
    tokens: Tokens,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The token's id of each name.
    names: BTreeMap<String, String>,
    /// Those of the newest generation.
    members: BTreeSet<String>,
    /// Ids of revoked tokens.
    revoked: BTreeSet<String>,
    /// The file of tokens as it was last read.
    read: Option<SystemTime>,
    /// It could not be read, and that was complained of.
    unreadable: bool,
}

impl Roster {
    /// The roster that a run's journal tells of.
    pub fn new(tokens: Tokens, events: &[Event]) -> Self {
        let enrolled = |event: &Event| match event {
            Event::Enrolled { name, token } => Some((name.clone(), token.clone())),
            _ => None,
        };
        let state = State { names: events.iter().filter_map(enrolled).collect(), ..State::default() };
        let roster = Self { tokens, state: Mutex::new(state) };
        roster.refresh();
        roster
    }

    /// A name that no worker of the run has ever had, for one with this token.
    pub fn admit(&self, token: &str) -> String {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut number = state.names.len() as u64 + 1;
        while state.names.contains_key(&worker_name(number)) {
            number += 1;
        }
        let name = worker_name(number);
        state.names.insert(name.clone(), token.to_owned());
        name
    }

    /// Whether the worker of this name came with a token that is revoked.
    pub fn is_revoked(&self, name: &str) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.names.get(name).is_some_and(|token| state.revoked.contains(token))
    }

    /// A generation of these starts.
    pub fn set_members(&self, members: &[Member]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.members = members.iter().map(|m| m.name.clone()).collect();
    }

    /// Whether the worker of this name is in the newest generation.
    pub fn is_member(&self, name: &str) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).members.contains(name)
    }

    /// Looks at the tokens again. Returns the names whose token was revoked since.
    pub fn refresh(&self) -> Vec<String> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let modified = std::fs::metadata(self.tokens.path()).and_then(|m| m.modified()).ok();
        if modified == state.read {
            return Vec::new();
        }
        match self.tokens.list() {
            Ok(tokens) => {
                (state.read, state.unreadable) = (modified, false);
                let new: BTreeSet<String> =
                    tokens.into_iter().filter(|t| t.revoked && !state.revoked.contains(&t.id)).map(|t| t.id).collect();
                let names = state.names.iter().filter(|(_, token)| new.contains(*token)).map(|(name, _)| name.clone()).collect();
                state.revoked.extend(new);
                names
            }
            Err(e) => {
                if !std::mem::replace(&mut state.unreadable, true) {
                    tracing::error!("{e}");
                }
                Vec::new()
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use common::net::{Authority, tokens};

    use super::*;

    #[test]
    fn names_go_on_after_a_restart_and_revocation_finds_them() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path()).unwrap();
        let make = || tokens::id(&authority.tokens().create(Duration::from_secs(60), SystemTime::now()).unwrap().secret);
        let (good, bad) = (make(), make());
        let first = Roster::new(authority.tokens().clone(), &[]);
        let names: Vec<String> = [&good, &bad, &good].into_iter().map(|token| first.admit(token)).collect();
        assert_eq!(names, ["worker-1", "worker-2", "worker-3"]);

        let events: Vec<Event> = names
            .iter()
            .zip([&good, &bad, &good])
            .map(|(name, token)| Event::Enrolled { name: name.clone(), token: token.clone() })
            .collect();
        let again = Roster::new(authority.tokens().clone(), &events[1..]);
        assert_eq!(again.admit(&bad), "worker-4", "a name in use is passed over, even if the journal lost another");
        assert!(again.refresh().is_empty());
        authority.tokens().revoke(&bad).unwrap();
        assert_eq!(again.refresh(), ["worker-2", "worker-4"]);
        assert!(again.refresh().is_empty(), "told once");
        assert!(again.is_revoked("worker-2") && !again.is_revoked("worker-3") && !again.is_revoked("worker-9"));
        // A coordinator that was away when it happened knows too.
        assert!(Roster::new(authority.tokens().clone(), &events).is_revoked("worker-2"));
    }
}
