//! The engine whose state is on the device: master weights, optimizer state and gradient
//! never leave it in a world of one. A step reads back only its statistics, once: loss,
//! accuracy and the gradient's norm.
//!
//! An update is made of the same operations in the same order as the host's
//! (`crate::optim`), each rounded by itself, so that it gives the same bits: ranks with
//! either engine may be in one ring. libtorch's fused optimizers round differently.

use std::borrow::Cow;
use std::ops::Range;

use common::config::TrainConfig;
use common::ring::Span;
use tch::{Kind, Tensor, no_grad};

use super::super::{Engine, EngineError, EngineSetup, Gradient, Images, Loss, NamedVector, Phases, Sink, Sums, TrainBatch};
use super::network::{Network, to_host};
use super::{loss, span};
use crate::models::ParamLayout;
use crate::optim::{NotFinite, Rule, Threads, Update, UpdateReport};

/// Values that an update works on at a time: few enough for its temporary memory to be
/// small beside the state, and enough to keep a GPU busy.
const PIECE: usize = 1 << 24;

pub(crate) struct ResidentEngine {
    network: Network,
    loss: Loss,
    train: TrainConfig,
    threads: Threads,
    /// f32 master weights, flat. In f32, the model computes with the same memory.
    master: Tensor,
    /// The bf16 weights that the model computes with, flat.
    mirror: Option<Tensor>,
    /// The vectors of the optimizer's state.
    slots: Vec<Tensor>,
    /// The gradient that waits for an update, flat, in the number format of the pass, or
    /// in f32 if it has several addends.
    kept: Tensor,
    /// The norm of `kept`; none if no gradient waits.
    norm: Option<f64>,
    device: tch::Device,
}

impl ResidentEngine {
    /// An engine on the CUDA device `cuda`, else on the CPU.
    pub(crate) fn new(setup: EngineSetup<'_>, cuda: Option<usize>) -> Result<Self, EngineError> {
        let device = cuda.map_or(tch::Device::Cpu, tch::Device::Cuda);
        let total = setup.weights.len() as i64;
        let master = Tensor::f_from_slice(&setup.weights)?.f_to_device(device)?;
        let kind = super::kind_of(setup.train.precision);
        let mirror = if kind == Kind::Float { None } else { Some(master.f_to_kind(kind)?) };
        let network = Network::new(setup.model, setup.input, mirror.as_ref().unwrap_or(&master), None)?;
        let zeros = |_| Tensor::f_zeros([total], (Kind::Float, device));
        let slots = setup.train.optimizer.state().iter().map(zeros).collect::<Result<_, _>>()?;
        Ok(Self {
            network,
            loss: Loss::of(setup.model, setup.train),
            train: setup.train.clone(),
            threads: Threads::new(setup.threads)?,
            master,
            mirror,
            slots,
            kept: Tensor::f_zeros([total], (kind, device))?,
            norm: None,
            device,
        })
    }

