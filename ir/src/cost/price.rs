//! What an op takes by a table, in nanoseconds on one thread.

use std::collections::BTreeSet;

use super::table::{CostKind, CostTable};
use crate::ckks::{CiphertextType, CkksGraph, CkksOp, polynomial_depth};
use crate::expression::{Environment, Integer, Variable, Vector};
use crate::graph::OpId;
use crate::linear::{Linear, Step};
use crate::parameters::Parameters;
use crate::program::Program;
use crate::rotations;

/// Weights of a program's linear maps, each table counted once: as many as
/// [`TensorModel::linear_weights`](crate::tensor::TensorModel::linear_weights) counts in the model.
pub fn linear_weights(program: &Program<CkksOp, CiphertextType>) -> u64 {
    let nodes = program.entries.iter().flat_map(|entry| &entry.graph.nodes);
    let maps = nodes.filter_map(|node| match &node.op {
        CkksOp::Linear(linear) => Some(linear),
        _ => None,
    });
    let tables: BTreeSet<_> = maps.flat_map(|map| map.matrices().map(|(_, matrix)| matrix.weights)).collect();
    tables.into_iter().filter_map(|table| program.table(table).entries()).map(|entries| entries as u64).sum()
}

impl CostTable {
    /// The built-in table for a program.
    pub fn of_program(parameters: &Parameters, program: &Program<CkksOp, CiphertextType>) -> Self {
        Self::built_in(parameters).for_weights(linear_weights(program))
    }

    /// Time of one pass of a loop at its results' level, its body aside: what the body gives is added to the sums.
    pub fn pass_ns(&self, level: u32) -> f64 {
        self.ns(CostKind::Add, f64::from(level))
    }

    /// Time of one execution of an op at its operands' level, in nanoseconds; of a loop, of one pass but for its body.
    /// Plaintexts that depend on position or count are encoded at each execution, and weights of linear maps where they are
    /// [streamed](Self::weights_streamed); others are held encoded.
    pub fn op_ns(&self, op: &CkksOp, level: u32, slots: u32) -> f64 {
        let at = f64::from(level);
        let plain_ns = |plain: &Vector, kind: CostKind| {
            let varies = plain.mentions(Variable::Position) || plain.mentions(Variable::Count);
            self.ns(kind, at) + if varies { self.ns(CostKind::Encode, at) } else { 0.0 }
        };
        match op {
            CkksOp::Add
            | CkksOp::Subtract
            | CkksOp::MultiplyInteger { .. }
            | CkksOp::MultiplyByI
            | CkksOp::StateWrite { .. } => self.ns(CostKind::Add, at),
            CkksOp::Sum { .. } => self.pass_ns(level),
            CkksOp::Multiply => self.ns(CostKind::Multiply, at),
            CkksOp::MultiplyPlain { plain } => plain_ns(plain, CostKind::MultiplyPlain),
            CkksOp::AddPlain { plain } => plain_ns(plain, CostKind::Add),
            CkksOp::MultiplyScalar { .. } => self.ns(CostKind::MultiplyPlain, at),
            CkksOp::Linear(linear) => self.linear_ns(linear, level, slots),
            CkksOp::Rescale => self.ns(CostKind::Rescale, at),
            CkksOp::DropLevels { to } if *to < level => self.ns(CostKind::Rescale, f64::from(to + 1)),
            CkksOp::Rotate { by: Integer::Constant(0) } | CkksOp::DropLevels { .. } | CkksOp::StateRead { .. } => 0.0,
            CkksOp::RotateAndSum { steps } => {
                rotations::relative_cost(steps.len()) * self.ns(CostKind::Rotate, at)
                    + steps.len().div_ceil(2) as f64 * self.ns(CostKind::Add, at)
            }
            CkksOp::Rotate { .. } | CkksOp::Conjugate => self.ns(CostKind::Rotate, at),
            CkksOp::Polynomial { polynomial, mask } => {
                let (products, depth) = polynomial_products(polynomial.degree());
                let middle = (at - f64::from(depth) / 2.0).max(1.0);
                let product = self.ns(CostKind::Multiply, middle) + self.ns(CostKind::Rescale, middle);
                let terms = polynomial.coefficients.len() as f64;
                let encodings = if mask.is_some() { terms * self.ns(CostKind::Encode, middle) } else { 0.0 };
                products * product + terms * self.ns(CostKind::MultiplyPlain, middle) + encodings
            }
            CkksOp::Bootstrap(bootstrap) => self.bootstrap_ns(bootstrap.complex, slots),
        }
    }

