#![allow(clippy::unwrap_used, clippy::expect_used)]

use common::config::Balance;
use common::digest::Digest;
use std::net::SocketAddr;
use std::time::Duration;

use common::run_dir::LastGeneration;
use common::seed;
use common::timing::LEAVE;
use common::wire::messages::{Generation, Member, StateSource};

use super::*;

pub(super) fn rules(min_workers: u32, shards: u32) -> Rules {
    let seconds = Duration::from_secs;
    Rules {
        start_workers: min_workers,
        min_workers,
        shards,
        balance: Balance::Speed,
        steps_per_epoch: 50,
        steps: 1_000_000,
        timeout: seconds(1),
        stall: seconds(300),
        rejoin: seconds(60),
        handover: seconds(10),
        factors: false,
        reproducible: false,
        state_bytes: 8_000_000,
        first_step: 0,
        last_generation: 0,
        recorded: 0,
    }
}

fn address(worker: WorkerId) -> SocketAddr {
    ([127, 0, 0, 1], worker as u16).into()
}

pub(super) fn joined(worker: WorkerId, preferred_rank: Option<u32>) -> Input {
    Input::Joined { worker, member: member(worker), preferred_rank, generation: None }
}

pub(super) fn ready(worker: WorkerId, generation: u64, step: u64) -> Input {
    Input::Ready { worker, generation, step, committed: generation, products: None }
}

fn report(step: u64, digest: &str) -> Finished {
    Finished { step, weights_blake3: Digest::of(digest.as_bytes()), bytes_sent: 0, peak_rss_bytes: 0 }
}

fn started(outputs: &[Output]) -> (Vec<WorkerId>, Generation) {
    let start =
        outputs.iter().find_map(|o| if let Output::Start { members, generation, .. } = o { Some((members, generation)) } else { None });
    let (members, generation) = start.unwrap_or_else(|| panic!("no generation started: {outputs:?}"));
    (members.clone(), generation.clone())
}

/// A run of this many workers in generation 1.
fn running(workers: u64, rules: Rules) -> (Membership, Instant) {
    let now = Instant::now();
    let mut m = Membership::new(Rules { start_workers: workers as u32, ..rules }, now);
    for worker in 0..workers {
        m.handle(now, joined(worker, None));
        let outputs = m.handle(now, ready(worker, 0, 0));
        reached(&mut m, now, outputs);
    }
    (m, now)
}

/// Lets time pass from `from` to `to`, with ticks, while only these workers are
/// heard. Returns the outputs.
fn pass(m: &mut Membership, from: Instant, to: Instant, heard: &[WorkerId]) -> Vec<Output> {
    let mut outputs = Vec::new();
    let mut at = from;
    while at < to {
        at = to.min(at + Duration::from_millis(100));
        heard.iter().for_each(|&worker| outputs.extend(m.handle(at, Input::Alive { worker })));
        outputs.extend(m.handle(at, Input::Tick));
    }
    outputs
}

/// Reports success for all probes. Returns the outputs for the last report.
fn probes_succeed(m: &mut Membership, at: Instant) -> Vec<Output> {
    let outputs = m.handle(at, Input::Tick);
    reached(m, at, outputs)
}

/// Handles one input, and reports success for the probes of pairs that it leads to.
pub(super) fn handled(m: &mut Membership, at: Instant, input: Input) -> Vec<Output> {
    let outputs = m.handle(at, input);
    reached(m, at, outputs)
}

/// The same for the probes among these outputs. Returns the outputs themselves if there
/// are no probes.
pub(super) fn reached(m: &mut Membership, at: Instant, outputs: Vec<Output>) -> Vec<Output> {
    let mut last = outputs.clone();
    for output in outputs {
        if let Output::Probe { worker, peers, .. } = output {
            for peer in peers {
                last = m.handle(at, Input::Probed { worker, peer: peer.name, problem: None, millis: 1 });
            }
        }
    }
    last
}

