//! From the ONNX file to text: in the clear by all routes of the shipped model, and encrypted under the insecure
//! parameters, which run the same code as the secure ones.

use std::path::{Path, PathBuf};

use cachemir_compiler::{Compilation, CompileOptions, PublicPrefix, compile};
use cachemir_ir::tensor::Interpreter;
use cachemir_runtime::{Backend, GenerateOptions, Listener, Plans, Prompt, Session, SessionOptions};

const ROUTES: [&str; 3] = ["optimum", "genai_fp32", "dynamo_op18"];
const INSECURE: &str = "insecure-test";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tinystories2l_bounded")
}

fn compiled(route: &str, parameters: &str) -> Compilation {
    compiled_with(route, parameters, None)
}

fn compiled_with(route: &str, parameters: &str, prefix: Option<PublicPrefix>) -> Compilation {
    let options = CompileOptions {
        calibration: Some(folder().join("calibration.txt")),
        prefix,
        parameters: parameters.to_owned(),
        ..CompileOptions::default()
    };
    let model = folder().join("onnx").join(route).join("model.onnx");
    compile(model, &options).unwrap_or_else(|error| panic!("{route}: {error}"))
}

/// The compilation's plan as a user gets it: written to a file and read back.
fn plans(compilation: &Compilation) -> Plans {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("plan.bin");
    compilation.plan.write(&path).expect("the plan is written");
    Plans::read(&path).expect("the plan is read")
}

/// Prompt tokens and greedy continuation of the reference texts, as onnxruntime and torch give them.
fn references() -> Vec<(Vec<u32>, Vec<u32>)> {
    let text = std::fs::read(folder().join("reference.json")).expect("the reference is there");
    let json: serde_json::Value = serde_json::from_slice(&text).expect("the reference is JSON");
    let ids = |record: &serde_json::Value, key: &str| {
        let list = record[key].as_array().expect("a list of tokens").iter();
        list.map(|id| u32::try_from(id.as_u64().expect("a token")).expect("a small number")).collect()
    };
    let records = json["records"].as_array().expect("records");
    records.iter().map(|record| (ids(record, "prompt_ids"), ids(record, "generated_ids"))).collect()
}

/// Keeps the logits of each step.
#[derive(Default)]
struct Recorder(Vec<Vec<f64>>);

impl Listener for Recorder {
    fn logits(&mut self, logits: &[f64]) {
        self.0.push(logits.to_vec());
    }
}

/// The greedy continuation of a prompt by `max_tokens` tokens in a session that begins anew, with the logits of each.
fn continued(session: &mut Session<'_>, prompt: impl Into<Prompt>, max_tokens: usize) -> (Vec<u32>, Vec<Vec<f64>>) {
    session.restart();
    session.prompt(prompt).expect("a prompt");
    let mut recorder = Recorder::default();
    let options = GenerateOptions { max_tokens, stop_at_end: false, ..GenerateOptions::default() };
    let generation = session.generate(&options, &mut recorder).unwrap_or_else(|error| panic!("{error}"));
    (generation.new_tokens().to_vec(), recorder.0)
}

/// A session whose ranges are watched, in the clear.
fn watched(plans: &Plans) -> Session<'_> {
    let options = SessionOptions { backend: Backend::Clear, check: true, ..SessionOptions::default() };
    Session::open(plans, &options).expect("it runs")
}

/// KL divergence of the distributions of two lists of logits.
fn divergence(reference: &[f64], found: &[f64]) -> f64 {
    let log_probabilities = |logits: &[f64]| -> Vec<f64> {
        let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total = logits.iter().map(|logit| (logit - most).exp()).sum::<f64>().ln();
        logits.iter().map(|logit| logit - most - total).collect()
    };
    let (p, q) = (log_probabilities(reference), log_probabilities(found));
    p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
}

