//! The search against brute force, and its memory.

use std::collections::BTreeSet;

use cachemir_ir::ckks::{CiphertextType, CkksOp, Levels};
use cachemir_ir::cost::CostTable;
use cachemir_ir::expression::{Integer, Vector};
use cachemir_ir::graph::{OpId, Region, ValueId};
use cachemir_ir::parameters::Parameters;
use cachemir_ir::program::{EmbeddingForm, Entry, EntryKind, Placement, Program, State};
use cachemir_ir::slots::{Chebyshev, Domain, Fill, Layout, Purpose, SlotGraph, SlotOp, SlotType, StateId, WriteMode};
use cachemir_ir::verify;
use proptest::prelude::*;

use super::route::assign;
use super::search::{Demand, back};
use super::steps::Part;
use super::*;

/// Few, so that small graphs need bootstraps.
const LEVELS: Levels = Levels { output: 6, bootstrap_input: 2 };
const LAYOUT: Layout = Layout { stride: 1, fill: Fill::Tokens, domain: Domain::Real };
const TYPE: SlotType = SlotType { layout: LAYOUT, max_abs: 1.0 };

/// An op to add to a graph, with places of its operands among the values so far, counted from the last.
type Choice = (u8, usize, usize);

/// A graph of the chosen ops, in layers of the given length, that writes state array 0 before it reads it.
fn graph(choices: &[Choice], layer_length: usize, first_counter: u32) -> SlotGraph {
    let mut graph = SlotGraph::default();
    let mut values = vec![graph.add_input("x", TYPE), graph.add_input("y", TYPE)];
    let mut written = false;
    for (index, &(kind, a, b)) in choices.iter().enumerate() {
        let operand = |back: usize, values: &[ValueId]| values[values.len() - 1 - back % values.len().min(4)];
        let (a, b) = (operand(a, &values), operand(b, &values));
        let refresh = |keep| SlotOp::Refresh { keep, factor: 1.0 };
        let even = || (Integer::slot() % 2).equal(0);
        let (state, element) = (StateId(0), Integer::from(0_i64));
        let polynomial = || Chebyshev { coefficients: vec![0.0, 0.5, 0.0, 0.25], interval: [-1.0, 1.0] };
        let (op, inputs, results) = match kind % 12 {
            0 => (SlotOp::Add, vec![a, b], 1),
            1 | 2 => (SlotOp::Multiply, vec![a, b], 1),
            3 => {
                let plain = Vector::Scalar(1.0).masked(even());
                (SlotOp::MultiplyPlain { plain, purpose: Purpose::Rope }, vec![a], 1)
            }
            4 => (SlotOp::Rotate { by: Integer::from(1_i64) }, vec![a], 1),
            5 => (SlotOp::Polynomial { polynomial: polynomial(), mask: None }, vec![a], 1),
            6 | 7 => (refresh(None), vec![a], 1),
            8 => (refresh(Some(even())), vec![a], 1),
            9 if a != b => (refresh(None), vec![a, b], 2),
            10 if !written => {
                written = true;
                let (write, _) = graph.add_node(
                    SlotOp::StateWrite { state, index: element.clone(), mode: WriteMode::Replace },
                    vec![a],
                    vec![],
                    None,
                    None,
                );
                graph.nodes[write.index()].layer = Some((index / layer_length) as u32);
                graph.body.ops.push(write);
                (SlotOp::StateRead { state, index: element }, vec![], 1)
            }
            _ => {
                let (product, yields) = graph.add_node(SlotOp::Multiply, vec![a, b], vec![TYPE], None, None);
                let (inner, yields) = graph.add_node(refresh(None), yields, vec![TYPE], None, None);
                for op in [product, inner] {
                    graph.nodes[op.index()].layer = Some((index / layer_length) as u32);
                }
                let region = Region { ops: vec![product, inner], yields };
                let counter = first_counter + index as u32;
                let sum = SlotOp::Sum { counter, count: Integer::from(3_i64) };
                let (sum, results) = graph.add_node(sum, vec![], vec![TYPE], None, Some(region));
                graph.nodes[sum.index()].layer = Some((index / layer_length) as u32);
                graph.body.ops.push(sum);
                values.extend(results);
                continue;
            }
        };
        let (id, made) = graph.add_node(op, inputs, vec![TYPE; results], None, None);
        graph.nodes[id.index()].layer = Some((index / layer_length) as u32);
        graph.body.ops.push(id);
        values.extend(made);
    }
    graph.body.yields = vec![values[values.len() - 1]];
    graph
}

