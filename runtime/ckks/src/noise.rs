//! What error an operation leaves, from parameters and magnitudes alone.
//!
//! Errors are polynomials with independent coefficients of some variance `v`, in units of the encoded integers. At scale Δ
//! and with `n` slots such an error shows in a slot with standard deviation √(2n·v) / Δ (of the absolute value of a
//! complex number): decoding leaves 2n of the N coefficients.
//!
//! - Encoding rounds: `v = 1/12`. A fresh encryption adds errors of σ = 3.19, once under the secret and with
//!   `1 + 4N/3` as much variance under a public key.
//! - A division with rounding, be it rescale or ModDown, rounds both polynomials, of which the second meets the uniform
//!   ternary secret: `v = (1 + 2N/3) / 12`.
//! - A key switch adds, for each digit `Q_d`, `N·(Q_d²/12)·σ² / P²`.
//! - A product turns errors `e_1`, `e_2` of slots into `m_1·e_2 + m_2·e_1`.
//!
//! Precision is `-log2` of such a standard deviation. [`circuits::bootstrapping::noise`](crate::circuits::bootstrapping::noise)
//! continues with bootstraps.

use crate::parameters::{ERROR_STANDARD_DEVIATION, Parameters, log2_product};

/// Variance of a coefficient's rounding to an integer.
const ENCODING_VARIANCE: f64 = 1.0 / 12.0;

/// Variance of a coefficient's error after a division with rounding, under a uniform ternary secret.
pub fn rounding_variance(parameters: &Parameters) -> f64 {
    cachemir_ir::parameters::rounding_variance(parameters.degree() as f64)
}

/// Variance of a coefficient's error that the products with a key add at `level`, after the division by `P`.
pub fn key_product_variance(parameters: &Parameters, level: usize) -> f64 {
    let gadget = parameters.gadget(level);
    let special = log2_product(&parameters.special_moduli(gadget.special).collect::<Vec<_>>());
    let digits: f64 = parameters.primes()[..=level]
        .chunks(gadget.digit_limbs)
        .map(|digit| (2.0 * (log2_product(digit) - special)).exp2())
        .sum();
    parameters.degree() as f64 / 12.0 * ERROR_STANDARD_DEVIATION.powi(2) * digits
}

/// Variance of a coefficient's error that the product of a raised ciphertext with a key adds, after the division by p_0.
pub fn raised_product_variance(parameters: &Parameters) -> f64 {
    let digit = parameters.primes()[0] as f64 / parameters.special_primes()[0] as f64;
    parameters.degree() as f64 / 12.0 * (ERROR_STANDARD_DEVIATION * digit).powi(2)
}

/// Variance of a coefficient's error after a key switch at `level`, divided by `P`.
pub fn key_switch_variance(parameters: &Parameters, level: usize) -> f64 {
    rounding_variance(parameters) + key_product_variance(parameters, level)
}

/// A ciphertext's slots: how large they are and how far off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlotNoise {
    /// Level of the ciphertext.
    pub level: usize,
    /// Its scale.
    pub scale: f64,
    /// Root mean square of the absolute values of the slots.
    pub magnitude: f64,
    /// Standard deviation of the absolute values of their errors.
    pub standard_deviation: f64,
}

impl SlotNoise {
    /// `-log2` of the standard deviation.
    pub fn precision_bits(&self) -> f64 {
        -self.standard_deviation.log2()
    }
}

/// Estimates for one parameter set and number of slots. Operands of sums and products are taken to be independent.
#[derive(Clone, Copy, Debug)]
pub struct NoiseModel<'a> {
    parameters: &'a Parameters,
    slots: usize,
}

impl<'a> NoiseModel<'a> {
    /// A model of ciphertexts of `slots` slots.
    pub fn new(parameters: &'a Parameters, slots: usize) -> Self {
        Self { parameters, slots }
    }

    /// Standard deviation of a slot's error where coefficients have errors of this variance.
    pub fn of_slot(&self, coefficient_variance: f64, scale: f64) -> f64 {
        (2.0 * self.slots as f64 * coefficient_variance).sqrt() / scale
    }

    /// Standard deviation of a slot's error in a plaintext encoded at this scale.
    pub fn encoding(&self, scale: f64) -> f64 {
        self.of_slot(ENCODING_VARIANCE, scale)
    }

    fn fresh(&self, level: usize, magnitude: f64, encryption_variance: f64) -> SlotNoise {
        let scale = self.parameters.canonical_scale(level);
        let standard_deviation = self.of_slot(encryption_variance + ENCODING_VARIANCE, scale);
        SlotNoise { level, scale, magnitude, standard_deviation }
    }

    /// A vector of this magnitude, encrypted under the secret at the canonical scale of a level.
    pub fn fresh_secret(&self, level: usize, magnitude: f64) -> SlotNoise {
        self.fresh(level, magnitude, ERROR_STANDARD_DEVIATION.powi(2))
    }

    /// As [`fresh_secret`](Self::fresh_secret), under a public key.
    pub fn fresh_public(&self, level: usize, magnitude: f64) -> SlotNoise {
        let terms = 1.0 + 4.0 / 3.0 * self.parameters.degree() as f64;
        self.fresh(level, magnitude, terms * ERROR_STANDARD_DEVIATION.powi(2))
    }

    /// A sum or difference, at the lower of both levels.
    pub fn add(&self, a: &SlotNoise, b: &SlotNoise) -> SlotNoise {
        SlotNoise {
            level: a.level.min(b.level),
            scale: a.scale,
            magnitude: a.magnitude.hypot(b.magnitude),
            standard_deviation: a.standard_deviation.hypot(b.standard_deviation),
        }
    }

    /// A rotation, a conjugation or another change of secret.
    pub fn key_switch(&self, a: &SlotNoise) -> SlotNoise {
        let added = self.of_slot(key_switch_variance(self.parameters, a.level), a.scale);
        SlotNoise { standard_deviation: a.standard_deviation.hypot(added), ..*a }
    }

    /// A rescale.
    pub fn rescale(&self, a: &SlotNoise) -> SlotNoise {
        let scale = a.scale / self.parameters.primes()[a.level] as f64;
        let added = self.of_slot(rounding_variance(self.parameters), scale);
        SlotNoise { level: a.level - 1, scale, standard_deviation: a.standard_deviation.hypot(added), ..*a }
    }

    /// A product with a plaintext encoded at `plain_scale`, not rescaled.
    pub fn mul_plain(&self, a: &SlotNoise, plain_magnitude: f64, plain_scale: f64) -> SlotNoise {
        let encoding = self.encoding(plain_scale);
        SlotNoise {
            level: a.level,
            scale: a.scale * plain_scale,
            magnitude: a.magnitude * plain_magnitude,
            standard_deviation: (a.standard_deviation * plain_magnitude).hypot(a.magnitude * encoding),
        }
    }

    /// A product of two ciphertexts, relinearised and rescaled in one division.
    pub fn mul_rescale(&self, a: &SlotNoise, b: &SlotNoise) -> SlotNoise {
        let level = a.level.min(b.level);
        let scale = a.scale * b.scale;
        let relinearisation = self.of_slot(key_product_variance(self.parameters, level), scale);
        let product = (a.standard_deviation * b.magnitude).hypot(a.magnitude * b.standard_deviation);
        let unrescaled = SlotNoise {
            level,
            scale,
            magnitude: a.magnitude * b.magnitude,
            standard_deviation: product.hypot(relinearisation),
        };
        self.rescale(&unrescaled)
    }
}
