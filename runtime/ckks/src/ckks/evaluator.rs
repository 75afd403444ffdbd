//! Arithmetic on ciphertexts: sums, products, rescaling, level changes. Needs no secret.

use std::sync::{Arc, OnceLock};

use cachemir_hal::Backend;
use num_complex::Complex64;

use crate::ckks::ciphertext::{Ciphertext, Plaintext, RaisedCiphertext};
use crate::ckks::encoder::{Encoder, IntegerPolynomial};
pub use crate::ckks::hoisting::Digits;
use crate::error::CkksError;
use crate::ring::Ring;
use crate::rlwe::keys::{EvaluationKeys, KeyRole};
use crate::rlwe::switching;

/// Largest relative difference between the scales of the operands of a sum.
pub const SCALE_TOLERANCE: f64 = 1e-9;

/// Evaluates on ciphertexts. Holds tables only; keys are passed to the operations that use them.
#[derive(Clone)]
pub struct Evaluator<B: Backend> {
    pub(crate) ring: Ring<B>,
    pub(crate) encoder: Encoder<B>,
    /// X^{N/2} modulo the whole chain, built on first use.
    pub(crate) imaginary_unit: Arc<OnceLock<B::Buffer>>,
}

pub(crate) fn check_scales(operation: &'static str, left: f64, right: f64) -> Result<(), CkksError> {
    let relative = (left / right - 1.0).abs();
    if relative <= SCALE_TOLERANCE {
        return Ok(());
    }
    Err(CkksError::ScaleMismatch {
        operation,
        log2_left: left.log2(),
        log2_right: right.log2(),
        relative,
        tolerance: SCALE_TOLERANCE,
    })
}

fn check_needed_level(operation: &'static str, level: usize, needed: usize) -> Result<(), CkksError> {
    if level < needed {
        return Err(CkksError::LevelExhausted { operation, level, needed });
    }
    Ok(())
}

impl<B: Backend> Evaluator<B> {
    /// An evaluator that shares the encoder's ring and tables.
    pub fn new(encoder: Encoder<B>) -> Self {
        Self { ring: encoder.ring().clone(), encoder, imaginary_unit: Arc::new(OnceLock::new()) }
    }

    /// The ring of the ciphertexts.
    pub fn ring(&self) -> &Ring<B> {
        &self.ring
    }

    /// The encoder.
    pub fn encoder(&self) -> &Encoder<B> {
        &self.encoder
    }

    pub(crate) fn check_polynomials(
        &self,
        operation: &'static str,
        ciphertext: &Ciphertext<B>,
        expected: usize,
    ) -> Result<(), CkksError> {
        let found = ciphertext.polynomials(&self.ring);
        if found == expected { Ok(()) } else { Err(CkksError::Polynomials { operation, expected, found }) }
    }

    /// The trivial encryption of zero.
    pub fn zero(&self, level: usize, scale: f64, slots: usize) -> Result<Ciphertext<B>, CkksError> {
        self.ring.check_level(level)?;
        let buffer = self.ring.backend().zeros(2, level + 1)?;
        Ok(Ciphertext { buffer, level, scale, slots })
    }

    /// A copy of the ciphertext's lowest limbs. The scale stays, so this is exact and free of noise, but leaves a
    /// canonical ciphertext slightly off the lower level's canonical scale; [`drop_to_level`](Self::drop_to_level)
    /// corrects that.
    pub fn truncate(&self, ciphertext: &Ciphertext<B>, level: usize) -> Result<Ciphertext<B>, CkksError> {
        check_needed_level("truncate", ciphertext.level, level)?;
        let polynomials = ciphertext.polynomials(&self.ring);
        let buffer = self.ring.backend().select(&ciphertext.buffer, 0..polynomials, self.ring.chain(level))?;
        Ok(Ciphertext { buffer, level, ..*ciphertext })
    }

