//! Lifting, base conversion and division by dropped moduli.
//!
//! A conversion from k moduli has two steps. Sources: each row times (Q/q_i)^-1, and one more
//! row, the overflow counts; together k+1 rows. Combination: each destination row is the sum of
//! these rows times constants. Runs of destination rows are combined block by block, so that the
//! sources' blocks stay in the first cache level.

use rayon::prelude::*;

use super::{BLOCK_WORDS, CpuBackend, WORDS_PER_TASK};
use crate::conversion::ConversionTable;
use crate::kernels::{Multiplier, Reduction};
use crate::{CpuBuffer, HalError, Representative, check};

/// Source rows that may be read again for every destination row.
const FEW_SOURCES: usize = 2;
/// Source rows of which blocks of [`BLOCK_WORDS`] no longer fit the first cache level.
const MANY_SOURCES: usize = 8;
/// Rows shorter than this do not fill vectors.
const SHORTEST_VECTOR_ROW: usize = 16;
/// Coefficients of a wide lift that are split at a time.
const WIDE_BLOCK: usize = 256;
/// Bits of one part of a wide coefficient.
const PART_BITS: u32 = 42;

impl CpuBackend {
    pub(super) fn lift(&self, coefficients: &[i64], limbs: &[usize]) -> Result<CpuBuffer, HalError> {
        self.check("lift_signed", limbs, &[])?;
        let degree = self.0.tables.degree;
        let polynomials = coefficients.len() / degree;
        check::equal("lift_signed", "coefficients", polynomials * degree, coefficients.len())?;
        let mut result = self.buffer(polynomials, limbs.len())?;
        self.for_rows(&mut result, polynomials, limbs.len(), |i, j, row| {
            self.lift_row(row, &coefficients[i * degree..(i + 1) * degree], limbs[j]);
        });
        Ok(result)
    }

    pub(super) fn lift_row(&self, row: &mut [u64], coefficients: &[i64], index: usize) {
        if row.len() < SHORTEST_VECTOR_ROW {
            let q = &self.0.tables.moduli[index];
            return row.iter_mut().zip(coefficients).for_each(|(residue, c)| *residue = q.reduce_signed(*c));
        }
        (self.0.kernels.lift)(row, coefficients, &self.0.rows[index]);
    }

    /// Each coefficient is (a·2^42 + b)·2^42 + c with 0 ≤ b, c < 2^42 and a signed.
    pub(super) fn lift_wide_row(&self, row: &mut [u64], coefficients: &[i128], index: usize) {
        if row.len() < SHORTEST_VECTOR_ROW {
            let q = &self.0.tables.moduli[index];
            return row.iter_mut().zip(coefficients).for_each(|(residue, c)| *residue = q.reduce_signed_wide(*c));
        }
        let (kernels, m) = (self.0.kernels, &self.0.rows[index]);
        let shift = Multiplier::new((1 << PART_BITS) % m.q, m.q);
        let mut part = [0; WIDE_BLOCK];
        let mut residues = [0; WIDE_BLOCK];
        for (block, coefficients) in row.chunks_mut(WIDE_BLOCK).zip(coefficients.chunks(WIDE_BLOCK)) {
            let (part, residues) = (&mut part[..block.len()], &mut residues[..block.len()]);
            for (p, c) in part.iter_mut().zip(coefficients) {
                *p = (c >> (2 * PART_BITS)) as i64;
            }
            (kernels.lift)(block, part, m);
            for down in [PART_BITS, 0] {
                for (p, c) in part.iter_mut().zip(coefficients) {
                    *p = (c >> down) as i64 & ((1 << PART_BITS) - 1);
                }
                (kernels.lift)(residues, part, m);
                (kernels.scale)(block, shift, m.q);
                (kernels.add)(block, residues, m.q);
            }
        }
    }

    pub(super) fn lift_subring<T: Sync>(
        &self,
        operation: &'static str,
        coefficients: &[T],
        limbs: &[usize],
        lift: impl Fn(&mut [u64], &[T], usize) + Sync,
    ) -> Result<CpuBuffer, HalError> {
        self.check(operation, limbs, &[])?;
        let degree = coefficients.len();
        let repetition = check::repetition(operation, self.0.tables.degree, degree)?;
        let subring = (repetition > 1).then(|| self.subring(degree));
        let transforms = subring.as_deref().unwrap_or(&self.0.transforms);
        let mut result = CpuBuffer::repeated(&self.0.tables.pool, 1, limbs.len(), degree, repetition)?;
        let rows = result.words_mut().par_chunks_mut(degree).enumerate();
        rows.with_min_len(WORDS_PER_TASK.div_ceil(degree)).for_each(|(j, row)| {
            lift(row, coefficients, limbs[j]);
            transforms[limbs[j]].forward(row);
        });
        Ok(result)
    }

