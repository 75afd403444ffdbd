//! Whole programs of random decoders, with exact functions in place of polynomials, against the tensor stage.

use std::ops::Range;

use cachemir_ir::expression::Environment;
use cachemir_ir::graph::{Graph, Origin, ValueId};
use cachemir_ir::program::EntryPoint;
use cachemir_ir::slots_interpreter::Interpreter;
use cachemir_ir::tensor::{
    self, CacheKind, Hyperparameters, RopeTable, TensorModel, TensorOp, TensorType, Weight, WeightId,
};

use super::super::calibrate::{Embedding, Recorder};
use super::super::plan::{Plan, SoftmaxPlan};
use super::super::prefix::Prefix;
use super::super::roles::Roles;
use super::super::tables::tables;
use super::super::{Shape, build, counts, reference};
use super::{Numbers, model};
use crate::calibration::Calibration;
use crate::guard::guard;

/// Adds weights and ops to a model one at a time.
struct Maker {
    model: TensorModel,
    numbers: Numbers,
    /// Whether linear layers have biases.
    biased: bool,
}

impl Maker {
    fn weight(&mut self, name: String, shape: Vec<usize>, scale: f64) -> WeightId {
        let length = shape.iter().product();
        let offset = if shape.len() == 1 { 1.0 } else { 0.0 };
        let values = (0..length).map(|_| (offset + scale * self.numbers.next()) as f32).collect();
        self.model.weights.push(Weight::new(name, shape, values));
        WeightId(self.model.weights.len() as u32 - 1)
    }

    fn op(&mut self, op: TensorOp, inputs: &[ValueId], ty: TensorType) -> ValueId {
        let graph = &mut self.model.graph;
        let node = format!("node{}", graph.nodes.len());
        let origin = graph.intern_origin(Origin { node, op_type: op.mnemonic().into() });
        let (id, results) = graph.add_node(op, inputs.to_vec(), vec![ty], Some(origin), None);
        graph.body.ops.push(id);
        results[0]
    }

    fn linear(&mut self, name: &str, x: ValueId, out: usize, input: usize) -> ValueId {
        let weight = self.weight(name.to_owned(), vec![out, input], 1.6 / (input as f64).sqrt());
        let bias = self.biased.then(|| {
            let values = (0..out).map(|_| self.numbers.next() as f32).collect();
            self.model.weights.push(Weight::new(format!("{name}.bias"), vec![out], values));
            WeightId(self.model.weights.len() as u32 - 1)
        });
        self.op(TensorOp::Linear { weight, bias }, &[x], TensorType::Vector { width: out as u32 })
    }

    fn norm(&mut self, name: String, x: ValueId) -> ValueId {
        let (width, epsilon) = (self.model.hyperparameters.hidden, self.model.hyperparameters.epsilon);
        let weight = self.weight(name, vec![width], 0.3);
        self.op(TensorOp::RmsNorm { weight, epsilon }, &[x], TensorType::Vector { width: width as u32 })
    }
}

