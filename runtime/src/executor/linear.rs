//! Linear maps on the ciphertexts of an [`Algebra`]: one decomposition for all babies, and one division by P, which
//! rescales as well, for all giants. Babies have their own: a product by one that keeps P takes as many more limbs as P has,
//! and at the levels of linear maps those are as many again. Diagonals are encoded on all cores and kept, or used once and
//! not encoded as a whole where there is no room for them.

use std::sync::Arc;

use cachemir_ir::graph::OpId;
use cachemir_ir::linear::{Diagonal, Factor, Giant, Linear, Matrices, SlotAlgebra};

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

    /// A rotation's amount modulo the number of slots.
    fn amount(&self, by: i64) -> usize {
        by.rem_euclid(self.algebra().slots() as i64) as usize
    }

    /// Σ a·diagonal over one or more terms, a product.
    fn products(&mut self, terms: &[(&A::Ciphertext, Diagonal)]) -> Result<A::Ciphertext, Error> {
        let algebra = self.algebra();
        let level = terms.first().map_or(0, |(a, _)| algebra.level(a).0);
        let (operands, diagonals): (Vec<&A::Ciphertext>, Vec<Diagonal>) = terms.iter().copied().unzip();
        let parts: Vec<Part> = diagonals.iter().copied().map(Part::Diagonal).collect();
        if self.call.keeps(self.op, &parts) {
            let plains = self.encoded(&diagonals, &parts, level)?;
            let plains = plains.iter().map(Arc::as_ref);
            return algebra.sum_of_products(&operands.into_iter().zip(plains).collect::<Vec<_>>());
        }
        algebra.sum_of_weights(&operands, &self.factors(&diagonals)?, level)
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
        if let [by] = by {
            return Ok(vec![algebra.rotate(a, self.amount(*by))?]);
        }
        let decomposition = algebra.decompose(a)?;
        by.iter().map(|&by| algebra.rotate_decomposed(a, &decomposition, self.amount(by))).collect()
    }

    fn add_rotations(&mut self, a: &A::Ciphertext, by: &[i64]) -> Result<A::Ciphertext, Error> {
        self.call.add_rotations(a, by)
    }

    fn add_rotation_times_i(&mut self, a: &A::Ciphertext, by: i64) -> Result<A::Ciphertext, Error> {
        let algebra = self.algebra();
        let mut sum = algebra.rotate(a, self.amount(by))?;
        algebra.multiply_by_i_assign(&mut sum)?;
        algebra.add_assign(&mut sum, a)?;
        Ok(sum)
    }

    fn weigh(&mut self, giants: &[Giant<'_, A::Ciphertext>]) -> Result<A::Ciphertext, Error> {
        let algebra = self.algebra();
        let (first, others) = giants.split_first().ok_or_else(|| Error::execution("a sum of no products"))?;
        let mut first = self.products(&first.terms)?;
        if others.is_empty() {
            algebra.rescale_assign(&mut first)?;
            return Ok(first);
        }
        let mut sum = algebra.extend(first)?;
        for giant in others {
            algebra.add_rotated(&mut sum, &self.products(&giant.terms)?, self.amount(giant.by))?;
        }
        algebra.rescale_extended(sum)
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

    fn real_part(&mut self, mut z: A::Ciphertext) -> Result<A::Ciphertext, Error> {
        let algebra = self.algebra();
        let conjugate = algebra.conjugate(&z)?;
        algebra.add_assign(&mut z, &conjugate)?;
        Ok(z)
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
