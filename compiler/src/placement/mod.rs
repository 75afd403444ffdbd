//! Placement: from the slots stage to the ckks stage, by deciding where to bootstrap.
//!
//! A program of the slots stage marks candidates ([`SlotOp::Refresh`]). The greedy search of this module emits the ckks
//! stage with no bootstrap at all; the first op that does not fit names an operand, and the latest candidate that the
//! operand depends on becomes a bootstrap, until everything fits. Then bootstraps that turn out to be needless are
//! removed, single exchanges that save one are tried, and the result of each bootstrap, and each input, is dropped to
//! the lowest level that still fits, which makes all that follows cheaper. K and V caches are state: their levels are
//! found as a fixed point between what the writers can reach and what the readers use, common to all entry points. Where
//! that is too low for a reader, the array gets a floor below which nothing may be written, and the search starts again.
//!
//! Before: a valid slots program. After: a valid ckks program; every level and scale agrees with `ckks::infer`.

mod emit;

use std::collections::{BTreeMap, BTreeSet};

use cachemir_ir::ckks::{self, CiphertextType, CkksOp, Levels};
use cachemir_ir::graph::{Definition, Graph, OpId, ValueId};
use cachemir_ir::program::{Entry, Program, State};
use cachemir_ir::slots::{Chebyshev, SlotGraph, SlotOp, SlotType};
use rayon::prelude::*;

use crate::progress::{Observer, Parts, Pass};
use emit::{Budget, Decisions, Emitted, Misfit, emit};

/// Rounds after which the cache levels count as not converging; each round lowers at least one level.
const MOST_ROUNDS: usize = 64;

/// A bootstrap inside a loop runs several times; this many on average.
const LOOP_WEIGHT: f64 = 4.0;

/// A candidate that stays a masking product costs this share of a bootstrap.
const MASK_WEIGHT: f64 = 0.05;

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

/// Levels that a polynomial takes, with its change of variable.
pub(crate) fn polynomial_levels(polynomial: &Chebyshev) -> u32 {
    ckks::polynomial_depth(polynomial.degree()) + u32::from(!polynomial.is_normalised())
}

/// Places bootstraps, rescales and level drops. The observer sees [`Pass::Place`].
pub fn place(
    program: &Program<SlotOp, SlotType>,
    levels: Levels,
    observer: &dyn Observer,
) -> Result<Program<CkksOp, CiphertextType>, Infeasible> {
    let parts = Parts::begin(observer, Pass::Place, expected_emissions(program));
    let mut budget = Budget { levels, states: vec![], floors: vec![0; program.states.len()] };
    let mut decisions = vec![Decisions::default(); program.entries.len()];
    loop {
        budget.states = vec![levels.output; program.states.len()];
        let (entry, misfit) = match place_above_floors(program, &mut budget, &mut decisions, &parts) {
            Ok(emitted) => return Ok(assemble(program, emitted, &budget.states)),
            Err(failure) => failure,
        };
        // The state elements that the operand depends on are too low: what writes them has to leave more levels.
        let lowest = misfit.reads.iter().copied().min_by_key(|&state| budget.states[state]);
        let raised = |state: usize| budget.floors[state].max(budget.states[state]) + misfit.missing;
        match lowest.filter(|&state| raised(state) <= levels.output) {
            Some(state) => budget.floors[state] = raised(state),
            None => {
                let entry = &program.entries[entry];
                return Err(Infeasible {
                    entry: entry.kind.name(),
                    origin: entry.graph.origin_text(misfit.op),
                    message: misfit.message,
                });
            }
        }
    }
}

/// About how often the search emits an entry point: 1.1 to 1.4 times for each pair of candidates in decoders of two to
/// five layers.
fn expected_emissions(program: &Program<SlotOp, SlotType>) -> usize {
    let candidates = |graph: &SlotGraph| {
        let mut found = 0;
        graph.for_each_op(|op, _| found += usize::from(matches!(graph.node(op).op, SlotOp::Refresh { .. })));
        found
    };
    let pairs: usize = program.entries.iter().map(|entry| candidates(&entry.graph).pow(2)).sum();
    pairs * 3 / 2
}

