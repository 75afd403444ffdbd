//! Imports the shipped model by all its routes, and damaged copies of it.

mod caches;
mod graph;
mod lengths;
mod variants;

use std::fs;
use std::path::{Path, PathBuf};

use cachemir_ir::tensor::{self, CacheKind, Interpreter, Range, TensorModel, TensorOp};
use proptest::prelude::*;
use prost::Message;

use super::onnx::proto::{ModelProto, NodeProto};
use super::{ImportOptions, ImportedModel, load};
use crate::Error;

const ROUTES: [&str; 3] = ["optimum", "genai_fp32", "dynamo_op18"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tinystories2l_bounded")
}

fn path(route: &str) -> PathBuf {
    folder().join("onnx").join(route).join("model.onnx")
}

fn imported(route: &str) -> ImportedModel {
    load(&path(route), &ImportOptions::default()).expect("the shipped model loads")
}

/// The arrays of an uncompressed npz file of single-precision floats: name, shape, values.
fn read_npz(path: &Path) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let bytes = fs::read(path).expect("the reference is there");
    let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]) as usize;
    let mut arrays = Vec::new();
    let mut at = 0;
    while bytes[at..].starts_with(b"PK\x03\x04") {
        assert_eq!(u16_at(at + 8), 0, "stored without compression");
        let (name_length, extra_length) = (u16_at(at + 26), u16_at(at + 28));
        let name = String::from_utf8_lossy(&bytes[at + 30..at + 30 + name_length]).into_owned();
        let array = at + 30 + name_length + extra_length;
        let header_length = u16_at(array + 8);
        let header = String::from_utf8_lossy(&bytes[array + 10..array + 10 + header_length]).into_owned();
        assert!(header.contains("'<f4'") && header.contains("'fortran_order': False"));
        let extents = header.split_once('(').and_then(|(_, rest)| rest.split_once(')')).expect("a shape").0;
        let shape: Vec<usize> = extents.split(',').filter_map(|extent| extent.trim().parse().ok()).collect();
        let data = array + 10 + header_length;
        let end = data + 4 * shape.iter().product::<usize>();
        let values = bytes[data..end].as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
        arrays.push((name.trim_end_matches(".npy").to_owned(), shape, values));
        at = end;
    }
    arrays
}

/// Prompt and greedy tokens of each reference text.
fn reference_tokens() -> Vec<(Vec<u32>, Vec<u32>)> {
    let text = fs::read(folder().join("reference.json")).expect("the reference is there");
    let json: serde_json::Value = serde_json::from_slice(&text).expect("the reference is JSON");
    let ids = |record: &serde_json::Value, key: &str| -> Vec<u32> {
        let list = record[key].as_array().expect("a list");
        list.iter().map(|id| id.as_u64().expect("a token") as u32).collect()
    };
    let records = json["records"].as_array().expect("records");
    records.iter().map(|record| (ids(record, "prompt_ids"), ids(record, "generated_ids"))).collect()
}

fn largest(logits: &[f64]) -> u32 {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).expect("logits") as u32
}

fn natural_log_softmax(logits: &[f64]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|x| (x - largest).exp()).sum();
    logits.iter().map(|x| x - largest - sum.ln()).collect()
}

/// The model without the names of the nodes that it came from.
fn without_origins(model: &TensorModel) -> TensorModel {
    let mut model = model.clone();
    model.graph.origins.clear();
    for node in &mut model.graph.nodes {
        node.origin = None;
    }
    model
}

#[test]
fn all_routes_give_the_same_model() {
    let first = imported(ROUTES[0]);
    let expected = without_origins(&first.model);
    assert_eq!((first.bos_token, first.eos_tokens.as_slice()), (Some(0), [1].as_slice()));
    let shape = &expected.hyperparameters;
    assert_eq!((shape.hidden, shape.layers, shape.heads, shape.kv_heads), (64, 2, 4, 2));
    assert_eq!((shape.head_dim, shape.mlp, shape.vocabulary, shape.context), (16, 172, 512, 256));
    assert_eq!((shape.attention_scale, shape.tied_head), (0.25, false));
    for route in &ROUTES[1..] {
        let other = imported(route);
        assert_eq!(other.tokenizer, first.tokenizer);
        let mut other = without_origins(&other.model);
        // Cosines are computed by the exporter in one route and by the importer in the others.
        let (ours, theirs) = (&expected.rope, &other.rope);
        let pairs = ours.cosines.iter().chain(&ours.sines).zip(theirs.cosines.iter().chain(&theirs.sines));
        assert_eq!(ours.cosines.len(), theirs.cosines.len());
        assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() <= 1e-6));
        other.rope.clone_from(&expected.rope);
        assert!(other == expected, "{route} differs");
        assert_eq!(other.content_hash(), expected.content_hash());
    }
}

