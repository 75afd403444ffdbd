//! Plans to protobuf messages and back. Reading checks shapes and ids as far as it needs to build the types; what they
//! mean is checked afterwards, by [`super::check`].

use std::collections::BTreeSet;

use super::container::{Blobs, BlobsRead};
use super::stored::{weights_from_wire, weights_to_wire};
use super::{
    Approximation, CallCounts, ChatTemplate, CkksProgram, ClientModel, ClientPlan, EntryInterface, Guard, MaskCount,
    Measure, NormCheck, Others, Plan, Provenance, wire,
};
use crate::Error;
use crate::ckks::{CiphertextType, CkksGraph, CkksOp};
use crate::expression::Vector;
use crate::graph::{Definition, Node, OpId, Origin, OriginId, Region, Value, ValueId};
use crate::manifest::{BootstrapVariant, KeyManifest};
use crate::operations::{Call, Operations};
use crate::parameters::{KeyGadget, Parameters};
use crate::program::{Affine, EmbeddingForm, Entry, EntryKind, Placement, Program, RangeCheck, State};
use crate::slots::Layout;
use crate::table::{Contents, Table};
use crate::text::cursor::Cursor;
use crate::text::expression::read_vector;
use crate::text::{TextOp, TextType};

fn missing(what: &str) -> Error {
    Error::Plan(format!("its {what} is missing"))
}

fn required<M>(message: Option<M>, what: &str) -> Result<M, Error> {
    message.ok_or_else(|| missing(what))
}

fn hash_from(bytes: &[u8], what: &str) -> Result<[u8; 32], Error> {
    bytes.try_into().map_err(|_| Error::Plan(format!("its {what} is no 32-byte hash")))
}