    /// Brings a ciphertext to the canonical scale of a lower level t. Where its scale differs by more than a relative
    /// 2^-40, it is multiplied by the integer nearest to q_{t+1}·Δ_t/scale at level t+1 and rescaled; that integer's
    /// rounding changes the slots by a relative 2^-40 or so, less than the rescale's own noise.
    pub fn drop_to_level(&self, ciphertext: &Ciphertext<B>, level: usize) -> Result<Ciphertext<B>, CkksError> {
        check_needed_level("drop_to_level", ciphertext.level, level)?;
        let canonical = self.ring.parameters().canonical_scale(level);
        if (ciphertext.scale / canonical - 1.0).abs() <= (-40_f64).exp2() {
            let mut result = self.truncate(ciphertext, level)?;
            result.scale = canonical;
            return Ok(result);
        }
        check_needed_level("drop_to_level", ciphertext.level, level + 1)?;
        let mut above = self.truncate(ciphertext, level + 1)?;
        let factor = self.canonical_factor(&above)?;
        self.mul_scalar_at_assign(&mut above, 1.0, factor)?;
        let mut result = self.rescale(&above)?;
        result.scale = canonical;
        Ok(result)
    }

    /// q_ℓ·Δ_{ℓ-1}/scale: the scale of a plain factor after which a rescale is canonical.
    pub fn canonical_factor(&self, ciphertext: &Ciphertext<B>) -> Result<f64, CkksError> {
        let level = ciphertext.level;
        check_needed_level("product with a plain factor", level, 1)?;
        let parameters = self.ring.parameters();
        Ok(parameters.primes()[level] as f64 * parameters.canonical_scale(level - 1) / ciphertext.scale)
    }

    /// a + b, at the lower of both levels.
    pub fn add(&self, a: &Ciphertext<B>, b: &Ciphertext<B>) -> Result<Ciphertext<B>, CkksError> {
        if a.polynomials(&self.ring) < b.polynomials(&self.ring) {
            return self.add(b, a);
        }
        let mut sum = self.truncate(a, a.level.min(b.level))?;
        self.add_assign(&mut sum, b)?;
        Ok(sum)
    }

    /// a ← a + b. `a` must have as many polynomials as `b`, or more.
    pub fn add_assign(&self, a: &mut Ciphertext<B>, b: &Ciphertext<B>) -> Result<(), CkksError> {
        self.check_sum("add", a, b)?;
        self.ring.backend().add_assign(&mut a.buffer, &b.buffer, self.ring.chain(a.level))?;
        Ok(())
    }

    /// a - b, at the lower of both levels.
    pub fn sub(&self, a: &Ciphertext<B>, b: &Ciphertext<B>) -> Result<Ciphertext<B>, CkksError> {
        if a.polynomials(&self.ring) < b.polynomials(&self.ring) {
            return self.add(&self.negate(b)?, a);
        }
        let mut difference = self.truncate(a, a.level.min(b.level))?;
        self.sub_assign(&mut difference, b)?;
        Ok(difference)
    }

    /// a ← a - b. `a` must have as many polynomials as `b`, or more.
    pub fn sub_assign(&self, a: &mut Ciphertext<B>, b: &Ciphertext<B>) -> Result<(), CkksError> {
        self.check_sum("sub", a, b)?;
        self.ring.backend().sub_assign(&mut a.buffer, &b.buffer, self.ring.chain(a.level))?;
        Ok(())
    }

    /// Checks the operands of an in-place sum and gives `a` the lower level and the larger number of slots.
    fn check_sum(&self, operation: &'static str, a: &mut Ciphertext<B>, b: &Ciphertext<B>) -> Result<(), CkksError> {
        check_scales(operation, a.scale, b.scale)?;
        let (expected, found) = (a.polynomials(&self.ring), b.polynomials(&self.ring));
        if found > expected {
            return Err(CkksError::Polynomials { operation, expected, found });
        }
        a.level = a.level.min(b.level);
        a.slots = a.slots.max(b.slots);
        Ok(())
    }

    /// -a.
    pub fn negate(&self, a: &Ciphertext<B>) -> Result<Ciphertext<B>, CkksError> {
        let mut result = self.truncate(a, a.level)?;
        self.negate_assign(&mut result)?;
        Ok(result)
    }

