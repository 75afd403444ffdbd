//! From a prompt to text: prefill chunk by chunk, then one decode step a token.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cachemir_ir::cost::CostTable;

use crate::Error;
use crate::client::sampling::Sampler;
use crate::client::{Cipher, Client, TextStream};
use crate::executor::{Algebra, Observer, Site};
use crate::server::{Server, Session};

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// As many tokens as were asked for.
    Length,
    /// A token that ends the text.
    End,
    /// The context is full.
    Context,
    /// It was asked to stop; the last finished token counts.
    Interrupted,
}

impl Stop {
    /// The reason in one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Length => "length",
            Self::End => "end",
            Self::Context => "context",
            Self::Interrupted => "interrupted",
        }
    }
}

/// One call of an entry point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// `prefill` or `decode`.
    pub entry: &'static str,
    /// Position of its first token.
    pub position: usize,
    /// Number of its tokens.
    pub count: usize,
}

/// The calls that take tokens `from..to` into a session: chunks where one fits its grid, single tokens otherwise.
pub fn steps(from: usize, to: usize, chunk: Option<usize>) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut position = from;
    while position < to {
        let left = to - position;
        let step = match chunk {
            Some(chunk) if left > 1 && chunk > 1 && position.is_multiple_of(chunk) => {
                Step { entry: "prefill", position, count: left.min(chunk) }
            }
            _ => Step { entry: "decode", position, count: 1 },
        };
        position += step.count;
        steps.push(step);
    }
    steps
}

/// What a caller is told while text is made.
pub trait Listener<C>: Observer<C> {
    /// A call begins.
    fn step(&mut self, step: Step);

    /// A token was chosen; `text` is what it completes, which may be empty.
    fn token(&mut self, token: u32, text: &str) -> Result<(), Error>;

    /// The text was over before its last characters were whole: what is left of them.
    fn rest(&mut self, text: &str) -> Result<(), Error>;

    /// The logits that a token was chosen from.
    fn logits(&mut self, logits: &[f64]) {
        let _ = logits;
    }
}

/// What was made and how long it took.
#[derive(Clone, Debug)]
pub struct Generation {
    /// All tokens of the session: those it began with, and the new ones.
    pub tokens: Vec<u32>,
    /// Number of new tokens.
    pub generated: usize,
    /// Their text.
    pub text: String,
    /// Time from the beginning to the first new token's logits.
    pub prefill: Duration,
    /// Time of each later token, client's work included.
    pub decode: Vec<Duration>,
    /// The decode steps that these times belong to.
    pub decode_positions: Vec<usize>,
    /// Why it ended.
    pub stop: Stop,
}

impl Generation {
    /// The new tokens.
    pub fn new_tokens(&self) -> &[u32] {
        &self.tokens[self.tokens.len() - self.generated..]
    }

    /// Mean time of a decode step in seconds; `None` before the first.
    pub fn seconds_per_token(&self) -> Option<f64> {
        let total: f64 = self.decode.iter().map(Duration::as_secs_f64).sum();
        (!self.decode.is_empty()).then(|| total / self.decode.len() as f64)
    }
}

/// What is asked of a generation.
#[derive(Clone, Debug)]
pub struct Request {
    /// The session's tokens.
    pub tokens: Vec<u32>,
    /// Most new tokens.
    pub count: usize,
    /// Whether a token that ends the text ends the generation.
    pub stop_at_end: bool,
}

/// Continues a text.
///
/// The request's tokens are the session's tokens, of which the state holds the first [`Session::position`]; the others
/// are taken in first. A full context, a token that ends the text and an interruption end the generation without an
/// error. After an interruption the session is as after the last finished call.
///
/// # Errors [`Error::OutOfRange`] where a step's logits are none that the calibrated model can give: nothing is chosen
/// from them, and the session is of no use any more.
pub fn generate<A, C>(
    client: &Client<C>,
    server: &Server<'_, A>,
    session: &mut Session<A::Ciphertext>,
    request: &Request,
    sampler: &mut Sampler,
    listener: &mut dyn Listener<A::Ciphertext>,
) -> Result<Generation, Error>
where
    A: Algebra,
    C: Cipher<Ciphertext = A::Ciphertext>,
{
    let mut result = Generation {
        tokens: request.tokens.clone(),
        generated: 0,
        text: String::new(),
        prefill: Duration::ZERO,
        decode: Vec::new(),
        decode_positions: Vec::new(),
        stop: Stop::Length,
    };
    let mut stream = TextStream::after(&request.tokens);
    while result.generated < request.count {
        if session.position() >= client.context() {
            result.stop = Stop::Context;
            break;
        }
        let begin = Instant::now();
        let position = session.position();
        let logits = match take_in(client, server, session, &result.tokens, listener) {
            Ok(logits) => logits,
            Err(Error::Interrupted) => {
                result.stop = Stop::Interrupted;
                break;
            }
            Err(error) => return Err(error),
        };
        if result.generated == 0 {
            result.prefill = begin.elapsed();
        } else {
            result.decode.push(begin.elapsed());
            result.decode_positions.push(position);
        }
        listener.logits(&logits);
        let token = sampler.sample(&logits).ok_or_else(|| Error::execution("the model has no tokens"))?;
        result.tokens.push(token);
        result.generated += 1;
        let text = stream.push(token, client.tokenizer())?;
        result.text.push_str(&text);
        match listener.token(token, &text) {
            Ok(()) => {}
            Err(Error::Interrupted | Error::Closed) => {
                result.stop = Stop::Interrupted;
                break;
            }
            Err(error) => return Err(error),
        }
        if request.stop_at_end && client.is_end(token) {
            result.stop = Stop::End;
            break;
        }
    }
    let rest = stream.finish(client.tokenizer())?;
    if !rest.is_empty() && result.stop != Stop::Interrupted {
        listener.rest(&rest)?;
        result.text.push_str(&rest);
    }
    Ok(result)
}

