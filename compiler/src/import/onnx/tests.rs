//! What files may write in several ways comes out in one form; what cannot be understood is refused.

use proptest::prelude::*;
use prost::Message;

use super::proto::attribute_proto::AttributeType;
use super::proto::tensor_proto::DataLocation;
use super::proto::{FunctionProto, ModelProto, NodeProto, OperatorSetIdProto, SparseTensorProto, TensorProto};
use super::testing::{
    float, floats, graph, graph_attribute, int, ints, model, node, raw_tensor, read_bytes, read_model, reference,
    tensor, tensor_attribute, text, value,
};
use super::{OnnxGraph, proto};
use crate::Error;
use crate::import::dense::Dense;
use crate::import::specialise::{Sizes, Specialised, Value};

/// The value of a graph's first output, which must be constant.
fn output(graph: &OnnxGraph) -> Dense {
    let wanted = graph.outputs[0].1;
    let specialised =
        Specialised::new(graph, Sizes { past: 1, sequence: 1 }, None, Some(&[wanted])).expect("it specialises");
    specialised.resolve(wanted).expect("it is constant")
}

fn evaluated(nodes: Vec<NodeProto>, tensors: Vec<TensorProto>) -> Vec<f64> {
    output(&read_model(&model(nodes, tensors, &["y"])).expect("it is read")).to_f64()
}

fn message(model: &ModelProto) -> String {
    read_model(model).expect_err("it is refused").to_string()
}

/// Compares the committed types with those generated from the committed schema; `CACHEMIR_BLESS=1` rewrites them.
#[test]
fn types_are_those_of_the_schema() {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let descriptors = protox::compile(["onnx-ml.proto"], [here.join("onnx-schema")]).expect("the schema is valid");
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = prost_build::Config::new();
    config.bytes([".onnx.TensorProto.raw_data"]).disable_comments(["."]).out_dir(folder.path());
    config.compile_fds(descriptors).expect("types are generated");
    let generated = std::fs::read_to_string(folder.path().join("onnx.rs")).expect("they are there");
    let committed = here.join("src/import/onnx/proto.rs");
    if std::env::var_os("CACHEMIR_BLESS").is_some() {
        std::fs::write(&committed, &generated).expect("it is writable");
    }
    assert_eq!(std::fs::read_to_string(committed).expect("they are there"), generated);
}

#[test]
fn nodes_may_stand_in_any_order() {
    let nodes =
        || vec![node("Add", &["b", "two"], &["y"]), node("Mul", &["a", "two"], &["b"]), node("Neg", &["two"], &["a"])];
    assert_eq!(evaluated(nodes(), vec![tensor("two", &[], &[2.0])]), [-2.0]);
    let mut cyclic = nodes();
    cyclic[2] = node("Neg", &["b"], &["a"]);
    let error = read_model(&model(cyclic, vec![tensor("two", &[], &[2.0])], &["y"])).expect_err("a cycle");
    // The sum behind the cycle is not on it.
    assert!(matches!(&error, Error::BadNode { node, .. } if node == "n_a" || node == "n_b"), "{error}");
    let twice = vec![node("Neg", &["two"], &["y"]), node("Abs", &["two"], &["y"])];
    assert!(message(&model(twice, vec![tensor("two", &[], &[2.0])], &["y"])).contains("already"));
}

