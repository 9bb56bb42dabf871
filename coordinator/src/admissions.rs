//! Records which worker enrolled with which token, which tokens are revoked, and
//! which workers are in the ring.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::net::tokens::{Stamp, Tokens};
use common::net::{worker_name, worker_number};
use common::run_dir::Event;
use common::wire::messages::Member;

/// The reason given to a worker whose token was revoked.
pub const REVOKED: &str = "the token of this worker was revoked";

/// All workers that were ever admitted to a run. Any thread may query and refresh it.
pub struct Admissions {
    tokens: Tokens,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The token's id of each name.
    names: BTreeMap<String, String>,
    /// The largest number in any worker name of the run.
    last: u64,
    /// The names of the newest generation's members.
    members: BTreeSet<String>,
    /// Ids of revoked tokens.
    revoked: BTreeSet<String>,
    /// The revoked tokens that the journal has, or that were handed out to be journaled.
    journaled: BTreeSet<String>,
    /// The version of the token files that was last read.
    read: Option<Stamp>,
    /// The files could not be read, and that was logged.
    unreadable: bool,
}

impl Admissions {
    /// The admissions recorded in a run's journal.
    pub fn new(tokens: Tokens, events: &[Event]) -> Self {
        let mut state = State::default();
        let mut named = |name: &str| state.last = state.last.max(number(name));
        for event in events {
            match event {
                Event::Enrolled { name, token } => {
                    named(name);
                    state.names.insert(name.clone(), token.clone());
                }
                // The journal may have lost the line of this worker's enrolment.
                Event::WorkerJoined { name, .. } => named(name),
                Event::Generation { members, .. } => members.iter().for_each(|m| named(&m.name)),
                Event::Revoked { token } => {
                    state.revoked.insert(token.clone());
                    state.journaled.insert(token.clone());
                }
                _ => {}
            }
        }
        let admissions = Self { tokens, state: Mutex::new(state) };
        admissions.refresh();
        admissions
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves a name that no worker of the run has ever had, for a worker with this
    /// token. The worker may be told the name once [`Event::Enrolled`] is on disk: a
    /// restarted coordinator must know of it. If that write fails, call
    /// [`Admissions::release`].
    pub fn reserve(&self, token: &str) -> String {
        let mut state = self.state();
        state.last += 1;
        let name = worker_name(state.last);
        state.names.insert(name.clone(), token.to_owned());
        name
    }

    /// Releases a name that no worker was told. Its number is not used again.
    pub fn release(&self, name: &str) {
        self.state().names.remove(name);
    }

    /// Whether the worker of this name came with a token that is revoked.
    pub fn is_revoked(&self, name: &str) -> bool {
        let state = self.state();
        state.names.get(name).is_some_and(|token| state.revoked.contains(token))
    }

    /// Sets the members of the newest generation.
    pub fn set_members(&self, members: &[Member]) {
        self.state().members = members.iter().map(|m| m.name.clone()).collect();
    }

    /// Whether the worker of this name is in the newest generation.
    pub fn is_member(&self, name: &str) -> bool {
        self.state().members.contains(name)
    }

    /// Whether there is a ring, as far as is known.
    pub fn has_members(&self) -> bool {
        !self.state().members.is_empty()
    }

    /// Reads the token files again if they have changed. Returns the names whose
    /// token was revoked since the last call. It may take as long as the disk does;
    /// other calls do not wait for it.
    pub fn refresh(&self) -> Vec<String> {
        let stamp = self.tokens.stamp();
        if self.state().read.as_ref() == Some(&stamp) {
            return Vec::new();
        }
        let listed = self.tokens.list();
        // Damage to one file does not affect the content of the other.
        let mut found = self.tokens.revocations().unwrap_or_default();
        let mut state = self.state();
        match listed {
            Ok(tokens) => {
                (state.read, state.unreadable) = (Some(stamp), false);
                found.extend(tokens.into_iter().filter(|t| t.revoked).map(|t| t.id));
            }
            Err(e) => {
                if !std::mem::replace(&mut state.unreadable, true) {
                    tracing::error!("{e}");
                }
            }
        }
        let new: BTreeSet<String> = found.into_iter().filter(|id| !state.revoked.contains(id)).collect();
        let names = state.names.iter().filter(|(_, token)| new.contains(*token)).map(|(name, _)| name.clone()).collect();
        state.revoked.extend(new);
        names
    }

    /// The revoked tokens of which the journal has no [`Event::Revoked`] yet, each
    /// once: the caller writes them.
    pub fn revocations_to_record(&self) -> Vec<String> {
        let mut state = self.state();
        let new: Vec<String> = state.revoked.difference(&state.journaled).cloned().collect();
        state.journaled.extend(new.iter().cloned());
        new
    }
}

/// The number in a worker's name; 0 if it has none. A damaged journal may hold any
/// number: one that leaves no room for further names is ignored.
fn number(name: &str) -> u64 {
    worker_number(name).filter(|&n| n < u64::MAX / 2).unwrap_or(0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};
    use std::time::{Duration, SystemTime};

    use common::net::{Authority, tokens};

    use super::*;

    #[test]
    fn names_go_on_after_a_restart_and_revocation_finds_them() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path()).unwrap();
        let make = || tokens::id(&authority.tokens().create(Duration::from_secs(60), SystemTime::now()).unwrap().secret);
        let (good, bad) = (make(), make());
        let first = Admissions::new(authority.tokens().clone(), &[]);
        let names: Vec<String> = [&good, &bad, &good].into_iter().map(|token| first.reserve(token)).collect();
        assert_eq!(names, ["worker-1", "worker-2", "worker-3"]);

