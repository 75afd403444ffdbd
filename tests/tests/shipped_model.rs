//! The shipped model's three stages: golden text, exact round trips, schema-conforming dumps, reproducible plans.
//!
//! `CACHEMIR_BLESS=1` rewrites the golden files under `golden/`, whose numbers are rounded.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cachemir_compiler::{Compilation, CompileOptions, compile};
use cachemir_ir::ckks::CkksOp;
use cachemir_ir::cost::CostTable;
use cachemir_ir::hashes::hash_of;
use cachemir_ir::json;
use cachemir_ir::manifest::KeyManifest;
use cachemir_ir::plan::{ClientPlan, Plan};
use cachemir_ir::program::{EntryPoint, pack};
use cachemir_ir::slots::SlotOp;
use cachemir_ir::slots_interpreter;
use cachemir_ir::text::{parse, parse_model, print, print_model, weights_of};
use cachemir_ir::weights::Weights;
use cachemir_tests::{ClearSession, assert_golden, rounded};

fn options() -> CompileOptions {
    CompileOptions {
        tokenizer: Some(model_folder().join("tokenizer.json")),
        calibration: Some(model_folder().join("calibration.txt")),
        ..CompileOptions::default()
    }
}

fn model_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tinystories2l_bounded")
}

fn compiled() -> &'static Compilation {
    static COMPILED: OnceLock<Compilation> = OnceLock::new();
    COMPILED.get_or_init(|| {
        let model = model_folder().join("onnx/optimum/model.onnx");
        compile(model, &options()).unwrap_or_else(|error| panic!("{error}"))
    })
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

#[test]
fn stages_look_like_their_golden_files() {
    let compiled = compiled();
    assert_golden(&golden("tinystories2l_bounded.tensor.cmir"), &rounded(&print_model(&compiled.tensor)));
    assert_golden(&golden("tinystories2l_bounded.slots.cmir"), &rounded(&print(&compiled.slots)));
    assert_golden(&golden("tinystories2l_bounded.ckks.cmir"), &rounded(&print(&compiled.plan.program)));
}

#[test]
fn every_stage_is_read_back_exactly() {
    let Compilation { tensor, slots, plan, .. } = compiled();
    let find = |hash: &[u8; 32]| {
        let weights =
            tensor.weights.iter().find(|weight| weight.hash == *hash).and_then(|weight| weight.weights.clone());
        let rope = [&tensor.rope.cosines, &tensor.rope.sines].into_iter().find(|values| hash_of(values) == *hash);
        weights.or_else(|| rope.cloned().map(Weights::from))
    };
    assert!(parse_model(&print_model(tensor), &find).unwrap() == *tensor, "the tensor stage");
    assert!(parse::<SlotOp>(&print(slots), &weights_of(&slots.tables)).unwrap() == *slots, "the slots stage");
    let program = &plan.program;
    assert!(parse::<CkksOp>(&print(program), &weights_of(&program.tables)).unwrap() == *program, "the ckks stage");
}

#[test]
fn dumps_have_one_op_a_line() {
    let Compilation { tensor, slots, plan, .. } = compiled();
    let costs = CostTable::built_in(&plan.parameters);
    let ops: usize = plan.program.entries.iter().map(|entry| entry.graph.nodes.len()).sum();
    for (text, expected) in [
        (json::dump_model(tensor), tensor.graph.nodes.len()),
        (json::dump_slots(slots), slots.entries.iter().map(|entry| entry.graph.nodes.len()).sum()),
        (json::dump_ckks(&plan.program, &costs), ops),
    ] {
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(document["$schema"], json::SCHEMA_NAME);
        assert_eq!(text.lines().filter(|line| line.contains("\"operands\":")).count(), expected);
    }
}

#[test]
fn plans_are_reproducible_and_refuse_alterations() {
    let plan = &compiled().plan;
    let bytes = plan.to_bytes().unwrap();
    assert!(Plan::from_bytes(&bytes).unwrap() == *plan);
    assert_eq!(plan.keys, KeyManifest::of(&plan.program));
    let client = plan.client(Plan::hash_of(&bytes).unwrap());
    assert!(ClientPlan::from_bytes(&client.to_bytes().unwrap()).unwrap() == client);
    let again = compile(model_folder().join("onnx/optimum/model.onnx"), &options()).unwrap_or_else(|e| panic!("{e}"));
    assert!(again.plan.to_bytes().unwrap() == bytes, "compiling twice gives two different plans");
    // A few hundred alterations and truncations, spread over the file.
    for step in 0..300 {
        let offset = step * (bytes.len() - 1) / 299;
        let mut altered = bytes.clone();
        altered[offset] ^= 1 << (step % 8);
        assert!(Plan::from_bytes(&altered).and_then(|plan| plan.check_all()).is_err(), "byte {offset}");
        assert!(Plan::from_bytes(&bytes[..offset]).is_err(), "cut at {offset}");
    }
}