#[test]
fn constants_have_many_forms() {
    let constant = |attribute| evaluated(vec![node("Constant", &[], &["y"]).with(attribute)], Vec::new());
    assert_eq!(constant(float("value_float", 1.5)), [1.5]);
    assert_eq!(constant(floats("value_floats", &[1.5, 2.5])), [1.5, 2.5]);
    assert_eq!(constant(int("value_int", -3)), [-3.0]);
    assert_eq!(constant(ints("value_ints", &[4, 5])), [4.0, 5.0]);
    assert_eq!(constant(tensor_attribute("value", tensor("", &[2], &[6.0, 7.0]))), [6.0, 7.0]);
    let positions = raw_tensor("", 7, &[2, 2], [0_i64, 1, 1, 2].iter().flat_map(|i| i.to_le_bytes()).collect());
    let sparse =
        SparseTensorProto { values: Some(tensor("", &[2], &[8.0, 9.0])), indices: Some(positions), dims: vec![2, 3] };
    let attribute = proto::AttributeProto {
        sparse_tensor: Some(sparse),
        r#type: Some(AttributeType::SparseTensor.into()),
        ..int("sparse_value", 0)
    };
    assert_eq!(constant(attribute), [0.0, 8.0, 0.0, 0.0, 0.0, 9.0]);
    let words = vec![node("Constant", &[], &["y"]).with(text("value_string", "a"))];
    assert!(message(&model(words, Vec::new(), &["y"])).contains("value_string"));
    // Four-bit integers two to a byte, as raw bytes and as a typed field.
    let nibbles = raw_tensor("w", 22, &[3], vec![0xf1, 0x07]);
    let typed = TensorProto { raw_data: None, int32_data: vec![0xf1, 0x07], ..nibbles.clone() };
    for stored in [nibbles, typed] {
        let nodes = vec![node("Cast", &["w"], &["y"]).with(int("to", 1))];
        assert_eq!(evaluated(nodes, vec![stored]), [1.0, -1.0, 7.0]);
    }
}

fn function(name: &str, inputs: &[&str], outputs: &[&str], node: Vec<NodeProto>) -> FunctionProto {
    let texts = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    FunctionProto {
        name: Some(name.to_owned()),
        domain: Some("local".to_owned()),
        input: texts(inputs),
        output: texts(outputs),
        node,
        opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(21) }],
        ..FunctionProto::default()
    }
}

#[test]
fn functions_are_inlined() {
    // scaled(x) = factor·x + x, with the factor an attribute that has a default; twice(x) calls it two times.
    let scaled = FunctionProto {
        attribute_proto: vec![float("factor", 10.0)],
        ..function(
            "scaled",
            &["x"],
            &["y"],
            vec![
                // Behind its user, and with names that the graph around it has too.
                node("Add", &["product", "x"], &["y"]),
                node("Mul", &["x", "a"], &["product"]),
                node("Constant", &[], &["a"]).with(reference("value_float", AttributeType::Float, "factor")),
            ],
        )
    };
    let twice = function(
        "twice",
        &["x", "unused"],
        &["y", "x"],
        vec![
            node("local::scaled", &["x"], &["inner"]).with(reference("factor", AttributeType::Float, "by")),
            node("local::scaled", &["inner"], &["y"]),
        ],
    );
    let calls =
        vec![node("local::twice", &["a"], &["b", "same"]).with(float("by", 2.0)), node("Sub", &["b", "same"], &["y"])];
    let mut file = model(calls, vec![tensor("a", &[], &[3.0])], &["y"]);
    file.functions = vec![scaled.clone(), twice];
    let graph = read_model(&file).expect("it is read");
    assert_eq!(output(&graph).to_f64(), [3.0 * 3.0 * 11.0 - 3.0]);
    assert!(graph.nodes.iter().any(|node| node.name == "n_b/n_inner/n_product"), "nodes say where they are called");

    // Another overload is another function.
    let halved = FunctionProto {
        overload: Some("halved".to_owned()),
        ..function("scaled", &["x"], &["y"], vec![node("Neg", &["x"], &["y"])])
    };
    let call = NodeProto { overload: Some("halved".to_owned()), ..node("local::scaled", &["a"], &["y"]) };
    let mut file = model(vec![call], vec![tensor("a", &[], &[3.0])], &["y"]);
    file.functions = vec![scaled, halved];
    assert_eq!(output(&read_model(&file).expect("it is read")).to_f64(), [-3.0]);
}

