//! Faults that must not cost a run its state or its time, each by itself.

use super::super::listening::Listening;
use super::*;

pub(super) fn beat(m: &mut Membership, at: Instant, worker: WorkerId, step: u64) -> Vec<Output> {
    m.handle(at, Input::Beat { worker, step, waiting: false, speed: None })
}

pub(super) fn lost(outputs: &[Output]) -> Vec<&str> {
    outputs.iter().filter_map(|o| if let Output::Lost { name, .. } = o { Some(name.as_str()) } else { None }).collect()
}

pub(super) fn left_out(outputs: &[Output]) -> Option<(&str, &str, Duration)> {
    outputs.iter().find_map(|o| {
        if let Output::LeftOut { name, reason, again, .. } = o { Some((name.as_str(), reason.as_str(), *again)) } else { None }
    })
}

pub(super) const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_coordinator_that_was_stopped_gives_nobody_up() {
    let (mut m, now) = running(3, rules(1, 16));
    for stopped in [2, 8, 3600] {
        let at = now + stopped * SECOND;
        assert_eq!(m.handle(at, Input::Tick), []);
        (0..3).for_each(|worker| assert_eq!(beat(&mut m, at, worker, 50), []));
    }
}

#[test]
#[should_panic(expected = "before that of the call before")]
fn time_does_not_go_back() {
    let (mut m, now) = running(1, rules(1, 16));
    m.handle(now + SECOND, Input::Tick);
    m.handle(now, Input::Tick);
}

#[test]
fn while_nobody_is_heard_nobody_is_given_up_and_then_all_have_the_same_time() {
    let (mut m, now) = running(3, rules(1, 16));
    assert_eq!(pass(&mut m, now, now + 20 * SECOND, &[]), [Output::Isolated]);
    let at = now + 20 * SECOND;
    assert_eq!(pass(&mut m, at, at + SECOND, &[0]), []);
    let outputs = pass(&mut m, at + SECOND, at + 2 * SECOND, &[0]);
    assert_eq!(lost(&outputs), ["worker-1", "worker-2"], "{outputs:?}");
}

#[test]
fn the_run_goes_on_from_the_state_of_one_that_was_given_up() {
    let (mut m, now) = running(2, rules(1, 16));
    (0..2).for_each(|worker| _ = beat(&mut m, now, worker, 206));
    // A newcomer is heard, and both members are silent.
    m.handle(now, joined(7, None));
    let outputs = pass(&mut m, now, now + 2 * SECOND, &[7]);
    assert_eq!(lost(&outputs), ["worker-0", "worker-1"]);
    let at = now + 2 * SECOND;
    let outputs = m.handle(at, ready(7, 0, 0));
    assert!(matches!(&outputs[..], [Output::Awaiting { step: 206, names, .. }] if names.len() == 2), "{outputs:?}");
    assert_eq!(pass(&mut m, at, at + 30 * SECOND, &[7]), []);
    let at = at + 30 * SECOND;
    m.handle(at, back(9, 1, None));
    let (members, generation) = started(&handled(&mut m, at, ready(9, 1, 206)));
    assert_eq!((members, generation.first_step), (vec![9], 206));
    // The newcomer gets the state from that worker.
    assert_eq!(probes_succeed(&mut m, at), [Output::Yield { members: vec![9], generation: 2 }]);
    let (_, generation) = started(&handled(&mut m, at, ready(9, 2, 207)));
    assert_eq!((generation.first_step, generation.state), (207, StateSource::Donor { rank: 1 }));
}

#[test]
fn a_run_goes_back_when_former_members_were_away_for_too_long_and_says_so() {
    let (mut m, now) = running(1, rules(1, 16));
    assert_eq!(m.kept(), "there is no checkpoint yet");
    m.handle(now, Input::Stored { step: 100 });
    assert_eq!(m.kept(), "the checkpoint of step 100 is kept");
    beat(&mut m, now, 0, 206);
    m.handle(now, joined(7, None));
    let mut outputs = pass(&mut m, now, now + 2 * SECOND, &[7]);
    outputs.extend(m.handle(now + 2 * SECOND, ready(7, 0, 0)));
    assert!(!outputs.iter().any(|o| matches!(o, Output::WentBack { .. } | Output::Start { .. })), "{outputs:?}");
    let outputs = pass(&mut m, now + 2 * SECOND, now + 70 * SECOND, &[7]);
    assert!(outputs.contains(&Output::WentBack { from: 206, to: 100 }), "{outputs:?}");
    assert_eq!(started(&outputs).1.state, StateSource::Checkpoint);
    // The state of a worker that comes back now is no longer the run's.
    let at = now + 70 * SECOND;
    m.handle(at, back(9, 0, None));
    m.handle(at, ready(9, 1, 206));
    assert_eq!(m.workers[&9].phase, Phase::Ready(None));
}

