//! Text is read back exactly, and errors say where.

use proptest::prelude::*;

use super::*;
use crate::ckks::CkksOp;
use crate::expression::{Integer, TableId, Vector};
use crate::graph::{Graph, Origin, Region};
use crate::linear::{Features, Heads, Linear, Matrix, Order, Output, Padded};
use crate::program::{Affine, EmbeddingForm, Entry, EntryKind, Placement, Program, RangeCheck, State};
use crate::slots::{Chebyshev, Domain, Fill, Layout, Purpose, SlotGraph, SlotOp, SlotType, StateId, WriteMode};
use crate::table::Table;

#[test]
fn bytes_are_readable() {
    assert_eq!(format_bytes(512), "512 B");
    assert_eq!(format_bytes(1536), "1.5 KiB");
    assert_eq!(format_bytes(12 << 30), "12.0 GiB");
}

/// A pair with a bias in a unit of two, and two outputs of one matrix each of a complex operand, of which one lands.
fn linear_examples() -> [Linear; 2] {
    let plain_order = |width, offset, positions| Order { positions, features: Features::Plain { width, offset } };
    let matrix = |bias: Option<u32>| Matrix { weights: TableId(0), bias: bias.map(TableId) };
    let input = plain_order(3, 0, 4);
    let paired = Linear {
        input,
        unit: 2,
        vectors: Integer::count(),
        complex_operand: false,
        outputs: vec![Output {
            matrices: vec![matrix(Some(2)), matrix(None)],
            order: plain_order(1, 1, 8),
            landing: None,
        }],
    };
    let padded = |real, places| Padded { real, places };
    let heads = Heads { kv_heads: padded(1, 4), members: padded(1, 1), head_dim: padded(2, 4) };
    let landed = Linear {
        input,
        unit: 1,
        vectors: Integer::from(1_i64),
        complex_operand: true,
        outputs: vec![
            Output {
                matrices: vec![matrix(None)],
                order: Order::of(Features::KeyValue(heads)),
                landing: Some(Integer::position() % 2),
            },
            Output { matrices: vec![matrix(Some(2))], order: Order::of(Features::RotatedQuery(heads)), landing: None },
        ],
    };
    [paired, landed]
}

