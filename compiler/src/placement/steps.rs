//! What the search sees of a program: steps with their depths and times, in one segment a decoder layer.
//!
//! A segment knows no weights, no coefficients and no numbers of layers or caches, only which values meet, how deep each
//! step is and how long it takes at each level. Layers that are alike in that are equal as segments.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cachemir_ir::ckks::{CkksGraph, CkksOp, Levels};
use cachemir_ir::cost::CostTable;
use cachemir_ir::expression::Environment;
use cachemir_ir::graph::{OpId, Region, ValueId};
use cachemir_ir::operations::middle;
use cachemir_ir::program::{Entry, EntryKind, Program};
use cachemir_ir::slots::{SlotGraph, SlotOp, SlotType};
use rayon::prelude::*;

use super::emit::{Assignment, Misfit, emit};

/// An op, in a segment's own numbers of values. A state array counts as a value: reading it needs its level as that of an
/// operand, and writing needs the level of what is written as if the array were the result.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Step {
    pub(super) operands: Vec<usize>,
    pub(super) results: Vec<usize>,
    /// Without a bootstrap.
    pub(super) plain: Run,
    /// For candidates: time of the bootstrap, in nanoseconds, by the level to which its result is dropped.
    pub(super) bootstrap_ns: Option<Vec<u64>>,
}

impl Step {
    /// Whether without a bootstrap each result is the operand of the same place.
    pub(super) fn passes(&self) -> bool {
        self.bootstrap_ns.is_some() && self.plain.depth == 0
    }
}

/// How an op runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Run {
    /// Levels that it takes.
    pub(super) depth: u32,
    /// Time in nanoseconds of all its executions in a call, by the level of its operands; not below its depth.
    pub(super) ns: Vec<u64>,
}

/// Consecutive steps of one decoder layer, or of what comes before or after the layers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Segment {
    /// In execution order; bodies of loops ahead of the sums.
    pub(super) steps: Vec<Step>,
    /// Number of values.
    pub(super) values: usize,
    /// Values from outside: those of earlier segments, inputs and state arrays; with whether an earlier segment, or the
    /// caller, has to do with their levels.
    pub(super) outer: Vec<(usize, bool)>,
    /// Values that later segments use, and state arrays.
    pub(super) ends: Vec<usize>,
}

/// A segment's place in its entry point.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) segment: Arc<Segment>,
    /// By step: its op.
    pub(super) ops: Vec<OpId>,
    /// By value of the segment: the value's or the array's number among all.
    pub(super) numbers: Vec<usize>,
}

impl Part {
    /// Prices those of the ops anew that are in this part.
    pub(super) fn update(&mut self, prices: &Prices<'_>, ops: &[OpId]) -> Result<(), Misfit> {
        for (step, op) in self.ops.iter().enumerate().filter(|(_, op)| ops.contains(op)) {
            Arc::make_mut(&mut self.segment).steps[step].plain = prices.run(*op)?;
        }
        Ok(())
    }
}

/// The number of a state array, which come after all values.
fn state_number(graph: &SlotGraph, state: usize) -> usize {
    graph.values.len() + state
}

/// Prices of ops of one entry point, in the middle of the context as [`CostTable::predict`] has it.
pub(super) struct Prices<'a> {
    graph: &'a SlotGraph,
    states: usize,
    slots: u32,
    levels: Levels,
    costs: &'a CostTable,
    /// By op.
    executions: Vec<f64>,
}

impl<'a> Prices<'a> {
    pub(super) fn new(
        program: &'a Program<SlotOp, SlotType>,
        entry: &'a Entry<SlotOp, SlotType>,
        levels: Levels,
        costs: &'a CostTable,
    ) -> Self {
        let position = i64::from(middle(program.context));
        let (position, count) = match entry.kind {
            EntryKind::Decode => (position, 1),
            EntryKind::Prefill { chunk } => {
                let chunk = i64::from(chunk.max(1));
                (position - position % chunk, chunk.min(i64::from(program.context)))
            }
        };
        let graph = &entry.graph;
        let mut executions = vec![0.0; graph.nodes.len()];
        let slots = i64::from(program.slots.max(1));
        count_executions(graph, &graph.body, slots, &mut Environment::new(position, count), &mut executions);
        Self { graph, states: program.states.len(), slots: program.slots, levels, costs, executions }
    }

