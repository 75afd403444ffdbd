//! Operations that copy entries to other places without computing.

use super::{Operands, axis_index};
use crate::import::dense::{Data, Dense, Kind, broadcast_indices, broadcast_shapes, strided_indices, strides};
use crate::import::onnx::Attribute;

pub(super) fn is_known(op_type: &str) -> bool {
    is_view(op_type)
        || matches!(op_type, "Concat" | "Gather" | "GatherND" | "ScatterND" | "ConstantOfShape" | "Trilu" | "Tile")
}

/// Whether the operation only rearranges, drops or repeats entries of its first input.
pub(in crate::import) fn is_view(op_type: &str) -> bool {
    matches!(
        op_type,
        "Reshape"
            | "Squeeze"
            | "Unsqueeze"
            | "Flatten"
            | "Transpose"
            | "Expand"
            | "Slice"
            | "Split"
            | "Identity"
            | "Dropout"
    )
}

pub(super) fn evaluate(operands: &Operands<'_>) -> Result<Vec<Dense>, String> {
    let result = match operands.node.op_type.as_str() {
        "Reshape" => reshape(operands)?,
        "Squeeze" => squeeze(operands)?,
        "Unsqueeze" => unsqueeze(operands)?,
        "Flatten" => flatten(operands)?,
        "Transpose" => transpose(operands)?,
        "Expand" => expand(operands)?,
        "Slice" => slice(operands)?,
        "Split" => return split(operands),
        "Concat" => concat(operands)?,
        "Gather" => gather(operands)?,
        "GatherND" => gather_nd(operands)?,
        "ScatterND" => scatter_nd(operands)?,
        "ConstantOfShape" => constant_of_shape(operands)?,
        "Trilu" => triangle(operands)?,
        "Tile" => tile(operands)?,
        _ => operands.get(0)?.clone(),
    };
    Ok(vec![result])
}

fn extents(values: &[i64]) -> Result<Vec<usize>, String> {
    values.iter().map(|&value| usize::try_from(value).map_err(|_| format!("{value} is no extent"))).collect()
}

/// The number of entries of a shape, if it is not absurd.
pub(super) fn entries(shape: &[usize]) -> Result<usize, String> {
    let count = shape.iter().try_fold(1_usize, |product, &extent| product.checked_mul(extent));
    count.filter(|&count| count <= 1 << 27).ok_or_else(|| format!("the shape {shape:?} is too large"))
}

fn reshape(operands: &Operands<'_>) -> Result<Dense, String> {
    let x = operands.get(0)?;
    let target = operands.ints("shape", 1).ok_or("the shape is missing")?;
    let keep_zero = operands.node.int("allowzero").unwrap_or(0) != 0;
    let mut shape = Vec::with_capacity(target.len());
    let mut free = None;
    for (axis, &extent) in target.iter().enumerate() {
        shape.push(match extent {
            -1 if free.is_none() => {
                free = Some(axis);
                1
            }
            0 if !keep_zero => *x.shape.get(axis).ok_or("a zero extent has no axis to copy")?,
            other => usize::try_from(other).map_err(|_| format!("{target:?} is no shape"))?,
        });
    }
    if let Some(axis) = free {
        let others = entries(&shape)?;
        shape[axis] = x.len().checked_div(others).unwrap_or(0);
    }
    if entries(&shape)? != x.len() {
        return Err(format!("shape {:?} cannot become {target:?}", x.shape));
    }
    Ok(x.clone().reshaped(shape))
}

fn squeeze(operands: &Operands<'_>) -> Result<Dense, String> {
    let x = operands.get(0)?;
    let rank = x.shape.len();
    let mut drop: Vec<bool> = vec![false; rank];
    if let Some(axes) = operands.ints("axes", 1) {
        for axis in axes {
            drop[axis_index(axis, rank)?] = true;
        }
    } else {
        drop = x.shape.iter().map(|&extent| extent == 1).collect();
    }
    if (0..rank).any(|axis| drop[axis] && x.shape[axis] != 1) {
        return Err(format!("an axis of {:?} that is not 1 cannot be dropped", x.shape));
    }
    let shape = (0..rank).filter(|&axis| !drop[axis]).map(|axis| x.shape[axis]).collect();
    Ok(x.clone().reshaped(shape))
}