    /// Increases all polynomials of `sum` by Σ a·c. A task takes a limb and a share of the pairs, so that there are tasks for
    /// all threads, and some pairs at a time, whose rows stay in the second cache level.
    pub(super) fn dot_lifted(&self, sum: &mut CpuBuffer, pairs: &[(&CpuBuffer, &[i64])], limbs: &[usize]) {
        const PAIRS_AT_ONCE: usize = 2;
        let (degree, polynomials) = (self.0.tables.degree, sum.shape().polynomials);
        let shares = rayon::current_num_threads().div_ceil(limbs.len().max(1));
        let share = pairs.len().div_ceil(shares).max(1);
        let shares: Vec<&[(&CpuBuffer, &[i64])]> = pairs.chunks(share).collect();
        let task = |task: usize| -> Vec<u64> {
            let (position, index) = (task % limbs.len(), limbs[task % limbs.len()]);
            let mut partial = vec![0; polynomials * degree];
            let mut lifted = vec![0; PAIRS_AT_ONCE * degree];
            for pairs in shares[task / limbs.len()].chunks(PAIRS_AT_ONCE) {
                for ((_, coefficients), row) in pairs.iter().zip(lifted.chunks_exact_mut(degree)) {
                    self.lift_row(row, coefficients, index);
                    self.forward_row(index, row);
                }
                for (i, partial) in partial.chunks_exact_mut(degree).enumerate() {
                    let pick = |a: &CpuBuffer| i % a.shape().polynomials;
                    let rows = pairs.iter().zip(lifted.chunks_exact(degree));
                    let rows: Vec<_> = rows.map(|((a, _), row)| (a.row(pick(a), position), row)).collect();
                    (self.0.kernels.dot)(partial, &rows, true, &self.0.rows[index]);
                }
            }
            partial
        };
        let partials: Vec<Vec<u64>> = (0..shares.len() * limbs.len()).into_par_iter().map(task).collect();
        self.for_rows(sum, polynomials, limbs.len(), |i, position, row| {
            for partial in partials.iter().skip(position).step_by(limbs.len()) {
                (self.0.kernels.add)(row, &partial[i * degree..(i + 1) * degree], self.q(limbs[position]));
            }
        });
    }

    /// Rows that a task combines together: enough tasks for all threads, and enough rows to
    /// spread the cost of reading the sources; but with few sources, single rows, which then stay
    /// in the second cache level for the transform that follows.
    pub(super) fn rows_per_task(&self, rows: usize, rows_per_batch: usize, sources: usize) -> usize {
        let tasks = 4 * rayon::current_num_threads();
        let fewest = WORDS_PER_TASK.div_ceil(self.0.tables.degree);
        let many = if sources <= FEW_SOURCES { fewest } else { rows.div_ceil(tasks).max(4) };
        many.max(fewest).min(rows_per_batch)
    }

    /// Fills the overflow row that follows `count` source rows. With a single source a comparison
    /// takes its place.
    pub(super) fn fill_overflow(&self, sources: &mut [u64], count: usize, table: &ConversionTable) {
        if table.single.is_some() {
            return;
        }
        let degree = self.0.tables.degree;
        let (rows, overflow) = sources.split_at_mut(count * degree);
        overflow[..degree]
            .par_chunks_mut(BLOCK_WORDS.min(degree))
            .enumerate()
            .with_min_len(WORDS_PER_TASK.div_ceil(BLOCK_WORDS))
            .for_each(|(block, overflow)| {
                let rows = blocks(rows, degree, block, overflow.len());
                (self.0.kernels.overflow)(overflow, &rows, &table.reciprocal);
            });
    }

    /// Overwrites destination rows `(j, row)`, modulo table entry `to[j]`, by the combination of
    /// the source rows: those of the moduli and, for centred representatives, the overflow row. Words that will
    /// be transformed are only reduced as far as the transform needs.
    pub(super) fn combine_rows(
        &self,
        rows: &mut [(usize, &mut [u64])],
        to: &[usize],
        sources: &[u64],
        table: &ConversionTable,
        transformed: bool,
    ) {
        let degree = self.0.tables.degree;
        let count = sources.len() / degree;
        // With many sources shorter blocks, of which all still fit the first cache level.
        let length = if count > MANY_SOURCES { BLOCK_WORDS / 2 } else { BLOCK_WORDS }.min(degree);
        if let Some(q) = table.single.filter(|_| count == 2) {
            for (j, row) in rows {
                (self.0.kernels.recentre)(row, &sources[..degree], q, &self.0.rows[to[*j]]);
            }
            return;
        }
        for block in 0..degree / length {
            let sources = blocks(sources, degree, block, length);
            let words = block * length..(block + 1) * length;
            for k in 0..rows.len() {
                let (done, rest) = rows.split_at_mut(k + 1);
                let (j, row) = &mut done[k];
                let row = &mut row[words.clone()];
                let next = rest.first().map_or(&sources[0][..0], |(_, next)| &next[words.clone()]);
                let constants = &table.constants[*j][..count];
                let reduction = if transformed { self.0.transforms[to[*j]].takes() } else { Reduction::Full };
                (self.0.kernels.combine)(row, &sources, constants, next, reduction, &self.0.rows[to[*j]]);
            }
        }
    }

