//! Simulated workers around a membership, and what must be true of them.
//!
//! The world knows what the coordinator cannot see: the bits of every state. A
//! step that is committed in another generation has other bits.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use common::plan::Ownership;
use rand_chacha::ChaCha8Rng;

use super::*;

/// A worker as the protocol sees it: how it reacts to messages.
#[derive(Debug)]
pub(super) struct Simulated {
    /// The id of its connection; `name` is the name in its certificate.
    pub(super) id: WorkerId,
    /// The ids of its former connections, which the coordinator may still count as open.
    former: Vec<WorkerId>,
    pub(super) name: u64,
    pub(super) alive: bool,
    /// The worker neither acts nor is heard until this time.
    pub(super) frozen: Option<Instant>,
    slow: bool,
    /// The generation it trains in, if it does.
    pub(super) training: Option<u64>,
    last_generation: u64,
    state: Held,
    pub(super) leaving: bool,
    /// Messages that the coordinator has not received yet.
    pub(super) outbox: VecDeque<Input>,
    /// Messages that the worker has not received yet.
    inbox: VecDeque<Message>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Held {
    step: u64,
    committed: u64,
    bits: u64,
}

const INITIAL: Held = Held { step: 0, committed: 0, bits: 0 };

#[derive(Debug, Clone)]
pub(super) enum Message {
    Generation(u64),
    End(u64),
    Yield(u64),
    Probe(Vec<u64>, bool),
    Dropped,
    Goodbye,
}

/// A generation as it was started.
#[derive(Debug)]
pub(super) struct Ring {
    names: Vec<u64>,
    first_step: u64,
    shards: Vec<u32>,
    bits: u64,
    /// Ranks that are not told to get the state.
    holders: Vec<u32>,
}

pub(super) struct World {
    pub(super) m: Membership,
    pub(super) now: Instant,
    pub(super) workers: Vec<Simulated>,
    next_id: WorkerId,
    pub(super) shards: u32,
    min_workers: u32,
    /// The workers' own speeds, by their names.
    pub(super) speed_of: fn(u64) -> f64,
    /// The names of those that compute at half their speed.
    pub(super) slowed: BTreeSet<u64>,
    /// The epochs at whose end a ring was formed anew for its shares.
    pub(super) balanced: BTreeSet<u64>,
    pub(super) rings: BTreeMap<u64, Ring>,
    /// The bits of the run after each step.
    truth: BTreeMap<u64, u64>,
    /// Pairs (a, b) in which worker a does not reach worker b. A link that is cut
    /// both ways has two.
    pub(super) cut: BTreeSet<(u64, u64)>,
    rules: Rules,
    pub(super) over: bool,
    pub(super) trace: bool,
    /// Workers that were given up for silence since this was last cleared.
    pub(super) gave_up: Vec<WorkerId>,
}

impl World {
    pub(super) fn new(rng: &mut ChaCha8Rng) -> Self {
        let min_workers = 1 + seed::below(rng, 3);
        let shards = min_workers + seed::below(rng, 3);
        Self::of(min_workers, shards)
    }

    pub(super) fn of(min_workers: u32, shards: u32) -> Self {
        let (rules, now) = (rules(min_workers, shards), Instant::now());
        Self {
            m: Membership::new(rules, now),
            rules,
            now,
            workers: Vec::new(),
            next_id: 10,
            shards,
            min_workers,
            speed_of: |name| 100.0 * (1 + name % 4) as f64,
            slowed: BTreeSet::new(),
            balanced: BTreeSet::new(),
            rings: BTreeMap::new(),
            truth: BTreeMap::from([(0, 0)]),
            cut: BTreeSet::new(),
            over: false,
            trace: false,
            gave_up: Vec::new(),
        }
    }

    fn newest(&self) -> u64 {
        self.rings.last_key_value().map_or(0, |(&number, _)| number)
    }

    pub(super) fn spawn(&mut self, dishonest: bool, slow: bool) {
        let id = self.next_id;
        self.next_id += 1;
        let newest = self.newest();
        let said = if dishonest {
            Input::Ready { worker: id, generation: 0, step: 900, committed: newest, products: None }
        } else {
            ready(id, 0, 0)
        };
        self.workers.push(Simulated {
            id,
            former: Vec::new(),
            name: id,
            alive: true,
            frozen: None,
            slow,
            training: None,
            last_generation: 0,
            state: INITIAL,
            leaving: false,
            outbox: VecDeque::from([joined(id, None), said]),
            inbox: VecDeque::new(),
        });
    }

