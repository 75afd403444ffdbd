//! Digits, inner products with keys, and the tensor product.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::{BLOCK_WORDS, CpuBackend, WORDS_PER_TASK};
use crate::kernels::Kernels;
use crate::permutation::Permutation;
use crate::uniform::Expander;
use crate::{Addend, Backend, CpuBuffer, HalError, HoistedRotation, KeyView, UniformHalf, check};

/// Words of a block in which turned digits and sums stay in a near cache while both halves of a key pass.
const PRODUCT_BLOCK: usize = 1 << 11;

/// Rotations whose blocks are made before they meet plaintexts.
const ROTATIONS_AT_ONCE: usize = 4;

/// The uniform half of a key, ready to be read.
enum Uniform<'a> {
    Stored(&'a CpuBuffer),
    Seeded(Box<Expander>),
}

/// φ(addend) + Σ φ(digit) · key, to be evaluated block by block.
struct Product<'a> {
    digits: &'a CpuBuffer,
    /// b, the uniform half, and their limb positions.
    key: Option<(&'a CpuBuffer, Uniform<'a>, &'a [usize])>,
    addend: Option<&'a Addend<'a, CpuBuffer>>,
    /// φ, unless it is the identity.
    permutation: Option<Arc<Permutation>>,
}

impl<'a> Product<'a> {
    /// These words of φ(row): in place, or in `block`.
    fn turn<'b>(&self, row: &'b [u64], words: Range<usize>, block: &'b mut [u64], kernels: &Kernels) -> &'b [u64] {
        let Some(permutation) = &self.permutation else { return &row[words] };
        (kernels.permute)(block, row, permutation.part(words));
        block
    }

