//! What can go wrong in a compilation. Each kind has a stable code, which
//! [`cachemir_ir::diagnostics`] explains.

use std::path::{Path, PathBuf};

use cachemir_ir::program::EntryPoint;

/// An error of the compiler.
///
/// Codes starting with `C01` are about the ONNX file, `C02` about the model in it, `C03` about the files beside it,
/// `C04` about options and limits, `C05` about input and output, `C06` about parameters, `C09` are defects of the compiler.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that could not be read.
    #[error("{} cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that could not be written.
    #[error("{} cannot be written: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that is not an ONNX model, or only the beginning of one.
    #[error("{} is not a complete ONNX model: {message}", path.display())]
    NotOnnx {
        /// The file.
        path: PathBuf,
        /// What was found.
        message: String,
    },
    /// A tensor whose values lie in a file that is not there.
    #[error("the values of tensor `{tensor}` are in {}, which cannot be opened", path.display())]
    MissingExternalData {
        /// The tensor that needs it, the first one in the model.
        tensor: String,
        /// The missing file.
        path: PathBuf,
    },
    /// A tensor whose values are not where, or not as many as, the model says.
    #[error("tensor `{tensor}` cannot be read: {message}")]
    BadTensor {
        /// The tensor.
        tensor: String,
        /// What was expected and found.
        message: String,
    },
    /// A folder in place of a model, with no model in it or several.
    #[error("{} is a folder: {message}", path.display())]
    ModelFolder {
        /// The folder.
        path: PathBuf,
        /// What was found in it.
        message: String,
    },
    /// A node that is not written as ONNX wants it, or in a way that would be misunderstood.
    #[error("node `{node}` ({op_type}) cannot be read: {message}")]
    BadNode {
        /// The node.
        node: String,
        /// Its operation.
        op_type: String,
        /// What is wrong with it.
        message: String,
    },
    /// Operations that no Llama decoder has.
    #[error(
        "node `{node}` ({op_type}) is not supported; {}unsupported operations in this model: {}",
        .feature.map(|feature| format!("the model has {feature}; ")).unwrap_or_default(),
        all.join(", ")
    )]
    UnsupportedOps {
        /// The first node with such an operation.
        node: String,
        /// Its operation.
        op_type: String,
        /// What they are part of, where that is known.
        feature: Option<&'static str>,
        /// All such operations of the model.
        all: Vec<String>,
    },
    /// A node that breaks the structure of a Llama decoder.
    #[error("node `{node}` ({op_type}) does not fit a Llama decoder: {message}")]
    NotLlama {
        /// The node.
        node: String,
        /// Its operation.
        op_type: String,
        /// What was expected there.
        message: String,
    },
    /// An input or output of the graph that is missing or not understood.
    #[error("the model's interface does not fit a Llama decoder: {message}")]
    Interface {
        /// What was expected and found.
        message: String,
    },
    /// `config.json` or `tokenizer.json` is neither beside the model nor named by an option.
    #[error("{file} was not found beside {} or in the two folders above it", model.display())]
    MissingCompanion {
        /// The file's name.
        file: &'static str,
        /// The model.
        model: PathBuf,
    },
    /// A tokenizer in the one form that the `tokenizers` crate does not read.
    #[error(
        "{} is a SentencePiece model, and tokenizer.json is needed; this makes one beside it: python -c \"from \
         transformers import AutoTokenizer as T; T.from_pretrained('{folder}').save_pretrained('{folder}')\"",
        path.display(),
        folder = folder_of(path)
    )]
    SentencePiece {
        /// The file.
        path: PathBuf,
    },
    /// A companion file that is not what its name says, or contradicts the graph.
    #[error("{} does not fit: {message}", path.display())]
    BadCompanion {
        /// The file.
        path: PathBuf,
        /// What was expected and found.
        message: String,
    },
    /// An option's value that cannot be met.
    #[error("{option}: {message}")]
    BadOption {
        /// The option.
        option: &'static str,
        /// Why not.
        message: String,
    },
    /// A program for which no choice of bootstraps leaves enough levels.
    #[error("the {entry} program does not fit the parameters at {}: {}", .cause.origin, .cause.message)]
    Infeasible {
        /// The entry point.
        entry: EntryPoint,
        /// The op that does not fit.
        cause: crate::placement::Infeasible,
    },
    /// Values that spread over so wide a range that no polynomial is precise enough.
    #[error(
        "{site} (node `{node}`) is asked for values over a range, {} to {}, that is too wide: the best polynomial, of \
         degree {degree}, has the precision {error:.1e} where {tolerated:.0e} is needed. Calibrate with text that keeps to \
         a shorter range (--calibrate); or make public what texts begin with (--public-prefix), where it is a first token's massive \
         activations that take so long a range",
        range[0], range[1]
    )]
    Imprecise {
        /// The approximation.
        site: String,
        /// Its ONNX node.
        node: String,
        /// What its argument may be.
        range: [f64; 2],
        /// Degree of the best polynomial.
        degree: usize,
        /// Its error.
        error: f64,
        /// The largest error that would do.
        tolerated: f64,
    },
    /// Calibration text on which the program with its polynomials leaves their intervals.
    #[error(
        "calibration text leads the program out of the range of its approximations, which are not precise enough for this \
         model: {message}. Calibrate with other text (--calibrate), or with more of it"
    )]
    Unsettled {
        /// The op, its slot and the value.
        message: String,
    },
    /// A plan file that cannot be used.
    #[error("{}: {source}", path.display())]
    Plan {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<cachemir_ir::Error>,
    },
    /// A cost table that cannot be used.
    #[error("{}: {source}; `cachemir-run bench ops --threads 1 --emit-cost FILE` writes one", path.display())]
    CostTable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<cachemir_ir::Error>,
    },
    /// An invariant of one of our stages is broken: a defect of the compiler.
    #[error(transparent)]
    Ir(#[from] cachemir_ir::Error),
}

