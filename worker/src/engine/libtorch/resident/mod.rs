//! The engine whose state is on the device: master weights, optimizer state and gradient
//! never leave it in a world of one. A step reads back only its statistics, once: loss,
//! accuracy and the gradient's norm.
//!
//! An update is made of the same operations in the same order as the host's
//! (`crate::optim`), each rounded by itself, so that it gives the same bits: ranks with
//! either engine may be in one ring. libtorch's fused optimizers round differently.

mod inbox;
mod leaving;
mod updating;

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;

use common::config::TrainConfig;
use common::dense::Factored;
use common::digest::Digest;
use common::ring::Span;
use tch::{Kind, Tensor, no_grad};

use super::super::{
    Delivery, Engine, EngineError, EngineSetup, Gradient, Images, Loss, NamedVector, PartSink, Phases, Piece, Sums, TrainBatch,
};
use super::network::{Asked, Feed, Finished, Network, Times, to_host};
use super::parcel::{Parcel, Unpacked};
use super::products::Products;
use super::streams::{CudaStreams, InlineStreams, Lane, Mark, Streams};
use super::{input, loss, span, update};
use crate::data::Inputs;
use crate::models::ParamLayout;
use crate::optim::{Threads, Update, UpdateReport};

use inbox::Inbox;
use leaving::LeavingFactors;

/// What is final of the gradient of a batch.
pub(super) enum Complete<'a> {
    /// This range of the flat gradient.
    Range(&'a Tensor, Range<usize>),
    /// The factors of a factored layer: its inputs and the gradient of its outputs.
    Factors(usize, Tensor, Tensor),
}

