//! `cachemir-run bench ops`: each operation at several levels, and the bootstraps.

use std::ops::ControlFlow;

use cachemir_ckks::cost::{Cost, OperationCosts};
use cachemir_ckks::rlwe::keys::KeyManifest;
use cachemir_ckks::{
    CkksError, Decryptor, Encoder, Encryptor, EvaluationKeys, Evaluator, KeyGenerator, Ring, SecretKey, UniformHalves,
};
use cachemir_hal::{Backend as _, CpuBackend};
use cachemir_ir::cost::{COST_TABLE_VERSION, CostKind, CostPoint, CostTable};
use cachemir_ir::parameters::Parameters;
use cachemir_runtime::Error;
use cachemir_runtime::setup::{check_writable, engine_parameters, write_text};
use serde_json::json;

use super::bootstraps;
use super::report::{Measured, Report, fields, rounded};
use crate::arguments::BenchOps;
use crate::estimate;
use crate::opening::security;
use crate::timing::{self, Unit, median_ns};

/// Levels at which operations are measured, besides the top one.
const LEVELS: [usize; 5] = [1, 4, 7, 9, 13];
/// Rotations of one ciphertext that are measured together.
const HOISTED: i64 = 16;

/// Products that stream into one accumulator.
const STREAMED: usize = 16;

/// What all measurements share.
pub(super) struct Bench {
    pub(super) ring: Ring<CpuBackend>,
    pub(super) evaluator: Evaluator<CpuBackend>,
    pub(super) generator: KeyGenerator<CpuBackend>,
    pub(super) secret: SecretKey,
    pub(super) report: Report,
    pub(super) runs: usize,
}

/// An error of the engine, as an error of this program.
pub(super) fn engine(error: &dyn std::fmt::Display) -> Error {
    Error::Engine { origin: "bench ops".to_owned(), message: error.to_string() }
}

impl Bench {
    pub(super) fn encoder(&self) -> &Encoder<CpuBackend> {
        self.evaluator.encoder()
    }

    pub(super) fn keys(&self, manifest: &KeyManifest) -> Result<EvaluationKeys<CpuBackend>, CkksError> {
        self.generator.evaluation_keys(&self.secret, manifest, |_, _| ControlFlow::Continue(()))
    }
}

/// The cost table while it is filled.
struct Table(CostTable);

impl Table {
    fn new(parameters: &Parameters, transform_ns: f64, provenance: String) -> Self {
        Self(CostTable {
            format_version: COST_TABLE_VERSION,
            provenance,
            parameters: parameters.name.clone(),
            transform_ns,
            by_level: CostKind::ALL.map(|kind| (kind, Vec::new())).into(),
            bootstraps: Vec::new(),
            weights_streamed: false,
        })
    }

    fn record(&mut self, kind: CostKind, level: usize, ns: f64) {
        self.0.by_level.entry(kind).or_default().push(CostPoint { level: level as u32, ns });
    }
}

/// Measures each operation at several levels, and the bootstraps.
pub(crate) fn ops(options: &BenchOps) -> Result<(), Error> {
    let preset = Parameters::preset(&options.params)
        .map_err(|error| Error::BadOption { option: "--params", message: error.to_string() })?;
    if let Some(path) = &options.emit_cost {
        if rayon::current_num_threads() > 1 {
            let message = "a cost table holds times on one thread: add --threads 1".to_owned();
            return Err(Error::BadOption { option: "--emit-cost", message });
        }
        check_writable(path, b"{")?;
    }
    let mut ring = Ring::<CpuBackend>::new(engine_parameters(&preset)?)?;
    if let Some(keys) = options.keys {
        ring = ring.with_uniform_halves(keys.into());
    }
    let log2_maximum = ring.parameters().maximum_slots().ilog2();
    if let Some(log2_slots) = options.log2_slots.iter().find(|log2_slots| **log2_slots > log2_maximum) {
        let message = format!("`{}` has 2^{log2_maximum} slots, fewer than 2^{log2_slots}", preset.name);
        return Err(Error::BadOption { option: "--log2-slots", message });
    }
    let generator = KeyGenerator::new(ring.clone());
    let unit = Unit::new().ok_or_else(|| engine(&"tfhe-ntt has no plan for the unit's prime"))?;
    let threads = rayon::current_num_threads();
    let report = Report { json: options.json, unit_ns: unit.ns(), threads };
    let bench = Bench {
        evaluator: Evaluator::new(Encoder::new(ring.clone())),
        secret: generator.secret_key()?,
        generator,
        report,
        runs: options.runs.max(1),
        ring,
    };
    let seeded = bench.ring.uniform_halves() == UniformHalves::Seeded;
    let machine = format!(
        "{}, {threads} threads, {} keys, one NTT of 2^16 by tfhe-ntt {:.1} µs",
        bench.ring.backend().description(),
        if seeded { "seeded" } else { "whole" },
        unit.ns() / 1e3
    );
    let about = json!({
        "parameters": preset.name, "security_bits": preset.security_bits(), "degree": bench.ring.degree(),
        "log2_qp": rounded(bench.ring.parameters().log2_qp()), "backend": bench.ring.backend().description(),
        "threads": threads, "ntt_ns": unit.ns().round(), "seeded_keys": seeded,
    });
    report.event("unit", &format!("{}; {machine}", security(&preset)), fields(about))?;
    let transform_ns = estimate::transform_ns(&bench.ring)?;
    let mut table = Table::new(&preset, transform_ns, format!("measured by cachemir-run bench ops: {machine}"));
    if !options.only_bootstraps {
        operations(&bench, &mut table)?;
    }
    if threads > 1 && !options.only_bootstraps {
        scaling(&bench, &unit)?;
    }
    if !options.no_bootstraps {
        table.0.bootstraps = bootstraps::measure(&bench, &unit, options)?;
    }
    if let Some(path) = &options.emit_cost {
        write_text(path, &table.0.to_json())?;
    }
    Ok(())
}

