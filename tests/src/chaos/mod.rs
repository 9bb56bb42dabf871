//! Runs that are disturbed on purpose: real processes, in a network whose faults
//! are drawn from a seed, to which things are done at given steps.
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

pub mod net;
pub mod plan;
pub mod weather;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::scenario::{Scenario, free_port, join};
use crate::{Finished, Running, join_line};
use net::Net;
pub use plan::Fault;
use weather::Node;

/// A worker, and the doors that belong to its place.
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
    port: u16,
    token: String,
    workers: u32,
    places: Vec<Place>,
    net: Net,
}

impl<'a> Chaos<'a> {
    /// Starts a coordinator and its workers; `seed` decides what the network does.
    pub fn start(scenario: &'a Scenario, workers: u32, seed: u64) -> Self {
        let port = free_port();
        let coordinator = scenario.serve(port, workers, &[]);
        let (_, token) = join_line(&scenario.run_dir());
        let net = Net::new(seed);
        let mut places = Vec::new();
        for at in 0..workers as usize {
            let node = Node::Worker(at);
            let ring_port = free_port();
            net.name(ring_port, node);
            let ring_door = net.door(SocketAddr::from(([127, 0, 0, 1], ring_port)), node, None);
            let coordinator_door = net.door(SocketAddr::from(([127, 0, 0, 1], port)), Node::Coordinator, Some(node));
            let process = start(&token, at, ring_port, ring_door, coordinator_door);
            places.push(Place { process, ring_port, ring_door, coordinator_door });
        }
        Self { scenario, coordinator, port, token, workers, places, net }
    }

    /// Does something to the run once it has committed `step` steps. Panics if
    /// the run ends before, or if the fault had no effect.
    pub fn at_step(&mut self, step: usize, fault: &Fault) {
        self.coordinator.wait_for_steps(step);
        match fault {
            Fault::Kill { worker } => self.kill(*worker),
            Fault::Stop { worker, millis } => self.stop(*worker, Duration::from_millis(*millis)),
            Fault::Partition { worker, millis } => self.partition(*worker, Duration::from_millis(*millis)),
            Fault::Coordinator { millis } => self.without_coordinator(Duration::from_millis(*millis)),
            Fault::Weather { weather, millis } => {
                let before = self.disturbed();
                self.net.change(|w| w.clone_from(weather));
                if let Some(millis) = millis {
                    std::thread::sleep(Duration::from_millis(*millis));
                    self.net.change(|w| *w = weather::Weather::default());
                    assert!(self.disturbed() > before, "no datagram met {weather:?}");
                }
            }
        }
    }

    /// Datagrams so far that did not just pass.
    pub fn disturbed(&self) -> u64 {
        let counts = self.net.counts();
        counts.lost.load(Ordering::Relaxed) + counts.delayed.load(Ordering::Relaxed)
    }

    /// SIGKILL, and another worker in its place.
    fn kill(&mut self, worker: usize) {
        let place = &mut self.places[worker];
        let fresh = start(&self.token, worker, place.ring_port, place.ring_door, place.coordinator_door);
        let victim = std::mem::replace(&mut place.process, fresh);
        victim.signal(libc::SIGKILL);
        assert!(!victim.wait().status.success(), "it ended before it was killed");
    }

    fn stop(&mut self, worker: usize, time: Duration) {
        let process = &self.places[worker].process;
        process.signal(libc::SIGSTOP);
        std::thread::sleep(time);
        process.signal(libc::SIGCONT);
    }

    fn partition(&mut self, worker: usize, time: Duration) {
        let lost = || self.net.counts().lost.load(Ordering::Relaxed);
        let before = lost();
        self.net.change(|w| _ = w.cut.insert(Node::Worker(worker)));
        std::thread::sleep(time);
        self.net.change(|w| _ = w.cut.remove(&Node::Worker(worker)));
        assert!(lost() > before, "nobody spoke with worker {worker} while it was cut off");
    }

    fn without_coordinator(&mut self, time: Duration) {
        self.coordinator.signal(libc::SIGKILL);
        self.coordinator.await_end();
        std::thread::sleep(time);
        self.coordinator = self.scenario.serve(self.port, self.workers, &["--resume"]);
    }

    /// Waits for the run to end well, and for all of its workers.
    pub fn finish(self) -> Finished {
        let run = self.coordinator.wait().succeeded();
        // One that was just started may find nobody any more: that is no failure of the run.
        let deadline = Instant::now() + Duration::from_secs(20);
        for place in self.places {
            place.process.end_by(deadline);
        }
        run
    }
}

fn start(token: &str, place: usize, ring_port: u16, ring_door: SocketAddr, coordinator_door: SocketAddr) -> Running {
    let (listen, advertise, rank) = (format!("127.0.0.1:{ring_port}"), ring_door.to_string(), place.to_string());
    join(&coordinator_door.to_string(), token, &["--ring-listen", &listen, "--advertise", &advertise, "--preferred-rank", &rank])
}
