//! Inlines the branch of an `If` whose condition is known before anything is computed.

use super::{Attribute, OnnxGraph, OnnxNode, Subgraph, order};
use crate::Error;
use crate::import::dense::Kind;
use crate::import::inputs::past_shape;
use crate::import::specialise::{Sizes, Specialised, Value};

/// Lengths at which a condition must be the same.
const SIZES: [Sizes; 2] = [Sizes { past: 11, sequence: 1 }, Sizes { past: 3, sequence: 5 }];

/// Replaces every `If` by the nodes of one of its branches.
pub(super) fn inline(graph: &mut OnnxGraph) -> Result<(), Error> {
    while graph.nodes.iter().any(|node| node.op_type == "If") {
        let taken = conditions(graph)?;
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
fn conditions(graph: &OnnxGraph) -> Result<Vec<Option<bool>>, Error> {
    let wanted: Vec<_> =
        graph.nodes.iter().filter(|node| node.op_type == "If").filter_map(|node| node.input(0)).collect();
    let known = past_shape(graph);
    let [one, other] = SIZES.map(|sizes| Specialised::new(graph, sizes, known, Some(&wanted)));
    let (one, other) = (one?, other?);
    let mut pending = vec![false; graph.names.len()];
    let mut taken = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let after_another = node.reads().iter().any(|name| pending[name.index()]);
        if after_another || node.op_type == "If" {
            node.outputs.iter().flatten().for_each(|name| pending[name.index()] = true);
        }
        if after_another || node.op_type != "If" {
            taken.push(None);
            continue;
        }
        let condition = node.input(0).ok_or_else(|| node.error("it has no condition"))?;
        let value = |specialised: &Specialised<'_>| match specialised.value(condition) {
            Value::Constant(constant) => constant.scalar().map(|value| value != 0.0),
            _ => None,
        };
        match (value(&one), value(&other)) {
            (Some(a), Some(b)) if a == b => taken.push(Some(a)),
            _ => return Err(undecided(graph, node, condition)),
        }
    }
    Ok(taken)
}

/// Why a condition is not known: a truth value among the inputs is that of a merged decoder.
fn undecided(graph: &OnnxGraph, node: &OnnxNode, condition: super::Name) -> Error {
    let mut reached = vec![false; graph.names.len()];
    reached[condition.index()] = true;
    for node in graph.nodes.iter().rev() {
        if node.outputs.iter().flatten().any(|name| reached[name.index()]) {
            node.reads().into_iter().for_each(|name| reached[name.index()] = true);
        }
    }
    let inputs = || graph.inputs.iter().filter(|input| reached[input.value.index()]);
    match inputs().find(|input| input.kind == Kind::Bool).or_else(|| inputs().next()) {
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