#[test]
fn a_step_that_was_trained_again_is_another_state() {
    let (mut m, now) = running(3, rules(1, 16));
    // Worker 2 alone has committed step 9, and is cut off before it can say so.
    let outputs = pass(&mut m, now, now + 2 * SECOND, &[0, 1]);
    assert_eq!(lost(&outputs), ["worker-2"]);
    let at = now + 2 * SECOND;
    m.handle(at, ready(0, 1, 8));
    assert_eq!(started(&handled(&mut m, at, ready(1, 1, 8))).1.first_step, 8);
    m.handle(at, back(9, 2, None));
    m.handle(at, ready(9, 1, 9));
    probes_succeed(&mut m, at);
    // The others have made another step 9 meanwhile.
    m.handle(at, ready(0, 2, 9));
    let (members, generation) = started(&handled(&mut m, at, ready(1, 2, 9)));
    assert_eq!((members, generation.holders), (vec![0, 1, 9], vec![0, 1]));
}

#[test]
fn below_min_workers_the_last_holder_stores_its_state_before_it_goes() {
    let (mut m, now) = running(2, rules(2, 4));
    m.handle(now, Input::Left { worker: 0, reason: "killed".to_owned() });
    m.handle(now, ready(1, 1, 8));
    m.handle(now, joined(5, None));
    assert_eq!(m.handle(now, Input::Leaving { worker: 1 }), [Output::Store { worker: 1 }]);
    assert_eq!(m.handle(now, Input::Tick), []);
    assert_eq!(m.handle(now, Input::Stored { step: 8 }), [Output::Goodbye { worker: 1 }]);
}

#[test]
fn a_run_that_is_stopped_below_min_workers_stores_what_is_held() {
    let (mut m, now) = running(2, rules(2, 4));
    m.handle(now, Input::Left { worker: 0, reason: "killed".to_owned() });
    m.handle(now, ready(1, 1, 8));
    let outputs = m.handle(now, Input::StopRequested);
    assert_eq!(started(&outputs).0, [1]);
    assert_eq!(outputs.last(), Some(&Output::Stop { members: vec![1] }));
}

#[test]
fn a_workers_own_trouble_costs_the_run_that_worker() {
    let (mut m, now) = running(2, rules(1, 4));
    let fails = |worker, run| Input::Failed { worker, reason: "failed: no room".to_owned(), run };
    let outputs = m.handle(now, fails(0, false));
    assert_eq!(lost(&outputs), ["worker-0"]);
    assert_eq!(started(&handled(&mut m, now, ready(1, 1, 3))).0, [1]);
    // A newcomer's report that no worker can go on is ignored.
    m.handle(now, joined(5, None));
    m.handle(now, ready(5, 0, 0));
    assert!(!m.handle(now, fails(5, true)).iter().any(|o| matches!(o, Output::Fail { .. })));
    assert!(matches!(&m.handle(now, fails(1, true))[..], [Output::Fail { reason, .. }] if reason.contains("no room")));
}

/// A ring of two at `now`, with a newcomer that is ready; returns the probes of the
/// newcomer too.
fn newcomer() -> (Membership, Instant, Vec<Output>) {
    let (mut m, now) = running(2, rules(1, 16));
    m.handle(now, joined(7, None));
    m.handle(now, ready(7, 0, 0));
    let probes = m.handle(now, Input::Tick);
    (m, now, probes)
}

