//! Ranges from calibration text.
//!
//! The tensor stage is fast, so all text goes through it: it gives the ranges of the slots that matter. A part of the
//! text goes through the slots stage, by decoding and by prefill, which adds what the other slots hold.

use std::collections::BTreeMap;
use std::sync::Arc;

use cachemir_ir::expression::Environment;
use cachemir_ir::graph::{Definition, OpId, ValueId};
use cachemir_ir::program::{EntryPoint, pack};
use cachemir_ir::slots::{SlotGraph, SlotOp};
use cachemir_ir::slots_interpreter::{Hooks, Interpreter, Prepared};
use cachemir_ir::tensor::{self, Range, TensorModel, TensorOp};
use rayon::prelude::*;

use super::entry::SiteUse;
use super::plan::{SiteRange, SiteRanges, SoftmaxPlan};
use super::roles::Roles;
use super::tables::{MAPS, Map};
use super::{LowerOptions, Shape, Site, SlotProgram, assumed, reference, softmax};
use crate::Error;
use crate::calibration::Calibration;
use crate::progress::{Observer, Parts, Pass};

/// Most squarings of a softmax.
const MOST_SQUARINGS: usize = 8;

/// What the tensor stage tells.
pub(super) struct TensorRanges {
    /// Squarings and references.
    pub(super) softmaxes: Vec<SoftmaxPlan>,
    /// Ranges of the slots that matter.
    pub(super) ranges: SiteRanges,
    /// By everyday prompt and norm: the mean squares.
    pub(super) everyday: Vec<Vec<Range>>,
}

impl TensorRanges {
    /// What is taken for granted of a model that has no text or no weights.
    pub(super) fn assumed(layers: usize) -> Self {
        Self { softmaxes: vec![assumed::softmax(); layers], ranges: SiteRanges::new(), everyday: Vec::new() }
    }
}

/// Powers of the number of tokens that sums may be multiplied by.
const EXPONENTS: [f64; 9] = [0.0, -0.25, 0.25, -0.5, 0.5, -0.75, 0.75, -1.0, 1.0];

/// Ranges of the sums of one y, times each power.
type SumRanges = [Range; EXPONENTS.len()];

/// What was seen in the rows of one softmax, with one choice of its reference keys.
#[derive(Clone)]
struct RowRanges {
    scores: Range,
    /// By number k of squarings: for j = 0..=k the ranges of Σ y_j, with reference 0.
    sums: BTreeMap<usize, Vec<SumRanges>>,
}

impl RowRanges {
    /// Nothing yet, for each of these numbers of squarings.
    fn new(squarings: impl Iterator<Item = usize>) -> Self {
        let sums = squarings.map(|squarings| (squarings, vec![SumRanges::default(); squarings + 1])).collect();
        Self { scores: Range::default(), sums }
    }

    /// Includes a row in each of several choices of reference keys, given what each lowers its scores by: Σ y_0 changes by a
    /// factor then, and later sums, of y that were normalised, not at all.
    fn include(ways: &mut [Self], falls: &[f64], row: &[f64]) {
        let powers = EXPONENTS.map(|exponent| (row.len() as f64).powf(exponent));
        let wanted = |ways: &[Self], squarings: usize| ways.iter().any(|rows| rows.sums.contains_key(&squarings));
        let most = ways.iter().filter_map(|rows| rows.sums.keys().next_back().copied()).max().unwrap_or(0);
        // exp(x/2^k) for the largest k, then its squares.
        let mut roots: Vec<f64> = row.iter().map(|x| (x / f64::from(1u32 << most)).exp()).collect();
        let mut y = Vec::with_capacity(row.len());
        for squarings in (1..=most).rev() {
            if wanted(ways, squarings) {
                y.clone_from(&roots);
                for stage in 0..=squarings {
                    let sum = sum(&y);
                    for (rows, fall) in ways.iter_mut().zip(falls) {
                        let Some(stages) = rows.sums.get_mut(&squarings) else { continue };
                        let lowered = if stage == 0 { sum * (-fall / f64::from(1u32 << squarings)).exp() } else { sum };
                        for (range, power) in stages[stage].iter_mut().zip(powers) {
                            range.include(lowered * power);
                        }
                    }
                    if stage < squarings {
                        let factor = 1.0 / sum;
                        for y in &mut y {
                            *y = (*y * factor).powi(2);
                        }
                    }
                }
            }
            for root in &mut roots {
                *root *= *root;
            }
        }
        let mut scores = Range::default();
        for &x in row {
            scores.include(x);
        }
        for (rows, fall) in ways.iter_mut().zip(falls) {
            rows.scores = rows.scores.union(Range { min: scores.min - fall, max: scores.max - fall });
        }
    }

