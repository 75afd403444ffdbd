//! Dynamic 8-bit quantisation undone: products with dequantised weights instead of products of integers.
//!
//! Such files round the activations of each run to 8 bits, multiply integers, and scale the result. Encrypted
//! activations are not rounded; the weights are exactly those of the file.

use std::collections::BTreeMap;

use super::{Attribute, Initializer, Name, OnnxGraph, OnnxNode};
use crate::import::dense::Kind;
use crate::import::evaluate::cast_kind;

/// What a summary says of a model with such products.
const NOTE: &str = "the file rounds activations to 8 bits in each run (dynamic quantisation); here only its weights are \
                    rounded, activations are not";

/// A product with integer weights, as the nodes around it describe it.
struct Product {
    /// The activations ahead of their rounding.
    input: Name,
    weight: Name,
    scale: Name,
    zero: Option<Name>,
    bias: Option<Name>,
}

/// Replaces products of rounded activations with integer weights, and dequantised rows of integer embeddings.
pub(super) fn to_plain_products(graph: &mut OnnxGraph) {
    let mut users = vec![0; graph.names.len()];
    graph
        .nodes
        .iter()
        .flat_map(OnnxNode::reads)
        .chain(graph.outputs.iter().map(|(_, name)| *name))
        .for_each(|name| users[name.index()] += 1);
    let mut producers = BTreeMap::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        producers
            .extend(node.outputs.iter().enumerate().filter_map(|(output, name)| Some(((*name)?, (index, output)))));
    }
    let around = Around { nodes: &graph.nodes, initializers: &graph.initializers, producers, users };
    let products: Vec<Option<Product>> = graph.nodes.iter().map(|node| around.product(node)).collect();
    let lookups: Vec<Option<OnnxNode>> = graph.nodes.iter().map(|node| around.lookup(node).cloned()).collect();
    let mut looked_up = BTreeMap::new();
    let mut nodes = Vec::with_capacity(graph.nodes.len());
    for ((node, product), lookup) in std::mem::take(&mut graph.nodes).into_iter().zip(products).zip(lookups) {
        if let Some(product) = product {
            graph.notes.insert(NOTE.to_owned());
            plain(graph, &node, &product, &mut nodes);
        } else if let Some(mut lookup) = lookup {
            let mut inputs = node.inputs.clone();
            inputs[0] = lookup.input(0);
            // Optimisers write the same lookup once for each reader.
            if let Some(&known) = looked_up.get(&(inputs.clone(), lookup.inputs.clone())) {
                nodes.push(OnnxNode {
                    op_type: "Identity".to_owned(),
                    inputs: vec![known],
                    attributes: BTreeMap::new(),
                    ..node
                });
                continue;
            }
            looked_up.insert((inputs.clone(), lookup.inputs.clone()), node.outputs.first().copied().flatten());
            let weight = graph.fresh(format!("{}/dequantised", node.name));
            lookup.inputs[0] = Some(weight);
            lookup.outputs.clone_from(&node.outputs);
            nodes.push(OnnxNode { inputs, outputs: vec![Some(weight)], ..node });
            nodes.push(lookup);
        } else {
            nodes.push(node);
        }
    }
    graph.nodes = nodes;
}

/// A dequantised weight, the product with it, and the sum with a bias, in place of a node.
fn plain(graph: &mut OnnxGraph, node: &OnnxNode, product: &Product, nodes: &mut Vec<OnnxNode>) {
    let weight = Some(graph.fresh(format!("{}/dequantised", node.name)));
    let inputs = vec![Some(product.weight), Some(product.scale), product.zero];
    let mut dequantise = node.step("DequantizeLinear", inputs, vec![weight]);
    dequantise.attributes.insert("axis".to_owned(), Attribute::Int(-1));
    nodes.push(dequantise);
    let inputs = vec![Some(product.input), weight];
    if let Some(bias) = product.bias {
        let sum = Some(graph.fresh(format!("{}/product", node.name)));
        nodes.push(node.step("MatMul", inputs, vec![sum]));
        nodes.push(node.step("Add", vec![sum, Some(bias)], node.outputs.clone()));
    } else {
        nodes.push(node.step("MatMul", inputs, node.outputs.clone()));
    }
}

