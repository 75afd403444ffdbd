//! Samplers: secrets and errors.
//!
//! All secret randomness comes from ChaCha20 streams seeded by the operating system ([`os_seed`]); public uniform halves
//! are expanded from published seeds by the backend. Small polynomials are signed bytes, one for each coefficient, and are wiped when dropped.
//!
//! The Gaussian sampler reads a whole cumulative table for every sample, so its running time does not depend on the
//! value drawn.

use rand::rngs::OsRng;
use rand::{RngCore, SeedableRng, TryRngCore};
use rand_chacha::ChaCha20Rng;
use zeroize::Zeroizing;

use crate::error::CkksError;
use crate::parameters::ERROR_STANDARD_DEVIATION;

/// A seed of a ChaCha20 stream.
pub type Seed = [u8; 32];

/// A fresh seed from the operating system's generator.
pub fn os_seed() -> Result<Zeroizing<Seed>, CkksError> {
    let mut seed = Zeroizing::new(Seed::default());
    OsRng.try_fill_bytes(seed.as_mut_slice()).map_err(|error| CkksError::Randomness(error.to_string()))?;
    Ok(seed)
}

/// A generator seeded by the operating system.
pub fn os_generator() -> Result<ChaCha20Rng, CkksError> {
    Ok(ChaCha20Rng::from_seed(*os_seed()?))
}

/// Stream number `index` of the generator with this seed; different indices give independent streams.
pub fn stream(seed: &Seed, index: u64) -> ChaCha20Rng {
    let mut generator = ChaCha20Rng::from_seed(*seed);
    generator.set_stream(index);
    generator
}

/// Independent uniform coefficients in {-1, 0, 1}.
pub fn ternary(generator: &mut ChaCha20Rng, degree: usize) -> Zeroizing<Vec<i8>> {
    let mut coefficients = Zeroizing::new(Vec::with_capacity(degree));
    while coefficients.len() < degree {
        let word = generator.next_u64();
        for shift in (0..64).step_by(2) {
            let pair = (word >> shift & 3) as i8;
            if pair < 3 && coefficients.len() < degree {
                coefficients.push(pair - 1);
            }
        }
    }
    coefficients
}

/// `weight` coefficients ±1 at uniformly random positions, zero elsewhere.
pub fn sparse_ternary(generator: &mut ChaCha20Rng, degree: usize, weight: usize) -> Zeroizing<Vec<i8>> {
    let mut coefficients = Zeroizing::new(vec![0_i8; degree]);
    let mut placed = 0;
    while placed < weight.min(degree) {
        let word = generator.next_u64();
        let position = (word >> 1) as usize & (degree - 1);
        if coefficients[position] == 0 {
            coefficients[position] = if word & 1 == 0 { 1 } else { -1 };
            placed += 1;
        }
    }
    coefficients
}

/// The discrete Gaussian of standard deviation [`ERROR_STANDARD_DEVIATION`] over the integers, by inversion of a
/// cumulative table of 63-bit probabilities; the neglected tail has probability below 2^-63.
#[derive(Debug, Clone)]
pub struct GaussianSampler {
    /// Entry k is 2^63 · P(|X| > k).
    survival: Vec<u64>,
}

impl GaussianSampler {
    /// Builds the table.
    pub fn new() -> Self {
        const TAIL: i32 = 64;
        let weight = |k: i32| {
            let density = (-0.5 * (f64::from(k) / ERROR_STANDARD_DEVIATION).powi(2)).exp();
            if k == 0 { density } else { 2.0 * density }
        };
        let mut tail_sums = vec![0_f64; TAIL as usize + 1];
        for k in (0..TAIL).rev() {
            tail_sums[k as usize] = tail_sums[k as usize + 1] + weight(k + 1);
        }
        let total = tail_sums[0] + weight(0);
        let survival =
            tail_sums.iter().map(|sum| (sum / total * 63_f64.exp2()) as u64).take_while(|&entry| entry > 0).collect();
        Self { survival }
    }

    /// Independent samples.
    pub fn sample(&self, generator: &mut ChaCha20Rng, degree: usize) -> Zeroizing<Vec<i8>> {
        let mut coefficients = Zeroizing::new(Vec::with_capacity(degree));
        for _ in 0..degree {
            let word = generator.next_u64();
            let uniform = word >> 1;
            let magnitude: i8 = self.survival.iter().map(|&entry| i8::from(uniform < entry)).sum();
            let sign = 1 - 2 * (word & 1) as i8;
            coefficients.push(sign * magnitude);
        }
        coefficients
    }
}

impl Default for GaussianSampler {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generator(index: u64) -> ChaCha20Rng {
        stream(&[7; 32], index)
    }

    fn moments(samples: &[i8]) -> (f64, f64, f64) {
        let count = samples.len() as f64;
        let mean = samples.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
        let moment = |power| samples.iter().map(|&x| (f64::from(x) - mean).powi(power)).sum::<f64>() / count;
        (mean, moment(2), moment(4))
    }

    #[test]
    fn gaussian_has_the_moments_of_its_distribution() {
        let samples = GaussianSampler::new().sample(&mut generator(0), 1 << 20);
        let (mean, variance, fourth) = moments(&samples);
        let expected = ERROR_STANDARD_DEVIATION.powi(2);
        assert!(mean.abs() < 0.02, "{mean}");
        assert!((variance / expected - 1.0).abs() < 0.01, "{variance}");
        assert!((fourth / (3.0 * expected * expected) - 1.0).abs() < 0.03, "{fourth}");
    }

    #[test]
    fn ternary_is_uniform() {
        let samples = ternary(&mut generator(1), 1 << 18);
        for value in -1..=1 {
            let share = samples.iter().filter(|&&x| x == value).count() as f64 / samples.len() as f64;
            assert!((share - 1.0 / 3.0).abs() < 0.005, "{value}: {share}");
        }
    }

    #[test]
    fn sparse_ternary_has_exactly_its_weight_with_both_signs() {
        let samples = sparse_ternary(&mut generator(2), 1 << 12, 192);
        assert_eq!(samples.iter().filter(|&&x| x != 0).count(), 192);
        assert!(samples.contains(&1) && samples.contains(&-1));
    }

    #[test]
    fn streams_are_reproducible_and_distinct() {
        let draw = |index| stream(&[1; 32], index).next_u64();
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5), draw(6));
    }
}
