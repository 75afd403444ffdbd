//! Reads an ONNX file into a graph over dense value numbers.
//!
//! Names become [`Name`]s, so that later steps index vectors. Initialisers keep their bytes as the file has them, or
//! the place in an external data file, and are decoded one at a time when they are asked for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::tensor_proto::DataLocation;
use onnx_protobuf::type_proto::Value as TypeValue;
use onnx_protobuf::{AttributeProto, GraphProto, Message, ModelProto, NodeProto, TensorProto, ValueInfoProto};

use super::dense::{self, Data, Dense, Kind};
use crate::Error;

/// Number of a value of the graph: an input, an initialiser, or an output of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Name(pub(super) u32);

impl Name {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// An attribute of a node, of the kinds that decoders use.
#[derive(Clone, Debug)]
pub(super) enum Attribute {
    Int(i64),
    Float(f32),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Tensor(Dense),
    /// A text, a graph or another kind that no supported operation depends on.
    Other,
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
    pub(super) fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.attributes.get(name)
    }

    pub(super) fn int(&self, name: &str) -> Option<i64> {
        match self.attributes.get(name) {
            Some(Attribute::Int(value)) => Some(*value),
            _ => None,
        }
    }

    pub(super) fn float(&self, name: &str) -> Option<f32> {
        match self.attributes.get(name) {
            Some(Attribute::Float(value)) => Some(*value),
            _ => None,
        }
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
}

/// Where an initialiser's bytes are.
#[derive(Clone, Debug)]
enum Bytes {
    /// In the model file, as raw bytes or as typed fields.
    Inline(Box<TensorProto>),
    /// In a region of another file; without a length, up to the file's end or as long as the shape asks.
    External { file: PathBuf, offset: u64, length: Option<u64> },
}

/// An initialiser: a tensor stored with the model.
#[derive(Clone, Debug)]
pub(super) struct Initializer {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) kind: Kind,
    data_type: i32,
    bytes: Bytes,
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
    /// Initialisers by value number.
    pub(super) initializers: BTreeMap<Name, Initializer>,
    /// Names of all values.
    pub(super) names: Vec<String>,
}

