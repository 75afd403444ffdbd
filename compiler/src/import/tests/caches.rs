//! Caches in other layouts, and outputs that do not hand on what attention reads.

use super::graph::{Graph, assert_same, changed, extents, refused};
use super::imported;
use crate::import::onnx::testing::{int, ints, node};

#[test]
fn caches_may_have_tokens_first() {
    let turn = |graph: &mut Graph, from: &str, to: &str| {
        let mut transpose = node("Transpose", &[from], &[to]);
        transpose.attribute.push(ints("perm", &[0, 2, 1, 3]));
        graph.0.node.insert(0, transpose);
    };
    let inputs_turned = |graph: &mut Graph| {
        for name in graph.0.input.iter().map(|input| input.name().to_owned()).collect::<Vec<_>>() {
            if !name.starts_with("past_key_values") {
                continue;
            }
            graph.exchange(&name, 1, 2);
            let turned = format!("{name}_turned");
            for node in &mut graph.0.node {
                node.input.iter_mut().filter(|input| **input == name).for_each(|input| input.clone_from(&turned));
            }
            turn(graph, &name, &turned);
        }
    };
    let model = changed("optimum", |graph| {
        inputs_turned(graph);
        for name in graph.0.output.iter().map(|output| output.name().to_owned()).collect::<Vec<_>>() {
            if name.starts_with("present") {
                change_output(graph, &name, turn);
            }
        }
    });
    assert_same("tokens first", &model, &imported("optimum").model);
    // What is handed on in one order cannot be taken back in the other.
    refused("optimum", &["does not hand on"], inputs_turned);
}

/// Gives the value of an output another name, for `change` to make the output from it.
fn change_output(graph: &mut Graph, output: &str, change: impl FnOnce(&mut Graph, &str, &str)) {
    let bare = format!("{output}_bare");
    for node in &mut graph.0.node {
        let names = node.output.iter_mut().chain(&mut node.input);
        names.filter(|name| *name == output).for_each(|name| name.clone_from(&bare));
    }
    change(graph, &bare, output);
}

#[test]
fn what_is_handed_on_must_be_what_attention_reads() {
    for (route, words) in [("optimum", "Concat"), ("dynamo_op18", "Concat"), ("genai_fp32", "GroupQueryAttention")] {
        let words = ["does not hand on", "`present.1.key`", words];
        // Twice as much, and nothing.
        for factor in [2.0, 0.0] {
            refused(route, &words, |graph| {
                graph.floats("factor", &[], &[factor]);
                change_output(graph, "present.1.key", |graph, from, to| {
                    graph.0.node.push(node("Mul", &[from, "factor"], &[to]));
                });
            });
        }
        // Those of another layer, values for keys, and past ones alone.
        for other in ["present.0.key", "present.1.value", "past_key_values.1.key"] {
            refused(route, &words, |graph| {
                change_output(graph, "present.1.key", |graph, _, to| {
                    graph.0.node.push(node("Identity", &[other], &[to]));
                });
            });
        }
        // One token moved to the end.
        refused(route, &words, |graph| {
            graph.integers("order", &[2], &[-1, 0]);
            change_output(graph, "present.1.key", |graph, from, to| {
                let mut gather = node("Gather", &[from, "order"], &[to]);
                gather.attribute.push(int("axis", 2));
                graph.0.node.push(gather);
            });
        });
    }
}

#[test]
fn caches_may_be_symbolic_in_all_extents() {
    for route in ["optimum", "dynamo_op18", "genai_fp32"] {
        let model = changed(route, |graph| {
            for input in graph.0.input.iter_mut().filter(|input| input.name().starts_with("past")) {
                for extent in extents(input) {
                    extent.value = None;
                }
            }
        });
        assert_same(route, &model, &imported("optimum").model);
    }
}

/// Gives each output that hands on a cache another name.
fn rename_outputs(graph: &mut Graph, name: impl Fn(&str) -> String) {
    let nodes = graph.0.node.iter_mut().flat_map(|node| node.output.iter_mut().chain(&mut node.input));
    let outputs = graph.0.output.iter_mut().filter_map(|output| output.name.as_mut());
    for value in nodes.chain(outputs).filter(|value| value.starts_with("present")) {
        *value = name(value);
    }
}

#[test]
fn outputs_are_told_by_their_names_or_else_by_their_order() {
    // Names tell, in any order.
    let model = changed("optimum", |graph| graph.0.output.reverse());
    assert_same("reversed", &model, &imported("optimum").model);
    let model = changed("optimum", |graph| {
        rename_outputs(graph, |name| name.replace("present", "new_past_key_values"));
        graph.0.output[1..].reverse();
    });
    assert_same("renamed and reversed", &model, &imported("optimum").model);
    // Exchanged names are taken at their word.
    refused("optimum", &["`present.0.key`", "does not hand on"], |graph| {
        rename_outputs(graph, |name| match name {
            "present.0.key" => "present.0.value".to_owned(),
            "present.0.value" => "present.0.key".to_owned(),
            other => other.to_owned(),
        });
    });
    // Other names do not tell.
    let letters = |name: &str| name.chars().map(|letter| char::from_u32(letter as u32 + 1).unwrap_or(letter)).collect();
    let model = changed("optimum", |graph| rename_outputs(graph, letters));
    assert_same("in order", &model, &imported("optimum").model);
    refused("optimum", &["does not hand on"], |graph| {
        rename_outputs(graph, letters);
        graph.0.output[1..].reverse();
    });
    refused("optimum", &["4 inputs hold past", "3 outputs"], |graph| graph.0.output.truncate(4));
}
