//! Graphs against onnxruntime: the file's own function, or a refusal, and never another function in silence.
//!
//! Each graph is a small random Llama decoder in random forms ([`cachemir_tests::llama`]) or the shipped model by one of its exporters, with
//! no, one or two changes ([`mutations`]). onnxruntime runs it without optimisations: all tokens of a context in one call,
//! one by one, and in pieces, where what it gives for caches is what it gets for them in the next call; a graph without
//! caches runs on several lengths. The importer either refuses it, or what it makes of it must have the same logits at every
//! position of every call, up to rounding. Graphs that onnxruntime rejects, cannot run in any of these ways or gives no numbers
//! for do not count, nor do those whose logits change visibly when stored numbers change in the last place.
//!
//! What is compared is the tensor stage, by its interpreter in double precision: the importer is where a file's meaning can
//! be lost, and the later stages are compared with this one elsewhere, exactly or on the plan (`prompts.rs`). Approximations
//! would only blur the comparison, and calibrating them takes a thousand times as long.
//!
//! onnxruntime takes part where the feature `onnxruntime` is on and `ORT_DYLIB_PATH` names its library:
//!
//! ```text
//! CACHEMIR_DIFFERENTIAL=1000 ORT_DYLIB_PATH=…/libonnxruntime.so \
//!     cargo test --release -p cachemir-tests --features onnxruntime --test differential -- --nocapture
//! ```
//!
//! `CACHEMIR_DIFFERENTIAL` is the number of graphs that count, `CACHEMIR_DIFFERENTIAL_SEED` the first one's seed, and each
//! next graph has the next seed: one that is wrong comes again alone by its seed, and is written into the folder for
//! temporary files of the build. Without onnxruntime all forms of one decoder must be one function, and no change may make
//! the importer panic.

mod mutations;
#[cfg(feature = "onnxruntime")]
mod oracle;

use std::path::Path;

use cachemir_compiler::Error;
use cachemir_compiler::import::{ImportOptions, load};
use cachemir_ir::graph::ValueId;
use cachemir_ir::tensor::{Interpreter, TensorModel};
use cachemir_tests::llama::{CONTEXT, Llama};
use cachemir_tests::onnx::proto::ModelProto;
use cachemir_tests::{SplitMix, onnx};
use prost::Message;

/// Imports a model; its file and the configuration beside it are gone afterwards.
fn import(model: &[u8]) -> Result<TensorModel, Error> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, model).expect("it is writable");
    let config = format!("{{\"max_position_embeddings\": {CONTEXT}}}");
    std::fs::write(folder.path().join("config.json"), config).expect("it is writable");
    load(&path, &ImportOptions::default()).map(|imported| imported.model)
}

/// Values beyond which no plan is made: calibration measures them, and no polynomial is precise on such a range.
const TOO_LARGE: f64 = 1e8;

/// The logits after each token; `None` where a value on the way is too large.
fn logits(model: &TensorModel, tokens: &[u32]) -> Option<Vec<Vec<f64>>> {
    let mut interpreter = Interpreter::new(model).expect("the model is valid");
    let values = (0..model.graph.values.len() as u32).map(ValueId);
    let step = |&token: &u32| {
        let logits = interpreter.step(token).expect("a step");
        let small = |value: &f64| value.abs() < TOO_LARGE;
        values.clone().all(|value| interpreter.value(value).iter().all(small)).then_some(logits)
    };
    tokens.iter().map(step).collect()
}

fn tokens(vocabulary: usize, random: &mut SplitMix) -> Vec<u32> {
    (0..CONTEXT).map(|_| random.below(vocabulary) as u32).collect()
}

/// The shipped model by each exporter.
fn shipped() -> [ModelProto; 3] {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tinystories2l_bounded/onnx");
    ["optimum", "genai_fp32", "dynamo_op18"].map(|route| {
        let mut model = onnx::read(&folder.join(route).join("model.onnx"), 16);
        mutations::lift_constants(model.graph.as_mut().expect("a graph"));
        model
    })
}