        let events: Vec<Event> = names
            .iter()
            .zip([&good, &bad, &good])
            .map(|(name, token)| Event::Enrolled { name: name.clone(), token: token.clone() })
            .collect();
        let again = Admissions::new(authority.tokens().clone(), &events[1..]);
        assert_eq!(again.reserve(&bad), "worker-4", "a name in use is passed over, even if the journal lost another");
        assert!(again.refresh().is_empty());
        authority.tokens().revoke(&bad).unwrap();
        assert_eq!(again.refresh(), ["worker-2", "worker-4"]);
        assert!(again.refresh().is_empty(), "they are reported once");
        assert!(again.is_revoked("worker-2") && !again.is_revoked("worker-3") && !again.is_revoked("worker-9"));
        // A coordinator that did not run when the token was revoked knows of it too.
        assert!(Admissions::new(authority.tokens().clone(), &events).is_revoked("worker-2"));
    }

    fn admissions(events: &[Event]) -> (tempfile::TempDir, Admissions) {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Authority::open(dir.path()).unwrap().tokens().clone();
        (dir, Admissions::new(tokens, events))
    }

    #[test]
    fn a_name_that_nobody_got_is_not_given_again() {
        let (_dir, admissions) = admissions(&[]);
        let (first, second) = (admissions.reserve("a"), admissions.reserve("b"));
        admissions.release(&second);
        admissions.release(&first);
        assert_eq!(admissions.reserve("c"), "worker-3");
        assert!(!admissions.is_revoked(&first));
    }

    const HERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

    #[test]
    fn names_of_whoever_was_there_are_taken_though_the_line_of_their_enrolment_is_lost() {
        let member = |name: &str| Member { name: name.to_owned(), addr: HERE, others: Vec::new() };
        let events = [
            Event::WorkerJoined { name: "worker-4".to_owned(), addr: HERE },
            Event::Generation {
                generation: 1,
                workers: 1,
                step: 0,
                members: vec![member("worker-7")],
                shards: vec![8],
                speeds: vec![None],
                dense: None,
            },
            Event::WorkerJoined { name: format!("worker-{}", u64::MAX), addr: HERE },
            Event::WorkerJoined { name: "somebody".to_owned(), addr: HERE },
        ];
        let (_dir, admissions) = admissions(&events);
        assert_eq!(admissions.reserve("a"), "worker-8");
    }

    #[test]
    fn removing_the_file_of_tokens_lets_nobody_in_again() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path()).unwrap();
        let bad = tokens::id(&authority.tokens().create(Duration::from_secs(60), SystemTime::now()).unwrap().secret);
        let enrolled = Event::Enrolled { name: "worker-1".to_owned(), token: bad.clone() };
        // The token is revoked while no coordinator runs. Then the file is damaged,
        // and removed as the log advises.
        authority.tokens().revoke(&bad).unwrap();
        std::fs::write(dir.path().join("tokens.json"), "{").unwrap();
        let look = |events: &[Event]| Admissions::new(authority.tokens().clone(), events).is_revoked("worker-1");
        assert!(look(std::slice::from_ref(&enrolled)), "while it is damaged");
        std::fs::remove_file(dir.path().join("tokens.json")).unwrap();
        let later = Admissions::new(authority.tokens().clone(), std::slice::from_ref(&enrolled));
        assert!(later.is_revoked("worker-1"), "once it is gone");
        // The revocation is handed to the journal once; after that the journal is enough.
        assert_eq!(later.revocations_to_record(), std::slice::from_ref(&bad));
        assert!(later.revocations_to_record().is_empty());
        std::fs::remove_file(dir.path().join("revoked")).unwrap();
        assert!(!look(std::slice::from_ref(&enrolled)));
        let events = [enrolled, Event::Revoked { token: bad }];
        assert!(look(&events), "from the journal alone");
        assert!(Admissions::new(authority.tokens().clone(), &events).revocations_to_record().is_empty());
    }

    #[test]
    fn it_is_refreshed_from_another_thread() {
        fn shared<T: Send + Sync>(_: &T) {}
        let (_dir, admissions) = admissions(&[]);
        shared(&admissions);
        std::thread::scope(|scope| {
            let refreshing = scope.spawn(|| admissions.refresh());
            assert!(!admissions.is_revoked("worker-1"));
            assert!(refreshing.join().unwrap().is_empty());
        });
    }
}