#[test]
fn a_generation_starts_when_enough_are_ready_and_ranks_them() {
    let now = Instant::now();
    let mut m = Membership::new(rules(3, 8), now);
    for (worker, preferred) in [(10, Some(2)), (11, Some(0)), (12, None)] {
        assert_eq!(m.handle(now, joined(worker, preferred)), []);
    }
    assert_eq!(m.handle(now, ready(12, 0, 0)), [Output::Waiting { ready: 1, needed: 3 }]);
    m.handle(now, ready(10, 0, 0));
    let (members, generation) = started(&handled(&mut m, now, ready(11, 0, 0)));
    assert_eq!(members, [11, 10, 12]);
    assert_eq!((generation.number, generation.first_step, generation.state), (1, 0, StateSource::Everywhere));
    assert_eq!(generation.members[0].name, "worker-11");
}

#[test]
fn the_run_is_done_when_all_have_finished_with_the_same_weights() {
    let (mut m, now) = running(2, rules(1, 16));
    assert_eq!(m.handle(now, Input::Finished { worker: 0, report: report(7, "a") }), []);
    // A worker whose connection closes after its report is not lost.
    assert_eq!(m.handle(now, Input::Left { worker: 0, reason: "closed".to_owned() }), []);
    let outputs = m.handle(now, Input::Finished { worker: 1, report: report(7, "a") });
    assert!(matches!(outputs.as_slice(), [Output::Done { reports }] if reports.len() == 2), "{outputs:?}");
}

#[test]
fn different_weights_are_never_accepted() {
    let (mut m, now) = running(2, rules(1, 16));
    m.handle(now, Input::Finished { worker: 0, report: report(7, "a") });
    let outputs = m.handle(now, Input::Finished { worker: 1, report: report(7, "b") });
    assert!(matches!(outputs.as_slice(), [Output::Fail { reason, .. }] if reason.contains("different weights")), "{outputs:?}");
}

#[test]
fn a_silent_worker_is_lost_and_the_others_go_on_from_the_newest_step() {
    let (mut m, now) = running(3, rules(1, 16));
    let later = now + Duration::from_millis(1000);
    assert_eq!(pass(&mut m, now, later, &[0, 2]), []);
    let later = now + Duration::from_millis(1100);
    let outputs = m.handle(later, Input::Tick);
    assert!(matches!(&outputs[0], Output::Lost { name, reason, .. } if name == "worker-1" && reason.contains("1000 ms")), "{outputs:?}");
    assert!(matches!(&outputs[1], Output::End { members, generation: 1, .. } if *members == [0, 2]), "{outputs:?}");
    assert!(matches!(&outputs[2], Output::Drop { worker: 1, .. }), "{outputs:?}");
    assert_eq!(m.handle(later, ready(0, 1, 41)), []);
    let (members, generation) = started(&handled(&mut m, later, ready(2, 1, 42)));
    assert_eq!((members, generation.number, generation.first_step), (vec![0, 2], 2, 42));
    assert_eq!(generation.state, StateSource::Donor { rank: 1 });
}

#[test]
fn a_newcomer_costs_one_step_boundary_and_gets_the_state_from_a_member() {
    let (mut m, now) = running(2, rules(1, 3));
    assert_eq!(m.handle(now, joined(7, None)), []);
    assert_eq!(m.handle(now, ready(7, 0, 0)), []);
    assert_eq!(probes_succeed(&mut m, now), [Output::Yield { members: vec![0, 1], generation: 1 }]);
    // No `End` is sent: the members leave the ring together by themselves.
    assert_eq!(m.handle(now, ready(0, 1, 5)), []);
    let (members, generation) = started(&handled(&mut m, now, ready(1, 1, 5)));
    assert_eq!((members, generation.first_step, generation.state), (vec![0, 1, 7], 5, StateSource::Donor { rank: 0 }));
}

#[test]
fn more_workers_than_shards_wait_as_spares_and_take_the_place_of_the_lost() {
    let (mut m, now) = running(2, rules(1, 2));
    m.handle(now, joined(7, None));
    assert_eq!(m.handle(now, ready(7, 0, 0)), [Output::Spare { worker: 7 }]);
    let outputs = m.handle(now, Input::Left { worker: 0, reason: "killed".to_owned() });
    assert!(outputs.contains(&Output::End { members: vec![1], generation: 1, reason: "worker-0 left: killed".to_owned() }));
    let (members, generation) = started(&handled(&mut m, now, ready(1, 1, 9)));
    assert_eq!((members, generation.state), (vec![1, 7], StateSource::Donor { rank: 0 }));
}

