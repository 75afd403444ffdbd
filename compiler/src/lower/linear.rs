//! Linear layers that share an operand, as one op for each spread that they need.

use cachemir_ir::expression::{Environment, Integer};
use cachemir_ir::graph::ValueId;
use cachemir_ir::linear::{Linear, Matrix, Order, Output, Step};
use cachemir_ir::slots::Fill;

use super::builder::{Builder, layout};

/// A layer: its matrix and how its result lies.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Layer {
    pub(super) matrix: Matrix,
    pub(super) order: Order,
    pub(super) landing: Option<Integer>,
}

/// W·x + b for each of the layers, for a vector of `input` in units of `unit` tokens, of which the first `tokens` are in use.
/// Two layers in a row whose results lie alike become one complex matrix where that saves rotations.
pub(super) fn linear(
    builder: &mut Builder,
    input: Order,
    unit: usize,
    tokens: &Integer,
    layers: &[Layer],
    x: ValueId,
) -> Vec<ValueId> {
    let slots = builder.slots() as u32;
    let of = |outputs| Linear { input, unit: unit as u32, vectors: tokens.clone(), complex_operand: false, outputs };
    let output = |layers: &[Layer]| Output {
        matrices: layers.iter().map(|layer| layer.matrix.clone()).collect(),
        order: layers[0].order,
        landing: layers[0].landing.clone(),
    };
    let mut outputs: Vec<Output> = Vec::new();
    let mut rest = layers;
    while let [first, others @ ..] = rest {
        let alone = output(std::slice::from_ref(first));
        let pair = others.first().filter(|second| second.order == first.order && second.landing == first.landing);
        let paired = pair.map(|_| output(&rest[..2]));
        let fewer = |paired: &Output| {
            let single = keyswitches(&of(vec![alone.clone(), alone.clone()]), slots);
            keyswitches(&of(vec![paired.clone()]), slots) < single
        };
        match paired.filter(fewer) {
            Some(paired) => {
                outputs.push(paired);
                rest = &others[1..];
            }
            None => {
                outputs.push(alone);
                rest = others;
            }
        }
    }
    let probe = of(outputs.clone());
    let mut results = Vec::new();
    for group in outputs.chunk_by(|a, b| probe.spread(slots, a) == probe.spread(slots, b)) {
        let linear = of(group.to_vec());
        let layouts =
            linear.matrices().map(|(output, _)| layout((slots / output.order.positions) as usize, Fill::Junk));
        results.extend(builder.linear(x, linear.clone(), layouts.collect()));
    }
    results
}

/// Rotations and conjugations of a map.
fn keyswitches(linear: &Linear, slots: u32) -> usize {
    let mut found = 0;
    linear.for_each_step(slots, &Environment::new(0, 1), &mut |step, _| {
        found += usize::from(matches!(step, Step::Rotate { .. } | Step::Conjugate));
    });
    found
}
