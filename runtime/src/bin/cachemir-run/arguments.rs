//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use cachemir_runtime::{Sampling, UniformHalves};
use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

/// Generates text from a compiled plan while everything the server sees stays encrypted.
#[derive(Debug, Parser)]
#[command(name = "cachemir-run", version = env!("CACHEMIR_VERSION"), args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) generate: Generate,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    /// Show errors and what was asked for, and nothing else.
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
}

impl Arguments {
    /// The command line's grammar. A negative number is a value, which the option itself refuses, and no unknown option.
    pub(crate) fn grammar() -> clap::Command {
        fn numbers(command: clap::Command) -> clap::Command {
            let takes_values = |argument: clap::Arg| match argument.get_action() {
                ArgAction::Set | ArgAction::Append => argument.allow_negative_numbers(true),
                _ => argument,
            };
            command.mut_args(takes_values).mut_subcommands(numbers)
        }
        numbers(Self::command())
    }

    /// Reads the command line.
    pub(crate) fn read(words: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        Self::grammar().try_get_matches_from(words).and_then(|matches| Self::from_arg_matches(&matches))
    }

    /// Whether results are JSON.
    pub(crate) fn json(&self) -> bool {
        match &self.command {
            None => self.generate.json,
            Some(Command::Bench(Bench::Plan(options))) => options.common.json,
            Some(Command::Bench(Bench::Layer(options))) => options.common.json,
            Some(Command::Bench(Bench::Ops(options))) => options.json,
            Some(Command::Eval(options)) => options.common.json,
            Some(Command::Doctor(options)) => options.json,
            Some(Command::Explain { .. } | Command::Completions { .. } | Command::Man { .. }) => false,
        }
    }