/// The nodes of a graph, by what they give.
struct Around<'g> {
    nodes: &'g [OnnxNode],
    initializers: &'g BTreeMap<Name, Initializer>,
    producers: BTreeMap<Name, (usize, usize)>,
    /// How often each value is read.
    users: Vec<usize>,
}

impl<'g> Around<'g> {
    fn producer(&self, name: Option<Name>) -> Option<(&'g OnnxNode, usize)> {
        let &(index, output) = self.producers.get(&name?)?;
        Some((&self.nodes[index], output))
    }

    /// The node of the given operation that gives a value that is read once.
    fn only(&self, name: Option<Name>, op_type: &str) -> Option<&'g OnnxNode> {
        let (node, _) = self.producer(name).filter(|(node, _)| node.op_type == op_type)?;
        (self.users[name?.index()] == 1).then_some(node)
    }

    /// The activations that were rounded to the given integers, with the given scale and zero point.
    fn rounded(&self, integers: Option<Name>, scale: Option<Name>, zero: Option<Name>) -> Option<Name> {
        let (node, output) = self.producer(integers)?;
        let own = |name: Option<Name>, index: usize| {
            self.producer(name).is_some_and(|(other, output)| std::ptr::eq(node, other) && output == index)
        };
        let whole = node.op_type == "DynamicQuantizeLinear" && output == 0 && own(scale, 1) && own(zero, 2);
        node.input(0).filter(|_| whole)
    }

    /// The product whose result a node gives.
    fn product(&self, node: &OnnxNode) -> Option<Product> {
        match node.op_type.as_str() {
            "com.microsoft::DynamicQuantizeMatMul" => Some(Product {
                input: node.input(0)?,
                weight: node.input(1)?,
                scale: node.input(2)?,
                zero: node.input(3),
                bias: node.input(4),
            }),
            "com.microsoft::MatMulIntegerToFloat" => Some(Product {
                input: self.rounded(node.input(0), node.input(2), node.input(4))?,
                weight: node.input(1)?,
                scale: node.input(3)?,
                zero: node.input(5),
                bias: node.input(6),
            }),
            "Mul" => {
                let product = |cast: Option<Name>, scales: Option<Name>| self.scaled_product(cast, scales);
                product(node.input(0), node.input(1)).or_else(|| product(node.input(1), node.input(0)))
            }
            _ => None,
        }
    }

    /// A product of integers, cast, times the product of both scales.
    fn scaled_product(&self, cast: Option<Name>, scales: Option<Name>) -> Option<Product> {
        let cast = self.only(cast, "Cast").filter(|cast| cast_kind(cast) == Ok(Kind::F32))?;
        let product = self.only(cast.input(0), "MatMulInteger")?;
        let (scales, _) = self.producer(scales).filter(|(scales, _)| scales.op_type == "Mul")?;
        let orders = [(0, 1), (1, 0)];
        let (input, scale) = orders.into_iter().find_map(|(of_input, of_weight)| {
            let input = self.rounded(product.input(0), scales.input(of_input), product.input(2))?;
            Some((input, scales.input(of_weight)?))
        })?;
        Some(Product { input, weight: product.input(1)?, scale, zero: product.input(3), bias: None })
    }

    /// The lookup of integers that a node dequantises with one scale for all.
    fn lookup(&self, node: &OnnxNode) -> Option<&'g OnnxNode> {
        let scalar = |index: usize| {
            node.input(index).is_some_and(|name| self.initializers.get(&name).is_some_and(|scale| scale.len() == 1))
        };
        let (lookup, _) = self.producer(node.input(0)).filter(|(lookup, _)| lookup.op_type == "Gather")?;
        let stored = lookup.input(0).is_some_and(|name| self.initializers.contains_key(&name));
        (node.op_type.ends_with("DequantizeLinear") && scalar(1) && stored).then_some(lookup)
    }
}