/// Reads a string that is in text syntax as a whole.
fn from_text<R>(text: &str, read: impl FnOnce(&mut Cursor<'_>) -> Result<R, Error>) -> Result<R, Error> {
    let mut cursor = Cursor::new(text, 1);
    let result = read(&mut cursor).and_then(|result| cursor.finish().map(|()| result));
    result.map_err(|error| match error {
        Error::Parse { message, .. } => Error::Plan(message),
        other => other,
    })
}

fn text_of(ty: &impl TextType) -> String {
    let mut text = String::new();
    ty.write(&mut text);
    text
}

fn kind_of(chunk: Option<u32>) -> EntryKind {
    chunk.map_or(EntryKind::Decode, |chunk| EntryKind::Prefill { chunk })
}

fn parameters_to_wire(parameters: &Parameters) -> wire::Parameters {
    let Parameters {
        name,
        log2_degree,
        log2_scale,
        base_bits,
        slots_to_coeffs_bits,
        use_bits,
        eval_mod_bits,
        coeffs_to_slots_bits,
        special_bits,
        gadgets,
        ephemeral_weight,
        insecure,
    } = parameters.clone();
    let gadget =
        |KeyGadget { up_to_level, digit_limbs, special }| wire::KeyGadget { up_to_level, digit_limbs, special };
    wire::Parameters {
        name,
        log2_degree,
        log2_scale,
        base_bits,
        slots_to_coeffs_bits,
        use_bits,
        eval_mod_bits,
        coeffs_to_slots_bits,
        special_bits,
        gadgets: gadgets.into_iter().map(gadget).collect(),
        ephemeral_weight,
        insecure,
    }
}

fn parameters_from_wire(parameters: wire::Parameters) -> Parameters {
    let wire::Parameters {
        name,
        log2_degree,
        log2_scale,
        base_bits,
        slots_to_coeffs_bits,
        use_bits,
        eval_mod_bits,
        coeffs_to_slots_bits,
        special_bits,
        gadgets,
        ephemeral_weight,
        insecure,
    } = parameters;
    let gadget =
        |wire::KeyGadget { up_to_level, digit_limbs, special }| KeyGadget { up_to_level, digit_limbs, special };
    Parameters {
        name,
        log2_degree,
        log2_scale,
        base_bits,
        slots_to_coeffs_bits,
        use_bits,
        eval_mod_bits,
        coeffs_to_slots_bits,
        special_bits,
        gadgets: gadgets.into_iter().map(gadget).collect(),
        ephemeral_weight,
        insecure,
    }
}

fn placement_to_wire(placement: &Placement) -> wire::Placement {
    wire::Placement { index_to_slot: placement.index_to_slot.clone(), token_stride: placement.token_stride }
}

fn placement_from_wire(placement: wire::Placement) -> Placement {
    Placement { index_to_slot: placement.index_to_slot, token_stride: placement.token_stride }
}

fn packing_to_wire(embedding: &Placement, inputs: &[EmbeddingForm], logits: &Placement) -> wire::Packing {
    let form = |form: &EmbeddingForm| wire::EmbeddingForm { scale: form.scale, norm_epsilon: form.norm_epsilon };
    wire::Packing {
        embedding: Some(placement_to_wire(embedding)),
        inputs: inputs.iter().map(form).collect(),
        logits: Some(placement_to_wire(logits)),
    }
}

/// Placement of embeddings, what the inputs hold of them, and the placement of the logits.
fn packing_from_wire(packing: Option<wire::Packing>) -> Result<(Placement, Vec<EmbeddingForm>, Placement), Error> {
    let packing = required(packing, "packing")?;
    let embedding = placement_from_wire(required(packing.embedding, "embedding's packing")?);
    let form = |form: &wire::EmbeddingForm| EmbeddingForm { scale: form.scale, norm_epsilon: form.norm_epsilon };
    let inputs = packing.inputs.iter().map(form).collect();
    Ok((embedding, inputs, placement_from_wire(required(packing.logits, "logits' layout")?)))
}

fn keys_to_wire(keys: &KeyManifest) -> wire::Keys {
    let bootstraps = keys.bootstraps.iter();
    wire::Keys {
        rotations: keys.rotations.iter().map(|(&by, levels)| (by, level_set(levels))).collect(),
        conjugation: keys.conjugation.iter().copied().collect(),
        relinearisation: keys.relinearisation.iter().copied().collect(),
        bootstraps: bootstraps
            .map(|variant| wire::BootstrapVariant { complex: variant.complex, log2_magnitude: variant.log2_magnitude })
            .collect(),
    }
}

fn level_set(levels: &BTreeSet<u32>) -> wire::LevelSet {
    wire::LevelSet { levels: levels.iter().copied().collect() }
}

fn keys_from_wire(keys: wire::Keys) -> KeyManifest {
    let bootstraps = keys.bootstraps.into_iter();
    KeyManifest {
        rotations: keys.rotations.into_iter().map(|(by, set)| (by, set.levels.into_iter().collect())).collect(),
        conjugation: keys.conjugation.into_iter().collect(),
        relinearisation: keys.relinearisation.into_iter().collect(),
        bootstraps: bootstraps
            .map(|variant| BootstrapVariant { complex: variant.complex, log2_magnitude: variant.log2_magnitude })
            .collect(),
    }
}

fn model_to_wire(model: &ClientModel, blobs: &mut Blobs) -> wire::Model {
    wire::Model {
        name: model.name.clone(),
        tokenizer_blob: model.tokenizer.as_ref().map(|tokenizer| blobs.add_bytes(tokenizer.clone())),
        vocabulary: model.vocabulary,
        hidden: model.hidden,
        embedding: model.embedding.as_ref().map(|embedding| weights_to_wire(embedding, blobs)),
        eos: model.eos.clone(),
        chat: model.chat.clone().map(|ChatTemplate { source, tokens }| wire::ChatTemplate { source, tokens }),
        guard: Some(guard_to_wire(&model.guard, blobs)),
    }
}

fn guard_to_wire(guard: &Guard, blobs: &mut Blobs) -> wire::Guard {
    let [low, high] = guard.logits;
    let norm = |norm: &NormCheck| {
        let (embedding, others, factors) = match &norm.others {
            Others::Embedding(matrix) => (true, Vec::new(), matrix),
            Others::Rows(tokens, rows) => (false, tokens.clone(), rows),
        };
        wire::NormCheck {
            tokens: norm.tokens.clone(),
            triangle_blob: blobs.add_floats(&norm.triangle),
            shortest: norm.length[0],
            longest: norm.length[1],
            gain: norm.gain,
            embedding,
            others,
            others_blob: blobs.add_floats(factors),
            deviation: norm.deviation,
            deviation_gain: norm.deviation_gain,
        }
    };
    let noise_gain = guard.noise_gain;
    wire::Guard { low, high, zeros: guard.zeros.clone(), norm: guard.norm.as_ref().map(norm), noise_gain }
}

fn guard_from_wire(guard: wire::Guard, width: u64, blobs: &BlobsRead) -> Result<Guard, Error> {
    let norm = |norm: wire::NormCheck| {
        let rows = if norm.embedding { width } else { norm.others.len() as u64 };
        let factors = blobs.floats(norm.others_blob, rows * width, "guard")?;
        Ok(NormCheck {
            tokens: norm.tokens,
            triangle: blobs.floats(norm.triangle_blob, width * (width + 1) / 2, "guard")?,
            length: [norm.shortest, norm.longest],
            gain: norm.gain,
            others: if norm.embedding { Others::Embedding(factors) } else { Others::Rows(norm.others, factors) },
            deviation: norm.deviation,
            deviation_gain: norm.deviation_gain,
        })
    };
    let wire::Guard { low, high, zeros, noise_gain, .. } = guard;
    Ok(Guard { logits: [low, high], zeros, norm: guard.norm.map(norm).transpose()?, noise_gain })
}

fn model_from_wire(model: wire::Model, blobs: &BlobsRead) -> Result<ClientModel, Error> {
    let embedding = model.embedding.map(|embedding| weights_from_wire(embedding, "embedding", blobs)).transpose()?;
    let tokenizer = model.tokenizer_blob.map(|blob| blobs.bytes(blob, "tokenizer")).transpose()?;
    Ok(ClientModel {
        name: model.name,
        tokenizer: tokenizer.map(|bytes| bytes.to_vec()),
        chat: model.chat.map(|wire::ChatTemplate { source, tokens }| ChatTemplate { source, tokens }),
        vocabulary: model.vocabulary,
        hidden: model.hidden,
        embedding,
        eos: model.eos,
        guard: guard_from_wire(required(model.guard, "guard")?, u64::from(model.hidden), blobs)?,
    })
}

fn region_to_wire(region: &Region) -> wire::Region {
    wire::Region {
        ops: region.ops.iter().map(|op| op.0).collect(),
        yields: region.yields.iter().map(|value| value.0).collect(),
    }
}

fn region_from_wire(region: wire::Region) -> Region {
    Region { ops: region.ops.into_iter().map(OpId).collect(), yields: region.yields.into_iter().map(ValueId).collect() }
}

fn entry_to_wire(entry: &Entry<CkksOp, CiphertextType>) -> wire::Entry {
    let graph = &entry.graph;
    let node = |node: &Node<CkksOp>| {
        let mut attributes = String::new();
        node.op.write_attributes(&mut attributes);
        wire::Node {
            mnemonic: node.op.mnemonic().to_owned(),
            attributes: attributes.trim_start().to_owned(),
            inputs: node.inputs.iter().map(|value| value.0).collect(),
            results: node.results.iter().map(|value| value.0).collect(),
            origin: node.origin.map(|origin| origin.0),
            layer: node.layer,
            region: node.region.as_ref().map(region_to_wire),
        }
    };
    let values = graph.values.iter().map(|value| wire::Value { ty: text_of(&value.ty), name: value.name.clone() });
    let origins = graph.origins.iter().cloned().map(|Origin { node, op_type }| wire::Origin { node, op_type });
    wire::Entry {
        chunk: entry.kind.chunk(),
        values: values.collect(),
        nodes: graph.nodes.iter().map(node).collect(),
        inputs: graph.inputs.iter().map(|value| value.0).collect(),
        body: Some(region_to_wire(&graph.body)),
        origins: origins.collect(),
        checks: entry.checks.iter().map(check_to_wire).collect(),
    }
}

fn check_to_wire(check: &RangeCheck) -> wire::RangeCheck {
    let ([low, high], Affine { centre, half }) = (check.interval, check.map);
    let placement = Some(placement_to_wire(&check.placement));
    wire::RangeCheck { site: check.site.clone(), placement, low, high, centre, half }
}

fn checks_from_wire(checks: Vec<wire::RangeCheck>) -> Result<Vec<RangeCheck>, Error> {
    let check = |check: wire::RangeCheck| {
        let placement = placement_from_wire(required(check.placement, "check's slots")?);
        let map = Affine { centre: check.centre, half: check.half };
        Ok(RangeCheck { site: check.site, placement, interval: [check.low, check.high], map })
    };
    checks.into_iter().map(check).collect()
}

fn entry_from_wire(entry: wire::Entry) -> Result<Entry<CkksOp, CiphertextType>, Error> {
    let mut definitions = vec![None; entry.values.len()];
    let inputs: Vec<ValueId> = entry.inputs.into_iter().map(ValueId).collect();
    let mut define = |value: ValueId, definition: Definition| match definitions.get_mut(value.index()) {
        Some(known @ None) => {
            *known = Some(definition);
            Ok(())
        }
        Some(Some(_)) => Err(Error::Plan(format!("{value} is defined twice"))),
        None => Err(Error::Plan(format!("{value} is not in its graph"))),
    };
    for (index, input) in inputs.iter().enumerate() {
        define(*input, Definition::Input(index as u32))?;
    }
    let mut nodes = Vec::with_capacity(entry.nodes.len());
    for (op, node) in entry.nodes.into_iter().enumerate() {
        let results: Vec<ValueId> = node.results.into_iter().map(ValueId).collect();
        for (index, result) in results.iter().enumerate() {
            define(*result, Definition::Result(OpId(op as u32), index as u32))?;
        }
        nodes.push(Node {
            op: from_text(&node.attributes, |cursor| CkksOp::read_attributes(&node.mnemonic, cursor))?,
            inputs: node.inputs.into_iter().map(ValueId).collect(),
            results,
            origin: node.origin.map(OriginId),
            layer: node.layer,
            region: node.region.map(region_from_wire),
        });
    }
    let mut values = Vec::with_capacity(entry.values.len());
    for (index, (value, definition)) in entry.values.into_iter().zip(definitions).enumerate() {
        let definition = definition.ok_or_else(|| Error::Plan(format!("%{index} is defined nowhere")))?;
        values.push(Value { ty: from_text(&value.ty, CiphertextType::read)?, definition, name: value.name });
    }
    let body = region_from_wire(required(entry.body, "body")?);
    let origins = entry.origins.into_iter().map(|wire::Origin { node, op_type }| Origin { node, op_type }).collect();
    let graph = CkksGraph { values, nodes, inputs, body, origins };
    Ok(Entry { kind: kind_of(entry.chunk), graph, checks: checks_from_wire(entry.checks)? })
}

fn program_to_wire(program: &CkksProgram, blobs: &mut Blobs) -> wire::Program {
    let tables = program.tables.iter().map(|table| wire::Table {
        name: table.name.clone(),
        shape: table.shape.clone(),
        weights: table.weights().map(|weights| weights_to_wire(weights, blobs)),
        deviation: match table.contents {
            Contents::Stored(_) => None,
            Contents::Unknown { deviation } => Some(deviation),
        },
    });
    let states = program.states.iter().map(|state| wire::State {
        name: state.name.clone(),
        capacity: state.capacity,
        layout: text_of(&state.layout),
        level: state.level,
        initial: state.initial.as_ref().map(Vector::to_string),
    });
    wire::Program {
        slots: program.slots,
        context: program.context,
        tables: tables.collect(),
        states: states.collect(),
        entries: program.entries.iter().map(entry_to_wire).collect(),
        client: Some(packing_to_wire(&program.embedding, &program.inputs, &program.logits)),
        prefix: program.prefix.clone(),
    }
}

fn program_from_wire(program: wire::Program, blobs: &BlobsRead) -> Result<CkksProgram, Error> {
    let mut tables = Vec::with_capacity(program.tables.len());
    for wire::Table { name, shape, weights, deviation } in program.tables {
        let contents = match (weights, deviation) {
            (Some(weights), None) => Contents::Stored(weights_from_wire(weights, &name, blobs)?),
            (None, Some(deviation)) => Contents::Unknown { deviation },
            _ => return Err(Error::Plan(format!("table `{name}` has not either weights or a deviation"))),
        };
        tables.push(Table { name, shape, contents });
    }
    let mut states = Vec::with_capacity(program.states.len());
    for state in program.states {
        let layout = from_text(&state.layout, Layout::read)?;
        let initial = state.initial.map(|text| from_text(&text, read_vector)).transpose()?;
        states.push(State { name: state.name, capacity: state.capacity, layout, level: state.level, initial });
    }
    let (embedding, inputs, logits) = packing_from_wire(program.client)?;
    Ok(Program {
        slots: program.slots,
        context: program.context,
        tables: tables.into(),
        states,
        prefix: program.prefix,
        entries: program.entries.into_iter().map(entry_from_wire).collect::<Result<_, _>>()?,
        embedding,
        inputs,
        logits,
    })
}

fn counts_to_wire(counts: &CallCounts) -> wire::CallCounts {
    let Call { kind, position, tokens } = counts.call;
    let Operations { bootstraps, rotations, ciphertext_products, plaintext_products, masks, polynomials, level_drops } =
        counts.operations;
    let reason = |mask: &MaskCount| wire::MaskCount { reason: mask.reason.clone(), count: mask.count };
    wire::CallCounts {
        chunk: kind.chunk(),
        position,
        tokens,
        bootstraps,
        rotations,
        ciphertext_products,
        plaintext_products,
        masks,
        polynomials,
        level_drops,
        mask_reasons: counts.masks.iter().map(reason).collect(),
        predicted_ns: counts.predicted_ns,
    }
}

fn counts_from_wire(counts: wire::CallCounts) -> CallCounts {
    let wire::CallCounts {
        chunk,
        position,
        tokens,
        bootstraps,
        rotations,
        ciphertext_products,
        plaintext_products,
        masks,
        polynomials,
        level_drops,
        mask_reasons,
        predicted_ns,
    } = counts;
    let reason = |wire::MaskCount { reason, count }| MaskCount { reason, count };
    CallCounts {
        call: Call { kind: kind_of(chunk), position, tokens },
        operations: Operations {
            bootstraps,
            rotations,
            ciphertext_products,
            plaintext_products,
            masks,
            polynomials,
            level_drops,
        },
        masks: mask_reasons.into_iter().map(reason).collect(),
        predicted_ns,
    }
}

fn approximation_to_wire(approximation: &Approximation) -> wire::Approximation {
    let interval = |[low, high]: [f64; 2]| wire::Interval { low, high };
    let Approximation {
        site,
        function,
        method,
        accurate,
        sane,
        derived,
        degree,
        depth,
        max_error,
        measure,
        cancels,
        escape_proof,
        checked,
    } = approximation.clone();
    wire::Approximation {
        site,
        function,
        method,
        accurate: Some(interval(accurate)),
        sane: Some(interval(sane)),
        derived: derived.map(interval),
        degree,
        depth,
        max_error,
        relative: measure == Measure::Relative,
        cancels,
        escape_proof,
        checked,
    }
}

fn approximation_from_wire(approximation: wire::Approximation) -> Result<Approximation, Error> {
    let interval = |wire::Interval { low, high }| [low, high];
    let wire::Approximation {
        site,
        function,
        method,
        accurate,
        sane,
        derived,
        degree,
        depth,
        max_error,
        relative,
        cancels,
        escape_proof,
        checked,
    } = approximation;
    Ok(Approximation {
        site,
        function,
        method,
        accurate: interval(required(accurate, "range of an approximation")?),
        sane: interval(required(sane, "range of an approximation")?),
        derived: derived.map(interval),
        degree,
        depth,
        max_error,
        measure: if relative { Measure::Relative } else { Measure::Absolute },
        cancels,
        escape_proof,
        checked,
    })
}

pub(super) fn plan_to_wire(plan: &Plan, blobs: &mut Blobs) -> wire::PlanHeader {
    let provenance = &plan.provenance;
    wire::PlanHeader {
        blobs: Vec::new(),
        parameters: Some(parameters_to_wire(&plan.parameters)),
        program: Some(program_to_wire(&plan.program, blobs)),
        keys: Some(keys_to_wire(&plan.keys)),
        model: Some(model_to_wire(&plan.model, blobs)),
        provenance: Some(wire::Provenance {
            model_hash: provenance.model_hash.to_vec(),
            compiler_version: provenance.compiler_version.clone(),
            options: provenance.options.clone(),
            predicted_ns_per_token: provenance.predicted_ns_per_token,
            notes: provenance.notes.clone(),
            cost_table: provenance.cost_table.clone(),
        }),
        counts: plan.counts.iter().map(counts_to_wire).collect(),
        approximations: plan.approximations.iter().map(approximation_to_wire).collect(),
        prefill_pays: plan.prefill_pays.clone(),
    }
}

pub(super) fn plan_from_wire(header: wire::PlanHeader, blobs: &BlobsRead) -> Result<Plan, Error> {
    let provenance = required(header.provenance, "provenance")?;
    Ok(Plan {
        parameters: parameters_from_wire(required(header.parameters, "parameter set")?),
        program: program_from_wire(required(header.program, "program")?, blobs)?,
        keys: keys_from_wire(required(header.keys, "key manifest")?),
        model: model_from_wire(required(header.model, "client part")?, blobs)?,
        provenance: Provenance {
            model_hash: hash_from(&provenance.model_hash, "model hash")?,
            compiler_version: provenance.compiler_version,
            options: provenance.options,
            predicted_ns_per_token: provenance.predicted_ns_per_token,
            notes: provenance.notes,
            cost_table: provenance.cost_table,
        },
        counts: header.counts.into_iter().map(counts_from_wire).collect(),
        approximations: header.approximations.into_iter().map(approximation_from_wire).collect::<Result<_, _>>()?,
        prefill_pays: header.prefill_pays,
    })
}

pub(super) fn client_to_wire(plan: &ClientPlan, blobs: &mut Blobs) -> wire::ClientHeader {
    let interface = |entry: &EntryInterface| wire::EntryInterface {
        chunk: entry.kind.chunk(),
        input_levels: entry.input_levels.clone(),
        output_levels: entry.output_levels.clone(),
        checks: entry.checks.iter().map(check_to_wire).collect(),
    };
    wire::ClientHeader {
        blobs: Vec::new(),
        parameters: Some(parameters_to_wire(&plan.parameters)),
        keys: Some(keys_to_wire(&plan.keys)),
        model: Some(model_to_wire(&plan.model, blobs)),
        slots: plan.slots,
        context: plan.context,
        entries: plan.entries.iter().map(interface).collect(),
        client: Some(packing_to_wire(&plan.embedding, &plan.inputs, &plan.logits)),
        plan_hash: plan.plan_hash.to_vec(),
        prefix: plan.prefix.clone(),
        prefill_pays: plan.prefill_pays.clone(),
    }
}

pub(super) fn client_from_wire(header: wire::ClientHeader, blobs: &BlobsRead) -> Result<ClientPlan, Error> {
    let (embedding, inputs, logits) = packing_from_wire(header.client)?;
    let interface = |entry: wire::EntryInterface| {
        Ok(EntryInterface {
            kind: kind_of(entry.chunk),
            input_levels: entry.input_levels,
            output_levels: entry.output_levels,
            checks: checks_from_wire(entry.checks)?,
        })
    };
    Ok(ClientPlan {
        parameters: parameters_from_wire(required(header.parameters, "parameter set")?),
        keys: keys_from_wire(required(header.keys, "key manifest")?),
        model: model_from_wire(required(header.model, "client part")?, blobs)?,
        slots: header.slots,
        context: header.context,
        entries: header.entries.into_iter().map(interface).collect::<Result<_, Error>>()?,
        embedding,
        inputs,
        logits,
        plan_hash: hash_from(&header.plan_hash, "plan hash")?,
        prefix: header.prefix,
        prefill_pays: header.prefill_pays,
    })
}
