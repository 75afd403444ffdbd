//! Where the time of a token goes: the ops of a plan's decode step by layer and kind, as the cost table prices them.
//!
//! `cargo run --release -p cachemir-ir --example costs -- PLAN`
// Text is what this program is for.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;

use cachemir_ir::cost::{CostTable, for_each_execution};
use cachemir_ir::operations::middle;
use cachemir_ir::plan::Plan;
use cachemir_ir::program::EntryPoint;
use cachemir_ir::text::TextOp;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("the path of a plan is missing")?;
    let plan = Plan::read(path.as_ref())?;
    let program = &plan.program;
    let costs = CostTable::of_program(&plan.parameters, program);

    let mut kinds: BTreeMap<(Option<u32>, &str), (u32, f64)> = BTreeMap::new();
    let position = middle(program.context).into();
    for_each_execution(program, EntryPoint::Decode, position, 1, &mut |graph, op, _| {
        let node = graph.node(op);
        let (count, ns) = kinds.entry((node.layer, node.op.mnemonic())).or_default();
        *count += 1;
        *ns += costs.node_ns(graph, op, program.slots);
    });

    println!("{:<8} {:<18} {:>6} {:>10}", "layer", "op", "count", "seconds");
    for ((layer, op), (count, ns)) in &kinds {
        let layer = layer.map_or("none".to_owned(), |layer| layer.to_string());
        println!("{layer:<8} {op:<18} {count:>6} {:>10.3}", ns / 1e9);
    }
    let total: f64 = kinds.values().map(|(_, ns)| ns).sum();
    println!("a token at position {position}: {:.1} s on one thread, {}", total / 1e9, costs.provenance);
    Ok(())
}
