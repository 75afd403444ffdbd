//! Products and sums with one number for all slots: no encoding, no transform.

use cachemir_hal::Backend;

use crate::ckks::ciphertext::Ciphertext;
use crate::ckks::evaluator::Evaluator;
use crate::error::CkksError;

/// round(value · scale), if it stays below 2^126.
fn scaled_integer(value: f64, scale: f64) -> Result<i128, CkksError> {
    let scaled = value * scale;
    if !scaled.is_finite() || scaled.abs() >= 126_f64.exp2() {
        return Err(CkksError::Value {
            what: "a scaled constant",
            value: scaled,
            condition: "below 2^126 in absolute value",
        });
    }
    Ok(scaled.round() as i128)
}

impl<B: Backend> Evaluator<B> {
    /// a·value at the canonical scale one level below.
    pub fn mul_scalar(&self, a: &Ciphertext<B>, value: f64) -> Result<Ciphertext<B>, CkksError> {
        let scale = self.canonical_factor(a)?;
        let mut result = self.rescale(&self.mul_scalar_at(a, value, scale)?)?;
        result.scale = self.ring.parameters().canonical_scale(result.level);
        Ok(result)
    }

    /// a·value, not rescaled: multiplies by round(value · scale), and the scale by `scale`.
    pub fn mul_scalar_at(&self, a: &Ciphertext<B>, value: f64, scale: f64) -> Result<Ciphertext<B>, CkksError> {
        let mut result = self.truncate(a, a.level)?;
        self.mul_scalar_at_assign(&mut result, value, scale)?;
        Ok(result)
    }

    /// As [`mul_scalar_at`](Self::mul_scalar_at), in place.
    pub fn mul_scalar_at_assign(&self, a: &mut Ciphertext<B>, value: f64, scale: f64) -> Result<(), CkksError> {
        let limbs = self.ring.chain(a.level);
        let residues = self.ring.residues(scaled_integer(value, scale)?, limbs);
        self.ring.backend().mul_scalar_assign(&mut a.buffer, &residues, limbs)?;
        a.scale *= scale;
        Ok(())
    }

    /// accumulator ← accumulator + a·value, the constant being encoded at the quotient of both scales. The accumulator
    /// takes the lower level and must have as many polynomials as `a`, or more.
    pub fn mul_scalar_accumulate(
        &self,
        accumulator: &mut Ciphertext<B>,
        a: &Ciphertext<B>,
        value: f64,
    ) -> Result<(), CkksError> {
        let (expected, found) = (accumulator.polynomials(&self.ring), a.polynomials(&self.ring));
        if found > expected {
            return Err(CkksError::Polynomials { operation: "mul_scalar_accumulate", expected, found });
        }
        let integer = scaled_integer(value, accumulator.scale / a.scale)?;
        accumulator.level = accumulator.level.min(a.level);
        accumulator.slots = accumulator.slots.max(a.slots);
        let limbs = self.ring.chain(accumulator.level);
        let residues = self.ring.residues(integer, limbs);
        self.ring.backend().mul_scalar_accumulate(&mut accumulator.buffer, &a.buffer, found, &residues, limbs)?;
        Ok(())
    }

    /// Σ a·value over the terms (a, value), two polynomials each, at a level that no term is below and at this scale. Each
    /// constant is encoded at the quotient of both scales.
    pub fn linear_combination(
        &self,
        terms: &[(&Ciphertext<B>, f64)],
        level: usize,
        scale: f64,
        slots: usize,
    ) -> Result<Ciphertext<B>, CkksError> {
        self.ring.check_level(level)?;
        let limbs = self.ring.chain(level);
        let mut constants = Vec::with_capacity(terms.len());
        for (a, value) in terms {
            self.check_polynomials("linear_combination", a, 2)?;
            constants.push(self.ring.residues(scaled_integer(*value, scale / a.scale)?, limbs));
        }
        let terms: Vec<_> = terms.iter().zip(&constants).map(|((a, _), c)| (&a.buffer, &c[..])).collect();
        let buffer = self.ring.backend().linear_combination(2, &terms, limbs)?;
        Ok(Ciphertext { buffer, level, scale, slots })
    }

    /// a·value, exactly; level and scale stay.
    pub fn mul_integer(&self, a: &Ciphertext<B>, value: i64) -> Result<Ciphertext<B>, CkksError> {
        let mut result = self.truncate(a, a.level)?;
        self.mul_integer_assign(&mut result, value)?;
        Ok(result)
    }

    /// a ← a·value, exactly.
    pub fn mul_integer_assign(&self, a: &mut Ciphertext<B>, value: i64) -> Result<(), CkksError> {
        let limbs = self.ring.chain(a.level);
        let residues = self.ring.residues(i128::from(value), limbs);
        Ok(self.ring.backend().mul_scalar_assign(&mut a.buffer, &residues, limbs)?)
    }

    /// a + value in every slot.
    pub fn add_scalar(&self, a: &Ciphertext<B>, value: f64) -> Result<Ciphertext<B>, CkksError> {
        let mut result = self.truncate(a, a.level)?;
        self.add_scalar_assign(&mut result, value)?;
        Ok(result)
    }

    /// a ← a + value in every slot.
    pub fn add_scalar_assign(&self, a: &mut Ciphertext<B>, value: f64) -> Result<(), CkksError> {
        let limbs = self.ring.chain(a.level);
        let residues = self.ring.residues(scaled_integer(value, a.scale)?, limbs);
        self.ring.backend().add_scalar_assign(&mut a.buffer, 0, &residues, limbs)?;
        Ok(())
    }

    /// i·a, exactly; level and scale stay.
    pub fn mul_by_i(&self, a: &Ciphertext<B>) -> Result<Ciphertext<B>, CkksError> {
        let mut result = self.truncate(a, a.level)?;
        self.mul_by_i_assign(&mut result)?;
        Ok(result)
    }

    /// a ← i·a, exactly: a product with the monomial X^{N/2}, which is i at every root ζ^{5^j}.
    pub fn mul_by_i_assign(&self, a: &mut Ciphertext<B>) -> Result<(), CkksError> {
        let limbs = self.ring.chain(a.level);
        if self.imaginary_unit.get().is_none() {
            let mut monomial = vec![0_i64; self.ring.degree()];
            monomial[self.ring.degree() / 2] = 1;
            let chain = self.ring.chain(self.ring.parameters().maximum_level());
            let mut buffer = self.ring.backend().lift_signed(&monomial, chain)?;
            self.ring.backend().forward_ntt(&mut buffer, chain)?;
            // Another thread may have been first; both built the same.
            let _ = self.imaginary_unit.set(buffer);
        }
        if let Some(unit) = self.imaginary_unit.get() {
            self.ring.backend().mul_assign(&mut a.buffer, unit, limbs)?;
        }
        Ok(())
    }
}
