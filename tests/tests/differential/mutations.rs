//! Changes of a graph: most make another function of it, some the same one, some nothing that can be run.

mod positions;

use cachemir_tests::SplitMix;
use cachemir_tests::onnx::proto::{GraphProto, NodeProto, TensorProto, ValueInfoProto};
use cachemir_tests::onnx::{BOOL, FLOAT, INT4, INT8, INT16, INT32, INT64, UINT4, UINT8, int, stored};

/// A kind of change: says what it did, or that it does not apply.
type Mutation = fn(&mut Mutator<'_>) -> Option<String>;

const MUTATIONS: [(&str, Mutation); 23] = [
    ("float constant", |m| m.float_constant()),
    ("integer constant", |m| m.integer_constant()),
    ("inputs exchanged", |m| m.inputs_exchanged()),
    ("another input", |m| m.another_input()),
    ("attribute", |m| m.attribute()),
    ("another operation", |m| m.another_operation()),
    ("operations exchanged", |m| m.operations_exchanged()),
    ("node left out", |m| m.left_out()),
    ("function put in", |m| m.function_put_in()),
    ("constant put in", |m| m.constant_put_in()),
    ("factor of features", |m| m.feature_factor()),
    ("cache output", |m| m.cache_output()),
    ("cache outputs exchanged", |m| m.cache_outputs_exchanged()),
    ("caches exchanged", |m| m.caches_exchanged()),
    ("constant by length", |m| m.constant_by_length()),
    ("value by length", |m| m.value_by_length()),
    ("mask", |m| m.mask()),
    ("rotary embedding", |m| m.rotary()),
    ("constants exchanged", |m| m.constants_exchanged()),
    ("order of nodes", |m| m.order()),
    ("another output", |m| m.another_output()),
    ("narrower integers", |m| m.narrower_integers()),
    ("quantised rows", |m| m.quantised_rows()),
];

/// Applies one change and says which.
pub(crate) fn mutate(graph: &mut GraphProto, random: &mut SplitMix) -> String {
    let mut mutator = Mutator { graph, random };
    loop {
        let (name, mutation) = *mutator.random.pick(&MUTATIONS);
        if let Some(what) = mutation(&mut mutator) {
            return format!("{name}: {what}");
        }
    }
}

/// Numbers that stand for others in constants and attributes.
const NUMBERS: [i64; 6] = [-1, 0, 1, 2, 3, 5];

struct Mutator<'m> {
    graph: &'m mut GraphProto,
    random: &'m mut SplitMix,
}

fn node(op_type: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        name: Some(format!("put_{output}")),
        op_type: Some(op_type.to_owned()),
        input: inputs.iter().map(|&name| name.to_owned()).collect(),
        output: vec![output.to_owned()],
        ..NodeProto::default()
    }
}

fn cast(input: &str, output: &str, to: i32) -> NodeProto {
    NodeProto { attribute: vec![int("to", to.into())], ..node("Cast", &[input], output) }
}

fn raw(tensor: &TensorProto) -> Vec<u8> {
    match &tensor.raw_data {
        Some(raw) => raw.to_vec(),
        None if tensor.data_type() == FLOAT => tensor.float_data.iter().flat_map(|value| value.to_le_bytes()).collect(),
        None => tensor.int64_data.iter().flat_map(|value| value.to_le_bytes()).collect(),
    }
}

