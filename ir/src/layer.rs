//! One decoder layer of a program, cut out as a program of its own, and what its ops are for.
//!
//! A token passes through layers that are alike but for their weights. What one of them takes, times their number, is what
//! a model takes whose weights are not at hand or do not fit into memory.

use std::collections::BTreeMap;
use std::fmt;

use crate::ckks::{CiphertextType, CkksGraph, CkksOp};
use crate::expression::{TableId, Vector};
use crate::graph::{Definition, OpId, Region, ValueId};
use crate::program::{EmbeddingForm, Entry, EntryKind, EntryPoint, Placement, Program};
use crate::slots::StateId;

/// A program of the ckks stage.
type CkksProgram = Program<CkksOp, CiphertextType>;

/// A layer of a program's entry point `decode`.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// The layer as a program: its one entry point `decode` takes the values that cross into the layer and gives those that
    /// cross out of it; states and tables are those that it uses.
    pub program: CkksProgram,
    /// By input: the value of the whole entry point.
    pub inputs: Vec<ValueId>,
    /// By output: the value of the whole entry point.
    pub outputs: Vec<ValueId>,
    /// By state array: that of the whole program.
    pub states: Vec<StateId>,
}

/// What an op of a layer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The norms and the residual sums before them.
    Norm,
    /// The linear maps to queries, keys and values.
    QueryKeyValue,
    /// Rotary embeddings, and what is written to the caches.
    Cache,
    /// Products of queries and keys.
    Scores,
    /// From scores to shares.
    Softmax,
    /// Products of shares and values, and their division by the sum of shares.
    Mix,
    /// The linear map after the attention.
    Output,
    /// The linear maps to the gate and beside it.
    GateUp,
    /// The gate's function, and its product.
    Gate,
    /// The linear map after the gate.
    Down,
    /// Bootstraps, wherever they are.
    Bootstrap,
}

