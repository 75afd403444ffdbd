//! What the logits of a step can be, for the client to check before it believes them.
//!
//! The output head sees `x = h/√(mean(h²) + ε)` for the residual stream h of width d, so that `‖x‖² = d·m/(m + ε)` with
//! m the mean square: nearly d, whatever the text. With γ the last norm's factors and `A = W·diag(γ)` the logits are `y
//! = A x`. From this follow, for every text,
//!
//! - **bounds**: `|y_i| ≤ √d·‖A_i‖` for row i. Calibration gives tighter ones, widened by a margin;
//! - **the length of x**: the transpose of A, cut to some columns, is factored with column pivoting, `Aᵀ P = Q R`. Its
//!   first d pivots are tokens S with rows as independent as can be, `A_S = L Qᵀ` with `L = Rᵀ` lower triangular, and
//!   `z = L⁻¹ y_S = Qᵀ x` has the length of x. A residual stream that blew up leaves the interval of the last norm's
//!   approximation and has another length;
//! - **the other logits**: `y = A Q z`. Where the head is the embedding E, which the client has, `A Q = E·(diag(γ) Q)`,
//!   and all logits are checked; otherwise twice d further ones, spread over the vocabulary. A last layer or a
//!   decryption that went wrong contradicts itself.
//!
//! Errors e of the logits change z by `L⁻¹ e` and a further logit by `A_i Q L⁻¹ e`; the client knows how large they
//! are, and the guard holds the factors. Pivoting keeps `A_i Q L⁻¹` small whatever the condition of L.
//!
//! L reveals the inner products of d rows of A, which logits reveal as well.

use std::sync::Arc;

use cachemir_ir::graph::{Definition, ValueId};
use cachemir_ir::plan::{Guard, NormCheck, Others};
use cachemir_ir::program::Placement;
use cachemir_ir::tensor::{Range, TensorModel, TensorOp, Weight, read};
use nalgebra::DMatrix;
use rayon::prelude::*;

use crate::Error;
use crate::calibration::Calibration;

/// By which part of their range the bounds on logits go beyond what calibration saw, at either end.
const LOGIT_MARGIN: f64 = 0.5;

/// How far the length of x may be from what calibration saw, relative to √d. The approximation of the last norm is
/// better than this wherever calibration text is, and an error of the length alone changes no order of the logits.
const LENGTH_MARGIN: f64 = 0.05;

/// Smallest deviation of a logit from what the others say, relative to the largest, that counts as a contradiction.
const DEVIATION: f64 = 1.0 / 1024.0;

/// Widest model whose rows are factored: the work grows with d³.
const MOST_WIDTH: usize = 4096;

/// Rows for each of the d pivots that they are chosen from, at most and at least, and the work d²·rows between the two.
const ROWS_A_PIVOT: [usize; 2] = [16, 2];
const WORK: usize = 1 << 34;

/// A pivot below this part of the first one: the rows are not independent.
const RANK: f64 = 1e-6;

/// Tokens of calibration text that logits are collected from, at least and at most, and the products with the embedding
/// between the two.
const TOKENS: [usize; 2] = [256, 4096];
const READINGS: usize = 1 << 33;

/// The guard of a model. `logits` tells where a program puts the logits, and `slots` how many each of its outputs has.
/// `stretch` is √(h/m) of the last norm's polynomial, see [`Guard::noise_gain`]. Of a model that has shapes only no logit is
/// known to be wrong.
///
/// # Errors
/// Those of the interpreter, e.g. for tokens that are not in the vocabulary.
pub fn guard(
    model: &TensorModel,
    calibration: &Calibration,
    logits: &Placement,
    slots: usize,
    stretch: f64,
) -> Result<Guard, Error> {
    if !model.has_values() {
        return Ok(Guard { zeros: zeros(logits, slots), ..Guard::of_logits(f64::MIN, f64::MAX) });
    }
    let head = Head::of(model)?;
    let mut norm = head.as_ref().and_then(|head| norm_check(model, head));
    let embedding = match (&head, model.weight_named("embed_tokens")) {
        (Some(head), _) if head.tied => Arc::clone(&head.weights),
        (_, Some(embedding)) => embedding.load()?,
        (_, None) => Arc::default(),
    };
    let seen = Seen::collect(model, calibration, norm.as_ref(), &embedding)?;
    if let Some(norm) = &mut norm {
        norm.length = [(seen.length.min - LENGTH_MARGIN).max(0.0), seen.length.max + LENGTH_MARGIN];
        norm.deviation = DEVIATION.max(8.0 * seen.deviation);
    }
    let Range { min, max } = seen.logits.widened(LOGIT_MARGIN);
    let bounds = match head.map(|head| head.limit()) {
        Some(limit) => {
            let most = limit * (1.0 + LENGTH_MARGIN);
            Guard { noise_gain: stretch * limit, ..Guard::of_logits(min.max(-most), max.min(most)) }
        }
        None => Guard::of_logits(min, max),
    };
    Ok(Guard { zeros: zeros(logits, slots), norm, ..bounds })
}

