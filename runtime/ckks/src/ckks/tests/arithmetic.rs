use cachemir_hal::Backend;

use super::*;
use crate::error::CkksError;
use crate::rlwe::keys::KeyRole;

#[test]
fn encryption_by_either_key_at_several_slot_counts_and_levels() {
    let fixture = Fixture::new(&KeyManifest::default());
    let public = KeyGenerator::new(fixture.ring.clone()).public_key(&fixture.secret, 6).unwrap();
    let encryptor = Encryptor::with_public_key(fixture.ring.clone(), &public);
    for slots in [1, 4, 64, 512] {
        let values = random_slots(slots, 1);
        for level in [0, 3, 6] {
            fixture.assert_canonical(&fixture.encrypt_at(&values, level), level, &values, ONE_OPERATION);
            let ciphertext = encryptor.encrypt_slots(&fixture.encoder, &values, level).unwrap();
            fixture.assert_canonical(&ciphertext, level, &values, 10.0 * ONE_OPERATION);
        }
    }
    let plaintext = fixture.encoder.encode(&random_slots(4, 1), 7, 41_f64.exp2()).unwrap();
    assert!(matches!(encryptor.encrypt(&plaintext), Err(CkksError::KeyLevel { level: 7, .. })));
}

#[test]
fn a_ciphertext_reveals_nothing_without_its_secret() {
    let fixture = Fixture::new(&KeyManifest::default());
    let values = vec![Complex64::ONE; 512];
    let other = KeyGenerator::new(fixture.ring.clone()).secret_key().unwrap();
    let wrong = Decryptor::new(fixture.ring.clone(), &other)
        .decrypt_slots(&fixture.encoder, &fixture.encrypt(&values))
        .unwrap();
    assert!(wrong.iter().map(|z| z.norm()).sum::<f64>() / 512.0 > 1e6);
}

#[test]
fn sums_and_differences() {
    let fixture = Fixture::new(&KeyManifest::default());
    let (a, b) = (random_slots(64, 1), random_slots(64, 2));
    let (x, y) = (fixture.encrypt(&a), fixture.encrypt(&b));
    let evaluator = &fixture.evaluator;
    let p = fixture.encoder.encode(&b, 8, x.scale()).unwrap();
    let top = fixture.top();
    let (sum, difference) = (zip(&a, &b, |a, b| a + b), zip(&a, &b, |a, b| a - b));
    fixture.assert_canonical(&evaluator.add(&x, &y).unwrap(), top, &sum, ONE_OPERATION);
    fixture.assert_canonical(&evaluator.sub(&x, &y).unwrap(), top, &difference, ONE_OPERATION);
    fixture.assert_canonical(&evaluator.add_plain(&x, &p).unwrap(), top, &sum, ONE_OPERATION);
    fixture.assert_canonical(&evaluator.sub_plain(&x, &p).unwrap(), top, &difference, ONE_OPERATION);
    fixture.assert_canonical(&evaluator.add_slots(&x, &b).unwrap(), top, &sum, ONE_OPERATION);
    let opposite: Vec<_> = a.iter().map(|a| -a).collect();
    fixture.assert_canonical(&evaluator.negate(&x).unwrap(), top, &opposite, ONE_OPERATION);
}

#[test]
fn sums_take_the_lower_level_and_the_longer_period() {
    let fixture = Fixture::new(&KeyManifest::default());
    let (a, b) = (random_slots(64, 1), random_slots(8, 2));
    let high = fixture.encrypt(&a);
    let mut low = fixture.encrypt_at(&b, 4);
    let evaluator = &fixture.evaluator;
    low.set_scale(1.001 * high.scale());
    match evaluator.add(&high, &low) {
        Err(CkksError::ScaleMismatch { relative, .. }) => assert!((relative - 0.001).abs() < 1e-5),
        other => panic!("{:?}", other.map(|ciphertext| ciphertext.level())),
    }
    low.set_scale(fixture.ring.parameters().canonical_scale(4));
    let aligned = evaluator.drop_to_level(&high, 4).unwrap();
    let periodic: Vec<_> = b.iter().cycle().take(64).copied().collect();
    let sum = zip(&a, &periodic, |a, b| a + b);
    fixture.assert_canonical(&evaluator.add(&aligned, &low).unwrap(), 4, &sum, ONE_OPERATION);
    low.set_scale(high.scale());
    let mixed = evaluator.add(&high, &low).unwrap();
    assert_eq!((mixed.level(), mixed.slots()), (4, 64));
}