#[test]
fn a_worker_leaves_at_a_step_boundary_and_the_last_one_stops_the_run() {
    let (mut m, now) = running(2, rules(1, 4));
    assert_eq!(m.handle(now, Input::Leaving { worker: 0 }), [Output::Yield { members: vec![0, 1], generation: 1 }]);
    m.handle(now, ready(1, 1, 3));
    let outputs = m.handle(now, ready(0, 1, 3));
    assert_eq!(outputs[0], Output::Goodbye { worker: 0 });
    assert_eq!(started(&outputs).0, [1]);
    assert_eq!(m.handle(now, Input::Leaving { worker: 1 }), [Output::Stop { members: vec![1] }]);
}

#[test]
fn when_all_leave_at_once_their_state_is_stored_first() {
    let (mut m, now) = running(2, rules(1, 4));
    assert_eq!(m.handle(now, Input::Leaving { worker: 0 }), [Output::Yield { members: vec![0, 1], generation: 1 }]);
    assert_eq!(m.handle(now, Input::Leaving { worker: 1 }), []);
    m.handle(now, ready(0, 1, 3));
    let outputs = m.handle(now, ready(1, 1, 3));
    assert_eq!(started(&outputs).0, [0, 1]);
    assert_eq!(outputs.last(), Some(&Output::Stop { members: vec![0, 1] }));
}

#[test]
fn when_all_leave_at_a_stored_step_the_run_ends_too() {
    let (mut m, now) = running(2, rules(1, 4));
    m.handle(now, Input::Stored { step: 3 });
    (0..2).for_each(|worker| _ = m.handle(now, Input::Leaving { worker }));
    m.handle(now, ready(0, 1, 3));
    let outputs = m.handle(now, ready(1, 1, 3));
    assert_eq!(outputs.last(), Some(&Output::Stop { members: vec![0, 1] }));
}

#[test]
fn the_last_holder_hands_its_state_over_before_it_goes() {
    let (mut m, now) = running(1, rules(1, 4));
    m.handle(now, joined(5, None));
    // The newcomer is not ready yet, so no other worker can take over the state.
    assert_eq!(m.handle(now, Input::Leaving { worker: 0 }), []);
    assert_eq!(m.handle(now, ready(5, 0, 0)), []);
    assert_eq!(probes_succeed(&mut m, now), [Output::Yield { members: vec![0], generation: 1 }]);
    let outputs = m.handle(now, ready(0, 1, 8));
    let (members, generation) = started(&outputs);
    assert_eq!((members, generation.first_step, generation.state), (vec![0, 5], 8, StateSource::Donor { rank: 0 }));
    assert_eq!(outputs.last(), Some(&Output::Yield { members: vec![0, 5], generation: 2 }));
    m.handle(now, ready(5, 2, 9));
    let outputs = m.handle(now, ready(0, 2, 9));
    assert_eq!(outputs[0], Output::Goodbye { worker: 0 });
    assert_eq!(started(&outputs).0, [5]);
}

#[test]
fn without_a_holder_the_newest_checkpoint_serves() {
    let (mut m, now) = running(1, rules(1, 4));
    m.handle(now, Input::Stored { step: 20 });
    m.handle(now, Input::Left { worker: 0, reason: "killed".to_owned() });
    m.handle(now, joined(5, None));
    let (_, generation) = started(&handled(&mut m, now, ready(5, 0, 0)));
    assert_eq!((generation.first_step, generation.state), (20, StateSource::Checkpoint));
}

#[test]
fn below_min_workers_the_run_waits_and_goes_on() {
    let (mut m, now) = running(2, rules(2, 4));
    m.handle(now, Input::Left { worker: 0, reason: "killed".to_owned() });
    assert_eq!(m.handle(now, ready(1, 1, 8)), [Output::Waiting { ready: 1, needed: 2 }]);
    assert_eq!(m.handle(now, Input::Tick), []);
    m.handle(now, joined(3, None));
    let (members, generation) = started(&handled(&mut m, now, ready(3, 0, 0)));
    assert_eq!((members, generation.first_step), (vec![1, 3], 8));
}

