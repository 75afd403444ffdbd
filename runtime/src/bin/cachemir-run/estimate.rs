//! Predicted times, in the machine's own unit: one number-theoretic transform.

use cachemir_hal::Backend;
use cachemir_ir::ckks::CkksOp;
use cachemir_ir::cost::{BootstrapCost, CostTable, for_each_execution};
use cachemir_ir::parameters::Parameters;
use cachemir_runtime::Error;
use cachemir_runtime::executor::CkksProgram;
use cachemir_runtime::generation::Step;
use cachemir_runtime::setup::Engine;

use crate::bench::timing;

/// Share of the work that threads divide among them, as measured on two cores.
const PARALLEL_SHARE: f64 = 0.8;

/// Time that a pair of limbs of a key takes to make, in transforms; most of it goes into random residues.
const NTT_UNITS_OF_A_KEY_LIMB: f64 = 55.0;

/// One transform of a ring's degree on this machine, in nanoseconds.
pub(crate) fn ntt_ns(degree: usize) -> Result<f64, Error> {
    let missing = || Error::Engine { origin: "timing".to_owned(), message: format!("no transform of degree {degree}") };
    timing::ntt_ns(degree).ok_or_else(missing)
}

/// The built-in cost table in this machine's time, with the engine's own counts for the bootstraps.
pub(crate) fn cost_table<B: Backend>(
    parameters: &Parameters,
    engine: &Engine<B>,
    slots: u32,
    ntt_ns: f64,
) -> CostTable {
    let mut table = CostTable::built_in(parameters).carried_over(ntt_ns);
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
