//! Which evaluation keys a program needs, and at which levels.
//!
//! Which levels share a key is the engine's business. Keys that a bootstrap uses inside itself are the engine's own and are
//! not listed; the bootstraps' variants are.

use std::collections::{BTreeMap, BTreeSet};

use crate::ckks::{Bootstrap, CiphertextType, CkksGraph, CkksOp};
use crate::expression::{Environment, Integer, Variable};
use crate::graph::Region;
use crate::linear::{Linear, Step};
use crate::program::{EntryKind, Program};
use crate::rotations::additions_at;

/// A kind of bootstrap that the program executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootstrapVariant {
    /// Whether slots are complex.
    pub complex: bool,
    /// Slots are at most 2^this.
    pub log2_magnitude: u32,
}

/// The keys of a program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyManifest {
    /// Rotation to the left, in 1..n, → levels of the ciphertexts that are rotated by it.
    pub rotations: BTreeMap<u32, BTreeSet<u32>>,
    /// Levels of conjugations.
    pub conjugation: BTreeSet<u32>,
    /// Levels of products of ciphertexts.
    pub relinearisation: BTreeSet<u32>,
    /// The bootstraps that occur.
    pub bootstraps: BTreeSet<BootstrapVariant>,
}

impl KeyManifest {
    /// The keys that any call of any entry point uses, at any position of the context.
    pub fn of(program: &Program<CkksOp, CiphertextType>) -> Self {
        let mut manifest = Self::default();
        for entry in &program.entries {
            let mut collector = Collector {
                graph: &entry.graph,
                kind: entry.kind,
                slots: program.slots,
                context: program.context,
                known: BTreeMap::new(),
                manifest: &mut manifest,
            };
            collector.block(&entry.graph.body, &mut Vec::new());
        }
        manifest
    }
}

/// An enclosing loop: its counter's number and its count.
type Loop = (u32, Integer);

struct Collector<'p> {
    graph: &'p CkksGraph,
    kind: EntryKind,
    slots: u32,
    context: u32,
    /// Rotations by the steps seen so far, by steps and the enclosing loops that matter.
    known: BTreeMap<(Vec<Integer>, Vec<Loop>), BTreeSet<u32>>,
    manifest: &'p mut KeyManifest,
}

