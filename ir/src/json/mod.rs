//! The JSON form of every stage, for tools: a document that [`SCHEMA`] describes.
//!
//! Ids are those of the text form. Each entry point has one flat list of ops in execution order, one op a line, an op with
//! a body ahead of its body's ops; units are in the names of fields; expressions are trees of objects; weights and other
//! tables appear by hash, never inline. Every op names the ONNX node it came from, and the decoder layer that it belongs to;
//! ops of the ckks stage carry the level at which they are executed and the cost of one execution.

// Appending formatted pieces to a string reads better than `write!`, whose error cannot occur here.
#![allow(clippy::format_push_string)]

mod expression;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value};

pub(crate) use expression::{integer, vector};

use crate::ckks::{CiphertextType, CkksOp};
use crate::cost::CostTable;
use crate::graph::{Graph, OpId, ValueId};
use crate::hashes::{hash_of, hexadecimal};
use crate::program::{EntryKind, Placement, Program, RangeCheck};
use crate::slots::{SlotOp, SlotType};
use crate::table::Contents;
use crate::tensor::TensorModel;
use crate::text::{TextOp, TextType};

/// The JSON schema (draft 2020-12) of the documents.
pub const SCHEMA: &str = include_str!("cachemir-ir.schema.json");

/// The schema's name, as documents refer to it.
pub const SCHEMA_NAME: &str = "cachemir-ir.schema.json";

/// Version of the documents.
pub const FORMAT_VERSION: u32 = 8;

/// A number, or `null` for those that JSON does not have: infinities and NaN.
pub(crate) fn float(value: f64) -> Value {
    serde_json::Number::from_f64(value).map_or(Value::Null, Value::Number)
}

/// A program of the slots stage.
pub fn dump_slots(program: &Program<SlotOp, SlotType>) -> String {
    dump_program(program, &|_, _| Map::new())
}

/// A program of the ckks stage, with costs from a table.
pub fn dump_ckks(program: &Program<CkksOp, CiphertextType>, costs: &CostTable) -> String {
    dump_program(program, &|graph, op| {
        let cost_ns = costs.node_ns(graph, op, program.slots).round();
        fields([("level", graph.level(op).into()), ("cost_ns", float(cost_ns))])
    })
}

/// A recognised model.
pub fn dump_model(model: &TensorModel) -> String {
    let shape = &model.hyperparameters;
    let mut document = Document::new("tensor");
    let hyperparameters = fields([
        ("hidden", shape.hidden.into()),
        ("layers", shape.layers.into()),
        ("heads", shape.heads.into()),
        ("kv_heads", shape.kv_heads.into()),
        ("head_dim", shape.head_dim.into()),
        ("mlp", shape.mlp.into()),
        ("vocabulary", shape.vocabulary.into()),
        ("context_tokens", shape.context.into()),
        ("epsilon", float(shape.epsilon)),
        ("attention_scale", float(shape.attention_scale)),
        ("tied_head", shape.tied_head.into()),
    ]);
    document.field("hyperparameters", &hyperparameters.into());
    let rope = fields([
        ("pairs", model.rope.pairs.into()),
        ("cosines_blake3", hexadecimal(&hash_of(&model.rope.cosines)).into()),
        ("sines_blake3", hexadecimal(&hash_of(&model.rope.sines)).into()),
    ]);
    document.field("rope", &rope.into());
    let weights = model.weights.iter().enumerate().map(|(id, weight)| {
        fields([
            ("id", id.into()),
            ("name", weight.name.as_str().into()),
            ("shape", weight.shape.clone().into()),
            ("blake3", hexadecimal(&weight.hash).into()),
        ])
    });
    document.list("weights", weights);
    document.entries([(fields([("entry", "step".into())]), ops(&model.graph, &|_, _| Map::new()), &model.graph)]);
    document.finish()
}

fn dump_program<O: TextOp>(program: &Program<O, O::Type>, extra: Extra<'_, O>) -> String {
    let mut document = Document::new(O::STAGE);
    document.field("slots", &program.slots.into());
    document.field("context_tokens", &program.context.into());
    let inputs = program.inputs.iter().map(|form| {
        let mut object = fields([("scale", float(form.scale))]);
        object.extend(form.norm_epsilon.map(|epsilon| ("norm_epsilon".to_owned(), float(epsilon))));
        object
    });
    document.list("inputs", inputs);
    document.field("embedding", &placement(&program.embedding));
    document.field("logits", &placement(&program.logits));
    document.field("prefix_tokens", &program.prefix.clone().into());
    let tables = program.tables.iter().enumerate().map(|(id, table)| {
        let contents = match &table.contents {
            Contents::Stored(weights) => ("blake3", hexadecimal(&weights.hash()).into()),
            Contents::Unknown { deviation } => ("deviation", float(*deviation)),
        };
        let shape = table.shape.clone().into();
        fields([("id", id.into()), ("name", table.name.as_str().into()), ("shape", shape), contents])
    });
    document.list("tables", tables);
    let states = program.states.iter().enumerate().map(|(id, state)| {
        let mut object = fields([
            ("id", id.into()),
            ("name", state.name.as_str().into()),
            ("capacity_ciphertexts", state.capacity.into()),
            ("layout", state.layout.json_fields().into()),
        ]);
        object.extend(state.level.map(|level| ("level".to_owned(), level.into())));
        object.extend(state.initial.as_ref().map(|initial| ("initially".to_owned(), expression::vector(initial))));
        object
    });
    document.list("states", states);
    let entries = program.entries.iter().map(|entry| {
        let mut object = fields([("entry", entry.kind.entry().name().into())]);
        if let EntryKind::Prefill { chunk } = entry.kind {
            object.insert("chunk_tokens".to_owned(), chunk.into());
        }
        let check = |check: &RangeCheck| {
            let interval = check.interval.map(float);
            fields([
                ("site", check.site.as_str().into()),
                ("interval", interval.to_vec().into()),
                ("centre", float(check.map.centre)),
                ("half", float(check.map.half)),
                ("slots", placement(&check.placement)),
            ])
        };
        object.insert("checks".to_owned(), entry.checks.iter().map(check).collect::<Vec<_>>().into());
        (object, ops(&entry.graph, extra), &entry.graph)
    });
    document.entries(entries);
    document.finish()
}

