//! Operations that compute new entries.

use std::borrow::Cow;

use super::movement::{entries, expanded};
use super::{Operands, axis_index};
use crate::import::dense::{Data, Dense, Kind, broadcast_indices, broadcast_shapes, strided_indices, strides};

/// Most products in a matrix product of constants.
const MOST_PRODUCTS: usize = 1 << 30;

/// Most entries of a range.
const LONGEST_RANGE: f64 = (1 << 25) as f64;

pub(super) fn is_known(op_type: &str) -> bool {
    unary(op_type).is_some()
        || binary(op_type).is_some()
        || comparison(op_type).is_some()
        || reduction(op_type).is_some()
        || matches!(
            op_type,
            "And" | "Or" | "Xor" | "Not" | "IsNaN" | "Where" | "MatMul" | "Range" | "CumSum" | "Max" | "Min"
        )
}

/// Whether the operation gives a result of its first operand's shape and kind.
pub(in crate::import) fn is_unary(op_type: &str) -> bool {
    unary(op_type).is_some()
}

/// Whether the operation is arithmetic on two operands that are broadcast, or a test of them.
pub(in crate::import) fn is_binary(op_type: &str) -> bool {
    binary(op_type).is_some()
}

pub(in crate::import) fn is_comparison(op_type: &str) -> bool {
    comparison(op_type).is_some()
}

pub(in crate::import) fn is_reduction(op_type: &str) -> bool {
    reduction(op_type).is_some()
}

fn unary(op_type: &str) -> Option<fn(f64) -> f64> {
    Some(match op_type {
        "Neg" => |x| -x,
        "Abs" => f64::abs,
        "Sqrt" => f64::sqrt,
        "Reciprocal" => |x| 1.0 / x,
        "Exp" => f64::exp,
        "Log" => f64::ln,
        "Cos" => f64::cos,
        "Sin" => f64::sin,
        "Floor" => f64::floor,
        "Ceil" => f64::ceil,
        "Round" => f64::round_ties_even,
        "Sigmoid" => |x| 1.0 / (1.0 + (-x).exp()),
        _ => return None,
    })
}

/// Operators on two floats or two integers; `None` where an integer result does not exist.
type Binary = (fn(f64, f64) -> f64, fn(i64, i64) -> Option<i64>);

fn binary(op_type: &str) -> Option<Binary> {
    Some(match op_type {
        "Add" => (|a, b| a + b, i64::checked_add),
        "Sub" => (|a, b| a - b, i64::checked_sub),
        "Mul" => (|a, b| a * b, i64::checked_mul),
        "Div" => (|a, b| a / b, i64::checked_div),
        // The sign is that of the divisor; `fmod`, which floats need, is not supported.
        "Mod" => (|a, b| a % b, |a, b| a.checked_rem(b)?.checked_add(b)?.checked_rem(b)),
        "Pow" => (f64::powf, |a, b| a.checked_pow(u32::try_from(b).ok()?)),
        _ => return None,
    })
}

fn comparison(op_type: &str) -> Option<fn(f64, f64) -> bool> {
    Some(match op_type {
        "Equal" => |a, b| a == b,
        "Less" => |a, b| a < b,
        "LessOrEqual" => |a, b| a <= b,
        "Greater" => |a, b| a > b,
        "GreaterOrEqual" => |a, b| a >= b,
        _ => return None,
    })
}

fn reduction(op_type: &str) -> Option<fn(&[f64]) -> f64> {
    Some(match op_type {
        "ReduceSum" => |values| values.iter().sum(),
        "ReduceMean" => |values| values.iter().sum::<f64>() / values.len() as f64,
        "ReduceMax" => |values| values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        "ReduceMin" => |values| values.iter().copied().fold(f64::INFINITY, f64::min),
        "ReduceProd" => |values| values.iter().product(),
        _ => return None,
    })
}

