//! Predicted times, in the machine's own unit: one number-theoretic transform.

use std::time::Instant;

use cachemir_ckks::Ring;
use cachemir_hal::Backend;
use cachemir_ir::ckks::CkksOp;
use cachemir_ir::cost::{BootstrapCost, CostTable, for_each_execution};
use cachemir_ir::parameters::Parameters;
use cachemir_runtime::Error;
use cachemir_runtime::executor::CkksProgram;
use cachemir_runtime::generation::Step;
use cachemir_runtime::setup::Engine;

/// Time of a transform of degree 2^16 that the derived cost table counts with, in nanoseconds.
const TABLE_NTT_NS: f64 = 74_500.0;

/// Share of the work that threads divide among them, as measured on two cores.
const PARALLEL_SHARE: f64 = 0.8;

/// Time that a pair of limbs of a key takes to make, in transforms; most of it goes into random residues.
const NTT_UNITS_OF_A_KEY_LIMB: f64 = 55.0;

/// Shortest of many times of one forward transform of the ring's degree on one thread, in nanoseconds: what a machine
/// that others use as well can do.
pub(crate) fn ntt_ns<B: Backend>(ring: &Ring<B>) -> Result<f64, Error> {
    let engine =
        |source: cachemir_hal::HalError| Error::Engine { origin: "timing".to_owned(), message: source.to_string() };
    let mut buffer = ring.backend().zeros(1, 1).map_err(engine)?;
    let limbs = ring.chain(0);
    let mut shortest = f64::INFINITY;
    for _ in 0..200 {
        let begin = Instant::now();
        ring.backend().forward_ntt(&mut buffer, limbs).map_err(engine)?;
        ring.backend().synchronise().map_err(engine)?;
        shortest = shortest.min(begin.elapsed().as_secs_f64() * 1e9);
    }
    Ok(shortest)
}

/// The derived cost table in this machine's time, with the engine's own counts for the bootstraps.
pub(crate) fn cost_table<B: Backend>(
    parameters: &Parameters,
    engine: &Engine<B>,
    slots: u32,
    ntt_ns: f64,
) -> CostTable {
    let mut table = CostTable::derived(parameters);
    let log2_degree = f64::from(parameters.log2_degree);
    let table_ntt_ns = TABLE_NTT_NS * (log2_degree - 16.0).exp2() * log2_degree / 16.0;
    for point in table.by_level.values_mut().flatten() {
        point.ns *= ntt_ns / table_ntt_ns;
    }
    let log2_slots = slots.max(1).ilog2();
    let units = engine.bootstrap_ntt_units();
    let row = |complex: bool| {
        let known = units.iter().find(|(kind, _)| *kind == complex).or(units.first());
        known.map(|(_, units)| BootstrapCost { complex, log2_slots, ns: units * ntt_ns })
    };
    table.bootstraps = [false, true].into_iter().filter_map(row).collect();
    table
}

/// How much faster several threads are than one, by Amdahl's law.
pub(crate) fn speedup(threads: usize) -> f64 {
    1.0 / (1.0 - PARALLEL_SHARE + PARALLEL_SHARE / threads.max(1) as f64)
}

/// Predicted time of making keys of so many bytes, in nanoseconds on one thread.
pub(crate) fn keys_ns(key_bytes: u64, degree: usize, ntt_ns: f64) -> f64 {
    key_bytes as f64 / (degree * size_of::<u64>()) as f64 / 2.0 * NTT_UNITS_OF_A_KEY_LIMB * ntt_ns
}

/// Predicted time of calls, in nanoseconds on one thread.
pub(crate) fn steps_ns(table: &CostTable, program: &CkksProgram, steps: &[Step]) -> f64 {
    let mut total = 0.0;
    for step in steps {
        for_each_execution(program, step.entry, step.position as i64, step.count as i64, &mut |graph, op, _| {
            let node = graph.node(op);
            let level = node.inputs.first().or(node.results.first()).map_or(0, |value| graph.ty(*value).level);
            total += table.op_ns(&node.op, level, program.slots);
        });
    }
    total
}

/// Numbers of operations in a call.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Counts {
    pub(crate) bootstraps: f64,
    pub(crate) rotations: f64,
}

/// Mean counts of decode steps at these positions.
pub(crate) fn decode_counts(program: &CkksProgram, positions: &[usize]) -> Counts {
    let mut counts = Counts::default();
    for &position in positions {
        for_each_execution(
            program,
            "decode",
            position as i64,
            1,
            &mut |graph, op, environment| match &graph.node(op).op {
                CkksOp::Bootstrap(_) => counts.bootstraps += 1.0,
                CkksOp::Rotate { by } if by.evaluate(environment).rem_euclid(i64::from(program.slots)) != 0 => {
                    counts.rotations += 1.0;
                }
                _ => {}
            },
        );
    }
    let calls = positions.len().max(1) as f64;
    Counts { bootstraps: counts.bootstraps / calls, rotations: counts.rotations / calls }
}
