//! Attention: written out with two matrix products around a softmax, or as one of two operations.

use std::sync::Arc;

use super::cache::Appended;
use super::diagnose::Part;
use super::mask::{MaskStep, Scores};
use super::order::{Features, Order};
use super::{Linear, Name, Norm, Recogniser, RopeSource, Signal, Stream, Value, same_entries};
use crate::Error;
use crate::import::dense::{broadcast_indices, broadcast_shapes};
use crate::import::evaluate::axis_index;

/// An attention layer.
#[derive(Clone, Debug, PartialEq)]
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
    /// What hides tokens.
    pub(in crate::import) masks: Vec<MaskStep>,
    /// The inputs that hold past keys and values.
    pub(in crate::import) caches: [Option<Name>; 2],
    /// The nodes that the parts come from.
    pub(in crate::import) nodes: AttentionNodes,
    /// The node of the sum with the residual stream.
    pub(in crate::import) sum: usize,
}

/// The node of each step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::import) struct AttentionNodes {
    pub(in crate::import) query_rope: usize,
    pub(in crate::import) key_rope: usize,
    pub(in crate::import) key_append: usize,
    pub(in crate::import) value_append: usize,
    pub(in crate::import) scores: usize,
    pub(in crate::import) softmax: usize,
    pub(in crate::import) mix: usize,
}

/// Attention proper: from queries, keys and values to the mixed values, which lie in the given order.
pub(super) struct Core {
    pub(super) query: (Signal, Order),
    pub(super) key: (Signal, Order),
    pub(super) value: (Signal, Order),
    pub(super) mixed: Order,
    pub(super) rope: [RopeSource; 2],
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) scale: f64,
    pub(super) masks: Vec<MaskStep>,
    pub(super) caches: [Option<Name>; 2],
    pub(super) nodes: AttentionNodes,
}

/// Keys or values as attention reads them, each head once.
struct Heads {
    count: usize,
    /// `[kv_heads, tokens, dim]`
    signal: Signal,
}

impl Recogniser<'_, '_> {
    /// The attention layer that ends in the stream, and the stream ahead of it.
    pub(super) fn attention(self, stream: &Stream, user: usize) -> Result<(Attention, Stream), Error> {
        let summands = self.summands(stream, user)?;
        let (mut output, mixed) = self.branch(&summands, "the attention's output projection")?;
        let (mix, index) = self.base_node(&mixed, output.node, "the attention's mixed values")?;
        let core = match (self.node(mix).op_type.as_str(), index) {
            ("MatMul" | "com.microsoft::FusedMatMul", 0) => self.written_out_attention(mix)?,
            ("Attention", 0) => self.attention_op(mix)?,
            ("com.microsoft::GroupQueryAttention", 0) => self.grouped_attention(mix)?,
            _ => return Err(self.unexpected(Part::Other, mix, "attention")),
        };
        if self.features(&mixed, Order::Tokens, core.mixed) != Some(Features::All) {
            return Err(
                self.fail(output.node, "the heads' mixed values are not put one after the other for each token")
            );
        }
        output.scale_by(mixed.scale);
        let projection = |(signal, order): &(Signal, Order), node: usize, expected: &str| {
            let unscaled = Signal { scale: 1.0, ..signal.clone() };
            self.linear(&unscaled, *order, node, expected)
        };
        let (query, normed) = projection(&core.query, core.nodes.query_rope, "the query projection")?;
        let (key, key_normed) = projection(&core.key, core.nodes.key_rope, "the key projection")?;
        let (mut value, value_normed) = projection(&core.value, core.nodes.value_append, "the value projection")?;
        value.scale_by(core.value.0.scale);
        for (other, input) in [(&key, key_normed), (&value, value_normed)] {
            if !same_entries(&input, &normed) {
                return Err(self.fail(other.node, "query, key and value projections read different inputs"));
            }
        }
        let widths = (query.outputs(), key.outputs(), value.outputs());
        let (heads, kv_heads, head_dim) = (core.heads, core.kv_heads, core.head_dim);
        if widths != (heads * head_dim, kv_heads * head_dim, kv_heads * head_dim) {
            let message =
                format!("{heads} query and {kv_heads} key-value heads of {head_dim} entries do not fit {widths:?}");
            return Err(self.fail(query.node, message));
        }
        let (norm, normed) = self.norm(&normed, query.node)?;
        self.same_stream(&normed, &summands.before, summands.node)?;
        let scale = core.scale * core.query.0.scale * core.key.0.scale;
        let Core { rope, masks, caches, nodes, .. } = core;
        let sum = summands.node;
        let attention = Attention {
            norm,
            query,
            key,
            value,
            output,
            rope,
            heads,
            kv_heads,
            head_dim,
            scale,
            masks,
            caches,
            nodes,
            sum,
        };
        Ok((attention, normed))
    }

