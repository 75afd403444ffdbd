//! The files beside a model: `config.json`, `generation_config.json`, `genai_config.json`, and those of the tokenizer.

use std::path::{Path, PathBuf};

use cachemir_ir::tensor::TensorModel;
use serde_json::Value;

use super::{ImportOptions, TokenizerFile};
use crate::Error;

/// What the files beside a model say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Companions {
    /// The tokenizer.
    pub tokenizer: Option<TokenizerFile>,
    /// The token that config.json names as a text's first. What the model gets is up to the tokenizer.
    pub bos_token: Option<u32>,
    /// The tokens that end a text.
    pub eos_tokens: Vec<u32>,
    /// Most tokens that the model was made for.
    pub context: Option<usize>,
    /// Base of the rotary frequencies, used only if the graph's own table is not at hand.
    pub rope_theta: Option<f64>,
    /// The configuration's path and contents.
    config: Option<(PathBuf, Value)>,
}

impl Companions {
    /// Reads the files named by the options, or found beside the model or in the two folders above it.
    pub(super) fn find(model: &Path, options: &ImportOptions) -> Result<Self, Error> {
        let mut this = Self::default();
        let config = match &options.config {
            Some(path) => Some(path.clone()),
            None => nearest(model, &["config.json"]),
        };
        if let Some(path) = config {
            let config = read_json(&path)?;
            if KNOWN_KEYS.iter().all(|key| config.get(key).is_none()) {
                let message =
                    format!("it is no model's configuration: there is none of {} in it", KNOWN_KEYS.join(", "));
                return Err(Error::BadCompanion { path, message });
            }
            this.take_tokens(&config);
            this.context = number(&config, "max_position_embeddings").map(|number| number as usize);
            this.rope_theta = config.get("rope_theta").and_then(Value::as_f64);
            if let Some(folder) = path.parent()
                && let generation = folder.join("generation_config.json")
                && generation.is_file()
            {
                this.take_tokens(&read_json(&generation)?);
            }
            this.config = Some((path, config));
        } else if let Some(path) = nearest(model, &["genai_config.json"]) {
            let config = read_json(&path)?;
            let inner = config.get("model").cloned().unwrap_or_default();
            this.take_tokens(&inner);
            this.context = number(&inner, "context_length").map(|number| number as usize);
        } else {
            return Err(Error::MissingCompanion { file: "config.json", model: model.to_owned() });
        }
        if !options.shapes_only {
            this.tokenizer = TokenizerFile::find(model, options.tokenizer.as_deref())?;
        }
        Ok(this)
    }

    /// Which files were found in a folder above the model's, in sentences.
    pub(super) fn notes(&self, model: &Path) -> Vec<String> {
        let files = || self.config.iter().map(|(path, _)| path).chain(self.tokenizer.iter().map(|file| &file.path));
        let places = ["the folder above the model's", "the second folder above the model's"];
        let note = |(folder, place): (&PathBuf, &str)| {
            let there = files().filter(|path| path.parent() == Some(folder));
            let names: Vec<String> = there.filter_map(|path| Some(path.file_name()?.display().to_string())).collect();
            (!names.is_empty()).then(|| format!("{} of {place}", names.join(" and ")))
        };
        folders(model).iter().skip(1).zip(places).filter_map(note).collect()
    }

    /// Checks the files' numbers against the graph's.
    pub(super) fn check(&self, model: &TensorModel) -> Result<(), Error> {
        let shape = &model.hyperparameters;
        if let Some((path, config)) = &self.config {
            let pairs = [
                ("vocab_size", shape.vocabulary),
                ("hidden_size", shape.hidden),
                ("num_hidden_layers", shape.layers),
                ("num_attention_heads", shape.heads),
                ("num_key_value_heads", shape.kv_heads),
                ("intermediate_size", shape.mlp),
            ];
            for (key, graph) in pairs {
                if let Some(said) = number(config, key)
                    && said != graph as u64
                {
                    let message = format!("{key} is {said}, in the graph it is {graph}");
                    return Err(Error::BadCompanion { path: path.clone(), message });
                }
            }
            let special = self.bos_token.iter().chain(&self.eos_tokens);
            if let Some(token) = special.into_iter().find(|&&token| token as usize >= shape.vocabulary) {
                let message = format!("special token {token} is not among the {} tokens", shape.vocabulary);
                return Err(Error::BadCompanion { path: path.clone(), message });
            }
        }
        self.tokenizer.as_ref().map_or(Ok(()), |tokenizer| tokenizer.check(shape.vocabulary))
    }

    /// Takes the special tokens that a configuration names.
    fn take_tokens(&mut self, config: &Value) {
        let token = |value: &Value| value.as_u64().and_then(|token| u32::try_from(token).ok());
        if let Some(bos) = config.get("bos_token_id").and_then(token) {
            self.bos_token = Some(bos);
        }
        match config.get("eos_token_id") {
            Some(Value::Array(tokens)) => self.eos_tokens = tokens.iter().filter_map(token).collect(),
            Some(single) => self.eos_tokens = token(single).into_iter().collect(),
            None => {}
        }
    }
}

fn number(config: &Value, key: &str) -> Option<u64> {
    config.get(key).and_then(Value::as_u64)
}

/// Some of these are in every configuration of a model.
const KNOWN_KEYS: [&str; 6] =
    ["model_type", "architectures", "vocab_size", "hidden_size", "max_position_embeddings", "eos_token_id"];

/// The model's folder and the two above it.
fn folders(model: &Path) -> Vec<PathBuf> {
    std::path::absolute(model)
        .map_or_else(|_| Vec::new(), |model| model.ancestors().skip(1).take(3).map(Path::to_owned).collect())
}

/// The first of the files that lies in the model's folder, else in the folder above it, else in the one above that.
pub(super) fn nearest(model: &Path, files: &[&str]) -> Option<PathBuf> {
    let folders = folders(model);
    folders.iter().flat_map(|folder| files.iter().map(|file| folder.join(file))).find(|path| path.is_file())
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

pub(super) fn read_json(path: &Path) -> Result<Value, Error> {
    serde_json::from_slice(&read(path)?)
        .map_err(|error| Error::BadCompanion { path: path.to_owned(), message: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_folders_above_the_model_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("onnx");
        std::fs::create_dir(&below).unwrap();
        let model = below.join("model.onnx");
        let find = || Companions::find(&model, &ImportOptions::default());
        std::fs::write(folder.path().join("config.json"), "{\"vocab_size\": 512}").unwrap();
        assert_eq!(find().unwrap().notes(&model), ["config.json of the folder above the model's"]);
        std::fs::write(below.join("config.json"), "{\"model_type\": \"llama\"}").unwrap();
        assert_eq!(find().unwrap().notes(&model), [""; 0]);
    }

    #[test]
    fn another_file_is_no_configuration() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), "{\"added_tokens\": []}").unwrap();
        let error = Companions::find(&folder.path().join("model.onnx"), &ImportOptions::default()).unwrap_err();
        assert!(matches!(&error, Error::BadCompanion { .. }) && error.to_string().contains("vocab_size"), "{error}");
    }
}