/// Reads a model file. External data files are opened only when a tensor is decoded.
pub(super) fn read(path: &Path) -> Result<OnnxGraph, Error> {
    let not_onnx = |message: String| Error::NotOnnx { path: path.to_owned(), message };
    let file = File::open(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let mut model =
        ModelProto::parse_from_reader(&mut BufReader::new(file)).map_err(|error| not_onnx(error.to_string()))?;
    if model.opset_import.is_empty() || model.graph.is_none() {
        return Err(not_onnx("it holds no graph or no operator set".to_owned()));
    }
    if model.ir_version < 3 {
        return Err(not_onnx(format!("IR version {} is older than 3", model.ir_version)));
    }
    let graph = model.graph.take().unwrap_or_default();
    let folder = path.parent().unwrap_or_else(|| Path::new("")).to_owned();
    Reader { folder, numbers: BTreeMap::new(), names: Vec::new() }.graph(graph)
}

struct Reader {
    folder: PathBuf,
    numbers: BTreeMap<String, Name>,
    names: Vec<String>,
}

impl Reader {
    fn number(&mut self, name: &str) -> Name {
        if let Some(&known) = self.numbers.get(name) {
            return known;
        }
        let number = Name(self.names.len() as u32);
        self.numbers.insert(name.to_owned(), number);
        self.names.push(name.to_owned());
        number
    }

    fn optional(&mut self, name: &str) -> Option<Name> {
        if name.is_empty() { None } else { Some(self.number(name)) }
    }

    fn graph(mut self, graph: GraphProto) -> Result<OnnxGraph, Error> {
        let mut initializers = BTreeMap::new();
        for tensor in graph.initializer {
            let number = self.number(&tensor.name);
            initializers.insert(number, self.initializer(tensor)?);
        }
        let mut inputs = Vec::new();
        for input in &graph.input {
            let value = self.number(&input.name);
            if !initializers.contains_key(&value) {
                inputs.push(interface_input(input, value)?);
            }
        }
        let nodes = graph.node.into_iter().map(|node| self.node(node)).collect::<Result<_, _>>()?;
        let outputs = graph.output.into_iter().map(|output| {
            let value = self.number(&output.name);
            (output.name, value)
        });
        let outputs = outputs.collect();
        Ok(OnnxGraph { nodes, inputs, outputs, initializers, names: self.names })
    }

    fn node(&mut self, node: NodeProto) -> Result<OnnxNode, Error> {
        let own = node.domain.is_empty() || node.domain == "ai.onnx";
        let op_type = if own { node.op_type } else { format!("{}::{}", node.domain, node.op_type) };
        let inputs = node.input.iter().map(|name| self.optional(name)).collect();
        let outputs = node.output.iter().map(|name| self.optional(name)).collect();
        let name = if node.name.is_empty() { node.output.first().cloned().unwrap_or_default() } else { node.name };
        let mut attributes = BTreeMap::new();
        for mut attribute in node.attribute {
            let key = std::mem::take(&mut attribute.name);
            attributes.insert(key, self.attribute(attribute, &name)?);
        }
        Ok(OnnxNode { name, op_type, inputs, outputs, attributes })
    }

    fn attribute(&self, mut attribute: AttributeProto, node: &str) -> Result<Attribute, Error> {
        Ok(match attribute.type_.enum_value() {
            Ok(AttributeType::INT) => Attribute::Int(attribute.i),
            Ok(AttributeType::FLOAT) => Attribute::Float(attribute.f),
            Ok(AttributeType::INTS) => Attribute::Ints(attribute.ints),
            Ok(AttributeType::FLOATS) => Attribute::Floats(attribute.floats),
            Ok(AttributeType::TENSOR) => match attribute.t.take() {
                Some(mut tensor) => {
                    if tensor.name.is_empty() {
                        node.clone_into(&mut tensor.name);
                    }
                    Attribute::Tensor(self.initializer(tensor)?.decode()?)
                }
                None => Attribute::Other,
            },
            _ => Attribute::Other,
        })
    }

    fn initializer(&self, tensor: TensorProto) -> Result<Initializer, Error> {
        let name = tensor.name.clone();
        let bad = |message: String| Error::BadTensor { tensor: name.clone(), message };
        let shape = tensor.dims.iter().map(|&extent| usize::try_from(extent)).collect::<Result<Vec<_>, _>>();
        let shape = shape.map_err(|_| bad(format!("its extents are {:?}", tensor.dims)))?;
        let count = shape.iter().try_fold(1_usize, |product, &extent| product.checked_mul(extent));
        if count.is_none_or(|count| count > 1 << 48) {
            return Err(bad(format!("its extents are {:?}", tensor.dims)));
        }
        let data_type = tensor.data_type;
        let kind = Kind::of_onnx(data_type).ok_or_else(|| bad(format!("element type {data_type} is not supported")))?;
        let external = tensor.data_location.enum_value() == Ok(DataLocation::EXTERNAL);
        let bytes = if external {
            let field =
                |key: &str| tensor.external_data.iter().find(|entry| entry.key == key).map(|entry| &entry.value);
            let number = |key: &str| match field(key).map(|text| text.parse::<u64>()) {
                None => Ok(None),
                Some(Ok(number)) => Ok(Some(number)),
                Some(Err(_)) => Err(bad(format!("the {key} of its external data is not a number"))),
            };
            let location = field("location").ok_or_else(|| bad("its external data has no location".to_owned()))?;
            let relative = Path::new(location);
            let inside = relative
                .components()
                .all(|part| matches!(part, std::path::Component::Normal(_) | std::path::Component::CurDir));
            if !inside {
                return Err(bad(format!("its external data `{location}` is outside the model's folder")));
            }
            let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
            Bytes::External { file: self.folder.join(relative), offset, length }
        } else {
            Bytes::Inline(Box::new(tensor))
        };
        Ok(Initializer { name, shape, kind, data_type, bytes })
    }
}

fn interface_input(input: &ValueInfoProto, value: Name) -> Result<OnnxInput, Error> {
    let bad = |what: &str| Error::Interface { message: format!("input `{}` {what}", input.name) };
    let Some(TypeValue::TensorType(tensor)) = input.type_.as_ref().and_then(|ty| ty.value.as_ref()) else {
        return Err(bad("is not a tensor"));
    };
    let kind = Kind::of_onnx(tensor.elem_type).ok_or_else(|| bad("has an unsupported element type"))?;
    let dims = tensor.shape.as_ref().map(|shape| shape.dim.as_slice()).unwrap_or_default();
    let shape = dims.iter().map(|dim| {
        if dim.has_dim_value() { usize::try_from(dim.dim_value()).ok() } else { dim.dim_param().parse().ok() }
    });
    Ok(OnnxInput { name: input.name.clone(), value, shape: shape.collect(), kind })
}

impl Initializer {
    /// Number of entries.
    pub(super) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The data file that the values lie in and that cannot be opened, if so.
    pub(super) fn missing_file(&self) -> Option<&Path> {
        match &self.bytes {
            Bytes::External { file, .. } if !file.is_file() => Some(file),
            _ => None,
        }
    }

    /// Decodes the values.
    pub(super) fn decode(&self) -> Result<Dense, Error> {
        let bad = |message: String| Error::BadTensor { tensor: self.name.clone(), message };
        match &self.bytes {
            Bytes::Inline(tensor) if tensor.raw_data.is_empty() => self.decode_fields(tensor).map_err(bad),
            Bytes::Inline(tensor) => Dense::from_raw(self.shape.clone(), self.data_type, &tensor.raw_data).map_err(bad),
            Bytes::External { file, offset, length } => {
                let missing = |_| Error::MissingExternalData { tensor: self.name.clone(), path: file.clone() };
                let mut source = File::open(file).map_err(missing)?;
                let size = source.metadata().map_err(missing)?.len();
                let length = length.unwrap_or(dense::byte_count(self.data_type, self.len()));
                if offset.checked_add(length).is_none_or(|end| end > size) {
                    return Err(bad(format!(
                        "its region of {length} bytes at {offset} exceeds {} of {size} bytes",
                        file.display()
                    )));
                }
                let failed = |source| Error::Read { path: file.clone(), source };
                source.seek(SeekFrom::Start(*offset)).map_err(failed)?;
                let mut bytes = vec![0; length as usize];
                source.read_exact(&mut bytes).map_err(failed)?;
                Dense::from_raw(self.shape.clone(), self.data_type, &bytes).map_err(bad)
            }
        }
    }

    /// Decodes the typed fields that a tensor without raw bytes has.
    fn decode_fields(&self, tensor: &TensorProto) -> Result<Dense, String> {
        let data = match self.data_type {
            1 => Data::F32(tensor.float_data.clone()),
            11 => Data::F64(tensor.double_data.clone()),
            7 => Data::Int(tensor.int64_data.clone()),
            9 => Data::Bool(tensor.int32_data.iter().map(|&word| word != 0).collect()),
            10 => Data::F32(tensor.int32_data.iter().map(|&word| half::f16::from_bits(word as u16).to_f32()).collect()),
            16 => {
                Data::F32(tensor.int32_data.iter().map(|&word| half::bf16::from_bits(word as u16).to_f32()).collect())
            }
            2 => Data::Bytes(tensor.int32_data.iter().map(|&word| word as u8).collect()),
            12 | 13 => Data::Int(tensor.uint64_data.iter().map(|&word| word as i64).collect()),
            3 | 5 | 6 => Data::Int(tensor.int32_data.iter().map(|&word| i64::from(word)).collect()),
            other => return Err(format!("element type {other} without raw bytes is not supported")),
        };
        if data.len() != self.len() {
            return Err(format!("{} values for the shape {:?}", data.len(), self.shape));
        }
        Ok(Dense { shape: self.shape.clone(), data })
    }
}
