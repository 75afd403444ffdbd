//! Whether a plan's parts make sense and fit together.

use super::{CkksProgram, ClientModel, ClientPlan, Guard, Others, Plan};
use crate::Error;
use crate::manifest::KeyManifest;
use crate::parameters::Parameters;
use crate::program::{EmbeddingForm, EntryKind, EntryPoint, Placement, RangeCheck};
use crate::verify;

/// The most tokens, slots of a placement, and similar sizes that a plan may declare.
const MAXIMUM_CONTEXT: u32 = 1 << 24;

fn require(condition: bool, message: impl FnOnce() -> String) -> Result<(), Error> {
    if condition { Ok(()) } else { Err(Error::Plan(message())) }
}

/// Checks a server's plan.
pub(super) fn plan(plan: &Plan) -> Result<(), Error> {
    let program = &plan.program;
    plan.parameters.validate()?;
    shared(
        &plan.parameters,
        &plan.keys,
        &plan.model,
        &Shape {
            slots: program.slots,
            context: program.context,
            kinds: program.entries.iter().map(|entry| entry.kind).collect(),
            checks: program.entries.iter().map(|entry| entry.checks.as_slice()).collect(),
            embedding: &program.embedding,
            inputs: &program.inputs,
            outputs: outputs(program)?,
            logits: &program.logits,
            prefill_pays: &plan.prefill_pays,
        },
    )?;
    verify::ckks(program, plan.levels())?;
    require(plan.has_weights() == program.has_weights(), || {
        "it has an embedding and lacks other weights, or the other way round".to_owned()
    })?;
    let predicted = plan.provenance.predicted_ns_per_token;
    require(predicted.is_finite() && predicted >= 0.0, || format!("its predicted cost is {predicted} ns"))?;
    for one in &plan.approximations {
        let ranges = [one.accurate, one.sane].into_iter().chain(one.derived);
        let finite = ranges.flatten().chain([one.max_error]).all(f64::is_finite);
        require(finite, || format!("a range or the error of `{}` is no number", one.site))?;
    }
    Ok(())
}

/// Checks a client's plan.
pub(super) fn client(plan: &ClientPlan) -> Result<(), Error> {
    plan.parameters.validate()?;
    let shape = Shape {
        slots: plan.slots,
        context: plan.context,
        kinds: plan.entries.iter().map(|entry| entry.kind).collect(),
        checks: plan.entries.iter().map(|entry| entry.checks.as_slice()).collect(),
        embedding: &plan.embedding,
        inputs: &plan.inputs,
        outputs: plan.entries.first().map_or(0, |entry| entry.output_levels.len()),
        logits: &plan.logits,
        prefill_pays: &plan.prefill_pays,
    };
    shared(&plan.parameters, &plan.keys, &plan.model, &shape)?;
    let top = plan.parameters.levels().output;
    for entry in &plan.entries {
        let name = entry.kind.entry();
        let (inputs, outputs) = (entry.input_levels.len(), entry.output_levels.len());
        require(inputs == shape.inputs.len() && outputs == shape.outputs, || {
            format!("entry `{name}` has {inputs} inputs and {outputs} outputs, unlike what the client packs and reads")
        })?;
        require(entry.input_levels.iter().chain(&entry.output_levels).all(|level| *level <= top), || {
            format!("entry `{name}` takes or gives a ciphertext above level {top}")
        })?;
    }
    Ok(())
}

/// The number of outputs, which all entries have in common.
fn outputs(program: &CkksProgram) -> Result<usize, Error> {
    let outputs = program.entries.first().map_or(0, |entry| entry.graph.body.yields.len());
    for entry in &program.entries {
        let (inputs, found) = (entry.graph.inputs.len(), entry.graph.body.yields.len());
        require(inputs == program.inputs.len() && found == outputs, || {
            format!("entry `{}` has {inputs} inputs and {found} outputs, unlike what is declared", entry.kind.entry())
        })?;
    }
    Ok(outputs)
}

/// What both plans say about slots and tokens.
struct Shape<'p> {
    slots: u32,
    context: u32,
    kinds: Vec<EntryKind>,
    /// By entry.
    checks: Vec<&'p [RangeCheck]>,
    embedding: &'p Placement,
    inputs: &'p [EmbeddingForm],
    outputs: usize,
    logits: &'p Placement,
    prefill_pays: &'p [u32],
}

