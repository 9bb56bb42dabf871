//! How the next generation comes about: who is in it, from which step it
//! starts, and who gives the state to whom.

use std::collections::BTreeMap;

use common::wire::messages::{Generation, Member, StateSource};

use super::{Membership, Output, Phase, State, Worker, WorkerId};

impl Membership {
    /// Lets those go that want to and are in no ring, but for one that is to
    /// hand over its state first.
    pub(super) fn dismiss(&mut self, holder: Option<WorkerId>) -> Vec<Output> {
        let free = |id: WorkerId, w: &Worker| w.leaving && w.phase != Phase::Member && holder != Some(id);
        let going: Vec<WorkerId> = self.workers.iter().filter(|(id, w)| free(**id, w)).map(|(&id, _)| id).collect();
        going.iter().for_each(|id| _ = self.workers.remove(id));
        going.into_iter().map(|worker| Output::Goodbye { worker }).collect()
    }

    /// A worker that wants to go and alone holds the newest step, while others
    /// are there that could take it over in one more generation.
    fn last_holder(&self) -> Option<WorkerId> {
        let ready = || self.workers.iter().filter_map(|(&id, w)| if let Phase::Ready(step) = w.phase { Some((id, w, step)) } else { None });
        let newest = ready().map(|(_, _, step)| step).max()?;
        let staying = || ready().filter(|(_, w, _)| !w.leaving);
        let holders = staying().any(|(_, _, step)| step == newest);
        let enough = staying().count() + 1 >= self.rules.min_workers as usize;
        if holders || staying().next().is_none() || !enough {
            return None;
        }
        ready().find(|(_, w, step)| w.leaving && *step == newest).map(|(id, _, _)| id)
    }

    pub(super) fn tell_spares(&mut self) -> Vec<Output> {
        let spares = self.workers.iter_mut().filter(|(_, w)| matches!(w.phase, Phase::Ready(_)) && !w.told_spare);
        spares
            .map(|(&worker, w)| {
                w.told_spare = true;
                Output::Spare { worker }
            })
            .collect()
    }

    /// Starts the next generation if there are enough workers for one.
    pub(super) fn form(&mut self) -> Vec<Output> {
        // When everybody leaves a run under way, it ends as if it was asked to
        // stop: one more generation, which leaves a checkpoint.
        let under_way = |w: &Worker| matches!(w.phase, Phase::Ready(step) if self.begun || step > self.stored);
        self.stopping |= self.workers.values().any(under_way) && self.workers.values().all(|w| w.leaving);
        let mut outputs = if self.stopping { Vec::new() } else { self.dismiss(self.last_holder()) };
        let ready: Vec<(WorkerId, u64)> =
            self.workers.iter().filter_map(|(&id, w)| if let Phase::Ready(step) = w.phase { Some((id, step)) } else { None }).collect();
        self.state = State::Waiting;
        let needed = if self.begun { self.rules.min_workers } else { self.rules.start_workers };
        let count = ready.len() as u32;
        if count < needed {
            if self.stopping {
                outputs.extend(self.fail("stopped while it waited for workers; the newest checkpoint is kept".to_owned()));
            } else if count > 0 && self.told_waiting.replace(count) != Some(count) {
                outputs.push(Output::Waiting { ready: count, needed });
            }
            return outputs;
        }
        self.told_waiting = None;
        // The newest committed step that anybody holds, else the newest checkpoint.
        let held = ready.iter().map(|(_, step)| *step).max().unwrap_or(0);
        let first_step = held.max(self.stored);
        let mut chosen = ready;
        let place = |id: &WorkerId| (self.workers.get(id).and_then(|w| w.preferred_rank).unwrap_or(u32::MAX), *id);
        // Who holds the state, and of others who has waited longest.
        chosen.sort_by_key(|(id, step)| (*step != first_step, *id));
        chosen.truncate(self.rules.shards as usize);
        chosen.sort_by_key(|(id, _)| place(id));
        let state = match chosen.iter().position(|(_, step)| *step == first_step) {
            _ if chosen.iter().all(|(_, step)| *step == first_step) => StateSource::Everywhere,
            Some(rank) => StateSource::Donor { rank: rank as u32 },
            None => StateSource::Checkpoint,
        };
        let members: Vec<WorkerId> = chosen.into_iter().map(|(id, _)| id).collect();
        let as_member = |w: &Worker| Member { name: w.name.clone(), addr: w.addr.clone() };
        self.generation += 1;
        self.begun = true;
        let generation = Generation {
            number: self.generation,
            rank: 0,
            members: members.iter().filter_map(|id| self.workers.get(id)).map(as_member).collect(),
            first_step,
            state,
            recorded: 0,
            evaluated: 0,
            stored: self.stored,
        };
        for id in &members {
            if let Some(w) = self.workers.get_mut(id) {
                (w.phase, w.told_spare, w.waiting) = (Phase::Member, false, None);
            }
        }
        self.state = State::Running { members: members.clone(), reports: BTreeMap::new(), yielding: false };
        outputs.push(Output::Start { members: members.clone(), generation });
        if self.stopping {
            outputs.push(Output::Stop { members });
        }
        outputs.extend(self.settle());
        outputs
    }
}
