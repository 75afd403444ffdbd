//! Panics of libraries that read what users give.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs what a library does with a file's contents, and returns an error or a panic of it in words: the contents are at
/// fault, and the caller drops whatever was made of them.
pub fn contained<T, E: Display>(run: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(run)) {
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
