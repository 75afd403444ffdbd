//! What precision a bootstrap leaves, from the plan alone.
//!
//! All contributions are standard deviations of the real part of a slot's error, for inputs bounded by one. `N` is the ring
//! degree, `n` the slots, `g = N / 2n`. A coefficient error of variance `v` shows in a slot with variance `2n·v`, half of it in the real
//! part: errors outside the subring are cut off by the trace or by decoding.
//!
//! - Roundings and key switches are those of [`noise`](crate::noise); under the ephemeral secret of weight `h` a rounding
//!   has variance `(1 + h) / 12`.
//! - ModRaise's one digit is at most `q_0 / 2` and meets keys divided by `p_0`.
//! - One butterfly of the inverse transform halves variances. Errors in SlotsToCoeffs are measured by what they do to the
//!   coefficients, so each stage's error is divided by `2^(butterflies already applied)`; in CoeffsToSlots by
//!   `2^(butterflies still to come)`.
//! - An error of `x`, EvalMod's argument, passes with the factor `range·2^r`, for the reduction's slope is one. Rounding inside
//!   EvalMod is propagated by running its plan on sample values with random errors.

use std::f64::consts::PI;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;

use super::plan::{BootstrapPlan, Factor, SlotKind};
use crate::noise::{key_product_variance, key_switch_variance, raised_product_variance, rounding_variance};
use crate::parameters::{ERROR_STANDARD_DEVIATION, Parameters};
use num_complex::Complex64;

/// Standard deviations of the real part of an output slot's error, by cause.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NoiseEstimate {
    /// Rounding in SlotsToCoeffs.
    pub slots_to_coefficients: f64,
    /// The switch to the ephemeral secret.
    pub encapsulation: f64,
    /// The switch back, the trace and rounding in CoeffsToSlots.
    pub coefficients_to_slots: f64,
    /// Rounding in EvalMod.
    pub eval_mod_rounding: f64,
    /// The error of EvalMod's approximation.
    pub eval_mod_approximation: f64,
    /// The last rescale, to the canonical scale of the output.
    pub output: f64,
    /// Standard deviation of the imaginary part: for real bootstraps only noise of the last steps, otherwise that of the real part.
    pub imaginary: f64,
}

impl NoiseEstimate {
    /// Standard deviation of the real part of a slot's error.
    pub fn real(&self) -> f64 {
        let causes = [
            self.slots_to_coefficients,
            self.encapsulation,
            self.coefficients_to_slots,
            self.eval_mod_rounding,
            self.eval_mod_approximation,
            self.output,
        ];
        causes.iter().map(|s| s * s).sum::<f64>().sqrt()
    }

    /// Root mean square of the absolute value of a slot's error.
    pub fn slot_standard_deviation(&self) -> f64 {
        self.real().hypot(self.imaginary)
    }

    /// Predicted `-log2` of the mean absolute error (complex errors being close to normal).
    pub fn precision_bits_mean(&self) -> f64 {
        -(self.slot_standard_deviation() * PI.sqrt() / 2.0).log2()
    }

    /// Predicted `-log2` of the largest error among `samples` slots.
    pub fn precision_bits_min(&self, samples: usize) -> f64 {
        -(self.slot_standard_deviation() * (samples as f64).ln().max(1.0).sqrt()).log2()
    }
}