#[test]
fn stopping_asks_each_member_once_even_in_the_middle_of_a_recovery() {
    let (mut m, now) = running(2, rules(1, 4));
    assert_eq!(m.handle(now, Input::StopRequested), [Output::Stop { members: vec![0, 1] }]);
    assert_eq!(m.handle(now, Input::StopRequested), []);
    let (mut m, now) = running(2, rules(1, 4));
    m.handle(now, Input::Left { worker: 0, reason: "killed".to_owned() });
    assert_eq!(m.handle(now, Input::StopRequested), []);
    assert_eq!(m.handle(now, ready(1, 1, 8)).last(), Some(&Output::Stop { members: vec![1] }));
    let mut waiting = Membership::new(rules(2, 2), now);
    assert!(matches!(waiting.handle(now, Input::StopRequested).as_slice(), [Output::Fail { .. }]));
}

pub(super) fn member(n: u64) -> Member {
    Member { name: format!("worker-{n}"), addr: address(n), others: Vec::new() }
}

/// The two members that a restarted coordinator expects back.
fn expected() -> [Member; 2] {
    [0, 1].map(member)
}

fn back(worker: WorkerId, name: u64, generation: Option<u64>) -> Input {
    Input::Joined { worker, member: member(name), preferred_rank: None, generation }
}

#[test]
fn a_ring_that_goes_on_is_taken_up_by_a_coordinator_that_was_started_again() {
    let now = Instant::now();
    let mut m = Membership::returning(
        Rules { last_generation: 7, ..rules(1, 4) },
        &LastGeneration::default(),
        &expected(),
        Lineage::of([(7, 0, &expected()[..])]),
        now,
    );
    assert_eq!(m.handle(now, Input::Tick), []);
    let later = now + Duration::from_secs(2);
    assert_eq!(m.handle(later, back(10, 1, Some(7))), []);
    assert_eq!(m.handle(later, back(11, 0, Some(7))), []);
    // It is the same generation: a newcomer is let in at a step boundary, and rank 0
    // is the same worker as before.
    m.handle(later, joined(12, None));
    assert_eq!(m.handle(later, ready(12, 0, 0)), []);
    assert_eq!(probes_succeed(&mut m, later), [Output::Yield { members: vec![11, 10], generation: 7 }]);
    // A worker whose connection breaks once more gets the request again.
    assert_eq!(m.handle(later, back(13, 0, Some(7))), [Output::Yield { members: vec![13], generation: 7 }]);
    assert_eq!(m.handle(later, Input::Left { worker: 11, reason: "closed".to_owned() }), []);
    m.handle(later, ready(10, 7, 40));
    let (members, generation) = started(&handled(&mut m, later, ready(13, 7, 40)));
    assert_eq!((members, generation.number, generation.first_step), (vec![10, 12, 13], 8, 40));
}

#[test]
fn members_that_do_not_come_back_are_lost_and_the_others_go_on() {
    let now = Instant::now();
    let mut m = Membership::returning(
        Rules { last_generation: 7, first_step: 30, ..rules(1, 4) },
        &LastGeneration::default(),
        &expected(),
        Lineage::of([(7, 0, &expected()[..])]),
        now,
    );
    m.handle(now, back(10, 1, Some(7)));
    let mut at = now;
    let mut outputs = Vec::new();
    while outputs.is_empty() {
        at += Duration::from_millis(100);
        m.handle(at, Input::Alive { worker: 10 });
        outputs = m.handle(at, Input::Tick);
        assert!(at < now + Duration::from_secs(10));
    }
    assert!(outputs.iter().any(|o| matches!(o, Output::End { members, generation: 7, .. } if *members == [10])), "{outputs:?}");
    let (members, generation) = started(&handled(&mut m, at, ready(10, 7, 44)));
    assert_eq!((members, generation.first_step), (vec![10], 44));
    // The other worker was in its ring all the time; that ring is over.
    let outputs = m.handle(at, back(14, 0, Some(7)));
    assert!(matches!(&outputs[0], Output::End { members, generation: 7, .. } if *members == [14]), "{outputs:?}");
    assert_eq!(m.handle(at, ready(14, 7, 44)), []);
    assert_eq!(probes_succeed(&mut m, at), [Output::Yield { members: vec![10], generation: 8 }]);
}

#[test]
fn one_that_heartbeats_but_never_leaves_its_ring_is_given_up() {
    let (mut m, now) = running(2, rules(1, 4));
    m.handle(now, ready(0, 1, 8));
    let later = now + LEAVE;
    assert_eq!(pass(&mut m, now, later, &[0, 1]), []);
    let outputs = pass(&mut m, later, later + Duration::from_secs(1), &[0, 1]);
    assert!(outputs.iter().any(|o| matches!(o, Output::Drop { worker: 1, .. })), "{outputs:?}");
    assert_eq!(started(&outputs).0, [0]);
}

