//! What a plan does and costs, for people and as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use cachemir_ir::ckks::{CiphertextType, CkksOp};
use cachemir_ir::cost::for_each_execution;
use cachemir_ir::expression::{Environment, Vector};
use cachemir_ir::plan::Plan;
use cachemir_ir::program::{EntryKind, Program};
use cachemir_ir::slots::{SlotOp, SlotType};
use cachemir_ir::text::hexadecimal;
use serde_json::{Value, json};

use crate::lower::{self, LowerReport};

/// Kinds of operations that are counted.
const KINDS: [&str; 6] =
    ["bootstraps", "rotations", "ciphertext_products", "plain_products", "polynomials", "level_drops"];

/// Key of the number of plaintext products that only mask; the reasons follow as `masks_unfused: reason`.
const MASKS: &str = "masks_unfused";

/// Why a mask is left that no op of the slots stage names.
const REFRESH_REASON: &str = "slots to clear where no bootstrap clears them";

/// Operations of one call of each entry point, as `entry.kind`: a decode step in the middle of the context, and a full
/// first chunk of a prefill. Loops are unrolled; operations inside polynomials and bootstraps are not counted.
pub fn counts(slots: &Program<SlotOp, SlotType>, program: &Program<CkksOp, CiphertextType>) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for (packed, entry) in slots.entries.iter().zip(&program.entries) {
        let (position, count) = match entry.kind {
            EntryKind::Decode => (i64::from(program.context) / 2, 1),
            EntryKind::Prefill { chunk } => (0, i64::from(chunk)),
        };
        let environment = Environment::new(position, count);
        let reasons = lower::counts(&packed.graph, slots.slots as usize, &environment).masks_unfused;
        let mut found = Found::default();
        for_each_execution(program, entry.kind.name(), position, count, &mut |graph, op, environment| {
            found.count(&graph.node(op).op, program.slots, environment);
        });
        let name = entry.kind.name();
        for (kind, count) in KINDS.iter().zip(found.kinds) {
            counts.insert(format!("{name}.{kind}"), count);
        }
        counts.insert(format!("{name}.{MASKS}"), found.masks);
        let named: u64 = reasons.values().map(|&count| count as u64).sum();
        let rest = (REFRESH_REASON.to_owned(), found.masks.saturating_sub(named) as usize);
        for (reason, count) in reasons.into_iter().chain([rest]).filter(|(_, count)| *count > 0) {
            counts.insert(format!("{name}.{MASKS}: {reason}"), count as u64);
        }
    }
    counts
}

#[derive(Default)]
struct Found {
    kinds: [u64; KINDS.len()],
    masks: u64,
}

impl Found {
    fn count(&mut self, op: &CkksOp, slots: u32, environment: &Environment) {
        let kind = match op {
            CkksOp::Bootstrap(_) => "bootstraps",
            CkksOp::Rotate { by } if by.evaluate(environment).rem_euclid(i64::from(slots)) != 0 => "rotations",
            CkksOp::Multiply => "ciphertext_products",
            CkksOp::MultiplyPlain { plain } => {
                self.masks += u64::from(is_mask(plain));
                "plain_products"
            }
            CkksOp::Polynomial { .. } => "polynomials",
            CkksOp::DropLevels { .. } => "level_drops",
            _ => return,
        };
        let index = KINDS.iter().position(|known| *known == kind).expect("the kind is listed");
        self.kinds[index] += 1;
    }
}

/// Whether the vector holds only zeros and constants.
fn is_mask(plain: &Vector) -> bool {
    match plain {
        Vector::Scalar(_) => true,
        Vector::Mask(_, inner) => is_mask(inner),
        Vector::Product(a, b) => is_mask(a) && is_mask(b),
        Vector::Table(..) | Vector::Sum(..) => false,
    }
}

