//! What is known about a graph before it runs: when values die, which are rotated often, which products are summed.

use cachemir_ir::ckks::{CkksGraph, CkksOp};
use cachemir_ir::graph::{Definition, OpId, Region, ValueId};

/// Facts about one entry point's graph, by op and by value.
#[derive(Debug)]
pub(crate) struct Schedule {
    dead_after: Vec<Vec<ValueId>>,
    hoisted: Vec<bool>,
    accumulates: Vec<Option<usize>>,
}

impl Schedule {
    pub(crate) fn new(graph: &CkksGraph) -> Self {
        let mut schedule = Self {
            dead_after: vec![Vec::new(); graph.nodes.len()],
            hoisted: vec![false; graph.values.len()],
            accumulates: vec![None; graph.nodes.len()],
        };
        schedule.find_last_uses(graph, &graph.body, &graph.inputs);
        schedule.find_hoisted(graph);
        schedule.find_accumulations(graph);
        schedule
    }

    /// Values that no op after this one uses, all defined in the op's own block.
    pub(crate) fn dead_after(&self, op: OpId) -> &[ValueId] {
        &self.dead_after[op.index()]
    }

    /// Whether the value is rotated more than once, so that decomposing it once pays.
    pub(crate) fn is_hoisted(&self, value: ValueId) -> bool {
        self.hoisted[value.index()]
    }

    /// The yield that is this product and nothing else: it can be added to the loop's sum without being stored.
    pub(crate) fn accumulates(&self, op: OpId) -> Option<usize> {
        self.accumulates[op.index()]
    }

    fn find_last_uses(&mut self, graph: &CkksGraph, block: &Region, inputs: &[ValueId]) {
        let mut own = vec![false; graph.values.len()];
        let results = block.ops.iter().flat_map(|&op| &graph.node(op).results);
        for value in inputs.iter().chain(results) {
            own[value.index()] = true;
        }
        for value in &block.yields {
            own[value.index()] = false;
        }
        for &op in block.ops.iter().rev() {
            let mut used = graph.node(op).results.clone();
            collect_uses(graph, op, &mut used);
            for value in used {
                if std::mem::take(&mut own[value.index()]) {
                    self.dead_after[op.index()].push(value);
                }
            }
            if let Some(region) = &graph.node(op).region {
                self.find_last_uses(graph, region, &[]);
            }
        }
    }

    fn find_hoisted(&mut self, graph: &CkksGraph) {
        let mut depth_of = vec![0; graph.values.len()];
        let mut rotations = vec![0_usize; graph.values.len()];
        graph.for_each_op(|op, depth| {
            let node = graph.node(op);
            for result in &node.results {
                depth_of[result.index()] = depth;
            }
            if let (CkksOp::Rotate { .. }, Some(operand)) = (&node.op, node.inputs.first()) {
                // A rotation in a loop around which the value stays the same counts as many.
                rotations[operand.index()] += if depth > depth_of[operand.index()] { 2 } else { 1 };
            }
        });
        self.hoisted = rotations.into_iter().map(|count| count > 1).collect();
    }

    fn find_accumulations(&mut self, graph: &CkksGraph) {
        let mut uses = vec![0_usize; graph.values.len()];
        graph.for_each_op(|op, _| {
            let node = graph.node(op);
            let yields = node.region.iter().flat_map(|region| &region.yields);
            node.inputs.iter().chain(yields).for_each(|value| uses[value.index()] += 1);
        });
        for region in graph.nodes.iter().filter_map(|node| node.region.as_ref()) {
            for (index, value) in region.yields.iter().enumerate() {
                if let Definition::Result(op, 0) = graph.values[value.index()].definition
                    && uses[value.index()] == 1
                    && matches!(graph.node(op).op, CkksOp::MultiplyPlain { .. })
                    && region.ops.contains(&op)
                {
                    self.accumulates[op.index()] = Some(index);
                }
            }
        }
    }
}

/// Adds the values that an op uses, directly or in its body.
fn collect_uses(graph: &CkksGraph, op: OpId, uses: &mut Vec<ValueId>) {
    uses.extend(&graph.node(op).inputs);
    if let Some(region) = &graph.node(op).region {
        region.ops.iter().for_each(|&inner| collect_uses(graph, inner, uses));
        uses.extend(&region.yields);
    }
}
