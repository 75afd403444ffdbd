//! What a generation is made of: its calls, what is asked of it, what is told of it and what comes out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cachemir_ir::cost::CostTable;
use cachemir_ir::program::EntryPoint;

use crate::Error;
use crate::client::sampling::Sampling;
use crate::executor::Site;

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
    pub entry: EntryPoint,
    /// Position of its first token.
    pub position: usize,
    /// Number of its tokens.
    pub count: usize,
}

/// When an entry point `prefill` is used.
#[derive(Clone, Copy, Debug)]
pub struct Prefill<'p> {
    /// Most tokens of a call, which begins at a multiple of it.
    pub chunk: usize,
    /// By position over the chunk: the least tokens for which a call is faster than decoding.
    pub pays: &'p [u32],
}

impl Prefill<'_> {
    /// The tokens that a call from `position` on takes in if `left` are to be; `None` where decoding them is faster.
    fn count(self, position: usize, left: usize) -> Option<usize> {
        let least = *self.pays.get(position.checked_div(self.chunk)?)?;
        let count = left.min(self.chunk);
        (position.is_multiple_of(self.chunk) && count >= least as usize).then_some(count)
    }
}

/// The calls that take tokens `from..to` into a session: prefills where they fit their grid and pay, else decode steps.
pub fn steps(from: usize, to: usize, prefill: Option<Prefill<'_>>) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut position = from;
    while position < to {
        let step = match prefill.and_then(|prefill| prefill.count(position, to - position)) {
            Some(count) => Step { entry: EntryPoint::Prefill, position, count },
            None => Step { entry: EntryPoint::Decode, position, count: 1 },
        };
        position += step.count;
        steps.push(step);
    }
    steps
}

/// What a caller is told while text is made. Every method may be left out; a closure that takes text is a listener too.
pub trait Listener {
    /// A call begins.
    fn step(&mut self, step: Step) {
        let _ = step;
    }

    /// An op is about to run. An error ends the call; [`Error::Interrupted`] ends a generation without an error.
    fn before(&mut self, site: Site<'_>) -> Result<(), Error> {
        let _ = site;
        Ok(())
    }

    /// An op has run.
    fn after(&mut self, site: Site<'_>) {
        let _ = site;
    }

    /// The logits that a token is chosen from.
    fn logits(&mut self, logits: &[f64]) {
        let _ = logits;
    }

    /// A token was chosen; `text` is what it completes, which may be empty. [`Error::Interrupted`] and [`Error::Closed`] end
    /// the generation without an error.
    fn token(&mut self, token: u32, text: &str) -> Result<(), Error> {
        let _ = (token, text);
        Ok(())
    }

    /// The text was over before its last characters were whole: what is left of them.
    fn rest(&mut self, text: &str) -> Result<(), Error> {
        let _ = text;
        Ok(())
    }
}

/// Hears nothing.
impl Listener for () {}

/// Hears the text, piece by piece.
impl<F: FnMut(&str)> Listener for F {
    fn token(&mut self, _: u32, text: &str) -> Result<(), Error> {
        self(text);
        Ok(())
    }

    fn rest(&mut self, text: &str) -> Result<(), Error> {
        self(text);
        Ok(())
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
#[derive(Clone, Copy, Debug)]
pub struct GenerateOptions {
    /// Most new tokens.
    pub max_tokens: usize,
    /// How each is chosen.
    pub sampling: Sampling,
    /// Whether a token that ends the text ends the generation.
    pub stop_at_end: bool,
}

impl Default for GenerateOptions {
    /// Sixteen of the most likely tokens, or fewer where the text ends.
    fn default() -> Self {
        Self { max_tokens: 16, sampling: Sampling::default(), stop_at_end: true }
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
        self.done_ns += self.costs.node_ns(site.graph, site.op, self.slots);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(from: usize, to: usize, prefill: Option<Prefill<'_>>) -> Vec<(EntryPoint, usize, usize)> {
        steps(from, to, prefill).into_iter().map(|step| (step.entry, step.position, step.count)).collect()
    }

    #[test]
    fn prompts_go_in_by_chunks_and_single_tokens() {
        let (p, d) = (EntryPoint::Prefill, EntryPoint::Decode);
        let of = |chunk| Some(Prefill { chunk, pays: &[2; 3] });
        assert_eq!(plan(0, 5, of(16)), [(p, 0, 5)]);
        assert_eq!(plan(0, 33, of(16)), [(p, 0, 16), (p, 16, 16), (d, 32, 1)]);
        assert_eq!(plan(3, 6, of(4)), [(d, 3, 1), (p, 4, 2)]);
        assert_eq!(plan(0, 2, None), [(d, 0, 1), (d, 1, 1)]);
        assert_eq!(plan(7, 7, of(4)), []);
    }

    #[test]
    fn prefill_is_used_where_it_pays() {
        let (p, d) = (EntryPoint::Prefill, EntryPoint::Decode);
        let prefill = Some(Prefill { chunk: 4, pays: &[2, 3, 5, 4] });
        assert_eq!(plan(0, 6, prefill), [(p, 0, 4), (d, 4, 1), (d, 5, 1)], "two tokens at position 4 do not pay");
        assert_eq!(plan(0, 7, prefill), [(p, 0, 4), (p, 4, 3)]);
        let third = [8, 9, 10, 11].map(|position| (d, position, 1));
        assert_eq!(plan(8, 12, prefill), third, "it never pays at position 8");
        assert_eq!(plan(10, 16, prefill), [(d, 10, 1), (d, 11, 1), (p, 12, 4)]);
        assert_eq!(plan(12, 15, prefill), [12, 13, 14].map(|position| (d, position, 1)));
        assert_eq!(plan(16, 18, prefill), [(d, 16, 1), (d, 17, 1)], "nothing is known of position 16");
    }
}