/// A program with every op of the slots stage, awkward names and numbers.
pub(crate) fn slots_example() -> Program<SlotOp, SlotType> {
    let layout = |fill, domain| Layout { stride: 4, fill, domain };
    let ty = |max_abs| SlotType { layout: layout(Fill::Junk, Domain::Real), max_abs };
    let mut graph = SlotGraph::default();
    let x = graph.add_input("x", ty(3.5));
    let y = graph.add_input("residual \"stream\"; %1", ty(f64::INFINITY));
    let node = "/model/layers.0/q proj; é".to_owned();
    graph.intern_origin(Origin { node: "folded".into(), op_type: "Constant".into() });
    let origin = Some(graph.intern_origin(Origin { node, op_type: "MatMul".into() }));
    let plain = Vector::Table(TableId(0), Integer::slot() % 6).masked(Integer::slot().less(9)).times(0.1 + 0.2);
    let mask = Purpose::Mask("lands \"scores\" : here".into());
    let polynomial = Chebyshev { coefficients: vec![0.1, -0.0, 1e-300, 2.5], interval: [-1.5, 2.0] };
    let (state, index) = (StateId(0), Integer::position() / 8);
    let complex = SlotType { layout: layout(Fill::Zero, Domain::Complex), max_abs: 0.25 };
    let [paired, landed] = linear_examples();
    let ops: Vec<(SlotOp, Vec<_>, Vec<_>)> = vec![
        (SlotOp::Add, vec![x, y], vec![ty(1.0)]),
        (SlotOp::Subtract, vec![x, y], vec![ty(1e-9)]),
        (SlotOp::Multiply, vec![x, y], vec![complex]),
        (SlotOp::MultiplyPlain { plain: plain.clone(), purpose: Purpose::Rope }, vec![x], vec![ty(0.1)]),
        (SlotOp::MultiplyPlain { plain: plain.clone(), purpose: mask }, vec![x], vec![ty(0.1)]),
        (SlotOp::MultiplyPlain { plain: 0.5.into(), purpose: Purpose::Rope }, vec![x], vec![ty(0.1)]),
        (SlotOp::AddPlain { plain: plain.clone().plus(-1.0) }, vec![x], vec![ty(0.1)]),
        (SlotOp::Linear(paired), vec![x], vec![ty(0.1), ty(0.2)]),
        (SlotOp::Linear(landed), vec![x], vec![ty(0.1), ty(0.2)]),
        (
            SlotOp::RotateAndSum { steps: vec![Integer::from(1_i64), (Integer::position() % 4).less(2).select(-2, 2)] },
            vec![x],
            vec![ty(0.4)],
        ),
        (SlotOp::Rotate { by: (Integer::position() % 8).less(4).select(-4, 4) }, vec![x], vec![ty(0.1)]),
        (SlotOp::Polynomial { polynomial: polynomial.clone(), mask: Some(plain) }, vec![x], vec![ty(0.1)]),
        (SlotOp::Polynomial { polynomial, mask: None }, vec![x], vec![ty(0.1)]),
        (SlotOp::Refresh { keep: None, factor: 0.5 }, vec![x], vec![ty(0.1)]),
        (SlotOp::Refresh { keep: Some(index.clone().select(0, 1)), factor: 1.0 }, vec![x, y], vec![ty(0.1), ty(0.2)]),
        (SlotOp::StateWrite { state, index: index.clone(), mode: WriteMode::Accumulate }, vec![x], vec![]),
        (SlotOp::StateWrite { state, index: index.clone(), mode: WriteMode::Replace }, vec![x], vec![]),
    ];
    let mut body = Region::default();
    for (op, inputs, results) in ops {
        body.ops.push(graph.add_node(op, inputs, results, origin, None).0);
    }
    (graph.nodes[3].layer, graph.nodes[4].layer) = (Some(0), Some(31));
    let read = SlotOp::StateRead { state, index: Integer::counter(1) };
    let (read, values) = graph.add_node(read, vec![], vec![ty(2.0)], None, None);
    let region = Region { ops: vec![read], yields: values };
    let sum = SlotOp::Sum { counter: 1, count: Integer::counter(0) + 1 };
    let (inner, values) = graph.add_node(sum, vec![], vec![ty(2.0)], origin, Some(region));
    let region = Region { ops: vec![inner], yields: values };
    let count = Integer::position().less(4).select(1, Integer::count());
    let (outer, values) = graph.add_node(SlotOp::Sum { counter: 0, count }, vec![], vec![ty(2.0)], None, Some(region));
    body.ops.push(outer);
    body.yields = values;
    graph.body = body;
    graph.nodes[outer.index()].layer = Some(1);
    graph.values[4].name = "p 1".into();
    graph.values[5].name = "scores".into();
    let mut empty = SlotGraph::default();
    empty.body.yields = vec![empty.add_input("", ty(1.0))];
    let check = RangeCheck {
        site: "norm \"1\"".into(),
        placement: Placement { index_to_slot: vec![3, 5, 5], token_stride: 2 },
        interval: [0.1 + 0.2, 4.0],
        map: Affine { centre: -1e-9, half: 7.5 },
    };
    Program {
        slots: 32,
        context: 16,
        tables: vec![
            Table::new("w", [2, 3], vec![1.0, -2.0, 0.5, 1e-9, 0.0, 7.0]),
            Table::new("cos 2", [], vec![0.1]),
            Table::new("b", [2], vec![0.5, -0.5]),
            Table::of_shape("unknown", [4, 2], 0.125),
        ]
        .into(),
        states: vec![State {
            name: "k".into(),
            capacity: 2,
            layout: layout(Fill::Tokens, Domain::Real),
            level: None,
            initial: Some(Vector::Table(TableId(0), Integer::slot() + Integer::Variable(State::INDEX))),
        }],
        prefix: vec![3, 1],
        entries: vec![
            Entry { kind: EntryKind::Decode, graph, checks: vec![check] },
            Entry { kind: EntryKind::Prefill { chunk: 4 }, graph: empty, checks: vec![] },
        ],
        embedding: Placement { index_to_slot: vec![0, 4, 8, 1, 5, 9, 31, 30, 29, 7], token_stride: 1 },
        inputs: vec![EmbeddingForm::scaled(0.1)],
        logits: Placement { index_to_slot: vec![], token_stride: 0 },
    }
}

#[test]
fn slots_programs_round_trip() {
    let program = slots_example();
    crate::verify::slots(&program, false).unwrap();
    let text = print(&program);
    let back = parse::<SlotOp>(&text, &weights_of(&program.tables)).unwrap();
    assert_eq!(back, program, "{text}");
    assert_eq!(print(&back), text);
    assert!(text.contains("embedding token_stride 1 slots 0:4:3 1:4:3 31:-1:3 7:0:1\n"), "{text}");
}

