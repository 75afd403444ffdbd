//! The crate's error type.

use std::path::PathBuf;

use cachemir_ir::diagnostics;
use cachemir_ir::text::{counted, format_bytes};

use crate::executor;

/// What can go wrong while a plan is executed. [`Error::code`] gives the stable code of each variant.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A plan file that cannot be opened.
    #[error("cannot read the plan {}: {source}", path.display())]
    PlanUnreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A plan that is truncated, altered or of an unknown version.
    #[error("{0}")]
    PlanInvalid(String),
    /// A client file of another plan.
    #[error("{} belongs to another plan: it names plan {expected}, this one is {found}", path.display())]
    PlanMismatch {
        /// The client file.
        path: PathBuf,
        /// Hash of the plan that the client file names.
        expected: String,
        /// Hash of the plan at hand.
        found: String,
    },
    /// A plan that was compiled from shapes alone.
    #[error("the plan has no weights: it was compiled with --shapes-only, and takes no tokens")]
    NoWeights,
    /// Weights of a plan that cannot be read, or are not those that it was compiled with.
    #[error("{0}")]
    Weights(cachemir_ir::Error),
    /// A tokenizer that cannot be used.
    #[error("the tokenizer cannot be used: {0}")]
    Tokenizer(String),
    /// A text for a model without a tokenizer.
    #[error("the model was compiled without a tokenizer: give token ids with --prompt-ids")]
    NoTokenizer,
    /// A token that has no embedding.
    #[error("token {token} is not in the vocabulary: the model has tokens 0 to {}", vocabulary.saturating_sub(1))]
    NoSuchToken {
        /// The token.
        token: u32,
        /// Number of tokens of the model.
        vocabulary: u32,
    },
    /// A model whose files have no chat template.
    #[error("the model has no chat template: give a text to continue with --prompt alone")]
    NoChatTemplate,
    /// A chat template that does not render.
    #[error("{0}")]
    ChatTemplate(cachemir_ir::Error),
    /// A conversation that does not begin with the plan's public prefix.
    #[error(
        "the conversation does not begin with the {} that the plan holds as public; leave --system away, or compile with a \
         prefix that fits it (its token {at} is {found}, and the prefix has {expected})",
        counted(*prefix, "token")
    )]
    OtherPrefix {
        /// Tokens of the prefix.
        prefix: usize,
        /// The first token that differs.
        at: usize,
        /// The conversation's token; none where it ends.
        found: String,
        /// The prefix's.
        expected: u32,
    },
    /// No text to continue.
    #[error("the prompt is empty: give some text to continue with --prompt")]
    EmptyPrompt,
    /// More tokens than the caches hold.
    #[error("the prompt has {}, special ones included, and the plan's context has room for {context}", counted(*tokens, "token"))]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens that a session can hold.
        context: usize,
    },
    /// A sampling option out of its range.
    #[error("{option} is {value}, but must be {expected}")]
    SamplingOption {
        /// Name of the option.
        option: &'static str,
        /// Its value.
        value: f64,
        /// The range, in words.
        expected: &'static str,
    },
    /// Another option that cannot be met.
    #[error("{option}: {message}")]
    BadOption {
        /// Name of the option or the environment variable.
        option: &'static str,
        /// Why not.
        message: String,
    },
    /// Too little memory.
    #[error("{needed_bytes} bytes of memory are needed ({needed}), and {available_bytes} are available ({available})",
        needed = format_bytes(*needed_bytes), available = format_bytes(*available_bytes))]
    Memory {
        /// Bytes of keys, matrices, state and working set.
        needed_bytes: u64,
        /// Bytes available to the process.
        available_bytes: u64,
    },
    /// Memory that the system refused.
    #[error("out of memory: the system refused {bytes} more bytes")]
    OutOfMemory {
        /// Bytes that were asked for.
        bytes: u64,
    },
    /// A file other than a plan that cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file that cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A session file that cannot be used.
    #[error("the session {} cannot be used: {fault}", path.display())]
    SessionInvalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: SessionFault,
    },
    /// A session of another plan.
    #[error("the session {} was saved with another plan", path.display())]
    SessionMismatch {
        /// The file.
        path: PathBuf,
    },
    /// A client's part of a session that is missing or damaged.
    #[error("the client's part of the session, {}, cannot be used: {message}", path.display())]
    SessionKey {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A session without room for another token.
    #[error("the session's context of {} is full", counted(*context, "token"))]
    ContextFull {
        /// Tokens that a session can hold.
        context: usize,
    },
    /// A program that cannot be executed.
    #[error("{origin}{}{message}", if origin.is_empty() { "" } else { ": " })]
    Execution {
        /// The ONNX node of the op, or what was being prepared.
        origin: String,
        /// What does not fit.
        message: String,
    },
    /// An error of the engine.
    #[error("the engine failed{}{origin}: {message}", if origin.is_empty() { "" } else { " at " })]
    Engine {
        /// The ONNX node of the op, or what was being prepared.
        origin: String,
        /// The engine's reason.
        message: String,
    },
    /// Values out of range under `--check`.
    #[error("{} left their range; the first: {first}", counted(*count, "value"))]
    Check {
        /// How many.
        count: usize,
        /// The first of them.
        first: String,
    },
    /// Values that decrypt to something else under `--check`.
    #[error("{} decrypted to something else than the plan's value; the first: {first}", counted(*count, "ciphertext"))]
    CheckDecrypted {
        /// How many.
        count: usize,
        /// The first of them.
        first: String,
    },
    /// Outputs that the calibrated model cannot give.
    #[error(
        "the step at position {position} left the range that the plan was calibrated for: {message}; {}. No token was \
         chosen from it. Compile with --calibrate and text like this prompt",
        first.as_deref().unwrap_or("--check shows the first value that went wrong")
    )]
    OutOfRange {
        /// Position of the last token taken in.
        position: usize,
        /// What the client found.
        message: String,
        /// What `--check` saw go wrong first.
        first: Option<String>,
    },
    /// A text of which no part could be measured to its end.
    #[error("{} of the text refused; the first: {first}", if *parts == 1 { "the only part".to_owned() } else { format!("all {parts} parts") })]
    AllRefused {
        /// How many parts there are.
        parts: usize,
        /// Why the first was refused.
        first: String,
    },
    /// A failed system call.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The run was asked to stop. Not a failure: the generation ends cleanly with what it has.
    #[error("interrupted")]
    Interrupted,
    /// Whoever read the output has gone, such as `head` after its last line. Not a failure: there is nothing left to do.
    #[error("the output is closed")]
    Closed,
}