fn shared(parameters: &Parameters, keys: &KeyManifest, model: &ClientModel, shape: &Shape<'_>) -> Result<(), Error> {
    let Shape { slots, context, .. } = *shape;
    require(slots.is_power_of_two() && slots <= parameters.maximum_slots(), || {
        format!("{slots} slots are no power of two up to {}, which its parameters offer", parameters.maximum_slots())
    })?;
    require((1..=MAXIMUM_CONTEXT).contains(&context), || format!("a context of {context} tokens is out of range"))?;
    let mut names: Vec<EntryPoint> = shape.kinds.iter().map(|kind| kind.entry()).collect();
    names.sort_unstable();
    names.dedup();
    require(names.len() == shape.kinds.len() && names.contains(&EntryPoint::Decode), || {
        "it must have one entry `decode` and at most one entry `prefill`".to_owned()
    })?;
    let mut most_tokens = 1;
    for kind in &shape.kinds {
        if let EntryKind::Prefill { chunk } = kind {
            require((1..=slots).contains(chunk), || format!("a prefill of {chunk} tokens a chunk is out of range"))?;
            most_tokens = *chunk;
        }
    }
    prefill_pays(shape.prefill_pays, shape.kinds.iter().find_map(|kind| kind.chunk()), context)?;
    placement("embedding", shape.embedding, model.hidden, most_tokens, slots.into())?;
    placement("logits", shape.logits, model.vocabulary, 1, u64::from(slots) * shape.outputs as u64)?;
    for (checks, kind) in shape.checks.iter().zip(&shape.kinds) {
        let tokens = kind.chunk().unwrap_or(1);
        for RangeCheck { site, placement: slots_of, interval: [low, high], map } in *checks {
            let what = format!("check of {site}");
            placement(
                &what,
                slots_of,
                slots_of.index_to_slot.len() as u32,
                tokens,
                u64::from(slots) * shape.outputs as u64,
            )?;
            require(low.is_finite() && high.is_finite() && low < high, || {
                format!("the {what} asks for values from {low} to {high}")
            })?;
            require(map.centre.is_finite() && map.half.is_finite() && map.half > 0.0, || {
                format!("the {what} reads slots with the centre {} and the half width {}", map.centre, map.half)
            })?;
        }
    }
    for EmbeddingForm { scale, norm_epsilon } in shape.inputs {
        require(scale.is_finite() && *scale != 0.0, || format!("an input has the scale {scale}"))?;
        let epsilon = norm_epsilon.unwrap_or(1.0);
        require(epsilon.is_finite() && epsilon > 0.0, || {
            format!("an input is normalised with an epsilon of {epsilon}")
        })?;
    }
    let entries = u64::from(model.vocabulary) * u64::from(model.hidden);
    let found = model.embedding.as_ref().map_or(entries, |embedding| embedding.entries() as u64);
    require(found == entries && entries > 0, || {
        let (vocabulary, hidden) = (model.vocabulary, model.hidden);
        format!("its embedding has {found} entries, not {vocabulary}·{hidden}")
    })?;
    for token in &model.eos {
        require(*token < model.vocabulary, || format!("special token {token} is not in its vocabulary"))?;
    }
    guard(model, u64::from(slots) * shape.outputs as u64)?;
    let top = parameters.levels().output;
    let levels = keys.rotations.values().flatten().chain(&keys.conjugation).chain(&keys.relinearisation);
    for level in levels {
        require(*level <= top, || format!("a key of level {level} lies above the top level {top}"))?;
    }
    for rotation in keys.rotations.keys() {
        require((1..slots).contains(rotation), || format!("a key for a rotation by {rotation} of {slots} slots"))?;
    }
    Ok(())
}

/// Checks what a client knows about logits, read from `slots` slots in all.
fn guard(model: &ClientModel, slots: u64) -> Result<(), Error> {
    let Guard { logits: [low, high], zeros, norm, noise_gain } = &model.guard;
    require(*noise_gain >= 0.0, || format!("its noise grows by a factor of {noise_gain}"))?;
    require(low.is_finite() && high.is_finite() && low <= high, || format!("its logits lie in [{low}, {high}]"))?;
    require(zeros.iter().all(|slot| u64::from(*slot) < slots), || "a slot that is zero is out of range".to_owned())?;
    let Some(norm) = norm else { return Ok(()) };
    let width = model.hidden as usize;
    let (others, factors): (&[u32], _) = match &norm.others {
        Others::Embedding(matrix) => (&[], matrix.len() == width * width),
        Others::Rows(tokens, rows) => (tokens, rows.len() == tokens.len() * width),
    };
    require(norm.tokens.len() == width && norm.triangle.len() == width * (width + 1) / 2 && factors, || {
        format!("its check of the last norm is not one of width {width}")
    })?;
    require(norm.tokens.iter().chain(others).all(|token| *token < model.vocabulary), || {
        "a token of its check of the last norm is not in its vocabulary".to_owned()
    })?;
    let numbers = norm.length.into_iter().chain([norm.gain, norm.deviation, norm.deviation_gain]);
    require(numbers.clone().all(|number| number.is_finite() && number >= 0.0), || {
        format!("its check of the last norm has the bounds {:?}", numbers.collect::<Vec<_>>())
    })
}

/// Whether every multiple of the chunk has a number of tokens from which on prefill pays, if there is a chunk.
fn prefill_pays(pays: &[u32], chunk: Option<u32>, context: u32) -> Result<(), Error> {
    let (expected, range) = chunk.map_or((0, 0..=0), |chunk| (context.div_ceil(chunk), 2..=chunk + 1));
    let found = pays.len();
    require(found == expected as usize, || {
        format!("it says at {found} positions, not {expected}, where prefill pays")
    })?;
    match pays.iter().find(|tokens| !range.contains(tokens)) {
        Some(tokens) => Err(Error::Plan(format!("a prefill that pays from {tokens} tokens on is out of range"))),
        None => Ok(()),
    }
}

fn placement(what: &str, placement: &Placement, entries: u32, tokens: u32, slots: u64) -> Result<(), Error> {
    let found = placement.index_to_slot.len();
    require(found == entries as usize, || format!("{entries} {what} entries are placed in {found} slots"))?;
    let shift = u64::from(tokens - 1) * u64::from(placement.token_stride);
    let inside = |slot: &u32| u64::from(*slot) + shift < slots;
    require(placement.index_to_slot.iter().all(inside), || format!("a slot of the {what} is out of range"))
}
