//! Builds the tensor stage from a recognised decoder.

use cachemir_ir::graph::{Origin, ValueId};
use cachemir_ir::hashes::hash_of;
use cachemir_ir::tensor::{CacheKind, Hyperparameters, TensorModel, TensorOp, TensorType, Weight, WeightId, verify};

use super::companions::Companions;
use super::recognise::{Attention, Decoder, Layer, Linear, Norm, RopeSource};

use super::{ImportOptions, lengths, rope_table};
use crate::Error;

/// The longest context that rotary tables are made for.
const LONGEST_CONTEXT: usize = 1 << 20;

/// Builds and verifies the model.
pub(super) fn build(
    decoder: &Decoder<'_>,
    companions: &Companions,
    options: &ImportOptions,
) -> Result<TensorModel, Error> {
    let structure = &decoder.structure;
    let first = &structure.layers[0];
    let (heads, kv_heads, head_dim) = (first.attention.heads, first.attention.kv_heads, first.attention.head_dim);
    let context = context(decoder, companions, options)?;
    let rope = rope_table::rope_table(decoder, companions, options, context)?;
    lengths::check(decoder, context, |other| rope_table::check(decoder, other, &rope))?;
    let mut builder = Builder {
        decoder,
        shapes_only: options.shapes_only,
        model: TensorModel {
            hyperparameters: Hyperparameters {
                hidden: structure.embedding.weight.inputs,
                layers: structure.layers.len(),
                heads,
                kv_heads,
                head_dim,
                mlp: first.mlp.gate.outputs(),
                vocabulary: structure.embedding.weight.outputs(),
                epsilon: structure.norm.epsilon,
                attention_scale: canonical_scale(first.attention.scale, head_dim).abs(),
                context,
                tied_head: false,
            },
            rope,
            weights: Vec::new(),
            graph: cachemir_ir::graph::Graph::default(),
        },
    };
    builder.decoder()?;
    verify(&builder.model)?;
    Ok(builder.model)
}

/// Exporters round 1/√d, or its root, to single precision in different ways; the value that they mean is kept.
fn canonical_scale(scale: f64, head_dim: usize) -> f64 {
    let usual = 1.0 / (head_dim as f64).sqrt();
    if (scale / usual - 1.0).abs() < 1e-6 { usual } else { scale }
}

/// Most tokens in a session: what was asked for, as far as model and rotary table allow.
fn context(decoder: &Decoder<'_>, companions: &Companions, options: &ImportOptions) -> Result<usize, Error> {
    let rows =
        decoder.structure.layers.iter().flat_map(|layer| layer.attention.rope).filter_map(|source| match source {
            RopeSource::Cache { cosines, .. } => decoder.specialised.value(cosines).shape().first().copied(),
            _ => None,
        });
    let limit = rows.chain(companions.context).min();
    let bad = |message: String| Error::BadOption { option: "--context", message };
    if options.context.is_some_and(|context| context > LONGEST_CONTEXT) {
        return Err(bad(format!("more than {LONGEST_CONTEXT} tokens are not supported; ask for fewer")));
    }
    match (options.context, limit) {
        (Some(0), _) => Err(bad("a session needs at least one token".to_owned())),
        (Some(asked), Some(limit)) if asked > limit => {
            Err(bad(format!("{asked} tokens are more than the {limit} that the model was made for")))
        }
        (Some(asked), _) => Ok(asked),
        (None, Some(limit)) => Ok(limit.min(super::DEFAULT_CONTEXT)),
        (None, None) => Err(bad(
            "neither graph nor config.json says how many tokens the model was made for; give a number".to_owned(),
        )),
    }
}

struct Builder<'d, 'g> {
    decoder: &'d Decoder<'g>,
    shapes_only: bool,
    model: TensorModel,
}

impl Builder<'_, '_> {
    fn decoder(&mut self) -> Result<(), Error> {
        let decoder = &self.decoder.structure;
        let shape = self.model.hyperparameters.clone();
        let token = self.model.graph.add_input("token", TensorType::Token);
        let embedding = &decoder.embedding;
        let embedding_weight = self.matrix("embed_tokens", &embedding.weight)?;
        let op = TensorOp::Embedding { weight: embedding_weight };
        let mut x = self.vector(op, &[token], shape.hidden, embedding.node, "embedding".to_owned());
        for (index, layer) in decoder.layers.iter().enumerate() {
            x = self.attention(index, &layer.attention, x)?;
            x = self.mlp(index, layer, x)?;
        }
        let normed = self.norm("norm", &decoder.norm, x, "final_norm".to_owned())?;
        let head = &decoder.head;
        if head.outputs() != shape.vocabulary {
            let message = format!(
                "it gives logits of {} tokens, but the embedding has {}, which is not supported",
                head.outputs(),
                shape.vocabulary
            );
            return Err(self.decoder.specialised.not_llama(head.node, message));
        }
        let mut weight = self.matrix("lm_head", head)?;
        if self.is_tied(embedding_weight, weight) {
            self.model.weights.pop();
            self.model.hyperparameters.tied_head = true;
            weight = embedding_weight;
        }
        let op = TensorOp::LmHead { weight };
        let logits = self.vector(op, &[normed], shape.vocabulary, head.node, "logits".to_owned());
        self.model.graph.body.yields.push(logits);
        Ok(())
    }

