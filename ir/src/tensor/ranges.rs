//! Ranges of every value over calibration text.
//!
//! Approximations are chosen on intervals; the intervals come from running text through the model in the clear and
//! widening what was seen by a margin. Besides the entries of each value, mean squares of norms and spreads of softmax rows are
//! recorded.

use super::interpreter::{mean_square, read};
use super::{Interpreter, TensorModel, TensorOp};
use crate::Error;
use crate::graph::{OpId, ValueId};

/// The smallest closed interval that holds all numbers seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The smallest, infinite as long as none was seen.
    pub min: f64,
    /// The largest, minus infinite as long as none was seen.
    pub max: f64,
}

impl Default for Range {
    fn default() -> Self {
        Self { min: f64::INFINITY, max: f64::NEG_INFINITY }
    }
}

impl Range {
    /// Widens the range to hold x.
    pub fn include(&mut self, x: f64) {
        self.min = self.min.min(x);
        self.max = self.max.max(x);
    }

    /// The smallest range that holds both.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self { min: self.min.min(other.min), max: self.max.max(other.max) }
    }

    /// Whether no number was seen.
    pub fn is_empty(&self) -> bool {
        self.min > self.max
    }

    /// The largest absolute value.
    pub fn max_abs(&self) -> f64 {
        self.min.abs().max(self.max.abs())
    }

    /// The range with both ends moved outwards by `margin` times its width.
    #[must_use]
    pub fn widened(&self, margin: f64) -> Self {
        let extra = margin * (self.max - self.min);
        Self { min: self.min - extra, max: self.max + extra }
    }

    /// For quantities that are positive by definition: both ends moved outwards by the factor `1 + margin`.
    #[must_use]
    pub fn widened_ratio(&self, margin: f64) -> Self {
        Self { min: self.min / (1.0 + margin), max: self.max * (1.0 + margin) }
    }
}

/// Ranges of a model's values, by the ids of its graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranges {
    /// Tokens seen.
    pub tokens: usize,
    values: Vec<Range>,
    mean_squares: Vec<Range>,
    row_spreads: Vec<Range>,
}

impl Ranges {
    /// Ranges of a model that has seen no text yet.
    pub fn new(model: &TensorModel) -> Self {
        let ops = model.graph.nodes.len();
        Self {
            tokens: 0,
            values: vec![Range::default(); model.graph.values.len()],
            mean_squares: vec![Range::default(); ops],
            row_spreads: vec![Range::default(); ops],
        }
    }

    /// Runs each sequence of tokens through the model from an empty session, up to the context.
    ///
    /// # Errors
    /// [`Error::Execution`] if a token is not in the vocabulary.
    pub fn calibrate(model: &TensorModel, sequences: &[Vec<u32>]) -> Result<Self, Error> {
        let mut ranges = Self::new(model);
        let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        read(model, &[], &sequences, |interpreter, _| ranges.record(model, interpreter))?;
        Ok(ranges)
    }

    /// Takes in the values of the tokens that the interpreter was fed last.
    pub fn record(&mut self, model: &TensorModel, interpreter: &Interpreter<'_>) {
        self.tokens += model.graph.body.yields.first().map_or(0, |&logits| interpreter.fed(logits).len());
        for &op in &model.graph.body.ops {
            let node = model.graph.node(op);
            // Entries of a cache were recorded as the operand of the append.
            if !matches!(node.op, TensorOp::KvAppend { .. }) {
                let result = node.results[0];
                let range = &mut self.values[result.index()];
                interpreter.fed(result).iter().flatten().for_each(|&x| range.include(x));
            }
            match node.op {
                TensorOp::RmsNorm { .. } => {
                    let seen = &mut self.mean_squares[op.index()];
                    interpreter.fed(node.inputs[0]).iter().for_each(|x| seen.include(mean_square(x)));
                }
                TensorOp::Softmax => {
                    let seen = &mut self.row_spreads[op.index()];
                    for row in interpreter.rows(node.inputs[0]) {
                        let mut range = Range::default();
                        for &x in row {
                            range.include(x);
                        }
                        seen.include(range.max - range.min);
                    }
                }
                _ => {}
            }
        }
    }

    /// Range of a value's entries; empty for the token and for caches.
    pub fn value(&self, id: ValueId) -> Range {
        self.values[id.index()]
    }

    /// Range of the mean square, without ε, of the operand of a norm; empty for other ops.
    pub fn mean_square(&self, op: OpId) -> Range {
        self.mean_squares[op.index()]
    }

    /// Range of the largest minus the smallest entry of a softmax's rows; empty for other ops.
    pub fn row_spread(&self, op: OpId) -> Range {
        self.row_spreads[op.index()]
    }
}