    /// a ← -a.
    pub fn negate_assign(&self, a: &mut Ciphertext<B>) -> Result<(), CkksError> {
        Ok(self.ring.backend().negate_assign(&mut a.buffer, self.ring.chain(a.level))?)
    }

    /// a + p, at the lower of both levels.
    pub fn add_plain(&self, a: &Ciphertext<B>, p: &Plaintext<B>) -> Result<Ciphertext<B>, CkksError> {
        let mut sum = self.truncate(a, a.level.min(p.level))?;
        self.add_plain_assign(&mut sum, p)?;
        Ok(sum)
    }

    /// a ← a + p.
    pub fn add_plain_assign(&self, a: &mut Ciphertext<B>, p: &Plaintext<B>) -> Result<(), CkksError> {
        check_scales("add_plain", a.scale, p.scale)?;
        Self::meet_plain(a, p);
        Ok(self.ring.backend().add_assign(&mut a.buffer, &p.buffer, self.ring.chain(a.level))?)
    }

    /// a - p, at the lower of both levels.
    pub fn sub_plain(&self, a: &Ciphertext<B>, p: &Plaintext<B>) -> Result<Ciphertext<B>, CkksError> {
        let mut difference = self.truncate(a, a.level.min(p.level))?;
        self.sub_plain_assign(&mut difference, p)?;
        Ok(difference)
    }

    /// a ← a - p.
    pub fn sub_plain_assign(&self, a: &mut Ciphertext<B>, p: &Plaintext<B>) -> Result<(), CkksError> {
        check_scales("sub_plain", a.scale, p.scale)?;
        Self::meet_plain(a, p);
        Ok(self.ring.backend().sub_assign(&mut a.buffer, &p.buffer, self.ring.chain(a.level))?)
    }

    /// Gives `a` the lower level and the larger number of slots.
    fn meet_plain(a: &mut Ciphertext<B>, p: &Plaintext<B>) {
        a.level = a.level.min(p.level);
        a.slots = a.slots.max(p.slots);
    }

    /// a + values, encoded at the scale of `a`.
    pub fn add_slots(&self, a: &Ciphertext<B>, values: &[Complex64]) -> Result<Ciphertext<B>, CkksError> {
        self.add_plain(a, &self.encoder.encode(values, a.level, a.scale)?)
    }

    /// a·p, not rescaled: the scales multiply.
    pub fn mul_plain(&self, a: &Ciphertext<B>, p: &Plaintext<B>) -> Result<Ciphertext<B>, CkksError> {
        let mut product = self.truncate(a, a.level.min(p.level))?;
        self.mul_plain_assign(&mut product, p)?;
        Ok(product)
    }

    /// a ← a·p, not rescaled.
    pub fn mul_plain_assign(&self, a: &mut Ciphertext<B>, p: &Plaintext<B>) -> Result<(), CkksError> {
        Self::meet_plain(a, p);
        a.scale *= p.scale;
        Ok(self.ring.backend().mul_assign(&mut a.buffer, &p.buffer, self.ring.chain(a.level))?)
    }

    /// accumulator ← accumulator + a·p. The scales of a and p must multiply to the accumulator's.
    pub fn mul_plain_accumulate(
        &self,
        accumulator: &mut Ciphertext<B>,
        a: &Ciphertext<B>,
        p: &Plaintext<B>,
    ) -> Result<(), CkksError> {
        self.mul_plain_accumulate_many(accumulator, &[(a, p)])
    }

    /// accumulator ← accumulator + Σ a_k·p_k with one modular reduction. Each pair's scales must multiply to the
    /// accumulator's.
    pub fn mul_plain_accumulate_many(
        &self,
        accumulator: &mut Ciphertext<B>,
        pairs: &[(&Ciphertext<B>, &Plaintext<B>)],
    ) -> Result<(), CkksError> {
        let expected = accumulator.polynomials(&self.ring);
        for (a, p) in pairs {
            check_scales("mul_plain_accumulate", accumulator.scale, a.scale * p.scale)?;
            self.check_polynomials("mul_plain_accumulate", a, expected)?;
            accumulator.level = accumulator.level.min(a.level).min(p.level);
            accumulator.slots = accumulator.slots.max(a.slots).max(p.slots);
        }
        let buffers: Vec<_> = pairs.iter().map(|(a, p)| (&a.buffer, &p.buffer)).collect();
        let limbs = self.ring.chain(accumulator.level);
        self.ring.backend().mul_accumulate_many(&mut accumulator.buffer, &buffers, limbs)?;
        Ok(())
    }

