//! Several devices of one machine as one engine. Each has a thread and an engine of its
//! own, and all hold the same weights. A batch is split among them. Each owns a part of
//! the flat vectors, of which it alone has the optimizer's state: it sums the gradients of
//! all devices there, always in the same order, updates the weights, and gives them to the
//! others.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::config::TrainConfig;
use common::dense::Factored;
use common::digest::Digest;
use common::ring::Span;
use crossbeam_channel::{Sender, bounded};
use tch::{Kind, Tensor, no_grad};

use super::super::{Delivery, Engine, EngineError, EngineSetup, Gradient, Images, NamedVector, PartSink, Phases, Piece, Sums, TrainBatch};
use super::network::Times;
use super::products::Products;
use super::resident::{Complete, ResidentEngine};
use super::{loss, span, update};
use crate::optim::rule::{Pairs, ratios, scales};
use crate::optim::{NotFinite, Threads, Update, UpdateReport, larger};

pub(crate) struct GroupEngine {
    engines: Vec<Mutex<ResidentEngine>>,
    /// Its thread number i works for engine number i.
    pool: rayon::ThreadPool,
    threads: Threads,
    train: TrainConfig,
}

/// What a device's thread hands to the thread that has the sink.
enum Message {
    /// The device's gradient is final in this range.
    Complete { device: usize, range: Range<usize>, gradient: Tensor },
    /// Values of the gradient of one part, in host memory.
    Part { number: usize, offset: usize, values: Tensor },
    /// Inputs and slopes of a factored layer, of the device's samples of one part, in host
    /// memory.
    Factors { number: usize, device: usize, layer: usize, factors: [Tensor; 2] },
}

