//! Specialises a graph to one batch entry and known lengths, folds everything that is then constant, and follows views.
//!
//! With batch 1, a given number of new tokens and of past tokens, an attention mask of ones and consecutive positions,
//! all shapes are known, and shape arithmetic, masks and rotary tables become constants. What depends on the token is
//! held as a [`Signal`]: entries of one computed tensor, the base, rearranged and scaled. `Reshape`, `Transpose`,
//! `Slice`, `Split`, `Expand`, `Concat` of parts of one base, `Neg` and products with one number only change the
//! rearrangement, so that exporters that arrive at the same numbers along different views give equal signals.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::dense::{Dense, Kind, Shared};
use super::evaluate::{self, Operands, entries, shape_of};
use super::onnx::{Name, OnnxGraph, OnnxNode};
use super::recognise::unsupported_feature;
use super::{infer, inputs};
use crate::Error;

/// Stored tensors with more entries than this, and what is computed from them, stay in the file until the recognised
/// model asks for them.
const FOLDED_ENTRIES: usize = 4096;

/// Most entries of a folded constant that is computed from small ones: a mask or a rotary table.
const LARGEST_CONSTANT: usize = 1 << 25;

/// Most bytes of all folded constants of a graph.
const CONSTANT_BYTES: usize = 1 << 30;

/// What a graph is specialised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Tokens in the caches.
    pub(super) past: usize,
    /// New tokens.
    pub(super) sequence: usize,
}

/// Entries of one tensor, rearranged: entry i is `scale·base[map[i]]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Signal {
    /// The tensor: an input of the graph or an output of a node that computes.
    pub(super) base: Name,
    /// Entries of the base.
    pub(super) base_len: usize,
    pub(super) shape: Vec<usize>,
    pub(super) kind: Kind,
    /// Position in the base plus 1, negative for an entry with the opposite sign; `None` for all entries in order.
    pub(super) map: Option<Arc<Vec<i64>>>,
    pub(super) scale: f64,
}

impl Signal {
    pub(super) fn whole(base: Name, shape: Vec<usize>, kind: Kind) -> Self {
        Self { base, base_len: shape.iter().product(), shape, kind, map: None, scale: 1.0 }
    }

    pub(super) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether this is the base itself, but for its shape.
    pub(super) fn is_whole(&self) -> bool {
        self.map.is_none() && self.scale == 1.0
    }

    /// The map, written out.
    pub(super) fn indices(&self) -> Arc<Vec<i64>> {
        self.map.clone().unwrap_or_else(|| Arc::new((1..=self.len() as i64).collect()))
    }

    /// The same entries with a scale that is not negative.
    pub(super) fn with_positive_scale(&self) -> Self {
        if self.scale >= 0.0 {
            return self.clone();
        }
        let map = self.indices().iter().map(|index| -index).collect();
        Self { map: Some(Arc::new(map)), scale: -self.scale, ..self.clone() }
    }
}

/// What is known of a value.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Its entries.
    Constant(Shared),
    /// That it is a function of initialisers, which are left in the file.
    Parameter { shape: Vec<usize>, kind: Kind },
    /// That it depends on the graph's inputs.
    Signal(Signal),
    /// Nothing, since an operation ahead of it is not supported.
    Unknown,
}

impl Value {
    pub(super) fn shape(&self) -> &[usize] {
        match self {
            Self::Constant(dense) => &dense.shape,
            Self::Parameter { shape, .. } => shape,
            Self::Signal(signal) => &signal.shape,
            Self::Unknown => &[],
        }
    }

    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Constant(dense) => dense.kind(),
            Self::Parameter { kind, .. } => *kind,
            Self::Signal(signal) => signal.kind,
            Self::Unknown => Kind::F32,
        }
    }
}

/// A specialised graph.
pub(super) struct Specialised<'g> {
    pub(super) graph: &'g OnnxGraph,
    pub(super) sizes: Sizes,
    values: Vec<Option<Value>>,
    /// For each value the node that gives it, and as which output.
    producers: Vec<Option<(usize, usize)>>,
    /// Bytes of the constants that were computed.
    constant_bytes: usize,
    maps: Maps,
}

