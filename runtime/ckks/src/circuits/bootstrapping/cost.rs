//! Operation counts of a bootstrap: transforms, products and bytes of key, from the plan alone.
//!
//! Counts are in limbs of `N` residues. One number-theoretic transform (NTT) is the unit; a multiply-accumulate weighs
//! [`NTT_UNITS_OF_A_PRODUCT`] of it.

use std::ops::{Add, AddAssign, Mul};

use super::plan::{BootstrapPlan, Factor, Phase};
use crate::parameters::Parameters;

/// Time of one limb's multiply-accumulate in units of one NTT of 2^16 at a 50-bit prime (13.8 µs and 74.5 µs with AVX-512 IFMA).
pub const NTT_UNITS_OF_A_PRODUCT: f64 = 13.8 / 74.5;

/// What a computation does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Number-theoretic transforms of one limb, both directions.
    pub transforms: u64,
    /// Multiply-accumulates of one limb with a key, a plaintext, a constant or another ciphertext.
    pub products: u64,
    /// Multiply-accumulates of one limb in base conversions.
    pub conversions: u64,
    /// Bytes of key-switching keys read.
    pub key_bytes: u64,
}

impl Cost {
    /// The whole in NTT-times, the reading of keys not counted.
    pub fn ntt_units(&self) -> f64 {
        self.transforms as f64 + (self.products + self.conversions) as f64 * NTT_UNITS_OF_A_PRODUCT
    }
}

impl Add for Cost {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            transforms: self.transforms + other.transforms,
            products: self.products + other.products,
            conversions: self.conversions + other.conversions,
            key_bytes: self.key_bytes + other.key_bytes,
        }
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Mul<usize> for Cost {
    type Output = Self;
    fn mul(self, times: usize) -> Self {
        let times = times as u64;
        Self {
            transforms: self.transforms * times,
            products: self.products * times,
            conversions: self.conversions * times,
            key_bytes: self.key_bytes * times,
        }
    }
}

/// Costs of the operations at one level.
#[derive(Clone, Copy, Debug)]
pub struct OperationCosts {
    limbs: u64,
    special: u64,
    degree: u64,
}

impl OperationCosts {
    /// At `level` of these parameters.
    pub fn new(parameters: &Parameters, level: usize) -> Self {
        Self { limbs: level as u64 + 1, special: parameters.digit_limbs() as u64, degree: parameters.degree() as u64 }
    }

    fn extended(self) -> u64 {
        self.limbs + self.special
    }

    fn digits(self) -> u64 {
        self.limbs.div_ceil(self.special)
    }

    /// Decomposition of one polynomial into extended digits.
    pub fn decompose(self) -> Cost {
        let conversions = (0..self.digits())
            .map(|digit| {
                let own = self.special.min(self.limbs - digit * self.special);
                own * (self.extended() - own)
            })
            .sum();
        Cost { transforms: self.digits() * self.extended(), conversions, ..Cost::default() }
    }

    /// Product of all digits with one key.
    pub fn inner_product(self) -> Cost {
        let products = 2 * self.digits() * self.extended();
        Cost { products, key_bytes: products * self.degree * 8, ..Cost::default() }
    }

    /// Division of `polynomials` polynomials by `P`, and by the level's prime as well where `rescale` says so.
    pub fn mod_down(self, polynomials: u64, rescale: bool) -> Cost {
        let dropped = self.special + u64::from(rescale);
        let kept = self.extended() - dropped;
        Cost { transforms: polynomials * self.extended(), conversions: polynomials * dropped * kept, ..Cost::default() }
    }

    /// Rescale of a ciphertext.
    pub fn rescale(self) -> Cost {
        Cost { transforms: 2 * self.limbs, conversions: 2 * (self.limbs - 1), ..Cost::default() }
    }

    /// Rotation, conjugation or another change of secret.
    pub fn switch(self) -> Cost {
        self.decompose() + self.inner_product() + self.mod_down(2, false)
    }

    /// Products of a ciphertext with constants.
    pub fn constant_products(self, count: u64) -> Cost {
        Cost { products: 2 * self.limbs * count, ..Cost::default() }
    }

    /// Product of two ciphertexts, three polynomials.
    pub fn tensor(self) -> Cost {
        Cost { products: 4 * self.limbs, ..Cost::default() }
    }

    /// Relinearisation and rescale.
    pub fn relinearise_rescale(self) -> Cost {
        self.decompose() + self.inner_product() + self.mod_down(2, true)
    }