pub(super) type OnComplete<'a> = &'a mut dyn FnMut(&mut dyn Streams, Complete<'_>) -> Result<(), EngineError>;

pub(crate) struct ResidentEngine {
    network: Network,
    loss: Loss,
    train: TrainConfig,
    threads: Threads,
    /// f32 master weights, flat. In f32, the model computes with the same memory.
    master: Tensor,
    /// The bf16 weights that the model computes with, flat.
    mirror: Option<Tensor>,
    /// The part of the flat vector that this engine updates: all that is trained, unless it is
    /// one of several that share the work.
    owned: Range<usize>,
    /// The vectors of the optimizer's state, of the part that is owned.
    slots: Vec<Tensor>,
    /// Of that part, the moving average.
    average: Option<Tensor>,
    /// The gradient that waits for an update, flat, in the number format of the pass, or
    /// in f32 if it has several addends.
    kept: Tensor,
    /// Whether `kept` holds a gradient.
    holds: bool,
    /// The norm of `kept`, once it is known.
    norm: Option<f64>,
    device: tch::Device,
    streams: Box<dyn Streams>,
    /// Batches on their way: the one that is computed and the next one.
    parcels: [Parcel; 2],
    /// The parcel that was filled last.
    turn: usize,
    /// Host memory for `kept` on its way to the ring.
    outbox: Option<Tensor>,
    inbox: Inbox,
    /// Those of several engines that share the work lie on one of their devices.
    pub(super) products: Products,
}

/// Values that go to the host at a time: a fraction of a bucket of the ring, which can have
/// the first ones while the others are on their way.
const CROSSING: usize = 1 << 20;

impl ResidentEngine {
    /// An engine on the CUDA device `cuda`, else on the CPU.
    pub(crate) fn new(setup: EngineSetup<'_>, cuda: Option<usize>) -> Result<Self, EngineError> {
        let all = 0..setup.trained;
        Self::sharing(setup, cuda, all)
    }

    /// The same on the CPU, with these streams.
    #[cfg(test)]
    fn on_streams(setup: EngineSetup<'_>, streams: Box<dyn Streams>) -> Result<Self, EngineError> {
        Ok(Self { streams, ..Self::new(setup, None)? })
    }

    /// The same, of several engines that each update a part of the weights: this one `owned`.
    pub(super) fn sharing(setup: EngineSetup<'_>, cuda: Option<usize>, owned: Range<usize>) -> Result<Self, EngineError> {
        let device = cuda.map_or(tch::Device::Cpu, tch::Device::Cuda);
        let master = Tensor::f_from_slice(&setup.weights)?.f_to_device(device)?;
        let kind = super::kind_of(setup.train.precision);
        let mirror = if kind == Kind::Float { None } else { Some(master.f_to_kind(kind)?) };
        let network = Network::new(&setup, mirror.as_ref().unwrap_or(&master))?;
        let zeros = |_| Tensor::f_zeros([owned.len() as i64], (Kind::Float, device));
        let (products, inbox) = (Products::none(setup.trained), Inbox::new(owned.clone(), device));
        let mut slots = setup.train.state().iter().map(zeros).collect::<Result<Vec<_>, _>>()?;
        let average = if setup.train.ema.is_some() { slots.pop() } else { None };
        Ok(Self {
            network,
            loss: Loss::of(setup.model, setup.train),
            train: setup.train.clone(),
            threads: Threads::new(setup.threads)?,
            master,
            mirror,
            owned,
            slots,
            average,
            kept: Tensor::f_zeros([setup.trained as i64], (kind, device))?,
            holds: false,
            norm: None,
            device,
            streams: match cuda {
                Some(index) => Box::new(CudaStreams::new(index)?),
                None => Box::new(InlineStreams),
            },
            parcels: [Parcel::new(), Parcel::new()],
            turn: 0,
            outbox: None,
            inbox,
            products,
        })
    }

    pub(super) fn layout(&self) -> &ParamLayout {
        &self.network.layout
    }

    pub(super) fn device(&self) -> tch::Device {
        self.device
    }

    /// The gradient that waits for an update, flat.
    pub(super) fn held(&self) -> Option<&Tensor> {
        self.holds.then_some(&self.kept)
    }

    /// Sends a batch on its way to the device, unless it is. The copy begins after what the
    /// device had to do before the mark. Returns the number of its parcel.
    fn send(&mut self, batch: &TrainBatch<'_>, after: &Mark) -> Result<usize, EngineError> {
        if let Some(sent) = self.parcels.iter().position(|parcel| parcel.has(batch.name)) {
            return Ok(sent);
        }
        self.turn = 1 - self.turn;
        self.parcels[self.turn].send(batch, &mut *self.streams, self.device, after)?;
        Ok(self.turn)
    }

    /// Forward pass, loss and backward pass of a batch, whose gradient is added to the one
    /// that waits, in the form of this delivery, which is due or not. `complete` gets each piece as
    /// soon as it is final. Meanwhile, the `next` batch is sent on its way. Returns the
    /// [`loss::DeviceSums::sums`] of the batch.
    pub(super) fn accumulate(
        &mut self,
        batch: &TrainBatch<'_>,
        next: Option<&TrainBatch<'_>>,
        (delivery, is_due): (Delivery, bool),
        complete: OnComplete<'_>,
    ) -> Result<(Tensor, Times), EngineError> {
        // What the next batch's memory was used for before is done at this mark.
        let before = self.streams.mark()?;
        let current = self.send(batch, &before)?;
        let add = self.holds;
        if add && self.kept.kind() != Kind::Float {
            self.kept = self.kept.f_to_kind(Kind::Float)?;
        }
        (self.holds, self.norm) = (true, None);
        let kind = self.computing().kind();
        let Self { network, loss, kept, streams, parcels, products, .. } = self;
        let streams = RefCell::new(&mut **streams);
        let feed = || {
            let Unpacked { images, masks, target } = parcels[current].unpack(&mut **streams.borrow_mut(), kind)?;
            Ok(Feed { images, masks, target })
        };
        let head = |logits: &Tensor, target: loss::Target| {
            let found = loss::sums(*loss, logits, &target, batch.scale)?;
            Ok((found.slope, found.sums))
        };
        let asked = Asked::of(delivery, is_due, products);
        let done = network.gradient((batch.labels.len(), batch.share()), asked, feed, head, |finished| match finished {
            Finished::Factors(layer, inputs, slopes) => complete(&mut **streams.borrow_mut(), Complete::Factors(layer, inputs, slopes)),
            Finished::Gradients(params, grads) => {
                no_grad(|| keep(&network.layout, kept, add, &params, &grads))?;
                let ranges = neighbours(params.iter().map(|&param| network.layout.params()[param].range()));
                ranges.into_iter().rev().try_for_each(|range| complete(&mut **streams.borrow_mut(), Complete::Range(kept, range)))
            }
        })?;
        if let Some(next) = next {
            self.send(next, &before)?;
        }
        Ok(done)
    }

    /// How many values of what is owned, from the last one, are running statistics.
    pub(super) fn running(&self) -> usize {
        let layout = self.layout();
        let trained = layout.trained_total() - layout.running();
        self.owned.end.saturating_sub(trained.max(self.owned.start))
    }

    pub(super) fn owned(&self) -> Range<usize> {
        self.owned.clone()
    }

    /// The flat weights that the model computes with.
    pub(super) fn computing(&self) -> &Tensor {
        self.mirror.as_ref().unwrap_or(&self.master)
    }

    /// Sends what is owned of a span of the summed gradient to the device.
    pub(super) fn receive_span(&mut self, offset: usize, span: Span<'_>) -> Result<(), EngineError> {
        self.inbox.receive(&mut *self.streams, offset, span)
    }

    /// What is owned of the whole gradient, on the device: see [`Inbox::take`].
    pub(super) fn received(&mut self, summed: &[Span<'_>]) -> Result<Tensor, EngineError> {
        self.inbox.take(&mut *self.streams, &self.products, summed)
    }

    /// The part of the master weights that is owned.
    pub(super) fn owned_weights(&self) -> Result<Vec<f32>, EngineError> {
        to_host(&self.master.f_narrow(0, self.owned.start as i64, self.owned.len() as i64)?)
    }

    /// The master weights that are not trained.
    pub(super) fn frozen_weights(&self) -> Result<Vec<f32>, EngineError> {
        let (trained, total) = (self.kept.numel(), self.master.numel());
        to_host(&self.master.f_narrow(0, trained as i64, (total - trained) as i64)?)
    }

    /// The vectors of the optimizer's state, of the part that is owned.
    pub(super) fn owned_state(&self) -> Result<Vec<Vec<f32>>, EngineError> {
        self.slots.iter().chain(&self.average).map(to_host).collect()
    }

    /// Puts these values in the place of the flat weights.
    pub(super) fn set_weights(&mut self, values: &[f32]) -> Result<(), EngineError> {
        no_grad(|| {
            self.master.f_copy_(&Tensor::f_from_slice(values)?)?;
            if let Some(mirror) = &mut self.mirror {
                mirror.f_copy_(&self.master)?;
            }
            Ok(())
        })
    }

    /// Puts what is owned of these values in the place of one vector of the optimizer's
    /// state.
    pub(super) fn set_state(&mut self, slot: usize, values: &[f32]) -> Result<(), EngineError> {
        let vector = self.slots.iter_mut().chain(&mut self.average).nth(slot).ok_or(EngineError::Broken)?;
        Ok(vector.f_copy_(&Tensor::f_from_slice(&values[self.owned.clone()])?)?)
    }

    /// The names of the vectors of the optimizer's state.
    pub(super) fn state_names(&self) -> Vec<&'static str> {
        self.train.state()
    }
}

/// The pieces of a range, of at most so many values.
fn pieces(range: &Range<usize>, most: usize) -> impl DoubleEndedIterator<Item = Range<usize>> {
    let (start, end) = (range.start, range.end);
    (0..range.len().div_ceil(most)).map(move |number| start + number * most..(start + (number + 1) * most).min(end))
}

/// Ranges in order, those that touch as one.
fn neighbours(ranges: impl Iterator<Item = Range<usize>>) -> Vec<Range<usize>> {
    let mut merged: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => merged.push(range),
        }
    }
    merged
}

