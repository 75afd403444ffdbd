//! Graphs that are another function at another position or length.

use super::graph::{Graph, assert_same, refused, set_attention, with_context};
use super::imported;
use crate::import::onnx::proto::NodeProto;
use crate::import::onnx::testing::{graph, graph_attribute, int, node, tensor};

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
    refused("genai_fp32", &["window is of no token"], |graph| set_attention(graph, "local_window_size", 0));
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
            graph.after(&name, |_, _, from, to| vec![node("Slice", &[from, "first", "end", "axis"], &[to])]);
        }
    };
    assert!(with_context("optimum", 30, cut).is_ok());
    refused("optimum", &["sliding window"], cut);
}

/// Nodes that compute the number of tokens that scores have, as a float, into `total`.
fn count(graph: &mut Graph, scores: &str, total: &str) -> Vec<NodeProto> {
    let [shape, last, number] = ["shape", "last", "number"].map(|part| format!("{total}_{part}"));
    graph.integers(&last, &[], &[-1]);
    let mut cast = node("Cast", &[&number], &[total]);
    cast.attribute.push(int("to", 1));
    vec![node("Shape", &[scores], &[&shape]), node("Gather", &[&shape, &last], &[&number]), cast]
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
            nodes.push(node("Div", &[&total, "limit"], &[&step]));
            nodes.push(node("Floor", &[&step], &[&late]));
            nodes.push(node("Add", &[&late, "one"], &[&factor]));
            let mut product = node("Mul", &[from, &factor], &[to]);
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
            nodes.push(node("Add", &[from, &total], &[to]));
            nodes
        });
    });
    // Angles by the number of tokens.
    refused("optimum", &["frequencies"], |graph| {
        graph.floats("longest", &[], &[100.0]);
        graph.before("Cos", |graph, from, to| {
            let [total, factor] = ["total", "factor"].map(|part| format!("{to}_{part}"));
            let mut nodes = count(graph, "attention_mask", &total);
            nodes.push(node("Max", &[&total, "longest"], &[&factor]));
            nodes.push(node("Mul", &[from, &factor], &[to]));
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

/// Nodes that compute a number that is 1 at few tokens, and more from the 201st on, into `factor`.
fn late_factor(graph: &mut Graph, factor: &str) -> Vec<NodeProto> {
    let [total, step, late] = ["total", "step", "late"].map(|part| format!("{factor}_{part}"));
    graph.floats("limit", &[], &[200.5]);
    graph.floats("one", &[], &[1.0]);
    let mut nodes = count(graph, "attention_mask", &total);
    nodes.push(node("Div", &[&total, "limit"], &[&step]));
    nodes.push(node("Floor", &[&step], &[&late]));
    nodes.push(node("Add", &[&late, "one"], &[factor]));
    nodes
}

#[test]
fn weights_that_depend_on_the_length_are_refused() {
    // The n-th input of the nodes so named, times the factor: small and large weights of all kinds.
    for (route, name, input) in [
        ("optimum", "embed_tokens/Gather", 0),
        ("optimum", "q_proj/MatMul", 1),
        ("optimum", "down_proj/MatMul", 1),
        ("optimum", "lm_head/MatMul", 1),
        ("optimum", "input_layernorm/Mul_1", 0),
        ("genai_fp32", "qkv_proj/MatMul", 1),
        ("genai_fp32", "SkipSimplifiedLayerNormalization", 2),
        ("genai_fp32", "SimplifiedLayerNormalization", 1),
    ] {
        refused(route, &["depends on the position or on the length"], |graph| {
            let places = graph.named(name);
            assert!(!places.is_empty(), "{name}");
            let mut nodes = late_factor(graph, "late_factor");
            for place in places {
                let weight = graph.0.node[place].input[input].clone();
                let scaled = format!("{weight}_scaled");
                graph.0.node[place].input[input].clone_from(&scaled);
                if !nodes.iter().any(|node| node.output[0] == scaled) {
                    nodes.push(node("Mul", &[&weight, "late_factor"], &[&scaled]));
                }
            }
            nodes.into_iter().rev().for_each(|node| graph.0.node.insert(0, node));
        });
    }
    // The bias of a fused sum.
    refused("genai_fp32", &["depends on the position or on the length"], |graph| {
        graph.floats("bias", &[64], &[0.1; 64]);
        let mut nodes = late_factor(graph, "late_factor");
        nodes.push(node("Mul", &["bias", "late_factor"], &["late_bias"]));
        for place in graph.named("SkipSimplifiedLayerNormalization") {
            graph.0.node[place].input.push("late_bias".to_owned());
        }
        nodes.into_iter().rev().for_each(|node| graph.0.node.insert(0, node));
    });
}

/// Multiplies scores by 2 in the branch of an `If` that is taken where the operation holds for an extent and a number.
fn choose(graph: &mut Graph, (input, axis): (&str, i64), op_type: &str, number: i64) {
    graph.integers("axis", &[], &[axis]);
    graph.integers("number", &[], &[number]);
    let branch = |factor: f32, name: &str| self::graph(Vec::new(), vec![tensor(name, &[], &[factor])], &[name]);
    let choice = node("If", &["chosen"], &["factor"])
        .with(graph_attribute("then_branch", branch(2.0, "double")))
        .with(graph_attribute("else_branch", branch(1.0, "once")));
    graph.before("Softmax", |_, from, to| vec![node("Mul", &[from, "factor"], &[to])]);
    let nodes = [
        node("Shape", &[input], &["extents"]),
        node("Gather", &["extents", "axis"], &["extent"]),
        node(op_type, &["extent", "number"], &["chosen"]),
        choice,
    ];
    nodes.into_iter().rev().for_each(|node| graph.0.node.insert(0, node));
}

#[test]
fn branches_are_the_same_at_every_length() {
    let [total, past, new] = [("attention_mask", 1), ("past_key_values.0.key", 2), ("input_ids", 1)];
    for (extent, op_type, number) in [
        (total, "Greater", 20),
        (total, "Greater", 255),
        (total, "Equal", 50),
        (past, "Greater", 0),
        (past, "Equal", 254),
        (new, "Greater", 1),
        (new, "Equal", 200),
    ] {
        refused("optimum", &["n_factor", "(If)", "which branch it takes depends on the length"], |graph| {
            choose(graph, extent, op_type, number);
        });
    }
    // A branch that no length of the context takes, and an extent that is no length.
    let usual = imported("optimum").model;
    for (context, extent, op_type, number) in
        [(20, total, "Greater", 20), (256, total, "Greater", 256), (256, ("input_ids", 0), "Greater", 1)]
    {
        let set = |graph: &mut Graph| choose(graph, extent, op_type, number);
        let model = with_context("optimum", context, set).unwrap_or_else(|error| panic!("{number}: {error}")).model;
        assert_same("a constant branch", &model, &usual);
    }
}
