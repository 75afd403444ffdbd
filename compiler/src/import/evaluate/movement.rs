//! Operations that copy entries to other places without computing.

use super::{Operands, axis_index};
use crate::import::dense::{Data, Dense, Kind, broadcast_shapes, strides};
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
    let op_type = operands.node.op_type.as_str();
    if is_view(op_type) {
        let x = operands.get(0)?;
        let views = views(operands, &x.shape)?;
        return Ok(views.into_iter().map(|view| x.viewed(view)).collect());
    }
    let result = match op_type {
        "Concat" => concat(operands)?,
        "Gather" => gather(operands)?,
        "GatherND" => gather_nd(operands)?,
        "ScatterND" => scatter_nd(operands)?,
        "ConstantOfShape" => constant_of_shape(operands)?,
        "Trilu" => triangle(operands)?,
        _ => tile(operands)?,
    };
    Ok(vec![result])
}

/// How an output of a view reads its operand: entry (i_0, i_1, …) is the operand's entry `start + Σ i_k·strides_k`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::import) struct View {
    pub(in crate::import) shape: Vec<usize>,
    pub(in crate::import) strides: Vec<isize>,
    pub(in crate::import) start: usize,
}

impl View {
    /// All entries in order, under another shape.
    fn in_order(shape: Vec<usize>) -> Self {
        let strides = signed_strides(&shape);
        Self { shape, strides, start: 0 }
    }
}

fn signed_strides(shape: &[usize]) -> Vec<isize> {
    strides(shape).into_iter().map(|stride| stride as isize).collect()
}

/// The outputs of a view of an operand of the given shape; the node's first input itself is not looked at.
pub(in crate::import) fn views(operands: &Operands<'_>, shape: &[usize]) -> Result<Vec<View>, String> {
    let view = match operands.node.op_type.as_str() {
        "Reshape" => View::in_order(reshaped(operands, shape)?),
        "Squeeze" => View::in_order(squeezed(operands, shape)?),
        "Unsqueeze" => View::in_order(unsqueezed(operands, shape)?),
        "Flatten" => View::in_order(flattened(operands, shape)?),
        "Transpose" => transposed(operands, shape)?,
        "Expand" => expanded(shape, &extents(&operands.get(1)?.to_ints())?)?,
        "Slice" => sliced(operands, shape)?,
        "Split" => return split(operands, shape),
        _ => View::in_order(shape.to_vec()),
    };
    Ok(vec![view])
}

pub(in crate::import) fn extents(values: &[i64]) -> Result<Vec<usize>, String> {
    values.iter().map(|&value| usize::try_from(value).map_err(|_| format!("{value} is no extent"))).collect()
}

/// The number of entries of a shape, if it is not absurd.
pub(in crate::import) fn entries(shape: &[usize]) -> Result<usize, String> {
    // Strides must not overflow either, whatever extent is zero.
    let count = shape.iter().try_fold(1_usize, |product, &extent| product.checked_mul(extent.max(1)));
    let count = count.filter(|&count| count <= 1 << 31).map(|_| shape.iter().product());
    count.ok_or_else(|| format!("the shape {shape:?} is too large"))
}

fn reshaped(operands: &Operands<'_>, old: &[usize]) -> Result<Vec<usize>, String> {
    let target = operands.ints("shape", 1).ok_or("the shape is missing")?;
    let keep_zero = operands.node.flag("allowzero");
    let count: usize = old.iter().product();
    let mut shape = Vec::with_capacity(target.len());
    let mut free = None;
    for (axis, &extent) in target.iter().enumerate() {
        shape.push(match extent {
            -1 if free.is_none() => {
                free = Some(axis);
                1
            }
            0 if !keep_zero => *old.get(axis).ok_or("a zero extent has no axis to copy")?,
            other => usize::try_from(other).map_err(|_| format!("{target:?} is no shape"))?,
        });
    }
    if let Some(axis) = free {
        let others = entries(&shape)?;
        shape[axis] = count.checked_div(others).unwrap_or(0);
    }
    if entries(&shape)? != count {
        return Err(format!("shape {old:?} cannot become {target:?}"));
    }
    Ok(shape)
}