#[test]
fn a_newcomer_that_is_not_reached_is_left_out_named_and_tried_again() {
    let (mut m, now, probes) = newcomer();
    assert_eq!(probes.len(), 3, "both ways: {probes:?}");
    let problem = Some("no answer".to_owned());
    let outputs = m.handle(now, Input::Probed { worker: 1, peer: "worker-7".to_owned(), problem: problem.clone(), millis: 0 });
    let (name, reason, again) = left_out(&outputs).unwrap();
    assert_eq!((name, again), ("worker-7", 5 * SECOND));
    assert!(reason.contains("worker-1 does not reach worker-7 at 127.0.0.1:7: no answer"), "{reason}");
    let tries = |outputs: &[Output]| outputs.iter().filter(|o| matches!(o, Output::Probe { worker: 7, .. })).count();
    assert_eq!(tries(&pass(&mut m, now, now + 4 * SECOND, &[0, 1, 7])), 0);
    assert_eq!(tries(&pass(&mut m, now + 4 * SECOND, now + 6 * SECOND, &[0, 1, 7])), 1);
    let at = now + 6 * SECOND;
    let outputs = m.handle(at, Input::Probed { worker: 7, peer: "worker-0".to_owned(), problem, millis: 0 });
    assert_eq!(left_out(&outputs).unwrap().2, 10 * SECOND);
}

/// A newcomer that was to try a member that is lost meanwhile is not left out for it: it tries
/// those that are left, and is let in.
#[test]
fn a_newcomer_need_not_reach_a_member_that_was_lost_meanwhile() {
    for answers in [true, false] {
        let (mut m, now) = running(3, rules(1, 16));
        m.handle(now, joined(7, None));
        m.handle(now, ready(7, 0, 0));
        let probes = m.handle(now, Input::Tick);
        assert_eq!(probes.len(), 4, "{probes:?}");
        for (worker, peer) in [(7, 0), (0, 7), (7, 1), (1, 7)] {
            m.handle(now, Input::Probed { worker, peer: format!("worker-{peer}"), problem: None, millis: 1 });
        }
        m.handle(now, Input::Left { worker: 2, reason: "killed".to_owned() });
        m.handle(now, ready(0, 1, 5));
        assert_eq!(started(&handled(&mut m, now, ready(1, 1, 5))).0, [0, 1]);
        (0..2).for_each(|worker| _ = beat(&mut m, now, worker, 8));
        let problem = Some("no answer".to_owned());
        let outputs =
            if answers { m.handle(now, Input::Probed { worker: 7, peer: "worker-2".to_owned(), problem, millis: 0 }) } else { Vec::new() };
        assert_eq!(left_out(&outputs), None);
        let again = probes_succeed(&mut m, now);
        assert!(again.iter().any(|o| matches!(o, Output::Yield { .. })), "{answers}: {again:?}");
    }
}

#[test]
fn a_newcomer_with_a_slow_link_does_not_hold_the_ring_up() {
    let (mut m, now, _) = newcomer();
    // 4 MiB of 8 MB in 20 s.
    let outputs = m.handle(now, Input::Probed { worker: 0, peer: "worker-7".to_owned(), problem: None, millis: 20_000 });
    assert!(left_out(&outputs).unwrap().1.contains("its link is slow: the state of 8.0 MB would hold the ring up for 38 s"), "{outputs:?}");
}

/// A newcomer that has the coordinator foresee a slow transfer, and then forms no ring,
/// may hold the ring up for long: it is left out for as long as makes that a twentieth.
#[test]
fn a_newcomer_costs_a_ring_a_twentieth_of_its_time_however_long_the_ring_waits_for_it() {
    let (peer, reason) = ("worker-7".to_owned(), "it has not begun to form this ring".to_owned());
    let missed = Input::Missed { worker: 1, generation: 2, peer, donor: false, reason };
    let leaves = ready(7, 2, 0);
    for (waited, first, left_out_for) in [(1, &missed, 60), (20, &missed, 400), (1, &leaves, 20), (20, &leaves, 400)] {
        let (mut m, now, probes) = newcomer();
        reached(&mut m, now, probes);
        m.handle(now, ready(0, 1, 0));
        assert_eq!(started(&handled(&mut m, now, ready(1, 1, 0))).0, [0, 1, 7]);
        pass(&mut m, now, now + waited * SECOND, &[0, 1, 7]);
        let outputs = m.handle(now + waited * SECOND, first.clone());
        let (name, _, again) = left_out(&outputs).unwrap();
        assert_eq!((name, again), ("worker-7", left_out_for * SECOND));
    }
}

