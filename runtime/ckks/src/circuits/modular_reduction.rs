//! Approximate modular reduction (EvalMod) in the clear.
//!
//! After ModRaise a coefficient, divided by `q0`, is `t = I + ε` with an integer `|I| ≤ K` and `|ε| ≤ 2^-r`, `r` the
//! `log2_message_ratio`. The message is `ε`. It is recovered as
//!
//! 1. `c(x) ≈ sin(2π (t - 1/4) / 2^a)` with `x = (t - 1/4) / range ∈ [-1, 1]`: one Chebyshev series;
//! 2. `a ≥ 2` double angles `c ← 2c² - 1`, which end in `s = cos(2π (t - 1/4)) = sin(2π ε)`;
//! 3. a cubic `s·(α + β s²) ≈ asin(s) / 2π = ε`.
//!
//! A sine is a cosine a quarter turn later, and a quarter turn doubled twice is a whole one. It is preferred to the cosine because
//! `x` is mostly near zero, where the even powers `T_2, T_4, T_8, …` are extremal and rounding errors in them grow most: the odd sine
//! depends on them less, and the bootstrap's error is 2.6 times smaller.
//!
//! The series is fitted only where arguments can be, on the neighbourhoods of the integers, as Han and Ki do by placing
//! nodes there (ePrint 2019/688): 33 short intervals take degree 31 where plain Chebyshev interpolation needs about 40.
//! Integers far from zero are exponentially rare (`I` is a sum of `h + 1` uniform variables, its variance `(h + 1) / 12`),
//! so their errors weigh less. The cubic is the truncation of `asin` with its fifth-order term replaced by the best cubic
//! on the interval, 16 times more precise than Taylor's.

use std::f64::consts::PI;

use cachemir_ir::chebyshev::{self, Fit, Sample};

/// A modular reduction to approximate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModularReductionLiteral {
    /// Bound `K` of `|I|`.
    pub integer_bound: u32,
    /// Degree of the sine's series.
    pub degree: usize,
    /// Number `a` of double angles, at least two.
    pub double_angles: u32,
    /// `r`: the message is at most `2^-r` of the modulus.
    pub log2_message_ratio: u32,
    /// Hamming weight of the secret under which ModRaise happens; decides how rare each `I` is.
    pub ephemeral_weight: usize,
}

impl Default for ModularReductionLiteral {
    /// `K = 16`, degree 31, three double angles, ratio `2^7`, weight 32.
    fn default() -> Self {
        Self { integer_bound: 16, degree: 31, double_angles: 3, log2_message_ratio: 7, ephemeral_weight: 32 }
    }
}

/// The fitted approximation.
#[derive(Clone, Debug)]
pub struct ModularReduction {
    literal: ModularReductionLiteral,
    series: Vec<f64>,
    linear: f64,
    cubic: f64,
}

impl ModularReduction {
    /// Fits the sine's series and the cubic.
    ///
    /// # Panics
    /// With fewer than two double angles.
    pub fn new(literal: ModularReductionLiteral) -> Self {
        const POINTS: usize = 6;
        const ROUNDS: usize = 5;
        const FLOOR: f64 = 1e-6;
        assert!(literal.double_angles >= 2, "the quarter turn takes two double angles");
        let range = range(&literal);
        let width = (-f64::from(literal.log2_message_ratio)).exp2();
        let bound = i64::from(literal.integer_bound);
        let mut samples = Vec::new();
        for integer in -bound..=bound {
            let weight = weight(&literal, integer);
            for point in 0..POINTS {
                let epsilon = width * (PI * (point as f64 + 0.5) / POINTS as f64).cos();
                let shifted = integer as f64 + epsilon - 0.25;
                samples.push(Sample {
                    u: shifted / range,
                    value: (2.0 * PI * shifted / f64::from(1u32 << literal.double_angles)).sin(),
                    weight,
                });
            }
        }
        let fit = Fit { degree: literal.degree, rounds: ROUNDS, floor: FLOOR, enough: 0.0 };
        let (series, _) = chebyshev::minimax(&samples, &fit);
        // asin(s) = s + s³/6 + 3s⁵/40 + …, and s⁵ ≈ (20 S² s³ - 5 S⁴ s) / 16 on [-S, S].
        let largest = (2.0 * PI * width).sin();
        let fifth = 3.0 / 40.0;
        let linear = (1.0 - fifth * 5.0 * largest.powi(4) / 16.0) / (2.0 * PI);
        let cubic = (1.0 / 6.0 + fifth * 20.0 * largest.powi(2) / 16.0) / (2.0 * PI);
        Self { literal, series, linear, cubic }
    }

    /// What was asked for.
    pub fn literal(&self) -> &ModularReductionLiteral {
        &self.literal
    }

    /// `range`: the series' argument is `x = (t - 1/4) / range`.
    pub fn range(&self) -> f64 {
        range(&self.literal)
    }

    /// Chebyshev coefficients of `c(x)`.
    pub fn series(&self) -> &[f64] {
        &self.series
    }

    /// `α` of the cubic `s·(α + β s²)`.
    pub fn linear(&self) -> f64 {
        self.linear
    }

    /// `β` of the cubic `s·(α + β s²)`.
    pub fn cubic(&self) -> f64 {
        self.cubic
    }

    /// Levels used: `⌈log2(degree + 1)⌉`, one for each double angle, two for the cubic.
    pub fn depth(&self) -> usize {
        super::polynomials::depth(self.literal.degree) + self.literal.double_angles as usize + 2
    }