fn squeezed(operands: &Operands<'_>, shape: &[usize]) -> Result<Vec<usize>, String> {
    let rank = shape.len();
    let mut drop: Vec<bool> = vec![false; rank];
    if let Some(axes) = operands.ints("axes", 1) {
        for axis in axes {
            drop[axis_index(axis, rank)?] = true;
        }
    } else {
        drop = shape.iter().map(|&extent| extent == 1).collect();
    }
    if (0..rank).any(|axis| drop[axis] && shape[axis] != 1) {
        return Err(format!("an axis of {shape:?} that is not 1 cannot be dropped"));
    }
    Ok((0..rank).filter(|&axis| !drop[axis]).map(|axis| shape[axis]).collect())
}

fn unsqueezed(operands: &Operands<'_>, shape: &[usize]) -> Result<Vec<usize>, String> {
    let axes = operands.ints("axes", 1).ok_or("the axes are missing")?;
    let rank = shape.len() + axes.len();
    let mut added = vec![false; rank];
    for axis in axes {
        added[axis_index(axis, rank)?] = true;
    }
    let mut old = shape.iter();
    let shape: Vec<usize> =
        added.iter().map(|&is_new| if is_new { 1 } else { old.next().copied().unwrap_or(1) }).collect();
    if old.next().is_some() {
        return Err("an axis is added twice".to_owned());
    }
    Ok(shape)
}

fn flattened(operands: &Operands<'_>, shape: &[usize]) -> Result<Vec<usize>, String> {
    let rank = shape.len();
    let axis = operands.node.integer("axis")?;
    let axis = if axis == rank as i64 { rank } else { axis_index(axis, rank)? };
    Ok(vec![shape[..axis].iter().product(), shape[axis..].iter().product()])
}

fn transposed(operands: &Operands<'_>, shape: &[usize]) -> Result<View, String> {
    let rank = shape.len();
    let order: Vec<i64> = operands.node.ints("perm").map_or_else(|| (0..rank as i64).rev().collect(), <[i64]>::to_vec);
    let order = order.into_iter().map(|axis| axis_index(axis, rank)).collect::<Result<Vec<_>, _>>()?;
    let mut sorted = order.clone();
    sorted.sort_unstable();
    if !sorted.into_iter().eq(0..rank) {
        return Err(format!("{order:?} is no order of {rank} axes"));
    }
    let all = signed_strides(shape);
    let (shape, strides) = order.into_iter().map(|axis| (shape[axis], all[axis])).unzip();
    Ok(View { shape, strides, start: 0 })
}

/// An operand as broadcasting it with the target shape gives.
pub(super) fn expanded(shape: &[usize], target: &[usize]) -> Result<View, String> {
    let result = broadcast_shapes(shape, target)?;
    entries(&result)?;
    let new = result.len() - shape.len();
    let all = signed_strides(shape);
    let strides = (0..result.len()).map(|axis| match axis.checked_sub(new) {
        Some(old) if shape[old] != 1 => all[old],
        _ => 0,
    });
    Ok(View { strides: strides.collect(), shape: result, start: 0 })
}

fn sliced(operands: &Operands<'_>, shape: &[usize]) -> Result<View, String> {
    let rank = shape.len();
    let starts = operands.ints("starts", 1).ok_or("the starts are missing")?;
    let ends = operands.ints("ends", 2).ok_or("the ends are missing")?;
    let axes = operands.ints("axes", 3).unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = operands.ints("steps", 4).unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
        return Err("starts, ends, axes and steps have different lengths".to_owned());
    }
    let mut view = View::in_order(shape.to_vec());
    for (((start, end), axis), step) in starts.into_iter().zip(ends).zip(axes).zip(steps) {
        let axis = axis_index(axis, rank)?;
        let extent = view.shape[axis] as i64;
        let wrap = |bound: i64| if bound < 0 { bound.saturating_add(extent) } else { bound };
        let (first, count) = match step {
            0 => return Err("a step is zero".to_owned()),
            1.. => {
                let (first, end) = (wrap(start).clamp(0, extent), wrap(end).clamp(0, extent));
                (first, (end - first).max(0).unsigned_abs().div_ceil(step.unsigned_abs()))
            }
            _ => {
                let (first, end) = (wrap(start).clamp(-1, extent - 1), wrap(end).clamp(-1, extent - 1));
                (first, (first - end).max(0).unsigned_abs().div_ceil(step.unsigned_abs()))
            }
        };
        view.shape[axis] = count as usize;
        if count > 0 {
            view.start = view.start.wrapping_add_signed(first as isize * view.strides[axis]);
        }
        // A single entry takes no step, however long it is.
        view.strides[axis] = if count > 1 { view.strides[axis] * step as isize } else { 0 };
    }
    Ok(view)
}