#[test]
fn every_op_names_its_node() {
    for route in ROUTES {
        let model = imported(route).model;
        let graph = &model.graph;
        for node in &graph.nodes {
            let origin = &graph.origins[node.origin.expect("an origin").index()];
            assert!(!origin.node.is_empty() && !origin.op_type.is_empty());
        }
        let embedding = graph.body.ops[0];
        assert!(graph.origin_text(embedding).starts_with("Gather "), "{}", graph.origin_text(embedding));
    }
}

#[test]
fn reference_tokens_and_logits_by_every_route() {
    let arrays = read_npz(&folder().join("reference_logits.npz"));
    for route in ROUTES {
        let model = imported(route).model;
        let mut interpreter = Interpreter::new(&model).expect("the model is valid");
        for (number, (prompt, generated)) in reference_tokens().into_iter().enumerate() {
            let name = format!("logits_{number}");
            let (_, shape, reference) = arrays.iter().find(|(known, ..)| *known == name).expect("logits");
            interpreter.reset();
            let mut tokens = prompt.clone();
            for (position, reference) in reference.chunks_exact(shape[1]).enumerate() {
                let logits = interpreter.step(tokens[position]).expect("a step");
                let reference: Vec<f64> = reference.iter().map(|&x| f64::from(x)).collect();
                let worst = logits.iter().zip(&reference).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(worst < 1e-4, "{route}: logits differ by {worst} at {position}");
                let (p, q) = (natural_log_softmax(&reference), natural_log_softmax(&logits));
                let divergence: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
                assert!(divergence.abs() < 1e-6, "{route}: KL {divergence} at {position}");
                if position + 1 == tokens.len() {
                    tokens.push(largest(&logits));
                }
            }
            assert_eq!(tokens[prompt.len()..], generated, "{route}, prompt {number}");
        }
    }
}

#[test]
fn caches_and_residual_stream_match_the_reference() {
    let arrays = read_npz(&folder().join("reference_logits.npz"));
    let array = |name: &str| arrays.iter().find(|(known, ..)| known == name).expect("an array");
    let (prompt, generated) = reference_tokens().remove(0);
    let model = imported("optimum").model;
    let streams: Vec<_> = ["embedding", "layers.0.residual", "final_norm"]
        .iter()
        .map(|name| model.graph.values.iter().position(|value| value.name == *name).expect("a value"))
        .collect();
    let (_, shape, hidden) = array("hidden_0");
    let (steps, width) = (shape[1], shape[2]);
    let mut interpreter = Interpreter::new(&model).expect("the model is valid");
    for (position, &token) in prompt.iter().chain(&generated).take(steps).enumerate() {
        interpreter.step(token).expect("a step");
        for (layer, &value) in streams.iter().enumerate() {
            let ours = interpreter.value(cachemir_ir::graph::ValueId(value as u32));
            let theirs = &hidden[(layer * steps + position) * width..][..width];
            assert!(ours.iter().zip(theirs).all(|(a, &b)| (a - f64::from(b)).abs() < 1e-4));
        }
    }
    for layer in 0..2 {
        for (kind, prefix) in [(CacheKind::Key, "k"), (CacheKind::Value, "v")] {
            let (_, shape, theirs) = array(&format!("{prefix}_0_{layer}"));
            let [heads, tokens, dim] = shape[..] else { panic!("a cache has three axes") };
            let ours = interpreter.cache(layer, kind);
            assert_eq!(ours.len(), heads * tokens * dim);
            for (index, &theirs) in theirs.iter().enumerate() {
                let (head, token, entry) = (index / (tokens * dim), index / dim % tokens, index % dim);
                assert!((ours[(token * heads + head) * dim + entry] - f64::from(theirs)).abs() < 1e-4);
            }
        }
    }
}