    /// The fewest squarings after which the first sums vary as little as a rough reciprocal may have it.
    fn squarings(&self, options: &LowerOptions) -> usize {
        let narrow = |(_, stages): &(&usize, &Vec<SumRanges>)| {
            let range = stages[0][narrowest(&stages[0])].widened_ratio(options.margin);
            range.max / range.min <= options.rough_ratio
        };
        self.sums.iter().find(narrow).map_or(MOST_SQUARINGS, |(&squarings, _)| squarings)
    }
}

/// The sum of all numbers, by several sums at a time.
fn sum(numbers: &[f64]) -> f64 {
    const LANES: usize = 8;
    let (blocks, rest) = numbers.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for block in blocks {
        sums.iter_mut().zip(block).for_each(|(sum, number)| *sum += number);
    }
    sums.iter().chain(rest).sum()
}

/// The number of the power that makes the ratio of a sum's largest to its smallest value least.
fn narrowest(ranges: &SumRanges) -> usize {
    let mut best = 0;
    for (index, range) in ranges.iter().enumerate() {
        if range.max * ranges[best].min < 0.99 * ranges[best].max * range.min {
            best = index;
        }
    }
    best
}

/// A softmax of the model.
struct Softmax {
    op: OpId,
    /// Reference keys that its keys may be stored less; empty if there are none.
    keys: Vec<f32>,
}

impl Softmax {
    /// Ways to store keys: whole, and less the reference keys.
    fn ways(&self) -> impl Iterator<Item = Vec<f32>> {
        [Vec::new(), self.keys.clone()].into_iter().take(if self.keys.is_empty() { 1 } else { 2 })
    }

    /// Includes the rows of the tokens fed last in each of the ways.
    fn include(&self, model: &TensorModel, interpreter: &tensor::Interpreter<'_>, ways: &mut [RowRanges]) {
        match reference::ScoreRows::of(model, self.op) {
            Some(rows) if ways.len() > 1 => {
                rows.lowered(interpreter, &self.keys)
                    .for_each(|(fall, row)| RowRanges::include(ways, &[0.0, fall], row));
            }
            _ => {
                let rows = interpreter.rows(model.graph.node(self.op).inputs[0]);
                rows.for_each(|row| RowRanges::include(ways, &[0.0], row));
            }
        }
    }
}

/// What of a model is watched.
struct Watched<'m> {
    model: &'m TensorModel,
    /// Norms, by their mean squares.
    norms: Vec<OpId>,
    softmaxes: Vec<Softmax>,
    /// Values, by their entries.
    values: Vec<ValueId>,
}

/// What was seen in the tensor stage.
struct Seen {
    /// By value that was watched: its entries.
    values: Vec<Range>,
    /// By softmax: in each way to store its keys.
    rows: Vec<Vec<RowRanges>>,
    /// By sequence and norm: the mean squares.
    mean_squares: Vec<Vec<Range>>,
}

impl Watched<'_> {
    /// Reads sequences behind a prefix. `rows` are to be filled.
    fn read(
        &self,
        prefix: &[u32],
        sequences: &[Vec<u32>],
        rows: Vec<Vec<RowRanges>>,
        parts: &Parts<'_>,
    ) -> Result<Seen, Error> {
        let Self { model, norms, softmaxes, values } = self;
        let mut seen = Seen {
            values: vec![Range::default(); values.len()],
            rows,
            mean_squares: vec![vec![Range::default(); norms.len()]; sequences.len()],
        };
        let slices: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        tensor::read(model, prefix, &slices, |interpreter, first| {
            seen.values.par_iter_mut().zip(values).for_each(|(range, &value)| {
                interpreter.fed(value).iter().flatten().for_each(|&x| range.include(x));
            });
            for (index, &op) in norms.iter().enumerate() {
                let fed = interpreter.fed(model.graph.node(op).inputs[0]);
                for (x, &(session, _)) in fed.iter().zip(interpreter.places()) {
                    seen.mean_squares[first + session][index].include(tensor::mean_square(x));
                }
            }
            let rows = seen.rows.par_iter_mut().zip(softmaxes);
            rows.for_each(|(ways, softmax)| softmax.include(model, interpreter, ways));
            parts.some(interpreter.places().len());
        })?;
        Ok(seen)
    }
}

