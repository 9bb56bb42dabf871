#![allow(clippy::unwrap_used, clippy::expect_used)]

use common::seed;

use super::*;

fn rules(min_workers: u32, shards: u32) -> Rules {
    Rules { min_workers, shards, timeout: Duration::from_secs(1), first_step: 0, last_generation: 0 }
}

fn joined(worker: WorkerId, preferred_rank: Option<u32>) -> Input {
    Input::Joined { worker, name: format!("worker-{worker}"), addr: format!("127.0.0.1:{worker}"), preferred_rank }
}

fn report(step: u64, digest: &str) -> Finished {
    Finished { step, weights_blake3: digest.to_owned(), bytes_sent: 0, peak_rss_bytes: 0 }
}

#[test]
fn a_generation_starts_when_enough_are_ready_and_ranks_them() {
    let now = Instant::now();
    let mut m = Membership::new(rules(3, 8));
    for (worker, preferred) in [(10, Some(2)), (11, Some(0)), (12, None)] {
        assert_eq!(m.handle(now, joined(worker, preferred)), []);
    }
    assert_eq!(m.handle(now, Input::Ready { worker: 12 }), [Output::Waiting { ready: 1, needed: 3 }]);
    m.handle(now, Input::Ready { worker: 10 });
    let outputs = m.handle(now, Input::Ready { worker: 11 });
    let [Output::Start { members, generation }] = outputs.as_slice() else { panic!("{outputs:?}") };
    assert_eq!(members, &[11, 10, 12]);
    assert_eq!(generation.number, 1);
    assert_eq!(generation.members[0].name, "worker-11");
}

#[test]
fn no_more_workers_than_shards_and_none_after_the_start() {
    let now = Instant::now();
    let mut m = Membership::new(rules(1, 2));
    m.handle(now, joined(1, None));
    m.handle(now, joined(2, None));
    assert!(matches!(m.handle(now, joined(3, None)).as_slice(), [Output::Refuse { worker: 3, .. }]));
    let outputs = m.handle(now, Input::Ready { worker: 1 });
    assert!(matches!(outputs.as_slice(), [Output::Refuse { worker: 2, .. }, Output::Start { .. }]), "{outputs:?}");
    assert!(matches!(m.handle(now, joined(4, None)).as_slice(), [Output::Refuse { worker: 4, .. }]));
}

fn running(workers: u64) -> (Membership, Instant) {
    let now = Instant::now();
    let mut m = Membership::new(rules(workers as u32, 16));
    for worker in 0..workers {
        m.handle(now, joined(worker, None));
        m.handle(now, Input::Ready { worker });
    }
    (m, now)
}

#[test]
fn the_run_is_done_when_all_have_finished_with_the_same_weights() {
    let (mut m, now) = running(2);
    assert_eq!(m.handle(now, Input::Finished { worker: 0, report: report(7, "a") }), []);
    // A connection that closes after its report is no loss.
    assert_eq!(m.handle(now, Input::Left { worker: 0, reason: "closed".to_owned() }), []);
    let outputs = m.handle(now, Input::Finished { worker: 1, report: report(7, "a") });
    assert!(matches!(outputs.as_slice(), [Output::Done { reports }] if reports.len() == 2), "{outputs:?}");
}

#[test]
fn different_weights_are_never_accepted() {
    let (mut m, now) = running(2);
    m.handle(now, Input::Finished { worker: 0, report: report(7, "a") });
    let outputs = m.handle(now, Input::Finished { worker: 1, report: report(7, "b") });
    assert!(matches!(outputs.as_slice(), [Output::Fail { reason, .. }] if reason.contains("different weights")), "{outputs:?}");
}

#[test]
fn a_silent_worker_is_lost_and_named() {
    let (mut m, now) = running(3);
    let later = now + Duration::from_millis(900);
    m.handle(later, Input::Alive { worker: 0 });
    m.handle(later, Input::Alive { worker: 2 });
    assert_eq!(m.handle(later, Input::Tick), []);
    let outputs = m.handle(now + Duration::from_millis(1100), Input::Tick);
    let [Output::Fail { members, reason }] = outputs.as_slice() else { panic!("{outputs:?}") };
    assert_eq!(members, &[0, 2]);
    assert!(reason.contains("worker-1") && reason.contains("1000 ms"), "{reason}");
}

#[test]
fn stopping_asks_each_member_once() {
    let (mut m, now) = running(2);
    assert_eq!(m.handle(now, Input::StopRequested), [Output::Stop { members: vec![0, 1] }]);
    assert_eq!(m.handle(now, Input::StopRequested), []);
    let mut waiting = Membership::new(rules(2, 2));
    assert!(matches!(waiting.handle(now, Input::StopRequested).as_slice(), [Output::Fail { .. }]));
}

/// Over many random schedules: at most one generation starts, its members are
/// distinct, between min_workers and shards, and the run ends at most once.
#[test]
fn invariants_hold_over_random_schedules() {
    for case in 0..20_000u64 {
        let mut rng = seed::stream(case, "membership", &[]);
        let min_workers = 1 + seed::below(&mut rng, 4);
        let shards = min_workers + seed::below(&mut rng, 4);
        let mut m = Membership::new(rules(min_workers, shards));
        let mut now = Instant::now();
        let (mut starts, mut ends) = (0, 0);
        for _ in 0..60 {
            now += Duration::from_millis(u64::from(seed::below(&mut rng, 120)));
            let worker = u64::from(seed::below(&mut rng, 8));
            let input = match seed::below(&mut rng, 12) {
                0..=2 => joined(worker, None),
                3..=5 => Input::Ready { worker },
                6 | 7 => Input::Alive { worker },
                8 => Input::Finished { worker, report: report(1, "same") },
                9 => Input::Left { worker, reason: "gone".to_owned() },
                10 => Input::Tick,
                _ if seed::below(&mut rng, 8) == 0 => Input::StopRequested,
                _ => Input::Failed { worker, reason: "failed".to_owned() },
            };
            for output in m.handle(now, input) {
                match output {
                    Output::Start { members, generation } => {
                        starts += 1;
                        let mut distinct = members.clone();
                        distinct.sort_unstable();
                        distinct.dedup();
                        assert_eq!(distinct.len(), members.len());
                        assert_eq!(generation.members.len(), members.len());
                        assert!((min_workers..=shards).contains(&(members.len() as u32)), "case {case}");
                    }
                    Output::Done { .. } | Output::Fail { .. } => ends += 1,
                    Output::Refuse { .. } | Output::Waiting { .. } | Output::Stop { .. } => {}
                }
            }
            assert!(starts <= 1 && ends <= 1, "case {case}");
        }
    }
}
