use std::ops::ControlFlow;

use super::*;
use crate::gadget::Gadget;
use crate::rlwe::keys::{KeyRole, switching_key_bytes};

#[test]
fn a_key_serves_its_level_and_those_below() {
    for key_level in [1, 2, 5, 8, 9] {
        let mut manifest = KeyManifest::default();
        manifest.require_rotation(2, 1..=key_level);
        manifest.require_relinearisation(1..=key_level);
        let fixture = Fixture::new(&manifest);
        let a = random_slots(512, 1);
        for level in (1..=key_level.min(6)).rev() {
            let x = fixture.encrypt_at(&a, level);
            let y = fixture.evaluator.rotate(&x, 2, &fixture.keys).unwrap();
            fixture.assert_canonical(&y, level, &rotated(&a, 2), ONE_OPERATION);
            let square = fixture.evaluator.square_rescale(&x, &fixture.keys).unwrap();
            fixture.assert_canonical(&square, level - 1, &zip(&a, &a, |a, b| a * b), ONE_OPERATION);
        }
    }
}

#[test]
fn sizes_are_known_in_advance_and_progress_ends_at_them() {
    let parameters = small_parameters();
    let mut manifest = KeyManifest::default();
    manifest.require_rotation(1, [4]);
    manifest.require_rotation(0, [9]);
    manifest.require_conjugation([9]);
    manifest.require_relinearisation([3]);
    manifest.require_encapsulation([0, 5], 9);
    assert_eq!(manifest.keys(&parameters).len(), 6);
    // Level 4 has five limbs, hence two digits of three, and three special limbs.
    let gadget = Gadget { digit_limbs: 3, special: 3 };
    assert_eq!(switching_key_bytes(&parameters, 4, gadget, UniformHalves::Stored), 2 * 2 * 8 * 1024 * 8);
    let ring = Ring::<CpuBackend>::new(parameters.clone()).unwrap().with_uniform_halves(UniformHalves::Stored);
    let generator = KeyGenerator::new(ring);
    let secret = generator.secret_key().unwrap();
    let mut reports = Vec::new();
    let keys = generator
        .evaluation_keys(&secret, &manifest, |made, total| {
            reports.push((made, total));
            ControlFlow::Continue(())
        })
        .unwrap();
    let total = manifest.key_bytes(&parameters, UniformHalves::Stored);
    assert_eq!(reports.len(), 6);
    assert_eq!(reports.last(), Some(&(total, total)));
    assert_eq!(keys.manifest(), manifest);
}

#[test]
fn the_ephemeral_secret_and_back() {
    let mut manifest = KeyManifest::default();
    manifest.require_encapsulation([0, 3], 9);
    let fixture = Fixture::new(&manifest);
    let (evaluator, keys) = (&fixture.evaluator, &fixture.keys);
    let key = keys.find(fixture.ring.parameters(), KeyRole::DenseToSparse, 0).unwrap();
    assert_eq!((key.level(), key.gadget()), (0, Gadget { digit_limbs: 1, special: 1 }));

    let a = random_slots(512, 1);
    let under_sparse = evaluator.switch_key(&fixture.encrypt_at(&a, 0), key).unwrap();
    let raised = evaluator.raise_modulus(&under_sparse, 9).unwrap();
    let back = evaluator.rotate_raised(&raised, 0, keys).unwrap();
    let turned = evaluator.truncate(&evaluator.rotate_raised(&raised, 3, keys).unwrap(), 0).unwrap();
    assert_near(&fixture.decrypt(&turned), &rotated(&a, 3), 3.0 * ONE_OPERATION);
    // Modulo q_0 the raised message is the original one.
    let low = evaluator.truncate(&back, 0).unwrap();
    assert_near(&fixture.decrypt(&low), &a, 3.0 * ONE_OPERATION);
    // The multiples of q_0 come from a secret of weight 32, hence are few.
    let decrypted = Decryptor::new(fixture.ring.clone(), &fixture.secret).decrypt_fully(&back).unwrap();
    let base = fixture.ring.parameters().primes()[0] as f64;
    let coefficients = fixture.encoder.decode_coefficients(&decrypted).unwrap();
    let largest = coefficients.iter().map(|c| (c * decrypted.scale() / base).abs()).fold(0.0, f64::max);
    assert!(largest > 1.0 && largest < 16.5, "{largest}");
}

#[test]
fn keys_between_unrelated_secrets() {
    let fixture = Fixture::new(&KeyManifest::default());
    let generator = KeyGenerator::new(fixture.ring.clone());
    let other = SecretKey::sparse(1024, 200).unwrap();
    let key = generator.switching_key(&fixture.secret, &other, 6, Gadget { digit_limbs: 3, special: 3 }).unwrap();
    let a = random_slots(32, 1);
    let switched = fixture.evaluator.switch_key(&fixture.encrypt_at(&a, 5), &key).unwrap();
    let found = Decryptor::new(fixture.ring.clone(), &other).decrypt_slots(&fixture.encoder, &switched).unwrap();
    assert_near(&found, &a, ONE_OPERATION);
    assert!(fixture.evaluator.switch_key(&fixture.encrypt_at(&a, 7), &key).is_err());
}
