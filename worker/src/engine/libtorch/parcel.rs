//! The input of a pass on its way to the device: labels, pictures or numbers, and masks, in
//! one piece of host memory that is copied as one.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::super::{EngineError, TrainBatch};
use super::loss::Target;
use super::streams::{Lane, Mark, Streams, Transfer};
use super::{input, slice_mut};
use crate::data::{BatchName, Dropout, Finish, Inputs};
use crate::models::InputShape;

/// Memory for one batch on both sides. It grows as batches need, and is used again.
pub(super) struct Parcel {
    host: Option<Tensor>,
    device: Option<Tensor>,
    content: Option<Content>,
}

/// What is in a parcel, and where: bytes of it.
struct Content {
    name: Option<BatchName>,
    transfer: Transfer,
    n: usize,
    input: InputShape,
    labels: Range<usize>,
    /// The second labels of mixed samples, and their shares.
    seconds: Option<[Range<usize>; 2]>,
    values: Values,
    masks: Vec<(Dropout, Range<usize>)>,
}

enum Values {
    /// f32 in `[n, channels, size, size]`.
    Numbers(Range<usize>),
    /// Bytes in `[n, size, size, channels]`, and their constants.
    Pictures { bytes: Range<usize>, constants: Range<usize>, finishes: Vec<Finish> },
}

/// What a pass needs, on the device.
pub(super) struct Unpacked {
    pub(super) target: Target,
    /// `[n, channels, size, size]`, stored with the channels last.
    pub(super) images: Tensor,
    /// For each dropout, what it multiplies by: `[n, values]`.
    pub(super) masks: Vec<Tensor>,
}

/// Puts parts one after the other, each where values of any type may lie.
struct Packing {
    at: usize,
}

impl Packing {
    const ALIGNMENT: usize = 16;

    fn place(&mut self, bytes: usize) -> Range<usize> {
        let start = self.at.next_multiple_of(Self::ALIGNMENT);
        self.at = start + bytes;
        start..self.at
    }
}

impl Parcel {
    pub(super) fn new() -> Self {
        Self { host: None, device: None, content: None }
    }

    pub(super) fn has(&self, name: Option<BatchName>) -> bool {
        name.is_some() && self.content.as_ref().is_some_and(|content| content.name == name)
    }

