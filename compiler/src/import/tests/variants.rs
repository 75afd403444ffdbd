//! Variants of the shipped model's graphs: what must give another function, exactly that one, and what must be refused,
//! by the words that name it.

use std::fs;

use cachemir_ir::tensor::{Interpreter, TensorModel, TensorOp, Weight, WeightId};
use prost::Message;

use super::{copy, imported};
use crate::Error;
use crate::import::onnx::proto::attribute_proto::AttributeType;
use crate::import::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use crate::import::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, type_proto,
};
use crate::import::{ImportOptions, ImportedModel, load};

/// A graph under change.
struct Graph(GraphProto);

impl Graph {
    /// A node without attributes, named as its output.
    fn node(op_type: &str, inputs: &[&str], output: &str) -> NodeProto {
        let (domain, op_type) = op_type.rsplit_once("::").unwrap_or(("", op_type));
        NodeProto {
            name: Some(format!("{output}_node")),
            op_type: Some(op_type.to_owned()),
            domain: Some(domain.to_owned()),
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: vec![output.to_owned()],
            ..NodeProto::default()
        }
    }

    fn ints(name: &str, values: &[i64]) -> AttributeProto {
        let r#type = Some(AttributeType::Ints.into());
        AttributeProto { name: Some(name.to_owned()), ints: values.to_vec(), r#type, ..AttributeProto::default() }
    }

    fn int(name: &str, value: i64) -> AttributeProto {
        let r#type = Some(AttributeType::Int.into());
        AttributeProto { name: Some(name.to_owned()), i: Some(value), r#type, ..AttributeProto::default() }
    }

    fn floats(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        let dims = shape.iter().map(|&extent| extent as i64).collect();
        let float_data = values.to_vec();
        let tensor =
            TensorProto { name: Some(name.to_owned()), data_type: Some(1), dims, float_data, ..TensorProto::default() };
        self.0.initializer.push(tensor);
    }

    fn integers(&mut self, name: &str, shape: &[usize], values: &[i64]) {
        let dims = shape.iter().map(|&extent| extent as i64).collect();
        let int64_data = values.to_vec();
        let tensor =
            TensorProto { name: Some(name.to_owned()), data_type: Some(7), dims, int64_data, ..TensorProto::default() };
        self.0.initializer.push(tensor);
    }

    /// Numbers of the nodes whose name ends so, or whose operation is so called.
    fn named(&self, what: &str) -> Vec<usize> {
        let nodes = self.0.node.iter().enumerate();
        nodes
            .filter(|(_, node)| node.name().ends_with(what) || node.op_type() == what)
            .map(|(index, _)| index)
            .collect()
    }

    /// Puts nodes behind the first output of each node so named: they are given their number, and the names of their
    /// input and output.
    fn after(&mut self, what: &str, mut make: impl FnMut(&mut Self, usize, &str, &str) -> Vec<NodeProto>) {
        let places = self.named(what);
        assert!(!places.is_empty(), "{what}");
        for (number, &place) in places.iter().enumerate().rev() {
            let output = self.0.node[place].output[0].clone();
            let bare = format!("{output}_bare");
            self.0.node[place].output[0].clone_from(&bare);
            for node in make(self, number, &bare, &output).into_iter().rev() {
                self.0.node.insert(place + 1, node);
            }
        }
    }

    /// Puts nodes ahead of the first input of each node so named.
    fn before(&mut self, what: &str, mut make: impl FnMut(&mut Self, &str, &str) -> Vec<NodeProto>) {
        let places = self.named(what);
        assert!(!places.is_empty(), "{what}");
        for &place in places.iter().rev() {
            let input = self.0.node[place].input[0].clone();
            let changed = format!("{input}_changed");
            self.0.node[place].input[0].clone_from(&changed);
            for node in make(self, &input, &changed).into_iter().rev() {
                self.0.node.insert(place, node);
            }
        }
    }

    fn input(&mut self, name: &str) -> &mut ValueInfoProto {
        self.0.input.iter_mut().find(|input| input.name() == name).expect("an input")
    }

    /// Sets an input's extent to a number, or exchanges two of its extents.
    fn fix(&mut self, name: &str, axis: usize, extent: i64) {
        extents(self.input(name))[axis].value = Some(dimension::Value::DimValue(extent));
    }

    fn exchange(&mut self, name: &str, a: usize, b: usize) {
        extents(self.input(name)).swap(a, b);
    }
}

/// The extents of an input.
fn extents(input: &mut ValueInfoProto) -> &mut Vec<Dimension> {
    match input.r#type.as_mut().and_then(|of| of.value.as_mut()) {
        Some(type_proto::Value::TensorType(tensor)) => &mut tensor.shape.get_or_insert_default().dim,
        _ => panic!("an input is a tensor"),
    }
}

/// Loads a route's model with a changed graph, for a context of so many tokens.
fn with_context(route: &str, context: usize, change: impl FnOnce(&mut Graph)) -> Result<ImportedModel, Error> {
    let (_target, path) = copy(route);
    let bytes = fs::read(&path).expect("it is there");
    let mut proto = ModelProto::decode(bytes.as_slice()).expect("it is a model");
    let mut graph = Graph(proto.graph.take().expect("a graph"));
    change(&mut graph);
    proto.graph = Some(graph.0);
    fs::write(&path, proto.encode_to_vec()).expect("it is writable");
    load(&path, &ImportOptions { context: Some(context), ..ImportOptions::default() })
}

fn changed(route: &str, change: impl FnOnce(&mut Graph)) -> TensorModel {
    with_context(route, 256, change).unwrap_or_else(|error| panic!("{route}: {error}")).model
}

/// Asserts that the changed graph is refused with all of the words.
fn refused(route: &str, words: &[&str], change: impl FnOnce(&mut Graph)) {
    let error = with_context(route, 256, change).expect_err("another function");
    let text = error.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{text} lacks one of {words:?}");
}

/// Logits after a few tokens.
fn logits(model: &TensorModel) -> Vec<f64> {
    let mut interpreter = Interpreter::new(model).expect("the model is valid");
    [0, 41, 300, 17, 7, 411].map(|token| interpreter.step(token).expect("a step")).concat()
}

fn assert_same(name: &str, got: &TensorModel, expected: &TensorModel) {
    let worst = logits(got).iter().zip(logits(expected)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-4, "{name}: logits differ by {worst}");
}

/// The shipped model with weights changed by their name.
fn expected(mut change: impl FnMut(&str) -> f32) -> TensorModel {
    let mut model = imported("optimum").model;
    for weight in &mut model.weights {
        let factor = change(&weight.name);
        let values = weight.values.iter().map(|value| value * factor).collect();
        *weight = Weight::new(weight.name.clone(), weight.shape.clone(), values);
    }
    model
}

const PROJECTIONS: [(&str, usize); 7] = [
    ("q_proj", 64),
    ("k_proj", 32),
    ("v_proj", 32),
    ("o_proj", 64),
    ("gate_proj", 172),
    ("up_proj", 172),
    ("down_proj", 64),
];

/// A bias that depends on layer, projection and output.
fn bias(layer: usize, projection: usize, width: usize) -> Vec<f32> {
    (0..width).map(|output| ((layer * 31 + projection * 7 + output) as f32).sin() * 0.4).collect()
}

/// The shipped model with a bias of every projection.
fn biased() -> TensorModel {
    let mut model = imported("optimum").model;
    let mut count = 0;
    for &op in &model.graph.body.ops.clone() {
        if let TensorOp::Linear { weight, .. } = model.graph.node(op).op {
            let (layer, projection) = (count / 7, count % 7);
            let width = PROJECTIONS[projection].1;
            model.weights.push(Weight::new(format!("bias{count}"), vec![width], bias(layer, projection, width)));
            let bias = Some(WeightId(model.weights.len() as u32 - 1));
            model.graph.nodes[op.index()].op = TensorOp::Linear { weight, bias };
            count += 1;
        }
    }
    model
}

/// Adds a bias behind the products so named, before or after the product in the sum.
fn add_bias(graph: &mut Graph, name: &str, values: impl Fn(usize) -> Vec<f32>, swapped: bool) {
    graph.after(&format!("{name}/MatMul"), |graph, layer, from, to| {
        let (constant, values) = (format!("{to}_bias"), values(layer));
        graph.floats(&constant, &[values.len()], &values);
        let inputs = if swapped { [constant.as_str(), from] } else { [from, constant.as_str()] };
        vec![Graph::node("Add", &inputs, to)]
    });
}

#[test]
fn biases_of_all_projections_are_added() {
    let expected = biased();
    for swapped in [false, true] {
        let model = changed("optimum", |graph| {
            for (projection, (name, width)) in PROJECTIONS.into_iter().enumerate() {
                add_bias(graph, name, |layer| bias(layer, projection, width), swapped);
            }
        });
        assert_same("written out", &model, &expected);
    }
    // One bias of the packed projections; that of the output projections inside the fused sums.
    let model = changed("genai_fp32", |graph| {
        add_bias(
            graph,
            "qkv_proj",
            |layer| [0, 1, 2].map(|part| bias(layer, part, PROJECTIONS[part].1)).concat(),
            false,
        );
        for (projection, (name, width)) in PROJECTIONS.into_iter().enumerate().skip(4).take(2) {
            add_bias(graph, name, |layer| bias(layer, projection, width), true);
        }
        for (number, place) in graph.named("SkipSimplifiedLayerNormalization").into_iter().enumerate() {
            let projection = if number % 2 == 0 { 3 } else { 6 };
            let name = format!("skip_bias{number}");
            graph.floats(&name, &[64], &bias(number / 2, projection, 64));
            graph.0.node[place].input.push(name);
        }
    });
    assert_same("packed", &model, &expected);
}

/// Multiplies what the nodes so named give.
fn multiply(graph: &mut Graph, name: &str, factor: f32) {
    graph.floats("factor", &[], &[factor]);
    graph.after(name, |_, _, from, to| vec![Graph::node("Mul", &[from, "factor"], to)]);
}

#[test]
fn constant_factors_are_folded() {
    // Queries and keys are told by their product.
    for (node, weight) in [
        ("q_proj/MatMul", "q_proj"),
        ("k_proj/MatMul", "q_proj"),
        ("v_proj/MatMul", "v_proj"),
        ("o_proj/MatMul", "o_proj"),
        ("gate_proj/MatMul", "gate_proj"),
        ("up_proj/MatMul", "up_proj"),
        ("down_proj/MatMul", "down_proj"),
        ("lm_head/MatMul", "lm_head"),
        ("embed_tokens/Gather", "embed_tokens"),
        ("layers.1/self_attn/q_proj/MatMul", "layers.1.self_attn.q_proj"),
        ("self_attn/MatMul_1", "v_proj"),
    ] {
        let model = changed("optimum", |graph| multiply(graph, node, 1.5));
        assert_same(node, &model, &expected(|name| if name.contains(weight) { 1.5 } else { 1.0 }));
    }
    let model = changed("genai_fp32", |graph| multiply(graph, "GroupQueryAttention", 1.5));
    assert_same("fused attention", &model, &expected(|name| if name.contains("v_proj") { 1.5 } else { 1.0 }));
    refused("optimum", &["scaled"], |graph| multiply(graph, "layers.0/Add", 1.5));
}

/// Sets an attribute of the fused attentions.
fn set_attention(graph: &mut Graph, name: &str, value: i64) {
    for place in graph.named("GroupQueryAttention") {
        let attribute = graph.0.node[place].attribute.iter_mut().find(|attribute| attribute.name() == name);
        attribute.expect("an attribute").i = Some(value);
    }
}

#[test]
fn windows_are_accepted_from_the_context_on() {
    for (window, context) in [(24, 25), (255, 256)] {
        let error = with_context("genai_fp32", context, |graph| set_attention(graph, "local_window_size", window));
        let text = error.expect_err("a window").to_string();
        assert!(text.contains(&format!("sliding window of {window} tokens")), "{text}");
        assert!(text.contains(&format!("--context {window}")), "{text}");
        let set = |graph: &mut Graph| set_attention(graph, "local_window_size", window);
        assert!(with_context("genai_fp32", window as usize, set).is_ok());
    }
    // A cache that is cut to the last tokens.
    let cut = |graph: &mut Graph| {
        graph.integers("first", &[1], &[-30]);
        graph.integers("end", &[1], &[i64::MAX]);
        graph.integers("axis", &[1], &[2]);
        let reads_past = |node: &&NodeProto| {
            node.op_type() == "Concat" && node.input.iter().any(|input| input.starts_with("past_key_values"))
        };
        let appends: Vec<String> = graph.0.node.iter().filter(reads_past).map(|node| node.name().to_owned()).collect();
        assert_eq!(appends.len(), 4);
        for name in appends {
            graph.after(&name, |_, _, from, to| vec![Graph::node("Slice", &[from, "first", "end", "axis"], to)]);
        }
    };
    assert!(with_context("optimum", 30, cut).is_ok());
    refused("optimum", &["sliding window"], cut);
}

/// Nodes that compute the number of tokens that scores have, as a float, into `total`.
fn count(graph: &mut Graph, scores: &str, total: &str) -> Vec<NodeProto> {
    let [shape, last, number] = ["shape", "last", "number"].map(|part| format!("{total}_{part}"));
    graph.integers(&last, &[], &[-1]);
    let mut cast = Graph::node("Cast", &[&number], total);
    cast.attribute.push(Graph::int("to", 1));
    vec![Graph::node("Shape", &[scores], &shape), Graph::node("Gather", &[&shape, &last], &number), cast]
}

#[test]
fn what_depends_on_position_or_length_is_refused() {
    // Scores that grow from the 201st token on.
    refused("optimum", &["position", "Softmax"], |graph| {
        graph.floats("limit", &[], &[200.5]);
        graph.floats("one", &[], &[1.0]);
        graph.before("Softmax", |graph, from, to| {
            let [total, step, late, factor] = ["total", "step", "late", "factor"].map(|part| format!("{to}_{part}"));
            let mut nodes = count(graph, from, &total);
            nodes.push(Graph::node("Div", &[&total, "limit"], &step));
            nodes.push(Graph::node("Floor", &[&step], &late));
            nodes.push(Graph::node("Add", &[&late, "one"], &factor));
            let mut product = Graph::node("Mul", &[from, &factor], to);
            product.name = Some("Softmax_temperature".to_owned());
            nodes.push(product);
            nodes
        });
    });
    // A bias of scores by the number of tokens.
    refused("optimum", &["ALiBi"], |graph| {
        graph.before("Softmax", |graph, from, to| {
            let total = format!("{to}_total");
            let mut nodes = count(graph, from, &total);
            nodes.push(Graph::node("Add", &[from, &total], to));
            nodes
        });
    });
    // Angles by the number of tokens.
    refused("optimum", &["frequencies"], |graph| {
        graph.floats("longest", &[], &[100.0]);
        graph.before("Cos", |graph, from, to| {
            let [total, factor] = ["total", "factor"].map(|part| format!("{to}_{part}"));
            let mut nodes = count(graph, "attention_mask", &total);
            nodes.push(Graph::node("Max", &[&total, "longest"], &factor));
            nodes.push(Graph::node("Mul", &[from, &factor], to));
            nodes
        });
    });
}

#[test]
fn a_missing_causal_mask_is_refused() {
    refused("optimum", &["causal mask is missing"], |graph| {
        for place in graph.named("Softmax") {
            let masked = graph.0.node[place].input[0].clone();
            let sum = graph.0.node.iter_mut().find(|node| node.output[0] == masked).expect("a sum with the mask");
            assert_eq!(sum.op_type(), "Add");
            sum.op_type = Some("Identity".to_owned());
            sum.input.truncate(1);
        }
    });
}

#[test]
fn caches_may_have_tokens_first() {
    let model = changed("optimum", |graph| {
        for name in graph.0.input.iter().map(|input| input.name().to_owned()).collect::<Vec<_>>() {
            if !name.starts_with("past_key_values") {
                continue;
            }
            graph.exchange(&name, 1, 2);
            let turned = format!("{name}_turned");
            for node in &mut graph.0.node {
                node.input.iter_mut().filter(|input| **input == name).for_each(|input| input.clone_from(&turned));
            }
            let mut transpose = Graph::node("Transpose", &[&name], &turned);
            transpose.attribute.push(Graph::ints("perm", &[0, 2, 1, 3]));
            graph.0.node.insert(0, transpose);
        }
    });
    assert_same("tokens first", &model, &imported("optimum").model);
}

#[test]
fn the_rotary_embedding_may_stand_ahead_of_the_fused_attention() {
    let model = changed("genai_fp32", |graph| {
        let mut positions = graph.input("input_ids").clone();
        positions.name = Some("position_ids".to_owned());
        graph.0.input.push(positions);
        graph.integers("parts", &[3], &[64, 32, 32]);
        set_attention(graph, "do_rotary", 0);
        for place in graph.named("GroupQueryAttention").into_iter().rev() {
            let [packed, cosines, sines] = [0, 7, 8].map(|input| graph.0.node[place].input[input].clone());
            let [q, k, v, turned_q, turned_k] = ["q", "k", "v", "rq", "rk"].map(|part| format!("{packed}_{part}"));
            let mut split = Graph::node("Split", &[&packed, "parts"], &q);
            split.output.extend([k.clone(), v.clone()]);
            split.attribute.push(Graph::int("axis", -1));
            let rotary = |from: &str, to: &str| {
                Graph::node("com.microsoft::RotaryEmbedding", &[from, "position_ids", &cosines, &sines], to)
            };
            let attention = &mut graph.0.node[place];
            attention.input[..3].clone_from_slice(&[turned_q.clone(), turned_k.clone(), v]);
            attention.input.truncate(7);
            let nodes = [split, rotary(&q, &turned_q), rotary(&k, &turned_k)];
            nodes.into_iter().rev().for_each(|node| graph.0.node.insert(place, node));
        }
    });
    assert_same("outer rotary embedding", &model, &imported("optimum").model);
}

#[test]
fn features_of_other_architectures_are_named() {
    const NORM: &str = "SimplifiedLayerNormalization";
    let norm_after = |node: &'static str| {
        move |graph: &mut Graph| {
            let width = if node.starts_with('k') { 32 } else { 64 };
            graph.floats("gamma", &[width], &vec![1.5; width]);
            graph.after(node, |_, _, from, to| vec![Graph::node(NORM, &[from, "gamma"], to)]);
        }
    };
    refused("optimum", &["norm of queries or keys"], norm_after("q_proj/MatMul"));
    refused("optimum", &["norm of queries or keys"], norm_after("k_proj/MatMul"));
    refused("optimum", &["post-norm"], norm_after("o_proj/MatMul"));
    refused("optimum", &["post-norm"], norm_after("down_proj/MatMul"));
    refused("optimum", &["soft-capping"], |graph| {
        graph.floats("cap", &[], &[30.0]);
        graph.after("lm_head/MatMul", |_, _, from, to| {
            vec![
                Graph::node("Div", &[from, "cap"], "divided"),
                Graph::node("Tanh", &["divided"], "bounded"),
                Graph::node("Mul", &["bounded", "cap"], to),
            ]
        });
    });
    refused("optimum", &["LoRA"], |graph| {
        graph.floats("lora_a", &[64, 4], &[0.1; 256]);
        graph.floats("lora_b", &[4, 64], &[0.1; 256]);
        let inputs: Vec<String> =
            graph.named("q_proj/MatMul").iter().map(|&place| graph.0.node[place].input[0].clone()).collect();
        graph.after("q_proj/MatMul", |_, layer, from, to| {
            let [low, high] = ["low", "high"].map(|part| format!("{to}_{part}"));
            vec![
                Graph::node("MatMul", &[&inputs[layer], "lora_a"], &low),
                Graph::node("MatMul", &[&low, "lora_b"], &high),
                Graph::node("Add", &[from, &high], to),
            ]
        });
    });
    refused("optimum", &["learned positions"], |graph| {
        graph.floats("positions", &[64], &[0.1; 64]);
        graph.after("embed_tokens/Gather", |_, _, from, to| vec![Graph::node("Add", &[from, "positions"], to)]);
    });
    refused("optimum", &["NoPE"], |graph| {
        // The rotated queries of one layer become the unrotated ones.
        for place in graph.named("layers.1/self_attn/Add") {
            let cosine = graph.0.node[place].input[0].clone();
            let product = graph.0.node.iter().find(|node| node.output[0] == cosine).expect("a product");
            let queries = product.input[0].clone();
            graph.0.node[place] = Graph::node("Identity", &[&queries], &graph.0.node[place].output[0].clone());
        }
    });
    refused("optimum", &["ReLU"], |graph| {
        for place in graph.named("Sigmoid") {
            graph.0.node[place].op_type = Some("Relu".to_owned());
        }
    });
    refused("genai_fp32", &["interleaved"], |graph| set_attention(graph, "rotary_interleaved", 1));
}

