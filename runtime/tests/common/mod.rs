//! A model small enough to write down: its logits are W·x + S·Σ(embeddings so far), as a plan.

use std::path::{Path, PathBuf};

use cachemir_ir::ckks::{CiphertextType, CkksGraph, CkksOp};
use cachemir_ir::expression::{Integer, TableId, Vector};
use cachemir_ir::graph::{Region, ValueId};
use cachemir_ir::manifest::KeyManifest;
use cachemir_ir::parameters::Parameters;
use cachemir_ir::plan::{ClientModel, Guard, Plan, Provenance};
use cachemir_ir::program::{EmbeddingForm, Entry, EntryKind, Placement, Program, State};
use cachemir_ir::slots::{Domain, Fill, Layout, StateId, WriteMode};
use cachemir_ir::table::Table;

/// Width of the embedding and number of tokens.
pub(crate) const WIDTH: usize = 4;
const SLOTS: usize = 8;
const TOP: u32 = 16;
const STATE_LEVEL: u32 = 9;

/// Tokens by id; the last one ends a text.
pub(crate) const WORDS: [&str; WIDTH] = ["<s>", "one", "two", "end"];

fn ty(level: u32, product: bool) -> CiphertextType {
    let layout = Layout { stride: 1, fill: Fill::Junk, domain: Domain::Real };
    CiphertextType { level, product, layout, max_abs: 100.0 }
}

/// The weights W (for the last token) and S (for all tokens), `[out][in]`.
pub(crate) fn weights() -> (Vec<f32>, Vec<f32>) {
    let entry = |seed: f32| move |index: usize| ((index as f32 + 1.0) * seed).sin();
    let mut last: Vec<f32> = (0..WIDTH * WIDTH).map(entry(1.7)).collect();
    let all: Vec<f32> = (0..WIDTH * WIDTH).map(entry(2.9)).collect();
    // "end" is never likely.
    last[3 * WIDTH..].iter_mut().for_each(|weight| *weight = -9.0);
    (last, all)
}

/// The embedding, `[token][width]`.
pub(crate) fn embedding() -> Vec<f32> {
    (0..WIDTH * WIDTH).map(|index| ((index * index) as f32 * 0.7).cos() / 2.0).collect()
}

/// W·x for the 4-periodic continuation of x: Σ_k rot(x, k)·W[s mod 4][(s + k) mod 4].
fn product(graph: &mut CkksGraph, block: &mut Region, x: ValueId, level: u32, table: u32, counter: u32) -> ValueId {
    let mut body = Region::default();
    let by = Integer::counter(counter);
    let (rotate, rotated) =
        graph.add_node(CkksOp::Rotate { by: by.clone() }, vec![x], vec![ty(level, false)], None, None);
    let row = Integer::slot() % WIDTH;
    let column = (Integer::slot() + by) % WIDTH;
    let plain = Vector::Table(TableId(table), row * WIDTH + column);
    let op = CkksOp::MultiplyPlain { plain };
    let (multiply, yields) = graph.add_node(op, rotated, vec![ty(level, true)], None, None);
    body.ops = vec![rotate, multiply];
    body.yields = yields;
    let op = CkksOp::Sum { counter, count: Integer::from(WIDTH) };
    let (sum, sums) = graph.add_node(op, vec![], vec![ty(level, true)], None, Some(body));
    let (rescale, result) = graph.add_node(CkksOp::Rescale, sums, vec![ty(level - 1, false)], None, None);
    block.ops.extend([sum, rescale]);
    result[0]
}