/// Entries of a map that are looked at first.
const SAMPLES: usize = 8;

/// The map of a [`Signal`].
type Map = Arc<Vec<i64>>;

/// Maps of signals, equal ones held once: layers rearrange alike, and each map has an entry for every number of a tensor.
#[derive(Default)]
struct Maps {
    /// By their length and some of their entries.
    known: BTreeMap<(usize, [i64; SAMPLES]), Vec<Map>>,
}

impl Maps {
    /// The signal with a map that equal ones have too.
    fn shared(&mut self, mut signal: Signal) -> Signal {
        if let Some(map) = signal.map.as_mut().filter(|map| !map.is_empty()) {
            let samples = std::array::from_fn(|sample| map[sample * (map.len() - 1) / (SAMPLES - 1)]);
            let alike = self.known.entry((map.len(), samples)).or_default();
            match alike.iter().find(|known| *known == map) {
                Some(known) => *map = Arc::clone(known),
                None => alike.push(Arc::clone(map)),
            }
        }
        signal
    }
}

impl<'g> Specialised<'g> {
    /// Specialises a graph; with `wanted`, only as much of it as those values depend on, with inputs of unknown shape
    /// left unknown. `past_shape` gives key-value heads and head dimension of past inputs whose shape in the file is
    /// symbolic.
    pub(super) fn new(
        graph: &'g OnnxGraph,
        sizes: Sizes,
        past_shape: Option<[usize; 2]>,
        wanted: Option<&[Name]>,
    ) -> Result<Self, Error> {
        let producers = vec![None; graph.names.len()];
        let mut this = Self {
            graph,
            sizes,
            values: vec![None; graph.names.len()],
            producers,
            constant_bytes: 0,
            maps: Maps::default(),
        };
        for (index, node) in graph.nodes.iter().enumerate() {
            for (output, name) in node.outputs.iter().enumerate() {
                let Some(name) = name else { continue };
                let stored =
                    graph.initializers.contains_key(name) || graph.inputs.iter().any(|input| input.value == *name);
                if stored || this.producers[name.index()].replace((index, output)).is_some() {
                    return Err(this.not_llama(index, "it gives a value that is already given"));
                }
            }
        }
        let needed = wanted.map(|wanted| this.ancestors(wanted));
        let read = needed.as_ref().zip(wanted).map(|(needed, wanted)| this.read(needed, wanted));
        let is_read = |name: Name| read.as_ref().is_none_or(|read| read[name.index()]);
        for (&name, initializer) in graph.initializers.iter().filter(|(name, _)| is_read(**name)) {
            let large = initializer.kind != Kind::Bool && initializer.len() > FOLDED_ENTRIES;
            this.values[name.index()] = Some(if large || initializer.missing_file().is_some() {
                Value::Parameter { shape: initializer.shape.clone(), kind: initializer.kind }
            } else {
                Value::Constant(Arc::new(initializer.decode()?))
            });
        }
        for input in graph.inputs.iter().filter(|input| is_read(input.value)) {
            let value = match inputs::value(graph, input, sizes, past_shape) {
                Err(_) if wanted.is_some() => Value::Unknown,
                value => value?,
            };
            this.values[input.value.index()] = Some(value);
        }
        let mut unsupported: Vec<usize> = Vec::new();
        for (index, node) in graph.nodes.iter().enumerate() {
            if needed.as_ref().is_none_or(|needed| needed[index]) {
                let supported = this.node(node).map_err(|message| this.not_llama(index, message))?;
                if !supported {
                    unsupported.push(index);
                }
            }
        }
        if let Some(&first) = unsupported.first() {
            let all: BTreeSet<&str> = unsupported.iter().map(|&index| graph.nodes[index].op_type.as_str()).collect();
            return Err(Error::UnsupportedOps {
                node: graph.nodes[first].name.clone(),
                op_type: graph.nodes[first].op_type.clone(),
                feature: unsupported.iter().find_map(|&node| unsupported_feature(graph, node)),
                all: all.into_iter().map(ToOwned::to_owned).collect(),
            });
        }
        Ok(this)
    }

