//! The tokenizer beside a model, and what its files say of conversations.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cachemir_ir::chat;
use cachemir_ir::plan::ChatTemplate;
use cachemir_ir::tokenizer::Tokenizer;
use serde_json::Value;

use super::companions::{nearest, read, read_json};
use crate::Error;

/// A tokenizer as its file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizerFile {
    /// Where it was found.
    pub path: PathBuf,
    /// Its contents, which [`Tokenizer`] reads.
    pub bytes: Vec<u8>,
    /// The template for conversations beside it.
    pub chat: Option<ChatTemplate>,
}

impl TokenizerFile {
    /// Reads the named file, or the one beside the model; `None` where there is no tokenizer at all.
    pub(super) fn find(model: &Path, named: Option<&Path>) -> Result<Option<Self>, Error> {
        if let Some(path) = named {
            return Self::read(path.to_owned()).map(Some);
        }
        nearest(model, &["tokenizer.json", SENTENCE_PIECE]).map(Self::read).transpose()
    }

    fn read(path: PathBuf) -> Result<Self, Error> {
        if path.extension().is_some_and(|extension| extension == "model") {
            return Err(Error::SentencePiece { path });
        }
        let bytes = read(&path)?;
        let chat = chat_template(&path)?;
        let file = Self { path, bytes, chat };
        file.prefix()?;
        Ok(file)
    }

    fn bad(&self, message: String) -> Error {
        Error::BadCompanion { path: self.path.clone(), message }
    }

    fn open(&self) -> Result<Tokenizer, Error> {
        Tokenizer::from_bytes(&self.bytes).map_err(|message| self.bad(message))
    }

    /// The tokens of each text as the model gets them, from the file `source`.
    pub fn encode(&self, texts: &[&str], source: &Path) -> Result<Vec<Vec<u32>>, Error> {
        let tokenizer = self.open()?;
        let encode = |text: &&str| {
            tokenizer.encode(text, true).map_err(|error| {
                let message = format!("the tokenizer cannot encode it: {error}");
                Error::BadCompanion { path: source.to_owned(), message }
            })
        };
        texts.iter().map(encode).collect()
    }

    /// The tokens of conversations that begin with these messages, as the model's template writes them.
    ///
    /// # Errors
    /// Without a template, and with one that does not render.
    pub fn conversations(&self, messages: &[&str]) -> Result<Vec<Vec<u32>>, Error> {
        let none = || self.bad("there is no chat template beside it".to_owned());
        let template = self.chat.as_ref().ok_or_else(none)?;
        let tokenizer = self.open()?;
        let one = |message: &&str| {
            let text = chat::render(template, None, message).map_err(|error| self.bad(error.to_string()))?;
            // The template writes its special tokens itself.
            tokenizer.encode(&text, false).map_err(|error| self.bad(error))
        };
        messages.iter().map(one).collect()
    }

    /// The tokens that every conversation begins with, whatever its first message.
    ///
    /// # Errors
    /// As those of [`Self::conversations`].
    pub fn constant_beginning(&self) -> Result<Vec<u32>, Error> {
        let mut conversations =
            self.conversations(&["Who?", "is it 7", "4 + 4", " so", "\"No\"", "été", "你好", "#"])?;
        let mut common = conversations.pop().unwrap_or_default();
        for other in conversations {
            let length = common.iter().zip(&other).take_while(|(a, b)| a == b).count();
            common.truncate(length);
        }
        Ok(common)
    }

    /// The tokens that it puts in front of every text.
    pub fn prefix(&self) -> Result<Vec<u32>, Error> {
        self.open()?.prefix().map_err(|message| self.bad(message))
    }

    /// Fails where it has tokens that the embedding does not have.
    pub(super) fn check(&self, vocabulary: usize) -> Result<(), Error> {
        match self.open()?.last_token() {
            Some((token, text)) if token as usize >= vocabulary => Err(self.bad(format!(
                "its token {token}, `{text}`, is not among the {vocabulary} tokens of the model's embedding: the \
                 tokenizer is of another model, or the embedding was not resized when tokens were added"
            ))),
            _ => Ok(()),
        }
    }
}

/// The tokenizer's form that other libraries read.
const SENTENCE_PIECE: &str = "tokenizer.model";