#[test]
fn functions_that_grow_without_end_are_refused() {
    let mut file = model(vec![node("local::f", &["a"], &["y"])], vec![tensor("a", &[], &[3.0])], &["y"]);
    file.functions = vec![function("f", &["x"], &["y"], vec![node("local::f", &["x"], &["y"])])];
    assert!(message(&file).contains("calls itself"));
    // Each function calls the next one twenty times.
    let level = |depth: usize| {
        let next = format!("local::f{}", depth + 1);
        let calls = (0..20).map(|call| node(&next, &["x"], &[&format!("y{call}")])).collect();
        function(&format!("f{depth}"), &["x"], &["y0"], calls)
    };
    file = model(vec![node("local::f0", &["a"], &["y"])], vec![tensor("a", &[], &[3.0])], &["y"]);
    file.functions = (0..20).map(level).chain([function("f20", &["x"], &["y"], Vec::new())]).collect();
    assert!(message(&file).contains("too much memory"));
}

/// `If(condition) then one else other`, in which both read a value of the graph around.
fn choice(condition: &str) -> NodeProto {
    // The branch's own `b` is not the graph's.
    let then = graph(vec![node("Add", &["a", "b"], &["r"]), node("Neg", &["a"], &["b"])], Vec::new(), &["r"]);
    let other = graph(vec![node("Unknown", &["a"], &["r"])], vec![tensor("big", &[1], &[1.0])], &["r"]);
    node("If", &[condition], &["y"])
        .with(graph_attribute("then_branch", then))
        .with(graph_attribute("else_branch", other))
}

#[test]
fn constant_conditions_choose_a_branch() {
    let a = || tensor("a", &[], &[3.0]);
    let truth = |value: u8| raw_tensor("yes", 9, &[], vec![value]);
    assert_eq!(evaluated(vec![choice("yes")], vec![a(), truth(1)]), [0.0]);
    assert!(evaluated_ops(vec![choice("yes")], vec![a(), truth(0)]).contains(&"Unknown".to_owned()));
    // A condition that is computed, and one inside a branch.
    let computed = vec![node("Greater", &["a", "zero"], &["yes"]), choice("yes")];
    assert_eq!(evaluated(computed, vec![a(), tensor("zero", &[], &[0.0])]), [0.0]);
    let outer = node("If", &["yes"], &["y"])
        .with(graph_attribute("then_branch", graph(vec![choice("yes")], Vec::new(), &["y"])))
        .with(graph_attribute("else_branch", graph(Vec::new(), Vec::new(), &["a"])));
    assert_eq!(evaluated(vec![outer.clone()], vec![a(), truth(1)]), [0.0]);
    assert_eq!(evaluated(vec![outer], vec![a(), truth(0)]), [3.0]);
}

fn evaluated_ops(nodes: Vec<NodeProto>, tensors: Vec<TensorProto>) -> Vec<String> {
    let graph = read_model(&model(nodes, tensors, &["y"])).expect("it is read");
    graph.nodes.into_iter().map(|node| node.op_type).collect()
}

#[test]
fn merged_decoders_say_which_file_to_take() {
    let mut file = model(vec![choice("use_cache_branch")], vec![tensor("a", &[], &[3.0])], &["y"]);
    file.graph.as_mut().expect("a graph").input = vec![value("use_cache_branch", 9, &[1])];
    let text = message(&file);
    assert!(text.contains("merged") && text.contains("decoder_with_past_model.onnx"), "{text}");
}

#[test]
fn silu_has_one_form() {
    let ops = |node: NodeProto| evaluated_ops(vec![node], vec![tensor("x", &[], &[2.0])]);
    let quick = || node("com.microsoft::QuickGelu", &["x"], &["y"]);
    assert_eq!(ops(quick().with(float("alpha", 1.0))), ["Sigmoid", "Mul"]);
    assert_eq!(ops(node("Swish", &["x"], &["y"])), ["Sigmoid", "Mul"]);
    let written_out = |last: NodeProto, negated: NodeProto| {
        let nodes = vec![negated, node("Exp", &["minus"], &["power"]), node("Add", &["power", "one"], &["sum"]), last];
        let tensors = vec![tensor("x", &[], &[2.0]), tensor("one", &[], &[1.0]), tensor("less", &[], &[-1.0])];
        evaluated_ops(nodes, tensors)
    };
    let negated = || node("Neg", &["x"], &["minus"]);
    let times = |factor: &str| node("Mul", &[factor, "x"], &["minus"]);
    assert_eq!(written_out(node("Div", &["x", "sum"], &["y"]), negated()), ["Sigmoid", "Mul"]);
    assert_eq!(written_out(node("Div", &["one", "sum"], &["y"]), times("less")), ["Sigmoid"]);
    assert_eq!(written_out(node("Reciprocal", &["sum"], &["y"]), negated()), ["Sigmoid"]);
    assert!(!written_out(node("Reciprocal", &["sum"], &["y"]), times("x")).contains(&"Sigmoid".to_owned()));
    // Another slope is another function: the default one approximates a GELU.
    assert_eq!(ops(quick()), ["com.microsoft::QuickGelu"]);
    assert_eq!(ops(node("Swish", &["x"], &["y"]).with(float("alpha", 2.0))), ["Swish"]);
}

