//! From an ONNX file to the tensor stage.
//!
//! Exporters write the same decoder in very different ways. Three steps make them agree:
//! 1. *specialise* the graph to one token after a given number of past tokens, fold what is then constant, and see
//!    through views ([`specialise`], [`views`]);
//! 2. *recognise* the decoder from its output backwards: head, norms, linear layers, attention, gated layers
//!    ([`recognise`]), and find the same decoder at other positions and lengths ([`lengths`]);
//! 3. *build* the tensor graph with its weights as `[out, in]` matrices, and the rotary table by specialising the part
//!    of the graph that computes it to a whole context ([`build`], [`rope_table`]).
//!
//! Everything is taken from the graph; `config.json` gives only the special tokens and the longest context.

mod build;
mod companions;
mod dense;
mod evaluate;
mod infer;
mod inputs;
mod lengths;
mod onnx;
mod recognise;
mod rope_table;
mod specialise;
#[cfg(test)]
mod tests;
mod tokenizer;
mod views;

use std::path::{Path, PathBuf};

use cachemir_ir::tensor::TensorModel;

pub use companions::Companions;
pub use tokenizer::TokenizerFile;

use crate::Error;

/// Most tokens in a session unless the user asks for more.
pub const DEFAULT_CONTEXT: usize = 256;

/// What [`load`] is asked to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// `config.json`, if it does not lie beside the model.
    pub config: Option<PathBuf>,
    /// `tokenizer.json`, if it does not lie beside the model.
    pub tokenizer: Option<PathBuf>,
    /// Most tokens in a session; the model's own limit, at most [`DEFAULT_CONTEXT`], where absent.
    pub context: Option<usize>,
    /// Whether weights may be missing: the tensor graph then has shapes only, and no tokenizer is looked for.
    pub shapes_only: bool,
}

/// A model ready to be lowered, with what a client needs to talk to it.
#[derive(Clone, Debug, PartialEq)]
pub struct ImportedModel {
    /// The recognised decoder.
    pub model: TensorModel,
    /// The tokenizer; without one, texts are token ids.
    pub tokenizer: Option<TokenizerFile>,
    /// The token that config.json names as a text's first. What the model gets is up to the tokenizer.
    pub bos_token: Option<u32>,
    /// The tokens that end a text.
    pub eos_tokens: Vec<u32>,
    /// Where the model computes something else than the file would, in sentences.
    pub notes: Vec<String>,
}

/// Loads the ONNX model at `path` and recognises the Llama decoder in it.
///
/// # Errors
/// Everything that can be wrong with the file, the graph in it, and the files beside it.
pub fn load(path: &Path, options: &ImportOptions) -> Result<ImportedModel, Error> {
    let graph = onnx::read(path, options.context.unwrap_or(DEFAULT_CONTEXT))?;
    if !options.shapes_only
        && let Some((tensor, file)) = specialise::Specialised::missing_data(&graph)
    {
        return Err(Error::MissingExternalData { tensor: tensor.to_owned(), path: file.to_owned() });
    }
    let decoder = lengths::recognise(&graph)?;
    let companions = Companions::find(path, options)?;
    let model = build::build(&decoder, &companions, options)?;
    companions.check(&model)?;
    let untokenized = "no tokenizer.json was found beside the model: prompts and answers are token ids (--prompt-ids)";
    let notes = (companions.tokenizer.is_none() && !options.shapes_only).then(|| untokenized.to_owned());
    let elsewhere = companions.notes(path);
    Ok(ImportedModel {
        model,
        tokenizer: companions.tokenizer,
        bos_token: companions.bos_token,
        eos_tokens: companions.eos_tokens,
        notes: graph.notes.iter().cloned().chain(notes).chain(elsewhere).collect(),
    })
}
