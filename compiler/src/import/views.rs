//! Follows operations that only rearrange, repeat, negate or scale entries.

use std::sync::Arc;

use super::dense::{Dense, Kind, broadcast_shapes};
use super::evaluate::{self, Operands, cast_integers, cast_kind, concatenate, is_view};
use super::onnx::OnnxNode;
use super::specialise::{Signal, Value, constants};

/// Most entries of a signal whose rearrangements are followed.
const MAPPED_ENTRIES: usize = 1 << 27;

/// The node's outputs if it only rearranges or scales a signal, else `None`.
pub(super) fn follow(node: &OnnxNode, inputs: &[Option<Value>]) -> Result<Option<Vec<Signal>>, String> {
    let op_type = node.op_type.as_str();
    match (op_type, inputs) {
        ("Concat", _) => join(node, inputs),
        ("Neg", [Some(Value::Signal(signal))]) => Ok(Some(vec![scaled(signal, -1.0)])),
        ("Cast", [Some(Value::Signal(signal))]) => {
            let kind = cast_kind(node)?;
            // Numbers of tokens fit 32 bits; what is narrower may change them.
            let wide = cast_integers(node).is_some_and(|integers| integers.contains(&i32::MAX.into()));
            let same = kind.is_float() && signal.kind.is_float() || wide && signal.kind == Kind::Int;
            Ok(same.then(|| vec![signal.clone()]))
        }
        ("Mul" | "Div" | "Add" | "Sub", [Some(Value::Signal(signal)), Some(Value::Constant(constant))]) => {
            Ok(with_constant(op_type, signal, constant).map(|result| vec![result]))
        }
        ("Mul" | "Add", [Some(Value::Constant(constant)), Some(Value::Signal(signal))]) => {
            Ok(with_constant(op_type, signal, constant).map(|result| vec![result]))
        }
        ("Where", [Some(Value::Constant(condition)), Some(yes), Some(no)]) => Ok(chosen(condition, yes, no)),
        (_, [Some(Value::Signal(signal)), rest @ ..]) if is_view(op_type) || op_type == "Gather" => {
            match constants(rest) {
                Some(rest) => rearranged(node, signal, rest).map(Some),
                None => Ok(None),
            }
        }
        _ => Ok(None),
    }
}

fn scaled(signal: &Signal, factor: f64) -> Signal {
    Signal { scale: signal.scale * factor, ..signal.clone() }
}

/// A signal times a number, the same for all tokens, or plus a tensor of zeros.
fn with_constant(op_type: &str, signal: &Signal, constant: &Dense) -> Option<Signal> {
    if !signal.kind.is_float() || broadcast_shapes(&signal.shape, &constant.shape).ok()? != signal.shape {
        return None;
    }
    match op_type {
        "Mul" => Some(scaled(signal, constant.factor()?)),
        "Div" => Some(scaled(signal, 1.0 / constant.factor()?)),
        _ => constant.to_f64().iter().all(|&entry| entry == 0.0).then(|| signal.clone()),
    }
}

/// A choice that is the same everywhere.
fn chosen(condition: &Dense, yes: &Value, no: &Value) -> Option<Vec<Signal>> {
    let condition_values = condition.to_bools();
    let all = *condition_values.first()?;
    if condition_values.iter().any(|&value| value != all) {
        return None;
    }
    let shape = broadcast_shapes(&broadcast_shapes(&condition.shape, yes.shape()).ok()?, no.shape()).ok()?;
    match if all { yes } else { no } {
        Value::Signal(signal) if signal.shape == shape => Some(vec![signal.clone()]),
        _ => None,
    }
}

/// Applies a view to the positions of the signal's entries.
fn rearranged(node: &OnnxNode, signal: &Signal, rest: Vec<Option<&Dense>>) -> Result<Vec<Signal>, String> {
    if signal.len() > MAPPED_ENTRIES {
        return Err(format!("the shape {:?} is too large to be rearranged", signal.shape));
    }
    let positions = Dense::ints(signal.shape.clone(), signal.indices().to_vec());
    let values = std::iter::once(Some(&positions)).chain(rest).collect();
    let results = evaluate::evaluate(&Operands { node, values })?;
    Ok(results.into_iter().map(|result| at_positions(signal, result)).collect())
}

/// The signal's base seen through other positions.
fn at_positions(signal: &Signal, positions: Dense) -> Signal {
    let indices = positions.to_ints();
    let in_order = indices.iter().zip(1_i64..).all(|(&index, position)| index == position);
    let map = if in_order && indices.len() == signal.base_len { None } else { Some(Arc::new(indices)) };
    Signal { shape: positions.shape, map, ..signal.clone() }
}

/// Parts of one base, one after the other.
fn join(node: &OnnxNode, inputs: &[Option<Value>]) -> Result<Option<Vec<Signal>>, String> {
    let signals = inputs.iter().map(|input| match input {
        Some(Value::Signal(signal)) => Some(signal.with_positive_scale()),
        _ => None,
    });
    let Some(parts) = signals.collect::<Option<Vec<Signal>>>() else {
        return Ok(None);
    };
    let first = parts[0].clone();
    if parts.iter().any(|part| part.base != first.base || part.scale != first.scale || part.len() > MAPPED_ENTRIES) {
        return Ok(None);
    }
    let positions: Vec<Dense> =
        parts.iter().map(|part| Dense::ints(part.shape.clone(), part.indices().to_vec())).collect();
    let positions = concatenate(node.integer("axis")?, &positions.iter().collect::<Vec<_>>())?;
    Ok(Some(vec![at_positions(&first, positions)]))
}
