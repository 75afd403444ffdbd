//! The command line.

use std::path::PathBuf;

use cachemir_compiler::import::DEFAULT_CONTEXT;
use cachemir_ir::parameters::PRESETS;
use cachemir_ir::plan::Storage;
use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Compiles an ONNX Llama decoder to a plan that generates text under encryption.
#[derive(Debug, Parser)]
#[command(name = "cachemirc", version = env!("CACHEMIR_VERSION"), about)]
pub(crate) struct CommandLine {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Show errors and what was asked for, and nothing else
    #[arg(short, long, global = true, display_order = 100)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Compile a model to a plan (and its client's part beside it)
    Compile(Box<CompileArguments>),
    /// Show what a plan holds and what it costs
    Inspect {
        /// The plan
        plan: PathBuf,
        /// Print one JSON object, as `cachemirc schema summary` describes it, instead of text
        #[arg(long)]
        json: bool,
    },
    /// Explain the code of an error message, or list all codes
    Explain {
        /// A code such as C0201 or CMR-R001
        code: Option<String>,
    },
    /// Print the JSON schema of dumps or summaries
    Schema {
        /// Of what
        #[arg(value_enum, default_value = "dump")]
        of: Schema,
    },
    /// Print a script that completes command lines in a shell
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print the manual page, in the format of man(1)
    Man {
        /// The command that the page is about; all together where absent
        command: Option<String>,
    },
}

impl CommandLine {
    /// Whether results are JSON.
    pub(crate) fn json(&self) -> bool {
        match &self.command {
            Command::Compile(arguments) => arguments.json,
            Command::Inspect { json, .. } => *json,
            _ => false,
        }
    }
}

#[derive(Debug, Args)]
// One for each flag.
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct CompileArguments {
    /// The ONNX model, or the folder that it is in; external weights are found beside it
    pub(crate) model: PathBuf,
    /// Where to write the plan; the client's part goes beside it with the extension `client` [default: the model's name
    /// with the extension `bin`, in the current folder]
    #[arg(short, long, value_name = "PLAN")]
    pub(crate) output: Option<PathBuf>,
    /// The model's config.json, if it is not beside the model
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The model's tokenizer.json, if it is not beside the model
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Text whose value ranges decide the approximations, one sequence a line; sampled from the model by default
    #[arg(long, value_name = "FILE")]
    pub(crate) calibrate: Option<PathBuf>,
    /// Text, or a file of text, that every session begins with: the server knows it, and it costs nothing to take in
    #[arg(long, value_name = "TEXT|FILE", conflicts_with = "chat")]
    pub(crate) public_prefix: Option<String>,
    /// Make what the chat template writes ahead of the first message the public prefix of every session
    #[arg(long)]
    pub(crate) chat: bool,
    #[arg(long, visible_alias = "ctx-size", value_name = "TOKENS", allow_negative_numbers = true, help = context_help())]
    pub(crate) context: Option<usize>,
    /// Compile the graph alone, whose weights may be missing: tells what a model of this shape would cost, by assumed ranges
    #[arg(long, conflicts_with_all = ["calibrate", "public_prefix", "chat", "tokenizer"])]
    pub(crate) shapes_only: bool,
    /// Where the plan has its weights
    #[arg(long, value_enum, default_value = "embed")]
    pub(crate) weights: Weights,
    /// Parameter set
    #[arg(long, value_name = "NAME", default_value = PRESETS[0].name, value_parser = presets())]
    pub(crate) params: String,
    /// Times of ops, as `cachemir-run bench ops --threads 1 --emit-cost FILE` writes them, to place and predict by [default: the
    /// built-in table]
    #[arg(long, value_name = "FILE")]
    pub(crate) cost_table: Option<PathBuf>,
    /// Stages to dump; all by default
    #[arg(long, value_enum, value_delimiter = ',', requires = "dump_dir", value_name = "STAGES")]
    pub(crate) emit: Vec<Stage>,
    /// Form of the dumps; `cachemirc schema` describes the JSON
    #[arg(long, value_enum, default_value = "text", requires = "dump_dir")]
    pub(crate) format: Format,
    /// Folder for the dumps
    #[arg(long, value_name = "FOLDER")]
    pub(crate) dump_dir: Option<PathBuf>,
    /// Show the time that each pass took
    #[arg(short = 'v', long)]
    pub(crate) time_passes: bool,
    /// Print one JSON object, as `cachemirc schema summary` describes it, instead of the summary
    #[arg(long)]
    pub(crate) json: bool,
}

fn context_help() -> String {
    format!("Most tokens in a session, prompt included [default: the model's limit, at most {DEFAULT_CONTEXT}]")
}

/// The parameter sets with what they are.
fn presets() -> PossibleValuesParser {
    PRESETS
        .iter()
        .map(|preset| {
            let what = format!("{}: {}", preset.purpose, (preset.parameters)().description());
            PossibleValue::new(preset.name).help(what)
        })
        .into()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Schema {
    /// What `compile --dump-dir FOLDER --format json` writes
    Dump,
    /// What `compile --json` and `inspect --json` print
    Summary,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Weights {
    /// Inside, in the form in which the model's files have them: the plan can go anywhere
    Embed,
    /// In the model's files, which have to stay as they are and where they are, from the plan's folder on
    Reference,
}

impl From<Weights> for Storage {
    fn from(weights: Weights) -> Self {
        match weights {
            Weights::Embed => Self::Embed,
            Weights::Reference => Self::Reference,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stage {
    /// The recognised model
    Tensor,
    /// Packed slots
    Slots,
    /// Typed ciphertexts
    Ckks,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// One op a line, for people
    Text,
    /// One op a line, for tools
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
        let line = CommandLine::parse_from(["cachemirc", "compile", "model.onnx", "-v", "--ctx-size", "32", "-q"]);
        let Command::Compile(arguments) = &line.command else { panic!("{line:?}") };
        assert!(line.quiet && arguments.time_passes && !line.json());
        assert_eq!((arguments.context, arguments.params.as_str()), (Some(32), "n16"));
        for wrong in [&["cachemirc"][..], &["cachemirc", "compile"], &["cachemirc", "compile", "m", "--params", "n17"]]
        {
            assert_eq!(CommandLine::try_parse_from(wrong).unwrap_err().exit_code(), 2, "{wrong:?}");
        }
    }

    #[test]
    fn help_names_every_parameter_set() {
        let mut command = CommandLine::command();
        let help = command.find_subcommand_mut("compile").unwrap().render_long_help().to_string();
        // Lines are broken at the terminal's width.
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for preset in PRESETS {
            assert!(help.contains(&(preset.parameters)().description()), "{help}");
        }
    }
}