#[test]
fn calibration_text_stays_in_the_measured_ranges() {
    let imported = imported("optimum");
    let tokenizer = imported.tokenizer.expect("a tokenizer");
    let tokenizer = cachemir_ir::tokenizer::Tokenizer::from_bytes(&tokenizer.bytes).expect("the tokenizer is valid");
    let text = fs::read_to_string(folder().join("calibration.txt")).expect("the text is there");
    let encode = |line: &str| tokenizer.encode(line, true).expect("the text encodes");
    let sequences: Vec<Vec<u32>> = text.lines().map(encode).collect();
    let slices: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    let graph = &imported.model.graph;
    // Bounds are those of ranges.json over more text, with some room.
    let (mut spreads, mut mean_squares, mut gates) = (Range::default(), Range::default(), Range::default());
    let mut tokens = 0;
    tensor::read(&imported.model, &[], &slices, |interpreter, _| {
        tokens += interpreter.places().len();
        for &op in &graph.body.ops {
            let Some(&operand) = graph.node(op).inputs.first() else { continue };
            match graph.node(op).op {
                TensorOp::Softmax => interpreter.rows(operand).for_each(|row| {
                    let mut range = Range::default();
                    for &x in row {
                        range.include(x);
                    }
                    spreads.include(range.max - range.min);
                }),
                TensorOp::RmsNorm { .. } => {
                    interpreter.fed(operand).iter().for_each(|x| mean_squares.include(tensor::mean_square(x)));
                }
                TensorOp::Silu => interpreter.fed(operand).iter().flatten().for_each(|&x| gates.include(x)),
                _ => {}
            }
        }
    })
    .expect("the tokens are known");
    assert_eq!(tokens, sequences.iter().map(Vec::len).sum::<usize>());
    assert!(spreads.min >= 0.0 && spreads.max > 5.0 && spreads.max < 17.0, "{spreads:?}");
    assert!(mean_squares.min > 0.1 && mean_squares.max < 3.5, "{mean_squares:?}");
    assert!(gates.min > -4.5 && gates.max < 4.0 && gates.max > gates.min, "{gates:?}");
}

#[test]
fn context_is_limited_by_the_model() {
    let options = |context| ImportOptions { context: Some(context), ..ImportOptions::default() };
    for route in ROUTES {
        let model = load(&path(route), &options(100)).expect("a shorter context").model;
        assert_eq!((model.hyperparameters.context, model.rope.positions()), (100, 100));
        let mut interpreter = Interpreter::new(&model).expect("the model is valid");
        for _ in 0..100 {
            interpreter.step(5).expect("a step");
        }
        assert!(interpreter.step(5).is_err() && interpreter.position() == 100);
        let error = load(&path(route), &options(257)).expect_err("a longer context");
        assert_eq!(error.code(), "C0401");
    }
}

/// A copy of a route's folder with the files that lie beside the model, to be damaged.
fn copy(route: &str) -> (tempfile::TempDir, PathBuf) {
    let target = tempfile::tempdir().expect("a folder");
    let source = folder().join("onnx").join(route);
    for file in ["model.onnx", "model.onnx.data"] {
        if source.join(file).exists() {
            fs::copy(source.join(file), target.path().join(file)).expect("a copy");
        }
    }
    for file in ["config.json", "tokenizer.json"] {
        fs::copy(folder().join(file), target.path().join(file)).expect("a copy");
    }
    let model = target.path().join("model.onnx");
    (target, model)
}

fn failure(model: &Path) -> Error {
    load(model, &ImportOptions::default()).expect_err("a damaged model is refused")
}

#[test]
fn damaged_and_incomplete_files_are_refused() {
    let (target, model) = copy("genai_fp32");
    assert!(load(&model, &ImportOptions::default()).is_ok());

    fs::remove_file(target.path().join("tokenizer.json")).expect("it is there");
    let untokenized = load(&model, &ImportOptions::default()).expect("prompts may be token ids");
    assert!(untokenized.tokenizer.is_none() && untokenized.notes.iter().any(|note| note.contains("--prompt-ids")));
    fs::remove_file(target.path().join("config.json")).expect("it is there");
    assert!(matches!(failure(&model), Error::MissingCompanion { file: "config.json", .. }));
    let options = ImportOptions {
        config: Some(folder().join("config.json")),
        tokenizer: Some(folder().join("tokenizer.json")),
        ..ImportOptions::default()
    };
    assert!(load(&model, &options).is_ok());
    let wrong = ImportOptions { tokenizer: Some(folder().join("config.json")), ..options.clone() };
    assert_eq!(load(&model, &wrong).expect_err("no tokenizer").code(), "C0302");
    let absent = ImportOptions { config: Some(folder().join("absent.json")), ..options.clone() };
    assert_eq!(load(&model, &absent).expect_err("no file").code(), "C0501");

    let data = target.path().join("model.onnx.data");
    let length = fs::metadata(&data).expect("it is there").len();
    fs::File::options().write(true).open(&data).and_then(|file| file.set_len(length - 1)).expect("it is writable");
    match load(&model, &options).expect_err("the data is cut short") {
        Error::BadTensor { tensor, message } => assert!(!tensor.is_empty() && message.contains("exceeds"), "{message}"),
        other => panic!("{other}"),
    }
    fs::remove_file(&data).expect("it is there");
    match load(&model, &options).expect_err("the data is gone") {
        Error::MissingExternalData { tensor, path } => {
            assert!(!tensor.is_empty());
            assert_eq!(path, data);
        }
        other => panic!("{other}"),
    }
    let shapes = load(&model, &ImportOptions { shapes_only: true, ..options }).expect("shapes are enough").model;
    assert_eq!(shapes.graph.nodes.len(), imported("genai_fp32").model.graph.nodes.len());
    assert!(!shapes.has_values() && Interpreter::new(&shapes).is_err());

    let bytes = fs::read(&model).expect("it is there");
    fs::write(&model, &bytes[..bytes.len() / 2]).expect("it is writable");
    assert_eq!(failure(&model).code(), "C0101");
    fs::write(&model, "# not a model").expect("it is writable");
    assert_eq!(failure(&model).code(), "C0101");
    assert_eq!(failure(&target.path().join("absent.onnx")).code(), "C0501");
}

