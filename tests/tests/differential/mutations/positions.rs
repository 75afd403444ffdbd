//! Changes of what depends on positions and lengths: masks, angles, and constants that should not.

use cachemir_tests::llama::CONTEXT;
use cachemir_tests::onnx::proto::attribute_proto::AttributeType;
use cachemir_tests::onnx::proto::{AttributeProto, GraphProto, NodeProto};
use cachemir_tests::onnx::{FLOAT, stored, value};

use super::{Mutator, cast, node};

impl Mutator<'_> {
    /// Nodes that compute a factor that depends on a length, or on the position of each new token, and its description.
    fn factor(&mut self, to: &str) -> (Vec<NodeProto>, String) {
        let name = |part: &str| format!("{to}_{part}");
        let one = self.integers(&[], &[1]);
        let unit = self.floats(&[], &[1.0]);
        let half = self.floats(&[], &[0.5]);
        let at = self.random.below(CONTEXT);
        let limit = self.floats(&[], &[at as f32 + 0.5]);
        let lengths = [("input_ids", "tokens"), ("attention_mask", "total")];
        let mut nodes = Vec::new();
        for (input, length) in lengths {
            let shape = name(&format!("{length}_shape"));
            nodes.extend([node("Shape", &[input], &shape), node("Gather", &[&shape, &one], &name(length))]);
        }
        let (count, counted) = match self.random.below(4) {
            0 => ("tokens", "number of new tokens"),
            1 => ("total", "number of tokens"),
            _ => ("column", "position"),
        };
        if count == "column" {
            let axis = self.integers(&[1], &[-1]);
            nodes.extend([
                node("Sub", &[&name("total"), &name("tokens")], &name("past")),
                node("Range", &[&name("past"), &name("total"), &one], &name("positions")),
                node("Unsqueeze", &[&name("positions"), &axis], &name("column")),
            ]);
        }
        nodes.push(cast(&name(count), &name("number"), FLOAT));
        // A branch is chosen by one number, and not for each position.
        let form = self.random.below(if count == "column" { 4 } else { 5 });
        match form {
            0 => {
                nodes.push(node("Greater", &[&name("number"), &limit], &name("late")));
                nodes.push(cast(&name("late"), &name("step"), FLOAT));
            }
            4 => {
                nodes.push(node("Greater", &[&name("number"), &limit], &name("late")));
                nodes.push(Self::branches(&name("late"), &name("step")));
            }
            1 => {
                nodes.push(node("Div", &[&name("number"), &limit], &name("quotient")));
                nodes.push(node("Floor", &[&name("quotient")], &name("step")));
            }
            2 => nodes.push(node("Div", &[&name("number"), &limit], &name("step"))),
            _ => {
                nodes.push(node("Less", &[&name("number"), &limit], &name("early")));
                nodes.push(cast(&name("early"), &name("step"), FLOAT));
            }
        }
        nodes.extend([node("Mul", &[&name("step"), &half], &name("part")), node("Add", &[&name("part"), &unit], to)]);
        let form = ["step above", "steps of", "ratio to", "step below", "branch above"][form];
        (nodes, format!("{form} {at}.5 of the {counted}"))
    }

    /// A node that gives 1 where the condition holds, and else 0, by its branches.
    fn branches(condition: &str, output: &str) -> NodeProto {
        let branch = |attribute: &str, number: f32| {
            let name = format!("{output}_{attribute}");
            let graph = GraphProto {
                name: Some(name.clone()),
                initializer: vec![stored(&name, FLOAT, &[], number.to_le_bytes().to_vec())],
                output: vec![value(&name, FLOAT, &[])],
                ..GraphProto::default()
            };
            AttributeProto {
                name: Some(attribute.to_owned()),
                r#type: Some(AttributeType::Graph.into()),
                g: Some(graph),
                ..AttributeProto::default()
            }
        };
        let attribute = vec![branch("then_branch", 1.0), branch("else_branch", 0.0)];
        NodeProto { attribute, ..node("If", &[condition], output) }
    }

    fn by_length(&mut self, value: &str) -> String {
        let op = *self.random.pick(&["Mul", "Mul", "Add", "Pow"]);
        let mut what = String::new();
        self.wrap(value, |this, from, to| {
            let factor = format!("{to}_factor");
            let (mut nodes, described) = this.factor(&factor);
            nodes.push(node(op, &[from, &factor], to));
            what = described;
            nodes
        });
        format!("{op} of `{value}` and a {what}")
    }

    pub(super) fn constant_by_length(&mut self) -> Option<String> {
        let index = self.initializer_of(FLOAT)?;
        let name = self.graph.initializer[index].name().to_owned();
        Some(self.by_length(&name))
    }

    pub(super) fn value_by_length(&mut self) -> Option<String> {
        let name = self.float_value()?;
        Some(self.by_length(&name))
    }

    /// A window, chunks, a shift, or another comparison.
    pub(super) fn mask(&mut self) -> Option<String> {
        const COMPARISONS: [&str; 4] = ["Less", "LessOrEqual", "Greater", "GreaterOrEqual"];
        let index = self.node_where(|node| COMPARISONS.contains(&node.op_type()))?;
        let found = self.graph.node[index].clone();
        let (a, b, output) = (found.input[0].clone(), found.input[1].clone(), found.output[0].clone());
        let number = 1 + self.random.below(CONTEXT + 4) as i64;
        let form = self.random.below(4);
        if form == 0 {
            let new = *self.random.pick(&COMPARISONS);
            self.graph.node[index].op_type = Some(new.to_owned());
            return (new != found.op_type()).then(|| format!("{new} instead of {}", found.op_type()));
        }
        if form == 1 {
            let shift = *self.random.pick(&[-2, -1, 1, 2]);
            let constant = self.integers(&[], &[shift]);
            let shifted = self.fresh("shifted");
            self.graph.node[index].input[0].clone_from(&shifted);
            self.graph.node.insert(index, node("Add", &[&a, &constant], &shifted));
            return Some(format!("shifted by {shift}"));
        }
        // Whichever operand counts keys and whichever queries: one of the two ways is a window.
        let (keys, queries) = if self.random.chance(1, 2) { (a, b) } else { (b, a) };
        let constant = self.integers(&[], &[number]);
        let keeps = self.random.chance(3, 4);
        self.wrap(&output, |_, from, to| {
            let [x, y, near] = ["x", "y", "near"].map(|part| format!("{to}_{part}"));
            let mut nodes = if form == 2 {
                vec![node("Add", &[&keys, &constant], &x), node("Greater", &[&x, &queries], &near)]
            } else {
                vec![
                    node("Div", &[&keys, &constant], &x),
                    node("Div", &[&queries, &constant], &y),
                    node("Equal", &[&x, &y], &near),
                ]
            };
            if keeps {
                nodes.push(node("And", &[from, &near], to));
            } else {
                let far = format!("{to}_far");
                nodes.extend([node("Not", &[&near], &far), node("Or", &[from, &far], to)]);
            }
            nodes
        });
        Some(format!(
            "{} of {number}{}",
            if form == 2 { "window" } else { "chunks" },
            if keeps { "" } else { ", inverted" }
        ))
    }

    pub(super) fn rotary(&mut self) -> Option<String> {
        const FUNCTIONS: [&str; 3] = ["Cos", "Sin", "RotaryEmbedding"];
        let index = self.node_where(|node| FUNCTIONS.contains(&node.op_type()))?;
        let (input, output) = (self.graph.node[index].input[0].clone(), self.graph.node[index].output[0].clone());
        let name = self.graph.node[index].name().to_owned();
        let number = *self.random.pick(&[0.5_f32, 1.25, 2.0, -1.0]);
        Some(match self.random.below(4) {
            0 | 1 => {
                let constant = self.floats(&[], &[number]);
                let (value, where_) =
                    if self.random.chance(1, 2) { (input, "in front of") } else { (output, "behind") };
                self.wrap(&value, |_, from, to| vec![node("Mul", &[from, &constant], to)]);
                format!("times {number} {where_} `{name}`")
            }
            2 => {
                let shift = self.integers(&[], &[1]);
                let positions = ["position_ids".to_owned()];
                let known = self.graph.input.iter().any(|input| positions.contains(&input.name().to_owned()));
                self.wrap(&positions[0], |_, from, to| vec![node("Add", &[from, &shift], to)]);
                known.then(|| "positions plus one".to_owned())?
            }
            _ => {
                let constant = self.floats(&[], &[number]);
                self.wrap(&input, |_, from, to| vec![node("Add", &[from, &constant], to)]);
                format!("plus {number} in front of `{name}`")
            }
        })
    }
}
