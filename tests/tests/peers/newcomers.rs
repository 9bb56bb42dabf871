//! A ring trains on whatever newcomers come: newcomers that cannot be reached, die
//! again and again, or are slow or hostile cost it next to nothing, and the log says
//! why each one is left out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cluster_tests::chaos::Chaos;
use cluster_tests::chaos::conditions::{Conditions, Node};
use cluster_tests::hostile::member::{AsDonor, Behaviour, Counts, InRing, play};
use cluster_tests::hostile::{HostilePeer, runtime};
use cluster_tests::scenario::{ENDLESS, Scenario, assert_audited, free_port, join};
use cluster_tests::{aside, join_line, record, until};

/// How long a newcomer is bad, and how long the ring is measured without it.
const BAD: Duration = Duration::from_secs(15);
const QUIET: Duration = Duration::from_secs(10);

/// What a bad newcomer may cost the ring in a minute: a twentieth of it.
const COST: Duration = Duration::from_secs(3);

/// How long a ring takes here to yield, to form again and to complete a step, beside what
/// it waits for a newcomer.
const FORMING_AGAIN: Duration = Duration::from_secs(2);

/// An honest newcomer is in the ring within this time, whatever newcomers came before it.
const LET_IN: Duration = Duration::from_secs(30);

/// A network so slow that it decides how long a step takes, and not other load on
/// this machine.
fn pace() -> Conditions {
    Conditions { delay: Duration::from_millis(2), ..Conditions::default() }
}

/// A run that trains; `quiet` is its speed in steps a second before any newcomer came.
struct Undisturbed<'a> {
    chaos: Chaos<'a>,
    quiet: f64,
}

fn train<'a>(scenario: &'a Scenario, workers: u32, seed: u64) -> Undisturbed<'a> {
    let mut chaos = Chaos::start(scenario, workers, seed);
    chaos.settle_conditions(pace());
    chaos.coordinator().wait_for_steps(10);
    let (steps, start) = (record::committed(chaos.run_dir()), Instant::now());
    std::thread::sleep(QUIET);
    let quiet = (record::committed(chaos.run_dir()) - steps) as f64 / start.elapsed().as_secs_f64();
    assert!(quiet > 0.0, "the ring does not train");
    Undisturbed { chaos, quiet }
}

impl Undisturbed<'_> {
    /// Lets a newcomer be bad for a while, and asserts that the ring was hardly
    /// affected. The log must have a line with the newcomer's name and one of the
    /// words in `why`.
    fn outlasts(self, what: &str, workers: usize, bad: impl FnOnce(&mut Chaos<'_>) -> String, why: &[&str]) {
        let Self { mut chaos, quiet } = self;
        // A real newcomer computes on a machine of its own, so it must take no
        // processor time from the ring here.
        aside();
        let run = chaos.run_dir().to_owned();
        let (steps, start) = (record::committed(&run), Instant::now());
        let watch = Pauses::of(&run);
        let name = bad(&mut chaos);
        let time = start.elapsed();
        let lost = watch.end();
        assert!(time >= BAD, "{what} was there for {time:?} only");
        let disturbed = (record::committed(&run) - steps) as f64 / time.saturating_sub(lost).as_secs_f64();
        println!(
            "{what}: stood still for {lost:.1?}; otherwise {:.1} % of the steps before ({quiet:.1} a second, then {disturbed:.1})",
            100.0 * disturbed / quiet
        );
        // The loss of a worker is noticed only after a while.
        let of_it = |log: &str| log.lines().filter(|line| line.contains(&name)).any(|line| why.iter().any(|word| line.contains(word)));
        until(&format!("line of the log that says why {name} is left out"), Duration::from_secs(5), || {
            of_it(&chaos.coordinator().log()).then_some(())
        });
        let log = chaos.coordinator().log();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(&name)).collect();
        println!("{what}, {name} in the log:\n  {}", lines.join("\n  "));
        let allowed = COST.max(left_out_for(&lines) / 20 + FORMING_AGAIN);
        assert!(lost <= allowed, "{what}: the ring stood still for {lost:.1?}\n{log}");
        assert!(disturbed >= 0.5 * quiet, "{what}: {quiet:.1} steps a second before, {disturbed:.1} meanwhile, while it moved\n{log}");

        let honest = chaos.newcomer(None);
        let ring = chaos.ring_address(honest);
        let with = || record::generations(&run).last().filter(|g| g.members.len() == workers + 1 && g.has(ring)).map(|g| g.step);
        let from = until(&format!("honest newcomer in the ring after {what}"), LET_IN, with);
        until("step with the honest newcomer", LET_IN, || (record::committed(&run) > from + 5).then_some(()));
        let run = chaos.stop();
        assert_audited(&run.path);
    }
}