#[test]
fn a_worker_that_is_left_out_for_long_is_tried_sooner_where_the_run_stands_still_without_it() {
    let (mut m, now, probes) = newcomer();
    reached(&mut m, now, probes);
    m.handle(now, ready(0, 1, 0));
    assert_eq!(started(&handled(&mut m, now, ready(1, 1, 0))).0, [0, 1, 7]);
    pass(&mut m, now, now + 20 * SECOND, &[0, 1, 7]);
    let at = now + 20 * SECOND;
    assert_eq!(left_out(&m.handle(at, ready(7, 2, 0))).unwrap().2, 400 * SECOND);
    m.handle(at, ready(0, 2, 0));
    assert_eq!(started(&handled(&mut m, at, ready(1, 2, 0))).0, [0, 1]);
    let killed = |worker| Input::Left { worker, reason: "killed".to_owned() };
    let outputs: Vec<Output> = (0..2).flat_map(|worker| m.handle(at, killed(worker))).collect();
    assert!(!outputs.iter().any(|o| matches!(o, Output::Start { .. })), "{outputs:?}");
    assert_eq!(started(&pass(&mut m, at, at + 6 * SECOND, &[7])).0, [7]);
}

#[test]
fn newcomers_that_die_soon_make_the_next_ones_wait() {
    assert_eq!(yields_for_newcomers_that_die(false), [true, false, false, false]);
    // A process whose end the coordinator sees counts for less than one that falls silent.
    assert_eq!(yields_for_newcomers_that_die(true), [true, true, false, false]);
}

/// Whether the ring yields for each of four newcomers that live for a second;
/// `seen`: their end is noticed at once.
fn yields_for_newcomers_that_die(seen: bool) -> Vec<bool> {
    let (mut m, now) = running(1, rules(1, 16));
    let mut at = now;
    let mut costs = Vec::new();
    for life in 0..4u64 {
        let id = 10 + life;
        m.handle(at, joined(id, None));
        m.handle(at, ready(id, 0, 0));
        let mut outputs = probes_succeed(&mut m, at);
        // The newcomer lives for a second, whether it is let in or not.
        outputs.extend(pass(&mut m, at, at + SECOND, &[0, id]));
        at += SECOND;
        let yields = outputs.iter().any(|o| matches!(o, Output::Yield { .. }));
        costs.push(yields);
        if yields {
            let generation = m.generation;
            started(&handled(&mut m, at, ready(0, generation, 5 * life)));
        }
        if seen {
            m.handle(at, Input::Left { worker: id, reason: "killed".to_owned() });
        } else {
            pass(&mut m, at, at + 1200 * MS, &[0]);
            at += 1200 * MS;
        }
        if yields {
            let generation = m.generation;
            started(&handled(&mut m, at, ready(0, generation, 5 * life)));
        }
    }
    costs
}

#[test]
fn of_two_that_do_not_find_each_other_the_newer_is_left_out() {
    let (mut m, now) = running(3, rules(1, 16));
    let missed = |worker, peer: &str| {
        let (peer, reason) = (peer.to_owned(), "no answer".to_owned());
        Input::Missed { worker, generation: 1, peer, donor: false, reason }
    };
    let outputs = m.handle(now, missed(1, "worker-2"));
    let (name, reason, _) = left_out(&outputs).unwrap();
    assert_eq!(name, "worker-2");
    assert!(reason.contains("worker-1 and worker-2 cannot reach each other"), "{reason}");
    // The other worker reports the same failure, which changes nothing.
    assert_eq!(m.handle(now, missed(2, "worker-1")), []);
    m.handle(now, ready(1, 1, 0));
    m.handle(now, ready(2, 1, 0));
    assert_eq!(started(&handled(&mut m, now, ready(0, 1, 0))).0, [0, 1]);
}