#[test]
fn drop_to_level_is_canonical_everywhere() {
    let fixture = Fixture::new(&KeyManifest::default());
    let a = random_slots(32, 1);
    let top = fixture.encrypt(&a);
    for level in (0..=6).rev() {
        let lowered = fixture.evaluator.drop_to_level(&top, level).unwrap();
        fixture.assert_canonical(&lowered, level, &a, ONE_OPERATION);
    }
    let low = fixture.encrypt_at(&a, 2);
    assert!(matches!(
        fixture.evaluator.drop_to_level(&low, 3),
        Err(CkksError::LevelExhausted { level: 2, needed: 3, .. })
    ));
}

#[test]
fn products_with_plain_factors() {
    let fixture = Fixture::new(&KeyManifest::default());
    let (a, b) = (random_slots(512, 1), random_slots(512, 2));
    let x = fixture.encrypt(&a);
    let evaluator = &fixture.evaluator;
    let product = zip(&a, &b, |a, b| a * b);
    let below = fixture.top() - 1;
    fixture.assert_canonical(&evaluator.mul_slots(&x, &b).unwrap(), below, &product, ONE_OPERATION);

    let p = fixture.encoder.encode(&b, 6, 45_f64.exp2()).unwrap();
    let unscaled = evaluator.mul_plain(&x, &p).unwrap();
    assert_eq!(unscaled.scale(), x.scale() * 45_f64.exp2());
    assert_near(&fixture.decrypt(&unscaled), &product, ONE_OPERATION);

    let mut sum = evaluator.zero(9, unscaled.scale(), 1).unwrap();
    evaluator.mul_plain_accumulate(&mut sum, &x, &p).unwrap();
    evaluator.mul_plain_accumulate_many(&mut sum, &[(&x, &p), (&x, &p)]).unwrap();
    assert_eq!((sum.level(), sum.slots()), (6, 512));
    let triple: Vec<_> = product.iter().map(|z| z * 3.0).collect();
    assert_near(&fixture.decrypt(&sum), &triple, 3.0 * ONE_OPERATION);
}

#[test]
fn products_with_integer_polynomials_are_those_with_their_plaintexts() {
    let fixture = Fixture::new(&KeyManifest::default());
    let (evaluator, encoder) = (&fixture.evaluator, &fixture.encoder);
    // All slots, and few, whose polynomial is one in a power of X.
    for slots in [512, 8] {
        let a: Vec<_> = (0..3).map(|seed| fixture.encrypt(&random_slots(512, seed))).collect();
        let scale = a[0].scale();
        let integers: Vec<_> =
            (3..6).map(|seed| encoder.integers(&random_slots(slots, seed), scale).unwrap()).collect();
        let plain: Vec<_> = integers.iter().map(|p| encoder.lift(p, slots, fixture.top(), scale).unwrap()).collect();
        let mut sum = evaluator.zero(fixture.top(), scale * scale, 512).unwrap();
        let mut expected = sum.duplicate(&fixture.ring).unwrap();
        let pairs: Vec<_> = a.iter().zip(&integers).collect();
        evaluator.mul_integers_accumulate(&mut sum, &pairs, scale).unwrap();
        let pairs: Vec<_> = a.iter().zip(&plain).collect();
        evaluator.mul_plain_accumulate_many(&mut expected, &pairs).unwrap();
        let words = |a: &Ciphertext<_>| fixture.ring.backend().download(a.buffer()).unwrap();
        assert_eq!(words(&sum), words(&expected), "{slots} slots");
    }
}

