//! Operation counts of a bootstrap: transforms, products and bytes of key, from the plan alone.
//!
//! Counts are in limbs of `N` residues. One number-theoretic transform (NTT) is the unit; a multiply-accumulate weighs
//! [`NTT_UNITS_OF_A_PRODUCT`] of it.

use std::ops::{Add, AddAssign, Mul};

use super::plan::{BootstrapPlan, Factor, Phase};
use crate::circuits::linear::StepPlan;
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
    digits: u64,
    digit_limbs: u64,
    special: u64,
    degree: u64,
}

impl OperationCosts {
    /// At `level` of these parameters.
    pub fn new(parameters: &Parameters, level: usize) -> Self {
        let gadget = parameters.gadget(level);
        Self {
            limbs: level as u64 + 1,
            digits: gadget.digits(level) as u64,
            digit_limbs: gadget.digit_limbs as u64,
            special: gadget.special as u64,
            degree: parameters.degree() as u64,
        }
    }

    fn extended(self) -> u64 {
        self.limbs + self.special
    }

    /// Decomposition of one polynomial into extended digits.
    pub fn decompose(self) -> Cost {
        let conversions = (0..self.digits)
            .map(|digit| {
                let own = self.digit_limbs.min(self.limbs - digit * self.digit_limbs);
                own * (self.extended() - own)
            })
            .sum();
        Cost { transforms: self.digits * self.extended(), conversions, ..Cost::default() }
    }

    /// Product of all digits with one key.
    pub fn inner_product(self) -> Cost {
        let products = 2 * self.digits * self.extended();
        Cost { products, key_bytes: products * self.degree * 8, ..Cost::default() }
    }

    /// A linear map of raised ciphertexts with its rescale: a product with the one digit and one with the diagonal for each
    /// polynomial.
    pub fn raised_linear(self, diagonals: usize) -> Cost {
        let raised = Self { digits: 1, special: 1, ..self };
        let diagonal = Cost { products: 2 * raised.extended(), ..Cost::default() };
        (raised.inner_product() + diagonal) * diagonals + raised.mod_down(2, true)
    }

    /// The sum of a ciphertext and some rotations.
    pub fn sum_with_rotations(self, rotations: usize) -> Cost {
        self.decompose() + self.inner_product() * rotations + self.mod_down(2, false)
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
    pub fn linear(self, diagonals: usize, steps: &StepPlan, double: bool) -> Cost {
        let diagonals = diagonals as u64;
        let babies = steps.babies().into_iter().filter(|&baby| baby != 0).count();
        let giants = steps.giants().count();
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
            factors.iter().fold(Cost::default(), |sum, Factor { matrix, steps, level, .. }| {
                sum + at(*level).linear(matrix.diagonals().len(), steps, double)
            })
        };
        match phase {
            Phase::SlotsToCoefficients => linear(self.slots_to_coefficients(), false),
            Phase::ModRaise => {
                // ModRaise itself, and the switch to the ephemeral secret at two limbs.
                Cost { transforms: 2 * (self.raised_level() as u64 + 2) + 6, ..Cost::default() }
            }
            Phase::CoefficientsToSlots => {
                let (first, rest) = self.coefficients_to_slots().split_at(1);
                let diagonals = first.iter().map(|factor| factor.matrix.diagonals().len()).sum();
                let mut cost = at(self.raised_level()).raised_linear(diagonals) + linear(rest, true);
                for rotations in self.trace() {
                    cost += at(self.trace_level()).sum_with_rotations(rotations.len());
                }
                cost + at(self.eval_mod_level() + 1).switch()
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
    use crate::parameters::Gadget;

    fn cost(slots: usize, kind: SlotKind) -> Cost {
        let parameters = Parameters::preset("n16").unwrap();
        BootstrapPlan::new(&parameters, slots, kind).unwrap().cost(&parameters)
    }

    #[test]
    fn a_rotation_at_fourteen_limbs_is_counted_by_hand() {
        let parameters = Parameters::preset("n16").unwrap();
        let cost = OperationCosts::new(&parameters, 13).switch();
        // Seven limbs have at most 296 bits, for which six special primes do: two digits over 20 limbs, two divisions of 20 limbs;
        // the key's two digits of two halves.
        assert_eq!(parameters.gadget(13), Gadget { digit_limbs: 7, special: 6 });
        assert_eq!(cost.transforms, 2 * 20 + 2 * 20);
        assert_eq!(cost.products, 4 * 20);
        assert_eq!(cost.conversions, 2 * 7 * 13 + 2 * 6 * 14);
        assert_eq!(cost.key_bytes, 4 * 20 * 65536 * 8);
    }

    #[test]
    fn cheaper_variants_cost_less() {
        let full = cost(1 << 15, SlotKind::Complex);
        let real = cost(1 << 15, SlotKind::Real);
        let sparse = cost(1 << 12, SlotKind::Complex);
        assert!(real.ntt_units() < 0.85 * full.ntt_units());
        assert!(sparse.ntt_units() < real.ntt_units());
        assert!((6_000..12_000).contains(&full.transforms), "{full:?}");
    }
}
