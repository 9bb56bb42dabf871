//! One packet on a relay's stream: the number of a worker and the length, little-endian,
//! then the packet. To the coordinator the worker is the one that the packet is for, from it
//! the one that has sent it. Pure.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Four bytes of the number, two of the length.
const HEADER: usize = 6;
/// The most bytes of a packet: connections through the relay try no larger ones.
pub const MAX_PACKET: u16 = 6_500;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a packet of {length} bytes was announced; 1 to {MAX_PACKET} are allowed")]
    Length { length: u16 },
}

/// A packet and the worker that it is for, or from.
#[derive(Debug)]
pub struct Frame(BytesMut);

impl Frame {
    /// None for a packet that no relay carries.
    pub fn new(number: u32, packet: &[u8]) -> Option<Self> {
        let length = u16::try_from(packet.len()).ok().filter(|length| (1..=MAX_PACKET).contains(length))?;
        let mut bytes = BytesMut::with_capacity(HEADER + packet.len());
        bytes.put_u32_le(number);
        bytes.put_u16_le(length);
        bytes.put_slice(packet);
        Some(Self(bytes))
    }

    pub fn number(&self) -> u32 {
        (&self.0[..4]).get_u32_le()
    }

    /// The same packet with another worker's number.
    pub fn with_number(mut self, number: u32) -> Self {
        self.0[..4].copy_from_slice(&number.to_le_bytes());
        self
    }

    /// As it is written to a stream.
    pub fn into_bytes(self) -> Bytes {
        self.0.freeze()
    }

    /// The packet alone.
    pub fn into_packet(self) -> Bytes {
        let mut bytes = self.0.freeze();
        bytes.advance(HEADER);
        bytes
    }
}

/// Cuts a stream into frames. It holds less than one frame and what was pushed last.
#[derive(Debug, Default)]
pub(super) struct Frames(BytesMut);

impl Frames {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next frame that has arrived whole.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(mut announced) = self.0.get(4..HEADER) else { return Ok(None) };
        let length = announced.get_u16_le();
        if !(1..=MAX_PACKET).contains(&length) {
            return Err(FrameError::Length { length });
        }
        let whole = HEADER + usize::from(length);
        Ok((self.0.len() >= whole).then(|| Frame(self.0.split_to(whole))))
    }
}

#[cfg(fuzzing)]
pub(crate) fn read_any(bytes: &[u8]) {
    let mut frames = Frames::default();
    frames.push(bytes);
    while let Ok(Some(frame)) = frames.next() {
        let number = frame.number();
        let packet = frame.with_number(!number).into_packet();
        assert!((1..=usize::from(MAX_PACKET)).contains(&packet.len()));
    }
}
