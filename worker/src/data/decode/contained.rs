//! A decoder that panics fails at its file and at nothing else.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use crate::data::pipeline::panic_message;

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// The result of `work`, or what its panic said. The terminal shows nothing of it: the
/// caller names the file.
pub(super) fn run<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !CONTAINED.get() {
                before(info);
            }
        }));
    });
    CONTAINED.set(true);
    // What `work` leaves half done is dropped with its stack.
    let outcome = panic::catch_unwind(AssertUnwindSafe(work));
    CONTAINED.set(false);
    outcome.map_err(|panic| panic_message(&*panic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_and_the_thread_goes_on() {
        assert_eq!(run(|| -> u32 { panic!("table {} is missing", 3) }), Err("table 3 is missing".to_owned()));
        assert!(!CONTAINED.get(), "later panics are shown");
        assert_eq!(run(|| 7), Ok(7));
    }
}