/// The template in `chat_template.jinja` or `tokenizer_config.json` beside a tokenizer, of several the one named
/// `default`, with the texts of special tokens.
fn chat_template(tokenizer: &Path) -> Result<Option<ChatTemplate>, Error> {
    let beside = |name: &str| Some(tokenizer.with_file_name(name)).filter(|path| path.is_file());
    let config = beside("tokenizer_config.json").map(|path| read_json(&path)).transpose()?.unwrap_or_default();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let source = match (beside("chat_template.jinja"), config.get("chat_template")) {
        (Some(path), _) => {
            let source = String::from_utf8(read(&path)?);
            Some(source.map_err(|error| Error::BadCompanion { path, message: error.to_string() })?)
        }
        (None, Some(Value::Array(named))) => {
            let default = named.iter().find(|entry| entry.get("name").is_some_and(|name| name == "default"));
            default.and_then(|entry| text(entry.get("template")?))
        }
        (None, single) => single.and_then(text),
    };
    let map = beside("special_tokens_map.json").map(|path| read_json(&path)).transpose()?.unwrap_or_default();
    let mut tokens = BTreeMap::new();
    for (key, value) in [&map, &config].into_iter().filter_map(Value::as_object).flatten() {
        // Either the text itself, or an object with the text as its content.
        if let (true, Some(token)) = (key.ends_with("_token"), text(value.get("content").unwrap_or(value))) {
            tokens.insert(key.clone(), token);
        }
    }
    Ok(source.map(|source| ChatTemplate { source, tokens }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tokenizer of words with everything that may stand in a file: a post-processor, padding and truncation.
    fn words(folder: &Path) -> PathBuf {
        let path = folder.join("tokenizer.json");
        std::fs::write(&path, description().to_string()).unwrap();
        path
    }

    fn description() -> Value {
        let special = |id: u32, content: &str| {
            serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        };
        serde_json::json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 1,
                "pad_type_id": 0, "pad_token": "</s>"},
            "added_tokens": [special(0, "<s>"), special(1, "</s>")],
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
            "model": {"type": "WordLevel", "vocab": {"<s>": 0, "</s>": 1, "one": 2, "two": 3}, "unk_token": "one"},
        })
    }

    /// The library reads both, and panics when it encodes with the first and while it reads the second.
    #[test]
    fn a_tokenizer_that_cannot_be_used_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let mut unknown = description();
        unknown["post_processor"]["special_tokens"] = serde_json::json!({});
        let mut short = description();
        short["model"] = serde_json::json!({"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]],
            "continuing_subword_prefix": "##"});
        for broken in [unknown, short] {
            std::fs::write(&path, broken.to_string()).unwrap();
            assert!(matches!(TokenizerFile::read(path.clone()), Err(Error::BadCompanion { .. })));
        }
    }

    #[test]
    fn a_text_is_neither_padded_nor_cut() {
        let folder = tempfile::tempdir().unwrap();
        let file = TokenizerFile::read(words(folder.path())).unwrap();
        let tokens = file.encode(&["one two one two", "two"], Path::new("text")).unwrap();
        assert_eq!(tokens, [vec![0, 2, 3, 2, 3], vec![0, 3]]);
        assert_eq!(file.prefix().unwrap(), [0]);
    }

    #[test]
    fn more_tokens_than_the_embedding_has_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = TokenizerFile::read(words(folder.path())).unwrap();
        file.check(4).unwrap();
        let message = file.check(3).unwrap_err().to_string();
        assert!(message.contains("token 3") && message.contains("two") && message.contains('3'), "{message}");
    }

    #[test]
    fn a_sentence_piece_model_alone_is_refused_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model.onnx");
        assert_eq!(TokenizerFile::find(&model, None).unwrap(), None);
        std::fs::write(folder.path().join(SENTENCE_PIECE), b"pieces").unwrap();
        let named = folder.path().join(SENTENCE_PIECE);
        for error in [TokenizerFile::find(&model, None), TokenizerFile::find(&model, Some(&named))] {
            let error = error.unwrap_err();
            assert_eq!(error.code(), "C0303");
            assert!(error.to_string().contains("save_pretrained"), "{error}");
        }
        // What lies beside the model goes ahead of what lies above it.
        let below = folder.path().join("below").join("model.onnx");
        std::fs::create_dir(folder.path().join("below")).unwrap();
        words(folder.path());
        assert!(TokenizerFile::find(&model, None).unwrap().is_some());
        assert!(TokenizerFile::find(&below, None).unwrap().is_some());
        std::fs::write(folder.path().join("below").join(SENTENCE_PIECE), b"pieces").unwrap();
        assert_eq!(TokenizerFile::find(&below, None).unwrap_err().code(), "C0303");
    }

    #[test]
    fn templates_are_found_in_each_of_their_places() {
        let folder = tempfile::tempdir().unwrap();
        let path = words(folder.path());
        let found = || TokenizerFile::read(path.clone()).unwrap().chat;
        let configure = |template: Value| {
            let config =
                serde_json::json!({"chat_template": template, "bos_token": "<s>", "eos_token": {"content": "</s>"}});
            std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        };
        assert_eq!(found(), None);
        configure(Value::Null);
        assert_eq!(found(), None);
        configure("plain".into());
        let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(key, text)| (key.to_owned(), text.to_owned()));
        assert_eq!(found(), Some(ChatTemplate { source: "plain".into(), tokens: tokens.into() }));
        configure(serde_json::json!([{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]));
        assert_eq!(found().unwrap().source, "d");
        std::fs::write(folder.path().join("chat_template.jinja"), "file").unwrap();
        assert_eq!(found().unwrap().source, "file");
    }
}
