//! Golden, end-to-end and architecture tests of the workspace.
#![forbid(unsafe_code)]

use std::path::Path;

/// Compares text with a golden file; with `CACHEMIR_BLESS=1` in the environment, rewrites the file instead.
///
/// # Panics
/// At the first line that differs, or if the file cannot be read or written.
pub fn assert_golden(path: &Path, found: &str) {
    if std::env::var_os("CACHEMIR_BLESS").is_some_and(|value| value == "1") {
        std::fs::write(path, found).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        return;
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    if expected == found {
        return;
    }
    let (mut old, mut new, mut line) = (expected.lines(), found.lines(), 0);
    loop {
        line += 1;
        match (old.next(), new.next()) {
            (Some(a), Some(b)) if a == b => {}
            (a, b) => panic!(
                "{} differs at line {line}:\n  expected {}\n  found    {}\nCACHEMIR_BLESS=1 accepts what was found",
                path.display(),
                a.unwrap_or("the end"),
                b.unwrap_or("the end")
            ),
        }
    }
}
