//! Forms the next generation: decides its members, the step from which it starts, and
//! the donor of the state.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::run_dir::Dense;
use common::timing::forming_timeout;
use common::wire::messages::{Generation, StateSource};

use super::events::{Output, WorkerId};
use super::pairs::Pairs;
use super::paths::Path;
use super::state::{Membership, Phase, State, Worker};

impl Membership {
    /// Lets workers go that want to leave and are in no ring, except `holder`, which
    /// is to hand over its state first.
    pub(super) fn dismiss(&mut self, holder: Option<WorkerId>) -> Vec<Output> {
        // A worker that came back has not reported yet which state it holds.
        let unheard = |id: &WorkerId, w: &Worker| self.is_awaited(*id) || (w.phase == Phase::Joining && self.absent.contains_key(&w.name));
        let free = |id: &WorkerId, w: &Worker| w.leaving && w.phase != Phase::Member && !unheard(id, w) && holder != Some(*id);
        let going: Vec<WorkerId> = self.workers.iter().filter(|(id, w)| free(id, w)).map(|(&id, _)| id).collect();
        for id in &going {
            if let Some(gone) = self.workers.remove(id) {
                self.absent.remove(&gone.name);
            }
        }
        going.into_iter().map(|worker| Output::Goodbye { worker }).collect()
    }

    /// The workers that are in no ring and hold the run's state, each with the step
    /// of that state.
    fn holders(&self) -> impl Iterator<Item = (WorkerId, &Worker, u64)> {
        self.workers.iter().filter(|(_, w)| w.is_ready()).filter_map(|(&id, w)| Some((id, w, w.holds()?)))
    }

    /// Whether this worker could take over the state from one that leaves, now or soon.
    pub(super) fn may_inherit(&self, w: &Worker) -> bool {
        !w.leaving && !self.paths.excludes(&w.name, self.listening.now())
    }

    /// A worker that wants to leave and holds the newest step, while no worker that
    /// stays holds it. `None` if there is no such worker, or if no worker here holds
    /// any step.
    fn last_holder(&self) -> Option<(WorkerId, u64)> {
        let newest = self.holders().map(|(_, _, step)| step).max().filter(|&step| step > 0)?;
        if self.holders().any(|(_, w, step)| !w.leaving && step == newest) {
            return None;
        }
        self.holders().find(|(_, w, step)| w.leaving && *step == newest).map(|(id, _, step)| (id, step))
    }

    /// Keeps the last holder of the newest step from leaving until other workers have
    /// taken over its state in one more generation, or else until a checkpoint of it
    /// is stored. Returns that holder, and the outputs.
    fn keep_last_holder(&mut self, needed: u32) -> (Option<WorkerId>, Vec<Output>) {
        let Some((holder, step)) = self.last_holder() else { return (None, Vec::new()) };
        let heirs = self.workers.values().filter(|w| w.is_ready() && self.may_inherit(w)).count();
        if heirs > 0 && heirs + 1 >= needed as usize {
            return (Some(holder), Vec::new());
        }
        if step <= self.stored {
            return (None, Vec::new());
        }
        (Some(holder), self.store(holder))
    }

    /// Has a worker store the state that it holds, once.
    fn store(&mut self, holder: WorkerId) -> Vec<Output> {
        let asks = self.storing.replace(holder) != Some(holder);
        if asks { vec![Output::Store { worker: holder }] } else { Vec::new() }
    }

    pub(super) fn tell_spares(&mut self) -> Vec<Output> {
        let spares = self.workers.iter_mut().filter(|(_, w)| w.is_ready() && !w.spare_notified);
        spares
            .map(|(&worker, w)| {
                w.spare_notified = true;
                Output::Spare { worker }
            })
            .collect()
    }

    /// The workers that a generation may be formed of: the members of the previous
    /// one, and proven newcomers. Other workers are included only if the former
    /// members are too few. A worker that is left out for long is tried sooner if the run
    /// stands still without it.
    fn candidates(&self, needed: u32) -> Vec<(WorkerId, Option<u64>)> {
        let at = self.listening.now();
        let ready = || self.workers.iter().filter(|(_, w)| w.is_ready());
        let enough = ready().filter(|(_, w)| !self.paths.excludes(&w.name, at)).count() >= needed as usize;
        let excludes = move |w: &Worker| if enough { self.paths.excludes(&w.name, at) } else { self.paths.excludes_from_any(&w.name, at) };
        let able = || ready().filter(move |(_, w)| !excludes(w));
        let former: BTreeSet<&String> = self.lineage.newest().iter().collect();
        let known = |w: &Worker| former.contains(&w.name) || w.spare_notified || matches!(w.path, Path::Proven { .. });
        let ring = able().filter(|(_, w)| former.contains(&w.name)).count() >= needed as usize;
        // A member holds at most one step more than the others that were in the ring
        // with it. Of these others only those that are not fresh count. One that is fresh
        // is not believed that it alone completed a step: the step is computed again.
        let most = |of: &Worker| {
            let others = able().filter(|(_, w)| former.contains(&w.name) && !w.fresh && w.name != of.name);
            let steps = others.filter_map(|(_, w)| w.holds()).filter(|&step| step >= self.first_step());
            steps.max().map_or(u64::MAX, |step| step.saturating_add(u64::from(!of.fresh)))
        };
        let holds = |w: &Worker| w.holds().filter(|&step| step <= most(w));
        able().filter(|(_, w)| !ring || known(w)).map(|(&id, w)| (id, holds(w))).collect()
    }

