//! Errors as both programs show them: the stable codes with their explanations, and one form for people and one for tools.
//!
//! A code never changes its meaning and is never reused.

mod codes;

use std::fmt;

use serde_json::{Value, json};

pub use codes::{CODES, Code};

/// The entry of a code, compared without regard to case.
pub fn explain(code: &str) -> Option<&'static Code> {
    CODES.iter().find(|entry| entry.code.eq_ignore_ascii_case(code))
}

/// What a code means and what to do about it, or all codes with their titles where none is asked for, in lines of so many
/// columns; `None` where there is no such code.
pub fn explanation(code: Option<&str>, columns: usize) -> Option<String> {
    let Some(code) = code else {
        let line = |entry: &Code| wrapped(&format!("{:<9} {}", entry.code, entry.title), columns, "          ");
        return Some(CODES.iter().flat_map(line).collect::<Vec<_>>().join("\n"));
    };
    let Code { code, title, explanation } = explain(code)?;
    let lines =
        [wrapped(&format!("{code}: {title}"), columns, ""), vec![String::new()], wrapped(explanation, columns, "")];
    Some(lines.concat().join("\n"))
}

/// Text in lines of so many columns, broken between words only, those after the first with an indent.
pub fn wrapped(text: &str, columns: usize, indent: &str) -> Vec<String> {
    let options = textwrap::Options::new(columns)
        .subsequent_indent(indent)
        .break_words(false)
        .word_separator(textwrap::WordSeparator::AsciiSpace)
        .word_splitter(textwrap::WordSplitter::NoHyphenation);
    textwrap::wrap(text, options).into_iter().map(std::borrow::Cow::into_owned).collect()
}

/// Columns of what is no terminal.
const DEFAULT_COLUMNS: usize = 80;

/// Columns to write for: `COLUMNS` where it is set, those of the terminal where there is one, else 80.
pub fn columns(terminal: Option<usize>) -> usize {
    let set = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    set.or(terminal).filter(|&columns| columns > 0).unwrap_or(DEFAULT_COLUMNS)
}

/// An error as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure<'e> {
    /// The stable code.
    pub code: &'e str,
    /// What went wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
    /// The ONNX node that it is about, where it is about one.
    pub node: Option<&'e str>,
}

impl<'e> Failure<'e> {
    /// An error with the help that its code has.
    pub fn new(code: &'e str, message: impl fmt::Display) -> Self {
        let help = explain(code).map(|code| code.explanation.to_owned());
        Self { code, message: message.to_string(), help, node: None }
    }

    /// The error for tools.
    pub fn json(&self) -> Value {
        let Self { code, message, help, node } = self;
        json!({"event": "error", "code": code, "message": message, "help": help, "node": node})
    }

    /// The error for people, in lines of so many columns.
    #[cfg(feature = "cli")]
    pub fn text(&self, columns: usize) -> String {
        let mut text = String::new();
        let handler = miette::GraphicalReportHandler::new()
            .with_links(false)
            .with_width(columns)
            .with_break_words(false)
            .with_word_separator(textwrap::WordSeparator::AsciiSpace)
            .with_word_splitter(textwrap::WordSplitter::NoHyphenation);
        match handler.render_report(&mut text, self) {
            Ok(()) => text,
            Err(fmt::Error) => format!("{}: {}\n", self.code, self.message),
        }
    }
}

impl fmt::Display for Failure<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure<'_> {}

#[cfg(feature = "cli")]
impl miette::Diagnostic for Failure<'_> {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.code))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_ascend_and_are_found() {
        assert!(CODES.windows(2).all(|pair| pair[0].code < pair[1].code));
        assert_eq!(explain("cmr-r011").map(|entry| entry.code), Some("CMR-R011"));
        assert_eq!(explain("c0101").map(|entry| entry.code), Some("C0101"));
        assert!(explain("CMR-R999").is_none() && explanation(Some("C9999"), 80).is_none());
    }

    #[test]
    fn all_codes_are_listed_in_lines_that_fit() {
        let list = explanation(None, 60).unwrap();
        assert!(list.lines().all(|line| line.chars().count() <= 60), "{list}");
        assert!(CODES.iter().all(|entry| list.contains(entry.code)), "{list}");
        let one = explanation(Some("cmr-r002"), 40).unwrap();
        assert!(one.starts_with("CMR-R002: the plan") && one.lines().all(|line| line.len() <= 40), "{one}");
    }

    #[test]
    fn failures_are_shown_to_people_and_to_tools() {
        let failure = Failure { node: Some("/model/MatMul"), ..Failure::new("CMR-R011", "too long") };
        let object = failure.json();
        assert_eq!((&object["code"], &object["message"]), (&"CMR-R011".into(), &"too long".into()));
        assert_eq!(object["node"], "/model/MatMul");
        #[cfg(feature = "cli")]
        {
            let text = failure.text(60);
            assert!(text.lines().all(|line| line.chars().count() <= 60), "{text}");
            for part in ["CMR-R011", "too long", "--context"] {
                assert!(text.contains(part), "{text}");
            }
        }
    }
}