/// A vector of bounded size.
fn values(slots: usize) -> Vec<f64> {
    (0..slots).map(|slot| (slot as f64).sin() / 2.0).collect()
}

fn operations(bench: &Bench, table: &mut Table) -> Result<(), Error> {
    let parameters = bench.ring.parameters();
    let top = parameters.use_top_level();
    let mut manifest = KeyManifest::default();
    manifest.require_relinearisation(0..=top);
    for rotation in 1..=HOISTED {
        manifest.require_rotation(rotation as usize, 0..=top);
    }
    let keys = bench.keys(&manifest)?;
    for level in LEVELS.into_iter().filter(|&level| level < top).chain([top]) {
        at_level(bench, &keys, table, level)?;
    }
    Ok(())
}

/// Operations on the vector of all slots at one level.
fn at_level(bench: &Bench, keys: &EvaluationKeys<CpuBackend>, table: &mut Table, level: usize) -> Result<(), Error> {
    let Bench { ring, evaluator, report, .. } = bench;
    let encoder = bench.encoder();
    let parameters = ring.parameters();
    let slots = parameters.maximum_slots();
    let scale = parameters.canonical_scale(level);
    let values = values(slots);
    let plain = encoder.encode_real(&values, level, scale)?;
    let encryptor = Encryptor::with_secret_key(ring.clone(), &bench.secret);
    let decryptor = Decryptor::new(ring.clone(), &bench.secret);
    let a = encryptor.encrypt(&plain)?;
    let integers = encoder.integers(&values.iter().map(|&x| x.into()).collect::<Vec<_>>(), scale)?;
    let product = evaluator.mul_plain(&a, &plain)?;
    let mut sum = evaluator.zero(level, product.scale(), slots)?;

    let costs = OperationCosts::new(parameters, level);
    let limbs = level as u64 + 1;
    let row_bytes = (ring.degree() * size_of::<u64>()) as u64;
    let polynomials = |count: u64| count * limbs * row_bytes;
    let transforms = |count: u64| Cost { transforms: count, ..Cost::default() };
    let products = |count: u64| Cost { passes: count, ..Cost::default() };
    let emit = |op: &str, levels: usize, median_ns: f64, cost: Option<Cost>, bytes: u64| {
        let predicted_ntt_units = cost.map(|cost| cost.ntt_units());
        let measured = Measured { op, level, level_out: level - levels, slots, median_ns, predicted_ntt_units, bytes };
        report.operation(&measured, &[])
    };

    let mut row = all_rows(bench, level)?;
    let chain = ring.chain(level);
    let hal = |result: Result<_, cachemir_hal::HalError>| result.map_err(CkksError::from);
    let ns = median_ns(|| hal(ring.backend().forward_ntt(&mut row, chain)))? / limbs as f64;
    emit("ntt", 0, ns, Some(transforms(1)), row_bytes)?;
    let ns = median_ns(|| hal(ring.backend().inverse_ntt(&mut row, chain)))? / limbs as f64;
    emit("intt", 0, ns, Some(transforms(1)), row_bytes)?;
    drop(row);

    let ns = median_ns(|| encoder.encode_real(&values, level, scale))?;
    table.record(CostKind::Encode, level, ns);
    emit("encode", 0, ns, None, polynomials(1))?;
    let ns = median_ns(|| encoder.lift(&integers, slots, level, scale))?;
    emit("encode_integers", 0, ns, Some(transforms(limbs)), polynomials(1))?;
    let ns = median_ns(|| encryptor.encrypt(&plain))?;
    emit("encrypt", 0, ns, None, polynomials(2))?;
    let ns = median_ns(|| decryptor.decrypt_slots(encoder, &a))?;
    emit("decrypt", 0, ns, None, polynomials(2))?;
    let ns = median_ns(|| evaluator.add(&a, &a))?;
    table.record(CostKind::Add, level, ns);
    emit("add", 0, ns, None, polynomials(2))?;
    let ns = median_ns(|| evaluator.mul_plain(&a, &plain))?;
    table.record(CostKind::MultiplyPlain, level, ns);
    // Both factors and the product pass through memory.
    emit("mul_plain", 0, ns, Some(products(3 * 2 * limbs)), polynomials(2))?;
    let pairs = vec![(&a, &plain); STREAMED];
    let ns = median_ns(|| evaluator.mul_plain_accumulate_many(&mut sum, &pairs))? / STREAMED as f64;
    emit("mul_plain_accumulate", 0, ns, Some(products(2 * limbs)), 0)?;
    let pairs = vec![(&a, &integers); STREAMED];
    let ns = median_ns(|| evaluator.mul_integers_accumulate(&mut sum, &pairs, scale))? / STREAMED as f64;
    emit("mul_integers_accumulate", 0, ns, Some(transforms(limbs) + products(2 * limbs)), 0)?;
    let ns = median_ns(|| evaluator.mul(&a, &a, keys))?;
    table.record(CostKind::Multiply, level, ns);
    emit("mul_relinearise", 0, ns, Some(costs.tensor() + costs.switch()), polynomials(2))?;
    let ns = median_ns(|| evaluator.mul_rescale(&a, &a, keys))?;
    emit("mul", 1, ns, Some(costs.tensor() + costs.relinearise_rescale()), polynomials(2))?;
    let ns = median_ns(|| evaluator.rescale(&product))?;
    table.record(CostKind::Rescale, level, ns);
    emit("rescale", 1, ns, Some(costs.rescale()), polynomials(2))?;
    let ns = median_ns(|| evaluator.rotate(&a, 1, keys))?;
    table.record(CostKind::Rotate, level, ns);
    emit("rotate", 0, ns, Some(costs.switch()), polynomials(2))?;
    let ns = median_ns(|| evaluator.sum_with_rotations(&a, &[1, 2, 3], keys))?;
    emit("rotate_and_sum", 0, ns, Some(costs.sum_with_rotations(3)), polynomials(2))?;
    let rotations: Vec<i64> = (1..=HOISTED).collect();
    let ns = median_ns(|| evaluator.hoisted_rotations(&a, &rotations, keys))?;
    let each = costs.inner_product() + costs.mod_down(2, false);
    emit("rotate_hoisted", 0, ns, Some(costs.decompose() + each * rotations.len()), polynomials(2 * HOISTED as u64))?;
    Ok(())
}

