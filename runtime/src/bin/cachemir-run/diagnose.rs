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

/// Shows an error and gives the exit code: 2 where the command line is at fault, else 1.
pub(crate) fn report(error: &Error, json: bool) -> ExitCode {
    if json {
        let object = serde_json::json!({"event": "error", "code": error.code(), "message": error.to_string()});
        // A closed stdout leaves the text on stderr.
        let _ = output::line(&object);
    }
    if matches!(error, Error::Interrupted) {
        output::note("interrupted: nothing more was generated");
        return ExitCode::FAILURE;
    }
    let mut text = String::new();
    let handler = miette::GraphicalReportHandler::new().with_links(false);
    if handler.render_report(&mut text, &Failure(error)).is_err() {
        text = format!("{}: {error}\n", error.code());
    }
    output::note(&text);
    match error {
        Error::EmptyPrompt | Error::SamplingOption { .. } | Error::BadOption { .. } => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    }
}
