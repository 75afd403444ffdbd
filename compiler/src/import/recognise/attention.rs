//! Attention: written out with two matrix products around a softmax, or as one of two operations.

use std::sync::Arc;

use super::{Linear, Norm, Recogniser, RopeSource, Signal, Stream, Value, same_entries};
use crate::Error;
use crate::import::evaluate::axis_index;

/// An attention layer.
#[derive(Clone, Debug)]
pub(in crate::import) struct Attention {
    pub(in crate::import) norm: Norm,
    pub(in crate::import) query: Linear,
    pub(in crate::import) key: Linear,
    pub(in crate::import) value: Linear,
    pub(in crate::import) output: Linear,
    /// Sources of the rotary tables of queries and keys.
    pub(in crate::import) rope: [RopeSource; 2],
    pub(in crate::import) heads: usize,
    pub(in crate::import) kv_heads: usize,
    pub(in crate::import) head_dim: usize,
    /// Factor of the scores.
    pub(in crate::import) scale: f64,
    /// The nodes that the parts come from.
    pub(in crate::import) nodes: AttentionNodes,
    /// The node of the sum with the residual stream.
    pub(in crate::import) sum: usize,
}

/// The node of each step.
#[derive(Clone, Copy, Debug)]
pub(in crate::import) struct AttentionNodes {
    pub(in crate::import) query_rope: usize,
    pub(in crate::import) key_rope: usize,
    pub(in crate::import) key_append: usize,
    pub(in crate::import) value_append: usize,
    pub(in crate::import) scores: usize,
    pub(in crate::import) softmax: usize,
    pub(in crate::import) mix: usize,
}

/// Attention proper: from queries, keys and values to the mixed values.
struct Core {
    query: Signal,
    key: Signal,
    value: Signal,
    rope: [RopeSource; 2],
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    scale: f64,
    nodes: AttentionNodes,
}

/// Extents of a written-out product of queries with keys or of shares with values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extents {
    heads: usize,
    tokens: usize,
    dim: usize,
}

impl Recogniser<'_, '_> {
    /// The attention layer that ends in the stream, and the stream ahead of it.
    pub(super) fn attention(self, stream: &Stream, user: usize) -> Result<(Attention, Stream), Error> {
        let (sum, before, output) = self.summands(stream, user)?;
        let output = self.linear(&output, sum, "the attention's output projection")?;
        let (mix, index) = self.whole_node(&output.input, output.node, "the attention's mixed values")?;
        let core = match (self.node(mix).op_type.as_str(), index) {
            ("MatMul" | "com.microsoft::FusedMatMul", 0) => self.written_out_attention(mix)?,
            ("Attention", 0) => self.attention_op(mix)?,
            ("com.microsoft::GroupQueryAttention", 0) => self.grouped_attention(mix)?,
            _ => return Err(self.fail(mix, "expected attention")),
        };
        let query = self.linear(&core.query, core.nodes.query_rope, "the query projection")?;
        let key = self.linear(&core.key, core.nodes.key_rope, "the key projection")?;
        let value = self.linear(&core.value, core.nodes.value_append, "the value projection")?;
        for other in [&key, &value] {
            if !same_entries(&other.input, &query.input) {
                return Err(self.fail(other.node, "query, key and value projections read different inputs"));
            }
        }
        if value.scale != 1.0 || output.scale != 1.0 {
            return Err(self.fail(value.node, "values are scaled"));
        }
        let widths = (query.outputs(), key.outputs(), value.outputs());
        let (heads, kv_heads, head_dim) = (core.heads, core.kv_heads, core.head_dim);
        if widths != (heads * head_dim, kv_heads * head_dim, kv_heads * head_dim) {
            let message =
                format!("{heads} query and {kv_heads} key-value heads of {head_dim} entries do not fit {widths:?}");
            return Err(self.fail(query.node, message));
        }
        let (norm, normed) = self.norm(&query.input, query.node)?;
        self.same_stream(&normed, &before, sum)?;
        let scale = core.scale * query.scale * key.scale;
        let (rope, nodes) = (core.rope, core.nodes);
        Ok((Attention { norm, query, key, value, output, rope, heads, kv_heads, head_dim, scale, nodes, sum }, normed))
    }