#[test]
fn attributes_that_nobody_understands_are_refused() {
    let with = |op_type: &str, attribute| {
        message(&model(vec![node(op_type, &["x"], &["y"]).with(attribute)], vec![tensor("x", &[1], &[2.0])], &["y"]))
    };
    assert!(with("Softmax", int("temperature", 2)).contains("`temperature`"));
    assert!(with("Softmax", float("axis", 0.0)).contains("`axis`"));
    assert!(with("ScatterND", text("reduction", "add")).contains("`reduction`"));
    assert!(with("com.microsoft::GroupQueryAttention", int("qk_output", 1)).contains("`qk_output`"));
    // Nothing depends on this node.
    let idle = node("Softmax", &["x"], &["z"]).with(int("temperature", 2));
    assert_eq!(evaluated(vec![node("Neg", &["x"], &["y"]), idle], vec![tensor("x", &[1], &[2.0])]), [-2.0]);
}

/// Dynamic quantisation of `x·W` as the file would compute it, and the plain product with the same weights.
#[test]
fn products_of_rounded_activations_become_plain() {
    let weight = raw_tensor("w", 3, &[2, 3], vec![1, 2, 3, 0xff, 0xfe, 0xfd]);
    let zero = raw_tensor("z", 3, &[3], vec![0, 1, 0]);
    let scale = tensor("s", &[3], &[0.5, 1.0, 2.0]);
    let expected = [0.5, 1.0, 6.0, -0.5, -3.0, -6.0];
    let forms = [
        vec![
            node("DynamicQuantizeLinear", &["x"], &["xq", "xs", "xz"]),
            node("MatMulInteger", &["xq", "w", "xz", "z"], &["p"]),
            node("Cast", &["p"], &["c"]).with(int("to", 1)),
            node("Mul", &["xs", "s"], &["both"]),
            node("Mul", &["c", "both"], &["y"]),
        ],
        vec![
            node("DynamicQuantizeLinear", &["x"], &["xq", "xs", "xz"]),
            node("com.microsoft::MatMulIntegerToFloat", &["xq", "w", "xs", "s", "xz", "z"], &["y"]),
        ],
        vec![node("com.microsoft::DynamicQuantizeMatMul", &["x", "w", "s", "z"], &["y"])],
    ];
    for nodes in forms {
        let mut file = model(nodes, vec![weight.clone(), zero.clone(), scale.clone()], &["y"]);
        file.graph.as_mut().expect("a graph").input = vec![value("x", 1, &[1, 2])];
        let graph = read_model(&file).expect("it is read");
        assert_eq!(
            graph.nodes.iter().map(|node| node.op_type.as_str()).collect::<Vec<_>>(),
            ["DequantizeLinear", "MatMul"]
        );
        assert!(graph.notes.iter().any(|note| note.contains("activations")));
        let dequantised = graph.nodes[1].input(1).expect("a weight");
        let specialised = Specialised::new(&graph, Sizes { past: 1, sequence: 1 }, None, Some(&[dequantised]));
        assert_eq!(
            specialised.and_then(|graph| graph.resolve(dequantised)).expect("it is constant").to_f64(),
            expected
        );
    }
    // An embedding of integers is dequantised ahead of the lookup.
    let nodes = vec![
        node("Gather", &["w", "ids"], &["g"]),
        node("DequantizeLinear", &["g", "one"], &["a"]),
        node("DequantizeLinear", &["g", "one"], &["b"]),
        node("Add", &["a", "b"], &["y"]),
    ];
    let mut file = model(nodes, vec![weight, tensor("one", &[], &[0.5])], &["y"]);
    file.graph.as_mut().expect("a graph").input = vec![value("ids", 7, &[1, 1])];
    let graph = read_model(&file).expect("it is read");
    assert_eq!(
        graph.nodes.iter().map(|node| node.op_type.as_str()).collect::<Vec<_>>(),
        ["DequantizeLinear", "Gather", "Identity", "Add"]
    );
}

