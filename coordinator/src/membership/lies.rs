//! A false report of one member or newcomer harms no other worker.

use super::faults::{MS, SECOND, beat, left_out, lost};
use super::*;

#[test]
fn a_newcomer_that_says_it_holds_the_last_step_gives_nothing() {
    let (mut m, now) = running(2, rules(1, 16));
    m.handle(now, joined(7, None));
    m.handle(now, Input::Ready { worker: 7, generation: 0, step: 5000, committed: 1, products: None });
    probes_succeed(&mut m, now);
    m.handle(now, ready(0, 1, 8));
    let (members, generation) = started(&handled(&mut m, now, ready(1, 1, 8)));
    assert_eq!((members, generation.first_step, generation.holders), (vec![0, 1, 7], 8, vec![0, 1]));
}

#[test]
fn one_member_alone_does_not_decide_how_far_the_run_is() {
    for lie in [0, 5000] {
        let (mut m, now) = running(3, rules(1, 16));
        [(0, 8), (1, 8), (2, lie)].into_iter().for_each(|(worker, step)| _ = beat(&mut m, now, worker, step));
        assert_eq!((m.committed(), m.newest), (8, 8), "{lie}");
        // It also does not decide from whose state the run goes on.
        m.handle(now, ready(2, 1, lie));
        m.handle(now, ready(0, 1, 8));
        let (_, generation) = started(&handled(&mut m, now, ready(1, 1, 8)));
        assert_eq!((generation.first_step, generation.holders), (8, vec![0, 1]), "{lie}");
    }
}

#[test]
fn a_newcomer_that_was_let_in_holds_no_more_than_the_others() {
    let (mut m, now) = running(2, rules(1, 16));
    m.handle(now, joined(7, None));
    m.handle(now, ready(7, 0, 0));
    probes_succeed(&mut m, now);
    m.handle(now, ready(0, 1, 8));
    assert_eq!(started(&handled(&mut m, now, ready(1, 1, 8))).0, [0, 1, 7]);
    beat(&mut m, now, 7, 5000);
    assert_eq!((m.newest, m.committed(), m.workers[&7].proved), (8, 8, false));
    m.handle(now, ready(7, 2, 5000));
    m.handle(now, ready(0, 2, 8));
    let (_, generation) = started(&handled(&mut m, now, ready(1, 2, 8)));
    assert_eq!((generation.first_step, generation.holders), (8, vec![0, 1]));
}

/// If one of several members reports that no worker can go on, only that member is lost.
#[test]
fn one_member_alone_does_not_end_the_run() {
    let (mut m, now) = running(3, rules(1, 4));
    let fails = |worker| Input::Failed { worker, reason: "failed: the loss is not finite".to_owned(), run: true };
    assert_eq!(lost(&m.handle(now, fails(1))), ["worker-1"]);
    m.handle(now, ready(0, 1, 3));
    assert_eq!(started(&handled(&mut m, now, ready(2, 1, 3))).0, [0, 2]);
    // If both members of a ring of two report it, it is believed.
    assert_eq!(lost(&m.handle(now, fails(0))), ["worker-0"]);
    assert!(matches!(&m.handle(now, fails(2))[..], [Output::Fail { reason, .. }] if reason.contains("not finite")));
}

/// If one member reports that the run is over while the others wait for it, that
/// member is wrong, however many steps it names. If only one member still waits, that
/// one is wrong.
#[test]
fn a_member_that_ends_by_itself_is_given_up() {
    for (ended, lost) in [(vec![2], vec![2]), (vec![0, 1], vec![2])] {
        let (mut m, now) = running(3, rules(1, 16));
        for &worker in &ended {
            assert_eq!(m.handle(now, Input::Finished { worker, report: report(8, "x") }), []);
        }
        let mut dropped = Vec::new();
        for second in 1..310 {
            let outputs = beats(&mut m, now, second, 8, [0, 1, 2].map(|worker| !ended.contains(&worker)));
            dropped.extend(outputs.iter().filter_map(|o| if let Output::Drop { worker, .. } = o { Some(*worker) } else { None }));
        }
        assert_eq!(dropped, lost, "{ended:?} have ended");
        assert!(!matches!(m.state, State::Running { .. }) || lost != ended, "the ring of {ended:?} still stands");
    }
}

#[test]
fn a_donor_that_gives_nothing_is_not_asked_again() {
    let (mut m, now) = running(2, rules(1, 16));
    m.handle(now, joined(7, None));
    m.handle(now, ready(7, 0, 0));
    probes_succeed(&mut m, now);
    m.handle(now, ready(0, 1, 8));
    let (_, generation) = started(&handled(&mut m, now, ready(1, 1, 8)));
    assert_eq!(generation.state, StateSource::Donor { rank: 0 });
    let missed = Input::Missed { worker: 7, generation: 2, peer: "worker-0".to_owned(), donor: true, reason: "garbage".to_owned() };
    let outputs = m.handle(now, missed.clone());
    let (name, reason, again) = left_out(&outputs).unwrap();
    assert!(name == "worker-7" && reason.contains("garbage"), "{name}: {reason}");
    (0..2).for_each(|worker| _ = m.handle(now, ready(worker, 2, 8)));
    m.handle(now, ready(7, 2, 0));
    // The newcomer is tried again, with the other donor.
    let at = now + again;
    pass(&mut m, now, at - 100 * MS, &[0, 1, 7]);
    probes_succeed(&mut m, at);
    let generation = m.generation;
    m.handle(at, ready(0, generation, 9));
    let (_, generation) = started(&handled(&mut m, at, ready(1, generation, 9)));
    assert_eq!(generation.state, StateSource::Donor { rank: 1 });
    // Once the ring completes steps, a report that it does not form is ignored.
    (0..2).for_each(|worker| _ = beat(&mut m, at, worker, 12));
    let late =
        Input::Missed { worker: 7, generation: generation.number, peer: "worker-1".to_owned(), donor: true, reason: "no".to_owned() };
    assert_eq!(m.handle(at, late), []);
}

