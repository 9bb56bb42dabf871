//! A library's decoder that panics at damaged bytes fails at its file and at nothing else.

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// The result of `work`, or what its panic said. The terminal shows nothing of it: the
/// caller names the file.
pub fn run<T>(work: impl FnOnce() -> T) -> Result<T, String> {
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

/// What a panic said.
pub fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no reason given".to_owned())
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
