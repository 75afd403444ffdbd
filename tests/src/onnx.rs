//! ONNX graphs as tests build, read and change them.

// Generated from ONNX's schema for the importer, which does not show it.
#[path = "../../compiler/src/import/onnx/proto.rs"]
#[rustfmt::skip]
#[allow(clippy::all, clippy::pedantic, missing_docs)]
pub mod proto;

use std::path::Path;

use prost::Message;

use proto::attribute_proto::AttributeType;
use proto::tensor_shape_proto::{Dimension, dimension};
use proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, tensor_proto, type_proto,
};

/// Single-precision floats, by ONNX's number as the other element types.
pub const FLOAT: i32 = 1;
/// Bytes.
pub const UINT8: i32 = 2;
/// 8-bit integers.
pub const INT8: i32 = 3;
/// 16-bit integers.
pub const INT16: i32 = 5;
/// 32-bit integers.
pub const INT32: i32 = 6;
/// 64-bit integers.
pub const INT64: i32 = 7;
/// Truth values.
pub const BOOL: i32 = 9;
/// 4-bit integers without a sign.
pub const UINT4: i32 = 21;
/// 4-bit integers.
pub const INT4: i32 = 22;

fn attribute(name: &str, ty: AttributeType) -> AttributeProto {
    AttributeProto { name: Some(name.to_owned()), r#type: Some(ty.into()), ..AttributeProto::default() }
}

/// An attribute that is an integer.
pub fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { i: Some(value), ..attribute(name, AttributeType::Int) }
}

/// An attribute that is a number.
pub fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto { f: Some(value), ..attribute(name, AttributeType::Float) }
}

/// An attribute that is a list of integers.
pub fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto { ints: values.to_vec(), ..attribute(name, AttributeType::Ints) }
}

/// A stored tensor.
pub fn stored(name: &str, data_type: i32, shape: &[usize], raw: Vec<u8>) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(data_type),
        dims: shape.iter().map(|&extent| extent as i64).collect(),
        raw_data: Some(raw.into()),
        ..TensorProto::default()
    }
}

/// An input or output; negative extents are symbolic.
pub fn value(name: &str, data_type: i32, shape: &[i64]) -> ValueInfoProto {
    let dim = shape.iter().enumerate().map(|(axis, &extent)| Dimension {
        value: Some(if extent < 0 {
            dimension::Value::DimParam(format!("{name}_{axis}"))
        } else {
            dimension::Value::DimValue(extent)
        }),
        ..Dimension::default()
    });
    let shape = Some(TensorShapeProto { dim: dim.collect() });
    let tensor = type_proto::Tensor { elem_type: Some(data_type), shape };
    let ty = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(ty), ..ValueInfoProto::default() }
}

/// A graph under construction. Values are their names.
#[derive(Default)]
pub struct Builder {
    /// The graph so far.
    pub graph: GraphProto,
    count: usize,
}

impl Builder {
    fn fresh(&mut self, what: &str) -> String {
        self.count += 1;
        format!("{what}_{}", self.count)
    }

    /// Adds a node, `domain::operation` for one of another domain, and returns the names of its outputs.
    pub fn node(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>, outputs: usize) -> Vec<String> {
        let (domain, op_type) = op.rsplit_once("::").unwrap_or(("", op));
        let output: Vec<String> = (0..outputs).map(|_| self.fresh(op_type)).collect();
        self.graph.node.push(NodeProto {
            name: Some(format!("n_{}", output[0])),
            domain: Some(domain.to_owned()),
            op_type: Some(op_type.to_owned()),
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: output.clone(),
            attribute: attributes,
            ..NodeProto::default()
        });
        output
    }

    /// Adds a node with one output.
    pub fn op(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        self.node(op, inputs, attributes, 1).remove(0)
    }

    /// Stores floats and returns their name.
    pub fn floats(&mut self, shape: &[usize], values: &[f32]) -> String {
        let name = self.fresh("floats");
        let raw = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.graph.initializer.push(stored(&name, FLOAT, shape, raw));
        name
    }

    /// Stores a single number.
    pub fn float(&mut self, value: f32) -> String {
        self.floats(&[], &[value])
    }

    /// Stores integers.
    pub fn integers(&mut self, shape: &[usize], values: &[i64]) -> String {
        let name = self.fresh("integers");
        let raw = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.graph.initializer.push(stored(&name, INT64, shape, raw));
        name
    }

    /// Stores integers on one axis.
    pub fn list(&mut self, values: &[i64]) -> String {
        self.integers(&[values.len()], values)
    }

    /// Gives a value the name of an output of the graph.
    pub fn output(&mut self, from: &str, name: &str, shape: &[i64]) {
        for node in &mut self.graph.node {
            for known in node.output.iter_mut().chain(&mut node.input).filter(|known| **known == from) {
                name.clone_into(known);
            }
        }
        self.graph.output.push(value(name, FLOAT, shape));
    }

    /// The model of the graph.
    pub fn model(self) -> ModelProto {
        let opset =
            |domain: &str, version: i64| OperatorSetIdProto { domain: Some(domain.to_owned()), version: Some(version) };
        ModelProto {
            ir_version: Some(10),
            opset_import: vec![opset("", 23), opset("com.microsoft", 1)],
            graph: Some(GraphProto { name: Some("decoder".to_owned()), ..self.graph }),
            ..ModelProto::default()
        }
    }
}

/// Reads a model with all of its data inside; the head dimension of caches is set where it is symbolic, since the test
/// makes empty ones.
pub fn read(path: &Path, head_dim: i64) -> ModelProto {
    let bytes = std::fs::read(path).expect("the model is there");
    let mut model = ModelProto::decode(bytes.as_slice()).expect("it is a model");
    let graph = model.graph.as_mut().expect("a graph");
    for input in &mut graph.input {
        if let Some(type_proto::Value::TensorType(tensor)) = input.r#type.as_mut().and_then(|ty| ty.value.as_mut())
            && let Some(last) = tensor.shape.as_mut().and_then(|shape| shape.dim.get_mut(3))
        {
            last.value = Some(dimension::Value::DimValue(head_dim));
        }
    }
    for tensor in &mut graph.initializer {
        let entries = std::mem::take(&mut tensor.external_data);
        let entry = |key: &str| entries.iter().find(|entry| entry.key() == key).map(|entry| entry.value().to_owned());
        let Some(file) = entry("location") else { continue };
        let data = std::fs::read(path.with_file_name(file)).expect("its data are there");
        let number = |key: &str| entry(key).and_then(|text| text.parse::<usize>().ok());
        let first = number("offset").unwrap_or(0);
        let length = number("length").unwrap_or(data.len() - first);
        tensor.raw_data = Some(data[first..first + length].to_vec().into());
        tensor.data_location = Some(tensor_proto::DataLocation::Default.into());
    }
    model
}
