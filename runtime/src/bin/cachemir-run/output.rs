//! What goes to stdout and stderr, and when.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cachemir_ir::cost::CostTable;
use cachemir_ir::diagnostics::{self, wrapped};
use cachemir_ir::text::counted;
use cachemir_runtime::executor::Site;
use cachemir_runtime::generation::{Meter, Step};
use cachemir_runtime::{Error, Listener};
use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

/// Where nobody reads on, there is nothing left to do.
fn stdout_error(source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::BrokenPipe => Error::Closed,
        _ => Error::System { what: "writing to stdout", source },
    }
}

/// Writes a JSON object as a line to stdout.
pub(crate) fn line(object: &Value) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{object}").and_then(|()| stdout.flush()).map_err(stdout_error)
}

/// Whether only errors and what was asked for are shown. Set once, before anything is written.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Shows errors and what was asked for, and nothing else, from now on.
pub(crate) fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

fn quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// The width of the terminal at stderr.
pub(crate) fn columns() -> usize {
    diagnostics::columns(Term::stderr().size_checked().map(|(_, columns)| columns.into()))
}

/// Writes an error to stderr.
pub(crate) fn complain(text: &str) {
    // There is nowhere else to report to.
    let _ = writeln!(io::stderr().lock(), "{}", text.trim_end());
}

/// Writes what is of interest beside the result to stderr, in lines that fit a terminal.
pub(crate) fn note(text: &str) {
    if quiet() {
        return;
    }
    if io::stderr().is_terminal() {
        complain(&wrapped(text.trim_end(), columns(), "  ").join("\n"));
    } else {
        complain(text);
    }
}

/// Columns of the labels of [`rows`].
const LABEL: usize = 12;

/// Writes a table of labels and texts to stderr, in lines that fit a terminal.
pub(crate) fn rows(rows: &[(&str, String)]) {
    if quiet() {
        return;
    }
    let row =
        |(label, text): &(&str, String)| wrapped(&format!("{label:<LABEL$}{text}"), columns(), &" ".repeat(LABEL));
    complain(&rows.iter().flat_map(row).collect::<Vec<_>>().join("\n"));
}

/// A time for people.
pub(crate) fn seconds(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    if whole < 3600 {
        format!("{} min {} s", whole / 60, whole % 60)
    } else {
        format!("{} h {} min", whole / 3600, whole / 60 % 60)
    }
}

/// A bar on stderr, invisible where that is no terminal.
pub(crate) fn bar(length: u64, label: &str, bytes: bool) -> ProgressBar {
    let numbers = if bytes { "{binary_bytes}/{binary_total_bytes}" } else { "{percent:>3} %" };
    let template = format!("{{msg:<24}} [{{bar:30}}] {numbers}, {{eta}} left");
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let target = if quiet() { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(Some(length), target).with_style(style.progress_chars("=> "));
    bar.set_message(label.to_owned());
    bar
}

/// Shows progress on stderr while text streams to stdout.
enum Progress {
    /// The text goes elsewhere, or has not begun.
    Bar(ProgressBar),
    /// The text streams to the same terminal: the status is drawn on the line below it.
    Below { begin: Instant, drawn: Instant },
    /// No terminal, but a log perhaps: a line for each finished call that takes a part of the prompt in.
    Lines { begin: Instant, prompt_end: usize },
    /// Nobody watches.
    Silent,
}

/// The listener of a generation: text, JSON events and progress.
pub(crate) struct Screen<'a> {
    json: bool,
    show_text: bool,
    progress: Progress,
    meter: Meter<'a>,
    expected_ns: f64,
    logits: Option<(BufWriter<File>, Option<io::Error>)>,
    step: Option<Step>,
    began: Instant,
    tokens: usize,
}

/// What a screen shows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScreenOptions {
    /// JSON events instead of text.
    pub(crate) json: bool,
    /// Whether tokens are shown at all.
    pub(crate) show_tokens: bool,
    /// Predicted time of the whole run, in nanoseconds on one thread.
    pub(crate) expected_ns: f64,
    /// Where the prompt ends whose progress is shown in lines where there is no terminal.
    pub(crate) prompt_end: Option<usize>,
}

/// Resolution of the bar.
const TICKS: f64 = 10_000.0;

impl<'a> Screen<'a> {
    pub(crate) fn new(
        options: ScreenOptions,
        costs: &'a CostTable,
        slots: u32,
        interrupt: &'a AtomicBool,
        logits: Option<File>,
    ) -> Self {
        let ScreenOptions { json, show_tokens, expected_ns, prompt_end } = options;
        let progress = match prompt_end {
            _ if quiet() => Progress::Silent,
            _ if io::stderr().is_terminal() => Progress::Bar(bar(TICKS as u64, "prompt", false)),
            Some(prompt_end) => Progress::Lines { begin: Instant::now(), prompt_end },
            None => Progress::Silent,
        };
        Self {
            json,
            show_text: show_tokens,
            progress,
            meter: Meter::new(costs, slots, interrupt),
            expected_ns: expected_ns.max(1.0),
            logits: logits.map(|file| (BufWriter::new(file), None)),
            step: None,
            began: Instant::now(),
            tokens: 0,
        }
    }

