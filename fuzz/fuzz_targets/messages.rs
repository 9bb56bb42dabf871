//! The messages between coordinator, workers and donors, a picture that one of them carries,
//! and relayed packets, from a stream of bytes.
//! The first byte chooses which.
#![no_main]

use std::fmt::Debug;

use common::predictions::{Guess, PredictedPicture, Predictions};
use common::wire::messages::{BulkReply, BulkRequest, MAX_CONTROL, MAX_REQUEST, ToCoordinator, ToWorker};
use common::wire::{read_message, write_message};
use fuzz::block_on;
use libfuzzer_sys::fuzz_target;

/// Reads what there is; what was valid must be writable, and read back as itself.
macro_rules! read_all {
    ($message:ty, $max:expr, $bytes:expr) => {
        block_on(async {
            let mut rest: &[u8] = $bytes;
            while let Ok(Some(message)) = read_message::<$message>(&mut rest, $max).await {
                let mut written = Vec::new();
                write_message(&mut written, &message).await.expect("a message is writable");
                let again = read_message::<$message>(&mut &written[..], usize::MAX).await.expect("what was written is valid");
                same(&again, &Some(message));
            }
        })
    };
}

/// By their text, because a measured value may be NaN.
fn same(a: &impl Debug, b: &impl Debug) {
    assert_eq!(format!("{a:?}"), format!("{b:?}"));
}

fuzz_target!(|input: &[u8]| {
    let Some((&choice, bytes)) = input.split_first() else { return };
    match choice % 6 {
        0 => read_all!(ToCoordinator, MAX_CONTROL, bytes),
        1 => read_all!(ToWorker, MAX_CONTROL, bytes),
        2 => read_all!(BulkRequest, MAX_REQUEST, bytes),
        3 => read_all!(BulkReply, MAX_REQUEST, bytes),
        4 => {
            let guesses = vec![Guess { class: 0, probability: 1.0 }];
            let _ = Predictions { step: 0, pictures: vec![PredictedPicture { label: 0, guesses, png: bytes.to_vec() }] }.check(1);
        }
        _ => common::fuzzing::relay(bytes),
    }
});
