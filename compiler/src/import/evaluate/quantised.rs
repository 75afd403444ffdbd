//! Weights stored as blocks of small integers with a scale each, as onnxruntime's `com.microsoft` operations do.
//!
//! The evaluation of `MatMulNBits` here is that of its weight alone: the matrix `[N, K]` which the operation multiplies
//! its first input by.

use super::Operands;
use crate::import::dense::{Data, Dense, Kind};

pub(super) fn is_known(op_type: &str) -> bool {
    matches!(op_type, "DequantizeLinear" | "com.microsoft::DequantizeLinear")
}

/// The dequantised weights `[rows, columns]` of an operation of the given bits and block size.
pub(in crate::import) fn dequantise(
    packed: &Dense,
    scales: &Dense,
    zero_points: Option<&Dense>,
    [rows, columns]: [usize; 2],
    (bits, block): (usize, usize),
) -> Result<Dense, String> {
    if !matches!(bits, 4 | 8) || block == 0 {
        return Err(format!("blocks of {block} weights of {bits} bits are not supported"));
    }
    let blocks = columns.div_ceil(block);
    let integers = unpacked(packed, bits);
    // Rows are padded to whole blocks.
    let row_length = integers.len().checked_div(rows).unwrap_or(0);
    let scales = scales.to_f64();
    if row_length < columns || Some(scales.len()) != rows.checked_mul(blocks) {
        return Err(format!(
            "{} packed entries and {} scales for {rows}×{columns} weights",
            packed.len(),
            scales.len()
        ));
    }
    let zeros = match zero_points {
        None => None,
        Some(zeros) if zeros.kind().is_float() => Some((zeros.to_f64(), blocks)),
        Some(zeros) => {
            let zeros = unpacked(zeros, bits);
            let row = zeros.len().checked_div(rows).unwrap_or(0);
            Some((zeros.into_iter().map(|zero| zero as f64).collect(), row))
        }
    };
    if zeros.as_ref().is_some_and(|(values, row)| *row < blocks || values.len() < rows * blocks) {
        return Err("there are too few zero points".to_owned());
    }
    // Integers of a type of their own are themselves; those packed in bytes lie around the middle of their range.
    let usual = if packed.kind() == Kind::Bytes { f64::from(1_u32 << (bits - 1)) } else { 0.0 };
    let mut values = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        for column in 0..columns {
            let group = column / block;
            let zero = zeros.as_ref().map_or(usual, |(zeros, length)| zeros[row * length + group]);
            let integer = integers[row * row_length + column] as f64;
            values.push(((integer - zero) * scales[row * blocks + group]) as f32);
        }
    }
    Ok(Dense { shape: vec![rows, columns], data: Data::F32(values) })
}

/// The integers of a tensor of 4-bit integers, or those packed in bytes: two of 4 bits, the low half first, or one.
fn unpacked(packed: &Dense, bits: usize) -> Vec<i64> {
    match &packed.data {
        Data::Bytes(bytes) if bits == 4 => {
            bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]).map(i64::from).collect()
        }
        _ => packed.to_ints(),
    }
}

/// `DequantizeLinear` with one scale for the tensor, one for each index of an axis, or one for each block of an axis.
pub(super) fn evaluate(operands: &Operands<'_>) -> Result<Dense, String> {
    let (x, scales) = (operands.get(0)?, operands.get(1)?);
    let zeros = operands.optional(2);
    if zeros.is_some_and(|zeros| zeros.shape != scales.shape && (zeros.len(), scales.len()) != (1, 1)) {
        return Err("scales and zero points differ in number".to_owned());
    }
    let block = operands.node.integer("block_size")?;
    let block = usize::try_from(block).map_err(|_| format!("the block size {block} is negative"))?;
    // Entry (i, j, k) of x seen as [outer, extent, inner] has the scale of (i, j/block, k), or of j for all i and k.
    let (extent, inner, block) = if scales.len() == 1 && block == 0 {
        (1, x.len().max(1), 1)
    } else {
        let axis = super::axis_index(operands.node.integer("axis")?, x.shape.len())?;
        let fits = if block == 0 {
            scales.shape == [x.shape[axis]]
        } else {
            scales.shape.len() == x.shape.len()
                && (0..x.shape.len()).all(|other| {
                    let extent = if other == axis { x.shape[axis].div_ceil(block) } else { x.shape[other] };
                    scales.shape[other] == extent
                })
        };
        if !fits {
            return Err(format!("scales of shape {:?} for a tensor of shape {:?}", scales.shape, x.shape));
        }
        (x.shape[axis], x.shape[axis + 1..].iter().product(), block)
    };
    let (scale, zero) = (scales.to_f64(), zeros.map(Dense::to_f64));
    let scale_at = |index: usize| {
        if block == 0 {
            return index / inner % extent;
        }
        let (outer, middle, inside) = (index / (extent * inner), index / inner % extent, index % inner);
        (outer * extent.div_ceil(block) + middle / block) * inner + inside
    };
    let one = scales.len() == 1;
    let values = x.iter_f64().enumerate().map(|(index, value)| {
        let at = if one { 0 } else { scale_at(index) };
        ((value - zero.as_ref().map_or(0.0, |zero| zero[at])) * scale[at]) as f32
    });
    Ok(Dense { shape: x.shape.clone(), data: Data::F32(values.collect()) })
}