/// The plan as one JSON object.
pub fn json(plan: &Plan) -> Value {
    let program = &plan.program;
    let states: Vec<Value> = program
        .states
        .iter()
        .map(|state| json!({"name": state.name, "ciphertexts": state.capacity, "level": state.level}))
        .collect();
    json!({
        "model": plan.model.name,
        "model_hash": hexadecimal(&plan.provenance.model_hash),
        "compiler_version": plan.provenance.compiler_version,
        "options": plan.provenance.options,
        "parameters": plan.parameters.name,
        "log2_degree": plan.parameters.log2_degree,
        "log2_qp": plan.parameters.log2_qp(),
        "security_bits": plan.parameters.security_bits(),
        "slots": program.slots,
        "context": program.context,
        "vocabulary": plan.model.vocabulary,
        "hidden": plan.model.hidden,
        "weights": program.tables.iter().map(|table| table.values.len()).sum::<usize>(),
        "counts": plan.counts,
        "rotation_keys": plan.keys.rotations.len(),
        "states": states,
        "predicted_ns_per_token": plan.provenance.predicted_ns_per_token,
    })
}

/// The plan as a short text.
pub fn text(plan: &Plan) -> String {
    let program = &plan.program;
    let security = match plan.parameters.security_bits() {
        Some(bits) => format!("{bits}-bit security"),
        None => "NO SECURITY: for tests only".to_owned(),
    };
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "{}: hidden {}, vocabulary {}, {} weights\nparameters {}: N = 2^{}, log2 QP = {}, {security}; {} slots, context {}",
        plan.model.name,
        plan.model.hidden,
        plan.model.vocabulary,
        program.tables.iter().map(|table| table.values.len()).sum::<usize>(),
        plan.parameters.name,
        plan.parameters.log2_degree,
        plan.parameters.log2_qp(),
        program.slots,
        program.context
    );
    let names: Vec<&str> = program.entries.iter().map(|entry| entry.kind.name()).collect();
    let row = |out: &mut String, title: &str, cells: &mut dyn Iterator<Item = String>| {
        let _ = write!(out, "  {title:<58}");
        for cell in cells {
            let _ = write!(out, "{cell:>10}");
        }
        out.push('\n');
    };
    row(&mut out, "per call", &mut names.iter().map(ToString::to_string));
    let reasons: BTreeSet<&str> = plan
        .counts
        .keys()
        .filter_map(|key| Some(key.split_once('.')?.1))
        .filter(|key| key.starts_with(MASKS))
        .collect();
    for kind in KINDS.into_iter().chain(reasons) {
        let count = |name: &&str| plan.counts.get(&format!("{name}.{kind}")).copied().unwrap_or(0).to_string();
        row(&mut out, kind, &mut names.iter().map(count));
    }
    for state in &program.states {
        let level = state.level.map_or_else(String::new, |level| format!(" at level {level}"));
        let _ = writeln!(out, "  {}: {} ciphertexts{level}", state.name, state.capacity);
    }
    let _ = writeln!(
        out,
        "  {} rotation keys, predicted {:.1} s a token on one thread",
        plan.keys.rotations.len(),
        plan.provenance.predicted_ns_per_token / 1e9
    );
    out
}

/// The approximations as a table.
pub fn approximations_text(report: &LowerReport) -> String {
    let mut out =
        format!("  {:<34} {:<12} {:>26} {:>7} {:>10}\n", "approximation", "function", "interval", "degree", "error");
    for site in &report.approximations {
        let [low, high] = site.interval;
        let interval = format!("[{low:.4}, {high:.4}]");
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "  {:<34} {:<12} {interval:>26} {:>7} {:>10.1e}",
            site.site.to_string(),
            site.function,
            site.degree,
            site.max_error
        );
    }
    out
}

/// The approximations as JSON.
pub fn approximations_json(report: &LowerReport) -> Value {
    report
        .approximations
        .iter()
        .map(|site| {
            json!({"site": site.site.to_string(), "function": site.function, "interval": site.interval, "degree": site.degree,
                   "max_error": site.max_error})
        })
        .collect()
}