impl Collector<'_> {
    fn block(&mut self, block: &Region, loops: &mut Vec<Loop>) {
        for op in &block.ops {
            let node = self.graph.node(*op);
            let level = node.inputs.first().map_or(0, |input| self.graph.ty(*input).level);
            match &node.op {
                CkksOp::Rotate { by } => self.rotations(std::slice::from_ref(by), level, loops),
                CkksOp::RotateAndSum { steps } => self.rotations(steps, level, loops),
                CkksOp::Linear(linear) => self.linear(linear, level, loops),
                CkksOp::Conjugate => drop(self.manifest.conjugation.insert(level)),
                CkksOp::Multiply => drop(self.manifest.relinearisation.insert(level)),
                CkksOp::Polynomial { .. } => {
                    let result = node.results.first().map_or(0, |result| self.graph.ty(*result).level);
                    self.manifest.relinearisation.extend(result + 1..=level);
                }
                CkksOp::Bootstrap(Bootstrap { complex, log2_magnitude, .. }) => {
                    let variant = BootstrapVariant { complex: *complex, log2_magnitude: *log2_magnitude };
                    self.manifest.bootstraps.insert(variant);
                }
                _ => {}
            }
            if let Some(region) = &node.region {
                let enclosing = match &node.op {
                    CkksOp::Sum { counter, count } => Some((*counter, count.clone())),
                    _ => None,
                };
                let depth = loops.len();
                loops.extend(enclosing);
                self.block(region, loops);
                loops.truncate(depth);
            }
        }
    }

    /// The rotations and conjugations of a map, whose landings decide some of them.
    fn linear(&mut self, linear: &Linear, level: u32, loops: &[Loop]) {
        let landings: Vec<&Integer> = linear.outputs.iter().filter_map(|output| output.landing.as_ref()).collect();
        let (mut rotations, mut conjugation) = (BTreeSet::new(), BTreeSet::new());
        self.for_each_environment(&landings, &relevant(&landings, loops), &mut |environment| {
            linear.for_each_step(self.slots, environment, &mut |step, below| match step {
                Step::Rotate { by, .. } => drop(rotations.insert((by, level - below))),
                Step::Conjugate => drop(conjugation.insert(level - below)),
                _ => {}
            });
        });
        for (by, level) in rotations {
            self.manifest.rotations.entry(by).or_default().insert(level);
        }
        self.manifest.conjugation.extend(conjugation);
    }

    /// The rotations of a rotate and sum by these steps; a rotation is one of a single step.
    fn rotations(&mut self, steps: &[Integer], level: u32, loops: &[Loop]) {
        let expressions: Vec<&Integer> = steps.iter().collect();
        let key = (steps.to_vec(), relevant(&expressions, loops));
        if !self.known.contains_key(&key) {
            let slots = i64::from(self.slots.max(1));
            let mut found = BTreeSet::new();
            self.for_each_environment(&expressions, &key.1, &mut |environment| {
                let amounts = additions_at(steps, self.slots, environment).into_iter().flatten();
                found.extend(amounts.map(|amount| amount.rem_euclid(slots) as u32).filter(|&amount| amount != 0));
            });
            self.known.insert(key.clone(), found);
        }
        for &rotation in &self.known[&key] {
            self.manifest.rotations.entry(rotation).or_default().insert(level);
        }
    }

    /// Visits the values of all variables that the expressions, or the counts of the loops, mention.
    fn for_each_environment(&self, expressions: &[&Integer], loops: &[Loop], visit: &mut dyn FnMut(&Environment)) {
        let all = || expressions.iter().copied().chain(loops.iter().map(|(_, count)| count));
        let depends = |variable| all().any(|expression| expression.mentions(variable));
        for (position, count) in calls(self.kind, self.context, depends(Variable::Position), depends(Variable::Count)) {
            enumerate_loops(loops, &mut Environment::new(position, count), visit);
        }
    }
}

/// The loops on whose counter the expressions depend, directly or through the count of another such loop.
fn relevant(expressions: &[&Integer], loops: &[Loop]) -> Vec<Loop> {
    let mut relevant: Vec<Loop> = Vec::new();
    for (counter, count) in loops.iter().rev() {
        let mentions = |expression: &Integer| expression.mentions(Variable::Loop(*counter));
        if expressions.iter().any(|expression| mentions(expression))
            || relevant.iter().any(|(_, inner)| mentions(inner))
        {
            relevant.insert(0, (*counter, count.clone()));
        }
    }
    relevant
}

fn enumerate_loops(loops: &[Loop], environment: &mut Environment, visit: &mut dyn FnMut(&Environment)) {
    match loops {
        [] => visit(environment),
        [(counter, count), inner @ ..] => {
            for value in 0..count.evaluate(environment) {
                environment.set_loop(*counter, value);
                enumerate_loops(inner, environment, visit);
            }
        }
    }
}