fn program(graphs: Vec<SlotGraph>) -> Program<SlotOp, SlotType> {
    let placement = Placement { index_to_slot: vec![0], token_stride: 1 };
    let kinds = [EntryKind::Decode, EntryKind::Prefill { chunk: 2 }];
    let entries = graphs.into_iter().zip(kinds).map(|(graph, kind)| Entry { kind, graph, checks: vec![] });
    Program {
        slots: 8,
        context: 8,
        tables: std::sync::Arc::default(),
        states: vec![State { name: "cache".to_owned(), capacity: 1, layout: LAYOUT, level: None, initial: None }],
        prefix: Vec::new(),
        entries: entries.collect(),
        embedding: placement.clone(),
        inputs: vec![EmbeddingForm::scaled(1.0); 2],
        logits: placement,
    }
}

/// The least time over all choices of bootstraps and all levels of the state array within the demand.
fn brute_force(graph: &SlotGraph, parts: &[Part], demand: Demand) -> Option<u64> {
    let mut candidates = Vec::new();
    graph.for_each_op(|op, _| candidates.extend(matches!(graph.node(op).op, SlotOp::Refresh { .. }).then_some(op)));
    let chosen = |set: u32| -> BTreeSet<OpId> {
        let members = candidates.iter().enumerate().filter(|(bit, _)| set >> bit & 1 == 1);
        members.map(|(_, &op)| op).collect()
    };
    let time = |bootstraps: &BTreeSet<OpId>, state: u32| {
        let mut needs = vec![0; graph.values.len() + 1];
        needs[graph.values.len()] = state;
        let mut most = vec![LEVELS.output; graph.values.len() + 1];
        most[graph.values.len()] = state;
        let mut total = 0;
        for part in parts.iter().rev() {
            for (step, &op) in part.segment.steps.iter().zip(&part.ops).rev() {
                let mut whole = step.clone();
                for value in whole.operands.iter_mut().chain(&mut whole.results) {
                    *value = part.numbers[*value];
                }
                total += back(&whole, &mut needs, bootstraps.contains(&op), &most, LEVELS).ok()?.1;
            }
        }
        Some(total)
    };
    let sets = (0..1_u32 << candidates.len()).map(chosen);
    sets.flat_map(|set| (demand.least..=demand.most).filter_map(move |state| time(&set, state))).min()
}

fn choices() -> impl Strategy<Value = Vec<Choice>> {
    prop::collection::vec((any::<u8>(), 0..4_usize, 0..4_usize), 1..18)
        .prop_filter("few candidates", |choices| choices.iter().filter(|(kind, ..)| kind % 12 > 5).count() <= 8)
}

fn emitted_is_valid(program: &Program<CkksOp, CiphertextType>) {
    if let Err(error) = verify::ckks(program, LEVELS) {
        panic!("{error}");
    }
}

proptest! {
    #[test]
    fn no_choice_is_faster_than_the_one_that_is_found(
        choices in choices(),
        layer_length in 1..20_usize,
        most in 0..=LEVELS.output,
    ) {
        let program = program(vec![graph(&choices, layer_length, 0)]);
        let costs = CostTable::built_in(&Parameters::n16());
        let placer = Placer::new(LEVELS, &costs);
        let segments = placer.segments(&program).expect("each op fits alone");
        let graph = &program.entries[0].graph;
        for demand in [Demand { least: 0, most: LEVELS.output }, Demand { least: most, most }] {
            let best = brute_force(graph, &segments.0[0], demand);
            let progress = segments.begin(&());
            let found = route(graph, &segments.0[0], &[demand], LEVELS, &placer.tables, &progress);
            prop_assert_eq!(found.as_ref().ok().map(|route| route.ns), best);
            if let Ok(found) = found {
                let states = &found.states;
                let assignment = assign(graph, &segments.0[0], found.bootstraps, states, LEVELS).expect("it was found");
                prop_assert!(emit(graph, &assignment, LEVELS, states).is_ok());
            }
        }
    }

    #[test]
    fn entry_points_agree_on_their_caches(decode in choices(), prefill in choices(), layer_length in 1..20_usize) {
        let program = program(vec![graph(&decode, layer_length, 0), graph(&prefill, layer_length, 100)]);
        let costs = CostTable::built_in(&Parameters::n16());
        if let Ok(placed) = place(&program, LEVELS, &costs, &()) {
            emitted_is_valid(&placed);
        }
    }
}

#[test]
fn layers_that_are_alike_are_searched_once() {
    // Products and polynomials, a candidate after each.
    let layer: Vec<Choice> = [1, 6, 5, 6, 4, 0, 5, 8].map(|kind| (kind, 0, 0)).to_vec();
    let tables_of = |layers: usize| {
        let program = program(vec![graph(&layer.repeat(layers), layer.len(), 0)]);
        let costs = CostTable::built_in(&Parameters::n16());
        let placer = Placer::new(LEVELS, &costs);
        let segments = placer.segments(&program).expect("each op fits alone");
        assert_eq!(segments.0[0].len(), layers);
        placer.decide(&program, &segments, &segments.begin(&())).expect("there are candidates enough");
        placer.tables.len()
    };
    // The first layer differs: nothing comes before it. So does what is asked of the last.
    assert_eq!(tables_of(40), tables_of(10));
    assert!(tables_of(40) < 40);
}
