//! The client's role: it owns the secret key, the text and the choice of tokens.
//!
//! It turns text into tokens, looks their embeddings up, packs and encrypts them; it decrypts logits and samples. All
//! it needs is the plan's client file. The server's modules use nothing of this one.

mod cipher;
mod guard;
pub mod packing;
pub mod sampling;
mod saved;
mod tokenizer;

use cachemir_ir::chat;
use cachemir_ir::plan::{ClientPlan, EntryInterface};
use cachemir_ir::program::EntryPoint;
use cachemir_ir::text::short;

pub(crate) use cipher::check_levels;
pub use cipher::{CheckedCipher, Cipher, ClearCipher, NoisyCipher, SecretCipher};
pub use saved::SavedClient;
pub use tokenizer::{TextStream, Tokenizer};

use crate::Error;
use crate::generation::Prefill;

/// What a session is asked to continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// A text as it is.
    Text(String),
    /// A message to a chat model, in the form of the model's template.
    Chat {
        /// How the model should behave, if the template's own words are not to be used.
        system: Option<String>,
        /// The message.
        user: String,
    },
    /// Token ids.
    Tokens(Vec<u32>),
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// What the client knows of texts, for which it needs no key: the model's tokenizer and chat template, and what sessions
/// begin with.
#[derive(Debug)]
pub struct Texts<'p> {
    plan: &'p ClientPlan,
    tokenizer: Tokenizer,
}

/// Refuses a plan that was compiled from the graph alone.
fn check_weights(plan: &ClientPlan) -> Result<(), Error> {
    if plan.model.has_weights() { Ok(()) } else { Err(Error::NoWeights) }
}

impl<'p> Texts<'p> {
    /// The texts of a plan's model.
    pub fn new(plan: &'p ClientPlan) -> Result<Self, Error> {
        check_weights(plan)?;
        let tokenizer = match &plan.model.tokenizer {
            Some(bytes) => Tokenizer::from_bytes(bytes)?,
            None => Tokenizer::of_ids(),
        };
        Ok(Self { plan, tokenizer })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The most tokens of a session.
    pub fn context(&self) -> usize {
        self.plan.context as usize
    }

    /// Where prefill is used; `None` where the plan has none.
    pub fn prefill(&self) -> Option<Prefill<'p>> {
        let chunk = self.plan.entries.iter().find_map(|entry| entry.kind.chunk())?;
        Some(Prefill { chunk: chunk as usize, pays: &self.plan.prefill_pays })
    }

    /// The tokens of a prompt, after those of the text that it continues; a new session continues the plan's public prefix,
    /// with which a conversation begins by itself. Only the beginning of a text has the special tokens that the tokenizer
    /// adds. Fails where there is nothing to continue or no room for an answer.
    pub fn prompt_tokens(&self, earlier: &[u32], prompt: &Prompt) -> Result<Vec<u32>, Error> {
        let prefix = self.prefix();
        let is_new = earlier.is_empty();
        let mut tokens = if is_new { prefix } else { earlier }.to_vec();
        match prompt {
            Prompt::Text(text) if text.is_empty() => {}
            Prompt::Text(text) => tokens.extend(self.tokenizer.encode(text, tokens.is_empty())?),
            Prompt::Chat { system, user } => {
                let template = self.plan.model.chat.as_ref().ok_or(Error::NoChatTemplate)?;
                let text = chat::render(template, system.as_deref(), user).map_err(Error::ChatTemplate)?;
                // The template writes its special tokens itself.
                let conversation = self.tokenizer.encode(&text, false)?;
                let rest = if is_new { behind(prefix, &conversation)? } else { &conversation };
                tokens.extend(rest);
            }
            Prompt::Tokens(ids) => tokens.extend(ids),
        }
        if let Some(token) = tokens.iter().find(|token| **token >= self.plan.model.vocabulary) {
            return Err(Error::NoSuchToken { token: *token, vocabulary: self.plan.model.vocabulary });
        }
        if is_new && tokens.len() == prefix.len() {
            return Err(Error::EmptyPrompt);
        }
        if tokens.len() > self.context() {
            return Err(Error::PromptTooLong { tokens: tokens.len(), context: self.context() });
        }
        Ok(tokens)
    }

