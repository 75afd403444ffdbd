//! A plan as a JSON object that [`SCHEMA`] describes.

use cachemir_ir::hashes::hexadecimal;
use cachemir_ir::plan::{CallCounts, Plan};
use serde_json::{Value, json};

/// The JSON schema (draft 2020-12) of the object.
pub const SCHEMA: &str = include_str!("cachemir-summary.schema.json");

/// The schema's name, as objects refer to it.
pub const SCHEMA_NAME: &str = "cachemir-summary.schema.json";

/// Version of the object's form.
pub const SCHEMA_VERSION: u32 = 7;

/// The plan as a JSON object.
pub fn json(plan: &Plan) -> Value {
    let (program, parameters) = (&plan.program, &plan.parameters);
    let call = |counts: &CallCounts| {
        let CallCounts { call, operations, masks, predicted_ns } = counts;
        json!({
            "entry": call.kind.entry().name(),
            "position": call.position,
            "tokens": call.tokens,
            "operations": operations,
            "masks": masks,
            "predicted_ns": predicted_ns,
        })
    };
    let caches = program
        .states
        .iter()
        .map(|state| json!({"name": state.name, "ciphertexts": state.capacity, "level": state.level}));
    json!({
        "$schema": SCHEMA_NAME,
        "schema_version": SCHEMA_VERSION,
        "model": {
            "name": plan.model.name,
            "blake3": hexadecimal(&plan.provenance.model_hash),
            "hidden": plan.model.hidden,
            "vocabulary": plan.model.vocabulary,
            "weights": super::table::weights(plan),
            "shapes_only": !plan.has_weights(),
            "eos_tokens": plan.model.eos,
        },
        "parameters": {
            "name": parameters.name,
            "log2_degree": parameters.log2_degree,
            "log2_qp": parameters.log2_qp(),
            "levels": parameters.use_bits.len(),
            "level_bits": parameters.log2_scale,
            "security_bits": parameters.security_bits(),
        },
        "slots": program.slots,
        "context_tokens": program.context,
        "prefix_tokens": program.prefix,
        "prefix_text": super::prefix_text(plan),
        "compiler": {
            "version": plan.provenance.compiler_version,
            "options": plan.provenance.options,
            "cost_table": plan.provenance.cost_table,
        },
        "calls": plan.counts.iter().map(call).collect::<Vec<_>>(),
        "prefill_pays": plan.prefill_pays,
        "approximations": plan.approximations,
        "caches": caches.collect::<Vec<_>>(),
        "keys": {
            "rotations": plan.keys.rotations.len(),
            "conjugation": !plan.keys.conjugation.is_empty(),
            "relinearisation": !plan.keys.relinearisation.is_empty(),
        },
        "predicted_ns_per_token": plan.provenance.predicted_ns_per_token.round() as u64,
        "notes": plan.provenance.notes,
    })
}
