//! How many slots a model is packed into: the number with which a session is predicted to be fastest.
//!
//! More slots make linear maps and attention cheaper, as each product and rotation serves more of a matrix and more tokens
//! of the cache, and a prefill takes in more tokens at once; bootstraps become dearer. Prices are those of a [`Sketch`]
//! placed like a whole program.

use cachemir_ir::ckks::Levels;
use cachemir_ir::cost::{CostTable, token_ns};
use cachemir_ir::operations::middle;
use cachemir_ir::program::EntryKind;
use rayon::prelude::*;

use crate::lower::{LowerOptions, Shape, Sketch, Survey};
use crate::placement;
use crate::progress::{Observer, Parts, Pass};

/// The fastest of one or more shapes, the one with fewest slots among equals; the first one where no sketch can be placed,
/// which is for the placement of the whole program to explain. The observer sees [`Pass::Pack`].
pub(crate) fn fastest(
    survey: &Survey<'_>,
    shapes: &[Shape],
    levels: Levels,
    costs: &CostTable,
    options: &LowerOptions,
    observer: &dyn Observer,
) -> Shape {
    let progress = Parts::begin(observer, Pass::Pack, shapes.len());
    if let [only] = shapes {
        progress.one();
        return only.clone();
    }
    let sketches = survey.sketches(shapes, options);
    let time = |sketch: &Sketch| {
        let ns = ns_per_token(sketch, levels, costs);
        progress.one();
        ns
    };
    let times: Vec<Option<f64>> = sketches.par_iter().map(time).collect();
    let known = shapes.iter().zip(times).filter_map(|(shape, ns)| Some((shape, ns?)));
    known.min_by(|(_, a), (_, b)| a.total_cmp(b)).map_or(&shapes[0], |(shape, _)| shape).clone()
}

/// Predicted time of a token of a session in nanoseconds on one thread; `None` where the sketch cannot be placed.
fn ns_per_token(sketch: &Sketch, levels: Levels, costs: &CostTable) -> Option<f64> {
    let placed = placement::place(&sketch.program, levels, costs, &()).ok()?;
    let call_ns = |kind: EntryKind| {
        let tokens = kind.chunk().unwrap_or(1);
        let position = middle(placed.context) / tokens * tokens;
        let of_layer = |(layer, ns): (Option<u32>, f64)| layer.map_or(1.0, |_| sketch.layers_per_layer) * ns;
        costs.predict_layers(&placed, kind.entry(), position.into()).into_iter().map(of_layer).sum::<f64>()
    };
    let calls: Vec<_> = placed.entries.iter().map(|entry| (entry.kind, call_ns(entry.kind))).collect();
    Some(token_ns(&calls))
}
