//! The attributes that operations are understood with, and what holds where a node does not give them.
//!
//! An attribute that is not in the list might change what a node computes, so the node is refused; what only says how
//! to compute it (precision of intermediate results, hints) is listed as well and has no effect.

use super::{Attribute, OnnxNode};
use crate::Error;

/// Kind of an attribute's value, with what the operation's specification has where a node does not give it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Type {
    /// Without it, the node has none, or says something of its own.
    Int,
    IntOr(i64),
    Float,
    FloatOr(f32),
    Ints,
    Text,
    Tensor,
}

use Type::{Float, FloatOr, Int, IntOr, Ints, Tensor, Text};

/// The attributes of an operation; `None` for one that is not supported, whatever its attributes. The defaults are those
/// of ONNX's and of onnxruntime's operator specifications (the latest version of each operation).
fn understood(op_type: &str) -> Option<&'static [(&'static str, Type)]> {
    Some(match op_type {
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Neg" | "Abs" | "Sqrt" | "Reciprocal" | "Exp" | "Log" | "Cos"
        | "Sin" | "Floor" | "Ceil" | "Round" | "Sigmoid" | "Equal" | "Less" | "LessOrEqual" | "Greater"
        | "GreaterOrEqual" | "And" | "Or" | "Xor" | "Not" | "IsNaN" | "Where" | "Max" | "Min" | "MatMul" | "Range"
        | "Size" | "Identity" | "Expand" | "Tile" => &[],
        "Mod" => &[("fmod", IntOr(0))],
        "ReduceSum" | "ReduceMean" | "ReduceMax" | "ReduceMin" | "ReduceProd" => {
            &[("axes", Ints), ("keepdims", IntOr(1)), ("noop_with_empty_axes", IntOr(0))]
        }
        "CumSum" => &[("exclusive", IntOr(0)), ("reverse", IntOr(0))],
        "Cast" => &[("to", Int), ("saturate", IntOr(1)), ("round_mode", Text)],
        "Dropout" => &[("seed", Int), ("ratio", FloatOr(0.5))],
        "Shape" => &[("start", IntOr(0)), ("end", Int)],
        "Reshape" => &[("shape", Ints), ("allowzero", IntOr(0))],
        "Squeeze" | "Unsqueeze" => &[("axes", Ints)],
        "Flatten" => &[("axis", IntOr(1))],
        "Concat" => &[("axis", Int)],
        "Gather" => &[("axis", IntOr(0))],
        "Softmax" => &[("axis", IntOr(-1))],
        "Transpose" => &[("perm", Ints)],
        "Slice" => &[("starts", Ints), ("ends", Ints), ("axes", Ints)],
        "Split" => &[("axis", IntOr(0)), ("split", Ints), ("num_outputs", Int)],
        "GatherND" => &[("batch_dims", IntOr(0))],
        "ScatterND" => &[("reduction", Text)],
        "ConstantOfShape" => &[("value", Tensor)],
        "Trilu" => &[("upper", IntOr(1))],
        "DequantizeLinear" => &[("axis", IntOr(1)), ("block_size", IntOr(0)), ("output_dtype", IntOr(0))],
        "com.microsoft::DequantizeLinear" => &[("axis", IntOr(1)), ("block_size", IntOr(0))],
        "Gemm" => &[("alpha", FloatOr(1.0)), ("beta", FloatOr(1.0)), ("transA", IntOr(0)), ("transB", IntOr(0))],
        "com.microsoft::FusedMatMul" => &[
            ("alpha", FloatOr(1.0)),
            ("transA", IntOr(0)),
            ("transB", IntOr(0)),
            ("transBatchA", IntOr(0)),
            ("transBatchB", IntOr(0)),
        ],
        "com.microsoft::MatMulNBits" => &[
            ("K", Int),
            ("N", Int),
            ("bits", IntOr(4)),
            ("block_size", Int),
            ("accuracy_level", IntOr(0)),
            ("weight_prepacked", IntOr(0)),
        ],
        "com.microsoft::GatherBlockQuantized" => {
            &[("bits", IntOr(4)), ("block_size", IntOr(128)), ("gather_axis", IntOr(0)), ("quantize_axis", IntOr(1))]
        }
        "SimplifiedLayerNormalization" | "RMSNormalization" => {
            &[("axis", IntOr(-1)), ("epsilon", FloatOr(1e-5)), ("stash_type", IntOr(1))]
        }
        "com.microsoft::SkipSimplifiedLayerNormalization" => &[("epsilon", FloatOr(1e-12))],
        "com.microsoft::QuickGelu" => &[("alpha", FloatOr(1.702))],
        "Swish" => &[("alpha", FloatOr(1.0))],
        "RotaryEmbedding" => &[("interleaved", IntOr(0)), ("num_heads", IntOr(0)), ("rotary_embedding_dim", IntOr(0))],
        "com.microsoft::RotaryEmbedding" => &[
            ("interleaved", IntOr(0)),
            ("num_heads", IntOr(0)),
            ("rotary_embedding_dim", IntOr(0)),
            ("scale", FloatOr(1.0)),
            ("is_packed_batching", IntOr(0)),
        ],
        "Attention" => &[
            ("is_causal", IntOr(0)),
            ("kv_num_heads", Int),
            ("q_num_heads", Int),
            ("qk_matmul_output_mode", IntOr(0)),
            ("scale", Float),
            ("softcap", FloatOr(0.0)),
            ("softmax_precision", Int),
        ],
        "com.microsoft::GroupQueryAttention" => &[
            ("num_heads", Int),
            ("kv_num_heads", Int),
            ("scale", Float),
            ("do_rotary", IntOr(0)),
            ("rotary_interleaved", IntOr(0)),
            ("local_window_size", IntOr(-1)),
            ("softcap", FloatOr(0.0)),
            ("smooth_softmax", IntOr(-1)),
            ("qk_output", IntOr(0)),
            ("causal", IntOr(1)),
            ("sliding_window_cache", IntOr(0)),
            ("kv_cache_bit_width", IntOr(0)),
            ("k_quant_type", Text),
            ("v_quant_type", Text),
            // Of norms of queries and keys, which are given as inputs.
            ("qk_norm_epsilon", FloatOr(1e-6)),
        ],
        _ => return None,
    })
}

