//! What a neighbour in the ring sends: its introduction, stream headers, values
//! in pieces. The first byte chooses.
#![no_main]

use common::ring::SpanMut;
use common::ring::encoding::{Decoder, Encoding, Merge, decode_add, decode_store, round_in_place};
use common::simd::{from_bf16, to_bf16};
use common::ring::header::StreamHeader;
use fuzz::block_on;
use libfuzzer_sys::fuzz_target;

fn header(bytes: &[u8]) {
    let Some(bytes) = bytes.first_chunk() else { return };
    if let Ok(header) = StreamHeader::parse(bytes) {
        assert_eq!(header.to_bytes(), *bytes);
    }
}

/// The same values from one piece and from pieces of any lengths.
fn values(encoding: Encoding, merge: Merge, bytes: &[u8]) {
    let Some((&cut, bytes)) = bytes.split_first() else { return };
    let bytes = &bytes[..bytes.len() - bytes.len() % encoding.width()];
    let before: Vec<f32> = (0..bytes.len() / encoding.width()).map(|n| n as f32 - 7.5).collect();
    let mut whole = before.clone();
    match merge {
        Merge::Store => decode_store(encoding, bytes, &mut whole),
        Merge::Add => decode_add(encoding, bytes, &mut whole),
        Merge::AddAndRound => {
            decode_add(encoding, bytes, &mut whole);
            round_in_place(encoding, &mut whole);
        }
    }
    let (mut decoder, mut chunk) = (Decoder::new(encoding, merge), before);
    for piece in bytes.chunks(1 + usize::from(cut)) {
        decoder.push(piece, &mut chunk);
    }
    assert_eq!(decoder.done(), chunk.len());
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&chunk), bits(&whole));
    if encoding == Encoding::Bf16 {
        kept_as_bf16(merge, bytes, 1 + usize::from(cut));
    }
}

/// What is kept as bf16 is what f32 would be rounded to.
fn kept_as_bf16(merge: Merge, bytes: &[u8], cut: usize) {
    let mut kept: Vec<u16> = (0..bytes.len() / 2).map(|n| n as u16 ^ 0x3f80).collect();
    let mut plain: Vec<f32> = kept.iter().map(|&bits| from_bf16(bits)).collect();
    Decoder::new(Encoding::Bf16, merge).push(bytes, &mut plain);
    let mut decoder = Decoder::new(Encoding::Bf16, merge);
    bytes.chunks(cut).for_each(|piece| decoder.push(piece, SpanMut::Bf16(&mut kept)));
    let rounded: Vec<u16> = plain.iter().map(|&value| to_bf16(value)).collect();
    // A NaN is one whatever its other bits say.
    let same = |(a, b): (&u16, &u16)| a == b || (from_bf16(*a).is_nan() && from_bf16(*b).is_nan());
    assert!(kept.iter().zip(&rounded).all(same));
}

fuzz_target!(|input: &[u8]| {
    let Some((&choice, bytes)) = input.split_first() else { return };
    match choice % 14 {
        0 => header(bytes),
        1 => block_on(common::fuzzing::ring_introduction(bytes)),
        n => {
            let encoding = [Encoding::F32, Encoding::Bf16, Encoding::Fixed, Encoding::Largest][usize::from(n - 2) % 4];
            let merge = [Merge::Add, Merge::AddAndRound, Merge::Store][usize::from(n - 2) / 4];
            values(encoding, merge, bytes);
        }
    }
});
