//! Panics of libraries that read what users give.

use std::cell::Cell;
use std::fmt::Display;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    /// Whether a panic of this thread is made an error, and not to be printed.
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Panics that are made errors print nothing; all others go to the hook that was there before.
fn silence_contained() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !CONTAINED.get() {
                before(info);
            }
        }));
    });
}

/// Runs what a library does with a file's contents, and returns an error or a panic of it in words: the contents are at
/// fault, and the caller drops whatever was made of them.
pub fn contained<T, E: Display>(run: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    silence_contained();
    let outer = CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(run));
    CONTAINED.set(outer);
    match result {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(ToString::to_string);
            Err(text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it panics".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::contained;

    #[test]
    fn a_panic_is_an_error_with_its_message() {
        let run = |run: fn() -> Result<u32, f64>| contained(run);
        assert_eq!(run(|| Ok(1)), Ok(1));
        assert_eq!(run(|| Err(0.5)).unwrap_err(), "0.5");
        assert_eq!(run(|| panic!("fixed")).unwrap_err(), "fixed");
        let number = 3;
        assert_eq!(contained(|| -> Result<(), f64> { panic!("entry {number}") }).unwrap_err(), "entry 3");
    }
}