/// The error for a model whose nodes were changed.
fn changed(route: &str, change: impl Fn(&mut NodeProto)) -> Error {
    let (_target, model) = copy(route);
    let bytes = fs::read(&model).expect("it is there");
    let mut proto = ModelProto::decode(bytes.as_slice()).expect("it is a model");
    proto.graph.as_mut().expect("a graph").node.iter_mut().for_each(change);
    fs::write(&model, proto.encode_to_vec()).expect("it is writable");
    failure(&model)
}

#[test]
fn other_decoders_are_refused_by_name() {
    // A GELU and a hyperbolic tangent: both are listed, the first one is named.
    let error = changed("optimum", |node| match node.op_type() {
        "Sigmoid" => node.op_type = Some("Gelu".to_owned()),
        "Neg" => node.op_type = Some("Tanh".to_owned()),
        _ => {}
    });
    match error {
        Error::UnsupportedOps { node, op_type, all, feature } => {
            assert_eq!((op_type.as_str(), all), ("Tanh", vec!["Gelu".to_owned(), "Tanh".to_owned()]));
            assert_eq!(feature, Some("a hyperbolic tangent, as in a GELU activation or in soft-capping"));
            assert!(node.contains("layers.0"), "{node}");
        }
        other => panic!("{other}"),
    }
    // Half of the features turned the wrong way.
    let error = changed("dynamo_op18", |node| {
        if node.op_type() == "Neg" {
            node.op_type = Some("Identity".to_owned());
        }
    });
    assert!(matches!(&error, Error::NotLlama { op_type, .. } if op_type == "Add"), "{error}");
    // A gate that is not multiplied by itself.
    let error = changed("optimum", |node| {
        if node.op_type() == "Sigmoid" {
            node.op_type = Some("Sqrt".to_owned());
        }
    });
    assert!(matches!(&error, Error::NotLlama { node, .. } if node.contains("layers.1/mlp")), "{error}");
    // A window over the last tokens only.
    let error = changed("genai_fp32", |node| {
        if let Some(window) = node.attribute.iter_mut().find(|attribute| attribute.name() == "local_window_size") {
            window.i = Some(4);
        }
    });
    assert!(matches!(&error, Error::NotLlama { op_type, .. } if op_type.ends_with("GroupQueryAttention")), "{error}");
}

#[test]
fn contradicting_configuration_is_refused() {
    let (target, model) = copy("optimum");
    let config = target.path().join("config.json");
    let text = fs::read_to_string(&config).expect("it is there");
    fs::write(&config, text.replace("\"intermediate_size\": 172", "\"intermediate_size\": 176"))
        .expect("it is writable");
    match failure(&model) {
        Error::BadCompanion { message, .. } => assert!(message.contains("176") && message.contains("172"), "{message}"),
        other => panic!("{other}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever happens to a few bytes of a model, loading it ends, with a model or an error.
    #[test]
    fn changed_bytes_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = fs::read(path("genai_fp32")).expect("it is there");
        for (index, byte) in changes {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        let (_target, model) = copy("genai_fp32");
        fs::write(&model, bytes).expect("it is writable");
        let _ = load(&model, &ImportOptions::default());
    }
}
