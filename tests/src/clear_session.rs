//! The ckks stage in the clear, for tests.

use cachemir_ir::ckks::{CiphertextType, CkksOp, Levels};
use cachemir_ir::program::{EntryPoint, Program};
use cachemir_runtime::Error;
use cachemir_runtime::check::{BoundCheck, RangeCheck};
use cachemir_runtime::executor::{Clear, ClearCiphertext, Executor, States};

/// Runs a program of the ckks stage in the clear, with every interval, magnitude and bound checked.
pub struct ClearSession<'p> {
    program: &'p Program<CkksOp, CiphertextType>,
    executor: Executor<'p, Clear>,
    states: States<ClearCiphertext>,
}

impl<'p> ClearSession<'p> {
    /// A session whose state is zero, for parameters with these levels.
    ///
    /// # Errors
    /// Where the program cannot be executed.
    pub fn new(program: &'p Program<CkksOp, CiphertextType>, levels: Levels) -> Result<Self, Error> {
        let executor = Executor::new(Clear::new(program.slots as usize, levels), program, levels, usize::MAX)?;
        Ok(Self { program, executor, states: States::new(program) })
    }

    /// Runs an entry point for `count` tokens from `position` on; returns the real parts of the outputs' slots.
    ///
    /// # Errors
    /// Where a slot leaves its interval, its magnitude or the bound of its type.
    pub fn call(
        &mut self,
        entry: EntryPoint,
        position: i64,
        count: i64,
        inputs: &[Vec<f64>],
    ) -> Result<Vec<Vec<f64>>, Error> {
        let graph = &self.program.entry(entry).expect("the program has the entry point").graph;
        let levels = graph.inputs.iter().map(|&input| graph.ty(input).level);
        let inputs = inputs.iter().zip(levels).map(|(slots, level)| ClearCiphertext::fresh(slots, level)).collect();
        let mut watch = (RangeCheck::default(), BoundCheck);
        let (position, count) = (position as usize, count as usize);
        let outputs = self.executor.call(entry, position, count, inputs, &mut self.states, &mut watch)?;
        watch.0.finish()?;
        Ok(outputs.iter().map(|output| output.slots.iter().map(|slot| slot.re).collect()).collect())
    }
}