    /// Whether embedding and head are one matrix: the same values, or without values the same initialiser.
    fn is_tied(&self, embedding: WeightId, head: WeightId) -> bool {
        let (embedding, head) = (self.model.weight(embedding), self.model.weight(head));
        if self.shapes_only && embedding.weights.is_none() {
            let specialised = &self.decoder.specialised;
            let roots = [&self.decoder.structure.embedding.weight, &self.decoder.structure.head]
                .map(|linear| specialised.root(linear.weight));
            return roots[0] == roots[1];
        }
        embedding.shape == head.shape && embedding.hash == head.hash
    }

    fn attention(&mut self, index: usize, layer: &Attention, x: ValueId) -> Result<ValueId, Error> {
        let shape = self.model.hyperparameters.clone();
        if (layer.heads, layer.kv_heads, layer.head_dim) != (shape.heads, shape.kv_heads, shape.head_dim) {
            return Err(self.decoder.specialised.not_llama(layer.nodes.mix, "layers have different heads"));
        }
        self.check_width(&layer.output, shape.hidden)?;
        let scale = canonical_scale(layer.scale, layer.head_dim);
        if !(scale.is_finite() && scale != 0.0) {
            return Err(self
                .decoder
                .specialised
                .not_llama(layer.nodes.scores, format!("scores are scaled by {scale}")));
        }
        let mut query = layer.query.clone();
        if scale != shape.attention_scale {
            query.scale_by(scale / shape.attention_scale);
        }
        let value = |name: &str| format!("layers.{index}.{name}");
        let weight = |name: &str| format!("layers.{index}.self_attn.{name}_proj");
        let (heads, kv_heads) = (shape.heads as u32, shape.kv_heads as u32);
        let nodes = layer.nodes;
        let normed = self.norm(&value("input_layernorm"), &layer.norm, x, value("attention_norm"))?;
        let q = self.linear(&weight("q"), &query, normed, value("q"))?;
        let k = self.linear(&weight("k"), &layer.key, normed, value("k"))?;
        let v = self.linear(&weight("v"), &layer.value, normed, value("v"))?;
        let q = self.vector(TensorOp::Rope { heads }, &[q], shape.query_width(), nodes.query_rope, value("q_rope"));
        let k =
            self.vector(TensorOp::Rope { heads: kv_heads }, &[k], shape.kv_width(), nodes.key_rope, value("k_rope"));
        let cache = TensorType::Cache { width: shape.kv_width() as u32 };
        let append = |kind| TensorOp::KvAppend { layer: index as u32, kind };
        let keys = self.push(append(CacheKind::Key), &[k], cache, nodes.key_append, value("keys"));
        let values = self.push(append(CacheKind::Value), &[v], cache, nodes.value_append, value("values"));
        let rows = TensorType::Rows { heads };
        let op = TensorOp::Scores { heads, kv_heads, scale: shape.attention_scale };
        let scores = self.push(op, &[q, keys], rows, nodes.scores, value("scores"));
        let shares = self.push(TensorOp::Softmax, &[scores], rows, nodes.softmax, value("probabilities"));
        let op = TensorOp::Mix { heads, kv_heads };
        let mixed = self.vector(op, &[shares, values], shape.query_width(), nodes.mix, value("mixed"));
        let output = self.linear(&weight("o"), &layer.output, mixed, value("attention"))?;
        Ok(self.vector(TensorOp::Add, &[x, output], shape.hidden, layer.sum, value("attention_residual")))
    }

    fn mlp(&mut self, index: usize, layer: &Layer, x: ValueId) -> Result<ValueId, Error> {
        let shape = self.model.hyperparameters.clone();
        let mlp = &layer.mlp;
        for (linear, width) in [(&mlp.gate, shape.mlp), (&mlp.up, shape.mlp), (&mlp.down, shape.hidden)] {
            self.check_width(linear, width)?;
        }
        let value = |name: &str| format!("layers.{index}.{name}");
        let weight = |name: &str| format!("layers.{index}.mlp.{name}_proj");
        let normed = self.norm(&value("post_attention_layernorm"), &mlp.norm, x, value("mlp_norm"))?;
        let gate = self.linear(&weight("gate"), &mlp.gate, normed, value("gate"))?;
        let gate = self.vector(TensorOp::Silu, &[gate], shape.mlp, mlp.sigmoid, value("silu"));
        let up = self.linear(&weight("up"), &mlp.up, normed, value("up"))?;
        let product = self.vector(TensorOp::Mul, &[gate, up], shape.mlp, mlp.product, value("gated"));
        let down = self.linear(&weight("down"), &mlp.down, product, value("mlp"))?;
        Ok(self.vector(TensorOp::Add, &[x, down], shape.hidden, mlp.sum, value("residual")))
    }