/// Searches with the given floors of the state levels; the index of the entry point with what fails.
// A path instead of a closure would fix the lifetime of a search.
#[allow(clippy::redundant_closure_for_method_calls)]
fn place_above_floors(
    program: &Program<SlotOp, SlotType>,
    budget: &mut Budget,
    decisions: &mut [Decisions],
    parts: &Parts<'_>,
) -> Result<Vec<Emitted>, (usize, Misfit)> {
    for _ in 0..MOST_ROUNDS {
        let emitted = of_entries(program, budget, decisions, parts, |search, decisions| search.run(decisions))?;
        if !lower_states(&mut budget.states, &emitted) {
            break;
        }
    }
    let mut emitted = of_entries(program, budget, decisions, parts, |search, decisions| search.lower(decisions))?;
    if lower_states(&mut budget.states, &emitted) {
        emitted = of_entries(program, budget, decisions, parts, |search, decisions| search.emit(decisions))?;
    }
    Ok(emitted)
}

/// What a search gives for each entry point, which are independent at given levels of the state; the index of the first
/// that fails.
fn of_entries(
    program: &Program<SlotOp, SlotType>,
    budget: &Budget,
    decisions: &mut [Decisions],
    parts: &Parts<'_>,
    search: impl Fn(&Search<'_>, &mut Decisions) -> Result<Emitted, Misfit> + Sync,
) -> Result<Vec<Emitted>, (usize, Misfit)> {
    let one = |(index, (entry, decisions)): (usize, (&Entry<SlotOp, SlotType>, &mut Decisions))| {
        search(&Search::new(&entry.graph, budget, parts), decisions).map_err(|misfit| (index, misfit))
    };
    let found: Vec<Result<Emitted, _>> = program.entries.par_iter().zip(decisions).enumerate().map(one).collect();
    found.into_iter().collect()
}

/// Lowers state levels to what is written and used; tells whether any changed.
fn lower_states(state_levels: &mut [u32], emitted: &[Emitted]) -> bool {
    let mut lowered = false;
    for (state, level) in state_levels.iter_mut().enumerate() {
        let state = state as u32;
        let written = emitted.iter().filter_map(|entry| entry.written.get(&state)).min();
        let used = emitted.iter().filter_map(|entry| entry.used.get(&state)).max();
        let wanted = written.into_iter().chain(used).copied().min().unwrap_or(*level);
        if wanted < *level {
            *level = wanted;
            lowered = true;
        }
    }
    lowered
}

fn assemble(
    program: &Program<SlotOp, SlotType>,
    emitted: Vec<Emitted>,
    state_levels: &[u32],
) -> Program<CkksOp, CiphertextType> {
    let states = program
        .states
        .iter()
        .zip(state_levels)
        .map(|(state, &level)| State { level: Some(level), ..state.clone() })
        .collect();
    let entries = program
        .entries
        .iter()
        .zip(emitted)
        .map(|(entry, emitted)| Entry { kind: entry.kind, graph: emitted.graph, checks: entry.checks.clone() })
        .collect();
    Program {
        slots: program.slots,
        context: program.context,
        tables: program.tables.clone(),
        states,
        prefix: program.prefix.clone(),
        entries,
        embedding: program.embedding.clone(),
        inputs: program.inputs.clone(),
        logits: program.logits.clone(),
    }
}

/// The search over one entry point.
struct Search<'a> {
    graph: &'a SlotGraph,
    budget: &'a Budget,
    parts: &'a Parts<'a>,
    /// All candidates, in execution order, with the cost of a bootstrap there.
    candidates: Vec<(OpId, f64)>,
    /// Candidates that mask.
    masking: BTreeSet<OpId>,
    /// Position of every op in execution order.
    order: BTreeMap<OpId, usize>,
}

impl<'a> Search<'a> {
    fn new(graph: &'a SlotGraph, budget: &'a Budget, parts: &'a Parts<'a>) -> Self {
        let (masking, order) = (BTreeSet::new(), BTreeMap::new());
        let mut search = Self { graph, budget, parts, candidates: Vec::new(), masking, order };
        graph.for_each_op(|op, depth| {
            search.order.insert(op, search.order.len());
            if let SlotOp::Refresh { keep, .. } = &graph.node(op).op {
                search.candidates.push((op, if depth == 0 { 1.0 } else { LOOP_WEIGHT * depth as f64 }));
                if keep.is_some() {
                    search.masking.insert(op);
                }
            }
        });
        search
    }

    fn emit(&self, decisions: &Decisions) -> Result<Emitted, Misfit> {
        let emitted = emit(self.graph, decisions, self.budget);
        self.parts.one();
        emitted
    }

    fn cost(&self, decisions: &Decisions) -> f64 {
        let bootstraps = self.candidates.iter().filter(|(op, _)| decisions.bootstraps.contains_key(op));
        let masks = self.masking.iter().filter(|op| !decisions.bootstraps.contains_key(op)).count();
        bootstraps.map(|(_, cost)| cost).sum::<f64>() + MASK_WEIGHT * masks as f64
    }