/// One polynomial of ones at a level.
fn all_rows(bench: &Bench, level: usize) -> Result<<CpuBackend as cachemir_hal::Backend>::Buffer, Error> {
    let words = vec![1; bench.ring.degree() * (level + 1)];
    bench.ring.backend().upload(&words, 1, level + 1).map_err(|error| engine(&error))
}

/// How much faster all threads are than one, next to what independent work reaches.
fn scaling(bench: &Bench, unit: &Unit) -> Result<(), Error> {
    let parameters = bench.ring.parameters();
    let level = LEVELS.into_iter().rev().find(|&level| level < parameters.use_top_level()).unwrap_or(1);
    let mut manifest = KeyManifest::default();
    for rotation in 1..=HOISTED {
        manifest.require_rotation(rotation as usize, [level]);
    }
    let keys = bench.keys(&manifest)?;
    let plain =
        bench.encoder().encode_real(&values(parameters.maximum_slots()), level, parameters.canonical_scale(level))?;
    let a = Encryptor::with_secret_key(bench.ring.clone(), &bench.secret).encrypt(&plain)?;
    let rotations: Vec<i64> = (1..=HOISTED).collect();
    report_scaling(bench, unit, "rotate_hoisted", &mut || {
        timing::once_ns(|| bench.evaluator.hoisted_rotations(&a, &rotations, &keys)).map(|(ns, _)| ns)
    })
}

/// Times `operation` alternately on one thread and on all, and independent work as well.
pub(super) fn report_scaling(
    bench: &Bench,
    unit: &Unit,
    op: &str,
    operation: &mut (dyn FnMut() -> Result<f64, CkksError> + Send),
) -> Result<(), Error> {
    const ROUNDS: usize = 3;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().map_err(|error| engine(&error))?;
    let (mut one, mut all, mut independent) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        one.push(pool.install(&mut *operation)?);
        all.push(operation()?);
        let alone = pool.install(|| unit.independent_work_seconds());
        independent.push(alone / unit.independent_work_seconds());
    }
    let speedup = timing::median(&mut one) / timing::median(&mut all);
    let independent = timing::median(&mut independent);
    let threads = bench.report.threads;
    let text = format!(
        "{op}: {speedup:.2} times faster on {threads} threads than on one; independent work {independent:.2} times"
    );
    let object = json!({
        "op": op, "threads": threads, "speedup": rounded(speedup), "independent_speedup": rounded(independent),
    });
    bench.report.event("scaling", &text, fields(object))
}
