//! Weights stored as blocks of small integers with a scale each, as onnxruntime's `com.microsoft` operations do.
//!
//! The evaluation of `MatMulNBits` here is that of its weight alone: the matrix `[N, K]` which the operation multiplies
//! its first input by.

use super::Operands;
use crate::import::dense::{Data, Dense, Kind};

pub(super) fn is_known(op_type: &str) -> bool {
    matches!(op_type, "DequantizeLinear")
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
            let zeros: Vec<f64> = unpacked(zeros, bits);
            let row = zeros.len().checked_div(rows).unwrap_or(0);
            Some((zeros, row))
        }
    };
    if zeros.as_ref().is_some_and(|(values, row)| *row < blocks || values.len() < rows * blocks) {
        return Err("there are too few zero points".to_owned());
    }
    let middle = f64::from(1_u32 << (bits - 1));
    let mut values = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        for column in 0..columns {
            let group = column / block;
            let zero = zeros.as_ref().map_or(middle, |(zeros, length)| zeros[row * length + group]);
            values.push((integers[row * row_length + column] - zero) * scales[row * blocks + group]);
        }
    }
    Ok(Dense::from_f64(vec![rows, columns], Kind::F32, values))
}

/// Unsigned integers of 4 bits, low half first, or 8 bits.
fn unpacked(packed: &Dense, bits: usize) -> Vec<f64> {
    match &packed.data {
        Data::Bytes(bytes) if bits == 4 => {
            bytes.iter().flat_map(|byte| [f64::from(byte & 15), f64::from(byte >> 4)]).collect()
        }
        _ => packed.to_f64(),
    }
}

/// `DequantizeLinear` with one scale for the tensor or one for each index of an axis.
pub(super) fn evaluate(operands: &Operands<'_>) -> Result<Dense, String> {
    let (x, scale) = (operands.get(0)?, operands.get(1)?);
    if operands.node.int("block_size").unwrap_or(0) != 0 {
        return Err("blocked DequantizeLinear is not supported".to_owned());
    }
    let (scales, zeros) = (scale.to_f64(), operands.optional(2).map(Dense::to_f64));
    let inner: usize = if scales.len() == 1 {
        x.len().max(1)
    } else {
        let axis = super::axis_index(operands.node.int("axis").unwrap_or(1), x.shape.len())?;
        if x.shape[axis] != scales.len() {
            return Err(format!("{} scales for {} indices", scales.len(), x.shape[axis]));
        }
        x.shape[axis + 1..].iter().product()
    };
    if zeros.as_ref().is_some_and(|zeros| zeros.len() != scales.len()) {
        return Err("scales and zero points differ in number".to_owned());
    }
    let values = x.to_f64().into_iter().enumerate().map(|(index, value)| {
        let group = index / inner % scales.len();
        (value - zeros.as_ref().map_or(0.0, |zeros| zeros[group])) * scales[group]
    });
    let values = values.collect();
    Ok(Dense::from_f64(x.shape.clone(), Kind::F32, values))
}
