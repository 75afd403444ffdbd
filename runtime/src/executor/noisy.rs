//! The ckks stage in the clear with the errors that encryption would add, drawn from the engine's noise model.
//!
//! Errors of a ciphertext's coefficients are independent and close to normal, and so are those of its slots, real and
//! imaginary parts alike. Each op adds a normal error with the standard deviation that [`cachemir_ckks::noise`] and
//! [`BootstrapPlan::noise`] predict for it; what was there already goes through the op as it is.

use std::sync::{Mutex, PoisonError};

use cachemir_ckks::Parameters;
use cachemir_ckks::circuits::bootstrapping::noise::NoiseEstimate;
use cachemir_ckks::circuits::bootstrapping::{BootstrapPlan, SlotKind};
use cachemir_ckks::circuits::polynomials::{EvaluationPlan, Polynomial};
use cachemir_ckks::noise::{NoiseModel, key_product_variance, key_switch_variance, rounding_variance};
use cachemir_ir::ckks::{Bootstrap, CiphertextType, Levels};
use cachemir_ir::slots::Chebyshev;
use num_complex::Complex64;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;

use super::{Algebra, Clear, ClearCiphertext, ClearPlaintext, slot_kind};
use crate::Error;

/// Arithmetic in the clear with the noise of encryption.
pub struct Noisy {
    clear: Clear,
    slots: usize,
    parameters: Parameters,
    /// Errors of the bootstraps that the engine would have, by the kind of slots.
    bootstraps: Vec<(SlotKind, NoiseEstimate)>,
    random: Mutex<ChaCha20Rng>,
}

impl Noisy {
    /// Arithmetic on `slots` slots with the noise of these parameters and bootstraps; equal seeds give equal noise.
    pub fn new(slots: usize, levels: Levels, parameters: Parameters, bootstraps: &[BootstrapPlan], seed: u64) -> Self {
        let estimate = |plan: &BootstrapPlan| (plan.kind(), plan.noise(&parameters));
        Self {
            clear: Clear::new(slots, levels),
            slots,
            bootstraps: bootstraps.iter().map(estimate).collect(),
            parameters,
            random: Mutex::new(ChaCha20Rng::seed_from_u64(seed)),
        }
    }

    /// Values as their fresh encryption under the secret would decrypt.
    pub fn encrypt(&self, values: &[f64], level: u32) -> ClearCiphertext {
        let mut fresh = ClearCiphertext::fresh(values, level);
        self.add(&mut fresh, self.model().fresh_secret(level as usize, 0.0).standard_deviation);
        fresh
    }

    /// The largest standard deviation of a bootstrap's error in a slot, for values of size one; 0 without bootstraps.
    pub fn bootstrap_deviation(&self) -> f64 {
        self.bootstraps.iter().map(|(_, estimate)| estimate.slot_standard_deviation()).fold(0.0, f64::max)
    }

    fn model(&self) -> NoiseModel<'_> {
        NoiseModel::new(&self.parameters, self.slots)
    }

    fn scale(&self, level: u32, product: bool) -> f64 {
        let scale = self.parameters.canonical_scale(level as usize);
        if product { scale * scale } else { scale }
    }

    /// Standard deviation of a slot's error, for coefficients of this variance in a ciphertext at a level.
    fn deviation(&self, variance: f64, level: u32, product: bool) -> f64 {
        self.model().of_slot(variance, self.scale(level, product))
    }

    /// Calls with a source of complex normal numbers of standard deviation one.
    fn with_numbers<R>(&self, use_numbers: impl FnOnce(&mut dyn FnMut() -> Complex64) -> R) -> R {
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        use_numbers(&mut || {
            // Box–Muller; both numbers are used.
            let radius = (-(1.0 - random.random::<f64>()).ln()).sqrt();
            Complex64::from_polar(radius, std::f64::consts::TAU * random.random::<f64>())
        })
    }

    fn add(&self, a: &mut ClearCiphertext, deviation: f64) {
        self.with_numbers(|number| a.slots.iter_mut().for_each(|slot| *slot += number() * deviation));
    }

    /// A factor's values with the error of its encoding, which rounds the coefficients.
    fn rounded(&self, values: &[f64], level: u32) -> Vec<f64> {
        let deviation = self.model().encoding(self.scale(level, false));
        self.with_numbers(|number| values.iter().map(|value| value + number().re * deviation).collect())
    }

    fn switched(&self, mut a: ClearCiphertext) -> ClearCiphertext {
        let variance = key_switch_variance(&self.parameters, a.level as usize);
        let deviation = self.deviation(variance, a.level, a.product);
        self.add(&mut a, deviation);
        a
    }
}

