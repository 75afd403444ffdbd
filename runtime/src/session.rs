//! Both roles in one process: a prompt in, text out.
//!
//! [`Session::encrypted`] and [`Session::clear`] open a session at once. Who wants to say first what it will take goes
//! step by step: a [`Conversation`] knows the tokens, [`Prepared`] the engine and the memory, and makes the keys. As types
//! the roles stay apart: the session hands the server's calls nothing but ciphertexts.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cachemir_ckks::UniformHalves;
use cachemir_ckks::ring::sampling::Seed;
use cachemir_hal::CpuBackend;
use cachemir_ir::program::EntryPoint;
use zeroize::Zeroizing;

use crate::check::{Findings, Probe, RangeCheck, Watch};
use crate::client::sampling::Sampler;
use crate::client::{
    CheckedCipher, Cipher, ClearCipher, Client, NoisyCipher, Prompt, SavedClient, SecretCipher, TextStream, Texts,
};
use crate::error::SessionFault;
use crate::executor::{self, Algebra, Checked, Clear, Executor, Observer, Site};
use crate::generation::{GenerateOptions, Generation, Listener, Step, Stop, steps};
use crate::server::{self, SavedSession, Server};
use crate::setup::{Engine, Plans, Requirements, noisy, plaintext_budget_bytes};
use crate::{Error, memory};

/// How a plan is executed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// Encrypted, on the processor.
    #[default]
    Encrypted,
    /// The same program on numbers in the clear: nothing is encrypted.
    Clear,
    /// In the clear, with the errors that encryption would add by the noise model.
    Noisy {
        /// Equal seeds give equal errors.
        seed: u64,
    },
}

/// What can be chosen for a session.
#[derive(Clone, Copy, Debug, Default)]
pub struct SessionOptions {
    /// How the plan is executed.
    pub backend: Backend,
    /// Execute in the clear in step: [`Session::findings`] has precision and ranges then.
    pub check: bool,
    /// How evaluation keys are kept; as suits processor and memory where absent.
    pub keys: Option<UniformHalves>,
    /// Bytes of plaintexts that stay encoded between tokens; the others are encoded at each use. Up to 1 GiB of what there is
    /// where absent.
    pub plaintext_bytes: Option<u64>,
}

impl SessionOptions {
    /// The name of the representation of ciphertexts, as saved sessions have it.
    pub fn representation(&self) -> &'static str {
        match (self.backend, self.check) {
            (Backend::Encrypted, false) => executor::ENCRYPTED,
            (Backend::Encrypted, true) => executor::CHECKED,
            (Backend::Clear, _) => executor::CLEAR,
            (Backend::Noisy { .. }, _) => executor::NOISY,
        }
    }
}

/// The client's side of a session ahead of any key: its tokens, and what is asked to come behind them.
#[derive(Debug)]
pub struct Conversation<'p> {
    plans: &'p Plans,
    texts: Texts<'p>,
    /// All tokens: prompts and what was generated.
    tokens: Vec<u32>,
    generated: u32,
    saved: Option<Saved>,
}

/// What is known of a saved session whose state is not read yet.
#[derive(Debug)]
struct Saved {
    path: PathBuf,
    /// Tokens that the server's part holds.
    position: usize,
    seed: Zeroizing<Seed>,
}

impl<'p> Conversation<'p> {
    /// A new one.
    pub fn new(plans: &'p Plans) -> Result<Self, Error> {
        Ok(Self { plans, texts: Texts::new(&plans.client)?, tokens: Vec::new(), generated: 0, saved: None })
    }

    /// The one that [`Session::save`] wrote to this file, by a session with these options.
    pub fn resume(plans: &'p Plans, path: &Path, options: &SessionOptions) -> Result<Self, Error> {
        let new = Self::new(plans)?;
        let hash = plans.client.plan_hash;
        let position = SavedSession::read(path, hash, options.representation())?.position;
        let key = SavedClient::path(path);
        let saved = SavedClient::read(&key)?;
        if saved.plan_hash != hash {
            return Err(Error::SessionMismatch { path: key });
        }
        if saved.session_hash != SavedClient::hash_of(path)? {
            return Err(Error::SessionInvalid { path: path.to_owned(), fault: SessionFault::OtherKey { key } });
        }
        let context = new.texts.context();
        if saved.tokens.len() > context {
            return Err(Error::ContextFull { context });
        }
        let SavedClient { seed, tokens, generated, .. } = saved;
        Ok(Self { tokens, generated, saved: Some(Saved { path: path.to_owned(), position, seed }), ..new })
    }