/// Why a session's file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionFault {
    /// The system does not give it.
    #[error("it cannot be read: {0}")]
    Unreadable(std::io::Error),
    /// It is truncated, altered, of another version, or of no session at all.
    #[error("{0}")]
    Damaged(String),
    /// It goes with another file of a client.
    #[error("{} belongs to another session, or one of the two was altered", key.display())]
    OtherKey {
        /// The client's file.
        key: PathBuf,
    },
    /// It holds ciphertexts of another representation.
    #[error("it was saved by {}, and this run is {}", run_of(saved), run_of(asked))]
    OtherBackend {
        /// The representation of its ciphertexts.
        saved: String,
        /// The one of this run.
        asked: String,
    },
}

/// A run in words, by its representation of ciphertexts.
fn run_of(representation: &str) -> &str {
    match representation {
        executor::CLEAR => "a run in the clear",
        executor::ENCRYPTED => "an encrypted run",
        executor::CHECKED => "an encrypted run with --check",
        other => other,
    }
}

impl SessionFault {
    /// What to do about it.
    fn help(&self) -> String {
        match self {
            Self::Unreadable(_) => {
                "Name the file that `--save-session FILE` wrote; FILE.key has to lie beside it. To begin \
                 anew, leave `--resume` out and give a `--prompt`."
                    .to_owned()
            }
            Self::Damaged(_) => {
                "A session file carries a format version and a hash of its contents. Take a copy that is \
                 whole, with its FILE.key, and the release that wrote it; or begin anew with `--prompt`."
                    .to_owned()
            }
            Self::OtherKey { .. } => {
                "FILE and FILE.key are written together by `--save-session FILE`, and fit no others: the \
                 secret key in the one decrypts what is in the other. Put both files of one run side by side."
                    .to_owned()
            }
            Self::OtherBackend { saved, .. } => {
                let options = match saved.as_str() {
                    executor::CLEAR => "--backend clear",
                    executor::CHECKED => "--backend cpu --check",
                    _ => "--backend cpu, without --check",
                };
                format!(
                    "A session is continued as it was begun, as its caches are: with `{options}`. What is in the clear does \
                     not become secret later: to encrypt, begin anew with `--prompt` and `--backend cpu`."
                )
            }
        }
    }
}

