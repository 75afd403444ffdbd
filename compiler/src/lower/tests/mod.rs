//! Property tests of the kernels against dense algebra, and of whole programs against the tensor stage.

mod decoder;
mod shipped;

use cachemir_ir::expression::{Environment, Integer, TableId};
use cachemir_ir::graph::ValueId;
use cachemir_ir::program::{EmbeddingForm, Entry, EntryKind, Placement, Table};
use cachemir_ir::slots::Fill;
use cachemir_ir::slots_interpreter::Interpreter;
use cachemir_ir::tensor::Hyperparameters;

use super::builder::{Builder, layout};
use super::linear::{Linear, linear};
use super::shape::{Features, Shape};
use super::{SlotProgram, counts};

/// A small generator of numbers in [-1, 1).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    fn vector(&mut self, length: usize) -> Vec<f64> {
        (0..length).map(|_| self.next()).collect()
    }
}

fn model(hidden: usize, heads: usize, kv_heads: usize, head_dim: usize, mlp: usize) -> Hyperparameters {
    Hyperparameters {
        hidden,
        layers: 1,
        heads,
        kv_heads,
        head_dim,
        mlp,
        vocabulary: 32,
        epsilon: 1e-5,
        attention_scale: 0.25,
        context: 64,
        tied_head: false,
    }
}

fn program(slots: usize, tables: Vec<Table>, build: impl FnOnce(&mut Builder) -> Vec<ValueId>) -> SlotProgram {
    let mut builder = Builder::new(slots, 0);
    let outputs = build(&mut builder);
    let placement = Placement { index_to_slot: vec![], token_stride: 1 };
    SlotProgram {
        slots: slots as u32,
        context: 64,
        tables,
        states: vec![],
        entries: vec![Entry { kind: EntryKind::Decode, graph: builder.finish(outputs), checks: vec![] }],
        embedding: placement.clone(),
        inputs: vec![EmbeddingForm::scaled(1.0)],
        logits: placement,
    }
}

/// Checks one linear layer on `unit` vectors, without and with a bias of the first of them, and returns (plaintext
/// products, rotations).
fn check_linear(
    shape: &Shape,
    (input, input_positions): (Features, usize),
    (output, output_positions): (Features, usize),
    (rows, columns): (usize, usize),
    unit: usize,
    landing: Option<i64>,
) -> (usize, usize) {
    let mut numbers = Numbers(7);
    let weights: Vec<f32> = (0..rows * columns).map(|_| numbers.next() as f32).collect();
    let vectors: Vec<Vec<f64>> = (0..unit).map(|_| numbers.vector(columns)).collect();
    let biases: Vec<f32> = (0..rows).map(|_| numbers.next() as f32).collect();
    let tables = vec![
        Table { name: "w".into(), shape: vec![rows as u32, columns as u32], values: weights.clone() },
        Table { name: "b".into(), shape: vec![rows as u32], values: biases.clone() },
    ];
    let bare =
        Linear { table: TableId(0), columns, bias: None, input, input_positions, output, output_positions, unit };
    let biased = Linear { bias: Some(TableId(1)), ..bare.clone() };
    let [bare, biased] = [bare, biased].map(|layer| {
        program(shape.slots, tables.clone(), |builder| {
            let x = builder.input("x", layout(shape.slots / input_positions, Fill::Zero));
            let target = Integer::position();
            vec![linear(builder, shape, &layer, x, &Integer::count(), landing.map(|_| &target))]
        })
    });
    let place = |features: Features, positions: usize, position: usize| {
        let (feature, valid) = shape.feature(features, positions, &Integer::from(position));
        let environment = Environment::default();
        valid.is_none_or(|valid| valid.evaluate(&environment) != 0).then(|| feature.evaluate(&environment) as usize)
    };
    let mut slots = vec![0.0; shape.slots];
    for position in 0..input_positions {
        if let Some(feature) = place(input, input_positions, position) {
            for (token, vector) in vectors.iter().enumerate() {
                slots[position * (shape.slots / input_positions) + token] = vector[feature];
            }
        }
    }
    let target = landing.unwrap_or(0);
    let used = unit.div_ceil(2);
    let inputs = [slots];
    let [got, with_bias] =
        [&bare, &biased].map(|program| Interpreter::new(program).call("decode", target, used as i64, &inputs).unwrap());
    let inner_stride = shape.slots / output_positions;
    let mut seen = vec![false; rows];
    for position in 0..output_positions {
        let Some(feature) = place(output, output_positions, position) else { continue };
        seen[feature] = true;
        for (token, vector) in vectors.iter().enumerate() {
            let want: f64 = (0..columns).map(|i| f64::from(weights[feature * columns + i]) * vector[i]).sum();
            let slot = position * inner_stride + token + target as usize;
            assert!((got[0][slot] - want).abs() < 1e-9, "slot {slot}: {} instead of {want}", got[0][slot]);
            let want = want + if token < used { f64::from(biases[feature]) } else { 0.0 };
            assert!((with_bias[0][slot] - want).abs() < 1e-9, "slot {slot}: {} instead of {want}", with_bias[0][slot]);
        }
    }
    assert!(seen.iter().all(|&seen| seen));
    // The bias reaches no slot but those.
    let touched = (0..shape.slots).filter(|&slot| got[0][slot] != with_bias[0][slot]).count();
    assert!(touched <= rows * used, "{touched} slots for {rows} outputs of {used} vectors");
    let counted = counts(&biased.entries[0].graph, shape.slots, &Environment::new(target, used as i64));
    (counted.plain_products, counted.rotations)
}