    /// Uploads spans that cover the flat vector, in order, as f32.
    fn upload(&self, spans: &[Span<'_>]) -> Result<Tensor, EngineError> {
        let flat = Tensor::f_empty([self.network.layout.total() as i64], (Kind::Float, self.device))?;
        let mut at = 0;
        for span in spans {
            let host = match span {
                Span::F32(values) => Tensor::f_from_slice(values)?,
                Span::Bf16(bits) => {
                    let mut values = vec![0.0; bits.len()];
                    span.read(&mut values);
                    Tensor::f_from_slice(&values)?
                }
            };
            flat.f_narrow(0, at, span.len() as i64)?.f_copy_(&host)?;
            at += span.len() as i64;
        }
        Ok(flat)
    }

    /// Applies the rule to weights and state, piece by piece.
    fn apply(&mut self, gradient: &Tensor, rule: &Rule) -> Result<(), EngineError> {
        let total = self.network.layout.total();
        for start in (0..total).step_by(PIECE) {
            let len = PIECE.min(total - start) as i64;
            let piece = |flat: &Tensor| flat.f_narrow(0, start as i64, len);
            let mut weights = piece(&self.master)?;
            let mut slots = self.slots.iter().map(piece).collect::<Result<Vec<_>, _>>()?;
            update_piece(rule, &mut weights, &piece(gradient)?.f_to_kind(Kind::Float)?, &mut slots)?;
            if let Some(mirror) = &self.mirror {
                piece(mirror)?.f_copy_(&weights)?;
            }
        }
        Ok(())
    }

    /// The first place of the kept gradient that is not finite.
    fn first_not_finite(&self) -> Result<NotFinite, EngineError> {
        let bad = self.kept.f_isfinite()?.f_logical_not()?.f_to_kind(Kind::Uint8)?;
        Ok(NotFinite { at: i64::try_from(bad.f_argmax(0, false)?)? as usize })
    }
}

/// One update of some weights. See `crate::optim::kernels` for the formulas; every
/// operation here is one of theirs.
fn update_piece(rule: &Rule, weights: &mut Tensor, gradient: &Tensor, slots: &mut [Tensor]) -> Result<(), EngineError> {
    let times = |tensor: &Tensor, factor: f32| tensor.f_mul_scalar(f64::from(factor));
    match (rule, slots) {
        (Rule::Sgd(step), [momentum]) => {
            let mut direction = times(gradient, step.factor)?;
            let _ = direction.f_add_(&times(weights, step.weight_decay)?)?;
            let _ = momentum.f_mul_scalar_(f64::from(step.momentum))?.f_add_(&direction)?;
            let _ = weights.f_sub_(&times(momentum, step.lr)?)?;
        }
        (Rule::Adam(step), [m, v]) => {
            let mut g = times(gradient, step.factor)?;
            let _ = g.f_add_(&times(weights, step.weight_decay)?)?;
            let _ = m.f_mul_scalar_(f64::from(step.beta1))?.f_add_(&times(&g, step.rest1)?)?;
            let _ = v.f_mul_scalar_(f64::from(step.beta2))?.f_add_(&times(&g, step.rest2)?.f_mul_(&g)?)?;
            let mut root = square_root(v)?;
            // By a tensor: on CUDA, a number would be multiplied by its rounded reciprocal.
            let correct = Tensor::f_full([1], f64::from(step.root_correct2), (Kind::Float, root.device()))?;
            let _ = root.f_div_(&correct)?.f_add_scalar_(f64::from(step.epsilon))?;
            let change = times(m, step.rate)?.f_div_(&root)?;
            let _ = weights.f_mul_scalar_(f64::from(step.shrink))?.f_sub_(&change)?;
        }
        _ => unreachable!("slots are made for the optimizer's kind"),
    }
    Ok(())
}

/// Correctly rounded. So are CUDA's own roots, but not those of the vector mathematics
/// library that libtorch uses on the CPU; those of f64 are near enough to the truth for
/// their f32 to be it.
fn square_root(values: &Tensor) -> Result<Tensor, EngineError> {
    match values.device() {
        tch::Device::Cpu => Ok(values.f_to_kind(Kind::Double)?.f_sqrt()?.f_to_kind(Kind::Float)?),
        _ => Ok(values.f_sqrt()?),
    }
}

/// The Euclidean norm of a flat vector, summed in f64, on its device.
fn norm(flat: &Tensor) -> Result<Tensor, EngineError> {
    let total = flat.numel();
    let pieces = (0..total).step_by(PIECE).map(|start| {
        let piece = flat.f_narrow(0, start as i64, PIECE.min(total - start) as i64)?;
        piece.f_norm_scalaropt_dtype(2.0, Kind::Double)
    });
    let pieces = pieces.collect::<Result<Vec<_>, _>>()?;
    Ok(Tensor::f_stack(&pieces, 0)?.f_square()?.f_sum(Kind::Double)?.f_sqrt()?)
}

/// Adds gradients of parameters to the flat one, or puts them there.
fn keep(layout: &ParamLayout, flat: &Tensor, add: bool, range: Range<usize>, grads: &[Tensor]) -> Result<(), EngineError> {
    for (param, grad) in layout.params()[range].iter().zip(grads) {
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
    fn gradient(&mut self, batch: TrainBatch<'_>, mut sink: Option<Sink<'_>>) -> Result<(Sums, Phases), EngineError> {
        let labels: Vec<i64> = batch.labels.iter().map(|&label| label.into()).collect();
        let labels = Tensor::f_from_slice(&labels)?.f_to_device(self.device)?;
        let add = self.norm.is_some();
        if add && self.kept.kind() != Kind::Float {
            self.kept = self.kept.f_to_kind(Kind::Float)?;
        }
        let Self { network, loss, kept, .. } = self;
        let head = |logits: &Tensor| {
            let found = loss::sums(*loss, logits, &labels, batch.scale)?;
            Ok((found.slope, found.sums))
        };
        let (statistics, phases) = network.gradient(batch, head, |range, grads| {
            no_grad(|| keep(&network.layout, kept, add, range.clone(), &grads))?;
            let Some(sink) = &mut sink else { return Ok(()) };
            let params = &network.layout.params()[range];
            let (Some(first), Some(last)) = (params.first(), params.last()) else { return Ok(()) };
            let (start, end) = (first.range().start, last.range().end);
            let host = kept.f_narrow(0, start as i64, (end - start) as i64)?.f_to_device(tch::Device::Cpu)?;
            sink(start, span(&host)?);
            Ok(())
        })?;
        // The only wait of a step that is not for the ring.
        let read = if sink.is_some() { statistics } else { Tensor::f_cat(&[statistics, norm(kept)?.f_unsqueeze(0)?], 0)? };
        let read: Vec<f64> = Vec::try_from(read)?;
        let [loss, top1, top5, ref norm @ ..] = read[..] else {
            return Err(EngineError::Compute("statistics are missing".to_owned()));
        };
        match norm.first() {
            Some(&norm) => self.norm = Some(norm),
            None => self.forget()?,
        }
        Ok((Sums { loss, top1: top1 as u32, top5: top5 as u32, count: batch.labels.len() as u32 }, phases))
    }

    fn forget(&mut self) -> Result<(), EngineError> {
        self.norm = None;
        let kind = super::kind_of(self.train.precision);
        if self.kept.kind() != kind {
            self.kept = self.kept.f_to_kind(kind)?;
        }
        Ok(())
    }

    fn update(&mut self, gradient: Gradient<'_>, update: Update) -> Result<UpdateReport, EngineError> {
        let (flat, norm) = match gradient {
            // The same norm on every rank, whatever its device.
            Gradient::Summed(spans) => (self.upload(spans)?, self.threads.norm(spans)?),
            Gradient::Own => match self.norm {
                None => (self.kept.f_zeros_like()?, 0.0),
                Some(norm) if norm.is_finite() => (self.kept.shallow_clone(), norm),
                Some(_) => return Err(self.first_not_finite()?.into()),
            },
        };
        let clipped = update.clip(self.train.clip_norm, norm);
        let rule = Rule::new(&self.train, update.step, update.lr, clipped.factor);
        no_grad(|| self.apply(&flat, &rule))?;
        self.forget()?;
        Ok(clipped.report)
    }

    fn logits(&self, images: Images<'_>) -> Result<Vec<f32>, EngineError> {
        self.network.logits(images)
    }

    fn weights(&self) -> Result<Cow<'_, [f32]>, EngineError> {
        Ok(Cow::Owned(to_host(&self.master)?))
    }

    fn optimizer_state(&self) -> Result<Vec<NamedVector<'_>>, EngineError> {
        let names = self.train.optimizer.state().iter();
        names.zip(&self.slots).map(|(&name, slot)| Ok((name, Cow::Owned(to_host(slot)?)))).collect()
    }

    fn write_weights(&mut self, write: &mut dyn FnMut(&mut [f32])) -> Result<(), EngineError> {
        let mut values = to_host(&self.master)?;
        write(&mut values);
        no_grad(|| {
            self.master.f_copy_(&Tensor::f_from_slice(&values)?)?;
            if let Some(mirror) = &mut self.mirror {
                mirror.f_copy_(&self.master)?;
            }
            Ok(())
        })
    }

    fn write_optimizer_state(&mut self, write: &mut dyn FnMut(usize, &mut [f32])) -> Result<(), EngineError> {
        for (number, slot) in self.slots.iter_mut().enumerate() {
            let mut values = to_host(slot)?;
            write(number, &mut values);
            slot.f_copy_(&Tensor::f_from_slice(&values)?)?;
        }
        Ok(())
    }
}