impl Part {
    /// The part's name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Norm => "norm",
            Self::QueryKeyValue => "linear_qkv",
            Self::Cache => "rotary_and_cache",
            Self::Scores => "scores",
            Self::Softmax => "softmax",
            Self::Mix => "mix",
            Self::Output => "linear_output",
            Self::GateUp => "linear_gate_up",
            Self::Gate => "silu",
            Self::Down => "linear_down",
            Self::Bootstrap => "bootstrap",
        }
    }

    /// The part's name for people.
    pub fn description(self) -> &'static str {
        match self {
            Self::Norm => "norms, residual sums",
            Self::QueryKeyValue => "linear maps q, k, v",
            Self::Cache => "rotary, cache writes",
            Self::Scores => "scores q·k",
            Self::Softmax => "softmax",
            Self::Mix => "mix of values",
            Self::Output => "linear map o",
            Self::GateUp => "linear maps gate, up",
            Self::Gate => "silu, gated product",
            Self::Down => "linear map down",
            Self::Bootstrap => "bootstraps",
        }
    }

    /// The part of a linear map with weights of this name, e.g. `layers.0.self_attn.q_proj`.
    fn of_weights(name: &str) -> Option<Self> {
        Some(match name.rsplit('.').next()? {
            "q_proj" | "k_proj" | "v_proj" => Self::QueryKeyValue,
            "o_proj" => Self::Output,
            "gate_proj" | "up_proj" => Self::GateUp,
            "down_proj" => Self::Down,
            _ => return None,
        })
    }

    /// What follows a linear map.
    fn after(self) -> Self {
        match self {
            Self::QueryKeyValue => Self::Cache,
            Self::GateUp => Self::Gate,
            _ => Self::Norm,
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl CkksProgram {
    /// Number of decoder layers of the entry point `decode`.
    pub fn layers(&self) -> u32 {
        let nodes = self.entry(EntryPoint::Decode).map_or(&[][..], |entry| &entry.graph.nodes);
        nodes.iter().filter_map(|node| node.layer).max().map_or(0, |last| last + 1)
    }

    /// A decoder layer of the entry point `decode`; `None` if there is none of this number.
    pub fn layer(&self, layer: u32) -> Option<Layer> {
        let whole = &self.entry(EntryPoint::Decode)?.graph;
        let ops = members(whole, layer);
        if ops.is_empty() {
            return None;
        }
        let (inputs, outputs) = crossings(whole, &ops);
        let mut graph = whole.clone();
        for (index, input) in inputs.iter().enumerate() {
            graph.values[input.index()].definition = Definition::Input(index as u32);
        }
        graph.inputs.clone_from(&inputs);
        graph.body = Region { ops, yields: outputs.clone() };
        graph.compact();

        let (mut states, mut tables) = (Numbering::default(), Numbering::default());
        for node in &mut graph.nodes {
            for_each_state(&mut node.op, &mut |state| state.0 = states.of(state.0));
            for_each_table(&mut node.op, &mut |table| table.0 = tables.of(table.0));
        }
        let kept = states.old.iter().map(|&state| {
            let mut state = self.states[state as usize].clone();
            if let Some(initial) = &mut state.initial {
                vector_tables(initial, &mut |table| table.0 = tables.of(table.0));
            }
            state
        });
        let arrays = kept.collect();
        let program = Program {
            slots: self.slots,
            context: self.context,
            tables: tables.old.iter().map(|&table| self.tables[table as usize].clone()).collect::<Vec<_>>().into(),
            states: arrays,
            prefix: self.prefix.clone(),
            entries: vec![Entry { kind: EntryKind::Decode, graph, checks: Vec::new() }],
            embedding: self.embedding.clone(),
            inputs: vec![EmbeddingForm::scaled(1.0); inputs.len()],
            logits: Placement { index_to_slot: Vec::new(), token_stride: 0 },
        };
        Some(Layer { program, inputs, outputs, states: states.old.into_iter().map(StateId).collect() })
    }
}

impl Layer {
    /// The entry point's graph.
    pub fn graph(&self) -> &CkksGraph {
        &self.program.entries[0].graph
    }

    /// By op: what it is for, as the linear maps and the reads of the caches divide the layer.
    pub fn parts(&self) -> Vec<Part> {
        let graph = self.graph();
        let mut parts = vec![Part::Norm; graph.nodes.len()];
        let mut current = Part::Norm;
        for &op in &graph.body.ops {
            let part = match &graph.node(op).op {
                CkksOp::Linear(linear) => {
                    let name = |table: TableId| self.program.table(table).name.as_str();
                    let part = linear.matrices().find_map(|(_, matrix)| Part::of_weights(name(matrix.weights)));
                    let part = part.unwrap_or(Part::Norm);
                    current = part.after();
                    part
                }
                CkksOp::Bootstrap(_) => Part::Bootstrap,
                // The loop over the keys, and then the values.
                CkksOp::Sum { .. } if current == Part::Cache => {
                    current = Part::Softmax;
                    Part::Scores
                }
                CkksOp::StateRead { .. } if current == Part::Softmax => {
                    current = Part::Mix;
                    Part::Mix
                }
                _ => current,
            };
            assign(graph, op, part, &mut parts);
        }
        parts
    }
}

/// Gives an op and the ops of its body a part.
fn assign(graph: &CkksGraph, op: OpId, part: Part, parts: &mut [Part]) {
    parts[op.index()] = part;
    for &inner in graph.node(op).region.iter().flat_map(|region| &region.ops) {
        assign(graph, inner, part, parts);
    }
}

/// The layer's ops in the top block. A rescale of a product from outside belongs to where the product is made, so that fresh
/// ciphertexts can stand for what crosses.
fn members(graph: &CkksGraph, layer: u32) -> Vec<OpId> {
    let outside = |value: &ValueId| match graph.values[value.index()].definition {
        Definition::Result(op, _) => graph.node(op).layer != Some(layer),
        Definition::Input(_) => true,
    };
    let foreign = |op: OpId| matches!(graph.node(op).op, CkksOp::Rescale) && graph.node(op).inputs.iter().all(outside);
    let ops = graph.body.ops.iter().copied();
    ops.filter(|&op| graph.node(op).layer == Some(layer) && !foreign(op)).collect()
}

/// Values that ops of the top block, bodies included, use and do not define; and values that they define and others use.
fn crossings(graph: &CkksGraph, ops: &[OpId]) -> (Vec<ValueId>, Vec<ValueId>) {
    let mut inside = vec![false; graph.values.len()];
    let mut chosen = vec![false; graph.nodes.len()];
    for &op in ops {
        choose(graph, op, &mut chosen, &mut inside);
    }
    let mut crossing = [vec![false; graph.values.len()], vec![false; graph.values.len()]];
    let mut used = |value: ValueId, by_chosen: bool| {
        if inside[value.index()] != by_chosen {
            crossing[usize::from(inside[value.index()])][value.index()] = true;
        }
    };
    graph.for_each_op(|op, _| {
        let node = graph.node(op);
        let yields = node.region.iter().flat_map(|region| &region.yields);
        node.inputs.iter().chain(yields).for_each(|&value| used(value, chosen[op.index()]));
    });
    graph.body.yields.iter().for_each(|&value| used(value, false));
    let [inwards, outwards] = crossing.map(|crossing| {
        let values = crossing.iter().enumerate().filter(|(_, crosses)| **crosses);
        values.map(|(index, _)| ValueId(index as u32)).collect()
    });
    (inwards, outwards)
}

/// Marks an op, the ops of its body, and what they define.
fn choose(graph: &CkksGraph, op: OpId, chosen: &mut [bool], inside: &mut [bool]) {
    let node = graph.node(op);
    chosen[op.index()] = true;
    node.results.iter().for_each(|value| inside[value.index()] = true);
    node.region.iter().flat_map(|region| &region.ops).for_each(|&inner| choose(graph, inner, chosen, inside));
}

/// New numbers in the order in which old ones are met.
#[derive(Default)]
struct Numbering {
    new: BTreeMap<u32, u32>,
    old: Vec<u32>,
}

impl Numbering {
    fn of(&mut self, old: u32) -> u32 {
        *self.new.entry(old).or_insert_with(|| {
            self.old.push(old);
            self.old.len() as u32 - 1
        })
    }
}

fn for_each_state(op: &mut CkksOp, visit: &mut dyn FnMut(&mut StateId)) {
    if let CkksOp::StateRead { state, .. } | CkksOp::StateWrite { state, .. } = op {
        visit(state);
    }
}

fn for_each_table(op: &mut CkksOp, visit: &mut dyn FnMut(&mut TableId)) {
    match op {
        CkksOp::MultiplyPlain { plain } | CkksOp::AddPlain { plain } => vector_tables(plain, visit),
        CkksOp::Polynomial { mask: Some(mask), .. } => vector_tables(mask, visit),
        CkksOp::Linear(linear) => {
            for matrix in linear.outputs.iter_mut().flat_map(|output| &mut output.matrices) {
                visit(&mut matrix.weights);
                matrix.bias.iter_mut().for_each(&mut *visit);
            }
        }
        _ => {}
    }
}

fn vector_tables(vector: &mut Vector, visit: &mut dyn FnMut(&mut TableId)) {
    match vector {
        Vector::Scalar(_) => {}
        Vector::Table(table, _) => visit(table),
        Vector::Mask(_, inner) => vector_tables(inner, visit),
        Vector::Sum(a, b) | Vector::Product(a, b) => [a, b].into_iter().for_each(|part| vector_tables(part, visit)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ckks::Levels;
    use crate::expression::Integer;
    use crate::program::State;
    use crate::slots::{Domain, Fill, Layout, WriteMode};
    use crate::table::Table;
    use crate::verify;

    const LEVELS: Levels = Levels { output: 8, bootstrap_input: 2 };

    fn ty(level: u32, product: bool) -> CiphertextType {
        let layout = Layout { stride: 1, fill: Fill::Junk, domain: Domain::Real };
        CiphertextType { level, product, layout, max_abs: 1.0 }
    }

    /// Three layers x → x·t + Σ c over their own table t and array c, of which each layer but the first rescales the product
    /// that the one before leaves; what the first layer multiplies goes out as well.
    fn program() -> CkksProgram {
        let mut graph = CkksGraph::default();
        let x = graph.add_input("x", ty(8, false));
        let (mut ops, mut previous, mut shown) = (Vec::new(), x, x);
        for layer in 0..3 {
            let level = 8 - layer;
            let mut push = |graph: &mut CkksGraph, op, inputs: Vec<ValueId>, result: Option<CiphertextType>| {
                let (op, results) = graph.add_node(op, inputs, result.into_iter().collect(), None, None);
                graph.nodes[op.index()].layer = Some(layer);
                ops.push(op);
                results.first().copied().unwrap_or(x)
            };
            if layer > 0 {
                previous = push(&mut graph, CkksOp::Rescale, vec![previous], Some(ty(level, false)));
            }
            let (state, index) = (StateId(layer), Integer::position());
            let write = CkksOp::StateWrite { state, index: index.clone(), mode: WriteMode::Accumulate };
            push(&mut graph, write, vec![previous], None);
            let plain = Vector::Scalar(2.0).times(Vector::Table(TableId(2 - layer), Integer::slot()));
            let product = push(&mut graph, CkksOp::MultiplyPlain { plain }, vec![previous], Some(ty(level, true)));
            if layer == 0 {
                shown = product;
            }
            let read = CkksOp::StateRead { state, index: Integer::counter(layer) };
            let (read, elements) = graph.add_node(read, vec![], vec![ty(level, false)], None, None);
            let multiply = CkksOp::MultiplyScalar { factor: 0.5 };
            let (multiply, yields) = graph.add_node(multiply, elements, vec![ty(level, true)], None, None);
            let region = Region { ops: vec![read, multiply], yields };
            let sum = CkksOp::Sum { counter: layer, count: index + 1 };
            let (sum, sums) = graph.add_node(sum, vec![], vec![ty(level, true)], None, Some(region));
            for op in [read, multiply, sum] {
                graph.nodes[op.index()].layer = Some(layer);
            }
            ops.push(sum);
            let (add, both) = graph.add_node(CkksOp::Add, vec![product, sums[0]], vec![ty(level, true)], None, None);
            graph.nodes[add.index()].layer = Some(layer);
            ops.push(add);
            previous = both[0];
        }
        graph.body = Region { ops, yields: vec![previous, shown] };
        let layout = ty(0, false).layout;
        let state = |layer: u32| State {
            name: format!("c{layer}"),
            capacity: 4,
            layout,
            level: Some(8 - layer),
            initial: (layer == 1).then(|| Vector::Table(TableId(3), Integer::slot())),
        };
        Program {
            slots: 4,
            context: 4,
            tables: (0..4).map(|table| Table::new(format!("t{table}"), [4], vec![0.5; 4])).collect::<Vec<_>>().into(),
            states: (0..3).map(state).collect(),
            prefix: vec![],
            entries: vec![Entry { kind: EntryKind::Decode, graph, checks: vec![] }],
            embedding: Placement { index_to_slot: vec![0], token_stride: 0 },
            inputs: vec![EmbeddingForm::scaled(1.0)],
            logits: Placement { index_to_slot: vec![0], token_stride: 0 },
        }
    }

    #[test]
    fn a_layer_is_a_program_of_its_own() {
        let program = program();
        assert_eq!(verify::ckks_problems(&program, LEVELS), []);
        assert_eq!(program.layers(), 3);
        assert_eq!(program.layer(3), None);
        let names =
            |layer: &Layer| -> Vec<String> { layer.program.tables.iter().map(|table| table.name.clone()).collect() };
        let first = program.layer(0).unwrap();
        assert_eq!(first.inputs, program.entries[0].graph.inputs);
        assert_eq!(first.outputs.len(), 2, "the residual stream, and what is shown");
        assert_eq!(names(&first), ["t2"]);
        let middle = program.layer(1).unwrap();
        assert_eq!((names(&middle), &middle.states), (vec!["t1".to_owned(), "t3".to_owned()], &vec![StateId(1)]));
        assert_eq!(middle.program.states[0].name, "c1");
        // The rescale of the product that crosses stays outside, and its result crosses.
        assert_eq!(middle.inputs.len(), 1);
        assert_eq!(*program.entries[0].graph.ty(middle.inputs[0]), ty(7, false));
        for layer in [first, middle, program.layer(2).unwrap()] {
            assert_eq!(verify::ckks_problems(&layer.program, LEVELS), []);
            assert!(layer.graph().nodes.iter().all(|node| node.layer == layer.graph().nodes[0].layer));
        }
    }
}