fn unsqueeze(operands: &Operands<'_>) -> Result<Dense, String> {
    let x = operands.get(0)?;
    let axes = operands.ints("axes", 1).ok_or("the axes are missing")?;
    let rank = x.shape.len() + axes.len();
    let mut added = vec![false; rank];
    for axis in axes {
        added[axis_index(axis, rank)?] = true;
    }
    let mut old = x.shape.iter();
    let shape: Vec<usize> =
        added.iter().map(|&is_new| if is_new { 1 } else { old.next().copied().unwrap_or(1) }).collect();
    if old.next().is_some() {
        return Err("an axis is added twice".to_owned());
    }
    Ok(x.clone().reshaped(shape))
}

fn flatten(operands: &Operands<'_>) -> Result<Dense, String> {
    let x = operands.get(0)?;
    let rank = x.shape.len();
    let axis = operands.node.int("axis").unwrap_or(1);
    let axis = if axis == rank as i64 { rank } else { axis_index(axis, rank)? };
    let shape = vec![x.shape[..axis].iter().product(), x.shape[axis..].iter().product()];
    Ok(x.clone().reshaped(shape))
}

fn transpose(operands: &Operands<'_>) -> Result<Dense, String> {
    let x = operands.get(0)?;
    let rank = x.shape.len();
    let order: Vec<i64> = operands.node.ints("perm").map_or_else(|| (0..rank as i64).rev().collect(), <[i64]>::to_vec);
    let order = order.into_iter().map(|axis| axis_index(axis, rank)).collect::<Result<Vec<_>, _>>()?;
    let mut sorted = order.clone();
    sorted.sort_unstable();
    if !sorted.into_iter().eq(0..rank) {
        return Err(format!("{order:?} is no order of {rank} axes"));
    }
    let all = strides(&x.shape);
    let (shape, moved): (Vec<usize>, Vec<usize>) = order.into_iter().map(|axis| (x.shape[axis], all[axis])).unzip();
    let indices = strided_indices(&shape, &moved, 0);
    Ok(Dense { shape, data: x.data.select(&indices) })
}

fn expand(operands: &Operands<'_>) -> Result<Dense, String> {
    let x = operands.get(0)?;
    let target = extents(&operands.get(1)?.to_ints())?;
    let shape = broadcast_shapes(&x.shape, &target)?;
    entries(&shape)?;
    let indices = broadcast_indices(&x.shape, &shape);
    Ok(Dense { shape, data: x.data.select(&indices) })
}

/// The entries whose index on `axis` is in `chosen`.
fn take(x: &Dense, axis: usize, chosen: &[usize]) -> Dense {
    let outer: usize = x.shape[..axis].iter().product();
    let inner: usize = x.shape[axis + 1..].iter().product();
    let mut indices = Vec::with_capacity(outer * chosen.len() * inner);
    for block in 0..outer {
        for &index in chosen {
            let start = (block * x.shape[axis] + index) * inner;
            indices.extend(start..start + inner);
        }
    }
    let mut shape = x.shape.clone();
    shape[axis] = chosen.len();
    Dense { shape, data: x.data.select(&indices) }
}

fn slice(operands: &Operands<'_>) -> Result<Dense, String> {
    let mut x = operands.get(0)?.clone();
    let rank = x.shape.len();
    let starts = operands.ints("starts", 1).ok_or("the starts are missing")?;
    let ends = operands.ints("ends", 2).ok_or("the ends are missing")?;
    let axes = operands.ints("axes", 3).unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = operands.ints("steps", 4).unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
        return Err("starts, ends, axes and steps have different lengths".to_owned());
    }
    for (((start, end), axis), step) in starts.into_iter().zip(ends).zip(axes).zip(steps) {
        let axis = axis_index(axis, rank)?;
        let extent = x.shape[axis] as i64;
        let wrap = |bound: i64| if bound < 0 { bound.saturating_add(extent) } else { bound };
        let mut chosen = Vec::new();
        match step {
            0 => return Err("a step is zero".to_owned()),
            1.. => {
                let (mut index, end) = (wrap(start).clamp(0, extent), wrap(end).clamp(0, extent));
                while index < end {
                    chosen.push(index as usize);
                    index = index.saturating_add(step);
                }
            }
            _ => {
                let (mut index, end) = (wrap(start).clamp(-1, extent - 1), wrap(end).clamp(-1, extent - 1));
                while index > end {
                    chosen.push(index as usize);
                    index = index.saturating_add(step);
                }
            }
        }
        x = take(&x, axis, &chosen);
    }
    Ok(x)
}

