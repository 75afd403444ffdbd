//! Digits, inner products with keys, and the tensor product.

use rayon::prelude::*;

use super::{CpuBackend, WORDS_PER_TASK};
use crate::{CpuBuffer, HalError, check};

/// Words of a block in which the digits stay in a near cache while both halves of a key pass.
const PRODUCT_BLOCK: usize = 1 << 10;

impl CpuBackend {
    pub(super) fn extend_digits(
        &self,
        src: &CpuBuffer,
        polynomial: usize,
        limbs: &[usize],
        special: &[usize],
        alpha: usize,
    ) -> Result<CpuBuffer, HalError> {
        let name = "decompose";
        self.check(name, limbs, &[src])?;
        check::at_least(name, "polynomials", polynomial + 1, src.shape().polynomials)?;
        check::at_least(name, "limbs of a digit", 1, alpha)?;
        let extended = [limbs, special].concat();
        self.check(name, &extended, &[])?;
        let alpha = alpha.min(limbs.len());
        let digits = limbs.len().div_ceil(alpha);
        let tables: Vec<_> = limbs.chunks(alpha).map(|own| self.0.tables.conversion(own, &extended)).collect();

        // Digit d's sources: its own rows, then its overflow row.
        let mut sources = self.buffer(digits, alpha + 1)?;
        self.for_rows(&mut sources, digits, alpha, |digit, i, row| {
            let position = digit * alpha + i;
            if position < limbs.len() {
                let factor = tables[digit].punctured_inverse[i];
                row.copy_from_slice(src.row(polynomial, position));
                self.inverse_row_scaled(limbs[position], row, factor);
            }
        });
        let degree = self.0.tables.degree;
        let batch = (alpha + 1) * degree;
        for (sources, table) in sources.words_mut().chunks_mut(batch).zip(&tables) {
            self.fill_overflow(sources, table.reciprocal.len(), table);
        }

        let sources = sources.words();
        let mut result = self.buffer(digits, extended.len())?;
        let run = self.rows_per_task(digits * extended.len(), extended.len(), alpha + 1);
        result
            .words_mut()
            .par_chunks_mut(extended.len() * degree)
            .enumerate()
            .flat_map(|(digit, rows)| {
                rows.par_chunks_mut(run * degree).enumerate().map(move |(i, rows)| (digit, i * run, rows))
            })
            .for_each(|(digit, first, rows)| {
                let table = &tables[digit];
                let count = table.reciprocal.len();
                let own = digit * alpha..digit * alpha + count;
                let mut foreign = Vec::with_capacity(run);
                for (position, row) in (first..).zip(rows.chunks_mut(degree)) {
                    if own.contains(&position) {
                        row.copy_from_slice(src.row(polynomial, position));
                    } else {
                        foreign.push((position, row));
                    }
                }
                let sources = &sources[digit * batch..][..(count + 1) * degree];
                self.combine_rows(&mut foreign, &extended, sources, table);
                for (position, row) in foreign {
                    self.forward_row(extended[position], row);
                }
            });
        Ok(result)
    }

    fn check_key(
        &self,
        digits: &CpuBuffer,
        key: [&CpuBuffer; 2],
        limbs: &[usize],
        key_positions: &[usize],
    ) -> Result<(), HalError> {
        let name = "inner_product";
        self.check(name, limbs, &[digits])?;
        check::equal(name, "key positions", limbs.len(), key_positions.len())?;
        let last = key_positions.iter().max().map_or(0, |last| last + 1);
        for half in key {
            let (wanted, found) = (digits.shape().polynomials, half.shape().polynomials);
            check::at_least(name, "digits of the key", wanted, found)?;
            check::at_least(name, "limbs of the key", last, half.shape().limbs)?;
        }
        Ok(())
    }

