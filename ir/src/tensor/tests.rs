//! The clear interpreter against the formulas over a whole text at once, and the verifier against broken models.

use proptest::prelude::*;

use super::{
    CacheKind, Hyperparameters, Interpreter, RopeTable, TensorModel, TensorOp, TensorType, Weight, WeightId, read,
    verify,
};
use crate::Error;
use crate::graph::{Graph, ValueId};

const HIDDEN: usize = 6;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DIM: usize = 4;
const MLP: usize = 5;
const VOCABULARY: usize = 7;
const CONTEXT: usize = 8;
const EPSILON: f64 = 1e-3;

/// What names of biases begin with.
const BIAS: &str = "bias";

/// Numbers in (−1, 1) that look random.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

struct Builder {
    model: TensorModel,
    seed: u64,
    /// Whether linear layers have biases.
    biased: bool,
}

impl Builder {
    fn weight(&mut self, shape: &[usize]) -> WeightId {
        self.named("weight", shape)
    }

    fn named(&mut self, kind: &str, shape: &[usize]) -> WeightId {
        self.seed += 1;
        let values = numbers(self.seed, shape.iter().product());
        let name = format!("{kind}{}", self.model.weights.len());
        self.model.weights.push(Weight::new(name, shape.to_vec(), values));
        WeightId(self.model.weights.len() as u32 - 1)
    }

    fn op(&mut self, op: TensorOp, inputs: &[ValueId], ty: TensorType) -> ValueId {
        let (id, results) = self.model.graph.add_node(op, inputs.to_vec(), vec![ty], None, None);
        self.model.graph.body.ops.push(id);
        results[0]
    }

    fn vector(&mut self, op: TensorOp, inputs: &[ValueId], width: usize) -> ValueId {
        self.op(op, inputs, TensorType::Vector { width: width as u32 })
    }

    fn linear(&mut self, x: ValueId, outputs: usize, inputs: usize) -> ValueId {
        let weight = self.weight(&[outputs, inputs]);
        let bias = self.biased.then(|| self.named(BIAS, &[outputs]));
        self.vector(TensorOp::Linear { weight, bias }, &[x], outputs)
    }

    fn norm(&mut self, x: ValueId) -> ValueId {
        let weight = self.weight(&[HIDDEN]);
        self.vector(TensorOp::RmsNorm { weight, epsilon: EPSILON }, &[x], HIDDEN)
    }
}

/// A decoder of one layer with random weights.
fn model(seed: u64) -> TensorModel {
    model_with(seed, false)
}

fn model_with(seed: u64, biased: bool) -> TensorModel {
    let angles: Vec<f64> = (0..CONTEXT).flat_map(|p| [p as f64, p as f64 / 10.0]).collect();
    let hyperparameters = Hyperparameters {
        hidden: HIDDEN,
        layers: 1,
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: DIM,
        mlp: MLP,
        vocabulary: VOCABULARY,
        epsilon: EPSILON,
        attention_scale: 0.5,
        context: CONTEXT,
        tied_head: true,
    };
    let rope = RopeTable {
        pairs: DIM / 2,
        cosines: angles.iter().map(|angle| angle.cos() as f32).collect(),
        sines: angles.iter().map(|angle| angle.sin() as f32).collect(),
    };
    let mut builder = Builder {
        model: TensorModel { hyperparameters, rope, weights: Vec::new(), graph: Graph::default() },
        seed,
        biased,
    };
    let b = &mut builder;
    let (heads, kv_heads) = (HEADS as u32, KV_HEADS as u32);
    let token = b.model.graph.add_input("token", TensorType::Token);
    let embedding = b.weight(&[VOCABULARY, HIDDEN]);
    let x = b.vector(TensorOp::Embedding { weight: embedding }, &[token], HIDDEN);
    let normed = b.norm(x);
    let q = b.linear(normed, HEADS * DIM, HIDDEN);
    let k = b.linear(normed, KV_HEADS * DIM, HIDDEN);
    let v = b.linear(normed, KV_HEADS * DIM, HIDDEN);
    let q = b.vector(TensorOp::Rope { heads }, &[q], HEADS * DIM);
    let k = b.vector(TensorOp::Rope { heads: kv_heads }, &[k], KV_HEADS * DIM);
    let cache = TensorType::Cache { width: kv_heads * DIM as u32 };
    let keys = b.op(TensorOp::KvAppend { layer: 0, kind: CacheKind::Key }, &[k], cache);
    let values = b.op(TensorOp::KvAppend { layer: 0, kind: CacheKind::Value }, &[v], cache);
    let rows = TensorType::Rows { heads };
    let scores = b.op(TensorOp::Scores { heads, kv_heads, scale: 0.5 }, &[q, keys], rows);
    let shares = b.op(TensorOp::Softmax, &[scores], rows);
    let mixed = b.vector(TensorOp::Mix { heads, kv_heads }, &[shares, values], HEADS * DIM);
    let output = b.linear(mixed, HIDDEN, HEADS * DIM);
    let x = b.vector(TensorOp::Add, &[x, output], HIDDEN);
    let normed = b.norm(x);
    let gate = b.linear(normed, MLP, HIDDEN);
    let gate = b.vector(TensorOp::Silu, &[gate], MLP);
    let up = b.linear(normed, MLP, HIDDEN);
    let product = b.vector(TensorOp::Mul, &[gate, up], MLP);
    let down = b.linear(product, HIDDEN, MLP);
    let x = b.vector(TensorOp::Add, &[x, down], HIDDEN);
    let normed = b.norm(x);
    let logits = b.vector(TensorOp::LmHead { weight: embedding }, &[normed], VOCABULARY);
    b.model.graph.body.yields.push(logits);
    builder.model
}

