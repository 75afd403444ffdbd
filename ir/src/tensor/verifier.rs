//! Checks a tensor model: structure, shapes, and that every layer appends to its own caches once.

use super::{CacheKind, TensorModel, TensorOp, TensorType};
use crate::Error;
use crate::graph::Node;
use crate::weights::Weights;

/// Checks that the graph is well formed, that every op's operands, results and weights have the shapes that it needs,
/// that each layer's key and value cache is appended to exactly once, and that the graph maps a token to the logits.
///
/// # Errors
/// [`Error::Invalid`] with all problems found.
pub fn verify(model: &TensorModel) -> Result<(), Error> {
    let graph = &model.graph;
    let shape = &model.hyperparameters;
    let mut problems = graph.verify_structure();
    if problems.is_empty() {
        problems.extend(verify_shape(model));
        for weight in &model.weights {
            let expected = weight.shape.iter().product::<usize>();
            let found = weight.weights.as_ref().map_or(expected, Weights::entries);
            if found != expected {
                problems.push(format!("{} has {found} values, its shape needs {expected}", weight.name));
            }
        }
        let mut appends = vec![[0_u32; 2]; shape.layers];
        graph.for_each_op(|id, _| {
            let node = graph.node(id);
            if let Err(problem) = verify_op(model, node) {
                problems.push(format!("{id} {} ({}): {problem}", node.op, graph.origin_text(id)));
            }
            if let TensorOp::KvAppend { layer, kind } = node.op {
                match appends.get_mut(layer as usize) {
                    Some(counts) => counts[usize::from(kind == CacheKind::Value)] += 1,
                    None => problems.push(format!("{id} appends to layer {layer} of {}", shape.layers)),
                }
            }
        });
        for (layer, counts) in appends.iter().enumerate() {
            if *counts != [1, 1] {
                problems.push(format!("layer {layer} appends {} keys and {} values a step", counts[0], counts[1]));
            }
        }
        if graph.inputs.len() != 1 || *graph.ty(graph.inputs[0]) != TensorType::Token {
            problems.push("the graph's input is not one token".to_owned());
        }
        let logits = TensorType::Vector { width: shape.vocabulary as u32 };
        if graph.body.yields.len() != 1 || *graph.ty(graph.body.yields[0]) != logits {
            problems.push("the graph's output is not one vector of logits".to_owned());
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Error::Invalid { stage: "tensor", problems }) }
}

/// Problems with the hyperparameters and the rotary table.
fn verify_shape(model: &TensorModel) -> Vec<String> {
    let shape = &model.hyperparameters;
    let mut problems = Vec::new();
    if shape.kv_heads == 0 || !shape.heads.is_multiple_of(shape.kv_heads) {
        problems.push(format!("{} heads cannot share {} key-value heads", shape.heads, shape.kv_heads));
    }
    if !shape.head_dim.is_multiple_of(2) {
        problems.push(format!("the head dimension {} is odd", shape.head_dim));
    }
    let table = &model.rope;
    let entries = shape.context * shape.head_dim / 2;
    if 2 * table.pairs != shape.head_dim || table.cosines.len() != entries || table.sines.len() != entries {
        problems.push(format!("the rotary table is not [{}][{}]", shape.context, shape.head_dim / 2));
    }
    problems
}

/// Checks operands, result and weight of one op.
fn verify_op(model: &TensorModel, node: &Node<TensorOp>) -> Result<(), String> {
    let graph = &model.graph;
    let shape = &model.hyperparameters;
    let operands: Vec<TensorType> = node.inputs.iter().map(|&value| *graph.ty(value)).collect();
    let result = match node.results.as_slice() {
        [result] => *graph.ty(*result),
        other => return Err(format!("has {} results instead of one", other.len())),
    };
    if node.region.is_some() {
        return Err("has a body".to_owned());
    }
    let vector = |width: usize| TensorType::Vector { width: width as u32 };
    let weight_shape = match node.op.weight() {
        Some(id) => match model.weights.get(id.index()) {
            Some(weight) => weight.shape.as_slice(),
            None => return Err(format!("{id} is not in the model")),
        },
        None => &[],
    };
    let kv = vector(shape.kv_width());
    let cache = TensorType::Cache { width: shape.kv_width() as u32 };
    let rows = TensorType::Rows { heads: shape.heads as u32 };
    let attention_heads =
        |heads: u32, kv_heads: u32| heads as usize == shape.heads && kv_heads as usize == shape.kv_heads;
    let good = match node.op {
        TensorOp::Embedding { .. } => {
            weight_shape == [shape.vocabulary, shape.hidden]
                && operands == [TensorType::Token]
                && result == vector(shape.hidden)
        }
        TensorOp::RmsNorm { epsilon, .. } => match weight_shape {
            [width] => epsilon >= 0.0 && operands == [vector(*width)] && result == vector(*width),
            _ => false,
        },
        TensorOp::Linear { bias, .. } => match weight_shape {
            [outputs, inputs] => {
                if let Some(bias) = bias {
                    match model.weights.get(bias.index()) {
                        Some(bias) if bias.shape == [*outputs] => {}
                        Some(weight) => {
                            return Err(format!("{bias} has shape {:?} for {outputs} outputs", weight.shape));
                        }
                        None => return Err(format!("{bias} is not in the model")),
                    }
                }
                operands == [vector(*inputs)] && result == vector(*outputs)
            }
            _ => false,
        },
        TensorOp::LmHead { .. } => match weight_shape {
            [outputs, inputs] => operands == [vector(*inputs)] && result == vector(*outputs),
            _ => false,
        },
        TensorOp::Rope { heads } => {
            let width = vector(heads as usize * shape.head_dim);
            operands == [width] && result == width
        }
        TensorOp::KvAppend { .. } => operands == [kv] && result == cache,
        TensorOp::Scores { heads, kv_heads, scale } => {
            attention_heads(heads, kv_heads)
                && scale.is_finite()
                && operands == [vector(shape.query_width()), cache]
                && result == rows
        }
        TensorOp::Softmax => operands == [rows] && result == rows,
        TensorOp::Mix { heads, kv_heads } => {
            attention_heads(heads, kv_heads) && operands == [rows, cache] && result == vector(shape.query_width())
        }
        TensorOp::Silu => {
            matches!(operands.as_slice(), [operand @ TensorType::Vector { .. }] if *operand == result)
        }
        TensorOp::Mul | TensorOp::Add => matches!(
            operands.as_slice(),
            [left @ TensorType::Vector { .. }, right] if left == right && *left == result
        ),
    };
    if good {
        return Ok(());
    }
    let names = operands.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Err(format!("does not fit ({names}) → {result} with a weight of shape {weight_shape:?}"))
}
