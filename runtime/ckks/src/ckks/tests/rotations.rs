use super::*;
use crate::error::CkksError;

#[test]
fn rotations_left_and_right_dense_and_sparse() {
    let fixture = Fixture::with_rotations(&[1, 3, 7, 511, 64]);
    for (slots, rotations) in [(512, vec![0, 1, 3, -1, 64, 512 + 7]), (8, vec![0, 1, 3, -1, 7, 9, -5])] {
        let a = random_slots(slots, 1);
        let x = fixture.encrypt(&a);
        for rotation in rotations {
            let y = fixture.evaluator.rotate(&x, rotation, &fixture.keys).unwrap();
            fixture.assert_canonical(&y, fixture.top(), &rotated(&a, rotation), ONE_OPERATION);
        }
    }
}

#[test]
fn hoisted_rotations_are_the_plain_ones() {
    let fixture = Fixture::with_rotations(&[1, 3, 64]);
    let a = random_slots(512, 1);
    let x = fixture.encrypt(&a);
    let rotations = [0, 64, 3, 1];
    let hoisted = fixture.evaluator.hoisted_rotations(&x, &rotations, &fixture.keys).unwrap();
    for (y, rotation) in hoisted.iter().zip(rotations) {
        let plain = fixture.evaluator.rotate(&x, rotation, &fixture.keys).unwrap();
        assert_eq!(plain.to_bytes(&fixture.ring).unwrap(), y.to_bytes(&fixture.ring).unwrap());
        fixture.assert_canonical(y, fixture.top(), &rotated(&a, rotation), ONE_OPERATION);
    }
}

#[test]
fn conjugation() {
    let fixture = Fixture::with_rotations(&[]);
    for slots in [1, 16, 512] {
        let a = random_slots(slots, 1);
        let y = fixture.evaluator.conjugate(&fixture.encrypt(&a), &fixture.keys).unwrap();
        let expected: Vec<_> = a.iter().map(Complex64::conj).collect();
        fixture.assert_canonical(&y, fixture.top(), &expected, ONE_OPERATION);
    }
}

#[test]
fn double_hoisted_sum_of_rotations_with_plain_factors() {
    let fixture = Fixture::with_rotations(&[1, 3, 64]);
    let (evaluator, keys) = (&fixture.evaluator, &fixture.keys);
    let a = random_slots(512, 1);
    let x = fixture.encrypt(&a);
    let level = x.level();
    let factor_scale = evaluator.canonical_factor(&x).unwrap();
    let gadget = fixture.ring.parameters().gadget(level);
    let digits = evaluator.decompose(&x).unwrap();
    let mut expected = vec![Complex64::ZERO; 512];
    let mut terms = Vec::new();
    for (seed, rotation) in [0, 1, 3, 64].into_iter().enumerate() {
        let weights = random_slots(512, 10 + seed as u8);
        let product = zip(&rotated(&a, rotation), &weights, |a, w| a * w);
        expected = zip(&expected, &product, |sum, term| sum + term);
        terms.push((
            evaluator.rotate_extended(&x, &digits, rotation, keys).unwrap(),
            fixture.encoder.encode_extended(&weights, level, factor_scale, gadget).unwrap(),
        ));
    }
    let mut sum = evaluator.zero_extended(level, x.scale() * factor_scale, 512).unwrap();
    let pairs: Vec<_> = terms.iter().map(|(rotation, weights)| (rotation, weights)).collect();
    evaluator.mul_plain_accumulate_extended(&mut sum, &pairs).unwrap();
    let fused = evaluator.mod_down_rescale(&sum).unwrap();
    fixture.assert_canonical(&fused, level - 1, &expected, 4.0 * ONE_OPERATION);
    let stepwise = evaluator.rescale(&evaluator.mod_down(&sum).unwrap()).unwrap();
    fixture.assert_canonical(&stepwise, level - 1, &expected, 4.0 * ONE_OPERATION);
}

#[test]
fn extended_accumulation_of_rotations() {
    let fixture = Fixture::with_rotations(&[1, 3]);
    let (evaluator, keys) = (&fixture.evaluator, &fixture.keys);
    let (a, b) = (random_slots(512, 1), random_slots(512, 2));
    let (x, y) = (fixture.encrypt(&a), fixture.encrypt(&b));
    let mut sum = evaluator.extend(&x).unwrap();
    evaluator.rotate_accumulate_extended(&mut sum, &y, 3, keys).unwrap();
    evaluator.rotate_accumulate_extended(&mut sum, &x, 1, keys).unwrap();
    evaluator.rotate_accumulate_extended(&mut sum, &y, 0, keys).unwrap();
    evaluator.add_extended_assign(&mut sum, &evaluator.extend(&y).unwrap()).unwrap();
    let expected: Vec<_> = (0..512).map(|j| a[j] + rotated(&b, 3)[j] + rotated(&a, 1)[j] + b[j] + b[j]).collect();
    fixture.assert_canonical(&evaluator.mod_down(&sum).unwrap(), 6, &expected, 4.0 * ONE_OPERATION);
    let low = fixture.encrypt_at(&a, 3);
    let extended = evaluator.extend(&evaluator.mul_scalar_at(&low, 1.0, sum.scale() / low.scale()).unwrap()).unwrap();
    let foreign = evaluator.rotate_decomposed(&low, &evaluator.decompose(&x).unwrap(), 1, keys);
    for refused in [evaluator.add_extended_assign(&mut sum, &extended).err(), foreign.err()] {
        assert!(
            matches!(refused, Some(CkksError::ScaleMismatch { .. } | CkksError::LevelMismatch { .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn sums_with_rotations_decompose_once() {
    let fixture = Fixture::with_rotations(&[1, 3]);
    let a = random_slots(512, 1);
    let sum = fixture.evaluator.sum_with_rotations(&fixture.encrypt(&a), &[1, 3], &fixture.keys).unwrap();
    let expected: Vec<_> = (0..512).map(|j| a[j] + rotated(&a, 1)[j] + rotated(&a, 3)[j]).collect();
    fixture.assert_canonical(&sum, fixture.top(), &expected, 3.0 * ONE_OPERATION);
}

#[test]
fn missing_keys_and_key_levels_are_named() {
    let mut manifest = KeyManifest::default();
    manifest.require_rotation(5, [2]);
    let fixture = Fixture::new(&manifest);
    let a = random_slots(512, 1);
    let rotate = |level, rotation| fixture.evaluator.rotate(&fixture.encrypt_at(&a, level), rotation, &fixture.keys);
    assert!(matches!(rotate(6, 5), Err(CkksError::KeyLevel { key_levels, level: 6, .. }) if key_levels == [2]));
    match rotate(2, 6) {
        Err(CkksError::MissingKey { key }) => assert_eq!(key, "rotation by 6"),
        other => panic!("{:?}", other.map(|ciphertext| ciphertext.level())),
    }
    assert!(matches!(
        fixture.evaluator.conjugate(&fixture.encrypt(&a), &fixture.keys),
        Err(CkksError::MissingKey { .. })
    ));
}
