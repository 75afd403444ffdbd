//! Recognises a Llama decoder in a specialised graph, from its logits backwards.
//!
//! What is found is described by the graph's own names: which constant is a linear layer's weight, which node is a
//! norm. Every claim is checked on the entries' positions ([`Signal`]), so that a graph that differs from a Llama
//! decoder in a transposition or a sign is refused, with the first node, seen from the output, that does not fit.

mod attention;
mod linear;
mod norm;
mod rope;

pub(super) use attention::Attention;
pub(super) use linear::Linear;
pub(super) use norm::Norm;
pub(super) use rope::RopeSource;

use super::dense::Kind;
use super::onnx::{Name, OnnxGraph, OnnxNode};
use super::specialise::{Role, Signal, Sizes, Specialised, Value, role};
use crate::Error;

/// Past tokens that a graph with a cache is specialised to: an extent that models do not have otherwise.
const PAST: usize = 11;

/// A gated layer.
#[derive(Clone, Debug)]
pub(super) struct Mlp {
    pub(super) norm: Norm,
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
    /// Nodes of the sigmoid, the product with `up`, and the sum with the residual stream.
    pub(super) sigmoid: usize,
    pub(super) product: usize,
    pub(super) sum: usize,
}

/// A decoder layer.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) attention: Attention,
    pub(super) mlp: Mlp,
}

/// The embedding: a row of a matrix.
#[derive(Clone, Debug)]
pub(super) struct Embedding {
    pub(super) node: usize,
    pub(super) weight: Linear,
}

/// A recognised decoder.
pub(super) struct Decoder<'g> {
    pub(super) specialised: Specialised<'g>,
    pub(super) embedding: Embedding,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Norm,
    pub(super) head: Linear,
}

/// The residual stream at some point: a value, or the sum inside a fused sum-and-norm whose value has no name.
#[derive(Clone, Debug)]
enum Stream {
    Value(Signal),
    Sum(usize),
}

/// Recognises the decoder.
pub(super) fn recognise(graph: &OnnxGraph) -> Result<Decoder<'_>, Error> {
    let roles = graph.inputs.iter().map(role).collect::<Result<Vec<_>, _>>()?;
    if !roles.contains(&Role::Tokens) {
        return Err(Error::Interface { message: "there is no input `input_ids`".to_owned() });
    }
    let cached = roles.contains(&Role::Past);
    let sizes = Sizes { past: if cached { PAST } else { 0 }, sequence: 1 };
    let specialised = Specialised::new(graph, sizes, past_shape(graph), None)?;
    let (embedding, layers, norm, head) = Recogniser { specialised: &specialised }.decoder()?;
    Ok(Decoder { specialised, embedding, layers, norm, head })
}

/// Key-value heads and head dimension as grouped-query attention nodes give them, for graphs whose inputs do not.
pub(super) fn past_shape(graph: &OnnxGraph) -> Option<[usize; 2]> {
    let node = graph.nodes.iter().find(|node| node.op_type == "com.microsoft::GroupQueryAttention")?;
    let heads = usize::try_from(node.int("kv_num_heads")?).ok()?;
    let table = node.input(7)?;
    let specialised = Specialised::new(graph, Sizes { past: 1, sequence: 1 }, None, Some(&[table])).ok()?;
    Some([heads, 2 * specialised.value(table).shape().get(1)?])
}

/// Access to the specialised graph for the matchers.
#[derive(Clone, Copy)]
pub(super) struct Recogniser<'s, 'g> {
    specialised: &'s Specialised<'g>,
}