#[test]
fn the_packed_program_gives_the_reference_tokens_by_every_route() {
    for route in ROUTES {
        let compilation = compiled(route, "n16");
        let plans = plans(&compilation);
        let mut session = Session::clear(&plans).expect("it runs");
        for (prompt, expected) in references() {
            let (found, logits) = continued(&mut session, Prompt::Tokens(prompt.clone()), expected.len());
            assert_eq!(found, expected, "{route}");

            let mut model = Interpreter::new(&compilation.tensor).expect("the model runs");
            let mut exact = Vec::new();
            for &token in prompt.iter().chain(&found) {
                exact.push(model.step(token).expect("a step"));
            }
            for (step, logits) in logits.iter().enumerate() {
                let divergence = divergence(&exact[prompt.len() - 1 + step], logits);
                assert!(divergence <= 1e-3, "{route}: KL {divergence} at step {step}");
            }
        }
    }
}

#[test]
fn every_slot_stays_in_its_range_over_two_hundred_steps() {
    let plans = plans(&compiled("optimum", "n16"));
    let mut session = watched(&plans);
    let (prompt, _) = references().remove(0);
    let (found, _) = continued(&mut session, Prompt::Tokens(prompt), 210);
    assert_eq!(found.len(), 210);
    let findings = session.findings();
    assert!(findings.ranges.expect("it was watched").bootstraps() > 200, "every step bootstraps");
    findings.verdict.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn prompts_unlike_the_calibration_text_stay_in_range() {
    let plans = plans(&compiled("optimum", "n16"));
    let mut session = watched(&plans);
    for prompt in ["naïve café ☃", "{}[]()<>", "AAAA BBBB", "He said: \"What's up?\" and left; then 7 dogs came."] {
        continued(&mut session, prompt, 8);
        session.findings().verdict.unwrap_or_else(|error| panic!("{prompt}: {error}"));
    }
}

#[test]
fn encrypted_text_is_the_reference_text() {
    let plans = plans(&compiled("optimum", INSECURE));
    let (prompt, expected) = references().remove(1);
    let five = |backend| {
        let options = SessionOptions { backend, ..SessionOptions::default() };
        let mut session = Session::open(&plans, &options).expect("it runs");
        continued(&mut session, Prompt::Tokens(prompt.clone()), 5)
    };
    // The first token comes from the prefill, the other four from decode steps.
    let (found, encrypted) = five(Backend::Encrypted);
    assert_eq!(found, expected[..5]);

    // The noise model in the clear is on the safe side: as noisy as encryption, and by two bits and a half more at most.
    let (_, exact) = five(Backend::Clear);
    let noise = |logits: &[Vec<f64>]| {
        let errors = logits.iter().flatten().zip(exact.iter().flatten()).map(|(found, exact)| (found - exact).powi(2));
        (errors.sum::<f64>() / exact.iter().flatten().count() as f64).sqrt()
    };
    // One draw of the model's noise may be half of another: their mean square counts.
    let squares = (0..8).map(|index| noise(&five(Backend::Noisy { seed: 2 * index }).1).powi(2));
    let (measured, predicted) = (noise(&encrypted), (squares.sum::<f64>() / 8.0).sqrt());
    assert!(
        measured > 0.0 && (1.0..=6.0).contains(&(predicted / measured)),
        "{measured} measured, {predicted} predicted"
    );
}

#[test]
fn encrypted_text_behind_a_public_prefix_is_the_reference_text() {
    let plans = plans(&compiled_with("optimum", INSECURE, Some(PublicPrefix::Text("Lily and".to_owned()))));
    let (prompt, expected) = references().remove(1);
    let prefix = &plans.client.prefix;
    assert!(prefix.len() > 1 && prefix.len() < prompt.len() && prompt.starts_with(prefix), "{prefix:?}");
    let mut session = Session::encrypted(&plans).expect("it runs");
    // A prompt goes on behind the prefix.
    let (found, _) = continued(&mut session, Prompt::Tokens(prompt[prefix.len()..].to_vec()), 5);
    assert_eq!(found, expected[..5]);
    assert_eq!(session.conversation().tokens(), [&prompt, &expected[..5]].concat());
}

#[test]
fn equal_inputs_give_equal_plans() {
    let bytes = || compiled("genai_fp32", INSECURE).plan.to_bytes().expect("a valid plan");
    assert_eq!(bytes(), bytes());
}