/// Positions and counts of an entry point's calls within a context; only 0 (or the largest count) for those that do not matter.
fn calls(kind: EntryKind, context: u32, by_position: bool, by_count: bool) -> Vec<(i64, i64)> {
    let context = i64::from(context);
    let (step, largest) = match kind {
        EntryKind::Decode => (1, 1),
        EntryKind::Prefill { chunk } => (i64::from(chunk.max(1)), i64::from(chunk.max(1))),
    };
    let positions = if by_position || by_count { context } else { 1 };
    let mut calls = Vec::new();
    for position in (0..positions.max(1)).step_by(step as usize) {
        let most = largest.min((context - position).max(1));
        let least = if by_count { 1 } else { most };
        calls.extend((least..=most).map(|count| (position, count)));
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Graph;
    use crate::program::{EmbeddingForm, Entry, Placement};
    use crate::slots::{Domain, Fill, Layout};

    fn ty(level: u32) -> CiphertextType {
        let layout = Layout { stride: 1, fill: Fill::Junk, domain: Domain::Real };
        CiphertextType { level, product: false, layout, max_abs: 1.0 }
    }

    #[test]
    fn every_rotation_of_every_call_is_found_at_its_levels() {
        let mut graph = CkksGraph::default();
        let x = graph.add_input("x", ty(9));
        let y = graph.add_input("y", ty(4));
        let mut ops = Vec::new();
        let landing = (Integer::position() % 8).less(4).select(-2, 3);
        for (value, by) in [(x, landing), (x, Integer::from(64)), (y, Integer::from(3)), (y, Integer::from(5))] {
            let level = graph.ty(value).level;
            ops.push(graph.add_node(CkksOp::Rotate { by }, vec![value], vec![ty(level)], None, None).0);
        }
        let by = Integer::counter(0) * 8 + Integer::counter(1);
        let (inner, inner_values) = graph.add_node(CkksOp::Rotate { by }, vec![y], vec![ty(4)], None, None);
        let region = Region { ops: vec![inner], yields: inner_values };
        let op = CkksOp::Sum { counter: 1, count: Integer::counter(0) + 1 };
        let (middle, middle_values) = graph.add_node(op, vec![], vec![ty(4)], None, Some(region));
        let region = Region { ops: vec![middle], yields: middle_values };
        let op = CkksOp::Sum { counter: 0, count: Integer::position() / 2 + 1 };
        ops.push(graph.add_node(op, vec![], vec![ty(4)], None, Some(region)).0);
        ops.push(graph.add_node(CkksOp::Conjugate, vec![y], vec![ty(4)], None, None).0);
        ops.push(graph.add_node(CkksOp::Conjugate, vec![x], vec![ty(9)], None, None).0);
        graph.body = Region { ops, yields: vec![x] };
        assert_eq!(graph.verify_structure(), Vec::<String>::new());
        let placement = Placement { index_to_slot: vec![0], token_stride: 1 };
        let program = Program {
            slots: 64,
            context: 5,
            tables: std::sync::Arc::default(),
            states: vec![],
            prefix: vec![],
            entries: vec![Entry { kind: EntryKind::Decode, graph, checks: vec![] }],
            embedding: placement.clone(),
            inputs: vec![EmbeddingForm::scaled(1.0)],
            logits: placement,
        };
        let manifest = KeyManifest::of(&program);
        // Position 4 gives the landing 3 at level 9; loops run over (0,0), (1,0), (1,1), (2,0), (2,1), (2,2).
        let expected = [(62, 9), (3, 9), (5, 4), (8, 4), (9, 4), (16, 4), (17, 4), (18, 4)];
        let mut expected: BTreeMap<_, _> = expected.map(|(by, level)| (by, BTreeSet::from([level]))).into();
        expected.entry(3).or_default().insert(4);
        assert_eq!(manifest.rotations, expected);
        assert_eq!(manifest.conjugation, BTreeSet::from([4, 9]));
        assert!(manifest.relinearisation.is_empty());
    }

    #[test]
    fn calls_stay_within_the_context() {
        assert_eq!(calls(EntryKind::Decode, 3, true, true), vec![(0, 1), (1, 1), (2, 1)]);
        assert_eq!(calls(EntryKind::Prefill { chunk: 2 }, 3, true, true), vec![(0, 1), (0, 2), (2, 1)]);
        assert_eq!(calls(EntryKind::Prefill { chunk: 4 }, 8, false, false), vec![(0, 4)]);
        assert!(Graph::<CkksOp, CiphertextType>::default().check_ids().is_empty());
    }
}