impl<'s, 'g> Recogniser<'s, 'g> {
    fn node(self, index: usize) -> &'g OnnxNode {
        &self.specialised.graph.nodes[index]
    }

    fn fail(self, node: usize, message: impl Into<String>) -> Error {
        self.specialised.not_llama(node, message)
    }

    /// What is known of the n-th input of a node; an optional one that is not given counts as unknown.
    fn operand(self, node: usize, input: usize) -> &'s Value {
        self.node(node).input(input).map_or(&Value::Unknown, |name| self.specialised.value(name))
    }

    /// The n-th input of a node, as a signal.
    fn signal(self, node: usize, input: usize) -> Result<Signal, Error> {
        match self.operand(node, input) {
            Value::Signal(signal) => Ok(signal.clone()),
            _ => Err(self.fail(node, format!("its input {input} does not depend on the token"))),
        }
    }

    /// The node that computes a signal's base, for `expected` to look at; an error at `user` if the base is an input.
    fn base_node(self, signal: &Signal, user: usize, expected: &str) -> Result<(usize, usize), Error> {
        self.specialised
            .producer(signal.base)
            .ok_or_else(|| self.fail(user, format!("it reads an input of the graph instead of {expected}")))
    }

    /// The node that computes a signal, if the signal is all of its output in order.
    fn whole_node(self, signal: &Signal, user: usize, expected: &str) -> Result<(usize, usize), Error> {
        let (node, output) = self.base_node(signal, user, expected)?;
        if signal.is_whole() {
            Ok((node, output))
        } else {
            Err(self.fail(
                user,
                format!("it reads a rearranged or scaled output of `{}` instead of {expected}", self.node(node).name),
            ))
        }
    }

    #[allow(clippy::type_complexity)]
    fn decoder(self) -> Result<(Embedding, Vec<Layer>, Norm, Linear), Error> {
        let (name, logits) = self.logits()?;
        let Value::Signal(signal) = self.specialised.value(logits) else {
            return Err(Error::Interface { message: format!("output `{name}` does not depend on the token") });
        };
        let last = self.specialised.producer(signal.base).map(|(node, _)| node);
        let last = last.ok_or_else(|| Error::Interface { message: format!("output `{name}` is an input") })?;
        let head = self.linear(signal, last, "the output head")?;
        let (norm, mut stream) = self.norm(&head.input, head.node)?;
        let mut user = norm.node;
        let mut layers = Vec::new();
        loop {
            if let Some(embedding) = self.embedding(&stream)? {
                layers.reverse();
                if layers.is_empty() {
                    return Err(self.fail(user, "there is no decoder layer between embedding and output head"));
                }
                return Ok((embedding, layers, norm, head));
            }
            let (mlp, before) = self.mlp(&stream, user)?;
            let (attention, before) = self.attention(&before, mlp.norm.node)?;
            user = attention.norm.node;
            layers.push(Layer { attention, mlp });
            stream = before;
        }
    }

    /// The output that holds the logits: the one of that name, or else the first.
    fn logits(self) -> Result<(String, Name), Error> {
        let outputs = &self.specialised.graph.outputs;
        let named = outputs.iter().find(|(name, _)| name.ends_with("logits"));
        let found = named.or(outputs.first()).cloned();
        found.ok_or_else(|| Error::Interface { message: "the graph has no output".to_owned() })
    }

    /// The embedding, if the stream is one.
    fn embedding(self, stream: &Stream) -> Result<Option<Embedding>, Error> {
        let Stream::Value(signal) = stream else {
            return Ok(None);
        };
        let Some((node, _)) = self.specialised.producer(signal.base).filter(|_| signal.is_whole()) else {
            return Ok(None);
        };
        let quantised = match self.node(node).op_type.as_str() {
            "Gather" => false,
            "com.microsoft::GatherBlockQuantized" => true,
            _ => return Ok(None),
        };
        let tokens = self.signal(node, 1)?;
        if tokens.kind != Kind::Int || self.specialised.producer(tokens.base).is_some() {
            return Err(self.fail(node, "the embedding is not looked up by the input tokens"));
        }
        let axis = if quantised { self.node(node).int("gather_axis") } else { self.node(node).int("axis") };
        if axis.unwrap_or(0) != 0 {
            return Err(self.fail(node, "the embedding is not looked up by rows"));
        }
        let weight = self.embedding_weight(node, signal, quantised)?;
        Ok(Some(Embedding { node, weight }))
    }

    /// The two summands of the residual stream and the node that adds them: the stream ahead and a layer's output.
    fn summands(self, stream: &Stream, user: usize) -> Result<(usize, Signal, Signal), Error> {
        let node = match stream {
            Stream::Sum(node) => *node,
            Stream::Value(signal) => {
                let (node, output) = self.whole_node(signal, user, "the residual stream")?;
                match (self.node(node).op_type.as_str(), output) {
                    ("Add", _) | ("com.microsoft::SkipSimplifiedLayerNormalization", 3) => node,
                    _ => {
                        return Err(self.fail(
                            node,
                            "expected the embedding or a sum of the residual stream and a layer's output",
                        ));
                    }
                }
            }
        };
        let (a, b) = (self.signal(node, 0)?, self.signal(node, 1)?);
        let is_layer = |signal: &Signal| {
            self.specialised
                .producer(signal.base)
                .is_some_and(|(index, _)| linear::is_linear(&self.node(index).op_type))
        };
        match (is_layer(&a), is_layer(&b)) {
            (false, true) => Ok((node, a, b)),
            (true, false) => Ok((node, b, a)),
            _ => Err(self
                .fail(node, "expected the sum of the residual stream and the output of a linear layer without bias")),
        }
    }

    /// A gated layer that ends in the stream, and the stream ahead of it.
    fn mlp(self, stream: &Stream, user: usize) -> Result<(Mlp, Stream), Error> {
        let (sum, before, output) = self.summands(stream, user)?;
        let down = self.linear(&output, sum, "the gated layer's output")?;
        let (product, _) = self.whole_node(&down.input, down.node, "the product of gate and up projection")?;
        let factors = self.factors(&down.input)?;
        let signals: Vec<&Signal> = factors.iter().filter_map(norm::Factor::signal).collect();
        let (3, [a, b, c]) = (factors.len(), signals.as_slice()) else {
            return Err(self.fail(product, "expected the product of a gate, its sigmoid and an up projection"));
        };
        let orders = [(a, b, c), (a, c, b), (b, a, c), (b, c, a), (c, a, b), (c, b, a)];
        let found = orders.into_iter().find_map(|(gate, sigmoid, up)| {
            let (node, _) = self.specialised.producer(sigmoid.base)?;
            let operand = self.node(node).input(0).map(|name| self.specialised.value(name));
            let of_gate = matches!(operand, Some(Value::Signal(operand)) if same_entries(operand, gate));
            (self.node(node).op_type == "Sigmoid" && sigmoid.is_whole() && of_gate).then_some((gate, node, up))
        });
        let Some((gate, sigmoid, up)) = found else {
            return Err(
                self.fail(product, "expected a gate multiplied by its own sigmoid (SiLU) and by an up projection")
            );
        };
        let gate = self.linear(gate, product, "the gate projection")?;
        let up = self.linear(up, product, "the up projection")?;
        if !same_entries(&gate.input, &up.input) {
            return Err(self.fail(up.node, "gate and up projection read different inputs"));
        }
        let (norm, normed) = self.norm(&gate.input, gate.node)?;
        self.same_stream(&normed, &before, sum)?;
        Ok((Mlp { norm, gate, up, down, sigmoid, product, sum }, normed))
    }

    /// Checks that a norm reads the stream that its layer's output is added to.
    fn same_stream(self, normed: &Stream, added: &Signal, sum: usize) -> Result<(), Error> {
        let same = match normed {
            Stream::Value(signal) => same_entries(signal, added),
            // The fused node's sum has a name if anything else reads it.
            Stream::Sum(node) => {
                self.node(*node).outputs.get(3).copied().flatten() == Some(added.base) && added.is_whole()
            }
        };
        if same {
            Ok(())
        } else {
            Err(self.fail(sum, "a layer's output is added to another value than its norm reads"))
        }
    }
}

/// Whether two signals have the same entries in the same order, whatever their shape.
fn same_entries(a: &Signal, b: &Signal) -> bool {
    a.base == b.base && a.map == b.map && a.scale == b.scale
}
