//! Ranges from calibration text.
//!
//! The tensor stage is fast, so all text goes through it: it gives the ranges of the slots that matter. A part of the
//! text goes through the slots stage, by decoding and by prefill, which adds what the other slots hold.

use std::collections::BTreeMap;
use std::sync::Arc;

use cachemir_ir::expression::Environment;
use cachemir_ir::graph::{Definition, OpId};
use cachemir_ir::program::{EntryPoint, pack};
use cachemir_ir::slots::{SlotGraph, SlotOp};
use cachemir_ir::slots_interpreter::{Hooks, Interpreter, Prepared};
use cachemir_ir::tensor::{self, Range, TensorModel, TensorOp};
use rayon::prelude::*;

use super::entry::SiteUse;
use super::plan::{SiteRange, SiteRanges, SoftmaxPlan};
use super::roles::Roles;
use super::{LowerOptions, Shape, Site, SlotProgram, assumed, reference};
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

/// What was seen in the rows of one softmax.
#[derive(Clone)]
struct Rows {
    scores: Range,
    /// By squarings k = 1, 2, …: for j = 0..=k the ranges of Σ y_j, with reference 0, times each power.
    sums: Vec<Vec<[Range; EXPONENTS.len()]>>,
}

impl Rows {
    fn new() -> Self {
        let sums = (1..=MOST_SQUARINGS).map(|squarings| vec![Default::default(); squarings + 1]).collect();
        Self { scores: Range::default(), sums }
    }

