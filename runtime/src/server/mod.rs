//! The server's role: it owns the plan and runs entry points on ciphertexts.
//!
//! A server sees ciphertexts, the number of tokens and their positions. It is generic over the [`Algebra`], which has no
//! operation that needs a secret key, and uses nothing of the client's module: no code here can name a secret.

mod session;

pub use session::{SavedSession, Session};

use cachemir_ir::program::EntryPoint;

use crate::Error;
use crate::executor::{Algebra, Executor, Observer};

/// A server for one plan, under one client's evaluation keys.
pub struct Server<'p, A: Algebra> {
    executor: Executor<'p, A>,
    plan_hash: [u8; 32],
}

impl<'p, A: Algebra> Server<'p, A> {
    /// A server that executes with the given executor; the plan's hash marks saved sessions.
    pub fn new(executor: Executor<'p, A>, plan_hash: [u8; 32]) -> Self {
        Self { executor, plan_hash }
    }

    /// The executor.
    pub fn executor(&self) -> &Executor<'p, A> {
        &self.executor
    }

    /// A session that holds the public prefix alone.
    pub fn open(&self) -> Session<A::Ciphertext> {
        Session::new(self.executor.program())
    }

    /// Runs `count` tokens from the session's position on through `prefill`, and returns the last one's logits.
    pub fn prefill(
        &self,
        session: &mut Session<A::Ciphertext>,
        inputs: Vec<A::Ciphertext>,
        count: usize,
        observer: &mut dyn Observer<A::Ciphertext>,
    ) -> Result<Vec<A::Ciphertext>, Error> {
        self.call(EntryPoint::Prefill, session, inputs, count, observer)
    }

    /// Runs one token at the session's position through `decode`, and returns its logits.
    pub fn decode(
        &self,
        session: &mut Session<A::Ciphertext>,
        inputs: Vec<A::Ciphertext>,
        observer: &mut dyn Observer<A::Ciphertext>,
    ) -> Result<Vec<A::Ciphertext>, Error> {
        self.call(EntryPoint::Decode, session, inputs, 1, observer)
    }

    fn call(
        &self,
        entry: EntryPoint,
        session: &mut Session<A::Ciphertext>,
        inputs: Vec<A::Ciphertext>,
        count: usize,
        observer: &mut dyn Observer<A::Ciphertext>,
    ) -> Result<Vec<A::Ciphertext>, Error> {
        let context = self.executor.program().context as usize;
        if session.position + count > context {
            return Err(Error::ContextFull { context });
        }
        let outputs = self.executor.call(entry, session.position, count, inputs, &mut session.states, observer)?;
        session.position += count;
        Ok(outputs)
    }
}

#[cfg(test)]
mod tests;