/// A newcomer that leaves every ring at once, and is ready for the next, interrupts the run
/// less and less often.
#[test]
fn a_newcomer_that_leaves_every_ring_before_its_first_step_does_not_keep_the_run_from_training() {
    [0, 1].into_iter().for_each(leaves_every_ring);
}

/// `ahead`: how many steps it claims to have completed in the ring.
fn leaves_every_ring(ahead: u64) {
    let (mut m, now) = running(2, rules(1, 16));
    m.handle(now, joined(7, None));
    m.handle(now, ready(7, 0, 0));
    let mut outputs = probes_succeed(&mut m, now);
    let (mut at, mut steps, mut with_it) = (now, 0, 0);
    while at < now + 300 * SECOND {
        let generation = m.generation;
        let begun = |o: &Output| if let Output::Start { members, .. } = o { Some(members.contains(&7)) } else { None };
        let begins = outputs.iter().find_map(begun);
        let ends = outputs.iter().any(|o| matches!(o, Output::Yield { .. } | Output::End { .. }));
        at += 100 * MS;
        outputs = Vec::new();
        if begins == Some(true) {
            with_it += 1;
            outputs.extend(m.handle(at, ready(7, generation, steps + ahead)));
        } else if ends {
            (0..2).for_each(|worker| outputs.extend(handled(&mut m, at, ready(worker, generation, steps))));
        } else {
            steps += 1;
            (0..2).for_each(|worker| outputs.extend(beat(&mut m, at, worker, steps)));
        }
        outputs.extend(m.handle(at, Input::Alive { worker: 7 }));
        let asked = m.handle(at, Input::Tick);
        outputs.extend(reached(&mut m, at, asked.clone()));
        outputs.extend(asked);
    }
    assert!((2..=12).contains(&with_it), "{ahead}: {with_it} rings with it in five minutes");
    assert!(steps >= 2800, "{ahead}: {steps} of 3000 steps");
}

/// A newcomer that feigns a slow link, forms no ring, and comes back under another name each
/// time costs the ring hardly more than a twentieth of its time.
#[test]
fn newcomers_under_ever_new_names_for_which_no_ring_forms_cost_a_twentieth() {
    const WAITED: u64 = 20;
    const HOUR: u64 = 3600;
    let (mut m, now) = running(2, rules(1, 16));
    let (mut at, mut step, mut stood_still, mut name) = (now, 0, 0, 10);
    m.handle(at, joined(name, None));
    m.handle(at, ready(name, 0, 0));
    while at < now + HOUR as u32 * SECOND {
        at += SECOND;
        step += 1;
        (0..2).for_each(|worker| _ = beat(&mut m, at, worker, step));
        m.handle(at, Input::Alive { worker: name });
        let asked = m.handle(at, Input::Tick);
        let yields = |outputs: &[Output]| outputs.iter().any(|o| matches!(o, Output::Yield { .. }));
        let all = [asked.clone(), reached(&mut m, at, asked)].concat();
        if !yields(&all) {
            continue;
        }
        let generation = m.generation;
        m.handle(at, ready(0, generation, step));
        assert_eq!(started(&handled(&mut m, at, ready(1, generation, step))).0, [0, 1, name]);
        pass(&mut m, at, at + WAITED as u32 * SECOND, &[0, 1, name]);
        at += WAITED as u32 * SECOND;
        stood_still += WAITED;
        let (peer, reason) = (format!("worker-{name}"), "no answer".to_owned());
        let outputs = m.handle(at, Input::Missed { worker: 1, generation: generation + 1, peer, donor: false, reason });
        assert!(left_out(&outputs).is_some());
        m.handle(at, Input::Left { worker: name, reason: "closed".to_owned() });
        (0..2).for_each(|worker| _ = handled(&mut m, at, ready(worker, generation + 1, step)));
        name += 1;
        m.handle(at, joined(name, None));
        m.handle(at, ready(name, 0, 0));
    }
    assert!((WAITED..HOUR / 12).contains(&stood_still), "stood still for {stood_still} s of an hour");
}

/// Generations that make no step follow each other more and more slowly.
#[test]
fn a_ring_that_never_forms_is_not_formed_without_end() {
    let (mut m, now) = running(2, rules(2, 16));
    let (mut at, mut generations) = (now, 0);
    while at < now + 5 * SECOND {
        let outputs: Vec<Output> = (0..2).flat_map(|worker| m.handle(at, ready(worker, m.generation, 0))).collect();
        generations += outputs.iter().filter(|o| matches!(o, Output::Start { .. })).count();
        at += 10 * MS;
        generations += m.handle(at, Input::Tick).iter().filter(|o| matches!(o, Output::Start { .. })).count();
    }
    assert!((3..=8).contains(&generations), "{generations} generations in 5 s");
}

#[test]
fn whoever_was_revoked_is_not_waited_for() {
    let (mut m, now) = running(2, rules(1, 16));
    (0..2).for_each(|worker| _ = beat(&mut m, now, worker, 206));
    m.handle(now, joined(7, None));
    pass(&mut m, now, now + 2 * SECOND, &[7]);
    let at = now + 2 * SECOND;
    m.handle(at, ready(7, 0, 0));
    let revoked = |n: u64| Input::Revoked { name: format!("worker-{n}") };
    assert_eq!(m.handle(at, revoked(0)), []);
    let outputs = m.handle(at, revoked(1));
    assert_eq!(started(&outputs).0, [7], "{outputs:?}");
}