    /// The plan.
    pub fn plans(&self) -> &'p Plans {
        self.plans
    }

    /// What is known of texts.
    pub fn texts(&self) -> &Texts<'p> {
        &self.texts
    }

    /// All tokens, those of a public prefix included.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Goes on with a prompt, as [`Texts::prompt_tokens`] says.
    pub fn prompt(&mut self, prompt: &Prompt) -> Result<(), Error> {
        self.tokens = self.texts.prompt_tokens(&self.tokens, prompt)?;
        Ok(())
    }

    /// The calls that the first generation of so many tokens takes if nothing ends it before.
    pub fn steps(&self, max_tokens: usize) -> Vec<Step> {
        let taken_in = match &self.saved {
            Some(saved) => saved.position,
            None => self.texts.prefix().len(),
        };
        let length = self.tokens.len();
        let end = length.saturating_add(max_tokens.saturating_sub(1)).min(self.texts.context());
        let mut expected = steps(taken_in, length, self.texts.prefill());
        expected.extend(steps(length, end, None));
        expected
    }

    /// The engine for it, or what stands in its place. Fails where a saved session cannot go on with these tokens, and where
    /// the memory does not suffice.
    pub fn prepare(self, options: &SessionOptions) -> Result<Prepared<'p>, Error> {
        if let Some(saved) = &self.saved {
            let context = self.texts.context();
            if saved.position >= context {
                return Err(Error::ContextFull { context });
            }
            if saved.position >= self.tokens.len() {
                let message = "its tokens are fewer than the session's".to_owned();
                return Err(Error::SessionKey { path: SavedClient::path(&saved.path), message });
            }
        }
        let available_bytes = memory::available_bytes();
        let engine = match options.backend {
            Backend::Encrypted => {
                let plan = &self.plans.server;
                // What was asked for is not there for anything else.
                let left = available_bytes.map(|bytes| bytes.saturating_sub(options.plaintext_bytes.unwrap_or(0)));
                Some(Engine::fitting(&plan.parameters, &plan.keys, &plan.program, options.keys, left)?)
            }
            Backend::Clear | Backend::Noisy { .. } => None,
        };
        Ok(Prepared { conversation: self, options: *options, engine, available_bytes })
    }
}

/// A session ahead of its keys, of which it is known what it takes.
pub struct Prepared<'p> {
    conversation: Conversation<'p>,
    options: SessionOptions,
    engine: Option<(Engine<CpuBackend>, Requirements)>,
    available_bytes: Option<u64>,
}

impl<'p> Prepared<'p> {
    /// The engine and the memory that it needs; `None` in the clear.
    pub fn engine(&self) -> Option<(&Engine<CpuBackend>, &Requirements)> {
        self.engine.as_ref().map(|(engine, requirements)| (engine, requirements))
    }

