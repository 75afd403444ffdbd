//! The shipped model end to end over the slots interpreter.

use std::path::PathBuf;

use cachemir_ir::program::EntryPoint;
use cachemir_ir::slots_interpreter::Interpreter;
use cachemir_ir::tensor;
use cachemir_ir::tokenizer::Tokenizer;

use super::super::calibrate::Embedding;
use super::super::{LowerOptions, Shape, SlotProgram, Survey};
use crate::calibration::Calibration;
use crate::import::{ImportOptions, ImportedModel, load};

struct Prompt {
    prompt: Vec<u32>,
    generated: Vec<u32>,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/tinystories2l_bounded")
}

fn imported() -> ImportedModel {
    load(&folder().join("onnx/optimum/model.onnx"), &ImportOptions::default()).unwrap()
}

fn prompts() -> Vec<Prompt> {
    let text = std::fs::read_to_string(folder().join("reference.json")).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let ids = |value: &serde_json::Value| -> Vec<u32> {
        value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    let record = |record: &serde_json::Value| Prompt {
        prompt: ids(&record["prompt_ids"]),
        generated: ids(&record["generated_ids"]),
    };
    value["records"].as_array().unwrap().iter().map(record).collect()
}

fn calibration(model: &ImportedModel) -> Vec<Vec<u32>> {
    let tokenizer = Tokenizer::from_bytes(&model.tokenizer.as_ref().unwrap().bytes).unwrap();
    let text = std::fs::read_to_string(folder().join("calibration.txt")).unwrap();
    let bos = model.bos_token.unwrap();
    let encode = |line: &str| {
        let ids = tokenizer.encode(line, false).unwrap();
        std::iter::once(bos).chain(ids).collect()
    };
    text.lines().filter(|line| !line.is_empty()).map(encode).collect()
}

fn logits(program: &SlotProgram, outputs: &[Vec<f64>]) -> Vec<f64> {
    let slots = program.slots as usize;
    program.logits.index_to_slot.iter().map(|&slot| outputs[slot as usize / slots][slot as usize % slots]).collect()
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exponentials: Vec<f64> = logits.iter().map(|x| (x - most).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.iter().map(|x| x / sum).collect()
}

/// KL divergence of the second distribution from the first.
fn divergence(want: &[f64], got: &[f64]) -> f64 {
    softmax(want).iter().zip(softmax(got)).map(|(p, q)| if *p > 0.0 { p * (p / q).ln() } else { 0.0 }).sum()
}

fn argmax(logits: &[f64]) -> u32 {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32
}

fn generate(slots: usize) {
    let imported = imported();
    let model = &imported.model;
    let options = LowerOptions::default();
    let text = Calibration::of_text(model, calibration(&imported)).unwrap();
    let shape = Shape::new(&model.hyperparameters, slots).unwrap();
    let survey = Survey::new(model, &text, &options, &()).unwrap();
    let (program, report) = survey.lower(&shape, &options, &()).unwrap();
    let chunk = report.chunk;
    let mut interpreter = Interpreter::new(&program);
    let mut worst = 0.0f64;
    for prompt in prompts() {
        for with_prefill in [false, true] {
            interpreter.reset();
            let mut reference = tensor::Interpreter::new(model).unwrap();
            let mut position = 0;
            let mut outputs = Vec::new();
            let mut want = Vec::new();
            let step = if with_prefill { chunk } else { 1 };
            for tokens in prompt.prompt.chunks(step) {
                for &token in tokens {
                    want = reference.step(token).unwrap();
                }
                let input = Embedding::of(model).unwrap().embed(&program, tokens).unwrap();
                let entry = if with_prefill { EntryPoint::Prefill } else { EntryPoint::Decode };
                outputs = interpreter.call(entry, position, tokens.len() as i64, &input).unwrap();
                position += tokens.len() as i64;
            }
            for &next in &prompt.generated {
                let got = logits(&program, &outputs);
                worst = worst.max(divergence(&want, &got));
                assert_eq!(argmax(&got), next);
                want = reference.step(next).unwrap();
                let input = Embedding::of(model).unwrap().embed(&program, &[next]).unwrap();
                outputs = interpreter.call(EntryPoint::Decode, position, 1, &input).unwrap();
                position += 1;
            }
        }
    }
    assert!(worst <= 1e-3, "largest KL divergence {worst:.2e}");
}

#[test]
fn the_reference_tokens_in_4096_slots() {
    generate(4096);
}

#[test]
fn the_reference_tokens_in_2048_slots() {
    generate(2048);
}