#[test]
fn ckks_programs_round_trip() {
    let program = crate::plan::tests::example().program;
    let text = print(&program);
    assert_eq!(parse::<CkksOp>(&text, &weights_of(&program.tables)).unwrap(), program, "{text}");
    assert!(
        text.contains("bootstrap %2 real magnitude 2^0 times 0.5 keep s % 4 == 0 : level 16 junk stride 4 max 0.75")
    );
}

#[test]
fn text_without_op_ids_numbers_ops_in_order() {
    let text = "cachemir slots\nslots 8\ncontext 4\ninput scale 1\nembedding token_stride 1 slots\n\
                logits token_stride 1 slots\n; a comment\nentry decode (%0 : zero stride 1) {\n\
                %2 = sum i0 in 0..2 : zero stride 1 {\n%1 = rotate %0 by i0 : zero stride 1\nyield %1\n}\nyield %2\n}\n";
    let program = parse::<SlotOp>(text, &|_| None).unwrap();
    crate::verify::slots(&program, false).unwrap();
    let graph: &Graph<_, _> = &program.entries[0].graph;
    assert_eq!(graph.body.ops, [crate::graph::OpId(1)]);
    assert_eq!(parse::<SlotOp>(&print(&program), &|_| None).unwrap(), program);
}

#[test]
fn errors_name_the_line() {
    let program = slots_example();
    let text = print(&program);
    let refused = |text: &str| parse::<SlotOp>(text, &weights_of(&program.tables)).unwrap_err().to_string();
    let line = 1 + text.lines().position(|line| line.contains(" rotate ")).unwrap();
    let message = refused(&text.replace("by (pos", "by (position"));
    assert!(message.starts_with(&format!("line {line}: ")) && message.contains("pos, count"), "{message}");
    assert!(refused(&text.replace("= rotate ", "= turn ")).contains("`turn` is no op of the slots stage"));
    assert!(refused("cachemir ckks\n").starts_with("line 1: expected `slots`"));
    assert!(refused(text.trim_end().trim_end_matches('}')).contains("end of the text"));
    let unknown = parse::<SlotOp>(&text, &|_| None).unwrap_err().to_string();
    assert!(unknown.contains("no values for `w`"), "{unknown}");
}

#[test]
fn problems_are_printed_below_their_ops() {
    let mut program = slots_example();
    program.states.clear();
    let problems = crate::verify::slots_problems(&program, false);
    let text = print_with_problems(&program, &problems);
    let lines: Vec<&str> = text.lines().collect();
    let error = lines.iter().position(|line| line.contains("; error: ")).unwrap();
    assert_eq!(lines[error].trim(), "; error: state_write: there is no state array c0");
    assert!(lines[error - 1].contains("state_write"));
    // Problems are comments, so the text is still read.
    assert_eq!(parse::<SlotOp>(&text, &weights_of(&program.tables)).unwrap(), program);
}

#[test]
fn compacting_keeps_the_meaning_and_drops_the_dead() {
    let mut program = slots_example();
    let graph = &mut program.entries[0].graph;
    let dead = graph.body.ops.remove(0);
    assert!(graph.verify_structure().iter().any(|problem| problem.contains("no block")), "{dead}");
    let (ops, values) = (graph.nodes.len(), graph.values.len());
    graph.compact();
    assert_eq!((graph.nodes.len(), graph.values.len(), graph.origins.len()), (ops - 1, values - 1, 1));
    assert_eq!(graph.verify_structure(), Vec::<String>::new());
    let once = graph.clone();
    graph.compact();
    assert_eq!(*graph, once);
    let text = print(&program);
    assert_eq!(parse::<SlotOp>(&text, &weights_of(&program.tables)).unwrap(), program);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn altered_text_is_read_or_refused(offset in 0_usize..10_000, length in 0_usize..4, insert in "[%@!;:(){}0-9a-z ,\\[\\]\"-]{0,3}") {
        let program = slots_example();
        let text = print(&program);
        let floor = |mut index: usize| {
            while !text.is_char_boundary(index) {
                index -= 1;
            }
            index
        };
        let start = floor(offset % text.len());
        let end = floor((start + length).min(text.len())).max(start);
        let altered = format!("{}{insert}{}", &text[..start], &text[end..]);
        if let Ok(read) = parse::<SlotOp>(&altered, &weights_of(&program.tables)) {
            let _ = crate::verify::slots(&read, false);
        }
    }
}

#[test]
fn short_numbers_have_three_digits() {
    for (value, expected) in
        [(0.0, "0"), (-19.159, "-19.2"), (0.0071, "0.00710"), (12345.6, "12346"), (1e-7, "1.00e-7"), (2.5e9, "2.50e9")]
    {
        assert_eq!(short(value), expected);
    }
}
