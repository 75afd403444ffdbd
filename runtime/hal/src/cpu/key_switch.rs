//! Digits, inner products with keys, and the tensor product.

use std::ops::Range;

use rayon::prelude::*;

use super::{BLOCK_WORDS, CpuBackend, WORDS_PER_TASK};
use crate::kernels::{Multiplier, RowModulus};
use crate::uniform::Expander;
use crate::{Addend, CpuBuffer, HalError, HoistedRotation, KeyView, UniformHalf, check};

/// Words of a block in which the digits stay in a near cache while both halves of a key pass.
const PRODUCT_BLOCK: usize = 1 << 12;

/// The uniform half of a key, ready to be read.
enum Uniform<'a> {
    Stored(&'a CpuBuffer),
    Seeded(Box<Expander>),
}

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
                self.inverse_row_from(limbs[position], row, src.row(polynomial, position), factor);
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
        key: &KeyView<'_, CpuBuffer>,
        addend: Option<&Addend<'_, CpuBuffer>>,
        limbs: &[usize],
    ) -> Result<(), HalError> {
        let name = "inner_product";
        self.check(name, limbs, &[digits])?;
        check::equal(name, "key positions", limbs.len(), key.positions.len())?;
        let last = key.positions.iter().max().map_or(0, |last| last + 1);
        let stored = if let UniformHalf::Stored(a) = key.a { Some(a) } else { None };
        for half in [Some(key.b), stored].into_iter().flatten() {
            let (wanted, found) = (digits.shape().polynomials, half.shape().polynomials);
            check::at_least(name, "digits of the key", wanted, found)?;
            check::at_least(name, "limbs of the key", last, half.shape().limbs)?;
        }
        addend.map_or(Ok(()), |addend| self.check_addend(addend, limbs))
    }

    fn check_addend(&self, addend: &Addend<'_, CpuBuffer>, limbs: &[usize]) -> Result<(), HalError> {
        let name = "inner_product";
        check::at_least(name, "limbs", addend.factors.len(), limbs.len())?;
        self.check(name, &limbs[..addend.factors.len()], &[addend.source])?;
        check::at_least(name, "polynomials", addend.polynomials, addend.source.shape().polynomials.min(2))
    }

    /// `block` ← the addend's share of these words of polynomial `half` at a limb position; whether it has one.
    fn start_block(
        &self,
        block: &mut [u64],
        words: Range<usize>,
        half: usize,
        position: usize,
        addend: Option<&Addend<'_, CpuBuffer>>,
        m: &RowModulus,
    ) -> bool {
        let Some(addend) = addend.filter(|addend| half < addend.polynomials) else { return false };
        let Some(factor) = addend.factors.get(position) else { return false };
        block.copy_from_slice(&addend.source.row(half, position)[words]);
        (self.0.kernels.scale)(block, Multiplier::new(*factor, m.q), m.q);
        true
    }

    /// Both sums addend + Σ digit · key of one limb.
    fn key_product_rows(
        &self,
        sums: [&mut [u64]; 2],
        digits: &CpuBuffer,
        key: &KeyView<'_, CpuBuffer>,
        addend: Option<&Addend<'_, CpuBuffer>>,
        index: usize,
        position: usize,
    ) {
        let length = PRODUCT_BLOCK.min(self.0.tables.degree);
        let m = &self.0.rows[index];
        let stored = |half: &CpuBuffer, words: &Range<usize>, sum: &mut [u64], started: bool| {
            let row = |digit| &half.row(digit, key.positions[position])[words.clone()];
            let pairs = (0..digits.shape().polynomials).map(|d| (&digits.row(d, position)[words.clone()], row(d)));
            (self.0.kernels.dot)(sum, &pairs.collect::<Vec<_>>(), started, m);
        };
        let uniform = match key.a {
            UniformHalf::Stored(a) => Uniform::Stored(a),
            UniformHalf::Seeded(seed) => Uniform::Seeded(Box::new(self.expander(seed))),
        };
        let [sum_b, sum_a] = sums;
        for (block, (sum_b, sum_a)) in sum_b.chunks_mut(length).zip(sum_a.chunks_mut(length)).enumerate() {
            let words = block * length..(block + 1) * length;
            let started = self.start_block(sum_b, words.clone(), 0, position, addend, m);
            stored(key.b, &words, sum_b, started);
            let started = self.start_block(sum_a, words.clone(), 1, position, addend, m);
            match &uniform {
                Uniform::Stored(a) => stored(a, &words, sum_a, started),
                Uniform::Seeded(expander) => {
                    self.seeded_product(sum_a, digits, expander, words.start, started, index, position);
                }
            }
        }
    }

    /// A block of the sum of products with a half that is expanded piece by piece, so that pieces stay in the first cache
    /// level.
    #[allow(clippy::too_many_arguments)]
    fn seeded_product(
        &self,
        sum: &mut [u64],
        digits: &CpuBuffer,
        expander: &Expander,
        start: usize,
        started: bool,
        index: usize,
        position: usize,
    ) {
        let count = digits.shape().polynomials;
        let length = BLOCK_WORDS.min(sum.len());
        let m = &self.0.rows[index];
        let mut expanded = vec![0; count * length];
        for (piece, sum) in sum.chunks_mut(length).enumerate() {
            let start = start + piece * length;
            for (digit, residues) in expanded.chunks_mut(length).enumerate() {
                expander.fill(expander.row(digit, index, m.q), start, residues);
            }
            let rows = (0..count).map(|digit| &digits.row(digit, position)[start..start + length]);
            let pairs: Vec<_> = rows.zip(expanded.chunks(length)).collect();
            (self.0.kernels.dot)(sum, &pairs, started, m);
        }
    }

    /// Overwrites or increases the two polynomials of `result` by a permuted product with a key.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn key_product(
        &self,
        result: &mut CpuBuffer,
        accumulate: bool,
        digits: &CpuBuffer,
        key: &KeyView<'_, CpuBuffer>,
        addend: Option<&Addend<'_, CpuBuffer>>,
        galois_element: usize,
        limbs: &[usize],
    ) -> Result<(), HalError> {
        self.check_key(digits, key, addend, limbs)?;
        self.check("inner_product", limbs, &[result])?;
        check::at_least("inner_product", "polynomials", 2, result.shape().polynomials)?;
        let permutation = self.0.tables.automorphism(galois_element)?;
        let in_place = galois_element == 1 && !accumulate;
        let degree = self.0.tables.degree;
        let stride = result.shape().limbs;
        let (b, a) = result.words_mut().split_at_mut(stride * degree);
        let used = limbs.len() * degree;
        b[..used]
            .par_chunks_mut(degree)
            .zip(a[..used].par_chunks_mut(degree))
            .enumerate()
            .with_min_len(WORDS_PER_TASK.div_ceil(degree))
            .try_for_each_init(
                || self.buffer(usize::from(!in_place), 2),
                |sums, (j, (b, a))| {
                    if in_place {
                        self.key_product_rows([b, a], digits, key, addend, limbs[j], j);
                        return Ok(());
                    }
                    let sums = sums.as_mut().map_err(|error| error.clone())?;
                    let (sum_b, sum_a) = sums.words_mut().split_at_mut(degree);
                    self.key_product_rows([sum_b, sum_a], digits, key, addend, limbs[j], j);
                    for (row, sum) in [(b, sum_b), (a, sum_a)] {
                        if accumulate {
                            (self.0.kernels.permute_add)(row, sum, &permutation, self.q(limbs[j]));
                        } else {
                            (self.0.kernels.permute)(row, sum, &permutation);
                        }
                    }
                    Ok(())
                },
            )
    }

    /// Limb by limb: all rotations of a limb are made, and then meet all plaintexts block by block, so that rotations never
    /// leave the caches.
    pub(super) fn rotated_sums(
        &self,
        digits: &CpuBuffer,
        source: &Addend<'_, CpuBuffer>,
        rotations: &[HoistedRotation<'_, CpuBuffer>],
        groups: &[Vec<(usize, &CpuBuffer)>],
        limbs: &[usize],
    ) -> Result<Vec<CpuBuffer>, HalError> {
        let name = "hoisted_sums";
        let first = Addend { polynomials: 1, ..*source };
        self.check_addend(source, limbs)?;
        for key in rotations.iter().filter_map(|rotation| rotation.key.as_ref()) {
            self.check_key(digits, key, Some(&first), limbs)?;
        }
        for (k, plain) in groups.iter().flatten() {
            self.check_operand(name, limbs, plain)?;
            check::at_least(name, "rotations", k + 1, rotations.len())?;
        }
        let permutations = rotations
            .iter()
            .map(|rotation| self.0.tables.automorphism(rotation.galois_element))
            .collect::<Result<Vec<_>, _>>()?;
        let degree = self.0.tables.degree;
        let mut results = groups.iter().map(|_| self.buffer(2, limbs.len())).collect::<Result<Vec<_>, _>>()?;

        // By limb: rows of group 0, polynomials 0 and 1, of group 1, and so on.
        let mut rows: Vec<Vec<&mut [u64]>> = limbs.iter().map(|_| Vec::with_capacity(2 * groups.len())).collect();
        for result in &mut results {
            for (row, words) in result.words_mut().chunks_mut(degree).enumerate() {
                rows[row % limbs.len()].push(words);
            }
        }
        rows.into_par_iter().enumerate().with_min_len(WORDS_PER_TASK.div_ceil(degree)).try_for_each_init(
            || self.buffer(1 + rotations.len(), 2),
            |scratch, (j, rows)| {
                let scratch = scratch.as_mut().map_err(|error| error.clone())?;
                let (sums, rotated) = scratch.words_mut().split_at_mut(2 * degree);
                for ((rotation, permutation), rotated) in
                    rotations.iter().zip(&permutations).zip(rotated.chunks_mut(2 * degree))
                {
                    let (rotated_b, rotated_a) = rotated.split_at_mut(degree);
                    if let Some(key) = &rotation.key {
                        let (sum_b, sum_a) = sums.split_at_mut(degree);
                        self.key_product_rows([sum_b, sum_a], digits, key, Some(&first), limbs[j], j);
                        (self.0.kernels.permute)(rotated_b, sum_b, permutation);
                        (self.0.kernels.permute)(rotated_a, sum_a, permutation);
                    } else {
                        for (half, row) in [rotated_b, rotated_a].into_iter().enumerate() {
                            if !self.start_block(row, 0..degree, half, j, Some(source), &self.0.rows[limbs[j]]) {
                                row.fill(0);
                            }
                        }
                    }
                }
                self.dot_groups(rows, rotated, groups, limbs[j], j);
                Ok::<_, HalError>(())
            },
        )?;
        Ok(results)
    }

    /// The sums of all groups at one limb.
    fn dot_groups(
        &self,
        mut rows: Vec<&mut [u64]>,
        rotated: &[u64],
        groups: &[Vec<(usize, &CpuBuffer)>],
        index: usize,
        position: usize,
    ) {
        let degree = self.0.tables.degree;
        let length = PRODUCT_BLOCK.min(degree);
        for start in (0..degree).step_by(length) {
            let words = start..start + length;
            for (row, sum) in rows.iter_mut().enumerate() {
                let (group, half) = (row / 2, row % 2);
                let terms = groups[group].iter().map(|(k, plain)| {
                    let rotated = &rotated[(2 * k + half) * degree..][..degree];
                    (&rotated[words.clone()], *plain, 0)
                });
                let terms: Vec<_> = terms.collect();
                self.dot_operands(&mut sum[words.clone()], start, &terms, false, position, index);
            }
        }
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
