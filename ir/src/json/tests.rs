//! Dumps are JSON, follow the schema, and have one op a line.

use serde_json::{Value, json};

use super::*;
use crate::graph::Region;
use crate::tensor::{CacheKind, Hyperparameters, RopeTable, TensorModel, TensorOp, TensorType, Weight, WeightId};
use crate::weights::Weights;

/// What the schema says against a document.
fn faults(document: &Value) -> Vec<String> {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    validator.iter_errors(document).map(|fault| format!("{}: {fault}", fault.instance_path())).collect()
}

fn check(text: &str, ops: usize) -> Value {
    let document: Value = serde_json::from_str(text).unwrap();
    assert_eq!(faults(&document), [""; 0], "{text}");
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    assert_eq!(schema["$id"], document["$schema"]);
    let is_op = |line: &&str| line.contains("\"kind\":") && line.contains("\"operands\":");
    assert_eq!(text.lines().filter(is_op).count(), ops);
    document
}

#[test]
fn slots_dumps_follow_the_schema() {
    let program = crate::text::tests::slots_example();
    let document = check(&dump_slots(&program), program.entries[0].graph.nodes.len());
    let ops = document["entries"][0]["ops"].as_array().unwrap();
    assert_eq!(ops[0]["origin"]["op_type"], "MatMul");
    assert_eq!((&ops[0]["layer"], &ops[4]["layer"]), (&Value::Null, &31.into()));
    // mask(s < 9, t0[s % 6]) * 0.30000000000000004
    let slot = json!({"variable": "slot"});
    let looked_up = json!({"table": 0, "index": {"operator": "remainder", "operands": [slot, 6]}});
    let masked = json!({"where": {"operator": "less", "operands": [slot, 9]}, "then": looked_up});
    let plain = json!({"operator": "multiply", "operands": [masked, 0.1 + 0.2]});
    assert_eq!(ops[3]["attributes"]["plain"], plain);
    let last = ops.last().unwrap();
    assert_eq!((&last["kind"], &last["depth"]), (&"state_read".into(), &2.into()));
}

#[test]
fn ckks_dumps_follow_the_schema() {
    let plan = crate::plan::tests::example();
    let costs = CostTable::built_in(&plan.parameters);
    let text = dump_ckks(&plan.program, &costs);
    let document = check(&text, plan.program.entries[0].graph.nodes.len());
    let ops = document["entries"][0]["ops"].as_array().unwrap();
    assert!(ops.iter().all(|op| op["cost_ns"].as_f64().unwrap() >= 0.0));
    assert_eq!((&ops[0]["level"], &ops[3]["kind"]), (&4.into(), &"bootstrap".into()));
    // Weights are named by their hashes only.
    assert_eq!(document["tables"][0]["blake3"].as_str().unwrap().len(), 64);
    assert!(!text.contains("1e-9"));
}

/// A model with every op of the tensor stage.
fn model() -> TensorModel {
    let weight = |name: &str, shape: &[usize]| {
        let values = (0..shape.iter().product()).map(|index: usize| index as f32 / 7.0).collect();
        Weight::new(name.to_owned(), shape.to_vec(), values)
    };
    let mut graph = Graph::<TensorOp, TensorType>::default();
    let token = graph.add_input("token", TensorType::Token);
    let vector = TensorType::Vector { width: 4 };
    let (first, second) = (WeightId(0), WeightId(1));
    let mut ops = Vec::new();
    let mut push = |graph: &mut Graph<_, _>, op: TensorOp, inputs: &[ValueId], ty: TensorType| {
        let (op, results) = graph.add_node(op, inputs.to_vec(), vec![ty], None, None);
        ops.push(op);
        results[0]
    };
    let x = push(&mut graph, TensorOp::Embedding { weight: first }, &[token], vector);
    let u = push(&mut graph, TensorOp::RmsNorm { weight: second, epsilon: 1e-5 }, &[x], vector);
    let v = push(&mut graph, TensorOp::Linear { weight: first, bias: Some(second) }, &[u], vector);
    let q = push(&mut graph, TensorOp::Rope { heads: 2 }, &[v], vector);
    let cache = TensorType::Cache { width: 4 };
    let keys = push(&mut graph, TensorOp::KvAppend { layer: 0, kind: CacheKind::Key }, &[q], cache);
    let values = push(&mut graph, TensorOp::KvAppend { layer: 0, kind: CacheKind::Value }, &[v], cache);
    let rows = TensorType::Rows { heads: 2 };
    let scores = TensorOp::Scores { heads: 2, kv_heads: 2, scale: 0.1 + 0.2 };
    let scores = push(&mut graph, scores, &[q, keys], rows);
    let weights = push(&mut graph, TensorOp::Softmax, &[scores], rows);
    let mixed = push(&mut graph, TensorOp::Mix { heads: 2, kv_heads: 2 }, &[weights, values], vector);
    let gate = push(&mut graph, TensorOp::Silu, &[mixed], vector);
    let product = push(&mut graph, TensorOp::Mul, &[gate, mixed], vector);
    let sum = push(&mut graph, TensorOp::Add, &[product, x], vector);
    let logits = push(&mut graph, TensorOp::LmHead { weight: first }, &[sum], vector);
    graph.body = Region { ops, yields: vec![logits] };
    TensorModel {
        hyperparameters: Hyperparameters {
            hidden: 4,
            layers: 1,
            heads: 2,
            kv_heads: 2,
            head_dim: 2,
            mlp: 4,
            vocabulary: 4,
            epsilon: 1e-5,
            attention_scale: 0.1 + 0.2,
            context: 2,
            tied_head: true,
        },
        rope: RopeTable { pairs: 1, cosines: vec![1.0, 0.5], sines: vec![0.0, 0.25] },
        weights: vec![weight("embed_tokens", &[4, 4]), weight("norm", &[4])],
        graph,
    }
}

#[test]
fn tensor_dumps_follow_the_schema_and_text_is_read_back() {
    let model = model();
    check(&dump_model(&model), model.graph.nodes.len());
    let text = crate::text::print_model(&model);
    let find = |hash: &[u8; 32]| {
        let weights =
            model.weights.iter().find(|weight| weight.hash == *hash).and_then(|weight| weight.weights.clone());
        let rope = [&model.rope.cosines, &model.rope.sines].into_iter().find(|values| hash_of(values) == *hash);
        weights.or_else(|| rope.cloned().map(Weights::from))
    };
    assert_eq!(crate::text::parse_model(&text, &find).unwrap(), model, "{text}");
}

#[test]
fn the_schema_refuses_what_is_no_dump() {
    let program = crate::text::tests::slots_example();
    let text = dump_slots(&program);
    for (from, to) in [
        ("\"rotate\"", "\"turn\""),
        ("\"depth\":0", "\"depth\":\"0\""),
        ("\"context_tokens\"", "\"tokens\""),
        ("\"operator\":\"less\"", "\"operator\":\"about\""),
        ("{\"variable\":\"slot\"}", "\"s\""),
    ] {
        let altered = text.replace(from, to);
        assert!(altered != text, "{from}");
        assert!(!faults(&serde_json::from_str(&altered).unwrap()).is_empty(), "{from}");
    }
}
