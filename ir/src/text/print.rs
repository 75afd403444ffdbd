//! Printing graphs, programs and models.

use super::cursor::{write_float, write_name};
use super::{TextOp, TextType};
use crate::graph::{Graph, OpId, Origin, OriginId, Region, ValueId};
use crate::hashes::{hash_of, hexadecimal};
use crate::program::{EntryKind, Placement, Program};
use crate::table::Contents;
use crate::tensor::TensorModel;
use crate::verify::Problem;

/// The text form of a program.
pub fn print<O: TextOp>(program: &Program<O, O::Type>) -> String {
    print_with_problems(program, &[])
}

/// The text form of a program, with every problem as a comment below the op that has it.
pub fn print_with_problems<O: TextOp>(program: &Program<O, O::Type>, problems: &[Problem]) -> String {
    let mut out = format!("cachemir {}\n", O::STAGE);
    for problem in problems.iter().filter(|problem| problem.op.is_none()) {
        out.push_str(&format!("; error: {problem}\n"));
    }
    out.push_str(&format!("slots {}\ncontext {}\n", program.slots, program.context));
    for form in &program.inputs {
        out.push_str("input scale ");
        write_float(&mut out, form.scale);
        if let Some(epsilon) = form.norm_epsilon {
            out.push_str(" norm_epsilon ");
            write_float(&mut out, epsilon);
        }
        out.push('\n');
    }
    placement(&mut out, "embedding", &program.embedding);
    placement(&mut out, "logits", &program.logits);
    if !program.prefix.is_empty() {
        out.push_str(&format!("prefix {:?}\n", program.prefix));
    }
    for (index, table) in program.tables.iter().enumerate() {
        declaration(&mut out, "table t", index, &table.name);
        out.push_str(&format!(" {:?} ", table.shape));
        match &table.contents {
            Contents::Stored(weights) => out.push_str(&format!("blake3 {}", hexadecimal(&weights.hash()))),
            Contents::Unknown { deviation } => {
                out.push_str("deviation ");
                write_float(&mut out, *deviation);
            }
        }
        out.push('\n');
    }
    for (index, state) in program.states.iter().enumerate() {
        declaration(&mut out, "state c", index, &state.name);
        out.push_str(&format!(" of {} : ", state.capacity));
        if let Some(level) = state.level {
            out.push_str(&format!("level {level} "));
        }
        state.layout.write(&mut out);
        if let Some(initial) = &state.initial {
            out.push_str(&format!(" initially {initial}"));
        }
        out.push('\n');
    }
    for entry in &program.entries {
        out.push_str(&format!("\nentry {}", entry.kind.entry()));
        if let EntryKind::Prefill { chunk } = entry.kind {
            out.push_str(&format!(" {chunk}"));
        }
        let mine: Vec<&Problem> = problems.iter().filter(|problem| problem.entry == Some(entry.kind.entry())).collect();
        graph(&mut out, &entry.graph, &mine);
        for check in &entry.checks {
            out.push_str("check ");
            write_name(&mut out, &check.site);
            for (word, bound) in ["from", "to"].into_iter().zip(check.interval) {
                out.push_str(&format!(" {word} "));
                write_float(&mut out, bound);
            }
            for (word, number) in [("centre", check.map.centre), ("half", check.map.half)] {
                out.push_str(&format!(" {word} "));
                write_float(&mut out, number);
            }
            placement(&mut out, " at", &check.placement);
        }
    }
    out
}

/// The text form of a recognised model.
pub fn print_model(model: &TensorModel) -> String {
    let shape = &model.hyperparameters;
    let mut out = format!(
        "cachemir tensor\nhidden {} layers {} heads {} kv_heads {} head_dim {} mlp {} vocabulary {} context {}",
        shape.hidden,
        shape.layers,
        shape.heads,
        shape.kv_heads,
        shape.head_dim,
        shape.mlp,
        shape.vocabulary,
        shape.context
    );
    out.push_str(&format!(" epsilon {:?} attention_scale {:?}", shape.epsilon, shape.attention_scale));
    out.push_str(if shape.tied_head { " tied_head\n" } else { "\n" });
    let (cosines, sines) = (hash_of(&model.rope.cosines), hash_of(&model.rope.sines));
    out.push_str(&format!(
        "rope {} cosines {} sines {}\n",
        model.rope.pairs,
        hexadecimal(&cosines),
        hexadecimal(&sines)
    ));
    for (index, weight) in model.weights.iter().enumerate() {
        declaration(&mut out, "weight w", index, &weight.name);
        out.push_str(&format!(" {:?} blake3 {}\n", weight.shape, hexadecimal(&weight.hash)));
    }
    out.push_str("\nstep");
    graph(&mut out, &model.graph, &[]);
    out
}

