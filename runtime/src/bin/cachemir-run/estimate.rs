//! Predictions and counts of calls, and the time of one transform, by which a cost table is carried over to this machine.

use cachemir_ckks::{CkksError, Ring};
use cachemir_hal::Backend;
use cachemir_ir::cost::Predictions;
use cachemir_ir::operations::{Call, Operations};
use cachemir_ir::program::{EntryKind, EntryPoint};
use cachemir_runtime::Error;
use cachemir_runtime::executor::CkksProgram;
use cachemir_runtime::generation::Step;

use crate::timing::once_ns;

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

/// Predicted time of calls, in nanoseconds on one thread.
pub(crate) fn steps_ns(predictions: &Predictions<'_>, steps: &[Step]) -> f64 {
    steps.iter().map(|step| predictions.call_ns(step.entry, step.position as i64, step.count as i64)).sum()
}

/// Mean time that is predicted of decode steps at these positions, in nanoseconds on one thread; `None` for none.
pub(crate) fn decode_ns(predictions: &Predictions<'_>, positions: &[usize]) -> Option<f64> {
    let total: f64 =
        positions.iter().map(|&position| predictions.call_ns(EntryPoint::Decode, position as i64, 1)).sum();
    (!positions.is_empty()).then(|| total / positions.len() as f64)
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