pub(super) fn evaluate(operands: &Operands<'_>) -> Result<Dense, String> {
    let op_type = operands.node.op_type.as_str();
    if let Some(function) = unary(op_type) {
        let x = operands.get(0)?;
        return Ok(Dense::from_f64(x.shape.clone(), x.kind(), x.iter_f64().map(function)));
    }
    if let Some(functions) = binary(op_type) {
        return arithmetic(operands.get(0)?, operands.get(1)?, functions);
    }
    if let Some(function) = comparison(op_type) {
        let (shape, a, b) = broadcast_both(operands.get(0)?, operands.get(1)?)?;
        let data = Data::Bool(a.iter_f64().zip(b.iter_f64()).map(|(a, b)| function(a, b)).collect());
        return Ok(Dense { shape, data });
    }
    if let Some(function) = reduction(op_type) {
        return reduce(operands, function);
    }
    match op_type {
        "And" | "Or" | "Xor" => {
            let (shape, a, b) = broadcast_both(operands.get(0)?, operands.get(1)?)?;
            let pairs = a.to_bools().into_iter().zip(b.to_bools());
            let values = pairs.map(|(a, b)| match op_type {
                "And" => a && b,
                "Or" => a || b,
                _ => a != b,
            });
            Ok(Dense { shape, data: Data::Bool(values.collect()) })
        }
        "Not" | "IsNaN" => {
            let x = operands.get(0)?;
            let values = if op_type == "Not" {
                x.to_bools().into_iter().map(|value| !value).collect()
            } else {
                x.iter_f64().map(f64::is_nan).collect()
            };
            Ok(Dense { shape: x.shape.clone(), data: Data::Bool(values) })
        }
        "Max" | "Min" => {
            let mut result = operands.get(0)?.clone();
            for index in 1..operands.values.len() {
                let functions: super::arithmetic::Binary = if op_type == "Max" {
                    (f64::max, |a, b| Some(a.max(b)))
                } else {
                    (f64::min, |a, b| Some(a.min(b)))
                };
                result = arithmetic(&result, operands.get(index)?, functions)?;
            }
            Ok(result)
        }
        "Where" => select(operands.get(0)?, operands.get(1)?, operands.get(2)?),
        "MatMul" => matrix_product(operands.get(0)?, operands.get(1)?),
        "Range" => range(operands),
        _ => cumulative_sum(operands),
    }
}

/// An operand with the shape that broadcasting gives it.
fn broadcast<'a>(operand: &'a Dense, shape: &[usize]) -> Result<Cow<'a, Dense>, String> {
    if operand.shape == shape {
        return Ok(Cow::Borrowed(operand));
    }
    Ok(Cow::Owned(operand.viewed(expanded(&operand.shape, shape)?)))
}

/// A shape and two operands that have it.
type Pair<'a> = (Vec<usize>, Cow<'a, Dense>, Cow<'a, Dense>);

/// Both operands with the shape that broadcasting gives them.
fn broadcast_both<'a>(a: &'a Dense, b: &'a Dense) -> Result<Pair<'a>, String> {
    let shape = broadcast_shapes(&a.shape, &b.shape)?;
    entries(&shape)?;
    let (a, b) = (broadcast(a, &shape)?, broadcast(b, &shape)?);
    Ok((shape, a, b))
}

fn arithmetic(a: &Dense, b: &Dense, (on_floats, on_ints): Binary) -> Result<Dense, String> {
    let (shape, a, b) = broadcast_both(a, b)?;
    if a.kind().is_float() {
        let values = a.iter_f64().zip(b.iter_f64()).map(|(a, b)| on_floats(a, b));
        return Ok(Dense::from_f64(shape, a.kind(), values));
    }
    if b.kind().is_float() {
        // An integer to the power of a float.
        let values = a.iter_f64().zip(b.iter_f64()).map(|(a, b)| on_floats(a, b).trunc() as i64);
        return Ok(Dense::ints(shape, values.collect()));
    }
    let values = a.to_ints().into_iter().zip(b.to_ints()).map(|(a, b)| on_ints(a, b)).collect::<Option<Vec<_>>>();
    values.map(|values| Dense::ints(shape, values)).ok_or_else(|| "an integer operation overflows".to_owned())
}

fn select(condition: &Dense, yes: &Dense, no: &Dense) -> Result<Dense, String> {
    let shape = broadcast_shapes(&broadcast_shapes(&condition.shape, &yes.shape)?, &no.shape)?;
    entries(&shape)?;
    let (condition, yes, no) = (broadcast(condition, &shape)?, broadcast(yes, &shape)?, broadcast(no, &shape)?);
    let condition = condition.to_bools();
    if yes.kind() == Kind::Int {
        let pairs = condition.into_iter().zip(yes.to_ints()).zip(no.to_ints());
        return Ok(Dense::ints(shape, pairs.map(|((condition, yes), no)| if condition { yes } else { no }).collect()));
    }
    let pairs = condition.into_iter().zip(yes.iter_f64()).zip(no.iter_f64());
    Ok(Dense::from_f64(shape, yes.kind(), pairs.map(|((condition, yes), no)| if condition { yes } else { no })))
}

fn reduce(operands: &Operands<'_>, function: fn(&[f64]) -> f64) -> Result<Dense, String> {
    let x = operands.get(0)?;
    let rank = x.shape.len();
    let keep = operands.node.flag("keepdims");
    let axes = match operands.ints("axes", 1) {
        Some(axes) if !axes.is_empty() => axes,
        _ if operands.node.flag("noop_with_empty_axes") => return Ok(x.clone()),
        _ => (0..rank as i64).collect(),
    };
    let mut reduced = vec![false; rank];
    for axis in axes {
        reduced[axis_index(axis, rank)?] = true;
    }
    let all = strides(&x.shape);
    let split = |wanted: bool| -> (Vec<usize>, Vec<usize>) {
        (0..rank).filter(|&axis| reduced[axis] == wanted).map(|axis| (x.shape[axis], all[axis])).unzip()
    };
    let ((outer_shape, outer_strides), (inner_shape, inner_strides)) = (split(false), split(true));
    let inner = strided_indices(&inner_shape, &inner_strides, 0);
    let values = x.to_f64();
    let mut gathered = Vec::with_capacity(inner.len());
    let results = strided_indices(&outer_shape, &outer_strides, 0).into_iter().map(|start| {
        gathered.clear();
        gathered.extend(inner.iter().map(|offset| values[start + offset]));
        function(&gathered)
    });
    let results: Vec<f64> = results.collect();
    let shape =
        if keep { (0..rank).map(|axis| if reduced[axis] { 1 } else { x.shape[axis] }).collect() } else { outer_shape };
    Ok(Dense::from_f64(shape, x.kind(), results))
}

