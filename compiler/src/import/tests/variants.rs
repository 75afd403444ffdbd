//! Variants of the shipped model's graphs: what must give another function, exactly that one, and what must be refused,
//! by the words that name it.

use cachemir_ir::tensor::{TensorModel, TensorOp, Weight, WeightId};

use super::graph::{Graph, assert_same, changed, expected, extents, refused, set_attention};
use super::imported;
use crate::import::onnx::testing::{int, node};

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
        graph.floats(&constant, &[values.len() as i64], &values);
        let inputs = if swapped { [constant.as_str(), from] } else { [from, constant.as_str()] };
        vec![node("Add", &inputs, &[to])]
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
    graph.after(name, |_, _, from, to| vec![node("Mul", &[from, "factor"], &[to])]);
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
            let mut split = node("Split", &[&packed, "parts"], &[&q]);
            split.output.extend([k.clone(), v.clone()]);
            split.attribute.push(int("axis", -1));
            let rotary = |from: &str, to: &str| {
                node("com.microsoft::RotaryEmbedding", &[from, "position_ids", &cosines, &sines], &[to])
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
    let norm_after = |place: &'static str| {
        move |graph: &mut Graph| {
            let width = if place.starts_with('k') { 32 } else { 64 };
            graph.floats("gamma", &[width as i64], &vec![1.5; width]);
            graph.after(place, |_, _, from, to| vec![node(NORM, &[from, "gamma"], &[to])]);
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
                node("Div", &[from, "cap"], &["divided"]),
                node("Tanh", &["divided"], &["bounded"]),
                node("Mul", &["bounded", "cap"], &[to]),
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
                node("MatMul", &[&inputs[layer], "lora_a"], &[&low]),
                node("MatMul", &[&low, "lora_b"], &[&high]),
                node("Add", &[from, &high], &[to]),
            ]
        });
    });
    refused("optimum", &["learned positions"], |graph| {
        graph.floats("positions", &[64], &[0.1; 64]);
        graph.after("embed_tokens/Gather", |_, _, from, to| vec![node("Add", &[from, "positions"], &[to])]);
    });
    refused("optimum", &["NoPE"], |graph| {
        // The rotated queries of one layer become the unrotated ones.
        for place in graph.named("layers.1/self_attn/Add") {
            let cosine = graph.0.node[place].input[0].clone();
            let product = graph.0.node.iter().find(|node| node.output[0] == cosine).expect("a product");
            let queries = product.input[0].clone();
            graph.0.node[place] = node("Identity", &[&queries], &[&graph.0.node[place].output[0].clone()]);
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
                node("Neg", &["num_logits_to_keep"], &["first_kept"]),
                node("Unsqueeze", &["first_kept", "zero"], &["start"]),
                node("Slice", &[from, "start", "end", "axis"], &[to]),
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
