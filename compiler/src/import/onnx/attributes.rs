//! The attributes that operations are understood with.
//!
//! An attribute that is not in the list might change what a node computes, so the node is refused; what only says how
//! to compute it (precision of intermediate results, hints) is listed as well and has no effect.

use super::{Attribute, OnnxNode};
use crate::Error;

/// Kind of an attribute's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Int,
    Float,
    Ints,
    Text,
    Tensor,
}

use Type::{Float, Int, Ints, Tensor, Text};

/// The attributes of an operation; `None` for one that is not supported, whatever its attributes.
fn understood(op_type: &str) -> Option<&'static [(&'static str, Type)]> {
    Some(match op_type {
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Neg" | "Abs" | "Sqrt" | "Reciprocal" | "Exp" | "Log" | "Cos"
        | "Sin" | "Floor" | "Ceil" | "Round" | "Sigmoid" | "Equal" | "Less" | "LessOrEqual" | "Greater"
        | "GreaterOrEqual" | "And" | "Or" | "Xor" | "Not" | "IsNaN" | "Where" | "Max" | "Min" | "MatMul" | "Range"
        | "Size" | "Identity" | "Expand" | "Tile" => &[],
        "Mod" => &[("fmod", Int)],
        "ReduceSum" | "ReduceMean" | "ReduceMax" | "ReduceMin" | "ReduceProd" => {
            &[("axes", Ints), ("keepdims", Int), ("noop_with_empty_axes", Int)]
        }
        "CumSum" => &[("exclusive", Int), ("reverse", Int)],
        "Cast" => &[("to", Int), ("saturate", Int), ("round_mode", Text)],
        "Dropout" => &[("seed", Int), ("ratio", Float)],
        "Shape" => &[("start", Int), ("end", Int)],
        "Reshape" => &[("shape", Ints), ("allowzero", Int)],
        "Squeeze" | "Unsqueeze" => &[("axes", Ints)],
        "Flatten" | "Concat" | "Gather" | "Softmax" => &[("axis", Int)],
        "Transpose" => &[("perm", Ints)],
        "Slice" => &[("starts", Ints), ("ends", Ints), ("axes", Ints)],
        "Split" => &[("axis", Int), ("split", Ints), ("num_outputs", Int)],
        "GatherND" => &[("batch_dims", Int)],
        "ScatterND" => &[("reduction", Text)],
        "ConstantOfShape" => &[("value", Tensor)],
        "Trilu" => &[("upper", Int)],
        "DequantizeLinear" => &[("axis", Int), ("block_size", Int), ("output_dtype", Int)],
        "com.microsoft::DequantizeLinear" => &[("axis", Int), ("block_size", Int)],
        "Gemm" => &[("alpha", Float), ("beta", Float), ("transA", Int), ("transB", Int)],
        "com.microsoft::FusedMatMul" => {
            &[("alpha", Float), ("transA", Int), ("transB", Int), ("transBatchA", Int), ("transBatchB", Int)]
        }
        "com.microsoft::MatMulNBits" => &[
            ("K", Int),
            ("N", Int),
            ("bits", Int),
            ("block_size", Int),
            ("accuracy_level", Int),
            ("weight_prepacked", Int),
        ],
        "com.microsoft::GatherBlockQuantized" => {
            &[("bits", Int), ("block_size", Int), ("gather_axis", Int), ("quantize_axis", Int)]
        }
        "SimplifiedLayerNormalization" | "RMSNormalization" => {
            &[("axis", Int), ("epsilon", Float), ("stash_type", Int)]
        }
        "com.microsoft::SkipSimplifiedLayerNormalization" => &[("epsilon", Float)],
        "RotaryEmbedding" => &[("interleaved", Int), ("num_heads", Int), ("rotary_embedding_dim", Int)],
        "com.microsoft::RotaryEmbedding" => &[
            ("interleaved", Int),
            ("num_heads", Int),
            ("rotary_embedding_dim", Int),
            ("scale", Float),
            ("is_packed_batching", Int),
        ],
        "Attention" => &[
            ("is_causal", Int),
            ("kv_num_heads", Int),
            ("q_num_heads", Int),
            ("qk_matmul_output_mode", Int),
            ("scale", Float),
            ("softcap", Float),
            ("softmax_precision", Int),
        ],
        "com.microsoft::GroupQueryAttention" => &[
            ("num_heads", Int),
            ("kv_num_heads", Int),
            ("scale", Float),
            ("do_rotary", Int),
            ("rotary_interleaved", Int),
            ("local_window_size", Int),
            ("softcap", Float),
            ("smooth_softmax", Int),
            ("qk_output", Int),
            ("causal", Int),
            ("sliding_window_cache", Int),
            ("kv_cache_bit_width", Int),
            ("k_quant_type", Text),
            ("v_quant_type", Text),
            // Of norms of queries and keys, which are given as inputs.
            ("qk_norm_epsilon", Float),
        ],
        _ => return None,
    })
}

/// Numbers that only one value of is supported, apart from those that their matchers look at.
fn fixed(op_type: &str, name: &str) -> Option<i64> {
    match (op_type, name) {
        ("GatherND", "batch_dims")
        | ("Mod", "fmod")
        | ("com.microsoft::MatMulNBits", "weight_prepacked")
        | ("com.microsoft::RotaryEmbedding", "is_packed_batching")
        | ("com.microsoft::GroupQueryAttention", "qk_output" | "sliding_window_cache" | "kv_cache_bit_width") => {
            Some(0)
        }
        ("com.microsoft::GroupQueryAttention", "causal") => Some(1),
        _ => None,
    }
}

/// Refuses attributes that are not understood.
pub(super) fn check(node: &OnnxNode) -> Result<(), Error> {
    let Some(understood) = understood(&node.op_type) else {
        return Ok(());
    };
    for (name, value) in &node.attributes {
        let Some((_, expected)) = understood.iter().find(|(known, _)| known == name) else {
            return Err(node.error(format!("its attribute `{name}` is not understood")));
        };
        let fits = match (expected, value) {
            (Int, Attribute::Int(value)) => {
                if let Some(only) = fixed(&node.op_type, name)
                    && *value != only
                {
                    return Err(node.error(format!("its attribute `{name}` = {value} is not supported")));
                }
                true
            }
            (Text, Attribute::Text(text)) => {
                // The only text with more than one meaning for what is computed says that something is not done.
                if name != "round_mode" && !text.eq_ignore_ascii_case("none") {
                    return Err(node.error(format!("its attribute `{name}` = `{text}` is not supported")));
                }
                true
            }
            (Float, Attribute::Float(_)) | (Ints, Attribute::Ints(_)) | (Tensor, Attribute::Tensor(_)) => true,
            _ => false,
        };
        if !fits {
            return Err(node.error(format!("its attribute `{name}` is of an unexpected kind")));
        }
    }
    Ok(())
}
