//! Placement on small programs: everything fits, nothing is wasted, the caches find their level.

use cachemir_compiler::placement::{self, Infeasible, bootstraps};
use cachemir_ir::ckks::{CiphertextType, CkksOp, Levels, infer};
use cachemir_ir::cost::CostTable;
use cachemir_ir::expression::Integer;
use cachemir_ir::graph::{Graph, Origin, ValueId};
use cachemir_ir::parameters::Parameters;
use cachemir_ir::program::{EmbeddingForm, Entry, EntryKind, Placement, Program, State};
use cachemir_ir::slots::{Chebyshev, Domain, Fill, Layout, SlotGraph, SlotOp, SlotType, StateId, WriteMode};

const LEVELS: Levels = Levels { output: 16, bootstrap_input: 3 };
const LAYOUT: Layout = Layout { stride: 1, fill: Fill::Zero, domain: Domain::Real };

fn ty() -> SlotType {
    SlotType { layout: LAYOUT, max_abs: 1.0 }
}

fn push(graph: &mut SlotGraph, op: SlotOp, inputs: Vec<ValueId>, results: usize) -> Vec<ValueId> {
    let (id, values) = graph.add_node(op, inputs, vec![ty(); results], None, None);
    graph.body.ops.push(id);
    values
}

fn program(graph: SlotGraph, states: usize) -> Program<SlotOp, SlotType> {
    let placement = Placement { index_to_slot: vec![0], token_stride: 1 };
    let state =
        |index| State { name: format!("state{index}"), capacity: 1, layout: LAYOUT, level: None, initial: None };
    Program {
        slots: 8,
        context: 8,
        tables: std::sync::Arc::default(),
        states: (0..states).map(state).collect(),
        prefix: Vec::new(),
        entries: vec![Entry { kind: EntryKind::Decode, graph, checks: vec![] }],
        embedding: placement.clone(),
        inputs: vec![EmbeddingForm::scaled(1.0)],
        logits: placement,
    }
}

fn place(program: &Program<SlotOp, SlotType>) -> Result<Program<CkksOp, CiphertextType>, Infeasible> {
    placement::place(program, LEVELS, &CostTable::built_in(&Parameters::n16()), &())
}

/// Checks every op against `infer`.
fn assert_levels_agree(program: &Program<CkksOp, CiphertextType>) {
    for entry in &program.entries {
        let graph: &Graph<CkksOp, CiphertextType> = &entry.graph;
        assert_eq!(graph.verify_structure(), Vec::<String>::new());
        graph.for_each_op(|id, _| {
            let node = graph.node(id);
            if node.region.is_some() {
                return;
            }
            let pairs: Vec<_> = node.inputs.iter().map(|&v| (graph.ty(v).level, graph.ty(v).product)).collect();
            let state = match &node.op {
                CkksOp::StateRead { state, .. } | CkksOp::StateWrite { state, .. } => program.state(*state).level,
                _ => None,
            };
            let found = infer(&node.op, &pairs, LEVELS, state).unwrap_or_else(|error| panic!("{id}: {error}"));
            let stated = node.results.first().map(|&v| (graph.ty(v).level, graph.ty(v).product));
            assert_eq!(found, stated, "{id}");
        });
    }
}

/// A chain of squarings with a candidate after each.
fn squarings(count: usize) -> Program<SlotOp, SlotType> {
    let mut graph = SlotGraph::default();
    let mut x = graph.add_input("x", ty());
    for _ in 0..count {
        x = push(&mut graph, SlotOp::Multiply, vec![x, x], 1)[0];
        x = push(&mut graph, SlotOp::Refresh { keep: None, factor: 1.0 }, vec![x], 1)[0];
    }
    graph.body.yields = vec![x];
    program(graph, 0)
}

#[test]
fn a_chain_takes_the_fewest_bootstraps() {
    // 16 levels to begin with; a bootstrap gives 16 back but its input must have 3: each segment before one has 13.
    for (count, expected) in [(1, 0), (16, 0), (17, 1), (29, 1), (30, 2), (42, 2), (43, 3)] {
        let placed = place(&squarings(count)).expect("feasible");
        assert_levels_agree(&placed);
        assert_eq!(bootstraps(&placed.entries[0].graph), expected, "{count} squarings");
    }
}

#[test]
fn results_of_bootstraps_fall_to_the_level_that_is_needed() {
    let placed = place(&squarings(17)).expect("feasible");
    let output = placed.entries[0].graph.body.yields[0];
    assert_eq!(placed.entries[0].graph.ty(output).level, 0);
}

#[test]
fn an_op_that_never_fits_is_named() {
    let mut graph = SlotGraph::default();
    let x = graph.add_input("x", ty());
    let polynomial = Chebyshev { coefficients: vec![0.0; 1 << 17], interval: [-1.0, 1.0] };
    let y = push(&mut graph, SlotOp::Polynomial { polynomial, mask: None }, vec![x], 1)[0];
    graph.body.yields = vec![y];
    let error = place(&program(graph, 0)).expect_err("17 levels do not fit");
    assert_eq!(error.entry, "decode");
    assert!(error.message.contains("depth 17"), "{}", error.message);
}

