//! One layer of the shipped model by itself.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use cachemir_compiler::compile::{CompileOptions, compile};
use cachemir_ir::cost::CostTable;
use cachemir_ir::graph::ValueId;
use cachemir_ir::layer::Part;
use cachemir_ir::plan::Plan;
use cachemir_ir::program::{EntryPoint, pack};
use cachemir_runtime::Error;
use cachemir_runtime::client::{ClearCipher, Client, SecretCipher, Texts};
use cachemir_runtime::executor::{Clear, ClearCiphertext, Executor, Observer, Site, States};
use cachemir_runtime::layer::{Options, Workload};
use cachemir_runtime::setup::Engine;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tinystories2l_bounded")
}

fn plan(shapes_only: bool) -> Plan {
    let options = CompileOptions {
        calibration: (!shapes_only).then(|| folder().join("calibration.txt")),
        context: Some(64),
        parameters: "insecure-test".to_owned(),
        shapes_only,
        ..CompileOptions::default()
    };
    compile(folder().join("onnx/optimum/model.onnx"), &options).unwrap().plan
}

/// Everything that an execution gives, by value; the last of each.
struct Seen(Vec<Option<ClearCiphertext>>);

impl Observer<ClearCiphertext> for Seen {
    fn after(&mut self, site: Site<'_>, results: &[&ClearCiphertext]) -> Result<(), Error> {
        for (value, &result) in site.graph.node(site.op).results.iter().zip(results) {
            self.0[value.index()] = Some(result.clone());
        }
        Ok(())
    }
}

#[test]
fn a_layer_gives_what_it_gives_inside_the_program() {
    let plan = plan(false);
    let program = &plan.program;
    let tokens: Vec<u32> = (0..6).map(|index| 7 * index + 3).collect();
    let slots = program.slots as usize;
    let executor = Executor::new(Clear::new(slots, plan.levels()), program, plan.levels(), 0).unwrap();
    let graph = &program.entry(EntryPoint::Decode).unwrap().graph;
    let (mut states, mut seen) = (States::new(program), Seen(vec![None; graph.values.len()]));
    for (position, &token) in tokens.iter().enumerate() {
        let embedding = plan.model.embedding_of(token).unwrap().unwrap();
        let packed = pack(&program.inputs, &program.embedding, slots, &[embedding]).unwrap();
        let level = |value: &ValueId| graph.ty(*value).level;
        let inputs = packed.iter().zip(&graph.inputs).map(|(slots, value)| ClearCiphertext::fresh(slots, level(value)));
        executor.call(EntryPoint::Decode, position, 1, inputs.collect(), &mut states, &mut seen).unwrap();
    }
    for number in 0..program.layers() {
        let options = Options { layer: Some(number), position: Some(5), seed: 0 };
        let mut taken = 0;
        let mut progress = |done: usize| {
            taken = done;
            Ok(())
        };
        let workload = Workload::new(&plan, &options, &tokens, &mut progress).unwrap();
        assert_eq!(taken, 6);
        let layer = &workload.layer;
        assert!(layer.program.tables.len() < program.tables.len() && layer.states.len() == 2);
        let exact = workload.exact().unwrap();
        assert_eq!(exact.ranges.violations(), 0);
        assert_eq!(exact.outputs().len(), layer.outputs.len());
        for (output, value) in exact.outputs().iter().zip(&layer.outputs) {
            assert_eq!(Some(output), seen.0[value.index()].as_ref(), "{value} of layer {number}");
        }
    }
    let few = Workload::new(&plan, &Options::default(), &tokens, &mut |_| Ok(()));
    assert_eq!(few.unwrap_err().code(), "CMR-R010");
    for (layer, position) in [(Some(2), None), (None, Some(64))] {
        let options = Options { layer, position, seed: 0 };
        assert_eq!(Workload::new(&plan, &options, &tokens, &mut |_| Ok(())).unwrap_err().code(), "CMR-R012");
    }
}

