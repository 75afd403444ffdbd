//! Polynomials that reach further, where placement has room for them.
//!
//! A polynomial one level deeper covers more of what people type, and costs nothing where a level is left over between two
//! bootstraps, but a bootstrap where none is. Only a placement tells, so each is tried in turn and kept if the predicted
//! time grows by little for the share of everyday prompts that it brings in.

use cachemir_ir::ckks::{CiphertextType, CkksOp, Levels};
use cachemir_ir::cost::CostTable;
use cachemir_ir::program::Program;

use crate::lower::{LowerReport, SlotProgram};
use crate::placement::{Infeasible, Placer};
use crate::progress::Observer;

/// By which part of itself the time of a token may grow for all everyday prompts; for a share of them, by that share of it.
const WORTH_OF_ALL_PROMPTS: f64 = 0.25;

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
    let placer = Placer::new(levels, costs);
    let mut segments = placer.segments(slots)?;
    let progress = segments.begin(observer);
    let mut decided = placer.decide(slots, &segments, &progress)?;
    for further in std::mem::take(&mut report.further) {
        let mut deeper = slots.clone();
        further.apply(&mut deeper);
        let Ok(changed) = placer.changed(&deeper, &segments, further.ops()) else { continue };
        let Ok(candidate) = placer.decide(&deeper, &changed, &progress) else { continue };
        let most_ns = (1.0 + WORTH_OF_ALL_PROMPTS * further.gained_prompts) * decided.decode_ns as f64;
        if candidate.decode_ns as f64 <= most_ns {
            report.replace(&further);
            (*slots, segments, decided) = (deeper, changed, candidate);
        }
    }
    placer.emit(slots, &decided)
}
