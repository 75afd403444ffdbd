//! onnxruntime's `GroupQueryAttention`.

use std::sync::Arc;

use super::attention::{AttentionNodes, Core};
use super::mask::MaskStep;
use super::order::Order;
use super::{Name, Recogniser, RopeSource, Signal, Value};
use crate::Error;

impl Recogniser<'_, '_> {
    /// onnxruntime's `GroupQueryAttention`, with the rotary embedding inside or ahead, the projections packed or not.
    pub(super) fn grouped_attention(self, node: usize) -> Result<Core, Error> {
        let onnx = self.node(node);
        let extent = |name: &str| onnx.extent(name).map_err(|message| self.fail(node, message));
        let (heads, kv_heads) = (extent("num_heads")?, extent("kv_num_heads")?);
        if !heads.is_multiple_of(kv_heads) {
            return Err(self.fail(node, format!("{heads} heads cannot share {kv_heads} key-value heads")));
        }
        self.check_grouped(node)?;
        let (tokens, past) = (self.tokens(), self.specialised.sizes.past);
        let window = onnx.int("local_window_size").and_then(|window| usize::try_from(window).ok());
        if window == Some(0) {
            return Err(self.fail(node, "its window is of no token"));
        }
        let inside = onnx.flag("do_rotary");
        let queries = self.signal(node, 0)?;
        let packed = onnx.input(1).is_none();
        let width = queries.len() / tokens.max(1);
        let head_dim = width / if packed { heads + 2 * kv_heads } else { heads };
        let (query, key, value) = if packed {
            let part = |first: usize, count: usize| columns(&queries, tokens, first * head_dim, count * head_dim);
            (part(0, heads), part(heads, kv_heads), part(heads + kv_heads, kv_heads))
        } else {
            (queries, self.signal(node, 1)?, self.signal(node, 2)?)
        };
        let cache = |input: usize| -> Result<Option<Name>, Error> {
            match self.operand(node, input) {
                Value::Signal(signal) if signal.is_whole() && self.specialised.producer(signal.base).is_none() => {
                    Ok(Some(signal.base))
                }
                Value::Signal(_) => Err(self.fail(node, "its cache is not an input of the graph")),
                _ if past == 0 => Ok(None),
                _ => Err(self.fail(node, "it has no cache")),
            }
        };
        let caches = [cache(3)?, cache(4)?];
        for (output, past) in [(1, caches[0]), (2, caches[1])] {
            past.map_or(Ok(()), |past| self.check_present_of(node, past, output))?;
        }
        let scale = onnx.float("scale").filter(|&scale| scale != 0.0);
        let scale = scale.unwrap_or_else(|| 1.0 / (head_dim as f64).sqrt());
        let mut nodes = AttentionNodes {
            query_rope: node,
            key_rope: node,
            key_append: node,
            value_append: node,
            scores: node,
            softmax: node,
            mix: node,
        };
        let (query, key, rope) = if inside {
            let source = self.inner_rope(node, head_dim)?;
            ((query, Order::Tokens), (key, Order::Tokens), [source; 2])
        } else {
            let [query, key] = [&query, &key].map(|signal| self.rotated(signal, Order::Tokens, head_dim, node));
            let (query, key) = (query?, key?);
            (nodes.query_rope, nodes.key_rope) = (query.node, key.node);
            ((query.input, query.order), (key.input, key.order), [query.source, key.source])
        };
        Ok(Core {
            query,
            key,
            value: (value, Order::Tokens),
            mixed: Order::Tokens,
            rope,
            heads,
            kv_heads,
            head_dim,
            scale,
            masks: vec![MaskStep::Causal { node, window }],
            caches,
            nodes,
        })
    }

    /// Checks what the operation can do and a Llama decoder does not.
    fn check_grouped(self, node: usize) -> Result<(), Error> {
        let onnx = self.node(node);
        let refused = [
            (onnx.flag("rotary_interleaved"), "interleaved rotary embeddings are not supported"),
            (onnx.float("softcap") != Some(0.0), "soft-capping of scores is not supported"),
            (onnx.int("smooth_softmax").is_some_and(|smooth| smooth > 0), "a smooth softmax is not supported"),
            (onnx.input(10).is_some(), "a bias of the scores by position is not supported"),
            (
                (11..onnx.inputs.len()).any(|input| onnx.input(input).is_some()),
                "attention sinks and quantised caches are not supported",
            ),
            (onnx.flag("kv_cache_bit_width"), "quantised caches are not supported"),
        ];
        if let Some((_, message)) = refused.into_iter().find(|(found, _)| *found) {
            return Err(self.fail(node, message));
        }
        let total = self.total();
        let holds = |input: usize, expected: f64| match self.operand(node, input) {
            Value::Constant(constant) => constant.to_f64().iter().all(|&entry| entry == expected),
            _ => false,
        };
        if !holds(5, total as f64 - 1.0) || !holds(6, total as f64) {
            return Err(self.fail(node, "its sequence lengths are not those of the tokens so far"));
        }
        Ok(())
    }

    /// The tables of the rotary embedding inside the operation.
    fn inner_rope(self, node: usize, head_dim: usize) -> Result<RopeSource, Error> {
        let onnx = self.node(node);
        let (past, total) = (self.specialised.sizes.past, self.total());
        let (Some(cosines), Some(sines)) = (onnx.input(7), onnx.input(8)) else {
            return Err(self.fail(node, "it has no cosines or sines"));
        };
        let positions = match self.operand(node, 9) {
            Value::Constant(positions) => positions.to_ints(),
            _ if onnx.input(9).is_none() => (past as i64..total as i64).collect(),
            _ => Vec::new(),
        };
        if positions.iter().copied().ne(past as i64..total as i64) {
            return Err(self.fail(node, "its positions are not those of the tokens"));
        }
        let columns = self.specialised.value(cosines).shape().last().copied();
        if columns != Some(head_dim / 2) {
            let message = format!(
                "a rotary table of {columns:?} columns does not fit heads of {head_dim}: partial rotary embeddings are not supported"
            );
            return Err(self.fail(node, message));
        }
        Ok(RopeSource::Cache { cosines, sines })
    }
}

/// `count` features of each token, from the given one on.
fn columns(signal: &Signal, tokens: usize, first: usize, count: usize) -> Signal {
    let indices = signal.indices();
    let width = indices.len() / tokens.max(1);
    let token = |token: usize| indices[token * width + first..token * width + first + count].iter().copied();
    let map = Some(Arc::new((0..tokens).flat_map(token).collect()));
    Signal { shape: vec![1, tokens, count], map, ..signal.clone() }
}
