//! The crate's error type.

use std::path::PathBuf;

/// What can be wrong with a graph, a program or a plan.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Text that is not of the stage's grammar.
    #[error("line {line}: {message}")]
    Parse {
        /// Line in the input, counted from 1.
        line: usize,
        /// What was expected.
        message: String,
    },
    /// A graph that breaks an invariant of its stage, with all problems found.
    #[error("the {stage} program is invalid:\n  {}", problems.join("\n  "))]
    Invalid {
        /// `tensor`, `slots` or `ckks`.
        stage: &'static str,
        /// One message a problem.
        problems: Vec<String>,
    },
    /// A value left its declared range or an index its array, during clear execution.
    #[error("{0}")]
    Execution(String),
    /// A parameter set that is unknown, malformed or not secure.
    #[error("{0}")]
    Parameters(String),
    /// A chat template that does not render.
    #[error("the model's chat template fails: {0}")]
    ChatTemplate(String),
    /// A cost table that cannot be used.
    #[error("the cost table is invalid: {0}")]
    CostTable(String),
    /// Bytes that are no plan at all.
    #[error("this is not a {expected}: its first bytes are not those of one")]
    NotAPlan {
        /// `plan` or `client plan`.
        expected: &'static str,
    },
    /// A plan in a format that this version does not read.
    #[error("the {kind} has format version {found}; this version of Cachemir reads version {supported}: {advice}", advice = version_advice(*found, *supported))]
    PlanVersion {
        /// `plan` or `client plan`.
        kind: &'static str,
        /// The file's version.
        found: u32,
        /// The version understood here.
        supported: u32,
    },
    /// A plan that ends early or has bytes after its end.
    #[error(
        "the {kind} is {found} bytes long and should be {expected}: it was cut off or extended; compile or copy it again"
    )]
    PlanLength {
        /// `plan` or `client plan`.
        kind: &'static str,
        /// Length that the file declares.
        expected: u64,
        /// Length that the file has.
        found: u64,
    },
    /// A plan whose bytes are not those that were written.
    #[error("the {kind} was altered: its checksum does not match its contents; compile or copy it again")]
    PlanAltered {
        /// `plan` or `client plan`.
        kind: &'static str,
    },
    /// A plan with intact bytes and contents that make no sense.
    #[error("the plan is unusable: {0}")]
    Plan(String),
    /// Stored weights that cannot be read.
    #[error(
        "cannot read the weights of `{name}` from {} at {offset}: {source}; put the file back whose bytes there have the hash \
         {hash}, or compile the model again", path.display()
    )]
    WeightsUnreadable {
        /// The table.
        name: String,
        /// The file.
        path: PathBuf,
        /// Where they begin, in bytes.
        offset: u64,
        /// BLAKE3 hash of the bytes that belong there, in hexadecimal.
        hash: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// Stored weights that are not those that they were when the model was compiled.
    #[error(
        "the weights of `{name}` in {place} were changed: their hash is {found} and should be {expected}; put the file \
         back that has them, or compile the model again"
    )]
    WeightsChanged {
        /// The table.
        name: String,
        /// File and offset.
        place: String,
        /// BLAKE3 hash of what belongs there, in hexadecimal.
        expected: String,
        /// BLAKE3 hash of what is there, in hexadecimal.
        found: String,
    },
    /// A file that cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

fn version_advice(found: u32, supported: u32) -> &'static str {
    if found > supported { "update Cachemir, or compile the model again" } else { "compile the model again" }
}

impl Error {
    /// A stable name for the kind of error, e.g. `plan-altered`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Parse { .. } => "ir-parse",
            Self::Invalid { .. } => "ir-invalid",
            Self::Execution(_) => "clear-execution",
            Self::Parameters(_) => "parameters",
            Self::ChatTemplate(_) => "chat-template",
            Self::CostTable(_) => "cost-table",
            Self::NotAPlan { .. } => "plan-magic",
            Self::PlanVersion { .. } => "plan-version",
            Self::PlanLength { .. } => "plan-length",
            Self::PlanAltered { .. } => "plan-altered",
            Self::Plan(_) => "plan-contents",
            Self::WeightsUnreadable { .. } => "weights-unreadable",
            Self::WeightsChanged { .. } => "weights-changed",
            Self::File { .. } => "plan-file",
        }
    }
}
