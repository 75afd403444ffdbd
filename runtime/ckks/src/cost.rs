//! What operations cost: transforms, products, base conversions and bytes of key, from limbs and digits alone.
//!
//! By these counts the engine chooses between ways to compute one bootstrap: how its matrices are factored and summed, and
//! whether real ones are done as complex ones. They decide which keys a plan needs, which a key's role says, but not what a key
//! means, and no program is priced by them: that is the business of `cachemir_ir::cost`, from measured times. They stand
//! beside measured times in `cachemir-run bench ops`, and propose gadgets for new parameter sets.
//!
//! Counts are in limbs of `N` residues. The unit of time is one number-theoretic transform (NTT) of 2^16 at a 50-bit prime
//! whose row is in the caches. The weights of the counts were measured with AVX-512 IFMA and seeded keys; they contain the
//! time that rows take to come from memory.

use std::ops::{Add, AddAssign, Mul};

use crate::gadget::Gadget;
use crate::parameters::Parameters;

/// A transform of a row that comes from memory and returns there.
const NTT_UNITS_OF_A_TRANSFORM: f64 = 1.15;
/// A limb of a digit times one half of a key.
const NTT_UNITS_OF_A_KEY_PRODUCT: f64 = 0.42;
/// Any other pass over a limb: a product, a sum, a copy.
const NTT_UNITS_OF_A_PASS: f64 = 0.15;
/// One source limb's share in one destination limb of a base conversion.
const NTT_UNITS_OF_A_CONVERSION: f64 = 0.06;

/// What a computation does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Number-theoretic transforms of one limb, both directions.
    pub transforms: u64,
    /// Multiply-accumulates of one limb of a digit with one half of a key.
    pub key_products: u64,
    /// Other passes over one limb: multiply-accumulates with a plaintext, a constant or another ciphertext, sums, copies.
    pub passes: u64,
    /// Multiply-accumulates of one limb in base conversions.
    pub conversions: u64,
    /// Bytes of key-switching keys used, uniform halves included.
    pub key_bytes: u64,
}

impl Cost {
    /// The whole in NTT-times.
    pub fn ntt_units(&self) -> f64 {
        self.transforms as f64 * NTT_UNITS_OF_A_TRANSFORM
            + self.key_products as f64 * NTT_UNITS_OF_A_KEY_PRODUCT
            + self.passes as f64 * NTT_UNITS_OF_A_PASS
            + self.conversions as f64 * NTT_UNITS_OF_A_CONVERSION
    }
}

impl Add for Cost {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            transforms: self.transforms + other.transforms,
            key_products: self.key_products + other.key_products,
            passes: self.passes + other.passes,
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
            key_products: self.key_products * times,
            passes: self.passes * times,
            conversions: self.conversions * times,
            key_bytes: self.key_bytes * times,
        }
    }
}

/// Costs of the operations on ciphertexts of some number of limbs, with keys of some gadget.
#[derive(Clone, Copy, Debug)]
pub struct OperationCosts {
    limbs: u64,
    gadget: Gadget,
    degree: u64,
}

impl OperationCosts {
    /// At `level` with the parameters' gadget for it.
    pub fn new(parameters: &Parameters, level: usize) -> Self {
        Self::with_gadget(level, parameters.gadget(level), parameters.degree())
    }

    /// At `level` with keys of this gadget.
    pub fn with_gadget(level: usize, gadget: Gadget, degree: usize) -> Self {
        Self { limbs: level as u64 + 1, gadget, degree: degree as u64 }
    }

    fn special(self) -> u64 {
        self.gadget.special as u64
    }

    fn extended(self) -> u64 {
        self.limbs + self.special()
    }

    fn digits(self) -> u64 {
        self.gadget.digits(self.limbs as usize - 1) as u64
    }

    /// Decomposition of one polynomial into extended digits.
    pub fn decompose(self) -> Cost {
        let digit_limbs = self.gadget.digit_limbs as u64;
        let conversions = (0..self.digits())
            .map(|digit| {
                let own = digit_limbs.min(self.limbs - digit * digit_limbs);
                own * (self.extended() - own)
            })
            .sum();
        // Each limb is copied to its own digit: read and written.
        let passes = 2 * self.limbs;
        Cost { transforms: self.digits() * self.extended(), passes, conversions, ..Cost::default() }
    }

