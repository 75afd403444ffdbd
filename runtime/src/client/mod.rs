//! The client's role: it owns the secret key, the text and the choice of tokens.
//!
//! It turns text into tokens, looks their embeddings up, packs and encrypts them; it decrypts logits and samples. All it
//! needs is the plan's client file. The server's modules use nothing of this one.

mod cipher;
pub mod packing;
pub mod sampling;
mod saved;
mod tokenizer;

use cachemir_ir::plan::{ClientPlan, EntryInterface};
use cachemir_ir::program::EntryKind;

pub(crate) use cipher::check_levels;
pub use cipher::{CheckedCipher, Cipher, ClearCipher, SecretCipher};
pub use saved::SavedClient;
pub use tokenizer::{TextStream, Tokenizer};

use crate::Error;

/// A client with its plan, tokenizer and cipher.
#[derive(Debug)]
pub struct Client<C> {
    plan: ClientPlan,
    tokenizer: Tokenizer,
    cipher: C,
}

impl<C: Cipher> Client<C> {
    /// A client that encrypts with the given cipher.
    pub fn new(plan: ClientPlan, cipher: C) -> Result<Self, Error> {
        let tokenizer = Tokenizer::from_bytes(plan.model.tokenizer.as_deref().unwrap_or_default())?;
        Ok(Self { plan, tokenizer, cipher })
    }

    /// The client's plan.
    pub fn plan(&self) -> &ClientPlan {
        &self.plan
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The cipher.
    pub fn cipher(&self) -> &C {
        &self.cipher
    }

    /// The most tokens of a session.
    pub fn context(&self) -> usize {
        self.plan.context as usize
    }

    /// The most tokens of one prefill call; `None` where the plan has no prefill.
    pub fn chunk(&self) -> Option<usize> {
        self.plan.entries.iter().find_map(|entry| match entry.kind {
            EntryKind::Prefill { chunk } => Some(chunk as usize),
            EntryKind::Decode => None,
        })
    }

    /// The tokens of a prompt, start token included. Fails where there is no text or no room for an answer.
    pub fn prompt_tokens(&self, prompt: &str) -> Result<Vec<u32>, Error> {
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let tokens =
            self.tokenizer.encode(prompt, Some(if self.plan.model.name.starts_with("stories") { 1 } else { 0 }))?;
        if tokens.len() > self.context() {
            return Err(Error::PromptTooLong { tokens: tokens.len(), context: self.context() });
        }
        Ok(tokens)
    }

    /// Encrypts the embeddings of tokens for an entry point, `decode` or `prefill`.
    pub fn encrypt(&self, entry: &str, tokens: &[u32]) -> Result<Vec<C::Ciphertext>, Error> {
        let interface = self.interface(entry)?;
        let packed = packing::pack(&self.plan, tokens)?;
        packed.iter().zip(&interface.input_levels).map(|(slots, &level)| self.cipher.encrypt(slots, level)).collect()
    }

    /// Decrypts what a call of `count` tokens gave, checks that all approximations were used where they are accurate, and
    /// takes the logits out.
    pub fn decrypt(&self, entry: &str, count: usize, outputs: &[C::Ciphertext]) -> Result<Vec<f64>, Error> {
        let slots = outputs.iter().map(|output| self.cipher.decrypt(output)).collect::<Result<Vec<_>, _>>()?.concat();
        for check in &self.interface(entry)?.checks {
            if let Some(value) = check.violation(&slots, count) {
                return Err(Error::OutOfRange { site: check.site.clone(), value, interval: check.interval });
            }
        }
        packing::unpack(&slots, &self.plan.logits)
    }

    fn interface(&self, entry: &str) -> Result<&EntryInterface, Error> {
        self.plan.entry(entry).ok_or_else(|| Error::PlanInvalid(format!("the plan has no entry point {entry}")))
    }

    /// Whether a token ends the text.
    pub fn is_end(&self, token: u32) -> bool {
        self.plan.model.eos.contains(&token)
    }
}
