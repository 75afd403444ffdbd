//! Every operation against the same operation on clear slots, with a bound on the error.

mod arithmetic;
mod encoding;
mod keys;
mod noise;
mod rotations;
mod serialised;
mod serialised_keys;

use cachemir_hal::CpuBackend;
use num_complex::Complex64;
use rand::Rng;
use std::ops::ControlFlow;

use crate::ckks::ciphertext::Ciphertext;
use crate::ckks::encoder::Encoder;
use crate::ckks::encryption::{Decryptor, Encryptor};
use crate::ckks::evaluator::Evaluator;
use crate::parameters::{INSECURE_MARKER, Parameters, ParametersLiteral};
use crate::ring::{Ring, UniformHalves, sampling};
use crate::rlwe::generator::KeyGenerator;
use crate::rlwe::keys::{EvaluationKeys, KeyManifest};
use crate::rlwe::secret::SecretKey;

/// A short chain over N = 2^10: levels 0 to 9, of which 2 to 6 are for use; three special primes.
pub(crate) fn small_parameters() -> Parameters {
    Parameters::tuned(ParametersLiteral {
        name: format!("{INSECURE_MARKER}-small"),
        log2_degree: 10,
        slots_to_coeffs_bits: vec![41],
        use_bits: vec![41; 5],
        eval_mod_bits: vec![50; 2],
        coeffs_to_slots_bits: vec![50],
        special_bits: vec![50; 3],
        ephemeral_weight: 32,
        ..ParametersLiteral::insecure_test()
    })
    .unwrap()
}

struct Fixture {
    ring: Ring<CpuBackend>,
    encoder: Encoder<CpuBackend>,
    evaluator: Evaluator<CpuBackend>,
    secret: SecretKey,
    keys: EvaluationKeys<CpuBackend>,
}

impl Fixture {
    fn new(manifest: &KeyManifest) -> Self {
        let ring = Ring::new(small_parameters()).unwrap().with_uniform_halves(UniformHalves::Stored);
        let generator = KeyGenerator::new(ring.clone());
        let secret = generator.secret_key().unwrap();
        let keys = generator.evaluation_keys(&secret, manifest, |_, _| ControlFlow::Continue(())).unwrap();
        let encoder = Encoder::new(ring.clone());
        Self { evaluator: Evaluator::new(encoder.clone()), ring, encoder, secret, keys }
    }

    fn with_relinearisation() -> Self {
        let mut manifest = KeyManifest::default();
        manifest.require_relinearisation(0..=9);
        Self::new(&manifest)
    }

    fn with_rotations(rotations: &[usize]) -> Self {
        let mut manifest = KeyManifest::default();
        for &rotation in rotations {
            manifest.require_rotation(rotation, 0..=9);
        }
        manifest.require_conjugation(0..=9);
        Self::new(&manifest)
    }

    fn top(&self) -> usize {
        self.ring.parameters().use_top_level()
    }

    fn encrypt_at(&self, values: &[Complex64], level: usize) -> Ciphertext<CpuBackend> {
        Encryptor::with_secret_key(self.ring.clone(), &self.secret).encrypt_slots(&self.encoder, values, level).unwrap()
    }

    fn encrypt(&self, values: &[Complex64]) -> Ciphertext<CpuBackend> {
        self.encrypt_at(values, self.top())
    }

    fn decrypt(&self, ciphertext: &Ciphertext<CpuBackend>) -> Vec<Complex64> {
        Decryptor::new(self.ring.clone(), &self.secret).decrypt_slots(&self.encoder, ciphertext).unwrap()
    }

    /// Checks level, canonical scale and slots.
    fn assert_canonical(&self, ciphertext: &Ciphertext<CpuBackend>, level: usize, expected: &[Complex64], bound: f64) {
        assert_eq!(ciphertext.level(), level);
        assert_eq!(ciphertext.scale(), self.ring.parameters().canonical_scale(level), "canonical scale");
        assert_near(&self.decrypt(ciphertext), expected, bound);
    }
}

fn random_slots(slots: usize, seed: u8) -> Vec<Complex64> {
    let mut generator = sampling::stream(&[seed; 32], 0);
    (0..slots).map(|_| Complex64::new(generator.random_range(-1.0..1.0), generator.random_range(-1.0..1.0))).collect()
}

fn zip(a: &[Complex64], b: &[Complex64], operation: impl Fn(Complex64, Complex64) -> Complex64) -> Vec<Complex64> {
    a.iter().zip(b).map(|(&x, &y)| operation(x, y)).collect()
}

fn rotated(values: &[Complex64], rotation: i64) -> Vec<Complex64> {
    let count = values.len() as i64;
    (0..count).map(|j| values[(j + rotation).rem_euclid(count) as usize]).collect()
}

#[track_caller]
fn assert_near(found: &[Complex64], expected: &[Complex64], bound: f64) {
    assert_eq!(found.len(), expected.len());
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).norm()).fold(0.0, f64::max);
    assert!(worst < bound, "worst error {worst:e}, bound {bound:e}");
}

/// Error allowed after one operation on fresh ciphertexts at scale 2^41, N = 2^10: about 2^-26.
const ONE_OPERATION: f64 = 1.5e-8;