    /// Delivers one input to the coordinator, and sends its outputs on their way.
    pub(super) fn hear(&mut self, input: Input) {
        if self.trace && !matches!(input, Input::Tick | Input::Alive { .. }) {
            println!("{input:?}");
        }
        let outputs = self.m.handle(self.now, input);
        if self.trace && !outputs.is_empty() {
            println!("    {outputs:?}");
        }
        // A run that stops may store its state with fewer workers than it would train with.
        let least = if outputs.iter().any(|o| matches!(o, Output::Stop { .. })) { 1 } else { self.min_workers };
        for output in outputs {
            match output {
                Output::Start { members, generation, speeds, .. } => {
                    assert_eq!(speeds.len(), members.len());
                    self.check_start(&members, &generation, least);
                }
                Output::Balance { from, to, gain } => {
                    assert!(from != to && gain >= 0.1, "{from:?} is no better than {to:?}");
                    let epoch = self.m.newest / self.rules.steps_per_epoch;
                    assert!(self.balanced.insert(epoch), "the shards of epoch {epoch} moved twice");
                }
                Output::End { members, generation, .. } => self.send(&members, &Message::End(generation)),
                Output::Yield { members, generation } => self.send(&members, &Message::Yield(generation)),
                Output::Goodbye { worker } => self.send(&[worker], &Message::Goodbye),
                Output::Drop { worker, reason } => {
                    if reason.contains("not heard") {
                        self.gave_up.push(worker);
                    }
                    self.send(&[worker], &Message::Dropped);
                }
                Output::Refuse { worker, .. } => self.send(&[worker], &Message::Goodbye),
                Output::Probe { worker, peers, bytes } => {
                    let name = |m: &common::wire::messages::Member| m.name["worker-".len()..].parse().unwrap();
                    self.send(&[worker], &Message::Probe(peers.iter().map(name).collect(), bytes > 0));
                }
                // The worker stores a checkpoint of the state that it alone holds;
                // after that it may leave.
                Output::Store { worker } => {
                    let step = self.behind(worker).unwrap().state.step;
                    self.hear(Input::Stored { step });
                }
                Output::Fail { .. } | Output::Done { .. } | Output::Stop { .. } => self.over = true,
                Output::Lost { .. }
                | Output::Waiting { .. }
                | Output::Spare { .. }
                | Output::Awaiting { .. }
                | Output::Isolated
                // `check_start` asserts that no live worker holds the newer step.
                | Output::WentBack { .. }
                | Output::Relayed { .. }
                | Output::LeftOut { .. } => {}
            }
        }
    }

    /// A worker's connection broke and it has made another one.
    pub(super) fn reconnect(&mut self, at: usize) {
        let id = self.next_id;
        self.next_id += 1;
        let w = &mut self.workers[at];
        w.former.push(std::mem::replace(&mut w.id, id));
        w.inbox.clear();
        // The worker repeats its earlier messages that still hold.
        w.outbox = VecDeque::from([back(id, w.name, w.training)]);
        if w.training.is_none() {
            w.says_ready();
        }
        if w.leaving {
            w.outbox.push_back(Input::Leaving { worker: id });
        }
    }

    /// The coordinator dies and is started again with nothing but its journal.
    pub(super) fn restart(&mut self) {
        let journal: Vec<(u64, u64, Vec<_>)> =
            self.rings.iter().map(|(&number, ring)| (number, ring.first_step, ring.names.iter().map(|n| member(*n)).collect())).collect();
        let members = journal.last().map(|(_, _, members)| members.clone()).unwrap_or_default();
        let lineage = Lineage::of(journal.iter().map(|(number, step, members)| (*number, *step, members.as_slice())));
        let stored = self.m.stored;
        let rules = Rules { last_generation: self.newest(), first_step: stored, recorded: stored, ..self.rules };
        let last = LastGeneration { shards: self.owned().to_vec(), ..LastGeneration::default() };
        self.m = Membership::returning(rules, &last, &members, lineage, self.now);
        for at in 0..self.workers.len() {
            if self.workers[at].alive {
                self.reconnect(at);
            }
        }
    }

    /// The worker of a connection, be that its current or a former one.
    fn behind(&self, id: WorkerId) -> Option<&Simulated> {
        self.workers.iter().find(|w| w.id == id || w.former.contains(&id))
    }