impl Algebra for Noisy {
    type Ciphertext = ClearCiphertext;
    type Decomposition = ();
    type Plaintext = ClearPlaintext;
    type Extended = ClearCiphertext;

    fn slots(&self) -> usize {
        self.slots
    }

    fn level(&self, a: &ClearCiphertext) -> (u32, bool) {
        self.clear.level(a)
    }

    fn duplicate(&self, a: &ClearCiphertext) -> Result<ClearCiphertext, Error> {
        self.clear.duplicate(a)
    }

    fn zero(&self, ty: &CiphertextType) -> Result<ClearCiphertext, Error> {
        self.clear.zero(ty)
    }

    fn add_assign(&self, a: &mut ClearCiphertext, b: &ClearCiphertext) -> Result<(), Error> {
        self.clear.add_assign(a, b)
    }

    fn subtract_assign(&self, a: &mut ClearCiphertext, b: &ClearCiphertext) -> Result<(), Error> {
        self.clear.subtract_assign(a, b)
    }

    fn multiply(&self, a: &ClearCiphertext, b: &ClearCiphertext) -> Result<ClearCiphertext, Error> {
        let mut product = self.clear.multiply(a, b)?;
        let variance = key_product_variance(&self.parameters, a.level as usize);
        self.add(&mut product, self.deviation(variance, a.level, true));
        Ok(product)
    }

    fn encode_factor(&self, values: &[f64], level: u32) -> Result<ClearPlaintext, Error> {
        // The slots stay real.
        Ok(ClearPlaintext::Real(self.rounded(values, level)))
    }

    fn encode_complex_factor(&self, real: &[f64], imaginary: &[f64], level: u32) -> Result<ClearPlaintext, Error> {
        self.clear.encode_complex_factor(&self.rounded(real, level), &self.rounded(imaginary, level), level)
    }

    fn encode_summand(&self, values: &[f64], level: u32, product: bool) -> Result<ClearPlaintext, Error> {
        self.clear.encode_summand(values, level, product)
    }

    fn plaintext_bytes(&self, plain: &ClearPlaintext) -> usize {
        self.clear.plaintext_bytes(plain)
    }

    fn multiply_plain(&self, a: &ClearCiphertext, plain: &ClearPlaintext) -> Result<ClearCiphertext, Error> {
        self.clear.multiply_plain(a, plain)
    }

    fn add_plain_assign(&self, a: &mut ClearCiphertext, plain: &ClearPlaintext) -> Result<(), Error> {
        self.clear.add_plain_assign(a, plain)
    }

    fn multiply_scalar(&self, a: &ClearCiphertext, factor: f64) -> Result<ClearCiphertext, Error> {
        self.clear.multiply_scalar(a, factor)
    }

    fn multiply_integer_assign(&self, a: &mut ClearCiphertext, factor: i64) -> Result<(), Error> {
        self.clear.multiply_integer_assign(a, factor)
    }

    fn multiply_by_i_assign(&self, a: &mut ClearCiphertext) -> Result<(), Error> {
        self.clear.multiply_by_i_assign(a)
    }

    fn rescale_assign(&self, a: &mut ClearCiphertext) -> Result<(), Error> {
        self.clear.rescale_assign(a)?;
        self.add(a, self.deviation(rounding_variance(&self.parameters), a.level, false));
        Ok(())
    }

    fn drop_levels(&self, a: &ClearCiphertext, to: u32) -> Result<ClearCiphertext, Error> {
        // The change to the lower level's scale ends with a rescale.
        let mut lower = self.clear.drop_levels(a, to)?;
        self.add(&mut lower, self.deviation(rounding_variance(&self.parameters), to, false));
        Ok(lower)
    }

    fn rotate(&self, a: &ClearCiphertext, by: usize) -> Result<ClearCiphertext, Error> {
        Ok(self.switched(self.clear.rotate(a, by)?))
    }

    fn decompose(&self, a: &ClearCiphertext) -> Result<(), Error> {
        self.clear.decompose(a)
    }

    fn rotate_decomposed(&self, a: &ClearCiphertext, _decomposition: &(), by: usize) -> Result<ClearCiphertext, Error> {
        self.rotate(a, by)
    }

    fn extend(&self, a: ClearCiphertext) -> Result<ClearCiphertext, Error> {
        self.clear.extend(a)
    }

    fn add_rotated(&self, sum: &mut ClearCiphertext, a: &ClearCiphertext, by: usize) -> Result<(), Error> {
        self.add_assign(sum, &self.rotate(a, by)?)
    }

    fn rescale_extended(&self, mut sum: ClearCiphertext) -> Result<ClearCiphertext, Error> {
        self.rescale_assign(&mut sum)?;
        Ok(sum)
    }