    /// A linear transform with its rescale, by single or double hoisting.
    pub fn linear(self, factor: &Factor, double: bool) -> Cost {
        let diagonals = factor.matrix.diagonals().len() as u64;
        let babies = factor.steps.babies().into_iter().filter(|&baby| baby != 0).count();
        let giants = factor.steps.giants().count();
        let mut cost = self.decompose() + self.inner_product() * babies;
        if double {
            cost += Cost { products: 2 * self.extended() * diagonals, ..Cost::default() };
            cost += (self.mod_down(1, false) + self.decompose() + self.inner_product()) * giants;
            cost += self.mod_down(2, true);
        } else {
            cost += self.mod_down(2, false) * babies;
            cost += self.constant_products(diagonals);
            cost += self.switch() * giants + self.rescale();
        }
        cost
    }
}

impl BootstrapPlan {
    /// What a bootstrap of an input at [`input_level`](Self::input_level) costs.
    pub fn cost(&self, parameters: &Parameters) -> Cost {
        Phase::ALL.into_iter().fold(Cost::default(), |sum, phase| sum + self.cost_of(parameters, phase))
    }

    /// What one of its phases costs.
    pub fn cost_of(&self, parameters: &Parameters, phase: Phase) -> Cost {
        let at = |level| OperationCosts::new(parameters, level);
        let linear = |factors: &[Factor], double| {
            factors.iter().fold(Cost::default(), |sum, factor| sum + at(factor.level).linear(factor, double))
        };
        match phase {
            Phase::SlotsToCoefficients => linear(self.slots_to_coefficients(), false),
            Phase::ModRaise => {
                // ModRaise itself, and the switch to the ephemeral secret at two limbs.
                let raise = Cost { transforms: 2 * (self.raised_level() as u64 + 2) + 6, ..Cost::default() };
                raise + at(self.raised_level()).switch() * (1 + self.trace_rotations().count())
            }
            Phase::CoefficientsToSlots => {
                linear(self.coefficients_to_slots(), true) + at(self.eval_mod_level() + 1).switch()
            }
            Phase::EvalMod => {
                let runs = self.eval_mod_cost(parameters) * self.eval_mod_runs();
                if self.is_packed() { runs + at(self.output_level() + 1).switch() } else { runs }
            }
        }
    }

    /// One run of EvalMod.
    fn eval_mod_cost(&self, parameters: &Parameters) -> Cost {
        let at = |level| OperationCosts::new(parameters, level);
        let count = self.series().count();
        let mut cost = Cost::default();
        for depth in self.series().product_depths() {
            let at = at(self.eval_mod_level() - depth);
            cost += at.tensor() + at.relinearise_rescale();
        }
        // What is neither relinearised nor the top of a tree is near the middle of the levels.
        let middle = at(self.eval_mod_level() - self.series().depth() / 2);
        cost += middle.tensor() * (count.products - count.relinearisations.min(count.products));
        cost += middle.rescale() * (count.rescales - count.relinearisations);
        cost += middle.constant_products(count.constant_products as u64);
        let mut level = self.eval_mod_level() - self.series().depth();
        for _ in 0..self.reduction().literal().double_angles {
            cost += at(level).tensor() + at(level).constant_products(1) + at(level).relinearise_rescale();
            level -= 1;
        }
        let (sine, below) = (at(level), at(level - 1));
        cost += sine.tensor() + sine.relinearise_rescale() + sine.constant_products(1) + sine.rescale();
        cost + below.constant_products(1) + below.tensor() + below.relinearise_rescale()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::circuits::bootstrapping::SlotKind;

    fn cost(slots: usize, kind: SlotKind) -> Cost {
        let parameters = Parameters::preset("n16").unwrap();
        BootstrapPlan::new(&parameters, slots, kind).unwrap().cost(&parameters)
    }

    #[test]
    fn a_rotation_at_fourteen_limbs_is_counted_by_hand() {
        let parameters = Parameters::preset("n16").unwrap();
        let cost = OperationCosts::new(&parameters, 13).switch();
        // Two digits over 21 limbs, two divisions of 21 limbs; the key's two digits of two halves.
        assert_eq!(cost.transforms, 2 * 21 + 2 * 21);
        assert_eq!(cost.products, 4 * 21);
        assert_eq!(cost.conversions, 2 * 7 * 14 + 2 * 7 * 14);
        assert_eq!(cost.key_bytes, 4 * 21 * 65536 * 8);
    }

    #[test]
    fn cheaper_variants_cost_less() {
        let full = cost(1 << 15, SlotKind::Complex);
        let real = cost(1 << 15, SlotKind::Real);
        let sparse = cost(1 << 12, SlotKind::Complex);
        assert!(real.ntt_units() < 0.85 * full.ntt_units());
        assert!(sparse.ntt_units() < real.ntt_units());
        assert!((9_000..20_000).contains(&full.transforms), "{full:?}");
    }
}