impl BootstrapPlan {
    /// The errors to expect from a bootstrap at unit magnitude.
    pub fn noise(&self, parameters: &Parameters) -> NoiseEstimate {
        let rounding = rounding_variance(parameters);
        let prime = |level: usize| parameters.primes()[level] as f64;
        let slots = self.slots() as f64;
        let ratio = f64::from(self.reduction().literal().log2_message_ratio).exp2();
        let (base, weight) = (prime(0), parameters.ephemeral_weight() as f64);

        // The message in coefficients has scale q_0 / 2^r.
        let special = parameters.special_primes()[0] as f64;
        let switching = parameters.degree() as f64 / 12.0 * (ERROR_STANDARD_DEVIATION * base / special).powi(2);
        let encapsulation = ((1.0 + weight) / 12.0 + switching).sqrt() * ratio / base;

        let sigma = |scale: f64| (slots * rounding).sqrt() / scale;
        // A slot of EvalMod has an error in both parts. Where the result is re + i·im, the imaginary error of im joins the real
        // part, and where both lie side by side only half of the repeated slots serve each.
        let (earlier, mixing) = match (self.kind(), self.is_packed()) {
            (SlotKind::Real, _) => (1.0, 1.0),
            (SlotKind::Complex, false) => (1.0, 2.0),
            (SlotKind::Complex, true) => (2.0, 4.0),
        };
        let gain = (self.reduction().range() * ratio).powi(2);
        let before = self.cts_variance(parameters) * gain;
        let argument = prime(self.eval_mod_level());
        let last = sigma(argument).powi(2) * gain;
        let eval_mod = self.eval_mod_noise(sigma(2.0 * argument)) * ratio;
        let output = sigma(parameters.canonical_scale(self.output_level()));
        let mut estimate = NoiseEstimate {
            slots_to_coefficients: self.stc_noise(parameters),
            encapsulation,
            coefficients_to_slots: (before * earlier + last * mixing).sqrt(),
            eval_mod_rounding: eval_mod * f64::sqrt(mixing),
            eval_mod_approximation: self.reduction().error_rms(),
            output,
            imaginary: (eval_mod.powi(2) + last + output.powi(2)).sqrt(),
        };
        if self.kind() == SlotKind::Complex {
            estimate.imaginary = estimate.real();
        }
        estimate
    }

    fn stc_noise(&self, parameters: &Parameters) -> f64 {
        let rounding = rounding_variance(parameters);
        let mut scale = parameters.canonical_scale(self.input_level());
        let mut applied = 1.0;
        // The rescale that brings the input to its level.
        let mut variance = self.slots() as f64 * rounding / scale.powi(2);
        for factor in self.slots_to_coefficients() {
            // Babies round at the scale of the factor's input, the rescale at that of its output.
            variance += self.slots() as f64 * rounding / scale.powi(2) / applied;
            scale *= factor.scale / parameters.primes()[factor.level] as f64;
            applied *= butterflies(factor);
            variance += self.slots() as f64 * rounding / scale.powi(2) / applied;
        }
        variance.sqrt()
    }

    /// Variance of `x` before the last rescale, which acts on `u + conj(u)`.
    fn cts_variance(&self, parameters: &Parameters) -> f64 {
        let slot = self.slots() as f64 / (parameters.primes()[0] as f64).powi(2);
        // Errors of u are doubled by the sum with the conjugate.
        let (mut variance, mut gain) = (0.0, 4.0);
        for (index, factor) in self.coefficients_to_slots().iter().enumerate().rev() {
            gain *= row_energy(factor);
            let entering = match index {
                0 => raised_product_variance(parameters),
                1 => rounding_variance(parameters) + self.trace_variance(parameters),
                _ => rounding_variance(parameters) + key_switch_variance(parameters, factor.level),
            };
            variance += slot * entering * gain;
        }
        variance
    }

    /// What the trace adds, and the key switches of the factor after it, in units of the message before it.
    fn trace_variance(&self, parameters: &Parameters) -> f64 {
        let mut log2_message = 0;
        let mut variance = 0.0;
        for rotations in self.trace() {
            log2_message += (rotations.len() + 1).ilog2();
            let added = key_product_variance(parameters, self.trace_level()) * rotations.len() as f64;
            variance += (rounding_variance(parameters) + added) * (-2.0 * f64::from(log2_message)).exp2();
        }
        let after = key_switch_variance(parameters, self.trace_level());
        variance + after * (-2.0 * f64::from(log2_message)).exp2()
    }