/// Formulas of the packing: products, and rotations of spread, baby and giant steps, and reduction.
fn expected(slots: usize, inputs: usize, outputs: usize) -> (usize, usize) {
    let products = (inputs * outputs / slots).max(1);
    let (babies, giants) = super::linear::split(products);
    let (in_stride, out_stride) = (slots / inputs, slots / outputs);
    let log = |x: usize| x.ilog2() as usize;
    (products, log(in_stride) + babies - 1 + giants - 1 + log(out_stride))
}

#[test]
fn linear_layers_agree_with_dense_products_and_counts_with_the_formulas() {
    for (slots, hidden, heads, kv_heads, head_dim, mlp) in
        [(256, 32, 4, 4, 8, 128), (1024, 64, 4, 2, 16, 172), (2048, 64, 4, 2, 16, 172), (512, 48, 3, 3, 12, 80)]
    {
        let mut small = model(hidden, heads, kv_heads, head_dim, mlp);
        small.context = 32;
        let shape = Shape::new(&small, slots).unwrap();
        let (d, wide) = (shape.hidden_features(), shape.mlp_features());
        let (query, kv) = (shape.positions(Features::Query), shape.positions(Features::KeyValue));
        let maps = [
            ((d, shape.hidden), (Features::Query, query), (heads * head_dim, hidden)),
            ((d, shape.hidden), (Features::KeyValue, kv), (kv_heads * head_dim, hidden)),
            ((Features::Query, query), (d, shape.hidden), (hidden, heads * head_dim)),
            ((Features::RotatedQuery, query), (d, shape.hidden), (hidden, heads * head_dim)),
            ((d, shape.hidden), (wide, shape.mlp), (mlp, hidden)),
            ((wide, shape.mlp), (d, shape.hidden), (hidden, mlp)),
        ];
        for (input, output, matrix) in maps {
            let got = check_linear(&shape, input, output, matrix, 1, None);
            assert_eq!(got, expected(slots, input.1, output.1), "{slots} {input:?} {output:?}");
            for unit in [2, shape.chunk] {
                check_linear(&shape, input, output, matrix, unit, None);
            }
        }
        for landing in [0, 1, 5, shape.tokens() as i64 - 1] {
            let got = check_linear(&shape, maps[1].0, maps[1].1, maps[1].2, 1, Some(landing));
            assert_eq!(got, expected(slots, shape.hidden, kv));
        }
    }
}

#[test]
fn narrow_models_need_fewer_rotations_than_the_formulas() {
    let shape = Shape::new(&model(64, 4, 2, 16, 172), 8192).unwrap();
    let d = (shape.hidden_features(), shape.hidden);
    let kv = (Features::KeyValue, 32);
    assert_eq!(check_linear(&shape, d, (Features::Query, 64), (64, 64), 1, None), (1, 12));
    assert_eq!(check_linear(&shape, d, kv, (32, 64), 1, None), (1, 12));
    for landing in [0, 77, 255] {
        check_linear(&shape, d, kv, (32, 64), 1, Some(landing));
    }
}

#[test]
fn counts_at_the_size_of_a_large_model() {
    // 4096 slots a head of 32 with 8 key-value heads, 16384 gated entries, in 32768 slots.
    let mut large = model(4096, 32, 8, 128, 14336);
    large.context = 512;
    let shape = Shape::smallest(&large).unwrap();
    assert_eq!((shape.slots, shape.tokens(), shape.blocks, shape.key_capacity()), (32768, 32, 16, 16));
    let d = (shape.hidden_features(), shape.hidden);
    let cases = [
        (d, (Features::Query, 4096), 512, 52),
        (d, (shape.mlp_features(), shape.mlp), 2048, 98),
        (d, (Features::KeyValue, 1024), 128, 30),
    ];
    for ((input, input_positions), (output, output_positions), products, rotations) in cases {
        let layer = Linear {
            table: TableId(0),
            columns: 4096,
            bias: None,
            input,
            input_positions,
            output,
            output_positions,
            unit: 1,
        };
        let mut builder = Builder::new(shape.slots, 0);
        let x = builder.input("x", layout(shape.stride(), Fill::Zero));
        let y = linear(&mut builder, &shape, &layer, x, &Integer::from(1_i64), None);
        let counted = counts(&builder.finish(vec![y]), shape.slots, &Environment::new(0, 1));
        assert_eq!((counted.plain_products, counted.rotations), (products, rotations));
    }
}