fn split(operands: &Operands<'_>, shape: &[usize]) -> Result<Vec<View>, String> {
    let axis = axis_index(operands.node.integer("axis")?, shape.len())?;
    let parts = operands.node.outputs.len().max(1);
    let sizes = if let Some(sizes) = operands.ints("split", 1) {
        extents(&sizes)?
    } else {
        let size = shape[axis].div_ceil(parts);
        (0..parts).map(|part| size.min(shape[axis].saturating_sub(part * size))).collect()
    };
    if sizes.iter().try_fold(0_usize, |sum, &size| sum.checked_add(size)) != Some(shape[axis]) {
        return Err(format!("parts of {sizes:?} do not make up {}", shape[axis]));
    }
    let whole = View::in_order(shape.to_vec());
    let mut first = 0;
    let parts = sizes.into_iter().map(|size| {
        let mut part = whole.clone();
        part.shape[axis] = size;
        part.start = first * whole.strides[axis].unsigned_abs();
        first += size;
        part
    });
    Ok(parts.collect())
}

fn concat(operands: &Operands<'_>) -> Result<Dense, String> {
    let parts = (0..operands.values.len()).map(|index| operands.get(index)).collect::<Result<Vec<_>, _>>()?;
    concatenate(operands.node.integer("axis")?, &parts)
}

/// Tensors one after the other on an axis.
pub(in crate::import) fn concatenate(axis: i64, parts: &[&Dense]) -> Result<Dense, String> {
    let first = parts.first().ok_or("there is nothing to concatenate")?;
    if parts.iter().any(|part| part.kind() != first.kind()) {
        return Err("tensors of different kinds cannot be concatenated".to_owned());
    }
    let shapes: Vec<&[usize]> = parts.iter().map(|part| part.shape.as_slice()).collect();
    let (axis, shape) = joined_shape(axis, &shapes)?;
    let outer: usize = shape[..axis].iter().product();
    let inner: usize = shape[axis + 1..].iter().product();
    let mut data = Data::empty(first.kind());
    for block in 0..outer {
        for part in parts {
            let length = part.shape[axis] * inner;
            data.append(&part.data, block * length, length);
        }
    }
    Ok(Dense { shape, data })
}

/// The axis as an index, and the shape that concatenation on it gives.
pub(in crate::import) fn joined_shape(axis: i64, parts: &[&[usize]]) -> Result<(usize, Vec<usize>), String> {
    let mut shape = parts.first().map(|part| part.to_vec()).ok_or("there is nothing to concatenate")?;
    let axis = axis_index(axis, shape.len())?;
    for part in &parts[1..] {
        let fits =
            part.len() == shape.len() && (0..shape.len()).all(|other| other == axis || part[other] == shape[other]);
        if !fits {
            return Err(format!("shapes {shape:?} and {part:?} cannot be concatenated"));
        }
        shape[axis] = shape[axis].checked_add(part[axis]).ok_or("the shape is too large")?;
    }
    entries(&shape)?;
    Ok((axis, shape))
}

/// An index that may count from the end.
fn wrapped(index: i64, extent: usize) -> Result<usize, String> {
    axis_index(index, extent).map_err(|_| format!("index {index} of {extent} entries"))
}

