//! Converts values to and from bytes, and combines two of them: sums of little-endian
//! f32, of bf16 rounded to nearest even, of 32-bit integers, or the larger of two f32.
//! It knows no stream; [`Decoder`] takes bytes in pieces of any length, so that values
//! need not be assembled first.
//!
//! The loops are plain integer arithmetic over fixed-size chunks, which LLVM
//! turns into vector code ([`crate::simd`]).

use super::values::{Span, SpanMut};
use crate::config::WireEncoding;
use crate::simd::{from_bf16, to_bf16};
use crate::vectorised;

/// How a bucket's values travel and how they are reduced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// The sum, as f32.
    F32,
    /// The sum: bf16 on the wire, f32 in memory.
    Bf16,
    /// The sum of 32-bit integers, stored as the bits of the bucket's f32 values. It
    /// wraps around; the caller leaves room.
    Fixed,
    /// The maximum, as f32.
    Largest,
}

impl From<WireEncoding> for Encoding {
    fn from(wire: WireEncoding) -> Self {
        match wire {
            WireEncoding::F32 => Self::F32,
            WireEncoding::Bf16 => Self::Bf16,
        }
    }
}

impl Encoding {
    const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::Fixed, Self::Largest];

    /// The code of the encoding on the wire.
    pub fn code(self) -> u32 {
        self as u32
    }

    pub fn of_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|e| e.code() == code)
    }

    /// Bytes of one value.
    pub fn width(self) -> usize {
        match self {
            Self::F32 | Self::Fixed | Self::Largest => 4,
            Self::Bf16 => 2,
        }
    }
}

vectorised! {
    fn encode_bf16(values: &[f32], places: &mut [[u8; 2]]) {
        for (place, &value) in places.iter_mut().zip(values) {
            *place = to_bf16(value).to_le_bytes();
        }
    }
}

vectorised! {
    fn add_f32(places: &[[u8; 4]], values: &mut [f32]) {
        for (value, &place) in values.iter_mut().zip(places) {
            *value += f32::from_le_bytes(place);
        }
    }
}

vectorised! {
    fn add_fixed(places: &[[u8; 4]], values: &mut [f32]) {
        for (value, &place) in values.iter_mut().zip(places) {
            *value = f32::from_bits(value.to_bits().wrapping_add(u32::from_le_bytes(place)));
        }
    }
}

vectorised! {
    fn keep_largest(places: &[[u8; 4]], values: &mut [f32]) {
        for (value, &place) in values.iter_mut().zip(places) {
            *value = value.max(f32::from_le_bytes(place));
        }
    }
}

vectorised! {
    fn add_bf16(places: &[[u8; 2]], values: &mut [f32]) {
        for (value, &place) in values.iter_mut().zip(places) {
            *value += from_bf16(u16::from_le_bytes(place));
        }
    }
}

vectorised! {
    fn add_bf16_to_bf16(places: &[[u8; 2]], values: &mut [u16]) {
        for (value, &place) in values.iter_mut().zip(places) {
            *value = to_bf16(from_bf16(*value) + from_bf16(u16::from_le_bytes(place)));
        }
    }
}

vectorised! {
    fn copy_bf16(places: &[[u8; 2]], values: &mut [u16]) {
        for (value, &place) in values.iter_mut().zip(places) {
            *value = u16::from_le_bytes(place);
        }
    }
}

vectorised! {
    fn store_bf16(places: &[[u8; 2]], values: &mut [f32]) {
        for (value, &place) in values.iter_mut().zip(places) {
            *value = from_bf16(u16::from_le_bytes(place));
        }
    }
}

vectorised! {
    fn round_bf16(values: &mut [f32]) {
        for value in values {
            *value = from_bf16(to_bf16(*value));
        }
    }
}

/// Appends `values` to `out`. Values stored as bf16 travel as bf16 only.
pub fn encode<'a>(encoding: Encoding, values: impl Into<Span<'a>>, out: &mut Vec<u8>) {
    match (encoding, values.into()) {
        (Encoding::Bf16, Span::F32(values)) => {
            let start = out.len();
            out.resize(start + 2 * values.len(), 0);
            encode_bf16(values, out[start..].as_chunks_mut().0);
        }
        (Encoding::F32 | Encoding::Fixed | Encoding::Largest, Span::F32(values)) => {
            if cfg!(target_endian = "little") {
                out.extend_from_slice(bytemuck::cast_slice(values));
            } else {
                out.extend(values.iter().flat_map(|v| v.to_bits().to_le_bytes()));
            }
        }
        (_, Span::Bf16(values)) if cfg!(target_endian = "little") => out.extend_from_slice(bytemuck::cast_slice(values)),
        (_, Span::Bf16(values)) => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
    }
}

