//! Encoded plaintext vectors, kept between uses as far as a memory budget allows.
//!
//! A vector's value depends on its formula and on the variables that the formula mentions, so the key is the op, which of its
//! vectors it is, and the values of those variables. Vectors that mention the position are dropped at the end of the call:
//! the next call has another position.

use std::collections::HashMap;
use std::sync::Arc;

use cachemir_ir::expression::{Environment, Variable};
use cachemir_ir::graph::OpId;
use cachemir_ir::linear::Diagonal;

/// Which plaintext of an op.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    /// The only one.
    Whole,
    /// A diagonal of a linear map.
    Diagonal(Diagonal),
    /// The bias of a matrix of an output of a linear map.
    Bias { output: u32, matrix: u32 },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    entry: usize,
    op: OpId,
    part: Part,
    variables: Vec<i64>,
    position: Option<i64>,
}

impl Key {
    /// The key of an op's vector whose formula mentions some of the variables.
    pub(crate) fn new(
        entry: usize,
        op: OpId,
        part: Part,
        mentions: impl Fn(Variable) -> bool,
        environment: &Environment,
    ) -> Self {
        let mut variables = Vec::new();
        if mentions(Variable::Count) {
            variables.push(environment.count);
        }
        for (number, &value) in environment.loops.iter().enumerate() {
            if mentions(Variable::Loop(number as u32)) {
                variables.push(value);
            }
        }
        let position = mentions(Variable::Position).then_some(environment.position);
        Self { entry, op, part, variables, position }
    }
}

/// Encoded vectors by key.
#[derive(Debug)]
pub(crate) struct Plaintexts<P> {
    kept: HashMap<Key, (Arc<P>, usize)>,
    used_bytes: usize,
    budget_bytes: usize,
    /// Whether one of this call was refused for want of room.
    full: bool,
}

impl<P> Plaintexts<P> {
    pub(crate) fn new(budget_bytes: usize) -> Self {
        Self { kept: HashMap::new(), used_bytes: 0, budget_bytes, full: false }
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<P>> {
        self.kept.get(key).map(|(plain, _)| Arc::clone(plain))
    }

    /// Keeps a vector if the budget has room for it.
    pub(crate) fn offer(&mut self, key: Key, plain: &Arc<P>, bytes: usize) {
        self.full |= self.used_bytes + bytes > self.budget_bytes;
        if self.used_bytes + bytes <= self.budget_bytes && self.kept.insert(key, (Arc::clone(plain), bytes)).is_none() {
            self.used_bytes += bytes;
        }
    }

    /// Whether there was no room for a vector of this call.
    pub(crate) fn is_full(&self) -> bool {
        self.full
    }

    /// Drops the vectors that only the call that ends could use: those of its position, and all of its entry point's
    /// unless it is called again and again.
    pub(crate) fn end_call(&mut self, entry: usize, repeats: bool) {
        self.kept.retain(|key, _| key.position.is_none() && (repeats || key.entry != entry));
        self.used_bytes = self.kept.values().map(|(_, bytes)| bytes).sum();
        self.full = false;
    }

    pub(crate) fn used_bytes(&self) -> usize {
        self.used_bytes
    }
}
