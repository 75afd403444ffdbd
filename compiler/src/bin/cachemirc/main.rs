//! The compiler's command line: parses arguments, renders progress, results and diagnostics, and leaves the work to the
//! library.
//!
//! Results go to stdout, progress and errors to stderr; with `--json` an error is also a JSON object on stdout. Exit codes:
//! 0 done, 1 failed, 2 wrong usage.
#![forbid(unsafe_code)]

mod arguments;
mod screen;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use cachemir_compiler::compile::compile_watched;
use cachemir_compiler::progress::Pass;
use cachemir_compiler::{Compilation, CompileOptions, Error, PublicPrefix, dump, locate, summary};
use cachemir_ir::plan::{CLIENT_MAGIC, PLAN_MAGIC, Plan, Storage, client_path};
use cachemir_ir::{diagnostics, files, json as dump_form};
use clap::{CommandFactory, Parser};
use console::Term;
use serde_json::{Value, json};

use arguments::{Command, CommandLine, CompileArguments, Format, Schema, Stage};
use screen::{Progress, columns, print};

fn main() -> ExitCode {
    let line = match CommandLine::try_parse() {
        Ok(line) => line,
        Err(error) => screen::misuse(&error, std::env::args_os().any(|argument| argument == "--json")),
    };
    let json = line.json();
    let outcome = match line.command {
        Command::Compile(arguments) => compile(&arguments, line.quiet),
        Command::Inspect { plan, json } => inspect(&plan, json),
        Command::Explain { code } => explain(code.as_deref()),
        Command::Schema { of: Schema::Dump } => print(dump_form::SCHEMA),
        Command::Schema { of: Schema::Summary } => print(summary::SCHEMA),
        Command::Completions { shell } => completions(shell),
        Command::Man { command } => manual(command.as_deref()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => screen::report(&error, json),
    }
}

fn compile(arguments: &CompileArguments, quiet: bool) -> Result<(), Error> {
    let model = locate::model_file(&arguments.model)?;
    let output = match &arguments.output {
        Some(output) => output.clone(),
        // In the current folder.
        None => PathBuf::from(format!("{}.bin", locate::model_name(&model))),
    };
    check_writable(&output)?;
    if let Some(folder) = &arguments.dump_dir {
        dump::check_writable(folder)?;
    }
    let options = CompileOptions {
        config: arguments.config.clone(),
        tokenizer: arguments.tokenizer.clone(),
        calibration: arguments.calibrate.clone(),
        prefix: public_prefix(arguments)?,
        context: arguments.context,
        parameters: arguments.params.clone(),
        cost_table: arguments.cost_table.clone(),
        shapes_only: arguments.shapes_only,
    };
    let storage = Storage::from(arguments.weights);
    let progress = Progress::new(quiet, output.clone(), storage);
    let compiled = compile_watched(&model, &options, &progress);
    let passes = progress.finish();
    let compilation = compiled?;
    compilation.plan.write_with(&output, storage)?;
    if let Some(folder) = &arguments.dump_dir {
        dump_stages(&compilation, arguments, folder)?;
    }
    let client = client_path(&output);
    if arguments.json {
        let mut object = summary::json(&compilation.plan);
        object["files"] = json!({"plan": output.display().to_string(), "client": client.display().to_string()});
        let pass = |(pass, time): &(Pass, Duration)| json!({"name": pass.name(), "seconds": time.as_secs_f64()});
        object["passes"] = passes.iter().map(pass).collect::<Vec<Value>>().into();
        return print(&format!("{object}\n"));
    }
    let mut text = String::new();
    if !quiet {
        text += &summary::table::text(&compilation.plan, columns(&Term::stdout()));
    }
    if arguments.time_passes {
        for (pass, time) in &passes {
            text += &format!("  {:<26} {:8.2} s\n", pass.description(), time.as_secs_f64());
        }
    }
    if !quiet {
        text += &format!("wrote {} and {}\n", output.display(), client.display());
    }
    print(&text)
}

/// The public prefix that was asked for: the contents of a file of that name, or the text itself, unless that looks like the
/// name of a file that is not there.
fn public_prefix(arguments: &CompileArguments) -> Result<Option<PublicPrefix>, Error> {
    let Some(given) = &arguments.public_prefix else { return Ok(arguments.chat.then_some(PublicPrefix::Chat)) };
    let path = Path::new(given);
    if path.exists() {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        return Ok(Some(PublicPrefix::Text(text)));
    }
    let named = path.extension().is_some_and(|extension| extension == "txt") || given.contains('/');
    if named && !given.contains(char::is_whitespace) {
        let message = format!("there is no file {given}, and a text that is meant as one has spaces");
        return Err(Error::BadOption { option: "--public-prefix", message });
    }
    Ok(Some(PublicPrefix::Text(given.clone())))
}

/// Fails where the output's two files cannot be made, or would take the place of something else than a plan, before the
/// work that would be lost.
fn check_writable(output: &Path) -> Result<(), Error> {
    let client = client_path(output);
    if client == output {
        let message = format!("{} is where the client's part of the plan goes; choose another name", output.display());
        return Err(Error::BadOption { option: "--output", message });
    }
    [(output, PLAN_MAGIC), (&client, CLIENT_MAGIC)].into_iter().try_for_each(|(path, magic)| {
        files::check_writable(path, &magic).map_err(|source| Error::Write { path: path.to_owned(), source })
    })
}

fn dump_stages(compilation: &Compilation, arguments: &CompileArguments, folder: &Path) -> Result<(), Error> {
    let wanted = |stage| arguments.emit.is_empty() || arguments.emit.contains(&stage);
    let json = arguments.format == Format::Json;
    if wanted(Stage::Tensor) {
        dump::tensor(&compilation.tensor, folder, json)?;
    }
    if wanted(Stage::Slots) {
        dump::slots(&compilation.slots, folder, json)?;
    }
    if wanted(Stage::Ckks) {
        dump::ckks(&compilation.plan.program, &compilation.costs, folder, json)?;
    }
    Ok(())
}

fn inspect(path: &Path, json: bool) -> Result<(), Error> {
    let plan = Plan::read(path).map_err(|source| match source {
        unreadable @ cachemir_ir::Error::File { .. } => Error::Ir(unreadable),
        source => Error::Plan { path: path.to_owned(), source: Box::new(source) },
    })?;
    print(&if json {
        format!("{}\n", summary::json(&plan))
    } else {
        summary::table::text(&plan, columns(&Term::stdout()))
    })
}

fn explain(code: Option<&str>) -> Result<(), Error> {
    let text = diagnostics::explanation(code, columns(&Term::stdout())).ok_or_else(|| Error::BadOption {
        option: "CODE",
        message: format!("there is no error code `{}`; `cachemirc explain` lists all", code.unwrap_or_default()),
    })?;
    print(&(text + "\n"))
}

fn completions(shell: clap_complete::Shell) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut CommandLine::command(), "cachemirc", &mut script);
    print(&String::from_utf8_lossy(&script))
}

fn manual(command: Option<&str>) -> Result<(), Error> {
    let mut page = CommandLine::command();
    page.build();
    if let Some(name) = command {
        let found = page
            .find_subcommand(name)
            .ok_or_else(|| Error::BadOption { option: "COMMAND", message: format!("there is no command `{name}`") })?;
        page = found.clone();
    }
    let mut text = Vec::new();
    let rendered = clap_mangen::Man::new(page).render(&mut text);
    rendered.map_err(|source| Error::Write { path: PathBuf::from("standard output"), source })?;
    print(&String::from_utf8_lossy(&text))
}
