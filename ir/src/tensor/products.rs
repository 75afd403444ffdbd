//! Products of matrices of single precision with vectors of double precision.
//!
//! Sums are made in [`LANES`] parts, whatever the processor: its widest vectors only decide how many are added at once, so
//! that results are the same everywhere, and the same for one vector as for many; products are added without being rounded
//! before. Weights are read once for all vectors.

// What is compiled for each kind of processor has to be part of the function that is dispatched.
#![allow(clippy::inline_always)]

use std::array::from_fn;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Parts of a sum, which a processor adds at once.
const LANES: usize = 8;

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

/// W·x for each x, for W of so many columns.
pub(super) fn products(weights: &[f32], columns: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let rows = weights.len() / columns.max(1);
    let arch = Arch::new();
    let block = |weights| arch.dispatch(RowBlock { weights, columns, x });
    let blocks: Vec<Vec<f64>> = if rows * columns * x.len() < PARALLEL {
        weights.chunks((ROWS * columns).max(1)).map(block).collect()
    } else {
        weights.par_chunks((ROWS * columns).max(1)).map(block).collect()
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
struct RowBlock<'a> {
    weights: &'a [f32],
    columns: usize,
    x: &'a [Vec<f64>],
}

impl WithSimd for RowBlock<'_> {
    /// `[x][rows]`
    type Output = Vec<f64>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f64> {
        // As many sums as there are registers for; the last is how many of these hold the parts of one.
        match S::F64_LANES {
            LANES => self.tiled::<S, 4, 4, 1>(simd),
            4 => self.tiled::<S, 2, 2, 2>(simd),
            2 => self.tiled::<S, 2, 2, 4>(simd),
            _ => self.tiled::<S, 1, 1, LANES>(simd),
        }
    }
}

impl RowBlock<'_> {
    /// Products of R rows with X vectors at a time.
    #[inline(always)]
    fn tiled<S: Simd, const R: usize, const X: usize, const PARTS: usize>(self, simd: S) -> Vec<f64> {
        let Self { weights, columns, x } = self;
        let rows = weights.len() / columns.max(1);
        let mut results = vec![0.0; rows * x.len()];
        let mut wide = vec![0.0; R * columns];
        for (first, weights) in (0..rows).step_by(R).zip(weights.chunks(R * columns)) {
            wide.iter_mut().zip(weights).for_each(|(wide, &weight)| *wide = f64::from(weight));
            // Rows and vectors that are not there repeat the last one.
            let there = weights.len() / columns;
            let tile: [&[f64]; R] = from_fn(|index| &wide[index.min(there - 1) * columns..][..columns]);
            for (x, results) in x.chunks(X).zip(results.chunks_mut(X * rows)) {
                let vectors: [&[f64]; X] = from_fn(|index| &x[index.min(x.len() - 1)][..columns]);
                let sums = tile_products::<S, R, X, PARTS>(simd, tile, vectors);
                for (index, results) in results.chunks_exact_mut(rows).enumerate() {
                    for (result, sums) in results[first..].iter_mut().zip(&sums[..there]) {
                        *result = sums[index];
                    }
                }
            }
        }
        results
    }
}

/// ⟨row, x⟩ for each row and each x. How many registers hold the parts of a sum is a constant, as sums stay in registers only so.
#[inline(always)]
// Sums that are borrowed, as iterators over them are, would be stored again and again.
#[allow(clippy::needless_range_loop)]
fn tile_products<S: Simd, const R: usize, const X: usize, const PARTS: usize>(
    simd: S,
    rows: [&[f64]; R],
    x: [&[f64]; X],
) -> [[f64; X]; R] {
    let whole = rows[0].len() - rows[0].len() % LANES;
    let weights = rows.map(|row| S::as_simd_f64s(&row[..whole]).0);
    let vectors = x.map(|x| S::as_simd_f64s(&x[..whole]).0);
    let mut sums = [[[simd.splat_f64s(0.0); PARTS]; X]; R];
    for at in (0..whole / S::F64_LANES).step_by(PARTS) {
        for part in 0..PARTS {
            let vectors: [S::f64s; X] = from_fn(|x| vectors[x][at + part]);
            for row in 0..R {
                let weight = weights[row][at + part];
                for x in 0..X {
                    sums[row][x][part] = simd.mul_add_f64s(weight, vectors[x], sums[row][x][part]);
                }
            }
        }
    }
    let mut results = [[0.0; X]; R];
    for row in 0..R {
        for index in 0..X {
            let mut lanes = [0.0; LANES];
            let (parts, _) = S::as_mut_simd_f64s(&mut lanes);
            parts.iter_mut().enumerate().for_each(|(part, lanes)| *lanes = sums[row][index][part]);
            let rest = rows[row][whole..].iter().zip(&x[index][whole..]);
            results[row][index] =
                lanes.iter().sum::<f64>() + rest.fold(0.0, |sum, (weight, x)| weight.mul_add(*x, sum));
        }
    }
    results
}

#[cfg(test)]
mod tests {
    use super::{dot, products};

    #[test]
    fn products_are_those_of_vectors_one_by_one_to_the_bit() {
        let number = |index: usize| ((index * 7919 + 13) % 1009) as f64 / 1009.0 - 0.5;
        for (rows, columns, vectors) in [(1, 1, 1), (7, 13, 3), (64, 64, 4), (70, 33, 5), (515, 130, 9)] {
            let weights: Vec<f32> = (0..rows * columns).map(|index| number(index) as f32).collect();
            let x: Vec<Vec<f64>> =
                (0..vectors).map(|x| (0..columns).map(|index| number(index + 31 * x)).collect()).collect();
            let got = products(&weights, columns, &x);
            for (x, got) in x.iter().zip(&got) {
                assert_eq!(
                    got,
                    &products(&weights, columns, std::slice::from_ref(x))[0],
                    "{rows}·{columns}, {vectors}"
                );
                for (row, got) in got.iter().enumerate() {
                    let wide: Vec<f64> =
                        weights[row * columns..][..columns].iter().map(|&value| f64::from(value)).collect();
                    assert!((got - dot(&wide, x)).abs() < 1e-12, "row {row} of {rows}·{columns}");
                }
            }
        }
    }
}
