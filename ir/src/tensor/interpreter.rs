//! Executes a tensor model in the clear, in double precision over the model's single-precision weights.

use super::{CacheKind, TensorModel, TensorOp, Weight};
use crate::Error;
use crate::graph::{Node, ValueId};

/// A session in the clear: a model, its caches, and the values of the last step.
#[derive(Clone, Debug)]
pub struct Interpreter<'m> {
    model: &'m TensorModel,
    /// Keys of each layer, `[tokens][width]`.
    keys: Vec<Vec<f64>>,
    /// Values of each layer, `[tokens][width]`.
    values: Vec<Vec<f64>>,
    /// The last step's values; those of cache type stay empty, since the caches hold them.
    last: Vec<Vec<f64>>,
    position: usize,
}

impl<'m> Interpreter<'m> {
    /// An empty session.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the model breaks an invariant, [`Error::Execution`] if it was loaded without its values.
    pub fn new(model: &'m TensorModel) -> Result<Self, Error> {
        super::verify(model)?;
        if !model.has_values() {
            return Err(Error::Execution("the model was loaded for its shapes only".to_owned()));
        }
        let layers = model.hyperparameters.layers;
        Ok(Self {
            model,
            keys: vec![Vec::new(); layers],
            values: vec![Vec::new(); layers],
            last: vec![Vec::new(); model.graph.values.len()],
            position: 0,
        })
    }

    /// Number of tokens so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Forgets all tokens.
    pub fn reset(&mut self) {
        self.keys.iter_mut().chain(&mut self.values).for_each(Vec::clear);
        self.position = 0;
    }

    /// A cache, `[tokens][kv_heads][head_dim]`; keys are stored after the rotary embedding.
    pub fn cache(&self, layer: usize, kind: CacheKind) -> &[f64] {
        match kind {
            CacheKind::Key => &self.keys[layer],
            CacheKind::Value => &self.values[layer],
        }
    }

    /// What the last step gave a value: a vector, or rows as `[heads][tokens]`; a cache's whole contents. Empty ahead
    /// of the first step, and for the token.
    pub fn value(&self, id: ValueId) -> &[f64] {
        match self.model.definition(id).map(|op| self.model.graph.node(op).op) {
            Some(TensorOp::KvAppend { layer, kind }) => self.cache(layer as usize, kind),
            _ => &self.last[id.index()],
        }
    }

    /// Feeds one token and returns the logits of the next.
    ///
    /// # Errors
    /// [`Error::Execution`] if the token is not in the vocabulary or the context is full.
    pub fn step(&mut self, token: u32) -> Result<Vec<f64>, Error> {
        let shape = &self.model.hyperparameters;
        if token as usize >= shape.vocabulary {
            return Err(Error::Execution(format!("token {token} is not among the {} known", shape.vocabulary)));
        }
        if self.position >= shape.context {
            return Err(Error::Execution(format!("the context of {} tokens is full", shape.context)));
        }
        let model = self.model;
        for &op in &model.graph.body.ops {
            let node = model.graph.node(op);
            let result = self.evaluate(node, token as usize);
            self.last[node.results[0].index()] = result;
        }
        self.position += 1;
        Ok(self.last[model.graph.body.yields[0].index()].clone())
    }

