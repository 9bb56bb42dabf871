//! Copies between host and device beside the computation, behind a trait: on CUDA by
//! streams and events, on the CPU at once, and in tests as late as is allowed.

use tch::{Kind, Tensor};

use super::super::EngineError;
use super::shim::{Event, Stream};

/// What the device was given to compute before a moment.
#[derive(Debug)]
pub(super) enum Mark {
    /// The device has done it: it computes what it is given at once.
    Done,
    Event(Event),
}

/// A copy that was started. Until it is known to be done, the tensor that is copied to has
/// no known values, and the one that is copied from must stay as it is.
#[derive(Debug)]
pub(super) enum Transfer {
    Done,
    Event(Event),
    #[cfg(test)]
    Late(super::late::Ticket),
}

/// Copies on one lane are done in the order in which they were started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    ToDevice,
    ToHost,
}

pub(super) trait Streams: Send {
    /// Host memory of so many values that a device copies by itself.
    fn host_memory(&self, len: usize, kind: Kind) -> Result<Tensor, EngineError>;

    fn mark(&mut self) -> Result<Mark, EngineError>;

    /// Starts to copy `from` to `to` when the device has done all before the mark.
    fn copy(&mut self, lane: Lane, to: &Tensor, from: &Tensor, after: &Mark) -> Result<Transfer, EngineError>;

    /// What the device is given to compute from now on begins when the copy is done.
    fn compute_after(&mut self, transfer: &Transfer) -> Result<(), EngineError>;

    /// Waits until the copy is done.
    fn wait(&mut self, transfer: &Transfer) -> Result<(), EngineError>;

    fn is_done(&mut self, transfer: &Transfer) -> Result<bool, EngineError>;
}

/// For a CUDA device.
pub(super) struct CudaStreams {
    device: usize,
    to_device: Stream,
    to_host: Stream,
}

impl CudaStreams {
    pub(super) fn new(device: usize) -> Result<Self, EngineError> {
        Ok(Self { device, to_device: Stream::new(device)?, to_host: Stream::new(device)? })
    }
}

impl Streams for CudaStreams {
    fn host_memory(&self, len: usize, kind: Kind) -> Result<Tensor, EngineError> {
        let pageable = Tensor::f_empty([len as i64], (kind, tch::Device::Cpu))?;
        Ok(pageable.f_pin_memory(tch::Device::Cuda(self.device))?)
    }

    fn mark(&mut self) -> Result<Mark, EngineError> {
        Event::of_computing(self.device).map(Mark::Event)
    }

    fn copy(&mut self, lane: Lane, to: &Tensor, from: &Tensor, after: &Mark) -> Result<Transfer, EngineError> {
        let stream = match lane {
            Lane::ToDevice => &self.to_device,
            Lane::ToHost => &self.to_host,
        };
        if let Mark::Event(event) = after {
            stream.begin_after(event)?;
        }
        stream.copy(to, from)?;
        stream.event().map(Transfer::Event)
    }

    fn compute_after(&mut self, transfer: &Transfer) -> Result<(), EngineError> {
        if let Transfer::Event(event) = transfer { event.compute_after() } else { Ok(()) }
    }

    fn wait(&mut self, transfer: &Transfer) -> Result<(), EngineError> {
        if let Transfer::Event(event) = transfer { event.wait() } else { Ok(()) }
    }

    fn is_done(&mut self, transfer: &Transfer) -> Result<bool, EngineError> {
        if let Transfer::Event(event) = transfer { event.has_happened() } else { Ok(true) }
    }
}

/// For the CPU, where computation and copies are done when they have been called.
pub(super) struct InlineStreams;

impl Streams for InlineStreams {
    fn host_memory(&self, len: usize, kind: Kind) -> Result<Tensor, EngineError> {
        Ok(Tensor::f_empty([len as i64], (kind, tch::Device::Cpu))?)
    }

    fn mark(&mut self) -> Result<Mark, EngineError> {
        Ok(Mark::Done)
    }

    fn copy(&mut self, _lane: Lane, to: &Tensor, from: &Tensor, _after: &Mark) -> Result<Transfer, EngineError> {
        tch::no_grad(|| to.shallow_clone().f_copy_(from))?;
        Ok(Transfer::Done)
    }

    fn compute_after(&mut self, _transfer: &Transfer) -> Result<(), EngineError> {
        Ok(())
    }

    fn wait(&mut self, _transfer: &Transfer) -> Result<(), EngineError> {
        Ok(())
    }

    fn is_done(&mut self, _transfer: &Transfer) -> Result<bool, EngineError> {
        Ok(true)
    }
}