    /// The tokens, and what is asked to come behind them.
    pub fn conversation(&self) -> &Conversation<'p> {
        &self.conversation
    }

    /// Bytes of memory that there are. `None` where the system does not say.
    pub fn available_bytes(&self) -> Option<u64> {
        self.available_bytes
    }

    /// Bytes that weights may take which stay encoded between tokens: as asked for, or what is left over, up to 1 GiB.
    pub fn plaintext_bytes(&self) -> usize {
        match self.options.plaintext_bytes {
            Some(bytes) => usize::try_from(bytes).unwrap_or(usize::MAX),
            None => plaintext_budget_bytes(self.engine().map(|(_, requirements)| requirements), self.available_bytes),
        }
    }

    /// Makes the keys and opens the session. `progress` is told the bytes of keys made so far and in all, and may end it
    /// with [`Error::Interrupted`].
    pub fn open(self, progress: impl FnMut(u64, u64) -> ControlFlow<()>) -> Result<Session<'p>, Error> {
        let budget = self.plaintext_bytes();
        let Self { conversation, options, engine, .. } = self;
        let plan = &conversation.plans.server;
        let (slots, levels) = (plan.program.slots as usize, plan.levels());
        let build = Build { plans: conversation.plans, budget };
        let clear = Clear::new(slots, levels);
        let mut seed = Zeroizing::default();
        let mut roles = match (engine, options.backend) {
            (Some((engine, _)), _) => {
                let encoder = engine.encoder().clone();
                let cipher = Arc::new(match &conversation.saved {
                    Some(saved) => SecretCipher::from_seed(encoder, saved.seed.clone()),
                    None => SecretCipher::generate(encoder)?,
                });
                seed = Zeroizing::new(*cipher.seed());
                let keys = cipher.evaluation_keys(engine.key_manifest(), progress)?;
                let algebra = engine.algebra(keys, slots)?;
                if options.check {
                    let watch = (RangeCheck::default(), Probe::new(Arc::clone(&cipher)));
                    build.roles(Checked::new(algebra, clear), CheckedCipher(cipher, ClearCipher), watch)
                } else {
                    build.roles(algebra, cipher, ())
                }
            }
            (None, Backend::Noisy { seed }) => {
                let cipher = NoisyCipher(noisy(plan, seed)?);
                // The roles' errors are independent.
                build.in_the_clear(noisy(plan, seed.wrapping_add(1))?, cipher, options.check)
            }
            (None, _) => build.in_the_clear(clear, ClearCipher, options.check),
        }?;
        if let Some(saved) = &conversation.saved {
            roles.load(&saved.path)?;
        }
        Ok(Session { conversation, roles, seed })
    }
}

/// What roles of every representation are made of.
struct Build<'p> {
    plans: &'p Plans,
    /// Bytes of plaintexts that may stay encoded.
    budget: usize,
}

impl<'p> Build<'p> {
    fn roles<A, C, W>(self, algebra: A, cipher: C, watch: W) -> Result<Box<dyn Roles + 'p>, Error>
    where
        A: Algebra + 'p,
        C: Cipher<Ciphertext = A::Ciphertext> + 'p,
        W: Watch<A::Ciphertext> + 'p,
    {
        let plan = &self.plans.server;
        let executor = Executor::new(algebra, &plan.program, plan.levels(), self.budget)?;
        let server = Server::new(executor, self.plans.client.plan_hash);
        let client = Client::new(&self.plans.client, cipher)?;
        Ok(Box::new(Pair { client, session: server.open(), server, watch }))
    }

    fn in_the_clear<A, C>(self, algebra: A, cipher: C, check: bool) -> Result<Box<dyn Roles + 'p>, Error>
    where
        A: Algebra<Ciphertext = executor::ClearCiphertext> + 'p,
        C: Cipher<Ciphertext = executor::ClearCiphertext> + 'p,
    {
        if check { self.roles(algebra, cipher, RangeCheck::default()) } else { self.roles(algebra, cipher, ()) }
    }
}

/// A client and a server, whatever the representation of ciphertexts between them.
trait Roles {
    /// Tokens that the server's state holds.
    fn position(&self) -> usize;

    /// Takes tokens in by one call, and returns the last one's logits.
    fn call(&mut self, step: Step, tokens: &[u32], listener: &mut dyn Listener) -> Result<Vec<f64>, Error>;

    /// Begins anew.
    fn restart(&mut self);

    /// Goes on from a file of the server's.
    fn load(&mut self, path: &Path) -> Result<(), Error>;

    /// Writes the server's file.
    fn save(&self, path: &Path) -> Result<(), Error>;

    /// What the watch found.
    fn findings(&self) -> Findings;
}

struct Pair<'p, A: Algebra, C, W> {
    client: Client<'p, C>,
    server: Server<'p, A>,
    session: server::Session<A::Ciphertext>,
    watch: W,
}

