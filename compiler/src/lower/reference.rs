//! Reference keys: what the keys of a KV head are stored less of.
//!
//! A softmax does not change where all scores of a row change alike. So keys may be stored less a vector κ of their KV head,
//! turned or not: each row's scores fall by scale·⟨q, κ⟩. With κ chosen by least squares so that this follows ln Σ exp of the
//! row, sums of exponentials spread over fewer orders of magnitude, and fewer squarings and lower degrees cover them. In the
//! program it is one plaintext summand a key, and no level.

use cachemir_ir::graph::OpId;
use cachemir_ir::tensor::{self, Interpreter, TensorModel, TensorOp};
use nalgebra::{DMatrix, DVector};
use rayon::prelude::*;

use crate::Error;
use crate::calibration::{Calibration, excerpt};
use crate::progress::Parts;

/// Tokens of text, and of those that are rare in it, that references are fitted to, at most.
const TOKENS: [usize; 2] = [1536, 768];

/// Tokens for each entry of a key that a fit takes at least: fewer are fitted by chance.
const LEAST_TOKENS: usize = 4;

/// What the diagonal of the normal equations is raised by, as a part of its mean.
const RIDGE: f64 = 1e-3;

/// Queries ahead of a softmax, and how they become scores.
#[derive(Clone, Copy)]
pub(super) struct ScoreRows<'m> {
    model: &'m TensorModel,
    softmax: OpId,
    scores: OpId,
    heads: usize,
    kv_heads: usize,
    scale: f64,
}

impl<'m> ScoreRows<'m> {
    /// Those of a softmax; `None` where its operand is no product of queries and keys.
    pub(super) fn of(model: &'m TensorModel, softmax: OpId) -> Option<Self> {
        let scores = model.definition(model.graph.node(softmax).inputs[0])?;
        let TensorOp::Scores { heads, kv_heads, scale } = model.graph.node(scores).op else { return None };
        Some(Self { model, softmax, scores, heads: heads as usize, kv_heads: kv_heads as usize, scale })
    }

    /// By token fed last and head: the number of its KV head, its query, and the scores.
    fn each<'i>(self, interpreter: &'i Interpreter<'_>) -> impl Iterator<Item = (usize, &'i [f64], &'i [f64])> {
        let graph = &self.model.graph;
        let (heads, group, dim) = (self.heads, self.heads / self.kv_heads, self.model.hyperparameters.head_dim);
        let queries = interpreter.fed(graph.node(self.scores).inputs[0]).iter().flat_map(move |q| q.chunks_exact(dim));
        let rows = interpreter.rows(graph.node(self.softmax).inputs[0]);
        queries.zip(rows).enumerate().map(move |(index, (query, row))| (index % heads / group, query, row))
    }

    /// By token fed last and head: what its scores fall by with these reference keys, and the scores.
    pub(super) fn lowered<'i>(
        self,
        interpreter: &'i Interpreter<'_>,
        keys: &'i [f32],
    ) -> impl Iterator<Item = (f64, &'i [f64])> {
        let (dim, scale) = (self.model.hyperparameters.head_dim, self.scale);
        self.each(interpreter).map(move |(head, query, row)| {
            let key = keys.get(head * dim..(head + 1) * dim).unwrap_or(&[]);
            (scale * query.iter().zip(key).map(|(q, &k)| q * f64::from(k)).sum::<f64>(), row)
        })
    }
}

/// The normal equations of the reference key of one KV head: Σ q·qᵀ and Σ q·t over rows of scores, whose ln Σ exp is t, with q the
/// query times the factor of the scores.
#[derive(Clone)]
struct Equations {
    matrix: DMatrix<f64>,
    right: DVector<f64>,
}

impl Equations {
    fn new(dim: usize) -> Self {
        Self { matrix: DMatrix::zeros(dim, dim), right: DVector::zeros(dim) }
    }

