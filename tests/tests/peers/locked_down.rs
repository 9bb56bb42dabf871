//! Which peers may take part, and what the other peers can do.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cluster_tests::hostile::strangers::Order;
use cluster_tests::hostile::{HostilePeer, runtime_aside, strangers};
use cluster_tests::record::{generations, median};
use cluster_tests::scenario::{Scenario, events, free_port, join};
use cluster_tests::{Running, aside, cpu_seconds, join_line, resident_mb, until};
use common::net::Token;
use common::net::enrolment::enrol;

/// Runs `coordinator token ...` and returns what it printed.
fn token(arguments: &[&str]) -> String {
    Running::start("coordinator", &[&["token"], arguments].concat()).wait().succeeded().stdout
}

#[test]
fn a_revoked_token_sends_its_workers_away_and_lets_nobody_in() {
    let scenario = Scenario::endless();
    let mut coordinator = scenario.serve(free_port(), 2, &[]);
    let (addr, first) = join_line(&scenario.run_dir());
    let run_dir = scenario.run_dir().display().to_string();
    let second = token(&["new", &run_dir, "--expires", "1h"]).trim().to_owned();
    let expired = token(&["new", &run_dir, "--expires", "0s"]).trim().to_owned();
    let (good, bad) = (join(&addr, &first, &[]), join(&addr, &second, &[]));
    coordinator.wait_for_steps(10);
    join(&addr, &expired, &[]).wait().failed(1, &["this token has expired", "coordinator token new"]);

    let listed = token(&["list", &run_dir]);
    assert!(!listed.contains(&second[4..]), "the list shows no secret");
    let ids: Vec<&str> = listed.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    let states: Vec<&str> = listed.lines().skip(1).filter_map(|line| line.split_whitespace().last()).collect();
    assert_eq!(states, ["valid", "valid", "expired"], "{listed}");
    token(&["revoke", &run_dir, ids[1]]);
    let start = Instant::now();
    bad.wait().failed(1, &["its token was revoked"]);
    assert!(start.elapsed() < Duration::from_secs(10), "it should go soon");
    join(&addr, &second, &[]).wait().failed(1, &["this token was revoked"]);
    Running::start("coordinator", &["token", "revoke", &run_dir, "00000000"]).wait().failed(1, &["no token `00000000`"]);

    let run = Scenario::stop(coordinator);
    good.wait().succeeded();
    scenario.assert_undisturbed(&run);
    assert_eq!(events(&run.path, "revoked"), 1, "the journal remembers it should tokens.json be lost");
    for secret in [&first, &second, &expired] {
        assert!(!run.stderr.contains(secret.as_str()), "a token is in the log");
    }
}