/// The shape of a matrix product, by numpy's rules.
pub(in crate::import) fn matrix_product_shape(a: &[usize], b: &[usize]) -> Result<Vec<usize>, String> {
    let mismatch = || format!("the product of shapes {a:?} and {b:?} does not exist");
    let (left, right) = (matrix_shape(a, true), matrix_shape(b, false));
    let ([.., rows, inner], [.., inner_b, columns]) = (left.as_slice(), right.as_slice()) else {
        return Err(mismatch());
    };
    if inner != inner_b {
        return Err(mismatch());
    }
    let mut shape = broadcast_shapes(&left[..left.len() - 2], &right[..right.len() - 2])?;
    if a.len() > 1 {
        shape.push(*rows);
    }
    if b.len() > 1 {
        shape.push(*columns);
    }
    Ok(shape)
}

/// A vector as a matrix of one row (on the left) or one column (on the right).
fn matrix_shape(shape: &[usize], on_the_left: bool) -> Vec<usize> {
    match shape {
        [length] if on_the_left => vec![1, *length],
        [length] => vec![*length, 1],
        _ => shape.to_vec(),
    }
}

fn matrix_product(a: &Dense, b: &Dense) -> Result<Dense, String> {
    let shape = matrix_product_shape(&a.shape, &b.shape)?;
    entries(&shape)?;
    let (left, right) = (matrix_shape(&a.shape, true), matrix_shape(&b.shape, false));
    let (rows, inner, columns) = (left[left.len() - 2], left[left.len() - 1], right[right.len() - 1]);
    let work = shape.iter().chain([&inner]).try_fold(1_usize, |product, &extent| product.checked_mul(extent));
    if work.is_none_or(|work| work > MOST_PRODUCTS) {
        return Err(format!("the product of shapes {:?} and {:?} is too large to be a constant", a.shape, b.shape));
    }
    let batch = broadcast_shapes(&left[..left.len() - 2], &right[..right.len() - 2])?;
    let left_at = broadcast_indices(&left[..left.len() - 2], &batch);
    let right_at = broadcast_indices(&right[..right.len() - 2], &batch);
    let (x, y) = (a.to_f64(), b.to_f64());
    let mut values = Vec::with_capacity(shape.iter().product());
    for (left, right) in left_at.into_iter().zip(right_at) {
        for row in 0..rows {
            let x = &x[(left * rows + row) * inner..][..inner];
            for column in 0..columns {
                let y = y[right * inner * columns..].iter().skip(column).step_by(columns.max(1));
                values.push(x.iter().zip(y).map(|(x, y)| x * y).sum());
            }
        }
    }
    Ok(Dense::from_f64(shape, a.kind(), values))
}

fn range(operands: &Operands<'_>) -> Result<Dense, String> {
    let start = operands.get(0)?;
    let bounds: Option<Vec<f64>> = [start, operands.get(1)?, operands.get(2)?].into_iter().map(Dense::scalar).collect();
    let Some([first, limit, step]) = bounds.as_deref().and_then(|bounds| <[f64; 3]>::try_from(bounds).ok()) else {
        return Err("the bounds are no scalars".to_owned());
    };
    let count = ((limit - first) / step).ceil().max(0.0);
    if count.is_nan() || count > LONGEST_RANGE {
        return Err(format!("the range from {first} to {limit} by {step} is too long"));
    }
    let values: Vec<f64> = (0..count as usize).map(|i| first + i as f64 * step).collect();
    Ok(Dense::from_f64(vec![values.len()], start.kind(), values))
}

fn cumulative_sum(operands: &Operands<'_>) -> Result<Dense, String> {
    let x = operands.get(0)?;
    let axis = operands.get(1)?.scalar().ok_or("the axis is no scalar")?;
    let axis = axis_index(axis as i64, x.shape.len())?;
    let unsupported = ["exclusive", "reverse"].into_iter().find(|name| operands.node.flag(name));
    if let Some(name) = unsupported {
        return Err(format!("{name} is not supported"));
    }
    let stride = strides(&x.shape)[axis];
    let mut values = x.to_f64();
    for index in 0..values.len() {
        if !(index / stride).is_multiple_of(x.shape[axis]) {
            values[index] += values[index - stride];
        }
    }
    Ok(Dense::from_f64(x.shape.clone(), x.kind(), values))
}
