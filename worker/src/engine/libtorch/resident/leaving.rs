//! Factors on their way from the device to the ring.

use tch::Tensor;

use super::super::super::EngineError;
use super::super::streams::{Lane, Streams, Transfer};

/// The factors of a layer, of one part of a batch.
pub(super) struct LeavingFactors {
    pub(super) layer: usize,
    /// Inputs and slopes, in host memory.
    pub(super) host: [Tensor; 2],
    /// What they are copied from.
    _device: [Tensor; 2],
    /// Of the slopes, which follow the inputs.
    pub(super) transfer: Transfer,
}

impl LeavingFactors {
    /// Starts to copy inputs and slopes to the host when the device has made them.
    pub(super) fn start(streams: &mut dyn Streams, layer: usize, device: [Tensor; 2]) -> Result<Self, EngineError> {
        let mark = streams.mark()?;
        let [inputs, slopes] = &device;
        let host = [inputs, slopes].map(|from| streams.host_memory(from.numel(), from.kind()));
        let host = match host {
            [Ok(inputs), Ok(slopes)] => [inputs, slopes],
            [Err(error), _] | [_, Err(error)] => return Err(error),
        };
        streams.copy(Lane::ToHost, &host[0], &inputs.f_view([-1])?, &mark)?;
        let transfer = streams.copy(Lane::ToHost, &host[1], &slopes.f_view([-1])?, &mark)?;
        Ok(Self { layer, host, _device: device, transfer })
    }
}
