//! The engine whose state is in host memory: libtorch on the CPU. The parameters are
//! views of one flat tensor that the optimizer writes in place, so an update copies
//! nothing.

use std::borrow::Cow;

use common::dense::Factored;
use common::digest::Digest;
use common::ring::Span;
use common::simd::f32_to_bf16;
use tch::{Kind, Tensor};

use super::super::{
    Delivery, Engine, EngineError, EngineSetup, Gradient, Images, Loss, NamedVector, PartSink, Phases, Piece, Sink, Sums, TrainBatch,
    in_turn, whole,
};
use super::network::{Asked, Feed, Finished, Network, to_host};
use super::products::Products;
use super::{input, slice, slice_mut, span};
use crate::data::{Dropout, Inputs};
use crate::models::ParamLayout;
use crate::optim::{Optimizer, Threads, Update, UpdateReport};

pub(crate) struct HostEngine {
    network: Network,
    loss: Loss,
    optimizer: Optimizer,
    threads: Threads,
    /// How many weights, from the first, are trained.
    trained: usize,
    /// f32 master weights. In f32, the model computes with the same memory.
    master: Tensor,
    /// The bf16 weights that the model computes with.
    mirror: Option<Tensor>,
    /// The gradient of each parameter that waits for an update, or for more to be added.
    kept: Vec<Option<Tensor>>,
    products: Products,
}

impl HostEngine {
    pub(crate) fn new(setup: EngineSetup<'_>) -> Result<Self, EngineError> {
        let master = Tensor::f_from_slice(&setup.weights)?;
        let kind = super::kind_of(setup.train.precision);
        let mirror = if kind == Kind::Float { None } else { Some(master.f_to_kind(kind)?) };
        let threads = Threads::new(setup.threads)?;
        let network = Network::new(&setup, mirror.as_ref().unwrap_or(&master))?;
        let optimizer = Optimizer::new(setup.train, &network.layout, threads.clone());
        let kept = network.layout.params().iter().map(|_| None).collect();
        let products = Products::none(setup.trained);
        Ok(Self {
            network,
            loss: Loss::of(setup.model, setup.train),
            optimizer,
            threads,
            trained: setup.trained,
            master,
            mirror,
            kept,
            products,
        })
    }

    /// Adds the gradient of a part to the one that is held; if it is due, hands the sum to
    /// the sink. If it is delivered at all, the sink also gets the factors of the part.
    fn gradient(
        &mut self,
        batch: TrainBatch<'_>,
        delivery: Delivery,
        is_due: bool,
        sink: &mut dyn FnMut(Piece<'_>),
    ) -> Result<(Sums, Phases), EngineError> {
        let kind = self.kind();
        let Self { network, loss, threads, kept, products, .. } = self;
        let asked = Asked::of(delivery, is_due, products);
        let feed = || {
            let mask = |(dropout, mask): (Dropout, &[u8])| {
                let bytes = Tensor::f_from_slice(mask)?.f_view([batch.labels.len() as i64, dropout.values as i64])?;
                input::mask(&bytes, dropout, kind)
            };
            let masks = batch.masks.places().map(mask).collect::<Result<_, _>>()?;
            Ok(Feed { images: images(batch.images, kind, threads)?, masks, target: () })
        };
        let head = |logits: &Tensor, ()| {
            let values = to_host(logits)?;
            let mut slope = vec![0.0; values.len()];
            let sums = loss.mixed_sums(&values, batch.labels, batch.seconds, batch.scale, Some(&mut slope));
            Ok((Tensor::f_from_slice(&slope)?.f_view_as(logits)?, sums))
        };
        let take = |finished| match finished {
            Finished::Factors(layer, inputs, slopes) => {
                sink(Piece::Factors { layer, inputs: span(&inputs)?, slopes: span(&slopes)? });
                Ok(())
            }
            Finished::Gradients(params, grads) => {
                let mut values = |offset: usize, span: Span<'_>| sink(Piece::Values(offset, span));
                collect(&network.layout, kept, params, grads, if is_due { Some(&mut values) } else { None })
            }
        };
        let (sums, times) = network.gradient((batch.labels.len(), batch.share()), asked, feed, head, take)?;
        Ok((sums, times.phases()?))
    }

    /// The number format that the model computes in.
    fn kind(&self) -> Kind {
        self.mirror.as_ref().map_or(Kind::Float, Tensor::kind)
    }
}

/// As the model takes them.
fn images(images: Images<'_>, kind: Kind, threads: &Threads) -> Result<Tensor, EngineError> {
    let channels_last = match images.values {
        Inputs::Numbers(numbers) => input::of_numbers(images, numbers, kind, tch::Device::Cpu)?,
        Inputs::Pictures(pictures) => input::on_host(pictures, images.input, kind, threads)?,
    };
    Ok(channels_last.f_permute([0, 3, 1, 2])?)
}

/// The memory of both kinds of weights, to be written: so many of them.
fn weights_mut<'a>(master: &'a mut Tensor, mirror: &'a mut Option<Tensor>, len: usize) -> (&'a mut [f32], Option<&'a mut [u16]>) {
    // SAFETY: both are contiguous, in host memory, at least as long and of these types; they do
    // not overlap, and nothing computes while the engine is borrowed to be changed.
    unsafe { (slice_mut(master, len), mirror.as_mut().map(|mirror| slice_mut(mirror, len))) }
}

