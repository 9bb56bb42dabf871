//! The events of one simulated step: a message arrives, or work on a core ends.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};

use super::model::{Costs, Gathered, Machines, Outcome, Sent, Work, ready};
use crate::ring::encoding::Encoding;
use crate::ring::schedule::{self, Hop, SEGMENT};

/// Work that is this close to its end, in seconds, is done: the rest is rounding error.
const DONE: f64 = 1e-12;

/// Simulates the ranks of one machine. `factor` says by how much the compute of `work`
/// is multiplied for each of them; `on_send` is called with every message.
pub(super) fn run(
    world: usize,
    work: &Work,
    costs: &Costs,
    machines: &Machines,
    factor: &dyn Fn(usize) -> f64,
    on_send: &mut dyn FnMut(Sent),
) -> Outcome {
    let due = ready(work);
    let ranks = machines.workers_each.clamp(1, world);
    let mut machine = Machine {
        world,
        work,
        costs: Seconds::of(costs),
        cores: machines.cores,
        compute_cores: machines.compute_cores,
        on_send,
        now: 0.0,
        ranks: (0..ranks).map(|rank| Rank::new(rank, world, ranks < world, work, &due, factor(rank))).collect(),
        arrivals: BinaryHeap::new(),
        serial: 0,
    };
    machine.run();
    let last = |time: fn(&Rank) -> f64| machine.ranks.iter().map(time).fold(0.0, f64::max);
    let (computed, summed) = (last(|r| r.computed), last(|r| r.summed));
    let multiplied = computed.max(last(|r| r.gathered)) + work.product_ms / 1e3;
    let over = summed.max(multiplied);
    Outcome { step_ms: over * 1e3 + work.update_ms, compute_ms: computed * 1e3, exposed_ms: (over - computed) * 1e3 }
}

/// [`Costs`], each in seconds.
struct Seconds {
    latency: f64,
    local_latency: f64,
    link_per_byte: f64,
    send_per_byte: f64,
    receive_per_byte: f64,
    per_value: f64,
    message: f64,
}

impl Seconds {
    fn of(costs: &Costs) -> Self {
        Self {
            latency: costs.latency_us * 1e-6,
            local_latency: costs.local_latency_us * 1e-6,
            link_per_byte: 8e-9 / costs.link_gbit_per_s,
            send_per_byte: (costs.send_ns_per_byte + costs.encrypt_ns_per_byte) * 1e-9,
            receive_per_byte: (costs.receive_ns_per_byte + costs.encrypt_ns_per_byte) * 1e-9,
            per_value: costs.sum_ns_per_value * 1e-9 / 2.0,
            message: costs.message_us * 1e-6,
        }
    }
}

/// A segment of a bucket, from one rank to the next.
#[derive(Debug, Clone, Copy)]
struct Message {
    bucket: usize,
    values: usize,
}

/// A task of a rank's thread.
#[derive(Debug, Clone, Copy)]
enum Task {
    Send(Message),
    Receive(Message),
}

/// A message that reaches `rank`. The earliest is ordered as the greatest, because a
/// [`BinaryHeap`] pops the greatest first.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    at: f64,
    /// Keeps simultaneous arrivals in order.
    serial: u64,
    rank: usize,
    message: Message,
}

impl Ord for Arrival {
    fn cmp(&self, other: &Self) -> Ordering {
        other.at.total_cmp(&self.at).then(other.serial.cmp(&self.serial))
    }
}

