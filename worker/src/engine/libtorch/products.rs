//! The gradients of factored layers: products of factors that all ranks have gathered, in
//! memory that is kept from step to step.

use common::dense::Factored;
use common::digest::Digest;
use common::ring::Span;
use tch::{Kind, Tensor, no_grad};

use super::super::{EngineError, whole};
use super::{slice, span, update};
use crate::models::ParamLayout;
use crate::optim::{NotFinite, Threads};

/// The factored layers of an engine, and their newest products.
pub(super) struct Products {
    pub(super) factored: Factored,
    /// The places of their weights among the parameters.
    pub(super) params: Vec<usize>,
    /// `[inputs, units]` each, on the device.
    products: Vec<Tensor>,
}

impl Products {
    /// Of no layer.
    pub(super) fn none(total: usize) -> Self {
        Self { factored: Factored::nothing(total), params: Vec::new(), products: Vec::new() }
    }

    /// Of these layers of a model, in this number format.
    pub(super) fn new(factored: &Factored, layout: &ParamLayout, kind: Kind, device: tch::Device) -> Result<Self, EngineError> {
        let (mut params, mut products) = (Vec::new(), Vec::new());
        for layer in &factored.layers {
            let param = layout.params().iter().position(|param| param.range() == layer.weights);
            params.push(param.ok_or_else(|| EngineError::Compute(format!("no parameter has the values {:?}", layer.weights)))?);
            // Written before it is read.
            products.push(Tensor::f_empty([layer.inputs as i64, layer.units as i64], (kind, device))?);
        }
        Ok(Self { factored: factored.clone(), params, products })
    }

    /// The same layers, and the same memory.
    pub(super) fn shared(&self) -> Self {
        let products = self.products.iter().map(Tensor::shallow_clone).collect();
        Self { factored: self.factored.clone(), params: self.params.clone(), products }
    }

    /// Makes the product of a layer. It has the bits of the gradient that libtorch's own
    /// backward pass makes of as many rows.
    pub(super) fn multiply(&mut self, layer: usize, inputs: Span<'_>, slopes: Span<'_>) -> Result<(), EngineError> {
        let (Some(shape), Some(product)) = (self.factored.layers.get(layer), self.products.get(layer)) else {
            return Err(EngineError::Compute(format!("layer {layer} of {} factored ones", self.products.len())));
        };
        if inputs.len() * shape.units != slopes.len() * shape.inputs || !inputs.len().is_multiple_of(shape.inputs) {
            let problem =
                format!("factors of {} and {} values for a layer of {} x {}", inputs.len(), slopes.len(), shape.inputs, shape.units);
            return Err(EngineError::Compute(problem));
        }
        no_grad(|| {
            let inputs = matrix(inputs, shape.inputs)?.f_to_device(product.device())?;
            let slopes = matrix(slopes, shape.units)?.f_to_device(product.device())?;
            let _ = inputs.f_transpose(0, 1)?.f_mm_out(product, &slopes)?;
            Ok(())
        })
    }

    /// The newest products, in host memory.
    pub(super) fn spans(&self) -> Result<Vec<Span<'_>>, EngineError> {
        self.products.iter().map(span).collect()
    }

    /// Their tensors with the ranges where they belong in the flat vector.
    pub(super) fn on_device(&self) -> impl Iterator<Item = (&std::ops::Range<usize>, &Tensor)> {
        self.factored.regions.products().iter().zip(&self.products)
    }

    /// The norm of the whole gradient, of which these spans are what was summed: the same on
    /// every rank that makes the same products, be they on its CPU or on a GPU.
    /// The last `running` values are those of running statistics.
    pub(super) fn norm(&self, threads: &Threads, summed: &[Span<'_>], running: usize) -> Result<f64, EngineError> {
        let regions = &self.factored.regions;
        if self.products.iter().all(|product| product.device() == tch::Device::Cpu) {
            return Ok(threads.norm(&whole(regions, summed, &self.spans()?), running)?);
        }
        // Products stay on the GPU.
        let flat = |found: NotFinite| NotFinite { at: regions.flat(found.at..found.at + 1).next().map_or(found.at, |range| range.start) };
        let mut squares = threads.norm(summed, running).map_err(flat)?.powi(2);
        for (range, product) in self.on_device() {
            let product = product.f_view([-1])?;
            let norm = f64::try_from(update::norm(&product, 0)?)?;
            if !norm.is_finite() {
                return Err(NotFinite { at: range.start + update::first_not_finite(&product)?.at }.into());
            }
            squares += norm.powi(2);
        }
        Ok(squares.sqrt())
    }

    /// A digest of a product and of how its norm is computed.
    pub(super) fn digest(&self, layer: usize) -> Result<Digest, EngineError> {
        let product = self.products.get(layer).ok_or(EngineError::Broken)?;
        let norm = if product.device() == tch::Device::Cpu { "norm on the CPU" } else { "norm on a GPU" };
        let product = product.f_to_device(tch::Device::Cpu)?;
        let bytes = product.numel() * product.kind().elt_size_in_bytes();
        // SAFETY: contiguous, in host memory, of so many bytes.
        let bytes: &[u8] = unsafe { slice(&product, bytes) };
        Ok(Digest::of(&[norm.as_bytes(), Digest::of(bytes).to_string().as_bytes()].concat()))
    }
}

/// Values in host memory as rows of this width.
fn matrix(values: Span<'_>, width: usize) -> Result<Tensor, EngineError> {
    let shape = [(values.len() / width) as i64, width as i64];
    Ok(match values {
        Span::F32(values) => Tensor::f_from_slice(values)?,
        Span::Bf16(bits) => {
            let bytes: &[u8] = bytemuck::cast_slice(bits);
            Tensor::f_from_data_size(bytes, &[bits.len() as i64], Kind::BFloat16)?
        }
    }
    .f_view(shape)?)
}
