//! Finds each op of a decoder in the tensor graph by its kind and order.

use cachemir_ir::graph::Origin;
use cachemir_ir::tensor::{CacheKind, TensorModel, TensorOp, WeightId};

use crate::Error;

/// A weight with the node that applies it.
#[derive(Clone, Debug)]
pub(super) struct Weighted {
    /// The weight.
    pub(super) weight: WeightId,
    /// What is added to the product with it.
    pub(super) bias: Option<WeightId>,
    /// The node.
    pub(super) origin: Option<Origin>,
}

/// A norm.
#[derive(Clone, Debug)]
pub(super) struct Norm {
    /// γ, and the node.
    pub(super) gamma: Weighted,
    /// ε.
    pub(super) epsilon: f64,
}

/// The ops of one decoder layer.
#[derive(Clone, Debug, Default)]
pub(super) struct LayerRoles {
    /// q, k, v, o, gate, up and down projections.
    pub(super) linears: Vec<Weighted>,
    /// Rotary embeddings of q and k.
    pub(super) ropes: Vec<Option<Origin>>,
    /// Append to the K cache.
    pub(super) append_key: Option<Origin>,
    /// Append to the V cache.
    pub(super) append_value: Option<Origin>,
    /// Scores.
    pub(super) scores: Option<Origin>,
    /// Factor of the scores.
    pub(super) scale: f64,
    /// Softmax.
    pub(super) softmax: Option<Origin>,
    /// Mix.
    pub(super) mix: Option<Origin>,
    /// SiLU.
    pub(super) silu: Option<Origin>,
    /// Product of gate and up.
    pub(super) product: Option<Origin>,
    /// The two residual sums.
    pub(super) sums: Vec<Option<Origin>>,
}

/// The ops of a decoder.
#[derive(Clone, Debug)]
pub(super) struct Roles {
    /// The norms: two a layer, and the last one.
    pub(super) norms: Vec<Norm>,
    /// The layers.
    pub(super) layers: Vec<LayerRoles>,
    /// The output head.
    pub(super) head: Weighted,
}

impl Roles {
    /// Recognises the ops of a model.
    pub(super) fn new(model: &TensorModel) -> Result<Self, Error> {
        let graph = &model.graph;
        let (mut norms, mut layers, mut head) = (Vec::new(), Vec::<LayerRoles>::new(), None);
        for (_, node) in model.ops() {
            let origin = node.origin.map(|id| graph.origins[id.index()].clone());
            match node.op {
                TensorOp::RmsNorm { weight, epsilon } => {
                    if norms.len() % 2 == 0 && layers.len() < model.hyperparameters.layers {
                        layers.push(LayerRoles::default());
                    }
                    norms.push(Norm { gamma: Weighted { weight, bias: None, origin }, epsilon });
                    continue;
                }
                TensorOp::LmHead { weight } => {
                    head = Some(Weighted { weight, bias: None, origin });
                    continue;
                }
                TensorOp::Embedding { .. } => continue,
                _ => {}
            }
            let Some(layer) = layers.last_mut() else { continue };
            match node.op {
                TensorOp::Linear { weight, bias } => layer.linears.push(Weighted { weight, bias, origin }),
                TensorOp::Rope { .. } => layer.ropes.push(origin),
                TensorOp::KvAppend { kind: CacheKind::Key, .. } => layer.append_key = origin,
                TensorOp::KvAppend { kind: CacheKind::Value, .. } => layer.append_value = origin,
                TensorOp::Scores { scale, .. } => (layer.scores, layer.scale) = (origin, scale),
                TensorOp::Softmax => layer.softmax = origin,
                TensorOp::Mix { .. } => layer.mix = origin,
                TensorOp::Silu => layer.silu = origin,
                TensorOp::Mul => layer.product = origin,
                TensorOp::Add => layer.sums.push(origin),
                _ => {}
            }
        }
        let complete = layers
            .iter()
            .all(|layer| (layer.linears.len(), layer.ropes.len(), layer.sums.len()) == (7, 2, 2) && layer.scale > 0.0);
        match head {
            Some(head) if complete && norms.len() == 2 * layers.len() + 1 => Ok(Self { norms, layers, head }),
            _ => Err(Error::Ir(cachemir_ir::Error::Invalid {
                stage: "tensor",
                problems: vec!["the ops are not those of a decoder in their order".into()],
            })),
        }
    }
}
