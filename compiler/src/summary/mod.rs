//! What a plan does and costs: [`counts`] fills it in, [`json`] shows it to tools and [`table`] to people.

mod json;
pub mod table;
#[cfg(test)]
pub(crate) mod tests;

use cachemir_ir::ckks::{CiphertextType, CkksOp};
use cachemir_ir::cost::CostTable;
use cachemir_ir::expression::Environment;
use cachemir_ir::operations::{Operations, typical_calls};
use cachemir_ir::plan::{CallCounts, MaskCount, Plan};
use cachemir_ir::program::Program;
use cachemir_ir::slots::{SlotOp, SlotType};
use cachemir_ir::tokenizer::Tokenizer;

use crate::lower;

pub use json::{SCHEMA, SCHEMA_NAME, SCHEMA_VERSION, json};

/// Why a mask is left that no op of the slots stage names.
const REFRESH_REASON: &str = "slots to clear where no bootstrap clears them";

/// The text of the tokens that every session begins with, special ones included; `None` without any, or without a
/// tokenizer.
fn prefix_text(plan: &Plan) -> Option<String> {
    let tokenizer = plan.model.tokenizer.as_ref().filter(|_| !plan.program.prefix.is_empty())?;
    Tokenizer::from_bytes(tokenizer).ok()?.decode(&plan.program.prefix, true).ok()
}

/// What typical calls execute and take, with the reasons why masks are left.
pub fn counts(
    slots: &Program<SlotOp, SlotType>,
    program: &Program<CkksOp, CiphertextType>,
    costs: &CostTable,
) -> Vec<CallCounts> {
    let predictions = costs.predictions(program);
    typical_calls(program)
        .into_iter()
        .map(|call| {
            let operations = Operations::of(program, call);
            let environment = Environment::new(call.position.into(), call.tokens.into());
            let reasons = slots
                .entry(call.kind.entry())
                .map(|packed| lower::counts(&packed.graph, slots.slots as usize, &environment).masks_unfused);
            let mut masks: Vec<MaskCount> = reasons
                .into_iter()
                .flatten()
                .map(|(reason, count)| MaskCount { reason, count: count as u64 })
                .collect();
            let named: u64 = masks.iter().map(|mask| mask.count).sum();
            masks.push(MaskCount { reason: REFRESH_REASON.to_owned(), count: operations.masks.saturating_sub(named) });
            masks.retain(|mask| mask.count > 0);
            let predicted_ns = predictions.call_ns(call.kind.entry(), call.position.into(), call.tokens.into());
            CallCounts { call, operations, masks, predicted_ns: predicted_ns.round() as u64 }
        })
        .collect()
}
