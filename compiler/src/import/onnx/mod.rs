//! Reads an ONNX file into one flat graph over dense value numbers.
//!
//! What files may write in several ways is brought to one form here, so that later steps need not know:
//! 1. the bytes are checked ([`limits`]) and decoded with types generated from ONNX's schema ([`proto`]);
//! 2. names become [`Name`]s, model-local functions are inlined, constants become initialisers, SiLU becomes a sigmoid
//!    and a product ([`read`]);
//! 3. nodes are put in an order of computation ([`order`]), and subgraphs whose condition is constant are inlined
//!    ([`branches`]);
//! 4. sigmoids written out become the operation ([`sigmoid`]);
//! 5. products with weights that were rounded to 8 bits when the file was made become plain products with dequantised
//!    weights ([`quantised`]);
//! 6. nodes, constants and inputs that no output depends on are dropped, and attributes that nothing here understands are
//!    refused ([`attributes`]).

mod attributes;
mod branches;
mod limits;
mod order;
#[rustfmt::skip]
#[allow(clippy::all, clippy::pedantic, missing_docs, unreachable_pub)]
pub(super) mod proto;
mod quantised;
mod read;
mod sigmoid;
mod tensor;
#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

pub(super) use tensor::Initializer;

use super::dense::Kind;
use super::inputs::{Role, role};
use crate::Error;

/// Number of a value of the graph: an input, an initialiser, or an output of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Name(pub(super) u32);

impl Name {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// An attribute of a node.
#[derive(Clone, Debug)]
pub(super) enum Attribute {
    Int(i64),
    Float(f32),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Text(String),
    Tensor(Initializer),
    Graph(Subgraph),
    /// A list of texts, tensors or graphs, or a type: no supported operation has one.
    Other,
}

/// A graph inside a node, over the numbers of the graph around it.
#[derive(Clone, Debug)]
pub(super) struct Subgraph {
    nodes: Vec<OnnxNode>,
    outputs: Vec<Name>,
}

/// A node; empty names of optional inputs and outputs are `None`.
#[derive(Clone, Debug)]
pub(super) struct OnnxNode {
    pub(super) name: String,
    /// The operation, with its domain ahead unless it is ONNX's own.
    pub(super) op_type: String,
    pub(super) inputs: Vec<Option<Name>>,
    pub(super) outputs: Vec<Option<Name>>,
    attributes: BTreeMap<String, Attribute>,
}

impl OnnxNode {
    /// A node without attributes that stands for this one, or for a part of it.
    fn step(&self, op_type: &str, inputs: Vec<Option<Name>>, outputs: Vec<Option<Name>>) -> Self {
        Self { name: self.name.clone(), op_type: op_type.to_owned(), inputs, outputs, attributes: BTreeMap::new() }
    }

    pub(super) fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.attributes.get(name)
    }

    pub(super) fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.attributes.get(name) {
            Some(Attribute::Ints(values)) => Some(values),
            _ => None,
        }
    }

    /// The n-th input, if it is given.
    pub(super) fn input(&self, index: usize) -> Option<Name> {
        self.inputs.get(index).copied().flatten()
    }

    /// Values that the node reads: its inputs, and what graphs inside it take from around them.
    fn reads(&self) -> Vec<Name> {
        let mut names: Vec<Name> = self.inputs.iter().flatten().copied().collect();
        for attribute in self.attributes.values() {
            if let Attribute::Graph(graph) = attribute {
                names.extend(graph.outputs.iter().copied().chain(graph.nodes.iter().flat_map(Self::reads)));
            }
        }
        names
    }

    /// An error about how the node is written.
    fn error(&self, message: impl Into<String>) -> Error {
        Error::BadNode { node: self.name.clone(), op_type: self.op_type.clone(), message: message.into() }
    }
}

/// An input of the graph.
#[derive(Clone, Debug)]
pub(super) struct OnnxInput {
    pub(super) name: String,
    pub(super) value: Name,
    /// Extents, where they are numbers (or symbols that read as numbers).
    pub(super) shape: Vec<Option<usize>>,
    pub(super) kind: Kind,
}

/// The main graph of an ONNX file, nodes in execution order.
#[derive(Clone, Debug)]
pub(super) struct OnnxGraph {
    pub(super) nodes: Vec<OnnxNode>,
    pub(super) inputs: Vec<OnnxInput>,
    pub(super) outputs: Vec<(String, Name)>,
    /// Initialisers and constants by value number.
    pub(super) initializers: BTreeMap<Name, Initializer>,
    /// Names of all values.
    pub(super) names: Vec<String>,
    /// What the reader changed in the function that the file computes.
    pub(super) notes: BTreeSet<String>,
}

impl OnnxGraph {
    /// A new value.
    fn fresh(&mut self, name: String) -> Name {
        self.names.push(name);
        Name(self.names.len() as u32 - 1)
    }

    /// Drops nodes, initialisers and inputs that no output depends on. Caches stay: one that nothing reads says that the
    /// graph is another one than its inputs promise.
    fn prune(&mut self) {
        let mut used = vec![false; self.names.len()];
        self.outputs.iter().for_each(|(_, name)| used[name.index()] = true);
        for node in self.nodes.iter().rev() {
            if node.outputs.iter().flatten().any(|name| used[name.index()]) {
                node.reads().into_iter().for_each(|name| used[name.index()] = true);
            }
        }
        self.nodes.retain(|node| node.outputs.iter().flatten().any(|name| used[name.index()]));
        self.initializers.retain(|name, _| used[name.index()]);
        let all = std::mem::take(&mut self.inputs);
        let stays = |input: &OnnxInput| used[input.value.index()] || matches!(role(self, input), Ok(Role::Past(_)));
        self.inputs = all.into_iter().filter(stays).collect();
    }
}

/// Reads a model file for sessions of at most `context` tokens. External data files are opened only when a tensor is
/// decoded.
pub(super) fn read(path: &Path, context: usize) -> Result<OnnxGraph, Error> {
    let mut graph = read::file(path)?;
    order::sort(&mut graph.nodes, graph.names.len())?;
    graph.prune();
    branches::inline(&mut graph, context)?;
    graph.prune();
    sigmoid::fuse(&mut graph);
    quantised::to_plain_products(&mut graph);
    graph.prune();
    graph.nodes.iter().try_for_each(attributes::check)?;
    Ok(graph)
}
