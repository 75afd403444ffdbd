//! Counts the operations that a call of an entry point executes.

use std::collections::BTreeMap;

use cachemir_ir::expression::Environment;
use cachemir_ir::graph::Region;
use cachemir_ir::linear::Step;
use cachemir_ir::rotations::rotations;
use cachemir_ir::slots::{Purpose, SlotGraph, SlotOp};

/// Operations of one call, loops unrolled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Products by a plaintext.
    pub plain_products: usize,
    /// Products of two ciphertexts, those inside polynomials excluded.
    pub ciphertext_products: usize,
    /// Rotations by an amount other than 0.
    pub rotations: usize,
    /// Polynomials.
    pub polynomials: usize,
    /// Products by a mask that no other constant carries, by reason; they are among the plain products.
    pub masks_unfused: BTreeMap<String, usize>,
}

/// Counts what the graph executes for the environment's position and count.
pub fn counts(graph: &SlotGraph, slots: usize, environment: &Environment) -> Counts {
    let mut total = Counts::default();
    let mut environment = environment.clone();
    block(graph, &graph.body, slots as i64, &mut environment, &mut total);
    total
}

fn block(graph: &SlotGraph, region: &Region, slots: i64, environment: &mut Environment, total: &mut Counts) {
    for &op in &region.ops {
        let node = graph.node(op);
        match &node.op {
            SlotOp::MultiplyPlain { purpose, .. } => {
                total.plain_products += 1;
                if let Purpose::Mask(reason) = purpose {
                    *total.masks_unfused.entry(reason.clone()).or_default() += 1;
                }
            }
            SlotOp::Linear(linear) => linear.for_each_step(slots as u32, environment, &mut |step, _| match step {
                Step::MultiplyPlain => total.plain_products += 1,
                Step::Rotate { sharing, .. } => total.rotations += usize::from(sharing.is_counted()),
                _ => {}
            }),
            SlotOp::Multiply => total.ciphertext_products += 1,
            SlotOp::RotateAndSum { steps } => total.rotations += rotations(steps, slots as u32, environment),
            SlotOp::Rotate { by } if by.evaluate(environment).rem_euclid(slots) != 0 => total.rotations += 1,
            SlotOp::Polynomial { .. } => total.polynomials += 1,
            SlotOp::Sum { counter, count } => {
                let Some(body) = &node.region else { continue };
                for value in 0..count.evaluate(environment) {
                    environment.set_loop(*counter, value);
                    block(graph, body, slots, environment, total);
                }
            }
            _ => {}
        }
    }
}
