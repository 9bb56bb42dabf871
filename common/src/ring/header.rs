//! The header before the values on a gradient stream. Fixed size, plain bytes: it is
//! compared with the expected header, not interpreted.

use super::encoding::Encoding;
use crate::wire::PROTOCOL;

/// One stream carries all hops of one bucket of one step, in the order of the
/// sender's schedule, without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamHeader {
    pub generation: u64,
    pub step: u64,
    pub bucket: u32,
    pub encoding: Encoding,
    /// The chunk of the first hop.
    pub first_chunk: u32,
    /// Bytes of values that follow.
    pub length: u64,
}

impl StreamHeader {
    pub const BYTES: usize = 40;

    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0..4].copy_from_slice(&PROTOCOL.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.encoding.code().to_le_bytes());
        bytes[8..16].copy_from_slice(&self.generation.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.step.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.bucket.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.first_chunk.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.length.to_le_bytes());
        bytes
    }

    pub fn parse(bytes: &[u8; Self::BYTES]) -> Result<Self, String> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        if word(0) != PROTOCOL {
            return Err(format!("a gradient stream of protocol {}, not {PROTOCOL}", word(0)));
        }
        let encoding = Encoding::of_code(word(4)).ok_or_else(|| format!("a gradient stream of unknown encoding {}", word(4)))?;
        Ok(Self { generation: long(8), step: long(16), bucket: word(24), encoding, first_chunk: word(28), length: long(32) })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_back_and_nonsense_does_not() {
        let header = StreamHeader {
            generation: u64::MAX - 1,
            step: 1 << 40,
            bucket: 7,
            encoding: Encoding::Bf16,
            first_chunk: 3,
            length: (1 << 33) + 5,
        };
        let bytes = header.to_bytes();
        assert_eq!(StreamHeader::parse(&bytes).unwrap(), header);
        for at in 0..8 {
            let mut damaged = bytes;
            damaged[at] ^= 0x80;
            assert!(StreamHeader::parse(&damaged).is_err(), "byte {at}");
        }
        for at in 8..StreamHeader::BYTES {
            let mut damaged = bytes;
            damaged[at] ^= 0x80;
            assert_ne!(StreamHeader::parse(&damaged).unwrap(), header, "byte {at}");
        }
    }
}