impl OnnxNode {
    fn default(&self, name: &str) -> Option<Type> {
        understood(&self.op_type)?.iter().find(|(known, _)| *known == name).map(|(_, default)| *default)
    }

    /// An integer attribute, or the operation's default for it.
    pub(in crate::import) fn int(&self, name: &str) -> Option<i64> {
        match (self.attributes.get(name), self.default(name)) {
            (Some(&Attribute::Int(value)), _) | (None, Some(IntOr(value))) => Some(value),
            _ => None,
        }
    }

    /// An integer attribute that the operation must have.
    pub(in crate::import) fn integer(&self, name: &str) -> Result<i64, String> {
        self.int(name).ok_or_else(|| format!("the attribute {name} is missing"))
    }

    /// An integer attribute that is a positive number.
    pub(in crate::import) fn extent(&self, name: &str) -> Result<usize, String> {
        let value = self.int(name).and_then(|value| usize::try_from(value).ok()).filter(|&value| value > 0);
        value.ok_or_else(|| format!("the attribute {name} is missing or not positive"))
    }

    /// Whether an integer attribute, or the operation's default for it, is set; false for operations without it.
    pub(in crate::import) fn flag(&self, name: &str) -> bool {
        self.int(name).is_some_and(|value| value != 0)
    }

    /// A float attribute, or the operation's default for it.
    pub(in crate::import) fn float(&self, name: &str) -> Option<f64> {
        match (self.attributes.get(name), self.default(name)) {
            (Some(&Attribute::Float(value)), _) | (None, Some(FloatOr(value))) => Some(f64::from(value)),
            _ => None,
        }
    }
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
            (Int | IntOr(_), Attribute::Int(value)) => {
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
            (Float | FloatOr(_), Attribute::Float(_)) | (Ints, Attribute::Ints(_)) | (Tensor, Attribute::Tensor(_)) => {
                true
            }
            _ => false,
        };
        if !fits {
            return Err(node.error(format!("its attribute `{name}` is of an unexpected kind")));
        }
    }
    Ok(())
}
