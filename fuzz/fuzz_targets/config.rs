//! A config file and, after a zero byte, what `--set` lays over it.
#![no_main]

use common::config::{Config, InputShape};
use fuzz::parts;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let [text, set] = parts(input);
    let (Ok(text), Ok(set)) = (std::str::from_utf8(text), std::str::from_utf8(set)) else { return };
    let overrides: Vec<String> = if set.is_empty() { Vec::new() } else { set.lines().map(str::to_owned).collect() };
    let Ok(config) = Config::parse(text, "fuzzed.toml", &overrides) else { return };
    // What a run directory keeps and what workers are sent is the same config.
    let again = Config::parse(&config.to_toml(), "resolved.toml", &[]).expect("a resolved config is valid");
    assert_eq!(again.to_toml(), config.to_toml());
    assert_eq!(again.identity(), config.identity());
    let input = InputShape { channels: 3, image_size: config.data.pixels.image_size as usize, classes: 10 };
    let _ = config.model.parameters(input);
});