#[test]
fn a_layer_of_random_weights_is_measured_and_precise() {
    let plan = plan(true);
    let workload = Workload::new(&plan, &Options::default(), &[], &mut |_| Ok(())).unwrap();
    assert_eq!((workload.number, workload.layers, workload.position), (1, 2, 63));
    assert!(workload.layer.program.has_weights() && workload.weight_bytes() > 0);
    // Whatever is random is within what the plan assumes, and the same for the same seed.
    let exact = workload.exact().unwrap();
    assert_eq!(exact.ranges.first(), None);
    let again = Workload::new(&plan, &Options::default(), &[], &mut |_| Ok(())).unwrap();
    assert_eq!(again.exact().unwrap().outputs(), exact.outputs());
    let other = Workload::new(&plan, &Options { seed: 1, ..Options::default() }, &[], &mut |_| Ok(())).unwrap();
    assert_ne!(other.exact().unwrap().outputs(), exact.outputs());

    let program = &workload.layer.program;
    let engine = Engine::with_keys(&plan.parameters, &workload.keys(), program.slots as usize, None).unwrap();
    let cipher = SecretCipher::generate(engine.encoder().clone()).unwrap();
    let keys = cipher.evaluation_keys(engine.key_manifest(), |_, _| ControlFlow::Continue(())).unwrap();
    let algebra = engine.algebra(keys, program.slots as usize).unwrap();
    let executor = Executor::new(algebra, program, plan.levels(), 0).unwrap();
    let costs = CostTable::built_in(&plan.parameters);
    let (interrupt, mut done_ns) = (AtomicBool::new(false), 0.0);
    let mut progress = |ns: f64| done_ns = ns;
    let measured = workload.measure(&executor, &cipher, &exact, &costs, &interrupt, &mut progress).unwrap();

    let (parts, total) = (measured.parts(), measured.total());
    for part in [
        Part::Norm,
        Part::QueryKeyValue,
        Part::Cache,
        Part::Scores,
        Part::Softmax,
        Part::Mix,
        Part::Output,
        Part::GateUp,
        Part::Gate,
        Part::Down,
        Part::Bootstrap,
    ] {
        let row = parts.get(&part).unwrap_or_else(|| panic!("{part} is missing"));
        assert!(row.seconds > 0.0 && row.count > 0, "{part}: {row:?}");
    }
    assert_eq!(total.count, exact.operations() as u64, "every op is in one part");
    assert!(measured.rows.contains_key(&(Part::Bootstrap, "bootstrap")));
    let both = 2.0 * total.predicted_seconds;
    assert!((done_ns / 1e9 - both).abs() < 1e-6 * both, "progress of the run that warms up, and of the measured one");
    let token = measured.extrapolated(&plan.program, workload.position, &costs);
    assert!(token.predicted_seconds > 1.5 * total.predicted_seconds);
    assert!(token.layers_seconds > 1.5 * total.seconds && token.rest_seconds > 0.0, "{token:?}");
    let precision = measured.outputs.unwrap();
    assert!(precision.bits_mean > 10.0 && precision.bits_min > 5.0, "{precision:?}");
    // A layer that is asked to stop does.
    interrupt.store(true, std::sync::atomic::Ordering::Relaxed);
    let stopped = workload.measure(&executor, &cipher, &exact, &costs, &interrupt, &mut |_| {});
    assert!(matches!(stopped, Err(Error::Interrupted)));
}

#[test]
fn a_plan_without_weights_takes_no_tokens() {
    let plan = plan(true);
    let hash = Plan::hash_of(&plan.to_bytes().unwrap()).unwrap();
    assert_eq!(Texts::new(&plan.client(hash)).err().unwrap().code(), "CMR-R006");
    assert_eq!(Client::new(&plan.client(hash), ClearCipher).err().unwrap().code(), "CMR-R006");
    let algebra = Clear::new(plan.program.slots as usize, plan.levels());
    assert_eq!(Executor::new(algebra, &plan.program, plan.levels(), 0).err().unwrap().code(), "CMR-R006");

    let target = tempfile::tempdir().unwrap();
    let (path, file) = (target.path().join("plan.bin"), target.path().join("text"));
    plan.write(&path).unwrap();
    std::fs::write(&file, "Once").unwrap();
    let (path, file) = (path.to_str().unwrap(), file.to_str().unwrap());
    let run = |arguments: &[&str]| Command::new(env!("CARGO_BIN_EXE_cachemir-run")).args(arguments).output().unwrap();
    for refused in [
        &[path, "--prompt-ids", "1"][..],
        &["eval", path, "--text", file],
        &["bench", "plan", path, "--backend", "clear"],
    ] {
        let output = run(refused);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && stderr.contains("CMR-R006"), "{stderr}");
    }
    let output = run(&["bench", "layer", path, "--position", "5", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&found["event"], &found["random_weights"]), (&"layer".into(), &true.into()));
    assert_eq!((&found["position"], &found["security_bits"]), (&5.into(), &serde_json::Value::Null));
    let seconds = |value: &serde_json::Value| value["seconds"].as_f64().unwrap();
    let sum = |values: &serde_json::Value| values.as_array().unwrap().iter().map(seconds).sum::<f64>();
    let total = seconds(&found);
    assert!(total > 0.0 && (sum(&found["parts"]) / total - 1.0).abs() < 1e-6, "{found}");
    let bootstraps = found["parts"].as_array().unwrap().iter().find(|part| part["part"] == "bootstrap").unwrap();
    assert!((sum(&bootstraps["ops"]) / seconds(bootstraps) - 1.0).abs() < 1e-6);
    assert!(seconds(&found["token"]) > 1.5 * total);
    let shown = run(&["bench", "layer", path, "--position", "5", "--layer", "0"]);
    let shown = String::from_utf8(shown.stderr).unwrap();
    assert!(shown.contains("bootstraps") && shown.contains("by extrapolation"), "{shown}");
    assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
}