/// Adds new gradients to those that were kept, and hands the sums to the sink or keeps
/// them. Sums of several are f32, whatever their addends are.
fn collect(
    layout: &ParamLayout,
    kept: &mut [Option<Tensor>],
    params: Vec<usize>,
    grads: Vec<Tensor>,
    mut sink: Option<Sink<'_>>,
) -> Result<(), EngineError> {
    // The last parameters first: their gradients were the first to be ready.
    for (number, grad) in params.into_iter().zip(grads).rev() {
        let (param, kept) = (&layout.params()[number], &mut kept[number]);
        if grad.numel() != param.range().len() {
            return Err(EngineError::NoGradient { parameter: param.name().to_owned() });
        }
        let grad = match kept.take() {
            Some(sum) => sum.f_to_kind(Kind::Float)?.f_add(&grad)?,
            None => grad,
        };
        let grad = grad.f_contiguous()?;
        match &mut sink {
            Some(sink) => sink(param.range().start, span(&grad)?),
            None => *kept = Some(grad),
        }
    }
    Ok(())
}

impl Engine for HostEngine {
    fn gradients(
        &mut self,
        parts: &[TrainBatch<'_>],
        _next: Option<&TrainBatch<'_>>,
        delivery: Delivery,
        sink: PartSink<'_>,
    ) -> Result<(Sums, Phases), EngineError> {
        in_turn(parts, delivery, sink, |part, is_due, sink| self.gradient(part, delivery, is_due, sink))
    }

    fn factor(&mut self, factored: &Factored) -> Result<bool, EngineError> {
        if self.products.factored != *factored {
            self.products = Products::new(factored, &self.network.layout, self.kind(), tch::Device::Cpu)?;
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
        self.kept.iter_mut().for_each(|kept| *kept = None);
        Ok(())
    }

    fn update(&mut self, gradient: Gradient<'_>, update: Update) -> Result<UpdateReport, EngineError> {
        let layout = &self.network.layout;
        let own: Vec<Tensor> = match gradient {
            Gradient::Summed(_) => Vec::new(),
            Gradient::Own => {
                let zeros =
                    |param: &crate::models::ParamSpec| Tensor::f_zeros([param.range().len() as i64], (Kind::Float, tch::Device::Cpu));
                let params = layout.params().iter().zip(&mut self.kept).filter(|(param, _)| !param.is_frozen());
                params.map(|(param, kept)| kept.take().map_or_else(|| zeros(param), Ok)).collect::<Result<_, _>>()?
            }
        };
        let spans = match gradient {
            Gradient::Summed(spans) => whole(&self.products.factored.regions, spans, &self.products.spans()?),
            Gradient::Own => own.iter().map(span).collect::<Result<_, _>>()?,
        };
        let (master, mirror) = weights_mut(&mut self.master, &mut self.mirror, self.trained);
        Ok(self.optimizer.update(master, mirror, &spans, update)?)
    }

    fn logits(&self, images: Images<'_>) -> Result<Vec<f32>, EngineError> {
        self.network.logits(images.n, || self::images(images, self.kind(), &self.threads))
    }

    fn weights(&self) -> Result<Cow<'_, [f32]>, EngineError> {
        // SAFETY: f32, contiguous, in host memory; changed only through `&mut self`.
        Ok(Cow::Borrowed(unsafe { slice(&self.master, self.network.layout.total()) }))
    }

    fn optimizer_state(&self) -> Result<Vec<NamedVector<'_>>, EngineError> {
        Ok(self.optimizer.state().map(|(name, values)| (name, Cow::Borrowed(values))).collect())
    }

    fn swap_average(&mut self) -> Result<(), EngineError> {
        let (master, mirror) = weights_mut(&mut self.master, &mut self.mirror, self.trained);
        self.optimizer.swap_average(master, mirror);
        Ok(())
    }

    fn write_weights(&mut self, write: &mut dyn FnMut(&mut [f32])) -> Result<(), EngineError> {
        let (master, mirror) = weights_mut(&mut self.master, &mut self.mirror, self.network.layout.total());
        write(master);
        if let Some(mirror) = mirror {
            f32_to_bf16(master, mirror);
        }
        Ok(())
    }

    fn write_optimizer_state(&mut self, write: &mut dyn FnMut(usize, &mut [f32])) -> Result<(), EngineError> {
        self.optimizer.state_mut().enumerate().for_each(|(slot, (_, values))| write(slot, values));
        Ok(())
    }
}
