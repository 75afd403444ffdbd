use cachemir_hal::CpuBackend;
use num_complex::Complex64;

use super::*;
use crate::circuits::testing::Fixture;
use crate::parameters::Parameters;

type Slots = Vec<Complex64>;

/// Deterministic numbers in `[-1, 1)`.
fn uniform(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(2862933555777941757).wrapping_add(3037000493);
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
        .collect()
}

fn shapes(slots: usize, kind: SlotKind) -> Vec<(&'static str, Slots)> {
    let real = |values: Vec<f64>| -> Slots { values.into_iter().map(Complex64::from).collect() };
    let mut one_hot = vec![0.0; slots];
    one_hot[slots / 3] = 1.0;
    let softmax: Vec<f64> = uniform(slots, 7).iter().map(|x| (4.0 * x - 4.0).exp()).collect();
    let mut shapes = vec![
        ("real", real(uniform(slots, 1))),
        ("all ones", real(vec![1.0; slots])),
        ("all minus ones", real(vec![-1.0; slots])),
        ("one-hot", real(one_hot)),
        ("softmax-like", real(softmax)),
    ];
    if kind == SlotKind::Complex {
        let parts = uniform(slots, 2).into_iter().zip(uniform(slots, 3));
        shapes.insert(0, ("uniform complex", parts.map(|(re, im)| Complex64::new(re, im)).collect()));
    }
    shapes
}

/// Bits of precision: mean and worst, of complex absolute errors.
fn precision(values: &[Complex64], expected: &[Complex64]) -> (f64, f64) {
    let errors: Vec<f64> = values.iter().zip(expected).map(|(a, b)| (a - b).norm()).collect();
    let mean = errors.iter().sum::<f64>() / errors.len() as f64;
    (-mean.log2(), -errors.iter().copied().fold(0.0, f64::max).log2())
}

fn fixture(slots: usize, kind: SlotKind) -> (Fixture<CpuBackend>, Bootstrapper<CpuBackend>) {
    let parameters = Parameters::preset("insecure-test").unwrap();
    let plan = BootstrapPlan::new(&parameters, slots, kind).unwrap();
    let fixture = Fixture::with_parameters(parameters, &|manifest| manifest.merge(&plan.key_manifest()));
    let bootstrapper = Bootstrapper::with_plan(&fixture.evaluator, plan).unwrap();
    (fixture, bootstrapper)
}

/// Bootstraps inputs of the first `count` shapes.
fn check_shapes(slots: usize, kind: SlotKind, count: usize) {
    let (fixture, bootstrapper) = fixture(slots, kind);
    let predicted = bootstrapper.plan().noise(fixture.evaluator.ring().parameters());
    let entry = bootstrapper.prepare_entry(&fixture.evaluator, None, 0).unwrap();
    for (index, (name, vector)) in shapes(slots, kind).into_iter().take(count).enumerate() {
        // Inputs at the lowest level accepted and above it.
        let level = bootstrapper.plan().input_level() + index % 3;
        let input = fixture.encrypt(&vector, level);
        let output = bootstrapper.bootstrap(&fixture.evaluator, &fixture.keys, &entry, &input).unwrap();
        let parameters = fixture.evaluator.ring().parameters();
        assert_eq!((output.level(), output.slots()), (parameters.use_top_level(), slots));
        assert_eq!(output.scale(), parameters.canonical_scale(output.level()));
        let (mean, worst) = precision(&fixture.decrypt(&output), &vector);
        assert!(mean > 20.0 && worst > 17.0, "{name}, {slots} slots, {kind:?}: {mean:.1} bits, worst {worst:.1}");
        // The mean over one slot is no mean.
        let optimism = predicted.precision_bits_mean() - mean;
        assert!(slots < 64 || (-6.0..1.0).contains(&optimism), "{name}, {slots} slots, {kind:?}: {optimism:.1} bits");
    }
}

#[test]
fn all_slots_complex() {
    check_shapes(1 << 11, SlotKind::Complex, 6);
}

