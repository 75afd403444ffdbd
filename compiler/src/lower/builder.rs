//! Emits ops of the slots stage into nested blocks.
//!
//! Rotations of one value by one amount are emitted once in the block where they were first asked for and reused there
//! and in the blocks nested in it; amounts are taken modulo n, and a rotation by 0 is no op.

use std::collections::HashMap;

use cachemir_ir::expression::{Integer, Vector};
use cachemir_ir::graph::{Definition, OpId, Origin, OriginId, Region, ValueId};
use cachemir_ir::linear::Linear;
use cachemir_ir::slots::{Chebyshev, Domain, Fill, Layout, Purpose, SlotGraph, SlotOp, SlotType, StateId, WriteMode};

/// A block being filled, with the rotations emitted in it.
#[derive(Default)]
struct Block {
    region: Region,
    rotations: HashMap<(ValueId, Integer), ValueId>,
    loop_header: Option<(u32, Integer)>,
}

/// Builds the graph of one entry point.
pub(super) struct Builder {
    graph: SlotGraph,
    slots: usize,
    blocks: Vec<Block>,
    origin: Option<OriginId>,
    layer: Option<u32>,
    next_counter: u32,
}

/// A layout of real slots.
pub(super) fn layout(stride: usize, fill: Fill) -> Layout {
    Layout { stride: stride as u32, fill, domain: Domain::Real }
}

/// Powers of two times `start`, from `start` up to but not including `stop`.
pub(super) fn doubling(start: usize, stop: usize) -> impl Iterator<Item = i64> {
    std::iter::successors(Some(start), |k| Some(2 * k)).take_while(move |&k| k < stop).map(|k| k as i64)
}

impl Builder {
    /// A builder for ciphertexts of `slots` slots. Loops are numbered from `first_counter` on.
    pub(super) fn new(slots: usize, first_counter: u32) -> Self {
        Self {
            graph: SlotGraph::default(),
            slots,
            blocks: vec![Block::default()],
            origin: None,
            layer: None,
            next_counter: first_counter,
        }
    }

    /// The number that the next loop's counter gets.
    pub(super) fn next_counter(&self) -> u32 {
        self.next_counter
    }

    /// Ops from here on come from this ONNX node.
    pub(super) fn set_origin(&mut self, origin: Option<Origin>) {
        self.origin = origin.map(|origin| self.graph.intern_origin(origin));
    }

    /// Ops from here on belong to this decoder layer.
    pub(super) fn set_layer(&mut self, layer: Option<usize>) {
        self.layer = layer.map(|layer| layer as u32);
    }

    /// Adds an input of the graph.
    pub(super) fn input(&mut self, name: &str, layout: Layout) -> ValueId {
        self.graph.add_input(name, SlotType { layout, max_abs: f64::INFINITY })
    }

    /// The finished graph with its outputs.
    pub(super) fn finish(mut self, outputs: Vec<ValueId>) -> SlotGraph {
        let mut region = self.blocks.pop().map(|block| block.region).unwrap_or_default();
        region.yields = outputs;
        self.graph.body = region;
        self.graph
    }

    /// Declares how a value lies in the slots.
    pub(super) fn set_layout(&mut self, value: ValueId, layout: Layout) {
        self.graph.values[value.index()].ty.layout = layout;
    }

    /// Gives a value a name, unless another has it.
    pub(super) fn set_name(&mut self, value: ValueId, name: String) {
        if self.graph.values.iter().all(|known| known.name != name) {
            self.graph.values[value.index()].name = name;
        }
    }

    /// The op that defines a value, and which of its results the value is.
    pub(super) fn definition(&self, value: ValueId) -> Option<(OpId, usize)> {
        match self.graph.values[value.index()].definition {
            Definition::Result(op, index) => Some((op, index as usize)),
            Definition::Input(_) => None,
        }
    }

    /// Number n of slots.
    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    fn block(&mut self) -> &mut Block {
        self.blocks.last_mut().expect("the top block is never left")
    }

