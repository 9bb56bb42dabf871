//! Membership over a hundred thousand seeded schedules of joins, leaves, crashes,
//! freezes, broken connections, cut links, stalls and restarts of the coordinator,
//! newcomers that lie, are slow or cannot be reached, and messages that are
//! delayed, repeated and overtaken by those of other workers.

use rand_chacha::ChaCha8Rng;

use super::world::World;
use super::*;

/// Does one random thing to the world.
pub(super) fn disturb(world: &mut World, rng: &mut ChaCha8Rng) {
    let n = world.workers.len() as u32;
    let at = if n > 0 { seed::below(rng, n) as usize } else { 0 };
    match seed::below(rng, 26) {
        0 | 1 if n < 8 => {
            let kind = seed::below(rng, 12);
            world.spawn(kind == 0, kind == 1);
        }
        2 if n > 0 && world.workers[at].alive => {
            // Killed: its connection may close at once, or only its silence shows it.
            world.workers[at].alive = false;
            world.workers[at].training = None;
            if seed::below(rng, 2) == 0 {
                let worker = world.workers[at].id;
                world.hear(Input::Left { worker, reason: "closed".to_owned() });
            }
        }
        3 if n > 0 && world.workers[at].alive && !world.workers[at].leaving => {
            world.workers[at].leaving = true;
            let worker = world.workers[at].id;
            world.workers[at].outbox.push_back(Input::Leaving { worker });
        }
        4 => world.hear(Input::Tick),
        5 if n > 0 && world.workers[at].alive => {
            let worker = world.workers[at].id;
            // The coordinator may notice the broken connection first, or never.
            match seed::below(rng, 3) {
                0 => world.hear(Input::Disconnected { worker }),
                1 => {}
                _ => world.hear(Input::Alive { worker }),
            }
            world.reconnect(at);
        }
        6 if seed::below(rng, 4) == 0 => world.restart(),
        7 if n > 0 => {
            let until = world.now + Duration::from_millis(u64::from(100 + seed::below(rng, 4000)));
            world.workers[at].frozen = Some(until);
        }
        8 if seed::below(rng, 4) == 0 => {
            // The coordinator is stopped for a while, and then wakes up to a tick.
            let heard: Vec<WorkerId> = world.workers.iter().filter(|w| w.alive).map(|w| w.id).collect();
            heard.iter().for_each(|&worker| world.hear(Input::Alive { worker }));
            world.gave_up.clear();
            world.now += Duration::from_millis(u64::from(500 + seed::below(rng, 8000)));
            world.hear(Input::Tick);
            let blamed = world.gave_up.iter().find(|id| heard.contains(id));
            assert_eq!(blamed, None, "given up for a silence of the coordinator's own");
        }
        9 if seed::below(rng, 4) == 0 => {
            // All links are cut for a while, or all workers frozen.
            world.silence(500);
            world.gave_up.clear();
            world.silence(u64::from(seed::below(rng, 8000)));
            assert!(world.gave_up.is_empty(), "given up while nobody was heard: {:?}", world.gave_up);
        }
        10 if n > 1 => {
            let other = seed::below(rng, n) as usize;
            let (a, b) = (world.workers[at].name, world.workers[other].name);
            world.cut.insert((a, b));
            if seed::below(rng, 2) == 0 {
                world.cut.insert((b, a));
            }
        }
        11 => world.cut.clear(),
        12..=18 if n > 0 => world.act(at, rng),
        _ if n > 0 => {
            let frozen = world.workers[at].frozen.is_some_and(|until| until > world.now);
            if let Some(input) = world.workers[at].outbox.pop_front_if(|_| !frozen) {
                if seed::below(rng, 10) == 0 && matches!(input, Input::Ready { .. } | Input::Alive { .. }) {
                    world.hear(input.clone());
                }
                world.hear(input);
            }
        }
        _ => {}
    }
}

/// Plays one case; with `trace`, prints the coordinator's inputs and outputs.
fn play(case: u64, trace: bool) {
    let mut rng = seed::stream(case, "membership", &[]);
    let mut world = World::new(&mut rng);
    world.trace = trace;
    for _ in 0..60 {
        world.now += Duration::from_millis(u64::from(seed::below(&mut rng, 60)));
        disturb(&mut world, &mut rng);
        if world.over {
            return;
        }
    }
    world.calm(&mut rng);
    // Progress whenever enough are alive: every live member trains in the newest generation.
    assert!(world.over || world.is_whole(), "{:?}\n{:?}\n{:?}", world.rings.last_key_value(), world.m, world.workers);
}

#[test]
fn invariants_hold_over_a_hundred_thousand_schedules() {
    for case in 0..100_000 {
        if std::panic::catch_unwind(|| play(case, false)).is_err() {
            println!("case {case}:");
            play(case, true);
        }
    }
}
