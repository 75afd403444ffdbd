//! Linear layers in interleaved replicated packing (arXiv 2602.11470).
//!
//! A vector of P_in positions at stride s_in = n/P_in, zero elsewhere, is multiplied by a matrix into P_out positions at
//! stride s_out = n/P_out. The kernel spreads the vector (log2 s_in rotations) so that each group of slots holds several
//! of its entries, multiplies by M = max(1, P_in·P_out/n) plaintext diagonals by baby steps and giant steps with the giant
//! shifts folded into the weights, and sums inside each output group. It takes one level. Slots s_out·o hold the
//! result, the others junk.
//!
//! - P_out ≥ P_in: after the spread slot i·s_in + r holds entry i + r, and diagonal m holds in slot S the weight of
//!   output S / s_out and input (S / s_in + S % s_in + m·s_out) mod P_in.
//! - P_out < P_in, α = P_in/P_out: after the spread slot p·s_in + r holds entry p + α·r, and diagonal m the weight of
//!   output S / s_out and input (S / s_in + α·(S % s_in) + m·s_out) mod P_in.
//! - P_out < P_in ≤ s_in: the spread of the first case is used, so that it can be shared with layers of that case; slot
//!   o·s_out + r for r < P_in meets input α·o + r.
//!
//! With a unit u > 1 every slot above stands for u consecutive slots, which hold the same entry of u different vectors.
//! Of these vectors the first few may be in use; a bias is added to their slots alone, so that the others stay zero, and
//! adds nothing to junk.

use cachemir_ir::expression::{Integer, TableId, Vector};
use cachemir_ir::graph::ValueId;
use cachemir_ir::slots::{Fill, Purpose};

use super::builder::{Builder, doubling, layout};
use super::shape::{Features, Shape, all, both};

/// One linear layer.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    /// The matrix, row-major, `[out][in]`.
    pub(super) table: TableId,
    /// Its number of columns.
    pub(super) columns: usize,
    /// What is added to each output, `[out]`.
    pub(super) bias: Option<TableId>,
    /// Order of the operand's features.
    pub(super) input: Features,
    /// Positions of the operand.
    pub(super) input_positions: usize,
    /// Order of the result's features.
    pub(super) output: Features,
    /// Positions of the result.
    pub(super) output_positions: usize,
    /// Consecutive slots that hold the same entry of different vectors.
    pub(super) unit: usize,
}

/// Which spread a layer uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Up,
    Down,
    Shared,
}

/// Babies and giants for `products` diagonals, a power of two: babies·giants = products.
pub(super) fn split(products: usize) -> (usize, usize) {
    let babies = 1 << products.ilog2().div_ceil(2);
    (babies, products / babies)
}

impl Linear {
    fn scheme(&self, shape: &Shape) -> Scheme {
        let groups = shape.slots / self.unit;
        if self.output_positions >= self.input_positions {
            Scheme::Up
        } else if groups / self.input_positions >= self.input_positions {
            Scheme::Shared
        } else {
            Scheme::Down
        }
    }

    /// Number of plaintext products.
    pub(super) fn products(&self, shape: &Shape) -> usize {
        let groups = shape.slots / self.unit;
        (self.input_positions * self.output_positions / groups).max(1)
    }

    /// The weights of diagonal m, as a formula of the slot shifted to the right by `shift` groups.
    fn diagonal(&self, shape: &Shape, scheme: Scheme, m: Integer, shift: Integer) -> Vector {
        let groups = shape.slots / self.unit;
        let (inputs, outputs) = (self.input_positions, self.output_positions);
        let (in_stride, out_stride) = (groups / inputs, groups / outputs);
        let group = match shift {
            Integer::Constant(0) => Integer::slot() / self.unit,
            shift => (Integer::slot() / self.unit + groups - shift) % groups,
        };
        let (position, inner, limit) = match scheme {
            Scheme::Up => {
                let base = group.clone() / in_stride + group.clone() % in_stride;
                (base + m * out_stride, group.clone() % out_stride, inputs)
            }
            Scheme::Down => {
                let inner = group.clone() % in_stride;
                let base = group.clone() / in_stride + inner.clone() * (inputs / outputs);
                (base + m * out_stride, inner, outputs)
            }
            Scheme::Shared => {
                let inner = group.clone() % out_stride;
                (group.clone() / out_stride * (inputs / outputs) + inner.clone(), inner, inputs)
            }
        };
        let bound = match scheme {
            Scheme::Up | Scheme::Shared => out_stride,
            Scheme::Down => in_stride,
        };
        let in_range = (limit < bound).then(|| inner.less(limit));
        let (column, column_valid) = shape.feature(self.input, inputs, &(position % inputs));
        let (row, row_valid) = shape.feature(self.output, outputs, &(group / out_stride));
        let weight = Vector::Table(self.table, row * self.columns + column);
        match all([in_range, column_valid, row_valid]) {
            Some(condition) => weight.masked(condition),
            None => weight,
        }
    }