    /// Product of all digits with one key, added to a ciphertext.
    pub fn inner_product(self) -> Cost {
        let key_products = 2 * self.digits() * self.extended();
        // The summand and two results.
        let passes = 3 * self.extended();
        Cost { key_products, passes, key_bytes: key_products * self.degree * 8, ..Cost::default() }
    }

    /// A linear map of raised ciphertexts with its rescale: for each diagonal the digit turned, a product with the key and
    /// one with the diagonal for each polynomial.
    pub fn raised_linear(self, diagonals: usize) -> Cost {
        let raised = Self { gadget: Gadget::single_digit(self.limbs as usize), ..self };
        let diagonal = Cost { passes: 2 * raised.extended(), ..Cost::default() };
        (raised.inner_product() + diagonal) * diagonals + raised.mod_down(2, true)
    }

    /// The sum of a ciphertext and some rotations.
    pub fn sum_with_rotations(self, rotations: usize) -> Cost {
        self.decompose() + self.inner_product() * rotations + self.mod_down(2, false)
    }

    /// Division of `polynomials` polynomials by `P`, and by the level's prime as well where `rescale` says so.
    pub fn mod_down(self, polynomials: u64, rescale: bool) -> Cost {
        let dropped = self.special() + u64::from(rescale);
        let kept = self.extended() - dropped;
        Cost {
            transforms: polynomials * self.extended(),
            conversions: polynomials * dropped * kept,
            // The minuend and the result.
            passes: 3 * polynomials * kept,
            ..Cost::default()
        }
    }

    /// Rescale of a ciphertext.
    pub fn rescale(self) -> Cost {
        Cost {
            transforms: 2 * self.limbs,
            conversions: 2 * (self.limbs - 1),
            passes: 6 * (self.limbs - 1),
            ..Cost::default()
        }
    }

    /// Rotation, conjugation or another change of secret.
    pub fn switch(self) -> Cost {
        self.sum_with_rotations(1)
    }

    /// Products of a ciphertext with constants.
    pub fn constant_products(self, count: u64) -> Cost {
        Cost { passes: 2 * self.limbs * count, ..Cost::default() }
    }

    /// Product of two ciphertexts, three polynomials.
    pub fn tensor(self) -> Cost {
        Cost { passes: 5 * self.limbs, ..Cost::default() }
    }

    /// Relinearisation and rescale.
    pub fn relinearise_rescale(self) -> Cost {
        self.decompose() + self.inner_product() + self.mod_down(2, true)
    }

    /// A linear transform with its rescale by so many baby and giant steps that rotate, by single or double hoisting.
    pub fn linear(self, diagonals: usize, babies: usize, giants: usize, double: bool) -> Cost {
        let diagonals = diagonals as u64;
        let mut cost = self.decompose() + self.inner_product() * babies;
        if double {
            cost += Cost { passes: 2 * self.extended() * diagonals, ..Cost::default() };
            cost += (self.mod_down(1, false) + self.decompose() + self.inner_product()) * giants;
            cost += self.mod_down(2, true);
        } else {
            cost += self.mod_down(2, false) * babies;
            cost += self.constant_products(diagonals);
            cost += (self.decompose() + self.inner_product()) * giants;
            cost += if giants > 0 { self.mod_down(2, true) } else { self.rescale() };
        }
        cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_at_fourteen_limbs_is_counted_by_hand() {
        let parameters = Parameters::preset("n16").unwrap();
        let cost = OperationCosts::new(&parameters, 13).switch();
        // Seven limbs have at most 296 bits, for which six special primes do: two digits over 20 limbs, two divisions of 20 limbs;
        // the key's two digits of two halves.
        assert_eq!(parameters.gadget(13), Gadget { digit_limbs: 7, special: 6 });
        assert_eq!(cost.transforms, 2 * 20 + 2 * 20);
        assert_eq!(cost.key_products, 4 * 20);
        assert_eq!(cost.conversions, 2 * 7 * 13 + 2 * 6 * 14);
        assert_eq!(cost.key_bytes, 4 * 20 * 65536 * 8);
    }
}