    fn check_start(&mut self, members: &[WorkerId], generation: &Generation, least: u32) {
        let mut distinct = members.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), members.len());
        assert_eq!(generation.members.len(), members.len());
        assert!((least..=self.shards).contains(&(members.len() as u32)));
        // Every shard has one owner, and every rank a shard.
        let owned = Ownership::of(&generation.shards, members.len(), self.shards).unwrap();
        let one_speed = members.iter().filter_map(|id| self.behind(*id)).all(|w| (self.speed_of)(w.name) == (self.speed_of)(0));
        let equal = Ownership::equal(members.len() as u32, self.shards);
        assert!(owned == equal || !one_speed || !self.slowed.is_empty(), "{owned:?} by equal speeds");
        // Never two current generations: no worker that the coordinator still counts
        // trains in another one.
        assert!(generation.number > self.newest());
        let all: Vec<&Simulated> = members.iter().filter_map(|id| self.behind(*id)).collect();
        for w in &all {
            assert!(w.training.is_none() || w.frozen.is_some(), "worker {} is still in a ring", w.name);
        }
        // The committed step never goes back while a process that holds it lives,
        // but for the step in flight.
        let holds_the_runs = |w: &&Simulated| self.truth.get(&w.state.step) == Some(&w.state.bits);
        let living = self.workers.iter().filter(|w| w.alive).filter(holds_the_runs).map(|w| w.state.step).max().unwrap_or(0);
        assert!(generation.first_step + 1 >= living, "step {} is held, and the run goes on from {}", living, generation.first_step);
        // Every worker that is taken to hold the state does hold it, to the bit.
        let bits = self.truth.get(&generation.first_step).copied();
        for &rank in &generation.holders {
            let held = all[rank as usize].state;
            assert_eq!((held.step, Some(held.bits)), (generation.first_step, bits), "rank {rank} of {generation:?}");
        }
        assert!(!generation.holders.is_empty() || generation.state == StateSource::Checkpoint);
        let names = all.iter().map(|w| w.name).collect();
        let (first_step, holders, shards) = (generation.first_step, generation.holders.clone(), generation.shards.clone());
        let ring = Ring { names, first_step, shards, bits: bits.unwrap(), holders };
        self.truth.split_off(&(generation.first_step + 1));
        self.rings.insert(generation.number, ring);
        self.send(members, &Message::Generation(generation.number));
    }

    fn send(&mut self, members: &[WorkerId], what: &Message) {
        self.workers.iter_mut().filter(|w| members.contains(&w.id)).for_each(|w| w.inbox.push_back(what.clone()));
    }

    fn is_cut(&self, who: u64, whom: u64) -> bool {
        self.cut.contains(&(who, whom))
    }

    /// Whether all members of the ring have entered the next step of this worker.
    fn commits(&self, at: usize, number: u64) -> bool {
        let step = self.workers[at].state.step;
        let entered = |name: &u64| self.workers.iter().any(|w| w.name == *name && w.training == Some(number) && w.state.step >= step);
        self.rings[&number].names.iter().all(entered)
    }

    /// A worker reads one message, or makes a step of its own.
    pub(super) fn act(&mut self, at: usize, rng: &mut ChaCha8Rng) {
        if !self.workers[at].alive || self.workers[at].frozen.is_some_and(|until| until > self.now) {
            return;
        }
        self.workers[at].frozen = None;
        let message = self.workers[at].inbox.pop_front();
        let name = self.workers[at].name;
        match message {
            Some(Message::Generation(number)) => {
                let ring = &self.rings[&number];
                let rank = ring.names.iter().position(|n| *n == name).unwrap();
                let world = ring.names.len();
                let missed =
                    [rank + 1, rank + world - 1].map(|n| ring.names[n % world]).into_iter().find(|n| *n != name && self.is_cut(name, *n));
                let w = &mut self.workers[at];
                w.last_generation = number;
                if let Some(peer) = missed {
                    let (peer, reason) = (format!("worker-{peer}"), "no answer".to_owned());
                    w.outbox.push_back(Input::Missed { worker: w.id, generation: number, peer, donor: false, reason });
                    w.says_ready();
                    return;
                }
                if ring.holders.contains(&(rank as u32)) {
                    assert_eq!((w.state.step, w.state.bits), (ring.first_step, ring.bits));
                }
                w.state = Held { step: ring.first_step, committed: number, bits: ring.bits };
                w.training = Some(number);
            }
            Some(Message::End(number) | Message::Yield(number)) if self.workers[at].training == Some(number) => {
                // The worker may have committed one step more than another.
                if seed::below(rng, 2) == 0 {
                    self.step(at, number);
                }
                let w = &mut self.workers[at];
                w.training = None;
                w.says_ready();
            }
            Some(Message::Probe(peers, measures)) => {
                for peer in peers {
                    let problem = self.is_cut(name, peer).then(|| "no answer".to_owned());
                    let slow = self.workers.iter().any(|w| w.name == peer && w.slow);
                    let millis = if slow && measures { 600_000 } else { 1 };
                    let w = &mut self.workers[at];
                    w.outbox.push_back(Input::Probed { worker: w.id, peer: format!("worker-{peer}"), problem, millis });
                }
            }
            Some(Message::Dropped) => {
                self.workers[at].training = None;
                self.reconnect(at);
            }
            Some(Message::Goodbye) => self.workers[at].alive = false,
            Some(_) => {}
            None => {
                if let Some(number) = self.workers[at].training {
                    self.step(at, number);
                    if seed::below(rng, 20) == 0 {
                        // Its ring broke.
                        self.workers[at].training = None;
                        self.workers[at].says_ready();
                    }
                }
            }
        }
        self.beats(at, rng);
    }

    /// The worker sends a heartbeat. Speeds are measured to within some percent.
    fn beats(&mut self, at: usize, rng: &mut ChaCha8Rng) {
        let name = self.workers[at].name;
        let speed = (self.speed_of)(name) * if self.slowed.contains(&name) { 0.5 } else { 1.0 };
        let measured = speed * (1.0 + 0.001 * f64::from(seed::below(rng, 40)));
        let w = &mut self.workers[at];
        w.outbox.push_back(Input::Beat { worker: w.id, step: w.state.step, waiting: false, speed: Some(measured) });
    }

    /// The ring trains for so many steps, with heartbeats, while messages arrive.
    pub(super) fn train(&mut self, steps: u64, rng: &mut ChaCha8Rng) {
        for _ in 0..steps {
            if self.over {
                return;
            }
            for at in 0..self.workers.len() {
                let w = &self.workers[at];
                if !w.alive || w.frozen.is_some_and(|until| until > self.now) {
                    continue;
                }
                for _ in 0..8 {
                    if !self.workers[at].inbox.is_empty() {
                        self.act(at, rng);
                    }
                }
                if let Some(number) = self.workers[at].training {
                    self.step(at, number);
                }
                self.beats(at, rng);
                while let Some(input) = self.workers[at].outbox.pop_front() {
                    self.hear(input);
                }
            }
            self.now += Duration::from_millis(60);
            self.hear(Input::Tick);
        }
    }

    /// How many shards each member of the newest ring owns.
    pub(super) fn owned(&self) -> &[u32] {
        self.rings.last_key_value().map_or(&[], |(_, ring)| &ring.shards)
    }

    fn step(&mut self, at: usize, number: u64) {
        if self.commits(at, number) {
            let Held { step, bits, .. } = self.workers[at].state;
            let next = Held { step: step + 1, committed: number, bits: seed::derive(bits, "step", &[number, step]) };
            self.workers[at].state = next;
            if number == self.newest() {
                self.truth.insert(next.step, next.bits);
            }
        }
    }

    /// Lets time pass, with ticks and without any message.
    pub(super) fn silence(&mut self, millis: u64) {
        for _ in 0..millis / 50 {
            self.now += Duration::from_millis(50);
            self.hear(Input::Tick);
        }
    }

    /// Whether all workers that should train do so.
    pub(super) fn is_whole(&self) -> bool {
        let honest = |w: &&Simulated| w.alive && !w.leaving && !w.slow;
        let wanting = self.workers.iter().filter(honest).count();
        let training = self.workers.iter().filter(|w| w.alive && w.training == Some(self.newest()) && self.newest() > 0).count();
        wanting < self.min_workers as usize || training >= wanting.min(self.shards as usize)
    }

    /// Delivers all messages, without any further fault.
    pub(super) fn calm(&mut self, rng: &mut ChaCha8Rng) {
        self.cut.clear();
        for w in &mut self.workers {
            w.frozen = None;
        }
        for round in 0..4000 {
            if self.over || (round > 40 && self.is_whole()) {
                return;
            }
            for at in 0..self.workers.len() {
                while let Some(input) = self.workers[at].outbox.pop_front() {
                    self.hear(input);
                }
                for _ in 0..4 {
                    if !self.workers[at].inbox.is_empty() {
                        self.act(at, rng);
                    }
                }
                if self.workers[at].alive {
                    self.hear(Input::Alive { worker: self.workers[at].id });
                }
            }
            self.now += Duration::from_millis(100);
            self.hear(Input::Tick);
        }
    }
}

impl Simulated {
    fn says_ready(&mut self) {
        let Held { step, committed, .. } = self.state;
        self.outbox.push_back(Input::Ready { worker: self.id, generation: self.last_generation, step, committed, products: None });
    }
}