/// A graph to be tried.
struct Subject {
    model: Vec<u8>,
    /// What both sides are given.
    #[cfg_attr(not(feature = "onnxruntime"), expect(dead_code))]
    tokens: Vec<u32>,
    /// What it is, and what was changed.
    described: Vec<String>,
    /// Whether anything was changed.
    changed: bool,
}

/// The graph of a seed.
fn subject(seed: u64, shipped: &[ModelProto; 3]) -> Subject {
    let mut random = SplitMix(seed);
    let (mut model, vocabulary, described) = if random.chance(1, 4) {
        let number = random.below(shipped.len());
        (shipped[number].clone(), 512, format!("the shipped model, exporter {number}"))
    } else {
        let llama = Llama::new(&mut random);
        let cached = random.chance(3, 4);
        let with = if cached { "with caches" } else { "without caches" };
        (llama.written(cached, &mut random), llama.vocabulary, format!("{}, {with}", llama.describe()))
    };
    let mut described = vec![described];
    let graph = model.graph.as_mut().expect("a graph");
    for _ in 0..*random.pick(&[0, 1, 1, 1, 1, 1, 1, 1, 2, 2]) {
        described.push(mutations::mutate(graph, &mut random));
    }
    let tokens = tokens(vocabulary, &mut random);
    Subject { model: model.encode_to_vec(), tokens, changed: described.len() > 1, described }
}

#[test]
fn forms_of_one_decoder_are_one_function() {
    for seed in 0..30 {
        let mut random = SplitMix(seed);
        let llama = Llama::new(&mut random);
        let tokens = tokens(llama.vocabulary, &mut random);
        let mut forms = (0..4).map(|form| {
            let model = import(&llama.written(form != 3, &mut random).encode_to_vec());
            let model = model.unwrap_or_else(|error| panic!("seed {seed}, {}: {error}", llama.describe()));
            logits(&model, &tokens).expect("values of a few units")
        });
        let first = forms.next().expect("four forms");
        for (form, other) in forms.enumerate() {
            let pairs = first.iter().flatten().zip(other.iter().flatten());
            let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-4, "seed {seed}, form {}: {worst}", form + 1);
        }
    }
}

#[test]
fn changed_graphs_are_imported_or_refused() {
    let shipped = shipped();
    let (mut imported, mut refused) = (0, 0);
    for seed in 0..150 {
        let Subject { model, described, changed, .. } = subject(seed, &shipped);
        match import(&model) {
            Ok(_) => imported += 1,
            Err(error) => {
                assert!(changed, "seed {seed}: {}: {error}", described.join("; "));
                refused += 1;
            }
        }
    }
    assert!(imported > 15 && refused > 15, "{imported} imported, {refused} refused");
}

#[cfg(feature = "onnxruntime")]
mod against_onnxruntime {
    use super::*;
    use crate::oracle::{Call, Oracle};

    /// Most that a logit may differ by, relative to the largest: onnxruntime computes in single precision.
    const TOLERANCE: f64 = 2e-4;

    fn number(variable: &str) -> Option<u64> {
        std::env::var(variable)
            .ok()
            .map(|text| text.parse().unwrap_or_else(|error| panic!("{variable}={text}: {error}")))
    }

    /// Where the logits of the calls first differ from those after each token.
    fn difference(calls: &[Call], ours: &[Vec<f64>]) -> Option<String> {
        calls.iter().find_map(|Call { first, count, logits }| {
            let last = first + count;
            logits.iter().zip(last - logits.len()..last).find_map(|(row, position)| {
                let size = 1.0 + row.iter().fold(0.0, |most: f64, &logit| most.max(f64::from(logit).abs()));
                let ours = &ours[position];
                let differences = row.iter().zip(ours).map(|(&theirs, ours)| (f64::from(theirs) - ours).abs());
                let off = differences
                    .filter(|&difference| difference.is_nan() || difference > TOLERANCE * size)
                    .reduce(f64::max);
                (off.is_some() || row.len() != ours.len()).then(|| {
                    format!(
                        "position {position} of a call of {count} tokens from {first} on: {} logits of up to {size:.3} \
                         differ by {:.5} from {} others",
                        row.len(),
                        off.unwrap_or(0.0),
                        ours.len()
                    )
                })
            })
        })
    }