/// Runs all sequences through the tensor stage.
pub(super) fn tensor_ranges(
    model: &TensorModel,
    roles: &Roles,
    calibration: &Calibration,
    options: &LowerOptions,
    observer: &dyn Observer,
) -> Result<TensorRanges, Error> {
    let prefix = &calibration.prefix;
    let fitted = reference::sequences(model, calibration);
    let tokens =
        fitted.iter().chain(calibration.sequences()).map(|sequence| sequence.len().saturating_sub(prefix.len()));
    let parts = Parts::begin(observer, Pass::ModelRanges, tokens.sum());
    let ops = |wanted: fn(&TensorOp) -> bool| -> Vec<OpId> {
        model.ops().filter(|(_, node)| wanted(&node.op)).map(|(op, _)| op).collect()
    };
    let norms = ops(|op| matches!(op, TensorOp::RmsNorm { .. }));
    let softmaxes = ops(|op| matches!(op, TensorOp::Softmax));
    let linears = ops(|op| matches!(op, TensorOp::Linear { .. }));
    let gated = |layer: usize| {
        let linear = |map: Map| model.graph.node(linears[MAPS.len() * layer + map as usize]);
        [Map::Gate, Map::Up].map(|map| linear(map).results[0])
    };
    let values: Vec<ValueId> = (0..roles.layers.len()).flat_map(gated).collect();
    let keys = reference::fit(model, &softmaxes, prefix, &fitted, &parts)?;
    let softmaxes = softmaxes.into_iter().zip(keys).map(|(op, keys)| Softmax { op, keys }).collect();
    let watched = Watched { model, norms, softmaxes, values };
    // Text decides the squarings of each way to store keys, and others are seen with these alone.
    let all = |softmax: &Softmax| softmax.ways().map(|_| RowRanges::new(1..=MOST_SQUARINGS)).collect();
    let rows = watched.softmaxes.iter().map(all).collect();
    let text = watched.read(prefix, &calibration.text, rows, &parts)?;
    let chosen =
        |ways: &Vec<RowRanges>| ways.iter().map(|rows| RowRanges::new([rows.squarings(options)].into_iter())).collect();
    let rows: Vec<Vec<RowRanges>> = text.rows.iter().map(chosen).collect();
    let everyday = watched.read(prefix, &calibration.everyday, rows.clone(), &parts)?;
    let rare = watched.read(prefix, &calibration.rare, rows, &parts)?;
    let tiers = [&text, &everyday, &rare];

    let mut seen = SiteRanges::new();
    let range = |of: &dyn Fn(&Seen) -> Range| SiteRange::of(tiers.map(of));
    for index in 1..watched.norms.len() {
        let union =
            |seen: &Seen| seen.mean_squares.iter().map(|norms| norms[index]).fold(Range::default(), Range::union);
        seen.insert(Site::Norm { index }, range(&union));
    }
    let mut plans = Vec::new();
    for (layer, softmax) in watched.softmaxes.iter().enumerate().take(roles.layers.len()) {
        let ways = softmax.ways().enumerate().map(|(way, keys)| (keys, tiers.map(|tier| &tier.rows[layer][way])));
        let (plan, ranges) = shallowest_softmax(layer, ways, options);
        plans.push(plan);
        seen.extend(ranges);
        for (which, site) in [Site::Gate { layer }, Site::Up { layer }].into_iter().enumerate() {
            seen.insert(site, range(&|seen| seen.values[2 * layer + which]));
        }
    }
    Ok(TensorRanges { softmaxes: plans, ranges: seen, everyday: everyday.mean_squares })
}