    fn push(&mut self, op: SlotOp, inputs: Vec<ValueId>, layouts: Vec<Layout>, region: Option<Region>) -> Vec<ValueId> {
        let types = layouts.into_iter().map(|layout| SlotType { layout, max_abs: f64::INFINITY }).collect();
        let (id, results) = self.graph.add_node(op, inputs, types, self.origin, region);
        self.graph.nodes[id.index()].layer = self.layer;
        self.block().region.ops.push(id);
        results
    }

    fn push_one(&mut self, op: SlotOp, inputs: Vec<ValueId>) -> ValueId {
        let layout = self.graph.ty(inputs[0]).layout;
        self.push(op, inputs, vec![layout], None)[0]
    }

    /// a + b
    pub(super) fn add(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.push_one(SlotOp::Add, vec![a, b])
    }

    /// The sum of one or more values.
    pub(super) fn add_all(&mut self, values: Vec<ValueId>) -> ValueId {
        let mut values = values.into_iter();
        let first = values.next().expect("a sum has a term");
        values.fold(first, |sum, value| self.add(sum, value))
    }

    /// a − b
    pub(super) fn subtract(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.push_one(SlotOp::Subtract, vec![a, b])
    }

    /// a·b
    pub(super) fn multiply(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.push_one(SlotOp::Multiply, vec![a, b])
    }

    /// The results of a linear map, of these layouts.
    pub(super) fn linear(&mut self, a: ValueId, linear: Linear, layouts: Vec<Layout>) -> Vec<ValueId> {
        self.push(SlotOp::Linear(linear), vec![a], layouts, None)
    }

    /// a·plain
    pub(super) fn multiply_plain(&mut self, a: ValueId, plain: Vector, purpose: Purpose) -> ValueId {
        self.push_one(SlotOp::MultiplyPlain { plain, purpose }, vec![a])
    }

    /// a where the condition holds and 0 elsewhere, by a product with the given reason.
    pub(super) fn mask(&mut self, a: ValueId, condition: Integer, reason: &str) -> ValueId {
        self.multiply_plain(a, Vector::Scalar(1.0).masked(condition), Purpose::Mask(reason.to_owned()))
    }

    /// a + plain
    pub(super) fn add_plain(&mut self, a: ValueId, plain: Vector) -> ValueId {
        self.push_one(SlotOp::AddPlain { plain }, vec![a])
    }

    /// a rotated to the left.
    pub(super) fn rotate(&mut self, a: ValueId, by: impl Into<Integer>) -> ValueId {
        let by = match by.into() {
            Integer::Constant(amount) => {
                let slots = self.slots as i64;
                let amount = amount.rem_euclid(slots);
                Integer::Constant(if 2 * amount > slots { amount - slots } else { amount })
            }
            other => other,
        };
        if by == Integer::Constant(0) {
            return a;
        }
        let key = (a, by);
        if let Some(known) = self.blocks.iter().find_map(|block| block.rotations.get(&key)) {
            return *known;
        }
        let result = self.push_one(SlotOp::Rotate { by: key.1.clone() }, vec![a]);
        self.block().rotations.insert(key, result);
        result
    }

    /// a rotated by 0, `step`, …, `(count − 1)·step`: one rotation each, all by powers of two times the step, so that few
    /// rotation keys serve them.
    pub(super) fn multiples(&mut self, a: ValueId, step: i64, count: usize) -> Vec<ValueId> {
        let mut rotated = vec![a];
        for index in 1..count {
            let rest = rotated[index & (index - 1)];
            rotated.push(self.rotate(rest, step << index.trailing_zeros()));
        }
        rotated
    }

    /// a rotated by `sign·amount` for an amount that is a sum of some of the steps, powers of two: one rotation a step, by
    /// `sign·step` or by 0.
    pub(super) fn rotate_by_bits(
        &mut self,
        a: ValueId,
        amount: &Integer,
        steps: impl IntoIterator<Item = i64>,
        sign: i64,
    ) -> ValueId {
        let mut rotated = a;
        for step in steps {
            let bit = amount.clone() / step % 2;
            rotated = self.rotate(rotated, bit.select(sign * step, 0i64));
        }
        rotated
    }

