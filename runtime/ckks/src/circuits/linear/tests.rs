use std::collections::BTreeSet;

use cachemir_hal::CpuBackend;
use num_complex::Complex64;

use super::*;
use crate::circuits::fourier::slots_to_coefficients;
use crate::circuits::testing::Fixture;

#[test]
fn both_hoistings_agree_with_the_clear_map() {
    let slots = 64;
    let matrix = &slots_to_coefficients(slots, 2)[1];
    let offsets: BTreeSet<usize> = matrix.diagonals().keys().copied().collect();
    let steps = StepPlan::new(&offsets, slots, &BTreeSet::new(), 2, Hoisting::Double);
    assert!(steps.giants().count() > 0);
    let level = 6;
    let fixture = Fixture::<CpuBackend>::new(&|manifest| {
        for rotation in steps.rotations() {
            manifest.require_rotation(rotation, [level]);
        }
    });
    let vector: Vec<Complex64> = (0..slots).map(|j| Complex64::new((j as f64).sin(), (j as f64 * 0.3).cos())).collect();
    let expected = matrix.apply(&vector);
    let input = fixture.encrypt(&vector, level + 1);
    for hoisting in [Hoisting::Single, Hoisting::Double] {
        let scale = fixture.evaluator.ring().parameters().primes()[level] as f64;
        let transform =
            LinearTransform::encode(fixture.evaluator.encoder(), matrix, steps.clone(), hoisting, level, scale)
                .unwrap();
        let raw = transform.apply(&fixture.evaluator, &fixture.keys, &input).unwrap();
        let once = fixture.evaluator.rescale(&raw).unwrap();
        let fused = transform.apply_rescale(&fixture.evaluator, &fixture.keys, &input).unwrap();
        for result in [once, fused] {
            assert_eq!(result.level(), level - 1);
            let error = fixture.decrypt(&result).iter().zip(&expected).map(|(a, b)| (a - b).norm()).fold(0.0, f64::max);
            assert!(error < 1e-6, "{hoisting:?}: {error}");
        }
    }
}