/// Combines encoded values with `values`. Both must hold the same number of values.
pub fn decode_add(encoding: Encoding, bytes: &[u8], values: &mut [f32]) {
    debug_assert_eq!(bytes.len(), values.len() * encoding.width());
    match encoding {
        Encoding::F32 => add_f32(bytes.as_chunks().0, values),
        Encoding::Bf16 => add_bf16(bytes.as_chunks().0, values),
        Encoding::Fixed => add_fixed(bytes.as_chunks().0, values),
        Encoding::Largest => keep_largest(bytes.as_chunks().0, values),
    }
}

/// Replaces `values` by encoded values. Both must hold the same number of values.
pub fn decode_store(encoding: Encoding, bytes: &[u8], values: &mut [f32]) {
    debug_assert_eq!(bytes.len(), values.len() * encoding.width());
    match encoding {
        Encoding::Bf16 => store_bf16(bytes.as_chunks().0, values),
        Encoding::F32 | Encoding::Fixed | Encoding::Largest => {
            for (value, &place) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f32::from_bits(u32::from_le_bytes(place));
            }
        }
    }
}

/// Rounds each value to what the other ranks will decode: the owner of a reduced chunk
/// does this, so that all ranks end with the same bits.
pub fn round_in_place(encoding: Encoding, values: &mut [f32]) {
    match encoding {
        Encoding::Bf16 => round_bf16(values),
        Encoding::F32 | Encoding::Fixed | Encoding::Largest => {}
    }
}

/// How arriving values are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merge {
    Add,
    /// Add, then [`round_in_place`].
    AddAndRound,
    Store,
}

/// Takes the bytes of one chunk in pieces cut anywhere and merges them into its
/// values in order.
#[derive(Debug)]
pub struct Decoder {
    encoding: Encoding,
    merge: Merge,
    /// Values merged so far.
    done: usize,
    /// The first bytes of a value that was split between two pieces.
    cut: [u8; 4],
    cut_len: usize,
}

impl Decoder {
    pub fn new(encoding: Encoding, merge: Merge) -> Self {
        Self { encoding, merge, done: 0, cut: [0; 4], cut_len: 0 }
    }

    /// Values merged so far.
    pub fn done(&self) -> usize {
        self.done
    }

