//! One program that uses every op, encrypted with the insecure preset and compared with its execution in the clear.

use cachemir_ir::ckks::{Bootstrap, CkksGraph, CkksOp};
use cachemir_ir::expression::{Integer, TableId, Vector};
use cachemir_ir::graph::Region;
use cachemir_ir::linear::{Features, Linear, Matrix, Order, Output};
use cachemir_ir::manifest::KeyManifest;
use cachemir_ir::parameters::Parameters;
use cachemir_ir::program::{EmbeddingForm, Entry, EntryKind, EntryPoint, Placement, Program, State};
use cachemir_ir::slots::{Chebyshev, StateId, WriteMode};
use cachemir_ir::table::Table;
use std::ops::ControlFlow;

use super::tests::{push, push_sum, push_write, ty};
use super::*;
use crate::check::{Probe, RangeCheck};
use crate::client::{CheckedCipher, Cipher, ClearCipher, SecretCipher};
use crate::server::Server;
use crate::setup::Engine;

const SLOTS: usize = 64;

/// Diagonals, a square, a masked cubic, a cache, both kinds of bootstrap.
fn program() -> CkksProgram {
    let mut graph = CkksGraph::default();
    let g = &mut graph;
    let x = g.add_input("x", ty(16, false));
    let (mut top, mut body) = (Region::default(), Region::default());

    let by = Integer::counter(0) + Integer::position();
    let rotated = push(g, &mut body, CkksOp::Rotate { by }, &[x], 16, false);
    let plain = Vector::Table(TableId(0), Integer::counter(0) * SLOTS as i64 + Integer::slot());
    body.yields = vec![push(g, &mut body, CkksOp::MultiplyPlain { plain }, &[rotated], 16, true)];
    let sum = push_sum(g, &mut top, 0, Integer::from(4_i64), body);
    let sum = push(g, &mut top, CkksOp::Rescale, &[sum], 15, false);

    let square = push(g, &mut top, CkksOp::Multiply, &[sum, sum], 15, true);
    let offset = CkksOp::AddPlain { plain: Vector::Scalar(-0.25) };
    let square = push(g, &mut top, offset, &[square], 15, true);
    let square = push(g, &mut top, CkksOp::Rescale, &[square], 14, false);
    let polynomial = Chebyshev { coefficients: vec![0.1, -0.4, 0.2, 0.3], interval: [-1.0, 1.0] };
    let mask = Some(Vector::Scalar(1.0).masked((Integer::slot() % 2).equal(0)));
    let cubic = push(g, &mut top, CkksOp::Polynomial { polynomial, mask }, &[square], 12, false);

    let low = push(g, &mut top, CkksOp::DropLevels { to: 6 }, &[cubic], 6, false);
    push_write(g, &mut top, Integer::position() % 3, WriteMode::Accumulate, low);
    let mut body = Region::default();
    let read = CkksOp::StateRead { state: StateId(0), index: Integer::counter(1) };
    body.yields = vec![push(g, &mut body, read, &[], 6, false)];
    let cached = push_sum(g, &mut top, 1, Integer::from(3_i64), body);

    let half = push(g, &mut top, CkksOp::MultiplyScalar { factor: 0.5 }, &[cached], 6, true);
    let half = push(g, &mut top, CkksOp::Rescale, &[half], 5, false);
    let minus = push(g, &mut top, CkksOp::MultiplyInteger { factor: -1 }, &[half], 5, false);
    let shifted = push(g, &mut top, CkksOp::Rotate { by: Integer::from(-1_i64) }, &[minus], 5, false);
    let imaginary = push(g, &mut top, CkksOp::MultiplyByI, &[shifted], 5, false);
    let complex = push(g, &mut top, CkksOp::Add, &[half, imaginary], 5, false);

    let keep = Some(Integer::slot().less(48));
    let variant = Bootstrap { complex: true, keep, factor: 1.0, log2_magnitude: 1 };
    let fresh = push(g, &mut top, CkksOp::Bootstrap(variant), &[complex], 16, false);
    let conjugate = push(g, &mut top, CkksOp::Conjugate, &[fresh], 16, false);
    let real = push(g, &mut top, CkksOp::Add, &[fresh, conjugate], 16, false);
    let difference = push(g, &mut top, CkksOp::Subtract, &[fresh, real], 16, false);
    let variant = Bootstrap { complex: false, keep: None, factor: 0.25, log2_magnitude: 0 };
    let other = push(g, &mut top, CkksOp::Bootstrap(variant), &[complex], 16, false);

    // One complex matrix that lands, and one of four diagonals with a bias.
    let order = |width| Order::of(Features::Plain { width, offset: 0 });
    let matrix = |bias: Option<u32>| Matrix { weights: TableId(0), bias: bias.map(TableId) };
    let pair = Output {
        matrices: vec![matrix(None), matrix(Some(0))],
        order: order(8),
        landing: Some(Integer::position() % 8),
    };
    let wide = Output { matrices: vec![matrix(Some(0))], order: order(32), landing: None };
    let linear = Linear {
        input: order(8),
        unit: 1,
        vectors: Integer::from(1_i64),
        complex_operand: false,
        outputs: vec![pair, wide.clone()],
    };
    // The second of them by a complex operand.
    let halved = Linear { outputs: vec![wide], ..linear.clone() }.with_complex_operand(SLOTS as u32).unwrap();
    let mut projected = Vec::new();
    for linear in [linear, halved] {
        let types = vec![ty(15, false); linear.results()];
        let (op, results) = g.add_node(CkksOp::Linear(linear), vec![x], types, None, None);
        top.ops.push(op);
        projected.extend(results);
    }
    top.yields = [vec![real, difference, other, cubic], projected].concat();
    graph.body = top;

    let layout = ty(0, false).layout;
    let entries = (0..4 * SLOTS).map(|index| (index as f32 * 0.37).sin() / 2.0).collect();
    let table = Table::new("weights", [4, SLOTS as u32], entries);
    let placement = Placement { index_to_slot: vec![0], token_stride: 1 };
    let initial = Vector::Table(TableId(0), Integer::slot() + Integer::Variable(State::INDEX) * SLOTS);
    let initial = Some(initial.masked(Integer::Variable(State::INDEX).less(2)));
    Program {
        slots: SLOTS as u32,
        context: 4,
        tables: vec![table].into(),
        states: vec![State { name: "cache".to_owned(), capacity: 3, layout, level: Some(6), initial }],
        prefix: vec![],
        entries: vec![Entry { kind: EntryKind::Decode, graph, checks: vec![] }],
        embedding: placement.clone(),
        inputs: vec![EmbeddingForm::scaled(1.0)],
        logits: placement,
    }
}