/// Sends `a_second` datagrams of noise a second to these addresses until told to
/// stop. Returns how many it sent.
fn noise(to: &[SocketAddr], a_second: u32, stop: &AtomicBool) -> u64 {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap_or_else(|e| panic!("{e}"));
    let (start, mut sent) = (Instant::now(), 0u64);
    let mut bytes = [0u8; 1200];
    while !stop.load(Ordering::Relaxed) {
        while sent < (start.elapsed().as_secs_f64() * f64::from(a_second)) as u64 {
            // Half of it looks like the first packet of a connection.
            let value = (sent as u8).wrapping_mul(167);
            bytes.fill(value);
            bytes[0] = if sent.is_multiple_of(2) { 0xc3 } else { value };
            bytes[1..5].copy_from_slice(&1u32.to_be_bytes());
            let _ = socket.send_to(&bytes, to[(sent / 2) as usize % to.len()]);
            sent += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    sent
}

/// Attempts to enrol `times` times with a wrong secret. Returns how many attempts
/// were refused.
async fn enrol_wrongly(address: SocketAddr, token: &Token, times: usize) -> u64 {
    let refused = Arc::new(AtomicU64::new(0));
    let wrong = Token { secret: [7; 16], ..token.clone() };
    let mut attempts = tokio::task::JoinSet::new();
    for _ in 0..times {
        if attempts.len() == 20 {
            attempts.join_next().await;
        }
        let (wrong, refused) = (wrong.clone(), Arc::clone(&refused));
        attempts.spawn(async move {
            match enrol(address, &wrong).await {
                Ok(_) => panic!("a wrong secret was let in"),
                Err(_) => refused.fetch_add(1, Ordering::Relaxed),
            }
        });
        tokio::time::sleep(Duration::from_millis(18)).await;
    }
    while attempts.join_next().await.is_some() {}
    refused.load(Ordering::Relaxed)
}

/// The processes of a run, measured from here on.
struct Measured<const N: usize> {
    pids: [u32; N],
    from: usize,
    cpu_seconds: f64,
}

/// What a stretch of a run cost: its first and its last step, and the processor time that
/// the run's own processes used for one of them, whatever else the machine did.
struct Stretch {
    steps: std::ops::Range<usize>,
    cpu_ms: f64,
}

impl<const N: usize> Measured<N> {
    fn from_now(coordinator: &Running, pids: [u32; N]) -> Self {
        Self { pids, from: coordinator.step_count(), cpu_seconds: pids.map(cpu_seconds).iter().sum() }
    }

    fn until_now(self, coordinator: &Running) -> Stretch {
        let (to, used) = (coordinator.step_count(), self.pids.map(cpu_seconds).iter().sum::<f64>() - self.cpu_seconds);
        Stretch { steps: self.from..to, cpu_ms: 1e3 * used / (to - self.from).max(1) as f64 }
    }
}

/// Asserts that a step cost the run less than this many times the processor time that it
/// did before. Other tests run on the same cores, so the time that passed tells less: its
/// bound finds a run that waits for strangers, and not a busy machine.
fn costs_less_than(times: f64, what: &str, before: &Stretch, during: &Stretch, step_ms: &[f64]) {
    let passed = |stretch: &Stretch| median(step_ms[stretch.steps.clone()].to_vec());
    println!(
        "{what}: a step took {:.2} ms, of it {:.2} ms on the processors; before that {:.2} and {:.2} ms",
        passed(during),
        during.cpu_ms,
        passed(before),
        before.cpu_ms
    );
    assert!(during.cpu_ms < times * before.cpu_ms, "{what}: a step used {:.2} ms, {:.2} ms before", during.cpu_ms, before.cpu_ms);
    assert!(passed(during) < 4.0 * passed(before), "{what}: a step took {:.2} ms, {:.2} ms before", passed(during), passed(before));
}

/// Ten thousand datagrams of noise a second, half of them to a worker, and a thousand
/// connections with a wrong token.
#[test]
fn strangers_cost_little_time_and_little_memory() {
    let scenario = Scenario::endless();
    let mut coordinator = scenario.serve(free_port(), 1, &[]);
    let (addr, token) = join_line(&scenario.run_dir());
    let ring_port = free_port();
    let worker = join(&addr, &token, &["--listen", &format!("127.0.0.1:{ring_port}")]);
    let coordinator_addr: SocketAddr = addr.parse().unwrap_or_else(|e| panic!("{addr}: {e}"));
    let token: Token = token.parse().unwrap_or_else(|e| panic!("{e}"));
    let pids = [coordinator.id(), worker.id()];
    coordinator.wait_for_steps(50);
    let measured = Measured::from_now(&coordinator, pids);
    coordinator.wait_for_steps(200);
    let calm = measured.until_now(&coordinator);
    let before = pids.map(resident_mb);
    let measured = Measured::from_now(&coordinator, pids);

    let stop = AtomicBool::new(false);
    let targets = [coordinator_addr, ([127, 0, 0, 1], ring_port).into()];
    let (sent, refused, took) = std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            aside();
            noise(&targets, 10_000, &stop)
        });
        let start = Instant::now();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).on_thread_start(aside).enable_all().build();
        let runtime = runtime.unwrap_or_else(|e| panic!("{e}"));
        let refused = runtime.block_on(async move {
            tokio::spawn(async move { enrol_wrongly(coordinator_addr, &token, 1000).await }).await.unwrap_or_default()
        });
        stop.store(true, Ordering::Relaxed);
        (sending.join().unwrap_or_default(), refused, start.elapsed())
    });
    let disturbed = measured.until_now(&coordinator);
    let after = pids.map(resident_mb);
    assert!(refused == 1000 && sent as f64 > 5000.0 * took.as_secs_f64(), "{sent} datagrams and {refused} refusals in {took:?}");
    assert!(disturbed.steps.len() > 100, "only {} steps while strangers tried to enrol", disturbed.steps.len());

    let run = Scenario::stop(coordinator);
    worker.wait().succeeded();
    let grown = [after[0] - before[0], after[1] - before[1]];
    println!(
        "{:.0} datagrams/s and {refused} refused connections in {took:.1?}: \
         memory of coordinator and worker + {:.1} and + {:.1} MB",
        sent as f64 / took.as_secs_f64(),
        grown[0],
        grown[1]
    );
    assert!(grown.iter().all(|mb| *mb < 50.0), "memory grew by {grown:?} MB");
    costs_less_than(2.5, "noise and wrong tokens", &calm, &disturbed, &run.column("step_ms"));
    assert!(run.stderr.contains("more such complaints") || run.stderr.matches("refused a worker").count() <= 20, "the log is flooded");
    assert!(run.stderr.lines().count() < 200, "the log has {} lines", run.stderr.lines().count());
}

