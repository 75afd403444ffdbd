//! Small programs, built by hand and compared with what they say.

use cachemir_ir::ckks::{Bootstrap, CiphertextType, CkksGraph, CkksOp, Levels};
use cachemir_ir::expression::{Integer, TableId, Vector};
use cachemir_ir::graph::{OpId, Region, ValueId};
use cachemir_ir::program::{EmbeddingForm, Entry, EntryKind, EntryPoint, Placement, Program, State};
use cachemir_ir::slots::{Chebyshev, Domain, Fill, Layout, StateId, WriteMode};
use cachemir_ir::table::Table;
use num_complex::Complex64;

use super::*;

const SLOTS: usize = 8;
const LEVELS: Levels = Levels { output: 9, bootstrap_input: 2 };

pub(super) fn ty(level: u32, product: bool) -> CiphertextType {
    let layout = Layout { stride: 1, fill: Fill::Zero, domain: Domain::Real };
    CiphertextType { level, product, layout, max_abs: f64::INFINITY }
}

/// Adds an op to a block and returns its result.
pub(super) fn push(
    graph: &mut CkksGraph,
    block: &mut Region,
    op: CkksOp,
    inputs: &[ValueId],
    level: u32,
    product: bool,
) -> ValueId {
    let (id, results) = graph.add_node(op, inputs.to_vec(), vec![ty(level, product)], None, None);
    block.ops.push(id);
    results[0]
}

pub(super) fn push_write(graph: &mut CkksGraph, block: &mut Region, index: Integer, mode: WriteMode, value: ValueId) {
    let (id, _) =
        graph.add_node(CkksOp::StateWrite { state: StateId(0), index, mode }, vec![value], vec![], None, None);
    block.ops.push(id);
}

pub(super) fn push_sum(
    graph: &mut CkksGraph,
    block: &mut Region,
    counter: u32,
    count: Integer,
    body: Region,
) -> ValueId {
    let types = body.yields.iter().map(|&value| *graph.ty(value)).collect();
    let (id, results) = graph.add_node(CkksOp::Sum { counter, count }, vec![], types, None, Some(body));
    block.ops.push(id);
    results[0]
}

fn program(graph: CkksGraph) -> CkksProgram {
    let layout = ty(0, false).layout;
    let table = |name: &str, len: usize| {
        Table::new(name, [len as u32], (0..len).map(|index| (index as f32 * 0.37).sin()).collect())
    };
    Program {
        slots: SLOTS as u32,
        context: 16,
        tables: vec![table("weights", 4 * SLOTS)].into(),
        states: vec![State { name: "cache".to_owned(), capacity: 3, layout, level: Some(5), initial: None }],
        prefix: vec![],
        entries: vec![Entry { kind: EntryKind::Decode, graph, checks: vec![] }],
        embedding: Placement { index_to_slot: vec![0], token_stride: 1 },
        inputs: vec![EmbeddingForm::scaled(1.0)],
        logits: Placement { index_to_slot: vec![0], token_stride: 1 },
    }
}

fn input() -> Vec<f64> {
    (0..SLOTS).map(|slot| (slot as f64 * 1.3).cos() * 0.9).collect()
}

fn run(
    program: &CkksProgram,
    position: usize,
    states: &mut States<ClearCiphertext>,
) -> Result<Vec<Vec<Complex64>>, Error> {
    let executor = Executor::new(Clear::new(SLOTS, LEVELS), program, LEVELS, 1 << 20)?;
    let inputs = vec![ClearCiphertext::fresh(&input(), 9)];
    let outputs = executor.call(EntryPoint::Decode, position, 1, inputs, states, &mut ())?;
    Ok(outputs.into_iter().map(|output| output.slots).collect())
}

fn assert_near(found: &[Complex64], expected: impl Fn(usize) -> Complex64) {
    for (slot, value) in found.iter().enumerate() {
        assert!((value - expected(slot)).norm() < 1e-9, "slot {slot}: {value} is not {}", expected(slot));
    }
}