    /// softmax(q·Kᵀ)·V with every step a node of its own.
    fn written_out_attention(self, mix: usize) -> Result<Core, Error> {
        let (shares, values, mix_scale) = self.factors_of_product(mix)?;
        let (softmax, _) = self.whole_node(&shares, mix, "a softmax")?;
        if self.node(softmax).op_type != "Softmax" {
            return Err(self.unexpected(Part::Other, softmax, "a softmax whose result weighs the values"));
        }
        let rank = self.operand(softmax, 0).shape().len();
        if self.node(softmax).integer("axis").and_then(|axis| axis_index(axis, rank)) != Ok(rank.saturating_sub(1)) {
            return Err(self.fail(softmax, "the softmax is not over the tokens"));
        }
        let Scores { product: scores, scale: scores_scale, masks } = self.scores(softmax)?;
        let (queries, keys, product_scale) = self.factors_of_product(scores)?;
        let (tokens, total) = (self.tokens(), self.total());
        let (&[.., key_dim, key_tokens], &[.., value_tokens, value_dim]) =
            (keys.shape.as_slice(), values.shape.as_slice())
        else {
            return Err(self.fail(scores, "expected products of matrices"));
        };
        if (key_tokens, value_tokens, key_dim) != (total, total, value_dim) || key_dim == 0 {
            return Err(self.fail(
                scores,
                format!(
                    "expected scores of queries with {total} keys a head, not {key_tokens}: a sliding window in the cache, \
                     or another attention"
                ),
            ));
        }
        let heads = queries.len() / (key_dim * tokens).max(1);
        let keys = self.heads(scores, &queries.shape, &keys, heads, true)?;
        let values = self.heads(mix, &shares.shape, &values, heads, false)?;
        if keys.count != values.count {
            return Err(self.fail(mix, "keys and values have different numbers of heads"));
        }
        let scale = scores_scale * product_scale;
        let mut core = self.core(&queries, &keys, &values, (heads, key_dim), [scores, softmax, mix])?;
        core.scale *= scale;
        core.masks = masks;
        core.value.0.scale *= mix_scale;
        Ok(core)
    }

    /// From queries, keys and values as attention reads them back to what the projections give.
    fn core(
        self,
        queries: &Signal,
        keys: &Heads,
        values: &Heads,
        (heads, dim): (usize, usize),
        [scores, softmax, mix]: [usize; 3],
    ) -> Result<Core, Error> {
        let kv_heads = keys.count;
        let keys = self.appended(&keys.signal, Order::Heads { dim }, scores)?;
        let values = self.appended(&values.signal, Order::Heads { dim }, mix)?;
        let query = self.rotated(queries, Order::Heads { dim }, dim, scores)?;
        let node = |appended: &Appended, or: usize| appended.cache.map_or(or, |(node, _)| node);
        let key = self.rotated(&keys.new, keys.order, dim, node(&keys, scores))?;
        for appended in [&keys, &values] {
            self.check_present(appended)?;
        }
        let nodes = AttentionNodes {
            query_rope: query.node,
            key_rope: key.node,
            key_append: node(&keys, scores),
            value_append: node(&values, mix),
            scores,
            softmax,
            mix,
        };
        Ok(Core {
            query: (query.input, query.order),
            key: (key.input, key.order),
            caches: [keys.cache, values.cache].map(|cache| cache.map(|(_, input)| input)),
            value: (values.new, values.order),
            mixed: Order::Heads { dim },
            rope: [query.source, key.source],
            heads,
            kv_heads,
            head_dim: dim,
            scale: 1.0,
            masks: Vec::new(),
            nodes,
        })
    }

    /// Left and right factor of a matrix product, with its own factor; transposed ones are made plain.
    fn factors_of_product(self, node: usize) -> Result<(Signal, Signal, f64), Error> {
        let onnx = self.node(node);
        let flag = |name: &str| onnx.flag(name);
        if flag("transA") || flag("transBatchA") || flag("transBatchB") {
            return Err(self.fail(node, "expected an attention product without transposed batches"));
        }
        let left = self.signal(node, 0)?;
        let mut right = self.signal(node, 1)?;
        if right.shape.len() < 2 {
            return Err(self.fail(node, "expected a product of matrices"));
        }
        if flag("transB") {
            right = transposed(&right);
        }
        Ok((left, right, onnx.float("alpha").unwrap_or(1.0)))
    }