/// The output head and the factors of the norm before it.
struct Head {
    weights: Arc<[f32]>,
    factors: Arc<[f32]>,
    /// Whether the head's weights are the embedding's.
    tied: bool,
}

impl Head {
    /// `None` where the logits do not come from a norm.
    fn of(model: &TensorModel) -> Result<Option<Self>, Error> {
        let Some((weight, factors)) = Self::weights_of(model) else { return Ok(None) };
        let tied = model.weight_named("embed_tokens").is_some_and(|table| table.hash == weight.hash);
        Ok(Some(Self { weights: weight.load()?, factors: factors.load()?, tied }))
    }

    /// The head's weights, and the norm's.
    fn weights_of(model: &TensorModel) -> Option<(&Weight, &Weight)> {
        let op = |value: ValueId| match model.graph.values[value.index()].definition {
            Definition::Result(op, _) => Some(model.graph.node(op)),
            Definition::Input(_) => None,
        };
        let last = op(*model.graph.body.yields.first()?)?;
        let TensorOp::LmHead { weight } = last.op else { return None };
        let TensorOp::RmsNorm { weight: factors, .. } = op(*last.inputs.first()?)?.op else { return None };
        Some((model.weight(weight), model.weight(factors)))
    }

    /// Row `token` of A.
    fn row(&self, token: usize) -> impl Iterator<Item = f64> {
        let row = &self.weights[token * self.factors.len()..];
        row.iter().zip(&*self.factors).map(|(&entry, &factor)| f64::from(entry) * f64::from(factor))
    }

    /// √d times the largest length of a row of A.
    fn limit(&self) -> f64 {
        let width = self.factors.len();
        let tokens = 0..self.weights.len() / width.max(1);
        let lengths = tokens.map(|token| self.row(token).map(|a| a * a).sum());
        (lengths.fold(0.0, f64::max) * width as f64).sqrt()
    }

    /// Rows of A as columns of a matrix.
    fn columns(&self, tokens: &[usize]) -> DMatrix<f64> {
        let entries = tokens.iter().flat_map(|&token| self.row(token));
        DMatrix::from_iterator(self.factors.len(), tokens.len(), entries)
    }
}

/// As many numbers below `range` as asked for, or all of them, evenly spread.
fn spread(range: usize, count: usize) -> Vec<usize> {
    let count = count.min(range);
    (0..count).map(|index| index * range / count).collect()
}

/// The check of the last norm, with bounds that are still to be measured; `None` where there are fewer than d
/// independent rows, or more work than it is worth.
fn norm_check(model: &TensorModel, head: &Head) -> Option<NormCheck> {
    let (width, vocabulary) = (model.hyperparameters.hidden, model.hyperparameters.vocabulary);
    if width > MOST_WIDTH || vocabulary < width {
        return None;
    }
    let [most, least] = ROWS_A_PIVOT;
    let candidates = spread(vocabulary, (WORK / width.pow(2)).clamp(least * width, most * width));
    let factored = head.columns(&candidates).col_piv_qr();
    // The permutation is applied to the candidates' numbers as it was to the columns.
    let mut order = DMatrix::from_iterator(1, candidates.len(), candidates.iter().copied());
    factored.p().permute_columns(&mut order);
    let lower = factored.r().columns(0, width).transpose();
    let pivots = lower.diagonal().map(f64::abs);
    if pivots.min() <= RANK * pivots.max() {
        return None;
    }
    let turn = factored.q();
    let chosen: Vec<usize> = order.iter().copied().take(width).collect();
    let further: Vec<usize> =
        spread(vocabulary, 3 * width).into_iter().filter(|token| !chosen.contains(token)).take(2 * width).collect();
    let rows = head.columns(&further).transpose() * &turn;
    let inverse = lower.clone().try_inverse()?;
    let spread_of_errors = (&rows * &inverse).row_iter().map(|row| 1.0 + row.norm_squared()).fold(1.0, f64::max);
    let single = |matrix: &DMatrix<f64>| matrix.transpose().iter().map(|&entry| entry as f32).collect();
    let others = if head.tied {
        let mut turned = turn;
        for (mut row, &factor) in turned.row_iter_mut().zip(&*head.factors) {
            row *= f64::from(factor);
        }
        Others::Embedding(single(&turned))
    } else {
        Others::Rows(further.iter().map(|&token| token as u32).collect(), single(&rows))
    };
    Some(NormCheck {
        tokens: chosen.iter().map(|&token| token as u32).collect(),
        triangle: (0..width)
            .flat_map(|row| lower.row(row).columns(0, row + 1).iter().map(|&x| x as f32).collect::<Vec<_>>())
            .collect(),
        length: [0.0, 0.0],
        gain: inverse.norm() / (width as f64).sqrt(),
        others,
        deviation: 0.0,
        deviation_gain: spread_of_errors.sqrt(),
    })
}

