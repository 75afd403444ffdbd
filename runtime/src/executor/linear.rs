//! Linear maps on the ciphertexts of an [`Algebra`]: one decomposition for all babies, a rescale for each giant.

use std::sync::Arc;

use cachemir_ir::graph::OpId;
use cachemir_ir::linear::{Diagonal, Linear, SlotAlgebra};

use super::plaintexts::Part;
use super::{Algebra, Call};
use crate::Error;

/// The map of an op that is being executed.
pub(super) struct Running<'c, 'a, 'p, A: Algebra> {
    pub(super) call: &'c Call<'a, 'p, A>,
    pub(super) op: OpId,
    pub(super) linear: &'a Linear,
}

impl<A: Algebra> Running<'_, '_, '_, A> {
    fn algebra(&self) -> &A {
        &self.call.executor.algebra
    }

    fn diagonal(&self, diagonal: Diagonal, level: u32) -> Result<Arc<A::Plaintext>, Error> {
        self.call.kept(
            self.op,
            Part::Diagonal(diagonal),
            |_| false,
            || {
                let program = self.call.executor.program;
                let weights = self.linear.diagonal(program.slots, &program.tables, diagonal);
                let wide = |part: &[f32]| part.iter().map(|&weight| f64::from(weight)).collect::<Vec<_>>();
                let real = wide(&weights.real);
                match weights.imaginary {
                    None => self.algebra().encode_factor(&real, level),
                    Some(imaginary) => self.algebra().encode_complex_factor(&real, &wide(&imaginary), level),
                }
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

    fn add(&mut self, a: &A::Ciphertext, mut b: A::Ciphertext) -> Result<A::Ciphertext, Error> {
        self.algebra().add_assign(&mut b, a)?;
        Ok(b)
    }

    fn weigh(&mut self, terms: &[(&A::Ciphertext, Diagonal)]) -> Result<A::Ciphertext, Error> {
        let algebra = self.algebra();
        let mut sum: Option<A::Ciphertext> = None;
        for (a, diagonal) in terms {
            let plain = self.diagonal(*diagonal, algebra.level(a).0)?;
            match &mut sum {
                None => sum = Some(algebra.multiply_plain(a, &plain)?),
                Some(sum) => algebra.multiply_plain_accumulate(sum, a, &plain)?,
            }
        }
        let mut sum = sum.ok_or_else(|| Error::execution("a sum of no products"))?;
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
        let plain = self.call.kept(self.op, Part::Bias { output, matrix }, mentions, || {
            let bias = self.linear.bias(program.slots, &self.call.environment, &program.tables, output, matrix);
            let (level, product) = algebra.level(&a);
            algebra.encode_summand(&bias, level, product)
        })?;
        algebra.add_plain_assign(&mut a, &plain)?;
        Ok(a)
    }
}
