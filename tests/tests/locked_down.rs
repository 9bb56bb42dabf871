//! Who may take part, and what those can do who may not.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cluster_tests::scenario::{Scenario, free_port, join};
use cluster_tests::{Running, join_line};
use common::net::Token;
use common::net::enrolment::enrol;

/// Runs `coordinator token ...` and returns what it printed.
fn token(arguments: &[&str]) -> String {
    Running::start("coordinator", &[&["token"], arguments].concat()).wait().succeeded().stdout
}

#[test]
fn a_revoked_token_sends_its_workers_away_and_lets_nobody_in() {
    let scenario = Scenario::new(200);
    let expected = scenario.quiet();
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

    let run = coordinator.wait().succeeded();
    good.wait().succeeded();
    scenario.assert_whole(&run, &expected);
    for secret in [&first, &second, &expired] {
        assert!(!run.stderr.contains(secret.as_str()), "a token is in the log");
    }
}

/// Puts this thread behind all others: strangers compute on machines of their
/// own, and here only what they cost others is of interest.
fn aside() {
    let _ = rustix::process::setpriority_process(None, 19);
}

/// Sends so much noise a second to these until told to stop. Returns how much it was.
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

/// So many attempts to enrol with a wrong secret. Returns how many were refused.
async fn knock(address: SocketAddr, token: &Token, times: usize) -> u64 {
    let refused = Arc::new(AtomicU64::new(0));
    let wrong = Token { secret: [7; 16], ..token.clone() };
    let mut knocking = tokio::task::JoinSet::new();
    for _ in 0..times {
        if knocking.len() == 20 {
            knocking.join_next().await;
        }
        let (wrong, refused) = (wrong.clone(), Arc::clone(&refused));
        knocking.spawn(async move {
            match enrol(address, &wrong).await {
                Ok(_) => panic!("a wrong secret was let in"),
                Err(_) => refused.fetch_add(1, Ordering::Relaxed),
            }
        });
        tokio::time::sleep(Duration::from_millis(18)).await;
    }
    while knocking.join_next().await.is_some() {}
    refused.load(Ordering::Relaxed)
}

/// Memory that a process holds, in megabytes.
fn resident(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_else(|| panic!("process {pid} is gone"));
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).unwrap_or_else(|| panic!("{line}")) / 1024.0
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Ten thousand datagrams of noise a second, half of them to a worker, and a
/// thousand connections with a wrong token. How much slower the steps become is
/// printed; what is asserted of it leaves room for other tests on the machine.
#[test]
fn strangers_cost_little_time_and_little_memory() {
    let scenario = Scenario::new(1900);
    let mut coordinator = scenario.serve(free_port(), 1, &[]);
    let (addr, token) = join_line(&scenario.run_dir());
    let ring_port = free_port();
    let worker = join(&addr, &token, &["--ring-listen", &format!("127.0.0.1:{ring_port}")]);
    let coordinator_addr: SocketAddr = addr.parse().unwrap_or_else(|e| panic!("{addr}: {e}"));
    let token: Token = token.parse().unwrap_or_else(|e| panic!("{e}"));
    coordinator.wait_for_steps(200);
    let quiet = coordinator.step_count();
    let pids = [coordinator.id(), worker.id()];
    let before = pids.map(resident);

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
        let refused = runtime
            .block_on(async move { tokio::spawn(async move { knock(coordinator_addr, &token, 1000).await }).await.unwrap_or_default() });
        stop.store(true, Ordering::Relaxed);
        (sending.join().unwrap_or_default(), refused, start.elapsed())
    });
    let loud = coordinator.step_count();
    let after = pids.map(resident);
    assert!(refused == 1000 && sent as f64 > 5000.0 * took.as_secs_f64(), "{sent} datagrams and {refused} refusals in {took:?}");
    assert!(loud > quiet + 100, "only {} steps while strangers knocked", loud - quiet);

    let run = coordinator.wait().succeeded();
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