/// What was seen of exact logits.
#[derive(Clone, Copy, Default)]
struct Seen {
    logits: Range,
    length: Range,
    deviation: f64,
}

impl Seen {
    fn collect(
        model: &TensorModel,
        calibration: &Calibration,
        norm: Option<&NormCheck>,
        embedding: &[f32],
    ) -> Result<Self, Error> {
        let Some(&logits) = model.graph.body.yields.first() else { return Ok(Self::default()) };
        let [least, most] = TOKENS;
        let prefix = &calibration.prefix;
        let share = (READINGS / embedding.len().max(1)).clamp(least, most) / calibration.sequences().count().max(1);
        let cut = |sequence: &'_ Vec<u32>| sequence.len().min(prefix.len() + share.max(1));
        let sequences: Vec<&[u32]> = calibration.sequences().map(|sequence| &sequence[..cut(sequence)]).collect();
        let one = |logits: &Vec<f64>| {
            let mut seen = Self::default();
            for &logit in logits {
                seen.logits.include(logit);
            }
            if let Some(norm) = norm {
                let reading = norm.read(logits, embedding);
                seen.length.include(reading.length);
                seen.deviation = reading.deviation;
            }
            seen
        };
        let mut all = Self::default();
        read(model, prefix, &sequences, |interpreter, _| {
            let fed: Vec<Self> = interpreter.fed(logits).par_iter().map(one).collect();
            all = fed.into_iter().fold(all, Self::union);
        })?;
        Ok(all)
    }

    fn union(self, other: Self) -> Self {
        Self {
            logits: self.logits.union(other.logits),
            length: self.length.union(other.length),
            deviation: self.deviation.max(other.deviation),
        }
    }
}

/// Slots that stand for tokens beyond the vocabulary: an output holds its w logits at multiples of a stride, as if
/// there were the next power of two of them, and the weights of those that there are not are zero.
fn zeros(placement: &Placement, slots: usize) -> Vec<u32> {
    let slots = slots as u32;
    let mut used = placement.index_to_slot.clone();
    used.sort_unstable();
    let outputs = used.chunk_by(|a, b| a / slots == b / slots);
    outputs
        .flat_map(|of_one| {
            let stride = slots / (of_one.len() as u32).next_power_of_two().min(slots);
            let first = of_one[0] / slots * slots;
            let all = (first..first + slots).step_by(stride as usize);
            all.filter(|slot| of_one.binary_search(slot).is_err()).collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_beyond_the_vocabulary_are_zero() {
        let placement = |slots: Vec<u32>| Placement { index_to_slot: slots, token_stride: 0 };
        assert_eq!(zeros(&placement(vec![0, 2, 4, 6]), 8), [0_u32; 0]);
        assert_eq!(zeros(&placement(vec![0, 2, 4]), 8), [6]);
        let two_outputs = (0..8).chain([8, 10, 12]).collect();
        assert_eq!(zeros(&placement(two_outputs), 8), [14]);
    }

    #[test]
    fn numbers_are_spread_evenly() {
        assert_eq!(spread(10, 4), [0, 2, 5, 7]);
        assert_eq!(spread(3, 9), [0, 1, 2]);
    }
}
