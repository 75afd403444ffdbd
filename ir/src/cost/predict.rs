//! What calls, layers, sessions and keys take by a table: predictions in nanoseconds on one thread.
//!
//! A call is predicted as it is executed: loops pass by pass, at its position.

use std::collections::BTreeMap;

use super::table::CostTable;
use crate::ckks::{CiphertextType, CkksGraph, CkksOp};
use crate::expression::Environment;
use crate::graph::{OpId, Region};
use crate::program::{Entry, EntryKind, EntryPoint, Program};

/// Share of the work that threads divide among them, as measured on two cores.
const PARALLEL_SHARE: f64 = 0.8;

/// Time that a pair of limbs of a key takes to make, in transforms; most of it goes into random residues.
const TRANSFORMS_OF_A_KEY_LIMB: f64 = 64.0;

/// How much faster several threads are than one, by Amdahl's law.
pub fn speedup(threads: usize) -> f64 {
    1.0 / (1.0 - PARALLEL_SHARE + PARALLEL_SHARE / threads.max(1) as f64)
}

/// Predicted time of making keys of so many bytes in a ring of this degree, in nanoseconds on one thread.
pub fn keys_ns(key_bytes: u64, degree: usize, transform_ns: f64) -> f64 {
    key_bytes as f64 / (degree * size_of::<u64>()) as f64 / 2.0 * TRANSFORMS_OF_A_KEY_LIMB * transform_ns
}

/// Time of a token in a session of which one half is read, by the fastest entry point, and the other half written, given
/// that of each entry point's call.
pub fn token_ns(calls: &[(EntryKind, f64)]) -> f64 {
    let written = |&(kind, ns): &(EntryKind, f64)| (kind == EntryKind::Decode).then_some(ns);
    let read = |&(kind, ns): &(EntryKind, f64)| ns / f64::from(kind.chunk().unwrap_or(1).max(1));
    let decode = calls.iter().find_map(written).unwrap_or_default();
    f64::midpoint(decode, calls.iter().map(read).fold(f64::INFINITY, f64::min))
}

impl CostTable {
    /// Predicted time of a call from `position` on, in nanoseconds on one thread: a decode step, or a prefill of a whole
    /// chunk; 0 for an entry point that the program does not have.
    pub fn predict(&self, program: &Program<CkksOp, CiphertextType>, entry: EntryPoint, position: i64) -> f64 {
        self.predict_layers(program, entry, position).values().sum()
    }

    /// [`predict`](Self::predict) by decoder layer; what belongs to none under `None`.
    pub fn predict_layers(
        &self,
        program: &Program<CkksOp, CiphertextType>,
        entry: EntryPoint,
        position: i64,
    ) -> BTreeMap<Option<u32>, f64> {
        program.entry(entry).map_or_else(BTreeMap::new, |entry| self.priced(program, entry).layers(position))
    }

    /// Predictions for all entry points of a program, whose ops are priced once.
    pub fn predictions<'p>(&self, program: &'p Program<CkksOp, CiphertextType>) -> Predictions<'p> {
        Predictions(program.entries.iter().map(|entry| self.priced(program, entry)).collect())
    }

    fn priced<'p>(
        &self,
        program: &'p Program<CkksOp, CiphertextType>,
        entry: &'p Entry<CkksOp, CiphertextType>,
    ) -> PricedEntry<'p> {
        let graph = &entry.graph;
        let price = |index: usize| self.node_ns(graph, OpId(index as u32), program.slots);
        PricedEntry { program, entry, ns: (0..graph.nodes.len()).map(price).collect() }
    }

    /// For each multiple of the chunk: from how many tokens on a prefill there is predicted to be faster than decoding
    /// them one by one, from 2 to the chunk's length, and one more than that where it never is. The prefill is priced
    /// with a whole chunk, than which fewer tokens are hardly cheaper. Empty for a program without prefill.
    pub fn prefill_pays(&self, program: &Program<CkksOp, CiphertextType>) -> Vec<u32> {
        let [decode, prefill] = [EntryPoint::Decode, EntryPoint::Prefill]
            .map(|entry| program.entry(entry).map(|entry| self.priced(program, entry)));
        let (Some(decode), Some(prefill)) = (decode, prefill) else { return Vec::new() };
        let chunk = prefill.entry.kind.chunk().unwrap_or(1).max(1);
        let least = |start: u32| {
            let (end, prefill_ns) = (program.context.min(start + chunk), prefill.call_ns(start.into()));
            let mut decode_ns = 0.0;
            let pays = (start..end).find(|&position| {
                decode_ns += decode.call_ns(position.into());
                position > start && prefill_ns < decode_ns
            });
            pays.map_or(chunk, |last| last - start) + 1
        };
        (0..program.context).step_by(chunk as usize).map(least).collect()
    }
}

/// Predicted times of a program's calls, in nanoseconds on one thread.
#[derive(Debug)]
pub struct Predictions<'p>(Vec<PricedEntry<'p>>);

impl Predictions<'_> {
    /// Time of a call that takes `count` tokens in from `position` on; 0 for an entry point that the program does not have.
    pub fn call_ns(&self, entry: EntryPoint, position: i64, count: i64) -> f64 {
        let found = self.0.iter().find(|priced| priced.entry.kind.entry() == entry);
        found.map_or(0.0, |priced| priced.layers_of(position, count).values().sum())
    }
}

/// An entry point and the predicted time of an execution of each of its ops, in nanoseconds.
#[derive(Debug)]
struct PricedEntry<'p> {
    program: &'p Program<CkksOp, CiphertextType>,
    entry: &'p Entry<CkksOp, CiphertextType>,
    ns: Vec<f64>,
}