    /// The approximation of `ε` at `t = I + ε`, in the clear.
    pub fn evaluate(&self, t: f64) -> f64 {
        let mut s = chebyshev::value(&self.series, (t - 0.25) / self.range());
        for _ in 0..self.literal.double_angles {
            s = 2.0 * s * s - 1.0;
        }
        s * (self.linear + self.cubic * s * s)
    }

    /// Largest error of the message, relative to its bound `2^-r`, over arguments with `|I| = integer`.
    pub fn error_at(&self, integer: u32) -> f64 {
        const POINTS: i32 = 64;
        let width = (-f64::from(self.literal.log2_message_ratio)).exp2();
        let mut worst = 0.0f64;
        for sign in [-1.0, 1.0] {
            for k in -POINTS..=POINTS {
                let epsilon = width * f64::from(k) / f64::from(POINTS);
                let error = self.evaluate(sign * f64::from(integer) + epsilon) - epsilon;
                worst = worst.max(error.abs() / width);
            }
        }
        worst
    }

    /// Root mean square of [`error_at`](Self::error_at) over the distribution of `I`.
    pub fn error_rms(&self) -> f64 {
        let (mut sum, mut mass) = (0.0, 0.0);
        for integer in 0..=self.literal.integer_bound {
            let multiplicity = if integer == 0 { 1.0 } else { 2.0 };
            let probability = multiplicity * density(&self.literal, f64::from(integer));
            sum += probability * self.error_at(integer).powi(2);
            mass += probability;
        }
        (sum / mass).sqrt()
    }

    /// `log2` of a bound of the probability that some of `coefficients` coefficients has `|I| > K`; `-∞` where none can.
    ///
    /// `I` is within 1 of a sum of `h + 1` variables uniform on `[-1/2, 1/2)`; Hoeffding's inequality bounds its tail by
    /// `2 exp(-2 x² / (h + 1))`, and `|I| ≤ (h + 1) / 2` always.
    pub fn log2_failure_probability(&self, coefficients: usize) -> f64 {
        let terms = self.literal.ephemeral_weight as f64 + 1.0;
        let limit = f64::from(self.literal.integer_bound) + 0.5;
        if limit >= terms / 2.0 {
            return f64::NEG_INFINITY;
        }
        1.0 + (coefficients as f64).log2() - 2.0 * limit * limit / terms * std::f64::consts::LOG2_E
    }
}

/// `K + 1/4 + 2^-r`, so that every argument falls into `[-1, 1]`.
fn range(literal: &ModularReductionLiteral) -> f64 {
    f64::from(literal.integer_bound) + 0.25 + (-f64::from(literal.log2_message_ratio)).exp2()
}

/// Density of `I` up to a factor (normal approximation).
fn density(literal: &ModularReductionLiteral, integer: f64) -> f64 {
    let variance = (literal.ephemeral_weight as f64 + 1.0) / 12.0;
    (-integer * integer / (2.0 * variance)).exp()
}

/// Weight of an error at `I`: one near zero, falling by one bit an integer where `I` is rarer than `2^-24`.
fn weight(literal: &ModularReductionLiteral, integer: i64) -> f64 {
    let variance = (literal.ephemeral_weight as f64 + 1.0) / 12.0;
    let common = (2.0 * variance * 24.0 * std::f64::consts::LN_2).sqrt();
    (-(integer.abs() as f64 - common).max(0.0)).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_is_far_below_the_rounding_noise() {
        let reduction = ModularReduction::new(ModularReductionLiteral::default());
        assert_eq!(reduction.depth(), 10);
        assert!(reduction.error_rms().log2() < -25.0, "{}", reduction.error_rms().log2());
        for integer in 0..=8 {
            let bits = -reduction.error_at(integer).log2();
            assert!(bits > 24.5, "{bits} at {integer}");
        }
        // Rare integers are allowed fewer bits, but no failure.
        assert!(-reduction.error_at(16).log2() > 12.0);
        assert_eq!(reduction.log2_failure_probability(1 << 16), f64::NEG_INFINITY);
        // Large coefficients would cost precision under encryption.
        assert!(reduction.series().iter().all(|c| c.abs() < 1.0));
    }

    #[test]
    fn error_falls_with_degree_and_with_the_message_ratio() {
        let error = |degree, log2_message_ratio| {
            ModularReduction::new(ModularReductionLiteral { degree, log2_message_ratio, ..Default::default() })
                .error_rms()
                .log2()
        };
        assert!(error(31, 7) < error(27, 7) - 4.0);
        // The cubic leaves a relative error of about (2π)⁴ · 3/640 · 2^-4r.
        let bound = |r: f64| ((2.0 * PI).powi(4) * 3.0 / 640.0).log2() - 4.0 * r;
        for r in [5, 6] {
            let measured = error(31, r);
            assert!((measured - bound(f64::from(r))).abs() < 1.5, "{r}: {measured}");
        }
    }

    #[test]
    fn failure_probability_of_a_tight_bound_is_a_number() {
        let reduction = ModularReduction::new(ModularReductionLiteral {
            integer_bound: 12,
            ephemeral_weight: 64,
            ..Default::default()
        });
        let log2 = reduction.log2_failure_probability(1 << 16);
        assert!(log2 < 20.0 && log2 > -200.0, "{log2}");
    }
}
