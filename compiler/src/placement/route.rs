//! The fastest way through all segments of an entry point.
//!
//! Segments are searched from the last to the first, each for what the alternatives found so far ask of its end: in a
//! decoder the level of the residual stream. Tables of levels in and out are remembered, so that layers that are alike as
//! [`Segment`]s are searched once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use cachemir_ir::ckks::Levels;
use cachemir_ir::graph::OpId;
use cachemir_ir::slots::SlotGraph;
use rayon::prelude::*;

use super::emit::Assignment;
use super::search::{Demand, Lack, Outcome, Stuck, back, search};
use super::steps::{Part, Segment};
use crate::progress::Parts;

/// A segment and what is asked of its end.
type Question = (Arc<Segment>, Vec<Demand>);

type Answer = Arc<Result<Vec<Outcome>, Stuck>>;

/// Tables of segments that were searched.
#[derive(Default)]
pub(super) struct Tables {
    known: Mutex<HashMap<Question, Answer>>,
}

impl Tables {
    fn of(&self, segment: &Arc<Segment>, demands: Vec<Demand>, levels: Levels) -> Answer {
        let key = (Arc::clone(segment), demands);
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = known().get(&key) {
            return Arc::clone(table);
        }
        let table = Arc::new(search(segment, &key.1, levels));
        known().insert(key, Arc::clone(&table));
        table
    }

    /// Number of tables.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// What is decided for an entry point.
#[derive(Clone, Debug)]
pub(super) struct Route {
    /// Candidates that become bootstraps.
    pub(super) bootstraps: BTreeSet<OpId>,
    /// By state array: the level that its readers need.
    pub(super) states: Vec<u32>,
    /// Time of a call in nanoseconds.
    pub(super) ns: u64,
}

/// An op for which no choice of bootstraps leaves enough levels.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoRoute {
    pub(super) op: OpId,
    /// The least level that it would have to have.
    pub(super) needed: u32,
    /// The state array whose level that is.
    pub(super) state: Option<usize>,
}

/// A way from the entry point's end to the beginning of a segment.
#[derive(Clone)]
struct Way {
    /// Needs of values that are made before, and of state arrays that are used before; 0 where absent.
    needs: BTreeMap<usize, u32>,
    /// Levels of the other state arrays.
    states: Vec<(usize, u32)>,
    ns: u64,
    bootstraps: Vec<OpId>,
}

/// The fastest way, with state arrays of levels as demanded.
pub(super) fn route(
    graph: &SlotGraph,
    parts: &[Part],
    states: &[Demand],
    levels: Levels,
    tables: &Tables,
    progress: &Parts<'_>,
) -> Result<Route, NoRoute> {
    let mut ways = vec![Way { needs: BTreeMap::new(), states: Vec::new(), ns: 0, bootstraps: Vec::new() }];
    for part in parts.iter().rev() {
        let demands = |way: &Way| part.demands(way, graph, states, levels);
        let found: Vec<Answer> = ways.par_iter().map(|way| tables.of(&part.segment, demands(way), levels)).collect();
        let mut longer = Vec::new();
        for (way, table) in ways.iter().zip(&found) {
            longer.extend(table.iter().flatten().map(|outcome| part.lengthened(way, outcome)));
        }
        if longer.is_empty() {
            let stuck = found.iter().filter_map(|table| table.as_ref().as_ref().err());
            let Some(stuck) = stuck.min_by_key(|stuck| (stuck.step, stuck.lack)) else { break };
            return Err(part.no_route(graph, stuck.step, stuck.lack));
        }
        ways = unsurpassed(longer);
        progress.one();
    }
    let best = ways.into_iter().next().expect("the end is one way");
    let mut reached: Vec<u32> = states.iter().map(|demand| demand.least).collect();
    for (number, level) in best.states {
        reached[number - graph.values.len()] = level;
    }
    Ok(Route { states: reached, bootstraps: best.bootstraps.into_iter().collect(), ns: best.ns })
}

/// Ways of which none takes as long as another and needs as high levels, the fastest first.
fn unsurpassed(mut ways: Vec<Way>) -> Vec<Way> {
    ways.sort_by(|a, b| (a.ns, &a.bootstraps).cmp(&(b.ns, &b.bootstraps)));
    let of = |way: &Way, value: &usize| way.needs.get(value).copied().unwrap_or(0);
    let surpasses = |one: &Way, other: &Way| one.needs.iter().all(|(value, &need)| need <= of(other, value));
    let mut kept: Vec<Way> = Vec::new();
    for way in ways {
        if !kept.iter().any(|other| surpasses(other, &way)) {
            kept.push(way);
        }
    }
    kept
}

impl Part {
    fn demands(&self, way: &Way, graph: &SlotGraph, states: &[Demand], levels: Levels) -> Vec<Demand> {
        let demand = |&value: &usize| {
            let number = self.numbers[value];
            let asked = number.checked_sub(graph.values.len()).map(|state| states[state]);
            let Demand { least, most } = asked.unwrap_or(Demand { least: 0, most: levels.output });
            Demand { least: least.max(way.needs.get(&number).copied().unwrap_or(0)), most }
        };
        self.segment.ends.iter().map(demand).collect()
    }

    fn no_route(&self, graph: &SlotGraph, step: usize, lack: Lack) -> NoRoute {
        let state = lack.operand.and_then(|operand| self.numbers[operand].checked_sub(graph.values.len()));
        NoRoute { op: self.ops[step], needed: lack.level, state }
    }

    /// The way with an outcome ahead of it.
    fn lengthened(&self, way: &Way, outcome: &Outcome) -> Way {
        let Way { mut needs, mut states, .. } = way.clone();
        for &end in &self.segment.ends {
            needs.remove(&self.numbers[end]);
        }
        for (&(value, kept), &need) in self.segment.outer.iter().zip(&outcome.needs) {
            if kept {
                needs.insert(self.numbers[value], need);
            } else {
                states.push((self.numbers[value], need));
            }
        }
        let bootstraps = way.bootstraps.iter().copied().chain(outcome.bootstraps.iter().map(|&step| self.ops[step]));
        Way { needs, states, ns: way.ns + outcome.ns, bootstraps: bootstraps.collect() }
    }
}

/// The levels of all values and ops of an entry point for chosen bootstraps and levels of state arrays.
pub(super) fn assign(
    graph: &SlotGraph,
    parts: &[Part],
    bootstraps: BTreeSet<OpId>,
    states: &[u32],
    levels: Levels,
) -> Result<Assignment, NoRoute> {
    let mut needs = [vec![0; graph.values.len()], states.to_vec()].concat();
    let mut executed = vec![0; graph.nodes.len()];
    for part in parts.iter().rev() {
        let mut own: Vec<u32> = part.numbers.iter().map(|&number| needs[number]).collect();
        let most = part.numbers.iter().map(|number| number.checked_sub(graph.values.len()));
        let most: Vec<u32> = most.map(|state| state.map_or(levels.output, |state| states[state])).collect();
        for (index, (step, &op)) in part.segment.steps.iter().zip(&part.ops).enumerate().rev() {
            let (level, _) = back(step, &mut own, bootstraps.contains(&op), &most, levels)
                .map_err(|lack| part.no_route(graph, index, lack))?;
            executed[op.index()] = level;
        }
        for (&number, need) in part.numbers.iter().zip(own) {
            needs[number] = need;
        }
    }
    needs.truncate(graph.values.len());
    Ok(Assignment { bootstraps, executed, needed: needs })
}