    /// Whether onnxruntime gives nearly the same logits for nearly the same numbers.
    fn is_stable(model: &[u8], seed: u64, tokens: &[u32], calls: &[Call]) -> bool {
        let mut random = SplitMix(seed);
        let mut model = ModelProto::decode(model).expect("it was encoded");
        mutations::perturb(model.graph.as_mut().expect("a graph"), &mut SplitMix(seed));
        let moved = Oracle::new(&model.encode_to_vec()).and_then(|mut oracle| oracle.run(tokens, &mut random));
        moved.is_ok_and(|moved| {
            let pairs = calls.iter().zip(&moved).flat_map(|(a, b)| a.logits.iter().zip(&b.logits));
            moved.len() == calls.len()
                && pairs.into_iter().all(|(a, b)| {
                    let size = a.iter().fold(1.0, |most: f32, logit| most.max(logit.abs()));
                    a.iter().zip(b).all(|(a, b)| f64::from((a - b).abs()) <= TOLERANCE * f64::from(size))
                })
        })
    }

    #[test]
    fn no_graph_is_another_function_in_silence() {
        Oracle::start();
        let shipped = shipped();
        let graphs = number("CACHEMIR_DIFFERENTIAL").unwrap_or(100);
        let first = number("CACHEMIR_DIFFERENTIAL_SEED").unwrap_or(0);
        let (mut equal, mut refused, mut rejected, mut unstable, mut wrong) = (0, 0, 0, 0, Vec::new());
        for seed in first.. {
            if equal + refused + wrong.len() as u64 == graphs {
                break;
            }
            let Subject { model, tokens, described, changed } = subject(seed, &shipped);
            let described = described.join("; ");
            eprintln!("seed {seed}: {described}");
            let mut random = SplitMix(seed);
            let calls = match Oracle::new(&model).and_then(|mut oracle| oracle.run(&tokens, &mut random)) {
                Ok(calls) => calls,
                Err(error) => {
                    assert!(changed, "seed {seed}, which nothing was changed of, is rejected: {described}: {error}");
                    eprintln!("  rejected by onnxruntime: {}", error.lines().next().unwrap_or_default());
                    rejected += 1;
                    continue;
                }
            };
            let ours = match import(&model) {
                Err(error) => {
                    assert!(changed, "seed {seed}, which nothing was changed of, is refused: {described}: {error}");
                    eprintln!("  refused: {error}");
                    refused += 1;
                    continue;
                }
                Ok(model) => logits(&model, &tokens),
            };
            match ours.map(|ours| difference(&calls, &ours)) {
                None => {
                    eprintln!("  refused for its ranges");
                    refused += 1;
                }
                Some(None) => {
                    eprintln!("  equal");
                    equal += 1;
                }
                Some(Some(_)) if changed && !is_stable(&model, seed, &tokens, &calls) => {
                    eprintln!("  not stable in single precision");
                    unstable += 1;
                }
                Some(Some(what)) => {
                    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("wrong-{seed}.onnx"));
                    std::fs::write(&path, &model).expect("it is writable");
                    eprintln!("  WRONG: {what}");
                    wrong.push(format!("seed {seed} ({}): {described}: {what}", path.display()));
                }
            }
        }
        let found = wrong.len();
        eprintln!(
            "{equal} equal, {refused} refused, {found} wrong in silence; {rejected} rejected by onnxruntime, {unstable} \
             not stable"
        );
        assert!(wrong.is_empty(), "{} graphs are another function:\n{}", wrong.len(), wrong.join("\n"));
        assert!(10 * equal > graphs, "only {equal} of {graphs} graphs are imported");
    }
}