impl<A, C, W> Roles for Pair<'_, A, C, W>
where
    A: Algebra,
    C: Cipher<Ciphertext = A::Ciphertext>,
    W: Watch<A::Ciphertext>,
{
    fn position(&self) -> usize {
        self.session.position()
    }

    fn call(&mut self, step: Step, tokens: &[u32], listener: &mut dyn Listener) -> Result<Vec<f64>, Error> {
        let inputs = self.client.encrypt(step.entry, tokens)?;
        let mut observer = Both { listener, watch: &mut self.watch };
        let outputs = match step.entry {
            EntryPoint::Prefill => self.server.prefill(&mut self.session, inputs, step.count, &mut observer)?,
            EntryPoint::Decode => self.server.decode(&mut self.session, inputs, &mut observer)?,
        };
        self.client.decrypt(step.entry, step.position, step.count, &outputs).map_err(|error| match error {
            // What went wrong first says more than what came of it.
            Error::OutOfRange { position, message, .. } => {
                let first = self.watch.findings().verdict.err().map(|error| error.to_string());
                Error::OutOfRange { position, message, first }
            }
            other => other,
        })
    }

    fn restart(&mut self) {
        self.session = self.server.open();
    }

    fn load(&mut self, path: &Path) -> Result<(), Error> {
        self.session = self.server.load(path)?;
        Ok(())
    }

    fn save(&self, path: &Path) -> Result<(), Error> {
        self.server.save(&self.session, path)
    }

    fn findings(&self) -> Findings {
        self.watch.findings()
    }
}

/// A listener, which sees ops, and a watch, which sees values too.
struct Both<'a, W> {
    listener: &'a mut dyn Listener,
    watch: &'a mut W,
}

impl<C, W: Observer<C>> Observer<C> for Both<'_, W> {
    fn before(&mut self, site: Site<'_>, operands: &[&C]) -> Result<(), Error> {
        self.listener.before(site)?;
        self.watch.before(site, operands)
    }

    fn after(&mut self, site: Site<'_>, results: &[&C]) -> Result<(), Error> {
        self.listener.after(site);
        self.watch.after(site, results)
    }
}

/// A text that goes on: client and server in one process, with the tokens between them.
///
/// ```
/// use cachemir_compiler::{CompileOptions, compile};
/// use cachemir_runtime::{GenerateOptions, Plans, Session};
///
/// // `n16`, the default, has 128 bits of security; this preset has none and is fast.
/// let options = CompileOptions { parameters: "insecure-test".to_owned(), ..CompileOptions::default() };
/// let plans = Plans::of(compile("../models/tinystories2l_bounded/onnx/optimum/model.onnx", &options)?.plan)?;
/// let mut session = Session::encrypted(&plans)?;
/// session.prompt("Once upon a time")?;
/// let options = GenerateOptions { max_tokens: 2, ..GenerateOptions::default() };
/// let mut heard = String::new();
/// let made = session.generate(&options, &mut |piece: &str| heard += piece)?;
/// assert_eq!((made.generated, &made.text), (2, &heard));
///
/// // The same program on plain numbers says the same.
/// let mut clear = Session::clear(&plans)?;
/// clear.prompt("Once upon a time")?;
/// assert_eq!(clear.generate(&options, &mut ())?.text, heard);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Session<'p> {
    conversation: Conversation<'p>,
    roles: Box<dyn Roles + 'p>,
    /// Of the secret key; all zero in the clear.
    seed: Zeroizing<Seed>,
}

impl<'p> Session<'p> {
    /// A new session under encryption, with fresh keys: gigabytes of them under secure parameters.
    pub fn encrypted(plans: &'p Plans) -> Result<Self, Error> {
        Self::open(plans, &SessionOptions::default())
    }

    /// A new session in the clear: the same program on plain numbers, thousands of times faster, and nothing is encrypted.
    pub fn clear(plans: &'p Plans) -> Result<Self, Error> {
        Self::open(plans, &SessionOptions { backend: Backend::Clear, ..SessionOptions::default() })
    }

    /// A new session.
    pub fn open(plans: &'p Plans, options: &SessionOptions) -> Result<Self, Error> {
        Conversation::new(plans)?.prepare(options)?.open(|_, _| ControlFlow::Continue(()))
    }

