//! Holds a decoder against itself at other positions and lengths: it must be one function at all of them.
//!
//! A graph is recognised at a few past tokens and one new one. What depends on position or length in another way than a
//! Llama decoder may hide there: a window, a scale that grows, frequencies that change, a mask that is missing. So the
//! graph is recognised again at the context's last position, at its first, and at several new tokens where it takes
//! them, up to the whole context; the structures must be equal, the masks causal, and constants the same.

use std::collections::BTreeSet;

use super::dense::Dense;
use super::evaluate::is_view;
use super::inputs;
use super::onnx::{Name, OnnxGraph};
use super::recognise::{self, Decoder, RopeSource, Structure};
use super::specialise::{Sizes, Specialised, Value};
use crate::Error;

/// Past tokens that a graph with a cache is first specialised to, and new tokens of short sequences: extents that
/// models do not have otherwise.
const PAST: usize = 11;
const SEQUENCE: usize = 7;

/// New tokens at once of the longest check.
const LONGEST: usize = 1024;

/// Recognises the decoder at one new token.
pub(super) fn recognise(graph: &OnnxGraph) -> Result<Decoder<'_>, Error> {
    let (cached, _) = inputs::interface(graph)?;
    recognise::recognise(graph, Sizes { past: if cached { PAST } else { 0 }, sequence: 1 })
}

