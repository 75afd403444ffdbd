//! A small plan as text and as JSON.

use cachemir_ir::ckks::{CiphertextType, CkksGraph, CkksOp};
use cachemir_ir::expression::{Integer, TableId, Vector};
use cachemir_ir::graph::Region;
use cachemir_ir::manifest::KeyManifest;
use cachemir_ir::operations::{Operations, typical_calls};
use cachemir_ir::parameters::Parameters;
use cachemir_ir::plan::{Approximation, CallCounts, ClientModel, Guard, MaskCount, Measure, Plan, Provenance};
use cachemir_ir::program::{EmbeddingForm, Entry, EntryKind, Placement, Program, State};
use cachemir_ir::slots::{Domain, Fill, Layout};
use cachemir_ir::table::Table;
use cachemir_ir::tokenizer::Tokenizer;
use serde_json::Value;

use super::{SCHEMA, json, table};

fn ty(level: u32, product: bool) -> CiphertextType {
    let layout = Layout { stride: 1, fill: Fill::Junk, domain: Domain::Real };
    CiphertextType { level, product, layout, max_abs: 1.0 }
}

/// Σ over the blocks of four positions so far: a rotation by the block's number, times a row of weights; then a mask.
fn graph() -> CkksGraph {
    let mut graph = CkksGraph::default();
    let x = graph.add_input("x", ty(16, false));
    let (rotate, rotated) =
        graph.add_node(CkksOp::Rotate { by: Integer::counter(0) }, vec![x], vec![ty(16, false)], None, None);
    let plain = Vector::Table(TableId(0), Integer::slot() % 8_i64);
    let (multiply, yields) = graph.add_node(CkksOp::MultiplyPlain { plain }, rotated, vec![ty(16, true)], None, None);
    let body = Region { ops: vec![rotate, multiply], yields };
    let sum = CkksOp::Sum { counter: 0, count: Integer::position() / 4 + 1 };
    let (sum, sums) = graph.add_node(sum, vec![], vec![ty(16, true)], None, Some(body));
    let (rescale, rescaled) = graph.add_node(CkksOp::Rescale, sums, vec![ty(15, false)], None, None);
    let plain = Vector::Scalar(1.0).masked(Integer::slot().less(4));
    let (mask, masked) = graph.add_node(CkksOp::MultiplyPlain { plain }, rescaled, vec![ty(15, true)], None, None);
    let (last, logits) = graph.add_node(CkksOp::Rescale, masked, vec![ty(14, false)], None, None);
    graph.body = Region { ops: vec![sum, rescale, mask, last], yields: logits };
    graph.compact();
    graph
}

fn approximation(site: &str, method: &str, derived: Option<[f64; 2]>) -> Approximation {
    Approximation {
        site: site.to_owned(),
        function: "1.0e0/x".to_owned(),
        method: method.to_owned(),
        accurate: [0.125, 2.0],
        sane: [0.0, 4.0],
        derived,
        degree: 15,
        depth: 4,
        max_error: 1e-3,
        measure: Measure::Relative,
        cancels: site.contains("rough"),
        escape_proof: derived.is_some_and(|[low, high]| low >= 0.0 && high <= 3.0),
        checked: method == "minimax",
    }
}

pub(crate) fn plan() -> Plan {
    let placement = Placement { index_to_slot: (0..4).collect(), token_stride: 0 };
    let layout = ty(0, false).layout;
    let program = Program {
        slots: 8,
        context: 16,
        tables: vec![Table::new("w", [8], vec![0.5; 8])].into(),
        states: vec![State { name: "layers.0.k_cache".to_owned(), capacity: 2, layout, level: Some(9), initial: None }],
        prefix: vec![],
        entries: vec![Entry { kind: EntryKind::Decode, graph: graph(), checks: vec![] }],
        embedding: placement.clone(),
        inputs: vec![EmbeddingForm::scaled(1.0)],
        logits: placement,
    };
    let counts = typical_calls(&program).into_iter().map(|call| CallCounts {
        call,
        operations: Operations::of(&program, call),
        masks: vec![MaskCount {
            reason: "a reason that takes so many words that it has to be broken".to_owned(),
            count: 1,
        }],
        predicted_ns: 1_250_000_000 + 1_000_000_000 * u64::from(call.position),
    });
    Plan {
        parameters: Parameters::insecure_test(),
        keys: KeyManifest::of(&program),
        counts: counts.collect(),
        approximations: vec![
            approximation("layer 0 reciprocal", "minimax, Newton step", Some([0.5, 3.0])),
            approximation("layer 10 rough reciprocal 0", "minimax", None),
            approximation("layer 0 silu", "Chebyshev, 4th power", Some([0.0, 3.5])),
        ],
        prefill_pays: vec![],
        model: ClientModel {
            name: "tiny".to_owned(),
            tokenizer: Some(b"{}".to_vec()),
            chat: None,
            vocabulary: 4,
            hidden: 4,
            embedding: Some(vec![0.5; 16].into()),
            guard: Guard::of_logits(-1.0, 1.0),
            eos: vec![1],
        },
        provenance: Provenance {
            cost_table: "measured on a machine".to_owned(),
            predicted_ns_per_token: 1.5e9,
            ..Provenance::default()
        },
        program,
    }
}