    fn include(&mut self, query: &[f64], scale: f64, row: &[f64]) {
        let query = DVector::from_iterator(query.len(), query.iter().map(|q| scale * q));
        self.matrix.ger(1.0, &query, &query, 1.0);
        self.right.axpy(log_sum_exp(row), &query, 1.0);
    }

    /// The κ of least squares; zeros where there is none.
    fn solve(mut self) -> Vec<f32> {
        let dim = self.right.len();
        let ridge = RIDGE * self.matrix.trace() / dim as f64;
        (0..dim).for_each(|index| self.matrix[(index, index)] += ridge);
        let solution = self.matrix.cholesky().map(|factors| factors.solve(&self.right));
        solution.map_or_else(|| vec![0.0; dim], |key| key.iter().map(|&entry| entry as f32).collect())
    }
}

/// ln Σ exp(x) over a row.
fn log_sum_exp(row: &[f64]) -> f64 {
    let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    most + row.iter().map(|x| (x - most).exp()).sum::<f64>().ln()
}

/// What references are fitted to: the beginnings of text and of rare tokens.
pub(super) fn sequences(model: &TensorModel, calibration: &Calibration) -> Vec<Vec<u32>> {
    let (prefix, context) = (calibration.prefix.len(), model.hyperparameters.context);
    let parts = [&calibration.text, &calibration.rare].into_iter().zip(TOKENS);
    parts.flat_map(|(sequences, tokens)| excerpt(sequences, prefix, context, tokens)).collect()
}

/// By softmax: the reference keys, `[kv_heads][head_dim]` as the rotary embedding leaves keys, from [`sequences`] behind a
/// prefix. Empty where there is too little text for a fit.
pub(super) fn fit(
    model: &TensorModel,
    softmaxes: &[OpId],
    prefix: &[u32],
    sequences: &[Vec<u32>],
    parts: &Parts<'_>,
) -> Result<Vec<Vec<f32>>, Error> {
    let dim = model.hyperparameters.head_dim;
    let tokens: usize = sequences.iter().map(|sequence| sequence.len().saturating_sub(prefix.len())).sum();
    let rows: Option<Vec<ScoreRows<'_>>> = softmaxes.iter().map(|&op| ScoreRows::of(model, op)).collect();
    let Some(rows) = rows.filter(|_| tokens >= LEAST_TOKENS * dim) else {
        return Ok(vec![Vec::new(); softmaxes.len()]);
    };
    let mut equations: Vec<Vec<Equations>> = rows.iter().map(|rows| vec![Equations::new(dim); rows.kv_heads]).collect();
    let slices: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    tensor::read(model, prefix, &slices, |interpreter, _| {
        equations.par_iter_mut().zip(&rows).for_each(|(equations, rows)| {
            rows.each(interpreter).for_each(|(head, query, row)| equations[head].include(query, rows.scale, row));
        });
        parts.some(interpreter.places().len());
    })?;
    let solved = |equations: Vec<Equations>| equations.into_iter().flat_map(Equations::solve).collect();
    Ok(equations.into_par_iter().map(solved).collect())
}

#[cfg(test)]
mod tests {
    use super::{Equations, log_sum_exp};

    #[test]
    fn a_sum_of_exponentials_is_taken_far_from_one() {
        assert!((log_sum_exp(&[1000.0, 1000.0]) - (1000.0 + 2.0f64.ln())).abs() < 1e-12);
    }

    #[test]
    fn a_key_that_explains_the_rows_is_found() {
        // Rows of two scores whose ln Σ exp is half the inner product with (3, −1).
        let mut equations = Equations::new(2);
        for query in [[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [-1.0, 3.0f64]] {
            let score = 0.5 * (3.0 * query[0] - query[1]) - 2.0f64.ln();
            equations.include(&query, 0.5, &[score, score]);
        }
        let key = equations.solve();
        assert!((key[0] - 3.0).abs() < 0.01 && (key[1] + 1.0).abs() < 0.01, "{key:?}");
    }
}