#[test]
fn all_slots_real() {
    check_shapes(1 << 11, SlotKind::Real, 5);
}

#[test]
fn sparse_complex() {
    check_shapes(1 << 8, SlotKind::Complex, 6);
    check_shapes(2, SlotKind::Complex, 2);
}

#[test]
fn sparse_real() {
    check_shapes(1 << 6, SlotKind::Real, 2);
    check_shapes(1, SlotKind::Real, 2);
}

#[test]
fn masks_and_magnitudes_cost_nothing() {
    let slots = 1 << 7;
    let (fixture, bootstrapper) = fixture(slots, SlotKind::Complex);
    let mask: Vec<f64> = (0..8).map(|j| [1.0, 0.0, -0.5, 0.0][j % 4]).collect();
    let log2_magnitude = 6;
    let entry = bootstrapper.prepare_entry(&fixture.evaluator, Some(&mask), log2_magnitude).unwrap();
    let vector: Slots = uniform(slots, 4)
        .iter()
        .zip(uniform(slots, 5))
        .enumerate()
        .map(|(j, (re, im))| Complex64::new(*re, im) * if j % 2 == 0 { 64.0 } else { 1e5 })
        .collect();
    let output =
        bootstrapper.bootstrap(&fixture.evaluator, &fixture.keys, &entry, &fixture.encrypt(&vector, 5)).unwrap();
    let expected: Slots = vector.iter().enumerate().map(|(j, v)| v * mask[j % 8]).collect();
    let (mean, worst) = precision(&fixture.decrypt(&output), &expected);
    // Absolute errors grow with the magnitude.
    assert!(mean > 13.0 && worst > 11.0, "{mean:.1} bits, worst {worst:.1}");
}

#[test]
fn unusable_entries_and_inputs_are_refused() {
    let (fixture, bootstrapper) = fixture(4, SlotKind::Real);
    assert!(bootstrapper.prepare_entry(&fixture.evaluator, Some(&[1.0; 3]), 0).is_err());
    assert!(bootstrapper.prepare_entry(&fixture.evaluator, None, 40).is_err());
    let entry = bootstrapper.prepare_entry(&fixture.evaluator, None, 0).unwrap();
    let too_low = fixture.encrypt_real(&[0.5; 4], bootstrapper.plan().input_level() - 1);
    assert!(matches!(
        bootstrapper.bootstrap(&fixture.evaluator, &fixture.keys, &entry, &too_low),
        Err(CkksError::LevelExhausted { .. })
    ));
}

/// Primes for EvalMod need not be as large as `q_0`.
#[test]
fn other_sizes_of_primes() {
    let n15 = crate::parameters::ParametersLiteral::n15();
    let name = format!("{}-n15", crate::parameters::INSECURE_MARKER);
    let literal = crate::parameters::ParametersLiteral { name, log2_degree: 12, insecure: true, ..n15 };
    let parameters = Parameters::new(literal).unwrap();
    let plan = BootstrapPlan::new(&parameters, 1 << 8, SlotKind::Complex).unwrap();
    let predicted = plan.noise(&parameters).precision_bits_mean();
    let fixture = Fixture::<CpuBackend>::with_parameters(parameters, &|manifest| manifest.merge(&plan.key_manifest()));
    let bootstrapper = Bootstrapper::with_plan(&fixture.evaluator, plan.clone()).unwrap();
    let entry = bootstrapper.prepare_entry(&fixture.evaluator, None, 0).unwrap();
    let vector = shapes(1 << 8, SlotKind::Complex).remove(0).1;
    let input = fixture.encrypt(&vector, plan.input_level());
    let output = bootstrapper.bootstrap(&fixture.evaluator, &fixture.keys, &entry, &input).unwrap();
    let (mean, _) = precision(&fixture.decrypt(&output), &vector);
    assert!(mean > 15.0 && (-6.0..1.0).contains(&(predicted - mean)), "{mean:.1} bits, predicted {predicted:.1}");
}
