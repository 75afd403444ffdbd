//! An order in which nodes can be computed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::OnnxNode;
use crate::Error;

/// Puts every node behind those whose outputs it reads, and otherwise keeps the order of the file. `values` is the
/// number of values of the graph.
pub(super) fn sort(nodes: &mut Vec<OnnxNode>, values: usize) -> Result<(), Error> {
    let mut producers = vec![None; values];
    for (index, node) in nodes.iter().enumerate() {
        for name in node.outputs.iter().flatten() {
            if producers[name.index()].replace(index).is_some() {
                return Err(node.error("it gives a value that another node gives already"));
            }
        }
    }
    let ahead: Vec<Vec<usize>> =
        nodes.iter().map(|node| node.reads().iter().filter_map(|name| producers[name.index()]).collect()).collect();
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    for (index, ahead) in ahead.iter().enumerate() {
        for &producer in ahead {
            users[producer].push(index);
        }
    }
    let mut missing: Vec<usize> = ahead.iter().map(Vec::len).collect();
    let mut ready: BinaryHeap<Reverse<usize>> =
        (0..nodes.len()).filter(|&index| missing[index] == 0).map(Reverse).collect();
    let mut order = Vec::with_capacity(nodes.len());
    while let Some(Reverse(index)) = ready.pop() {
        order.push(index);
        for &user in &users[index] {
            missing[user] -= 1;
            if missing[user] == 0 {
                ready.push(Reverse(user));
            }
        }
    }
    if order.len() < nodes.len() {
        let node = on_a_cycle(&ahead, &missing);
        return Err(nodes[node].error("it depends on its own output"));
    }
    let mut unsorted: Vec<Option<OnnxNode>> = std::mem::take(nodes).into_iter().map(Some).collect();
    nodes.extend(order.into_iter().filter_map(|index| unsorted[index].take()));
    Ok(())
}

/// A node on a cycle: going back from any node that waits, along nodes that wait, soon goes in circles.
fn on_a_cycle(ahead: &[Vec<usize>], missing: &[usize]) -> usize {
    let mut seen = vec![false; ahead.len()];
    let mut node = missing.iter().position(|&count| count > 0).unwrap_or(0);
    while !std::mem::replace(&mut seen[node], true) {
        node = ahead[node].iter().copied().find(|&producer| missing[producer] > 0).unwrap_or(node);
    }
    node
}
