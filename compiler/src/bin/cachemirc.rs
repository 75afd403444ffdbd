//! The compiler's command line: parses arguments, renders results and diagnostics, and leaves the work to the library.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cachemir_compiler::compile::{Compilation, CompileOptions, compile};
use cachemir_compiler::import::DEFAULT_CONTEXT;
use cachemir_compiler::{Error, dump, summary};
use cachemir_ir::diagnostics;
use cachemir_ir::plan::{Plan, client_path};
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Compiles an ONNX Llama decoder to a plan that generates text under encryption.
#[derive(Parser)]
#[command(name = "cachemirc", version, about)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compile a model to a plan (and its client's part beside it)
    Compile(CompileArguments),
    /// Show what a plan holds and what it costs
    Inspect {
        /// The plan
        plan: PathBuf,
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Explain the code of an error message
    Explain {
        /// A code such as C0201 or CMR-R001
        code: String,
    },
}

#[derive(Args)]
struct CompileArguments {
    /// The ONNX model; external weights are found beside it
    model: PathBuf,
    /// Where to write the plan; the client's part goes beside it with the extension `client`
    #[arg(short, long, value_name = "PLAN")]
    output: PathBuf,
    /// The model's config.json, if it is not beside the model
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The model's tokenizer.json, if it is not beside the model
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Text whose value ranges decide the approximations, one sequence a line; sampled from the model by default
    #[arg(long, value_name = "FILE")]
    calibrate: Option<PathBuf>,
    /// Most tokens in a session, prompt included
    #[arg(long, value_name = "TOKENS", help = format!("Most tokens in a session, prompt included [default: the model's limit, at most {DEFAULT_CONTEXT}]"))]
    context: Option<usize>,
    /// Parameter set: n16 (128-bit security) or insecure-test (no security, for fast tests)
    #[arg(long, value_name = "NAME", default_value = "n16")]
    params: String,
    /// Stages to dump
    #[arg(long, value_enum, value_delimiter = ',', requires = "dump_dir")]
    emit: Vec<Stage>,
    /// Form of the dumps
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Folder for the dumps
    #[arg(long, value_name = "FOLDER")]
    dump_dir: Option<PathBuf>,
    /// Show the time each pass took
    #[arg(long)]
    time_passes: bool,
    /// Print one JSON object instead of the summary
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stage {
    Tensor,
    Slots,
    Ckks,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

fn main() -> ExitCode {
    let outcome = match CommandLine::parse().command {
        Command::Compile(arguments) => run_compile(&arguments),
        Command::Inspect { plan, json } => inspect(&plan, json),
        Command::Explain { code } => explain(&code),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = error.code();
            let report = miette::miette!(code = code, help = format!("cachemirc explain {code}"), "{error}");
            // Nothing is left to report to if standard error is closed.
            let _ = writeln!(io::stderr(), "{report:?}");
            ExitCode::FAILURE
        }
    }
}

fn run_compile(arguments: &CompileArguments) -> Result<(), Error> {
    let options = CompileOptions {
        config: arguments.config.clone(),
        tokenizer: arguments.tokenizer.clone(),
        calibration: arguments.calibrate.clone(),
        context: arguments.context,
        parameters: arguments.params.clone(),
    };
    check_writable(&arguments.output)?;
    let compilation = compile(&arguments.model, &options)?;
    if let Some(folder) = &arguments.dump_dir {
        dump_stages(&compilation, arguments, folder)?;
    }
    compilation.plan.write(&arguments.output)?;
    let text = if arguments.json {
        let mut json = summary::json(&compilation.plan);
        json["approximations"] = summary::approximations_json(&compilation.approximations);
        json["notes"] = compilation.notes.clone().into();
        json["pass_seconds"] = compilation.passes.iter().map(|(name, time)| (*name, time.as_secs_f64())).collect();
        format!("{json}\n")
    } else {
        let mut text = summary::text(&compilation.plan);
        text += &summary::approximations_text(&compilation.approximations);
        for note in &compilation.notes {
            text += &format!("note: {note}\n");
        }
        if arguments.time_passes {
            for (name, time) in &compilation.passes {
                text += &format!("  {name:<12} {:7.2} s\n", time.as_secs_f64());
            }
        }
        text + &format!("wrote {} and {}\n", arguments.output.display(), client_path(&arguments.output).display())
    };
    print(&text)
}

/// Fails where the output's two files cannot be made, before the work that would be lost.
fn check_writable(output: &Path) -> Result<(), Error> {
    let client = client_path(output);
    if client == output {
        let message = format!("{} is where the client's part of the plan goes; choose another name", output.display());
        return Err(Error::BadOption { option: "--output", message });
    }
    let is_folder = |path: &Path| {
        path.is_dir() || path.file_name().is_none() || path.as_os_str().as_encoded_bytes().ends_with(b"/")
    };
    for path in [output, &client] {
        if is_folder(path) {
            return Err(Error::Write { path: path.to_owned(), source: io::ErrorKind::IsADirectory.into() });
        }
    }
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    tempfile::tempfile_in(folder).map(drop).map_err(|source| Error::Write { path: output.to_owned(), source })
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
        dump::ckks(&compilation.plan.program, &compilation.plan.parameters, folder, json)?;
    }
    Ok(())
}

fn inspect(path: &Path, json: bool) -> Result<(), Error> {
    let plan = Plan::read(path).map_err(|source| match source {
        unreadable @ cachemir_ir::Error::File { .. } => Error::Ir(unreadable),
        source => Error::Plan { path: path.to_owned(), source },
    })?;
    print(&if json { format!("{}\n", summary::json(&plan)) } else { summary::text(&plan) })
}

fn explain(code: &str) -> Result<(), Error> {
    let runtime = diagnostics::CODES.iter().find(|known| known.code.eq_ignore_ascii_case(code));
    let text = runtime
        .map(|known| format!("{}: {}\n\n{}\n", known.code, known.title, known.explanation))
        .or_else(|| {
            let text = cachemir_compiler::error::explain(code)?;
            Some(format!("{}\n\n{text}\n", code.to_ascii_uppercase()))
        })
        .ok_or_else(|| Error::BadOption {
            option: "CODE",
            message: format!("there is no error code `{code}`; codes look like C0201 or CMR-R001"),
        })?;
    print(&text)
}

fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // A reader that has seen enough, such as `head`, is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::Write { path: PathBuf::from("standard output"), source: error })
        }
        _ => Ok(()),
    }
}
