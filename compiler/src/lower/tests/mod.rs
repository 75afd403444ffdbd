//! Tests of kernels and of whole programs against the tensor stage.

mod decoder;
mod shipped;

use cachemir_ir::cost::CostTable;
use cachemir_ir::expression::{Environment, Integer, TableId};
use cachemir_ir::linear::{Features, Matrix, Order};
use cachemir_ir::parameters::Parameters;
use cachemir_ir::slots::Fill;
use cachemir_ir::tensor::Hyperparameters;

use super::builder::{Builder, layout};
use super::linear::{Layer, linear};
use super::shape::Shape;
use super::{LowerOptions, Survey, counts};
use crate::calibration::Calibration;
use crate::packing;

/// A small generator of numbers in [-1, 1).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
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

#[test]
fn a_large_model_has_few_cache_ciphertexts() {
    // 4096 entries in 32 heads with 8 key-value heads, 16384 gated entries, in 32768 slots.
    let mut large = model(4096, 32, 8, 128, 14336);
    large.context = 512;
    let shapes = Shape::fitting(&large, 1 << 15).unwrap();
    assert_eq!(shapes.iter().map(|shape| shape.slots).collect::<Vec<_>>(), [16384, 32768]);
    let shape = &shapes[1];
    assert_eq!((shape.slots, shape.tokens(), shape.blocks, shape.key_capacity()), (32768, 32, 16, 16));
}

#[test]
fn packings_are_tried_from_few_slots_on_and_misfits_explained() {
    let slots = |model: &Hyperparameters, most| {
        Shape::fitting(model, most).map(|shapes| shapes.iter().map(|shape| shape.slots).collect::<Vec<_>>())
    };
    let narrow = model(64, 4, 2, 16, 172);
    assert_eq!(slots(&narrow, 1 << 13).unwrap(), [4096, 8192]);
    assert_eq!(slots(&narrow, 1 << 10).unwrap(), [1024]);
    let wide = model(4096, 32, 8, 128, 14336);
    let misfit = slots(&wide, 1 << 13).unwrap_err().to_string();
    assert!(misfit.contains("does not fit into 8192 slots"), "{misfit}");
}

#[test]
fn wide_models_are_packed_into_more_slots_than_narrow_ones() {
    let parameters = Parameters::n16();
    let slots = |hyperparameters: Hyperparameters| {
        let model = decoder::random_model(Hyperparameters { layers: 2, ..hyperparameters }, false);
        let (text, options) = (Calibration::default(), LowerOptions::default());
        let survey = Survey::new(&model, &text, &options, &()).unwrap();
        let shapes = survey.shapes(parameters.maximum_slots() as usize).unwrap();
        packing::fastest(&survey, &shapes, parameters.levels(), &CostTable::built_in(&parameters), &options, &()).slots
    };
    assert_eq!(slots(model(64, 4, 2, 16, 172)), 4096);
    let wide = Hyperparameters { context: 256, ..model(576, 9, 3, 64, 1536) };
    assert!(slots(wide.clone()) > 4096, "{}", slots(wide));
}

#[test]
fn layers_with_one_operand_share_its_spread_and_pairs_their_products() {
    let shape = Shape::new(&model(64, 4, 2, 16, 172), 4096).unwrap();
    let heads = shape.heads();
    let layer = |table, features, landing: bool| Layer {
        matrix: Matrix { weights: TableId(table), bias: None },
        order: Order::of(features),
        landing: landing.then(Integer::position),
    };
    let (query, kv) = (Features::Query(heads), Features::KeyValue(heads));
    let count = |layers: &[Layer]| {
        let mut builder = Builder::new(shape.slots, 0);
        let x = builder.input("x", layout(shape.stride(), Fill::Zero));
        let outputs = linear(&mut builder, shape.hidden_order(), 1, &Integer::from(1_i64), layers, x);
        assert_eq!(outputs.len(), layers.len());
        let graph = builder.finish(outputs);
        let counted = counts(&graph, shape.slots, &Environment::new(5, 1));
        (graph.body.ops.len(), counted.plain_products, counted.rotations)
    };
    // Six rotations spread 64 entries at stride 64, six or seven sum the results.
    let (q, k, v) = (layer(0, query, false), layer(1, kv, true), layer(2, kv, true));
    assert_eq!(count(std::slice::from_ref(&q)), (1, 1, 12));
    assert_eq!(count(std::slice::from_ref(&k)), (1, 1, 13));
    assert_eq!(count(&[q, k, v]), (1, 2, 6 + 6 + 7));
}
