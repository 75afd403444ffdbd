//! A decoder as nodes: each part in one of several forms, at random.

use super::{CONTEXT, Layer, Llama, Matrix};
use crate::SplitMix;
use crate::onnx::proto::ModelProto;
use crate::onnx::{BOOL, Builder, FLOAT, INT32, INT64, float, int, ints, value};

/// The decoder with or without caches.
pub(super) fn written(llama: &Llama, cached: bool, forms: &mut SplitMix) -> ModelProto {
    let attention = match forms.below(4) {
        0 if cached && llama.dim.is_multiple_of(16) => Form::Grouped,
        1 => Form::Operation,
        _ => Form::WrittenOut,
    };
    let tokens_first = cached && attention != Form::Grouped && forms.chance(1, 4);
    let mut writer =
        Writer { llama, b: Builder::default(), forms, cached, attention, tokens_first, shared: Shared::default() };
    writer.decoder();
    writer.b.model()
}

/// How attention is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    WrittenOut,
    /// ONNX's `Attention`.
    Operation,
    /// `com.microsoft::GroupQueryAttention`, rotary embedding included.
    Grouped,
}

/// What all layers read.
#[derive(Default)]
struct Shared {
    positions: String,
    /// Cosines and sines of new tokens, `[1, 1, tokens, dim]`; of all positions, `[context, dim/2]`.
    rows: [String; 2],
    table: [String; 2],
    /// Whether the rows are those of the table, to the last bit.
    tabulated: bool,
    /// What is added to scores, and where they count, `[1, 1, tokens, total]`.
    added: String,
    kept: String,
    /// Past tokens and tokens so far, for the grouped attention.
    lengths: [String; 2],
}

struct Writer<'w> {
    llama: &'w Llama,
    b: Builder,
    forms: &'w mut SplitMix,
    cached: bool,
    attention: Form,
    tokens_first: bool,
    shared: Shared,
}

