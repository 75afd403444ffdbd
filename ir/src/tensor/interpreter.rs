//! Executes a tensor model in the clear, in double precision over the model's single-precision weights: one token, or
//! several at once, for which the weights are read once.

use super::{CacheKind, TensorModel, TensorOp, Weight};
use crate::Error;
use crate::graph::{Node, ValueId};

/// A session in the clear: a model, its caches, and the values of the last tokens fed.
#[derive(Clone, Debug)]
pub struct Interpreter<'m> {
    model: &'m TensorModel,
    /// Keys of each layer, `[tokens][width]`.
    keys: Vec<Vec<f64>>,
    /// Values of each layer, `[tokens][width]`.
    values: Vec<Vec<f64>>,
    /// By value and token fed last: its entries. Those of cache type stay empty, since the caches hold them.
    last: Vec<Vec<Vec<f64>>>,
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
        self.last.iter_mut().for_each(Vec::clear);
        self.position = 0;
    }

    /// A cache, `[tokens][kv_heads][head_dim]`; keys are stored after the rotary embedding.
    pub fn cache(&self, layer: usize, kind: CacheKind) -> &[f64] {
        match kind {
            CacheKind::Key => &self.keys[layer],
            CacheKind::Value => &self.values[layer],
        }
    }

    /// What the last token gave a value: a vector, or rows as `[heads][tokens]`; a cache's whole contents. Empty ahead of the
    /// first token, and for the token itself.
    pub fn value(&self, id: ValueId) -> &[f64] {
        match self.model.definition(id).map(|op| self.model.graph.node(op).op) {
            Some(TensorOp::KvAppend { layer, kind }) => self.cache(layer as usize, kind),
            _ => self.last[id.index()].last().map_or(&[], Vec::as_slice),
        }
    }

    /// What each of the tokens of the last [`Self::feed`] gave a value; nothing for a cache and for the token itself.
    pub fn fed(&self, id: ValueId) -> &[Vec<f64>] {
        &self.last[id.index()]
    }

    /// The rows, one a head, that the tokens of the last [`Self::feed`] gave a value.
    pub fn rows(&self, id: ValueId) -> impl Iterator<Item = &[f64]> {
        let fed = self.fed(id);
        let first = self.position - fed.len();
        fed.iter().enumerate().flat_map(move |(index, rows)| rows.chunks_exact(first + index + 1))
    }

    /// A sequence, up to the context, in portions to be fed one after another: enough tokens to read weights seldom, and few
    /// enough for their values to be held.
    pub fn portions<'s>(&self, sequence: &'s [u32]) -> impl Iterator<Item = &'s [u32]> + use<'s> {
        const PORTION: usize = 32;
        sequence[..sequence.len().min(self.model.hyperparameters.context)].chunks(PORTION)
    }

    /// Feeds one token and returns the logits of the next.
    ///
    /// # Errors
    /// [`Error::Execution`] if the token is not in the vocabulary or the context is full.
    pub fn step(&mut self, token: u32) -> Result<Vec<f64>, Error> {
        Ok(self.feed(&[token])?.last().cloned().unwrap_or_default())
    }

    /// Feeds tokens, all through a layer ahead of the next one, and returns the logits after each of them.
    ///
    /// # Errors
    /// [`Error::Execution`] if a token is not in the vocabulary or the context has no room for them.
    pub fn feed(&mut self, tokens: &[u32]) -> Result<&[Vec<f64>], Error> {
        let shape = &self.model.hyperparameters;
        if let Some(token) = tokens.iter().find(|token| **token as usize >= shape.vocabulary) {
            return Err(Error::Execution(format!("token {token} is not among the {} known", shape.vocabulary)));
        }
        if self.position + tokens.len() > shape.context {
            return Err(Error::Execution(format!("the context of {} tokens is full", shape.context)));
        }
        let model = self.model;
        for &op in &model.graph.body.ops {
            let node = model.graph.node(op);
            let result = self.evaluate(node, tokens);
            self.last[node.results[0].index()] = result;
        }
        self.position += tokens.len();
        Ok(&self.last[model.graph.body.yields[0].index()])
    }

    fn evaluate(&mut self, node: &Node<TensorOp>, tokens: &[u32]) -> Vec<Vec<f64>> {
        let model = self.model;
        let operand = |index: usize| self.last[node.inputs[index].index()].as_slice();
        let each = |f: &dyn Fn(&[f64]) -> Vec<f64>| operand(0).iter().map(|x| f(x)).collect();
        let pairs = |f: fn(f64, f64) -> f64| {
            let pair = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(a, b)| f(*a, *b)).collect();
            operand(0).iter().zip(operand(1)).map(pair).collect()
        };
        match node.op {
            TensorOp::Embedding { weight } => {
                let row =
                    |token: &u32| model.weight(weight).row(*token as usize).iter().map(|&x| f64::from(x)).collect();
                tokens.iter().map(row).collect()
            }
            TensorOp::RmsNorm { weight, epsilon } => each(&|x| {
                let factor = 1.0 / (mean_square(x) + epsilon).sqrt();
                x.iter().zip(&model.weight(weight).values).map(|(x, &gamma)| x * factor * f64::from(gamma)).collect()
            }),
            TensorOp::Linear { weight, bias: None } | TensorOp::LmHead { weight } => {
                products(model.weight(weight), operand(0))
            }
            TensorOp::Linear { weight, bias: Some(bias) } => {
                let mut results = products(model.weight(weight), operand(0));
                for result in &mut results {
                    result.iter_mut().zip(&model.weight(bias).values).for_each(|(sum, &bias)| *sum += f64::from(bias));
                }
                results
            }
            TensorOp::Rope { .. } => {
                let turned = operand(0).iter().enumerate().map(|(index, x)| self.rotate(x, self.position + index));
                turned.collect()
            }
            TensorOp::KvAppend { layer, kind } => {
                let appended = operand(0).concat();
                match kind {
                    CacheKind::Key => self.keys[layer as usize].extend(appended),
                    CacheKind::Value => self.values[layer as usize].extend(appended),
                }
                Vec::new()
            }
            TensorOp::Scores { heads, kv_heads, scale } => {
                let (dim, width) = (model.hyperparameters.head_dim, model.hyperparameters.kv_width());
                let (group, keys) = ((heads / kv_heads) as usize, self.value(node.inputs[1]));
                let rows = operand(0).iter().enumerate().map(|(index, q)| {
                    let known = &keys[..(self.position + index + 1) * width];
                    let mut scores = Vec::with_capacity(heads as usize * known.len() / width);
                    for (head, q) in q.chunks_exact(dim).enumerate() {
                        let offset = head / group * dim;
                        scores.extend(known.chunks_exact(width).map(|key| scale * dot(q, &key[offset..offset + dim])));
                    }
                    scores
                });
                rows.collect()
            }
            TensorOp::Softmax => {
                let rows = operand(0)
                    .iter()
                    .enumerate()
                    .map(|(index, rows)| rows.chunks_exact(self.position + index + 1).flat_map(softmax).collect());
                rows.collect()
            }
            TensorOp::Mix { heads, kv_heads } => {
                let (dim, width) = (model.hyperparameters.head_dim, model.hyperparameters.kv_width());
                let (group, values) = ((heads / kv_heads) as usize, self.value(node.inputs[1]));
                let rows = operand(0).iter().enumerate().map(|(index, rows)| {
                    let mut mixed = vec![0.0; heads as usize * dim];
                    for (head, row) in rows.chunks_exact(self.position + index + 1).enumerate() {
                        let offset = head / group * dim;
                        let target = &mut mixed[head * dim..(head + 1) * dim];
                        for (share, value) in row.iter().zip(values.chunks_exact(width)) {
                            for (sum, entry) in target.iter_mut().zip(&value[offset..offset + dim]) {
                                *sum += share * entry;
                            }
                        }
                    }
                    mixed
                });
                rows.collect()
            }
            TensorOp::Silu => each(&|x| x.iter().map(|x| x / (1.0 + (-x).exp())).collect()),
            TensorOp::Mul => pairs(|a, b| a * b),
            TensorOp::Add => pairs(|a, b| a + b),
        }
    }

    /// Turns the pairs (i, i + h/2) of each head by the angles of a position.
    fn rotate(&self, x: &[f64], position: usize) -> Vec<f64> {
        let (table, pairs) = (&self.model.rope, self.model.rope.pairs);
        let mut rotated = vec![0.0; x.len()];
        for (source, target) in x.chunks_exact(2 * pairs).zip(rotated.chunks_exact_mut(2 * pairs)) {
            for pair in 0..pairs {
                let (cosine, sine) = table.at(position, pair);
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

/// Sums are made in this many parts, which a processor adds at once.
const LANES: usize = 8;

fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f64 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// W·x for each x. A row of the weights is read, and widened, once for all of them.
fn products(weight: &Weight, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let mut results = vec![vec![0.0; weight.rows()]; x.len()];
    let mut wide = vec![0.0; weight.columns()];
    for (index, row) in weight.values.chunks_exact(weight.columns()).enumerate() {
        wide.iter_mut().zip(row).for_each(|(wide, &value)| *wide = f64::from(value));
        for (result, x) in results.iter_mut().zip(x) {
            result[index] = dot(&wide, x);
        }
    }
    results
}

fn softmax(row: &[f64]) -> Vec<f64> {
    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exponentials: Vec<f64> = row.iter().map(|x| (x - largest).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.into_iter().map(|x| x / sum).collect()
}