    /// Merges one more piece into `chunk`, the whole chunk. The pieces together
    /// must not be longer than the chunk. A chunk of bf16 takes [`Encoding::Bf16`] only.
    pub fn push<'a>(&mut self, mut piece: &[u8], chunk: impl Into<SpanMut<'a>>) {
        let mut chunk = chunk.into();
        let width = self.encoding.width();
        if self.cut_len > 0 {
            let take = (width - self.cut_len).min(piece.len());
            self.cut[self.cut_len..self.cut_len + take].copy_from_slice(&piece[..take]);
            self.cut_len += take;
            piece = &piece[take..];
            if self.cut_len < width {
                return;
            }
            let cut = self.cut;
            self.merge(&cut[..width], chunk.reborrow());
            self.cut_len = 0;
        }
        let whole = piece.len() - piece.len() % width;
        self.merge(&piece[..whole], chunk);
        let rest = &piece[whole..];
        self.cut[..rest.len()].copy_from_slice(rest);
        self.cut_len = rest.len();
    }

    fn merge(&mut self, bytes: &[u8], chunk: SpanMut<'_>) {
        let range = self.done..self.done + bytes.len() / self.encoding.width();
        self.done = range.end;
        match (chunk, self.merge) {
            (SpanMut::F32(chunk), Merge::Store) => decode_store(self.encoding, bytes, &mut chunk[range]),
            (SpanMut::F32(chunk), Merge::Add) => decode_add(self.encoding, bytes, &mut chunk[range]),
            (SpanMut::F32(chunk), Merge::AddAndRound) => {
                decode_add(self.encoding, bytes, &mut chunk[range.clone()]);
                round_in_place(self.encoding, &mut chunk[range]);
            }
            (SpanMut::Bf16(chunk), Merge::Store) => copy_bf16(bytes.as_chunks().0, &mut chunk[range]),
            // Adding to a bf16 chunk rounds already.
            (SpanMut::Bf16(chunk), Merge::Add | Merge::AddAndRound) => add_bf16_to_bf16(bytes.as_chunks().0, &mut chunk[range]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed;
    use rand_chacha::rand_core::RngCore;

    #[test]
    fn bf16_is_rounded_as_the_half_crate_rounds_for_every_upper_half() {
        for upper in 0..=u16::MAX {
            for lower in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(upper) << 16 | lower);
                let (ours, theirs) = (to_bf16(value), half::bf16::from_f32(value).to_bits());
                assert_eq!(ours, theirs, "{:08x}", value.to_bits());
            }
        }
    }

    #[test]
    fn decoding_gives_back_what_was_encoded_and_rounding_is_idempotent() {
        let values: Vec<f32> = (0..1000).map(|i| (i as f32 - 500.0) * 0.37).collect();
        for encoding in [Encoding::F32, Encoding::Bf16] {
            let mut bytes = vec![7];
            encode(encoding, &values, &mut bytes);
            assert_eq!(bytes.len(), 1 + values.len() * encoding.width());
            let mut stored = vec![0.0; values.len()];
            decode_store(encoding, &bytes[1..], &mut stored);
            let mut expected = values.clone();
            round_in_place(encoding, &mut expected);
            assert_eq!(stored, expected);
            let mut again = Vec::new();
            encode(encoding, &stored, &mut again);
            assert_eq!(again, bytes[1..]);
            decode_add(encoding, &again, &mut stored);
            assert!(stored.iter().zip(&expected).all(|(twice, once)| *twice == once * 2.0));
        }
    }

    #[test]
    fn values_kept_as_bf16_give_the_bits_that_f32_would() {
        let rounded = |step: f32| -> Vec<f32> { (0..500).map(|i| from_bf16(to_bf16((i as f32 - 250.0) * step))).collect() };
        let (own, theirs) = (rounded(0.37), rounded(-0.21));
        let kept = || own.iter().map(|&v| to_bf16(v)).collect::<Vec<u16>>();
        let (mut bytes, mut same) = (Vec::new(), Vec::new());
        encode(Encoding::Bf16, Span::F32(&theirs), &mut bytes);
        encode(Encoding::Bf16, Span::Bf16(&theirs.iter().map(|&v| to_bf16(v)).collect::<Vec<u16>>()), &mut same);
        assert_eq!(bytes, same);
        for merge in [Merge::Add, Merge::AddAndRound, Merge::Store] {
            let (mut plain, mut compact) = (own.clone(), kept());
            Decoder::new(Encoding::Bf16, merge).push(&bytes, &mut plain);
            Decoder::new(Encoding::Bf16, merge).push(&bytes, SpanMut::Bf16(&mut compact));
            // The values sent on are rounded in either case.
            let (mut from_plain, mut from_compact) = (Vec::new(), Vec::new());
            encode(Encoding::Bf16, &plain[..], &mut from_plain);
            encode(Encoding::Bf16, Span::Bf16(&compact), &mut from_compact);
            assert_eq!(from_plain, from_compact, "{merge:?}");
        }
    }

    #[test]
    fn pieces_cut_anywhere_give_the_same_values() {
        let values: Vec<f32> = (0..257).map(|i| i as f32 * 1.7 - 3.0).collect();
        let own: Vec<f32> = (0..257).map(|i| i as f32 * 0.3).collect();
        for encoding in [Encoding::F32, Encoding::Bf16] {
            let mut bytes = Vec::new();
            encode(encoding, &values, &mut bytes);
            for merge in [Merge::Add, Merge::AddAndRound, Merge::Store] {
                let mut whole = own.clone();
                Decoder::new(encoding, merge).push(&bytes, &mut whole);
                for case in 0..50 {
                    let mut rng = seed::stream(case, "pieces", &[]);
                    let mut decoder = Decoder::new(encoding, merge);
                    let (mut chunk, mut rest) = (own.clone(), &bytes[..]);
                    while !rest.is_empty() {
                        let (piece, after) = rest.split_at((rng.next_u32() as usize % 19).min(rest.len()));
                        decoder.push(piece, &mut chunk);
                        rest = after;
                    }
                    assert_eq!(decoder.done(), values.len());
                    assert_eq!(chunk, whole);
                }
            }
        }
    }
}