#[test]
fn every_op_without_state() {
    let mut graph = CkksGraph::default();
    let x = graph.add_input("x", ty(9, false));
    let mut body = Region::default();
    let g = &mut graph;
    let square = push(g, &mut body, CkksOp::Multiply, &[x, x], 9, true);
    let square = push(g, &mut body, CkksOp::Rescale, &[square], 8, false);
    let half = push(g, &mut body, CkksOp::MultiplyScalar { factor: 0.5 }, &[x], 9, true);
    let half = push(g, &mut body, CkksOp::Rescale, &[half], 8, false);
    let difference = push(g, &mut body, CkksOp::Subtract, &[square, half], 8, false);
    let tripled = push(g, &mut body, CkksOp::MultiplyInteger { factor: -3 }, &[difference], 8, false);
    let shifted = push(g, &mut body, CkksOp::AddPlain { plain: Vector::Scalar(0.25) }, &[tripled], 8, false);
    let rotated_by_i = push(g, &mut body, CkksOp::MultiplyByI, &[shifted], 8, false);
    let complex = push(g, &mut body, CkksOp::Add, &[rotated_by_i, shifted], 8, false);
    let conjugate = push(g, &mut body, CkksOp::Conjugate, &[complex], 8, false);
    let low = push(g, &mut body, CkksOp::DropLevels { to: 3 }, &[conjugate], 3, false);
    let keep = Some(Integer::slot().less(5));
    let fresh = Bootstrap { complex: true, keep, factor: 1.0, log2_magnitude: 2 };
    let fresh = push(g, &mut body, CkksOp::Bootstrap(fresh), &[low], 9, false);
    let real = Bootstrap { complex: false, keep: None, factor: 0.5, log2_magnitude: 2 };
    let real = push(g, &mut body, CkksOp::Bootstrap(real), &[low], 9, false);
    let polynomial = Chebyshev { coefficients: vec![0.5, -1.0, 0.25, 2.0], interval: [-1.0, 1.0] };
    let mask = Some(Vector::Scalar(2.0).masked(Integer::slot().less(3)));
    let cubic = push(g, &mut body, CkksOp::Polynomial { polynomial: polynomial.clone(), mask }, &[x], 7, false);
    body.yields = vec![fresh, real, cubic];
    graph.body = body;

    let program = program(graph);
    let outputs = run(&program, 0, &mut States::new(&program)).unwrap();
    let x = input();
    let value = |slot: usize| (x[slot] * x[slot] - 0.5 * x[slot]) * -3.0 + 0.25;
    let masked = |slot: usize| if slot < 5 { Complex64::new(value(slot), -value(slot)) } else { Complex64::ZERO };
    assert_near(&outputs[0], masked);
    assert_near(&outputs[1], |slot| (0.5 * value(slot)).into());
    assert_near(
        &outputs[2],
        |slot| if slot < 3 { (2.0 * polynomial.evaluate(x[slot])).into() } else { Complex64::ZERO },
    );
}

/// Σ_i rot(x, i + pos)·w[i·n + s], with the rotation of an outer value inside the loop.
fn diagonals(counts: Integer) -> CkksGraph {
    let mut graph = CkksGraph::default();
    let x = graph.add_input("x", ty(9, false));
    let (mut top, mut body) = (Region::default(), Region::default());
    let by = Integer::counter(0) + Integer::position();
    let rotated = push(&mut graph, &mut body, CkksOp::Rotate { by }, &[x], 9, false);
    let plain = Vector::Table(TableId(0), Integer::counter(0) * SLOTS as i64 + Integer::slot());
    let product = push(&mut graph, &mut body, CkksOp::MultiplyPlain { plain }, &[rotated], 9, true);
    body.yields = vec![product];
    let sum = push_sum(&mut graph, &mut top, 0, counts, body);
    top.yields = vec![push(&mut graph, &mut top, CkksOp::Rescale, &[sum], 8, false)];
    graph.body = top;
    graph
}