/// A decoder with random weights.
pub(super) fn random_model(hyperparameters: Hyperparameters, biased: bool) -> TensorModel {
    let h = hyperparameters.clone();
    let pairs = h.head_dim / 2;
    let angle = |index: usize| (index / pairs) as f64 * 50f64.powf(-((index % pairs) as f64) / pairs as f64);
    let rope = RopeTable {
        pairs,
        cosines: (0..h.context * pairs).map(|index| angle(index).cos() as f32).collect(),
        sines: (0..h.context * pairs).map(|index| angle(index).sin() as f32).collect(),
    };
    let model = TensorModel { hyperparameters, rope, weights: vec![], graph: Graph::default() };
    let mut maker = Maker { model, numbers: Numbers(11), biased };
    let vector = TensorType::Vector { width: h.hidden as u32 };
    let token = maker.model.graph.add_input("token", TensorType::Token);
    let weight = maker.weight("embed_tokens".into(), vec![h.vocabulary, h.hidden], 1.0);
    let mut x = maker.op(TensorOp::Embedding { weight }, &[token], vector);
    let (heads, kv_heads) = (h.heads as u32, h.kv_heads as u32);
    let kv = TensorType::Vector { width: h.kv_width() as u32 };
    let query = TensorType::Vector { width: h.query_width() as u32 };
    for layer in 0..h.layers {
        let name = |part: &str| format!("layers.{layer}.{part}");
        let normed = maker.norm(name("input_layernorm"), x);
        let q = maker.linear(&name("self_attn.q_proj"), normed, h.query_width(), h.hidden);
        let k = maker.linear(&name("self_attn.k_proj"), normed, h.kv_width(), h.hidden);
        let v = maker.linear(&name("self_attn.v_proj"), normed, h.kv_width(), h.hidden);
        let q = maker.op(TensorOp::Rope { heads }, &[q], query);
        let k = maker.op(TensorOp::Rope { heads: kv_heads }, &[k], kv);
        let cache = TensorType::Cache { width: h.kv_width() as u32 };
        let number = layer as u32;
        let keys = maker.op(TensorOp::KvAppend { layer: number, kind: CacheKind::Key }, &[k], cache);
        let values = maker.op(TensorOp::KvAppend { layer: number, kind: CacheKind::Value }, &[v], cache);
        let rows = TensorType::Rows { heads };
        let scores = maker.op(TensorOp::Scores { heads, kv_heads, scale: h.attention_scale }, &[q, keys], rows);
        let weights = maker.op(TensorOp::Softmax, &[scores], rows);
        let mixed = maker.op(TensorOp::Mix { heads, kv_heads }, &[weights, values], query);
        let update = maker.linear(&name("self_attn.o_proj"), mixed, h.hidden, h.query_width());
        x = maker.op(TensorOp::Add, &[x, update], vector);
        let normed = maker.norm(name("post_attention_layernorm"), x);
        let wide = TensorType::Vector { width: h.mlp as u32 };
        let gate = maker.linear(&name("mlp.gate_proj"), normed, h.mlp, h.hidden);
        let gate = maker.op(TensorOp::Silu, &[gate], wide);
        let up = maker.linear(&name("mlp.up_proj"), normed, h.mlp, h.hidden);
        let product = maker.op(TensorOp::Mul, &[gate, up], wide);
        let update = maker.linear(&name("mlp.down_proj"), product, h.hidden, h.mlp);
        x = maker.op(TensorOp::Add, &[x, update], vector);
    }
    let normed = maker.norm("norm".into(), x);
    let weight = maker.weight("lm_head".into(), vec![h.vocabulary, h.hidden], 0.5);
    let logits = maker.op(TensorOp::LmHead { weight }, &[normed], TensorType::Vector { width: h.vocabulary as u32 });
    maker.model.graph.body.yields = vec![logits];
    tensor::verify(&maker.model).unwrap();
    maker.model
}

/// Decodes and prefills 40 tokens of random models, without and with biases, and compares all logits with the tensor
/// stage.
fn check(slots: usize, hyperparameters: &Hyperparameters, squarings: usize) {
    for biased in [false, true] {
        check_model(slots, &random_model(hyperparameters.clone(), biased), squarings);
    }
}