fn input(position: usize) -> Vec<f64> {
    (0..SLOTS).map(|slot| ((slot + 5 * position) as f64 * 1.3).cos() * 0.5).collect()
}

#[test]
fn encrypted_execution_agrees_with_that_in_the_clear_and_survives_a_restart() {
    let parameters = Parameters::insecure_test();
    let program = program();
    let levels = parameters.levels();

    let engine = Engine::with_keys(&parameters, &KeyManifest::of(&program), SLOTS, None).unwrap();
    let cipher = Arc::new(SecretCipher::generate(engine.encoder().clone()).unwrap());
    let keys = cipher.evaluation_keys(engine.key_manifest(), |_, _| ControlFlow::Continue(())).unwrap();
    let requirements = engine.requirements(&program);
    assert!(requirements.check(requirements.total_bytes() - 1).is_err());
    let algebra = Checked::new(engine.algebra(keys, SLOTS).unwrap(), Clear::new(SLOTS, levels));
    let server = Server::new(Executor::new(algebra, &program, levels, 1 << 24).unwrap(), [1; 32]);
    let pair = CheckedCipher(Arc::clone(&cipher), ClearCipher);
    let mut watch = (RangeCheck::default(), Probe::new(cipher));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("session");

    let mut session = server.open();
    for position in 0..3 {
        let values = input(position);
        let input = vec![pair.encrypt(&values, 16).unwrap()];
        let outputs =
            server.executor().call(EntryPoint::Decode, position, 1, input, &mut session.states, &mut watch).unwrap();
        session.position += 1;
        for (index, output) in outputs.iter().enumerate() {
            for (slot, (found, exact)) in pair.decrypt(output).unwrap().iter().zip(&output.1.slots).enumerate() {
                let error = (found.re - exact.re).abs();
                assert!(error < 1e-3, "position {position}, output {index}, slot {slot}: off by {error}");
            }
        }
        // The rest runs on what a file kept.
        server.save(&session, &file).unwrap();
        session = server.load(&file).unwrap();
        assert_eq!(session.position(), position + 1);
    }
    watch.0.finish().unwrap();
    watch.1.finish().unwrap();
    assert_eq!(watch.0.bootstraps(), 6);
    assert!(watch.1.precision_bits_min().unwrap() > 8.0, "{:?}", watch.1.layers());
}

#[test]
fn the_first_value_that_decrypts_to_something_else_is_named() {
    let parameters = Parameters::insecure_test();
    let (program, levels) = (program(), parameters.levels());
    let engine = Engine::with_keys(&parameters, &KeyManifest::of(&program), SLOTS, None).unwrap();
    let cipher = Arc::new(SecretCipher::generate(engine.encoder().clone()).unwrap());
    let keys = cipher.evaluation_keys(engine.key_manifest(), |_, _| ControlFlow::Continue(())).unwrap();
    let algebra = Checked::new(engine.algebra(keys, SLOTS).unwrap(), Clear::new(SLOTS, levels));
    let server = Server::new(Executor::new(algebra, &program, levels, 1 << 24).unwrap(), [1; 32]);
    let mut session = server.open();

    let mut values = input(0);
    let exact = ClearCipher.encrypt(&values, 16).unwrap();
    values[3] += 0.75;
    let mut probe = Probe::new(Arc::clone(&cipher));
    let inputs = vec![(cipher.encrypt(&values, 16).unwrap(), exact)];
    server.executor().call(EntryPoint::Decode, 0, 1, inputs, &mut session.states, &mut probe).unwrap();
    let first = probe.first_wrong().unwrap();
    // The first op that makes a value: the rotation within the sum.
    assert!(first.contains("(@0 at position 0)"), "{first}");
    assert!(matches!(probe.finish(), Err(Error::CheckDecrypted { .. })));
}