    fn conjugate(&self, a: &ClearCiphertext) -> Result<ClearCiphertext, Error> {
        Ok(self.switched(self.clear.conjugate(a)?))
    }

    fn polynomial(
        &self,
        a: &ClearCiphertext,
        polynomial: &Chebyshev,
        mask: Option<&[f64]>,
    ) -> Result<ClearCiphertext, Error> {
        let mut result = self.clear.polynomial(a, polynomial, mask)?;
        let plan = EvaluationPlan::new(&Polynomial::chebyshev(polynomial.coefficients.clone()));
        // Every product inside is relinearised at the scale Δ² and rescaled to Δ.
        let (level, scale) = (result.level as usize, self.scale(result.level, false));
        let rounding = self.model().of_slot(rounding_variance(&self.parameters), scale);
        let product = self.model().of_slot(key_product_variance(&self.parameters, level), scale * scale);
        let deviation = rounding.hypot(product);
        self.with_numbers(|number| {
            for (index, (slot, value)) in a.slots.iter().zip(&mut result.slots).enumerate() {
                let mask = mask.map_or(1.0, |mask| mask[index]);
                let noisy = plan.evaluate_clear(*slot, &mut || number() * deviation);
                let exact = plan.evaluate_clear(*slot, &mut || Complex64::ZERO);
                // A masked slot keeps the error of the last rescale.
                *value += (noisy - exact) * mask + number() * deviation;
            }
        });
        Ok(result)
    }

    fn bootstrap(
        &self,
        a: &ClearCiphertext,
        variant: &Bootstrap,
        keep: Option<&[bool]>,
    ) -> Result<ClearCiphertext, Error> {
        let mut fresh = self.clear.bootstrap(a, variant, keep)?;
        let estimate = |kind: SlotKind| self.bootstraps.iter().find(|(known, _)| *known == kind).map(|(_, e)| *e);
        let magnitude = f64::from(variant.log2_magnitude).exp2();
        let [real, imaginary] = match (estimate(slot_kind(variant.complex)), estimate(slot_kind(true))) {
            (Some(exact), _) => [exact.real(), exact.imaginary],
            // A complex bootstrap of half the input, and the conjugate added: twice the real part's error.
            (None, Some(complex)) => [2.0 * complex.real(), 0.0],
            (None, None) => return Err(Error::execution("there is no bootstrapper of this kind")),
        };
        self.with_numbers(|number| {
            for slot in &mut fresh.slots {
                // Both parts of a number of standard deviation one have √½.
                let number = number() * std::f64::consts::SQRT_2;
                *slot += Complex64::new(number.re * real, number.im * imaginary) * magnitude;
            }
        });
        Ok(fresh)
    }

    fn to_bytes(&self, a: &ClearCiphertext) -> Result<Vec<u8>, Error> {
        self.clear.to_bytes(a)
    }

    fn restore(&self, bytes: &[u8]) -> Result<ClearCiphertext, Error> {
        self.clear.restore(bytes)
    }

    fn name(&self) -> &'static str {
        super::NOISY
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cachemir_ir::parameters::Parameters as Preset;

    fn noisy(slots: usize) -> Noisy {
        let preset = Preset::insecure_test();
        let levels = preset.levels();
        let parameters = Parameters::new(preset).unwrap();
        let plan = BootstrapPlan::new(&parameters, slots, SlotKind::Complex).unwrap();
        Noisy::new(slots, levels, parameters, &[plan], 1)
    }

    fn deviation(slots: impl Iterator<Item = f64>) -> f64 {
        let (count, sum) = slots.fold((0, 0.0), |(count, sum), error| (count + 1, sum + error * error));
        f64::sqrt(sum / f64::from(count))
    }

    #[test]
    fn errors_have_the_deviation_of_the_model() {
        let algebra = noisy(1024);
        let near = |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 0.15, "{found} for {expected}");
        let zero = ClearCiphertext::fresh(&[0.0; 1024], 10);
        let switched = algebra.rotate(&zero, 3).unwrap();
        let expected = algebra.deviation(key_switch_variance(&algebra.parameters, 10), 10, false);
        near(deviation(switched.slots.iter().map(|slot| slot.norm())), expected);
        let variant = Bootstrap { complex: false, keep: None, factor: 1.0, log2_magnitude: 2 };
        let fresh = algebra.bootstrap(&zero, &variant, None).unwrap();
        near(deviation(fresh.slots.iter().map(|slot| slot.re)), 8.0 * algebra.bootstraps[0].1.real());
        assert!(fresh.slots.iter().all(|slot| slot.im == 0.0));
    }

    #[test]
    fn equal_seeds_give_equal_noise() {
        assert_eq!(noisy(64).encrypt(&[0.5; 64], 9), noisy(64).encrypt(&[0.5; 64], 9));
    }
}
