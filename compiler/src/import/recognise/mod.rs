//! Recognises a Llama decoder in a specialised graph, from its logits backwards.
//!
//! What is found is described by the graph's own names: which constant is a linear layer's weight, which node is a
//! norm. Every claim is checked on the entries' positions ([`Signal`]), so that a graph that differs from a Llama
//! decoder in a transposition or a sign is refused, with the first node, seen from the output, that does not fit.
//! Factors are kept with the linear layer that they can be folded into. [`super::lengths`] has the decoder recognised
//! at several lengths.

mod attention;
mod cache;
mod diagnose;
mod grouped;
mod linear;
mod mask;
mod norm;
mod order;
mod rope;
mod stored;

pub(super) use attention::Attention;
pub(super) use diagnose::unsupported_feature;
pub(super) use linear::Linear;
pub(super) use mask::check as check_mask;
pub(super) use norm::Norm;
pub(super) use rope::RopeSource;

use super::dense::Kind;
use super::evaluate::cast_integers;
use super::inputs::{Present, logits, past_shape, presents};
use super::onnx::{Name, OnnxGraph, OnnxNode};
use super::specialise::{Signal, Sizes, Specialised, Value};
use crate::Error;
use diagnose::Part;
use order::Order;

/// A gated layer.
#[derive(Clone, Debug, PartialEq)]
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
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Layer {
    pub(super) attention: Attention,
    pub(super) mlp: Mlp,
}

/// The embedding: a row of a matrix.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Embedding {
    pub(super) node: usize,
    pub(super) weight: Linear,
}

/// The parts of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Structure {
    pub(super) embedding: Embedding,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Norm,
    pub(super) head: Linear,
}

/// A recognised decoder.
pub(super) struct Decoder<'g> {
    pub(super) specialised: Specialised<'g>,
    pub(super) structure: Structure,
}

/// The residual stream at some point: a value, or the sum inside a fused sum-and-norm whose value has no name.
#[derive(Clone, Debug)]
enum Stream {
    Value(Signal),
    Sum(usize),
}

/// A sum of the residual stream and a layer's output.
struct Summands {
    node: usize,
    before: Signal,
    layer: Signal,
    /// What a fused sum adds besides.
    bias: Option<Name>,
}

/// Recognises the decoder in the graph at the given lengths.
pub(super) fn recognise(graph: &OnnxGraph, sizes: Sizes) -> Result<Decoder<'_>, Error> {
    let specialised = Specialised::new(graph, sizes, past_shape(graph), None)?;
    let presents = presents(graph)?;
    let structure = Recogniser { specialised: &specialised, presents: &presents }.decoder()?;
    Ok(Decoder { specialised, structure })
}