fn floats(tensor: &TensorProto) -> Vec<f32> {
    raw(tensor).as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn set_floats(tensor: &mut TensorProto, values: &[f32]) {
    set_raw(tensor, values.iter().flat_map(|value| value.to_le_bytes()).collect());
}

fn set_raw(tensor: &mut TensorProto, raw: Vec<u8>) {
    tensor.raw_data = Some(raw.into());
    tensor.float_data.clear();
    tensor.int64_data.clear();
}

impl Mutator<'_> {
    fn fresh(&self, what: &str) -> String {
        format!("{what}_{}", self.graph.node.len() + self.graph.initializer.len())
    }

    fn floats(&mut self, shape: &[usize], values: &[f32]) -> String {
        let name = self.fresh("put_floats");
        let raw = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.graph.initializer.push(stored(&name, FLOAT, shape, raw));
        name
    }

    fn integers(&mut self, shape: &[usize], values: &[i64]) -> String {
        let name = self.fresh("put_integers");
        let raw = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.graph.initializer.push(stored(&name, INT64, shape, raw));
        name
    }

    /// The number of a node for which this holds.
    fn node_where(&mut self, holds: impl Fn(&NodeProto) -> bool) -> Option<usize> {
        let found: Vec<usize> = (0..self.graph.node.len()).filter(|&index| holds(&self.graph.node[index])).collect();
        (!found.is_empty()).then(|| *self.random.pick(&found))
    }

    fn initializer_of(&mut self, data_type: i32) -> Option<usize> {
        let all = &self.graph.initializer;
        let found: Vec<usize> = (0..all.len())
            .filter(|&index| all[index].data_type() == data_type && all[index].dims.iter().all(|&extent| extent > 0))
            .collect();
        (!found.is_empty()).then(|| *self.random.pick(&found))
    }

    /// An output of a node that most likely holds floats.
    fn float_value(&mut self) -> Option<String> {
        const SHAPES: [&str; 16] = [
            "Shape",
            "Range",
            "Constant",
            "ConstantOfShape",
            "And",
            "Or",
            "Not",
            "Less",
            "LessOrEqual",
            "Greater",
            "GreaterOrEqual",
            "Equal",
            "CumSum",
            "Squeeze",
            "Trilu",
            "Flatten",
        ];
        let node = self.node_where(|node| !SHAPES.contains(&node.op_type()))?;
        let outputs: Vec<String> =
            self.graph.node[node].output.iter().filter(|output| !output.is_empty()).cloned().collect();
        Some(self.random.pick(&outputs).clone())
    }

    /// Names nodes after a new value, since no two may have one name.
    fn named(mut nodes: Vec<NodeProto>, after: &str) -> Vec<NodeProto> {
        for (number, node) in nodes.iter_mut().enumerate() {
            node.name = Some(format!("put_{after}_{number}"));
        }
        nodes
    }

    /// Has everything that reads a value read what nodes make of it: they are given its name and that of the result.
    fn wrap(&mut self, value: &str, make: impl FnOnce(&mut Self, &str, &str) -> Vec<NodeProto>) {
        let bare = self.fresh("bare");
        let place = self.graph.node.iter().position(|node| node.output.iter().any(|output| output == value));
        let Some(place) = place else {
            // An input or a constant keeps its name, and its readers get another one.
            for input in self.graph.node.iter_mut().flat_map(|node| &mut node.input).filter(|input| *input == value) {
                input.clone_from(&bare);
            }
            let nodes = Self::named(make(self, value, &bare), &bare);
            self.graph.node.splice(0..0, nodes);
            return;
        };
        for output in self.graph.node[place].output.iter_mut().filter(|output| *output == value) {
            output.clone_from(&bare);
        }
        let nodes = Self::named(make(self, &bare, value), &bare);
        self.graph.node.splice(place + 1..=place, nodes);
    }

    fn float_constant(&mut self) -> Option<String> {
        let index = self.initializer_of(FLOAT)?;
        let factor = *self.random.pick(&[0.0_f32, -1.0, 0.5, 1.01, 3.0]);
        let tensor = &mut self.graph.initializer[index];
        let mut values = floats(tensor);
        let what = if self.random.chance(1, 2) {
            for value in &mut values {
                *value *= factor;
            }
            format!("`{}` times {factor}", tensor.name())
        } else {
            let entry = self.random.below(values.len());
            values[entry] += 1.0;
            format!("entry {entry} of `{}` increased by 1", tensor.name())
        };
        set_floats(tensor, &values);
        Some(what)
    }

    fn integer_constant(&mut self) -> Option<String> {
        let index = self.initializer_of(INT64)?;
        let tensor = &mut self.graph.initializer[index];
        let mut values: Vec<i64> =
            raw(tensor).as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect();
        let entry = self.random.below(values.len());
        let old = values[entry];
        values[entry] = match self.random.below(3) {
            0 => old.saturating_add(1),
            1 => old.saturating_sub(1),
            _ => *self.random.pick(&NUMBERS),
        };
        let what = format!("entry {entry} of `{}` from {old} to {}", tensor.name(), values[entry]);
        set_raw(tensor, values.iter().flat_map(|value| value.to_le_bytes()).collect());
        Some(what)
    }

    fn inputs_exchanged(&mut self) -> Option<String> {
        let index = self.node_where(|node| node.input.len() > 1)?;
        let node = &mut self.graph.node[index];
        let (a, b) = (self.random.below(node.input.len()), self.random.below(node.input.len()));
        node.input.swap(a, b);
        (node.input[a] != node.input[b]).then(|| format!("{a} and {b} of `{}` ({})", node.name(), node.op_type()))
    }

    fn another_input(&mut self) -> Option<String> {
        let index = self.node_where(|node| !node.input.is_empty())?;
        let input = self.random.below(self.graph.node[index].input.len());
        let old = self.graph.node[index].input[input].clone();
        let producer =
            self.graph.node.iter().find(|node| node.output.contains(&old)).map(|node| node.op_type().to_owned());
        // Most of the time what another node of the same operation gives, since that fits.
        let same = self.random.chance(3, 4);
        let other = match producer {
            Some(op_type) => {
                let other = self.node_where(|node| !same || node.op_type() == op_type)?;
                let outputs = &self.graph.node[other].output;
                outputs[self.random.below(outputs.len())].clone()
            }
            None => {
                let shape = self.graph.initializer.iter().find(|tensor| tensor.name() == old)?.dims.clone();
                let fitting: Vec<&TensorProto> =
                    self.graph.initializer.iter().filter(|tensor| tensor.dims == shape).collect();
                self.random.pick(&fitting).name().to_owned()
            }
        };
        if other == old || other.is_empty() {
            return None;
        }
        let node = &mut self.graph.node[index];
        node.input[input].clone_from(&other);
        Some(format!("`{other}` instead of `{old}` for `{}` ({})", node.name(), node.op_type()))
    }

    fn attribute(&mut self) -> Option<String> {
        let index = self.node_where(|node| !node.attribute.is_empty())?;
        let node = &mut self.graph.node[index];
        let number = self.random.below(node.attribute.len());
        if self.random.chance(1, 4) {
            let attribute = node.attribute.remove(number);
            return Some(format!("{} of `{}` ({}) left out", attribute.name(), node.name(), node.op_type()));
        }
        let attribute = &mut node.attribute[number];
        let what = if let Some(old) = attribute.f {
            let new = *self.random.pick(&[0.0, old * 2.0, -old, 0.1]);
            attribute.f = Some(new);
            format!("from {old} to {new}")
        } else if attribute.ints.is_empty() {
            let old = attribute.i.unwrap_or(0);
            let new = *self.random.pick(&NUMBERS);
            attribute.i = Some(new);
            format!("from {old} to {new}")
        } else {
            let (a, b) = (self.random.below(attribute.ints.len()), self.random.below(attribute.ints.len()));
            if a == b || self.random.chance(1, 3) {
                attribute.ints[a] = *self.random.pick(&NUMBERS);
            } else {
                attribute.ints.swap(a, b);
            }
            format!("to {:?}", attribute.ints)
        };
        Some(format!("{} of `{}` ({}) {what}", node.attribute[number].name(), node.name(), node.op_type()))
    }

    fn another_operation(&mut self) -> Option<String> {
        const ALIKE: [&[&str]; 6] = [
            &["Add", "Sub", "Mul", "Div", "Max", "Min", "Pow"],
            &[
                "Cos",
                "Sin",
                "Sqrt",
                "Neg",
                "Exp",
                "Reciprocal",
                "Sigmoid",
                "Tanh",
                "Relu",
                "Abs",
                "Identity",
                "Softplus",
            ],
            &["Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"],
            &["And", "Or", "Xor"],
            &["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare"],
            &["Softmax", "LogSoftmax", "Hardmax"],
        ];
        let index = self.node_where(|node| ALIKE.iter().any(|group| group.contains(&node.op_type())))?;
        let node = &mut self.graph.node[index];
        let old = node.op_type().to_owned();
        let new = *self.random.pick(ALIKE.iter().find(|group| group.contains(&old.as_str()))?);
        node.op_type = Some(new.to_owned());
        (new != old).then(|| format!("{new} instead of {old} as `{}`", node.name()))
    }

    fn operations_exchanged(&mut self) -> Option<String> {
        let first = self.node_where(|node| !node.input.is_empty())?;
        let (inputs, outputs) = (self.graph.node[first].input.len(), self.graph.node[first].output.len());
        let second = self.node_where(|node| (node.input.len(), node.output.len()) == (inputs, outputs))?;
        let [a, b] = self.graph.node.get_disjoint_mut([first, second]).ok()?;
        std::mem::swap(&mut a.op_type, &mut b.op_type);
        std::mem::swap(&mut a.domain, &mut b.domain);
        std::mem::swap(&mut a.attribute, &mut b.attribute);
        (a.op_type != b.op_type)
            .then(|| format!("`{}`, now {}, and `{}`, now {}", a.name(), a.op_type(), b.name(), b.op_type()))
    }

    fn left_out(&mut self) -> Option<String> {
        let index = self.node_where(|node| !node.input.is_empty() && !node.output.is_empty())?;
        let node = &mut self.graph.node[index];
        let inputs: Vec<String> = node.input.iter().filter(|input| !input.is_empty()).cloned().collect();
        let input = self.random.pick(&inputs).clone();
        let what = format!("`{}` ({}), with `{input}` in its place", node.name(), node.op_type());
        *node = NodeProto { domain: None, attribute: vec![], ..self::node("Identity", &[&input], &node.output[0]) };
        Some(what)
    }

    fn function_put_in(&mut self) -> Option<String> {
        const FUNCTIONS: [&str; 12] = [
            "Neg",
            "Abs",
            "Relu",
            "Tanh",
            "Identity",
            "Sigmoid",
            "Softmax",
            "Floor",
            "Round",
            "Reciprocal",
            "Sqrt",
            "Exp",
        ];
        let value = self.float_value()?;
        let function = *self.random.pick(&FUNCTIONS);
        self.wrap(&value, |_, from, to| vec![node(function, &[from], to)]);
        Some(format!("{function} of `{value}`"))
    }

    fn constant_put_in(&mut self) -> Option<String> {
        let value = self.float_value()?;
        let op = *self.random.pick(&["Add", "Mul", "Div", "Sub", "Max", "Min", "Pow"]);
        let number = *self.random.pick(&[-1.0_f32, 0.5, 1.0, 1.5, 2.0, 0.0]);
        let swapped = self.random.chance(1, 4);
        let constant = self.floats(&[], &[number]);
        self.wrap(&value, |_, from, to| {
            vec![node(op, &if swapped { [&constant, from] } else { [from, &constant] }, to)]
        });
        Some(format!("{op} of `{value}` and {number}{}", if swapped { ", exchanged" } else { "" }))
    }

    /// A vector that multiplies, or is added to, the last axis.
    fn feature_factor(&mut self) -> Option<String> {
        let value = self.float_value()?;
        let index = self.initializer_of(FLOAT)?;
        let width = *self.graph.initializer[index].dims.last()? as usize;
        let factors: Vec<f32> = (0..width).map(|_| 1.0 + self.random.symmetric()).collect();
        let op = *self.random.pick(&["Mul", "Add", "Div"]);
        let factors = self.floats(&[width], &factors);
        self.wrap(&value, |_, from, to| vec![node(op, &[from, &factors], to)]);
        Some(format!("{op} of `{value}` and {width} numbers"))
    }

    fn presents(&self) -> Vec<String> {
        let outputs = self.graph.output.iter().map(|output| output.name().to_owned());
        outputs.filter(|name| name.starts_with("present")).collect()
    }

    /// Has an output of the graph be what nodes make of it, while what reads it inside stays.
    fn change_output(&mut self, name: &str, make: impl FnOnce(&mut Self, &str, &str) -> Vec<NodeProto>) {
        let inner = self.fresh("inner");
        for node in &mut self.graph.node {
            for known in node.output.iter_mut().chain(&mut node.input).filter(|known| *known == name) {
                known.clone_from(&inner);
            }
        }
        let nodes = Self::named(make(self, &inner, name), &inner);
        self.graph.node.extend(nodes);
    }

    fn cache_output(&mut self) -> Option<String> {
        let presents = self.presents();
        let name = (!presents.is_empty()).then(|| self.random.pick(&presents).clone())?;
        let past = name.replace("present", "past_key_values");
        let form = self.random.below(6);
        let what = ["twice it", "zeroed", "negated", "the last token's zeroed", "reversed", "by another name"][form];
        match form {
            0 | 1 => {
                let factor = self.floats(&[], &[if form == 0 { 2.0 } else { 0.0 }]);
                self.change_output(&name, |_, from, to| vec![node("Mul", &[from, &factor], to)]);
            }
            2 => self.change_output(&name, |_, from, to| vec![node("Neg", &[from], to)]),
            3 => {
                // The past, padded to the new length by zeros.
                let zero = self.floats(&[], &[0.0]);
                self.change_output(&name, |this, from, to| {
                    let [shape, old, difference, none, pads] =
                        ["shape", "old", "difference", "none", "pads"].map(|part| format!("{to}_{part}"));
                    let zeros = this.integers(&[4], &[0; 4]);
                    vec![
                        node("Shape", &[from], &shape),
                        node("Shape", &[&past], &old),
                        node("Sub", &[&shape, &old], &difference),
                        node("Identity", &[&zeros], &none),
                        NodeProto { attribute: vec![int("axis", 0)], ..node("Concat", &[&none, &difference], &pads) },
                        node("Pad", &[&past, &pads, &zero], to),
                    ]
                });
            }
            4 => {
                let [first, end, axis, step] = [-1, i64::MIN, 2, -1].map(|number| self.integers(&[1], &[number]));
                self.change_output(&name, |_, from, to| vec![node("Slice", &[from, &first, &end, &axis, &step], to)]);
            }
            _ => self.change_output(&name, |_, from, to| vec![node("Identity", &[from], to)]),
        }
        Some(format!("`{name}` {what}"))
    }

    fn cache_outputs_exchanged(&mut self) -> Option<String> {
        let presents = self.presents();
        let (a, b) = (!presents.is_empty())
            .then(|| (self.random.pick(&presents).clone(), self.random.pick(&presents).clone()))?;
        if a == b {
            return None;
        }
        for node in &mut self.graph.node {
            for known in node.output.iter_mut().chain(&mut node.input) {
                if *known == a {
                    known.clone_from(&b);
                } else if *known == b {
                    known.clone_from(&a);
                }
            }
        }
        Some(format!("`{a}` and `{b}`"))
    }

    /// The past of one layer goes to another; with the outputs, it is the same function.
    fn caches_exchanged(&mut self) -> Option<String> {
        let inputs = self.graph.input.iter().map(|input| input.name().to_owned());
        let pasts: Vec<String> = inputs.filter(|name| name.starts_with("past")).collect();
        let (a, b) =
            (!pasts.is_empty()).then(|| (self.random.pick(&pasts).clone(), self.random.pick(&pasts).clone()))?;
        if a == b {
            return None;
        }
        let whole = self.random.chance(1, 2);
        let [present_a, present_b] = [&a, &b].map(|name| name.replace("past_key_values", "present"));
        for node in &mut self.graph.node {
            for known in node.output.iter_mut().chain(&mut node.input) {
                for (from, to, applies) in
                    [(&a, &b, true), (&b, &a, true), (&present_a, &present_b, whole), (&present_b, &present_a, whole)]
                {
                    if known == from && applies {
                        known.clone_from(to);
                        break;
                    }
                }
            }
        }
        Some(format!("`{a}` and `{b}`{}", if whole { ", and the outputs" } else { "" }))
    }

    /// Two constants of one shape change places.
    fn constants_exchanged(&mut self) -> Option<String> {
        let first = self.initializer_of(FLOAT)?;
        let all = &self.graph.initializer;
        let fitting: Vec<usize> = (0..all.len())
            .filter(|&index| index != first && all[index].dims == all[first].dims && all[index].data_type() == FLOAT)
            .collect();
        let second = (!fitting.is_empty()).then(|| *self.random.pick(&fitting))?;
        let [a, b] = [first, second].map(|index| all[index].name().to_owned());
        self.graph.initializer[first].name = Some(b.clone());
        self.graph.initializer[second].name = Some(a.clone());
        Some(format!("`{a}` and `{b}`"))
    }

    /// Another output ahead of the logits, with nearly their name.
    fn another_output(&mut self) -> Option<String> {
        let place = self.graph.output.iter().position(|output| output.name() == "logits")?;
        let output = ValueInfoProto { name: Some("other_logits".to_owned()), ..self.graph.output[place].clone() };
        if self.graph.output.iter().any(|known| known.name() == output.name()) {
            return None;
        }
        self.graph.node.push(node("Neg", &["logits"], output.name()));
        self.graph.output.insert(0, output);
        Some("the logits negated, first".to_owned())
    }

    /// Tokens or positions are cast there and back.
    fn narrower_integers(&mut self) -> Option<String> {
        const TYPES: [(i32, &str); 5] =
            [(UINT8, "uint8"), (INT8, "int8"), (INT16, "int16"), (INT32, "int32"), (BOOL, "bool")];
        let names = ["input_ids", "position_ids"];
        let inputs = self.graph.input.iter().map(ValueInfoProto::name).filter(|name| names.contains(name));
        let inputs: Vec<String> = inputs.map(ToOwned::to_owned).collect();
        let input = (!inputs.is_empty()).then(|| self.random.pick(&inputs).clone())?;
        let (data_type, what) = *self.random.pick(&TYPES);
        self.wrap(&input, |_, from, to| {
            let narrow = format!("{to}_narrow");
            vec![cast(from, &narrow, data_type), cast(&narrow, to, INT64)]
        });
        Some(format!("`{input}` as {what}"))
    }

    /// The embedding's rows, as integers of 4 bits of their own type or packed in bytes, mostly without zero points.
    fn quantised_rows(&mut self) -> Option<String> {
        const BLOCK: usize = 16;
        let tables = self.graph.initializer.iter();
        let tables = tables.filter(|tensor| tensor.data_type() == FLOAT && tensor.dims.len() == 2);
        let tables: Vec<String> = tables.map(|tensor| tensor.name().to_owned()).collect();
        let index = self.node_where(|node| node.op_type() == "Gather" && tables.contains(&node.input[0]))?;
        let (table, lookup) = (self.graph.node[index].input[0].clone(), self.graph.node[index].clone());
        let table = self.graph.initializer.iter().find(|tensor| tensor.name() == table)?;
        let &[rows, columns] = table.dims.as_slice() else { return None };
        let (rows, columns) = (rows as usize, columns as usize);
        let values = floats(table);
        if !columns.is_multiple_of(BLOCK) {
            return None;
        }
        let (data_type, what) = *self.random.pick(&[(INT4, "int4"), (UINT4, "uint4"), (UINT8, "bytes")]);
        let with_zeros = self.random.chance(1, 3);
        // What the integers are when they are read as they are.
        let zero = if data_type == INT4 { 0 } else { 8 };
        let (mut integers, mut scales) = (Vec::new(), Vec::new());
        for block in values.chunks(BLOCK) {
            let scale = block.iter().fold(1e-3, |most: f32, value| most.max(value.abs())) / 7.0;
            integers.extend(block.iter().map(|value| (value / scale).round() as i8 + zero));
            scales.push(scale);
        }
        let pack = |integers: &[i8]| -> Vec<u8> {
            let nibble = |integer: &i8| (integer & 15) as u8;
            integers.chunks(2).map(|pair| nibble(&pair[0]) + 16 * pair.get(1).map_or(0, nibble)).collect()
        };
        let halved = |extent: usize| if data_type == UINT8 { extent.div_ceil(2) } else { extent };
        let blocks = columns / BLOCK;
        let name = self.fresh("rows");
        let [packed, zeros] = ["integers", "zeros"].map(|part| format!("{name}_{part}"));
        let scales = self.floats(&[rows, blocks], &scales);
        self.graph.initializer.push(stored(&packed, data_type, &[rows, halved(columns)], pack(&integers)));
        let mut inputs = vec![packed.as_str(), &lookup.input[1], &scales];
        if with_zeros && (data_type != UINT8 || blocks.is_multiple_of(2)) {
            let values = pack(&vec![zero; rows * blocks]);
            self.graph.initializer.push(stored(&zeros, data_type, &[rows, halved(blocks)], values));
            inputs.push(&zeros);
        }
        self.graph.node[index] = NodeProto {
            domain: Some("com.microsoft".to_owned()),
            attribute: vec![int("block_size", BLOCK as i64)],
            ..node("GatherBlockQuantized", &inputs, &lookup.output[0])
        };
        Some(format!("{what}, {} zero points", if inputs.len() > 3 { "with" } else { "without" }))
    }

    /// Nodes in any order are the same function.
    fn order(&mut self) -> Option<String> {
        for last in (1..self.graph.node.len()).rev() {
            let other = self.random.below(last + 1);
            self.graph.node.swap(last, other);
        }
        (!self.graph.node.is_empty()).then(|| "shuffled".to_owned())
    }
}

/// Moves stored numbers by a few units in the last place: a function that this changes is not one that single precision
/// can compute.
#[cfg(feature = "onnxruntime")]
pub(crate) fn perturb(graph: &mut GraphProto, random: &mut SplitMix) {
    for tensor in graph.initializer.iter_mut().filter(|tensor| tensor.data_type() == FLOAT) {
        let mut values = floats(tensor);
        // Single numbers stay: exponents, and what stands for infinity.
        if values.len() > 1 {
            for value in &mut values {
                *value *= 1.0 + 1e-6 * random.symmetric();
            }
        }
        set_floats(tensor, &values);
    }
}

/// Makes constants that nodes hold initialisers, which the changes know.
pub(crate) fn lift_constants(graph: &mut GraphProto) {
    let mut kept = Vec::new();
    for mut node in std::mem::take(&mut graph.node) {
        let constant = node.op_type() == "Constant";
        let value = node.attribute.iter_mut().find(|attribute| constant && attribute.name() == "value");
        match value.and_then(|value| value.t.take()) {
            Some(tensor) => graph.initializer.push(TensorProto { name: Some(node.output.remove(0)), ..tensor }),
            None => kept.push(node),
        }
    }
    graph.node = kept;
}