#[test]
fn inputs_are_told_by_kind_rank_and_use() {
    refused("optimum", &["fixed length of 31 past tokens", "dynamic axes"], |graph| {
        graph.fix("past_key_values.0.key", 2, 31);
    });
    refused("optimum", &["fixed length of 4 new tokens"], |graph| graph.fix("input_ids", 1, 4));
    // One token at a time is what decoding asks for.
    let model = changed("genai_fp32", |graph| graph.fix("input_ids", 1, 1));
    assert_same("single steps", &model, &imported("optimum").model);
    // Only the last token's logits.
    let model = changed("optimum", |graph| {
        let mut kept = graph.input("input_ids").clone();
        kept.name = Some("num_logits_to_keep".to_owned());
        extents(&mut kept).clear();
        graph.0.input.push(kept);
        graph.integers("zero", &[1], &[0]);
        graph.integers("end", &[1], &[i64::MAX]);
        graph.integers("axis", &[1], &[1]);
        graph.before("lm_head/MatMul", |_, from, to| {
            vec![
                Graph::node("Neg", &["num_logits_to_keep"], "first_kept"),
                Graph::node("Unsqueeze", &["first_kept", "zero"], "start"),
                Graph::node("Slice", &[from, "start", "end", "axis"], to),
            ]
        });
    });
    assert_same("kept logits", &model, &imported("optimum").model);
    refused("optimum", &["`temperature`"], |graph| {
        let mut unknown = graph.input("input_ids").clone();
        unknown.name = Some("temperature".to_owned());
        extents(&mut unknown).clear();
        graph.0.input.push(unknown);
    });
    refused("optimum", &["merged decoder"], |graph| {
        let mut branch = graph.input("input_ids").clone();
        branch.name = Some("use_cache_branch".to_owned());
        graph.0.input.push(branch);
    });
}