    /// How the op runs without a bootstrap: as it is emitted alone.
    pub(super) fn run(&self, op: OpId) -> Result<Run, Misfit> {
        if matches!(self.graph.node(op).op, SlotOp::Sum { .. }) {
            return Ok(Run { depth: 0, ns: self.by_level(|level| self.costs.pass_ns(level), op) });
        }
        let top = self.levels.output;
        let alone = self.alone(op, top, false)?;
        let reached = alone.body.yields.first().map_or(top, |&value| alone.ty(value).level);
        let ns = |level: u32| self.emitted_ns(&alone, top - level);
        Ok(Run { depth: top - reached, ns: self.by_level(ns, op) })
    }

    /// Time of the bootstrap at a candidate, by the level to which its result is dropped; `None` for other ops.
    pub(super) fn bootstrap_ns(&self, op: OpId) -> Result<Option<Vec<u64>>, Misfit> {
        if !matches!(self.graph.node(op).op, SlotOp::Refresh { .. }) {
            return Ok(None);
        }
        let alone: Vec<CkksGraph> =
            (0..=self.levels.output).map(|level| self.alone(op, level, true)).collect::<Result<_, _>>()?;
        Ok(Some(self.by_level(|level| self.emitted_ns(&alone[level as usize], 0), op)))
    }

    /// An op alone, as it is emitted with operands of the highest level; a bootstrap's results are dropped to `level`.
    fn alone(&self, op: OpId, level: u32, bootstrap: bool) -> Result<CkksGraph, Misfit> {
        let node = self.graph.node(op);
        let mut alone = SlotGraph::default();
        let inputs = node.inputs.iter().map(|&value| alone.add_input("", *self.graph.ty(value))).collect();
        let types = node.results.iter().map(|&value| *self.graph.ty(value)).collect();
        let (id, results) = alone.add_node(node.op.clone(), inputs, types, None, None);
        alone.body = Region { ops: vec![id], yields: results };
        let bootstraps = if bootstrap { BTreeSet::from([id]) } else { BTreeSet::new() };
        let top = self.levels.output;
        let needed = [vec![top; node.inputs.len()], vec![level; node.results.len()]].concat();
        let assignment = Assignment { bootstraps, executed: vec![top], needed };
        emit(&alone, &assignment, self.levels, &vec![top; self.states])
            .map_err(|misfit| Misfit { op, message: misfit.message })
    }

    /// Time of emitted ops, each so many levels lower, linear maps in their fastest form.
    fn emitted_ns(&self, graph: &CkksGraph, lower: u32) -> f64 {
        let ns = |&op| {
            let level = graph.level(op).saturating_sub(lower);
            match &graph.node(op).op {
                CkksOp::Linear(linear) => self.costs.fastest_form(linear, level, self.slots).1,
                op => self.costs.op_ns(op, level, self.slots),
            }
        };
        graph.body.ops.iter().map(ns).sum()
    }

    /// Time of all executions of an op by level, in whole nanoseconds, so that sums do not depend on their order. A higher
    /// level never counts as faster, on which the search relies: measured times, and a level drop saved at the top, may be.
    fn by_level(&self, ns: impl Fn(u32) -> f64, op: OpId) -> Vec<u64> {
        let times = self.executions[op.index()];
        let mut most = 0;
        let rising = |level| {
            most = most.max((times * ns(level)).round() as u64);
            most
        };
        (0..=self.levels.output).map(rising).collect()
    }
}

fn count_executions(graph: &SlotGraph, region: &Region, slots: i64, at: &mut Environment, found: &mut [f64]) {
    for &op in &region.ops {
        let node = graph.node(op);
        match (&node.op, &node.region) {
            (SlotOp::Sum { counter, count }, Some(body)) => {
                for value in 0..count.evaluate(at) {
                    at.set_loop(*counter, value);
                    found[op.index()] += 1.0;
                    count_executions(graph, body, slots, at, found);
                }
            }
            (SlotOp::Rotate { by }, _) if by.evaluate(at).rem_euclid(slots) == 0 => {}
            _ => found[op.index()] += 1.0,
        }
    }
}

/// Where a value is defined and used, by segment.
#[derive(Clone, Copy, Default)]
struct Span {
    defined: Option<usize>,
    first_use: Option<usize>,
    last_use: Option<usize>,
}