    fn evaluate(&mut self, node: &Node<TensorOp>, token: usize) -> Vec<f64> {
        let model = self.model;
        if let TensorOp::KvAppend { layer, kind } = node.op {
            let appended = &self.last[node.inputs[0].index()];
            let cache = match kind {
                CacheKind::Key => &mut self.keys[layer as usize],
                CacheKind::Value => &mut self.values[layer as usize],
            };
            cache.extend_from_slice(appended);
            return Vec::new();
        }
        let operand = |index: usize| self.value(node.inputs[index]);
        match node.op {
            TensorOp::Embedding { weight } => {
                model.weight(weight).row(token).iter().map(|&value| f64::from(value)).collect()
            }
            TensorOp::RmsNorm { weight, epsilon } => {
                let x = operand(0);
                let factor = 1.0 / (mean_square(x) + epsilon).sqrt();
                x.iter().zip(&model.weight(weight).values).map(|(x, &gamma)| x * factor * f64::from(gamma)).collect()
            }
            TensorOp::Linear { weight, bias: None } | TensorOp::LmHead { weight } => {
                product(model.weight(weight), operand(0))
            }
            TensorOp::Linear { weight, bias: Some(bias) } => {
                let mut result = product(model.weight(weight), operand(0));
                result.iter_mut().zip(&model.weight(bias).values).for_each(|(sum, &bias)| *sum += f64::from(bias));
                result
            }
            TensorOp::Rope { .. } => self.rotate(operand(0)),
            TensorOp::Scores { heads, kv_heads, scale } => {
                let (q, keys) = (operand(0), operand(1));
                let (dim, width) = (model.hyperparameters.head_dim, model.hyperparameters.kv_width());
                let group = (heads / kv_heads) as usize;
                let mut scores = Vec::with_capacity(heads as usize * keys.len() / width);
                for (head, q) in q.chunks_exact(dim).enumerate() {
                    let offset = head / group * dim;
                    scores.extend(keys.chunks_exact(width).map(|key| scale * dot(q, &key[offset..offset + dim])));
                }
                scores
            }
            TensorOp::Softmax => {
                let rows = operand(0);
                rows.chunks_exact(self.position + 1).flat_map(softmax).collect()
            }
            TensorOp::Mix { heads, kv_heads } => {
                let (rows, values) = (operand(0), operand(1));
                let (dim, width) = (model.hyperparameters.head_dim, model.hyperparameters.kv_width());
                let group = (heads / kv_heads) as usize;
                let mut mixed = vec![0.0; heads as usize * dim];
                for (head, row) in rows.chunks_exact(self.position + 1).enumerate() {
                    let offset = head / group * dim;
                    let target = &mut mixed[head * dim..(head + 1) * dim];
                    for (share, value) in row.iter().zip(values.chunks_exact(width)) {
                        for (sum, entry) in target.iter_mut().zip(&value[offset..offset + dim]) {
                            *sum += share * entry;
                        }
                    }
                }
                mixed
            }
            TensorOp::Silu => operand(0).iter().map(|x| x / (1.0 + (-x).exp())).collect(),
            TensorOp::Mul => operand(0).iter().zip(operand(1)).map(|(a, b)| a * b).collect(),
            TensorOp::Add => operand(0).iter().zip(operand(1)).map(|(a, b)| a + b).collect(),
            TensorOp::KvAppend { .. } => Vec::new(),
        }
    }

    /// Turns the pairs (i, i + h/2) of each head by the angles of the current position.
    fn rotate(&self, x: &[f64]) -> Vec<f64> {
        let (table, pairs) = (&self.model.rope, self.model.rope.pairs);
        let mut rotated = vec![0.0; x.len()];
        for (source, target) in x.chunks_exact(2 * pairs).zip(rotated.chunks_exact_mut(2 * pairs)) {
            for pair in 0..pairs {
                let (cosine, sine) = table.at(self.position, pair);
                let (cosine, sine) = (f64::from(cosine), f64::from(sine));
                let (first, second) = (source[pair], source[pair + pairs]);
                target[pair] = first * cosine - second * sine;
                target[pair + pairs] = second * cosine + first * sine;
            }
        }
        rotated
    }
}

/// The mean of the squares of x.
pub fn mean_square(x: &[f64]) -> f64 {
    dot(x, x) / x.len() as f64
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn product(weight: &Weight, x: &[f64]) -> Vec<f64> {
    weight
        .values
        .chunks_exact(weight.columns())
        .map(|row| row.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum())
        .collect()
}

fn softmax(row: &[f64]) -> Vec<f64> {
    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exponentials: Vec<f64> = row.iter().map(|x| (x - largest).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.into_iter().map(|x| x / sum).collect()
}