    /// Checks that a linear layer gives so many entries, and not one that is broadcast.
    fn check_width(&self, linear: &Linear, width: usize) -> Result<(), Error> {
        if linear.outputs() == width {
            return Ok(());
        }
        let message = format!("it gives {} entries instead of {width}", linear.outputs());
        Err(self.decoder.specialised.not_llama(linear.node, message))
    }

    fn norm(&mut self, weight: &str, norm: &Norm, x: ValueId, name: String) -> Result<ValueId, Error> {
        let hidden = self.model.hyperparameters.hidden;
        let gamma = self.decoder.specialised.value(norm.gamma).shape();
        if norm.epsilon < 0.0 {
            let message = format!("the norm's ε is {}, which is negative", norm.epsilon);
            return Err(self.decoder.specialised.not_llama(norm.node, message));
        }
        if gamma.iter().product::<usize>() != hidden {
            let message = format!("the norm's factors have shape {gamma:?} instead of [{hidden}]");
            return Err(self.decoder.specialised.not_llama(norm.node, message));
        }
        let values =
            if self.shapes_only { Vec::new() } else { self.decoder.specialised.resolve(norm.gamma)?.into_f32() };
        let weight = self.weight(weight, vec![hidden], values, norm.node)?;
        Ok(self.vector(TensorOp::RmsNorm { weight, epsilon: norm.epsilon }, &[x], hidden, norm.node, name))
    }

    fn linear(&mut self, weight: &str, linear: &Linear, x: ValueId, name: String) -> Result<ValueId, Error> {
        let matrix = self.matrix(weight, linear)?;
        let bias = if self.shapes_only && linear.has_bias() {
            Some(Vec::new())
        } else {
            linear.bias_values(&self.decoder.specialised)?
        };
        let shape = vec![linear.outputs()];
        let bias = bias.map(|values| self.weight(&format!("{weight}.bias"), shape, values, linear.node)).transpose()?;
        let op = TensorOp::Linear { weight: matrix, bias };
        Ok(self.vector(op, &[x], linear.outputs(), linear.node, name))
    }

    fn matrix(&mut self, name: &str, linear: &Linear) -> Result<WeightId, Error> {
        let shape = vec![linear.outputs(), linear.inputs];
        if self.shapes_only {
            return self.weight(name, shape, Vec::new(), linear.node);
        }
        let weights = linear.weights(&self.decoder.specialised)?;
        let values = weights.load(name)?;
        self.check_finite(name, &values, linear.node)?;
        let hash = hash_of(&values);
        self.model.weights.push(Weight { name: name.to_owned(), shape, weights: Some(weights), hash });
        Ok(WeightId(self.model.weights.len() as u32 - 1))
    }

    /// Adds a weight that a node reads, in memory.
    fn weight(&mut self, name: &str, shape: Vec<usize>, values: Vec<f32>, node: usize) -> Result<WeightId, Error> {
        self.check_finite(name, &values, node)?;
        self.model.weights.push(Weight::new(name.to_owned(), shape, values));
        Ok(WeightId(self.model.weights.len() as u32 - 1))
    }

    fn check_finite(&self, name: &str, values: &[f32], node: usize) -> Result<(), Error> {
        let Some(value) = values.iter().find(|value| !value.is_finite()) else { return Ok(()) };
        let message = format!("its weight `{name}` holds the value {value}");
        Err(self.decoder.specialised.not_llama(node, message))
    }

    fn vector(&mut self, op: TensorOp, inputs: &[ValueId], width: usize, node: usize, name: String) -> ValueId {
        self.push(op, inputs, TensorType::Vector { width: width as u32 }, node, name)
    }

    /// Appends an op that came from an ONNX node.
    fn push(&mut self, op: TensorOp, inputs: &[ValueId], ty: TensorType, node: usize, name: String) -> ValueId {
        let node = &self.decoder.specialised.graph.nodes[node];
        let graph = &mut self.model.graph;
        let origin = graph.intern_origin(Origin { node: node.name.clone(), op_type: node.op_type.clone() });
        let (id, results) = graph.add_node(op, inputs.to_vec(), vec![ty], Some(origin), None);
        graph.body.ops.push(id);
        graph.values[results[0].index()].name = name;
        results[0]
    }
}
