//! Shapes of what operations compute from signals or from parameters that are left in the file.

use super::dense::{Kind, broadcast_shapes};
use super::evaluate::{axis_index, cast_kind, matrix_product_shape};
use super::onnx::OnnxNode;
use super::specialise::{Sizes, Value};

/// Shape and kind of one output.
pub(super) type Output = (Vec<usize>, Kind);

/// Refuses shapes that no decoder has.
pub(super) fn check_size(shape: &[usize]) -> Result<(), String> {
    let count = shape.iter().try_fold(1_usize, |product, &extent| product.checked_mul(extent));
    match count {
        Some(count) if count <= 1 << 40 => Ok(()),
        _ => Err(format!("the shape {shape:?} is too large")),
    }
}

/// How an operation's output shapes follow from its inputs.
#[derive(Clone, Copy)]
enum Rule {
    /// That of the first input, for every output.
    Same,
    /// Broadcast of all inputs.
    Broadcast,
    /// Broadcast of all inputs, as truth values.
    Test,
    Product,
    TransposedProduct,
    Quantised,
    Reduction,
    Choice,
    Join,
    Lookup,
    QuantisedLookup,
    Attention,
    GroupedAttention,
}

fn rule(op_type: &str) -> Option<Rule> {
    Some(match op_type {
        "Sqrt"
        | "Reciprocal"
        | "Softmax"
        | "Sigmoid"
        | "Cast"
        | "SimplifiedLayerNormalization"
        | "RMSNormalization"
        | "com.microsoft::SkipSimplifiedLayerNormalization"
        | "RotaryEmbedding"
        | "com.microsoft::RotaryEmbedding" => Rule::Same,
        "Add" | "Sub" | "Mul" | "Div" | "Pow" => Rule::Broadcast,
        "IsNaN" | "Not" | "And" | "Or" | "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" => Rule::Test,
        "MatMul" => Rule::Product,
        "com.microsoft::FusedMatMul" | "Gemm" => Rule::TransposedProduct,
        "com.microsoft::MatMulNBits" => Rule::Quantised,
        "ReduceMean" | "ReduceSum" | "ReduceMax" => Rule::Reduction,
        "Where" => Rule::Choice,
        "Concat" => Rule::Join,
        "Gather" => Rule::Lookup,
        "com.microsoft::GatherBlockQuantized" => Rule::QuantisedLookup,
        "Attention" => Rule::Attention,
        "com.microsoft::GroupQueryAttention" => Rule::GroupedAttention,
        _ => return None,
    })
}

/// Whether the operation may be applied to signals.
pub(super) fn is_known(op_type: &str) -> bool {
    rule(op_type).is_some() || super::evaluate::is_view(op_type) || matches!(op_type, "Neg" | "Shape")
}

/// Shapes and kinds of the outputs.
pub(super) fn infer(node: &OnnxNode, inputs: &[Option<Value>], sizes: Sizes) -> Result<Vec<Output>, String> {
    let value =
        |index: usize| inputs.get(index).and_then(Option::as_ref).ok_or_else(|| format!("input {index} is missing"));
    let first = value(0)?;
    let kind = first.kind();
    let Some(rule) = rule(&node.op_type) else {
        return Err(
            "the operation is applied to values that depend on the token in a way that no decoder does".to_owned()
        );
    };
    let broadcast = || {
        inputs.iter().flatten().try_fold(Vec::new(), |shape: Vec<usize>, input| broadcast_shapes(&shape, input.shape()))
    };
    Ok(match rule {
        Rule::Same => vec![(first.shape().to_vec(), kind); node.outputs.len()],
        Rule::Broadcast => vec![(broadcast()?, kind)],
        Rule::Test => vec![(broadcast()?, Kind::Bool)],
        Rule::Choice => vec![(broadcast()?, value(1)?.kind())],
        Rule::Product => vec![(matrix_product_shape(first.shape(), value(1)?.shape())?, kind)],
        Rule::TransposedProduct => {
            let left = swapped(first.shape(), node.int("transA"));
            vec![(matrix_product_shape(&left, &swapped(value(1)?.shape(), node.int("transB")))?, kind)]
        }
        Rule::Quantised => {
            let (columns, rows) = (extent(node, "K")?, extent(node, "N")?);
            vec![(matrix_product_shape(first.shape(), &[columns, rows])?, kind)]
        }
        Rule::Reduction => vec![(reduced(node, first, inputs.get(1).and_then(Option::as_ref))?, kind)],
        Rule::Join => vec![(joined(node, inputs)?, kind)],
        Rule::Lookup => {
            let axis = axis_index(node.int("axis").unwrap_or(0), first.shape().len())?;
            let mut shape = first.shape()[..axis].to_vec();
            shape.extend(value(1)?.shape());
            shape.extend(&first.shape()[axis + 1..]);
            vec![(shape, kind)]
        }
        Rule::QuantisedLookup => {
            let mut shape = value(1)?.shape().to_vec();
            let bits = node.int("bits").unwrap_or(4);
            let packed = if kind == Kind::Bytes && bits == 4 { 2 } else { 1 };
            shape.push(first.shape().last().copied().unwrap_or(0).saturating_mul(packed));
            vec![(shape, value(2)?.kind())]
        }
        Rule::Attention => {
            let ([batch, heads, tokens, _], [.., dim]) = (first.shape(), value(2)?.shape()) else {
                return Err(format!("queries of shape {:?} are not [batch, heads, tokens, dimension]", first.shape()));
            };
            vec![(vec![*batch, *heads, *tokens, *dim], kind)]
        }
        Rule::GroupedAttention => {
            let (heads, kv_heads) = (extent(node, "num_heads")?, extent(node, "kv_num_heads")?);
            let packed = inputs.get(1).is_none_or(Option::is_none);
            let parts = if packed { heads.saturating_add(kv_heads.saturating_mul(2)) } else { heads };
            let [batch, tokens, width] = *first.shape() else {
                return Err(format!("queries of shape {:?} are not [batch, tokens, width]", first.shape()));
            };
            if !width.is_multiple_of(parts) {
                return Err(format!("a width of {width} does not hold {parts} heads"));
            }
            let dim = width / parts;
            let cache = (vec![batch, kv_heads, sizes.past + sizes.sequence, dim], kind);
            vec![(vec![batch, tokens, heads * dim], kind), cache.clone(), cache]
        }
    })
}