fn split(operands: &Operands<'_>) -> Result<Vec<Dense>, String> {
    let x = operands.get(0)?;
    let axis = axis_index(operands.node.int("axis").unwrap_or(0), x.shape.len())?;
    let parts = operands.node.outputs.len().max(1);
    let sizes = if let Some(sizes) = operands.ints("split", 1) {
        extents(&sizes)?
    } else {
        let size = x.shape[axis].div_ceil(parts);
        (0..parts).map(|part| size.min(x.shape[axis].saturating_sub(part * size))).collect()
    };
    if sizes.iter().try_fold(0_usize, |sum, &size| sum.checked_add(size)) != Some(x.shape[axis]) {
        return Err(format!("parts of {sizes:?} do not make up {}", x.shape[axis]));
    }
    let mut start = 0;
    let parts = sizes.into_iter().map(|size| {
        let chosen: Vec<usize> = (start..start + size).collect();
        start += size;
        take(x, axis, &chosen)
    });
    Ok(parts.collect())
}

fn concat(operands: &Operands<'_>) -> Result<Dense, String> {
    let parts = (0..operands.values.len()).map(|index| operands.get(index)).collect::<Result<Vec<_>, _>>()?;
    concatenate(operands.node.int("axis").unwrap_or(0), &parts)
}

/// Tensors one after the other on an axis.
pub(in crate::import) fn concatenate(axis: i64, parts: &[&Dense]) -> Result<Dense, String> {
    let first = parts.first().ok_or("there is nothing to concatenate")?;
    let axis = axis_index(axis, first.shape.len())?;
    let mut shape = first.shape.clone();
    shape[axis] = 0;
    for part in parts {
        let fits = part.shape.len() == shape.len()
            && (0..shape.len()).all(|other| other == axis || part.shape[other] == shape[other]);
        if !fits || part.kind() != first.kind() {
            return Err(format!("shapes {:?} and {:?} cannot be concatenated", first.shape, part.shape));
        }
        shape[axis] += part.shape[axis];
    }
    let outer: usize = shape[..axis].iter().product();
    let inner: usize = shape[axis + 1..].iter().product();
    // Joined one after the other, the entries only need another order.
    let mut joined = first.data.clone();
    let mut starts = vec![0];
    for part in &parts[1..] {
        starts.push(joined.len());
        join(&mut joined, &part.data);
    }
    let mut indices = Vec::with_capacity(joined.len());
    for block in 0..outer {
        for (part, start) in parts.iter().zip(&starts) {
            let length = part.shape[axis] * inner;
            indices.extend(start + block * length..start + (block + 1) * length);
        }
    }
    Ok(Dense { shape, data: joined.select(&indices) })
}

/// Appends entries of the same kind.
fn join(data: &mut Data, more: &Data) {
    match (data, more) {
        (Data::F32(data), Data::F32(more)) => data.extend_from_slice(more),
        (Data::F64(data), Data::F64(more)) => data.extend_from_slice(more),
        (Data::Int(data), Data::Int(more)) => data.extend_from_slice(more),
        (Data::Bool(data), Data::Bool(more)) => data.extend_from_slice(more),
        (Data::Bytes(data), Data::Bytes(more)) => data.extend_from_slice(more),
        _ => {}
    }
}

/// An index that may count from the end.
fn wrapped(index: i64, extent: usize) -> Result<usize, String> {
    axis_index(index, extent).map_err(|_| format!("index {index} of {extent} entries"))
}

fn gather(operands: &Operands<'_>) -> Result<Dense, String> {
    let (x, indices) = (operands.get(0)?, operands.get(1)?);
    let axis = axis_index(operands.node.int("axis").unwrap_or(0), x.shape.len())?;
    entries(&[indices.len(), x.shape[..axis].iter().product(), x.shape[axis + 1..].iter().product()])?;
    let chosen: Result<Vec<usize>, String> =
        indices.to_ints().into_iter().map(|index| wrapped(index, x.shape[axis])).collect();
    let taken = take(x, axis, &chosen?);
    let mut shape = x.shape[..axis].to_vec();
    shape.extend(&indices.shape);
    shape.extend(&x.shape[axis + 1..]);
    Ok(taken.reshaped(shape))
}