impl PricedEntry<'_> {
    /// Time of a call from `position` on by decoder layer. A prefill takes a whole chunk if the context has room for it.
    fn layers(&self, position: i64) -> BTreeMap<Option<u32>, f64> {
        let room = i64::from(self.program.context) - position;
        let count = self.entry.kind.chunk().map_or(1, |chunk| i64::from(chunk).min(room));
        self.layers_of(position, count)
    }

    /// Time of a call for `count` tokens by decoder layer.
    fn layers_of(&self, position: i64, count: i64) -> BTreeMap<Option<u32>, f64> {
        let Self { program, entry, ns } = self;
        let mut layers = BTreeMap::new();
        for_each_execution(program, entry.kind.entry(), position, count, &mut |graph, op, _| {
            *layers.entry(graph.node(op).layer).or_insert(0.0) += ns[op.index()];
        });
        layers
    }

    fn call_ns(&self, position: i64) -> f64 {
        self.layers(position).values().sum()
    }
}

/// Sees a graph, one of its ops, and the variables at its execution.
pub type Visit<'v> = &'v mut dyn FnMut(&CkksGraph, OpId, &Environment);

/// Visits every op of a call as often as it is executed; a loop once for each pass through its body. A rotation by a
/// multiple of the number of slots does nothing, and is not visited.
pub fn for_each_execution(
    program: &Program<CkksOp, CiphertextType>,
    entry: EntryPoint,
    position: i64,
    count: i64,
    visit: Visit<'_>,
) {
    fn block(graph: &CkksGraph, region: &Region, slots: i64, environment: &mut Environment, visit: Visit<'_>) {
        for op in &region.ops {
            let node = graph.node(*op);
            match (&node.op, &node.region) {
                (CkksOp::Sum { counter, count }, Some(body)) => {
                    for value in 0..count.evaluate(environment) {
                        environment.set_loop(*counter, value);
                        visit(graph, *op, environment);
                        block(graph, body, slots, environment, visit);
                    }
                }
                (CkksOp::Rotate { by }, _) if by.evaluate(environment).rem_euclid(slots) == 0 => {}
                _ => visit(graph, *op, environment),
            }
        }
    }
    if let Some(entry) = program.entry(entry) {
        let mut environment = Environment::new(position, count);
        block(&entry.graph, &entry.graph.body, i64::from(program.slots.max(1)), &mut environment, visit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions_follow_loops_and_positions() {
        let plan = crate::plan::tests::example();
        let program = &plan.program;
        let reads = |position| {
            let mut reads = 0;
            for_each_execution(program, EntryPoint::Decode, position, 1, &mut |graph, op, _| {
                reads += u32::from(matches!(graph.node(op).op, CkksOp::StateRead { .. }));
            });
            reads
        };
        assert_eq!((reads(0), reads(15)), (1, 2));
        let table = CostTable::built_in(&plan.parameters);
        assert!(table.predict(program, EntryPoint::Decode, 0) > table.bootstrap_ns(false, program.slots));
        assert!(table.predict(program, EntryPoint::Decode, 15) > table.predict(program, EntryPoint::Decode, 0));
        assert_eq!(table.predict(program, EntryPoint::Prefill, 0), 0.0);
        let predictions = table.predictions(program);
        assert_eq!(predictions.call_ns(EntryPoint::Decode, 15, 1), table.predict(program, EntryPoint::Decode, 15));
        assert_eq!(predictions.call_ns(EntryPoint::Prefill, 0, 1), 0.0);
    }

    #[test]
    fn a_token_is_half_read_and_half_written_and_threads_share_most_of_the_work() {
        let (decode, prefill) = (EntryKind::Decode, EntryKind::Prefill { chunk: 4 });
        assert_eq!(token_ns(&[(decode, 10.0)]), 10.0);
        assert_eq!(token_ns(&[(decode, 10.0), (prefill, 8.0)]), 6.0);
        assert_eq!(token_ns(&[(prefill, 80.0), (decode, 10.0)]), 10.0);
        assert!((speedup(1) - 1.0).abs() < 1e-12 && (speedup(2) - 1.0 / 0.6).abs() < 1e-12);
    }

    #[test]
    fn prefill_pays_from_as_many_tokens_on_as_it_costs_decode_steps() {
        let plan = crate::plan::tests::with_prefill();
        let table = CostTable::built_in(&plan.parameters);
        // As much as one decode step; then as much as several and a bootstrap, which is less than one more.
        let pays = |context: u32, steps: usize, bootstraps: usize| {
            let mut program = plan.program.clone();
            program.context = context;
            let graph = &mut program.entries[1].graph;
            let bootstrap = graph.nodes.iter().position(|node| matches!(node.op, CkksOp::Bootstrap(_))).unwrap();
            let mut ops = graph.body.ops.repeat(steps);
            ops.extend(vec![OpId(bootstrap as u32); bootstraps]);
            graph.body.ops = ops;
            table.prefill_pays(&program)
        };
        assert_eq!(pays(16, 1, 0), [2; 4]);
        assert_eq!(pays(16, 2, 1), [3; 4]);
        assert_eq!(pays(16, 3, 1), [4; 4]);
        assert_eq!(pays(16, 4, 1), [5; 4]);
        // The last chunk has room for one token, or for three.
        assert_eq!(pays(13, 1, 0), [2, 2, 2, 5]);
        assert_eq!(pays(15, 3, 1), [4, 4, 4, 5]);
        assert!(table.prefill_pays(&crate::plan::tests::example().program).is_empty());
    }
}
