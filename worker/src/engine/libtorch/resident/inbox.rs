//! The summed gradient on its way from the ring to the device.

use std::ops::Range;

use common::ring::Span;
use tch::{Kind, Tensor, no_grad};

use super::super::super::EngineError;
use super::super::products::Products;
use super::super::slice_mut;
use super::super::streams::{Lane, Streams, Transfer};

/// What is owned of the summed gradient, in the format in which it comes.
pub(super) struct Inbox {
    owned: Range<usize>,
    device: tch::Device,
    host: Option<Tensor>,
    flat: Option<Tensor>,
    /// Values that have come for the next update.
    received: usize,
    last: Option<Transfer>,
}

impl Inbox {
    /// For this part of the flat gradient, on this device.
    pub(super) fn new(owned: Range<usize>, device: tch::Device) -> Self {
        Self { owned, device, host: None, flat: None, received: 0, last: None }
    }

    /// The part of a range of the flat gradient that is owned; empty if none is.
    fn own(&self, range: &Range<usize>) -> Range<usize> {
        let start = range.start.max(self.owned.start);
        start..range.end.min(self.owned.end).max(start)
    }

    /// What has come is not for the next update.
    pub(super) fn forget(&mut self) {
        self.received = 0;
    }

    /// Sends what is owned of a span of the summed gradient to the device.
    pub(super) fn receive(&mut self, streams: &mut dyn Streams, offset: usize, span: Span<'_>) -> Result<(), EngineError> {
        let Range { start, end } = self.own(&(offset..offset + span.len()));
        if start == end {
            return Ok(());
        }
        let kind = if let Span::F32(_) = span { Kind::Float } else { Kind::BFloat16 };
        let (len, at) = (self.owned.len(), start - self.owned.start);
        let fits = |memory: &Option<Tensor>| memory.as_ref().is_some_and(|memory| memory.kind() == kind);
        if !fits(&self.host) {
            self.host = Some(streams.host_memory(len, kind)?);
        }
        if !fits(&self.flat) {
            self.flat = Some(Tensor::f_empty([len as i64], (kind, self.device))?);
        }
        let (Some(host), Some(flat)) = (&mut self.host, &self.flat) else { return Err(EngineError::Broken) };
        let part = |flat: &Tensor| flat.f_narrow(0, at as i64, (end - start) as i64);
        let mut place = part(host)?;
        // Nothing reads this range now: its last copy came before an update whose weights
        // this gradient was computed with.
        match span.range(start - offset..end - offset) {
            Span::F32(values) => {
                // SAFETY: f32, contiguous, in host memory, and not read as said above.
                let place: &mut [f32] = unsafe { slice_mut(&mut place, values.len()) };
                place.copy_from_slice(values);
            }
            Span::Bf16(values) => {
                // SAFETY: as above, of 16 bits each.
                let place: &mut [u16] = unsafe { slice_mut(&mut place, values.len()) };
                place.copy_from_slice(values);
            }
        }
        let mark = streams.mark()?;
        self.last = Some(streams.copy(Lane::ToDevice, &part(flat)?, &place, &mark)?);
        self.received += end - start;
        Ok(())
    }

    /// What is owned of the whole gradient, on the device: what has been received, if that is
    /// all that was summed, else what these spans have, which cover it in order; and the
    /// products.
    pub(super) fn take(&mut self, streams: &mut dyn Streams, products: &Products, summed: &[Span<'_>]) -> Result<Tensor, EngineError> {
        let regions = &products.factored.regions;
        let of_products: usize = regions.products().iter().map(|range| self.own(range).len()).sum();
        if self.received != self.owned.len() - of_products {
            self.received = 0;
            let mut start = 0;
            for span in summed {
                let mut at = 0;
                for range in regions.flat(start..start + span.len()) {
                    self.receive(streams, range.start, span.range(at..at + range.len()))?;
                    at += range.len();
                }
                start += span.len();
            }
        }
        self.received = 0;
        if let Some(last) = self.last.take() {
            streams.compute_after(&last)?;
        }
        // Nothing of what is owned was summed.
        if self.flat.is_none() {
            let kind = products.on_device().next().map_or(Kind::Float, |(_, product)| product.kind());
            self.flat = Some(Tensor::f_empty([self.owned.len() as i64], (kind, self.device))?);
        }
        let Some(flat) = &self.flat else { return Err(EngineError::Broken) };
        no_grad(|| {
            for (range, product) in products.on_device() {
                let part = self.own(range);
                if part.is_empty() {
                    continue;
                }
                let new = product.f_view([-1])?.f_narrow(0, (part.start - range.start) as i64, part.len() as i64)?;
                flat.f_narrow(0, (part.start - self.owned.start) as i64, part.len() as i64)?.f_copy_(&new)?;
            }
            Ok(flat.shallow_clone())
        })
    }
}
