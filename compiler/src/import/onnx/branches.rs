//! Inlines the branch of an `If` whose condition is the same whatever the tokens and however many.
//!
//! The other branch is then gone, and nothing later can see that it would ever have been taken. So a condition must hold
//! at every length up to the context or at none of them; one that no input reaches is computed once.

use super::{Attribute, Name, OnnxGraph, OnnxInput, OnnxNode, Subgraph, order};
use crate::Error;
use crate::import::dense::Kind;
use crate::import::inputs::{interface, past_shape};
use crate::import::specialise::{Sizes, Specialised, Value};

/// Longest context for whose every length a condition is computed.
const LONGEST_CONTEXT: usize = 1 << 13;

/// Replaces every `If` by the nodes of the branch that it takes in sessions of at most `context` tokens.
pub(super) fn inline(graph: &mut OnnxGraph, context: usize) -> Result<(), Error> {
    while graph.nodes.iter().any(|node| node.op_type == "If") {
        let taken = conditions(graph, context)?;
        let values = graph.names.len();
        let mut nodes = Vec::with_capacity(graph.nodes.len());
        for (mut node, taken) in std::mem::take(&mut graph.nodes).into_iter().zip(taken) {
            match taken {
                None => nodes.push(node),
                Some(condition) => {
                    let branch = if condition { "then_branch" } else { "else_branch" };
                    let Some(Attribute::Graph(branch)) = node.attributes.remove(branch) else {
                        return Err(node.error(format!("it has no {branch}")));
                    };
                    splice(&node, branch, values, &mut nodes)?;
                }
            }
        }
        graph.nodes = nodes;
    }
    Ok(())
}

/// The nodes of a branch in place of the node that it belongs to.
fn splice(node: &OnnxNode, branch: Subgraph, values: usize, nodes: &mut Vec<OnnxNode>) -> Result<(), Error> {
    if branch.outputs.len() < node.outputs.len() {
        return Err(node.error("its branch has too few outputs"));
    }
    let mut inner = branch.nodes;
    order::sort(&mut inner, values)?;
    nodes.append(&mut inner);
    for (&output, name) in node.outputs.iter().zip(branch.outputs) {
        let (inputs, outputs) = (vec![Some(name)], vec![output]);
        let (name, op_type) = (node.name.clone(), "Identity".to_owned());
        nodes.push(OnnxNode { name, op_type, inputs, outputs, attributes: std::collections::BTreeMap::new() });
    }
    Ok(())
}

/// For each node that is an `If` with a condition that does not depend on another one, whether the condition holds.
fn conditions(graph: &OnnxGraph, context: usize) -> Result<Vec<Option<bool>>, Error> {
    let mut pending = vec![false; graph.names.len()];
    let mut ready: Vec<(usize, Name)> = Vec::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        let after_another = node.reads().iter().any(|name| pending[name.index()]);
        if after_another || node.op_type == "If" {
            node.outputs.iter().flatten().for_each(|name| pending[name.index()] = true);
        }
        if !after_another && node.op_type == "If" {
            ready.push((index, node.input(0).ok_or_else(|| node.error("it has no condition"))?));
        }
    }
    let wanted: Vec<Name> = ready.iter().map(|&(_, condition)| condition).collect();
    let known = past_shape(graph);
    let at = |sizes: Sizes| -> Result<Vec<Option<bool>>, Error> {
        let specialised = Specialised::new(graph, sizes, known, Some(&wanted))?;
        let value = |&condition: &Name| match specialised.value(condition) {
            Value::Constant(constant) => constant.scalar().map(|value| value != 0.0),
            _ => None,
        };
        Ok(wanted.iter().map(value).collect())
    };
    let first = at(Sizes { past: 0, sequence: 1 })?;
    for (&(index, condition), value) in ready.iter().zip(&first) {
        if value.is_none() {
            return Err(undecided(graph, &graph.nodes[index], condition));
        }
    }
    if let Some((varying, _)) = ready.iter().find(|(_, condition)| !reached_inputs(graph, *condition).is_empty()) {
        if context > LONGEST_CONTEXT {
            return Err(graph.nodes[*varying].error(format!(
                "which branch it takes may depend on the length, which is computed for each of up to {LONGEST_CONTEXT} \
                 tokens; ask for a shorter --context"
            )));
        }
        for sizes in lengths(graph, context)? {
            for ((&(index, _), first), value) in ready.iter().zip(&first).zip(at(sizes)?) {
                if value != *first {
                    return Err(varies(&graph.nodes[index], sizes));
                }
            }
        }
    }
    let mut taken = vec![None; graph.nodes.len()];
    ready.iter().zip(first).for_each(|(&(index, _), value)| taken[index] = value);
    Ok(taken)
}

/// Every length of a session that a graph is run at, in the order of their sums: all tokens so far at once, the last one
/// after the others, and about half of them after the others.
fn lengths(graph: &OnnxGraph, context: usize) -> Result<Vec<Sizes>, Error> {
    let (cached, several) = interface(graph)?;
    let of_total = |total: usize| {
        let sizes = |past: usize| Sizes { past, sequence: total - past };
        let forms = [(several, sizes(0)), (cached, sizes(total - 1)), (cached && several, sizes(total / 2))];
        forms.into_iter().filter(|(runs, _)| *runs).map(|(_, sizes)| sizes)
    };
    Ok((1..=context).flat_map(of_total).collect())
}

/// The error for a condition that is another one at the given lengths than at shorter ones.
fn varies(node: &OnnxNode, Sizes { past, sequence }: Sizes) -> Error {
    let shorter = past + sequence - 1;
    let advice = if shorter > 1 {
        format!("; up to {shorter} tokens it is the same branch, with --context {shorter} or less")
    } else {
        String::new()
    };
    Error::NotLlama {
        node: node.name.clone(),
        op_type: node.op_type.clone(),
        message: format!(
            "which branch it takes depends on the length (as with longrope, or with a first call that is another one): at \
             {past} past and {sequence} new tokens it is another branch than at fewer, which is not supported{advice}"
        ),
    }
}

/// The inputs that a value depends on.
fn reached_inputs(graph: &OnnxGraph, value: Name) -> Vec<&OnnxInput> {
    let mut reached = vec![false; graph.names.len()];
    reached[value.index()] = true;
    for node in graph.nodes.iter().rev() {
        if node.outputs.iter().flatten().any(|name| reached[name.index()]) {
            node.reads().into_iter().for_each(|name| reached[name.index()] = true);
        }
    }
    graph.inputs.iter().filter(|input| reached[input.value.index()]).collect()
}

/// Why a condition is not known: a truth value among the inputs is that of a merged decoder.
fn undecided(graph: &OnnxGraph, node: &OnnxNode, condition: Name) -> Error {
    let inputs = reached_inputs(graph, condition);
    match inputs.iter().find(|input| input.kind == Kind::Bool).or_else(|| inputs.first()) {
        Some(input) if input.kind == Kind::Bool => Error::Interface {
            message: format!(
                "this is a merged decoder: its input `{}` chooses between two graphs, with and without a cache. Take \
                 `decoder_with_past_model.onnx` or `decoder_model.onnx` of the same export instead, or export \
                 `model.onnx` anew, as current versions of optimum do",
                input.name
            ),
        },
        Some(input) => node.error(format!("which branch it takes depends on the input `{}`", input.name)),
        None => node.error("its condition cannot be computed"),
    }
}
