//! `cachemir-run`: executes a plan and streams the text that it generates.
//!
//! stdout carries the generated text alone, or one JSON object a line with `--json`; progress and statistics go to
//! stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted, also where
//! part of the work is done and shown.
#![forbid(unsafe_code)]

mod arguments;
mod bench;
mod diagnose;
mod doctor;
mod estimate;
mod evaluate;
mod generate;
mod opening;
mod output;
mod timing;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arguments::{Arguments, Bench, Command};
use cachemir_runtime::Error;

/// What shells say of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// Stack of each thread, as large as the main thread's usually is.
const STACK_BYTES: usize = 8 << 20;

fn main() -> ExitCode {
    let arguments = match Arguments::read(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(error) => diagnose::misuse(&error, std::env::args_os().any(|argument| argument == "--json")),
    };
    let json = arguments.json();
    if arguments.quiet {
        output::be_quiet();
    }
    let interrupt = Arc::new(AtomicBool::new(false));
    match start(arguments, &interrupt) {
        Ok(()) if interrupt.load(Ordering::Relaxed) => ExitCode::from(INTERRUPTED),
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => diagnose::report(&error, json),
    }
}

/// Runs everything on a thread of the pool: from there a parallel kernel begins at once, while from any other thread it
/// would first have to wake one of the pool's, thousands of times a second.
fn start(arguments: Arguments, interrupt: &Arc<AtomicBool>) -> Result<(), Error> {
    let threads = arguments.threads().unwrap_or(0);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).stack_size(STACK_BYTES).build();
    let pool =
        pool.map_err(|error| Error::System { what: "starting threads", source: std::io::Error::other(error) })?;
    pool.install(|| run(arguments, interrupt))
}

fn run(arguments: Arguments, interrupt: &Arc<AtomicBool>) -> Result<(), Error> {
    match arguments.command {
        None => {
            catch_interrupts(interrupt)?;
            generate::run(&arguments.generate, interrupt)
        }
        Some(Command::Bench(Bench::Plan(options))) => {
            catch_interrupts(interrupt)?;
            bench::plan(&options, interrupt)
        }
        Some(Command::Bench(Bench::Layer(options))) => {
            catch_interrupts(interrupt)?;
            bench::layer(&options, interrupt)
        }
        Some(Command::Bench(Bench::Ops(options))) => bench::ops(&options),
        Some(Command::Eval(options)) => {
            catch_interrupts(interrupt)?;
            evaluate::run(&options, interrupt)
        }
        Some(Command::Doctor(options)) => doctor::run(&options),
        Some(Command::Explain { code }) => diagnose::explain(code.as_deref()),
        Some(Command::Completions { shell }) => completions(shell),
        Some(Command::Man { command }) => manual(command.as_deref()),
    }
}

fn completions(shell: clap_complete::Shell) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::grammar(), "cachemir-run", &mut script);
    output::text(String::from_utf8_lossy(&script).trim_end())
}

fn manual(command: Option<&str>) -> Result<(), Error> {
    let mut page = Arguments::grammar();
    page.build();
    if let Some(name) = command {
        let unknown = || Error::BadOption { option: "COMMAND", message: format!("there is no command `{name}`") };
        page = page.find_subcommand(name).ok_or_else(unknown)?.clone();
    }
    let mut text = Vec::new();
    let rendered = clap_mangen::Man::new(page).render(&mut text);
    rendered.map_err(|source| Error::System { what: "writing the manual page", source })?;
    output::text(String::from_utf8_lossy(&text).trim_end())
}

/// The first Ctrl-C asks for a clean end, the second one ends at once.
fn catch_interrupts(interrupt: &Arc<AtomicBool>) -> Result<(), Error> {
    let flag = Arc::clone(interrupt);
    let handler = move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED.into());
        }
    };
    ctrlc::set_handler(handler)
        .map_err(|error| Error::System { what: "setting the handler of Ctrl-C", source: std::io::Error::other(error) })
}
