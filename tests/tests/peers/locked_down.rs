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

/// Ten thousand datagrams of noise a second, half of them to a worker, and a thousand
/// connections with a wrong token. The slowdown of the steps is printed; the bound
/// that is asserted leaves room for other tests on the machine.
#[test]
fn strangers_cost_little_time_and_little_memory() {
    let scenario = Scenario::endless();
    let mut coordinator = scenario.serve(free_port(), 1, &[]);
    let (addr, token) = join_line(&scenario.run_dir());
    let ring_port = free_port();
    let worker = join(&addr, &token, &["--ring-listen", &format!("127.0.0.1:{ring_port}")]);
    let coordinator_addr: SocketAddr = addr.parse().unwrap_or_else(|e| panic!("{addr}: {e}"));
    let token: Token = token.parse().unwrap_or_else(|e| panic!("{e}"));
    coordinator.wait_for_steps(200);
    let quiet = coordinator.step_count();
    let pids = [coordinator.id(), worker.id()];
    let before = pids.map(resident_mb);

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
    let loud = coordinator.step_count();
    let after = pids.map(resident_mb);
    assert!(refused == 1000 && sent as f64 > 5000.0 * took.as_secs_f64(), "{sent} datagrams and {refused} refusals in {took:?}");
    assert!(loud > quiet + 100, "only {} steps while strangers tried to enrol", loud - quiet);

    let run = Scenario::stop(coordinator);
    worker.wait().succeeded();
    let times = run.column("step_ms");
    let (calm, disturbed) = (median(times[50..quiet].to_vec()), median(times[quiet..loud].to_vec()));
    let grown = [after[0] - before[0], after[1] - before[1]];
    println!(
        "{:.0} datagrams/s and {refused} refused connections in {took:.1?}: step {calm:.2} ms before, {disturbed:.2} ms meanwhile, \
         memory of coordinator and worker + {:.1} and + {:.1} MB",
        sent as f64 / took.as_secs_f64(),
        grown[0],
        grown[1]
    );
    assert!(grown.iter().all(|mb| *mb < 50.0), "memory grew by {grown:?} MB");
    assert!(disturbed < 2.0 * calm, "a step took {calm:.2} ms before and {disturbed:.2} ms meanwhile");
    assert!(run.stderr.contains("more such complaints") || run.stderr.matches("refused a worker").count() <= 20, "the log is flooded");
    assert!(run.stderr.lines().count() < 200, "the log has {} lines", run.stderr.lines().count());
}

/// What a stretch of a run cost: the median time of its steps, and the processor time
/// that the run's own processes used for one, whatever else the machine did.
struct Stretch {
    step_ms: f64,
    cpu_ms: f64,
}

/// Measures the run for `STRETCH`, by these processes of it. Returns its first and its
/// last step, and the processor time of a step.
fn stretch(coordinator: &Running, pids: [u32; 2]) -> (usize, usize, f64) {
    const STRETCH: Duration = Duration::from_secs(5);
    let used = || pids.map(cpu_seconds).iter().sum::<f64>();
    let (from, before) = (coordinator.step_count(), used());
    std::thread::sleep(STRETCH);
    let to = coordinator.step_count();
    (from, to, 1e3 * (used() - before) / (to - from).max(1) as f64)
}

/// A thousand strangers connect as if to enrol and send nothing, and a peer whose
/// token was revoked holds 90 silent ring connections to a worker. At first they are idle:
/// whoever is turned away, which happens after some seconds, stays away. Then all come
/// back, again and again.
/// What the steps cost is printed; the bounds that are asserted leave room for other
/// tests on the machine.
#[test]
fn silent_strangers_keep_nobody_out() {
    const STRANGERS: usize = 1000;
    /// More than the coordinator has places for strangers.
    const CROWD: usize = 200;
    const RINGS: usize = 90;
    /// After this time, whoever was refused by a worker tries again.
    const COMES_BACK: Duration = Duration::from_secs(10);
    const JOINS_WITHIN: Duration = Duration::from_secs(5);
    let scenario = Scenario::endless();
    let mut coordinator = scenario.serve(free_port(), 2, &[]);
    let (addr, token) = join_line(&scenario.run_dir());
    let run = scenario.run_dir();
    let ring: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let first = join(&addr, &token, &["--ring-listen", &ring.to_string(), "--preferred-rank", "0"]);
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
    let calm = stretch(&coordinator, pids);
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
    let idle_stretch = stretch(&coordinator, pids);
    println!("while strangers are idle: {counts:?}, {} ring connections are open", count(&held));
    orders.send_replace(Order::ComeBack);
    let all = count(&counts.tried);
    until("strangers that come back", Duration::from_secs(60), || (count(&counts.tried) > all + CROWD / 4).then_some(()));
    let coming = stretch(&coordinator, pids);
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
    let times = run.column("step_ms");
    let of = |(from, to, cpu_ms): (usize, usize, f64)| Stretch { step_ms: median(times[from..to].to_vec()), cpu_ms };
    let grown = [during[0] - before[0], during[1] - before[1]];
    let [calm, idle_stretch, coming] = [calm, idle_stretch, coming].map(of);
    println!(
        "a newcomer is in the ring after {busy_join:.1?} ({calm_join:.1?} without strangers); \
         memory of coordinator and worker + {:.1} and + {:.1} MB",
        grown[0], grown[1]
    );
    for (what, stretch) in
        [("before strangers came", &calm), ("strangers are idle", &idle_stretch), ("strangers come back all the time", &coming)]
    {
        println!("{what}: a step takes {:.2} ms, of it {:.2} ms on the processors", stretch.step_ms, stretch.cpu_ms);
    }
    assert!(busy_join < JOINS_WITHIN.max(calm_join * 3), "a newcomer was kept out for {busy_join:?}");
    assert!(grown.iter().all(|mb| *mb < 50.0), "memory grew by {grown:?} MB");
    assert!(coming.step_ms < 2.0 * calm.step_ms, "a step took {:.2} ms before and {:.2} ms meanwhile", calm.step_ms, coming.step_ms);
    assert!(idle_stretch.step_ms < 1.5 * calm.step_ms, "a step took {:.2} ms before, {:.2} ms now", calm.step_ms, idle_stretch.step_ms);
    assert!(run.stderr.lines().count() < 300, "the log has {} lines", run.stderr.lines().count());
}
