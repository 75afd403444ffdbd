//! Builds the tensor stage from a recognised decoder.

use cachemir_ir::graph::{Origin, ValueId};
use cachemir_ir::tensor::{
    CacheKind, Hyperparameters, RopeTable, TensorModel, TensorOp, TensorType, Weight, WeightId, verify,
};

use super::ImportOptions;
use super::companions::Companions;
use super::onnx::Name;
use super::recognise::{Attention, Decoder, Layer, Linear, Norm, RopeSource, past_shape};
use super::specialise::{Sizes, Specialised, Value};
use crate::Error;

/// The longest context that rotary tables are made for.
const LONGEST_CONTEXT: usize = 1 << 20;

/// Builds and verifies the model.
pub(super) fn build(
    decoder: &Decoder<'_>,
    companions: &Companions,
    options: &ImportOptions,
) -> Result<TensorModel, Error> {
    let first = &decoder.layers[0];
    let (heads, kv_heads, head_dim) = (first.attention.heads, first.attention.kv_heads, first.attention.head_dim);
    let context = context(decoder, companions, options)?;
    let mut builder = Builder {
        decoder,
        shapes_only: options.shapes_only,
        model: TensorModel {
            hyperparameters: Hyperparameters {
                hidden: decoder.embedding.weight.inputs,
                layers: decoder.layers.len(),
                heads,
                kv_heads,
                head_dim,
                mlp: first.mlp.gate.outputs(),
                vocabulary: decoder.embedding.weight.outputs(),
                epsilon: decoder.norm.epsilon,
                attention_scale: canonical_scale(first.attention.scale, head_dim),
                context,
                tied_head: false,
            },
            rope: rope_table(decoder, companions, options, context)?,
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
    let rows = decoder.layers.iter().flat_map(|layer| layer.attention.rope).filter_map(|source| match source {
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

/// Cosines and sines for every position, the same for queries and keys of all layers.
fn rope_table(
    decoder: &Decoder<'_>,
    companions: &Companions,
    options: &ImportOptions,
    context: usize,
) -> Result<RopeTable, Error> {
    let head_dim = decoder.layers[0].attention.head_dim;
    let mut known: Vec<RopeSource> = Vec::new();
    let mut table: Option<RopeTable> = None;
    for layer in &decoder.layers {
        let attention = &layer.attention;
        for (source, node) in attention.rope.into_iter().zip([attention.nodes.query_rope, attention.nodes.key_rope]) {
            if known.contains(&source) {
                continue;
            }
            known.push(source);
            let fail = |message: String| decoder.specialised.not_llama(node, message);
            let found = match read_table(decoder, source, head_dim, context)? {
                Some(found) => found,
                None if options.shapes_only => table_from_theta(companions, head_dim, context)?,
                None => return Err(fail("the cosines and sines do not have a row for each position".to_owned())),
            };
            match &table {
                None => table = Some(found),
                Some(table) if *table == found => {}
                Some(_) => {
                    return Err(fail("the rotary embeddings of two layers, or of queries and keys, differ".to_owned()));
                }
            }
        }
    }
    Ok(table.unwrap_or_default())
}

/// Reads the table of one rotary embedding; `None` if its size does not fit or its numbers are not at hand.
fn read_table(
    decoder: &Decoder<'_>,
    source: RopeSource,
    head_dim: usize,
    context: usize,
) -> Result<Option<RopeTable>, Error> {
    let graph = decoder.specialised.graph;
    let pairs = head_dim / 2;
    if let RopeSource::Cache { cosines, sines } = source {
        let read = |name: Name| match decoder.specialised.value(name) {
            Value::Parameter { .. } if Specialised::missing_data(graph).is_some() => Ok(None),
            _ => decoder.specialised.resolve(name).map(Some),
        };
        let (Some(cosines), Some(sines)) = (read(cosines)?, read(sines)?) else {
            return Ok(None);
        };
        let fits = [&cosines, &sines]
            .iter()
            .all(|table| matches!(*table.shape, [rows, columns] if rows >= context && columns == pairs));
        if !fits {
            return Ok(None);
        }
        let first = |mut values: Vec<f32>| {
            values.truncate(context * pairs);
            values
        };
        return Ok(Some(RopeTable { pairs, cosines: first(cosines.into_f32()), sines: first(sines.into_f32()) }));
    }
    let (cosines, sines, positions, width) = match source {
        RopeSource::Doubled { cosines, sines } => (cosines, sines, None, head_dim),
        RopeSource::Rows { cosines, sines, positions } => (cosines, sines, positions, pairs),
        RopeSource::Cache { .. } => return Ok(None),
    };
    let wanted: Vec<Name> = [cosines, sines].into_iter().chain(positions).collect();
    let all = Specialised::new(graph, Sizes { past: 0, sequence: context }, past_shape(graph), Some(&wanted))?;
    let is_constant = |name: &Name| matches!(all.value(*name), Value::Constant(_) | Value::Parameter { .. });
    if !wanted.iter().all(is_constant) {
        return Ok(None);
    }
    let picked: Vec<usize> = match positions {
        None => (0..context).collect(),
        Some(positions) => {
            let positions = all.resolve(positions)?.to_ints();
            // A single position is that of the first token.
            let positions = if positions.len() == 1 { (positions[0]..).take(context).collect() } else { positions };
            positions.into_iter().filter_map(|position| usize::try_from(position).ok()).collect()
        }
    };
    let read = |name: Name| -> Result<Option<Vec<f32>>, Error> {
        let rows = all.resolve(name)?.into_f32();
        let mut result = Vec::with_capacity(context * pairs);
        for &row in &picked {
            let Some(row) = rows.get(row * width..(row + 1) * width) else {
                return Ok(None);
            };
            if width == head_dim && row[..pairs] != row[pairs..] {
                return Ok(None);
            }
            result.extend_from_slice(&row[..pairs]);
        }
        Ok((picked.len() == context).then_some(result))
    };
    match (read(cosines)?, read(sines)?) {
        (Some(cosines), Some(sines)) => Ok(Some(RopeTable { pairs, cosines, sines })),
        _ => Ok(None),
    }
}

/// The usual table, for models loaded without their data: angle p·θ^(−2i/d).
fn table_from_theta(companions: &Companions, head_dim: usize, context: usize) -> Result<RopeTable, Error> {
    let theta = companions.rope_theta.ok_or(Error::BadOption {
        option: "--config",
        message: "without the rotary table's data, config.json must give rope_theta".to_owned(),
    })?;
    let pairs = head_dim / 2;
    let angles = (0..context).flat_map(|position| {
        (0..pairs).map(move |pair| position as f64 * theta.powf(-(2.0 * pair as f64) / head_dim as f64))
    });
    let (cosines, sines) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
    Ok(RopeTable { pairs, cosines, sines })
}

struct Builder<'d, 'g> {
    decoder: &'d Decoder<'g>,
    shapes_only: bool,
    model: TensorModel,
}

impl Builder<'_, '_> {
    fn decoder(&mut self) -> Result<(), Error> {
        let decoder = self.decoder;
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
        if self.shapes_only && embedding.values.is_empty() {
            let specialised = &self.decoder.specialised;
            let roots =
                [&self.decoder.embedding.weight, &self.decoder.head].map(|linear| specialised.root(linear.weight));
            return roots[0] == roots[1];
        }
        embedding.shape == head.shape && embedding.hash == head.hash
    }

    fn attention(&mut self, index: usize, layer: &Attention, x: ValueId) -> Result<ValueId, Error> {
        let shape = self.model.hyperparameters.clone();
        if (layer.heads, layer.kv_heads, layer.head_dim) != (shape.heads, shape.kv_heads, shape.head_dim) {
            return Err(self.decoder.specialised.not_llama(layer.nodes.mix, "layers have different heads"));
        }
        if canonical_scale(layer.scale, layer.head_dim) != shape.attention_scale {
            return Err(self
                .decoder
                .specialised
                .not_llama(layer.nodes.scores, "layers scale their scores differently"));
        }
        let value = |name: &str| format!("layers.{index}.{name}");
        let weight = |name: &str| format!("layers.{index}.self_attn.{name}_proj");
        let (heads, kv_heads) = (shape.heads as u32, shape.kv_heads as u32);
        let nodes = layer.nodes;
        let normed = self.norm(&value("input_layernorm"), &layer.norm, x, value("attention_norm"))?;
        let q = self.linear(&weight("q"), &layer.query, normed, value("q"))?;
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
            if linear.outputs() != width || linear.scale != 1.0 {
                let message = format!("expected {width} outputs without a factor");
                return Err(self.decoder.specialised.not_llama(linear.node, message));
            }
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

    fn norm(&mut self, weight: &str, norm: &Norm, x: ValueId, name: String) -> Result<ValueId, Error> {
        let hidden = self.model.hyperparameters.hidden;
        let gamma = self.decoder.specialised.value(norm.gamma).shape();
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
        let weight = self.matrix(weight, linear)?;
        Ok(self.vector(TensorOp::Linear { weight }, &[x], linear.outputs(), linear.node, name))
    }

    fn matrix(&mut self, name: &str, linear: &Linear) -> Result<WeightId, Error> {
        let values = if self.shapes_only { Vec::new() } else { linear.values(&self.decoder.specialised)? };
        self.weight(name, vec![linear.outputs(), linear.inputs], values, linear.node)
    }

    /// Adds a weight that a node reads.
    fn weight(&mut self, name: &str, shape: Vec<usize>, values: Vec<f32>, node: usize) -> Result<WeightId, Error> {
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(self.decoder.specialised.not_llama(node, format!("its weight holds the value {value}")));
        }
        self.model.weights.push(Weight::new(name.to_owned(), shape, values));
        Ok(WeightId(self.model.weights.len() as u32 - 1))
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