#[test]
fn products_with_numbers() {
    let fixture = Fixture::new(&KeyManifest::default());
    let a = random_slots(16, 1);
    let x = fixture.encrypt(&a);
    let evaluator = &fixture.evaluator;
    let map = |operation: fn(Complex64) -> Complex64| a.iter().map(|&z| operation(z)).collect::<Vec<_>>();
    let top = fixture.top();
    let scaled = evaluator.mul_scalar(&x, -0.3).unwrap();
    fixture.assert_canonical(&scaled, top - 1, &map(|z| z * -0.3), ONE_OPERATION);
    fixture.assert_canonical(&evaluator.mul_integer(&x, -7).unwrap(), top, &map(|z| z * -7.0), 7.0 * ONE_OPERATION);
    fixture.assert_canonical(&evaluator.mul_by_i(&x).unwrap(), top, &map(|z| z * Complex64::I), ONE_OPERATION);
    fixture.assert_canonical(&evaluator.add_scalar(&x, 0.25).unwrap(), top, &map(|z| z + 0.25), ONE_OPERATION);

    let wide = evaluator.mul_scalar_at(&x, 0.5, 80_f64.exp2()).unwrap();
    assert_near(&fixture.decrypt(&wide), &map(|z| z * 0.5), ONE_OPERATION);
    let mut sum = evaluator.mul_scalar_at(&x, 0.5, 41_f64.exp2()).unwrap();
    evaluator.mul_scalar_accumulate(&mut sum, &x, 1.5).unwrap();
    assert_near(&fixture.decrypt(&sum), &map(|z| z * 2.0), 2.0 * ONE_OPERATION);
    assert!(matches!(evaluator.mul_scalar_at(&x, f64::INFINITY, 1.0), Err(CkksError::Value { .. })));
}

#[test]
fn products_of_ciphertexts() {
    let fixture = Fixture::with_relinearisation();
    for slots in [8, 512] {
        let (a, b) = (random_slots(slots, 1), random_slots(slots, 2));
        let (x, y) = (fixture.encrypt(&a), fixture.encrypt(&b));
        let (evaluator, keys) = (&fixture.evaluator, &fixture.keys);
        let product = zip(&a, &b, |a, b| a * b);
        let fused = evaluator.mul_rescale(&x, &y, keys).unwrap();
        fixture.assert_canonical(&fused, fixture.top() - 1, &product, ONE_OPERATION);
        let stepwise = evaluator.rescale(&evaluator.mul(&x, &y, keys).unwrap()).unwrap();
        fixture.assert_canonical(&stepwise, fixture.top() - 1, &product, ONE_OPERATION);
        let square = evaluator.square_rescale(&x, keys).unwrap();
        fixture.assert_canonical(&square, fixture.top() - 1, &zip(&a, &a, |a, b| a * b), ONE_OPERATION);
        let square = evaluator.rescale(&evaluator.square(&x, keys).unwrap()).unwrap();
        fixture.assert_canonical(&square, fixture.top() - 1, &zip(&a, &a, |a, b| a * b), ONE_OPERATION);
    }
}

#[test]
fn lazy_relinearisation_of_a_sum_of_products() {
    let fixture = Fixture::with_relinearisation();
    let (a, b) = (random_slots(64, 1), random_slots(64, 2));
    let (x, y) = (fixture.encrypt(&a), fixture.encrypt(&b));
    let (evaluator, keys) = (&fixture.evaluator, &fixture.keys);
    let mut sum = evaluator.tensor(&x, &y).unwrap();
    assert_eq!(sum.polynomials(&fixture.ring), 3);
    assert_near(&fixture.decrypt(&sum), &zip(&a, &b, |a, b| a * b), ONE_OPERATION);
    evaluator.add_assign(&mut sum, &evaluator.tensor(&x, &x).unwrap()).unwrap();
    let linear = evaluator.mul_scalar_at(&y, 1.0, x.scale()).unwrap();
    let difference = evaluator.sub(&linear, &sum).unwrap();
    let expected = zip(&a, &b, |a, b| b - a * b - a * a);
    let result = evaluator.relinearise_rescale(&difference, keys).unwrap();
    assert_eq!(result.polynomials(&fixture.ring), 2);
    fixture.assert_canonical(&result, fixture.top() - 1, &expected, 3.0 * ONE_OPERATION);
    assert!(matches!(evaluator.tensor(&sum, &x), Err(CkksError::Polynomials { expected: 2, found: 3, .. })));
}