    /// accumulator ← accumulator + Σ a_k·p_k for integer polynomials that are used once, made with `scale` and not encoded:
    /// their residues are made on the way. Scales as in [`mul_plain_accumulate_many`](Self::mul_plain_accumulate_many).
    pub fn mul_integers_accumulate(
        &self,
        accumulator: &mut Ciphertext<B>,
        pairs: &[(&Ciphertext<B>, &IntegerPolynomial)],
        scale: f64,
    ) -> Result<(), CkksError> {
        let expected = accumulator.polynomials(&self.ring);
        for (a, _) in pairs {
            check_scales("mul_integers_accumulate", accumulator.scale, a.scale * scale)?;
            self.check_polynomials("mul_integers_accumulate", a, expected)?;
            accumulator.level = accumulator.level.min(a.level);
            accumulator.slots = accumulator.slots.max(a.slots);
        }
        let (level, slots) = (accumulator.level, accumulator.slots);
        let narrow = pairs.iter().map(|(_, integers)| self.encoder.narrow(integers, level));
        let narrow: Option<Vec<&[i64]>> = narrow.collect::<Result<_, _>>()?;
        let Some(narrow) = narrow else {
            return pairs.iter().try_for_each(|(a, integers)| {
                let plaintext = self.encoder.lift(integers, slots, level, scale)?;
                self.mul_plain_accumulate_many(accumulator, &[(a, &plaintext)])
            });
        };
        let buffers: Vec<_> = pairs.iter().zip(narrow).map(|((a, _), integers)| (&a.buffer, integers)).collect();
        self.ring.backend().mul_lifted_accumulate(&mut accumulator.buffer, &buffers, self.ring.chain(level))?;
        Ok(())
    }

    /// a·values at the canonical scale one level below: encodes at [`canonical_factor`](Self::canonical_factor),
    /// multiplies, rescales.
    pub fn mul_slots(&self, a: &Ciphertext<B>, values: &[Complex64]) -> Result<Ciphertext<B>, CkksError> {
        let plaintext = self.encoder.encode(values, a.level, self.canonical_factor(a)?)?;
        let mut result = self.rescale(&self.mul_plain(a, &plaintext)?)?;
        result.scale = self.ring.parameters().canonical_scale(result.level);
        Ok(result)
    }

    /// a·b as three polynomials, neither relinearised nor rescaled.
    pub fn tensor(&self, a: &Ciphertext<B>, b: &Ciphertext<B>) -> Result<Ciphertext<B>, CkksError> {
        self.check_polynomials("tensor", a, 2)?;
        self.check_polynomials("tensor", b, 2)?;
        let level = a.level.min(b.level);
        let buffer = self.ring.backend().tensor(&a.buffer, &b.buffer, self.ring.chain(level))?;
        Ok(Ciphertext { buffer, level, scale: a.scale * b.scale, slots: a.slots.max(b.slots) })
    }

    /// P times the relinearisation of three polynomials, modulo Q·P, and the number of primes in P.
    fn relinearise_extended(
        &self,
        product: &Ciphertext<B>,
        keys: &EvaluationKeys<B>,
    ) -> Result<(B::Buffer, usize), CkksError> {
        self.check_polynomials("relinearise", product, 3)?;
        let (ring, level) = (&self.ring, product.level);
        let key = keys.find(ring.parameters(), KeyRole::Relinearisation, level)?;
        let digits = switching::decompose(ring, &product.buffer, 2, level, key.gadget())?;
        let extended = switching::inner_product(ring, &digits, key, &product.buffer, 2, level, 1)?;
        Ok((extended, key.gadget().special))
    }

