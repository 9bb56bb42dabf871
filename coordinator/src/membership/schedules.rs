//! Membership against a world of simulated workers: over a hundred thousand
//! seeded schedules of joins, leaves, crashes, silences, broken connections,
//! restarts of the coordinator, and messages that are delayed, repeated and
//! overtaken by those of other workers.

use std::collections::VecDeque;

use rand_chacha::ChaCha8Rng;

use super::*;

/// A worker as the protocol knows it: what it does when it is told something.
#[derive(Debug)]
struct Simulated {
    /// Of its connection; `name` is what its certificate says.
    id: WorkerId,
    /// Of its former connections, which the coordinator may still believe in.
    former: Vec<WorkerId>,
    name: u64,
    alive: bool,
    /// The generation it trains in, if it does.
    training: Option<u64>,
    last_generation: u64,
    step: u64,
    leaving: bool,
    /// Said, and not yet heard by the coordinator.
    outbox: VecDeque<Input>,
    /// Told, and not yet heard by the worker.
    inbox: VecDeque<Told>,
}

#[derive(Debug, Clone)]
enum Told {
    Generation { number: u64, first_step: u64 },
    End(u64),
    Yield(u64),
    Goodbye,
}

struct World {
    m: Membership,
    now: Instant,
    workers: Vec<Simulated>,
    next_id: WorkerId,
    shards: u32,
    min_workers: u32,
    /// First step of the newest generation, and its number.
    newest: (u64, u64),
    members: Vec<WorkerId>,
    /// The names of the newest generation's members, by rank: what the journal has.
    journal: Vec<u64>,
    rules: Rules,
    over: bool,
}

impl World {
    fn new(rng: &mut ChaCha8Rng) -> Self {
        let min_workers = 1 + seed::below(rng, 3);
        let shards = min_workers + seed::below(rng, 3);
        let rules = rules(min_workers, shards);
        Self {
            m: Membership::new(rules),
            journal: Vec::new(),
            rules,
            now: Instant::now(),
            workers: Vec::new(),
            next_id: 10,
            shards,
            min_workers,
            newest: (0, 0),
            members: Vec::new(),
            over: false,
        }
    }

    fn spawn(&mut self) {
        let id = self.next_id;
        self.next_id += 1;
        let outbox = VecDeque::from([joined(id, None), ready(id, 0, 0)]);
        self.workers.push(Simulated {
            id,
            former: Vec::new(),
            name: id,
            alive: true,
            training: None,
            last_generation: 0,
            step: 0,
            leaving: false,
            outbox,
            inbox: VecDeque::new(),
        });
    }

    /// The coordinator hears one thing, and its answers go on their way.
    fn hear(&mut self, input: Input) {
        let outputs = self.m.handle(self.now, input);
        for output in outputs {
            match output {
                Output::Start { members, generation } => self.check_start(&members, &generation),
                Output::End { members, generation, .. } => self.tell(&members, &Told::End(generation)),
                Output::Yield { members, generation } => self.tell(&members, &Told::Yield(generation)),
                Output::Goodbye { worker } => self.tell(&[worker], &Told::Goodbye),
                Output::Drop { worker, .. } | Output::Refuse { worker, .. } => {
                    // Its process goes on and joins again as somebody new.
                    if let Some(w) = self.workers.iter_mut().find(|w| w.id == worker) {
                        w.alive = false;
                    }
                }
                Output::Fail { .. } | Output::Done { .. } | Output::Stop { .. } => self.over = true,
                Output::Lost { .. } | Output::Waiting { .. } | Output::Spare { .. } => {}
            }
        }
    }

    /// A worker's connection broke and it has made another one.
    fn reconnect(&mut self, at: usize) {
        let id = self.next_id;
        self.next_id += 1;
        let w = &mut self.workers[at];
        w.former.push(std::mem::replace(&mut w.id, id));
        w.inbox.clear();
        // What it had said is repeated where it still stands.
        w.outbox = VecDeque::from([back(id, w.name, w.training)]);
        if w.training.is_none() {
            w.outbox.push_back(ready(id, w.last_generation, w.step));
        }
        if w.leaving {
            w.outbox.push_back(Input::Leaving { worker: id });
        }
    }

    /// The coordinator dies and is started again with nothing but its journal.
    fn restart(&mut self) {
        let members: Vec<_> = self.journal.iter().map(|name| member(*name)).collect();
        self.m = Membership::returning(Rules { last_generation: self.newest.1, ..self.rules }, &members, self.now);
        for at in 0..self.workers.len() {
            if self.workers[at].alive {
                self.reconnect(at);
            }
        }
    }

    /// The worker of a connection, be it the one that it uses now or not.
    fn behind(&self, id: WorkerId) -> Option<&Simulated> {
        self.workers.iter().find(|w| w.id == id || w.former.contains(&id))
    }