    /// Adds, for each step in turn, the value rotated by the step.
    pub(super) fn fold(&mut self, a: ValueId, steps: impl IntoIterator<Item = i64>) -> ValueId {
        self.rotate_and_sum(a, steps.into_iter().map(Integer::from).collect())
    }

    fn rotate_and_sum(&mut self, a: ValueId, steps: Vec<Integer>) -> ValueId {
        if steps.is_empty() { a } else { self.push_one(SlotOp::RotateAndSum { steps }, vec![a]) }
    }

    /// polynomial(a)·mask
    pub(super) fn polynomial(&mut self, a: ValueId, polynomial: Chebyshev, mask: Option<Vector>) -> ValueId {
        self.push_one(SlotOp::Polynomial { polynomial, mask }, vec![a])
    }

    /// A place for a bootstrap of one value.
    pub(super) fn refresh(&mut self, a: ValueId) -> ValueId {
        self.push_one(SlotOp::Refresh { keep: None, factor: 1.0 }, vec![a])
    }

    /// A place for a bootstrap of one value, which is multiplied by the factor where the condition holds, and zero elsewhere.
    pub(super) fn refresh_masked(&mut self, a: ValueId, keep: Integer, factor: f64) -> ValueId {
        self.push_one(SlotOp::Refresh { keep: Some(keep), factor }, vec![a])
    }

    /// A place for one bootstrap of two values.
    pub(super) fn refresh_pair(&mut self, a: ValueId, b: ValueId) -> (ValueId, ValueId) {
        let layouts = vec![self.graph.ty(a).layout, self.graph.ty(b).layout];
        let results = self.push(SlotOp::Refresh { keep: None, factor: 1.0 }, vec![a, b], layouts, None);
        (results[0], results[1])
    }

    /// Element `index` of a state array of the given layout.
    pub(super) fn read(&mut self, state: StateId, index: impl Into<Integer>, layout: Layout) -> ValueId {
        self.push(SlotOp::StateRead { state, index: index.into() }, vec![], vec![layout], None)[0]
    }

    /// Adds a value to element `index` of a state array.
    pub(super) fn accumulate(&mut self, state: StateId, index: impl Into<Integer>, value: ValueId) {
        let op = SlotOp::StateWrite { state, index: index.into(), mode: WriteMode::Accumulate };
        self.push(op, vec![value], vec![], None);
    }

    /// Sums each group of slots (a power of two of them, the product of 2 over the steps) into the group's slot `target`:
    /// where a bit of the target is set, the rotation by that step goes to the right. The other slots hold junk.
    pub(super) fn land(&mut self, a: ValueId, steps: impl IntoIterator<Item = i64>, target: &Integer) -> ValueId {
        let towards = |step: i64| (target.clone() / step % 2).select(-step, step);
        self.rotate_and_sum(a, steps.into_iter().map(towards).collect())
    }

    /// Opens a loop over a counter in `0..count` and returns the counter. Ops go to its body until it is closed.
    pub(super) fn open(&mut self, count: impl Into<Integer>) -> Integer {
        let counter = self.next_counter;
        self.next_counter += 1;
        self.blocks.push(Block { loop_header: Some((counter, count.into())), ..Block::default() });
        Integer::counter(counter)
    }

    /// Closes the loop opened last: its results are the sums of the body's yields.
    pub(super) fn close(&mut self, yields: Vec<ValueId>) -> Vec<ValueId> {
        let block = self.blocks.pop().expect("a loop is open");
        let (counter, count) = block.loop_header.expect("the top block is never closed");
        let layouts = yields.iter().map(|&value| self.graph.ty(value).layout).collect();
        let region = Region { yields, ..block.region };
        self.push(SlotOp::Sum { counter, count }, vec![], layouts, Some(region))
    }
}