#[path = "faults.rs"]
mod faults;
#[path = "lies.rs"]
mod lies;
#[path = "schedules.rs"]
mod schedules;
#[path = "shares.rs"]
mod shares;
#[path = "world.rs"]
mod world;

#[test]
fn a_generation_that_the_journal_lost_is_not_numbered_again() {
    let now = Instant::now();
    let mut m = Membership::new(Rules { last_generation: 6, ..rules(2, 8) }, now);
    for worker in [1, 2] {
        let outputs = m.handle(now, back(worker, worker, Some(7)));
        assert!(matches!(outputs[..], [Output::End { generation: 7, .. }]), "{outputs:?}");
    }
    m.handle(now, ready(1, 7, 30));
    let (_, generation) = started(&handled(&mut m, now, ready(2, 7, 30)));
    assert_eq!((generation.number, generation.first_step), (8, 30));
    // No disk loses so many generations.
    let outputs = m.handle(now, ready(1, u64::MAX, 30));
    assert!(matches!(&outputs[0], Output::Refuse { worker: 1, reason } if reason.contains("the newest is 8")), "{outputs:?}");
}

#[test]
fn a_worker_whose_process_has_ended_is_not_waited_for() {
    let now = Instant::now();
    let mut m = Membership::new(Rules { start_workers: 3, ..rules(1, 16) }, now);
    for worker in 0..3 {
        m.handle(now, joined(worker, Some(worker as u32)));
        handled(&mut m, now, ready(worker, 0, 0));
    }
    let soon = now + Duration::from_millis(30);
    let outputs = m.handle(soon, Input::Ended { preferred_rank: 1 });
    assert!(outputs.contains(&Output::Lost { name: "worker-1".to_owned(), reason: "ended".to_owned(), silent: soon - now }), "{outputs:?}");
    assert!(outputs.iter().any(|o| matches!(o, Output::End { members, generation: 1, .. } if *members == [0, 2])), "{outputs:?}");
    assert!(outputs.iter().any(|o| matches!(o, Output::Drop { worker: 1, .. })), "{outputs:?}");
    // No worker prefers that rank any more: the next one that does is another process.
    assert_eq!(m.handle(soon, Input::Ended { preferred_rank: 1 }), []);
}

/// Three heartbeats, this many seconds after `now`.
fn beats(m: &mut Membership, now: Instant, seconds: u64, step: u64, waiting: [bool; 3]) -> Vec<Output> {
    let at = now + Duration::from_secs(seconds);
    let before = seconds.checked_sub(1).map(|before| now + Duration::from_secs(before));
    let mut outputs = before.map_or_else(Vec::new, |before| pass(m, before, at, &[0, 1, 2]));
    (0..).zip(waiting).for_each(|(worker, waiting)| _ = m.handle(at, Input::Beat { worker, step, waiting, speed: None }));
    outputs.extend(m.handle(at, Input::Tick));
    outputs
}

#[test]
fn a_member_that_hangs_is_given_up_when_all_others_have_waited_long_enough() {
    let (mut m, now) = running(3, rules(1, 16));
    for second in 0..=300 {
        assert_eq!(beats(&mut m, now, second, 7, [true, false, true]), [], "{second}");
    }
    let outputs = beats(&mut m, now, 301, 7, [true, false, true]);
    assert!(outputs.iter().any(|o| matches!(o, Output::Drop { worker: 1, reason } if reason.contains("300 s"))), "{outputs:?}");

    // A worker that waited for less time is not blamed, and if all wait no worker is.
    let (mut m, now) = running(3, rules(1, 16));
    for second in 0..400 {
        assert_eq!(beats(&mut m, now, second, 7, [true, second % 7 == 0, second % 200 != 0]), [], "{second}");
    }
    for second in 400..900 {
        assert_eq!(beats(&mut m, now, second, 7, [true; 3]), [], "{second}");
    }
    // A fast worker waits for a slow one in every step; the slow one does not hang.
    for second in 900..2000 {
        assert_eq!(beats(&mut m, now, second, second / 200, [true, false, true]), [], "{second}");
    }
}