    fn run(&self, decisions: &mut Decisions) -> Result<Emitted, Misfit> {
        self.make_feasible(decisions)?;
        self.prune(decisions);
        self.exchange(decisions);
        self.emit(decisions)
    }

    /// Adds bootstraps until everything fits.
    fn make_feasible(&self, decisions: &mut Decisions) -> Result<(), Misfit> {
        loop {
            match self.emit(decisions) {
                Ok(_) => return Ok(()),
                Err(misfit) => match self.latest_candidate(misfit.operand, decisions) {
                    (Some(candidate), _) => drop(decisions.bootstraps.insert(candidate, self.budget.levels.output)),
                    (None, reads) => return Err(Misfit { reads, ..misfit }),
                },
            }
        }
    }

    /// The last candidate that the value depends on through no bootstrap, and the state arrays that it so depends on.
    fn latest_candidate(&self, value: ValueId, decisions: &Decisions) -> (Option<OpId>, Vec<usize>) {
        let (mut stack, mut seen, mut best, mut reads) = (vec![value], BTreeSet::new(), None, Vec::new());
        while let Some(value) = stack.pop() {
            let Definition::Result(op, index) = self.graph.values[value.index()].definition else {
                continue;
            };
            if !seen.insert((op, index)) || decisions.bootstraps.contains_key(&op) {
                continue;
            }
            let node = self.graph.node(op);
            match node.op {
                SlotOp::Refresh { .. } => best = best.max(Some((self.order[&op], op))),
                SlotOp::StateRead { state, .. } => reads.push(state.0 as usize),
                _ => {}
            }
            match &node.region {
                Some(region) => stack.push(region.yields[index as usize]),
                None => stack.extend(&node.inputs),
            }
        }
        (best.map(|(_, op)| op), reads)
    }

    /// Removes needless bootstraps, the earliest first.
    fn prune(&self, decisions: &mut Decisions) {
        for &(op, _) in &self.candidates {
            let mut without = decisions.clone();
            if without.bootstraps.remove(&op).is_some()
                && self.cost(&without) < self.cost(decisions)
                && self.emit(&without).is_ok()
            {
                *decisions = without;
            }
        }
    }

    /// Tries each unused candidate: kept if the cost falls once others became needless.
    fn exchange(&self, decisions: &mut Decisions) {
        loop {
            let before = self.cost(decisions);
            for &(op, _) in &self.candidates {
                if decisions.bootstraps.contains_key(&op) {
                    continue;
                }
                let mut with = decisions.clone();
                with.bootstraps.insert(op, self.budget.levels.output);
                if self.emit(&with).is_err() {
                    continue;
                }
                self.prune(&mut with);
                if self.cost(&with) < self.cost(decisions) {
                    *decisions = with;
                }
            }
            if self.cost(decisions) >= before {
                return;
            }
        }
    }

    /// Drops the result of every bootstrap, the last one first, and then every input to the lowest level that still fits, as
    /// long as the caches stay at their levels.
    fn lower(&self, decisions: &mut Decisions) -> Result<Emitted, Misfit> {
        let mut emitted = self.emit(decisions)?;
        let mut lowest = |decisions: &mut Decisions, from: u32, set: &dyn Fn(&mut Decisions, u32)| {
            for to in (0..from).rev() {
                let mut lower = decisions.clone();
                set(&mut lower, to);
                match self.emit(&lower) {
                    Ok(lowered) if self.keeps_states(&lowered) => (*decisions, emitted) = (lower, lowered),
                    _ => break,
                }
            }
        };
        for &(op, _) in self.candidates.iter().rev() {
            if let Some(&level) = decisions.bootstraps.get(&op) {
                lowest(decisions, level, &|decisions, to| {
                    decisions.bootstraps.insert(op, to);
                });
            }
        }
        for &input in &self.graph.inputs {
            let level = decisions.inputs.get(&input).copied().unwrap_or(self.budget.levels.output);
            lowest(decisions, level, &|decisions, to| {
                decisions.inputs.insert(input, to);
            });
        }
        Ok(emitted)
    }

    fn keeps_states(&self, emitted: &Emitted) -> bool {
        emitted.written.iter().all(|(&state, &level)| level >= self.budget.states[state as usize])
    }
}

/// Number of bootstraps in execution order of one entry point, loops counted once.
pub fn bootstraps(graph: &Graph<CkksOp, CiphertextType>) -> usize {
    let mut found = 0;
    graph.for_each_op(|op, _| found += usize::from(matches!(graph.node(op).op, CkksOp::Bootstrap(_))));
    found
}
