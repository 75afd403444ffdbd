//! What a call of an entry point executes, in numbers: one definition for summaries, predictions and runs.
//!
//! Loops are unrolled. Rotations by a multiple of the number of slots are none, operations inside polynomials and
//! bootstraps are not counted. Longer caches take more rotations and products, so a count belongs to a position.

use serde::Serialize;

use crate::ckks::{CiphertextType, CkksOp};
use crate::cost::for_each_execution;
use crate::expression::{Environment, Vector};
use crate::linear::Step;
use crate::program::{EntryKind, Program};
use crate::rotations::rotations;

/// A call of an entry point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// The entry point.
    pub kind: EntryKind,
    /// Position of the call's first token.
    pub position: u32,
    /// Tokens that the call takes in.
    pub tokens: u32,
}

/// Operations that a call executes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Operations {
    /// Bootstraps.
    pub bootstraps: u64,
    /// Rotations by amounts other than 0.
    pub rotations: u64,
    /// Products of two ciphertexts.
    pub ciphertext_products: u64,
    /// Products of a ciphertext and a plaintext vector, masks included.
    pub plaintext_products: u64,
    /// Those products whose plaintext holds only zeros and constants.
    pub masks: u64,
    /// Polynomials.
    pub polynomials: u64,
    /// Level drops.
    pub level_drops: u64,
}

impl Operations {
    /// Counts what a call executes; nothing for an entry point that the program does not have.
    pub fn of(program: &Program<CkksOp, CiphertextType>, call: Call) -> Self {
        let mut found = Self::default();
        let (position, tokens) = (i64::from(call.position), i64::from(call.tokens));
        for_each_execution(program, call.kind.entry(), position, tokens, &mut |graph, op, environment| {
            found.include(&graph.node(op).op, program.slots, environment);
        });
        found
    }

    fn include(&mut self, op: &CkksOp, slots: u32, environment: &Environment) {
        match op {
            CkksOp::Bootstrap(_) => self.bootstraps += 1,
            CkksOp::Rotate { .. } => self.rotations += 1,
            CkksOp::RotateAndSum { steps } => self.rotations += rotations(steps, slots, environment) as u64,
            CkksOp::Linear(linear) => linear.for_each_step(slots, environment, &mut |step, _| match step {
                Step::Rotate { sharing, .. } => self.rotations += u64::from(sharing.is_counted()),
                Step::MultiplyPlain => self.plaintext_products += 1,
                _ => {}
            }),
            CkksOp::Multiply => self.ciphertext_products += 1,
            CkksOp::MultiplyPlain { plain } => {
                self.plaintext_products += 1;
                self.masks += u64::from(is_mask(plain));
            }
            CkksOp::Polynomial { .. } => self.polynomials += 1,
            CkksOp::DropLevels { .. } => self.level_drops += 1,
            _ => {}
        }
    }
}

/// Whether the vector holds only zeros and constants.
fn is_mask(plain: &Vector) -> bool {
    match plain {
        Vector::Scalar(_) => true,
        Vector::Mask(_, inner) => is_mask(inner),
        Vector::Product(a, b) => is_mask(a) && is_mask(b),
        Vector::Table(..) | Vector::Sum(..) => false,
    }
}

/// The calls that stand for a program: decode steps at the beginning, in the middle and at the end of the context, and a
/// full first chunk of a prefill.
pub fn typical_calls<O, T>(program: &Program<O, T>) -> Vec<Call> {
    let last = program.context.saturating_sub(1);
    let mut calls = Vec::new();
    for entry in &program.entries {
        match entry.kind {
            EntryKind::Decode => {
                let mut positions = vec![0, middle(program.context), last];
                positions.dedup();
                calls.extend(positions.into_iter().map(|position| Call { kind: entry.kind, position, tokens: 1 }));
            }
            EntryKind::Prefill { chunk } => {
                calls.push(Call { kind: entry.kind, position: 0, tokens: chunk.min(program.context) });
            }
        }
    }
    calls
}

/// The position at which the cost of a token is stated: half of the context.
pub fn middle(context: u32) -> u32 {
    (context / 2).min(context.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_counted_by_what_it_executes() {
        let program = crate::plan::tests::example().program;
        let at = |position| Operations::of(&program, Call { kind: EntryKind::Decode, position, tokens: 1 });
        let expected =
            Operations { bootstraps: 1, rotations: 1, plaintext_products: 1, polynomials: 1, ..Operations::default() };
        assert_eq!(at(3), expected);
        // A rotation by a whole number of turns is none.
        let mut turned = program.clone();
        for node in &mut turned.entries[0].graph.nodes {
            if let CkksOp::Rotate { by } = &mut node.op {
                *by = crate::expression::Integer::position() * i64::from(program.slots);
            }
        }
        let found = Operations::of(&turned, Call { kind: EntryKind::Decode, position: 3, tokens: 1 });
        assert_eq!(found, Operations { rotations: 0, ..expected });
    }

    #[test]
    fn typical_calls_lie_in_the_context() {
        let mut program = crate::plan::tests::example().program;
        let positions = |program: &Program<_, _>| -> Vec<u32> {
            typical_calls(program).iter().map(|call: &Call| call.position).collect()
        };
        assert_eq!(positions(&program), [0, 8, 15]);
        program.context = 2;
        assert_eq!(positions(&program), [0, 1]);
        program.context = 1;
        assert_eq!(positions(&program), [0]);
    }
}