    /// The bias in the slots of the result.
    fn bias_vector(&self, shape: &Shape, bias: TableId, vectors: &Integer, landing: Option<&Integer>) -> Vector {
        let stride = shape.slots / self.output_positions;
        let (row, valid) = shape.feature(self.output, self.output_positions, &(Integer::slot() / stride));
        let inner = Integer::slot() % stride;
        let here = match landing {
            Some(landing) => inner.equal(landing.clone()),
            None => inner.less(vectors.clone()),
        };
        Vector::Table(bias, row).masked(both(here, valid))
    }
}

/// y = W·x, or W·x + b for the first `vectors` of a unit. With a landing, the result lies in slot s_out·o + landing
/// instead of s_out·o, at no extra rotation: bit b of the landing decides the direction of the reducing rotation by 2^b.
/// Landings need a unit of 1.
pub(super) fn linear(
    builder: &mut Builder,
    shape: &Shape,
    layer: &Linear,
    x: ValueId,
    vectors: &Integer,
    landing: Option<&Integer>,
) -> ValueId {
    let groups = shape.slots / layer.unit;
    let unit = layer.unit as i64;
    let (inputs, outputs) = (layer.input_positions, layer.output_positions);
    let (in_stride, out_stride) = (groups / inputs, groups / outputs);
    let scheme = layer.scheme(shape);

    let (step, reach) = match scheme {
        Scheme::Up if outputs == inputs => (in_stride - 1, in_stride.min(inputs)),
        Scheme::Up => (in_stride - 1, in_stride),
        Scheme::Shared => (in_stride - 1, inputs),
        Scheme::Down => (out_stride - 1, in_stride.min(outputs)),
    };
    let spread = builder.fold(x, doubling(1, reach).map(|k| k * step as i64 * unit));
    builder.set_layout(spread, layout(1, Fill::Junk));

    let products = layer.products(shape);
    let (babies, giants) = split(products);
    let shift = (in_stride * out_stride) as i64;
    let rotated: Vec<ValueId> = (0..babies as i64).map(|j| builder.rotate(spread, j * shift * unit)).collect();
    let pass = |builder: &mut Builder, giant: &Integer| {
        let offset = giant.clone() * (babies as i64 * shift);
        let terms = (0..babies as i64)
            .map(|j| {
                let weight = layer.diagonal(shape, scheme, giant.clone() * babies + j, offset.clone());
                builder.multiply_plain(rotated[j as usize], weight, Purpose::Weight)
            })
            .collect();
        let sum = builder.add_all(terms);
        builder.rotate(sum, offset * unit)
    };
    let sum = if giants == 1 {
        pass(builder, &Integer::Constant(0))
    } else {
        let giant = builder.open(giants);
        let yielded = pass(builder, &giant);
        builder.close(vec![yielded])[0]
    };

    let result = if let Some(target) = landing {
        land(builder, sum, doubling(1, out_stride), target)
    } else {
        let steps: Vec<i64> = match scheme {
            Scheme::Up | Scheme::Shared => doubling(1, out_stride.min(inputs)).collect(),
            Scheme::Down => doubling(1, in_stride.min(outputs)).chain(doubling(in_stride, out_stride)).collect(),
        };
        builder.fold(sum, steps.into_iter().map(|k| k * unit))
    };
    let result = match layer.bias {
        Some(bias) => builder.add_plain(result, layer.bias_vector(shape, bias, vectors, landing)),
        None => result,
    };
    builder.set_layout(result, layout(shape.slots / outputs, Fill::Junk));
    result
}

/// Sums each group of slots (a power of two of them, the product of 2 over the steps) into the group's slot `target`:
/// where a bit of the target is set, the rotation by that step goes to the right. The other slots hold junk.
pub(super) fn land(
    builder: &mut Builder,
    a: ValueId,
    steps: impl IntoIterator<Item = i64>,
    target: &Integer,
) -> ValueId {
    let mut sum = a;
    for step in steps {
        let bit = target.clone() / step % 2;
        let rotated = builder.rotate(sum, bit.select(-step, step));
        sum = builder.add(sum, rotated);
    }
    sum
}