    /// [`op_ns`](Self::op_ns) of an op of a graph, at its own level.
    pub fn node_ns(&self, graph: &CkksGraph, op: OpId, slots: u32) -> f64 {
        self.op_ns(&graph.node(op).op, graph.level(op), slots)
    }

    /// The form of a linear map that is fastest for an operand of this level, the operand complex where that pays, and its
    /// time in nanoseconds.
    pub fn fastest_form(&self, linear: &Linear, level: u32, slots: u32) -> (Linear, f64) {
        let priced = |linear: Linear| {
            let ns = self.linear_ns(&linear, level, slots);
            (linear, ns)
        };
        let (given, other) = (priced(linear.clone()), linear.with_complex_operand(slots).map(priced));
        other.filter(|other| other.1 < given.1).unwrap_or(given)
    }

    /// Time of a linear map whose operand has this level, in nanoseconds.
    pub fn linear_ns(&self, linear: &Linear, level: u32, slots: u32) -> f64 {
        let mut total = 0.0;
        linear.for_each_step(slots, &Environment::new(0, 1), &mut |step, below| {
            let (kind, part) = match step {
                Step::Rotate { sharing, .. } => (CostKind::Rotate, sharing.relative_cost()),
                Step::Conjugate => (CostKind::Rotate, 1.0),
                Step::MultiplyPlain => (CostKind::MultiplyPlain, 1.0),
                Step::Rescale => (CostKind::Rescale, 1.0),
                Step::Add | Step::AddPlain => (CostKind::Add, 1.0),
            };
            let at = f64::from(level.saturating_sub(below));
            total += part * self.ns(kind, at);
            if self.weights_streamed && step == Step::MultiplyPlain {
                total += self.ns(CostKind::Encode, at);
            }
        });
        total
    }
}

/// Products of two ciphertexts that a polynomial takes by baby steps and giant steps, and its depth.
fn polynomial_products(degree: usize) -> (f64, u32) {
    let depth = polynomial_depth(degree);
    let baby = 1_u32 << depth.div_ceil(2);
    let giant = (1_u32 << depth) / baby;
    // T_2, …, T_{baby-1}; if there are giant steps, T_baby, T_{2·baby}, … by squaring, and a product for each step.
    let squarings = depth - depth.div_ceil(2);
    (f64::from(baby.saturating_sub(2) + squarings + giant.saturating_sub(1)), depth)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::tests::map;

    #[test]
    fn weights_that_are_not_held_are_encoded_at_each_use() {
        let table = CostTable::built_in(&Parameters::n16());
        let linear = map(64, 64);
        let ns = |weights| table.clone().for_weights(weights).linear_ns(&linear, 5, 1024);
        // Four products.
        let encodings = ns(1 << 30) - ns(1 << 20);
        assert!((encodings / table.ns(CostKind::Encode, 5.0) - 4.0).abs() < 1e-9, "{encodings}");
    }

    #[test]
    fn operands_are_complex_where_products_are_dear() {
        let table = |weights| CostTable::built_in(&Parameters::n16()).for_weights(weights);
        let is_complex = |weights, input, output| {
            let (given, slots) = (map(input, output), 1 << 15);
            let (form, ns) = table(weights).fastest_form(&given, 6, slots);
            assert!(ns <= table(weights).linear_ns(&given, 6, slots));
            form.complex_operand
        };
        assert!(is_complex(1 << 30, 16384, 4096) && is_complex(1 << 30, 4096, 1024));
        assert!(!is_complex(1 << 20, 256, 256) && !is_complex(1 << 20, 64, 64));
    }

    #[test]
    fn polynomials_take_baby_and_giant_steps() {
        // Degree 3: T_2 and one giant step. Degree 31: T_2 … T_7, then T_8 and T_16, and three giant steps.
        let expected = [(1, (0.0, 1)), (3, (2.0, 2)), (31, (11.0, 5))];
        for (degree, products) in expected {
            assert_eq!(polynomial_products(degree), products, "degree {degree}");
        }
    }
}