    /// softmax(q·Kᵀ)·V with every step a node of its own.
    fn written_out_attention(self, mix: usize) -> Result<Core, Error> {
        let (shares, values, mix_scale) = self.factors_of_product(mix)?;
        let (softmax, _) = self.whole_node(&shares, mix, "a softmax")?;
        if self.node(softmax).op_type != "Softmax" || mix_scale * values.scale != 1.0 {
            return Err(self.fail(softmax, "expected a softmax whose result weighs the values"));
        }
        let scores_signal = self.signal(softmax, 0)?;
        let rank = scores_signal.shape.len();
        if axis_index(self.node(softmax).int("axis").unwrap_or(-1), rank) != Ok(rank.saturating_sub(1)) {
            return Err(self.fail(softmax, "the softmax is not over the tokens"));
        }
        let (scores, _) = self.base_node(&scores_signal, softmax, "attention scores")?;
        let is_product = matches!(self.node(scores).op_type.as_str(), "MatMul" | "com.microsoft::FusedMatMul");
        if !is_product || scores_signal.map.is_some() {
            return Err(self.fail(scores, "expected attention scores, with a mask that leaves past tokens visible"));
        }
        let (queries, keys, scores_scale) = self.factors_of_product(scores)?;
        let tokens = self.specialised.sizes.past + 1;
        let (&[.., key_dim, key_tokens], &[.., value_tokens, value_dim]) =
            (keys.shape.as_slice(), values.shape.as_slice())
        else {
            return Err(self.fail(scores, "expected products of matrices"));
        };
        if (key_tokens, value_tokens, key_dim) != (tokens, tokens, value_dim) || queries.map.is_some() {
            return Err(self.fail(scores, format!("expected scores of one query with {tokens} keys a head")));
        }
        let heads = queries.len() / key_dim.max(1);
        let extents = Extents { heads, tokens, dim: key_dim };
        // Products are batched over heads, or over key-value heads with the group's queries as rows.
        let rows = queries.shape.get(queries.shape.len().saturating_sub(2)).copied().unwrap_or(1);
        let kv_heads = self.check_cache_view(scores, &keys, extents, rows, true)?;
        if self.check_cache_view(mix, &values, extents, rows, false)? != kv_heads {
            return Err(self.fail(mix, "keys and values have different numbers of heads"));
        }
        let (key_append, new_key) = self.appended(&keys, scores, extents)?;
        let (value_append, value) = self.appended(&values, mix, extents)?;
        let query = self.rotated(&queries, key_dim, scores)?;
        let key = self.rotated(&new_key, key_dim, key_append.unwrap_or(scores))?;
        let nodes = AttentionNodes {
            query_rope: query.node,
            key_rope: key.node,
            key_append: key_append.unwrap_or(scores),
            value_append: value_append.unwrap_or(mix),
            scores,
            softmax,
            mix,
        };
        let scale = scores_signal.scale * scores_scale * keys.scale;
        let (rope, head_dim) = ([query.source, key.source], key_dim);
        Ok(Core { query: query.input, key: key.input, value, rope, heads, kv_heads, head_dim, scale, nodes })
    }

    /// Left and right factor of a matrix product, with its own factor; transposed ones are made plain.
    fn factors_of_product(self, node: usize) -> Result<(Signal, Signal, f64), Error> {
        let onnx = self.node(node);
        let flag = |name: &str| onnx.int(name).unwrap_or(0) != 0;
        if flag("transA") || flag("transBatchA") || flag("transBatchB") {
            return Err(self.fail(node, "expected an attention product without transposed batches"));
        }
        let left = self.signal(node, 0)?;
        let mut right = self.signal(node, 1)?;
        if flag("transB") {
            right = transposed(&right);
        }
        Ok((left, right, f64::from(onnx.float("alpha").unwrap_or(1.0))))
    }

