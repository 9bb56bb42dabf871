//! Shards that move between workers of unlike speeds: when, and how often.

use super::faults::{SECOND, beat};
use super::schedules::disturb;
use super::world::World;
use super::*;

/// A ring of workers with one speed, and the seed's generator.
fn ring(workers: u32, shards: u32) -> (World, rand_chacha::ChaCha8Rng) {
    let (mut world, mut rng) = (World::of(workers, shards), seed::stream(1, "shares", &[u64::from(workers)]));
    world.speed_of = |_| 100.0;
    (0..workers).for_each(|_| world.spawn(false, false));
    world.train(5, &mut rng);
    assert_eq!(world.rings.len(), 1);
    (world, rng)
}

#[test]
fn shards_move_once_at_an_epochs_end_to_whoever_is_faster_and_come_back() {
    // An epoch has 50 steps.
    let (mut world, mut rng) = ring(2, 32);
    world.train(400, &mut rng);
    assert_eq!((world.owned(), world.balanced.len()), (&[16, 16][..], 0));
    let slow = world.workers[0].name;
    world.slowed.insert(slow);
    let started = world.m.newest;
    // Three windows of 20 steps, and then the end of an epoch.
    while world.balanced.is_empty() {
        world.train(1, &mut rng);
        assert!(world.m.newest < started + 120, "the shards never move");
    }
    let moved = world.m.newest;
    assert!(moved >= started + 60 && moved % 50 <= 1, "they move at step {moved}, slow since {started}");
    world.train(800, &mut rng);
    assert!(world.owned()[0] < 12 && world.owned()[1] > 20, "{:?}", world.owned());
    assert_eq!((world.balanced.len(), world.rings.len()), (1, 2), "and stay where they are");
    // As fast as before again.
    world.slowed.clear();
    world.train(200, &mut rng);
    assert_eq!((world.owned(), world.balanced.len(), world.rings.len()), (&[16, 16][..], 2, 3));
}

#[test]
fn a_slow_second_or_two_and_a_small_difference_move_nothing() {
    let (mut world, mut rng) = ring(3, 48);
    let slow = world.workers[1].name;
    for _ in 0..20 {
        world.slowed.insert(slow);
        world.train(45, &mut rng);
        world.slowed.clear();
        world.train(45, &mut rng);
    }
    assert_eq!((world.balanced.len(), world.rings.len()), (0, 1));
    // With four shards for two workers, another share of them is no better.
    let (mut world, mut rng) = ring(2, 2);
    world.slowed.insert(world.workers[0].name);
    world.train(400, &mut rng);
    assert_eq!((world.owned(), world.balanced.len()), (&[1, 1][..], 0));
}

#[test]
fn equal_balance_stays_equal_whatever_the_speeds() {
    let (mut m, now) = running(2, Rules { balance: Balance::Equal, ..rules(1, 16) });
    for step in 1..600 {
        let at = now + Duration::from_millis(50 * step);
        for (worker, speed) in [(0, 100.0), (1, 900.0)] {
            assert_eq!(m.handle(at, Input::Beat { worker, step, waiting: false, speed: Some(speed) }), [], "step {step}");
        }
    }
    let at = now + 31 * SECOND;
    m.handle(at, Input::Left { worker: 0, reason: "killed".to_owned() });
    m.handle(at, ready(1, 1, 599));
    m.handle(at, back(5, 0, None));
    assert_eq!(m.generation, 2);
    m.handle(at, ready(5, 1, 598));
    probes_succeed(&mut m, at);
    assert_eq!(started(&handled(&mut m, at, ready(1, 2, 600))).1.shards, [8, 8]);
}

/// Every ring that forms anyway has its shards given away by the speeds known by then.
#[test]
fn one_that_comes_back_keeps_its_speed_and_a_newcomer_counts_as_the_others() {
    let (mut m, now) = running(2, rules(1, 32));
    let at = now + SECOND;
    for (worker, speed) in [(0, 300.0), (1, 100.0)] {
        m.handle(at, Input::Beat { worker, step: 9, waiting: false, speed: Some(speed) });
    }
    // A worker that does not know its speed takes nothing back.
    beat(&mut m, at, 1, 10);
    m.handle(at, Input::Disconnected { worker: 1 });
    m.handle(at, ready(0, 1, 10));
    m.handle(at, back(9, 1, None));
    let (members, generation) = started(&handled(&mut m, at, ready(9, 1, 10)));
    assert_eq!((members, generation.shards), (vec![0, 9], vec![24, 8]));
    m.handle(at, joined(12, None));
    m.handle(at, ready(12, 0, 0));
    probes_succeed(&mut m, at);
    m.handle(at, ready(0, 2, 11));
    let (_, generation) = started(&handled(&mut m, at, ready(9, 2, 11)));
    // 300, 100, and 200 for the newcomer.
    assert_eq!(generation.shards, [16, 5, 11]);
}

/// Workers of unlike speeds, or of one, that change their speeds, come, go and fail.
fn play(case: u64) -> usize {
    let mut rng = seed::stream(case, "unlike speeds", &[]);
    let workers = 1 + seed::below(&mut rng, 3);
    let mut world = World::of(workers, workers + seed::below(&mut rng, 40));
    let alike = case.is_multiple_of(3);
    if alike {
        world.speed_of = |_| 640.0;
    }
    for _ in 0..workers + seed::below(&mut rng, 2) {
        world.spawn(false, false);
    }
    for _ in 0..6 {
        world.train(u64::from(seed::below(&mut rng, 150)), &mut rng);
        let names: Vec<u64> = world.workers.iter().map(|w| w.name).collect();
        let name = names[seed::below(&mut rng, names.len() as u32) as usize];
        if !alike && !world.slowed.remove(&name) {
            world.slowed.insert(name);
        }
        for _ in 0..seed::below(&mut rng, 3) {
            disturb(&mut world, &mut rng);
            if world.over {
                return world.balanced.len();
            }
        }
    }
    // The world asserts that shards are given away whole, and at most once an epoch anew.
    assert!(!alike || world.balanced.is_empty(), "case {case}: {:?}", world.balanced);
    world.balanced.len()
}

#[test]
fn shares_are_whole_and_move_at_most_once_an_epoch_over_thousands_of_schedules() {
    let moved: usize = (0..2000).map(play).sum();
    assert!(moved > 300, "shards moved only {moved} times");
}
