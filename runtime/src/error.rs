//! The crate's error type.

use std::path::PathBuf;

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
    #[error("the model's chat template fails: {0}")]
    ChatTemplate(String),
    /// No text to continue.
    #[error("the prompt is empty: give some text to continue with --prompt")]
    EmptyPrompt,
    /// More tokens than the caches hold.
    #[error("the prompt has {tokens} tokens, special ones included, and the plan's context has room for {context}")]
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
        needed = crate::memory::format_bytes(*needed_bytes), available = crate::memory::format_bytes(*available_bytes))]
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
    /// A file that cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A session file that is damaged or of another version.
    #[error("the session {} cannot be used: {message}", path.display())]
    SessionInvalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
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
    #[error("the session's context of {context} tokens is full")]
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
    #[error("{count} values left their range; the first: {first}")]
    Check {
        /// How many.
        count: usize,
        /// The first of them.
        first: String,
    },
    /// Outputs that the calibrated model cannot give.
    #[error(
        "the step at position {position} left the range that the plan was calibrated for: {message}{}. No token was \
         chosen from it. Compile with --calibrate and text like this prompt; --backend clear --check shows the site",
        site.as_ref().map_or(String::new(), |site| format!("; the first site out of its range: {site}"))
    )]
    OutOfRange {
        /// Position of the last token taken in.
        position: usize,
        /// What the client found.
        message: String,
        /// Where `--check` saw a value leave its range first.
        site: Option<String>,
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
            Self::Tokenizer(_) | Self::NoTokenizer => "CMR-R004",
            Self::NoChatTemplate | Self::ChatTemplate(_) => "CMR-R005",
            Self::EmptyPrompt => "CMR-R010",
            Self::PromptTooLong { .. } => "CMR-R011",
            Self::SamplingOption { .. } | Self::BadOption { .. } => Self::COMMAND_LINE,
            Self::NoSuchToken { .. } => "CMR-R013",
            Self::Memory { .. } | Self::OutOfMemory { .. } => "CMR-R020",
            Self::Unwritable { .. } => "CMR-R021",
            Self::SessionInvalid { .. } => "CMR-R030",
            Self::SessionMismatch { .. } => "CMR-R031",
            Self::SessionKey { .. } => "CMR-R032",
            Self::ContextFull { .. } => "CMR-R033",
            Self::Execution { .. } => "CMR-R040",
            Self::Engine { .. } => "CMR-R041",
            Self::Check { .. } => "CMR-R050",
            Self::OutOfRange { .. } => "CMR-R051",
            Self::System { .. } | Self::Interrupted => "CMR-R060",
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
            other => Self::execution(other.to_string()),
        }
    }
}
