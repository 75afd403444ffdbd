//! From the file's messages to one graph over value numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bytes::Bytes;
use prost::Message;

use super::proto::attribute_proto::AttributeType;
use super::proto::tensor_shape_proto::dimension::Value as Dimension;
use super::proto::type_proto::Value as TypeValue;
use super::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto,
};
use super::tensor::Files;
use super::{Attribute, Initializer, Name, OnnxGraph, OnnxInput, OnnxNode, Subgraph, limits};
use crate::Error;
use crate::import::dense::{Data, Dense, Kind};

/// Protobuf's own limit of a message.
const LARGEST_FILE: u64 = 1 << 31;

/// Most functions within functions, and graphs within graphs.
const DEEPEST: usize = 32;

/// The graph of a file as it is written, but for functions and constants.
pub(super) fn file(path: &Path) -> Result<OnnxGraph, Error> {
    let not_onnx = |message: String| Error::NotOnnx { path: path.to_owned(), message };
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > LARGEST_FILE {
        return Err(not_onnx(format!(
            "{length} bytes are more than the 2 GiB that the format allows; keep the weights in an external data file"
        )));
    }
    // Raw tensor data stays in this buffer, which the initialisers share.
    let bytes = Bytes::from(std::fs::read(path).map_err(failed)?);
    let budget = limits::check(&bytes).map_err(not_onnx)?;
    let files = Files::of(path, &bytes);
    let mut model = ModelProto::decode(bytes).map_err(|error| not_onnx(error.to_string()))?;
    let opset = model.opset_import.iter().find(|opset| matches!(opset.domain(), "" | "ai.onnx"));
    let opset = opset.map_or(i64::MAX, OperatorSetIdProto::version);
    let (false, Some(graph)) = (model.opset_import.is_empty(), model.graph.take()) else {
        return Err(not_onnx("it holds no graph or no operator set".to_owned()));
    };
    if model.ir_version() < 3 {
        return Err(not_onnx(format!("IR version {} is older than 3", model.ir_version())));
    }
    let functions = model.functions.iter().map(|function| (key(function), function)).collect();
    let result = OnnxGraph {
        nodes: Vec::new(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        initializers: BTreeMap::new(),
        names: Vec::new(),
        notes: BTreeSet::new(),
    };
    Reader { files, functions, opset, depth: 0, budget, result }.model(graph)
}

/// Domain, name and overload of a function.
type Key<'m> = (&'m str, &'m str, &'m str);

fn key(function: &FunctionProto) -> Key<'_> {
    (domain(function.domain()), function.name(), function.overload())
}

/// ONNX's own domain has two spellings.
fn domain(name: &str) -> &str {
    if name == "ai.onnx" { "" } else { name }
}

/// Names that a graph or function gives to values, and those of the graph around it.
struct Scope<'s> {
    around: Option<&'s Scope<'s>>,
    names: BTreeMap<String, Option<Name>>,
    /// What a function's attributes refer to: those of the node that calls it.
    attributes: Option<&'s BTreeMap<String, Attribute>>,
    /// Ahead of the names of nodes and values, for messages.
    prefix: String,
}

impl<'s> Scope<'s> {
    fn within(around: &'s Scope<'s>) -> Self {
        let (attributes, prefix) = (around.attributes, around.prefix.clone());
        Self { around: Some(around), names: BTreeMap::new(), attributes, prefix }
    }

    /// The names of the scope itself or of the nearest one around it that knows a value.
    fn knowing(&self, name: &str) -> Option<&BTreeMap<String, Option<Name>>> {
        if self.names.contains_key(name) {
            return Some(&self.names);
        }
        self.around.and_then(|around| around.knowing(name))
    }
}

struct Reader<'m> {
    files: Files,
    functions: BTreeMap<Key<'m>, &'m FunctionProto>,
    /// Version of ONNX's own operator set.
    opset: i64,
    depth: usize,
    /// Bytes that nodes may still take: a function is copied wherever it is called.
    budget: u64,
    result: OnnxGraph,
}