#[test]
fn the_text_fits_eighty_columns() {
    let text = table::text(&plan(), 80);
    assert!(text.lines().all(|line| line.chars().count() <= 80 && line == line.trim_end()), "{text}");
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/src/summary/golden.txt");
    if std::env::var_os("CACHEMIR_BLESS").is_some_and(|value| value == "1") {
        std::fs::write(golden, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(golden).unwrap(), text);
}

#[test]
fn both_forms_say_where_prefill_is_used() {
    let with = |pays: &[u32]| {
        let mut plan = plan();
        plan.program.entries.push(Entry { kind: EntryKind::Prefill { chunk: 4 }, graph: graph(), checks: vec![] });
        plan.prefill_pays = pays.to_vec();
        let document = json(&plan);
        assert_eq!(faults(&document), [""; 0], "{document}");
        assert_eq!(document["prefill_pays"], serde_json::json!(pays));
        table::text(&plan, 200)
    };
    let used = "Prefill, of up to 4 tokens, is used where predicted to be faster than decoding: for ";
    for (pays, expected) in [
        ([2, 2, 2, 2], "2 tokens or more."),
        ([3, 3, 5, 5], "3 tokens or more, not from position 8 on."),
        ([2, 3, 4, 5], "2 tokens or more at position 0, for 4 or more at 8, not from position 12 on."),
        ([2, 3, 3, 4], "2 tokens or more at position 0, for 4 or more at 12."),
    ] {
        let text = with(&pays);
        assert!(text.contains(&format!("{used}{expected}\n")), "{pays:?}: {text}");
    }
    assert!(with(&[5; 4]).contains("predicted to be slower than decoding"));
    assert!(!table::text(&plan(), 80).contains("Prefill"));
}

#[test]
fn the_public_prefix_is_shown_as_the_text_that_the_server_knows() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tinystories2l_bounded/tokenizer.json");
    let bytes = std::fs::read(path).unwrap();
    let tokens = |text: &str| Tokenizer::from_bytes(&bytes).unwrap().encode(text, true).unwrap();
    let mut plan = plan();
    assert_eq!(json(&plan)["prefix_text"], Value::Null);
    plan.program.prefix = tokens("Once upon a time");
    let count = format!("a public prefix of {} tokens, which the server knows", plan.program.prefix.len());
    assert!(table::text(&plan, 200).contains(&format!("{count}\n")), "tokens alone, without a tokenizer");
    plan.model.tokenizer = Some(bytes.clone());
    let shown = json(&plan)["prefix_text"].as_str().unwrap().to_owned();
    assert!(shown.ends_with("Once upon a time"), "{shown}");
    assert!(table::text(&plan, 200).contains(&format!("{count}: {shown:?}\n")));
    plan.program.prefix = tokens(&"Once upon a time. ".repeat(40));
    assert!(table::text(&plan, 2000).contains("\" …\n"));
}

#[test]
fn wide_terminals_are_used_and_narrow_ones_lose_nothing() {
    let words = |columns| table::text(&plan(), columns).split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let wide = table::text(&plan(), 200);
    assert!(wide.lines().count() < table::text(&plan(), 80).lines().count());
    assert_eq!(words(20).len(), words(200).len());
}

/// What the schema says against a document.
fn faults(document: &Value) -> Vec<String> {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    validator.iter_errors(document).map(|fault| format!("{}: {fault}", fault.instance_path())).collect()
}

#[test]
fn the_json_follows_its_schema() {
    let mut document = json(&plan());
    assert_eq!(faults(&document), [""; 0], "{document}");
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    assert_eq!(schema["$id"], document["$schema"]);
    // Four, eight and twelve positions later there is one more rotation; that by 0 is none.
    let rotations: Vec<u64> = document["calls"]
        .as_array()
        .unwrap()
        .iter()
        .map(|call| call["operations"]["rotations"].as_u64().unwrap())
        .collect();
    assert_eq!(rotations, [0, 2, 3]);
    assert_eq!(document["calls"][0]["masks"][0]["count"], 1);
    assert_eq!(document["approximations"][0]["escape_proof"], true);
    assert_eq!(document["approximations"][1]["derived"], Value::Null);
    document["calls"][0]["operations"]["rotations"] = 1.5.into();
    assert_eq!(faults(&document).len(), 1);
}
