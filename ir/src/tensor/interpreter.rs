//! Executes a tensor model in the clear, in double precision over the model's single-precision weights: one token, or
//! several at once, of one session or of many, for which the weights are read once.

use std::ops::Range;
use std::slice::Chunks;
use std::sync::Arc;

use rayon::prelude::*;

use super::products::{dot, products};
use super::{CacheKind, TensorModel, TensorOp, WeightId};
use crate::Error;
use crate::graph::{Node, ValueId};
use crate::weights::Kept;

/// The caches of one session.
#[derive(Clone, Debug)]
struct Session {
    /// Keys of each layer, `[tokens][width]`.
    keys: Vec<Vec<f64>>,
    /// Values of each layer, `[tokens][width]`.
    values: Vec<Vec<f64>>,
    position: usize,
}

impl Session {
    fn cache(&self, layer: usize, kind: CacheKind) -> &[f64] {
        match kind {
            CacheKind::Key => &self.keys[layer],
            CacheKind::Value => &self.values[layer],
        }
    }
}

/// Sessions in the clear: a model, their caches, and the values of the last tokens fed. Most callers have one session.
#[derive(Clone, Debug)]
pub struct Interpreter<'m> {
    model: &'m TensorModel,
    /// Entries of weights, which every token uses; shared by forks.
    entries: Arc<Kept>,
    sessions: Vec<Session>,
    /// By token fed last: its session and its position.
    places: Vec<(usize, usize)>,
    /// By value and token fed last: its entries. Those of cache type stay empty, since the caches hold them.
    last: Vec<Vec<Vec<f64>>>,
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
        let session = Session { keys: vec![Vec::new(); layers], values: vec![Vec::new(); layers], position: 0 };
        Ok(Self {
            model,
            entries: Arc::default(),
            sessions: vec![session],
            places: Vec::new(),
            last: vec![Vec::new(); model.graph.values.len()],
        })
    }

    /// Number of tokens of the first session so far.
    pub fn position(&self) -> usize {
        self.sessions[0].position
    }

    /// Forgets all tokens.
    pub fn reset(&mut self) {
        for session in &mut self.sessions {
            session.keys.iter_mut().chain(&mut session.values).for_each(Vec::clear);
            session.position = 0;
        }
        self.last.iter_mut().for_each(Vec::clear);
        self.places.clear();
    }

    /// A cache of the first session, `[tokens][kv_heads][head_dim]`; keys are stored after the rotary embedding.
    pub fn cache(&self, layer: usize, kind: CacheKind) -> &[f64] {
        self.sessions[0].cache(layer, kind)
    }

    /// What the last token gave a value: a vector, or rows as `[heads][tokens]`; the whole contents of the first session's
    /// cache. Empty ahead of the first token, and for the token itself.
    pub fn value(&self, id: ValueId) -> &[f64] {
        match self.cache_of(id) {
            Some((layer, kind)) => self.cache(layer, kind),
            None => self.last[id.index()].last().map_or(&[], Vec::as_slice),
        }
    }

    /// The layer and the kind of a value of cache type.
    fn cache_of(&self, id: ValueId) -> Option<(usize, CacheKind)> {
        match self.model.definition(id).map(|op| self.model.graph.node(op).op) {
            Some(TensorOp::KvAppend { layer, kind }) => Some((layer as usize, kind)),
            _ => None,
        }
    }

    /// What each of the tokens fed last gave a value; nothing for a cache and for the token itself, and logits only for the last
    /// of each session.
    pub fn fed(&self, id: ValueId) -> &[Vec<f64>] {
        &self.last[id.index()]
    }

    /// The session of each of the tokens fed last, and its position there.
    pub fn places(&self) -> &[(usize, usize)] {
        &self.places
    }

    /// The rows, one a head, that each of the tokens fed last gave a value.
    pub fn rows(&self, id: ValueId) -> impl Iterator<Item = &[f64]> {
        self.fed(id).iter().zip(&self.places).flat_map(|(rows, &(_, position))| rows.chunks_exact(position + 1))
    }

    /// Sessions that go on from where the first one is, apart from each other.
    #[must_use]
    pub fn fork(&self, count: usize) -> Self {
        let sessions = vec![self.sessions[0].clone(); count];
        let entries = Arc::clone(&self.entries);
        Self { model: self.model, entries, sessions, places: Vec::new(), last: vec![Vec::new(); self.last.len()] }
    }

    /// Feeds one token and returns the logits of the next.
    ///
    /// # Errors
    /// [`Error::Execution`] if the token is not in the vocabulary or the context is full, and those of
    /// [`Weight::load`](super::Weight::load).
    pub fn step(&mut self, token: u32) -> Result<Vec<f64>, Error> {
        Ok(self.feed(&[token])?.to_vec())
    }

    /// Feeds tokens to the first session, all through a layer ahead of the next one, and returns the logits after the last of
    /// them; nothing for no tokens.
    ///
    /// # Errors
    /// [`Error::Execution`] if a token is not in the vocabulary or the context has no room for them, and those of
    /// [`Weight::load`](super::Weight::load).
    pub fn feed(&mut self, tokens: &[u32]) -> Result<&[f64], Error> {
        Ok(self.feed_each(&[(0, tokens)])?.first().map_or(&[], Vec::as_slice))
    }

    /// Feeds tokens to several sessions, each named once, all through a layer ahead of the next one, and returns the logits
    /// after the last token of each that was given any.
    ///
    /// # Errors
    /// As those of [`Self::feed`].
    pub fn feed_each(&mut self, parts: &[(usize, &[u32])]) -> Result<&[Vec<f64>], Error> {
        let shape = &self.model.hyperparameters;
        let tokens: Vec<u32> = parts.iter().flat_map(|(_, tokens)| tokens.iter().copied()).collect();
        if let Some(token) = tokens.iter().find(|token| **token as usize >= shape.vocabulary) {
            return Err(Error::Execution(format!("token {token} is not among the {} known", shape.vocabulary)));
        }
        let end = |(session, tokens): &(usize, &[u32])| self.sessions[*session].position + tokens.len();
        if parts.iter().any(|part| end(part) > shape.context) {
            return Err(Error::Execution(format!("the context of {} tokens is full", shape.context)));
        }
        self.places.clear();
        for (session, tokens) in parts {
            let Session { position, .. } = &mut self.sessions[*session];
            self.places.extend((*position..*position + tokens.len()).map(|position| (*session, position)));
            *position += tokens.len();
        }
        let model = self.model;
        for (_, node) in model.ops() {
            if let TensorOp::KvAppend { layer, kind } = node.op {
                self.append(layer as usize, kind, node.inputs[0]);
            }
            let result = self.evaluate(node, &tokens)?;
            self.last[node.results[0].index()] = result;
        }
        Ok(&self.last[model.graph.body.yields[0].index()])
    }

    /// Adds what each of the tokens fed last gave a value to a cache of its session.
    fn append(&mut self, layer: usize, kind: CacheKind, value: ValueId) {
        for (entries, &(session, _)) in self.last[value.index()].iter().zip(&self.places) {
            let Session { keys, values, .. } = &mut self.sessions[session];
            let cache = if kind == CacheKind::Key { keys } else { values };
            cache[layer].extend(entries);
        }
    }

    fn evaluate(&self, node: &Node<TensorOp>, tokens: &[u32]) -> Result<Vec<Vec<f64>>, Error> {
        let model = self.model;
        let dim = model.hyperparameters.head_dim;
        let entries = |weight: WeightId| model.weight(weight).load_kept(&self.entries);
        let operand = |index: usize| self.last[node.inputs[index].index()].as_slice();
        let each = |f: &OfToken<'_>| {
            of_each(tokens.len(), |token| {
                let (session, position) = self.places[token];
                f(&operand(0)[token], session, position)
            })
        };
        let pairs = |f: fn(f64, f64) -> f64| {
            let pair = |(a, b): (&f64, &f64)| f(*a, *b);
            of_each(tokens.len(), |token| operand(0)[token].iter().zip(&operand(1)[token]).map(pair).collect())
        };
        Ok(match node.op {
            // The caches hold it.
            TensorOp::KvAppend { .. } => Vec::new(),
            TensorOp::Embedding { weight } => {
                let (entries, width) = (entries(weight)?, model.weight(weight).columns());
                let row =
                    |token: &u32| entries[*token as usize * width..][..width].iter().map(|&x| f64::from(x)).collect();
                tokens.iter().map(row).collect()
            }
            TensorOp::RmsNorm { weight, epsilon } => {
                let gamma = entries(weight)?;
                each(&|x, _, _| {
                    let factor = 1.0 / (mean_square(x) + epsilon).sqrt();
                    x.iter().zip(&*gamma).map(|(x, &gamma)| x * factor * f64::from(gamma)).collect()
                })
            }
            TensorOp::Linear { weight, bias: None } => {
                products(&entries(weight)?, model.weight(weight).columns(), operand(0))
            }
            TensorOp::LmHead { weight } => {
                let last = |index: usize| self.places.get(index + 1).is_none_or(|next| next.0 != self.places[index].0);
                let lasts = operand(0).iter().enumerate().filter(|&(index, _)| last(index));
                let lasts: Vec<Vec<f64>> = lasts.map(|(_, x)| x.clone()).collect();
                products(&entries(weight)?, model.weight(weight).columns(), &lasts)
            }
            TensorOp::Linear { weight, bias: Some(bias) } => {
                let mut results = products(&entries(weight)?, model.weight(weight).columns(), operand(0));
                let bias = entries(bias)?;
                for result in &mut results {
                    result.iter_mut().zip(&*bias).for_each(|(sum, &bias)| *sum += f64::from(bias));
                }
                results
            }
            TensorOp::Rope { .. } => each(&|x, _, position| self.rotate(x, position)),
            TensorOp::Scores { heads, kv_heads, scale } => {
                let (width, group) = (model.hyperparameters.kv_width(), (heads / kv_heads) as usize);
                each(&|q, session, position| {
                    let known = &self.cache_in(session, node.inputs[1])[..(position + 1) * width];
                    let mut scores = Vec::with_capacity(heads as usize * known.len() / width);
                    for (head, q) in q.chunks_exact(dim).enumerate() {
                        let offset = head / group * dim;
                        scores.extend(known.chunks_exact(width).map(|key| scale * dot(q, &key[offset..offset + dim])));
                    }
                    scores
                })
            }
            TensorOp::Softmax => each(&|rows, _, position| rows.chunks_exact(position + 1).flat_map(softmax).collect()),
            TensorOp::Mix { heads, kv_heads } => {
                let (width, group) = (model.hyperparameters.kv_width(), (heads / kv_heads) as usize);
                each(&|rows, session, position| {
                    let values = self.cache_in(session, node.inputs[1]);
                    let mut mixed = vec![0.0; heads as usize * dim];
                    for (head, row) in rows.chunks_exact(position + 1).enumerate() {
                        let offset = head / group * dim;
                        let target = &mut mixed[head * dim..(head + 1) * dim];
                        for (share, value) in row.iter().zip(values.chunks_exact(width)) {
                            for (sum, entry) in target.iter_mut().zip(&value[offset..offset + dim]) {
                                *sum += share * entry;
                            }
                        }
                    }
                    mixed
                })
            }
            TensorOp::Silu => each(&|x, _, _| x.iter().map(|x| x / (1.0 + (-x).exp())).collect()),
            TensorOp::Mul => pairs(|a, b| a * b),
            TensorOp::Add => pairs(|a, b| a + b),
        })
    }

    /// A value of cache type in a session.
    fn cache_in(&self, session: usize, id: ValueId) -> &[f64] {
        self.cache_of(id).map_or(&[], |(layer, kind)| self.sessions[session].cache(layer, kind))
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

/// What is made of a token's entries, given its session and its position.
type OfToken<'f> = dyn Fn(&[f64], usize, usize) -> Vec<f64> + Sync + 'f;

/// Tokens from which on it pays to use all cores for what is done token by token.
const SHARED: usize = 16;

/// f of each of so many tokens.
fn of_each(tokens: usize, f: impl Fn(usize) -> Vec<f64> + Sync) -> Vec<Vec<f64>> {
    if tokens < SHARED { (0..tokens).map(f).collect() } else { (0..tokens).into_par_iter().map(&f).collect() }
}

/// Tokens that are fed at once: enough to read weights seldom, and few enough for their values to be held.
pub const PORTION: usize = 64;

/// Feeds each sequence, up to the context, to a session of its own that begins with a prefix; several short ones at a time.
/// `seen` is told after each portion of the tokens behind the prefix, with the number of the first session's sequence.
///
/// # Errors
/// Those of [`Interpreter::feed`].
pub fn read(
    model: &TensorModel,
    prefix: &[u32],
    sequences: &[&[u32]],
    mut seen: impl FnMut(&Interpreter<'_>, usize),
) -> Result<(), Error> {
    let mut begun = Interpreter::new(model)?;
    begun.feed(prefix)?;
    let context = model.hyperparameters.context;
    let rest = |sequence: &&[u32]| -> Range<usize> {
        let end = sequence.len().min(context);
        prefix.len().min(end)..end
    };
    let mut first = 0;
    while first < sequences.len() {
        let (mut count, mut tokens) = (1, rest(&sequences[first]).len());
        while let Some(next) = sequences.get(first + count)
            && tokens + rest(next).len() <= PORTION
        {
            tokens += rest(next).len();
            count += 1;
        }
        // Only a sequence that is alone has more than one portion.
        let group = &sequences[first..first + count];
        let mut portions: Vec<Chunks<'_, u32>> =
            group.iter().map(|sequence| sequence[rest(sequence)].chunks(PORTION)).collect();
        let mut interpreter = begun.fork(count);
        loop {
            let next = portions.iter_mut().enumerate().filter_map(|(session, part)| Some((session, part.next()?)));
            let fed: Vec<(usize, &[u32])> = next.collect();
            if fed.is_empty() {
                break;
            }
            interpreter.feed_each(&fed)?;
            seen(&interpreter, first);
        }
        first += count;
    }
    Ok(())
}

/// The mean of the squares of x.
pub fn mean_square(x: &[f64]) -> f64 {
    dot(x, x) / x.len() as f64
}

fn softmax(row: &[f64]) -> Vec<f64> {
    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exponentials: Vec<f64> = row.iter().map(|x| (x - largest).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.into_iter().map(|x| x / sum).collect()
}
