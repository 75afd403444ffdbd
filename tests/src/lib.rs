//! Golden, end-to-end and architecture tests of the workspace.
#![forbid(unsafe_code)]

/// What the README shows of the libraries, to be compiled.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;

mod clear_session;
pub mod filetests;
pub mod fuzz;
pub mod llama;
pub mod onnx;
mod random;

use std::path::Path;

pub use clear_session::ClearSession;
pub use random::SplitMix;

/// Compares text with a golden file; with `CACHEMIR_BLESS=1` in the environment, rewrites the file instead.
///
/// # Panics
/// At the first line that differs, or if the file cannot be read or written.
pub fn assert_golden(path: &Path, found: &str) {
    if let Some(difference) = golden_difference(path, found) {
        panic!("{difference}");
    }
}

/// The first line in which text differs from a golden file, in words; with `CACHEMIR_BLESS=1` in the environment, rewrites
/// the file instead.
///
/// # Panics
/// If the file cannot be read or written.
pub fn golden_difference(path: &Path, found: &str) -> Option<String> {
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    if expected == found {
        return None;
    }
    if std::env::var_os("CACHEMIR_BLESS").is_some_and(|value| value == "1") {
        std::fs::write(path, found).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        return None;
    }
    let (mut old, mut new, mut line) = (expected.lines(), found.lines(), 0);
    loop {
        line += 1;
        match (old.next(), new.next()) {
            (Some(a), Some(b)) if a == b => {}
            (None, None) => return Some(format!("{} differs in its line endings", path.display())),
            (a, b) => {
                return Some(format!(
                    "{} differs at line {line}:\n  expected {}\n  found    {}\nCACHEMIR_BLESS=1 accepts what was found",
                    path.display(),
                    a.unwrap_or("the end"),
                    b.unwrap_or("the end")
                ));
            }
        }
    }
}

/// Text whose numbers with a fraction are rounded to four significant digits, and to 0 below 10⁻⁹: what is left is the
/// same on machines whose mathematical libraries differ in the last bits.
pub fn rounded(text: &str) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = rest.find(|c| is_part(c) != is_part(first)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(length);
        match fraction(word) {
            Some(value) if value.abs() < 1e-9 => out.push('0'),
            Some(value) => out += &format!("{value:.3e}"),
            None => out.push_str(word),
        }
        rest = after;
    }
    out
}

/// The value of a word that is a number with a fraction or a negative exponent.
fn fraction(word: &str) -> Option<f64> {
    let digits = word.strip_prefix('-').unwrap_or(word);
    let number = digits.starts_with(|c: char| c.is_ascii_digit())
        && digits.chars().all(|c| c.is_ascii_digit() || ".e-".contains(c))
        && (digits.contains('.') || digits.contains("e-"));
    if number { word.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::rounded;

    #[test]
    fn only_fractions_are_rounded() {
        let text = "%1 = f %0 by -0.123456, [1.0, 1e-12] of t0[s + 64] layers.0.q.1 0..(pos / 2) 2^3 7230e6ec00 -4";
        let expected = "%1 = f %0 by -1.235e-1, [1.000e0, 0] of t0[s + 64] layers.0.q.1 0..(pos / 2) 2^3 7230e6ec00 -4";
        assert_eq!(rounded(text), expected);
    }
}