/// For how long the coordinator leaves a worker out after a ring waited for it in vain:
/// 20 times as long as that took, and at least a minute.
fn left_out_for(lines: &[&str]) -> Duration {
    let seconds = lines.iter().filter_map(|line| line.split_once("tried again in ")?.1.split_once(" s:")?.0.parse().ok());
    Duration::from_secs(seconds.max().unwrap_or_default())
}

/// Sums up the time during which a run completes no step.
struct Pauses {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Duration>,
}

impl Pauses {
    /// The longest time between two steps that is no pause, the delay of the record included.
    const STEP: Duration = Duration::from_millis(700);

    fn of(run: &std::path::Path) -> Self {
        let (run, stop) = (run.to_owned(), Arc::new(AtomicBool::new(false)));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut sum, mut steps, mut since) = (Duration::ZERO, record::committed(&run), Instant::now());
            while !stopping.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
                let now = record::committed(&run);
                if now != steps {
                    let pause = since.elapsed();
                    sum += if pause > Self::STEP { pause } else { Duration::ZERO };
                    (steps, since) = (now, Instant::now());
                }
            }
            sum
        });
        Self { stop, thread }
    }

    fn end(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| panic!("nobody watched the steps"))
    }
}

/// The name of the worker in this place, once the coordinator knows it.
fn name_of(chaos: &Chaos<'_>, ring: SocketAddr) -> String {
    until("newcomer that says hello", LET_IN, || record::name_of(chaos.run_dir(), ring))
}

#[test]
fn one_that_cannot_be_reached_is_left_out() {
    let scenario = Scenario::endless().set("cluster.relay=false");
    // Nothing listens at this address, and no reply says so.
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
    let comes = |chaos: &mut Chaos<'_>| {
        let bad = chaos.newcomer(Some(nowhere));
        let name = name_of(chaos, nowhere);
        std::thread::sleep(BAD);
        chaos.end(bad);
        name
    };
    train(&scenario, 3, 1).outlasts("an unreachable newcomer", 3, comes, &["reach", "not answer", "left out"]);
}

/// Two workers on one machine, whose addresses are of networks that do not reach each other:
/// the newer one is told so before any generation, and the other trains with one that comes
/// later and reaches both.
#[test]
fn one_that_is_reached_by_another_network_is_left_out() {
    let scenario = Scenario::endless().set("cluster.relay=false");
    let port = free_port();
    let coordinator = scenario.serve_on(&format!("[::]:{port}"), 2, &[], &[]);
    let token = join_line(&scenario.run_dir()).1;
    let join_by = |host: &str, listen: &[&str]| join(&format!("{host}:{port}"), &token, listen);
    let mut workers = vec![join_by("127.0.0.1", &["--listen", "127.0.0.1:0"]), join_by("[::1]", &["--listen", "[::1]:0"])];
    let left_out = || coordinator.log().contains("is left out of the ring").then_some(());
    until("word of the two that do not reach each other", Duration::from_secs(25), left_out);
    assert!(record::generations(&scenario.run_dir()).is_empty(), "{}", coordinator.log());
    workers.push(join_by("127.0.0.1", &[]));
    let steps = || (record::committed(&scenario.run_dir()) > 5).then_some(());
    until("steps of those that reach each other", Duration::from_secs(25), steps);
    let log = coordinator.log();
    assert!(log.contains("worker-1 does not reach worker-2") || log.contains("worker-2 does not reach worker-1"), "{log}");
    coordinator.signal(libc::SIGKILL);
    workers.iter().for_each(|worker| worker.signal(libc::SIGKILL));
}

#[test]
fn one_that_dies_every_second_is_not_waited_for() {
    let scenario = Scenario::endless();
    let comes = |chaos: &mut Chaos<'_>| {
        let start = Instant::now();
        let bad = chaos.newcomer(None);
        let mut lives = 1;
        while start.elapsed() < BAD {
            std::thread::sleep(Duration::from_secs(1));
            chaos.restart(bad);
            lives += 1;
        }
        chaos.end(bad);
        println!("it came {lives} times");
        // Each of its processes has a name of its own.
        name_of(chaos, chaos.ring_address(bad))
    };
    train(&scenario, 2, 2).outlasts("a newcomer that dies every second", 2, comes, &["left", "lost", "closed", "gone"]);
}

