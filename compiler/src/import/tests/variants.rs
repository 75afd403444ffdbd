//! Variants of the shipped model's graphs: what must give another function, exactly that one, and what must be refused,
//! by the words that name it.

use cachemir_ir::tensor::{TensorModel, TensorOp, Weight, WeightId};

use super::graph::{Graph, assert_same, changed, expected, extents, refused, set_attention};
use super::imported;
use crate::import::onnx::proto::{NodeProto, ValueInfoProto};
use crate::import::onnx::testing::{int, node, raw_tensor, value};

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
    // An input of no known role, for the logits to be divided by; and one that nothing reads.
    let unknown = |graph: &mut Graph, name: &str, data_type: i32, shape: &[i64], used: bool| {
        graph.0.input.push(value(name, data_type, shape));
        if used {
            graph.after("lm_head/MatMul", |_, _, from, to| {
                vec![node("Cast", &[name], &["divisor"]).with(int("to", 1)), node("Div", &[from, "divisor"], &[to])]
            });
        }
    };
    refused("optimum", &["`temperature`"], |graph| unknown(graph, "temperature", 7, &[], true));
    refused("optimum", &["merged decoder"], |graph| unknown(graph, "use_cache_branch", 9, &[1], true));
    let usual = imported("optimum").model;
    for (name, data_type, shape) in [
        ("temperature", 1, &[][..]),
        ("use_cache_branch", 9, &[1]),
        ("beam_idx", 6, &[-1]),
        ("token_type_ids", 7, &[-1, -1]),
        ("position_ids_of_images", 7, &[3, -1, -1]),
    ] {
        let model = changed("optimum", |graph| unknown(graph, name, data_type, shape, false));
        assert_same(name, &model, &usual);
    }
    // A cache that nothing reads is none of a decoder that has others.
    refused("optimum", &["5 inputs hold past"], |graph| {
        unknown(graph, "past_key_values.2.key", 1, &[-1, 2, -1, 16], false);
    });
}

/// Adds an output, ahead of all others, of the logits times −1.
fn add_output(graph: &mut Graph, name: &str) {
    graph.0.node.push(node("Neg", &["logits"], &[name]));
    let output = ValueInfoProto { name: Some(name.to_owned()), ..graph.0.output[0].clone() };
    graph.0.output.insert(0, output);
}

/// Gives the logits another name.
fn rename_logits(graph: &mut Graph, to: &str) {
    let values = graph.0.node.iter_mut().flat_map(|node| node.input.iter_mut().chain(&mut node.output));
    let outputs = graph.0.output.iter_mut().filter_map(|output| output.name.as_mut());
    for name in values.chain(outputs).filter(|name| *name == "logits") {
        to.clone_into(name);
    }
}

#[test]
fn logits_are_told_by_name() {
    let usual = imported("optimum").model;
    let exact = changed("optimum", |graph| add_output(graph, "aux_logits"));
    assert_same("beside others", &exact, &usual);
    for name in ["lm_logits", "lm_output"] {
        let model = changed("optimum", |graph| {
            rename_logits(graph, name);
            graph.0.output.rotate_left(1);
        });
        assert_same(name, &model, &usual);
    }
    for (other, name) in [("aux_logits", "lm_logits"), ("aux", "lm_output")] {
        refused("optimum", &["which output holds the logits", &format!("`{other}`, `{name}`")], |graph| {
            add_output(graph, other);
            rename_logits(graph, name);
        });
    }
    refused("optimum", &["no output holds logits"], |graph| drop(graph.0.output.remove(0)));
    refused("optimum", &["lm_head", "logits of 400 tokens", "embedding has 512"], |graph| {
        for (name, number) in [("start", 0), ("end", 400), ("axis", 2)] {
            graph.integers(name, &[1], &[number]);
        }
        graph.after("lm_head/MatMul", |_, _, from, to| vec![node("Slice", &[from, "start", "end", "axis"], &[to])]);
    });
}

#[test]
fn attributes_that_are_not_given_have_their_operations_default() {
    let epsilons = |model: &TensorModel| -> Vec<f64> {
        let ops = model.graph.body.ops.iter().map(|&op| &model.graph.node(op).op);
        ops.filter_map(|op| match op {
            TensorOp::RmsNorm { epsilon, .. } => Some(*epsilon),
            _ => None,
        })
        .collect()
    };
    let model = changed("genai_fp32", |graph| {
        for place in
            [graph.named("SkipSimplifiedLayerNormalization"), graph.named("SimplifiedLayerNormalization")].concat()
        {
            graph.0.node[place]
                .attribute
                .retain(|attribute| attribute.name() != "epsilon" && attribute.name() != "axis");
        }
    });
    // The first norm is none of a sum.
    let [first, sum] = [1e-5_f32, 1e-12].map(f64::from);
    assert_eq!(epsilons(&model), [first, sum, sum, sum, sum]);
}