    /// Checks that a factor holds, for each head, the keys (transposed) or values of the head's group, from a cache
    /// `[kv_heads, tokens, dim]`; returns the number of key-value heads.
    fn check_cache_view(
        self,
        node: usize,
        signal: &Signal,
        extents: Extents,
        rows: usize,
        transposed: bool,
    ) -> Result<usize, Error> {
        let Extents { heads, tokens, dim } = extents;
        let kv_heads = signal.base_len / (tokens * dim).max(1);
        let batches = signal.len() / (tokens * dim).max(1);
        let fits = kv_heads > 0
            && heads.is_multiple_of(kv_heads)
            && signal.base_len == kv_heads * tokens * dim
            && batches * rows == heads;
        if !fits {
            return Err(self.fail(node, format!("a cache of {} entries does not fit {heads} heads", signal.base_len)));
        }
        let group = heads / kv_heads;
        let good = signal.indices().iter().enumerate().all(|(index, &entry)| {
            let (batch, first, second) = if transposed {
                (index / (tokens * dim), index % tokens, index / tokens % dim)
            } else {
                (index / (tokens * dim), index / dim % tokens, index % dim)
            };
            let head = batch * rows / group;
            entry == ((head * tokens + first) * dim + second + 1) as i64
        });
        if good { Ok(kv_heads) } else { Err(self.fail(node, "keys or values are not those of the head's group")) }
    }

    /// What a cache gains in this step, and the node that appends it, if there is a cache.
    fn appended(self, cache: &Signal, user: usize, extents: Extents) -> Result<(Option<usize>, Signal), Error> {
        let (node, _) = self.base_node(cache, user, "keys and values of this step")?;
        if self.node(node).op_type != "Concat" {
            let whole = Signal { shape: vec![cache.base_len], map: None, scale: 1.0, ..cache.clone() };
            return if extents.tokens == 1 {
                Ok((None, whole))
            } else {
                Err(self.fail(node, "expected past and new keys or values, concatenated"))
            };
        }
        let past = self.signal(node, 0)?;
        let new = self.signal(node, 1)?;
        let rank = past.shape.len();
        let on_tokens = axis_index(self.node(node).int("axis").unwrap_or(0), rank) == Ok(rank.saturating_sub(2));
        let is_past = self.specialised.producer(past.base).is_none() && past.is_whole();
        if !on_tokens || !is_past || self.node(node).inputs.len() != 2 || new.len() * extents.tokens != cache.base_len {
            return Err(self.fail(node, "expected past keys or values followed by those of this token"));
        }
        Ok((Some(node), new))
    }

    /// The operation `Attention` of operator set 23 with four-dimensional operands.
    fn attention_op(self, node: usize) -> Result<Core, Error> {
        let onnx = self.node(node);
        let (queries, keys, values) = (self.signal(node, 0)?, self.signal(node, 1)?, self.signal(node, 2)?);
        if onnx.float("softcap").unwrap_or(0.0) != 0.0 || onnx.input(4).is_some() {
            return Err(self.fail(node, "soft capping and caches inside the operation are not supported"));
        }
        let (&[1, heads, 1, dim], &[1, stored_heads, tokens, _]) = (queries.shape.as_slice(), keys.shape.as_slice())
        else {
            return Err(self.fail(node, "expected operands [batch, heads, tokens, dimension]"));
        };
        let visible = match self.operand(node, 3) {
            Value::Unknown => true,
            Value::Constant(mask) if mask.kind().is_float() => mask.to_f64().iter().all(|&entry| entry == 0.0),
            Value::Constant(mask) => mask.to_bools().iter().all(|&entry| entry),
            _ => false,
        };
        if !visible
            || queries.map.is_some()
            || values.scale != 1.0
            || stored_heads == 0
            || !heads.is_multiple_of(stored_heads)
        {
            return Err(self.fail(node, "expected plain attention to all past tokens"));
        }
        let extents = Extents { heads, tokens, dim };
        let rows = heads / stored_heads;
        let kv_heads = self.check_cache_view(node, &transposed(&keys), extents, rows, true)?;
        if self.check_cache_view(node, &values, extents, rows, false)? != kv_heads {
            return Err(self.fail(node, "keys and values have different numbers of heads"));
        }
        let (key_append, new_key) = self.appended(&keys, node, extents)?;
        let (value_append, value) = self.appended(&values, node, extents)?;
        let query = self.rotated(&queries, dim, node)?;
        let key = self.rotated(&new_key, dim, node)?;
        let nodes = AttentionNodes {
            query_rope: query.node,
            key_rope: key.node,
            key_append: key_append.unwrap_or(node),
            value_append: value_append.unwrap_or(node),
            scores: node,
            softmax: node,
            mix: node,
        };
        let scale = onnx.float("scale").map_or_else(|| 1.0 / (dim as f64).sqrt(), f64::from) * keys.scale;
        let rope = [query.source, key.source];
        Ok(Core { query: query.input, key: key.input, value, rope, heads, kv_heads, head_dim: dim, scale, nodes })
    }