/// Adds gradients of parameters to the flat one, or puts them there.
fn keep(layout: &ParamLayout, flat: &Tensor, add: bool, params: &[usize], grads: &[Tensor]) -> Result<(), EngineError> {
    for (&param, grad) in params.iter().zip(grads) {
        let param = &layout.params()[param];
        if grad.numel() != param.range().len() {
            return Err(EngineError::NoGradient { parameter: param.name().to_owned() });
        }
        let mut place = flat.f_narrow(0, param.range().start as i64, grad.numel() as i64)?;
        let grad = grad.f_reshape([-1])?;
        if add {
            let _ = place.f_add_(&grad)?;
        } else {
            place.f_copy_(&grad)?;
        }
    }
    Ok(())
}

impl Engine for ResidentEngine {
    fn gradients(
        &mut self,
        parts: &[TrainBatch<'_>],
        next: Option<&TrainBatch<'_>>,
        delivery: Delivery,
        sink: PartSink<'_>,
    ) -> Result<(Sums, Phases), EngineError> {
        self.inbox.forget();
        let (mut all, mut time) = (Sums::default(), Phases::default());
        for (number, part) in parts.iter().enumerate() {
            let delivers = delivery.is_due(number, parts.len());
            let (mut outbox, mut leaving, mut factors) = (self.outbox.take(), VecDeque::new(), Vec::new());
            let next = parts.get(number + 1).or(next);
            let (statistics, times) = self.accumulate(part, next, (delivery, delivers), &mut |streams, complete| {
                let (kept, range) = match complete {
                    Complete::Factors(layer, inputs, slopes) => {
                        factors.push(LeavingFactors::start(streams, layer, [inputs, slopes])?);
                        return Ok(());
                    }
                    Complete::Range(..) if !delivers => return Ok(()),
                    Complete::Range(kept, range) => (kept, range),
                };
                let host = match &outbox {
                    Some(host) if host.kind() == kept.kind() => host,
                    _ => outbox.insert(streams.host_memory(kept.numel(), kept.kind())?),
                };
                let mark = streams.mark()?;
                for piece in pieces(&range, CROSSING).rev() {
                    let part = |flat: &Tensor| flat.f_narrow(0, piece.start as i64, piece.len() as i64);
                    let transfer = streams.copy(Lane::ToHost, &part(host)?, &part(kept)?, &mark)?;
                    leaving.push_back((piece, transfer));
                }
                // What has come to the host is on its way to other ranks while the device
                // computes the rest.
                while let Some((piece, transfer)) = leaving.front() {
                    if !streams.is_done(transfer)? {
                        break;
                    }
                    sink(number, Piece::Values(piece.start, span(host)?.range(piece.clone())));
                    leaving.pop_front();
                }
                Ok(())
            })?;
            for LeavingFactors { layer, host: [inputs, slopes], transfer, .. } in factors {
                self.streams.wait(&transfer)?;
                sink(number, Piece::Factors { layer, inputs: span(&inputs)?, slopes: span(&slopes)? });
            }
            for (piece, transfer) in leaving {
                self.streams.wait(&transfer)?;
                let Some(host) = &outbox else { return Err(EngineError::Broken) };
                sink(number, Piece::Values(piece.start, span(host)?.range(piece)));
            }
            self.outbox = outbox;
            // The only wait of a step that is not for the ring.
            let keeps = delivery == Delivery::Keep && number + 1 == parts.len();
            let read = if keeps {
                Tensor::f_cat(&[statistics, update::norm(&self.kept, self.layout().running())?.f_unsqueeze(0)?], 0)?
            } else {
                statistics
            };
            let (sums, rest) = loss::read(&read, part.labels.len())?;
            self.norm = rest.first().copied();
            if delivers {
                self.forget()?;
            }
            all += sums;
            time += times.phases()?;
        }
        Ok((all, time))
    }

    fn receive(&mut self, offset: usize, span: Span<'_>) -> Result<(), EngineError> {
        self.receive_span(offset, span)
    }

    fn factor(&mut self, factored: &Factored) -> Result<bool, EngineError> {
        if self.products.factored != *factored {
            self.products = Products::new(factored, &self.network.layout, self.computing().kind(), self.device)?;
        }
        Ok(true)
    }

    fn multiply(&mut self, layer: usize, inputs: Span<'_>, slopes: Span<'_>) -> Result<(), EngineError> {
        self.products.multiply(layer, inputs, slopes)
    }

    fn product(&self, layer: usize) -> Result<Digest, EngineError> {
        self.products.digest(layer)
    }

    fn forget(&mut self) -> Result<(), EngineError> {
        (self.holds, self.norm) = (false, None);
        let kind = super::kind_of(self.train.precision);
        if self.kept.kind() != kind {
            self.kept = self.kept.f_to_kind(kind)?;
        }
        Ok(())
    }

    fn update(&mut self, gradient: Gradient<'_>, update: Update) -> Result<UpdateReport, EngineError> {
        let (flat, norm) = match gradient {
            // The same norm on every rank, whatever its device.
            Gradient::Summed(spans) => (self.received(spans)?, self.products.norm(&self.threads, spans, self.layout().running())?),
            Gradient::Own if !self.holds => (self.kept.f_zeros_like()?, 0.0),
            Gradient::Own => {
                let norm = self
                    .norm
                    .map_or_else(|| Ok(f64::try_from(update::norm(&self.kept, self.layout().running())?)?), Ok::<_, EngineError>)?;
                if !norm.is_finite() {
                    return Err(update::first_not_finite(&self.kept)?.into());
                }
                (self.kept.shallow_clone(), norm)
            }
        };
        self.update_all(&flat, norm, update)
    }

    fn logits(&self, images: Images<'_>) -> Result<Vec<f32>, EngineError> {
        let kind = self.computing().kind();
        self.network.logits(images.n, || {
            let channels_last = match images.values {
                Inputs::Numbers(numbers) => input::of_numbers(images, numbers, kind, self.device)?,
                Inputs::Pictures(pictures) => input::on_device(pictures, images.input, kind, self.device)?,
            };
            Ok(channels_last.f_permute([0, 3, 1, 2])?)
        })
    }

    fn weights(&self) -> Result<Cow<'_, [f32]>, EngineError> {
        Ok(Cow::Owned([self.owned_weights()?, self.frozen_weights()?].concat()))
    }

    fn optimizer_state(&self) -> Result<Vec<NamedVector<'_>>, EngineError> {
        Ok(self.state_names().into_iter().zip(self.owned_state()?.into_iter().map(Cow::Owned)).collect())
    }

    fn swap_average(&mut self) -> Result<(), EngineError> {
        self.swap_owned()
    }

    fn write_weights(&mut self, write: &mut dyn FnMut(&mut [f32])) -> Result<(), EngineError> {
        let mut values = self.weights()?.into_owned();
        write(&mut values);
        self.set_weights(&values)
    }

    fn write_optimizer_state(&mut self, write: &mut dyn FnMut(usize, &mut [f32])) -> Result<(), EngineError> {
        for (slot, mut values) in self.owned_state()?.into_iter().enumerate() {
            write(slot, &mut values);
            self.set_state(slot, &values)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
