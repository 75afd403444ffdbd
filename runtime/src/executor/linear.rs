//! Linear maps on the ciphertexts of an [`Algebra`]: one decomposition for all babies, a rescale for each giant. Its
//! diagonals are encoded on all cores and kept, or used once and not encoded as a whole where there is no room for them.

use std::sync::Arc;

use cachemir_ir::graph::OpId;
use cachemir_ir::linear::{Diagonal, Factor, Linear, Matrices, SlotAlgebra};

use super::plaintexts::Part;
use super::{Algebra, Call};
use crate::Error;

/// The map of an op that is being executed.
pub(super) struct Running<'c, 'a, 'p, A: Algebra> {
    pub(super) call: &'c Call<'a, 'p, A>,
    pub(super) op: OpId,
    pub(super) linear: &'a Linear,
    /// The matrices of the output that is being computed, from the first of its diagonals on that is not kept encoded.
    pub(super) matrices: Option<Matrices>,
}

impl<'c, A: Algebra> Running<'c, '_, '_, A> {
    fn algebra(&self) -> &'c A {
        &self.call.executor.algebra
    }

    /// Diagonals of one output, made of its matrices, which are read unless they are the ones at hand.
    fn factors(&mut self, wanted: &[Diagonal]) -> Result<Vec<Factor>, Error> {
        let program = self.call.executor.program;
        let output = wanted.first().map_or(0, |diagonal| diagonal.output);
        let matrices = match self.matrices.take().filter(|known| known.output() == output) {
            Some(known) => self.matrices.insert(known),
            None => self.matrices.insert(self.linear.load(output, &program.tables)?),
        };
        Ok(self.linear.diagonals(program.slots, matrices, wanted))
    }

    /// Diagonals of one output, encoded for an operand of this level and kept.
    fn encoded(&mut self, wanted: &[Diagonal], parts: &[Part], level: u32) -> Result<Vec<Arc<A::Plaintext>>, Error> {
        let (call, op) = (self.call, self.op);
        call.kept(
            op,
            parts,
            |_| false,
            |missing| {
                let wanted: Vec<Diagonal> = missing.iter().map(|&place| wanted[place]).collect();
                call.executor.algebra.encode_all(&self.factors(&wanted)?, level)
            },
        )
    }
}

impl<A: Algebra> SlotAlgebra for Running<'_, '_, '_, A> {
    type Value = A::Ciphertext;
    type Error = Error;

    fn rotate(&mut self, a: &A::Ciphertext, by: &[i64]) -> Result<Vec<A::Ciphertext>, Error> {
        let algebra = self.algebra();
        let amount = |by: i64| by.rem_euclid(algebra.slots() as i64) as usize;
        if let [by] = by {
            return Ok(vec![algebra.rotate(a, amount(*by))?]);
        }
        let decomposition = algebra.decompose(a)?;
        by.iter().map(|&by| algebra.rotate_decomposed(a, &decomposition, amount(by))).collect()
    }

    fn add_rotations(&mut self, a: &A::Ciphertext, by: &[i64]) -> Result<A::Ciphertext, Error> {
        self.call.add_rotations(a, by)
    }

    fn add(&mut self, a: &A::Ciphertext, mut b: A::Ciphertext) -> Result<A::Ciphertext, Error> {
        self.algebra().add_assign(&mut b, a)?;
        Ok(b)
    }

    fn weigh(&mut self, terms: &[(&A::Ciphertext, Diagonal)]) -> Result<A::Ciphertext, Error> {
        let algebra = self.algebra();
        let level = terms.first().map_or(0, |(a, _)| algebra.level(a).0);
        let (operands, diagonals): (Vec<&A::Ciphertext>, Vec<Diagonal>) = terms.iter().copied().unzip();
        let parts: Vec<Part> = diagonals.iter().copied().map(Part::Diagonal).collect();
        let mut sum = if self.call.keeps(self.op, &parts) {
            let plains = self.encoded(&diagonals, &parts, level)?;
            let plains = plains.iter().map(Arc::as_ref);
            algebra.sum_of_products(&operands.into_iter().zip(plains).collect::<Vec<_>>())?
        } else {
            algebra.sum_of_weights(&operands, &self.factors(&diagonals)?, level)?
        };
        algebra.rescale_assign(&mut sum)?;
        Ok(sum)
    }

    fn parts(&mut self, z: A::Ciphertext) -> Result<[A::Ciphertext; 2], Error> {
        let algebra = self.algebra();
        let conjugate = algebra.conjugate(&z)?;
        let mut imaginary = algebra.duplicate(&conjugate)?;
        algebra.subtract_assign(&mut imaginary, &z)?;
        algebra.multiply_by_i_assign(&mut imaginary)?;
        let mut real = z;
        algebra.add_assign(&mut real, &conjugate)?;
        Ok([real, imaginary])
    }

    fn add_bias(&mut self, mut a: A::Ciphertext, output: u32, matrix: u32) -> Result<A::Ciphertext, Error> {
        let (algebra, program) = (self.algebra(), self.call.executor.program);
        let landing = &self.linear.outputs[output as usize].landing;
        let mentions = |variable| {
            self.linear.vectors.mentions(variable) || landing.as_ref().is_some_and(|landing| landing.mentions(variable))
        };
        let plain = self.call.kept_one(self.op, Part::Bias { output, matrix }, mentions, || {
            let bias = self.linear.bias(program.slots, &self.call.environment, &program.tables, output, matrix)?;
            let (level, product) = algebra.level(&a);
            algebra.encode_summand(&bias, level, product)
        })?;
        algebra.add_plain_assign(&mut a, &plain)?;
        Ok(a)
    }
}
