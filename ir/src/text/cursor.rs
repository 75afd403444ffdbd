//! A position in one line of text.

use std::str::FromStr;

use crate::Error;

/// Reads tokens from the front of a line. Spaces between tokens mean nothing.
#[derive(Clone, Debug)]
pub struct Cursor<'t> {
    rest: &'t str,
    line: usize,
    depth: usize,
}

/// Deepest nesting of parentheses that is read.
const MAXIMUM_NESTING: usize = 100;

impl<'t> Cursor<'t> {
    /// The start of a line of the given number.
    pub fn new(text: &'t str, line: usize) -> Self {
        Self { rest: text, line, depth: 0 }
    }

    /// An error at this line.
    pub fn error(&self, message: impl Into<String>) -> Error {
        Error::Parse { line: self.line, message: message.into() }
    }

    /// The error that something else than what follows was expected.
    pub fn expected(&self, what: &str) -> Error {
        let found = self.rest.trim_start();
        let shown: String = found.chars().take(24).collect();
        if shown.is_empty() {
            self.error(format!("expected {what}, found the end of the line"))
        } else {
            self.error(format!("expected {what} at `{shown}`"))
        }
    }

    /// What has not been read.
    pub fn rest(&mut self) -> &'t str {
        self.rest = self.rest.trim_start();
        self.rest
    }

    /// Reads everything up to, and without, the first of the given delimiters, or to the end.
    pub fn until(&mut self, delimiters: &[&str]) -> &'t str {
        let rest = self.rest;
        let end = delimiters.iter().filter_map(|delimiter| rest.find(delimiter)).min().unwrap_or(rest.len());
        self.rest = &rest[end..];
        rest[..end].trim()
    }

    /// Reads a symbol if it follows.
    pub fn eat(&mut self, symbol: &str) -> bool {
        match self.rest().strip_prefix(symbol) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// Reads a symbol.
    pub fn expect(&mut self, symbol: &str) -> Result<(), Error> {
        if self.eat(symbol) { Ok(()) } else { Err(self.expected(&format!("`{symbol}`"))) }
    }

    /// The word of letters, digits and underscores that follows, unread; empty where there is none.
    pub fn peek_word(&mut self) -> &'t str {
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        &rest[..end]
    }

    /// Reads a word.
    pub fn word(&mut self) -> Result<&'t str, Error> {
        let word = self.peek_word();
        if word.is_empty() {
            return Err(self.expected("a word"));
        }
        self.rest = &self.rest[word.len()..];
        Ok(word)
    }

    /// Reads the given word if it follows as a whole.
    pub fn eat_word(&mut self, word: &str) -> bool {
        if self.peek_word() == word {
            self.rest = &self.rest[word.len()..];
            return true;
        }
        false
    }

    /// Reads the given word.
    pub fn expect_word(&mut self, word: &str) -> Result<(), Error> {
        if self.eat_word(word) { Ok(()) } else { Err(self.expected(&format!("`{word}`"))) }
    }

    /// Reads a whole number, with its sign.
    pub fn integer<N: FromStr>(&mut self) -> Result<N, Error> {
        let rest = self.rest();
        let sign = usize::from(rest.starts_with('-'));
        let digits = rest[sign..].find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len() - sign);
        let (number, after) = rest.split_at(sign + digits);
        let value = number.parse().map_err(|_| self.expected("a whole number in range"))?;
        self.rest = after;
        Ok(value)
    }

    /// Reads a number as [`write_float`] writes it.
    pub fn float(&mut self) -> Result<f64, Error> {
        let rest = self.rest();
        let mut end = 0;
        for (index, c) in rest.char_indices() {
            let exponent = rest[..index].ends_with('e');
            if c.is_ascii_alphanumeric() || c == '.' || (matches!(c, '-' | '+') && (index == 0 || exponent)) {
                end = index + c.len_utf8();
            } else {
                break;
            }
        }
        // `0..n` is a range, not a number.
        let number = &rest[..rest[..end].find("..").unwrap_or(end)];
        let value = number.parse().map_err(|_| self.expected("a number"))?;
        self.rest = &rest[number.len()..];
        Ok(value)
    }

    /// Reads the number behind a prefix, as in `%12`.
    pub fn id(&mut self, prefix: &str, what: &str) -> Result<u32, Error> {
        if !self.eat(prefix) || !self.rest.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(self.expected(what));
        }
        self.integer()
    }

    /// Reads a name, quoted or not.
    pub fn name(&mut self) -> Result<String, Error> {
        if self.rest().starts_with('"') {
            let mut stream = serde_json::Deserializer::from_str(self.rest).into_iter::<String>();
            return match stream.next() {
                Some(Ok(name)) => {
                    self.rest = &self.rest[stream.byte_offset()..];
                    Ok(name)
                }
                _ => Err(self.expected("a quoted name")),
            };
        }
        let end = self.rest.find(|c| !is_plain(c)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        if name.is_empty() {
            return Err(self.expected("a name"));
        }
        self.rest = rest;
        Ok(name.to_owned())
    }

    /// Whether nothing is left.
    pub fn at_end(&mut self) -> bool {
        self.rest().is_empty()
    }

    /// Checks that nothing is left.
    pub fn finish(&mut self) -> Result<(), Error> {
        if self.at_end() { Ok(()) } else { Err(self.expected("the end of the line")) }
    }

    /// Reads something nested, and refuses nesting without bound.
    pub fn nested<R>(&mut self, read: impl FnOnce(&mut Self) -> Result<R, Error>) -> Result<R, Error> {
        if self.depth >= MAXIMUM_NESTING {
            return Err(self.error(format!("an expression is nested more than {MAXIMUM_NESTING} deep")));
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_./-".contains(c)
}

/// Writes a number such that reading gives the same bits back (any NaN gives a NaN).
pub fn write_float(out: &mut String, value: f64) {
    out.push_str(&format!("{value:?}"));
}

/// Writes a name, quoted where it holds more than letters, digits and `_./-`.
pub fn write_name(out: &mut String, name: &str) {
    if !name.is_empty() && name.chars().all(is_plain) {
        out.push_str(name);
    } else {
        out.push_str(&serde_json::Value::from(name).to_string());
    }
}