#[test]
fn a_slow_one_does_not_hold_the_ring_up() {
    /// Bytes a second: some 30 s for a state of 10 MB, longer than the ring accepts.
    const NARROW: u32 = 300_000;
    let scenario = Scenario::endless().set("model.width=0.25");
    let comes = |chaos: &mut Chaos<'_>| {
        // Newcomers get the next place.
        let node = Node::Worker(2);
        let narrow = [0, 1].map(|member| ((node, Node::Worker(member)), NARROW)).into();
        chaos.settle_conditions(Conditions { narrow, ..pace() });
        let bad = chaos.newcomer(None);
        let ring = chaos.ring_address(bad);
        let name = name_of(chaos, ring);
        let received = || chaos.net().carried(|from, to| matches!(from, Node::Worker(_)) && to == node);
        until("test transfer to the newcomer", LET_IN, || (received() > u64::from(NARROW) / 2).then_some(()));
        std::thread::sleep(BAD);
        println!("it has received {} bytes from the others", received());
        let in_ring = record::generations(chaos.run_dir()).last().is_some_and(|g| g.has(ring));
        assert!(!in_ring, "it is in the ring already: its state is too small for this test");
        chaos.end(bad);
        chaos.settle_conditions(pace());
        name
    };
    train(&scenario, 2, 3).outlasts("a slow newcomer", 2, comes, &["state", "catch", "fetch", "MB"]);
}

#[test]
fn a_hostile_one_forms_no_ring_and_gives_no_state() {
    let scenario = Scenario::open_to_hostile_peers();
    let behaviour = Behaviour { claim: ENDLESS as u64 - 1, ring: InRing::NeverForms, donor: AsDonor::Refuses };
    let comes = |chaos: &mut Chaos<'_>| {
        let runtime = runtime();
        let (counts, stop) = (Arc::new(Counts::default()), Arc::new(AtomicBool::new(false)));
        let hostile = Arc::new(runtime.block_on(HostilePeer::enrolled(&chaos.coordinator_address().to_string(), chaos.token())));
        let name = hostile.name().to_owned();
        let playing = runtime.spawn(play(hostile, behaviour, Arc::clone(&counts), Arc::clone(&stop)));
        std::thread::sleep(BAD);
        stop.store(true, Ordering::Relaxed);
        runtime.block_on(playing).unwrap_or_else(|e| panic!("{e}"));
        println!("{counts:?}");
        assert!(counts.welcomed.load(Ordering::Relaxed) > 0, "it was never there");
        name
    };
    train(&scenario, 2, 4).outlasts("a hostile newcomer", 2, comes, &["left out", "reach", "form", "step", "ring"]);
}

/// Cuts one or both directions between two of three workers, and asserts that the
/// workers that reach each other go on.
fn goes_on_without(what: &str, seed: u64, cut: impl FnOnce(&mut Conditions)) {
    const WITHIN: Duration = Duration::from_secs(15);
    let scenario = Scenario::endless().set("cluster.relay=false");
    let mut chaos = Chaos::start(&scenario, 3, seed);
    chaos.settle_conditions(pace());
    chaos.coordinator().wait_for_steps(20);
    let run = chaos.run_dir().to_owned();
    let names = [0, 1].map(|place| name_of(&chaos, chaos.ring_address(place)));
    let mut conditions = pace();
    cut(&mut conditions);
    let start = Instant::now();
    chaos.settle_conditions(conditions);
    let two = || record::generations(&run).last().filter(|g| g.members.len() == 2).map(|g| g.step);
    let log = |chaos: &mut Chaos<'_>| chaos.coordinator().log();
    while two().is_none_or(|from| record::committed(&run) < from + 10) {
        assert!(start.elapsed() < WITHIN, "{what}: the run does not go on within {WITHIN:?}\n{}", log(&mut chaos));
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("{what}: went on after {:.1?}", start.elapsed());
    // It stays so: the two that are cut apart are not put into one ring again and again.
    let (steps, rings) = (record::committed(&run), record::generations(&run).len());
    std::thread::sleep(Duration::from_secs(5));
    let (more, formed) = (record::committed(&run) - steps, record::generations(&run).len() - rings);
    assert!(more >= 10 && formed <= 2, "{what}: {more} steps and {formed} generations in five seconds\n{}", log(&mut chaos));
    let both = |line: &str| names.iter().all(|name| line.contains(name.as_str()));
    assert!(log(&mut chaos).lines().any(both), "{what}: no line of the log names both of {names:?}\n{}", log(&mut chaos));
    chaos.settle_conditions(pace());
    let all = || record::generations(&run).last().filter(|g| g.members.len() == 3).map(|g| g.step);
    until("ring of all three once they reach each other again", Duration::from_secs(60), all);
    assert_audited(&chaos.stop().path);
}

#[test]
fn a_pair_that_is_cut_apart_costs_one_of_the_two() {
    goes_on_without("a pair cut from each other", 5, |conditions| _ = conditions.pairs.insert((Node::Worker(0), Node::Worker(1))));
}

#[test]
fn one_direction_that_is_cut_costs_one_of_the_two() {
    goes_on_without("one direction cut", 6, |conditions| _ = conditions.one_way.insert((Node::Worker(0), Node::Worker(1))));
}