    pub(super) fn convert(
        &self,
        src: &CpuBuffer,
        from: &[usize],
        to: &[usize],
        representative: Representative,
    ) -> Result<CpuBuffer, HalError> {
        self.check("convert_basis", from, &[src])?;
        self.check("convert_basis", to, &[])?;
        let table = self.0.tables.conversion(from, to);
        let polynomials = src.shape().polynomials;
        let mut sources = self.buffer(polynomials, from.len() + 1)?;
        self.for_rows(&mut sources, polynomials, from.len(), |i, j, row| {
            let q = self.q(from[j]);
            row.copy_from_slice(src.row(i, j));
            (self.0.kernels.scale)(row, Multiplier::new(table.punctured_inverse[j], q), q);
        });
        let mut result = self.buffer(polynomials, to.len())?;
        self.combine_batch(&mut result, &mut sources, to, representative, &table, false, |_, _, _| ());
        Ok(result)
    }

    /// The second step of a conversion for a batch: fills overflow rows, combines into all rows
    /// of `result`, then calls `finish(polynomial, position, row)` on each, which begins with a forward transform if
    /// `transformed`: words are not canonical before it.
    #[allow(clippy::too_many_arguments)]
    fn combine_batch(
        &self,
        result: &mut CpuBuffer,
        sources: &mut CpuBuffer,
        to: &[usize],
        representative: Representative,
        table: &ConversionTable,
        transformed: bool,
        finish: impl Fn(usize, usize, &mut [u64]) + Sync,
    ) {
        let degree = self.0.tables.degree;
        let batch = sources.shape().limbs * degree;
        let count = table.reciprocal.len();
        let used = match representative {
            Representative::Approximate => count,
            Representative::Centred => {
                for sources in sources.words_mut().chunks_mut(batch) {
                    self.fill_overflow(sources, count, table);
                }
                count + 1
            }
        };
        let sources = sources.words();
        let run = self.rows_per_task(result.shape().polynomials * to.len(), to.len(), used);
        result
            .words_mut()
            .par_chunks_mut(to.len() * degree)
            .enumerate()
            .flat_map(|(polynomial, rows)| {
                rows.par_chunks_mut(run * degree).enumerate().map(move |(i, rows)| (polynomial, i * run, rows))
            })
            .for_each(|(polynomial, first, rows)| {
                let sources = &sources[polynomial * batch..][..used * degree];
                let mut rows: Vec<_> = (first..).zip(rows.chunks_mut(degree)).collect();
                self.combine_rows(&mut rows, to, sources, table, transformed);
                for (position, row) in rows {
                    finish(polynomial, position, row);
                }
            });
    }

    pub(super) fn divide(&self, src: &CpuBuffer, keep: &[usize], drop: &[usize]) -> Result<CpuBuffer, HalError> {
        let name = "mod_down";
        self.check(name, keep, &[])?;
        self.check(name, drop, &[])?;
        check::at_least(name, "limbs", keep.len() + drop.len(), src.shape().limbs)?;
        let table = self.0.tables.conversion(drop, keep);
        let polynomials = src.shape().polynomials;
        let mut sources = self.buffer(polynomials, drop.len() + 1)?;
        self.for_rows(&mut sources, polynomials, drop.len(), |i, j, row| {
            self.inverse_row_from(drop[j], row, src.row(i, keep.len() + j), table.punctured_inverse[j]);
        });
        let inverses = self.multipliers(name, &self.0.tables.quotient_constants(keep, drop), keep)?;
        let mut result = self.buffer(polynomials, keep.len())?;
        self.combine_batch(&mut result, &mut sources, keep, Representative::Centred, &table, true, |i, j, row| {
            self.forward_row(keep[j], row);
            (self.0.kernels.sub_scale)(row, src.row(i, j), inverses[j], self.q(keep[j]));
        });
        Ok(result)
    }
}

/// Block number `block`, of `length` words, of each row.
fn blocks(rows: &[u64], degree: usize, block: usize, length: usize) -> Vec<&[u64]> {
    rows.chunks(degree).map(|row| &row[block * length..(block + 1) * length]).collect()
}
