use cachemir_hal::CpuBackend;
use cachemir_ir::chebyshev::interpolate;
use num_complex::Complex64;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;

use super::*;
use crate::circuits::testing::Fixture;
use crate::noise::{NoiseModel, key_product_variance, rounding_variance};

fn inputs(slots: usize) -> Vec<f64> {
    (0..slots).map(|j| ((j * 37 % 101) as f64 / 50.0 - 1.0).clamp(-1.0, 1.0)).collect()
}

fn worst(values: &[Complex64], expected: impl Fn(usize) -> Complex64) -> f64 {
    values.iter().enumerate().map(|(j, v)| (v - expected(j)).norm()).fold(0.0, f64::max)
}

#[test]
fn polynomials_of_many_degrees_come_out_canonical_and_right() {
    let fixture = Fixture::<CpuBackend>::new(&|manifest| manifest.require_relinearisation(1..=16));
    let x = inputs(64);
    let encrypted = fixture.encrypt_real(&x, 13);
    for (basis, degree) in [
        (Basis::Chebyshev, 1),
        (Basis::Chebyshev, 7),
        (Basis::Chebyshev, 22),
        (Basis::Chebyshev, 59),
        (Basis::Monomial, 12),
    ] {
        let coefficients = (0..=degree).map(|j| ((j * 7 % 11) as f64 - 5.0) / (5 * (degree + 1)) as f64).collect();
        let polynomial = Polynomial::new(basis, coefficients);
        let plan = EvaluationPlan::new(&polynomial);
        let result = plan.evaluate_canonical(&fixture.evaluator, &fixture.keys, &encrypted, None).unwrap();
        assert_eq!(result.level(), 13 - depth(degree));
        assert_eq!(result.scale(), fixture.evaluator.ring().parameters().canonical_scale(result.level()));
        let error = worst(&fixture.decrypt(&result), |j| polynomial.evaluate(x[j]).into());
        assert!(error < 1e-6, "{basis:?} of degree {degree}: {error}");
    }
}

#[test]
fn slot_factors_cost_no_level() {
    let fixture = Fixture::<CpuBackend>::new(&|manifest| manifest.require_relinearisation(1..=16));
    let x = inputs(32);
    let encrypted = fixture.encrypt_real(&x, 9);
    let polynomial = Polynomial::chebyshev(interpolate(|x| (2.0 * x).exp() / 8.0, 15));
    let plan = EvaluationPlan::new(&polynomial);
    let factor: Vec<Complex64> =
        (0..32).map(|j| [Complex64::ZERO, Complex64::I, Complex64::new(0.5, -2.0)][j % 3]).collect();
    let result = plan.evaluate_canonical(&fixture.evaluator, &fixture.keys, &encrypted, Some(&factor)).unwrap();
    assert_eq!(result.level(), 5);
    let error = worst(&fixture.decrypt(&result), |j| factor[j] * polynomial.evaluate(x[j]));
    assert!(error < 1e-6, "{error}");
}

#[test]
fn levels_that_do_not_suffice_are_refused() {
    let fixture = Fixture::<CpuBackend>::new(&|_| ());
    let encrypted = fixture.encrypt_real(&[0.5], 4);
    let plan = EvaluationPlan::new(&Polynomial::chebyshev(vec![0.1; 32]));
    assert!(matches!(
        plan.evaluate_canonical(&fixture.evaluator, &fixture.keys, &encrypted, None),
        Err(CkksError::LevelExhausted { level: 4, needed: 5, .. })
    ));
}

/// Root mean squares of real and imaginary parts.
fn deviations(errors: &[Complex64]) -> [f64; 2] {
    let root = |part: fn(&Complex64) -> f64| {
        (errors.iter().map(|error| part(error).powi(2)).sum::<f64>() / errors.len() as f64).sqrt()
    };
    [root(|error| error.re), root(|error| error.im)]
}

#[test]
fn coefficients_that_cancel_amplify_errors_of_both_parts_as_modelled() {
    let fixture = Fixture::<CpuBackend>::new(&|manifest| manifest.require_relinearisation(1..=16));
    let slots = 256;
    let x: Vec<f64> = inputs(slots).iter().map(|x| 0.3 * x).collect();
    let encrypted = fixture.encrypt_real(&x, 13);
    // A million at 1, less than rounding errors where the inputs lie.
    let polynomial = Polynomial::chebyshev(interpolate(|x| 1e6 * (62.0 * (x - 1.0)).exp(), 63));
    let plan = EvaluationPlan::new(&polynomial);
    let result = plan.evaluate_canonical(&fixture.evaluator, &fixture.keys, &encrypted, None).unwrap();
    let found = fixture.decrypt(&result);
    let errors: Vec<Complex64> = found.iter().zip(&x).map(|(found, &x)| found - polynomial.evaluate(x)).collect();

    let parameters = fixture.evaluator.ring().parameters();
    let (level, scale) = (result.level(), result.scale());
    let model = NoiseModel::new(parameters, slots);
    let rounding = model.of_slot(rounding_variance(parameters), scale);
    let deviation = rounding.hypot(model.of_slot(key_product_variance(parameters, level), scale * scale));
    let mut generator = ChaCha20Rng::seed_from_u64(1);
    let mut noise = || {
        let radius = (-(1.0 - generator.random::<f64>()).ln()).sqrt();
        Complex64::from_polar(radius, std::f64::consts::TAU * generator.random::<f64>()) * deviation
    };
    let modelled: Vec<Complex64> =
        x.iter().map(|&x| plan.evaluate_clear(x.into(), &mut noise) - polynomial.evaluate(x)).collect();

    for (measured, modelled) in deviations(&errors).into_iter().zip(deviations(&modelled)) {
        assert!(measured > 100.0 * deviation, "{measured} is not amplified");
        assert!((0.3..=3.0).contains(&(modelled / measured)), "{measured} measured, {modelled} modelled");
    }
}