/// Access to the specialised graph for the matchers.
#[derive(Clone, Copy)]
pub(super) struct Recogniser<'s, 'g> {
    specialised: &'s Specialised<'g>,
    presents: &'s [Present<'g>],
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

    fn decoder(self) -> Result<Structure, Error> {
        let (name, value) = logits(self.specialised.graph)?;
        let Value::Signal(signal) = self.specialised.value(*value) else {
            return Err(Error::Interface { message: format!("output `{name}` does not depend on the token") });
        };
        let last = self.specialised.producer(signal.base).map(|(node, _)| node);
        let last = last.ok_or_else(|| Error::Interface { message: format!("output `{name}` is an input") })?;
        let (head, normed) = self.linear(&self.all_tokens(signal), Order::Tokens, last, "the output head")?;
        if head.has_bias() {
            return Err(self.fail(last, "a bias of the output head is not supported"));
        }
        let (norm, mut stream) = self.norm(&normed, head.node)?;
        let mut user = norm.node;
        let mut layers = Vec::new();
        loop {
            if let Some(embedding) = self.embedding(&stream)? {
                layers.reverse();
                if layers.is_empty() {
                    return Err(self.fail(user, "there is no decoder layer between embedding and output head"));
                }
                self.check_caches(&layers)?;
                return Ok(Structure { embedding, layers, norm, head });
            }
            let (mlp, before) = self.mlp(&stream, user)?;
            let (attention, before) = self.attention(&before, mlp.norm.node)?;
            user = attention.norm.node;
            layers.push(Layer { attention, mlp });
            stream = before;
        }
    }

    /// The value that a signal holds the last tokens of, in order; the signal itself if it holds anything else. The
    /// decoder's output is that of the last token.
    fn all_tokens(self, signal: &Signal) -> Signal {
        let base = self.specialised.value(signal.base);
        let (Some(map), Value::Signal(base)) = (&signal.map, base) else {
            return signal.clone();
        };
        let token = base.len().checked_div(self.tokens()).unwrap_or(0);
        let first = (signal.base_len + 1).saturating_sub(map.len());
        let last_ones = token > 0
            && base.base == signal.base
            && map.len().is_multiple_of(token)
            && map.iter().enumerate().all(|(index, &entry)| entry == (first + index) as i64);
        if last_ones { Signal { scale: signal.scale, ..base.clone() } } else { signal.clone() }
    }

    /// The embedding, if the stream is one.
    fn embedding(self, stream: &Stream) -> Result<Option<Embedding>, Error> {
        let Stream::Value(signal) = stream else {
            return Ok(None);
        };
        let Some((node, _)) = self.specialised.producer(signal.base).filter(|_| signal.map.is_none()) else {
            return Ok(None);
        };
        let quantised = match self.node(node).op_type.as_str() {
            "Gather" => false,
            "com.microsoft::GatherBlockQuantized" => true,
            _ => return Ok(None),
        };
        let weight = self.embedding_weight(node, signal, quantised)?;
        let tokens = self.tokens_cast(self.signal(node, 1)?, weight.outputs())?;
        if tokens.kind != Kind::Int || self.specialised.producer(tokens.base).is_some() || !tokens.is_whole() {
            return Err(self.fail(node, "the embedding is not looked up by the input tokens"));
        }
        if self.node(node).flag(if quantised { "gather_axis" } else { "axis" }) {
            return Err(self.fail(node, "the embedding is not looked up by rows"));
        }
        Ok(Some(Embedding { node, weight }))
    }

    /// What is cast to narrower integers that hold the numbers of all tokens of the vocabulary.
    fn tokens_cast(self, mut tokens: Signal, vocabulary: usize) -> Result<Signal, Error> {
        while let Some((node, _)) = self.specialised.producer(tokens.base).filter(|_| tokens.is_whole())
            && self.node(node).op_type == "Cast"
            && let Some(integers) = cast_integers(self.node(node))
            && let Value::Signal(wider) = self.operand(node, 0)
            && matches!(wider.kind, Kind::Int | Kind::Bytes)
        {
            if i64::try_from(vocabulary).is_ok_and(|count| *integers.end() < count - 1) {
                return Err(self.fail(
                    node,
                    format!(
                        "it casts tokens to integers up to {}, which do not hold the numbers of a vocabulary of {vocabulary}",
                        integers.end()
                    ),
                ));
            }
            tokens = wider.clone();
        }
        Ok(tokens)
    }

    /// The summands of the residual stream: the stream ahead and a layer's output.
    fn summands(self, stream: &Stream, user: usize) -> Result<Summands, Error> {
        let node = match stream {
            Stream::Sum(node) => *node,
            Stream::Value(signal) => {
                let (node, output) = self.whole_node(signal, user, "the residual stream")?;
                match (self.node(node).op_type.as_str(), output) {
                    ("Add", _) | ("com.microsoft::SkipSimplifiedLayerNormalization", 3) => node,
                    _ => {
                        let expected = "the embedding or a sum of the residual stream and a layer's output";
                        return Err(self.unexpected(Part::Stream, node, expected));
                    }
                }
            }
        };
        let operands = (self.operand(node, 0), self.operand(node, 1));
        let (Value::Signal(a), Value::Signal(b)) = operands else {
            return Err(self.fail(
                node,
                "a constant is added to the residual stream, such as learned positions, which are not supported",
            ));
        };
        let bias = if self.node(node).op_type == "Add" { None } else { self.node(node).input(3) };
        if let Some(bias) = bias
            && matches!(self.specialised.value(bias), Value::Signal(_) | Value::Unknown)
        {
            return Err(self.fail(node, "its bias is not constant"));
        }
        let (before, layer) = match (self.is_layer(a), self.is_layer(b)) {
            (false, true) => (a, b),
            (true, false) => (b, a),
            _ => return Err(self.no_layer(node, [a, b])),
        };
        Ok(Summands { node, before: before.clone(), layer: layer.clone(), bias })
    }

    /// The linear layer that ends a residual branch.
    fn branch(self, summands: &Summands, expected: &str) -> Result<(Linear, Signal), Error> {
        let (mut linear, input) = self.linear(&summands.layer, Order::Tokens, summands.node, expected)?;
        if let Some(bias) = summands.bias {
            if self.specialised.value(bias).shape().iter().product::<usize>() != linear.outputs() {
                return Err(self.fail(summands.node, "its bias does not have an entry for each output"));
            }
            linear.add_bias(bias);
        }
        Ok((linear, input))
    }

    /// A gated layer that ends in the stream, and the stream ahead of it.
    fn mlp(self, stream: &Stream, user: usize) -> Result<(Mlp, Stream), Error> {
        let summands = self.summands(stream, user)?;
        let sum = summands.node;
        let (down, gated) = self.branch(&summands, "the gated layer's output")?;
        let (product, _) = self.whole_node(&gated, down.node, "the product of gate and up projection")?;
        let factors = self.factors(&gated)?;
        let signals: Vec<&Signal> = factors.iter().filter_map(norm::Factor::signal).collect();
        let (3, [a, b, c]) = (factors.len(), signals.as_slice()) else {
            return Err(self.unexpected(
                Part::Other,
                product,
                "the product of a gate, its sigmoid and an up projection",
            ));
        };
        let orders = [(a, b, c), (a, c, b), (b, a, c), (b, c, a), (c, a, b), (c, b, a)];
        let found = orders.into_iter().find_map(|(gate, sigmoid, up)| {
            let (node, _) = self.specialised.producer(sigmoid.base)?;
            let operand = self.node(node).input(0).map(|name| self.specialised.value(name));
            let of_gate = matches!(operand, Some(Value::Signal(operand)) if same_entries(operand, gate));
            (self.node(node).op_type == "Sigmoid" && sigmoid.is_whole() && of_gate).then_some((gate, node, up))
        });
        let Some((gate, sigmoid, up)) = found else {
            return Err(self.unexpected(
                Part::Other,
                product,
                "a gate multiplied by its own sigmoid (SiLU) and by an up projection",
            ));
        };
        let (gate, normed) = self.linear(gate, Order::Tokens, product, "the gate projection")?;
        let (up, up_normed) = self.linear(up, Order::Tokens, product, "the up projection")?;
        if !same_entries(&normed, &up_normed) {
            return Err(self.fail(up.node, "gate and up projection read different inputs"));
        }
        let (norm, normed) = self.norm(&normed, gate.node)?;
        self.same_stream(&normed, &summands.before, sum)?;
        Ok((Mlp { norm, gate, up, down, sigmoid, product, sum }, normed))
    }

    /// Checks that a norm reads the stream that its layer's output is added to.
    fn same_stream(self, normed: &Stream, added: &Signal, sum: usize) -> Result<(), Error> {
        let same = match normed {
            Stream::Value(signal) => same_entries(signal, &self.all_tokens(added)),
            // The fused node's sum has a name if anything else reads it.
            Stream::Sum(node) => {
                self.node(*node).outputs.get(3).copied().flatten() == Some(added.base) && added.is_whole()
            }
        };
        let scaled =
            matches!(normed, Stream::Value(signal) if signal.base == added.base && signal.scale != added.scale);
        if same {
            Ok(())
        } else if scaled {
            Err(self.fail(
                sum,
                "the residual stream is scaled where a layer's output is added to it, which is not supported",
            ))
        } else {
            Err(self.fail(
                sum,
                "a layer's output is added to another value than its norm reads: blocks in parallel, or norms after the \
                 layers, are not supported",
            ))
        }
    }
}

/// Whether two signals have the same entries in the same order, whatever their shape.
fn same_entries(a: &Signal, b: &Signal) -> bool {
    a.base == b.base && a.map == b.map && a.scale == b.scale
}