#[test]
fn canonical_scales_hold_down_to_the_last_level() {
    let fixture = Fixture::with_relinearisation();
    let mut expected: Vec<_> = random_slots(128, 1).into_iter().map(|z| z * 0.7).collect();
    let mut x = fixture.encrypt(&expected);
    for level in (0..fixture.top()).rev() {
        x = fixture.evaluator.square_rescale(&x, &fixture.keys).unwrap();
        expected = zip(&expected, &expected, |a, b| a * b);
        fixture.assert_canonical(&x, level, &expected, 2e-7);
    }
    assert!(matches!(
        fixture.evaluator.square_rescale(&x, &fixture.keys),
        Err(CkksError::LevelExhausted { level: 0, needed: 1, .. })
    ));
    assert!(matches!(fixture.evaluator.mul_scalar(&x, 1.0), Err(CkksError::LevelExhausted { .. })));
}

#[test]
fn explicit_scales_above_the_levels_for_use() {
    let fixture = Fixture::with_relinearisation();
    let (a, b) = (random_slots(64, 1), random_slots(64, 2));
    let encryptor = Encryptor::with_secret_key(fixture.ring.clone(), &fixture.secret);
    let encrypt = |values: &[Complex64], log2_scale: f64| {
        encryptor.encrypt(&fixture.encoder.encode(values, 9, log2_scale.exp2()).unwrap()).unwrap()
    };
    let (x, y) = (encrypt(&a, 50.0), encrypt(&b, 48.5));
    let product = fixture.evaluator.mul_rescale(&x, &y, &fixture.keys).unwrap();
    let expected_scale = 98.5_f64.exp2() / fixture.ring.parameters().primes()[9] as f64;
    assert!((product.scale() / expected_scale - 1.0).abs() < 1e-12);
    assert_near(&fixture.decrypt(&product), &zip(&a, &b, |a, b| a * b), 1e-9);
    assert!(matches!(fixture.evaluator.add(&x, &y), Err(CkksError::ScaleMismatch { .. })));
}

#[test]
fn raising_the_modulus_adds_small_multiples_of_the_base_prime() {
    let mut manifest = KeyManifest::default();
    manifest.require_encapsulation([0], 9);
    let fixture = Fixture::new(&manifest);
    let base = fixture.ring.parameters().primes()[0] as f64;
    let coefficients: Vec<f64> = (0..1024).map(|k| f64::from(k) - 512.0).collect();
    let plaintext = fixture.encoder.encode_coefficients(&coefficients, 0, 20_f64.exp2()).unwrap();
    let encryptor = Encryptor::with_secret_key(fixture.ring.clone(), &fixture.secret);
    let key = fixture.keys.find(fixture.ring.parameters(), KeyRole::DenseToSparse, 0).unwrap();
    let sparse = fixture.evaluator.switch_key(&encryptor.encrypt(&plaintext).unwrap(), key).unwrap();
    let raised = fixture.evaluator.raise_modulus(&sparse, 9).unwrap();
    let raised = fixture.evaluator.rotate_raised(&raised, 0, &fixture.keys).unwrap();
    assert_eq!(raised.level(), 9);
    let decrypted = Decryptor::new(fixture.ring.clone(), &fixture.secret).decrypt_fully(&raised).unwrap();
    let found = fixture.encoder.decode_coefficients(&decrypted).unwrap();
    let mut multiples = 0;
    for (value, expected) in found.iter().zip(&coefficients) {
        let difference = (value - expected) * 20_f64.exp2() / base;
        let multiple = difference.round();
        assert!((difference - multiple).abs() < 1e-9, "{difference}");
        assert!(multiple.abs() <= 16.0);
        multiples += usize::from(multiple != 0.0);
    }
    assert!(multiples > 500);
}
