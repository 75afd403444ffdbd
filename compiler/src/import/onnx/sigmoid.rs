//! Sigmoids written out become the operation.

use std::collections::BTreeMap;

use super::{Name, OnnxGraph, OnnxNode};

/// Replaces n/(1 + exp(−x)) by n·sigmoid(x), and 1/(1 + exp(−x)) by sigmoid(x).
pub(super) fn fuse(graph: &mut OnnxGraph) {
    let producers: BTreeMap<Name, usize> = (graph.nodes.iter().enumerate())
        .flat_map(|(index, node)| node.outputs.iter().flatten().map(move |&name| (name, index)))
        .collect();
    let operands: Vec<Option<Name>> =
        graph.nodes.iter().map(|node| denominator(node).and_then(|name| operand(graph, &producers, name))).collect();
    let mut nodes = Vec::with_capacity(graph.nodes.len());
    for (node, operand) in std::mem::take(&mut graph.nodes).into_iter().zip(operands) {
        let Some(operand) = operand else {
            nodes.push(node);
            continue;
        };
        let bare = node.op_type == "Reciprocal" || node.input(0).is_some_and(|name| scalar(graph, name) == Some(1.0));
        let sigmoid = OnnxNode {
            name: node.name.clone(),
            op_type: "Sigmoid".to_owned(),
            inputs: vec![Some(operand)],
            outputs: if bare {
                node.outputs.clone()
            } else {
                vec![Some(graph.fresh(format!("{}/sigmoid", node.name)))]
            },
            attributes: BTreeMap::new(),
        };
        let gate = sigmoid.outputs.first().copied().flatten();
        nodes.push(sigmoid);
        if !bare {
            nodes.push(OnnxNode { op_type: "Mul".to_owned(), inputs: vec![node.input(0), gate], ..node });
        }
    }
    graph.nodes = nodes;
}

/// What a node divides by.
fn denominator(node: &OnnxNode) -> Option<Name> {
    match node.op_type.as_str() {
        "Div" => node.input(1),
        "Reciprocal" => node.input(0),
        _ => None,
    }
}

/// The x of a value 1 + exp(−x).
fn operand(graph: &OnnxGraph, producers: &BTreeMap<Name, usize>, name: Name) -> Option<Name> {
    let node = |name: Name, op_type: &str| {
        producers.get(&name).map(|&index| &graph.nodes[index]).filter(|node| node.op_type == op_type)
    };
    // The operand of a commutative operation whose other operand is a number.
    let beside = |node: &OnnxNode, number: f64| {
        let (a, b) = (node.input(0)?, node.input(1)?);
        match (scalar(graph, a) == Some(number), scalar(graph, b) == Some(number)) {
            (true, false) => Some(b),
            (false, true) => Some(a),
            _ => None,
        }
    };
    let power = node(beside(node(name, "Add")?, 1.0)?, "Exp")?.input(0)?;
    match node(power, "Neg") {
        Some(negated) => negated.input(0),
        None => beside(node(power, "Mul")?, -1.0),
    }
}

/// The number that a stored tensor of one entry holds.
fn scalar(graph: &OnnxGraph, name: Name) -> Option<f64> {
    let stored = graph.initializers.get(&name).filter(|stored| stored.len() == 1)?;
    stored.decode().ok()?.scalar()
}