fn check_model(slots: usize, model: &TensorModel, squarings: usize) {
    let h = &model.hyperparameters;
    let shape = Shape::new(h, slots).unwrap();
    let roles = Roles::new(model).unwrap();
    let mut numbers = Numbers(17);
    let mut reference_keys = || (0..h.kv_width()).map(|_| numbers.next() as f32).collect();
    let softmax =
        |_| SoftmaxPlan { reference: 1.0, reference_keys: reference_keys(), exponents: vec![0.5; squarings + 1] };
    let softmaxes: Vec<SoftmaxPlan> = (0..h.layers).map(softmax).collect();
    let plan = Plan::provisional(h, &roles, &softmaxes);
    let (program, uses) = build(&shape, &roles, &plan, &Prefix::default(), tables(model, &roles, &plan).unwrap());
    for entry in &program.entries {
        assert_eq!(entry.graph.verify_structure(), Vec::<String>::new());
    }
    let reasons = counts(&program.entries[0].graph, slots, &Environment::new(33, 1)).masks_unfused;
    let reasons: Vec<&str> = reasons.keys().map(String::as_str).collect();
    assert_eq!(
        reasons,
        ["arguments shown to the client", "landing of group members", "merge of scores", "push into the V cache"]
    );
    let tokens: Vec<u32> = (0..40).map(|index| (index * index * 7 + index / 3) as u32 % h.vocabulary as u32).collect();
    let mut reference = tensor::Interpreter::new(model).unwrap();
    let mut want = Vec::new();
    let mut arguments = Vec::new();
    for &token in &tokens {
        want.push(reference.step(token).unwrap());
        arguments.push(shown(model, &reference, squarings, &softmaxes));
    }
    let compare_arguments = |got: &[Vec<f64>], entry: usize, positions: Range<usize>| {
        let checks = &program.entries[entry].checks;
        assert_eq!(checks.len(), h.layers * (2 + squarings + 1));
        for (token, position) in positions.enumerate() {
            for (site, values) in &arguments[position] {
                let check = checks.iter().find(|check| check.site == *site).expect("the site is shown");
                assert_eq!(check.placement.index_to_slot.len(), values.len());
                for (slot, want) in check.placement.index_to_slot.iter().zip(values) {
                    let slot = *slot as usize + token * check.placement.token_stride as usize;
                    let got = got[slot / slots][slot % slots];
                    assert!((got - want).abs() < 1e-6 * want.max(1.0), "{site} at {position}: {got} instead of {want}");
                }
            }
        }
    };
    let seen = Calibration { text: vec![tokens.clone()], ..Calibration::default() };
    let guard = guard(model, &seen, &program.logits, slots, 1.0).unwrap();
    let compare = |got: &[Vec<f64>], position: usize, entry: &str| {
        for &slot in &guard.zeros {
            let got = got[slot as usize / slots][slot as usize % slots];
            assert!(got.abs() < 1e-9, "{entry} at {position}: {got} in slot {slot}, which stands for no token");
        }
        for (token, &slot) in program.logits.index_to_slot.iter().enumerate() {
            let (part, slot) = (slot as usize / slots, slot as usize % slots);
            let (got, want) = (got[part][slot], want[position][token]);
            assert!((got - want).abs() < 1e-6, "{entry} at {position}, logit {token}: {got} instead of {want}");
        }
    };
    let written = h.vocabulary % slots;
    assert_eq!(guard.zeros.len(), written.next_power_of_two() % slots - written);
    let mut interpreter = Interpreter::new(&program);
    let [mut decode, mut prefill] = [0, 1].map(|entry| Recorder::new(&uses[entry], slots));
    for (position, &token) in tokens.iter().enumerate() {
        let input = Embedding::of(model).unwrap().embed(&program, &[token]).unwrap();
        let got = interpreter.call_with(EntryPoint::Decode, position as i64, 1, &input, &mut decode).unwrap();
        compare(&got, position, "decode");
        compare_arguments(&got, 0, position..position + 1);
    }
    // A prefill of whole chunks and a part of one, then decoding.
    interpreter.reset();
    let prompt = 3 * shape.chunk - shape.chunk.div_ceil(2);
    let prompt = prompt.min(36);
    let mut done = 0;
    for chunk in tokens[..prompt].chunks(shape.chunk) {
        let input = Embedding::of(model).unwrap().embed(&program, chunk).unwrap();
        let got =
            interpreter.call_with(EntryPoint::Prefill, done as i64, chunk.len() as i64, &input, &mut prefill).unwrap();
        compare_arguments(&got, 1, done..done + chunk.len());
        done += chunk.len();
        compare(&got, done - 1, "prefill");
    }
    for position in done..40 {
        let input = Embedding::of(model).unwrap().embed(&program, &tokens[position..=position]).unwrap();
        let got = interpreter.call_with(EntryPoint::Decode, position as i64, 1, &input, &mut decode).unwrap();
        compare(&got, position, "decode after prefill");
    }
    // Behind a public prefix: single tokens up to the next chunk, a chunk, single tokens.
    for begun in [1, 19] {
        let prefix = Prefix::new(model, &tokens[..begun]).unwrap();
        let (program, uses) = build(&shape, &roles, &plan, &prefix, tables(model, &roles, &plan).unwrap());
        let mut interpreter = Interpreter::new(&program);
        let [mut decode, mut prefill] = [0, 1].map(|entry| Recorder::new(&uses[entry], slots));
        let mut position = begun;
        while position < 40 {
            let is_chunk = position % shape.chunk == 0 && position < 36;
            let (name, count) =
                if is_chunk { (EntryPoint::Prefill, shape.chunk.min(40 - position)) } else { (EntryPoint::Decode, 1) };
            let input = Embedding::of(model).unwrap().embed(&program, &tokens[position..position + count]).unwrap();
            let hooks = if is_chunk { &mut prefill } else { &mut decode };
            let got = interpreter.call_with(name, position as i64, count as i64, &input, hooks).unwrap();
            position += count;
            compare(&got, position - 1, name.name());
        }
    }
}

