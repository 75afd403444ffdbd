//! The canonical embedding of a subring, by one complex FFT.
//!
//! n slots (a power of two, n ≤ N/2) live in the subring R[Y]/(Y^{2n} + 1) with Y = X^{N/2n}. With ξ = exp(iπ/2n) the
//! slots of m(Y) = Σ c_k Y^k are z_j = m(ξ^{5^j}), j = 0 … n-1. Since 5^j ≡ 1 (mod 4), ξ^{n·5^j} = i, and with d_k =
//! c_k + i·c_{k+n}
//!
//! z_j = Σ_{k<n} d_k ξ^{k·5^j} = Σ_{k<n} (d_k ξ^k) exp(2πi·k·t_j/n),  t_j = (5^j - 1)/4 mod n,
//!
//! which is a twist, a discrete Fourier transform of size n, and the permutation j ↦ t_j. A rotation of the slots to
//! the left by one is the automorphism X ↦ X^5.

use std::f64::consts::FRAC_PI_2;
use std::sync::Arc;

use num_complex::Complex64;
use rustfft::{Fft, FftPlanner};

/// The embedding for one number of slots.
pub(crate) struct Embedding {
    to_slots: Arc<dyn Fft<f64>>,
    to_coefficients: Arc<dyn Fft<f64>>,
    /// ξ^k.
    twist: Vec<Complex64>,
    /// t_j.
    order: Vec<u32>,
}

impl Embedding {
    pub(crate) fn new(slots: usize) -> Self {
        debug_assert!(slots.is_power_of_two());
        let mut planner = FftPlanner::new();
        let mut power = 1_usize;
        let order = (0..slots)
            .map(|_| {
                let frequency = (power - 1) / 4;
                power = power * 5 % (4 * slots);
                frequency as u32
            })
            .collect();
        Self {
            to_slots: planner.plan_fft_inverse(slots),
            to_coefficients: planner.plan_fft_forward(slots),
            twist: (0..slots).map(|k| Complex64::cis(FRAC_PI_2 * k as f64 / slots as f64)).collect(),
            order,
        }
    }

    /// From d_k = c_k + i·c_{k+n} to the slots z_j.
    pub(crate) fn slots_from_coefficients(&self, coefficients: &[Complex64]) -> Vec<Complex64> {
        let mut values: Vec<_> = coefficients.iter().zip(&self.twist).map(|(d, twist)| d * twist).collect();
        self.to_slots.process(&mut values);
        self.order.iter().map(|&frequency| values[frequency as usize]).collect()
    }

    /// From the slots z_j to d_k = c_k + i·c_{k+n}; missing slots at the end are zero.
    pub(crate) fn coefficients_from_slots(&self, slots: &[Complex64]) -> Vec<Complex64> {
        let mut values = vec![Complex64::ZERO; self.order.len()];
        for (&frequency, &slot) in self.order.iter().zip(slots) {
            values[frequency as usize] = slot;
        }
        self.to_coefficients.process(&mut values);
        let normalisation = 1.0 / self.order.len() as f64;
        for (value, twist) in values.iter_mut().zip(&self.twist) {
            *value = *value * twist.conj() * normalisation;
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(slots: usize) -> Vec<Complex64> {
        (0..slots).map(|j| Complex64::new((j as f64 * 0.7).sin(), (j as f64 * 1.3 + 0.2).cos())).collect()
    }

    #[test]
    fn agrees_with_evaluation_at_the_roots() {
        for slots in [1, 2, 8, 32] {
            let coefficients = sample(slots);
            let transformed = Embedding::new(slots).slots_from_coefficients(&coefficients);
            let mut power = 1;
            for value in transformed {
                let root = |exponent: usize| Complex64::cis(FRAC_PI_2 * (exponent % (4 * slots)) as f64 / slots as f64);
                let direct: Complex64 = (0..slots)
                    .map(|k| coefficients[k].re * root(k * power) + coefficients[k].im * root((k + slots) * power))
                    .sum();
                assert!((value - direct).norm() < 1e-12 * slots as f64, "{value} {direct}");
                power = power * 5 % (4 * slots);
            }
        }
    }

    #[test]
    fn the_two_directions_are_inverse() {
        for slots in [1, 4, 1 << 11] {
            let values = sample(slots);
            let embedding = Embedding::new(slots);
            let back = embedding.slots_from_coefficients(&embedding.coefficients_from_slots(&values));
            let worst = values.iter().zip(&back).map(|(a, b)| (a - b).norm()).fold(0.0, f64::max);
            assert!(worst < 1e-13, "{worst}");
        }
    }
}
