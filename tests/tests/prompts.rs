//! Prompts of all kinds on a plan in the clear: the right token, or a refusal, and never a wrong token in silence.
//!
//! `CACHEMIR_PROMPTS=2000` tries so many prompts instead of a few; `CACHEMIR_PROMPTS_MODEL=PATH` tries them on another model.

use std::path::{Path, PathBuf};

use cachemir_compiler::{Compilation, CompileOptions, compile};
use cachemir_ir::tensor::Interpreter;
use cachemir_runtime::{Error, Plans, Prompt, Session};
use cachemir_tests::SplitMix;

/// Tokens that are generated after each prompt.
const GENERATED: usize = 4;

/// Difference of the top two logits below which either token counts as right.
const TIE: f64 = 0.05;

fn compiled() -> Compilation {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tinystories2l_bounded/onnx/optimum/model.onnx");
    let path = std::env::var_os("CACHEMIR_PROMPTS_MODEL").map_or(shipped, PathBuf::from);
    compile(path, &CompileOptions::default()).unwrap_or_else(|error| panic!("{error}"))
}

/// Text of random words, letters and bytes, or a text cut anywhere.
fn text(random: &mut SplitMix, texts: &[String]) -> String {
    match random.below(3) {
        0 => {
            let bytes: Vec<u8> = (0..=random.below(24)).map(|_| random.below(256) as u8).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        }
        1 => (0..=random.below(12)).map(|_| char::from(33 + random.below(94) as u8)).collect(),
        _ => {
            let characters: Vec<char> = texts[random.below(texts.len())].chars().collect();
            let first = random.below(characters.len());
            characters[first..].iter().take(1 + random.below(80)).collect()
        }
    }
}

/// The most likely token, and its lead over the next.
fn top(logits: &[f64]) -> (u32, f64) {
    let (mut best, mut second) = ((0, f64::NEG_INFINITY), f64::NEG_INFINITY);
    for (token, &logit) in logits.iter().enumerate() {
        if logit > best.1 {
            (best, second) = ((token as u32, logit), best.1);
        } else {
            second = second.max(logit);
        }
    }
    (best.0, best.1 - second)
}

#[test]
fn no_prompt_gives_a_wrong_token_in_silence() {
    let prompts = std::env::var("CACHEMIR_PROMPTS").map_or(40, |count| count.parse().expect("a number of prompts"));
    let Compilation { tensor, plan, .. } = compiled();
    let plans = Plans::of(plan).expect("a valid plan");
    let mut session = Session::clear(&plans).expect("it runs");
    let texts =
        ["Once upon a time there was a little girl named Lily. She liked to play in the park with her dog, and \
                  one day she found a big red ball. \"Whose ball is this?\" she asked. The dog said nothing."
            .to_owned()];
    let mut random = SplitMix(1);
    let (mut right, mut refused, mut wrong) = (0, 0, Vec::new());
    for number in 0..prompts {
        let vocabulary = tensor.hyperparameters.vocabulary;
        let prompt = if number % 2 == 0 {
            Prompt::Tokens((0..=random.below(40)).map(|_| random.below(vocabulary) as u32).collect())
        } else {
            Prompt::Text(text(&mut random, &texts))
        };
        session.restart();
        let Ok(()) = session.prompt(prompt) else { continue };
        let mut exact = Interpreter::new(&tensor).expect("the model runs");
        let mut outcome = Ok(());
        for _ in 0..GENERATED {
            let got = match session.logits(&mut ()) {
                Ok(logits) => logits,
                Err(Error::OutOfRange { .. }) => {
                    outcome = Err(None);
                    break;
                }
                Err(error) => panic!("{error}"),
            };
            let tokens = session.conversation().tokens();
            let mut want = Vec::new();
            for &token in &tokens[exact.position()..] {
                want = exact.step(token).expect("a step");
            }
            let (token, lead) = top(&want);
            if top(&got).0 != token {
                if lead > TIE {
                    outcome =
                        Err(Some(format!("{tokens:?}: {} instead of {token}, which leads by {lead:.3}", top(&got).0)));
                }
                break;
            }
            session.prompt(Prompt::Tokens(vec![token])).expect("the context has room");
        }
        match outcome {
            Ok(()) => right += 1,
            Err(None) => refused += 1,
            Err(Some(what)) => wrong.push(what),
        }
    }
    eprintln!("{right} right, {refused} refused, {} wrong in silence", wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(right > refused, "{right} right, {refused} refused");
}