    /// onnxruntime's `GroupQueryAttention`, with the rotary embedding inside and the projections packed or not.
    fn grouped_attention(self, node: usize) -> Result<Core, Error> {
        let onnx = self.node(node);
        let extent = |name: &str| onnx.int(name).and_then(|value| usize::try_from(value).ok()).unwrap_or(0);
        let (heads, kv_heads) = (extent("num_heads"), extent("kv_num_heads"));
        let unusual = onnx.int("rotary_interleaved").unwrap_or(0) != 0
            || onnx.int("local_window_size").unwrap_or(-1) != -1
            || onnx.float("softcap").unwrap_or(0.0) != 0.0
            || onnx.int("smooth_softmax").unwrap_or(0) > 0
            || onnx.int("do_rotary").unwrap_or(0) == 0
            || (9..onnx.inputs.len()).any(|input| onnx.input(input).is_some());
        if unusual || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(
                self.fail(node, "expected plain attention over all past tokens with its rotary embedding inside")
            );
        }
        let queries = self.signal(node, 0)?;
        let packed = onnx.input(1).is_none();
        let head_dim = queries.len() / if packed { heads + 2 * kv_heads } else { heads };
        let (query, key, value) = if packed {
            let indices = queries.indices();
            let part = |first: usize, count: usize| {
                let positions = indices[first * head_dim..(first + count) * head_dim].to_vec();
                let shape = vec![1, 1, count * head_dim];
                Signal { shape, map: Some(Arc::new(positions)), ..queries.clone() }
            };
            (part(0, heads), part(heads, kv_heads), part(heads + kv_heads, kv_heads))
        } else {
            (queries, self.signal(node, 1)?, self.signal(node, 2)?)
        };
        let (Some(cosines), Some(sines)) = (onnx.input(7), onnx.input(8)) else {
            return Err(self.fail(node, "it has no cosines or sines"));
        };
        let scale = onnx.float("scale").filter(|&scale| scale != 0.0);
        let scale = scale.map_or_else(|| 1.0 / (head_dim as f64).sqrt(), f64::from);
        let nodes = AttentionNodes {
            query_rope: node,
            key_rope: node,
            key_append: node,
            value_append: node,
            scores: node,
            softmax: node,
            mix: node,
        };
        let rope = [RopeSource::Cache { cosines, sines }; 2];
        Ok(Core { query, key, value, rope, heads, kv_heads, head_dim, scale, nodes })
    }
}

/// A signal with its last two axes swapped.
fn transposed(signal: &Signal) -> Signal {
    let rank = signal.shape.len();
    let (rows, columns) = (signal.shape[rank - 2], signal.shape[rank - 1]);
    let indices = signal.indices();
    let swapped = (0..indices.len()).map(|index| {
        let (block, column, row) = (index / (rows * columns), index / rows % columns, index % rows);
        indices[block * rows * columns + row * columns + column]
    });
    let map = Some(Arc::new(swapped.collect()));
    let mut shape = signal.shape.clone();
    shape.swap(rank - 2, rank - 1);
    Signal { shape, map, ..signal.clone() }
}