    /// Tokens that a new session holds already.
    pub fn prefix(&self) -> &'p [u32] {
        &self.plan.prefix
    }

    /// Whether a token ends the text.
    pub fn is_end(&self, token: u32) -> bool {
        self.plan.model.eos.contains(&token)
    }
}

/// The end of a session that encrypts and decrypts, as its plan says.
#[derive(Debug)]
pub struct Client<'p, C> {
    plan: &'p ClientPlan,
    cipher: C,
    /// Standard deviation of a bootstrap's error.
    noise: f64,
}

impl<'p, C: Cipher> Client<'p, C> {
    /// A client that encrypts with the given cipher.
    pub fn new(plan: &'p ClientPlan, cipher: C) -> Result<Self, Error> {
        check_weights(plan)?;
        let noise = cipher.noise(plan.slots as usize)?;
        Ok(Self { plan, cipher, noise })
    }

    /// The client's plan.
    pub fn plan(&self) -> &'p ClientPlan {
        self.plan
    }

    /// The cipher.
    pub fn cipher(&self) -> &C {
        &self.cipher
    }

    /// Encrypts the embeddings of tokens for an entry point.
    pub fn encrypt(&self, entry: EntryPoint, tokens: &[u32]) -> Result<Vec<C::Ciphertext>, Error> {
        let interface = self.interface(entry)?;
        let packed = packing::pack(self.plan, tokens)?;
        packed.iter().zip(&interface.input_levels).map(|(slots, &level)| self.cipher.encrypt(slots, level)).collect()
    }

    /// Decrypts what a call of an entry point gave that took `count` tokens in from `position` on, and takes the logits out.
    /// Fails where an approximation was used where it is not accurate, and where the logits are none that the calibrated
    /// model can give.
    pub fn decrypt(
        &self,
        entry: EntryPoint,
        position: usize,
        count: usize,
        outputs: &[C::Ciphertext],
    ) -> Result<Vec<f64>, Error> {
        let slots = outputs.iter().map(|output| self.cipher.decrypt(output)).collect::<Result<Vec<_>, _>>()?.concat();
        let logits = packing::unpack(&slots, &self.plan.logits)?;
        let model = &self.plan.model;
        let real: Vec<f64> = slots.iter().map(|slot| slot.re).collect();
        let refused = self.interface(entry)?.checks.iter().find_map(|check| {
            let value = check.violation(&real, count)?;
            let [low, high] = check.interval.map(short);
            Some(format!(
                "{} was asked for a value at {}, and is accurate from {low} to {high}",
                check.site,
                short(value)
            ))
        });
        let embeddings = model.embeddings()?;
        let refused = refused.or_else(|| guard::refusal(&model.guard, &slots, &logits, embeddings, self.noise));
        match refused {
            None => Ok(logits),
            Some(message) => Err(Error::OutOfRange { position: position + count - 1, message, first: None }),
        }
    }

    fn interface(&self, entry: EntryPoint) -> Result<&EntryInterface, Error> {
        self.plan.entry(entry).ok_or_else(|| Error::PlanInvalid(format!("the plan has no entry point {entry}")))
    }
}

/// What follows the prefix in a conversation that begins with it.
fn behind<'t>(prefix: &[u32], conversation: &'t [u32]) -> Result<&'t [u32], Error> {
    conversation.strip_prefix(prefix).ok_or_else(|| {
        let at = prefix.iter().zip(conversation).take_while(|(expected, found)| expected == found).count();
        let found = conversation.get(at).map_or_else(|| "the end".to_owned(), u32::to_string);
        Error::OtherPrefix { prefix: prefix.len(), at, found, expected: prefix[at] }
    })
}
