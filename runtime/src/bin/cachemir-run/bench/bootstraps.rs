//! Bootstraps: time by phase, precision by kind of input, memory.

use std::time::Instant;

use cachemir_ckks::circuits::bootstrapping::{BootstrapPlan, Bootstrapper, Phase, SlotKind};
use cachemir_ckks::{CkksError, Decryptor, Encryptor, KeyManifest, KeyRole, Parameters};
use cachemir_hal::Backend as _;
use cachemir_ir::cost::BootstrapCost;
use cachemir_ir::text::format_bytes;
use cachemir_runtime::{Error, memory};
use num_complex::Complex64;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use serde_json::{Value, json};

use super::operations::{Bench, report_scaling};
use super::report::{Field, Measured, fields, rounded};
use crate::arguments::BenchOps;
use crate::output;
use crate::timing::{Unit, median, once_ns};

/// Rotations that a program needs besides those of a bootstrap, for the figures of memory.
const FURTHER_ROTATIONS: usize = 40;

/// What the slots of an input hold.
#[derive(Clone, Copy)]
enum Input {
    Uniform,
    Ones,
    MinusOnes,
    OneHot,
    Softmax,
    Real,
}

impl Input {
    const ALL: [Self; 6] = [Self::Uniform, Self::Ones, Self::MinusOnes, Self::OneHot, Self::Softmax, Self::Real];

    fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Ones => "ones",
            Self::MinusOnes => "minus_ones",
            Self::OneHot => "one_hot",
            Self::Softmax => "softmax",
            Self::Real => "real",
        }
    }

    fn slots(self, count: usize, generator: &mut ChaCha20Rng) -> Vec<Complex64> {
        let hot = generator.random_range(0..count);
        (0..count)
            .map(|slot| {
                let mut uniform = || generator.random_range(-1.0..1.0);
                match self {
                    Self::Uniform => Complex64::new(uniform(), uniform()),
                    Self::Ones => Complex64::ONE,
                    Self::MinusOnes => -Complex64::ONE,
                    Self::OneHot => Complex64::from(f64::from(u8::from(slot == hot))),
                    Self::Softmax => Complex64::from((4.0_f64 * (uniform() - 1.0)).exp()),
                    Self::Real => Complex64::from(uniform()),
                }
            })
            .collect()
    }
}

/// Absolute errors of slots, over all runs.
#[derive(Default)]
struct Errors {
    absolute: Vec<f64>,
}

impl Errors {
    fn add(&mut self, values: &[Complex64], expected: &[Complex64]) {
        self.absolute.extend(values.iter().zip(expected).map(|(a, b)| (a - b).norm()));
    }

    /// -log2 of the mean and of the largest, and of quantiles.
    fn fields(mut self) -> Vec<Field> {
        let count = self.absolute.len().max(1);
        let mean = self.absolute.iter().sum::<f64>() / count as f64;
        self.absolute.sort_by(f64::total_cmp);
        let bits = |error: f64| json!(rounded(-error.log2()));
        let quantile = |share: f64| self.absolute[((count - 1) as f64 * share) as usize];
        vec![
            ("precision_bits_mean", bits(mean)),
            ("precision_bits_min", bits(quantile(1.0))),
            ("precision_bits_median", bits(quantile(0.5))),
            ("precision_bits_worst_percent", bits(quantile(0.99))),
        ]
    }
}

/// Measures the variants asked for, all of the preset's by default.
pub(super) fn measure(bench: &Bench, unit: &Unit, options: &BenchOps) -> Result<Vec<BootstrapCost>, Error> {
    let log2_maximum = bench.ring.parameters().maximum_slots().ilog2();
    let variants = if options.log2_slots.is_empty() {
        vec![
            (log2_maximum, SlotKind::Complex),
            (log2_maximum, SlotKind::Real),
            (log2_maximum.min(12), SlotKind::Complex),
            (log2_maximum.min(12), SlotKind::Real),
            (6, SlotKind::Complex),
        ]
    } else {
        let both = |&log2: &u32| [(log2, SlotKind::Complex), (log2, SlotKind::Real)];
        options.log2_slots.iter().flat_map(both).collect()
    };
    let mut costs = Vec::new();
    for (log2_slots, kind) in variants {
        let ns = variant(bench, unit, 1 << log2_slots, kind, log2_slots == log2_maximum)?;
        costs.push(BootstrapCost { complex: kind == SlotKind::Complex, log2_slots, ns });
    }
    costs.sort_by_key(|cost| (cost.complex, cost.log2_slots));
    costs.dedup_by_key(|cost| (cost.complex, cost.log2_slots));
    Ok(costs)
}

/// The keys of a bootstrap and of so many other rotations at the top level for use.
fn manifest(plan: &BootstrapPlan, parameters: &Parameters, further: usize) -> KeyManifest {
    let mut manifest = plan.key_manifest();
    let used = |by: &usize| manifest.levels(KeyRole::Rotation(*by)).next().is_some();
    let free: Vec<usize> = (1..plan.slots()).filter(|by| !used(by)).take(further).collect();
    for rotation in free {
        manifest.require_rotation(rotation, [parameters.use_top_level()]);
    }
    manifest
}

