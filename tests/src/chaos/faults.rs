//! Injects faults into the processes and links of a cluster, and waits for the
//! moments at which to do so.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::conditions::{Conditions, Node};
use super::{Chaos, Fault, Moment, Then, serve, start};
use crate::scenario::events;
use crate::{record, until, until_or_tell};

/// How long to wait for a moment at most.
const PATIENCE: Duration = Duration::from_secs(60);

/// More bytes than are sent before a state is handed over, and fewer than any state has.
const STATE_BYTES: u64 = 64 << 10;

impl Chaos<'_> {
    /// Injects a fault once the run has committed `step` steps. Panics if the run
    /// ends before that, or if the fault had no effect.
    pub fn at_step(&mut self, step: usize, fault: &Fault) {
        self.at(Moment { step, then: Then::After { millis: 0 } }, fault);
    }

    /// Injects a fault at this moment. Panics if the run ends before that, if the
    /// moment does not come, or if the fault had no effect.
    pub fn at(&mut self, moment: Moment, fault: &Fault) {
        self.wait_until(moment);
        self.inflict(fault);
    }

    /// Waits for a moment. Panics if the run ends before that, or if the moment does
    /// not come.
    pub fn wait_until(&mut self, moment: Moment) {
        self.coordinator.wait_for_steps(moment.step);
        let run = self.run_dir().to_owned();
        match moment.then {
            Then::After { millis } => std::thread::sleep(Duration::from_millis(millis)),
            Then::Forming { worker } => {
                let before = record::generations(&run).len();
                self.kill(self.member(worker));
                self.until("new generation", || (record::generations(&run).len() > before).then_some(()));
            }
            Then::HandOver { worker } => {
                let before = events(&run, "worker_joined");
                self.kill(worker);
                self.until("worker in the place of the killed one", || (events(&run, "worker_joined") > before).then_some(()));
                let received = || self.net.carried(|from, to| matches!(from, Node::Worker(_)) && to == Node::Worker(worker));
                let before = received();
                self.until("state that is handed over", || (received() > before + STATE_BYTES).then_some(()));
            }
            Then::Upload => self.until("checkpoint that is uploaded", || record::uploading(&run).then_some(())),
        }
    }

    /// This worker if it is a member of the newest ring, or else its first member: a ring is
    /// not formed anew because of one that is outside of it, as the replacement of a worker
    /// that was killed may be for a while.
    fn member(&self, preferred: usize) -> usize {
        let run = self.run_dir();
        let members = record::generations(run).pop().map_or_else(Vec::new, |ring| ring.members);
        let is_member = |place: &usize| {
            let addr = self.ring_address(*place);
            record::name_of(run, addr).is_some_and(|name| members.contains(&(name, addr)))
        };
        let others = (0..self.places.len()).filter(|place| *place != preferred);
        std::iter::once(preferred).chain(others).find(is_member).unwrap_or(preferred)
    }

    /// Waits for this with [`PATIENCE`]; without it, the coordinator's log says what came
    /// instead.
    fn until(&self, what: &str, there: impl FnMut() -> Option<()>) {
        until_or_tell(what, PATIENCE, || format!("{}{}", self.earlier_log, self.coordinator.log()), there);
    }

    /// Injects a fault now.
    pub fn inflict(&mut self, fault: &Fault) {
        let ms = Duration::from_millis;
        match fault {
            Fault::Kill { worker } => self.kill(self.member(*worker)),
            Fault::Stop { worker, millis } => self.stall(&[Node::Worker(*worker)].into(), ms(*millis)),
            Fault::Stall { nodes, millis } => self.stall(nodes, ms(*millis)),
            Fault::Partition { worker, millis } => self.cut(&[Node::Worker(*worker)].into(), ms(*millis)),
            Fault::Cut { nodes, millis } => self.cut(nodes, ms(*millis)),
            // The two nodes may have no link between them now, so datagrams need not
            // be lost.
            Fault::OneWay { from, to, millis } => self.during(ms(*millis), |w| _ = w.one_way.insert((*from, *to))),
            Fault::Pair { between, millis } => self.during(ms(*millis), |w| _ = w.pairs.insert(*between)),
            Fault::Coordinator { millis } => self.without_coordinator(ms(*millis)),
            Fault::Disk { delay_ms, millis } => self.slow_disk(*delay_ms, ms(*millis)),
            Fault::Conditions { conditions, millis: Some(millis) } => {
                let before = self.disturbed();
                self.during(ms(*millis), |w| w.clone_from(conditions));
                assert!(self.disturbed() > before, "no datagram met {conditions:?}");
            }
            Fault::Conditions { conditions, millis: None } => self.settle_conditions(conditions.clone()),
        }
    }

    /// Changes the conditions for a while.
    fn during(&self, time: Duration, change: impl FnOnce(&mut Conditions)) {
        self.net.change(change);
        std::thread::sleep(time);
        self.net.change(|conditions| conditions.clone_from(&self.calm));
    }

    /// Kills a worker with SIGKILL, and starts another one in its place.
    fn kill(&mut self, worker: usize) {
        let place = &mut self.places[worker];
        let fresh = start(&self.token, worker, place.ring_port, place.ring_door, place.coordinator_door);
        let victim = std::mem::replace(&mut place.process, fresh);
        victim.signal(libc::SIGKILL);
        assert!(!victim.wait().status.success(), "it ended before it was killed");
    }

    fn stall(&self, nodes: &BTreeSet<Node>, time: Duration) {
        let processes = || nodes.iter().filter_map(|node| self.process(*node));
        processes().for_each(|process| process.signal(libc::SIGSTOP));
        for process in processes() {
            until("stopped process", Duration::from_secs(1), || (state(process.id()) == Some('T')).then_some(()));
        }
        std::thread::sleep(time);
        processes().for_each(|process| process.signal(libc::SIGCONT));
    }

    fn process(&self, node: Node) -> Option<&crate::Running> {
        match node {
            Node::Coordinator => Some(&self.coordinator),
            Node::Worker(place) => self.places.get(place).map(|place| &place.process),
            Node::Stranger => None,
        }
    }

    fn cut(&self, nodes: &BTreeSet<Node>, time: Duration) {
        let lost = || self.net.counts().lost.load(Ordering::Relaxed);
        let before = lost();
        self.during(time, |conditions| conditions.cut.extend(nodes));
        assert!(lost() > before, "nobody spoke with {nodes:?} while they were cut off");
    }

    fn without_coordinator(&mut self, time: Duration) {
        self.coordinator.signal(libc::SIGKILL);
        self.coordinator.await_end();
        self.earlier_log.push_str(&self.coordinator.log());
        std::thread::sleep(time);
        self.coordinator = serve(self.scenario, self.port, self.workers, &["--resume"], self.disk.as_ref());
    }

    fn slow_disk(&self, delay_ms: u64, time: Duration) {
        let disk = self.disk().unwrap_or_else(|| panic!("this cluster was started on a disk that cannot be made slow"));
        disk.slow_by(delay_ms);
        std::thread::sleep(time);
        disk.slow_by(0);
    }
}

/// A process's state as the kernel reports it: `T` is stopped.
fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next())
}
