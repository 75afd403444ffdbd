//! Estimated against measured errors: at most one bit too hopeful, at most six too careful.

use proptest::prelude::*;

use super::*;
use crate::noise::{NoiseModel, SlotNoise};

const SLOTS: usize = 512;
/// Root mean square of complex numbers with parts uniform in [-1, 1].
const MAGNITUDE: f64 = 0.816_496_580_927_726;

/// A ciphertext with the slots it should hold and what it should be off by.
struct Tracked {
    ciphertext: Ciphertext<CpuBackend>,
    slots: Vec<Complex64>,
    noise: SlotNoise,
}

fn check(fixture: &Fixture, tracked: &Tracked) -> Result<(), TestCaseError> {
    let errors = zip(&fixture.decrypt(&tracked.ciphertext), &tracked.slots, |found, expected| found - expected);
    let measured = (errors.iter().map(Complex64::norm_sqr).sum::<f64>() / SLOTS as f64).sqrt();
    let careful = (tracked.noise.standard_deviation / measured).log2();
    prop_assert!((-1.0..=6.0).contains(&careful), "{careful:.2} bits off at level {}", tracked.noise.level);
    prop_assert!((tracked.noise.scale / tracked.ciphertext.scale() - 1.0).abs() < 1e-9);
    Ok(())
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Add,
    Rotate,
    Conjugate,
    MulPlain,
    Mul,
}

fn fresh(fixture: &Fixture, level: usize, seed: u8) -> Tracked {
    let slots = random_slots(SLOTS, seed);
    let model = NoiseModel::new(fixture.ring.parameters(), SLOTS);
    Tracked { ciphertext: fixture.encrypt_at(&slots, level), slots, noise: model.fresh_secret(level, MAGNITUDE) }
}

fn apply(fixture: &Fixture, x: &Tracked, step: Step, seed: u8) -> Tracked {
    let (evaluator, keys) = (&fixture.evaluator, &fixture.keys);
    let model = NoiseModel::new(fixture.ring.parameters(), SLOTS);
    let level = x.ciphertext.level();
    let other = fresh(fixture, level, seed);
    match step {
        Step::Add => Tracked {
            ciphertext: evaluator.add(&x.ciphertext, &other.ciphertext).unwrap(),
            slots: zip(&x.slots, &other.slots, |a, b| a + b),
            noise: model.add(&x.noise, &other.noise),
        },
        Step::Rotate => Tracked {
            ciphertext: evaluator.rotate(&x.ciphertext, 3, keys).unwrap(),
            slots: rotated(&x.slots, 3),
            noise: model.key_switch(&x.noise),
        },
        Step::Conjugate => Tracked {
            ciphertext: evaluator.conjugate(&x.ciphertext, keys).unwrap(),
            slots: x.slots.iter().map(Complex64::conj).collect(),
            noise: model.key_switch(&x.noise),
        },
        Step::MulPlain => {
            let scale = evaluator.canonical_factor(&x.ciphertext).unwrap();
            Tracked {
                ciphertext: evaluator.mul_slots(&x.ciphertext, &other.slots).unwrap(),
                slots: zip(&x.slots, &other.slots, |a, b| a * b),
                noise: model.rescale(&model.mul_plain(&x.noise, MAGNITUDE, scale)),
            }
        }
        Step::Mul => Tracked {
            ciphertext: evaluator.mul_rescale(&x.ciphertext, &other.ciphertext, keys).unwrap(),
            slots: zip(&x.slots, &other.slots, |a, b| a * b),
            noise: model.mul_rescale(&x.noise, &other.noise),
        },
    }
}

fn fixture() -> Fixture {
    let mut manifest = KeyManifest::default();
    manifest.require_rotation(3, 0..=9);
    manifest.require_conjugation(0..=9);
    manifest.require_relinearisation(0..=9);
    Fixture::new(&manifest)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn errors_are_what_the_model_says(
        steps in prop::collection::vec(
            prop_oneof![
                Just(Step::Add), Just(Step::Rotate), Just(Step::Conjugate), Just(Step::MulPlain), Just(Step::Mul)
            ],
            0..8,
        ),
        seed in 1_u8..100,
    ) {
        let fixture = fixture();
        let mut tracked = fresh(&fixture, fixture.top(), seed);
        check(&fixture, &tracked)?;
        for (k, step) in steps.into_iter().enumerate() {
            if tracked.ciphertext.level() == 1 {
                break;
            }
            tracked = apply(&fixture, &tracked, step, seed + 1 + k as u8);
            check(&fixture, &tracked)?;
        }
    }
}

#[test]
fn public_encryption_is_noisier_as_the_model_says() {
    let fixture = fixture();
    let key = KeyGenerator::new(fixture.ring.clone()).public_key(&fixture.secret, fixture.top()).unwrap();
    let slots = random_slots(SLOTS, 5);
    let encryptor = Encryptor::with_public_key(fixture.ring.clone(), &key);
    let ciphertext = encryptor.encrypt_slots(&fixture.encoder, &slots, fixture.top()).unwrap();
    let model = NoiseModel::new(fixture.ring.parameters(), SLOTS);
    let noise = model.fresh_public(fixture.top(), MAGNITUDE);
    assert!(noise.precision_bits() < model.fresh_secret(fixture.top(), MAGNITUDE).precision_bits() - 4.0);
    check(&fixture, &Tracked { ciphertext, slots, noise }).unwrap();
}

/// At scales of EvalMod's primes and above the levels for use, where digits are largest.
#[test]
fn key_switching_at_the_top_is_noisier_as_the_model_says() {
    let fixture = fixture();
    let top = fixture.ring.parameters().maximum_level();
    let tracked = apply(&fixture, &fresh(&fixture, top, 9), Step::Rotate, 10);
    check(&fixture, &tracked).unwrap();
}
