//! Polynomials that reach further, where placement has room for them.
//!
//! A polynomial one level deeper covers more of what people type, and costs nothing where a level is left over between two
//! bootstraps, but a bootstrap where none is. Only a placement tells, so each is tried in turn and kept if the predicted
//! time grows by little for the share of everyday prompts that it brings in.

use cachemir_ir::ckks::{CiphertextType, CkksOp, Levels};
use cachemir_ir::cost::CostTable;
use cachemir_ir::program::Program;

use crate::lower::{LowerReport, SlotProgram};
use crate::placement::{self, Infeasible};
use crate::progress::Observer;

/// By which part of itself the time of a token may grow for all everyday prompts; for a share of them, by that share of it.
const WORTH_OF_ALL_PROMPTS: f64 = 0.25;

/// Ops placed in all trials together, at most.
const MOST_OPS: usize = 12_000;

/// Places the program, with those deeper polynomials that are worth their time; the program and the report are changed
/// accordingly.
///
/// # Errors
/// A program that does not fit the levels even without them.
pub(crate) fn place(
    slots: &mut SlotProgram,
    report: &mut LowerReport,
    levels: Levels,
    costs: &CostTable,
    observer: &dyn Observer,
) -> Result<Program<CkksOp, CiphertextType>, Infeasible> {
    let middle = i64::from(slots.context) / 2;
    let mut placed = placement::place(slots, levels, observer)?;
    let mut now_ns = costs.predict(&placed, "decode", middle);
    let ops: usize = placed.entries.iter().map(|entry| entry.graph.nodes.len()).sum();
    for further in std::mem::take(&mut report.further).into_iter().take(MOST_OPS / ops.max(1)) {
        let mut deeper = slots.clone();
        further.apply(&mut deeper);
        let Ok(candidate) = placement::place(&deeper, levels, &()) else { continue };
        let then_ns = costs.predict(&candidate, "decode", middle);
        if then_ns <= (1.0 + WORTH_OF_ALL_PROMPTS * further.gained_prompts) * now_ns {
            report.replace(&further);
            (*slots, placed, now_ns) = (deeper, candidate, then_ns);
        }
    }
    Ok(placed)
}
