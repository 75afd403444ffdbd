//! Text to tokens and back, token by token.

use cachemir_ir::tokenizer;

use crate::Error;

/// The model's tokenizer, or none.
pub struct Tokenizer {
    /// Without it, texts are the ids of their tokens.
    inner: Option<tokenizer::Tokenizer>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.inner {
            Some(inner) => write!(f, "Tokenizer({} tokens)", inner.size()),
            None => write!(f, "Tokenizer(ids)"),
        }
    }
}

impl Tokenizer {
    /// Reads the bytes of a `tokenizer.json`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        Ok(Self { inner: Some(tokenizer::Tokenizer::from_bytes(bytes).map_err(Error::Tokenizer)?) })
    }

    /// For a model without a tokenizer: shows the ids of tokens, and knows no texts.
    pub fn of_ids() -> Self {
        Self { inner: None }
    }

    /// The tokens of a text; with the special tokens that the tokenizer adds where the text is `whole`.
    pub fn encode(&self, text: &str, whole: bool) -> Result<Vec<u32>, Error> {
        let inner = self.inner.as_ref().ok_or(Error::NoTokenizer)?;
        inner.encode(text, whole).map_err(Error::Tokenizer)
    }

    /// The tokens that the tokenizer puts in front of a text; none without one.
    pub fn prefix(&self) -> Result<Vec<u32>, Error> {
        let Some(inner) = &self.inner else { return Ok(Vec::new()) };
        inner.prefix().map_err(Error::Tokenizer)
    }

    /// The text of tokens, without special ones.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, Error> {
        match &self.inner {
            Some(inner) => inner.decode(tokens, false).map_err(Error::Tokenizer),
            None => Ok(tokens.iter().flat_map(|token| [token.to_string(), " ".to_owned()]).collect()),
        }
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

    fn bytes_tokenizer() -> Tokenizer {
        Tokenizer::from_bytes(description().to_string().as_bytes()).unwrap()
    }

    /// A byte-level tokenizer whose tokens are single bytes, written as the byte-level alphabet writes them.
    fn description() -> serde_json::Value {
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
        serde_json::json!({
            "version": "1.0", "added_tokens": [{"id": 256, "content": "<s>", "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true}],
            "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                "pad_type_id": 0, "pad_token": "a"},
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}}},
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        })
    }

    #[test]
    fn a_text_comes_back_with_the_tokenizers_own_special_tokens_in_front() {
        let tokenizer = bytes_tokenizer();
        let tokens = tokenizer.encode("a è", true).unwrap();
        assert_eq!(tokens, [256, 97, 32, 0xc3, 0xa8]);
        assert_eq!(tokenizer.decode(&tokens).unwrap(), "a è");
        assert_eq!(tokenizer.encode("a è", false).unwrap(), tokens[1..]);
        assert_eq!(tokenizer.encode("", false).unwrap(), [0_u32; 0]);
        assert_eq!(tokenizer.prefix().unwrap(), [256]);
        // Special tokens in a text are recognised.
        assert_eq!(tokenizer.encode("<s>a", false).unwrap(), [256, 97]);
    }

    #[test]
    fn without_a_tokenizer_texts_are_ids() {
        let tokenizer = Tokenizer::of_ids();
        assert_eq!(tokenizer.encode("a", true).unwrap_err().code(), "CMR-R004");
        let mut stream = TextStream::after(&[7]);
        let shown = [5, 12, 5].map(|token| stream.push(token, &tokenizer).unwrap());
        assert_eq!(shown, ["5 ", "12 ", "5 "]);
        assert_eq!(stream.finish(&tokenizer).unwrap(), "");
    }

    #[test]
    fn a_character_is_held_back_until_it_is_whole() {
        let tokenizer = bytes_tokenizer();
        let text = "né 漢字 🙂!";
        let mut stream = TextStream::default();
        let mut pieces = Vec::new();
        for token in tokenizer.encode(text, false).unwrap() {
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
        // The library panics at both: at a template that names a token without giving it, and at a merge whose second
        // part is shorter than the prefix of such parts.
        let mut unknown = description();
        unknown["post_processor"]["special_tokens"] = serde_json::json!({});
        let tokenizer = Tokenizer::from_bytes(unknown.to_string().as_bytes()).unwrap();
        assert_eq!(tokenizer.encode("a", true).unwrap_err().code(), "CMR-R004");
        let mut short = description();
        short["model"]["continuing_subword_prefix"] = "##".into();
        short["model"]["merges"] = serde_json::json!([["a", "b"]]);
        assert_eq!(Tokenizer::from_bytes(short.to_string().as_bytes()).unwrap_err().code(), "CMR-R004");
    }
}