fn gather_nd(operands: &Operands<'_>) -> Result<Dense, String> {
    let (x, indices) = (operands.get(0)?, operands.get(1)?);
    if operands.node.int("batch_dims").unwrap_or(0) != 0 {
        return Err("batch_dims is not supported".to_owned());
    }
    let starts = nd_starts(&x.shape, indices)?;
    let depth = indices.shape.last().copied().unwrap_or(0);
    let inner: usize = x.shape[depth..].iter().product();
    entries(&[starts.len(), inner])?;
    let mut shape = indices.shape[..indices.shape.len() - 1].to_vec();
    shape.extend(&x.shape[depth..]);
    let chosen: Vec<usize> = starts.into_iter().flat_map(|start| start..start + inner).collect();
    Ok(Dense { shape, data: x.data.select(&chosen) })
}

/// Where the block that each index tuple names starts.
fn nd_starts(shape: &[usize], indices: &Dense) -> Result<Vec<usize>, String> {
    let depth = *indices.shape.last().ok_or("the indices are a scalar")?;
    if depth == 0 || depth > shape.len() {
        return Err(format!("tuples of {depth} indices into {} axes", shape.len()));
    }
    let all = strides(shape);
    let tuples = indices.to_ints();
    let starts = tuples.chunks_exact(depth).map(|tuple| {
        tuple
            .iter()
            .enumerate()
            .try_fold(0, |start, (axis, &index)| Ok(start + wrapped(index, shape[axis])? * all[axis]))
    });
    starts.collect()
}

fn scatter_nd(operands: &Operands<'_>) -> Result<Dense, String> {
    let (x, indices, updates) = (operands.get(0)?, operands.get(1)?, operands.get(2)?);
    if x.kind() != updates.kind() {
        return Err("data and updates are of different kinds".to_owned());
    }
    let starts = nd_starts(&x.shape, indices)?;
    let inner: usize = x.shape[indices.shape.last().copied().unwrap_or(0)..].iter().product();
    if updates.len() != starts.len() * inner {
        return Err(format!("updates of shape {:?} for indices of shape {:?}", updates.shape, indices.shape));
    }
    // The result takes entries from the data followed by the updates.
    let mut source: Vec<usize> = (0..x.len()).collect();
    for (number, start) in starts.into_iter().enumerate() {
        for offset in 0..inner {
            source[start + offset] = x.len() + number * inner + offset;
        }
    }
    let mut joined = x.data.clone();
    join(&mut joined, &updates.data);
    Ok(Dense { shape: x.shape.clone(), data: joined.select(&source) })
}

fn constant_of_shape(operands: &Operands<'_>) -> Result<Dense, String> {
    let shape = extents(&operands.get(0)?.to_ints())?;
    let count = entries(&shape)?;
    let zero = Dense::from_f64(vec![1], Kind::F32, vec![0.0]);
    let value = match operands.node.attribute("value") {
        Some(Attribute::Tensor(value)) if value.len() == 1 => value,
        None => &zero,
        Some(_) => return Err("the value is not one number".to_owned()),
    };
    Ok(Dense { shape, data: value.data.select(&vec![0; count]) })
}

fn triangle(operands: &Operands<'_>) -> Result<Dense, String> {
    let x = operands.get(0)?;
    let [.., rows, columns] = x.shape.as_slice() else {
        return Err(format!("a tensor of shape {:?} has no triangle", x.shape));
    };
    let diagonal = operands.optional(1).and_then(Dense::scalar).unwrap_or(0.0) as i64;
    let upper = operands.node.int("upper").unwrap_or(1) != 0;
    let mut values = x.to_f64();
    for (index, value) in values.iter_mut().enumerate() {
        let (row, column) = ((index / columns % rows) as i64, (index % columns) as i64);
        let offset = column - row - diagonal;
        if (upper && offset < 0) || (!upper && offset > 0) {
            *value = 0.0;
        }
    }
    Ok(Dense::from_f64(x.shape.clone(), x.kind(), values))
}

fn tile(operands: &Operands<'_>) -> Result<Dense, String> {
    let x = operands.get(0)?;
    let repeats = extents(&operands.get(1)?.to_ints())?;
    if repeats.len() != x.shape.len() {
        return Err(format!("repeats {repeats:?} for shape {:?}", x.shape));
    }
    let mut result = x.clone();
    for (axis, &repeat) in repeats.iter().enumerate() {
        let extent = result.shape[axis];
        entries(&[result.len().max(extent), repeat])?;
        let chosen: Vec<usize> = (0..extent * repeat).map(|index| index % extent).collect();
        result = take(&result, axis, &chosen);
    }
    Ok(result)
}