/// Takes in the tokens that the session does not hold yet, and returns the last one's logits.
fn take_in<A, C>(
    client: &Client<C>,
    server: &Server<'_, A>,
    session: &mut Session<A::Ciphertext>,
    tokens: &[u32],
    listener: &mut dyn Listener<A::Ciphertext>,
) -> Result<Vec<f64>, Error>
where
    A: Algebra,
    C: Cipher<Ciphertext = A::Ciphertext>,
{
    let mut logits = None;
    for step in steps(session.position(), tokens.len(), client.chunk()) {
        listener.step(step);
        let inputs = client.encrypt(step.entry, &tokens[step.position..step.position + step.count])?;
        let outputs = match step.entry {
            "prefill" => server.prefill(session, inputs, step.count, &mut Forward(listener))?,
            _ => server.decode(session, inputs, &mut Forward(listener))?,
        };
        // Every call is checked: what went wrong in one is in the caches of those after it.
        logits = Some(client.decrypt(step.entry, step.position, step.count, &outputs)?);
    }
    logits.ok_or_else(|| Error::execution("there is no token to take in"))
}

/// A listener as the observer that it is.
struct Forward<'a, C>(&'a mut dyn Listener<C>);

impl<C> Observer<C> for Forward<'_, C> {
    fn before(&mut self, site: Site<'_>, operands: &[&C]) -> Result<(), Error> {
        self.0.before(site, operands)
    }

    fn after(&mut self, site: Site<'_>, results: &[&C]) -> Result<(), Error> {
        self.0.after(site, results)
    }
}

/// Ends an execution where a flag is set, and reports the predicted cost of what was executed.
#[derive(Debug)]
pub struct Meter<'a> {
    costs: &'a CostTable,
    slots: u32,
    interrupt: &'a AtomicBool,
    /// Predicted time of all ops that were executed, in nanoseconds on one thread.
    pub done_ns: f64,
}

impl<'a> Meter<'a> {
    /// A meter for programs of `slots` slots.
    pub fn new(costs: &'a CostTable, slots: u32, interrupt: &'a AtomicBool) -> Self {
        Self { costs, slots, interrupt, done_ns: 0.0 }
    }

    /// Fails with [`Error::Interrupted`] where the flag is set.
    pub fn check(&self) -> Result<(), Error> {
        if self.interrupt.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Counts an op.
    pub fn count(&mut self, site: Site<'_>) {
        let node = site.graph.node(site.op);
        let level = node.inputs.first().or(node.results.first()).map_or(0, |value| site.graph.ty(*value).level);
        self.done_ns += self.costs.op_ns(&node.op, level, self.slots);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(from: usize, to: usize, chunk: Option<usize>) -> Vec<(&'static str, usize, usize)> {
        steps(from, to, chunk).into_iter().map(|step| (step.entry, step.position, step.count)).collect()
    }

    #[test]
    fn prompts_go_in_by_chunks_and_single_tokens() {
        let (p, d) = ("prefill", "decode");
        assert_eq!(plan(0, 5, Some(16)), [(p, 0, 5)]);
        assert_eq!(plan(0, 33, Some(16)), [(p, 0, 16), (p, 16, 16), (d, 32, 1)]);
        assert_eq!(plan(3, 6, Some(4)), [(d, 3, 1), (p, 4, 2)]);
        assert_eq!(plan(0, 2, None), [(d, 0, 1), (d, 1, 1)]);
        assert_eq!(plan(7, 7, Some(4)), []);
    }
}