    /// Packs a batch and sends it off, after what the device had to do before the mark.
    /// What was in the parcel must have been unpacked, and the device must have been given
    /// all that it computes with it, before the mark.
    pub(super) fn send(
        &mut self,
        batch: &TrainBatch<'_>,
        streams: &mut dyn Streams,
        device: tch::Device,
        after: &Mark,
    ) -> Result<(), EngineError> {
        let (n, input) = (batch.labels.len(), batch.images.input);
        let labels: Vec<i64> = batch.labels.iter().map(|&label| label.into()).collect();
        let mut packing = Packing { at: 0 };
        let place_of_labels = packing.place(8 * n);
        let second_labels: Vec<i64> = batch.seconds.iter().map(|second| second.label.into()).collect();
        let second_shares: Vec<f32> = batch.seconds.iter().map(|second| second.share).collect();
        let seconds = (!batch.seconds.is_empty()).then(|| [packing.place(8 * n), packing.place(4 * n)]);
        let constants = if let Inputs::Pictures(pictures) = batch.images.values { input::constants(pictures, input) } else { Vec::new() };
        let values = match batch.images.values {
            Inputs::Numbers(numbers) => Values::Numbers(packing.place(4 * numbers.len())),
            Inputs::Pictures(pictures) => Values::Pictures {
                constants: packing.place(4 * constants.len()),
                bytes: packing.place(pictures.bytes.len()),
                finishes: pictures.finishes.to_vec(),
            },
        };
        let masks: Vec<_> = batch.masks.places().map(|(dropout, mask)| (dropout, packing.place(mask.len()))).collect();
        let len = packing.at;
        let big_enough = |memory: &Option<Tensor>| memory.as_ref().is_some_and(|memory| memory.numel() >= len);
        if let (Some(content), false) = (&self.content, big_enough(&self.host)) {
            // It may have been sent in vain: its memory is not given back while it is copied.
            streams.wait(&content.transfer)?;
        }
        self.content = None;
        if !big_enough(&self.host) {
            self.host = Some(streams.host_memory(len, Kind::Uint8)?);
        }
        if !big_enough(&self.device) {
            self.device = Some(Tensor::f_empty([len as i64], (Kind::Uint8, device))?);
        }
        let (Some(host), Some(device)) = (&mut self.host, &self.device) else { return Err(EngineError::Broken) };
        // SAFETY: u8, contiguous, in host memory; by the contract nothing reads it now.
        let packed: &mut [u8] = unsafe { slice_mut(host, len) };
        packed[place_of_labels.clone()].copy_from_slice(bytemuck::cast_slice(&labels));
        if let Some([labels, shares]) = &seconds {
            packed[labels.clone()].copy_from_slice(bytemuck::cast_slice(&second_labels));
            packed[shares.clone()].copy_from_slice(bytemuck::cast_slice(&second_shares));
        }
        match (&values, batch.images.values) {
            (Values::Numbers(place), Inputs::Numbers(numbers)) => packed[place.clone()].copy_from_slice(bytemuck::cast_slice(numbers)),
            (Values::Pictures { bytes, constants: place, .. }, Inputs::Pictures(pictures)) => {
                packed[bytes.clone()].copy_from_slice(pictures.bytes);
                packed[place.clone()].copy_from_slice(bytemuck::cast_slice(&constants));
            }
            _ => return Err(EngineError::Broken),
        }
        for ((_, place), (_, mask)) in masks.iter().zip(batch.masks.places()) {
            packed[place.clone()].copy_from_slice(mask);
        }
        let front = |memory: &Tensor| memory.f_narrow(0, 0, len as i64);
        let transfer = streams.copy(Lane::ToDevice, &front(device)?, &front(host)?, after)?;
        self.content = Some(Content { name: batch.name, transfer, n, input, labels: place_of_labels, seconds, values, masks });
        Ok(())
    }

    /// The content on the device, in the number format of the pass. What the device is
    /// given to compute from now on begins when it has arrived.
    pub(super) fn unpack(&mut self, streams: &mut dyn Streams, kind: Kind) -> Result<Unpacked, EngineError> {
        let (Some(content), Some(device)) = (&self.content, &self.device) else { return Err(EngineError::Broken) };
        streams.compute_after(&content.transfer)?;
        let view = |place: &Range<usize>, kind: Kind, shape: &[i64]| -> Result<Tensor, EngineError> {
            Ok(device.f_narrow(0, place.start as i64, place.len() as i64)?.f_view_dtype(kind)?.f_view(shape)?)
        };
        let n = content.n as i64;
        let InputShape { channels, image_size, .. } = content.input;
        let (channels, size) = (channels as i64, image_size as i64);
        let images = match &content.values {
            Values::Numbers(place) => input::channels_last(&view(place, Kind::Float, &[n, channels, size, size])?, kind)?,
            Values::Pictures { bytes, constants, finishes } => {
                let bytes = view(bytes, Kind::Uint8, &[n, size, size, channels])?;
                let constants = view(constants, Kind::Float, &[4, n, 1, 1, channels])?;
                input::finish(&bytes, &constants, finishes, kind)?
            }
        };
        let seconds = |[labels, shares]: &[Range<usize>; 2]| -> Result<_, EngineError> {
            Ok((view(labels, Kind::Int64, &[n])?, view(shares, Kind::Float, &[n])?))
        };
        let mask = |(dropout, place): &(Dropout, Range<usize>)| -> Result<Tensor, EngineError> {
            input::mask(&view(place, Kind::Uint8, &[n, dropout.values as i64])?, *dropout, kind)
        };
        Ok(Unpacked {
            target: Target {
                labels: view(&content.labels, Kind::Int64, &[n])?,
                seconds: content.seconds.as_ref().map(seconds).transpose()?,
            },
            images: images.f_permute([0, 3, 1, 2])?,
            masks: content.masks.iter().map(mask).collect::<Result<_, _>>()?,
        })
    }
}
