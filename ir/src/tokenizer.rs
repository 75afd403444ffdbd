//! A model's tokenizer: what `tokenizer.json` alone makes of a text is what the model gets.
//!
//! Special tokens are those of its post-processor, whatever other files say. Padding and truncation are settings of batches
//! and not of texts, and left out. Errors are texts: some files that the library reads, it panics at when they are used, and
//! a panic is an error as well.

use tokenizers::Result;

use crate::panics::contained;

/// A tokenizer that was read.
pub struct Tokenizer(tokenizers::Tokenizer);

impl Tokenizer {
    /// Reads the bytes of a `tokenizer.json`.
    pub fn from_bytes(bytes: &[u8]) -> std::result::Result<Self, String> {
        contained(|| -> Result<_> {
            let mut inner = tokenizers::Tokenizer::from_bytes(bytes)?;
            inner.with_padding(None);
            inner.with_truncation(None)?;
            Ok(Self(inner))
        })
    }

    /// The tokens of a text; with the special tokens that the tokenizer adds where the text is `whole`.
    pub fn encode(&self, text: &str, whole: bool) -> std::result::Result<Vec<u32>, String> {
        Ok(contained(|| self.0.encode(text, whole))?.get_ids().to_vec())
    }

    /// The tokens that it puts in front of every text.
    pub fn prefix(&self) -> std::result::Result<Vec<u32>, String> {
        let encoding = contained(|| self.0.encode("a", true))?;
        let special = encoding.get_special_tokens_mask().iter().zip(encoding.get_ids());
        Ok(special.take_while(|(special, _)| **special == 1).map(|(_, token)| *token).collect())
    }

    /// The text of tokens; that of special ones as well where the text is `whole`.
    pub fn decode(&self, tokens: &[u32], whole: bool) -> std::result::Result<String, String> {
        contained(|| self.0.decode(tokens, !whole))
    }

    /// Number of tokens.
    pub fn size(&self) -> usize {
        self.0.get_vocab_size(true)
    }

    /// The token with the largest id, and its text.
    pub fn last_token(&self) -> Option<(u32, String)> {
        self.0.get_vocab(true).into_iter().map(|(text, token)| (token, text)).max()
    }
}