/// Of several reference keys, with what was seen in the rows of each, the first that leads to the fewest squarings, each of
/// which is a pass over all keys, and then to the fewest levels.
fn shallowest_softmax<'r>(
    layer: usize,
    ways: impl Iterator<Item = (Vec<f32>, [&'r RowRanges; 3])>,
    options: &LowerOptions,
) -> (SoftmaxPlan, SiteRanges) {
    let ways = ways.map(|(keys, tiers)| plan_softmax(layer, keys, tiers, options));
    let price = |(plan, ranges): &(SoftmaxPlan, SiteRanges)| {
        (plan.squarings(), softmax::steps(layer, plan, &|site| ranges[&site], options).depth())
    };
    ways.min_by_key(price).expect("keys can be stored whole")
}

/// The squarings and reference of a softmax with these reference keys, and the ranges of its sites, from what was seen in the
/// rows of text, of everyday prompts and of rare tokens.
fn plan_softmax(
    layer: usize,
    reference_keys: Vec<f32>,
    tiers: [&RowRanges; 3],
    options: &LowerOptions,
) -> (SoftmaxPlan, SiteRanges) {
    let rows = tiers[0];
    let squarings = rows.squarings(options);
    let reference = rows.scores.max;
    let factor = (-reference / f64::from(1u32 << squarings)).exp();
    let mut ranges = SiteRanges::from([(Site::Scores { layer }, SiteRange::of(tiers.map(|rows| rows.scores)))]);
    let mut exponents = Vec::new();
    for (stage, sums) in rows.sums[&squarings].iter().enumerate() {
        let which = narrowest(sums);
        let site = if stage < squarings { Site::Sum { layer, stage } } else { Site::Denominator { layer } };
        let factor = if stage == 0 { factor } else { 1.0 };
        let range = |rows: &RowRanges| {
            let range = rows.sums[&squarings][stage][which];
            Range { min: range.min * factor, max: range.max * factor }
        };
        ranges.insert(site, SiteRange::of(tiers.map(range)));
        exponents.push(EXPONENTS[which]);
    }
    (SoftmaxPlan { reference, reference_keys, exponents }, ranges)
}

/// The embedding of a model.
pub(super) struct Embedding {
    entries: Arc<[f32]>,
    width: usize,
}

impl Embedding {
    /// Reads it.
    pub(super) fn of(model: &TensorModel) -> Result<Self, Error> {
        let weight = model.ops().find_map(|(_, node)| match node.op {
            TensorOp::Embedding { weight } => Some(model.weight(weight)),
            _ => None,
        });
        let none = || Error::Ir(cachemir_ir::Error::Execution("the model has no embedding".to_owned()));
        let weight = weight.ok_or_else(none)?;
        Ok(Self { entries: weight.load()?, width: weight.columns() })
    }

    /// The inputs of a call on these tokens.
    pub(super) fn embed(&self, program: &SlotProgram, tokens: &[u32]) -> Result<Vec<Vec<f64>>, Error> {
        let rows = self.entries.len() / self.width.max(1);
        let embedding = |&token: &u32| {
            self.entries.chunks_exact(self.width.max(1)).nth(token as usize).ok_or_else(|| {
                let message = format!("calibration token {token} is not in the vocabulary of {rows}");
                Error::Ir(cachemir_ir::Error::Execution(message))
            })
        };
        let embeddings = tokens.iter().map(embedding).collect::<Result<Vec<_>, _>>()?;
        let packed = pack(&program.inputs, &program.embedding, program.slots as usize, &embeddings);
        Ok(packed.expect("a chunk's tokens have slots"))
    }
}

/// Calls that [`run`] makes for all of these sequences behind a prefix of so many tokens, about.
fn calls(shape: &Shape, prefix: usize, sequences: &[Vec<u32>]) -> usize {
    let calls = |length: usize| length + length.div_ceil(shape.chunk);
    sequences.iter().map(|sequence| calls(sequence.len().saturating_sub(prefix))).sum()
}

/// Runs a sequence by decoding and, from an empty state again, by prefill.
fn run(
    embedding: &Embedding,
    shape: &Shape,
    program: &SlotProgram,
    interpreter: &mut Interpreter<'_>,
    sequence: &[u32],
    hooks: [&mut dyn Hooks; 2],
    progress: &Parts<'_>,
) -> Result<(), Error> {
    let [decode, prefill] = hooks;
    let first = program.prefix.len();
    interpreter.reset();
    for (position, &token) in sequence.iter().enumerate().skip(first) {
        let input = embedding.embed(program, &[token])?;
        interpreter.call_with(EntryPoint::Decode, position as i64, 1, &input, decode)?;
        progress.one();
    }
    if program.entry(EntryPoint::Prefill).is_none() {
        return Ok(());
    }
    interpreter.reset();
    // A prefill begins at a multiple of the chunk: tokens ahead of the first one go in one by one.
    let aligned = first.next_multiple_of(shape.chunk).min(sequence.len());
    for (position, &token) in sequence.iter().enumerate().take(aligned).skip(first) {
        interpreter.call_with(EntryPoint::Decode, position as i64, 1, &embedding.embed(program, &[token])?, decode)?;
    }
    for (index, tokens) in sequence[aligned..].chunks(shape.chunk).enumerate() {
        let position = aligned + index * shape.chunk;
        let input = embedding.embed(program, tokens)?;
        interpreter.call_with(EntryPoint::Prefill, position as i64, tokens.len() as i64, &input, prefill)?;
        progress.one();
    }
    Ok(())
}

/// Replaces polynomials by the functions they stand for, and records ranges.
pub(super) struct Recorder<'u> {
    uses: BTreeMap<OpId, &'u SiteUse>,
    slots: usize,
    ranges: SiteRanges,
}

