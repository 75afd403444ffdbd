//! Products of matrices of single precision with vectors of double precision.
//!
//! Sums are made in [`LANES`] parts, whatever the processor: its widest vectors only decide how many are added at once, so
//! that results are the same everywhere, and the same for one vector as for many. A row of weights is read once for all
//! vectors.

// What is compiled for each kind of processor has to be part of the function that is dispatched.
#![allow(clippy::inline_always)]

use std::array::from_fn;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::Weight;

/// Parts of a sum, which a processor adds at once.
const LANES: usize = 8;

/// Vectors whose products with a row are made together.
const TILE: usize = 4;

/// Products from which on it pays to use all cores.
const PARALLEL: usize = 1 << 18;

/// Rows that one core takes at a time.
const ROWS: usize = 64;

/// ⟨a, b⟩
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f64 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// W·x for each x.
pub(super) fn products(weight: &Weight, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let (rows, columns) = (weight.rows(), weight.columns());
    let arch = Arch::new();
    let block = |weights| arch.dispatch(Rows { weights, columns, x });
    let blocks: Vec<Vec<f64>> = if rows * columns * x.len() < PARALLEL {
        weight.values.chunks(ROWS * columns).map(block).collect()
    } else {
        weight.values.par_chunks(ROWS * columns).map(block).collect()
    };
    let mut results = vec![Vec::with_capacity(rows); x.len()];
    for block in blocks {
        let length = block.len() / x.len().max(1);
        for (result, part) in results.iter_mut().zip(block.chunks_exact(length.max(1))) {
            result.extend(part);
        }
    }
    results
}

/// Some rows of weights, to be multiplied with each x.
struct Rows<'a> {
    weights: &'a [f32],
    columns: usize,
    x: &'a [Vec<f64>],
}

impl WithSimd for Rows<'_> {
    /// `[x][rows]`
    type Output = Vec<f64>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f64> {
        let Self { weights, columns, x } = self;
        let rows = weights.len() / columns.max(1);
        let mut results = vec![0.0; rows * x.len()];
        let mut wide = vec![0.0; columns];
        for (index, row) in weights.chunks_exact(columns).enumerate() {
            wide.iter_mut().zip(row).for_each(|(wide, &weight)| *wide = f64::from(weight));
            for (x, results) in x.chunks(TILE).zip(results.chunks_mut(TILE * rows)) {
                // Vectors that are not there repeat the last one.
                let tile: [&[f64]; TILE] = from_fn(|index| &x[index.min(x.len() - 1)][..columns]);
                let sums = row_products(simd, &wide, tile);
                for (results, sum) in results.chunks_exact_mut(rows).zip(sums) {
                    results[index] = sum;
                }
            }
        }
        results
    }
}

#[inline(always)]
fn row_products<S: Simd>(simd: S, row: &[f64], x: [&[f64]; TILE]) -> [f64; TILE] {
    let whole = row.len() - row.len() % LANES;
    // Registers that hold the parts of a sum.
    let registers = LANES / S::F64_LANES;
    let (weights, _) = S::as_simd_f64s(&row[..whole]);
    let vectors = x.map(|x| S::as_simd_f64s(&x[..whole]).0);
    let mut sums = [[simd.splat_f64s(0.0); LANES]; TILE];
    for at in (0..weights.len()).step_by(registers) {
        for register in 0..registers {
            for (sums, vector) in sums.iter_mut().zip(vectors) {
                let product = simd.mul_f64s(weights[at + register], vector[at + register]);
                sums[register] = simd.add_f64s(sums[register], product);
            }
        }
    }
    from_fn(|index| {
        let mut lanes = [0.0; LANES];
        let (parts, _) = S::as_mut_simd_f64s(&mut lanes);
        parts.copy_from_slice(&sums[index][..registers]);
        let rest: f64 = row[whole..].iter().zip(&x[index][whole..]).map(|(weight, x)| weight * x).sum();
        lanes.iter().sum::<f64>() + rest
    })
}

#[cfg(test)]
mod tests {
    use super::{Weight, dot, products};

    #[test]
    fn products_are_those_of_rows_one_by_one_to_the_bit() {
        let number = |index: usize| ((index * 7919 + 13) % 1009) as f64 / 1009.0 - 0.5;
        for (rows, columns, vectors) in [(1, 1, 1), (7, 13, 3), (64, 64, 4), (70, 33, 5), (515, 130, 9)] {
            let values = (0..rows * columns).map(|index| number(index) as f32).collect();
            let weight = Weight::new("w".to_owned(), vec![rows, columns], values);
            let x: Vec<Vec<f64>> =
                (0..vectors).map(|x| (0..columns).map(|index| number(index + 31 * x)).collect()).collect();
            let got = products(&weight, &x);
            for (x, got) in x.iter().zip(&got) {
                let wide = |row: usize| weight.row(row).iter().map(|&value| f64::from(value)).collect::<Vec<_>>();
                let want: Vec<f64> = (0..rows).map(|row| dot(&wide(row), x)).collect();
                assert_eq!(got, &want, "{rows}·{columns}, {vectors}");
            }
        }
    }
}
