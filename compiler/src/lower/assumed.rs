//! What is taken for granted where there are no weights, or no text to calibrate on.
//!
//! Ranges are those of an ordinary model that was trained and is not extreme: entries of the residual stream, of queries,
//! keys and values, of gates and up-projections have variance one, as they have with weights of variance 1/width, and
//! scores spread over twenty. They decide the depth of polynomials and the magnitudes of bootstraps, so that what is
//! predicted of such a program is what an ordinary model of its shape costs. None of it is true of a model at hand.

use cachemir_ir::graph::{Definition, ValueId};
use cachemir_ir::slots::{SlotGraph, SlotOp};
use cachemir_ir::tensor::Range;

use super::plan::{SiteRange, SoftmaxPlan};
use super::tables::{Map, map_of};
use super::{Site, SlotProgram, calibrate};

/// Largest score.
const SCORE: f64 = 10.0;

/// Eight standard deviations of queries, keys and values.
const PROJECTION: f64 = 8.0;

/// What the packed stream keeps to, and all that is divided by its bound.
const NORMALISED: f64 = std::f64::consts::SQRT_2;

/// Sums that no bootstrap meets.
const WIDE: f64 = 64.0;

/// What a site holds in sessions of up to `context` tokens.
pub(super) fn range(site: Site, context: usize) -> SiteRange {
    let tokens = context.max(2) as f64;
    let range = match site {
        Site::Norm { .. } => Range { min: 0.02, max: 4.0 },
        Site::Scores { .. } => Range { min: -SCORE, max: SCORE },
        // Of all tokens with scores of variance one, Σ exp((x − 10)/2) is tokens/131.
        Site::Sum { stage: 0, .. } => Range { min: 0.01, max: (tokens / 128.0).max(4.0) },
        // Squares of shares: from those of equal ones up to that of a single one.
        Site::Sum { .. } | Site::Denominator { .. } => Range { min: (1.0 / tokens).min(0.01), max: 1.0 },
        Site::Gate { .. } | Site::Up { .. } => Range { min: -6.0, max: 6.0 },
    };
    SiteRange { text: range, everyday: range, rare: range, all: range, derived: None }
}

/// One squaring, of scores up to the largest, of whole keys.
pub(super) fn softmax() -> SoftmaxPlan {
    SoftmaxPlan { reference: SCORE, reference_keys: Vec::new(), exponents: vec![0.0; 2] }
}

/// Fills in the magnitudes of a program of so many layers.
pub(super) fn magnitudes(program: &mut SlotProgram, layers: usize) {
    for entry in &mut program.entries {
        let graph = &mut entry.graph;
        let mut bounds = vec![WIDE; graph.values.len()];
        for input in &graph.inputs {
            bounds[input.index()] = NORMALISED;
        }
        graph.for_each_op(|op, _| {
            let node = graph.node(op);
            match &node.op {
                SlotOp::StateRead { .. } => node.results.iter().for_each(|value| bounds[value.index()] = PROJECTION),
                SlotOp::Refresh { .. } => {
                    for (&operand, result) in node.inputs.iter().zip(&node.results) {
                        let bound = if is_attended(graph, operand, layers) { PROJECTION } else { NORMALISED };
                        (bounds[operand.index()], bounds[result.index()]) = (bound, bound);
                    }
                }
                _ => {}
            }
        });
        for (value, bound) in graph.values.iter_mut().zip(bounds) {
            value.ty.max_abs = bound;
        }
        calibrate::bound_arguments(graph);
    }
}

/// Whether a value holds queries, keys or values as their weights give them.
fn is_attended(graph: &SlotGraph, value: ValueId, layers: usize) -> bool {
    let Definition::Result(op, _) = graph.values[value.index()].definition else { return false };
    let SlotOp::Linear(linear) = &graph.node(op).op else { return false };
    let maps = linear.matrices().filter_map(|(_, matrix)| map_of(matrix.weights, layers));
    maps.into_iter().any(|map| matches!(map, Map::Query | Map::Key | Map::Value))
}
