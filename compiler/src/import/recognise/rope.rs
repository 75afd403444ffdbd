//! Rotary embeddings, as an operation or written out with cosines, sines and half-swapped features.

use super::{Recogniser, Signal, Value};
use crate::Error;
use crate::import::dense::broadcast_indices;
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

/// A recognised rotary embedding.
#[derive(Clone, Debug)]
pub(in crate::import) struct Rotated {
    pub(in crate::import) node: usize,
    pub(in crate::import) source: RopeSource,
    /// What is rotated, all heads.
    pub(in crate::import) input: Signal,
}

impl Recogniser<'_, '_> {
    /// The rotary embedding over heads of `dim` entries that gives a signal.
    pub(super) fn rotated(self, signal: &Signal, dim: usize, user: usize) -> Result<Rotated, Error> {
        let (node, _) = self.base_node(signal, user, "a rotary embedding")?;
        if signal.map.is_some() {
            return Err(self.fail(node, "the rotated features are rearranged"));
        }
        let onnx = self.node(node);
        let mut rotated = match onnx.op_type.as_str() {
            "Add" => self.written_out(node, dim)?,
            "RotaryEmbedding" | "com.microsoft::RotaryEmbedding" => {
                let partial = onnx.int("rotary_embedding_dim").unwrap_or(0);
                let scaled = onnx.float("scale").unwrap_or(1.0);
                if onnx.int("interleaved").unwrap_or(0) != 0 || (partial != 0 && partial != dim as i64) || scaled != 1.0
                {
                    return Err(self.fail(node, "interleaved or partial rotary embeddings are not supported"));
                }
                let (cosines, sines, positions) = if onnx.op_type == "RotaryEmbedding" {
                    (onnx.input(1), onnx.input(2), onnx.input(3))
                } else {
                    (onnx.input(2), onnx.input(3), onnx.input(1))
                };
                let (Some(cosines), Some(sines)) = (cosines, sines) else {
                    return Err(self.fail(node, "it has no cosines or sines"));
                };
                Rotated { node, source: RopeSource::Rows { cosines, sines, positions }, input: self.signal(node, 0)? }
            }
            _ => return Err(self.fail(node, "expected a rotary embedding of queries or keys")),
        };
        rotated.input.scale *= signal.scale;
        Ok(rotated)
    }

    /// `x ∘ cos + rotate_half(x) ∘ sin`.
    fn written_out(self, node: usize, dim: usize) -> Result<Rotated, Error> {
        let (first, second) = (self.turned(node, 0)?, self.turned(node, 1)?);
        for ((x, cosines), (half_swapped, sines)) in [(&first, &second), (&second, &first)] {
            if x.base == half_swapped.base && x.scale == half_swapped.scale && is_half_swapped(x, half_swapped, dim) {
                let source = RopeSource::Doubled { cosines: *cosines, sines: *sines };
                return Ok(Rotated { node, source, input: x.clone() });
            }
        }
        Err(self.fail(node, "expected x·cos + rotate_half(x)·sin"))
    }

    /// One summand: a signal times a constant with one row of `head_dim` entries.
    fn turned(self, node: usize, input: usize) -> Result<(Signal, Name), Error> {
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
        let unexpected = || self.fail(product, "expected a product with constant cosines or sines");
        let (signal, constant, input) = parts.ok_or_else(unexpected)?;
        // The same row multiplies every head.
        let row = constant.shape.last().copied().unwrap_or(0);
        let indices = broadcast_indices(&constant.shape, &signal.shape);
        if constant.len() != row || indices.iter().zip((0..row).cycle()).any(|(&index, expected)| index != expected) {
            return Err(unexpected());
        }
        let name = self.node(product).input(input).ok_or_else(unexpected)?;
        let mut signal = signal.with_positive_scale();
        signal.scale *= summand.scale;
        Ok((signal, name))
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
