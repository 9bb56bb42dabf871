//! What a neighbour in the ring sends: its introduction, stream headers, values
//! in pieces. The first byte chooses.
#![no_main]

use common::ring::encoding::{Decoder, Encoding, Merge, decode_add, decode_store, round_in_place};
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