#[test]
fn a_member_in_a_long_step_has_the_time_that_steps_take() {
    let (mut m, now) = running(3, rules(1, 16));
    let all = [0, 1, 2];
    pass(&mut m, now, now + 100 * SECOND, &all);
    let at = now + 100 * SECOND;
    (0..2).for_each(|worker| _ = beat(&mut m, at, worker, 1));
    m.handle(at, Input::Left { worker: 2, reason: "killed".to_owned() });
    m.handle(at, ready(0, 1, 1));
    // A step takes 100 s: after 61 s the other worker is still in its backward pass.
    assert_eq!(pass(&mut m, at, at + 390 * SECOND, &all), []);
    assert_eq!(lost(&pass(&mut m, at + 390 * SECOND, at + 410 * SECOND, &all)), ["worker-1"]);
}

#[test]
fn a_newcomer_that_makes_no_step_is_given_up_soon() {
    let (mut m, now) = running(2, rules(1, 16));
    (0..2).for_each(|worker| _ = beat(&mut m, now + SECOND, worker, 20));
    let now = now + SECOND;
    m.handle(now, joined(7, None));
    m.handle(now, ready(7, 0, 0));
    probes_succeed(&mut m, now);
    m.handle(now, ready(0, 1, 20));
    assert_eq!(started(&handled(&mut m, now, ready(1, 1, 20))).0, [0, 1, 7]);
    let mut at = now;
    let mut outputs = Vec::new();
    while lost(&outputs).is_empty() {
        at += Duration::from_millis(100);
        (0..2).for_each(|worker| _ = m.handle(at, Input::Beat { worker, step: 20, waiting: true, speed: None }));
        outputs.extend(m.handle(at, Input::Beat { worker: 7, step: 20, waiting: false, speed: None }));
        outputs.extend(m.handle(at, Input::Tick));
        assert!(at < now + 3 * SECOND, "{outputs:?}");
    }
    assert_eq!(lost(&outputs), ["worker-7"]);
}

pub(super) const MS: Duration = Duration::from_millis(1);

/// Lets `ms` milliseconds pass, with a call every 100 ms.
fn let_pass(listening: &mut Listening, from: Instant, ms: u32) -> Instant {
    (1..=ms / 100).for_each(|n| listening.advance(from + 100 * n * MS));
    from + ms * MS
}

#[test]
fn an_absence_is_not_silence() {
    let start = Instant::now();
    let mut listening = Listening::new(1000 * MS, start);
    listening.hear();
    let heard = listening.now();
    listening.advance(start + 8000 * MS);
    assert_eq!(listening.silence(heard), 250 * MS);
}

#[test]
fn silence_counts_only_while_somebody_is_heard() {
    let start = Instant::now();
    let mut listening = Listening::new(1000 * MS, start);
    listening.hear();
    let heard = listening.now();
    let at = let_pass(&mut listening, start, 3000);
    assert!(listening.isolated() && listening.becomes_isolated() && !listening.becomes_isolated());
    listening.hear();
    assert_eq!((listening.silence(heard), listening.isolated()), (Duration::ZERO, false));
    let mut at = at;
    for _ in 0..3 {
        at = let_pass(&mut listening, at, 300);
        listening.hear();
    }
    assert_eq!(listening.silence(heard), 900 * MS);
}

/// Joins so many workers, which are ready at once. Returns the outputs for the last.
fn gather(m: &mut Membership, now: Instant, workers: u64) -> Vec<Output> {
    let mut outputs = Vec::new();
    for worker in 0..workers {
        m.handle(now, joined(worker, None));
        outputs = m.handle(now, ready(worker, 0, 0));
    }
    outputs
}

#[test]
fn a_first_generation_forms_once_all_pairs_have_reached_each_other() {
    let now = Instant::now();
    let mut m = Membership::new(rules(3, 8), now);
    let probes = gather(&mut m, now, 3);
    let asked = |o: &Output| matches!(o, Output::Probe { peers, bytes: 0, .. } if peers.len() == 2);
    assert!(probes.len() == 3 && probes.iter().all(asked), "{probes:?}");
    assert_eq!(m.handle(now, Input::Tick), [], "they are asked once");
    assert_eq!(started(&reached(&mut m, now, probes)).0, [0, 1, 2]);
}