impl<'u> Recorder<'u> {
    pub(super) fn new(uses: &'u [SiteUse], slots: usize) -> Self {
        Self { uses: uses.iter().map(|site| (site.op, site)).collect(), slots, ranges: SiteRanges::new() }
    }

    fn record(&mut self, site: &SiteUse, environment: Option<&Environment>, values: &[f64]) {
        let range = self.ranges.entry(site.site).or_default();
        for &u in values {
            range.all.include(site.affine.argument(u));
        }
        let kept = match (&site.meaningful, environment) {
            (Some(condition), Some(environment)) => condition.evaluate_slots(environment, self.slots),
            _ => return,
        };
        for (&u, keep) in values.iter().zip(kept) {
            if keep != 0 {
                range.text.include(site.affine.argument(u));
            }
        }
    }
}

impl Hooks for Recorder<'_> {
    fn polynomial(&mut self, op: OpId, environment: &Environment, operand: &[f64]) -> Option<Vec<f64>> {
        let site = *self.uses.get(&op)?;
        let function = site.function?;
        self.record(site, Some(environment), operand);
        Some(operand.iter().map(|&u| function.evaluate(site.affine.argument(u))).collect())
    }

    fn observe(&mut self, op: OpId, results: &[&[f64]]) {
        if let Some(&site) = self.uses.get(&op)
            && site.function.is_none()
            && let Some(values) = results.get(site.result)
        {
            self.record(site, None, values);
        }
    }
}

/// Ranges of all sites over the sequences, those of the tensor stage included.
pub(super) fn site_ranges(
    model: &TensorModel,
    shape: &Shape,
    program: &SlotProgram,
    uses: &[Vec<SiteUse>; 2],
    sequences: &[Vec<u32>],
    mut seen: SiteRanges,
    observer: &dyn Observer,
) -> Result<SiteRanges, Error> {
    let progress = Parts::begin(observer, Pass::SlotRanges, calls(shape, program.prefix.len(), sequences));
    let (prepared, embedding) = (Arc::new(Prepared::new(program)), Embedding::of(model)?);
    let parts: Vec<Result<Vec<SiteRanges>, Error>> = sequences
        .par_iter()
        .map(|sequence| {
            let mut interpreter = Interpreter::of(Arc::clone(&prepared));
            let [mut decode, mut prefill] = [0, 1].map(|entry| Recorder::new(&uses[entry], shape.slots));
            run(&embedding, shape, program, &mut interpreter, sequence, [&mut decode, &mut prefill], &progress)?;
            Ok(vec![decode.ranges, prefill.ranges])
        })
        .collect();
    for part in parts {
        for (site, range) in part?.into_iter().flatten() {
            let known = seen.entry(site).or_default();
            known.all = known.all.union(range.all);
        }
    }
    Ok(seen)
}

/// Runs the sequences through the finished program, which checks all intervals, and fills in magnitudes.
pub(super) fn magnitudes(
    model: &TensorModel,
    shape: &Shape,
    program: &mut SlotProgram,
    sequences: &[Vec<u32>],
    options: &LowerOptions,
    observer: &dyn Observer,
) -> Result<(), Error> {
    let progress = Parts::begin(observer, Pass::Magnitudes, calls(shape, program.prefix.len(), sequences));
    let names: Vec<EntryPoint> = program.entries.iter().map(|entry| entry.kind.entry()).collect();
    let (prepared, embedding) = (Arc::new(Prepared::new(program)), Embedding::of(model)?);
    let parts: Vec<Result<Vec<Vec<f64>>, Error>> = sequences
        .par_iter()
        .map(|sequence| {
            let mut interpreter = Interpreter::of(Arc::clone(&prepared));
            let mut none = [cachemir_ir::slots_interpreter::NoHooks, cachemir_ir::slots_interpreter::NoHooks];
            let [decode, prefill] = &mut none;
            run(&embedding, shape, program, &mut interpreter, sequence, [decode, prefill], &progress)?;
            Ok(names.iter().map(|name| interpreter.max_abs(*name).to_vec()).collect())
        })
        .collect();
    let mut most: Vec<Vec<f64>> = program.entries.iter().map(|entry| vec![0.0; entry.graph.values.len()]).collect();
    for part in parts {
        for (most, part) in most.iter_mut().zip(part?) {
            most.iter_mut().zip(part).for_each(|(most, value)| *most = most.max(value));
        }
    }
    for (entry, most) in program.entries.iter_mut().zip(most) {
        for (value, most) in entry.graph.values.iter_mut().zip(most) {
            value.ty.max_abs = most * (1.0 + options.magnitude_margin);
        }
        bound_arguments(&mut entry.graph);
    }
    Ok(())
}