    /// An error about a node.
    pub(super) fn not_llama(&self, node: usize, message: impl Into<String>) -> Error {
        let node = &self.graph.nodes[node];
        Error::NotLlama { node: node.name.clone(), op_type: node.op_type.clone(), message: message.into() }
    }

    /// What is known of a value.
    pub(super) fn value(&self, name: Name) -> &Value {
        self.values[name.index()].as_ref().unwrap_or(&Value::Unknown)
    }

    /// The node that gives a value, and as which output; `None` for inputs and initialisers.
    pub(super) fn producer(&self, name: Name) -> Option<(usize, usize)> {
        self.producers[name.index()]
    }

    /// Decodes or computes a value that does not depend on inputs.
    pub(super) fn resolve(&self, name: Name) -> Result<Dense, Error> {
        if let Value::Constant(dense) = self.value(name) {
            return Ok(dense.as_ref().clone());
        }
        if let Some(initializer) = self.graph.initializers.get(&name) {
            return initializer.decode();
        }
        let not_constant =
            || Error::Interface { message: format!("`{}` is not a constant", self.graph.names[name.index()]) };
        // Nodes stand in the order of computation; what the last of its readers has read is given up.
        let needed = self.computed(name);
        let mut readers: BTreeMap<Name, usize> = BTreeMap::from([(name, 1)]);
        for &index in &needed {
            self.graph.nodes[index].inputs.iter().flatten().for_each(|&input| *readers.entry(input).or_default() += 1);
        }
        let mut at_hand: BTreeMap<Name, Shared> = BTreeMap::new();
        for index in needed {
            let node = &self.graph.nodes[index];
            for &input in node.inputs.iter().flatten() {
                if at_hand.contains_key(&input) {
                    continue;
                }
                let value = match (self.value(input), self.graph.initializers.get(&input)) {
                    (Value::Constant(constant), _) => constant.clone(),
                    (_, Some(initializer)) => Arc::new(initializer.decode()?),
                    _ => return Err(not_constant()),
                };
                at_hand.insert(input, value);
            }
            let values = node.inputs.iter().map(|input| input.and_then(|input| at_hand.get(&input).map(Arc::as_ref)));
            let outputs = evaluate::evaluate(&Operands { node, values: values.collect() });
            let outputs = outputs.map_err(|message| self.not_llama(index, message))?;
            for input in node.inputs.iter().flatten() {
                if let Some(left) = readers.get_mut(input) {
                    *left -= 1;
                    if *left == 0 {
                        at_hand.remove(input);
                    }
                }
            }
            let given = node.outputs.iter().zip(outputs).filter_map(|(output, value)| Some(((*output)?, value)));
            at_hand.extend(given.filter(|(output, _)| readers.contains_key(output)).map(|(o, v)| (o, Arc::new(v))));
        }
        let result = at_hand.remove(&name).ok_or_else(not_constant)?;
        Ok(Arc::try_unwrap(result).unwrap_or_else(|shared| shared.as_ref().clone()))
    }

    /// The nodes that a value is computed by from constants and initialisers.
    pub(super) fn computed(&self, name: Name) -> BTreeSet<usize> {
        let mut needed = BTreeSet::new();
        let mut pending = vec![name];
        while let Some(name) = pending.pop() {
            if !matches!(self.value(name), Value::Constant(_))
                && let Some((index, _)) = self.producer(name)
                && needed.insert(index)
            {
                pending.extend(self.graph.nodes[index].inputs.iter().flatten());
            }
        }
        needed
    }

