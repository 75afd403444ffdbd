//! Placement: from the slots stage to the ckks stage, by deciding where to bootstrap.
//!
//! A program of the slots stage marks candidates ([`SlotOp::Refresh`]). The search of this module finds the bootstraps with
//! the least predicted time of a call in the middle of the context: exactly within each decoder layer, as a table from what
//! is asked of the layer's end to what it asks of its beginning and to its time, and over the layers by the shortest path
//! through these tables. Every value then gets the lowest level that its users need, and the emission follows.
//!
//! K and V caches are state, local to a layer: decoding decides their levels, as those that its fastest placement reads.
//! The other entry points are searched with these levels given. Where one of them needs a higher level to be feasible at
//! all, decoding is searched again with at least that.
//!
//! Before: a valid slots program. After: a valid ckks program; every level and scale agrees with `ckks::infer`.

mod emit;
mod route;
mod search;
mod steps;
#[cfg(test)]
mod tests;

use cachemir_ir::ckks::{CiphertextType, CkksGraph, CkksOp, Levels};
use cachemir_ir::cost::CostTable;
use cachemir_ir::graph::OpId;
use cachemir_ir::program::{Entry, EntryKind, Program, State};
use cachemir_ir::slots::{SlotOp, SlotType};
use rayon::prelude::*;

use crate::progress::{Observer, Parts, Pass};
use emit::{Assignment, Misfit, emit};
use route::{NoRoute, Route, Tables, assign, route};
use search::Demand;
use steps::{Part, Prices, parts};

/// An op for which no choice of bootstraps leaves enough levels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Infeasible {
    /// `decode` or `prefill`.
    pub entry: &'static str,
    /// Op type and name of the ONNX node that the op comes from.
    pub origin: String,
    /// What does not fit.
    pub message: String,
}

/// Places bootstraps, rescales and level drops. The observer sees [`Pass::Place`].
pub fn place(
    program: &Program<SlotOp, SlotType>,
    levels: Levels,
    costs: &CostTable,
    observer: &dyn Observer,
) -> Result<Program<CkksOp, CiphertextType>, Infeasible> {
    let placer = Placer::new(levels, costs);
    let segments = placer.segments(program)?;
    let progress = segments.begin(observer);
    let decisions = placer.decide(program, &segments, &progress)?;
    placer.emit(program, &decisions)
}

/// The segments of each entry point of a program.
#[derive(Clone)]
pub(crate) struct Segments(Vec<Vec<Part>>);

impl Segments {
    /// A search begins, of which each segment is a part.
    pub(crate) fn begin<'o>(&self, observer: &'o dyn Observer) -> Parts<'o> {
        Parts::begin(observer, Pass::Place, self.0.iter().map(Vec::len).sum())
    }
}

/// What is decided for a program.
pub(crate) struct Decisions {
    assignments: Vec<Assignment>,
    states: Vec<u32>,
    /// Predicted time of a decode step in the middle of the context, in nanoseconds.
    pub(crate) decode_ns: u64,
}

/// Places programs that have much in common: what was found for a segment serves all.
pub(crate) struct Placer<'a> {
    levels: Levels,
    costs: &'a CostTable,
    tables: Tables,
}

impl<'a> Placer<'a> {
    pub(crate) fn new(levels: Levels, costs: &'a CostTable) -> Self {
        Self { levels, costs, tables: Tables::default() }
    }

    /// What the search sees of a program.
    pub(crate) fn segments(&self, program: &Program<SlotOp, SlotType>) -> Result<Segments, Infeasible> {
        let of = |entry: &Entry<SlotOp, SlotType>| {
            parts(&Prices::new(program, entry, self.levels, self.costs)).map_err(|misfit| infeasible(entry, misfit))
        };
        Ok(Segments(program.entries.iter().map(of).collect::<Result<_, _>>()?))
    }

    /// The same segments after some ops of each entry point have changed.
    pub(crate) fn changed(
        &self,
        program: &Program<SlotOp, SlotType>,
        segments: &Segments,
        ops: &[Vec<OpId>],
    ) -> Result<Segments, Infeasible> {
        let mut changed = segments.clone();
        for ((entry, parts), ops) in program.entries.iter().zip(&mut changed.0).zip(ops) {
            let prices = Prices::new(program, entry, self.levels, self.costs);
            for part in parts {
                part.update(&prices, ops).map_err(|misfit| infeasible(entry, misfit))?;
            }
        }
        Ok(changed)
    }

