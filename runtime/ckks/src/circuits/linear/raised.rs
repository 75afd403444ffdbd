//! Linear maps of what ModRaise returns, on the way out of the ephemeral secret.
//!
//! ModRaise lifts a ciphertext `(c_0, c_1)` modulo `q_0` by taking its coefficients as integers below `q_0 / 2`. Such a `c_1`
//! is its own only digit: the digits of any gadget would all be the same small polynomial. So a key for a rotation `φ` of
//! it, from `φ(s')` of the ephemeral secret straight to `s`, is one pair modulo `Q·p_0` that encrypts `p_0·φ(s')`; the error
//! that a product with it leaves is `|c_1|·e / p_0`, close to a rounding. Against a rotation at the same level nothing is
//! decomposed, and a fifth of the key is read; that makes it cheaper to take all diagonals of a map directly than by baby
//! and giant steps.

use cachemir_hal::{Addend, Backend};

use super::{DiagonalMatrix, StepPlan, encode_groups, one_period};
use crate::ckks::ciphertext::{Ciphertext, ExtendedCiphertext, ExtendedPlaintext, RaisedCiphertext};
use crate::ckks::encoder::Encoder;
use crate::ckks::evaluator::Evaluator;
use crate::error::CkksError;
use crate::ring::Ring;
use crate::rlwe::keys::{EvaluationKeys, KeyRole};
use crate::rlwe::switching;

/// An encoded linear map of raised ciphertexts.
#[derive(Debug)]
pub struct RaisedTransform<B: Backend> {
    /// Rotations and their diagonals.
    terms: Vec<(usize, ExtendedPlaintext<B>)>,
    level: usize,
    scale: f64,
    slots: usize,
}

impl<B: Backend> RaisedTransform<B> {
    /// Encodes `matrix` for inputs at `level`, every diagonal multiplied by `scale`.
    pub fn encode(encoder: &Encoder<B>, matrix: &DiagonalMatrix, level: usize, scale: f64) -> Result<Self, CkksError> {
        let gadget = encoder.ring().parameters().raised_gadget();
        let steps = StepPlan::direct(matrix.diagonals().keys().copied());
        let encode = |diagonal: &[_]| encoder.encode_extended(one_period(diagonal), level, scale, gadget);
        let terms = encode_groups(matrix, &steps, encode)?.into_iter().flat_map(|group| group.terms).collect();
        Ok(Self { terms, level, scale, slots: matrix.slots() })
    }

    /// Bytes of memory that the encoded diagonals take.
    pub fn bytes(&self, ring: &Ring<B>) -> u64 {
        self.terms.iter().map(|(_, plaintext)| ring.backend().bytes(plaintext.buffer())).sum()
    }

    /// The map applied under the main secret: at the input's level, the scale multiplied by that of the diagonals, not
    /// rescaled.
    pub fn apply(
        &self,
        evaluator: &Evaluator<B>,
        keys: &EvaluationKeys<B>,
        input: &RaisedCiphertext<B>,
    ) -> Result<Ciphertext<B>, CkksError> {
        evaluator.mod_down(&self.apply_extended(evaluator, keys, input)?)
    }

    /// As [`apply`](Self::apply) and rescaled, in one division.
    pub fn apply_rescale(
        &self,
        evaluator: &Evaluator<B>,
        keys: &EvaluationKeys<B>,
        input: &RaisedCiphertext<B>,
    ) -> Result<Ciphertext<B>, CkksError> {
        evaluator.mod_down_rescale(&self.apply_extended(evaluator, keys, input)?)
    }

    fn apply_extended(
        &self,
        evaluator: &Evaluator<B>,
        keys: &EvaluationKeys<B>,
        input: &RaisedCiphertext<B>,
    ) -> Result<ExtendedCiphertext<B>, CkksError> {
        let (ring, level) = (evaluator.ring(), self.level);
        if input.level != level {
            return Err(CkksError::LevelMismatch { operation: "raised transform", left: level, right: input.level });
        }
        let special = ring.parameters().raised_gadget().special;
        let rotations = self
            .terms
            .iter()
            .map(|&(rotation, _)| switching::hoisted_rotation(ring, keys, KeyRole::Raised(rotation), level))
            .collect::<Result<Vec<_>, _>>()?;
        let terms = self.terms.iter().enumerate().map(|(k, (_, plaintext))| (k, plaintext.buffer())).collect();
        let factors = ring.special_product(special, ring.chain(level));
        let source = Addend { source: &input.constant, polynomials: 1, factors: &factors };
        let limbs = ring.extended(level, special);
        let mut sums = ring.backend().hoisted_sums(&input.digit, &source, &rotations, &[terms], &limbs)?;
        let buffer = sums.pop().map_or_else(|| ring.backend().zeros(2, limbs.len()), Ok)?;
        let slots = input.slots.max(self.slots);
        Ok(ExtendedCiphertext { buffer, level, special, scale: input.scale * self.scale, slots })
    }
}
