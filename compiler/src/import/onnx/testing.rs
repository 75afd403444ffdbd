//! Small ONNX graphs for tests.

use prost::Message;

use super::proto::attribute_proto::AttributeType;
use super::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TypeProto, ValueInfoProto,
    type_proto,
};
use super::{OnnxGraph, read};
use crate::Error;

/// A node of ONNX's own domain; `domain::op` names one of another.
pub(in crate::import) fn node(op_type: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let (domain, op_type) = op_type.rsplit_once("::").unwrap_or(("", op_type));
    let texts = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    NodeProto {
        domain: Some(domain.to_owned()),
        op_type: Some(op_type.to_owned()),
        input: texts(inputs),
        output: texts(outputs),
        name: outputs.first().map(|name| format!("n_{name}")),
        ..NodeProto::default()
    }
}

impl NodeProto {
    pub(in crate::import) fn with(mut self, attribute: AttributeProto) -> Self {
        self.attribute.push(attribute);
        self
    }
}

fn attribute(name: &str, ty: AttributeType) -> AttributeProto {
    AttributeProto { name: Some(name.to_owned()), r#type: Some(ty.into()), ..AttributeProto::default() }
}

pub(in crate::import) fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { i: Some(value), ..attribute(name, AttributeType::Int) }
}

pub(in crate::import) fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto { f: Some(value), ..attribute(name, AttributeType::Float) }
}

pub(in crate::import) fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto { ints: values.to_vec(), ..attribute(name, AttributeType::Ints) }
}

pub(in crate::import) fn floats(name: &str, values: &[f32]) -> AttributeProto {
    AttributeProto { floats: values.to_vec(), ..attribute(name, AttributeType::Floats) }
}

pub(in crate::import) fn text(name: &str, value: &str) -> AttributeProto {
    AttributeProto { s: Some(value.as_bytes().to_vec()), ..attribute(name, AttributeType::String) }
}

pub(in crate::import) fn graph_attribute(name: &str, graph: GraphProto) -> AttributeProto {
    AttributeProto { g: Some(graph), ..attribute(name, AttributeType::Graph) }
}

pub(in crate::import) fn tensor_attribute(name: &str, tensor: TensorProto) -> AttributeProto {
    AttributeProto { t: Some(tensor), ..attribute(name, AttributeType::Tensor) }
}

/// An attribute that takes the value that the function's caller gives.
pub(in crate::import) fn reference(name: &str, ty: AttributeType, to: &str) -> AttributeProto {
    AttributeProto { ref_attr_name: Some(to.to_owned()), ..attribute(name, ty) }
}

/// A stored tensor of an element type, as raw bytes.
pub(in crate::import) fn raw_tensor(name: &str, data_type: i32, shape: &[i64], raw: Vec<u8>) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(data_type),
        dims: shape.to_vec(),
        raw_data: Some(raw.into()),
        ..TensorProto::default()
    }
}

/// A stored tensor of single-precision floats.
pub(in crate::import) fn tensor(name: &str, shape: &[i64], values: &[f32]) -> TensorProto {
    raw_tensor(name, 1, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

/// An input or output of an element type.
pub(in crate::import) fn value(name: &str, data_type: i32, shape: &[i64]) -> ValueInfoProto {
    use super::proto::TensorShapeProto;
    use super::proto::tensor_shape_proto::{Dimension, dimension::Value};
    let dim = shape.iter().map(|&extent| Dimension {
        value: Some(if extent < 0 { Value::DimParam("n".to_owned()) } else { Value::DimValue(extent) }),
        ..Dimension::default()
    });
    let shape = Some(TensorShapeProto { dim: dim.collect() });
    let tensor = type_proto::Tensor { elem_type: Some(data_type), shape };
    let ty = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(ty), ..ValueInfoProto::default() }
}

/// A model of nodes and stored tensors whose outputs are the named values.
pub(in crate::import) fn model(node: Vec<NodeProto>, initializer: Vec<TensorProto>, outputs: &[&str]) -> ModelProto {
    let opset =
        |domain: &str, version: i64| OperatorSetIdProto { domain: Some(domain.to_owned()), version: Some(version) };
    ModelProto {
        ir_version: Some(10),
        opset_import: vec![opset("", 21), opset("com.microsoft", 1)],
        graph: Some(graph(node, initializer, outputs)),
        ..ModelProto::default()
    }
}

pub(in crate::import) fn graph(node: Vec<NodeProto>, initializer: Vec<TensorProto>, outputs: &[&str]) -> GraphProto {
    let output = outputs.iter().map(|name| value(name, 1, &[])).collect();
    GraphProto { node, initializer, output, ..GraphProto::default() }
}

/// What the reader makes of a model.
pub(in crate::import) fn read_model(model: &ModelProto) -> Result<OnnxGraph, Error> {
    read_bytes(&model.encode_to_vec())
}

pub(in crate::import) fn read_bytes(bytes: &[u8]) -> Result<OnnxGraph, Error> {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), bytes).expect("it is writable");
    read(file.path(), 64)
}