impl Reader<'_> {
    /// Gives a value a number in a scope, unless it has one there.
    fn define(&mut self, scope: &mut Scope<'_>, name: &str) -> Option<Name> {
        if name.is_empty() {
            return None;
        }
        if let Some(&known) = scope.names.get(name) {
            return known;
        }
        let number = self.result.fresh(format!("{}{name}", scope.prefix));
        scope.names.insert(name.to_owned(), Some(number));
        Some(number)
    }

    /// The number of a value that is used; one that nothing gives gets a number too, and is missed when it is needed.
    fn used(&mut self, scope: &mut Scope<'_>, name: &str) -> Option<Name> {
        match scope.knowing(name) {
            Some(names) => names[name],
            None => self.define(scope, name),
        }
    }

    fn model(mut self, mut graph: GraphProto) -> Result<OnnxGraph, Error> {
        let mut scope = Scope { around: None, names: BTreeMap::new(), attributes: None, prefix: String::new() };
        self.initializers(&mut scope, &mut graph)?;
        for input in &graph.input {
            if let Some(value) = self.define(&mut scope, input.name())
                && !self.result.initializers.contains_key(&value)
            {
                self.result.inputs.push(interface_input(input, value)?);
            }
        }
        self.result.nodes = self.body(&mut scope, &graph.node)?;
        for output in &graph.output {
            if let Some(value) = self.used(&mut scope, output.name()) {
                self.result.outputs.push((output.name().to_owned(), value));
            }
        }
        Ok(self.result)
    }

    /// Takes the initialisers out of a graph.
    fn initializers(&mut self, scope: &mut Scope<'_>, graph: &mut GraphProto) -> Result<(), Error> {
        for tensor in std::mem::take(&mut graph.initializer) {
            let name = tensor.name().to_owned();
            let initializer = Initializer::new(name.clone(), tensor, &self.files)?;
            self.store(scope, &name, initializer)?;
        }
        for tensor in std::mem::take(&mut graph.sparse_initializer) {
            let name = tensor.values.as_ref().map(|values| values.name().to_owned()).unwrap_or_default();
            let initializer = Initializer::sparse(name.clone(), tensor, &self.files)?;
            self.store(scope, &name, initializer)?;
        }
        Ok(())
    }

    fn store(&mut self, scope: &mut Scope<'_>, name: &str, initializer: Initializer) -> Result<(), Error> {
        if let Some(number) = self.define(scope, name)
            && self.result.initializers.insert(number, initializer).is_some()
        {
            return Err(Error::BadTensor { tensor: name.to_owned(), message: "it is given twice".to_owned() });
        }
        Ok(())
    }

    /// Takes memory for a node out of the budget.
    fn charge(&mut self, node: &str, bytes: u64) -> Result<(), Error> {
        self.budget = self.budget.checked_sub(bytes).ok_or_else(|| Error::BadNode {
            node: node.to_owned(),
            op_type: "node".to_owned(),
            message: "with it, the model's functions and constants take too much memory".to_owned(),
        })?;
        Ok(())
    }

    /// The nodes of a graph or function. All that they give is known ahead of the first one: any order is allowed.
    fn body(&mut self, scope: &mut Scope<'_>, protos: &[NodeProto]) -> Result<Vec<OnnxNode>, Error> {
        for name in protos.iter().flat_map(|node| &node.output) {
            self.define(scope, name);
        }
        let mut nodes = Vec::new();
        for proto in protos {
            self.node(scope, proto, &mut nodes)?;
        }
        Ok(nodes)
    }

    fn node(&mut self, scope: &mut Scope<'_>, proto: &NodeProto, nodes: &mut Vec<OnnxNode>) -> Result<(), Error> {
        let own_name =
            if proto.name().is_empty() { proto.output.first().map_or("", |name| name) } else { proto.name() };
        let domain = domain(proto.domain());
        let op_type = proto.op_type();
        let op_type = if domain.is_empty() { op_type.to_owned() } else { format!("{domain}::{op_type}") };
        let words = proto.input.iter().chain(&proto.output).map(|name| scope.prefix.len() + name.len() + 64);
        self.charge(own_name, 512 + words.sum::<usize>() as u64)?;
        let mut node = OnnxNode {
            name: format!("{}{own_name}", scope.prefix),
            op_type,
            inputs: proto.input.iter().map(|name| self.used(scope, name)).collect(),
            outputs: proto.output.iter().map(|name| self.used(scope, name)).collect(),
            attributes: BTreeMap::new(),
        };
        for attribute in &proto.attribute {
            if let Some(value) = self.attribute(scope, attribute, &node)? {
                self.charge(own_name, cost(&value))?;
                node.attributes.insert(attribute.name().to_owned(), value);
            }
        }
        if let Some(&function) = self.functions.get(&(domain, proto.op_type(), proto.overload())) {
            return self.call(&node, function, nodes);
        }
        match node.op_type.as_str() {
            "Constant" => self.constant(node, proto),
            "com.microsoft::QuickGelu" if node.float("alpha") == Some(1.0) => self.silu(&node, nodes),
            "Swish" if node.float("alpha") == Some(1.0) => self.silu(&node, nodes),
            _ => {
                // Old softmaxes have another default, over all axes from the second one on.
                if node.op_type == "Softmax" && self.opset < 13 {
                    node.attributes.entry("axis".to_owned()).or_insert(Attribute::Int(1));
                }
                nodes.push(node);
                Ok(())
            }
        }
    }

    /// The nodes of a function in place of one that calls it.
    fn call(&mut self, node: &OnnxNode, function: &FunctionProto, nodes: &mut Vec<OnnxNode>) -> Result<(), Error> {
        self.deeper(node)?;
        let mut attributes = node.attributes.clone();
        let prefix = format!("{}/", node.name);
        let names = function.input.iter().enumerate().map(|(index, name)| (name.clone(), node.input(index)));
        let names: BTreeMap<String, Option<Name>> = names.collect();
        let outside = Scope { around: None, names: BTreeMap::new(), attributes: None, prefix: prefix.clone() };
        for attribute in &function.attribute_proto {
            if let Some(default) = self.attribute(&outside, attribute, node)? {
                attributes.entry(attribute.name().to_owned()).or_insert(default);
            }
        }
        let mut scope = Scope { around: None, names, attributes: Some(&attributes), prefix };
        let mut copies = Vec::new();
        for (name, output) in function.output.iter().zip(&node.outputs) {
            match (scope.names.get(name), output) {
                (Some(&given), &output) => copies.push((given, output)),
                (None, Some(output)) => drop(scope.names.insert(name.clone(), Some(*output))),
                (None, None) => {}
            }
        }
        nodes.extend(self.body(&mut scope, &function.node)?);
        // An input, or an output that is named twice, is passed on.
        for (given, output) in copies {
            let (name, op_type) = (node.name.clone(), "Identity".to_owned());
            let (inputs, outputs) = (vec![given], vec![output]);
            nodes.push(OnnxNode { name, op_type, inputs, outputs, attributes: BTreeMap::new() });
        }
        self.depth -= 1;
        Ok(())
    }

    fn deeper(&mut self, node: &OnnxNode) -> Result<(), Error> {
        self.depth += 1;
        if self.depth > DEEPEST {
            let message =
                format!("functions or graphs are nested more than {DEEPEST} deep, or a function calls itself");
            return Err(node.error(message));
        }
        Ok(())
    }

    /// A graph inside a node, which sees the names around it.
    fn subgraph(&mut self, around: &Scope<'_>, node: &OnnxNode, proto: &GraphProto) -> Result<Subgraph, Error> {
        self.deeper(node)?;
        let mut proto = proto.clone();
        let mut scope = Scope::within(around);
        self.initializers(&mut scope, &mut proto)?;
        for input in &proto.input {
            self.define(&mut scope, input.name());
        }
        let nodes = self.body(&mut scope, &proto.node)?;
        let outputs = proto.output.iter().filter_map(|output| self.used(&mut scope, output.name())).collect();
        self.depth -= 1;
        Ok(Subgraph { nodes, outputs })
    }

    /// An attribute's value; none if it refers to one that the caller of a function does not give.
    fn attribute(
        &mut self,
        scope: &Scope<'_>,
        proto: &AttributeProto,
        node: &OnnxNode,
    ) -> Result<Option<Attribute>, Error> {
        if !proto.ref_attr_name().is_empty() {
            return Ok(scope.attributes.and_then(|attributes| attributes.get(proto.ref_attr_name())).cloned());
        }
        Ok(Some(match proto.r#type() {
            AttributeType::Int => Attribute::Int(proto.i()),
            AttributeType::Float => Attribute::Float(proto.f()),
            AttributeType::Ints => Attribute::Ints(proto.ints.clone()),
            AttributeType::Floats => Attribute::Floats(proto.floats.clone()),
            AttributeType::String => Attribute::Text(String::from_utf8_lossy(proto.s()).into_owned()),
            AttributeType::Tensor => match &proto.t {
                Some(tensor) => Attribute::Tensor(Initializer::new(node.name.clone(), tensor.clone(), &self.files)?),
                None => Attribute::Other,
            },
            AttributeType::SparseTensor => match &proto.sparse_tensor {
                Some(tensor) => Attribute::Tensor(Initializer::sparse(node.name.clone(), tensor.clone(), &self.files)?),
                None => Attribute::Other,
            },
            AttributeType::Graph => match &proto.g {
                Some(graph) => Attribute::Graph(self.subgraph(scope, node, graph)?),
                None => Attribute::Other,
            },
            _ => Attribute::Other,
        }))
    }

    /// Stores a constant's value as an initialiser.
    fn constant(&mut self, mut node: OnnxNode, proto: &NodeProto) -> Result<(), Error> {
        let (Some((key, value)), true) = (node.attributes.pop_first(), node.attributes.is_empty()) else {
            return Err(node.error("a constant has one value"));
        };
        let floats = |shape: Vec<usize>, values: Vec<f32>| Dense { shape, data: Data::F32(values) };
        let of_values = |values| Initializer::of_values(node.name.clone(), values);
        let initializer = match (key.as_str(), value) {
            ("value" | "sparse_value", Attribute::Tensor(tensor)) => tensor,
            ("value_float", Attribute::Float(value)) => of_values(floats(Vec::new(), vec![value])),
            ("value_floats", Attribute::Floats(values)) => of_values(floats(vec![values.len()], values)),
            ("value_int", Attribute::Int(value)) => of_values(Dense::ints(Vec::new(), vec![value])),
            ("value_ints", Attribute::Ints(values)) => of_values(Dense::int_vector(values)),
            _ => return Err(node.error(format!("its value `{key}` is of an unsupported kind"))),
        };
        let Some(Some(output)) = node.outputs.first().copied() else {
            return Err(node.error("it has no output"));
        };
        if self.result.initializers.insert(output, initializer).is_some() {
            let output = proto.output.first().map_or("", |name| name);
            return Err(node.error(format!("its output `{output}` is given twice")));
        }
        Ok(())
    }

    /// x·sigmoid(x), written as its two steps.
    fn silu(&mut self, node: &OnnxNode, nodes: &mut Vec<OnnxNode>) -> Result<(), Error> {
        let input = node.input(0).ok_or_else(|| node.error("it has no input"))?;
        let gate = Some(self.result.fresh(format!("{}/sigmoid", node.name)));
        nodes.push(node.step("Sigmoid", vec![Some(input)], vec![gate]));
        nodes.push(node.step("Mul", vec![Some(input), gate], node.outputs.clone()));
        Ok(())
    }
}

