//! Evaluates the ONNX operations of decoders on dense tensors.
//!
//! Used twice: to fold constants, and (on tensors of positions) to follow where views such as `Transpose` or `Slice`
//! take each entry from. Arithmetic is done in double precision and rounded to the result's kind, which for + − × ÷ and
//! square roots of single-precision operands gives the correctly rounded result.

mod arithmetic;
mod movement;
mod quantised;
#[cfg(test)]
mod tests;

pub(super) use arithmetic::{is_binary, is_comparison, is_reduction, is_unary, matrix_product_shape};
pub(super) use movement::{View, concatenate, entries, extents, is_view, joined_shape, tiled_shape, views};
pub(super) use quantised::dequantise;

use std::ops::RangeInclusive;

use super::dense::{Data, Dense, Kind, integers};
use super::onnx::OnnxNode;

/// Inputs of a node; optional ones may be missing.
pub(super) struct Operands<'a> {
    pub(super) node: &'a OnnxNode,
    pub(super) values: Vec<Option<&'a Dense>>,
}

impl<'a> Operands<'a> {
    /// The n-th input, which must be given.
    fn get(&self, index: usize) -> Result<&'a Dense, String> {
        self.optional(index).ok_or_else(|| format!("input {index} is missing"))
    }

    fn optional(&self, index: usize) -> Option<&'a Dense> {
        self.values.get(index).copied().flatten()
    }

    /// Integers given as an attribute in old operator sets and as an input in newer ones.
    fn ints(&self, attribute: &str, index: usize) -> Option<Vec<i64>> {
        self.node.ints(attribute).map(<[i64]>::to_vec).or_else(|| self.optional(index).map(Dense::to_ints))
    }
}

/// An axis as an index; negative ones count from the end.
pub(super) fn axis_index(axis: i64, rank: usize) -> Result<usize, String> {
    let index = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(index).ok().filter(|&index| index < rank).ok_or_else(|| format!("axis {axis} of rank {rank}"))
}

/// Whether a node can be evaluated when all its inputs are constants.
pub(super) fn is_known(op_type: &str) -> bool {
    arithmetic::is_known(op_type)
        || movement::is_known(op_type)
        || quantised::is_known(op_type)
        || matches!(op_type, "Shape" | "Size" | "Identity" | "Dropout" | "Cast")
}

/// The node's outputs for constant inputs.
pub(super) fn evaluate(operands: &Operands<'_>) -> Result<Vec<Dense>, String> {
    let op_type = operands.node.op_type.as_str();
    if arithmetic::is_known(op_type) {
        return arithmetic::evaluate(operands).map(|result| vec![result]);
    }
    if movement::is_known(op_type) {
        return movement::evaluate(operands);
    }
    if quantised::is_known(op_type) {
        return quantised::evaluate(operands).map(|result| vec![result]);
    }
    let result = match op_type {
        "Shape" => shape_of(operands.node, &operands.get(0)?.shape),
        "Size" => Dense::ints(Vec::new(), vec![operands.get(0)?.len() as i64]),
        "Dropout" if operands.optional(2).is_some_and(|training| training.to_bools().contains(&true)) => {
            return Err("it drops entries at random; export the model for inference, not in training mode".to_owned());
        }
        "Identity" | "Dropout" => operands.get(0)?.clone(),
        "Cast" => cast(operands.node, operands.get(0)?)?,
        other => return Err(format!("{other} cannot be evaluated")),
    };
    Ok(vec![result])
}

/// The result of `Shape` for an operand of the given shape.
pub(super) fn shape_of(node: &OnnxNode, shape: &[usize]) -> Dense {
    let rank = shape.len() as i64;
    let bound = |value: i64| (if value < 0 { value + rank } else { value }).clamp(0, rank) as usize;
    let (start, end) = (node.int("start").map_or(0, bound), node.int("end").map_or(bound(rank), bound));
    Dense::int_vector(shape.get(start..end).unwrap_or_default().iter().map(|&extent| extent as i64).collect())
}

/// The ONNX element type that a `Cast` casts to, and its kind.
fn cast_type(node: &OnnxNode) -> Result<(i32, Kind), String> {
    let target = node.integer("to")?;
    let known = i32::try_from(target).ok().and_then(|target| Some((target, Kind::of_onnx(target)?)));
    known.ok_or_else(|| format!("element type {target} is not supported"))
}

/// The kind that a `Cast` casts to.
pub(super) fn cast_kind(node: &OnnxNode) -> Result<Kind, String> {
    cast_type(node).map(|(_, kind)| kind)
}

/// The integers that a `Cast` leaves as they are; `None` if it casts to something else.
pub(super) fn cast_integers(node: &OnnxNode) -> Option<RangeInclusive<i64>> {
    cast_type(node).ok().and_then(|(target, _)| integers(target))
}

/// A tensor of another kind. Integers wrap around to narrower ones; floats must be in the range of the integers, since
/// machines differ in what they make of others.
fn cast(node: &OnnxNode, operand: &Dense) -> Result<Dense, String> {
    let (target, kind) = cast_type(node)?;
    let Some(range) = integers(target) else {
        return Ok(Dense::from_f64(operand.shape.clone(), kind, operand.to_f64()));
    };
    if operand.kind().is_float() {
        // The bounds are powers of 2 or just below: the one above is exact.
        let (first, end) = (*range.start() as f64, *range.end() as f64 + 1.0);
        let outside = |value: &f64| !(first..end).contains(&value.trunc());
        if let Some(value) = operand.iter_f64().find(outside) {
            return Err(format!("{value} is cast to integers from {} to {}", range.start(), range.end()));
        }
    }
    let mut values = operand.to_ints();
    if let Some(count) = range.end().checked_sub(*range.start()).and_then(|last| last.checked_add(1)) {
        // The number of integers divides 2⁶⁴: wrapping around there first changes nothing.
        for value in &mut values {
            *value = value.wrapping_sub(*range.start()).rem_euclid(count) + range.start();
        }
    }
    let data = if kind == Kind::Bytes {
        Data::Bytes(values.into_iter().map(|value| value as u8).collect())
    } else {
        Data::Int(values)
    };
    Ok(Dense { shape: operand.shape.clone(), data })
}