#[test]
fn tokens_are_cast_to_integers_that_hold_them() {
    let cast = |graph: &mut Graph, to: &[i64]| {
        let mut from = "input_ids".to_owned();
        for (number, &to) in to.iter().enumerate() {
            let cast = format!("cast{number}");
            graph.0.node.insert(number, node("Cast", &[&from], &[&cast]).with(int("to", to)));
            from = cast;
        }
        for place in graph.named("embed_tokens/Gather") {
            graph.0.node[place].input[1].clone_from(&from);
        }
    };
    let usual = imported("optimum").model;
    for to in [&[6, 7][..], &[5, 7], &[4, 6], &[12, 5, 7]] {
        assert_same("wide enough", &changed("optimum", |graph| cast(graph, to)), &usual);
    }
    for (to, last) in [(&[3, 7][..], 127), (&[2, 7], 255), (&[6, 3, 7], 127)] {
        let words = ["(Cast)", &format!("up to {last}"), "vocabulary of 512"];
        refused("optimum", &words, |graph| cast(graph, to));
    }
    for to in [&[9, 7][..], &[1, 7]] {
        refused("optimum", &["not looked up by the input tokens"], |graph| cast(graph, to));
    }
}

#[test]
fn weights_that_are_no_numbers_are_named() {
    for (weight, value) in [("k_proj", f32::NAN), ("lm_head", f32::NAN), ("v_proj", f32::INFINITY)] {
        refused("optimum", &[weight, &format!("holds the value {value}")], |graph| {
            let place = graph.named(&format!("{weight}/MatMul"))[0];
            let name = graph.0.node[place].input[1].clone();
            let stored = graph.0.initializer.iter_mut().find(|tensor| tensor.name() == name).expect("a weight");
            let mut raw = stored.raw_data.take().expect("raw data").to_vec();
            raw[40..44].copy_from_slice(&value.to_le_bytes());
            stored.raw_data = Some(raw.into());
        });
    }
}

/// Weights of 4 bits, in blocks of 32, with one scale for all.
fn quantised(values: &[f32], scale: f32) -> Vec<i8> {
    values.iter().map(|value| (value / scale).round().clamp(-8.0, 7.0) as i8).collect()
}

/// Integers of 4 bits, two to a byte, the low half first.
fn packed(integers: &[i8]) -> Vec<u8> {
    integers.chunks(2).map(|pair| (pair[0] & 15) as u8 | ((pair[1] & 15) as u8) << 4).collect()
}

#[test]
fn integers_without_zero_points_have_those_of_their_type() {
    const SCALE: f32 = 0.05;
    let usual = imported("optimum").model;
    let with = |part: &str, integers: &dyn Fn(i8) -> f32| {
        let mut model = usual.clone();
        for weight in model.weights.iter_mut().filter(|weight| weight.name.contains(part)) {
            let values = quantised(&weight.load().expect("it is there"), SCALE);
            let values = values.into_iter().map(|value| integers(value) * SCALE).collect();
            *weight = Weight::new(weight.name.clone(), weight.shape.clone(), values);
        }
        model
    };
    let weight = |part: &str| usual.weights.iter().find(|weight| weight.name.contains(part)).expect("a weight");
    // Rows of the embedding: signed integers, unsigned ones around zero, and bytes around eight.
    let embedding = quantised(&weight("embed_tokens").load().expect("it is there"), SCALE);
    let unsigned: Vec<i8> = embedding.iter().map(|value| value + 8).collect();
    for (data_type, columns, stored, shift) in [(22, 64, &embedding, 0), (21, 64, &unsigned, 8), (2, 32, &unsigned, 0)]
    {
        let model = changed("optimum", |graph| {
            let place = graph.named("embed_tokens/Gather")[0];
            graph.0.initializer.push(raw_tensor("rows", data_type, &[512, columns], packed(stored)));
            graph.floats("scales", &[512, 2], &[SCALE; 1024]);
            let gather = &graph.0.node[place];
            let inputs = ["rows", &gather.input[1], "scales"];
            let lookup = node("com.microsoft::GatherBlockQuantized", &inputs, &[&gather.output[0]]);
            graph.0.node[place] = lookup.with(int("block_size", 32));
        });
        let expected = with("embed_tokens", &|value| f32::from(value + shift));
        assert_same(&format!("element type {data_type}"), &model, &expected);
    }
    // A matrix, whose bits are four unless given.
    let model = changed("optimum", |graph| {
        for (layer, place) in graph.named("o_proj/MatMul").into_iter().enumerate() {
            let weight = weight(&format!("layers.{layer}.self_attn.o_proj"));
            let unsigned: Vec<i8> =
                quantised(&weight.load().expect("it is there"), SCALE).iter().map(|value| value + 8).collect();
            let [blocks, scales] = ["blocks", "scales"].map(|part| format!("{part}{layer}"));
            graph.0.initializer.push(raw_tensor(&blocks, 2, &[64, 2, 16], packed(&unsigned)));
            graph.floats(&scales, &[128], &[SCALE; 128]);
            let product = &graph.0.node[place];
            let mut product = NodeProto {
                name: product.name.clone(),
                ..node("com.microsoft::MatMulNBits", &[&product.input[0], &blocks, &scales], &[&product.output[0]])
            };
            product.attribute = vec![int("K", 64), int("N", 64), int("block_size", 32)];
            graph.0.node[place] = product;
        }
    });
    assert_same("a matrix", &model, &with("o_proj", &|value| f32::from(value)));
}