    /// The initialiser that a parameter is a cast or transposition of.
    pub(super) fn root(&self, mut name: Name) -> Name {
        while let Some(input) = self.producer(name).and_then(|(index, _)| self.graph.nodes[index].input(0)) {
            name = input;
        }
        name
    }

    /// The first initialiser in the file's order whose external data file is missing, with that file.
    pub(super) fn missing_data(graph: &OnnxGraph) -> Option<(&str, &Path)> {
        graph
            .initializers
            .values()
            .find_map(|initializer| initializer.missing_file().map(|file| (initializer.name.as_str(), file)))
    }

    /// The nodes that the logits depend on.
    pub(super) fn needed_for_logits(&self) -> Vec<usize> {
        let needed = inputs::logits(self.graph).map(|(_, logits)| self.ancestors(&[*logits])).unwrap_or_default();
        (0..needed.len()).filter(|&node| needed[node]).collect()
    }

    /// For each node whether one of the values depends on it.
    fn ancestors(&self, wanted: &[Name]) -> Vec<bool> {
        let mut needed = vec![false; self.graph.nodes.len()];
        let mut pending: Vec<Name> = wanted.to_vec();
        while let Some(name) = pending.pop() {
            if let Some((index, _)) = self.producer(name)
                && !needed[index]
            {
                needed[index] = true;
                pending.extend(self.graph.nodes[index].inputs.iter().flatten());
            }
        }
        needed
    }

    /// For each value whether one of the nodes reads it, or it is wanted itself.
    fn read(&self, needed: &[bool], wanted: &[Name]) -> Vec<bool> {
        let mut read = vec![false; self.graph.names.len()];
        let inputs = self.graph.nodes.iter().zip(needed).filter(|(_, needed)| **needed);
        let inputs = inputs.flat_map(|(node, _)| node.inputs.iter().flatten());
        inputs.chain(wanted).for_each(|name| read[name.index()] = true);
        read
    }

    /// Takes in one node; false if its operation is not supported.
    fn node(&mut self, node: &OnnxNode) -> Result<bool, String> {
        let inputs = node.inputs.iter().map(|input| match input {
            None => Ok(None),
            Some(name) => match &self.values[name.index()] {
                Some(value) => Ok(Some(value.clone())),
                None => Err(format!("its input `{}` is not computed ahead of it", self.graph.names[name.index()])),
            },
        });
        let inputs: Vec<Option<Value>> = inputs.collect::<Result<_, String>>()?;
        if inputs.iter().flatten().any(|value| matches!(value, Value::Unknown)) {
            self.set(node, |_, _| Some(Value::Unknown));
            return Ok(evaluate::is_known(&node.op_type) || infer::is_known(&node.op_type));
        }
        if let ("Shape", Some(Some(value))) = (node.op_type.as_str(), inputs.first()) {
            let shape = Arc::new(shape_of(node, value.shape()));
            self.set(node, |_, _| Some(Value::Constant(shape.clone())));
            return Ok(true);
        }
        if inputs.iter().flatten().all(|value| !matches!(value, Value::Signal(_))) && evaluate::is_known(&node.op_type)
        {
            return self.fold(node, &inputs).map(|()| true);
        }
        if let Some(results) = super::views::follow(node, &inputs)? {
            let shared: Vec<Signal> = results.into_iter().map(|signal| self.maps.shared(signal)).collect();
            let mut results = shared.into_iter();
            self.set(node, |_, _| results.next().map(Value::Signal));
            return Ok(true);
        }
        if let Some(result) = self.guard(node, &inputs) {
            self.set(node, |_, _| Some(Value::Signal(result.clone())));
            return Ok(true);
        }
        if !infer::is_known(&node.op_type) {
            self.set(node, |_, _| Some(Value::Unknown));
            return Ok(false);
        }
        let results = infer::infer(node, &inputs, self.sizes)?;
        results.iter().try_for_each(|(shape, _)| infer::check_size(shape))?;
        self.set(node, |name, output| {
            let (shape, kind) = results.get(output)?.clone();
            Some(Value::Signal(Signal::whole(name, shape, kind)))
        });
        Ok(true)
    }