fn extent(node: &OnnxNode, attribute: &str) -> Result<usize, String> {
    let value = node.int(attribute).and_then(|value| usize::try_from(value).ok()).filter(|&value| value > 0);
    value.ok_or_else(|| format!("the attribute {attribute} is missing or not positive"))
}

/// A shape with its last two axes swapped if the flag is set.
fn swapped(shape: &[usize], flag: Option<i64>) -> Vec<usize> {
    let mut shape = shape.to_vec();
    if flag.unwrap_or(0) != 0 && shape.len() > 1 {
        let rank = shape.len();
        shape.swap(rank - 2, rank - 1);
    }
    shape
}

fn reduced(node: &OnnxNode, operand: &Value, axes: Option<&Value>) -> Result<Vec<usize>, String> {
    let mut shape = operand.shape().to_vec();
    let keep = node.int("keepdims").unwrap_or(1) != 0;
    let axes = match (node.ints("axes"), axes) {
        (Some(axes), _) => axes.to_vec(),
        (None, Some(Value::Constant(axes))) => axes.to_ints(),
        (None, None) => (0..shape.len() as i64).collect(),
        _ => return Err("the axes are not constant".to_owned()),
    };
    let axes = axes.into_iter().map(|axis| axis_index(axis, shape.len())).collect::<Result<Vec<_>, _>>()?;
    for &axis in &axes {
        shape[axis] = 1;
    }
    if !keep {
        let kept = shape.iter().enumerate().filter(|(axis, _)| !axes.contains(axis));
        shape = kept.map(|(_, &extent)| extent).collect();
    }
    Ok(shape)
}

fn joined(node: &OnnxNode, inputs: &[Option<Value>]) -> Result<Vec<usize>, String> {
    let mut parts = inputs.iter().flatten().map(Value::shape);
    let mut shape = parts.next().unwrap_or_default().to_vec();
    let axis = axis_index(node.int("axis").unwrap_or(0), shape.len())?;
    for part in parts {
        let fits =
            part.len() == shape.len() && (0..shape.len()).all(|other| other == axis || part[other] == shape[other]);
        if !fits {
            return Err(format!("shapes {shape:?} and {part:?} cannot be concatenated"));
        }
        shape[axis] += part[axis];
    }
    Ok(shape)
}

/// Shapes of a node's outputs if all that it reads are parameters and constants; `None` if it is not one of the
/// rearrangements that exporters apply to weights.
pub(super) fn parameter_shapes(node: &OnnxNode, inputs: &[Option<Value>]) -> Result<Option<Vec<Output>>, String> {
    let Some(Some(first)) = inputs.first() else {
        return Ok(None);
    };
    let shape = first.shape();
    let ints = |attribute: &str, index: usize| match (node.ints(attribute), inputs.get(index)) {
        (Some(values), _) => Some(values.to_vec()),
        (None, Some(Some(Value::Constant(values)))) => Some(values.to_ints()),
        _ => None,
    };
    Ok(match node.op_type.as_str() {
        "Identity" => Some(vec![(shape.to_vec(), first.kind())]),
        "DequantizeLinear" => Some(vec![(shape.to_vec(), Kind::F32)]),
        "Cast" => Some(vec![(shape.to_vec(), cast_kind(node)?)]),
        "Transpose" => {
            let order = node.ints("perm").map_or_else(|| (0..shape.len() as i64).rev().collect(), <[i64]>::to_vec);
            let moved = order.into_iter().map(|axis| Ok(shape[axis_index(axis, shape.len())?]));
            Some(vec![(moved.collect::<Result<_, String>>()?, first.kind())])
        }
        "Reshape" => {
            let target = ints("shape", 1).ok_or("the shape is not constant")?;
            let copied = |axis: usize| shape.get(axis).copied().unwrap_or(0);
            let mut result: Vec<usize> = target
                .iter()
                .enumerate()
                .map(|(axis, &extent)| if extent == 0 { copied(axis) } else { usize::try_from(extent).unwrap_or(1) })
                .collect();
            let (count, others) = (shape.iter().product::<usize>(), result.iter().product::<usize>());
            if let Some(axis) = target.iter().position(|&extent| extent == -1) {
                result[axis] = count.checked_div(others).unwrap_or(0);
            }
            if result.iter().product::<usize>() != count {
                return Err(format!("shape {shape:?} cannot become {target:?}"));
            }
            Some(vec![(result, first.kind())])
        }
        "Split" => {
            let axis = axis_index(node.int("axis").unwrap_or(0), shape.len())?;
            let parts = node.outputs.len().max(1);
            let sizes = ints("split", 1).unwrap_or_else(|| vec![(shape[axis] / parts) as i64; parts]);
            let part = |size: i64| {
                let mut shape = shape.to_vec();
                shape[axis] = usize::try_from(size).unwrap_or(0);
                (shape, first.kind())
            };
            Some(sizes.into_iter().map(part).collect())
        }
        _ => None,
    })
}
