//! The prices that a compilation is given, from its placement to its summary.

use std::path::{Path, PathBuf};

use cachemir_compiler::compile::{Compilation, CompileOptions, compile};
use cachemir_compiler::summary;
use cachemir_ir::cost::{CostTable, linear_weights};
use cachemir_ir::operations::middle;
use cachemir_ir::parameters::Parameters;
use cachemir_ir::program::EntryPoint;

fn compiled(cost_table: Option<PathBuf>) -> Compilation {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tinystories2l_bounded/onnx/optimum/model.onnx");
    let options = CompileOptions {
        context: Some(64),
        parameters: "insecure-test".to_owned(),
        cost_table,
        shapes_only: true,
        ..CompileOptions::default()
    };
    compile(model, &options).unwrap_or_else(|error| panic!("{error}"))
}

fn bootstraps(compilation: &Compilation) -> u64 {
    compilation.plan.counts.iter().map(|counts| counts.operations.bootstraps).max().unwrap_or(0)
}

#[test]
fn the_table_that_is_given_places_predicts_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("table.json");
    let mut table = CostTable::built_in(&Parameters::insecure_test());
    table.bootstraps.iter_mut().for_each(|row| row.ns = 1.0);
    table.provenance = "bootstraps are nearly free".to_owned();
    let text = table.to_json();
    std::fs::write(&path, &text).unwrap();
    let table = CostTable::from_json(&text).unwrap();
    let (usual, free) = (compiled(None), compiled(Some(path)));
    assert!(bootstraps(&free) > bootstraps(&usual), "{} and {}", bootstraps(&free), bootstraps(&usual));

    let plan = &free.plan;
    assert_eq!((&plan.provenance.cost_table, &plan.provenance.options["cost_table"][..]), (&table.provenance, "file"));
    assert_eq!(usual.plan.provenance.options["cost_table"], "built-in");
    assert!(plan.provenance.predicted_ns_per_token < usual.plan.provenance.predicted_ns_per_token);
    // Everything that is predicted is so by this table.
    let at_middle = table.predict(&plan.program, EntryPoint::Decode, middle(plan.program.context).into());
    assert_eq!(plan.provenance.predicted_ns_per_token, at_middle);
    let predictions = table.predictions(&plan.program);
    for counts in &plan.counts {
        let (name, call) = (counts.call.kind.entry(), counts.call);
        let ns = predictions.call_ns(name, call.position.into(), call.tokens.into());
        assert_eq!(counts.predicted_ns, ns.round() as u64, "{call:?}");
    }
    assert_eq!(free.costs, table);
    assert_eq!(summary::json(plan)["compiler"]["cost_table"], table.provenance);
    assert!(summary::table::text(plan, 80).contains("times of operations: bootstraps are nearly free\n"));
}

#[test]
fn a_model_and_its_program_have_equally_many_weights_in_linear_maps() {
    let Compilation { tensor, plan, .. } = compiled(None);
    assert!(tensor.linear_weights() > 0);
    assert_eq!(linear_weights(&plan.program), tensor.linear_weights());
}