/// By the predictions of the calls themselves.
#[test]
fn prefill_pays_from_as_many_tokens_on_as_decoding_takes_longer_for() {
    let plan = &compiled().plan;
    let (program, costs) = (&plan.program, CostTable::built_in(&plan.parameters));
    let chunk = program.entry(EntryPoint::Prefill).and_then(|entry| entry.kind.chunk()).expect("prefill pays");
    assert_eq!(plan.prefill_pays.len(), program.context.div_ceil(chunk) as usize);
    for (start, &least) in (0..program.context).step_by(chunk as usize).zip(&plan.prefill_pays) {
        let prefill = costs.predict(program, EntryPoint::Prefill, start.into());
        let end = program.context.min(start + chunk);
        let steps: Vec<f64> =
            (start..end).map(|position| costs.predict(program, EntryPoint::Decode, position.into())).collect();
        for tokens in 2..=steps.len() {
            let faster = prefill < steps[..tokens].iter().sum();
            assert_eq!(faster, tokens >= least as usize, "{tokens} tokens at position {start}");
        }
    }
}

/// The packed embeddings of consecutive tokens.
fn packed(plan: &Plan, tokens: &[u32]) -> Vec<Vec<f64>> {
    let program = &plan.program;
    let row =
        |token: &u32| plan.model.embedding_of(*token).expect("it is read").expect("the token is in the vocabulary");
    let embeddings: Vec<&[f32]> = tokens.iter().map(row).collect();
    pack(&program.inputs, &program.embedding, program.slots as usize, &embeddings).expect("the tokens have slots")
}

fn logits(plan: &Plan, slots: &[f64]) -> Vec<f64> {
    plan.program.logits.index_to_slot.iter().map(|slot| slots[*slot as usize]).collect()
}

fn greedy(logits: &[f64]) -> u32 {
    let best = logits.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
    best.map_or(0, |(token, _)| token as u32)
}

/// Placement changes levels, never values: both programs give the same logits, after a prefill and after decode steps.
#[test]
fn the_ckks_stage_means_what_the_slots_stage_means() {
    let Compilation { slots, plan, .. } = compiled();
    let mut before = slots_interpreter::Interpreter::new(slots);
    let mut after = ClearSession::new(&plan.program, plan.levels()).expect("the program fits");
    // "Once upon a time", with the token that starts a text.
    let prompt = [0, 378, 379, 260, 366];
    let mut input = (0, packed(plan, &prompt), EntryPoint::Prefill);
    let mut position = prompt.len() as i64;
    for _ in 0..4 {
        let (start, x, entry) = &input;
        let count = position - start;
        let expected = logits(plan, &before.call(*entry, *start, count, x).unwrap()[0]);
        let found = logits(plan, &after.call(*entry, *start, count, x).unwrap()[0]);
        let size = expected.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
        for (a, b) in expected.iter().zip(&found) {
            assert!((a - b).abs() < 1e-6 * size, "{entry} at {start}: {a} became {b}");
        }
        input = (position, packed(plan, &[greedy(&found)]), EntryPoint::Decode);
        position += 1;
    }
}

/// Every bootstrap's input is within its magnitude and every polynomial's within its interval, in all slots.
#[test]
fn two_hundred_steps_stay_within_all_bounds() {
    let plan = &compiled().plan;
    let mut session = ClearSession::new(&plan.program, plan.levels()).expect("the program fits");
    let mut token = 0;
    for position in 0..200_i64.min(i64::from(plan.program.context)) {
        let result = session.call(EntryPoint::Decode, position, 1, &packed(plan, &[token]));
        let slots = result.unwrap_or_else(|error| panic!("position {position}: {error}"));
        token = greedy(&logits(plan, &slots[0]));
    }
}