/// Bytes that a copy of an attribute takes.
fn cost(attribute: &Attribute) -> u64 {
    match attribute {
        Attribute::Int(_) | Attribute::Float(_) | Attribute::Other => 0,
        Attribute::Ints(values) => 8 * values.len() as u64,
        Attribute::Floats(values) => 4 * values.len() as u64,
        Attribute::Text(text) => text.len() as u64,
        Attribute::Tensor(tensor) => tensor.copied_bytes(),
        Attribute::Graph(graph) => graph.nodes.iter().map(|node| 512 + 8 * node.reads().len() as u64).sum(),
    }
}

fn interface_input(input: &ValueInfoProto, value: Name) -> Result<OnnxInput, Error> {
    let bad = |what: &str| Error::Interface { message: format!("input `{}` {what}", input.name()) };
    let Some(TypeValue::TensorType(tensor)) = input.r#type.as_ref().and_then(|ty| ty.value.as_ref()) else {
        return Err(bad("is not a tensor"));
    };
    let kind = Kind::of_onnx(tensor.elem_type()).ok_or_else(|| bad("has an unsupported element type"))?;
    let dims = tensor.shape.as_ref().map(|shape| shape.dim.as_slice()).unwrap_or_default();
    let shape = dims.iter().map(|dim| match &dim.value {
        Some(Dimension::DimValue(extent)) => usize::try_from(*extent).ok(),
        Some(Dimension::DimParam(symbol)) => symbol.parse().ok(),
        None => None,
    });
    Ok(OnnxInput { name: input.name().to_owned(), value, shape: shape.collect(), kind })
}