    /// From three polynomials to two. A ciphertext of two is returned as it is.
    pub fn relinearise(&self, product: &Ciphertext<B>, keys: &EvaluationKeys<B>) -> Result<Ciphertext<B>, CkksError> {
        if product.polynomials(&self.ring) == 2 {
            return self.truncate(product, product.level);
        }
        let (extended, special) = self.relinearise_extended(product, keys)?;
        let buffer = switching::mod_down(&self.ring, &extended, product.level, special)?;
        Ok(Ciphertext { buffer, ..*product })
    }

    /// Relinearises and rescales, with one division by P·q_ℓ.
    pub fn relinearise_rescale(
        &self,
        product: &Ciphertext<B>,
        keys: &EvaluationKeys<B>,
    ) -> Result<Ciphertext<B>, CkksError> {
        check_needed_level("rescale", product.level, 1)?;
        if product.polynomials(&self.ring) == 2 {
            return self.rescale(product);
        }
        let (extended, special) = self.relinearise_extended(product, keys)?;
        let buffer = switching::mod_down_and_rescale(&self.ring, &extended, product.level, special)?;
        let scale = product.scale / self.ring.parameters().primes()[product.level] as f64;
        Ok(Ciphertext { buffer, level: product.level - 1, scale, slots: product.slots })
    }

    /// a·b, relinearised, not rescaled.
    pub fn mul(
        &self,
        a: &Ciphertext<B>,
        b: &Ciphertext<B>,
        keys: &EvaluationKeys<B>,
    ) -> Result<Ciphertext<B>, CkksError> {
        self.relinearise(&self.tensor(a, b)?, keys)
    }

    /// a·b, relinearised and rescaled. Two canonical factors of one level give a canonical product one level below.
    pub fn mul_rescale(
        &self,
        a: &Ciphertext<B>,
        b: &Ciphertext<B>,
        keys: &EvaluationKeys<B>,
    ) -> Result<Ciphertext<B>, CkksError> {
        self.relinearise_rescale(&self.tensor(a, b)?, keys)
    }

    /// a², relinearised, not rescaled.
    pub fn square(&self, a: &Ciphertext<B>, keys: &EvaluationKeys<B>) -> Result<Ciphertext<B>, CkksError> {
        self.mul(a, a, keys)
    }

    /// a², relinearised and rescaled.
    pub fn square_rescale(&self, a: &Ciphertext<B>, keys: &EvaluationKeys<B>) -> Result<Ciphertext<B>, CkksError> {
        self.mul_rescale(a, a, keys)
    }

    /// Divides by the highest prime q_ℓ; the level falls by one and the scale is divided by q_ℓ.
    pub fn rescale(&self, a: &Ciphertext<B>) -> Result<Ciphertext<B>, CkksError> {
        check_needed_level("rescale", a.level, 1)?;
        let buffer = self.ring.backend().rescale(&a.buffer, self.ring.chain(a.level))?;
        let scale = a.scale / self.ring.parameters().primes()[a.level] as f64;
        Ok(Ciphertext { buffer, level: a.level - 1, scale, slots: a.slots })
    }

    /// Lifts a ciphertext modulo q_0 to modulo q_0 ⋯ q_level, as polynomials with centred coefficients. The message
    /// becomes m + q_0·I with a small integer polynomial I if the secret is sparse (the first step of a bootstrap). Limbs
    /// above q_0 are ignored.
    pub fn raise_modulus(&self, a: &Ciphertext<B>, level: usize) -> Result<RaisedCiphertext<B>, CkksError> {
        self.check_polynomials("raise_modulus", a, 2)?;
        self.ring.check_level(level)?;
        let backend = self.ring.backend();
        let base = self.ring.chain(0);
        let limbs = self.ring.extended(level, self.ring.parameters().raised_gadget().special);
        let raise = |polynomial: usize, limbs: &[usize]| {
            let mut low = backend.select(&a.buffer, polynomial..polynomial + 1, base)?;
            backend.inverse_ntt(&mut low, base)?;
            backend.mod_raise(&low, base[0], limbs)
        };
        let (constant, digit) = (raise(0, self.ring.chain(level))?, raise(1, &limbs)?);
        Ok(RaisedCiphertext { constant, digit, level, scale: a.scale, slots: a.slots })
    }
}