    /// The distinct heads of keys (transposed) or values that a product with a left factor of shape `left` reads for
    /// each of `heads` query heads: one after the other for groups of query heads of the same size.
    fn heads(
        self,
        node: usize,
        left: &[usize],
        right: &Signal,
        heads: usize,
        transposed: bool,
    ) -> Result<Heads, Error> {
        let misfit = || self.fail(node, format!("keys or values of shape {:?} do not fit {heads} heads", right.shape));
        let (Some(left_batch), Some(right_batch)) = (
            left.len().checked_sub(2).map(|rank| &left[..rank]),
            right.shape.len().checked_sub(2).map(|rank| &right.shape[..rank]),
        ) else {
            return Err(misfit());
        };
        let batch = broadcast_shapes(left_batch, right_batch).map_err(|_| misfit())?;
        // Products are batched over heads, or over key-value heads with the group's queries as rows.
        let batches: usize = batch.iter().product();
        if batch.as_slice() != left_batch && left_batch.iter().product::<usize>() != batches {
            return Err(misfit());
        }
        let rows = left[left.len() - 2];
        let (tokens, total) = (self.tokens(), self.total());
        if batches * rows != heads * tokens || !rows.is_multiple_of(tokens.max(1)) {
            return Err(misfit());
        }
        let matrices = broadcast_indices(right_batch, &batch);
        let of_head: Vec<usize> = (0..heads).map(|head| matrices[head * tokens / rows]).collect();
        self.distinct(node, right, &of_head, total, transposed)
    }

    /// The distinct matrices `[total, dim]` (or their transposes) of a signal that query heads read, as one signal.
    fn distinct(
        self,
        node: usize,
        signal: &Signal,
        of_head: &[usize],
        total: usize,
        transposed: bool,
    ) -> Result<Heads, Error> {
        let rank = signal.shape.len();
        let dim = signal.shape[if transposed { rank - 2 } else { rank - 1 }];
        let indices = signal.indices();
        let size = total * dim;
        let entry = |matrix: usize, index: usize| {
            let (token, feature) = (index / dim, index % dim);
            let place = if transposed { feature * total + token } else { index };
            indices[matrix * size + place]
        };
        let same = |a: usize, b: usize| a == b || (0..size).all(|index| entry(a, index) == entry(b, index));
        let group = of_head.iter().take_while(|&&matrix| same(matrix, of_head[0])).count();
        let regular = group > 0
            && of_head.len().is_multiple_of(group)
            && of_head.chunks(group).all(|group| group.iter().all(|&matrix| same(matrix, group[0])));
        if !regular {
            return Err(self.fail(node, "keys or values are not those of the head's group"));
        }
        let count = of_head.len() / group;
        let map: Vec<i64> = of_head
            .iter()
            .step_by(group)
            .flat_map(|&matrix| (0..size).map(move |index| (matrix, index)))
            .map(|(matrix, index)| entry(matrix, index))
            .collect();
        let signal = Signal { shape: vec![count, total, dim], map: Some(Arc::new(map)), ..signal.clone() };
        Ok(Heads { count, signal })
    }

    /// The operation `Attention` of operator set 23 with four-dimensional operands.
    fn attention_op(self, node: usize) -> Result<Core, Error> {
        let onnx = self.node(node);
        let (queries, keys, values) = (self.signal(node, 0)?, self.signal(node, 1)?, self.signal(node, 2)?);
        if onnx.float("softcap") != Some(0.0) {
            return Err(self.fail(node, "soft-capping of scores is not supported"));
        }
        if (4..onnx.inputs.len()).any(|input| onnx.input(input).is_some()) {
            return Err(self.fail(node, "caches inside the operation are not supported"));
        }
        let (tokens, total) = (self.tokens(), self.total());
        let (&[1, heads, rows, dim], &[1, stored, key_tokens, key_dim], &[1, value_heads, value_tokens, value_dim]) =
            (queries.shape.as_slice(), keys.shape.as_slice(), values.shape.as_slice())
        else {
            return Err(self.fail(node, "expected operands [batch, heads, tokens, dimension]"));
        };
        let fits = (rows, key_tokens, value_tokens) == (tokens, total, total)
            && (key_dim, value_dim) == (dim, dim)
            && stored == value_heads
            && stored > 0
            && heads.is_multiple_of(stored);
        if !fits {
            return Err(self.fail(node, format!("expected attention of {heads} heads to all {total} tokens")));
        }
        let mut masks = Vec::new();
        match (self.operand(node, 3), onnx.input(3)) {
            (_, None) => {}
            (Value::Constant(constant), Some(mask)) if constant.kind().is_float() => {
                masks.push(MaskStep::Added { node, mask, factor: 1.0 });
            }
            (Value::Constant(_), Some(condition)) => masks.push(MaskStep::Kept { node, condition, where_true: true }),
            _ => return Err(self.fail(node, "its mask is not constant")),
        }
        if onnx.flag("is_causal") {
            masks.push(MaskStep::UpperLeft { node });
        }
        let of_head: Vec<usize> = (0..heads).map(|head| head / (heads / stored)).collect();
        let keys = self.distinct(node, &keys, &of_head, total, false)?;
        let values = self.distinct(node, &values, &of_head, total, false)?;
        if keys.count != values.count {
            return Err(self.fail(node, "keys and values have different numbers of heads"));
        }
        let mut core = self.core(&queries, &keys, &values, (heads, dim), [node; 3])?;
        core.scale = onnx.float("scale").unwrap_or_else(|| 1.0 / (dim as f64).sqrt());
        core.masks = masks;
        Ok(core)
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