#[test]
fn a_stretch_without_candidates_that_is_too_deep_is_named() {
    let mut graph = SlotGraph::default();
    let mut x = graph.add_input("x", ty());
    for index in 0..20 {
        let node = format!("/square {index}");
        let origin = graph.intern_origin(Origin { node, op_type: "Mul".to_owned() });
        let (id, results) = graph.add_node(SlotOp::Multiply, vec![x, x], vec![ty()], Some(origin), None);
        graph.body.ops.push(id);
        x = results[0];
    }
    graph.body.yields = vec![x];
    let error = place(&program(graph, 0)).expect_err("20 levels do not fit");
    // From square 3 on it takes 17 levels.
    assert_eq!(error.origin, "Mul /square 3");
    assert!(error.message.contains("needs level 17") && error.message.contains("16 is"), "{}", error.message);
}

#[test]
fn a_pair_is_refreshed_by_one_bootstrap() {
    let mut graph = SlotGraph::default();
    let mut x = graph.add_input("x", ty());
    let mut y = graph.add_input("y", ty());
    for _ in 0..20 {
        x = push(&mut graph, SlotOp::Multiply, vec![x, x], 1)[0];
        y = push(&mut graph, SlotOp::Multiply, vec![y, y], 1)[0];
        let refreshed = push(&mut graph, SlotOp::Refresh { keep: None, factor: 1.0 }, vec![x, y], 2);
        (x, y) = (refreshed[0], refreshed[1]);
    }
    graph.body.yields = vec![x, y];
    let placed = place(&program(graph, 0)).expect("feasible");
    assert_levels_agree(&placed);
    assert_eq!(bootstraps(&placed.entries[0].graph), 1);
}

#[test]
fn a_cache_is_kept_at_the_level_of_its_use() {
    let mut graph = SlotGraph::default();
    let mut x = graph.add_input("x", ty());
    let index = || Integer::from(0_i64);
    let write = SlotOp::StateWrite { state: StateId(0), index: index(), mode: WriteMode::Accumulate };
    let k = push(&mut graph, SlotOp::Multiply, vec![x, x], 1)[0];
    push(&mut graph, write, vec![k], 0);
    for _ in 0..10 {
        x = push(&mut graph, SlotOp::Multiply, vec![x, x], 1)[0];
    }
    let read = push(&mut graph, SlotOp::StateRead { state: StateId(0), index: index() }, vec![], 1)[0];
    let scores = push(&mut graph, SlotOp::Multiply, vec![x, read], 1)[0];
    graph.body.yields = vec![scores];
    let placed = place(&program(graph, 1)).expect("feasible");
    assert_levels_agree(&placed);
    // The input is encrypted as low as it can be: ten squarings leave level 1 for the product with the cache.
    let graph = &placed.entries[0].graph;
    assert_eq!(graph.ty(graph.inputs[0]).level, 11);
    assert_eq!(placed.states[0].level, Some(1));
}

#[test]
fn a_cache_that_is_read_too_low_is_written_higher() {
    let mut graph = SlotGraph::default();
    let x = graph.add_input("x", ty());
    let index = || Integer::from(0_i64);
    let mut k = x;
    for _ in 0..7 {
        k = push(&mut graph, SlotOp::Multiply, vec![k, k], 1)[0];
    }
    k = push(&mut graph, SlotOp::Refresh { keep: None, factor: 1.0 }, vec![k], 1)[0];
    for _ in 0..7 {
        k = push(&mut graph, SlotOp::Multiply, vec![k, k], 1)[0];
    }
    let write = SlotOp::StateWrite { state: StateId(0), index: index(), mode: WriteMode::Accumulate };
    push(&mut graph, write, vec![k], 0);
    // Without a bootstrap ahead of the cache it has level 2: too little for what follows its read.
    let mut y = push(&mut graph, SlotOp::StateRead { state: StateId(0), index: index() }, vec![], 1)[0];
    for _ in 0..4 {
        y = push(&mut graph, SlotOp::Multiply, vec![y, y], 1)[0];
    }
    graph.body.yields = vec![y];
    let placed = place(&program(graph, 1)).expect("feasible");
    assert_levels_agree(&placed);
    assert_eq!(bootstraps(&placed.entries[0].graph), 1);
    assert!(placed.states[0].level >= Some(4));
}

#[test]
fn conversions_of_outer_values_stay_outside_loops() {
    let mut graph = SlotGraph::default();
    let x = graph.add_input("x", ty());
    let mut low = graph.add_input("low", ty());
    for _ in 0..5 {
        low = push(&mut graph, SlotOp::Multiply, vec![low, low], 1)[0];
    }
    let (product, values) = graph.add_node(SlotOp::Multiply, vec![x, low], vec![ty()], None, None);
    let body = cachemir_ir::graph::Region { ops: vec![product], yields: values };
    let op = SlotOp::Sum { counter: 0, count: Integer::from(3_i64) };
    let (sum, results) = graph.add_node(op, vec![], vec![ty()], None, Some(body));
    graph.body.ops.push(sum);
    graph.body.yields = results;
    let placed = place(&program(graph, 0)).expect("feasible");
    assert_levels_agree(&placed);
    let graph = &placed.entries[0].graph;
    graph.for_each_op(|id, depth| {
        if depth > 0 {
            assert_eq!(graph.node(id).op, CkksOp::Multiply, "only the product is repeated");
        }
    });
}