    /// Standard deviation of the reduction's result, where each rescale inside adds a normal error of deviation `sigma`.
    fn eval_mod_noise(&self, sigma: f64) -> f64 {
        const SAMPLES: usize = 2000;
        // Errors far above the resolution of f64, and small enough to act linearly.
        const PROBE: f64 = 1e-8;
        let mut generator = ChaCha20Rng::seed_from_u64(1);
        let reduction = self.reduction();
        let deviation = ((reduction.literal().ephemeral_weight as f64 + 1.0) / 12.0).sqrt();
        let mut sum = 0.0;
        for _ in 0..SAMPLES {
            let integer = (deviation * normal(&mut generator)).round();
            let x = (integer - 0.25) / reduction.range();
            let mut run = |probe: f64| {
                let mut noise = || Complex64::from(probe * normal(&mut generator));
                let mut sine = self.series().evaluate_clear(x.into(), &mut noise);
                for _ in 0..reduction.literal().double_angles {
                    sine = 2.0 * sine * sine - 1.0 + noise();
                }
                let square = sine * sine + noise();
                sine * (reduction.linear() + reduction.cubic() * square)
            };
            sum += (run(PROBE) - run(0.0)).re.powi(2);
        }
        (sum / SAMPLES as f64).sqrt() / PROBE * sigma
    }
}

/// `2^g` for a factor of `g` butterflies.
fn butterflies(factor: &Factor) -> f64 {
    let diagonals = factor.matrix.diagonals().len();
    // 2^g diagonals where the factor wraps around, otherwise 2^(g+1) - 1.
    if diagonals.is_power_of_two() { diagonals as f64 } else { diagonals.div_ceil(2) as f64 }
}

/// Mean over rows of the sum of squared absolute values: what the factor does to the variance of independent errors.
fn row_energy(factor: &Factor) -> f64 {
    let sum: f64 = factor.matrix.diagonals().values().flatten().map(num_complex::Complex64::norm_sqr).sum();
    sum / factor.matrix.slots() as f64
}

/// A standard normal number (Box–Muller).
fn normal(generator: &mut ChaCha20Rng) -> f64 {
    let radius: f64 = (-2.0 * (1.0 - generator.random::<f64>()).ln()).sqrt();
    radius * (2.0 * PI * generator.random::<f64>()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(preset: &str, slots: usize, kind: SlotKind) -> NoiseEstimate {
        let parameters = Parameters::preset(preset).unwrap();
        BootstrapPlan::new(&parameters, slots, kind).unwrap().noise(&parameters)
    }

    #[test]
    fn the_preset_keeps_its_promise() {
        let full = estimate("n16", 1 << 15, SlotKind::Complex);
        assert!(full.precision_bits_mean() > 22.0, "{full:?}");
        assert!(full.precision_bits_min(8 << 15) > 18.0, "{full:?}");
        assert!(full.eval_mod_approximation < 0.5 * full.real(), "{full:?}");
    }

    #[test]
    fn other_presets_keep_theirs() {
        for (preset, slots, bits) in [("n15", 1 << 14, 16.0), ("deep", 1 << 15, 22.0)] {
            let full = estimate(preset, slots, SlotKind::Complex);
            assert!(full.precision_bits_mean() > bits, "{preset}: {:.1}, {full:?}", full.precision_bits_mean());
        }
    }

    #[test]
    fn fewer_slots_are_more_precise() {
        let bits = |slots| estimate("n16", slots, SlotKind::Complex).precision_bits_mean();
        assert!(bits(1 << 12) > bits(1 << 15) + 0.5);
    }

    #[test]
    fn large_digits_dominate_key_switching_only_at_the_top() {
        let parameters = Parameters::preset("n16").unwrap();
        let rounding = rounding_variance(&parameters);
        assert!(key_switch_variance(&parameters, 16) < 1.01 * rounding);
        assert!(key_switch_variance(&parameters, 29) > 2.0 * rounding);
    }
}