#[test]
fn a_loop_of_rotations_and_products() {
    let program = program(diagonals(Integer::from(4_i64)));
    let schedule = Schedule::new(&program.entries[0].graph);
    assert!(schedule.is_hoisted(ValueId(0)), "a value that a loop rotates is decomposed once");
    assert_eq!(schedule.accumulates(OpId(1)), Some(0));
    let (x, w) = (input(), program.tables[0].values().unwrap());
    for position in [0, 3, 7] {
        let outputs = run(&program, position, &mut States::new(&program)).unwrap();
        assert_near(&outputs[0], |slot| {
            let terms = (0..4).map(|i| x[(slot + i + position) % SLOTS] * f64::from(w[i * SLOTS + slot]));
            terms.sum::<f64>().into()
        });
    }
}

#[test]
fn nested_loops_yield_outer_values_and_several_results() {
    let mut graph = CkksGraph::default();
    let x = graph.add_input("x", ty(9, false));
    let (mut top, mut outer, mut inner) = (Region::default(), Region::default(), Region::default());
    let by = Integer::counter(0) * 2 + Integer::counter(1);
    let rotated = push(&mut graph, &mut inner, CkksOp::Rotate { by }, &[x], 9, false);
    inner.yields = vec![rotated];
    let sum = push_sum(&mut graph, &mut outer, 1, Integer::from(2_i64), inner);
    outer.yields = vec![sum, x, sum];
    let types = vec![ty(9, false); 3];
    let op = CkksOp::Sum { counter: 0, count: Integer::count() * 4 };
    let (id, results) = graph.add_node(op, vec![], types, None, Some(outer));
    top.ops.push(id);
    top.yields = results;
    graph.body = top;
    let program = program(graph);
    let outputs = run(&program, 0, &mut States::new(&program)).unwrap();
    let total: f64 = input().iter().sum();
    assert_near(&outputs[0], |_| total.into());
    assert_near(&outputs[1], |slot| (4.0 * input()[slot]).into());
    assert_near(&outputs[2], |_| total.into());
}

/// cache[pos / 2] += x masked to slot pos; yields the sum of all elements.
fn cache() -> CkksGraph {
    let mut graph = CkksGraph::default();
    let x = graph.add_input("x", ty(9, false));
    let (mut top, mut body) = (Region::default(), Region::default());
    let plain = Vector::Scalar(1.0).masked(Integer::slot().equal(Integer::position()));
    let masked = push(&mut graph, &mut top, CkksOp::MultiplyPlain { plain }, &[x], 9, true);
    let masked = push(&mut graph, &mut top, CkksOp::Rescale, &[masked], 8, false);
    let low = push(&mut graph, &mut top, CkksOp::DropLevels { to: 5 }, &[masked], 5, false);
    push_write(&mut graph, &mut top, Integer::position() / 2, WriteMode::Accumulate, low);
    let read = CkksOp::StateRead { state: StateId(0), index: Integer::counter(0) };
    let element = push(&mut graph, &mut body, read, &[], 5, false);
    body.yields = vec![element];
    let sum = push_sum(&mut graph, &mut top, 0, Integer::from(3_i64), body);
    top.yields = vec![sum];
    graph.body = top;
    graph
}

#[test]
fn state_outlives_calls_and_unwritten_elements_are_zero() {
    let program = program(cache());
    let mut states = States::new(&program);
    for position in 0..5 {
        let outputs = run(&program, position, &mut states).unwrap();
        assert_near(&outputs[0], |slot| if slot <= position { input()[slot].into() } else { Complex64::ZERO });
    }
    assert!(states.arrays()[0].iter().all(Option::is_some));
}

#[test]
fn elements_hold_what_is_public_until_they_are_written_and_are_added_to_then() {
    let mut program = program(cache());
    let index = || Integer::Variable(State::INDEX);
    let from_table = Vector::Table(TableId(0), Integer::slot() + index() * SLOTS);
    program.states[0].initial = Some(from_table.masked(index().less(2)));
    let table = program.tables[0].values().unwrap();
    let public = |slot: usize| f64::from(table[slot] + table[SLOTS + slot]);
    let mut states = States::new(&program);
    for position in 0..5 {
        let outputs = run(&program, position, &mut states).unwrap();
        let written = |slot: usize| if slot <= position { input()[slot] } else { 0.0 };
        assert!(outputs[0].iter().enumerate().all(|(slot, sum)| (sum.re - public(slot) - written(slot)).abs() < 1e-6));
    }
}