/// Measures one variant; returns its time.
fn variant(bench: &Bench, unit: &Unit, slots: usize, kind: SlotKind, full: bool) -> Result<f64, Error> {
    let parameters = bench.ring.parameters();
    let plan = BootstrapPlan::new(parameters, slots, kind)?;
    let manifest = manifest(&plan, parameters, if full { FURTHER_ROTATIONS } else { 0 });
    let total = bench.generator.key_bytes(&manifest);
    let bar = output::bar(total, "evaluation keys", true);
    let begin = Instant::now();
    let keys = bench.generator.evaluation_keys(&bench.secret, &manifest, |made, _| {
        bar.set_position(made);
        std::ops::ControlFlow::Continue(())
    })?;
    bar.finish_and_clear();
    let keys_seconds = begin.elapsed().as_secs_f64();

    let predicted = plan.cost(parameters);
    let noise = plan.noise(parameters);
    let bootstrapper = Bootstrapper::with_plan(&bench.evaluator, plan)?;
    let entry = bootstrapper.prepare_entry(&bench.evaluator, None, 0)?;
    let encryptor = Encryptor::with_secret_key(bench.ring.clone(), &bench.secret);
    let decryptor = Decryptor::new(bench.ring.clone(), &bench.secret);
    let plan = bootstrapper.plan();
    let (level, level_out) = (plan.input_level(), plan.output_level());
    let mut generator = ChaCha20Rng::seed_from_u64(1);
    let mut all = Vec::new();
    let mut phases: Vec<(Phase, Vec<f64>)> = Vec::new();
    // The first bootstrap of a process takes seconds longer: the system clears its memory.
    let zeros = encryptor.encrypt_slots(bench.encoder(), &vec![Complex64::ZERO; slots], level)?;
    bootstrapper.bootstrap(&bench.evaluator, &keys, &entry, &zeros)?;
    let inputs: Vec<Input> =
        Input::ALL.into_iter().filter(|input| kind == SlotKind::Complex || !matches!(input, Input::Uniform)).collect();
    for input in inputs {
        let (mut errors, mut times) = (Errors::default(), Vec::new());
        for _ in 0..bench.runs {
            let vector = input.slots(slots, &mut generator);
            let a = encryptor.encrypt_slots(bench.encoder(), &vector, level)?;
            let mut last = Instant::now();
            let mut phase_times = Vec::new();
            let (ns, output) = once_ns(|| {
                bootstrapper.bootstrap_observed(&bench.evaluator, &keys, &entry, &a, &mut |phase| {
                    phase_times.push((phase, last.elapsed().as_secs_f64() * 1e9));
                    last = Instant::now();
                })
            })?;
            times.push(ns);
            for (phase, ns) in phase_times {
                match phases.iter_mut().find(|(known, _)| *known == phase) {
                    Some((_, times)) => times.push(ns),
                    None => phases.push((phase, vec![ns])),
                }
            }
            errors.add(&decryptor.decrypt_slots(bench.encoder(), &output)?, &vector);
        }
        all.extend(&times);
        let measured = Measured {
            op: "bootstrap",
            level,
            level_out,
            slots,
            median_ns: median(&mut times),
            predicted_ntt_units: Some(predicted.ntt_units()),
            bytes: total,
        };
        let mut further: Vec<Field> =
            vec![("complex", (kind == SlotKind::Complex).into()), ("input", input.name().into())];
        further.extend(errors.fields());
        further.push(("predicted_precision_bits_mean", rounded(noise.precision_bits_mean()).into()));
        further.push(("predicted_precision_bits_min", rounded(noise.precision_bits_min(slots * bench.runs)).into()));
        further.push((
            "log2_failure_probability",
            Value::from(plan.reduction().log2_failure_probability(bench.ring.degree())),
        ));
        bench.report.operation(&measured, &further)?;
    }
    for (phase, mut times) in phases {
        let ns = median(&mut times);
        let predicted: f64 = plan.cost_of(parameters, phase).ntt_units();
        let units = ns / bench.report.unit_ns;
        let text =
            format!("  {:<24} {:>10.3} ms = {units:>8.1} NTTs (predicted {predicted:.1})", phase.name(), ns / 1e6);
        let object = json!({
            "op": "bootstrap", "phase": phase.name(), "slots": slots, "complex": kind == SlotKind::Complex,
            "threads": bench.report.threads, "median_ns": ns.round(), "ntt_units": rounded(units),
            "predicted_ntt_units": rounded(predicted),
        });
        bench.report.event("phase", &text, fields(object))?;
    }
    if full {
        memory_event(bench, total, keys_seconds, bootstrapper.bytes(&bench.evaluator) + entry.bytes(&bench.evaluator))?;
    }
    if bench.report.threads > 1 {
        let a = encryptor.encrypt_slots(bench.encoder(), &Input::Real.slots(slots, &mut generator), level)?;
        let mut once = || -> Result<f64, CkksError> {
            once_ns(|| bootstrapper.bootstrap(&bench.evaluator, &keys, &entry, &a)).map(|(ns, _)| ns)
        };
        report_scaling(bench, unit, "bootstrap", &mut once)?;
    }
    Ok(median(&mut all))
}

/// What is resident with all keys of a bootstrap and further rotations.
fn memory_event(bench: &Bench, key_bytes: u64, keys_seconds: f64, matrix_bytes: u64) -> Result<(), Error> {
    let (resident, peak) = (memory::resident_bytes(), memory::peak_resident_bytes());
    let text = format!(
        "{} of keys in {keys_seconds:.1} s, {} of matrices; {} resident, {} at most",
        format_bytes(key_bytes),
        format_bytes(matrix_bytes),
        resident.map_or("?".to_owned(), format_bytes),
        peak.map_or("?".to_owned(), format_bytes),
    );
    let object = json!({
        "key_bytes": key_bytes, "matrix_bytes": matrix_bytes, "resident_bytes": resident, "peak_rss_bytes": peak,
        "further_rotations": FURTHER_ROTATIONS, "key_seconds": rounded(keys_seconds),
        "backend": bench.ring.backend().description(), "threads": bench.report.threads,
    });
    bench.report.event("memory", &text, fields(object))
}