impl GroupEngine {
    /// An engine on each of these CUDA devices, or on the CPU.
    pub(crate) fn new(setup: &EngineSetup<'_>, devices: &[Option<usize>]) -> Result<Self, EngineError> {
        let engine = |(number, &cuda): (usize, &Option<usize>)| {
            let owned = chunk(&(0..setup.trained), number, devices.len());
            ResidentEngine::sharing(setup.clone(), cuda, owned).map(Mutex::new)
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(devices.len()).thread_name(|n| format!("device {n}"));
        Ok(Self {
            engines: devices.iter().enumerate().map(engine).collect::<Result<_, _>>()?,
            pool: pool.build()?,
            threads: Threads::new(setup.threads)?,
            train: setup.train.clone(),
        })
    }

    fn engine(&self, number: usize) -> MutexGuard<'_, ResidentEngine> {
        // Only its thread, or the thread that waits for all of them, locks it.
        self.engines[number].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has every thread work with its engine. The results are in the order of the devices.
    fn each<T: Send>(&self, work: impl Fn(usize, &mut ResidentEngine) -> Result<T, EngineError> + Sync) -> Result<Vec<T>, EngineError> {
        self.pool.broadcast(|thread| work(thread.index(), &mut self.engine(thread.index()))).into_iter().collect()
    }

    /// As `each`, and meanwhile gives what the threads send to `receive`, on this thread.
    fn each_with<T: Send>(
        &self,
        work: impl Fn(usize, &mut ResidentEngine, &Sender<Message>) -> Result<T, EngineError> + Sync,
        mut receive: impl FnMut(Message) -> Result<(), EngineError>,
    ) -> Result<Vec<T>, EngineError> {
        // A thread that is ahead waits, so that few gradients lie in memory.
        let (send, messages) = bounded(self.engines.len());
        let results: Vec<Mutex<Option<Result<T, EngineError>>>> = self.engines.iter().map(|_| Mutex::new(None)).collect();
        let mut received = Ok(());
        self.pool.in_place_scope(|scope| {
            let (work, results) = (&work, &results);
            scope.spawn_broadcast(move |_, thread| {
                let number = thread.index();
                let result = work(number, &mut self.engine(number), &send);
                *results[number].lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
            });
            // This ends when all threads have dropped their sender.
            for message in messages {
                if received.is_ok() {
                    received = receive(message);
                }
            }
        });
        let results = results.into_iter().map(|result| result.into_inner().unwrap_or_else(PoisonError::into_inner));
        let results = results.map(|result| result.unwrap_or(Err(EngineError::Broken))).collect::<Result<_, _>>()?;
        received.map(|()| results)
    }

    /// Each part by one device; the spans go to the sink as they come.
    fn parts_by_themselves(&self, parts: &[TrainBatch<'_>], sink: PartSink<'_>) -> Result<Vec<(Sums, Phases)>, EngineError> {
        let compute = |device: usize, engine: &mut ResidentEngine, send: &Sender<Message>| {
            let (mut all, mut time) = Default::default();
            let following = |number: usize| parts.get(number + self.engines.len());
            for (number, part) in parts.iter().enumerate().skip(device).step_by(self.engines.len()) {
                let (statistics, times) = engine.accumulate(part, following(number), (Delivery::Each, true), &mut |_, complete| {
                    let (gradient, range) = match complete {
                        Complete::Range(gradient, range) => (gradient, range),
                        Complete::Factors(layer, inputs, slopes) => {
                            let factors = on_host([inputs, slopes])?;
                            let _ = send.send(Message::Factors { number, device, layer, factors });
                            return Ok(());
                        }
                    };
                    let own = gradient.f_narrow(0, range.start as i64, range.len() as i64)?;
                    // A copy also on the CPU: the next part overwrites it.
                    let values = own.f_to_device_(tch::Device::Cpu, own.kind(), false, true)?;
                    // Nobody waits any more if the other side has failed.
                    let _ = send.send(Message::Part { number, offset: range.start, values });
                    Ok(())
                })?;
                add(&mut all, &mut time, &statistics, part.labels.len(), &times)?;
                engine.forget()?;
            }
            Ok((all, time))
        };
        self.each_with(compute, |message| {
            match message {
                Message::Part { number, offset, values } => sink(number, Piece::Values(offset, span(&values)?)),
                Message::Factors { number, layer, factors: [inputs, slopes], .. } => {
                    sink(number, Piece::Factors { layer, inputs: span(&inputs)?, slopes: span(&slopes)? });
                }
                Message::Complete { .. } => {}
            }
            Ok(())
        })
    }

    /// Each part by all devices. Unless it is kept, the sum of their gradients goes to
    /// the sink.
    fn parts_together(
        &self,
        parts: &[TrainBatch<'_>],
        next: Option<&TrainBatch<'_>>,
        delivery: Delivery,
        sink: PartSink<'_>,
    ) -> Result<Vec<(Sums, Phases)>, EngineError> {
        let count = self.engines.len();
        let share = |part, device| share(part, device, count);
        let has_any = |device: usize| parts.iter().any(|part| share(part, device).is_some());
        let at_work = (0..count).filter(|&device| has_any(device)).count();
        let delivers = delivery != Delivery::Keep;
        let compute = |device: usize, engine: &mut ResidentEngine, send: &Sender<Message>| {
            let (mut all, mut time) = Default::default();
            let shares = parts.iter().enumerate().filter_map(|(number, part)| share(part, device).map(|batch| (number, batch)));
            let (numbers, batches): (Vec<usize>, Vec<TrainBatch<'_>>) = shares.unzip();
            let next = next.and_then(|part| share(part, device));
            for (number, batch) in batches.iter().enumerate() {
                let is_last = number + 1 == batches.len();
                let next = batches.get(number + 1).or(next.as_ref());
                let (statistics, times) = engine.accumulate(batch, next, (delivery, is_last), &mut |_, complete| {
                    match complete {
                        Complete::Factors(layer, inputs, slopes) => {
                            let (number, factors) = (numbers[number], on_host([inputs, slopes])?);
                            let _ = send.send(Message::Factors { number, device, layer, factors });
                        }
                        Complete::Range(gradient, range) if delivers && is_last => {
                            let _ = send.send(Message::Complete { device, range, gradient: gradient.shallow_clone() });
                        }
                        Complete::Range(..) => {}
                    }
                    Ok(())
                })?;
                add(&mut all, &mut time, &statistics, batch.labels.len(), &times)?;
            }
            Ok((all, time))
        };
        let mut complete: Vec<(Range<usize>, Vec<Option<Tensor>>)> = Vec::new();
        let mut factors: HashMap<(usize, usize), BTreeMap<usize, [Tensor; 2]>> = HashMap::new();
        let sharing = |number: usize| (0..count).filter(|&device| share(&parts[number], device).is_some()).count();
        let last = parts.len().saturating_sub(1);
        let results = self.each_with(compute, |message| {
            if !delivers {
                return Ok(());
            }
            let (device, range, gradient) = match message {
                Message::Complete { device, range, gradient } => (device, range, gradient),
                Message::Factors { number, device, layer, factors: new } => {
                    let of_devices = factors.entry((number, layer)).or_default();
                    of_devices.insert(device, new);
                    if of_devices.len() == sharing(number) {
                        // In the order of the samples, which is that of the devices.
                        let all = |which: usize| Tensor::f_cat(&of_devices.values().map(|new| &new[which]).collect::<Vec<_>>(), 0);
                        let (inputs, slopes) = (all(0)?, all(1)?);
                        sink(number, Piece::Factors { layer, inputs: span(&inputs)?, slopes: span(&slopes)? });
                        factors.remove(&(number, layer));
                    }
                    return Ok(());
                }
                Message::Part { .. } => return Ok(()),
            };
            let at = complete.iter().position(|(of, _)| *of == range).unwrap_or_else(|| {
                complete.push((range.clone(), (0..count).map(|_| None).collect()));
                complete.len() - 1
            });
            complete[at].1[device] = Some(gradient);
            if complete[at].1.iter().flatten().count() == at_work {
                let (range, addends) = complete.swap_remove(at);
                let addends: Vec<Tensor> = addends.into_iter().flatten().collect();
                for (number, addend) in addends.iter().enumerate() {
                    let chunk = chunk(&range, number, addends.len());
                    let host = no_grad(|| sum(&addends, &chunk, addend.device()))?.f_to_device(tch::Device::Cpu)?;
                    sink(last, Piece::Values(chunk.start, span(&host)?));
                }
            }
            Ok(())
        })?;
        if delivers {
            self.each(|_, engine| engine.forget())?;
        }
        Ok(results)
    }

    /// The sum of what the engines hold, each device's own part on that device, and its
    /// norm.
    fn summed(&self) -> Result<(Vec<Tensor>, f64), EngineError> {
        let held = self.handles(|engine| engine.held().map(Tensor::shallow_clone));
        let parts = self.each(|number, engine| {
            let held = held.of(number);
            no_grad(|| {
                let sum = sum(&held, &engine.owned(), engine.device())?;
                let norm = f64::try_from(update::norm(&sum, engine.running())?)?;
                Ok((sum, norm))
            })
        })?;
        let norm = parts.iter().map(|(_, norm)| norm.powi(2)).sum::<f64>().sqrt();
        Ok((parts.into_iter().map(|(sum, _)| sum).collect(), norm))
    }

    /// The norm of a gradient whose sums these are.
    fn norm(&self, summed: &[Span<'_>]) -> Result<f64, EngineError> {
        let first = self.engine(0);
        first.products.norm(&self.threads, summed, first.layout().running())
    }

    /// Has each device update its own part and give the new weights to the others.
    /// `gradient` returns its part of the gradient.
    fn update_parts(
        &self,
        gradient: impl Fn(usize, &mut ResidentEngine) -> Result<Tensor, EngineError> + Sync,
        norm: f64,
        update: Update,
    ) -> Result<UpdateReport, EngineError> {
        let gradients: Vec<Mutex<Tensor>> = self.each(gradient)?.into_iter().map(Mutex::new).collect();
        let gradient = |number: usize| gradients[number].lock().unwrap_or_else(PoisonError::into_inner).shallow_clone();
        let clipped = update.clip(self.train.clip_norm, norm);
        let update = Update { factor: clipped.factor, ..update };
        let ratios = self.ratios(gradient, update)?;
        self.each(|number, engine| engine.finish_update(&gradient(number), update, &ratios))?;
        self.share_weights()?;
        Ok(clipped.report)
    }

    /// By what the learning rate of each parameter is multiplied; nothing if the optimizer has
    /// one rate for all.
    fn ratios(&self, gradient: impl Fn(usize) -> Tensor + Sync, update: Update) -> Result<Vec<f64>, EngineError> {
        if !self.train.optimizer.is_layerwise() {
            return Ok(Vec::new());
        }
        let layout = self.engine(0).layout().clone();
        let of_engines = self.each(|number, engine| {
            engine.begin_update(&gradient(number), update)?;
            engine.largest(&gradient(number), update)
        })?;
        let most = added(of_engines, larger);
        let scales = scales(&layout, &most);
        let sums = added(self.each(|number, engine| engine.sums(&gradient(number), update, &scales))?, |a, b| a + b);
        Ok(ratios(&self.train, &layout, update, &sums, &scales))
    }

    /// Has each device give its own part of the weights to the others.
    fn share_weights(&self) -> Result<(), EngineError> {
        let weights = self.handles(|engine| Some(engine.computing().shallow_clone()));
        self.each(|number, engine| {
            let (all, owned) = (weights.of(number), engine.owned());
            let part = |flat: &Tensor| flat.f_narrow(0, owned.start as i64, owned.len() as i64);
            no_grad(|| {
                let new = part(&all[number])?;
                for (other, weights) in all.iter().enumerate() {
                    if other != number {
                        part(weights)?.f_copy_(&new)?;
                    }
                }
                Ok(())
            })
        })?;
        Ok(())
    }

    /// A tensor of each engine that has one, for all threads.
    fn handles(&self, of: impl Fn(&ResidentEngine) -> Option<Tensor>) -> Handles {
        let all = || (0..self.engines.len()).filter_map(|number| of(&self.engine(number))).collect();
        Handles((0..self.engines.len()).map(|_| Mutex::new(all())).collect())
    }
}

/// The same tensors for each thread: a handle can be given to one thread at a time only.
struct Handles(Vec<Mutex<Vec<Tensor>>>);

impl Handles {
    fn of(&self, thread: usize) -> MutexGuard<'_, Vec<Tensor>> {
        self.0[thread].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What several engines have found of the same parameters.
fn added<T: Copy>(of_engines: Vec<Pairs<T>>, add: impl Fn(T, T) -> T) -> Pairs<T> {
    let both = |a: Pairs<T>, b: Pairs<T>| a.into_iter().zip(b).map(|(a, b)| [add(a[0], b[0]), add(a[1], b[1])]).collect();
    of_engines.into_iter().reduce(both).unwrap_or_default()
}

/// The same values in host memory, which nothing overwrites.
fn on_host([inputs, slopes]: [Tensor; 2]) -> Result<[Tensor; 2], EngineError> {
    Ok([inputs.f_to_device(tch::Device::Cpu)?, slopes.f_to_device(tch::Device::Cpu)?])
}

/// The samples of a part that one of `count` devices computes, if there are any.
fn share<'a>(part: &TrainBatch<'a>, device: usize, count: usize) -> Option<TrainBatch<'a>> {
    let places = chunk(&(0..part.labels.len()), device, count);
    (!places.is_empty()).then(|| part.part(&places))
}

/// Chunk `number` of the `count` chunks of a range.
fn chunk(range: &Range<usize>, number: usize, count: usize) -> Range<usize> {
    let at = |number: usize| range.start + range.len() * number / count;
    at(number)..at(number + 1)
}

/// The f32 sum of a range of flat vectors, in their order, on this device.
fn sum(addends: &[Tensor], range: &Range<usize>, device: tch::Device) -> Result<Tensor, EngineError> {
    let here = |flat: &Tensor| flat.f_narrow(0, range.start as i64, range.len() as i64)?.f_to_device(device);
    let [first, rest @ ..] = addends else { return Ok(Tensor::f_zeros([range.len() as i64], (Kind::Float, device))?) };
    let Some((second, rest)) = rest.split_first() else { return Ok(here(first)?.f_to_kind(Kind::Float)?) };
    let mut sum = here(first)?.f_to_kind(Kind::Float)?.f_add(&here(second)?)?;
    for addend in rest {
        let _ = sum.f_add_(&here(addend)?)?;
    }
    Ok(sum)
}

/// Adds the statistics and the time of a part.
fn add(all: &mut Sums, time: &mut Phases, statistics: &Tensor, samples: usize, times: &Times) -> Result<(), EngineError> {
    *all += loss::read(statistics, samples)?.0;
    *time += times.phases()?;
    Ok(())
}

impl Engine for GroupEngine {
    fn gradients(
        &mut self,
        parts: &[TrainBatch<'_>],
        next: Option<&TrainBatch<'_>>,
        delivery: Delivery,
        sink: PartSink<'_>,
    ) -> Result<(Sums, Phases), EngineError> {
        let results = match delivery {
            Delivery::Each => self.parts_by_themselves(parts, sink)?,
            Delivery::Keep | Delivery::Sum | Delivery::SumInPieces => self.parts_together(parts, next, delivery, sink)?,
        };
        let (mut all, mut slowest) = (Sums::default(), Phases::default());
        for (sums, phases) in results {
            all += sums;
            slowest = slowest.max(phases);
        }
        Ok((all, slowest))
    }

    fn receive(&mut self, offset: usize, span: Span<'_>) -> Result<(), EngineError> {
        (0..self.engines.len()).try_for_each(|number| self.engine(number).receive_span(offset, span))
    }

    fn factor(&mut self, factored: &Factored) -> Result<bool, EngineError> {
        // The products lie on the first device; the other engines have handles of them.
        self.engine(0).factor(factored)?;
        let handles: Vec<Products> = (1..self.engines.len()).map(|_| self.engine(0).products.shared()).collect();
        for (number, products) in (1..).zip(handles) {
            self.engine(number).products = products;
        }
        Ok(true)
    }

    fn multiply(&mut self, layer: usize, inputs: Span<'_>, slopes: Span<'_>) -> Result<(), EngineError> {
        self.engine(0).multiply(layer, inputs, slopes)
    }

    fn product(&self, layer: usize) -> Result<Digest, EngineError> {
        self.engine(0).product(layer)
    }

    fn devices(&self) -> usize {
        self.engines.len()
    }

    fn forget(&mut self) -> Result<(), EngineError> {
        self.each(|_, engine| engine.forget()).map(drop)
    }

    fn update(&mut self, gradient: Gradient<'_>, update: Update) -> Result<UpdateReport, EngineError> {
        match gradient {
            // The same norm on every rank, whatever its devices.
            Gradient::Summed(spans) => {
                let norm = self.norm(spans)?;
                self.update_parts(|_, engine| engine.received(spans), norm, update)
            }
            Gradient::Own => {
                let (parts, norm) = self.summed()?;
                if !norm.is_finite() {
                    for (number, part) in parts.iter().enumerate() {
                        if !f64::try_from(update::norm(part, 0)?)?.is_finite() {
                            let at = self.engine(number).owned().start + update::first_not_finite(part)?.at;
                            return Err(NotFinite { at }.into());
                        }
                    }
                }
                let parts: Vec<Mutex<Tensor>> = parts.into_iter().map(Mutex::new).collect();
                let part = |number: usize| parts[number].lock().unwrap_or_else(PoisonError::into_inner).shallow_clone();
                self.update_parts(|number, _| Ok(part(number)), norm, update)
            }
        }
    }

    fn logits(&self, images: Images<'_>) -> Result<Vec<f32>, EngineError> {
        // Fewer samples at a time may have other bits.
        if self.train.reproducible {
            return self.engine(0).logits(images);
        }
        let logits = self.each(|number, engine| {
            let places = chunk(&(0..images.n), number, self.engines.len());
            if places.is_empty() { Ok(Vec::new()) } else { engine.logits(images.part(&places)) }
        })?;
        Ok(logits.concat())
    }

    fn weights(&self) -> Result<Cow<'_, [f32]>, EngineError> {
        let parts = (0..self.engines.len()).map(|number| self.engine(number).owned_weights());
        let frozen = std::iter::once_with(|| self.engine(0).frozen_weights());
        Ok(Cow::Owned(parts.chain(frozen).collect::<Result<Vec<_>, _>>()?.concat()))
    }

    fn optimizer_state(&self) -> Result<Vec<NamedVector<'_>>, EngineError> {
        let mut all: Vec<NamedVector<'_>> = self.engine(0).state_names().into_iter().map(|name| (name, Cow::Owned(Vec::new()))).collect();
        for number in 0..self.engines.len() {
            for ((_, values), part) in all.iter_mut().zip(self.engine(number).owned_state()?) {
                values.to_mut().extend(part);
            }
        }
        Ok(all)
    }

    fn swap_average(&mut self) -> Result<(), EngineError> {
        self.each(|_, engine| engine.swap_average())?;
        self.share_weights()
    }

    fn write_weights(&mut self, write: &mut dyn FnMut(&mut [f32])) -> Result<(), EngineError> {
        let mut values = self.weights()?.into_owned();
        write(&mut values);
        (0..self.engines.len()).try_for_each(|number| self.engine(number).set_weights(&values))
    }

    fn write_optimizer_state(&mut self, write: &mut dyn FnMut(usize, &mut [f32])) -> Result<(), EngineError> {
        let all: Vec<Vec<f32>> = self.optimizer_state()?.into_iter().map(|(_, values)| values.into_owned()).collect();
        for (slot, mut values) in all.into_iter().enumerate() {
            write(slot, &mut values);
            (0..self.engines.len()).try_for_each(|number| self.engine(number).set_state(slot, &values))?;
        }
        Ok(())
    }
}
