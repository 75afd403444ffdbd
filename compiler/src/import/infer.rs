//! Shapes of what operations compute from signals or from parameters that are left in the file.

use super::dense::{Kind, broadcast_shapes};
use super::evaluate::{
    Operands, axis_index, cast_kind, extents, is_binary, is_comparison, is_reduction, is_unary, is_view, joined_shape,
    matrix_product_shape, tiled_shape, views,
};
use super::onnx::{Attribute, OnnxNode};
use super::specialise::{Sizes, Value, constants};

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
    /// That of the first input, of the kind that is cast to.
    Cast,
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
        | "SimplifiedLayerNormalization"
        | "RMSNormalization"
        | "com.microsoft::SkipSimplifiedLayerNormalization"
        | "RotaryEmbedding"
        | "com.microsoft::RotaryEmbedding" => Rule::Same,
        "Cast" => Rule::Cast,
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
    match rule(&node.op_type) {
        Some(rule) => apply(rule, node, inputs, sizes),
        None => {
            Err("the operation is applied to values that depend on the token in a way that no decoder does".to_owned())
        }
    }
}

fn apply(rule: Rule, node: &OnnxNode, inputs: &[Option<Value>], sizes: Sizes) -> Result<Vec<Output>, String> {
    let value =
        |index: usize| inputs.get(index).and_then(Option::as_ref).ok_or_else(|| format!("input {index} is missing"));
    let first = value(0)?;
    let kind = first.kind();
    let broadcast = || {
        inputs.iter().flatten().try_fold(Vec::new(), |shape: Vec<usize>, input| broadcast_shapes(&shape, input.shape()))
    };
    Ok(match rule {
        Rule::Same => vec![(first.shape().to_vec(), kind); node.outputs.len()],
        Rule::Broadcast => vec![(broadcast()?, kind)],
        Rule::Cast => vec![(first.shape().to_vec(), cast_kind(node)?)],
        Rule::Test => vec![(broadcast()?, Kind::Bool)],
        Rule::Choice => vec![(broadcast()?, value(1)?.kind())],
        Rule::Product => vec![(matrix_product_shape(first.shape(), value(1)?.shape())?, kind)],
        Rule::TransposedProduct => {
            let left = swapped(first.shape(), node.flag("transA"));
            vec![(matrix_product_shape(&left, &swapped(value(1)?.shape(), node.flag("transB")))?, kind)]
        }
        Rule::Quantised => {
            let (columns, rows) = (node.extent("K")?, node.extent("N")?);
            vec![(matrix_product_shape(first.shape(), &[columns, rows])?, kind)]
        }
        Rule::Reduction => vec![(reduced(node, first, inputs.get(1).and_then(Option::as_ref))?, kind)],
        Rule::Join => {
            let parts: Vec<&[usize]> = inputs.iter().flatten().map(Value::shape).collect();
            vec![(joined_shape(node.integer("axis")?, &parts)?.1, kind)]
        }
        Rule::Lookup => {
            let axis = axis_index(node.integer("axis")?, first.shape().len())?;
            let mut shape = first.shape()[..axis].to_vec();
            shape.extend(value(1)?.shape());
            shape.extend(&first.shape()[axis + 1..]);
            vec![(shape, kind)]
        }
        Rule::QuantisedLookup => {
            let mut shape = value(1)?.shape().to_vec();
            let packed = if kind == Kind::Bytes && node.integer("bits")? == 4 { 2 } else { 1 };
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
            let (heads, kv_heads) = (node.extent("num_heads")?, node.extent("kv_num_heads")?);
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

/// A shape with its last two axes swapped if the flag is set.
fn swapped(shape: &[usize], flag: bool) -> Vec<usize> {
    let mut shape = shape.to_vec();
    if flag && shape.len() > 1 {
        let rank = shape.len();
        shape.swap(rank - 2, rank - 1);
    }
    shape
}

fn reduced(node: &OnnxNode, operand: &Value, axes: Option<&Value>) -> Result<Vec<usize>, String> {
    let mut shape = operand.shape().to_vec();
    let keep = node.flag("keepdims");
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

/// Shapes and kinds of the outputs of a node that reads constants and parameters only; `None` if they depend on more
/// than shapes and constants, or if such a node is never large.
pub(super) fn constant_shapes(node: &OnnxNode, inputs: &[Option<Value>]) -> Result<Option<Vec<Output>>, String> {
    let Some(Some(first)) = inputs.first() else {
        return Ok(None);
    };
    let op_type = node.op_type.as_str();
    let constant = |index: usize| match inputs.get(index) {
        Some(Some(Value::Constant(constant))) => Some(constant),
        _ => None,
    };
    let rule = match op_type {
        _ if is_view(op_type) => {
            let Some(rest) = constants(&inputs[1..]) else {
                return Ok(None);
            };
            let operands = Operands { node, values: std::iter::once(None).chain(rest).collect() };
            let views = views(&operands, first.shape())?;
            return Ok(Some(views.into_iter().map(|view| (view.shape, first.kind())).collect()));
        }
        "DequantizeLinear" | "com.microsoft::DequantizeLinear" => {
            return Ok(Some(vec![(first.shape().to_vec(), Kind::F32)]));
        }
        "ConstantOfShape" => {
            let Some(shape) = constant(0) else {
                return Ok(None);
            };
            let kind = match node.attribute("value") {
                Some(Attribute::Tensor(value)) => value.kind,
                _ => Kind::F32,
            };
            return Ok(Some(vec![(extents(&shape.to_ints())?, kind)]));
        }
        "Tile" => {
            let Some(repeats) = constant(1) else {
                return Ok(None);
            };
            return Ok(Some(vec![(tiled_shape(first.shape(), repeats)?, first.kind())]));
        }
        "Cast" => Rule::Cast,
        "Trilu" | "CumSum" | "ScatterND" => Rule::Same,
        "And" | "Or" | "Xor" | "Not" | "IsNaN" => Rule::Test,
        "Max" | "Min" => Rule::Broadcast,
        _ if is_unary(op_type) => Rule::Same,
        _ if is_binary(op_type) => Rule::Broadcast,
        _ if is_comparison(op_type) => Rule::Test,
        _ if is_reduction(op_type) => Rule::Reduction,
        "Where" => Rule::Choice,
        "MatMul" => Rule::Product,
        "Concat" => Rule::Join,
        "Gather" => Rule::Lookup,
        _ => return Ok(None),
    };
    apply(rule, node, inputs, Sizes { past: 0, sequence: 0 }).map(Some)
}