/// A thousand strangers connect as if to enrol and send nothing, and a peer whose
/// token was revoked holds 90 silent ring connections to a worker. At first they are idle:
/// whoever is turned away, which happens after some seconds, stays away. Then all come
/// back, again and again.
#[test]
fn silent_strangers_keep_nobody_out() {
    const STRANGERS: usize = 1000;
    /// More than the coordinator has places for strangers.
    const CROWD: usize = 200;
    const RINGS: usize = 90;
    /// After this time, whoever was refused by a worker tries again.
    const COMES_BACK: Duration = Duration::from_secs(10);
    const JOINS_WITHIN: Duration = Duration::from_secs(5);
    /// How long the run is measured each time.
    const STRETCH: Duration = Duration::from_secs(5);
    let scenario = Scenario::endless();
    let mut coordinator = scenario.serve(free_port(), 2, &[]);
    let (addr, token) = join_line(&scenario.run_dir());
    let run = scenario.run_dir();
    let ring: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let first = join(&addr, &token, &["--listen", &ring.to_string(), "--preferred-rank", "0"]);
    let mut workers = vec![join(&addr, &token, &[])];
    // How long one more worker takes to be in the ring.
    let one_more = |workers: &mut Vec<Running>| {
        let (members, start) = (workers.len() + 2, Instant::now());
        workers.push(join(&addr, &token, &[]));
        until("newcomer in the ring", Duration::from_secs(30), || {
            generations(&run).last().filter(|g| g.members.len() == members).map(|_| start.elapsed())
        })
    };
    coordinator.wait_for_steps(50);
    let calm_join = one_more(&mut workers);
    let pids = [coordinator.id(), first.id()];
    let stretch = |coordinator: &Running| {
        let measured = Measured::from_now(coordinator, pids);
        std::thread::sleep(STRETCH);
        measured.until_now(coordinator)
    };
    let calm = stretch(&coordinator);
    let before = pids.map(resident_mb);

    let name = until("name of the first worker", Duration::from_secs(5), || cluster_tests::record::name_of(&run, ring));
    let directory = run.display().to_string();
    let second = self::token(&["new", &directory, "--expires", "1h"]).trim().to_owned();
    let listed = self::token(&["list", &directory]);
    let id = listed.lines().last().and_then(|line| line.split_whitespace().next()).unwrap_or_else(|| panic!("{listed}"));
    let runtime = runtime_aside();
    let (counts, orders) = (Arc::new(strangers::Counts::default()), tokio::sync::watch::Sender::new(Order::StayAway));
    let (held, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let hostile = Arc::new(runtime.block_on(HostilePeer::enrolled(&addr, &second)));
    let holding = runtime.spawn(hostile.holds_rings(ring, name, RINGS, COMES_BACK, Arc::clone(&held), Arc::clone(&stop)));
    self::token(&["revoke", &directory, id]);
    let idle = {
        let (run, counts, orders) = (run.clone(), Arc::clone(&counts), orders.subscribe());
        let to = addr.parse().unwrap_or_else(|e| panic!("{addr}: {e}"));
        runtime.spawn(async move { strangers::idle(&run, to, STRANGERS, counts, orders).await })
    };
    let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    // The strangers have a lower priority than the run on these cores, so not all of
    // them may connect; more than there are places do.
    let arriving = Instant::now();
    let arrived = || match count(&counts.tried) {
        STRANGERS.. => true,
        tried => tried >= CROWD && arriving.elapsed() > Duration::from_secs(40),
    };
    while !arrived() {
        assert!(arriving.elapsed() < Duration::from_secs(180), "only {counts:?} after {:?}", arriving.elapsed());
        std::thread::sleep(Duration::from_millis(100));
    }
    let idle_stretch = stretch(&coordinator);
    println!("while strangers are idle: {counts:?}, {} ring connections are open", count(&held));
    orders.send_replace(Order::ComeBack);
    let all = count(&counts.tried);
    until("strangers that come back", Duration::from_secs(60), || (count(&counts.tried) > all + CROWD / 4).then_some(()));
    let coming = stretch(&coordinator);
    let during = pids.map(resident_mb);
    println!("while strangers come back: {counts:?}, {} ring connections are open", count(&held));
    let busy_join = one_more(&mut workers);
    stop.store(true, Ordering::Relaxed);
    // The coordinator waits some seconds for a request, and then turns a stranger away.
    assert!(count(&counts.tried) >= CROWD && count(&counts.ended) >= CROWD, "hardly anybody came");
    orders.send_replace(Order::Stop);
    runtime.block_on(async { assert!(holding.await.is_ok() && idle.await.is_ok(), "the strangers failed") });
    let run = Scenario::stop(coordinator);
    for worker in workers.into_iter().chain([first]) {
        worker.wait().succeeded();
    }
    let grown = [during[0] - before[0], during[1] - before[1]];
    println!(
        "a newcomer is in the ring after {busy_join:.1?} ({calm_join:.1?} without strangers); \
         memory of coordinator and worker + {:.1} and + {:.1} MB",
        grown[0], grown[1]
    );
    assert!(busy_join < JOINS_WITHIN.max(calm_join * 3), "a newcomer was kept out for {busy_join:?}");
    assert!(grown.iter().all(|mb| *mb < 50.0), "memory grew by {grown:?} MB");
    let step_ms = run.column("step_ms");
    costs_less_than(1.5, "strangers are idle", &calm, &idle_stretch, &step_ms);
    costs_less_than(2.0, "strangers come back all the time", &calm, &coming, &step_ms);
    assert!(run.stderr.lines().count() < 300, "the log has {} lines", run.stderr.lines().count());
}
