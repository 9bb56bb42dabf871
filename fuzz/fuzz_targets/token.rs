//! The join token, as somebody typed it.
#![no_main]

use common::net::Token;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(token) = text.parse::<Token>() {
        assert_eq!(token.to_string().to_lowercase(), text.trim().to_lowercase());
    }
});
