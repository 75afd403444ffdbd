//! Dumps are JSON, follow the schema, and have one op a line.

use serde_json::Value;

use super::*;
use crate::graph::Region;
use crate::tensor::{CacheKind, Hyperparameters, RopeTable, TensorModel, TensorOp, TensorType, Weight, WeightId};

fn broken(keyword: &str, rule: &Value, value: &Value) -> bool {
    match keyword {
        "const" => rule != value,
        "enum" => !rule.as_array().is_some_and(|known| known.contains(value)),
        _ => false,
    }
}

/// Checks the part of JSON schema that [`SCHEMA`] uses; any other keyword is an error of the schema.
fn conforms(root: &Value, schema: &Value, value: &Value, path: &str) -> Result<(), String> {
    for (keyword, rule) in schema.as_object().ok_or("a schema is an object")? {
        match keyword.as_str() {
            "$schema" | "$id" | "$defs" | "title" | "description" | "const" | "enum"
                if !broken(keyword, rule, value) => {}
            "$ref" => {
                let pointer = rule.as_str().and_then(|rule| rule.strip_prefix('#')).ok_or("a $ref is local")?;
                let target = root.pointer(pointer).ok_or_else(|| format!("{pointer} is nowhere"))?;
                conforms(root, target, value, path)?;
            }
            "oneOf" => {
                let options = rule.as_array().ok_or("oneOf is a list")?;
                let fits: Vec<_> = options.iter().map(|option| conforms(root, option, value, path)).collect();
                let count = fits.iter().filter(|fit| fit.is_ok()).count();
                if count != 1 {
                    return Err(format!("{path} fits {count} alternatives: {fits:?}"));
                }
            }
            "type" => {
                let names = rule.as_array().cloned().unwrap_or_else(|| vec![rule.clone()]);
                let is = |name: &Value| match name.as_str() {
                    Some("object") => value.is_object(),
                    Some("array") => value.is_array(),
                    Some("string") => value.is_string(),
                    Some("boolean") => value.is_boolean(),
                    Some("integer") => value.is_i64() || value.is_u64(),
                    Some("number") => value.is_number(),
                    Some("null") => value.is_null(),
                    _ => false,
                };
                if !names.iter().any(is) {
                    return Err(format!("{path} is no {rule}"));
                }
            }
            "const" | "enum" => return Err(format!("{path} is {value} and not {rule}")),
            "required" => {
                for name in rule.as_array().into_iter().flatten().filter_map(Value::as_str) {
                    if value.get(name).is_none() {
                        return Err(format!("{path}.{name} is missing"));
                    }
                }
            }
            "additionalProperties" => {
                for name in value.as_object().into_iter().flatten().map(|(name, _)| name) {
                    if schema["properties"].get(name).is_none() {
                        return Err(format!("{path}.{name} is unknown"));
                    }
                }
            }
            "properties" => {
                for (name, rule) in rule.as_object().ok_or("properties is an object")? {
                    if let Some(inner) = value.get(name) {
                        conforms(root, rule, inner, &format!("{path}.{name}"))?;
                    }
                }
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    conforms(root, rule, item, &format!("{path}[{index}]"))?;
                }
            }
            other => return Err(format!("the schema uses {other}")),
        }
    }
    Ok(())
}

fn check(text: &str, ops: usize) -> Value {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let document: Value = serde_json::from_str(text).unwrap();
    assert_eq!(conforms(&schema, &schema, &document, "$"), Ok(()), "{text}");
    assert_eq!(schema["$id"], document["$schema"]);
    assert_eq!(text.lines().filter(|line| line.contains("\"operands\":")).count(), ops);
    document
}

#[test]
fn slots_dumps_follow_the_schema() {
    let program = crate::text::tests::slots_example();
    let document = check(&dump_slots(&program), program.entries[0].graph.nodes.len());
    let ops = document["entries"][0]["ops"].as_array().unwrap();
    assert_eq!(ops[0]["origin"]["op_type"], "MatMul");
    assert_eq!(ops[3]["attributes"]["plain"], "mask(s < 9, t0[s % 6]) * 0.30000000000000004");
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
        let weights = model.weights.iter().map(|weight| &weight.values);
        weights.chain([&model.rope.cosines, &model.rope.sines]).find(|values| hash_of(values) == *hash).cloned()
    };
    assert_eq!(crate::text::parse_model(&text, &find).unwrap(), model, "{text}");
}

#[test]
fn the_check_itself_finds_faults() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let program = crate::text::tests::slots_example();
    let text = dump_slots(&program);
    for (from, to) in
        [("\"rotate\"", "\"turn\""), ("\"depth\":0", "\"depth\":\"0\""), ("\"context_tokens\"", "\"tokens\"")]
    {
        let document: Value = serde_json::from_str(&text.replace(from, to)).unwrap();
        assert!(conforms(&schema, &schema, &document, "$").is_err(), "{from}");
    }
}
