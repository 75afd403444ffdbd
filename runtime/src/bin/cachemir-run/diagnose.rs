//! Errors on the screen.

use std::process::ExitCode;

use cachemir_ir::diagnostics::{self, Failure};
use cachemir_runtime::Error;

use crate::output;

/// Shows why the command line cannot be read, or the help or version that it asks for, and ends the process.
pub(crate) fn misuse(error: &clap::Error, json: bool) -> ! {
    if json && error.use_stderr() {
        object(&Failure::new(Error::COMMAND_LINE, error.to_string().trim_end()));
    }
    error.exit()
}

/// Shows an error and gives the exit code: 2 where the command line is at fault, 130 after Ctrl-C, else 1.
pub(crate) fn report(error: &Error, json: bool) -> ExitCode {
    if matches!(error, Error::Closed) {
        return ExitCode::SUCCESS;
    }
    let failure = Failure { help: error.help(), ..Failure::new(error.code(), error) };
    if json {
        object(&failure);
    }
    if matches!(error, Error::Interrupted) {
        output::complain("interrupted: nothing more was generated");
        return ExitCode::from(crate::INTERRUPTED);
    }
    output::complain(&failure.text(output::columns()));
    match error {
        Error::EmptyPrompt | Error::SamplingOption { .. } | Error::BadOption { .. } | Error::NoSuchToken { .. } => {
            ExitCode::from(2)
        }
        _ => ExitCode::FAILURE,
    }
}

/// The error as a JSON object on stdout.
fn object(failure: &Failure<'_>) {
    // A stdout that cannot be written leaves the text on stderr.
    let _ = output::line(&failure.json());
}

/// The text of an error code of either program, or the list of all.
pub(crate) fn explain(code: Option<&str>) -> Result<(), Error> {
    let text = diagnostics::explanation(code, output::columns()).ok_or_else(|| Error::BadOption {
        option: "CODE",
        message: format!("there is no error code `{}`; `cachemir-run explain` lists all", code.unwrap_or_default()),
    })?;
    output::text(&text)
}