    /// Searches. Reports a part for each segment.
    pub(crate) fn decide(
        &self,
        program: &Program<SlotOp, SlotType>,
        segments: &Segments,
        progress: &Parts<'_>,
    ) -> Result<Decisions, Infeasible> {
        let find = |index: usize, states: &[Demand]| {
            route(&program.entries[index].graph, &segments.0[index], states, self.levels, &self.tables, progress)
        };
        let top = self.levels.output;
        let decode = program.entries.iter().position(|entry| entry.kind == EntryKind::Decode).unwrap_or(0);
        let mut least = vec![0; program.states.len()];
        let (decoding, routes) = 'raised: loop {
            let free: Vec<Demand> = least.iter().map(|&least| Demand { least, most: top }).collect();
            let decoding = find(decode, &free).map_err(|cause| self.infeasible(&program.entries[decode], cause))?;
            let given: Vec<Demand> =
                decoding.states.iter().map(|&level| Demand { least: level, most: level }).collect();
            let mut routes: Vec<Route> = Vec::new();
            for (index, entry) in program.entries.iter().enumerate() {
                match if index == decode { Ok(decoding.clone()) } else { find(index, &given) } {
                    Ok(found) => routes.push(found),
                    Err(NoRoute { needed, state: Some(state), .. }) if needed <= top => {
                        least[state] = needed;
                        continue 'raised;
                    }
                    Err(cause) => return Err(self.infeasible(entry, cause)),
                }
            }
            break (decoding, routes);
        };
        let assigned = program.entries.iter().zip(&segments.0).zip(routes).map(|((entry, parts), route)| {
            assign(&entry.graph, parts, route.bootstraps, &decoding.states, self.levels)
                .map_err(|cause| self.infeasible(entry, cause))
        });
        let assignments = assigned.collect::<Result<_, _>>()?;
        Ok(Decisions { assignments, states: decoding.states, decode_ns: decoding.ns })
    }

    /// The program of the ckks stage.
    pub(crate) fn emit(
        &self,
        program: &Program<SlotOp, SlotType>,
        decisions: &Decisions,
    ) -> Result<Program<CkksOp, CiphertextType>, Infeasible> {
        let emitted = program.entries.par_iter().zip(&decisions.assignments).map(|(entry, assignment)| {
            let graph: CkksGraph = emit(&entry.graph, assignment, self.levels, &decisions.states)
                .map_err(|misfit| infeasible(entry, misfit))?;
            Ok(Entry { kind: entry.kind, graph, checks: entry.checks.clone() })
        });
        let entries = emitted.collect::<Result<_, _>>()?;
        let states = program.states.iter().zip(&decisions.states);
        Ok(Program {
            slots: program.slots,
            context: program.context,
            tables: program.tables.clone(),
            states: states.map(|(state, &level)| State { level: Some(level), ..state.clone() }).collect(),
            prefix: program.prefix.clone(),
            entries,
            embedding: program.embedding.clone(),
            inputs: program.inputs.clone(),
            logits: program.logits.clone(),
        })
    }

    fn infeasible(&self, entry: &Entry<SlotOp, SlotType>, cause: NoRoute) -> Infeasible {
        let message = format!(
            "it needs level {} for what follows up to the next bootstrap, and {} is the highest",
            cause.needed, self.levels.output
        );
        infeasible(entry, Misfit { op: cause.op, message })
    }
}

fn infeasible(entry: &Entry<SlotOp, SlotType>, misfit: Misfit) -> Infeasible {
    Infeasible { entry: entry.kind.name(), origin: entry.graph.origin_text(misfit.op), message: misfit.message }
}

/// Number of bootstraps in execution order of one entry point, loops counted once.
pub fn bootstraps(graph: &CkksGraph) -> usize {
    let mut found = 0;
    graph.for_each_op(|op, _| found += usize::from(matches!(graph.node(op).op, CkksOp::Bootstrap(_))));
    found
}