/// Fields of an op that only one stage has.
type Extra<'e, O> = &'e dyn Fn(&Graph<O, <O as TextOp>::Type>, OpId) -> Map<String, Value>;

fn placement(placement: &Placement) -> Value {
    fields([
        ("token_stride_slots", placement.token_stride.into()),
        ("index_to_slot", placement.index_to_slot.clone().into()),
    ])
    .into()
}

fn ids(values: &[ValueId]) -> Value {
    values.iter().map(|value| value.0).collect::<Vec<_>>().into()
}

/// A value where it is defined: id, name and type.
fn definition<O: TextOp>(graph: &Graph<O, O::Type>, id: ValueId) -> Value {
    let mut object = fields([("value", id.0.into()), ("type", graph.ty(id).json_fields().into())]);
    let name = &graph.values[id.index()].name;
    if !name.is_empty() {
        object.insert("name".to_owned(), name.as_str().into());
    }
    object.into()
}

fn ops<O: TextOp>(graph: &Graph<O, O::Type>, extra: Extra<'_, O>) -> Vec<Map<String, Value>> {
    let mut list = Vec::new();
    graph.for_each_op(|id, depth| {
        let node = graph.node(id);
        let results: Vec<Value> = node.results.iter().map(|result| definition(graph, *result)).collect();
        let mut object = fields([
            ("op", id.0.into()),
            ("kind", node.op.mnemonic().into()),
            ("depth", depth.into()),
            ("operands", ids(&node.inputs)),
            ("results", results.into()),
            ("attributes", node.op.json_attributes().into()),
        ]);
        object.extend(node.layer.map(|layer| ("layer".to_owned(), layer.into())));
        if let Some(origin) = node.origin {
            let origin = &graph.origins[origin.index()];
            let origin = fields([("node", origin.node.as_str().into()), ("op_type", origin.op_type.as_str().into())]);
            object.insert("origin".to_owned(), origin.into());
        }
        if let Some(region) = &node.region {
            let ops: Vec<u32> = region.ops.iter().map(|op| op.0).collect();
            let body = fields([("ops", ops.into()), ("yields", ids(&region.yields))]);
            object.insert("body".to_owned(), body.into());
        }
        object.extend(extra(graph, id));
        list.push(object);
    });
    list
}

/// A JSON object of these fields.
pub(crate) fn fields<const N: usize>(entries: [(&str, Value); N]) -> Map<String, Value> {
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// A document under construction, with one object a line.
struct Document(String);

impl Document {
    fn new(stage: &str) -> Self {
        let mut document = Self("{".to_owned());
        document.field("$schema", &SCHEMA_NAME.into());
        document.field("format_version", &FORMAT_VERSION.into());
        document.field("stage", &stage.into());
        document
    }

    fn key(&mut self, name: &str) {
        let separator = if self.0.ends_with(['{', '[']) { "\n" } else { ",\n" };
        self.0.push_str(&format!("{separator}\"{name}\": "));
    }

    fn field(&mut self, name: &str, value: &Value) {
        self.key(name);
        self.0.push_str(&value.to_string());
    }

    fn list(&mut self, name: &str, objects: impl IntoIterator<Item = Map<String, Value>>) {
        self.key(name);
        self.0.push('[');
        for (index, object) in objects.into_iter().enumerate() {
            self.0.push_str(if index > 0 { ",\n  " } else { "\n  " });
            self.0.push_str(&Value::from(object).to_string());
        }
        self.0.push(']');
    }

    fn entries<'g, O: TextOp + 'g>(
        &mut self,
        entries: impl IntoIterator<Item = (Map<String, Value>, Vec<Map<String, Value>>, &'g Graph<O, O::Type>)>,
    ) where
        O::Type: 'g,
    {
        self.key("entries");
        self.0.push('[');
        for (index, (head, ops, graph)) in entries.into_iter().enumerate() {
            self.0.push_str(if index > 0 { ",\n{" } else { "\n{" });
            for (name, value) in &head {
                self.field(name, value);
            }
            let inputs: Vec<Value> = graph.inputs.iter().map(|input| definition(graph, *input)).collect();
            self.field("inputs", &inputs.into());
            self.field("outputs", &ids(&graph.body.yields));
            self.list("ops", ops);
            self.0.push_str("\n}");
        }
        self.0.push(']');
    }

    fn finish(mut self) -> String {
        self.0.push_str("\n}\n");
        self.0
    }
}