    /// Sets a node's outputs, by their name and number.
    fn set(&mut self, node: &OnnxNode, mut value: impl FnMut(Name, usize) -> Option<Value>) {
        for (output, name) in node.outputs.iter().enumerate() {
            let result = name.and_then(|name| value(name, output));
            if let Some(name) = name {
                self.values[name.index()] = Some(result.unwrap_or(Value::Unknown));
            }
        }
    }

    /// A node whose inputs are constants or parameters: computed if the result is small or comes from small ones, else
    /// its shape is enough for now.
    fn fold(&mut self, node: &OnnxNode, inputs: &[Option<Value>]) -> Result<(), String> {
        let shapes = infer::constant_shapes(node, inputs)?;
        let at_hand = constants(inputs).is_some();
        if let Some(shapes) = &shapes {
            let entries = shapes.iter().map(|(shape, _)| entries(shape)).collect::<Result<Vec<_>, _>>()?;
            let largest = entries.into_iter().max().unwrap_or(0);
            // A fill of a size that the file gives stands for weights if it is too large to be anything else.
            let stored = node.input(0).is_some_and(|shape| self.graph.initializers.contains_key(&shape));
            let stays = node.op_type == "ConstantOfShape" && stored && shapes.iter().all(|(_, kind)| kind.is_float());
            let limit = if at_hand && !stays { LARGEST_CONSTANT } else { FOLDED_ENTRIES };
            if largest > limit || (!at_hand && Self::missing_data(self.graph).is_some()) {
                self.set(node, |_, output| {
                    let (shape, kind) = shapes.get(output)?.clone();
                    Some(Value::Parameter { shape, kind })
                });
                return Ok(());
            }
        }
        let values = node.inputs.iter().zip(inputs).map(|(&name, input)| match (name, input) {
            (Some(_), Some(Value::Constant(constant))) => Ok(Some(constant.clone())),
            (Some(name), Some(_)) => self.resolve(name).map(|value| Some(Arc::new(value))),
            _ => Ok(None),
        });
        let values: Vec<Option<Shared>> = values.collect::<Result<_, Error>>().map_err(|error| error.to_string())?;
        let values = values.iter().map(Option::as_deref).collect();
        let results = evaluate::evaluate(&Operands { node, values })?;
        self.constant_bytes += results.iter().map(|result| 8 * result.len()).sum::<usize>();
        if self.constant_bytes > CONSTANT_BYTES {
            return Err(format!("with it, constants take more than {} MiB", CONSTANT_BYTES >> 20));
        }
        let mut results = results.into_iter().map(Arc::new);
        self.set(node, |_, _| results.next().map(Value::Constant));
        Ok(())
    }

    /// `Where(IsNaN(x), 0, x)` is x: the guard of a softmax against rows that are masked everywhere.
    fn guard(&self, node: &OnnxNode, inputs: &[Option<Value>]) -> Option<Signal> {
        let ("Where", [Some(Value::Signal(condition)), Some(Value::Constant(replacement)), Some(Value::Signal(value))]) =
            (node.op_type.as_str(), inputs)
        else {
            return None;
        };
        let (guard, _) = self.producer(condition.base)?;
        let guard = &self.graph.nodes[guard];
        let Value::Signal(tested) = self.value(guard.input(0)?) else {
            return None;
        };
        let harmless = guard.op_type == "IsNaN" && replacement.to_f64().iter().all(|&entry| entry == 0.0);
        (harmless && tested == value && condition.shape == value.shape).then(|| value.clone())
    }
}

/// A node's inputs, if all that are given are constants.
pub(super) fn constants(inputs: &[Option<Value>]) -> Option<Vec<Option<&Dense>>> {
    inputs
        .iter()
        .map(|input| match input {
            None => Some(None),
            Some(Value::Constant(dense)) => Some(Some(dense.as_ref())),
            Some(_) => None,
        })
        .collect()
}
