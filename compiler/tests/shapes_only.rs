//! Plans of the graph alone.

use std::path::{Path, PathBuf};

use cachemir_compiler::compile::{CompileOptions, compile};
use cachemir_ir::plan::Plan;
use cachemir_ir::table::{Contents, Table};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tinystories2l_bounded")
}

fn options() -> CompileOptions {
    CompileOptions {
        context: Some(64),
        parameters: "insecure-test".to_owned(),
        shapes_only: true,
        ..CompileOptions::default()
    }
}

/// The graph of an exporter that puts weights beside it, without them.
fn graph_alone() -> (tempfile::TempDir, PathBuf) {
    let target = tempfile::tempdir().unwrap();
    for file in ["onnx/genai_fp32/model.onnx", "config.json"] {
        let path = Path::new(file);
        std::fs::copy(folder().join(path), target.path().join(path.file_name().unwrap())).unwrap();
    }
    let model = target.path().join("model.onnx");
    (target, model)
}

#[test]
fn a_graph_without_its_weights_becomes_a_plan_without_weights() {
    let (_target, model) = graph_alone();
    assert_eq!(compile(&model, &CompileOptions { shapes_only: false, ..options() }).err().unwrap().code(), "C0102");
    let plan = compile(&model, &options()).unwrap().plan;
    let bytes = plan.to_bytes().unwrap();
    assert_eq!(Plan::from_bytes(&bytes).unwrap(), plan);
    assert!(!plan.has_weights() && plan.model.embedding.is_none() && plan.model.tokenizer.is_none());
    assert!(bytes.len() < 2_000_000, "{} bytes", bytes.len());
    assert!(plan.provenance.notes.iter().any(|note| note.contains("without weights")));
    assert_eq!(plan.program.layers(), 2);

    // The tables are those of the model, and entries as large as with weights of variance 1/width.
    let calibration = Some(folder().join("calibration.txt"));
    let whole = CompileOptions { calibration, shapes_only: false, ..options() };
    let whole = compile(folder().join("onnx/genai_fp32/model.onnx"), &whole).unwrap().plan;
    let shapes = |plan: &Plan| -> Vec<(String, Option<usize>)> {
        plan.program.tables.iter().map(|table| (table.name.clone(), table.entries())).collect()
    };
    let constants = |name: &str| name.starts_with("softmax");
    let named = |plan: &Plan| -> Vec<_> { shapes(plan).into_iter().filter(|(name, _)| !constants(name)).collect() };
    assert_eq!(named(&plan), named(&whole));
    let of = |plan: &Plan, name: &str| -> Table {
        plan.program.tables.iter().find(|table| table.name == name).unwrap().clone()
    };
    // √64 of the norm before it, over the root of 64 columns.
    let deviation = match of(&plan, "layers.1.self_attn.k_proj").contents {
        Contents::Unknown { deviation } => deviation,
        Contents::Stored(_) => panic!("it has weights"),
    };
    assert!((deviation - 1.0).abs() < 1e-12, "{deviation}");
    let values = of(&whole, "layers.1.self_attn.k_proj").load().unwrap();
    let found = (values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / values.len() as f64).sqrt();
    assert!(found / deviation > 0.1 && found / deviation < 10.0, "{found}");
}

#[test]
fn what_a_graph_holds_of_weights_does_not_matter() {
    let (_target, model) = graph_alone();
    let alone = compile(&model, &options()).unwrap().plan;
    let beside = compile(folder().join("onnx/genai_fp32/model.onnx"), &options()).unwrap().plan;
    // Cosines and sines that are weights come from the configuration where there are none.
    assert!(beside.program.entries == alone.program.entries, "the programs differ");
    let optimum = compile(folder().join("onnx/optimum/model.onnx"), &options()).unwrap().plan;
    let calls = |plan: &Plan| plan.counts.clone();
    assert_eq!(calls(&optimum), calls(&alone), "exporters write the same model");
}

#[test]
fn text_needs_weights() {
    let calibration = Some(folder().join("calibration.txt"));
    let error = compile(folder().join("onnx/optimum/model.onnx"), &CompileOptions { calibration, ..options() });
    assert_eq!(error.err().unwrap().code(), "C0401");
}
