//! Text to tokens and back, token by token.

use crate::Error;

/// The model's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens)", self.inner.get_vocab_size(true))
    }
}

impl Tokenizer {
    /// Reads the bytes of a `tokenizer.json`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|source| Error::Tokenizer(source.to_string()))?;
        Ok(Self { inner })
    }

    /// The tokens of a text, after the start token where the model has one.
    pub fn encode(&self, text: &str, start: Option<u32>) -> Result<Vec<u32>, Error> {
        let encoding = self.inner.encode(text, false).map_err(|source| Error::Tokenizer(source.to_string()))?;
        let mut tokens: Vec<u32> = start.into_iter().collect();
        tokens.extend(encoding.get_ids());
        Ok(tokens)
    }

    /// The text of tokens, without special ones.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, Error> {
        self.inner.decode(tokens, true).map_err(|source| Error::Tokenizer(source.to_string()))
    }
}

/// Settled tokens that are decoded together with new ones. What joins two tokens, a space for instance, may depend on
/// the ones before, and special tokens among those have no text.
const WINDOW: usize = 8;

/// Turns tokens into text as they come. A character may span several tokens, and is held back until it is whole.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    tokens: Vec<u32>,
    /// Tokens before this one are settled: their text was handed out.
    settled: usize,
}

impl TextStream {
    /// A stream that continues a text of these tokens.
    pub fn after(tokens: &[u32]) -> Self {
        Self { tokens: tokens.to_vec(), settled: tokens.len() }
    }

    /// Adds a token and returns the text that it completes, which may be empty.
    pub fn push(&mut self, token: u32, tokenizer: &Tokenizer) -> Result<String, Error> {
        self.tokens.push(token);
        let new = self.new_text(tokenizer)?;
        // The replacement character stands for bytes that do not make a character yet.
        if new.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        self.settled = self.tokens.len();
        Ok(new)
    }

    /// What was held back, at the end.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String, Error> {
        let rest = self.new_text(tokenizer)?;
        self.settled = self.tokens.len();
        Ok(rest)
    }

    /// The text of the tokens that are not settled, after that of the window before them.
    fn new_text(&self, tokenizer: &Tokenizer) -> Result<String, Error> {
        let window = &self.tokens[self.settled.saturating_sub(WINDOW)..];
        let before = tokenizer.decode(&window[..self.settled.min(WINDOW)])?;
        let now = tokenizer.decode(window)?;
        let same = before.chars().zip(now.chars()).take_while(|(a, b)| a == b);
        let start: usize = same.map(|(_, c)| c.len_utf8()).sum();
        Ok(now[start..].to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A byte-level tokenizer whose tokens are single bytes, written as the byte-level alphabet writes them.
    fn bytes_tokenizer() -> Tokenizer {
        let printable = (33..=126).chain(161..=172).chain(174..=255).collect::<Vec<u32>>();
        let mut next = 256;
        let mut vocabulary = serde_json::Map::new();
        for byte in 0..=255_u32 {
            let letter = if printable.contains(&byte) {
                byte
            } else {
                next += 1;
                next - 1
            };
            vocabulary.insert(char::from_u32(letter).unwrap().to_string(), byte.into());
        }
        let description = serde_json::json!({
            "version": "1.0", "added_tokens": [{"id": 256, "content": "<s>", "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true}],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        });
        Tokenizer::from_bytes(description.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_text_comes_back_with_the_start_token_in_front() {
        let tokenizer = bytes_tokenizer();
        let tokens = tokenizer.encode("a è", Some(256)).unwrap();
        assert_eq!(tokens, [256, 97, 32, 0xc3, 0xa8]);
        assert_eq!(tokenizer.decode(&tokens).unwrap(), "a è");
        assert_eq!(tokenizer.encode("", None).unwrap(), [0_u32; 0]);
    }

    #[test]
    fn a_character_is_held_back_until_it_is_whole() {
        let tokenizer = bytes_tokenizer();
        let text = "né 漢字 🙂!";
        let mut stream = TextStream::default();
        let mut pieces = Vec::new();
        for token in tokenizer.encode(text, None).unwrap() {
            pieces.push(stream.push(token, &tokenizer).unwrap());
        }
        assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
        assert_eq!(pieces.concat(), text);
        assert_eq!(stream.push(0xc3, &tokenizer).unwrap(), "");
        assert_eq!(stream.finish(&tokenizer).unwrap(), "\u{fffd}");
    }

    #[test]
    fn a_broken_tokenizer_is_an_error() {
        assert_eq!(Tokenizer::from_bytes(b"{}").unwrap_err().code(), "CMR-R004");
    }
}
