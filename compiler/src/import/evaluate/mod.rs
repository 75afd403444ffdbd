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

use super::dense::{Dense, Kind};
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
    let (start, end) = (bound(node.int("start").unwrap_or(0)), bound(node.int("end").unwrap_or(rank)));
    Dense::int_vector(shape.get(start..end).unwrap_or_default().iter().map(|&extent| extent as i64).collect())
}

/// The kind that a `Cast` casts to.
pub(super) fn cast_kind(node: &OnnxNode) -> Result<Kind, String> {
    let target = node.int("to").ok_or("the attribute `to` is missing")?;
    i32::try_from(target).ok().and_then(Kind::of_onnx).ok_or_else(|| format!("element type {target} is not supported"))
}

fn cast(node: &OnnxNode, operand: &Dense) -> Result<Dense, String> {
    let kind = cast_kind(node)?;
    if kind == Kind::Int {
        return Ok(Dense::ints(operand.shape.clone(), operand.to_ints()));
    }
    Ok(Dense::from_f64(operand.shape.clone(), kind, operand.to_f64()))
}