impl PartialOrd for Arrival {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Arrival {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Arrival {}

/// A bucket or a matrix as one rank sees it.
#[derive(Debug, Default)]
struct Flight {
    hops: Vec<Hop>,
    /// Values of each chunk.
    chunks: Vec<usize>,
    /// Bytes of a value.
    width: usize,
    begun: bool,
    /// The hop that is being sent, and how many of its values have been sent.
    hop: usize,
    sent: usize,
    /// A segment is queued for the rank's thread: at most one at a time.
    sending: bool,
    /// Values merged before the first of those that this hop passes on.
    before: usize,
    merged: usize,
    expected: usize,
    /// Messages that arrived before the bucket was begun here.
    parked: Vec<Message>,
}

struct Rank {
    /// The current task of its thread, and the CPU time that this task still takes.
    task: Option<Task>,
    task_left: f64,
    /// Messages to send and messages received: the thread alternates between them.
    sends: VecDeque<Message>,
    receives: VecDeque<Message>,
    /// Buckets still to be computed, each with the compute since the previous one.
    due: VecDeque<(usize, f64)>,
    /// Compute until the first of them.
    compute_left: f64,
    /// Handed to the ring and not begun.
    waiting: VecDeque<usize>,
    in_flight: usize,
    flights: Vec<Flight>,
    /// When the machine's link is free again.
    link_free: f64,
    computed: f64,
    /// When its last bucket was summed, and its last matrix was whole.
    summed: f64,
    gathered: f64,
}

impl Rank {
    fn new(rank: usize, world: usize, one_for_all: bool, work: &Work, due: &[(usize, f64)], factor: f64) -> Self {
        let flight = |hops: Vec<Hop>, chunks: Vec<usize>, encoding: Encoding| {
            let expected = hops.iter().map(|h| chunks[h.recv_chunk]).sum();
            Flight { hops, chunks, width: encoding.width(), expected, ..Flight::default() }
        };
        let bucket = |bucket: usize| {
            let length = work.layout.range(bucket).len();
            // Where one machine stands for all, all chunks must have the same length.
            let length = if one_for_all { length.next_multiple_of(world) } else { length };
            let chunks = (0..world).map(|index| schedule::chunk(length, world, index).len()).collect();
            let statistics = bucket == work.layout.statistics();
            flight(schedule::hops(rank, world), chunks, if statistics { Encoding::F32 } else { work.encoding })
        };
        let matrix = |m: &Gathered| flight(schedule::gather_hops(rank, world), vec![m.values_each; world], m.encoding);
        let flights = (0..=work.layout.statistics()).map(bucket).chain(work.gathered.iter().map(matrix));
        let flights: Vec<Flight> = flights.collect();
        let mut before = 0.0;
        let due: VecDeque<(usize, f64)> =
            due.iter().map(|&(bucket, at)| (bucket, (at - std::mem::replace(&mut before, at)) * factor)).collect();
        Self {
            task: None,
            task_left: 0.0,
            sends: VecDeque::new(),
            receives: VecDeque::new(),
            compute_left: due.front().map_or(0.0, |d| d.1),
            due,
            waiting: VecDeque::new(),
            in_flight: 0,
            flights,
            link_free: 0.0,
            computed: 0.0,
            summed: 0.0,
            gathered: 0.0,
        }
    }
}

struct Machine<'a> {
    world: usize,
    work: &'a Work,
    costs: Seconds,
    cores: f64,
    compute_cores: f64,
    on_send: &'a mut dyn FnMut(Sent),
    now: f64,
    ranks: Vec<Rank>,
    arrivals: BinaryHeap<Arrival>,
    serial: u64,
}

impl Machine<'_> {
    fn run(&mut self) {
        while let Some(elapsed) = self.advance() {
            self.now += elapsed;
            while self.arrivals.peek().is_some_and(|a| a.at <= self.now + DONE) {
                if let Some(arrival) = self.arrivals.pop() {
                    self.arrive(arrival.rank, arrival.message);
                }
            }
            for rank in 0..self.ranks.len() {
                if self.ranks[rank].task.is_some() && self.ranks[rank].task_left <= DONE {
                    self.finish_task(rank);
                }
                while !self.ranks[rank].due.is_empty() && self.ranks[rank].compute_left <= DONE {
                    self.hand_in(rank);
                }
            }
        }
    }

    /// Advances time to the next event and returns by how much; none if there is no
    /// further event. Computing workers get an even share of the cores. The ring's
    /// threads would get it too if the scheduler moved them all the time; if it never
    /// moved them, all would run at the pace of the core with the most threads.
    /// Measurements lie halfway between.
    fn advance(&mut self) -> Option<f64> {
        let moving = self.ranks.iter().filter(|r| r.task.is_some()).count() as f64;
        let computing = self.ranks.iter().filter(|r| !r.due.is_empty()).count() as f64;
        // How many times longer than on a dedicated core.
        let even = ((moving + computing * self.compute_cores) / self.cores).max(1.0);
        let unmoved = (moving / self.cores.ceil()).ceil();
        let speed = 2.0 / (even + unmoved.max(even));
        let compute_speed = if self.compute_cores > 0.0 { 1.0 / even } else { 1.0 };
        let mut next = self.arrivals.peek().map_or(f64::INFINITY, |a| a.at - self.now);
        for rank in &self.ranks {
            if rank.task.is_some() {
                next = next.min(rank.task_left / speed);
            }
            if !rank.due.is_empty() {
                next = next.min(rank.compute_left / compute_speed);
            }
        }
        if next == f64::INFINITY {
            return None;
        }
        let next = next.max(0.0);
        for rank in &mut self.ranks {
            rank.task_left -= next * speed;
            rank.compute_left -= next * compute_speed;
        }
        Some(next)
    }

    /// The next bucket is computed.
    fn hand_in(&mut self, rank: usize) {
        let r = &mut self.ranks[rank];
        let Some((bucket, _)) = r.due.pop_front() else { return };
        r.waiting.push_back(bucket);
        match r.due.front() {
            Some(next) => r.compute_left = next.1,
            None => r.computed = self.now,
        }
        self.begin(rank);
    }

