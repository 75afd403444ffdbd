//! Predicted times: the built-in cost table, carried over to this machine by the time of one transform.

use cachemir_ckks::{CkksError, Ring};
use cachemir_hal::Backend;
use cachemir_ir::cost::{CostTable, for_each_execution};
use cachemir_ir::operations::{Call, Operations};
use cachemir_ir::program::EntryKind;
use cachemir_runtime::Error;
use cachemir_runtime::executor::CkksProgram;
use cachemir_runtime::generation::Step;

use crate::timing::once_ns;

/// Share of the work that threads divide among them, as measured on two cores.
const PARALLEL_SHARE: f64 = 0.8;

/// Time that a pair of limbs of a key takes to make, in transforms; most of it goes into random residues.
const TRANSFORMS_OF_A_KEY_LIMB: f64 = 64.0;

/// Shortest of many times of one forward transform by the engine's kernels on one thread, in nanoseconds.
pub(crate) fn transform_ns<B: Backend>(ring: &Ring<B>) -> Result<f64, Error> {
    const RUNS: usize = 200;
    let limbs = ring.chain(0);
    let mut buffer = ring.backend().zeros(1, 1).map_err(CkksError::from)?;
    let mut shortest = f64::INFINITY;
    for _ in 0..RUNS {
        let (ns, ()) = once_ns(|| {
            ring.backend().forward_ntt(&mut buffer, limbs)?;
            Ok(ring.backend().synchronise()?)
        })?;
        shortest = shortest.min(ns);
    }
    Ok(shortest)
}

/// How much faster several threads are than one, by Amdahl's law.
pub(crate) fn speedup(threads: usize) -> f64 {
    1.0 / (1.0 - PARALLEL_SHARE + PARALLEL_SHARE / threads.max(1) as f64)
}

/// Predicted time of making keys of so many bytes, in nanoseconds on one thread.
pub(crate) fn keys_ns(key_bytes: u64, degree: usize, transform_ns: f64) -> f64 {
    key_bytes as f64 / (degree * size_of::<u64>()) as f64 / 2.0 * TRANSFORMS_OF_A_KEY_LIMB * transform_ns
}

/// Predicted time of calls, in nanoseconds on one thread.
pub(crate) fn steps_ns(table: &CostTable, program: &CkksProgram, steps: &[Step]) -> f64 {
    let mut total = 0.0;
    for step in steps {
        for_each_execution(program, step.entry, step.position as i64, step.count as i64, &mut |graph, op, _| {
            total += table.node_ns(graph, op, program.slots);
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
    let of = |&position: &usize| {
        Operations::of(program, Call { kind: EntryKind::Decode, position: position as u32, tokens: 1 })
    };
    let (mut bootstraps, mut rotations) = (0.0, 0.0);
    for operations in positions.iter().map(of) {
        bootstraps += operations.bootstraps as f64;
        rotations += operations.rotations as f64;
    }
    let calls = positions.len().max(1) as f64;
    Counts { bootstraps: bootstraps / calls, rotations: rotations / calls }
}