fn folder_of(path: &Path) -> String {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new(".")).display().to_string()
}
/// Code of a command line that cannot be read, for which there is no [`Error`].
pub const COMMAND_LINE: &str = "C0402";

impl Error {
    /// The error's stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotOnnx { .. } => "C0101",
            Self::MissingExternalData { .. } => "C0102",
            Self::BadTensor { .. } => "C0103",
            Self::ModelFolder { .. } => "C0104",
            Self::BadNode { .. } => "C0105",
            Self::UnsupportedOps { .. } => "C0201",
            Self::NotLlama { .. } => "C0202",
            Self::Interface { .. } => "C0203",
            Self::MissingCompanion { .. } => "C0301",
            Self::BadCompanion { .. } => "C0302",
            Self::SentencePiece { .. } => "C0303",
            Self::BadOption { .. } => "C0401",
            Self::Read { .. } => "C0501",
            Self::Write { .. } => "C0502",
            Self::Infeasible { .. } | Self::Imprecise { .. } | Self::Unsettled { .. } => "C0601",
            Self::Plan { .. } => "C0503",
            Self::CostTable { .. } => "C0504",
            Self::Ir(source) => match source {
                cachemir_ir::Error::File { action: "read", .. } => "C0501",
                cachemir_ir::Error::File { .. } => "C0502",
                cachemir_ir::Error::WeightsUnreadable { .. } | cachemir_ir::Error::WeightsChanged { .. } => "C0106",
                _ => "C0901",
            },
        }
    }
}

impl Error {
    /// The ONNX node that the error is about, where it is about one.
    pub fn node(&self) -> Option<&str> {
        match self {
            Self::UnsupportedOps { node, .. } | Self::NotLlama { node, .. } => Some(node),
            Self::Infeasible { cause, .. } => Some(&cause.origin),
            Self::Imprecise { node, .. } => Some(node),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_explained() {
        let error = Error::Interface { message: String::new() };
        for code in [error.code(), COMMAND_LINE] {
            assert!(cachemir_ir::diagnostics::explain(code).is_some());
        }
    }
}
