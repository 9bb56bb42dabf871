//! Runs that are disturbed on purpose: real processes, in a network whose faults are
//! drawn from a seed, with further faults injected at given moments.
//!
//! ```no_run
//! use cluster_tests::chaos::{Chaos, Fault};
//! use cluster_tests::scenario::Scenario;
//!
//! let scenario = Scenario::new(200);
//! let expected = scenario.quiet();
//! let mut chaos = Chaos::start(&scenario, 3, 1);
//! chaos.at_step(50, &Fault::Kill { worker: 1 });
//! let run = chaos.finish();
//! scenario.assert_whole(&run, &expected);
//! ```

pub mod conditions;
pub mod disk;
mod faults;
pub mod net;
pub mod plan;
pub mod silence;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::scenario::{Scenario, free_port, join};
use crate::{Finished, Running, join_line};
use conditions::{Conditions, Node};
use disk::SlowDisk;
use net::Net;
pub use plan::{Fault, Moment, Then};

/// A worker, and the doors (UDP proxies) that belong to its place.
struct Place {
    process: Running,
    ring_port: u16,
    ring_door: SocketAddr,
    coordinator_door: SocketAddr,
}

/// A cluster whose every connection passes through a [`Net`].
pub struct Chaos<'a> {
    scenario: &'a Scenario,
    coordinator: Running,
    /// What the coordinators before this one logged.
    earlier_log: String,
    port: u16,
    token: String,
    workers: u32,
    places: Vec<Place>,
    net: Net,
    /// The conditions while no fault changes it.
    calm: Conditions,
    disk: Option<SlowDisk>,
}

impl<'a> Chaos<'a> {
    /// Starts a coordinator and its workers; `seed` decides what the network does.
    pub fn start(scenario: &'a Scenario, workers: u32, seed: u64) -> Self {
        Self::start_on(scenario, workers, seed, None)
    }

    /// The same, with the coordinator's files on a disk that can be made slow.
    pub fn start_on(scenario: &'a Scenario, workers: u32, seed: u64, disk: Option<SlowDisk>) -> Self {
        let port = free_port();
        let coordinator = serve(scenario, port, workers, &[], disk.as_ref());
        let (_, token) = join_line(&scenario.run_dir());
        let net = Net::new(seed);
        let (earlier_log, places, calm) = (String::new(), Vec::new(), Conditions::default());
        let mut chaos = Self { scenario, coordinator, earlier_log, port, token, workers, places, net, calm, disk };
        for _ in 0..workers {
            chaos.newcomer(None);
        }
        chaos
    }

    /// Starts one more worker, which joins through doors of its own. For the ring it
    /// advertises its door, or `advertise`. Returns its place.
    pub fn newcomer(&mut self, advertise: Option<SocketAddr>) -> usize {
        let at = self.places.len();
        let node = Node::Worker(at);
        let ring_port = free_port();
        self.net.name(ring_port, node);
        let door = self.net.door(SocketAddr::from(([127, 0, 0, 1], ring_port)), node, None);
        let (ring_door, coordinator_door) = (advertise.unwrap_or(door), self.door_to_coordinator(node));
        let process = start(&self.token, at, ring_port, ring_door, coordinator_door);
        self.places.push(Place { process, ring_port, ring_door, coordinator_door });
        at
    }

    /// A door to the coordinator for `node`.
    pub fn door_to_coordinator(&self, node: Node) -> SocketAddr {
        self.net.door(self.coordinator_address(), Node::Coordinator, Some(node))
    }

    /// Kills a worker with SIGKILL, without a replacement.
    pub fn end(&mut self, place: usize) {
        let process = &mut self.places[place].process;
        if process.is_running() {
            process.signal(libc::SIGKILL);
            process.await_end();
        }
    }

    /// Kills a worker with SIGKILL, and starts another one in its place.
    pub fn restart(&mut self, place: usize) {
        self.end(place);
        let at = &self.places[place];
        self.places[place].process = start(&self.token, place, at.ring_port, at.ring_door, at.coordinator_door);
    }

    /// The address at which other workers reach the worker in this place for the ring.
    pub fn ring_address(&self, place: usize) -> SocketAddr {
        self.places[place].ring_door
    }

    pub fn coordinator_address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    pub fn coordinator(&mut self) -> &mut Running {
        &mut self.coordinator
    }

    pub fn worker(&self, place: usize) -> &Running {
        &self.places[place].process
    }

    pub fn token(&self) -> &str {
        &self.token
    }

    pub fn run_dir(&self) -> &Path {
        &self.coordinator.path
    }

    pub fn net(&self) -> &Net {
        &self.net
    }

    pub fn disk(&self) -> Option<&SlowDisk> {
        self.disk.as_ref()
    }

    /// Sets the conditions that holds from now on while no fault changes it.
    pub fn settle_conditions(&mut self, calm: Conditions) {
        self.net.change(|conditions| conditions.clone_from(&calm));
        self.calm = calm;
    }

    /// Datagrams so far that were lost or delayed.
    pub fn disturbed(&self) -> u64 {
        let counts = self.net.counts();
        counts.lost.load(Ordering::Relaxed) + counts.delayed.load(Ordering::Relaxed)
    }

    /// Bytes that workers have sent each other so far: gradients, most of them.
    pub fn between_workers(&self) -> u64 {
        self.net.carried(|from, to| matches!((from, to), (Node::Worker(_), Node::Worker(_))))
    }

    /// Waits until the run has ended with success, and all of its workers have ended.
    pub fn finish(self) -> Finished {
        let run = self.coordinator.wait().succeeded();
        // A worker that was just started may find no coordinator any more; that is no
        // failure of the run.
        let deadline = Instant::now() + Duration::from_secs(20);
        for place in self.places {
            place.process.end_by(deadline);
        }
        run
    }

    /// Ends the run as Ctrl-C does, after the step in flight, and waits for it.
    pub fn stop(self) -> Finished {
        self.coordinator.signal(libc::SIGINT);
        self.finish()
    }

    /// Does the same, and asserts that the result is that of an undisturbed run.
    pub fn stop_undisturbed(self) -> Finished {
        let scenario = self.scenario;
        let run = self.stop();
        scenario.assert_undisturbed(&run);
        run
    }
}

fn serve(scenario: &Scenario, port: u16, workers: u32, more: &[&str], disk: Option<&SlowDisk>) -> Running {
    let environment = disk.map(SlowDisk::environment);
    scenario.serve_in(port, workers, more, environment.as_ref().map_or(&[], |e| e))
}

fn start(token: &str, place: usize, ring_port: u16, ring_door: SocketAddr, coordinator_door: SocketAddr) -> Running {
    let (listen, advertise, rank) = (format!("127.0.0.1:{ring_port}"), ring_door.to_string(), place.to_string());
    join(&coordinator_door.to_string(), token, &["--listen", &listen, "--advertise", &advertise, "--preferred-rank", &rank])
}