#[test]
fn dequantisation_has_scales_for_tensors_axes_and_blocks() {
    let nibbles = || raw_tensor("w", 21, &[2, 4], vec![0x21, 0x43, 0x65, 0x87]);
    let run = |attributes: Vec<proto::AttributeProto>, scale: TensorProto, zero: TensorProto| {
        let mut node = node("DequantizeLinear", &["w", "s", "z"], &["y"]);
        node.attribute = attributes;
        evaluated(vec![node], vec![nibbles(), scale, zero])
    };
    let all = run(vec![], tensor("s", &[], &[2.0]), raw_tensor("z", 21, &[], vec![1]));
    assert_eq!(all, [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0]);
    let rows = run(vec![int("axis", 0)], tensor("s", &[2], &[1.0, 10.0]), raw_tensor("z", 21, &[2], vec![0x10]));
    assert_eq!(rows, [1.0, 2.0, 3.0, 4.0, 40.0, 50.0, 60.0, 70.0]);
    // Blocks of three columns, the last one shorter; half-precision scales.
    let half = |values: &[f32]| values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect();
    let scale = raw_tensor("s", 10, &[2, 2], half(&[1.0, 10.0, 100.0, 0.5]));
    let blocks = run(vec![int("axis", 1), int("block_size", 3)], scale, raw_tensor("z", 21, &[2, 2], vec![0x01, 0x02]));
    assert_eq!(blocks, [0.0, 1.0, 2.0, 40.0, 300.0, 400.0, 500.0, 4.0]);
    let blocks = run(
        vec![int("axis", 0), int("block_size", 2)],
        tensor("s", &[1, 4], &[1.0, 2.0, 3.0, 4.0]),
        raw_tensor("z", 21, &[1, 4], vec![0, 0]),
    );
    assert_eq!(blocks, [1.0, 4.0, 9.0, 16.0, 5.0, 12.0, 21.0, 32.0]);
}

/// Weights in shards, transposed, cut, split, cast and scaled are resolved at a size that is not folded.
#[test]
fn large_weights_are_computed_when_asked_for() {
    let (rows, columns) = (160_usize, 64_usize);
    let values: Vec<f32> = (0..rows * columns).map(|index| index as f32).collect();
    let (first, second) = values.split_at(70 * columns);
    let tensors = vec![
        tensor("first", &[70, columns as i64], first),
        tensor("second", &[90, columns as i64], second),
        tensor("two", &[], &[2.0]),
        raw_tensor("starts", 7, &[1], 1_i64.to_le_bytes().to_vec()),
        raw_tensor("ends", 7, &[1], i64::MAX.to_le_bytes().to_vec()),
    ];
    let nodes = vec![
        node("Concat", &["first", "second"], &["joined"]).with(int("axis", 0)),
        node("Transpose", &["joined"], &["turned"]).with(ints("perm", &[1, 0])),
        node("Cast", &["turned"], &["cast"]).with(int("to", 1)),
        node("Mul", &["two", "cast"], &["doubled"]),
        node("Slice", &["doubled", "starts", "ends", "starts"], &["cut"]),
        node("Split", &["cut"], &["y", "rest"]).with(int("axis", 0)),
    ];
    let graph = read_model(&model(nodes, tensors, &["y"])).expect("it is read");
    let wanted = graph.outputs[0].1;
    let specialised = Specialised::new(&graph, Sizes { past: 1, sequence: 1 }, None, None).expect("it specialises");
    let cut = graph.nodes.iter().find(|node| node.op_type == "Slice").and_then(|node| node.outputs[0]).expect("a cut");
    assert!(matches!(specialised.value(cut), Value::Parameter { shape, .. } if *shape == [columns, rows - 1]));
    let result = specialised.resolve(wanted).expect("it is computed");
    assert_eq!(result.shape, [columns / 2, rows - 1]);
    for (index, entry) in result.to_f64().into_iter().enumerate() {
        let (column, row) = (index / (rows - 1), index % (rows - 1) + 1);
        assert_eq!(entry, 2.0 * (row * columns + column) as f64);
    }
}