/// One token, or `count` of them at once, in slots WIDTH·token for `prefill`.
fn entry(kind: EntryKind) -> Entry<CkksOp, CiphertextType> {
    let mut graph = CkksGraph::default();
    let mut top = Region::default();
    let x = graph.add_input("embedding", ty(TOP, false));
    let add = |graph: &mut CkksGraph, top: &mut Region, op, inputs, level| {
        let (id, results) = graph.add_node(op, inputs, vec![ty(level, false)], None, None);
        top.ops.push(id);
        results[0]
    };
    // Both halves: the last token's, and the sum of all tokens of the call.
    let other = add(&mut graph, &mut top, CkksOp::Rotate { by: Integer::from(WIDTH) }, vec![x], TOP);
    let sum = add(&mut graph, &mut top, CkksOp::Add, vec![x, other], TOP);
    let last = match kind {
        EntryKind::Decode => sum,
        EntryKind::Prefill { .. } => {
            let token = (Integer::slot() / WIDTH).equal(Integer::count() - 1);
            let plain = Vector::Scalar(1.0).masked(token);
            let (id, product) =
                graph.add_node(CkksOp::MultiplyPlain { plain }, vec![x], vec![ty(TOP, true)], None, None);
            top.ops.push(id);
            let masked = add(&mut graph, &mut top, CkksOp::Rescale, product, TOP - 1);
            let by = Integer::from(WIDTH);
            let other = add(&mut graph, &mut top, CkksOp::Rotate { by }, vec![masked], TOP - 1);
            add(&mut graph, &mut top, CkksOp::Add, vec![masked, other], TOP - 1)
        }
    };
    let kept = add(&mut graph, &mut top, CkksOp::DropLevels { to: STATE_LEVEL }, vec![sum], STATE_LEVEL);
    let index = Integer::from(0_i64);
    let write = CkksOp::StateWrite { state: StateId(0), index: index.clone(), mode: WriteMode::Accumulate };
    let (id, _) = graph.add_node(write, vec![kept], vec![], None, None);
    top.ops.push(id);
    let read = CkksOp::StateRead { state: StateId(0), index };
    let all = add(&mut graph, &mut top, read, vec![], STATE_LEVEL);
    let last = add(&mut graph, &mut top, CkksOp::DropLevels { to: STATE_LEVEL }, vec![last], STATE_LEVEL);
    let first = product(&mut graph, &mut top, last, STATE_LEVEL, 0, 0);
    let second = product(&mut graph, &mut top, all, STATE_LEVEL, 1, 1);
    let logits = add(&mut graph, &mut top, CkksOp::Add, vec![first, second], STATE_LEVEL - 1);
    top.yields = vec![logits];
    graph.body = top;
    graph.compact();
    Entry { kind, graph, checks: vec![] }
}

/// A word-level tokenizer of [`WORDS`].
fn tokenizer() -> Vec<u8> {
    let vocabulary: serde_json::Map<_, _> =
        WORDS.iter().enumerate().map(|(id, word)| ((*word).to_owned(), id.into())).collect();
    let special = |id: usize| {
        serde_json::json!({"id": id, "content": WORDS[id], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let description = serde_json::json!({
        "version": "1.0", "added_tokens": [special(0), special(3)], "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "one"},
    });
    description.to_string().into_bytes()
}

/// The plan, written to a folder.
pub(crate) fn write_plan(folder: &Path, context: u32) -> PathBuf {
    write_changed_plan(folder, context, |_| {})
}

/// The plan with a change, written to a folder.
pub(crate) fn write_changed_plan(folder: &Path, context: u32, change: impl FnOnce(&mut Plan)) -> PathBuf {
    let (last, all) = weights();
    let table = |name: &str, values| Table::new(name, [WIDTH as u32; 2], values);
    let placement = |token_stride| Placement { index_to_slot: (0..WIDTH as u32).collect(), token_stride };
    let layout = ty(0, false).layout;
    let program = Program {
        slots: SLOTS as u32,
        context,
        tables: vec![table("last", last), table("all", all)].into(),
        states: vec![State { name: "sum".to_owned(), capacity: 1, layout, level: Some(STATE_LEVEL), initial: None }],
        prefix: vec![],
        entries: vec![entry(EntryKind::Decode), entry(EntryKind::Prefill { chunk: 2 })],
        embedding: placement(WIDTH as u32),
        inputs: vec![EmbeddingForm::scaled(1.0)],
        logits: placement(0),
    };
    let mut plan = Plan {
        parameters: Parameters::insecure_test(),
        keys: KeyManifest::of(&program),
        program,
        model: ClientModel {
            name: "four words".to_owned(),
            tokenizer: Some(tokenizer()),
            chat: None,
            vocabulary: WIDTH as u32,
            hidden: WIDTH as u32,
            embedding: Some(embedding().into()),
            eos: vec![3],
            guard: Guard::of_logits(-400.0, 400.0),
        },
        provenance: Provenance { compiler_version: "test".to_owned(), ..Provenance::default() },
        counts: Vec::new(),
        approximations: Vec::new(),
        prefill_pays: vec![2; context.div_ceil(2) as usize],
    };
    change(&mut plan);
    let path = folder.join("plan.bin");
    plan.write(&path).unwrap();
    path
}

/// The model in the clear: greedy tokens after a prompt.
pub(crate) fn greedy(prompt: &[usize], count: usize) -> Vec<usize> {
    let (last, all) = weights();
    let embedding = embedding();
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        let row = |token: usize, i: usize| f64::from(embedding[token * WIDTH + i]);
        let logits = (0..WIDTH).map(|out| {
            let weight = |table: &[f32], i: usize| f64::from(table[out * WIDTH + i]);
            let now = tokens[tokens.len() - 1];
            (0..WIDTH)
                .map(|i| {
                    let sum: f64 = tokens.iter().map(|&token| row(token, i)).sum();
                    weight(&last, i) * row(now, i) + weight(&all, i) * sum
                })
                .sum::<f64>()
        });
        let best = logits.enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(token, _)| token);
        tokens.push(best);
    }
    tokens[prompt.len()..].to_vec()
}
