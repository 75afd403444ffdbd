//! Panics of libraries that read what users give.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs what a library does with a file's contents, and returns the message of a panic as an error: the contents are at
/// fault, and the caller drops whatever was made of them.
pub fn contained<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(ToString::to_string);
        text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it panics".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::contained;

    #[test]
    fn a_panic_is_an_error_with_its_message() {
        assert_eq!(contained(|| 1), Ok(1));
        assert_eq!(contained(|| panic!("fixed")).unwrap_err(), "fixed");
        let number = 3;
        assert_eq!(contained(|| panic!("entry {number}")).unwrap_err(), "entry 3");
    }
}