    /// Clears the progress, ends the line of text and reports a failure to write logits.
    pub(crate) fn finish(mut self) -> Result<(), Error> {
        self.clear();
        if !self.json && self.show_text && self.tokens > 0 {
            let mut stdout = io::stdout().lock();
            match writeln!(stdout).and_then(|()| stdout.flush()).map_err(stdout_error) {
                Ok(()) | Err(Error::Closed) => {}
                Err(error) => return Err(error),
            }
        }
        let written = match self.logits.take() {
            Some((mut file, None)) => file.flush(),
            Some((_, Some(error))) => Err(error),
            None => Ok(()),
        };
        written.map_err(|source| Error::System { what: "writing the logits", source })
    }

    fn clear(&mut self) {
        match &self.progress {
            Progress::Bar(bar) => bar.finish_and_clear(),
            Progress::Below { .. } => below(""),
            Progress::Lines { .. } | Progress::Silent => {}
        }
    }

    /// How much of what is expected is done, by predicted time.
    fn done(&self) -> f64 {
        (self.meter.done_ns / self.expected_ns).min(1.0)
    }

    /// Says that a call for the prompt has ended, if the last one was one and is not said yet.
    fn prompt_step_ended(&self) {
        if let (Progress::Lines { begin, prompt_end }, Some(Step { position, count, .. }), 0) =
            (&self.progress, self.step, self.tokens)
        {
            let elapsed = begin.elapsed().as_secs_f64();
            note(&format!(
                "prompt: {} of {} after {}, about {} left",
                position + count,
                counted(*prompt_end, "token"),
                seconds(elapsed),
                seconds(time_left(elapsed, self.done()))
            ));
        }
    }

    fn update(&mut self) {
        let done = self.done();
        match &mut self.progress {
            Progress::Bar(bar) => bar.set_position((done * TICKS) as u64),
            Progress::Below { begin, drawn } if drawn.elapsed() > Duration::from_millis(200) => {
                *drawn = Instant::now();
                let left = time_left(begin.elapsed().as_secs_f64(), done);
                let filled = (done * 30.0) as usize;
                below(&format!("[{:<30}] {:3.0} %, {} left", "=".repeat(filled), 100.0 * done, seconds(left)));
            }
            Progress::Below { .. } | Progress::Lines { .. } | Progress::Silent => {}
        }
    }
}

/// Seconds until the end where a part, which took so many seconds, is done.
fn time_left(elapsed: f64, done: f64) -> f64 {
    elapsed * (1.0 - done) / done.max(1e-6)
}

/// Draws a status on the line below the cursor, which stays where it is. Makes room for the line first.
fn below(status: &str) {
    let mut stderr = io::stderr().lock();
    // There is nowhere else to report to.
    let _ = write!(stderr, "\x1bD\x1bM\x1b7\x1bD\r\x1b[2K{status}\x1b8").and_then(|()| stderr.flush());
}

impl Listener for Screen<'_> {
    fn before(&mut self, _: Site<'_>) -> Result<(), Error> {
        self.meter.check()
    }

    fn after(&mut self, site: Site<'_>) {
        self.meter.count(site);
        self.update();
    }

    fn step(&mut self, step: Step) {
        self.prompt_step_ended();
        self.step = Some(step);
        self.update();
    }

    fn logits(&mut self, logits: &[f64]) {
        self.prompt_step_ended();
        let Some((file, failure)) = &mut self.logits else { return };
        let position = self.step.map_or(0, |step| step.position + step.count - 1);
        let object = json!({"position": position, "logits": logits});
        if failure.is_none() {
            *failure = writeln!(file, "{object}").err();
        }
    }

    fn token(&mut self, token: u32, text: &str) -> Result<(), Error> {
        self.tokens += 1;
        let step_seconds = self.began.elapsed().as_secs_f64();
        self.began = Instant::now();
        if self.json {
            if self.show_text {
                line(&json!({"event": "token", "id": token, "text": text, "seconds": step_seconds}))?;
            }
        } else if self.show_text {
            let shared = io::stdout().is_terminal() && io::stderr().is_terminal();
            if let (true, Progress::Bar(bar)) = (shared, &self.progress) {
                let begin = Instant::now().checked_sub(bar.elapsed()).unwrap_or_else(Instant::now);
                bar.finish_and_clear();
                self.progress = Progress::Below { begin, drawn: Instant::now() };
            } else if text.contains('\n') {
                self.clear();
            }
            let mut stdout = io::stdout().lock();
            stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(stdout_error)?;
        }
        if let Progress::Bar(bar) = &self.progress {
            bar.set_message(counted(self.tokens, "token"));
        }
        Ok(())
    }

    fn rest(&mut self, text: &str) -> Result<(), Error> {
        if self.json || !self.show_text {
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(stdout_error)
    }
}

/// Writes text to stdout.
pub(crate) fn text(text: &str) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}").and_then(|()| stdout.flush()).map_err(stdout_error)
}