#[test]
fn external_data_is_as_long_as_its_shape() {
    let entry = |key: &str, value: &str| proto::StringStringEntryProto {
        key: Some(key.to_owned()),
        value: Some(value.to_owned()),
    };
    let stored = |location: &str, length: &str| TensorProto {
        raw_data: None,
        data_location: Some(DataLocation::External.into()),
        external_data: vec![entry("location", location), entry("length", length)],
        ..tensor("w", &[2], &[])
    };
    let folder = tempfile::tempdir().expect("a folder");
    let run = |tensor: TensorProto| {
        let file = folder.path().join("m.onnx");
        let bytes = model(vec![node("Neg", &["w"], &["y"])], vec![tensor], &["y"]).encode_to_vec();
        std::fs::write(&file, bytes).expect("it is writable");
        let graph = super::read(&file, 64)?;
        graph.initializers.values().next().expect("a tensor").decode()
    };
    std::fs::write(folder.path().join("d"), [0_u8; 100]).expect("it is writable");
    assert_eq!(run(stored("d", "8")).expect("two values").len(), 2);
    assert!(run(stored("d", "9000000000000")).is_err());
    assert!(run(stored("../d", "8")).is_err_and(|error| error.to_string().contains("outside")));
}

/// A graph with every kind of message that the reader looks into.
fn seed() -> Vec<u8> {
    let a = tensor("a", &[2], &[3.0, 4.0]);
    let nodes = vec![
        node("Constant", &[], &["yes"]).with(tensor_attribute("value", raw_tensor("", 9, &[], vec![1]))),
        node("Transpose", &["a"], &["b"]).with(ints("perm", &[0])),
        choice("yes"),
        node("local::f", &["y", "b"], &["z"]).with(float("by", 2.0)),
        node("com.microsoft::QuickGelu", &["z"], &["out"]).with(float("alpha", 1.0)),
    ];
    let mut file = model(nodes, vec![a, raw_tensor("w", 3, &[1], vec![1])], &["out", "w"]);
    file.graph.as_mut().expect("a graph").input = vec![value("x", 1, &[1, -1])];
    let body = vec![node("Mul", &["u", "v"], &["r"])];
    file.functions = vec![function("f", &["u", "v"], &["r"], body)];
    file.encode_to_vec()
}