type Matrix = Vec<Vec<f64>>;

/// The weight of the given number in the order of creation, biases not counted, and its bias.
fn nth(model: &TensorModel, number: usize) -> (&Weight, Option<&Weight>) {
    let is_bias = |weight: &&Weight| weight.name.starts_with(BIAS);
    let mut weights = model.weights.iter().enumerate().filter(|(_, weight)| !is_bias(weight));
    let (index, weight) = weights.nth(number).expect("a weight");
    (weight, model.weights.get(index + 1).filter(is_bias))
}

/// x·Wᵀ + b for the weight of the given number.
fn apply(model: &TensorModel, number: usize, x: &Matrix) -> Matrix {
    let (weight, bias) = nth(model, number);
    let entries = weight.load().expect("it is in memory");
    let bias = bias.map(|bias| bias.load().expect("it is in memory"));
    let row = |x: &Vec<f64>, output: usize| {
        let row = &entries[output * weight.columns()..];
        let sum: f64 = (0..weight.columns()).map(|i| x[i] * f64::from(row[i])).sum();
        sum + bias.as_ref().map_or(0.0, |bias| f64::from(bias[output]))
    };
    x.iter().map(|x| (0..weight.rows()).map(|output| row(x, output)).collect()).collect()
}

fn normalise(model: &TensorModel, weight: usize, x: &Matrix) -> Matrix {
    let gamma = nth(model, weight).0.load().expect("it is in memory");
    let row = |x: &Vec<f64>| {
        let mean: f64 = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        x.iter().zip(&*gamma).map(|(x, &gamma)| f64::from(gamma) * x / (mean + EPSILON).sqrt()).collect()
    };
    x.iter().map(row).collect()
}

/// Logits of every position, with full attention matrices and complex rotations in place of a cache.
fn whole_text(model: &TensorModel, tokens: &[u32]) -> Matrix {
    let (embedding, width) = (model.weights[0].load().expect("it is in memory"), model.weights[0].columns());
    let row = |&t: &u32| embedding[t as usize * width..][..width].iter().map(|&e| f64::from(e)).collect();
    let x: Matrix = tokens.iter().map(row).collect();
    let u = normalise(model, 1, &x);
    let turn = |vectors: Matrix| -> Matrix {
        let turned = vectors.into_iter().enumerate().map(|(p, vector)| {
            (0..vector.len())
                .map(|i| {
                    let (head, entry) = (i / DIM * DIM, i % DIM);
                    let angle = p as f64 * [1.0, 0.1][entry % 2];
                    let (re, im) = (vector[head + entry % 2], vector[head + entry % 2 + 2]);
                    if entry < 2 { re * angle.cos() - im * angle.sin() } else { re * angle.sin() + im * angle.cos() }
                })
                .collect()
        });
        turned.collect()
    };
    let (q, k, v) = (turn(apply(model, 2, &u)), turn(apply(model, 3, &u)), apply(model, 4, &u));
    let mut mixed = vec![vec![0.0; HEADS * DIM]; tokens.len()];
    for (p, mixed) in mixed.iter_mut().enumerate() {
        for head in 0..HEADS {
            let shared = head / (HEADS / KV_HEADS);
            let score = |j: usize| (0..DIM).map(|i| q[p][head * DIM + i] * k[j][shared * DIM + i]).sum::<f64>() * 0.5;
            let total: f64 = (0..=p).map(|j| score(j).exp()).sum();
            for j in 0..=p {
                for i in 0..DIM {
                    mixed[head * DIM + i] += score(j).exp() / total * v[j][shared * DIM + i];
                }
            }
        }
    }
    let add = |a: &Matrix, b: Matrix| -> Matrix {
        a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect()).collect()
    };
    let x = add(&x, apply(model, 5, &mixed));
    let g = normalise(model, 6, &x);
    let (gate, up) = (apply(model, 7, &g), apply(model, 8, &g));
    let product: Matrix = gate
        .iter()
        .zip(&up)
        .map(|(gate, up)| gate.iter().zip(up).map(|(g, u)| g * u / (1.0 + (-g).exp())).collect())
        .collect();
    let x = add(&x, apply(model, 9, &product));
    apply(model, 0, &normalise(model, 10, &x))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn steps_agree_with_the_whole_text(
        seed in any::<u64>(),
        biased in any::<bool>(),
        tokens in prop::collection::vec(0..VOCABULARY as u32, 1..=CONTEXT),
    ) {
        let model = model_with(seed, biased);
        prop_assert!(verify(&model).is_ok());
        let expected = whole_text(&model, &tokens);
        let mut interpreter = Interpreter::new(&model).expect("the model is valid");
        for (&token, expected) in tokens.iter().zip(expected) {
            let logits = interpreter.step(token).expect("a step");
            // The table is in single precision.
            prop_assert!(logits.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "{logits:?} {expected:?}");
        }
    }

    #[test]
    fn sequences_read_together_give_what_each_gives_alone(
        seed in any::<u64>(),
        prefix in prop::collection::vec(0..VOCABULARY as u32, 0..4),
        texts in prop::collection::vec(prop::collection::vec(0..VOCABULARY as u32, 0..CONTEXT - 4), 1..5),
    ) {
        let model = model(seed);
        let sequences: Vec<Vec<u32>> = texts.iter().map(|text| [prefix.as_slice(), text].concat()).collect();
        let slices: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let logits = model.graph.body.yields[0];
        let last_state = model.graph.node(model.definition(logits).expect("the head")).inputs[0];
        let (mut seen, mut ends) = (0, 0);
        read(&model, &prefix, &slices, |interpreter, first| {
            let mut got = interpreter.fed(logits).iter();
            let places = interpreter.places();
            for (index, (x, &(session, position))) in interpreter.fed(last_state).iter().zip(places).enumerate() {
                let mut alone = Interpreter::new(&model).expect("the model is valid");
                let expected = alone.feed(&sequences[first + session][..=position]).expect("known tokens").to_vec();
                assert_eq!(x, &alone.fed(last_state)[position]);
                // Logits are those of the last token of each session.
                if places.get(index + 1).is_none_or(|next| next.0 != session) {
                    assert_eq!(got.next(), Some(&expected));
                    ends += 1;
                }
                seen += 1;
            }
            assert_eq!(got.next(), None);
        }).expect("known tokens");
        prop_assert_eq!(seen, texts.iter().map(Vec::len).sum::<usize>());
        prop_assert_eq!(ends, texts.iter().filter(|text| !text.is_empty()).count());
    }
}