    /// Returns `Some` while the run waits for former members that may hold a newer
    /// step than any ready worker. No rank is more than one step ahead of another, so
    /// a ready member of the last ring shows the newest step to within one; without
    /// such a member it is unknown.
    fn awaits(&mut self, ready: &[(WorkerId, Option<u64>)], best: u64) -> Option<Vec<Output>> {
        let at = self.listening.now();
        self.absent.retain(|_, until| *until > at);
        let last = |(id, step): &(WorkerId, Option<u64>)| {
            self.workers.get(id).is_some_and(|w| self.lineage.newest().contains(&w.name)) && *step >= Some(self.first_step())
        };
        let known = self.lineage.newest().is_empty() || ready.iter().any(last);
        // One step more than the others have is the step in flight, and no loss.
        if (known && best + 1 >= self.newest) || self.absent.is_empty() {
            self.announced_awaiting = false;
            return None;
        }
        let names = self.absent.keys().cloned().collect();
        let announced = std::mem::replace(&mut self.announced_awaiting, true);
        let at_most = self.absent.values().max().map_or(Duration::ZERO, |until| *until - at);
        Some(if announced { Vec::new() } else { vec![Output::Awaiting { step: self.newest, names, at_most }] })
    }

    /// Which checkpoint is kept when the run is stopped at once, in words.
    pub fn kept(&self) -> String {
        match self.stored {
            0 => "there is no checkpoint yet".to_owned(),
            step => format!("the checkpoint of step {step} is kept"),
        }
    }

    /// The run was asked to stop, and there is nothing more to store.
    fn stopped_waiting(&mut self) -> Vec<Output> {
        let kept = self.kept();
        let lost =
            if self.newest > self.stored.max(1) { format!(", and nobody who holds step {} is here", self.newest) } else { String::new() };
        self.fail(format!("stopped while it waited for workers; {kept}{lost}"))
    }

    /// Starts the next generation if there are enough workers for one.
    pub(super) fn form(&mut self) -> Vec<Output> {
        // When all workers leave a run under way, it ends as if it was asked to stop:
        // with one more generation, which leaves a checkpoint.
        let under_way = |w: &Worker| w.is_ready() && w.holds().is_some_and(|step| self.begun || step > self.stored);
        let all_leave = self.workers.values().any(under_way) && self.workers.values().all(|w| w.leaving);
        self.stopping |= all_leave && self.absent.is_empty();
        let needed = if self.begun { self.rules.min_workers } else { self.rules.start_workers };
        let mut outputs = Vec::new();
        if !self.stopping {
            let (holder, asks) = self.keep_last_holder(needed);
            outputs.extend(self.dismiss(holder));
            outputs.extend(asks);
        }
        let ended = matches!(self.state, State::Ending { .. });
        self.state = State::Waiting;
        let ready = self.candidates(needed);
        let held = ready.iter().filter_map(|(_, step)| *step).max().unwrap_or(0);
        self.newest = self.newest.max(held);
        if ended {
            self.empty_generations.ended(self.newest > self.first_step(), self.listening.now());
        }
        let best = held.max(self.stored);
        let count = ready.len() as u32;
        // A worker that holds an unstored step stores it before the run stops,
        // however few workers there are.
        let last = self.stopping && held > self.stored;
        if count < needed && !last {
            if self.stopping {
                outputs.extend(self.stopped_waiting());
            } else if count > 0 && self.told_waiting.replace(count) != Some(count) {
                outputs.push(Output::Waiting { ready: count, needed });
            }
            return outputs;
        }
        if let Some(waits) = self.awaits(&ready, best) {
            // A run that stops must not go on from an older state either: the state
            // held here is stored.
            match ready.iter().find(|(_, step)| *step == Some(held)) {
                Some((holder, _)) if last => outputs.extend(self.store(*holder)),
                _ if self.stopping => outputs.extend(self.stopped_waiting()),
                _ => outputs.extend(waits),
            }
            return outputs;
        }
        if self.empty_generations.pauses(self.listening.now()) {
            return outputs;
        }
        // A run that stops forms its last generation as it can.
        let chosen = self.choose(ready, best);
        let ids: Vec<WorkerId> = chosen.iter().map(|(id, _)| *id).collect();
        let holds = |id: WorkerId| chosen.iter().any(|(other, step)| *other == id && *step == Some(best));
        if !self.stopping
            && let Some(probing) = self.probe_pairs(&ids, holds)
        {
            outputs.extend(probing);
            return outputs;
        }
        if best + 1 < self.newest {
            outputs.push(Output::WentBack { from: self.newest, to: best });
        }
        outputs.extend(self.start(chosen, best));
        outputs
    }