/// Cases of a property: many more with `CACHEMIR_FUZZ_CASES`.
fn cases(usual: u32) -> u32 {
    std::env::var("CACHEMIR_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(usual)
}

/// Reads bytes and, if they are a graph, specialises it: either may fail, nothing may panic.
fn survives(bytes: &[u8]) {
    if let Ok(graph) = read_bytes(bytes)
        && let Ok(specialised) = Specialised::new(&graph, Sizes { past: 1, sequence: 1 }, None, None)
    {
        for (_, output) in &graph.outputs {
            let _ = specialised.resolve(*output);
        }
    }
}

/// A change of some bytes: one replaced, a piece cut out, repeated or put elsewhere.
#[derive(Clone, Debug)]
enum Change {
    Replace(prop::sample::Index, u8),
    Remove(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize, usize),
    Insert(prop::sample::Index, Vec<u8>),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Replace(at, byte)),
        1 => (any::<prop::sample::Index>(), 1_usize..20).prop_map(|(at, length)| Change::Remove(at, length)),
        1 => (any::<prop::sample::Index>(), 1_usize..20, 1_usize..50).prop_map(|(at, length, times)| Change::Repeat(at, length, times)),
        1 => (any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 1..20)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: Change) {
    if bytes.is_empty() {
        return;
    }
    match change {
        Change::Replace(at, byte) => {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        Change::Remove(at, length) => {
            let at = at.index(bytes.len());
            bytes.drain(at..(at + length).min(bytes.len()));
        }
        Change::Repeat(at, length, times) => {
            let at = at.index(bytes.len());
            let piece = bytes[at..(at + length).min(bytes.len())].repeat(times);
            bytes.splice(at..at, piece);
        }
        Change::Insert(at, piece) => {
            let at = at.index(bytes.len());
            bytes.splice(at..at, piece);
        }
    }
}

/// One node of any operation and attributes on small constants of any shape.
fn any_node() -> impl Strategy<Value = ModelProto> {
    const OPS: [&str; 40] = [
        "Add",
        "Div",
        "Mod",
        "Pow",
        "Max",
        "Where",
        "MatMul",
        "Range",
        "CumSum",
        "ReduceSum",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Transpose",
        "Expand",
        "Slice",
        "Split",
        "Concat",
        "Gather",
        "GatherND",
        "ScatterND",
        "ConstantOfShape",
        "Trilu",
        "Tile",
        "Shape",
        "Size",
        "Cast",
        "DequantizeLinear",
        "Neg",
        "Not",
        "Equal",
        "And",
        "If",
        "Softmax",
        "Sigmoid",
        "Identity",
        "Dropout",
        "com.microsoft::QuickGelu",
        "com.microsoft::DynamicQuantizeMatMul",
    ];
    const NAMES: [&str; 12] = [
        "axis",
        "axes",
        "perm",
        "to",
        "keepdims",
        "starts",
        "ends",
        "upper",
        "split",
        "block_size",
        "allowzero",
        "exclusive",
    ];
    let number = || prop_oneof![-3_i64..5, Just(i64::MAX), Just(i64::MIN), Just(1 << 40)];
    let stored = (0_usize..4, prop::collection::vec(0_i64..4, 0..4), prop::collection::vec(number(), 64));
    let attribute = (0..NAMES.len(), prop::collection::vec(number(), 0..4), any::<bool>());
    (0..OPS.len(), prop::collection::vec(stored, 0..5), prop::collection::vec(attribute, 0..3), 1_usize..3).prop_map(
        |(op, tensors, attributes, outputs)| {
            let names: Vec<String> = (0..tensors.len()).map(|index| format!("x{index}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let mut node = node(OPS[op], &names, &["y", "z"][..outputs]);
            for (name, values, single) in attributes {
                let one = values.first().copied().unwrap_or(0);
                node = node.with(if single { int(NAMES[name], one) } else { ints(NAMES[name], &values) });
            }
            let tensors = tensors.into_iter().zip(&names).map(|((kind, shape, values), name)| {
                let count = shape.iter().product::<i64>() as usize;
                let values = values.into_iter().cycle().take(count);
                match kind {
                    0 => tensor(name, &shape, &values.map(|value| value as f32).collect::<Vec<_>>()),
                    1 => raw_tensor(name, 9, &shape, values.map(|value| u8::from(value > 0)).collect()),
                    2 => raw_tensor(name, 2, &shape, values.map(|value| value as u8).collect()),
                    _ => raw_tensor(name, 7, &shape, values.flat_map(i64::to_le_bytes).collect()),
                }
            });
            model(vec![node], tensors.collect(), &["y"])
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(2000)))]

    #[test]
    fn changed_graphs_never_panic(changes in prop::collection::vec(change(), 1..8)) {
        let mut bytes = seed();
        for change in changes {
            apply(&mut bytes, change);
        }
        survives(&bytes);
    }

    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        survives(&bytes);
    }

    #[test]
    fn any_node_never_panics(model in any_node()) {
        survives(&model.encode_to_vec());
    }
}

#[test]
fn the_seed_is_a_graph() {
    assert!(read_bytes(&seed()).is_ok_and(|graph| graph.nodes.iter().any(|node| node.op_type == "Sigmoid")));
}
