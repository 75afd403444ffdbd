//! Errors on the screen.

use std::fmt;
use std::process::ExitCode;

use cachemir_ir::diagnostics;
use cachemir_runtime::Error;

use crate::output;

/// An error with its code and explanation.
#[derive(Debug)]
struct Failure<'a>(&'a Error);

impl fmt::Display for Failure<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Failure<'_> {}

impl miette::Diagnostic for Failure<'_> {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.0.code()))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        diagnostics::explain(self.0.code()).map(|code| Box::new(code.explanation) as Box<dyn fmt::Display>)
    }
}

/// The error as a JSON object on stdout.
fn object(code: &str, message: &str) {
    let help = diagnostics::explain(code).map(|code| code.explanation);
    // A closed stdout leaves the text on stderr.
    let _ = output::line(&serde_json::json!({"event": "error", "code": code, "message": message, "help": help}));
}

/// Shows why the command line cannot be read, or the help or version that it asks for, and ends the process.
pub(crate) fn misuse(error: &clap::Error, json: bool) -> ! {
    if json && error.use_stderr() {
        object(Error::COMMAND_LINE, error.to_string().trim_end());
    }
    error.exit()
}

/// Shows an error and gives the exit code: 2 where the command line is at fault, else 1.
pub(crate) fn report(error: &Error, json: bool) -> ExitCode {
    if json {
        object(error.code(), &error.to_string());
    }
    if matches!(error, Error::Interrupted) {
        output::complain("interrupted: nothing more was generated");
        return ExitCode::FAILURE;
    }
    let mut text = String::new();
    let handler = miette::GraphicalReportHandler::new()
        .with_links(false)
        .with_width(output::columns())
        .with_break_words(false)
        .with_word_separator(textwrap::WordSeparator::AsciiSpace)
        .with_word_splitter(textwrap::WordSplitter::NoHyphenation);
    if handler.render_report(&mut text, &Failure(error)).is_err() {
        text = format!("{}: {error}\n", error.code());
    }
    output::complain(&text);
    match error {
        Error::EmptyPrompt | Error::SamplingOption { .. } | Error::BadOption { .. } | Error::NoSuchToken { .. } => {
            ExitCode::from(2)
        }
        _ => ExitCode::FAILURE,
    }
}

/// The text of an error code of either program.
pub(crate) fn explain(code: &str) -> Result<(), Error> {
    let runtime = diagnostics::explain(code);
    let text = runtime
        .map(|known| format!("{}: {}\n\n{}", known.code, known.title, known.explanation))
        .or_else(|| {
            let text = cachemir_compiler::error::explain(code)?;
            Some(format!("{}\n\n{text}", code.to_ascii_uppercase()))
        })
        .ok_or_else(|| Error::BadOption {
            option: "CODE",
            message: format!("there is no error code `{code}`; codes look like CMR-R001 or C0201"),
        })?;
    output::text(&textwrap::fill(&text, output::columns()))
}