    fn check_start(&mut self, members: &[WorkerId], generation: &Generation) {
        let mut distinct = members.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), members.len());
        assert_eq!(generation.members.len(), members.len());
        assert!((self.min_workers..=self.shards).contains(&(members.len() as u32)));
        // Never two current generations: nobody whom the coordinator still counts trains in another.
        assert!(generation.number > self.newest.1);
        for id in members {
            let w = self.behind(*id).unwrap();
            assert_eq!(w.training, None, "worker {id} is still in a ring");
        }
        // The committed step goes back only when nobody in the run holds it any more.
        let holders = members.iter().filter_map(|id| self.behind(*id)).map(|w| w.step).max().unwrap();
        assert_eq!(generation.first_step, holders);
        self.newest = (generation.first_step, generation.number);
        self.members = members.to_vec();
        self.journal = members.iter().filter_map(|id| self.behind(*id)).map(|w| w.name).collect();
        self.tell(members, &Told::Generation { number: generation.number, first_step: generation.first_step });
    }

    fn tell(&mut self, members: &[WorkerId], what: &Told) {
        self.workers.iter_mut().filter(|w| members.contains(&w.id)).for_each(|w| w.inbox.push_back(what.clone()));
    }

    /// A worker reads one message, or makes a step of its own.
    fn act(&mut self, at: usize, rng: &mut ChaCha8Rng) {
        let w = &mut self.workers[at];
        if !w.alive {
            return;
        }
        match w.inbox.pop_front() {
            Some(Told::Generation { number, first_step }) => {
                w.training = Some(number);
                w.last_generation = number;
                w.step = first_step;
            }
            Some(Told::End(number) | Told::Yield(number)) if w.training == Some(number) => {
                // It may have committed one more step than another.
                w.step += u64::from(seed::below(rng, 2));
                w.training = None;
                w.outbox.push_back(ready(w.id, number, w.step));
            }
            Some(Told::Goodbye) => w.alive = false,
            Some(_) => {}
            None if w.training.is_some() => {
                w.step += 1;
                if seed::below(rng, 20) == 0 {
                    // Its ring broke.
                    let number = w.training.take().unwrap();
                    w.outbox.push_back(ready(w.id, number, w.step));
                }
            }
            None => {}
        }
        w.outbox.push_back(Input::Alive { worker: w.id });
    }

    /// Everything that is on its way arrives, and nothing bad happens any more.
    fn calm(&mut self, rng: &mut ChaCha8Rng) {
        for _ in 0..200 {
            for at in 0..self.workers.len() {
                while let Some(input) = self.workers[at].outbox.pop_front() {
                    self.hear(input);
                }
                for _ in 0..4 {
                    if !self.workers[at].inbox.is_empty() {
                        self.act(at, rng);
                    }
                }
                let id = self.workers[at].id;
                if self.workers[at].alive {
                    self.hear(Input::Alive { worker: id });
                }
            }
            self.now += Duration::from_millis(50);
            self.hear(Input::Tick);
        }
    }
}

#[test]
fn invariants_hold_over_a_hundred_thousand_schedules() {
    for case in 0..100_000u64 {
        let mut rng = seed::stream(case, "membership", &[]);
        let mut world = World::new(&mut rng);
        for _ in 0..40 {
            world.now += Duration::from_millis(u64::from(seed::below(&mut rng, 60)));
            let n = world.workers.len() as u32;
            let at = if n > 0 { seed::below(&mut rng, n) as usize } else { 0 };
            match seed::below(&mut rng, 18) {
                0 | 1 if n < 8 => world.spawn(),
                2 if n > 0 && world.workers[at].alive => {
                    // Killed: its connection may close at once, or only its silence shows it.
                    world.workers[at].alive = false;
                    world.workers[at].training = None;
                    if seed::below(&mut rng, 2) == 0 {
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
                16 if n > 0 && world.workers[at].alive => {
                    let worker = world.workers[at].id;
                    world.reconnect(at);
                    // The coordinator may notice first, or never.
                    if seed::below(&mut rng, 2) == 0 {
                        world.hear(Input::Left { worker, reason: "closed".to_owned() });
                    }
                }
                17 if seed::below(&mut rng, 4) == 0 => world.restart(),
                // Stored is heard only of steps that were committed in this run; here, of none.
                5..=9 if n > 0 => world.act(at, &mut rng),
                _ if n > 0 => {
                    if let Some(input) = world.workers[at].outbox.pop_front() {
                        if seed::below(&mut rng, 10) == 0 && matches!(input, Input::Ready { .. } | Input::Alive { .. }) {
                            world.hear(input.clone());
                        }
                        world.hear(input);
                    }
                }
                _ => {}
            }
            if world.over {
                break;
            }
        }
        if world.over {
            continue;
        }
        world.calm(&mut rng);
        // Progress whenever enough are alive: every live member trains in the newest generation.
        let wanting: Vec<&Simulated> = world.workers.iter().filter(|w| w.alive && !w.leaving).collect();
        if wanting.len() >= world.min_workers as usize && !world.over {
            let training = wanting.iter().filter(|w| w.training == Some(world.newest.1)).count();
            let expected = wanting.len().min(world.shards as usize);
            assert_eq!(training, expected, "case {case}: {:?}\n{:#?}", world.members, world.workers);
        }
    }
}
