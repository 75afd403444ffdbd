//! Graphs of the shipped model under change.

use std::fs;

use cachemir_ir::tensor::{Interpreter, TensorModel, Weight};
use prost::Message;

use super::{copy, imported};
use crate::Error;
use crate::import::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use crate::import::onnx::proto::{GraphProto, ModelProto, NodeProto, ValueInfoProto, type_proto};
use crate::import::onnx::testing::{raw_tensor, tensor};
use crate::import::{ImportOptions, ImportedModel, load};

/// A graph under change.
pub(super) struct Graph(pub(super) GraphProto);

impl Graph {
    pub(super) fn floats(&mut self, name: &str, shape: &[i64], values: &[f32]) {
        self.0.initializer.push(tensor(name, shape, values));
    }

    pub(super) fn integers(&mut self, name: &str, shape: &[i64], values: &[i64]) {
        const INT64: i32 = 7;
        let raw = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.0.initializer.push(raw_tensor(name, INT64, shape, raw));
    }

    /// Numbers of the nodes whose name ends so, or whose operation is so called.
    pub(super) fn named(&self, what: &str) -> Vec<usize> {
        let nodes = self.0.node.iter().enumerate();
        nodes
            .filter(|(_, node)| node.name().ends_with(what) || node.op_type() == what)
            .map(|(index, _)| index)
            .collect()
    }

    /// Puts nodes behind the first output of each node so named: they are given their number, and the names of their
    /// input and output.
    pub(super) fn after(&mut self, what: &str, mut make: impl FnMut(&mut Self, usize, &str, &str) -> Vec<NodeProto>) {
        let places = self.named(what);
        assert!(!places.is_empty(), "{what}");
        for (number, &place) in places.iter().enumerate().rev() {
            let output = self.0.node[place].output[0].clone();
            let bare = format!("{output}_bare");
            self.0.node[place].output[0].clone_from(&bare);
            for node in make(self, number, &bare, &output).into_iter().rev() {
                self.0.node.insert(place + 1, node);
            }
        }
    }

    /// Puts nodes ahead of the first input of each node so named.
    pub(super) fn before(&mut self, what: &str, mut make: impl FnMut(&mut Self, &str, &str) -> Vec<NodeProto>) {
        let places = self.named(what);
        assert!(!places.is_empty(), "{what}");
        for &place in places.iter().rev() {
            let input = self.0.node[place].input[0].clone();
            let changed = format!("{input}_changed");
            self.0.node[place].input[0].clone_from(&changed);
            for node in make(self, &input, &changed).into_iter().rev() {
                self.0.node.insert(place, node);
            }
        }
    }

    pub(super) fn input(&mut self, name: &str) -> &mut ValueInfoProto {
        self.0.input.iter_mut().find(|input| input.name() == name).expect("an input")
    }

    /// Sets an input's extent to a number, or exchanges two of its extents.
    pub(super) fn fix(&mut self, name: &str, axis: usize, extent: i64) {
        extents(self.input(name))[axis].value = Some(dimension::Value::DimValue(extent));
    }

    pub(super) fn exchange(&mut self, name: &str, a: usize, b: usize) {
        extents(self.input(name)).swap(a, b);
    }
}

/// The extents of an input.
pub(super) fn extents(input: &mut ValueInfoProto) -> &mut Vec<Dimension> {
    match input.r#type.as_mut().and_then(|of| of.value.as_mut()) {
        Some(type_proto::Value::TensorType(tensor)) => &mut tensor.shape.get_or_insert_default().dim,
        _ => panic!("an input is a tensor"),
    }
}

/// Loads a route's model with a changed graph, for a context of so many tokens.
pub(super) fn with_context(
    route: &str,
    context: usize,
    change: impl FnOnce(&mut Graph),
) -> Result<ImportedModel, Error> {
    let (_target, path) = copy(route);
    let bytes = fs::read(&path).expect("it is there");
    let mut proto = ModelProto::decode(bytes.as_slice()).expect("it is a model");
    let mut graph = Graph(proto.graph.take().expect("a graph"));
    change(&mut graph);
    proto.graph = Some(graph.0);
    fs::write(&path, proto.encode_to_vec()).expect("it is writable");
    load(&path, &ImportOptions { context: Some(context), ..ImportOptions::default() })
}

pub(super) fn changed(route: &str, change: impl FnOnce(&mut Graph)) -> TensorModel {
    with_context(route, 256, change).unwrap_or_else(|error| panic!("{route}: {error}")).model
}

/// Asserts that the changed graph is refused with all of the words.
pub(super) fn refused(route: &str, words: &[&str], change: impl FnOnce(&mut Graph)) {
    let error = with_context(route, 256, change).expect_err("another function");
    let text = error.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{text} lacks one of {words:?}");
}

/// Logits after a few tokens.
pub(super) fn logits(model: &TensorModel) -> Vec<f64> {
    let mut interpreter = Interpreter::new(model).expect("the model is valid");
    [0, 41, 300, 17, 7, 411].map(|token| interpreter.step(token).expect("a step")).concat()
}

pub(super) fn assert_same(name: &str, got: &TensorModel, expected: &TensorModel) {
    let worst = logits(got).iter().zip(logits(expected)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-4, "{name}: logits differ by {worst}");
}

/// The shipped model with weights changed by their name.
pub(super) fn expected(mut change: impl FnMut(&str) -> f32) -> TensorModel {
    let mut model = imported("optimum").model;
    for weight in &mut model.weights {
        let factor = change(&weight.name);
        let values = weight.load().expect("it is there").iter().map(|value| value * factor).collect();
        *weight = Weight::new(weight.name.clone(), weight.shape.clone(), values);
    }
    model
}

/// Sets an attribute of the fused attentions.
pub(super) fn set_attention(graph: &mut Graph, name: &str, value: i64) {
    for place in graph.named("GroupQueryAttention") {
        let attribute = graph.0.node[place].attribute.iter_mut().find(|attribute| attribute.name() == name);
        attribute.expect("an attribute").i = Some(value);
    }
}
