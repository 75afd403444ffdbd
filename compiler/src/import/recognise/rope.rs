//! Rotary embeddings, as an operation or written out with cosines, sines and half-swapped features.

use super::diagnose::Part;
use super::order::{Features, Order, order_of_operand};
use super::{Recogniser, Signal, Value};
use crate::Error;
use crate::import::onnx::Name;

/// Where a rotary embedding takes its cosines and sines from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::import) enum RopeSource {
    /// Constants with a row of `head_dim` entries for each new token, the second half like the first.
    Doubled { cosines: Name, sines: Name },
    /// Constants with a row of `head_dim/2` entries for each new token, or rows picked by positions.
    Rows { cosines: Name, sines: Name, positions: Option<Name> },
    /// Constants with a row of `head_dim/2` entries for each position from 0.
    Cache { cosines: Name, sines: Name },
}

impl RopeSource {
    /// The constants.
    pub(in crate::import) fn names(self) -> Vec<Name> {
        match self {
            Self::Doubled { cosines, sines } | Self::Cache { cosines, sines } => vec![cosines, sines],
            Self::Rows { cosines, sines, positions } => [cosines, sines].into_iter().chain(positions).collect(),
        }
    }
}

/// A recognised rotary embedding.
#[derive(Clone, Debug)]
pub(super) struct Rotated {
    pub(super) node: usize,
    pub(super) source: RopeSource,
    /// What is rotated, all heads, and the order of its entries.
    pub(super) input: Signal,
    pub(super) order: Order,
}

impl Recogniser<'_, '_> {
    /// The rotary embedding over heads of `dim` entries that gives a signal of this order.
    pub(super) fn rotated(self, signal: &Signal, order: Order, dim: usize, user: usize) -> Result<Rotated, Error> {
        const EXPECTED: &str = "a rotary embedding of queries or keys";
        let (node, _) = self.base_node(signal, user, EXPECTED)?;
        let onnx = self.node(node);
        let mut rotated = match onnx.op_type.as_str() {
            "Add" if matches!((self.operand(node, 0), self.operand(node, 1)), (Value::Signal(_), Value::Signal(_))) => {
                self.written_out(node, dim)?
            }
            "RotaryEmbedding" | "com.microsoft::RotaryEmbedding" => self.rotary_op(node, dim)?,
            _ => return Err(self.unexpected(Part::Rotation, node, EXPECTED)),
        };
        if self.features(signal, order, rotated.order) != Some(Features::All) {
            return Err(self.fail(node, "the rotated features are rearranged"));
        }
        rotated.input.scale *= signal.scale;
        Ok(rotated)
    }

    /// A rotary embedding as one operation.
    fn rotary_op(self, node: usize, dim: usize) -> Result<Rotated, Error> {
        let onnx = self.node(node);
        let partial = onnx.int("rotary_embedding_dim");
        if onnx.flag("interleaved") {
            return Err(self.fail(node, "interleaved rotary embeddings are not supported"));
        }
        if let Some(partial) = partial.filter(|&partial| partial != 0 && partial != dim as i64) {
            return Err(
                self.fail(node, format!("a partial rotary embedding, of {partial} of {dim} entries, is not supported"))
            );
        }
        if onnx.float("scale").is_some_and(|scale| scale != 1.0) || onnx.flag("is_packed_batching") {
            return Err(self.fail(node, "scaled positions and packed batches are not supported"));
        }
        let (cosines, sines, positions) = if onnx.op_type == "RotaryEmbedding" {
            (onnx.input(1), onnx.input(2), onnx.input(3))
        } else {
            (onnx.input(2), onnx.input(3), onnx.input(1))
        };
        let (Some(cosines), Some(sines)) = (cosines, sines) else {
            return Err(self.fail(node, "it has no cosines or sines"));
        };
        let input = self.signal(node, 0)?;
        let heads = onnx.extent("num_heads").ok();
        let order = match *input.shape.as_slice() {
            [1, heads, tokens, last] if last == dim && heads * tokens * dim == input.len() => Order::Heads { dim },
            // Without a number of heads the table's width says where a head ends.
            [1, _, width] if heads.is_none_or(|heads| heads.checked_mul(dim) == Some(width)) => Order::Tokens,
            _ => {
                return Err(
                    self.fail(node, format!("its operand of shape {:?} does not hold heads of {dim}", input.shape))
                );
            }
        };
        let columns = self.specialised.value(cosines).shape().last().copied();
        if columns != Some(dim / 2) {
            return Err(self.fail(node, format!("its table does not have the {} columns of a head of {dim}", dim / 2)));
        }
        Ok(Rotated { node, source: RopeSource::Rows { cosines, sines, positions }, input, order })
    }

    /// `x ∘ cos + rotate_half(x) ∘ sin`.
    fn written_out(self, node: usize, dim: usize) -> Result<Rotated, Error> {
        let (first, second) = (self.turned(node, 0, dim)?, self.turned(node, 1, dim)?);
        for ((x, cosines, order), (half_swapped, sines, other)) in [(&first, &second), (&second, &first)] {
            if order == other
                && x.base == half_swapped.base
                && x.scale == half_swapped.scale
                && is_half_swapped(x, half_swapped, dim)
            {
                let source = RopeSource::Doubled { cosines: *cosines, sines: *sines };
                return Ok(Rotated { node, source, input: x.clone(), order: *order });
            }
        }
        Err(self.fail(
            node,
            "expected the rotary embedding x·cos + rotate_half(x)·sin; interleaved and partial ones are not supported",
        ))
    }

    /// One summand: a signal times a constant with one row of `dim` entries for each token.
    fn turned(self, node: usize, input: usize, dim: usize) -> Result<(Signal, Name, Order), Error> {
        let summand = self.signal(node, input)?;
        let (product, _) = self.base_node(&summand, node, "a product with cosines or sines")?;
        let parts = if self.node(product).op_type == "Mul" && summand.map.is_none() {
            match (self.operand(product, 0), self.operand(product, 1)) {
                (Value::Signal(signal), Value::Constant(constant)) => Some((signal, constant, 1)),
                (Value::Constant(constant), Value::Signal(signal)) => Some((signal, constant, 0)),
                _ => None,
            }
        } else {
            None
        };
        let unexpected = || {
            self.unexpected(
                Part::Rotation,
                product,
                "a product with the constant cosines or sines of a rotary embedding",
            )
        };
        let (signal, constant, input) = parts.ok_or_else(unexpected)?;
        // The same rows multiply every head.
        let order = order_of_operand(&constant.shape, &signal.shape, self.tokens(), true, Some(dim));
        let order = order.filter(|_| constant.len() == dim * self.tokens()).ok_or_else(unexpected)?;
        let name = self.node(product).input(input).ok_or_else(unexpected)?;
        let mut signal = signal.with_positive_scale();
        signal.scale *= summand.scale;
        Ok((signal, name, order))
    }
}

/// Whether `swapped` is, in each head of x, its second half negated and then its first half.
fn is_half_swapped(x: &Signal, swapped: &Signal, dim: usize) -> bool {
    let (from, to) = (x.indices(), swapped.indices());
    let half = dim / 2;
    dim > 0
        && from.len() == to.len()
        && from.len().is_multiple_of(dim)
        && to.iter().enumerate().all(|(index, &entry)| {
            if index % dim < half { entry == -from[index + half] } else { entry == from[index - half] }
        })
}