/// The segments of an entry point, in execution order.
pub(super) fn parts(prices: &Prices<'_>) -> Result<Vec<Part>, Misfit> {
    let graph = prices.graph;
    let mut runs: Vec<Vec<OpId>> = Vec::new();
    let mut layer = None;
    for &op in &graph.body.ops {
        let next = Some(graph.node(op).layer);
        if layer != next {
            runs.push(Vec::new());
            layer = next;
        }
        runs.last_mut().expect("a run was begun").extend(flattened(graph, op));
    }
    let mut spans = vec![Span::default(); graph.values.len() + prices.states];
    let connected: Vec<Vec<Connection>> =
        runs.iter().map(|ops| ops.iter().flat_map(|&op| connections(graph, op)).collect()).collect();
    for (index, connections) in connected.iter().enumerate() {
        for connection in connections {
            for &operand in &connection.operands {
                let span = &mut spans[operand];
                span.first_use.get_or_insert(index);
                span.last_use = Some(index);
            }
            for &result in &connection.results {
                let span = &mut spans[result];
                if result < graph.values.len() {
                    span.defined = Some(index);
                } else {
                    span.first_use.get_or_insert(index);
                    span.last_use = Some(index);
                }
            }
        }
    }
    let part = |(index, connections): (usize, &Vec<Connection>)| part(prices, index, connections, &spans);
    connected.par_iter().enumerate().map(part).collect()
}

/// An op and the ops of its body, in the order in which they are done with.
fn flattened(graph: &SlotGraph, op: OpId) -> Vec<OpId> {
    let region = graph.node(op).region.iter();
    let mut ops: Vec<OpId> = region.flat_map(|region| &region.ops).flat_map(|&op| flattened(graph, op)).collect();
    ops.push(op);
    ops
}

/// The values that an op connects, by their numbers among all.
struct Connection {
    op: OpId,
    operands: Vec<usize>,
    results: Vec<usize>,
}

fn connections(graph: &SlotGraph, op: OpId) -> Vec<Connection> {
    let node = graph.node(op);
    let numbers = |values: &[ValueId]| values.iter().map(|value| value.index()).collect::<Vec<_>>();
    let (mut operands, mut results) = (numbers(&node.inputs), numbers(&node.results));
    match &node.op {
        SlotOp::StateRead { state, .. } => operands = vec![state_number(graph, state.0 as usize)],
        SlotOp::StateWrite { state, .. } => results = vec![state_number(graph, state.0 as usize)],
        _ => {}
    }
    match &node.region {
        Some(region) => {
            let pairs = numbers(&region.yields).into_iter().zip(results);
            pairs.map(|(inner, outer)| Connection { op, operands: vec![inner], results: vec![outer] }).collect()
        }
        None => vec![Connection { op, operands, results }],
    }
}

fn part(prices: &Prices<'_>, index: usize, connections: &[Connection], spans: &[Span]) -> Result<Part, Misfit> {
    let (mut local, mut numbers) = (BTreeMap::new(), Vec::new());
    let mut localised = |global: &[usize]| -> Vec<usize> {
        let one = |&number: &usize| {
            *local.entry(number).or_insert_with(|| {
                numbers.push(number);
                numbers.len() - 1
            })
        };
        global.iter().map(one).collect()
    };
    let step = |connection: &Connection| {
        let (operands, results) = (localised(&connection.operands), localised(&connection.results));
        let (plain, bootstrap_ns) = (prices.run(connection.op)?, prices.bootstrap_ns(connection.op)?);
        Ok(Step { operands, results, plain, bootstrap_ns })
    };
    let steps = connections.iter().map(step).collect::<Result<_, _>>()?;
    let is_state = |number: usize| number >= prices.graph.values.len();
    let (mut outer, mut ends) = (Vec::new(), Vec::new());
    for (value, &number) in numbers.iter().enumerate() {
        let span = &spans[number];
        if span.defined != Some(index) {
            let kept = !is_state(number) || span.first_use < Some(index);
            outer.push((value, kept));
        }
        if is_state(number) || span.last_use > Some(index) {
            ends.push(value);
        }
    }
    let segment = Arc::new(Segment { steps, values: numbers.len(), outer, ends });
    Ok(Part { segment, ops: connections.iter().map(|connection| connection.op).collect(), numbers })
}
