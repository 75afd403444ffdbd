//! Placement: from the slots stage to the ckks stage, by deciding where to bootstrap.
//!
//! A program of the slots stage marks candidates ([`SlotOp::Refresh`]). The search of this module finds the bootstraps with
//! the least predicted time of a call in the middle of the context: exactly within each decoder layer, as a table from what
//! is asked of the layer's end to what it asks of its beginning and to its time, and over the layers by the shortest path
//! through these tables. Every value then gets the lowest level that its users need, and the emission follows.
//!
//! K and V caches are state, local to a layer: decoding decides their levels, as those that its fastest placement reads.
//! The other entry points are searched with these levels given. Where one of them needs a higher level to be feasible at
//! all, decoding is searched again with at least that; and so it is with the levels that they would choose themselves.
//!
//! Before: a valid slots program. After: a valid ckks program; every level and scale agrees with `ckks::infer`.

mod emit;
mod route;
mod search;
mod steps;
#[cfg(test)]
mod tests;

use cachemir_ir::ckks::{CiphertextType, CkksGraph, CkksOp, Levels};
use cachemir_ir::cost::{CostTable, token_ns};
use cachemir_ir::graph::OpId;
use cachemir_ir::program::{Entry, EntryKind, EntryPoint, Program, State};
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
    /// The entry point.
    pub entry: EntryPoint,
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
    /// [`token_ns`] of the calls.
    token_ns: f64,
}

/// A search for the placement of a program.
struct Search<'a> {
    placer: &'a Placer<'a>,
    program: &'a Program<SlotOp, SlotType>,
    segments: &'a Segments,
    progress: &'a Parts<'a>,
}

impl Search<'_> {
    /// Demands of these levels or more.
    fn free(&self, least: &[u32]) -> Vec<Demand> {
        least.iter().map(|&least| Demand { least, most: self.placer.levels.output }).collect()
    }

    fn find(&self, index: usize, states: &[Demand]) -> Result<Route, NoRoute> {
        let Placer { levels, tables, .. } = self.placer;
        route(&self.program.entries[index].graph, &self.segments.0[index], states, *levels, tables, self.progress)
    }

    /// The fastest decoding with state arrays of at least these levels, and of each other entry point what is fastest with
    /// the levels that decoding decides.
    fn decide(&self, mut least: Vec<u32>) -> Result<Decisions, Infeasible> {
        let entries = &self.program.entries;
        let decode = entries.iter().position(|entry| entry.kind == EntryKind::Decode).unwrap_or(0);
        let infeasible = |index: usize, cause| self.placer.infeasible(&entries[index], cause);
        let (decoding, routes) = 'raised: loop {
            let decoding = self.find(decode, &self.free(&least)).map_err(|cause| infeasible(decode, cause))?;
            let given: Vec<Demand> =
                decoding.states.iter().map(|&level| Demand { least: level, most: level }).collect();
            let mut routes: Vec<Route> = Vec::new();
            for index in 0..entries.len() {
                match if index == decode { Ok(decoding.clone()) } else { self.find(index, &given) } {
                    Ok(found) => routes.push(found),
                    Err(NoRoute { needed, state: Some(state), .. }) if needed <= self.placer.levels.output => {
                        least[state] = needed;
                        continue 'raised;
                    }
                    Err(cause) => return Err(infeasible(index, cause)),
                }
            }
            break (decoding, routes);
        };
        let calls: Vec<_> = entries.iter().zip(&routes).map(|(entry, route)| (entry.kind, route.ns as f64)).collect();
        let assigned = entries.iter().zip(&self.segments.0).zip(routes).enumerate();
        let assigned = assigned.map(|(index, ((entry, parts), route))| {
            assign(&entry.graph, parts, route.bootstraps, &decoding.states, self.placer.levels)
                .map_err(|cause| infeasible(index, cause))
        });
        let assignments = assigned.collect::<Result<_, _>>()?;
        let token_ns = token_ns(&calls);
        Ok(Decisions { assignments, states: decoding.states, decode_ns: decoding.ns, token_ns })
    }
}

/// By which part of itself the time of a decode step may grow for faster reading.
const GIVEN_UP: f64 = 0.02;

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

    /// Searches: with cache levels as decoding likes them best, and with at least those that each other entry point likes
    /// best, which are taken if a session's tokens are faster and decoding alone hardly slower. Reports a part for each segment.
    pub(crate) fn decide(
        &self,
        program: &Program<SlotOp, SlotType>,
        segments: &Segments,
        progress: &Parts<'_>,
    ) -> Result<Decisions, Infeasible> {
        let search = Search { placer: self, program, segments, progress };
        let any = vec![0; program.states.len()];
        let mut best = search.decide(any.clone())?;
        for index in 0..program.entries.len() {
            if program.entries[index].kind == EntryKind::Decode {
                continue;
            }
            let Ok(liked) = search.find(index, &search.free(&any)) else { continue };
            if let Ok(found) = search.decide(liked.states)
                && found.token_ns < best.token_ns
                && found.decode_ns as f64 <= (1.0 + GIVEN_UP) * best.decode_ns as f64
            {
                best = found;
            }
        }
        Ok(best)
    }

    /// The program of the ckks stage.
    pub(crate) fn emit(
        &self,
        program: &Program<SlotOp, SlotType>,
        decisions: &Decisions,
    ) -> Result<Program<CkksOp, CiphertextType>, Infeasible> {
        let emitted = program.entries.par_iter().zip(&decisions.assignments).map(|(entry, assignment)| {
            let mut graph: CkksGraph = emit(&entry.graph, assignment, self.levels, &decisions.states)
                .map_err(|misfit| infeasible(entry, misfit))?;
            self.choose_forms(&mut graph, program.slots);
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

    /// Puts each linear map into the form that is fastest at its level.
    fn choose_forms(&self, graph: &mut CkksGraph, slots: u32) {
        for index in 0..graph.nodes.len() {
            let level = graph.level(OpId(index as u32));
            if let CkksOp::Linear(linear) = &mut graph.nodes[index].op {
                *linear = self.costs.fastest_form(linear, level, slots).0;
            }
        }
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
    Infeasible { entry: entry.kind.entry(), origin: entry.graph.origin_text(misfit.op), message: misfit.message }
}

/// Number of bootstraps in execution order of one entry point, loops counted once.
pub fn bootstraps(graph: &CkksGraph) -> usize {
    let mut found = 0;
    graph.for_each_op(|op, _| found += usize::from(matches!(graph.node(op).op, CkksOp::Bootstrap(_))));
    found
}