    fn include(&mut self, row: &[f64]) {
        for &x in row {
            self.scores.include(x);
        }
        let powers = EXPONENTS.map(|exponent| (row.len() as f64).powf(exponent));
        // exp(x/2^k) for the largest k, then its squares.
        let divisor = f64::from(1u32 << MOST_SQUARINGS);
        let mut roots: Vec<f64> = row.iter().map(|x| (x / divisor).exp()).collect();
        let mut y = Vec::with_capacity(row.len());
        for sums in self.sums.iter_mut().rev() {
            y.clone_from(&roots);
            for root in &mut roots {
                *root *= *root;
            }
            let stages = sums.len();
            for (stage, ranges) in sums.iter_mut().enumerate() {
                let sum = sum(&y);
                for (range, power) in ranges.iter_mut().zip(powers) {
                    range.include(sum * power);
                }
                if stage + 1 < stages {
                    let factor = 1.0 / sum;
                    for y in &mut y {
                        *y = (*y * factor).powi(2);
                    }
                }
            }
        }
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
fn narrowest(ranges: &[Range; EXPONENTS.len()]) -> usize {
    let mut best = 0;
    for (index, range) in ranges.iter().enumerate() {
        if range.max * ranges[best].min < 0.99 * ranges[best].max * range.min {
            best = index;
        }
    }
    best
}

/// What was seen in the tensor stage.
struct Seen {
    ranges: tensor::Ranges,
    /// By softmax.
    rows: Vec<Rows>,
    /// By sequence and norm: the mean squares.
    mean_squares: Vec<Vec<Range>>,
}

impl Seen {
    fn collect(
        model: &TensorModel,
        norms: &[OpId],
        softmaxes: &[(OpId, Vec<f32>)],
        sequences: &[Vec<u32>],
        prefix: &[u32],
        parts: &Parts<'_>,
    ) -> Result<Self, Error> {
        let mut seen = Self {
            ranges: tensor::Ranges::new(model),
            rows: vec![Rows::new(); softmaxes.len()],
            mean_squares: Vec::new(),
        };
        seen.mean_squares = vec![vec![Range::default(); norms.len()]; sequences.len()];
        let slices: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        tensor::read(model, prefix, &slices, |interpreter, first| {
            seen.ranges.record(model, interpreter);
            for (index, &op) in norms.iter().enumerate() {
                let fed = interpreter.fed(model.graph.node(op).inputs[0]);
                for (x, &(session, _)) in fed.iter().zip(interpreter.places()) {
                    seen.mean_squares[first + session][index].include(tensor::mean_square(x));
                }
            }
            seen.rows.par_iter_mut().zip(softmaxes).for_each(|(rows, (op, keys))| {
                let queries = reference::Rows::of(model, *op).into_iter();
                for (fall, row) in queries.flat_map(|queries| queries.lowered(interpreter, keys)) {
                    let lowered: Vec<f64> = row.iter().map(|score| score - fall).collect();
                    rows.include(&lowered);
                }
            });
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
    let parts = Parts::begin(observer, Pass::ModelRanges, calibration.sequences().map(Vec::len).sum());
    let graph = &model.graph;
    let ops = |wanted: fn(&TensorOp) -> bool| -> Vec<OpId> {
        graph.body.ops.iter().copied().filter(|&op| wanted(&graph.node(op).op)).collect()
    };
    let norms = ops(|op| matches!(op, TensorOp::RmsNorm { .. }));
    let softmaxes = ops(|op| matches!(op, TensorOp::Softmax));
    let linears = ops(|op| matches!(op, TensorOp::Linear { .. }));
    let keys = reference::fit(model, &softmaxes, calibration)?;
    let softmaxes: Vec<(OpId, Vec<f32>)> = softmaxes.into_iter().zip(keys).collect();
    let kinds = [&calibration.text, &calibration.everyday, &calibration.rare];
    let collect =
        |sequences: &&Vec<Vec<u32>>| Seen::collect(model, &norms, &softmaxes, sequences, &calibration.prefix, &parts);
    let mut tiers: Vec<Seen> = kinds.iter().map(collect).collect::<Result<_, _>>()?;
    let text = &tiers[0];

    let mut seen = SiteRanges::new();
    let mut insert = |site: Site, of: &dyn Fn(&Seen) -> Range| {
        let [text, everyday, rare] = [0, 1, 2].map(|tier| of(&tiers[tier]));
        seen.insert(site, SiteRange { text, everyday, rare, all: text, derived: None });
    };
    for (index, &op) in norms.iter().enumerate().skip(1) {
        insert(Site::Norm { index }, &|seen| seen.ranges.mean_square(op));
    }
    let mut plans = Vec::new();
    for (layer, (rows, (_, keys))) in text.rows.iter().zip(&softmaxes).enumerate().take(roles.layers.len()) {
        let narrow = |squarings: &usize| {
            let sums = &rows.sums[squarings - 1][0];
            let range = sums[narrowest(sums)].widened_ratio(options.margin);
            range.max / range.min <= options.rough_ratio
        };
        let squarings = (1..=MOST_SQUARINGS).find(narrow).unwrap_or(MOST_SQUARINGS);
        let reference = rows.scores.max;
        let factor = (-reference / f64::from(1u32 << squarings)).exp();
        let mut exponents = Vec::new();
        for (stage, ranges) in rows.sums[squarings - 1].iter().enumerate() {
            let which = narrowest(ranges);
            let site = if stage < squarings { Site::Sum { layer, stage } } else { Site::Denominator { layer } };
            let factor = if stage == 0 { factor } else { 1.0 };
            insert(site, &|seen| {
                let range = seen.rows[layer].sums[squarings - 1][stage][which];
                Range { min: range.min * factor, max: range.max * factor }
            });
            exponents.push(EXPONENTS[which]);
        }
        insert(Site::Scores { layer }, &|seen| seen.rows[layer].scores);
        for (site, which) in [(Site::Gate { layer }, 4), (Site::Up { layer }, 5)] {
            let value = graph.node(linears[7 * layer + which]).results[0];
            insert(site, &|seen| seen.ranges.value(value));
        }
        plans.push(SoftmaxPlan { reference, reference_keys: keys.clone(), exponents });
    }
    let everyday = tiers.swap_remove(1).mean_squares;
    Ok(TensorRanges { softmaxes: plans, ranges: seen, everyday })
}

/// The embedding of a model.
pub(super) struct Embedding {
    entries: Arc<[f32]>,
    width: usize,
}

impl Embedding {
    /// Reads it.
    pub(super) fn of(model: &TensorModel) -> Result<Self, Error> {
        let graph = &model.graph;
        let weight = graph.body.ops.iter().find_map(|&op| match graph.node(op).op {
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