/// Checks the decoder at other lengths up to a context, and hands each specialised graph to `visit`.
pub(super) fn check(
    decoder: &Decoder<'_>,
    context: usize,
    mut visit: impl FnMut(&Specialised<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let graph = decoder.specialised.graph;
    let (cached, several) = inputs::interface(graph)?;
    let sizes = |past: usize, sequence: usize| Sizes { past, sequence };
    let last = context.saturating_sub(1);
    let mut lengths = Vec::new();
    if several {
        lengths.push(sizes(0, context.min(SEQUENCE)));
        if cached && context > PAST + SEQUENCE {
            lengths.push(sizes(PAST, SEQUENCE));
        }
        if context > SEQUENCE {
            // Only a cache takes the tokens beyond.
            lengths.push(sizes(0, if cached { context.min(LONGEST) } else { context }));
        }
    }
    if cached {
        lengths.extend([sizes(0, 1), sizes(last, 1)]);
    }
    check_masks(decoder, context)?;
    for sizes in lengths {
        let at = |error: Error| at_lengths(error, sizes);
        let Sizes { past, sequence } = sizes;
        let other = match recognise::recognise(graph, sizes) {
            Ok(other) => other,
            Err(error) => {
                // What varies explains why the structure is another.
                let specialised = Specialised::new(graph, sizes, inputs::past_shape(graph), None).map_err(at)?;
                same_constants(decoder, &specialised)?;
                return Err(at(error));
            }
        };
        check_masks(&other, context)?;
        same_constants(decoder, &other.specialised)?;
        if other.structure != decoder.structure {
            let message = format!(
                "the graph is another function at {past} past and {sequence} new tokens: it depends on position or length"
            );
            return Err(decoder.specialised.not_llama(decoder.structure.head.node, message));
        }
        visit(&other.specialised)?;
    }
    Ok(())
}

/// An error that other lengths than the first led to.
fn at_lengths(error: Error, Sizes { past, sequence }: Sizes) -> Error {
    match error {
        Error::NotLlama { node, op_type, message } => Error::NotLlama {
            node,
            op_type,
            message: format!(
                "at {past} past and {sequence} new tokens: {message}; if a length is fixed in the graph, export it with \
                 dynamic axes"
            ),
        },
        other => other,
    }
}

fn check_masks(decoder: &Decoder<'_>, context: usize) -> Result<(), Error> {
    decoder.structure.layers.iter().map(|layer| &layer.attention).try_for_each(|attention| {
        recognise::check_mask(&decoder.specialised, &attention.masks, attention.nodes.scores, context)
    })
}

/// Checks that what is computed from constants alone, and meets a value that depends on tokens, has the same entries at
/// other lengths. Masks, rotary tables, positions and lengths, which are checked by themselves, may differ; and so may
/// shapes, places and the like of views, which the values' maps show.
fn same_constants(decoder: &Decoder<'_>, other: &Specialised<'_>) -> Result<(), Error> {
    let known = &decoder.specialised;
    let exempt = decoder.structure.exempt(known);
    for node in known.needed_for_logits() {
        let onnx = &known.graph.nodes[node];
        let is_signal = |name: &Name| matches!(known.value(*name), Value::Signal(_));
        let of_signal = onnx.input(0).as_ref().is_some_and(is_signal);
        let views = is_view(&onnx.op_type) || (onnx.op_type == "Gather" && of_signal);
        if views || !onnx.inputs.iter().flatten().any(is_signal) {
            continue;
        }
        for &name in onnx.inputs.iter().flatten() {
            if !is_signal(&name) && !exempt.contains(&(node, name)) && !same_constant(known, other, name)? {
                let message = format!(
                    "its input `{}` depends on the position or on the length (a scale by position, or a bias), which is \
                     not supported",
                    known.graph.names[name.index()]
                );
                return Err(known.not_llama(node, message));
            }
        }
    }
    Ok(())
}

/// Whether a value that does not depend on tokens is the same in both. One that is left in the file is if all that it is
/// computed from is.
fn same_constant(a: &Specialised<'_>, b: &Specialised<'_>, name: Name) -> Result<bool, Error> {
    match (a.value(name), b.value(name)) {
        (Value::Constant(a), Value::Constant(b)) => Ok(same_numbers(a, b)),
        (Value::Parameter { shape, .. }, Value::Parameter { shape: other, .. }) => {
            let nodes = a.computed(name).into_iter().map(|node| &a.graph.nodes[node]);
            let mut constants = nodes
                .flat_map(|node| node.inputs.iter().flatten())
                .filter(|&&input| [a, b].into_iter().any(|graph| matches!(graph.value(input), Value::Constant(_))));
            constants.try_fold(shape == other, |same, &input| Ok(same && same_constant(a, b, input)?))
        }
        _ => Ok(same_numbers(&a.resolve(name)?, &b.resolve(name)?)),
    }
}

fn same_numbers(a: &Dense, b: &Dense) -> bool {
    match a.factor() {
        Some(factor) if a.len() == 1 || a.shape != b.shape => b.iter_f64().all(|entry| entry == factor),
        // What is not a number is refused elsewhere; here it is equal to itself.
        _ => {
            let same = |(a, b): (f64, f64)| a == b || a.is_nan() && b.is_nan();
            a.shape == b.shape && a.kind() == b.kind() && a.iter_f64().zip(b.iter_f64()).all(same)
        }
    }
}

impl Structure {
    /// Inputs of nodes that may depend on the position: masks, constants of rotary embeddings, positions and lengths.
    fn exempt(&self, specialised: &Specialised<'_>) -> BTreeSet<(usize, Name)> {
        let mut exempt = BTreeSet::new();
        let nodes = &specialised.graph.nodes;
        let mut all_inputs = |node: usize| exempt.extend(nodes[node].inputs.iter().flatten().map(|&name| (node, name)));
        for attention in self.layers.iter().map(|layer| &layer.attention) {
            attention.masks.iter().for_each(|step| all_inputs(step.node()));
            [attention.nodes.query_rope, attention.nodes.key_rope].into_iter().for_each(&mut all_inputs);
        }
        let tables: BTreeSet<Name> =
            self.layers.iter().flat_map(|layer| layer.attention.rope).flat_map(RopeSource::names).collect();
        for (node, onnx) in nodes.iter().enumerate().filter(|(_, onnx)| onnx.op_type == "Mul") {
            exempt.extend(onnx.inputs.iter().flatten().filter(|name| tables.contains(name)).map(|&name| (node, name)));
        }
        exempt
    }
}
