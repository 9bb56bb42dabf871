//! Pictures: JPEG with its EXIF data, PNG.
#![no_main]

use common::dataset::SampleFormat;
use libfuzzer_sys::fuzz_target;
use worker::data::decode;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(picture) = decode(SampleFormat::Encoded, bytes) {
        assert_eq!(picture.pixels.len(), picture.height as usize * picture.width as usize * picture.channels as usize);
    }
});
