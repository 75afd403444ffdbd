//! What goes to stderr and stdout: progress, results, errors.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cachemir_compiler::progress::{Observer, Pass};
use cachemir_compiler::{Error, error};
use cachemir_ir::diagnostics::{self, Failure};
use cachemir_ir::files;
use cachemir_ir::plan::Storage;
use cachemir_ir::tensor::TensorModel;
use cachemir_ir::weights::Weights;
use console::Term;
use indicatif::{ProgressBar, ProgressStyle};

/// The width of a stream's terminal.
pub(crate) fn columns(stream: &Term) -> usize {
    diagnostics::columns(stream.size_checked().map(|(_, columns)| columns.into()))
}

/// Writes text to stdout.
pub(crate) fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // A reader that has seen enough, such as `head`, is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::Write { path: PathBuf::from("standard output"), source: error })
        }
        _ => Ok(()),
    }
}

/// Writes a line to stderr.
fn note(text: &str) {
    // There is nowhere else to report to.
    let _ = writeln!(io::stderr().lock(), "{}", text.trim_end());
}

/// Watches a compilation: shows progress on stderr, takes the time of passes, and ends it where the disk is too small.
pub(crate) struct Progress {
    show: Show,
    /// The file that the plan will be written to.
    plan: PathBuf,
    /// Where it will have its weights.
    storage: Storage,
    state: Mutex<State>,
}

/// How progress is shown.
enum Show {
    /// A bar on a terminal.
    Bar(ProgressBar),
    /// A line for each pass.
    Lines,
    /// Not at all.
    Nothing,
}

struct State {
    layers: usize,
    running: Option<(Pass, Instant)>,
    finished: Vec<(Pass, Duration)>,
}

/// Resolution of the bar.
const TICKS: f64 = 10_000.0;

impl Progress {
    /// Progress of a compilation that begins, whose plan will be written to a file.
    pub(crate) fn new(quiet: bool, plan: PathBuf, storage: Storage) -> Self {
        let show = match (quiet, io::stderr().is_terminal()) {
            (true, _) => Show::Nothing,
            (false, true) => Show::Bar(bar()),
            (false, false) => Show::Lines,
        };
        Self { show, plan, storage, state: Mutex::new(State { layers: 1, running: None, finished: Vec::new() }) }
    }

    /// Clears the bar; the time that each pass took.
    pub(crate) fn finish(self) -> Vec<(Pass, Duration)> {
        if let Show::Bar(bar) = &self.show {
            bar.finish_and_clear();
        }
        let mut state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        state.end();
        state.finished
    }
}

/// A bar of the whole compilation.
fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:<26} [{bar:24}] {percent:>3} %, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(TICKS as u64).with_style(style.progress_chars("=> "));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

impl State {
    fn end(&mut self) {
        if let Some((pass, begun)) = self.running.take() {
            self.finished.push((pass, begun.elapsed()));
        }
    }

    /// How much of all passes is done where so much of the running one is.
    fn done(&self, fraction: f64) -> f64 {
        let Some((running, _)) = self.running else { return 0.0 };
        let weight = |pass: &Pass| pass.weight(self.layers);
        let before: f64 = Pass::ALL.iter().filter(|pass| **pass < running).map(weight).sum();
        let total: f64 = Pass::ALL.iter().map(weight).sum();
        (before + fraction * weight(&running)) / total
    }
}

impl Observer for Progress {
    fn begin(&self, pass: Pass) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.end();
        state.running = Some((pass, Instant::now()));
        match &self.show {
            Show::Bar(bar) => {
                bar.set_message(pass.description());
                bar.set_position((state.done(0.0) * TICKS) as u64);
            }
            Show::Lines => note(pass.description()),
            Show::Nothing => {}
        }
    }

    fn model(&self, model: &TensorModel) -> Result<(), Error> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).layers = model.hyperparameters.layers;
        // The client's file has its embedding in any case.
        let embedding = model.weight_named("embed_tokens").and_then(|weight| weight.weights.as_ref());
        let bytes = embedding.map_or(0, Weights::stored_bytes)
            + if self.storage == Storage::Embed { model.stored_bytes() } else { 0 };
        files::check_room(&self.plan, bytes).map_err(|source| Error::Write { path: self.plan.clone(), source })
    }

    fn advance(&self, fraction: f64) {
        if let Show::Bar(bar) = &self.show {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            bar.set_position((state.done(fraction) * TICKS) as u64);
        }
    }
}

/// Shows why the command line cannot be read, or the help or version that it asks for, and ends the process.
pub(crate) fn misuse(error: &clap::Error, json: bool) -> ! {
    if json && error.use_stderr() {
        object(&Failure::new(error::COMMAND_LINE, error.to_string().trim_end()));
    }
    error.exit()
}

/// Shows an error and gives the exit code: 2 where the command line is at fault, else 1.
pub(crate) fn report(error: &Error, json: bool) -> ExitCode {
    let failure = Failure { node: error.node(), ..Failure::new(error.code(), error) };
    if json {
        object(&failure);
    }
    note(&failure.text(columns(&Term::stderr())));
    match error {
        Error::BadOption { .. } => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    }
}

/// The error as a JSON object on stdout.
fn object(failure: &Failure<'_>) {
    // A stdout that cannot be written leaves the text on stderr.
    let _ = print(&format!("{}\n", failure.json()));
}