fn gather(operands: &Operands<'_>) -> Result<Dense, String> {
    let (x, indices) = (operands.get(0)?, operands.get(1)?);
    let axis = axis_index(operands.node.integer("axis")?, x.shape.len())?;
    entries(&[indices.len(), x.shape[..axis].iter().product(), x.shape[axis + 1..].iter().product()])?;
    let chosen: Result<Vec<usize>, String> =
        indices.to_ints().into_iter().map(|index| wrapped(index, x.shape[axis])).collect();
    let chosen = chosen?;
    let (extent, inner) = (x.shape[axis], x.shape[axis + 1..].iter().product::<usize>());
    let mut data = Data::empty(x.kind());
    for block in 0..x.shape[..axis].iter().product::<usize>() {
        for index in &chosen {
            data.append(&x.data, (block * extent + index) * inner, inner);
        }
    }
    let mut shape = x.shape[..axis].to_vec();
    shape.extend(&indices.shape);
    shape.extend(&x.shape[axis + 1..]);
    Ok(Dense { shape, data })
}

fn gather_nd(operands: &Operands<'_>) -> Result<Dense, String> {
    let (x, indices) = (operands.get(0)?, operands.get(1)?);
    let starts = nd_starts(&x.shape, indices)?;
    let depth = indices.shape.last().copied().unwrap_or(0);
    let inner: usize = x.shape[depth..].iter().product();
    entries(&[starts.len(), inner])?;
    let mut shape = indices.shape[..indices.shape.len() - 1].to_vec();
    shape.extend(&x.shape[depth..]);
    let mut data = Data::empty(x.kind());
    for start in starts {
        data.append(&x.data, start, inner);
    }
    Ok(Dense { shape, data })
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
    let mut data = x.data.clone();
    for (number, start) in starts.into_iter().enumerate() {
        data.overwrite(start, &updates.data, number * inner, inner);
    }
    Ok(Dense { shape: x.shape.clone(), data })
}

fn constant_of_shape(operands: &Operands<'_>) -> Result<Dense, String> {
    let shape = extents(&operands.get(0)?.to_ints())?;
    entries(&shape)?;
    let value = match operands.node.attribute("value") {
        Some(Attribute::Tensor(value)) if value.len() == 1 => value.decode().map_err(|error| error.to_string())?,
        None => Dense::from_f64(vec![1], Kind::F32, [0.0]),
        Some(_) => return Err("the value is not one number".to_owned()),
    };
    let strides = vec![0; shape.len()];
    Ok(value.viewed(View { shape, strides, start: 0 }))
}

fn triangle(operands: &Operands<'_>) -> Result<Dense, String> {
    let x = operands.get(0)?;
    let [.., rows, columns] = x.shape.as_slice() else {
        return Err(format!("a tensor of shape {:?} has no triangle", x.shape));
    };
    let diagonal = operands.optional(1).and_then(Dense::scalar).unwrap_or(0.0) as i64;
    let upper = operands.node.flag("upper");
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
    let shape = tiled_shape(&x.shape, operands.get(1)?)?;
    // Each axis becomes two: the repetition, and the axis itself.
    let doubled = |repeats: &[usize], extents: &[usize]| -> Vec<usize> {
        repeats.iter().zip(extents).flat_map(|(&repeat, &extent)| [repeat, extent]).collect()
    };
    let repeats = extents(&operands.get(1)?.to_ints())?;
    let strides = signed_strides(&x.shape).into_iter().flat_map(|stride| [0, stride]).collect();
    let view = View { shape: doubled(&repeats, &x.shape), strides, start: 0 };
    Ok(x.viewed(view).reshaped(shape))
}

/// The shape of a tensor repeated along its axes.
pub(in crate::import) fn tiled_shape(shape: &[usize], repeats: &Dense) -> Result<Vec<usize>, String> {
    let repeats = extents(&repeats.to_ints())?;
    if repeats.len() != shape.len() {
        return Err(format!("repeats {repeats:?} for shape {shape:?}"));
    }
    let tiled: Option<Vec<usize>> =
        shape.iter().zip(&repeats).map(|(&extent, &repeat)| extent.checked_mul(repeat)).collect();
    let tiled = tiled.ok_or("the shape is too large")?;
    entries(&tiled)?;
    Ok(tiled)
}
