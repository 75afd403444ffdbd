//! The client's guard on the shipped model: text passes, and outputs that went wrong are refused before a token is chosen.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cachemir_compiler::calibration::Calibration;
use cachemir_compiler::guard::guard;
use cachemir_compiler::{Compilation, CompileOptions, compile};
use cachemir_ir::plan::{ClientPlan, Guard, Others, Plan};
use cachemir_ir::program::EntryPoint;
use cachemir_ir::tensor::{Interpreter, TensorModel};
use cachemir_runtime::Error;
use cachemir_runtime::client::{ClearCipher, Client};
use cachemir_runtime::executor::ClearCiphertext;

fn compiled() -> &'static Compilation {
    static COMPILED: OnceLock<Compilation> = OnceLock::new();
    COMPILED.get_or_init(|| {
        let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tinystories2l_bounded");
        let options = CompileOptions {
            calibration: Some(folder.join("calibration.txt")),
            context: Some(32),
            ..CompileOptions::default()
        };
        compile(folder.join("onnx/optimum/model.onnx"), &options).unwrap_or_else(|error| panic!("{error}"))
    })
}

fn client() -> Client<'static, ClearCipher> {
    static PLAN: OnceLock<ClientPlan> = OnceLock::new();
    let plan = PLAN.get_or_init(|| {
        let plan = &compiled().plan;
        let bytes = plan.to_bytes().expect("a valid plan");
        let mut client = plan.client(Plan::hash_of(&bytes).expect("its hash"));
        // The outputs here hold logits alone.
        client.entries.iter_mut().for_each(|entry| entry.checks.clear());
        client
    });
    Client::new(plan, ClearCipher).expect("a client")
}

/// Exact logits of each step over some tokens.
fn exact(model: &TensorModel, tokens: impl IntoIterator<Item = u32>) -> Vec<Vec<f64>> {
    let mut interpreter = Interpreter::new(model).expect("the model runs");
    tokens.into_iter().map(|token| interpreter.step(token).expect("a step")).collect()
}

/// The one output whose slots hold these logits.
fn output(client: &Client<'_, ClearCipher>, logits: &[f64]) -> ClearCiphertext {
    let mut slots = vec![0.0; client.plan().slots as usize];
    for (logit, &slot) in logits.iter().zip(&client.plan().logits.index_to_slot) {
        slots[slot as usize] = *logit;
    }
    ClearCiphertext::fresh(&slots, 0)
}

fn refusal(client: &Client<'_, ClearCipher>, output: ClearCiphertext) -> String {
    match client.decrypt(EntryPoint::Decode, 9, 1, &[output]) {
        Err(error @ Error::OutOfRange { position: 9, .. }) => {
            assert_eq!(error.code(), "CMR-R051");
            let text = error.to_string();
            assert!(text.contains("range") && text.contains("--calibrate") && text.contains("--check"), "{text}");
            text
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn exact_logits_of_any_text_pass() {
    let (client, model) = (client(), &compiled().tensor);
    for start in 0..40_u32 {
        // Tokens in an order that no text and no calibration has.
        let tokens = (0..12).map(|step| (start * 131 + step * 53 + 7) % 512);
        for logits in exact(model, tokens) {
            let passed = client
                .decrypt(EntryPoint::Decode, 9, 1, &[output(&client, &logits)])
                .unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(passed, logits);
        }
    }
}

#[test]
fn what_went_wrong_is_refused() {
    let (client, model) = (client(), &compiled().tensor);
    let logits = exact(model, [0, 378, 379, 260, 366]).pop().expect("five steps");
    let good = output(&client, &logits);
    assert!(client.decrypt(EntryPoint::Decode, 9, 1, std::slice::from_ref(&good)).is_ok());
    let norm = client.plan().model.guard.norm.as_ref().expect("the model is small enough");
    let Others::Rows(others, _) = &norm.others else { panic!("the head is not tied") };
    let slot = |token: u32| client.plan().logits.index_to_slot[token as usize] as usize;

    let mut huge = good.clone();
    huge.slots[slot(5)].re = 1e6;
    assert!(refusal(&client, huge).contains("logit of token 5"));
    let mut none = good.clone();
    none.slots[slot(5)].re = f64::NAN;
    refusal(&client, none);
    let mut imaginary = good.clone();
    imaginary.slots[slot(7)].im = 0.1;
    assert!(refusal(&client, imaginary).contains("imaginary"));
    let scaled = output(&client, &logits.iter().map(|logit| 1.3 * logit).collect::<Vec<_>>());
    assert!(refusal(&client, scaled).contains("length"));
    let mut one = good.clone();
    one.slots[slot(others[17])].re += 0.5;
    assert!(refusal(&client, one).contains("contradict"));
    // Noise as large as the logits, within their bounds.
    let noisy: Vec<f64> =
        logits.iter().enumerate().map(|(index, logit)| logit + ((index * index) as f64).sin()).collect();
    refusal(&client, output(&client, &noisy));
}

/// A head that is the embedding times factors, and a vocabulary that is no power of two.
#[test]
fn a_tied_head_checks_all_logits() {
    let Compilation { tensor, plan, .. } = compiled();
    let mut model = tensor.clone();
    let vocabulary = 300;
    let embedding = model.weights.iter().position(|weight| weight.name == "embed_tokens").expect("an embedding");
    let head = model.weights.iter().position(|weight| weight.name == "lm_head").expect("a head");
    let hidden = model.hyperparameters.hidden;
    let values = model.weights[embedding].load().expect("it is there")[..vocabulary * hidden].to_vec();
    for index in [embedding, head] {
        let name = model.weights[index].name.clone();
        model.weights[index] = cachemir_ir::tensor::Weight::new(name, vec![vocabulary, hidden], values.clone());
    }
    model.hyperparameters.vocabulary = vocabulary;
    model.hyperparameters.tied_head = true;
    for value in &mut model.graph.values {
        if value.ty == (cachemir_ir::tensor::TensorType::Vector { width: 512 }) {
            value.ty = cachemir_ir::tensor::TensorType::Vector { width: vocabulary as u32 };
        }
    }
    let mut placement = plan.program.logits.clone();
    placement.index_to_slot.truncate(vocabulary);
    let text = vec![(0..30).collect::<Vec<u32>>(), (100..130).collect()];
    let sequences = Calibration { text, ..Calibration::default() };
    let found: Guard = guard(&model, &sequences, &placement, plan.program.slots as usize, 4.0).expect("a guard");
    assert_eq!(found.zeros.len(), 512 - vocabulary);
    let norm = found.norm.expect("300 rows of width 64");
    assert!(matches!(norm.others, Others::Embedding(_)));
    for logits in exact(&model, [5, 250, 31, 77]) {
        let reading = norm.read(&logits, &values);
        assert!((reading.length - 1.0).abs() < 1e-3 && reading.deviation < 1e-5, "{reading:?}");
        for token in [0, 123, 299] {
            let mut wrong = logits.clone();
            wrong[token] += 0.02 * logits.iter().fold(0.0, |most: f64, logit| most.max(logit.abs()));
            assert!(norm.read(&wrong, &values).deviation > norm.deviation, "token {token}");
        }
    }
}

#[test]
fn the_gain_of_noise_follows_from_the_last_norm_and_the_head() {
    let guard = &compiled().plan.model.guard;
    let size = guard.logits.iter().fold(0.0, |most: f64, logit| most.max(logit.abs()));
    let relative = guard.noise_gain / size;
    // Mean squares from 0.18 up to 2·h = 6 stretch an error fourfold; logits are not far from what rows of the head allow.
    assert!((2.0..8.0).contains(&relative), "{relative}");
}
