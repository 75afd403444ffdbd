//! Polynomials of encrypted slots.
//!
//! [`EvaluationPlan::evaluate`] computes `f ∘ p(x)` slot by slot, `f` an optional vector of slot factors: every coefficient
//! is multiplied by `f` as it is encoded, so a mask or a complex factor costs no level.
//!
//! # Scales
//! The result has exactly the level and scale asked for. A node of the plan is told level and scale of its *unrescaled*
//! value; a leaf encodes each constant at that scale divided by its power's own scale, and a quotient is told the scale
//! that, times the power's, gives its parent's. So scales agree by construction, whatever the primes, and all terms of a
//! node are summed before one relinearisation and one rescale.

use std::borrow::Cow;
use std::collections::BTreeMap;

use cachemir_hal::Backend;
use num_complex::Complex64;

use crate::ckks::ciphertext::Ciphertext;
use crate::ckks::evaluator::Evaluator;
use crate::error::CkksError;
use crate::rlwe::keys::{EvaluationKeys, KeyManifest};

mod plan;

use plan::Node;
pub use plan::{Basis, EvaluationPlan, OperationCount, Polynomial, depth};

/// What a node needs besides itself.
struct Context<'a, B: Backend> {
    evaluator: &'a Evaluator<B>,
    keys: &'a EvaluationKeys<B>,
    powers: BTreeMap<usize, Ciphertext<B>>,
    factor: Option<&'a [Complex64]>,
}

impl EvaluationPlan {
    /// Asks for the keys used on inputs at `level`.
    pub fn require_keys(&self, level: usize, manifest: &mut KeyManifest) {
        manifest.require_relinearisation(self.product_depths().into_iter().map(|depth| level.saturating_sub(depth)));
    }

    /// `factor ∘ p(input)` at the canonical scale, [`depth`](Self::depth) levels below the input.
    pub fn evaluate_canonical<B: Backend>(
        &self,
        evaluator: &Evaluator<B>,
        keys: &EvaluationKeys<B>,
        input: &Ciphertext<B>,
        factor: Option<&[Complex64]>,
    ) -> Result<Ciphertext<B>, CkksError> {
        let level = self.output_level(input, 0)?;
        let scale = evaluator.ring().parameters().canonical_scale(level);
        self.evaluate(evaluator, keys, input, factor, level, scale)
    }

    /// `factor ∘ p(input)` at the given level, at least [`depth`](Self::depth) below the input's, and scale.
    ///
    /// In the Chebyshev basis the input's slots lie in `[-1, 1]`. `factor` has a power-of-two number of slots.
    pub fn evaluate<B: Backend>(
        &self,
        evaluator: &Evaluator<B>,
        keys: &EvaluationKeys<B>,
        input: &Ciphertext<B>,
        factor: Option<&[Complex64]>,
        level: usize,
        scale: f64,
    ) -> Result<Ciphertext<B>, CkksError> {
        self.output_level(input, level)?;
        let input = evaluator.truncate(input, level + self.depth())?;
        let context = Context { evaluator, keys, powers: self.powers(evaluator, keys, input)?, factor };
        let prime = evaluator.ring().parameters().primes()[level + 1] as f64;
        let raw = context.node(&self.root, level + 1, scale * prime)?;
        let mut result = evaluator.relinearise_rescale(&raw, keys)?;
        result.set_scale(scale);
        Ok(result)
    }

    /// The highest level of the output; an error where that is below `least`.
    fn output_level<B: Backend>(&self, input: &Ciphertext<B>, least: usize) -> Result<usize, CkksError> {
        input.level().checked_sub(self.depth()).filter(|&level| level >= least).ok_or(CkksError::LevelExhausted {
            operation: "polynomial evaluation",
            level: input.level(),
            needed: least + self.depth(),
        })
    }

    /// All powers of the plan, power `j` exactly `⌈log2 j⌉` levels below the input.
    ///
    /// `2 T_a T_b` is `T_a T_b` read at half its scale. So that scales stay where they are, the input's is doubled first.
    fn powers<B: Backend>(
        &self,
        evaluator: &Evaluator<B>,
        keys: &EvaluationKeys<B>,
        mut input: Ciphertext<B>,
    ) -> Result<BTreeMap<usize, Ciphertext<B>>, CkksError> {
        if self.basis() == Basis::Chebyshev && !self.powers.is_empty() {
            let scale = input.scale();
            evaluator.mul_integer_assign(&mut input, 2)?;
            input.set_scale(2.0 * scale);
        }
        let mut powers = BTreeMap::from([(1, input)]);
        for (&j, (a, b)) in &self.powers {
            let mut product = evaluator.tensor(&powers[a], &powers[b])?;
            let product = match self.basis() {
                Basis::Monomial => product,
                Basis::Chebyshev => {
                    product.set_scale(product.scale() / 2.0);
                    if a == b {
                        evaluator.add_scalar_assign(&mut product, -1.0)?;
                    } else {
                        evaluator.mul_scalar_accumulate(&mut product, &powers[&(a - b)], -1.0)?;
                    }
                    product
                }
            };
            powers.insert(j, evaluator.relinearise_rescale(&product, keys)?);
        }
        Ok(powers)
    }
}

impl<B: Backend> Context<'_, B> {
    /// The unrescaled value of a node at this level and scale, of two or three polynomials.
    fn node(&self, node: &Node, level: usize, scale: f64) -> Result<Ciphertext<B>, CkksError> {
        match node {
            Node::Leaf(coefficients) => self.leaf(coefficients, level, scale),
            Node::Split { power, quotient, remainder } => {
                let power = &self.powers[power];
                let prime = self.evaluator.ring().parameters().primes()[level + 1] as f64;
                let quotient = self.node(quotient, level + 1, scale / power.scale() * prime)?;
                let quotient = self.evaluator.relinearise_rescale(&quotient, self.keys)?;
                let mut sum = self.evaluator.tensor(&quotient, power)?;
                sum.set_scale(scale);
                self.evaluator.add_assign(&mut sum, &self.node(remainder, level, scale)?)?;
                Ok(sum)
            }
        }
    }

    fn leaf(&self, coefficients: &[f64], level: usize, scale: f64) -> Result<Ciphertext<B>, CkksError> {
        let evaluator = self.evaluator;
        let slots = self.factor.map_or(1, <[_]>::len).max(self.powers[&1].slots());
        let terms = coefficients.iter().enumerate().filter(|(_, c)| **c != 0.0);
        let Some(factor) = self.factor else {
            let powers: Vec<_> = terms.filter(|(j, _)| *j > 0).map(|(j, &c)| (&self.powers[&j], c)).collect();
            let mut sum = evaluator.linear_combination(&powers, level, scale, slots)?;
            evaluator.add_scalar_assign(&mut sum, coefficients.first().copied().unwrap_or(0.0))?;
            return Ok(sum);
        };
        let mut sum = evaluator.zero(level, scale, slots)?;
        for (j, &c) in terms {
            if j == 0 {
                sum = evaluator.add_slots(&sum, &scaled(factor, c))?;
                continue;
            }
            let power = &self.powers[&j];
            let plaintext = evaluator.encoder().encode(&scaled(factor, c), level, scale / power.scale())?;
            evaluator.mul_plain_accumulate(&mut sum, power, &plaintext)?;
        }
        Ok(sum)
    }
}

fn scaled(factor: &[Complex64], c: f64) -> Cow<'_, [Complex64]> {
    if c == 1.0 { Cow::Borrowed(factor) } else { factor.iter().map(|f| f * c).collect() }
}

#[cfg(test)]
mod tests;