impl Writer<'_> {
    fn decoder(&mut self) {
        let llama = self.llama;
        let shape = if self.tokens_first {
            [1, -1, llama.kv_heads as i64, llama.dim as i64]
        } else {
            [1, llama.kv_heads as i64, -1, llama.dim as i64]
        };
        self.b.graph.input.extend([value("input_ids", INT64, &[1, -1]), value("attention_mask", INT64, &[1, -1])]);
        if self.cached {
            for (layer, kind) in (0..llama.layers.len()).flat_map(|layer| [(layer, "key"), (layer, "value")]) {
                self.b.graph.input.push(value(&format!("past_key_values.{layer}.{kind}"), FLOAT, &shape));
            }
        }
        self.lengths_and_positions();
        self.rotations();
        self.mask();
        let embedding = self.b.floats(&[llama.vocabulary, llama.hidden], &llama.embedding);
        let mut x = self.b.op("Gather", &[&embedding, "input_ids"], vec![]);
        let mut normed = self.norm(&x, &llama.layers[0].attention_norm);
        for (index, layer) in llama.layers.iter().enumerate() {
            let mixed = self.attention(index, layer, &normed);
            let delta = self.linear(&mixed, &layer.output);
            (x, normed) = self.sum_and_norm(&x, &delta, &layer.mlp_norm);
            let delta = self.mlp(layer, &normed);
            let next = llama.layers.get(index + 1).map_or(&llama.norm, |layer| &layer.attention_norm);
            (x, normed) = self.sum_and_norm(&x, &delta, next);
        }
        if self.forms.chance(1, 6) {
            // Only the last token's logits.
            let [first, end, axis] = [-1, i64::MAX, 1].map(|number| self.b.list(&[number]));
            normed = self.b.op("Slice", &[&normed, &first, &end, &axis], vec![]);
        }
        let logits = match &llama.head {
            Some(head) => self.linear(&normed, head),
            None => {
                let head = self.b.op("Transpose", &[&embedding], vec![ints("perm", &[1, 0])]);
                self.b.op("MatMul", &[&normed, &head], vec![])
            }
        };
        self.b.output(&logits, "logits", &[1, -1, llama.vocabulary as i64]);
    }

    /// One axis' extent of a value, as a number.
    fn extent(&mut self, of: &str, axis: i64) -> String {
        match self.forms.below(2) {
            0 => {
                let shape = self.b.op("Shape", &[of], vec![]);
                let index = self.b.integers(&[], &[axis]);
                self.b.op("Gather", &[&shape, &index], vec![])
            }
            _ => {
                let shape = self.b.op("Shape", &[of], vec![int("start", axis), int("end", axis + 1)]);
                self.b.op("Squeeze", &[&shape], vec![])
            }
        }
    }

    fn lengths_and_positions(&mut self) {
        let tokens = self.extent("input_ids", 1);
        let total = self.extent("attention_mask", 1);
        let past = if self.cached && self.forms.chance(1, 2) {
            self.extent("past_key_values.0.key", if self.tokens_first { 1 } else { 2 })
        } else {
            self.b.op("Sub", &[&total, &tokens], vec![])
        };
        let one = self.b.integers(&[], &[1]);
        let axis = self.b.list(&[0]);
        self.shared.positions = match self.forms.below(3) {
            0 => {
                let range = self.b.op("Range", &[&past, &total, &one], vec![]);
                self.b.op("Unsqueeze", &[&range, &axis], vec![])
            }
            1 => {
                // What is not padding counts.
                let axis = self.b.integers(&[], &[1]);
                let counted = self.b.op("CumSum", &["attention_mask", &axis], vec![]);
                let positions = self.b.op("Sub", &[&counted, &one], vec![]);
                let negated = self.b.op("Neg", &[&tokens], vec![]);
                let minus_one = self.b.list(&[-1]);
                let [first, end, axis] = [
                    self.b.op("Reshape", &[&negated, &minus_one], vec![]),
                    self.b.list(&[i64::MAX]),
                    self.b.list(&[1]),
                ];
                self.b.op("Slice", &[&positions, &first, &end, &axis], vec![])
            }
            _ => {
                self.b.graph.input.push(value("position_ids", INT64, &[1, -1]));
                "position_ids".to_owned()
            }
        };
        if self.attention == Form::Grouped {
            let axes = self.b.list(&[1]);
            let counted = self.b.op("ReduceSum", &["attention_mask", &axes], vec![int("keepdims", 1)]);
            let last = self.b.op("Sub", &[&counted, &one], vec![]);
            let last = self.b.op("Cast", &[&last], vec![int("to", INT32.into())]);
            let total = self.b.op("Cast", &[&total], vec![int("to", INT32.into())]);
            self.shared.lengths = [last, total];
        }
        self.shared.kept = self.visible(&past, &total, &one);
    }

    /// Which tokens each new one sees, `[1, 1, tokens, total]`.
    fn visible(&mut self, past: &str, total: &str, one: &str) -> String {
        let zero = self.b.integers(&[], &[0]);
        let columns = self.b.op("Range", &[&zero, total, one], vec![]);
        let rows = self.b.op("Range", &[past, total, one], vec![]);
        let axes = self.b.list(&[-1]);
        let rows = self.b.op("Unsqueeze", &[&rows, &axes], vec![]);
        let causal = match self.forms.below(3) {
            0 => self.b.op("LessOrEqual", &[&columns, &rows], vec![]),
            1 => self.b.op("GreaterOrEqual", &[&rows, &columns], vec![]),
            _ => {
                let later = self.b.op("Greater", &[&columns, &rows], vec![]);
                self.b.op("Not", &[&later], vec![])
            }
        };
        let axes = self.b.list(&[0, 1]);
        let causal = self.b.op("Unsqueeze", &[&causal, &axes], vec![]);
        if self.forms.chance(1, 3) {
            return causal;
        }
        let padding = self.b.op("Cast", &["attention_mask"], vec![int("to", BOOL.into())]);
        let axes = self.b.list(&[1, 2]);
        let padding = self.b.op("Unsqueeze", &[&padding, &axes], vec![]);
        self.b.op("And", &[&causal, &padding], vec![])
    }

    fn mask(&mut self) {
        let kept = self.shared.kept.clone();
        let zero = self.b.float(0.0);
        let hidden = *self.forms.pick(&[f32::MIN, -1e9, f32::NEG_INFINITY]);
        self.shared.added = if self.forms.chance(1, 4) && hidden.is_finite() {
            let shown = self.b.op("Cast", &[&kept], vec![int("to", FLOAT.into())]);
            let [one, hidden] = [1.0, hidden].map(|number| self.b.float(number));
            let inverse = self.b.op("Sub", &[&one, &shown], vec![]);
            self.b.op("Mul", &[&inverse, &hidden], vec![])
        } else {
            let hidden = self.b.float(hidden);
            self.b.op("Where", &[&kept, &zero, &hidden], vec![])
        };
    }

    fn rotations(&mut self) {
        let llama = self.llama;
        let pairs = llama.dim / 2;
        let frequencies: Vec<f32> = (0..pairs).map(|pair| llama.theta.powf(-(pair as f32) / pairs as f32)).collect();
        let table = |function: fn(f32) -> f32| -> Vec<f32> {
            (0..CONTEXT).flat_map(|position| frequencies.iter().map(move |f| function(position as f32 * f))).collect()
        };
        self.shared.table = [table(f32::cos), table(f32::sin)].map(|table| self.b.floats(&[CONTEXT, pairs], &table));
        let positions = self.shared.positions.clone();
        let axes = self.b.list(&[1]);
        self.shared.tabulated = self.forms.chance(1, 3);
        if self.shared.tabulated {
            let axes = self.b.list(&[1]);
            self.shared.rows = self.shared.table.clone().map(|table| {
                let doubled = self.b.op("Concat", &[&table, &table], vec![int("axis", -1)]);
                let rows = self.b.op("Gather", &[&doubled, &positions], vec![]);
                self.b.op("Unsqueeze", &[&rows, &axes], vec![])
            });
            return;
        }
        let positions = self.b.op("Cast", &[&positions], vec![int("to", FLOAT.into())]);
        let angles = if self.forms.chance(1, 2) {
            let row = self.b.op("Unsqueeze", &[&positions, &axes], vec![]);
            let frequencies = self.b.floats(&[1, pairs, 1], &frequencies);
            let product = self.b.op("MatMul", &[&frequencies, &row], vec![]);
            self.b.op("Transpose", &[&product], vec![ints("perm", &[0, 2, 1])])
        } else {
            let last = self.b.list(&[-1]);
            let column = self.b.op("Unsqueeze", &[&positions, &last], vec![]);
            let frequencies = self.b.floats(&[pairs], &frequencies);
            self.b.op("Mul", &[&column, &frequencies], vec![])
        };
        let doubled = self.b.op("Concat", &[&angles, &angles], vec![int("axis", -1)]);
        self.shared.rows = ["Cos", "Sin"].map(|function| {
            let rows = self.b.op(function, &[&doubled], vec![]);
            self.b.op("Unsqueeze", &[&rows, &axes], vec![])
        });
    }

    /// `[1, heads, tokens, dim]` rotated.
    fn rotated(&mut self, x: &str) -> String {
        let half = self.llama.dim as i64 / 2;
        let [cosines, sines] = self.shared.rows.clone();
        let [cosine_table, sine_table] = self.shared.table.clone();
        let positions = self.shared.positions.clone();
        let [first, second] = match self.forms.below(5) {
            0 if self.shared.tabulated => {
                return self.b.op(
                    "com.microsoft::RotaryEmbedding",
                    &[x, &positions, &cosine_table, &sine_table],
                    vec![],
                );
            }
            1 if self.shared.tabulated => {
                return self.b.op("RotaryEmbedding", &[x, &cosine_table, &sine_table, &positions], vec![]);
            }
            2 => {
                let parts = self.b.list(&[half, half]);
                let halves = self.b.node("Split", &[x, &parts], vec![int("axis", -1)], 2);
                [halves[0].clone(), halves[1].clone()]
            }
            _ => [(0, half), (half, i64::MAX)].map(|(first, end)| {
                let [first, end, axis] = [first, end, 3].map(|number| self.b.list(&[number]));
                self.b.op("Slice", &[x, &first, &end, &axis], vec![])
            }),
        };
        let negated = self.b.op("Neg", &[&second], vec![]);
        let turned = self.b.op("Concat", &[&negated, &first], vec![int("axis", -1)]);
        let a = self.b.op("Mul", &[x, &cosines], vec![]);
        let b = self.b.op("Mul", &[&turned, &sines], vec![]);
        self.b.op("Add", &[&a, &b], vec![])
    }

    fn linear(&mut self, x: &str, layer: &Matrix) -> String {
        let Matrix { outputs, inputs, ref values, ref bias } = *layer;
        let transposed = |values: &[f32]| -> Vec<f32> {
            (0..inputs).flat_map(|input| (0..outputs).map(move |output| values[output * inputs + input])).collect()
        };
        let product = match self.forms.below(6) {
            0 => {
                let weight = self.b.floats(&[outputs, inputs], values);
                let weight = self.b.op("Transpose", &[&weight], vec![ints("perm", &[1, 0])]);
                self.b.op("MatMul", &[x, &weight], vec![])
            }
            1 => {
                let weight = self.b.floats(&[outputs, inputs], values);
                self.b.op("com.microsoft::FusedMatMul", &[x, &weight], vec![int("transB", 1)])
            }
            2 => {
                let rows = self.b.list(&[-1, inputs as i64]);
                let rows = self.b.op("Reshape", &[x, &rows], vec![]);
                let weight = self.b.floats(&[outputs, inputs], values);
                let bias = bias.as_ref().map(|bias| self.b.floats(&[outputs], bias));
                let operands: Vec<&str> = [rows.as_str(), &weight].into_iter().chain(bias.as_deref()).collect();
                let product = self.b.op("Gemm", &operands, vec![int("transB", 1)]);
                let shape = self.b.list(&[1, -1, outputs as i64]);
                return self.b.op("Reshape", &[&product, &shape], vec![]);
            }
            _ => {
                let weight = self.b.floats(&[inputs, outputs], &transposed(values));
                self.b.op("MatMul", &[x, &weight], vec![])
            }
        };
        let Some(bias) = bias else { return product };
        let bias = self.b.floats(&[outputs], bias);
        if self.forms.chance(1, 2) {
            self.b.op("Add", &[&product, &bias], vec![])
        } else {
            self.b.op("Add", &[&bias, &product], vec![])
        }
    }

    /// Queries, keys and values `[1, tokens, width]`.
    fn projections(&mut self, x: &str, layers: &[Matrix; 3]) -> [String; 3] {
        if self.forms.chance(2, 3) {
            return [0, 1, 2].map(|index| self.linear(x, &layers[index]));
        }
        let packed = Matrix {
            outputs: layers.iter().map(|layer| layer.outputs).sum(),
            inputs: layers[0].inputs,
            values: layers.iter().flat_map(|layer| layer.values.clone()).collect(),
            bias: layers.iter().map(|layer| layer.bias.clone()).collect::<Option<Vec<_>>>().map(|parts| parts.concat()),
        };
        let packed = self.linear(x, &packed);
        let widths = [0, 1, 2].map(|index| layers[index].outputs as i64);
        let parts = self.b.list(&widths);
        let parts = self.b.node("Split", &[&packed, &parts], vec![int("axis", 2)], 3);
        [0, 1, 2].map(|index| parts[index].clone())
    }

    /// `[1, heads, tokens, dim]` from `[1, tokens, heads·dim]`.
    fn split_heads(&mut self, x: &str, heads: usize) -> String {
        let dim = self.llama.dim as i64;
        let shape = if self.forms.chance(1, 2) { [0, 0, heads as i64, dim] } else { [1, -1, heads as i64, dim] };
        let shape = self.b.list(&shape);
        let split = self.b.op("Reshape", &[x, &shape], vec![]);
        self.b.op("Transpose", &[&split], vec![ints("perm", &[0, 2, 1, 3])])
    }

    fn merge_heads(&mut self, x: &str) -> String {
        let x = self.b.op("Transpose", &[x], vec![ints("perm", &[0, 2, 1, 3])]);
        let shape = self.b.list(&[1, -1, (self.llama.heads * self.llama.dim) as i64]);
        self.b.op("Reshape", &[&x, &shape], vec![])
    }

    fn attention(&mut self, index: usize, layer: &Layer, x: &str) -> String {
        let llama = self.llama;
        let [heads, kv_heads, dim] = [llama.heads, llama.kv_heads, llama.dim];
        let [q, k, v] = self.projections(x, &layer.projections);
        let [past_key, past_value] = ["key", "value"].map(|kind| format!("past_key_values.{index}.{kind}"));
        if self.attention == Form::Grouped {
            let [last, total] = self.shared.lengths.clone();
            let [cosines, sines] = self.shared.table.clone();
            let inputs = [&q, &k, &v, &past_key, &past_value, &last, &total, &cosines, &sines].map(String::as_str);
            let attributes =
                vec![int("num_heads", heads as i64), int("kv_num_heads", kv_heads as i64), int("do_rotary", 1)];
            let outputs = self.b.node("com.microsoft::GroupQueryAttention", &inputs, attributes, 3);
            self.present(index, "key", &outputs[1]);
            self.present(index, "value", &outputs[2]);
            return outputs[0].clone();
        }
        let q = self.split_heads(&q, heads);
        let k = self.split_heads(&k, kv_heads);
        let v = self.split_heads(&v, kv_heads);
        let (q, k) = (self.rotated(&q), self.rotated(&k));
        let k = self.appended(index, "key", &past_key, &k);
        let v = self.appended(index, "value", &past_value, &v);
        let scale = 1.0 / (dim as f32).sqrt();
        if self.attention == Form::Operation {
            let mask = if self.forms.chance(1, 2) { self.shared.kept.clone() } else { self.shared.added.clone() };
            let attributes = if self.forms.chance(1, 2) { vec![float("scale", scale)] } else { vec![] };
            let mixed = self.b.op("Attention", &[&q, &k, &v, &mask], attributes);
            return self.merge_heads(&mixed);
        }
        let mixed = self.weighed(q, k, v, scale);
        self.merge_heads(&mixed)
    }

    /// softmax(q·Kᵀ·scale)·V written out.
    fn weighed(&mut self, mut q: String, mut k: String, mut v: String, scale: f32) -> String {
        let [heads, kv_heads, dim] = [self.llama.heads, self.llama.kv_heads, self.llama.dim];
        let group = heads / kv_heads;
        let grouped_queries = group > 1 && self.forms.chance(1, 4);
        if grouped_queries {
            let shape = self.b.list(&[1, kv_heads as i64, group as i64, -1, dim as i64]);
            q = self.b.op("Reshape", &[&q, &shape], vec![]);
            let axis = self.b.list(&[2]);
            [k, v] = [k, v].map(|x| self.b.op("Unsqueeze", &[&x, &axis], vec![]));
        } else if group > 1 {
            let axis = self.b.list(&[2]);
            let repeat = self.b.list(&[1, 1, group as i64, 1, 1]);
            let shape = self.b.list(&[1, heads as i64, -1, dim as i64]);
            [k, v] = [k, v].map(|x| {
                let x = self.b.op("Unsqueeze", &[&x, &axis], vec![]);
                let x = self.b.op("Expand", &[&x, &repeat], vec![]);
                self.b.op("Reshape", &[&x, &shape], vec![])
            });
        }
        let perm: &[i64] = if grouped_queries { &[0, 1, 2, 4, 3] } else { &[0, 1, 3, 2] };
        let scaled = |this: &mut Self, x: &str, factor: f32| {
            let factor = this.b.float(factor);
            this.b.op("Mul", &[x, &factor], vec![])
        };
        let form = self.forms.below(5);
        match form {
            0 => q = scaled(self, &q, scale),
            1 => [q, k] = [q, k].map(|x| scaled(self, &x, scale.sqrt())),
            _ => {}
        }
        let mut scores = if form == 2 {
            self.b.op("com.microsoft::FusedMatMul", &[&q, &k], vec![int("transB", 1), float("alpha", scale)])
        } else {
            let keys = self.b.op("Transpose", &[&k], vec![ints("perm", perm)]);
            self.b.op("MatMul", &[&q, &keys], vec![])
        };
        if form == 3 {
            scores = scaled(self, &scores, scale);
        } else if form == 4 {
            let root = self.b.float(1.0 / scale);
            scores = self.b.op("Div", &[&scores, &root], vec![]);
        }
        let (added, kept) = (self.shared.added.clone(), self.shared.kept.clone());
        let scores = match self.forms.below(4) {
            0 => {
                let hidden = self.b.float(f32::MIN);
                self.b.op("Where", &[&kept, &scores, &hidden], vec![])
            }
            1 => self.b.op("Add", &[&added, &scores], vec![]),
            _ => self.b.op("Add", &[&scores, &added], vec![]),
        };
        let shares = self.b.op("Softmax", &[&scores], vec![int("axis", -1)]);
        let mixed = self.b.op("MatMul", &[&shares, &v], vec![]);
        if !grouped_queries {
            return mixed;
        }
        let shape = self.b.list(&[1, heads as i64, -1, dim as i64]);
        self.b.op("Reshape", &[&mixed, &shape], vec![])
    }

    /// Past and new keys or values, `[1, kv_heads, total, dim]`.
    fn appended(&mut self, index: usize, kind: &str, past: &str, new: &str) -> String {
        if !self.cached {
            return new.to_owned();
        }
        if !self.tokens_first {
            let all = self.b.op("Concat", &[past, new], vec![int("axis", 2)]);
            return self.present(index, kind, &all);
        }
        let turn = || vec![ints("perm", &[0, 2, 1, 3])];
        let new = self.b.op("Transpose", &[new], turn());
        let all = self.b.op("Concat", &[past, &new], vec![int("axis", 1)]);
        let all = self.present(index, kind, &all);
        self.b.op("Transpose", &[&all], turn())
    }

    /// Makes a value an output of the graph, and returns its name from then on.
    fn present(&mut self, index: usize, kind: &str, value: &str) -> String {
        let name = format!("present.{index}.{kind}");
        self.b.output(value, &name, &[1, -1, -1, self.llama.dim as i64]);
        name
    }

    fn norm(&mut self, x: &str, gamma: &[f32]) -> String {
        let gamma = self.b.floats(&[gamma.len()], gamma);
        let epsilon = self.llama.epsilon;
        let form = self.forms.below(5);
        match form {
            0 => {
                return self.b.op(
                    "SimplifiedLayerNormalization",
                    &[x, &gamma],
                    vec![int("axis", -1), float("epsilon", epsilon)],
                );
            }
            1 => return self.b.op("RMSNormalization", &[x, &gamma], vec![int("axis", -1), float("epsilon", epsilon)]),
            _ => {}
        }
        let square = if form == 2 {
            self.b.op("Mul", &[x, x], vec![])
        } else {
            let two = self.b.float(2.0);
            self.b.op("Pow", &[x, &two], vec![])
        };
        let axis = self.b.list(&[-1]);
        let mean = self.b.op("ReduceMean", &[&square, &axis], vec![]);
        let epsilon = self.b.float(epsilon);
        let sum = self.b.op("Add", &[&mean, &epsilon], vec![]);
        let root = self.b.op("Sqrt", &[&sum], vec![]);
        let normed = match form {
            2 => self.b.op("Div", &[x, &root], vec![]),
            3 => {
                let inverse = self.b.op("Reciprocal", &[&root], vec![]);
                self.b.op("Mul", &[x, &inverse], vec![])
            }
            _ => {
                let one = self.b.float(1.0);
                let inverse = self.b.op("Div", &[&one, &root], vec![]);
                self.b.op("Mul", &[x, &inverse], vec![])
            }
        };
        self.b.op("Mul", &[&gamma, &normed], vec![])
    }

    /// The residual stream with a layer's output added, and its norm.
    fn sum_and_norm(&mut self, x: &str, delta: &str, gamma: &[f32]) -> (String, String) {
        if self.forms.chance(1, 4) {
            let gamma = self.b.floats(&[gamma.len()], gamma);
            let op = "com.microsoft::SkipSimplifiedLayerNormalization";
            let outputs = self.b.node(op, &[x, delta, &gamma], vec![float("epsilon", self.llama.epsilon)], 4);
            let node = self.b.graph.node.last_mut().expect("the node");
            node.output[1].clear();
            node.output[2].clear();
            return (outputs[3].clone(), outputs[0].clone());
        }
        let sum = if self.forms.chance(1, 2) {
            self.b.op("Add", &[x, delta], vec![])
        } else {
            self.b.op("Add", &[delta, x], vec![])
        };
        let normed = self.norm(&sum, gamma);
        (sum, normed)
    }

    fn mlp(&mut self, layer: &Layer, x: &str) -> String {
        let gate = self.linear(x, &layer.gate);
        let up = self.linear(x, &layer.up);
        let activated = match self.forms.below(4) {
            0 => self.b.op("com.microsoft::QuickGelu", &[&gate], vec![float("alpha", 1.0)]),
            1 => {
                let negated = self.b.op("Neg", &[&gate], vec![]);
                let exponential = self.b.op("Exp", &[&negated], vec![]);
                let one = self.b.float(1.0);
                let sum = self.b.op("Add", &[&exponential, &one], vec![]);
                self.b.op("Div", &[&gate, &sum], vec![])
            }
            _ => {
                let share = self.b.op("Sigmoid", &[&gate], vec![]);
                self.b.op("Mul", &[&gate, &share], vec![])
            }
        };
        let product = if self.forms.chance(1, 2) {
            self.b.op("Mul", &[&activated, &up], vec![])
        } else {
            self.b.op("Mul", &[&up, &activated], vec![])
        };
        self.linear(&product, &layer.down)
    }
}