#[test]
fn steps_end_with_the_context_and_the_vocabulary() {
    let model = model(3);
    let mut interpreter = Interpreter::new(&model).expect("the model is valid");
    assert!(matches!(interpreter.step(VOCABULARY as u32), Err(Error::Execution(_))));
    for _ in 0..CONTEXT {
        interpreter.step(1).expect("a step");
    }
    assert!(matches!(interpreter.step(1), Err(Error::Execution(_))));
    interpreter.reset();
    assert_eq!(interpreter.position(), 0);
    assert!(interpreter.step(1).is_ok());
}

#[test]
fn broken_models_are_refused() {
    let breaks: [fn(&mut TensorModel); 9] = [
        |model| model.hyperparameters.kv_heads = 3,
        |model| model.rope.sines.truncate(3),
        |model| model.weights[2].shape.swap(0, 1),
        |model| model.graph.nodes[3].inputs.clear(),
        |model| model.graph.nodes[7].op = TensorOp::KvAppend { layer: 0, kind: CacheKind::Value },
        |model| model.graph.body.ops.swap(1, 2),
        |model| model.graph.body.yields.clear(),
        // A bias of the width of the inputs, and one that is not in the model.
        |model| model.graph.nodes[2].op = TensorOp::Linear { weight: WeightId(2), bias: Some(WeightId(1)) },
        |model| model.graph.nodes[2].op = TensorOp::Linear { weight: WeightId(2), bias: Some(WeightId(99)) },
    ];
    for (number, damage) in breaks.into_iter().enumerate() {
        let mut model = model(1);
        damage(&mut model);
        assert!(matches!(verify(&model), Err(Error::Invalid { stage: "tensor", .. })), "damage {number}");
    }
}

#[test]
fn the_content_hash_sees_weights_and_ops_but_no_origins() {
    let original = model(1);
    let mut other = original.clone();
    other.graph.origins.push(crate::graph::Origin { node: "a".to_owned(), op_type: "b".to_owned() });
    assert_eq!(other.content_hash(), original.content_hash());
    other.graph.nodes[1].op = TensorOp::RmsNorm { weight: WeightId(1), epsilon: 0.5 };
    assert_ne!(other.content_hash(), original.content_hash());
    assert_ne!(model(2).content_hash(), original.content_hash());
    let biased = model_with(1, true);
    let mut other = biased.clone();
    let bias = other.weights.iter_mut().find(|weight| weight.name.starts_with(BIAS)).expect("a bias");
    *bias = Weight::new(bias.name.clone(), bias.shape.clone(), vec![0.5; bias.rows()]);
    assert_ne!(other.content_hash(), biased.content_hash());
}