    /// Those of the `ready` workers that are members of a generation at `first_step`, by rank.
    fn choose(&self, ready: Vec<(WorkerId, Option<u64>)>, first_step: u64) -> Vec<(WorkerId, Option<u64>)> {
        let mut chosen = ready;
        let place = |id: &WorkerId| (self.workers.get(id).and_then(|w| w.preferred_rank).unwrap_or(u32::MAX), *id);
        // Workers that hold the state come first, then those that have waited longest.
        chosen.sort_by_key(|(id, step)| (*step != Some(first_step), *id));
        chosen.truncate(self.rules.shards as usize);
        chosen.sort_by_key(|(id, _)| place(id));
        chosen
    }

    /// Starts a generation of these workers, by rank, at `first_step`.
    fn start(&mut self, chosen: Vec<(WorkerId, Option<u64>)>, first_step: u64) -> Vec<Output> {
        let at = self.listening.now();
        self.told_waiting = None;
        self.pairs = Pairs::default();
        let former: BTreeSet<String> = self.lineage.newest().iter().cloned().collect();
        let holds = |step: &Option<u64>| *step == Some(first_step);
        let holders: Vec<u32> = (0..).zip(&chosen).filter(|(_, (_, step))| holds(step)).map(|(rank, _)| rank).collect();
        // A donor that did not give the state is not asked again as long as others hold it.
        let donor = holders.get(self.failed_donors as usize % holders.len().max(1));
        let state = match donor {
            _ if holders.len() == chosen.len() => StateSource::Everywhere,
            Some(&rank) => StateSource::Donor { rank },
            None => StateSource::Checkpoint,
        };
        let form_within = self.form_within(&chosen, &holders, state);
        let members: Vec<WorkerId> = chosen.into_iter().map(|(id, _)| id).collect();
        let dense = self.dense_of(&members);
        let (speeds, ownership) = self.share_out(&members);
        let joins_a_ring = self.begun;
        self.generation += 1;
        (self.begun, self.generation_began) = (true, at);
        let generation = Generation {
            number: self.generation,
            rank: 0,
            members: members.iter().filter_map(|id| self.workers.get(id)).map(Worker::as_member).collect(),
            shards: ownership.counts().to_vec(),
            first_step,
            state,
            holders,
            form_ms: form_within.as_millis() as u64,
            recorded: 0,
            evaluated: 0,
            stored: self.stored,
            products: if let Some(Dense::Factors(products)) = dense { Some(products) } else { None },
        };
        for id in &members {
            if let Some(w) = self.workers.get_mut(id) {
                (w.phase, w.spare_notified, w.waiting, w.since, w.step) = (Phase::Member, false, None, at, first_step);
                if !former.contains(&w.name) {
                    w.fresh = joins_a_ring;
                }
                w.path = Path::Unknown;
                self.paths.includes(&w.name, at);
            }
        }
        self.initial_holders =
            (0..).zip(&generation.members).filter(|(rank, _)| generation.holders.contains(rank)).map(|(_, m)| m.name.clone()).collect();
        self.newest = first_step;
        self.reported_fatal.clear();
        self.relayed.clear();
        self.lineage.begin(self.generation, first_step, &generation.members);
        self.pace.starts(first_step, at);
        self.balancing.starts(ownership, first_step, at, &self.rules);
        self.state = State::Running { members: members.clone(), reports: BTreeMap::new(), yielding: false };
        let mut outputs = vec![Output::Start { members: members.clone(), generation, speeds, dense }];
        if self.stopping {
            outputs.push(Output::Stop { members });
        }
        // Those that wait while others decided.
        outputs.extend(self.refuse_unlike());
        outputs.extend(self.settle());
        outputs
    }

    /// How long the members may take to form their ring. If the former members could
    /// train without the newcomers, each newcomer must have its state within the time
    /// foreseen. If the whole run waits for the state anyway, the transfer may take
    /// as long as a stall.
    fn form_within(&self, chosen: &[(WorkerId, Option<u64>)], holders: &[u32], state: StateSource) -> Duration {
        let least = forming_timeout(self.rules.timeout, !self.begun);
        let former = chosen.iter().filter_map(|(id, _)| self.workers.get(id)).filter(|w| self.lineage.newest().contains(&w.name)).count();
        let moves = holders.len() < chosen.len();
        if moves && (state == StateSource::Checkpoint || former < self.rules.min_workers as usize) {
            return least + self.rules.stall;
        }
        let measured = |id: &WorkerId| self.workers.get(id).and_then(|w| w.handover).map(|handover| handover * 3);
        let foreseen = |id: &WorkerId| measured(id).unwrap_or(self.rules.handover);
        let receivers = (0u32..).zip(chosen).filter(|(rank, _)| !holders.contains(rank));
        least + receivers.map(|(_, (id, _))| foreseen(id)).max().unwrap_or_default()
    }

    /// The first step of the newest generation.
    pub(super) fn first_step(&self) -> u64 {
        self.lineage.newest_first_step().unwrap_or(self.rules.first_step)
    }
}
