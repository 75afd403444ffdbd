//! Names the feature of another architecture that stands where a Llama decoder has something else.

use super::norm::Factor;
use super::{Recogniser, Signal, Value};
use crate::Error;
use crate::import::onnx::{Name, OnnxGraph};

/// The part of a decoder that a node should be of: the same operations mean other features in other parts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The residual stream.
    Stream,
    /// The rotary embedding of queries or keys.
    Rotation,
    Other,
}

impl Recogniser<'_, '_> {
    /// An error for a node that is not what was expected, with the name of what it is where that is known.
    pub(super) fn unexpected(self, part: Part, node: usize, expected: &str) -> Error {
        let feature = self.local_feature(part, node).or_else(|| graph_feature(self.specialised.graph));
        match feature {
            Some(feature) => self.fail(node, format!("expected {expected}, found {feature}, not supported")),
            None => self.fail(node, format!("expected {expected}")),
        }
    }

    /// An error for a sum of which not exactly one operand is the output of a linear layer.
    pub(super) fn no_layer(self, node: usize, operands: [&Signal; 2]) -> Error {
        const EXPECTED: &str = "the sum of the residual stream and the output of a linear layer";
        let normed = operands.into_iter().find_map(|signal| {
            let (producer, _) = self.specialised.producer(signal.base)?;
            (signal.is_whole() && self.is_norm(producer)).then_some(producer)
        });
        if let Some(norm) = normed {
            let feature = "a norm of a layer's output (post-norm, as in Gemma 2 and OLMo 2)";
            return self.fail(norm, format!("expected {EXPECTED}, found {feature}, not supported"));
        }
        if operands.into_iter().all(|signal| self.is_layer(signal)) {
            let feature = "two layers added to one another (blocks in parallel, or LoRA adapters that are not merged)";
            return self.fail(node, format!("expected {EXPECTED}, found {feature}, not supported"));
        }
        self.unexpected(Part::Stream, node, EXPECTED)
    }

    fn local_feature(self, part: Part, node: usize) -> Option<&'static str> {
        if self.is_norm(node) {
            return Some(if part == Part::Stream {
                "a norm of a layer's output (post-norm, as in Gemma 2 and OLMo 2)"
            } else {
                "a norm of queries or keys (as in Qwen3)"
            });
        }
        let onnx = self.node(node);
        let signals = (0..onnx.inputs.len()).filter_map(|input| match self.operand(node, input) {
            Value::Signal(signal) => Some(signal),
            _ => None,
        });
        let signals: Vec<&Signal> = signals.collect();
        if onnx.op_type == "Add" && signals.len() == 2 && signals.iter().any(|signal| self.is_low_rank(signal)) {
            return Some("LoRA adapters: merge them into the weights ahead of the export");
        }
        let by_position = |input: usize| {
            let computed = onnx.input(input).is_some_and(|name| self.specialised.producer(name).is_some());
            matches!(self.operand(node, input), Value::Constant(constant) if constant.len() > 1 || computed)
        };
        if matches!(onnx.op_type.as_str(), "Mul" | "Div") && signals.len() == 1 && (by_position(0) || by_position(1)) {
            return Some("a factor that may depend on the position, or on the feature");
        }
        if part == Part::Rotation {
            let whole =
                Signal::whole(onnx.outputs.first().copied().flatten()?, Vec::new(), crate::import::dense::Kind::F32);
            if self.is_layer(&whole) {
                return Some("a layer without rotary embedding (NoPE)");
            }
            if onnx.op_type == "Concat" {
                return Some("a rotary embedding of a part of the features (partial), or none of the cached keys");
            }
        }
        None
    }

    /// Whether a node ends a root-mean-square norm, of whatever extent.
    fn is_norm(self, node: usize) -> bool {
        match self.node(node).op_type.as_str() {
            "SimplifiedLayerNormalization" | "RMSNormalization" => true,
            "Mul" | "Div" => {
                let output = self.node(node).outputs.first().copied().flatten();
                let factors = output.map(|name| match self.specialised.value(name) {
                    Value::Signal(signal) if signal.base == name => self.factors(signal),
                    _ => Ok(Vec::new()),
                });
                let inverse = |factor: &Factor| matches!(factor, Factor::InverseRoot(_));
                factors.is_some_and(|factors| factors.is_ok_and(|factors| factors.iter().any(inverse)))
            }
            _ => false,
        }
    }

    /// Whether a signal is a linear layer of a linear layer.
    fn is_low_rank(self, signal: &Signal) -> bool {
        let Some((node, _)) = self.specialised.producer(signal.base).filter(|_| self.is_layer(signal)) else {
            return false;
        };
        matches!(self.operand(node, 0), Value::Signal(inner) if self.is_layer(inner))
    }
}

/// A feature that an operation outside a Llama decoder stands for.
pub(in crate::import) fn unsupported_feature(graph: &OnnxGraph, node: usize) -> Option<&'static str> {
    let onnx = &graph.nodes[node];
    Some(match onnx.op_type.as_str() {
        "Tanh" if is_cap(graph, node) => "soft-capping",
        "Tanh" => "a hyperbolic tangent, as in a GELU activation or in soft-capping",
        "Erf"
        | "Gelu"
        | "com.microsoft::Gelu"
        | "com.microsoft::FastGelu"
        | "com.microsoft::BiasGelu"
        | "com.microsoft::QuickGelu" => "a GELU activation",
        "Relu" => "a ReLU activation",
        "LeakyRelu" | "PRelu" | "ThresholdedRelu" | "Elu" | "Celu" | "Selu" | "HardSigmoid" | "HardSwish" | "Mish"
        | "Softplus" | "Softsign" => "another activation than SiLU",
        "LayerNormalization" | "com.microsoft::SkipLayerNormalization" => "LayerNorm, as in GPT-2 and encoders",
        "TopK" | "com.microsoft::MoE" | "com.microsoft::QMoE" => "a mixture of experts (MoE: a router and its top-k)",
        "com.microsoft::Attention" | "com.microsoft::QAttention" | "com.microsoft::MultiHeadAttention" => {
            "multi-head attention of an encoder or GPT-2"
        }
        _ => return None,
    })
}

/// A feature that stands anywhere in a graph of operations that a Llama decoder has too.
fn graph_feature(graph: &OnnxGraph) -> Option<&'static str> {
    let producer = |name: Option<Name>| {
        let name = name?;
        graph.nodes.iter().find(|node| node.outputs.contains(&Some(name)))
    };
    let centred = graph.nodes.iter().any(|node| {
        node.op_type == "Sub"
            && producer(node.input(1))
                .is_some_and(|mean| mean.op_type == "ReduceMean" && mean.input(0) == node.input(0))
    });
    centred.then_some("LayerNorm (values minus their mean), as in GPT-2 and encoders")
}

/// Whether a hyperbolic tangent is multiplied by a constant alone: x ↦ c·tanh(x/c).
fn is_cap(graph: &OnnxGraph, node: usize) -> bool {
    let Some(output) = graph.nodes[node].outputs.first().copied().flatten() else { return false };
    let constant = |name: Name| {
        graph.initializers.contains_key(&name)
            || graph.nodes.iter().any(|node| node.op_type == "Constant" && node.outputs.contains(&Some(name)))
    };
    graph.nodes.iter().any(|node| {
        node.op_type == "Mul"
            && node.inputs.contains(&Some(output))
            && node.inputs.iter().flatten().any(|&name| name != output && constant(name))
    })
}