fn declaration(out: &mut String, kind: &str, index: usize, name: &str) {
    out.push_str(&format!("{kind}{index} "));
    write_name(out, name);
}

/// `embedding token_stride 1 slots 0:64:32 2:64:32`: runs of slots as first:step:number.
fn placement(out: &mut String, what: &str, placement: &Placement) {
    out.push_str(&format!("{what} token_stride {} slots", placement.token_stride));
    let mut slots = placement.index_to_slot.as_slice();
    while let [first, ..] = slots {
        let step = slots.get(1).map_or(0, |second| i64::from(*second) - i64::from(*first));
        let continues = |(index, slot): (usize, &u32)| i64::from(*slot) == i64::from(*first) + index as i64 * step;
        let length = slots.iter().enumerate().take_while(|run| continues(*run)).count();
        out.push_str(&format!(" {first}:{step}:{length}"));
        slots = &slots[length..];
    }
    out.push('\n');
}

/// `(inputs) { … }`, with the origins that no op has ahead of the ops.
fn graph<O: TextOp>(out: &mut String, graph: &Graph<O, O::Type>, problems: &[&Problem]) {
    out.push_str(" (");
    for (index, input) in graph.inputs.iter().enumerate() {
        out.push_str(if index > 0 { ", " } else { "" });
        value(out, graph, *input);
        out.push_str(" : ");
        graph.ty(*input).write(out);
    }
    out.push_str(") {\n");
    let mut unused = vec![true; graph.origins.len()];
    for origin in graph.nodes.iter().filter_map(|node| node.origin) {
        if let Some(unused) = unused.get_mut(origin.index()) {
            *unused = false;
        }
    }
    for (index, _) in unused.iter().enumerate().filter(|(_, unused)| **unused) {
        out.push_str("  origin");
        write_origin(out, OriginId(index as u32), &graph.origins[index]);
        out.push('\n');
    }
    block(out, graph, &graph.body, 1, problems);
    out.push_str("}\n");
}

fn write_origin(out: &mut String, id: OriginId, origin: &Origin) {
    out.push_str(&format!(" {id} "));
    write_name(out, &origin.op_type);
    out.push(' ');
    write_name(out, &origin.node);
}

fn value<O, T>(out: &mut String, graph: &Graph<O, T>, id: ValueId) {
    out.push_str(&id.to_string());
    if let Some(value) = graph.values.get(id.index())
        && !value.name.is_empty()
    {
        out.push(' ');
        write_name(out, &value.name);
    }
}

fn list(out: &mut String, ids: &[ValueId]) {
    for (index, id) in ids.iter().enumerate() {
        out.push_str(if index > 0 { ", " } else { " " });
        out.push_str(&id.to_string());
    }
}

fn block<O: TextOp>(out: &mut String, graph: &Graph<O, O::Type>, block: &Region, depth: usize, problems: &[&Problem]) {
    for op in &block.ops {
        self::op(out, graph, *op, depth, problems);
    }
    indent(out, depth);
    out.push_str("yield");
    list(out, &block.yields);
    out.push('\n');
}

fn indent(out: &mut String, depth: usize) {
    (0..depth).for_each(|_| out.push_str("  "));
}

fn op<O: TextOp>(out: &mut String, graph: &Graph<O, O::Type>, id: OpId, depth: usize, problems: &[&Problem]) {
    let node = graph.node(id);
    indent(out, depth);
    for (index, result) in node.results.iter().enumerate() {
        out.push_str(if index > 0 { ", " } else { "" });
        value(out, graph, *result);
    }
    out.push_str(if node.results.is_empty() { "" } else { " = " });
    out.push_str(node.op.mnemonic());
    list(out, &node.inputs);
    node.op.write_attributes(out);
    for (index, result) in node.results.iter().enumerate() {
        out.push_str(if index > 0 { ", " } else { " : " });
        graph.ty(*result).write(out);
    }
    if node.region.is_some() {
        out.push_str(" {");
    }
    out.push_str(&format!("  ; {id}"));
    if let Some(layer) = node.layer {
        out.push_str(&format!(" layer {layer}"));
    }
    if let Some(origin) = node.origin {
        write_origin(out, origin, &graph.origins[origin.index()]);
    }
    out.push('\n');
    for problem in problems.iter().filter(|problem| problem.op == Some(id)) {
        indent(out, depth);
        out.push_str(&format!("; error: {}\n", problem.message));
    }
    if let Some(region) = &node.region {
        self::block(out, graph, region, depth + 1, problems);
        indent(out, depth);
        out.push_str("}\n");
    }
}