/// What a step shows the client of norms and of the first sums of softmaxes, by site.
fn shown(
    model: &TensorModel,
    step: &tensor::Interpreter<'_>,
    squarings: usize,
    plans: &[SoftmaxPlan],
) -> Vec<(String, Vec<f64>)> {
    let graph = &model.graph;
    let (mut norms, mut softmaxes, mut shown) = (0, 0, Vec::new());
    for &op in &graph.body.ops {
        let node = graph.node(op);
        let operand = || step.value(node.inputs[0]);
        match node.op {
            TensorOp::RmsNorm { .. } => {
                // The first one is the client's.
                if norms > 0 {
                    shown.push((format!("norm {norms}"), vec![tensor::mean_square(operand())]));
                }
                norms += 1;
            }
            TensorOp::Softmax => {
                // As the plan has it: reference 1, and the root of the number of tokens.
                let rows = reference::ScoreRows::of(model, op).unwrap();
                let sum = |(fall, row): (f64, &[f64])| {
                    let y = |x: &f64| ((x - fall - 1.0) / f64::from(1 << squarings)).exp();
                    row.iter().map(y).sum::<f64>() * (step.position() as f64).sqrt()
                };
                let sums = rows.lowered(step, &plans[softmaxes].reference_keys).map(sum).collect();
                shown.push((format!("layer {softmaxes} rough reciprocal 0"), sums));
                softmaxes += 1;
            }
            _ => {}
        }
    }
    shown
}

fn layered(mut hyperparameters: Hyperparameters, layers: usize, context: usize) -> Hyperparameters {
    hyperparameters.layers = layers;
    hyperparameters.context = context;
    hyperparameters
}

#[test]
fn the_shipped_shape_in_4096_and_2048_slots() {
    check(4096, &layered(model(64, 4, 2, 16, 172), 2, 256), 1);
    check(2048, &layered(model(64, 4, 2, 16, 172), 1, 256), 1);
}

#[test]
fn several_blocks_of_tokens_and_several_squarings() {
    // T = 16 tokens a ciphertext, B = 4 blocks.
    check(512, &layered(model(32, 4, 4, 8, 64), 2, 64), 2);
    // Groups of four: T = 32, B = 2.
    check(512, &layered(model(32, 8, 2, 8, 128), 1, 48), 3);
    // One head for all queries: T = 32, B = 2.
    check(512, &layered(model(32, 4, 1, 16, 48), 1, 60), 1);
}

#[test]
fn sizes_that_are_no_powers_of_two() {
    check(1024, &layered(model(48, 6, 3, 12, 80), 1, 64), 1);
    check(2048, &layered(model(40, 3, 1, 20, 100), 1, 64), 1);
}

#[test]
fn a_vocabulary_of_several_ciphertexts() {
    let mut hyperparameters = layered(model(32, 4, 4, 8, 64), 1, 64);
    hyperparameters.vocabulary = 700;
    check(512, &hyperparameters, 1);
}