    /// The tokens so far and what is known of texts.
    pub fn conversation(&self) -> &Conversation<'p> {
        &self.conversation
    }

    /// Goes on with a prompt, which the next generation takes in first. Behind earlier text it is appended as it is.
    pub fn prompt(&mut self, prompt: impl Into<Prompt>) -> Result<(), Error> {
        self.conversation.prompt(&prompt.into())
    }

    /// Takes in the tokens that the server does not hold yet, and returns the logits of what follows the last one.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] where a step's logits are none that the calibrated model can give; the session is of no use any
    /// more then. [`Error::Interrupted`] where the listener says so; the session is as after the last finished call.
    pub fn logits(&mut self, listener: &mut dyn Listener) -> Result<Vec<f64>, Error> {
        let mut logits = None;
        let Conversation { texts, tokens, .. } = &self.conversation;
        for step in steps(self.roles.position(), tokens.len(), texts.prefill()) {
            listener.step(step);
            // Every call is checked: what went wrong in one is in the caches of those after it.
            let taken_in = &tokens[step.position..step.position + step.count];
            logits = Some(self.roles.call(step, taken_in, listener)?);
        }
        logits.ok_or(Error::EmptyPrompt)
    }

    /// Generates tokens behind those so far, and tells the listener of each. A full context, a token that ends the text and an
    /// interruption end the generation without an error. Equal seeds of the sampling give equal tokens, also over several
    /// generations.
    ///
    /// # Errors
    /// Those of [`logits`](Self::logits) but for the interruption; nothing is chosen where they are refused.
    pub fn generate(&mut self, options: &GenerateOptions, listener: &mut dyn Listener) -> Result<Generation, Error> {
        let mut sampler = Sampler::new(options.sampling)?;
        (0..self.conversation.generated).for_each(|_| sampler.skip());
        let begun = self.conversation.tokens.len();
        let mut stream = TextStream::after(&self.conversation.tokens);
        let (mut text, mut prefill, mut decode, mut decode_positions) =
            (String::new(), Duration::ZERO, Vec::new(), Vec::new());
        let mut stop = Stop::Length;
        for made in 0..options.max_tokens {
            let position = self.roles.position();
            if position >= self.conversation.texts.context() {
                stop = Stop::Context;
                break;
            }
            let begin = Instant::now();
            let logits = match self.logits(listener) {
                Ok(logits) => logits,
                Err(Error::Interrupted) => {
                    stop = Stop::Interrupted;
                    break;
                }
                Err(error) => return Err(error),
            };
            if made == 0 {
                prefill = begin.elapsed();
            } else {
                decode.push(begin.elapsed());
                decode_positions.push(position);
            }
            listener.logits(&logits);
            let token = sampler.sample(&logits).ok_or_else(|| Error::execution("the model has no tokens"))?;
            self.conversation.tokens.push(token);
            self.conversation.generated += 1;
            let texts = &self.conversation.texts;
            let piece = stream.push(token, texts.tokenizer())?;
            text.push_str(&piece);
            match listener.token(token, &piece) {
                Ok(()) => {}
                Err(Error::Interrupted | Error::Closed) => {
                    stop = Stop::Interrupted;
                    break;
                }
                Err(error) => return Err(error),
            }
            if options.stop_at_end && texts.is_end(token) {
                stop = Stop::End;
                break;
            }
        }
        let rest = stream.finish(self.conversation.texts.tokenizer())?;
        if !rest.is_empty() && stop != Stop::Interrupted {
            listener.rest(&rest)?;
            text.push_str(&rest);
        }
        let tokens = self.conversation.tokens.clone();
        let generated = tokens.len() - begun;
        Ok(Generation { tokens, generated, text, prefill, decode, decode_positions, stop })
    }

    /// Begins anew under the same keys.
    pub fn restart(&mut self) {
        self.conversation.tokens.clear();
        self.conversation.generated = 0;
        self.roles.restart();
    }

    /// Writes the server's part of the session to a file, and the client's, with the seed of the secret key, beside it
    /// ([`SavedClient::path`]). [`Conversation::resume`] goes on from there.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        self.roles.save(path)?;
        let Conversation { plans, tokens, generated, .. } = &self.conversation;
        let saved = SavedClient {
            plan_hash: plans.client.plan_hash,
            session_hash: SavedClient::hash_of(path)?,
            seed: self.seed.clone(),
            tokens: tokens.clone(),
            generated: *generated,
        };
        saved.write(&SavedClient::path(path))
    }

    /// What was seen of ranges and precision where the session was opened with [`SessionOptions::check`].
    pub fn findings(&self) -> Findings {
        self.roles.findings()
    }
}
