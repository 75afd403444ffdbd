//! From the ONNX file to text: in the clear by all routes of the shipped model, and encrypted under the insecure
//! parameters, which run the same code as the secure ones.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use cachemir_compiler::compile::{Compilation, CompileOptions, PublicPrefix, compile};
use cachemir_ir::tensor::Interpreter;
use cachemir_runtime::Error;
use cachemir_runtime::check::RangeCheck;
use cachemir_runtime::client::sampling::{Sampler, Sampling};
use cachemir_runtime::client::{Cipher, ClearCipher, Client, NoisyCipher, Prompt, SecretCipher};
use cachemir_runtime::executor::{Algebra, Clear, Executor, Observer, Site};
use cachemir_runtime::generation::{Listener, Request, Step, generate};
use cachemir_runtime::server::Server;
use cachemir_runtime::setup::{Engine, Plans, noisy};

const ROUTES: [&str; 3] = ["optimum", "genai_fp32", "dynamo_op18"];
const INSECURE: &str = "insecure-test";
const PLAINTEXT_BYTES: usize = 64 << 20;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tinystories2l_bounded")
}

fn compiled(route: &str, parameters: &str) -> Compilation {
    compiled_with(route, parameters, None)
}

fn compiled_with(route: &str, parameters: &str, prefix: Option<PublicPrefix>) -> Compilation {
    let options = CompileOptions {
        config: None,
        tokenizer: None,
        calibration: Some(folder().join("calibration.txt")),
        prefix,
        context: None,
        parameters: parameters.to_owned(),
        shapes_only: false,
    };
    let model = folder().join("onnx").join(route).join("model.onnx");
    compile(&model, &options).unwrap_or_else(|error| panic!("{route}: {error}"))
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

/// Keeps the logits, and hands every op to an observer.
struct Recorder<O> {
    logits: Vec<Vec<f64>>,
    observer: O,
}

impl<C, O: Observer<C>> Observer<C> for Recorder<O> {
    fn before(&mut self, site: Site<'_>, operands: &[&C]) -> Result<(), Error> {
        self.observer.before(site, operands)
    }

    fn after(&mut self, site: Site<'_>, results: &[&C]) -> Result<(), Error> {
        self.observer.after(site, results)
    }
}

impl<C, O: Observer<C>> Listener<C> for Recorder<O> {
    fn step(&mut self, _: Step) {}

    fn token(&mut self, _: u32, _: &str) -> Result<(), Error> {
        Ok(())
    }

    fn rest(&mut self, _: &str) -> Result<(), Error> {
        Ok(())
    }

    fn logits(&mut self, logits: &[f64]) {
        self.logits.push(logits.to_vec());
    }
}

/// The greedy continuation of a prompt by `count` tokens.
fn continued<A: Algebra, C: Cipher<Ciphertext = A::Ciphertext>, O: Observer<A::Ciphertext>>(
    client: &Client<C>,
    server: &Server<'_, A>,
    prompt: &[u32],
    count: usize,
    recorder: &mut Recorder<O>,
) -> Vec<u32> {
    let request = Request { tokens: prompt.to_vec(), count, stop_at_end: false };
    let mut sampler = Sampler::new(Sampling::default()).expect("greedy sampling");
    let generation = generate(client, server, &mut server.open(), &request, &mut sampler, recorder);
    generation.unwrap_or_else(|error| panic!("{error}")).new_tokens().to_vec()
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

fn clear_server(plans: &Plans) -> Server<'_, Clear> {
    let program = &plans.server.program;
    let levels = plans.server.levels();
    let clear = Clear::new(program.slots as usize, levels);
    let executor = Executor::new(clear, program, levels, PLAINTEXT_BYTES).expect("the program fits");
    Server::new(executor, plans.client.plan_hash)
}

#[test]
fn the_packed_program_gives_the_reference_tokens_by_every_route() {
    for route in ROUTES {
        let compilation = compiled(route, "n16");
        let plans = plans(&compilation);
        let server = clear_server(&plans);
        let client = plans.open_client(ClearCipher).expect("a client");
        for (prompt, expected) in references() {
            let mut recorder = Recorder { logits: Vec::new(), observer: () };
            let found = continued(&client, &server, &prompt, expected.len(), &mut recorder);
            assert_eq!(found, expected, "{route}");

            let mut model = Interpreter::new(&compilation.tensor).expect("the model runs");
            let mut exact = Vec::new();
            for &token in prompt.iter().chain(&found) {
                exact.push(model.step(token).expect("a step"));
            }
            for (step, logits) in recorder.logits.iter().enumerate() {
                let divergence = divergence(&exact[prompt.len() - 1 + step], logits);
                assert!(divergence <= 1e-3, "{route}: KL {divergence} at step {step}");
            }
        }
    }
}

#[test]
fn every_slot_stays_in_its_range_over_two_hundred_steps() {
    let plans = plans(&compiled("optimum", "n16"));
    let server = clear_server(&plans);
    let client = plans.open_client(ClearCipher).expect("a client");
    let (prompt, _) = references().remove(0);
    let mut recorder = Recorder { logits: Vec::new(), observer: RangeCheck::default() };
    let found = continued(&client, &server, &prompt, 210, &mut recorder);
    assert_eq!(found.len(), 210);
    assert!(recorder.observer.bootstraps() > 200, "every step bootstraps");
    recorder.observer.finish().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn prompts_unlike_the_calibration_text_stay_in_range() {
    let plans = plans(&compiled("optimum", "n16"));
    let server = clear_server(&plans);
    let client = plans.open_client(ClearCipher).expect("a client");
    for prompt in ["naïve café ☃", "{}[]()<>", "AAAA BBBB", "He said: \"What's up?\" and left; then 7 dogs came."] {
        let tokens = client.prompt_tokens(&[], &Prompt::Text(prompt.to_owned())).expect("a prompt");
        let mut recorder = Recorder { logits: Vec::new(), observer: RangeCheck::default() };
        continued(&client, &server, &tokens, 8, &mut recorder);
        recorder.observer.finish().unwrap_or_else(|error| panic!("{prompt}: {error}"));
    }
}

/// The greedy continuation of a prompt by five tokens under encryption, with the logits.
fn encrypted(plans: &Plans, prompt: &[u32]) -> (Vec<u32>, Vec<Vec<f64>>) {
    let plan = &plans.server;
    let engine = Engine::new(plan, None).expect("the parameters fit");
    let cipher = SecretCipher::generate(engine.encoder().clone()).expect("a secret key");
    let keys =
        cipher.evaluation_keys(engine.key_manifest(), |_, _| ControlFlow::Continue(())).expect("evaluation keys");
    let algebra = engine.algebra(keys, plan.program.slots as usize).expect("the matrices are encoded");
    let executor = Executor::new(algebra, &plan.program, plan.levels(), PLAINTEXT_BYTES).expect("the program fits");
    let server = Server::new(executor, plans.client.plan_hash);
    let client = plans.open_client(cipher).expect("a client");
    let mut recorder = Recorder { logits: Vec::new(), observer: () };
    (continued(&client, &server, prompt, 5, &mut recorder), recorder.logits)
}

#[test]
fn encrypted_text_is_the_reference_text() {
    let plans = plans(&compiled("optimum", INSECURE));
    let plan = &plans.server;
    let (prompt, expected) = references().remove(1);
    // The first token comes from the prefill, the other four from decode steps.
    let (found, encrypted) = encrypted(&plans, &prompt);
    assert_eq!(found, expected[..5]);

    // The noise model in the clear is on the safe side: as noisy as encryption, and by two bits and a half more at most.
    let exact = logits_of(&plans, Clear::new(plan.program.slots as usize, plan.levels()), ClearCipher, &prompt);
    let modelled =
        logits_of(&plans, noisy(plan, 7).expect("noise"), NoisyCipher(noisy(plan, 8).expect("noise")), &prompt);
    let noise = |logits: &[Vec<f64>]| {
        let errors = logits.iter().flatten().zip(exact.iter().flatten()).map(|(found, exact)| (found - exact).powi(2));
        (errors.sum::<f64>() / exact.iter().flatten().count() as f64).sqrt()
    };
    let (measured, predicted) = (noise(&encrypted), noise(&modelled));
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
    let (found, _) = encrypted(&plans, &prompt);
    assert_eq!(found, expected[..5]);
    // A prompt goes on behind the prefix.
    let client = plans.open_client(ClearCipher).expect("a client");
    let rest = prompt[prefix.len()..].to_vec();
    assert_eq!(client.prompt_tokens(&[], &Prompt::Tokens(rest)).expect("a prompt"), prompt);
}

/// The logits of five steps after a prompt.
fn logits_of<A, C>(plans: &Plans, algebra: A, cipher: C, prompt: &[u32]) -> Vec<Vec<f64>>
where
    A: Algebra,
    C: Cipher<Ciphertext = A::Ciphertext>,
{
    let plan = &plans.server;
    let executor = Executor::new(algebra, &plan.program, plan.levels(), PLAINTEXT_BYTES).expect("the program fits");
    let server = Server::new(executor, plans.client.plan_hash);
    let client = plans.open_client(cipher).expect("a client");
    let mut recorder = Recorder { logits: Vec::new(), observer: () };
    continued(&client, &server, prompt, 5, &mut recorder);
    recorder.logits
}

#[test]
fn equal_inputs_give_equal_plans() {
    let bytes = || compiled("genai_fp32", INSECURE).plan.to_bytes().expect("a valid plan");
    assert_eq!(bytes(), bytes());
}