/// Operands of polynomials lie in [-1, 1], and so does what a refresh hands to them.
pub(super) fn bound_arguments(graph: &mut SlotGraph) {
    let mut arguments = Vec::new();
    graph.for_each_op(|op, _| {
        let node = graph.node(op);
        if matches!(&node.op, SlotOp::Polynomial { polynomial, .. } if polynomial.is_normalised()) {
            let argument = node.inputs[0];
            arguments.push(argument);
            if let Definition::Result(op, index) = graph.values[argument.index()].definition
                && matches!(graph.node(op).op, SlotOp::Refresh { .. })
            {
                arguments.push(graph.node(op).inputs[index as usize]);
            }
        }
    });
    for value in arguments {
        let magnitude = &mut graph.values[value.index()].ty.max_abs;
        *magnitude = magnitude.min(1.0);
    }
}

#[cfg(test)]
mod tests {
    use cachemir_ir::tensor::Range;

    use super::{MOST_SQUARINGS, RowRanges, shallowest_softmax};
    use crate::lower::LowerOptions;

    /// Rows of scores that lie around each of these numbers.
    fn rows_around(levels: &[f64]) -> RowRanges {
        let mut rows = RowRanges::new(1..=MOST_SQUARINGS);
        for level in levels {
            let row = [-1.0, -0.5, 0.0, 0.5, 1.0].map(|x| level + x);
            RowRanges::include(std::slice::from_mut(&mut rows), &[0.0], &row);
        }
        rows
    }

    /// What a row lowers its scores by enters the first sums alone, and is seen with any choice of squarings.
    #[test]
    fn rows_are_seen_less_what_their_scores_fall_by() {
        let row = [3.0, -1.0, 0.5];
        let mut ways = [RowRanges::new(1..=MOST_SQUARINGS), RowRanges::new([2].into_iter())];
        RowRanges::include(&mut ways, &[0.0, 2.0], &row);
        let mut lowered = RowRanges::new(1..=MOST_SQUARINGS);
        RowRanges::include(std::slice::from_mut(&mut lowered), &[0.0], &row.map(|x| x - 2.0));
        let [whole, less] = ways;
        assert_eq!((whole.scores, less.scores), (Range { min: -1.0, max: 3.0 }, lowered.scores));
        assert_eq!(less.sums.keys().collect::<Vec<_>>(), [&2]);
        for (stage, (seen, expected)) in less.sums[&2].iter().zip(&lowered.sums[&2]).enumerate() {
            for (seen, expected) in seen.iter().zip(expected) {
                assert!((seen.max / expected.max - 1.0).abs() < 1e-12, "stage {stage}: {seen:?} is not {expected:?}");
            }
        }
        let exponentials: f64 = row.iter().map(|x| (x / 4.0f64).exp()).sum();
        assert!((whole.sums[&2][0][0].max - exponentials).abs() < 1e-12);
    }

    #[test]
    fn keys_are_stored_less_references_where_that_saves_squarings() {
        let [whole, lowered] = [rows_around(&[-12.0, 0.0, 12.0]), rows_around(&[-1.0, 0.0, 1.0])];
        let chosen = |tiers: [&RowRanges; 2]| {
            let ways = [(Vec::new(), tiers[0]), (vec![1.0], tiers[1])].into_iter();
            shallowest_softmax(0, ways.map(|(keys, rows)| (keys, [rows; 3])), &LowerOptions::default()).0
        };
        let references = chosen([&whole, &lowered]);
        assert_eq!((references.reference_keys.len(), references.squarings()), (1, 1));
        let kept = chosen([&lowered, &whole]);
        assert_eq!((kept.reference_keys.len(), kept.squarings()), (0, 1));
        assert!(chosen([&whole, &whole]).squarings() > 1, "rows as far apart as these take more");
        assert!(chosen([&lowered, &lowered]).reference_keys.is_empty(), "what brings nothing is not done");
    }
}