impl Error {
    /// The code of a command line that cannot be read.
    pub const COMMAND_LINE: &str = "CMR-R012";

    /// The stable code, explained in [`cachemir_ir::diagnostics::CODES`].
    pub fn code(&self) -> &'static str {
        match self {
            Self::PlanUnreadable { .. } => "CMR-R001",
            Self::PlanInvalid(_) => "CMR-R002",
            Self::PlanMismatch { .. } => "CMR-R003",
            Self::NoWeights => "CMR-R006",
            Self::Weights(_) => "CMR-R007",
            Self::Tokenizer(_) | Self::NoTokenizer => "CMR-R004",
            Self::NoChatTemplate | Self::ChatTemplate(_) => "CMR-R005",
            Self::OtherPrefix { .. } => "CMR-R014",
            Self::EmptyPrompt => "CMR-R010",
            Self::PromptTooLong { .. } => "CMR-R011",
            Self::SamplingOption { .. } | Self::BadOption { .. } => Self::COMMAND_LINE,
            Self::NoSuchToken { .. } => "CMR-R013",
            Self::Memory { .. } | Self::OutOfMemory { .. } => "CMR-R020",
            Self::Unwritable { .. } => "CMR-R021",
            Self::Unreadable { .. } => "CMR-R022",
            Self::SessionInvalid { .. } => "CMR-R030",
            Self::SessionMismatch { .. } => "CMR-R031",
            Self::SessionKey { .. } => "CMR-R032",
            Self::ContextFull { .. } => "CMR-R033",
            Self::Execution { .. } => "CMR-R040",
            Self::Engine { .. } => "CMR-R041",
            Self::Check { .. } | Self::CheckDecrypted { .. } => "CMR-R050",
            Self::OutOfRange { .. } | Self::AllRefused { .. } => "CMR-R051",
            Self::System { .. } | Self::Interrupted | Self::Closed => "CMR-R060",
        }
    }

    /// What to do about this very error, where its code stands for several cases; else what the code's explanation says.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::SessionInvalid { fault, .. } => Some(fault.help()),
            _ => diagnostics::explain(self.code()).map(|code| code.explanation.to_owned()),
        }
    }

    /// An execution error before its op is known; the executor fills the origin in.
    pub(crate) fn execution(message: impl Into<String>) -> Self {
        Self::Execution { origin: String::new(), message: message.into() }
    }

    /// An engine error before its op is known; the executor fills the origin in.
    pub(crate) fn engine(source: &dyn std::fmt::Display) -> Self {
        Self::Engine { origin: String::new(), message: source.to_string() }
    }

    /// Names the op at which an execution or engine error happened, unless it is named already.
    pub(crate) fn at(mut self, place: impl FnOnce() -> String) -> Self {
        if let Self::Execution { origin, .. } | Self::Engine { origin, .. } = &mut self
            && origin.is_empty()
        {
            *origin = place();
        }
        self
    }
}

impl From<cachemir_ir::Error> for Error {
    fn from(source: cachemir_ir::Error) -> Self {
        match source {
            cachemir_ir::Error::Plan(message) => Self::PlanInvalid(message),
            weights @ (cachemir_ir::Error::WeightsUnreadable { .. } | cachemir_ir::Error::WeightsChanged { .. }) => {
                Self::Weights(weights)
            }
            other => Self::execution(other.to_string()),
        }
    }
}