#[test]
fn whoever_is_not_reached_is_left_out_before_a_generation_forms_and_probed_again() {
    let now = Instant::now();
    let mut m = Membership::new(rules(2, 8), now);
    m.rules.start_workers = 3;
    let mut outputs = Vec::new();
    for probe in gather(&mut m, now, 3) {
        let Output::Probe { worker, peers, .. } = probe else { panic!("{probe:?}") };
        for Member { name: peer, .. } in peers {
            let problem = (peer == "worker-0").then(|| "nothing was heard".to_owned());
            outputs = m.handle(now, Input::Probed { worker, peer, problem, millis: 0 });
        }
    }
    let (name, reason, again) = left_out(&outputs).unwrap();
    assert_eq!((name, again), ("worker-0", 5 * SECOND));
    assert!(
        reason.contains("worker-1 does not reach worker-0 at 127.0.0.1:0: nothing was heard") && reason.contains("--listen"),
        "{reason}"
    );
    // The first ring waits for all three; they are probed again when the time is over.
    assert_eq!(m.handle(now, Input::Tick), []);
    let outputs = pass(&mut m, now, now + 6 * SECOND, &[0, 1, 2]);
    let probed: Vec<_> = outputs.iter().filter(|o| matches!(o, Output::Probe { .. })).cloned().collect();
    assert_eq!(probed.len(), 3, "{outputs:?}");
    assert_eq!(started(&reached(&mut m, now + 6 * SECOND, probed)).0, [0, 1, 2]);
}

#[test]
fn one_that_does_not_answer_is_left_out_and_those_that_know_each_other_are_not_probed() {
    let now = Instant::now();
    let mut m = Membership::new(rules(2, 8), now);
    for probe in gather(&mut m, now, 2) {
        let Output::Probe { worker, peers, .. } = probe else { panic!("{probe:?}") };
        if worker == 1 {
            m.handle(now, Input::Probed { worker, peer: peers[0].name.clone(), problem: None, millis: 0 });
        }
    }
    let outputs = pass(&mut m, now, now + 6 * SECOND, &[0, 1]);
    let (name, reason, _) = left_out(&outputs).unwrap();
    assert!(name == "worker-0" && reason.contains("worker-0 did not say"), "{name}: {reason}");

    // Members of one generation are known to reach each other.
    let (mut m, now) = running(3, rules(1, 8));
    m.handle(now, Input::Left { worker: 1, reason: "killed".to_owned() });
    m.handle(now, ready(0, 1, 4));
    assert_eq!(started(&handled(&mut m, now, ready(2, 1, 4))).0, [0, 2]);
}

#[test]
fn members_that_are_relayed_are_named_once_a_generation_with_what_to_set() {
    let (mut m, now) = running(3, rules(1, 8));
    let relayed = |worker, generation, peer: &str| Input::Relayed { worker, generation, peer: peer.to_owned() };
    let [Output::Relayed { generation: 1, names, reason }] = &m.handle(now, relayed(2, 1, "worker-0"))[..] else { panic!("not said") };
    assert_eq!(names, &["worker-0", "worker-2"]);
    assert!(reason.contains("worker-2 reaches worker-0 only through the coordinator") && reason.contains("--listen"), "{reason}");
    // The other way round, again, and what cannot be true.
    for (worker, generation, peer) in
        [(0, 1, "worker-2"), (2, 1, "worker-0"), (1, 1, "worker-1"), (1, 2, "worker-2"), (1, 0, "worker-2"), (1, 1, "worker-9")]
    {
        assert_eq!(m.handle(now, relayed(worker, generation, peer)), [], "{worker} of {generation} to {peer}");
    }
    assert_eq!(m.handle(now, relayed(0, 1, "worker-1")).len(), 1);
    // The next generation says it again, and no longer of one that is gone.
    m.handle(now, Input::Left { worker: 1, reason: "killed".to_owned() });
    m.handle(now, ready(0, 1, 4));
    assert_eq!(started(&handled(&mut m, now, ready(2, 1, 4))).0, [0, 2]);
    assert_eq!(m.handle(now, relayed(2, 2, "worker-0")).len(), 1);
    assert_eq!(m.handle(now, relayed(2, 2, "worker-1")), []);
}
