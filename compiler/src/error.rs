//! What can go wrong in a compilation. Each kind has a stable code; [`explain`] says what to do about it.

use std::path::{Path, PathBuf};

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
        /// `decode` or `prefill`.
        entry: &'static str,
        /// The op that does not fit.
        cause: crate::placement::Infeasible,
    },
    /// Values that spread over so wide a range that no polynomial is precise enough.
    #[error(
        "{site} (node `{node}`) is asked for values over a range, {} to {}, that is too wide: the best polynomial, of \
         degree {degree}, has the precision {error:.1e} where {tolerated:.0e} is needed. Calibrate with text that keeps to \
         a shorter range (--calibrate), or leave out tokens with massive activations",
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
        source: cachemir_ir::Error,
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

/// Codes with their explanations, in ascending order.
pub const EXPLANATIONS: &[(&str, &str)] = &[
    (
        "C0101",
        "The file is not an ONNX model, or only part of one. Check that it was copied completely (`git lfs pull`, an \
         interrupted download) and that it is the .onnx file, not the data file beside it.",
    ),
    (
        "C0102",
        "The model keeps its weights in another file, which has to lie at the path recorded in the model, relative to \
         the model's folder. Copy that file too.",
    ),
    (
        "C0103",
        "A tensor's values do not match its shape, its type is not supported, or its region lies outside the data \
         file. The model or its data file is damaged, or the two are not of the same export.",
    ),
    (
        "C0104",
        "A folder was given in place of a model, and it is not clear which file in it is meant. Taken are model.onnx, \
         decoder_model.onnx, the same two in a folder `onnx`, or the only .onnx file. Name the file itself.",
    ),
    (
        "C0105",
        "A node of the graph depends on its own output, calls a function that calls itself, has a condition that only \
         inputs decide, or carries an attribute that would change its meaning in a way that is not known here. Check the \
         tool that wrote or changed the file.",
    ),
    (
        "C0201",
        "The model uses operations that are not part of a Llama decoder. Supported are decoders of the Llama family \
         (RMSNorm, rotary embedding, grouped-query attention, SwiGLU, with or without biases) exported to ONNX with or \
         without a key-value cache. Soft-capping, mixtures of experts, LayerNorm and other activations than SiLU are not.",
    ),
    (
        "C0202",
        "All operations are known, but the named node is not where a Llama decoder would have it, or the graph is not \
         the same function at every position of the context. Not supported are sliding windows and chunks shorter than \
         the context (ask for a smaller --context), scales and frequencies that depend on position or length, masks that \
         are not causal, norms of queries and keys, norms after a layer, layers without rotary embedding, interleaved or \
         partial rotary embeddings, blocks in parallel, learned positions, and LoRA adapters that are not merged. A graph \
         that was traced with a fixed length has to be exported with dynamic axes.",
    ),
    (
        "C0203",
        "The graph's inputs and outputs must be those of a decoder: input_ids, optionally attention_mask ([batch, tokens] \
         or additive [batch, 1, new tokens, tokens]) and position_ids, past keys and values ([batch, heads, tokens, dim] \
         or [batch, tokens, heads, dim]), num_logits_to_keep; logits and present keys and values. The lengths of tokens \
         must be dynamic axes; of a merged decoder, take the file with the past.",
    ),
    (
        "C0301",
        "The model's folder lacks a file. config.json and tokenizer.json are looked for beside the model and in the \
         two folders above it; name them with --config and --tokenizer if they lie elsewhere.",
    ),
    ("C0302", "A file beside the model is not valid, or is of another model: its numbers contradict the graph."),
    (
        "C0303",
        "`tokenizer.model` is SentencePiece's own form of a tokenizer, which says nothing of normalisation and special \
         tokens; `tokenizer.json` says everything. The Python package `transformers` makes one from the other.",
    ),
    (
        "C0401",
        "An option asks for something that this model or program cannot give; the message says what is possible.",
    ),
    (
        COMMAND_LINE,
        "The command line cannot be read: a command or an option is unknown, or a value is missing or not one of those \
         that the message lists. `cachemirc COMMAND --help` lists what there is.",
    ),
    ("C0501", "A file cannot be read. Check its path and permissions."),
    ("C0502", "A file cannot be written. Check the folder, its permissions and the space left."),
    (
        "C0503",
        "The file is not a plan that `cachemirc compile` of this version wrote, or was cut off or altered since.",
    ),
    (
        "C0601",
        "An op needs more levels than the parameters leave it, wherever bootstraps are put; or values spread over so wide a \
         range that no polynomial of those levels is precise enough. Choose parameters with more levels (--params), or a \
         calibration text with shorter ranges, which lowers the degrees of the approximations.",
    ),
    (
        "C0901",
        "The compiler broke one of its own invariants. This is a defect: please report it with the command line, the \
         model and the message.",
    ),
];

/// What a code means and what to do about it.
pub fn explain(code: &str) -> Option<&'static str> {
    EXPLANATIONS.iter().find(|(known, _)| known.eq_ignore_ascii_case(code)).map(|(_, text)| *text)
}

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
            Self::Ir(source) => match source {
                cachemir_ir::Error::File { action: "read", .. } => "C0501",
                cachemir_ir::Error::File { .. } => "C0502",
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
    fn every_code_is_explained_once() {
        assert!(EXPLANATIONS.windows(2).all(|pair| pair[0].0 < pair[1].0));
        let error = Error::Interface { message: String::new() };
        assert!(explain(error.code()).is_some());
        assert!(explain("c0101").is_some());
        assert!(explain("C9999").is_none());
    }
}