#[test]
fn a_failed_call_leaves_the_state_as_it_was() {
    let program = program(cache());
    let mut states = States::new(&program);
    run(&program, 0, &mut states).unwrap();
    let before = states.arrays()[0][0].clone();
    let error = run(&program, 7, &mut states).unwrap_err();
    assert_eq!(error.code(), "CMR-R040");
    assert!(error.to_string().contains("3 elements"), "{error}");
    assert_eq!(states.arrays()[0][0], before);

    /// Stops after the state was written.
    struct Stop;
    impl Observer<ClearCiphertext> for Stop {
        fn before(&mut self, site: Site<'_>, _operands: &[&ClearCiphertext]) -> Result<(), Error> {
            let read = matches!(site.graph.node(site.op).op, CkksOp::StateRead { .. });
            if read { Err(Error::Interrupted) } else { Ok(()) }
        }
    }
    let executor = Executor::new(Clear::new(SLOTS, LEVELS), &program, LEVELS, 0).unwrap();
    let inputs = vec![ClearCiphertext::fresh(&input(), 9)];
    let stopped = executor.call(EntryPoint::Decode, 1, 1, inputs, &mut states, &mut Stop);
    assert!(matches!(stopped, Err(Error::Interrupted)));
    assert_eq!(states.arrays()[0][0], before);
}

#[test]
fn plaintexts_are_kept_unless_they_depend_on_the_position() {
    let program = program(diagonals(Integer::from(4_i64)));
    let executor = Executor::new(Clear::new(SLOTS, LEVELS), &program, LEVELS, 3 * SLOTS * 8).unwrap();
    let call = || {
        let inputs = vec![ClearCiphertext::fresh(&input(), 9)];
        executor.call(EntryPoint::Decode, 2, 1, inputs, &mut States::new(&program), &mut ()).unwrap()
    };
    let first = call();
    assert_eq!(executor.plaintext_bytes(), 3 * SLOTS * 8, "three of four diagonals fit the budget");
    assert_eq!(first, call());

    let dependent = self::program(cache());
    let executor = Executor::new(Clear::new(SLOTS, LEVELS), &dependent, LEVELS, 1 << 20).unwrap();
    let inputs = vec![ClearCiphertext::fresh(&input(), 9)];
    executor.call(EntryPoint::Decode, 2, 1, inputs, &mut States::new(&dependent), &mut ()).unwrap();
    assert_eq!(executor.plaintext_bytes(), 0);
}

#[test]
fn levels_that_do_not_fit_are_refused_with_the_reason() {
    let mut graph = CkksGraph::default();
    let x = graph.add_input("x", ty(9, false));
    let mut top = Region::default();
    let low = push(&mut graph, &mut top, CkksOp::DropLevels { to: 5 }, &[x], 5, false);
    top.yields = vec![push(&mut graph, &mut top, CkksOp::Add, &[x, low], 9, false)];
    graph.body = top;
    let program = program(graph);
    let error = run(&program, 0, &mut States::new(&program)).unwrap_err();
    assert!(error.to_string().contains("operands differ in level"), "{error}");

    let empty = self::program(diagonals(Integer::position()));
    let error = run(&empty, 0, &mut States::new(&empty)).unwrap_err();
    assert!(error.to_string().contains("0 iterations"), "{error}");
    let mismatch = Executor::new(Clear::new(2 * SLOTS, LEVELS), &empty, LEVELS, 0).err().unwrap();
    assert_eq!(mismatch.code(), "CMR-R040");
}

#[test]
fn values_die_after_their_last_use() {
    let graph = diagonals(Integer::from(4_i64));
    let schedule = Schedule::new(&graph);
    // Ops: 0 rotate, 1 multiply, 2 the loop, 3 rescale.
    assert_eq!(schedule.dead_after(OpId(0)), []);
    assert_eq!(schedule.dead_after(OpId(1)), [ValueId(1)]);
    assert_eq!(schedule.dead_after(OpId(2)), [ValueId(0)], "the loop rotates its operand in every iteration");
    assert_eq!(schedule.dead_after(OpId(3)), [ValueId(3)]);
}