    /// Begins waiting buckets for as long as there is room.
    fn begin(&mut self, rank: usize) {
        while self.ranks[rank].in_flight < self.work.in_flight {
            let r = &mut self.ranks[rank];
            let Some(bucket) = r.waiting.pop_front() else { return };
            r.in_flight += 1;
            r.flights[bucket].begun = true;
            for message in std::mem::take(&mut r.flights[bucket].parked) {
                self.enqueue(rank, Task::Receive(message));
            }
            self.go_on(rank, bucket);
        }
    }

    /// Queues the next segment of a bucket if it may be sent. Returns true, and ends
    /// the bucket, if all is sent and merged.
    fn go_on(&mut self, rank: usize, bucket: usize) -> bool {
        let flight = &mut self.ranks[rank].flights[bucket];
        if flight.sending {
            return false;
        }
        while let Some(hop) = flight.hops.get(flight.hop) {
            let chunk = flight.chunks[hop.send_chunk];
            if flight.sent < chunk {
                let values = SEGMENT.min(chunk - flight.sent);
                // A hop passes on what the previous hop received; the first hop sends
                // the rank's own values.
                if flight.hop > 0 && flight.merged < flight.before + flight.sent + values {
                    return false;
                }
                flight.sent += values;
                flight.sending = true;
                let hop = flight.hop;
                (self.on_send)(Sent { rank, bucket, hop, values });
                self.enqueue(rank, Task::Send(Message { bucket, values }));
                return false;
            }
            if flight.hop > 0 {
                flight.before += chunk;
            }
            (flight.hop, flight.sent) = (flight.hop + 1, 0);
        }
        if flight.merged < flight.expected {
            return false;
        }
        let r = &mut self.ranks[rank];
        r.in_flight -= 1;
        let done = if bucket > self.work.layout.statistics() { &mut r.gathered } else { &mut r.summed };
        *done = self.now;
        true
    }

    fn width(&self, bucket: usize) -> usize {
        self.ranks[0].flights[bucket].width
    }

    /// CPU time of a task.
    fn price(&self, task: Task) -> f64 {
        let (Task::Send(message) | Task::Receive(message)) = task;
        let per_byte = match task {
            Task::Send(_) => self.costs.send_per_byte,
            Task::Receive(_) => self.costs.receive_per_byte,
        };
        let bytes = message.values * self.width(message.bucket);
        bytes as f64 * per_byte + message.values as f64 * self.costs.per_value + self.costs.message
    }

    fn enqueue(&mut self, rank: usize, task: Task) {
        match task {
            Task::Send(message) => self.ranks[rank].sends.push_back(message),
            Task::Receive(message) => self.ranks[rank].receives.push_back(message),
        }
        if self.ranks[rank].task.is_none() {
            self.take_up(rank, None);
        }
    }

    /// Takes up the next task: of the other kind than the last, if there is one.
    fn take_up(&mut self, rank: usize, last: Option<Task>) {
        let Rank { sends, receives, .. } = &mut self.ranks[rank];
        let next = match last {
            Some(Task::Send(_)) => receives.pop_front().map(Task::Receive).or_else(|| sends.pop_front().map(Task::Send)),
            _ => sends.pop_front().map(Task::Send).or_else(|| receives.pop_front().map(Task::Receive)),
        };
        self.ranks[rank].task_left = next.map_or(0.0, |task| self.price(task));
        self.ranks[rank].task = next;
    }

    fn finish_task(&mut self, rank: usize) {
        let Some(task) = self.ranks[rank].task else { return };
        self.take_up(rank, Some(task));
        let (Task::Send(message) | Task::Receive(message)) = task;
        match task {
            Task::Send(_) => {
                self.post(rank, message);
                self.ranks[rank].flights[message.bucket].sending = false;
            }
            Task::Receive(_) => self.ranks[rank].flights[message.bucket].merged += message.values,
        }
        if self.go_on(rank, message.bucket) {
            self.begin(rank);
        }
    }

    /// Sends a message to the next rank: of this machine, or of the next machine, for
    /// which this one stands.
    fn post(&mut self, rank: usize, message: Message) {
        let bytes = (message.values * self.width(message.bucket)) as f64;
        let abroad = rank + 1 == self.ranks.len() && self.ranks.len() < self.world;
        let at = if abroad {
            let r = &mut self.ranks[rank];
            r.link_free = r.link_free.max(self.now) + bytes * self.costs.link_per_byte;
            r.link_free + self.costs.latency
        } else {
            self.now + self.costs.local_latency
        };
        self.serial += 1;
        let to = schedule::successor(rank, self.ranks.len());
        self.arrivals.push(Arrival { at, serial: self.serial, rank: to, message });
    }

    fn arrive(&mut self, rank: usize, message: Message) {
        let flight = &mut self.ranks[rank].flights[message.bucket];
        if flight.begun {
            self.enqueue(rank, Task::Receive(message));
        } else {
            flight.parked.push(message);
        }
    }
}