    /// The number of threads asked for.
    pub(crate) fn threads(&self) -> Option<usize> {
        match &self.command {
            None => self.generate.threads,
            Some(Command::Bench(Bench::Plan(options))) => options.common.threads,
            Some(Command::Bench(Bench::Layer(options))) => options.common.threads,
            Some(Command::Bench(Bench::Ops(options))) => options.threads,
            Some(Command::Eval(options)) => options.common.threads,
            Some(Command::Doctor(_) | Command::Explain { .. } | Command::Completions { .. } | Command::Man { .. }) => {
                None
            }
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Measures a plan or the engine's operations.
    #[command(subcommand)]
    Bench(Bench),
    /// Measures how well a plan predicts a text, and how close it is to the exact model.
    Eval(Evaluate),
    /// Tells what this machine offers: instruction sets, cores, memory, and what fits.
    Doctor(Doctor),
    /// Explains the code of an error message, or lists all codes.
    Explain {
        /// A code such as CMR-R001 or C0201.
        code: Option<String>,
    },
    /// Prints a script that completes command lines in a shell.
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Prints the manual page, in the format of man(1).
    Man {
        /// The command that the page is about; all together where absent.
        command: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Time of prefill and of a token, memory, and both as ratios to one number-theoretic transform.
    Plan(BenchPlan),
    /// Time and precision of one decoder layer by part, predicted and measured, and what all layers would take.
    Layer(BenchLayer),
    /// Time of each operation at several levels; `--emit-cost` writes them as a cost table.
    Ops(BenchOps),
}

/// How a plan is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// Encrypted, on the processor.
    Cpu,
    /// Not encrypted: the same program on numbers in the clear.
    Clear,
}

impl From<Backend> for cachemir_runtime::Backend {
    fn from(backend: Backend) -> Self {
        match backend {
            Backend::Cpu => Self::Encrypted,
            Backend::Clear => Self::Clear,
        }
    }
}

/// How evaluation keys are kept in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeyStorage {
    /// Whole.
    Whole,
    /// One half of each as a seed, expanded whenever the key is used: half the memory.
    Seeded,
}

impl From<KeyStorage> for UniformHalves {
    fn from(storage: KeyStorage) -> Self {
        match storage {
            KeyStorage::Whole => Self::Stored,
            KeyStorage::Seeded => Self::Seeded,
        }
    }
}

#[derive(Debug, Args)]
// One for each flag.
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct Generate {
    /// The plan that `cachemirc compile` wrote.
    #[arg(value_name = "PLAN", required = true)]
    pub(crate) plan: Option<PathBuf>,
    /// Text to continue; `-` reads it from stdin, without its last line end.
    #[arg(long, short, allow_hyphen_values = true)]
    pub(crate) prompt: Option<String>,
    /// Token ids to continue, separated by commas.
    #[arg(long, value_name = "IDS", value_delimiter = ',', conflicts_with = "prompt")]
    pub(crate) prompt_ids: Vec<u32>,
    /// Take the prompt as a message, and write it as the model's chat template has it.
    #[arg(long, requires = "prompt", conflicts_with_all = ["resume", "prompt_ids"])]
    pub(crate) chat: bool,
    /// How a chat model should behave, in place of the template's own words.
    #[arg(long, value_name = "TEXT", requires = "chat", conflicts_with = "prompt_ids")]
    pub(crate) system: Option<String>,
    /// Most tokens to generate.
    #[arg(short = 'n', long = "tokens", default_value_t = 16, value_parser = parse_count, visible_aliases = ["max-tokens", "n-predict"])]
    pub(crate) count: usize,
    #[command(flatten)]
    pub(crate) sampling: SamplingOptions,
    /// Go on after a token that ends the text.
    #[arg(long, visible_alias = "ignore-eos")]
    pub(crate) ignore_end: bool,
    /// How to execute.
    #[arg(long, value_enum, default_value_t = Backend::Cpu)]
    pub(crate) backend: Backend,
    /// Execute in the clear in step: report the precision by layer and fail where a value leaves its range.
    #[arg(long)]
    pub(crate) check: bool,
    /// One JSON object a line on stdout.
    #[arg(long)]
    pub(crate) json: bool,
    /// How evaluation keys are kept; `seeded` by default where the processor expands seeds as fast as it reads memory.
    #[arg(long, value_enum)]
    pub(crate) keys: Option<KeyStorage>,
    /// Memory for weights that stay encoded between tokens, such as 6GiB; the others are encoded at each use [default: what
    /// there is, up to 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(crate) plaintext_memory: Option<u64>,
    /// Write the session to FILE, and the client's secret part to FILE.key, at the end.
    #[arg(long, value_name = "FILE")]
    pub(crate) save_session: Option<PathBuf>,
    /// Continue the session in FILE; needs FILE.key.
    #[arg(long, value_name = "FILE")]
    pub(crate) resume: Option<PathBuf>,
    /// Write the logits of each step to FILE, as JSON lines.
    #[arg(long, value_name = "FILE")]
    pub(crate) logits: Option<PathBuf>,
    /// Number of threads; all cores by default.
    #[arg(long, value_parser = parse_threads)]
    pub(crate) threads: Option<usize>,
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct SamplingOptions {
    /// Divides the logits; 0 takes the most likely token.
    #[arg(long, default_value_t = 0.0, visible_alias = "temp")]
    temperature: f64,
    /// Only this many of the most likely tokens; 0 for all [default: 0]
    #[arg(long, value_parser = parse_count)]
    top_k: Option<usize>,
    /// Only the most likely tokens that together have this probability [default: 1]
    #[arg(long)]
    top_p: Option<f64>,
    /// Only tokens at least this fraction as likely as the most likely one [default: 0]
    #[arg(long)]
    min_p: Option<f64>,
    /// Seed of the random choices [default: 1]
    #[arg(long)]
    seed: Option<u64>,
}

impl From<SamplingOptions> for Sampling {
    fn from(options: SamplingOptions) -> Self {
        let default = Self::default();
        Self {
            temperature: options.temperature,
            top_k: options.top_k.unwrap_or(default.top_k),
            top_p: options.top_p.unwrap_or(default.top_p),
            min_p: options.min_p.unwrap_or(default.min_p),
            seed: options.seed.unwrap_or(default.seed),
        }
    }
}

impl SamplingOptions {
    /// A warning where options were given that change nothing, as no token is drawn at random.
    pub(crate) fn without_effect(&self) -> Option<String> {
        let given = [
            ("--top-k", self.top_k.is_some()),
            ("--top-p", self.top_p.is_some()),
            ("--min-p", self.min_p.is_some()),
            ("--seed", self.seed.is_some()),
        ];
        let idle: Vec<&str> = given.iter().filter(|(_, given)| *given).map(|(option, _)| *option).collect();
        (self.temperature == 0.0 && !idle.is_empty()).then(|| {
            let verb = if idle.len() == 1 { "has" } else { "have" };
            format!(
                "{} {verb} no effect: at temperature 0 the most likely token is taken (--temperature 1 samples)",
                idle.join(", ")
            )
        })
    }
}

/// What every measurement of a plan can be told.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct CommonOptions {
    /// How evaluation keys are kept; `seeded` by default where the processor expands seeds as fast as it reads memory.
    #[arg(long, value_enum)]
    pub(crate) keys: Option<KeyStorage>,
    /// One JSON object on stdout.
    #[arg(long)]
    pub(crate) json: bool,
    /// Number of threads; all cores by default.
    #[arg(long, value_parser = parse_threads)]
    pub(crate) threads: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct BenchPlan {
    /// The plan to measure.
    pub(crate) plan: PathBuf,
    /// Length of the prompt in tokens.
    #[arg(long, default_value_t = 16, value_parser = parse_count)]
    pub(crate) prompt_tokens: usize,
    /// Tokens to generate; the first comes out of the prefill.
    #[arg(short = 'n', long = "tokens", default_value_t = 4, value_parser = parse_count, visible_aliases = ["max-tokens", "n-predict"])]
    pub(crate) count: usize,
    /// How to execute.
    #[arg(long, value_enum, default_value_t = Backend::Cpu)]
    pub(crate) backend: Backend,
    /// Memory for weights that stay encoded between tokens, such as 6GiB; the others are encoded at each use [default: what
    /// there is, up to 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(crate) plaintext_memory: Option<u64>,
    #[command(flatten)]
    pub(crate) common: CommonOptions,
}

#[derive(Debug, Args)]
pub(crate) struct BenchLayer {
    /// The plan; of one compiled with `--shapes-only`, weights, inputs and caches are random.
    pub(crate) plan: PathBuf,
    /// The layer's number, from 0; one in the middle by default.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) layer: Option<u32>,
    /// Position of the token: as many are in the caches; the last one of the context by default.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) position: Option<u32>,
    /// Decides random weights, inputs and caches.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) common: CommonOptions,
}

#[derive(Debug, Args)]
// One for each flag.
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct BenchOps {
    /// Parameter preset.
    #[arg(long, default_value = "n16")]
    pub(crate) params: String,
    /// How evaluation keys are kept; `seeded` by default where the processor expands seeds as fast as it reads memory.
    #[arg(long, value_enum)]
    pub(crate) keys: Option<KeyStorage>,
    /// log2 of the numbers of slots of the bootstraps, separated by commas; the preset's variants by default.
    #[arg(long, value_delimiter = ',', value_name = "LOG2")]
    pub(crate) log2_slots: Vec<u32>,
    /// Leave the bootstraps out.
    #[arg(long)]
    pub(crate) no_bootstraps: bool,
    /// Measure the bootstraps only.
    #[arg(long, conflicts_with = "no_bootstraps")]
    pub(crate) only_bootstraps: bool,
    /// Bootstraps of each kind of input; precision is that of all of them together.
    #[arg(long, default_value_t = 8, value_parser = parse_count)]
    pub(crate) runs: usize,
    /// Write what was measured on one thread as a cost table: the form of `ir/src/cost/n16.json`, from which times are predicted.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["no_bootstraps", "only_bootstraps"])]
    pub(crate) emit_cost: Option<PathBuf>,
    /// One JSON object a line on stdout.
    #[arg(long)]
    pub(crate) json: bool,
    /// Number of threads; all cores by default.
    #[arg(long, value_parser = parse_threads)]
    pub(crate) threads: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct Evaluate {
    /// The plan.
    pub(crate) plan: PathBuf,
    /// The text; a longer one than the context is cut into parts of that length, each a session of its own.
    #[arg(long, value_name = "FILE")]
    pub(crate) text: PathBuf,
    /// Most tokens to predict.
    #[arg(short = 'n', long = "tokens", value_parser = parse_count, visible_aliases = ["max-tokens", "n-predict"])]
    pub(crate) count: Option<usize>,
    /// The ONNX model that the plan was compiled from, to compare with; its companions are found as the compiler finds them.
    #[arg(long, value_name = "MODEL")]
    pub(crate) against: Option<PathBuf>,
    /// Add the errors that encryption would make, by the noise model, to the execution in the clear.
    #[arg(long)]
    pub(crate) noise: bool,
    /// How to execute; encrypted, every token of the text takes as long as one of an answer.
    #[arg(long, value_enum, default_value_t = Backend::Clear)]
    pub(crate) backend: Backend,
    #[command(flatten)]
    pub(crate) common: CommonOptions,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// A plan, to tell what memory running it takes.
    pub(crate) plan: Option<PathBuf>,
    /// One JSON object on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A whole number.
fn parse_count(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "expected a whole number from 0 on".to_owned())
}

/// Most threads that can be asked for.
const MOST_THREADS: usize = 1024;

fn parse_threads(text: &str) -> Result<usize, String> {
    let threads = text.parse().ok().filter(|threads| (1..=MOST_THREADS).contains(threads));
    threads.ok_or_else(|| format!("expected a number from 1 to {MOST_THREADS}"))
}

/// A number of bytes, with or without a unit.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        _ => 64,
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1_u64.checked_shl(shift)?));
    bytes.ok_or_else(|| "expected a size such as 800MiB, 6GiB or 0".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(
            ["0", "123", "2KiB", "3 MiB", "6GiB", "1g"].map(|text| parse_bytes(text).ok()),
            [Some(0), Some(123), Some(2 << 10), Some(3 << 20), Some(6 << 30), Some(1 << 30)]
        );
        for wrong in ["", "GiB", "-1", "1.5GiB", "9GB", "99999999999GiB"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
        let arguments = Arguments::parse_from(["cachemir-run", "plan.bin", "--prompt", "Once", "-n", "8", "--check"]);
        assert_eq!(arguments.generate.count, 8);
        assert!(arguments.command.is_none() && arguments.generate.check);
        let arguments = Arguments::parse_from(["cachemir-run", "bench", "plan", "plan.bin", "--json"]);
        assert!(arguments.json());
        let aliases = ["cachemir-run", "p", "-p", "x", "--max-tokens", "3", "--temp", "0.5", "--ignore-eos", "-q"];
        let arguments = Arguments::parse_from(aliases);
        assert!(arguments.generate.count == 3 && arguments.generate.ignore_end && arguments.quiet);
        let arguments = Arguments::parse_from(["cachemir-run", "p", "--prompt-ids", "1,2,3"]);
        assert_eq!(arguments.generate.prompt_ids, [1, 2, 3]);
        assert!(Arguments::try_parse_from(["cachemir-run", "p", "--prompt-ids", "1,x"]).is_err());
        assert!(Arguments::try_parse_from(["cachemir-run", "p", "--prompt", "x", "--system", "y"]).is_err());
        assert_eq!(Arguments::try_parse_from(["cachemir-run"]).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn negative_numbers_are_values() {
        let read = |words: &[&str]| Arguments::read(["cachemir-run", "p"].iter().chain(words).map(OsString::from));
        let arguments = read(&["-p", "x", "--temperature", "-1"]).unwrap();
        assert_eq!(Sampling::from(arguments.generate.sampling).temperature, -1.0);
        for option in ["--top-k", "--seed", "-n", "--threads", "--prompt-ids"] {
            let message = read(&[option, "-1"]).unwrap_err().to_string();
            assert!(message.contains("invalid value '-1'"), "{message}");
        }
        assert!(read(&["-p", "-1"]).is_ok() && read(&["-1"]).is_err());
    }

    #[test]
    fn options_without_effect_are_named() {
        let warned = |words: &[&str]| {
            let words = ["cachemir-run", "p"].iter().chain(words).map(OsString::from);
            Arguments::read(words).unwrap().generate.sampling.without_effect()
        };
        assert!(warned(&["--seed", "1", "--top-k", "3"]).unwrap().contains("--top-k, --seed have no effect"));
        assert_eq!(warned(&["--seed", "1", "--temp", "0.5"]), None);
        assert_eq!(warned(&[]), None);
    }
}