    /// Both sums Σ digit · key of one limb.
    fn key_product_rows(
        &self,
        sums: [&mut [u64]; 2],
        digits: &CpuBuffer,
        key: [&CpuBuffer; 2],
        index: usize,
        position: usize,
        key_position: usize,
    ) {
        let length = PRODUCT_BLOCK.min(self.0.tables.degree);
        let [sum_b, sum_a] = sums;
        let blocks = sum_b.chunks_mut(length).zip(sum_a.chunks_mut(length));
        let mut pairs = Vec::with_capacity(digits.shape().polynomials);
        for (block, sums) in blocks.enumerate() {
            let words = block * length..(block + 1) * length;
            for (sum, half) in [sums.0, sums.1].into_iter().zip(key) {
                pairs.clear();
                pairs.extend((0..digits.shape().polynomials).map(|digit| {
                    (&digits.row(digit, position)[words.clone()], &half.row(digit, key_position)[words.clone()])
                }));
                (self.0.kernels.dot)(sum, &pairs, false, &self.0.rows[index]);
            }
        }
    }

    pub(super) fn key_product(
        &self,
        digits: &CpuBuffer,
        key: [&CpuBuffer; 2],
        limbs: &[usize],
        key_positions: &[usize],
    ) -> Result<CpuBuffer, HalError> {
        self.check_key(digits, key, limbs, key_positions)?;
        let degree = self.0.tables.degree;
        let mut result = self.buffer(2, limbs.len())?;
        let (b, a) = result.words_mut().split_at_mut(limbs.len() * degree);
        b.par_chunks_mut(degree)
            .zip(a.par_chunks_mut(degree))
            .enumerate()
            .with_min_len(WORDS_PER_TASK.div_ceil(degree))
            .for_each(|(j, (b, a))| {
                self.key_product_rows([b, a], digits, key, limbs[j], j, key_positions[j]);
            });
        Ok(result)
    }

    pub(super) fn key_product_permuted(
        &self,
        acc: &mut CpuBuffer,
        digits: &CpuBuffer,
        key: [&CpuBuffer; 2],
        galois_element: usize,
        limbs: &[usize],
        key_positions: &[usize],
    ) -> Result<(), HalError> {
        self.check_key(digits, key, limbs, key_positions)?;
        self.check("inner_product", limbs, &[acc])?;
        check::at_least("inner_product", "polynomials", 2, acc.shape().polynomials)?;
        let permutation = self.0.tables.automorphism(galois_element)?;
        let degree = self.0.tables.degree;
        let stride = acc.shape().limbs;
        let (b, a) = acc.words_mut().split_at_mut(stride * degree);
        let used = limbs.len() * degree;
        b[..used]
            .par_chunks_mut(degree)
            .zip(a[..used].par_chunks_mut(degree))
            .enumerate()
            .with_min_len(WORDS_PER_TASK.div_ceil(degree))
            .for_each_init(
                || vec![0; 2 * degree],
                |sums, (j, (b, a))| {
                    let (sum_b, sum_a) = sums.split_at_mut(degree);
                    let index = limbs[j];
                    let position = key_positions[j];
                    self.key_product_rows([sum_b, sum_a], digits, key, index, j, position);
                    (self.0.kernels.permute_add)(b, sum_b, &permutation, self.q(index));
                    (self.0.kernels.permute_add)(a, sum_a, &permutation, self.q(index));
                },
            );
        Ok(())
    }

    pub(super) fn tensor_product(&self, a: &CpuBuffer, b: &CpuBuffer, limbs: &[usize]) -> Result<CpuBuffer, HalError> {
        self.check("tensor", limbs, &[a, b])?;
        for operand in [a, b] {
            check::at_least("tensor", "polynomials", 2, operand.shape().polynomials)?;
        }
        let mut result = self.buffer(3, limbs.len())?;
        self.for_rows(&mut result, 3, limbs.len(), |i, j, row| {
            let (a, b) = ([a.row(0, j), a.row(1, j)], [b.row(0, j), b.row(1, j)]);
            let m = &self.0.rows[limbs[j]];
            match i {
                0 => (self.0.kernels.dot)(row, &[(a[0], b[0])], false, m),
                1 => (self.0.kernels.dot)(row, &[(a[0], b[1]), (a[1], b[0])], false, m),
                _ => (self.0.kernels.dot)(row, &[(a[1], b[1])], false, m),
            }
        });
        Ok(result)
    }
}
