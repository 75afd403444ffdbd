//! Bounds that the weights alone give.
//!
//! A norm's result has at most 1 + slack times the length √d (see [`crate::approximate::inverse_root`]), so that a row w of
//! the weights that follow, the norm's factors γ multiplied in, gives at most (1 + slack)·√d·‖w‖ by Cauchy and Schwarz, and
//! its bias b at most |b| more.
//!
//! A slot that does not matter holds parts of the sums of two neighbouring rows over different entries of the norm's result,
//! which together are at most √2 times as large.
//!
//! A score is the inner product of a head's query and a key, of which each has at most the length (1 + slack)·√d·σ + ‖b‖
//! for the largest singular value σ of the head's weights W·diag(γ) and its bias b. Rotary embedding turns both, by cosines
//! and sines whose own length is a factor; what keys are stored less of adds its length to theirs. Every slot of scores
//! holds a whole inner product or zero.

use std::sync::Arc;

use cachemir_ir::tensor::{Range, RopeTable, TensorModel};
use nalgebra::DMatrix;
use rayon::prelude::*;

use super::plan::{SiteRanges, SoftmaxPlan, Step};
use super::roles::{Roles, Weighted};
use super::{Site, tables::Map};
use crate::Error;
use crate::approximate::SLACK;

/// By how much slots that do not matter may exceed those that do.
pub(super) const JUNK: f64 = std::f64::consts::SQRT_2;

/// Whether no slot of a step's argument, whose values lie in the derived range, leaves the interval of its polynomial.
pub(super) fn holds(step: &Step, derived: Range) -> bool {
    let junk = if matches!(step.site, Site::Scores { .. }) { 1.0 } else { JUNK };
    let [low, high] = [-1.0, 1.0].map(|end| step.affine.argument(end));
    low <= (junk * derived.min).min(0.0) && (junk * derived.max).max(0.0) <= high
}

/// Adds what is known to the ranges of scores, gates and up-projections.
pub(super) fn add(
    model: &TensorModel,
    roles: &Roles,
    softmaxes: &[SoftmaxPlan],
    ranges: &mut SiteRanges,
) -> Result<(), Error> {
    let found: Vec<[(Site, f64); 3]> = roles
        .layers
        .par_iter()
        .enumerate()
        .map(|(layer, layer_roles)| -> Result<_, Error> {
            let linear = |map: Map| &layer_roles.linears[map as usize];
            let gamma = |norm: usize| model.weight(roles.norms[norm].gamma.weight).load();
            let (first, second) = (gamma(2 * layer)?, gamma(2 * layer + 1)?);
            let score =
                largest_score(model, linear(Map::Query), linear(Map::Key), &first, &softmaxes[layer].reference_keys)?;
            Ok([
                (Site::Scores { layer }, layer_roles.scale * score),
                (Site::Gate { layer }, largest_entry(model, linear(Map::Gate), &second)?),
                (Site::Up { layer }, largest_entry(model, linear(Map::Up), &second)?),
            ])
        })
        .collect::<Result<_, _>>()?;
    for (site, bound) in found.into_iter().flatten() {
        ranges.entry(site).or_default().derived = Some(Range { min: -bound, max: bound });
    }
    Ok(())
}

/// The greatest length of a norm's result of this width without its weights.
fn longest_norm(width: usize) -> f64 {
    (1.0 + SLACK) * (width as f64).sqrt()
}

/// The bias of a linear layer; empty where it has none.
fn bias_of(model: &TensorModel, linear: &Weighted) -> Result<Arc<[f32]>, Error> {
    Ok(linear.bias.map_or_else(|| Ok(Arc::default()), |bias| model.weight(bias).load())?)
}

/// The largest entry that a linear layer after a norm can give.
fn largest_entry(model: &TensorModel, linear: &Weighted, gamma: &[f32]) -> Result<f64, Error> {
    let bias = bias_of(model, linear)?.iter().fold(0.0f64, |most, value| most.max(f64::from(value.abs())));
    let row = longest_row(&model.weight(linear.weight).load()?, gamma);
    Ok(longest_norm(gamma.len()) * row + bias)
}

/// The largest product of a query and a key of its head less its reference, ahead of the factor of the scores.
fn largest_score(
    model: &TensorModel,
    query: &Weighted,
    key: &Weighted,
    gamma: &[f32],
    references: &[f32],
) -> Result<f64, Error> {
    let dim = model.hyperparameters.head_dim;
    let lengths = |linear: &Weighted| -> Result<Vec<f64>, Error> {
        let (weights, bias) = (model.weight(linear.weight).load()?, bias_of(model, linear)?);
        let length = |(head, rows): (usize, &[f32])| {
            let bias = bias.get(head * dim..(head + 1) * dim).unwrap_or(&[]);
            let bias = bias.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>().sqrt();
            longest_norm(gamma.len()) * largest_singular_value(rows, gamma) + bias
        };
        Ok(weights.chunks_exact(dim * gamma.len()).enumerate().map(length).collect())
    };
    let (queries, keys) = (lengths(query)?, lengths(key)?);
    let group = (queries.len() / keys.len().max(1)).max(1);
    let turning = rope_factor(&model.rope);
    let key = |head: usize| {
        let reference = references.get(head * dim..(head + 1) * dim).unwrap_or(&[]);
        turning * keys.get(head).unwrap_or(&0.0) + reference.iter().map(|k| f64::from(*k).powi(2)).sum::<f64>().sqrt()
    };
    let products = queries.iter().enumerate().map(|(head, query)| turning * query * key(head / group));
    Ok(products.fold(0.0, f64::max))
}

/// The most that rotary embedding makes a vector longer.
fn rope_factor(rope: &RopeTable) -> f64 {
    let lengths = rope.cosines.iter().zip(&rope.sines).map(|(c, s)| f64::from(*c).hypot(f64::from(*s)));
    lengths.fold(1.0, f64::max)
}

/// The largest singular value of W·diag(γ), or a little more.
fn largest_singular_value(weight: &[f32], gamma: &[f32]) -> f64 {
    const ROUNDING: f64 = 1e-6;
    let width = gamma.len().max(1);
    let entry = |row: usize, column: usize| f64::from(weight[row * width + column]) * f64::from(gamma[column]);
    let matrix = DMatrix::from_fn(weight.len() / width, width, entry);
    let squares = (&matrix * matrix.transpose()).symmetric_eigenvalues();
    squares.max().max(0.0).sqrt() * (1.0 + ROUNDING)
}

/// The largest length of a row of W·diag(γ).
fn longest_row(weight: &[f32], gamma: &[f32]) -> f64 {
    let square = |(w, g): (&f32, &f32)| (f64::from(*w) * f64::from(*g)).powi(2);
    let length = |row: &[f32]| row.iter().zip(gamma).map(square).sum::<f64>().sqrt();
    weight.chunks_exact(gamma.len().max(1)).map(length).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::{largest_singular_value, longest_row};

    #[test]
    fn a_row_is_as_long_as_its_result_can_be() {
        // Rows (3·2, 4·1) and (1·2, 1·1): the longest input along the first gives √52.
        assert!((longest_row(&[3.0, 4.0, 1.0, 1.0], &[2.0, 1.0]) - 52.0f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn a_head_is_as_long_as_its_longest_result() {
        // W·diag(γ) = [[3, 0], [4, 5]], whose singular values are √45 and √5.
        let found = largest_singular_value(&[1.5, 0.0, 2.0, 5.0], &[2.0, 1.0]);
        assert!((found / 45.0f64.sqrt() - 1.0).abs() < 1e-5 && found >= 45.0f64.sqrt(), "{found}");
    }
}