    /// The stored blocks of the key at a limb position, none past the end of the rows.
    fn key_blocks(&self, position: usize, start: usize, length: usize) -> Vec<&'a [u64]> {
        let Some((b, _, positions)) = &self.key else { return Vec::new() };
        let row = |digit| b.row(digit, positions[position]).get(start..start + length);
        (0..self.digits.shape().polynomials).filter_map(row).collect()
    }
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
                self.combine_rows(&mut foreign, &extended, sources, table, true);
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

    fn product<'a>(
        &self,
        digits: &'a CpuBuffer,
        key: Option<&'a KeyView<'a, CpuBuffer>>,
        addend: Option<&'a Addend<'a, CpuBuffer>>,
        galois_element: usize,
    ) -> Result<Product<'a>, HalError> {
        let permutation = self.0.tables.automorphism(galois_element)?;
        let key = key.map(|key| {
            let uniform = match key.a {
                UniformHalf::Stored(a) => Uniform::Stored(a),
                UniformHalf::Seeded(seed) => Uniform::Seeded(Box::new(self.expander(seed))),
            };
            (key.b, uniform, &key.positions[..])
        });
        Ok(Product { digits, key, addend, permutation: (galois_element != 1).then_some(permutation) })
    }

    /// Words of the scratch memory that [`product_block`](Self::product_block) takes.
    fn product_scratch(&self, digits: &CpuBuffer) -> usize {
        (2 * digits.shape().polynomials + 2) * PRODUCT_BLOCK.min(self.0.tables.degree)
    }

    /// Overwrites or increases both polynomials of a product from word `start` of one limb on. `upcoming` are blocks that
    /// will be read next.
    #[allow(clippy::too_many_arguments)]
    fn product_block(
        &self,
        sums: [&mut [u64]; 2],
        accumulate: bool,
        product: &Product<'_>,
        (index, position): (usize, usize),
        start: usize,
        upcoming: &[&[u64]],
        scratch: &mut [u64],
    ) {
        let length = sums[0].len();
        let words = start..start + length;
        let (kernels, m) = (self.0.kernels, &self.0.rows[index]);
        let (addend_block, scratch) = scratch.split_at_mut(length);
        let (factor_block, scratch) = scratch.split_at_mut(length);
        let digits = if product.key.is_some() { product.digits.shape().polynomials } else { 0 };
        let (turned, expanded) = scratch.split_at_mut(digits * length);
        let mut rows = Vec::with_capacity(digits);
        for (digit, block) in turned.chunks_mut(length).enumerate() {
            rows.push(product.turn(product.digits.row(digit, position), words.clone(), block, kernels));
        }
        for (half, sum) in sums.into_iter().enumerate() {
            let mut pairs: Vec<(&[u64], &[u64])> = Vec::with_capacity(digits + 1);
            let addend = product.addend.filter(|addend| half < addend.polynomials);
            if let Some((addend, factor)) = addend.and_then(|addend| Some((addend, addend.factors.get(position)?))) {
                factor_block.fill(*factor);
                let row = product.turn(addend.source.row(half, position), words.clone(), addend_block, kernels);
                pairs.push((row, factor_block));
            }
            match &product.key {
                None => {}
                Some((_, Uniform::Seeded(expander), _)) if half == 1 => {
                    for (digit, residues) in expanded.chunks_mut(length).enumerate() {
                        let upcoming = upcoming.chunks(upcoming.len().div_ceil(digits).max(1)).nth(digit);
                        let row = expander.row(digit, index, m.q);
                        expander.fill_before(row, start, residues, upcoming.unwrap_or_default());
                    }
                    pairs.extend(rows.iter().copied().zip(expanded.chunks(length)));
                }
                Some((b, uniform, positions)) => {
                    let stored = if let (1, Uniform::Stored(a)) = (half, uniform) { a } else { b };
                    let key = |digit| &stored.row(digit, positions[position])[words.clone()];
                    pairs.extend(rows.iter().enumerate().map(|(digit, row)| (*row, key(digit))));
                }
            }
            (kernels.dot)(sum, &pairs, accumulate, m);
        }
    }

    /// Overwrites or increases the two polynomials of `result` by a product with a key.
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
        let product = self.product(digits, Some(key), addend, galois_element)?;
        self.add_products(result, accumulate, digits, &[product], limbs)
    }

    /// The sum of all rotations.
    pub(super) fn rotations_sum(
        &self,
        digits: &CpuBuffer,
        source: &Addend<'_, CpuBuffer>,
        rotations: &[HoistedRotation<'_, CpuBuffer>],
        limbs: &[usize],
    ) -> Result<CpuBuffer, HalError> {
        let first = Addend { polynomials: 1, ..*source };
        let products = self.products(digits, source, &first, rotations, limbs)?;
        if products.is_empty() {
            return self.zeros(2, limbs.len());
        }
        let mut result = self.buffer(2, limbs.len())?;
        self.add_products(&mut result, false, digits, &products, limbs)?;
        Ok(result)
    }

    /// One product for each rotation: with a key its first polynomial is added, otherwise both.
    fn products<'a>(
        &self,
        digits: &'a CpuBuffer,
        source: &'a Addend<'a, CpuBuffer>,
        first: &'a Addend<'a, CpuBuffer>,
        rotations: &'a [HoistedRotation<'a, CpuBuffer>],
        limbs: &[usize],
    ) -> Result<Vec<Product<'a>>, HalError> {
        self.check_addend(source, limbs)?;
        rotations
            .iter()
            .map(|HoistedRotation { key, galois_element }| {
                if let Some(key) = key {
                    self.check_key(digits, key, Some(first), limbs)?;
                }
                let addend = if key.is_some() { first } else { source };
                self.product(digits, key.as_ref(), Some(addend), *galois_element)
            })
            .collect()
    }

    /// Overwrites or increases the two polynomials of `result` by a sum of products.
    fn add_products(
        &self,
        result: &mut CpuBuffer,
        accumulate: bool,
        digits: &CpuBuffer,
        products: &[Product<'_>],
        limbs: &[usize],
    ) -> Result<(), HalError> {
        self.check("inner_product", limbs, &[result])?;
        check::at_least("inner_product", "polynomials", 2, result.shape().polynomials)?;
        let degree = self.0.tables.degree;
        let length = PRODUCT_BLOCK.min(degree);
        let stride = result.shape().limbs;
        let (b, a) = result.words_mut().split_at_mut(stride * degree);
        let used = limbs.len() * degree;
        b[..used]
            .par_chunks_mut(degree)
            .zip(a[..used].par_chunks_mut(degree))
            .enumerate()
            .with_min_len(WORDS_PER_TASK.div_ceil(degree))
            .for_each_init(
                || vec![0; self.product_scratch(digits)],
                |scratch, (j, (b, a))| {
                    for (block, (b, a)) in b.chunks_mut(length).zip(a.chunks_mut(length)).enumerate() {
                        let start = block * length;
                        for (k, product) in products.iter().enumerate() {
                            let upcoming = match products.get(k + 1) {
                                Some(next) => next.key_blocks(j, start, length),
                                None => products[0].key_blocks(j, start + length, length),
                            };
                            let sums = [&mut *b, &mut *a];
                            let accumulate = accumulate || k > 0;
                            self.product_block(sums, accumulate, product, (limbs[j], j), start, &upcoming, scratch);
                        }
                    }
                },
            );
        Ok(())
    }

    /// Limb by limb and block by block: some rotations are made, and meet all plaintexts while they are in a near cache.
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
        let products = self.products(digits, source, &first, rotations, limbs)?;
        for (k, plain) in groups.iter().flatten() {
            self.check_operand(name, limbs, plain)?;
            check::at_least(name, "rotations", k + 1, rotations.len())?;
        }
        // For each batch of rotations and each group: indices within the batch, and plaintexts.
        let terms: Vec<Vec<Vec<(usize, &CpuBuffer)>>> = (0..rotations.len().max(1))
            .step_by(ROTATIONS_AT_ONCE)
            .map(|from| {
                let batch = from..from + ROTATIONS_AT_ONCE;
                let within = |group: &Vec<(usize, _)>| {
                    group.iter().filter(|(k, _)| batch.contains(k)).map(|&(k, plain)| (k - from, plain)).collect()
                };
                groups.iter().map(within).collect()
            })
            .collect();
        // The plaintexts that a rotation meets and that are worth fetching in advance.
        let mut plains: Vec<Vec<&CpuBuffer>> = vec![Vec::new(); rotations.len()];
        for (k, plain) in groups.iter().flatten().filter(|(_, plain)| plain.repetition() == 1) {
            plains[*k].push(plain);
        }
        let degree = self.0.tables.degree;
        let length = PRODUCT_BLOCK.min(degree);
        let mut results = groups.iter().map(|_| self.buffer(2, limbs.len())).collect::<Result<Vec<_>, _>>()?;

        // By limb: rows of group 0, polynomials 0 and 1, of group 1, and so on.
        let mut rows: Vec<Vec<&mut [u64]>> = limbs.iter().map(|_| Vec::with_capacity(2 * groups.len())).collect();
        for result in &mut results {
            for (row, words) in result.words_mut().chunks_mut(degree).enumerate() {
                rows[row % limbs.len()].push(words);
            }
        }
        rows.into_par_iter().enumerate().with_min_len(WORDS_PER_TASK.div_ceil(degree)).for_each_init(
            || {
                let most = terms.iter().flatten().map(Vec::len).max().unwrap_or(0);
                let spread = most * BLOCK_WORDS.min(length);
                vec![0; 2 * ROTATIONS_AT_ONCE * length + self.product_scratch(digits).max(spread)]
            },
            |scratch, (j, mut rows)| {
                let (rotated, scratch) = scratch.split_at_mut(2 * ROTATIONS_AT_ONCE * length);
                for start in (0..degree).step_by(length) {
                    for (batch, terms) in terms.iter().enumerate() {
                        let first = batch * ROTATIONS_AT_ONCE;
                        for (k, rotated) in (first..products.len()).zip(rotated.chunks_mut(2 * length)) {
                            let (b, a) = rotated.split_at_mut(length);
                            // The next rotation's, or the first one's of the next block.
                            let (next, from) =
                                if k + 1 < products.len() { (k + 1, start) } else { (0, start + length) };
                            let mut upcoming = products[next].key_blocks(j, from, length);
                            upcoming.extend(plains[k].iter().map(|plain| &plain.row(0, j)[start..start + length]));
                            self.product_block([b, a], false, &products[k], (limbs[j], j), start, &upcoming, scratch);
                        }
                        for (sums, terms) in rows.chunks_mut(2).zip(terms) {
                            self.add_terms(sums, start, rotated, terms, batch > 0, (limbs[j], j), scratch);
                        }
                    }
                }
            },
        );
        Ok(results)
    }

    /// Overwrites or increases both rows of a sum, from word `start` on, by Σ rotation · plaintext.
    #[allow(clippy::too_many_arguments)]
    fn add_terms(
        &self,
        sums: &mut [&mut [u64]],
        start: usize,
        rotated: &[u64],
        terms: &[(usize, &CpuBuffer)],
        accumulate: bool,
        (index, position): (usize, usize),
        scratch: &mut [u64],
    ) {
        if accumulate && terms.is_empty() {
            return;
        }
        let length = PRODUCT_BLOCK.min(self.0.tables.degree);
        // Plaintexts of few slots are spread over positions piece by piece, once for both rows.
        let piece = BLOCK_WORDS.min(length);
        for from in (0..length).step_by(piece) {
            let positions = start + from..start + from + piece;
            let spread = scratch.chunks_mut(piece);
            let plains: Vec<_> = terms
                .iter()
                .zip(spread)
                .map(|((_, plain), scratch)| plain.positions(0, position, positions.clone(), scratch))
                .collect();
            for (half, sum) in sums.iter_mut().enumerate() {
                let rotation = |k: usize| &rotated[(2 * k + half) * length + from..][..piece];
                let pairs: Vec<_> = terms.iter().zip(&plains).map(|((k, _), plain)| (rotation(*k), *plain)).collect();
                (self.0.kernels.dot)(&mut sum[positions.clone()], &pairs, accumulate, &self.0.rows[index]);
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
