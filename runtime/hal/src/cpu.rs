//! The fast CPU backend: a kernel table chosen at run time, rows shared out by rayon.
//!
//! A task is a row, that is one limb of one polynomial, or a run of rows; below
//! [`WORDS_PER_TASK`] rows are grouped, so that small rings do not pay for scheduling.

mod convert;
mod key_switch;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, RwLock};

use rayon::prelude::*;
use zeroize::Zeroize;

use crate::kernels::{Isa, Kernels, Multiplier, Reduction, RowModulus, RowTransform, selected_isa};
use crate::tables::{Tables, read, write};
use crate::uniform::Expander;
use crate::{Addend, Backend, CpuBuffer, HalError, HoistedRotation, KeyView, Representative, Seed, Shape, check};

/// Words below which a task is not worth handing to another thread.
const WORDS_PER_TASK: usize = 1 << 14;

/// Words of a block that several rows are worked on together in, so that they stay in the first
/// cache level.
const BLOCK_WORDS: usize = 1 << 9;

/// Vector kernels chosen from what the processor has ([`selected_isa`]), all cores of the
/// current rayon pool.
#[derive(Clone)]
pub struct CpuBackend(Arc<Inner>);

struct Inner {
    tables: Tables,
    rows: Vec<RowModulus>,
    kernels: &'static Kernels,
    isa: Isa,
    reason: &'static str,
    transforms: Vec<RowTransform>,
    /// By degree: the transforms of the rings of X^r.
    subrings: RwLock<BTreeMap<usize, Arc<Vec<RowTransform>>>>,
}

impl fmt::Debug for CpuBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CpuBackend")
            .field("degree", &self.0.tables.degree)
            .field("moduli", &self.0.tables.values)
            .field("isa", &self.0.isa)
            .finish()
    }
}

impl CpuBackend {
    /// A backend on a chosen instruction set, or [`HalError::Isa`] if the processor lacks it.
    pub fn with_isa(degree: usize, moduli: &[u64], isa: Isa) -> Result<Self, HalError> {
        isa.require()?;
        Self::build(degree, moduli, isa, "requested by the program")
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.0.isa
    }

    fn build(degree: usize, moduli: &[u64], isa: Isa, reason: &'static str) -> Result<Self, HalError> {
        let (tables, plans) = Tables::new(degree, moduli)?;
        let roots = tables.moduli.iter().zip(&tables.roots);
        let transforms = roots.zip(plans).map(|((q, root), plan)| RowTransform::new(isa, *q, *root, plan)).collect();
        Ok(Self(Arc::new(Inner {
            rows: moduli.iter().map(|q| RowModulus::new(*q)).collect(),
            kernels: isa.kernels(),
            isa,
            reason,
            transforms,
            subrings: RwLock::default(),
            tables,
        })))
    }

    /// A buffer of unspecified content.
    fn buffer(&self, polynomials: usize, limbs: usize) -> Result<CpuBuffer, HalError> {
        CpuBuffer::new(&self.0.tables.pool, polynomials, limbs, self.0.tables.degree)
    }

    fn check(&self, operation: &'static str, limbs: &[usize], buffers: &[&CpuBuffer]) -> Result<(), HalError> {
        check::limbs(operation, limbs, self.0.tables.moduli.len())?;
        for buffer in buffers {
            check::at_least(operation, "limbs", limbs.len(), buffer.shape().limbs)?;
            check::whole(operation, buffer)?;
        }
        Ok(())
    }

    /// Checks an operand whose words may stand for several positions.
    fn check_operand(&self, operation: &'static str, limbs: &[usize], operand: &CpuBuffer) -> Result<(), HalError> {
        self.check(operation, limbs, &[])?;
        check::at_least(operation, "limbs", limbs.len(), operand.shape().limbs)
    }

    /// Checks that the left operand has all polynomials of the right one.
    fn check_prefix(
        &self,
        operation: &'static str,
        dst: &CpuBuffer,
        src: &CpuBuffer,
        limbs: &[usize],
    ) -> Result<(), HalError> {
        self.check(operation, limbs, &[dst])?;
        self.check_operand(operation, limbs, src)?;
        let (wanted, found) = (src.shape().polynomials, dst.shape().polynomials);
        check::at_least(operation, "polynomials", wanted, found)
    }

    /// Runs `f(polynomial, position, row)` on the first `limbs` rows of the first `polynomials`
    /// polynomials.
    fn for_rows(
        &self,
        dst: &mut CpuBuffer,
        polynomials: usize,
        limbs: usize,
        f: impl Fn(usize, usize, &mut [u64]) + Sync,
    ) {
        let (degree, stride) = (self.0.tables.degree, dst.shape().limbs);
        dst.words_mut()[..polynomials * stride * degree]
            .par_chunks_mut(degree)
            .enumerate()
            .with_min_len(WORDS_PER_TASK.div_ceil(degree))
            .for_each(|(row, words)| {
                let (polynomial, position) = (row / stride, row % stride);
                if position < limbs {
                    f(polynomial, position, words);
                }
            });
    }

    /// Overwrites or increases all polynomials of `sum` by Σ a·b. Words of b may stand for several positions.
    fn dot_rows(
        &self,
        sum: &mut CpuBuffer,
        pairs: &[(&CpuBuffer, &CpuBuffer)],
        accumulate: bool,
        limbs: &[usize],
    ) -> Result<(), HalError> {
        let polynomials = sum.shape().polynomials;
        for (a, b) in pairs {
            self.check("mul_accumulate", limbs, &[a])?;
            self.check_operand("mul_accumulate", limbs, b)?;
            check::broadcast("mul_accumulate", polynomials, a.shape())?;
            check::broadcast("mul_accumulate", polynomials, b.shape())?;
        }
        self.for_rows(sum, polynomials, limbs.len(), |i, j, row| {
            let pick = |x: &CpuBuffer| i % x.shape().polynomials;
            let operands: Vec<_> = pairs.iter().map(|(a, b)| (a.row(pick(a), j), *b, pick(b))).collect();
            self.dot_operands(row, &operands, accumulate, j, limbs[j]);
        });
        Ok(())
    }

    /// sum ← Σ a·b, plus the sum if the flag is set, over triples of a row a, and a buffer and polynomial that b is in.
    fn dot_operands(
        &self,
        sum: &mut [u64],
        operands: &[(&[u64], &CpuBuffer, usize)],
        accumulate: bool,
        position: usize,
        index: usize,
    ) {
        let m = &self.0.rows[index];
        let whole = operands.iter().all(|(_, b, _)| b.repetition() == 1);
        let length = if whole { sum.len() } else { BLOCK_WORDS.min(sum.len()) };
        let mut scratch = vec![0; if whole { operands.len() } else { operands.len() * length }];
        for (block, sum) in sum.chunks_mut(length).enumerate() {
            let words = block * length..(block + 1) * length;
            let scratch = scratch.chunks_mut(if whole { 1 } else { length });
            let pairs: Vec<_> = operands
                .iter()
                .zip(scratch)
                .map(|(&(a, b, i), scratch)| (&a[words.clone()], b.positions(i, position, words.clone(), scratch)))
                .collect();
            (self.0.kernels.dot)(sum, &pairs, accumulate, m);
        }
    }

    fn forward_row(&self, index: usize, row: &mut [u64]) {
        self.0.transforms[index].forward(row);
    }

    /// Inverse transform times a residue.
    fn inverse_row_scaled(&self, index: usize, row: &mut [u64], factor: u64) {
        self.0.transforms[index].inverse_scaled(row, factor, &self.0.rows[index], self.0.isa);
    }

    /// Inverse transform of `source` times a residue.
    fn inverse_row_from(&self, index: usize, row: &mut [u64], source: &[u64], factor: u64) {
        self.0.transforms[index].inverse_scaled_from(row, source, factor, &self.0.rows[index], self.0.isa);
    }

    /// One multiplier a limb, from canonical residues.
    fn multipliers(
        &self,
        operation: &'static str,
        residues: &[u64],
        limbs: &[usize],
    ) -> Result<Vec<Multiplier>, HalError> {
        check::equal(operation, "residues", limbs.len(), residues.len())?;
        let moduli = limbs.iter().map(|index| self.0.tables.values[*index]);
        Ok(residues.iter().zip(moduli).map(|(r, q)| Multiplier::new(*r % q, q)).collect())
    }

    /// The transforms of the ring of lower degree whose roots of unity are powers of this one's, by table index.
    fn subring(&self, degree: usize) -> Arc<Vec<RowTransform>> {
        if let Some(transforms) = read(&self.0.subrings).get(&degree) {
            return Arc::clone(transforms);
        }
        let tables = &self.0.tables;
        let power = (tables.degree / degree) as u64;
        let roots = tables.moduli.iter().zip(&tables.roots);
        let transforms = roots.map(|(q, root)| RowTransform::with_root(self.0.isa, *q, q.pow(*root, power), degree));
        let transforms = Arc::new(transforms.collect::<Vec<_>>());
        write(&self.0.subrings).insert(degree, Arc::clone(&transforms));
        transforms
    }

    fn expander(&self, seed: &Seed) -> Expander {
        Expander::new(seed, self.0.isa.uniform_kernel())
    }

    fn q(&self, index: usize) -> u64 {
        self.0.tables.values[index]
    }
}

impl Backend for CpuBackend {
    type Buffer = CpuBuffer;

    fn new(degree: usize, moduli: &[u64]) -> Result<Self, HalError> {
        let (isa, reason) = selected_isa()?;
        Self::build(degree, moduli, isa, reason)
    }

    fn degree(&self) -> usize {
        self.0.tables.degree
    }

    fn moduli(&self) -> &[u64] {
        &self.0.tables.values
    }

    fn description(&self) -> String {
        format!("cpu {} ({})", self.0.isa.name(), self.0.reason)
    }

    fn zeros(&self, polynomials: usize, limbs: usize) -> Result<CpuBuffer, HalError> {
        let mut result = self.buffer(polynomials, limbs)?;
        self.for_rows(&mut result, polynomials, limbs, |_, _, row| row.fill(0));
        Ok(result)
    }

    fn upload(&self, data: &[u64], polynomials: usize, limbs: usize) -> Result<CpuBuffer, HalError> {
        let mut result = self.buffer(polynomials, limbs)?;
        check::equal("upload", "words", result.words().len(), data.len())?;
        result.words_mut().copy_from_slice(data);
        Ok(result)
    }

    fn download(&self, src: &CpuBuffer) -> Result<Vec<u64>, HalError> {
        check::whole("download", src)?;
        src.to_words()
    }

    fn shape(&self, src: &CpuBuffer) -> Shape {
        src.shape()
    }

    fn select(
        &self,
        src: &CpuBuffer,
        polynomials: Range<usize>,
        limb_positions: &[usize],
    ) -> Result<CpuBuffer, HalError> {
        let shape = src.shape();
        check::at_least("select", "polynomials", polynomials.end, shape.polynomials)?;
        if let Some(last) = limb_positions.iter().max() {
            check::at_least("select", "limbs", last + 1, shape.limbs)?;
        }
        let mut result = self.buffer(polynomials.len(), limb_positions.len())?;
        let count = polynomials.len();
        self.for_rows(&mut result, count, limb_positions.len(), |i, j, row| {
            with_operand(row, src, polynomials.start + i, limb_positions[j], <[u64]>::copy_from_slice);
        });
        Ok(result)
    }

    fn copy_into(
        &self,
        dst: &mut CpuBuffer,
        dst_polynomial: usize,
        dst_limb: usize,
        src: &CpuBuffer,
        polynomials: Range<usize>,
        limb_positions: Range<usize>,
    ) -> Result<(), HalError> {
        let (to, from) = (dst.shape(), src.shape());
        let name = "copy_into";
        check::whole(name, src)?;
        check::whole(name, dst)?;
        check::at_least(name, "source polynomials", polynomials.end, from.polynomials)?;
        check::at_least(name, "source limbs", limb_positions.end, from.limbs)?;
        let (last_polynomial, last_limb) = (dst_polynomial + polynomials.len(), dst_limb + limb_positions.len());
        check::at_least(name, "polynomials", last_polynomial, to.polynomials)?;
        check::at_least(name, "limbs", last_limb, to.limbs)?;
        let (degree, stride) = (self.0.tables.degree, to.limbs);
        dst.words_mut()[dst_polynomial * stride * degree..]
            .par_chunks_mut(degree)
            .take(polynomials.len() * stride)
            .enumerate()
            .with_min_len(WORDS_PER_TASK.div_ceil(degree))
            .for_each(|(row, words)| {
                let (i, position) = (row / stride, row % stride);
                if (dst_limb..last_limb).contains(&position) {
                    words.copy_from_slice(src.row(polynomials.start + i, limb_positions.start + position - dst_limb));
                }
            });
        Ok(())
    }

    fn wipe(&self, buffer: &mut CpuBuffer) {
        buffer.words_mut().zeroize();
    }

    fn add_assign(&self, dst: &mut CpuBuffer, src: &CpuBuffer, limbs: &[usize]) -> Result<(), HalError> {
        self.check_prefix("add_assign", dst, src, limbs)?;
        self.for_rows(dst, src.shape().polynomials, limbs.len(), |i, j, row| {
            let q = self.q(limbs[j]);
            with_operand(row, src, i, j, |row, src| (self.0.kernels.add)(row, src, q));
        });
        Ok(())
    }

    fn sub_assign(&self, dst: &mut CpuBuffer, src: &CpuBuffer, limbs: &[usize]) -> Result<(), HalError> {
        self.check_prefix("sub_assign", dst, src, limbs)?;
        self.for_rows(dst, src.shape().polynomials, limbs.len(), |i, j, row| {
            let q = self.q(limbs[j]);
            with_operand(row, src, i, j, |row, src| (self.0.kernels.sub)(row, src, q));
        });
        Ok(())
    }

    fn negate_assign(&self, dst: &mut CpuBuffer, limbs: &[usize]) -> Result<(), HalError> {
        self.check("negate_assign", limbs, &[dst])?;
        self.for_rows(dst, dst.shape().polynomials, limbs.len(), |_, j, row| {
            (self.0.kernels.neg)(row, self.q(limbs[j]));
        });
        Ok(())
    }

    fn mul_assign(&self, dst: &mut CpuBuffer, src: &CpuBuffer, limbs: &[usize]) -> Result<(), HalError> {
        self.check("mul_assign", limbs, &[dst])?;
        self.check_operand("mul_assign", limbs, src)?;
        let (polynomials, operands) = (dst.shape().polynomials, src.shape().polynomials);
        check::broadcast("mul_assign", polynomials, src.shape())?;
        self.for_rows(dst, polynomials, limbs.len(), |i, j, row| {
            let m = &self.0.rows[limbs[j]];
            with_operand(row, src, i % operands, j, |row, src| (self.0.kernels.mul)(row, src, m));
        });
        Ok(())
    }

    fn mul_accumulate_many(
        &self,
        acc: &mut CpuBuffer,
        pairs: &[(&CpuBuffer, &CpuBuffer)],
        limbs: &[usize],
    ) -> Result<(), HalError> {
        self.check("mul_accumulate", limbs, &[acc])?;
        self.dot_rows(acc, pairs, true, limbs)
    }

    fn mul_lifted_accumulate(
        &self,
        acc: &mut CpuBuffer,
        pairs: &[(&CpuBuffer, &[i64])],
        limbs: &[usize],
    ) -> Result<(), HalError> {
        let name = "mul_lifted_accumulate";
        self.check(name, limbs, &[acc])?;
        for (a, coefficients) in pairs {
            self.check(name, limbs, &[a])?;
            check::broadcast(name, acc.shape().polynomials, a.shape())?;
            check::equal(name, "coefficients", self.0.tables.degree, coefficients.len())?;
        }
        self.dot_lifted(acc, pairs, limbs);
        Ok(())
    }

    fn sum_of_products(
        &self,
        polynomials: usize,
        pairs: &[(&CpuBuffer, &CpuBuffer)],
        limbs: &[usize],
    ) -> Result<CpuBuffer, HalError> {
        let mut sum = self.buffer(polynomials, limbs.len())?;
        self.dot_rows(&mut sum, pairs, false, limbs)?;
        Ok(sum)
    }

    fn mul_scalar_assign(&self, dst: &mut CpuBuffer, residues: &[u64], limbs: &[usize]) -> Result<(), HalError> {
        self.check("mul_scalar_assign", limbs, &[dst])?;
        let factors = self.multipliers("mul_scalar_assign", residues, limbs)?;
        self.for_rows(dst, dst.shape().polynomials, limbs.len(), |_, j, row| {
            (self.0.kernels.scale)(row, factors[j], self.q(limbs[j]));
        });
        Ok(())
    }

    fn mul_scalar_accumulate(
        &self,
        acc: &mut CpuBuffer,
        a: &CpuBuffer,
        polynomials: usize,
        residues: &[u64],
        limbs: &[usize],
    ) -> Result<(), HalError> {
        let name = "mul_scalar_accumulate";
        self.check(name, limbs, &[acc, a])?;
        check::at_least(name, "polynomials", polynomials, acc.shape().polynomials.min(a.shape().polynomials))?;
        let factors = self.multipliers(name, residues, limbs)?;
        self.for_rows(acc, polynomials, limbs.len(), |i, j, row| {
            (self.0.kernels.scale_add)(row, a.row(i, j), factors[j], self.q(limbs[j]));
        });
        Ok(())
    }

    fn linear_combination(
        &self,
        polynomials: usize,
        terms: &[(&CpuBuffer, &[u64])],
        limbs: &[usize],
    ) -> Result<CpuBuffer, HalError> {
        let name = "linear_combination";
        self.check(name, limbs, &[])?;
        for (a, residues) in terms {
            self.check(name, limbs, &[a])?;
            check::equal(name, "residues", limbs.len(), residues.len())?;
            check::at_least(name, "polynomials", polynomials, a.shape().polynomials)?;
        }
        if terms.is_empty() {
            return self.zeros(polynomials, limbs.len());
        }
        let mut result = self.buffer(polynomials, limbs.len())?;
        let length = BLOCK_WORDS.min(self.0.tables.degree);
        self.for_rows(&mut result, polynomials, limbs.len(), |i, j, row| {
            let constants: Vec<_> = terms.iter().map(|(_, residues)| residues[j] % self.q(limbs[j])).collect();
            for (block, sum) in row.chunks_mut(length).enumerate() {
                let words = block * length..(block + 1) * length;
                let sources: Vec<_> = terms.iter().map(|(a, _)| &a.row(i, j)[words.clone()]).collect();
                (self.0.kernels.combine)(sum, &sources, &constants, &[], Reduction::Full, &self.0.rows[limbs[j]]);
            }
        });
        Ok(result)
    }

    fn add_scalar_assign(
        &self,
        dst: &mut CpuBuffer,
        polynomial: usize,
        residues: &[u64],
        limbs: &[usize],
    ) -> Result<(), HalError> {
        let name = "add_scalar_assign";
        self.check(name, limbs, &[dst])?;
        check::equal(name, "residues", limbs.len(), residues.len())?;
        check::at_least(name, "polynomials", polynomial + 1, dst.shape().polynomials)?;
        for (j, index) in limbs.iter().enumerate() {
            let row = dst.row_mut(polynomial, j);
            (self.0.kernels.add_constant)(row, residues[j], self.q(*index));
        }
        Ok(())
    }

    fn expand_uniform(&self, seed: &Seed, polynomials: usize, limbs: &[usize]) -> Result<CpuBuffer, HalError> {
        self.check("expand_uniform", limbs, &[])?;
        let expander = self.expander(seed);
        let mut result = self.buffer(polynomials, limbs.len())?;
        self.for_rows(&mut result, polynomials, limbs.len(), |i, j, row| {
            expander.fill(expander.row(i, limbs[j], self.q(limbs[j])), 0, row);
        });
        Ok(result)
    }

    fn expands_fast(&self) -> bool {
        self.0.isa.uniform_kernel().is_some()
    }

    fn forward_ntt(&self, dst: &mut CpuBuffer, limbs: &[usize]) -> Result<(), HalError> {
        self.check("forward_ntt", limbs, &[dst])?;
        self.for_rows(dst, dst.shape().polynomials, limbs.len(), |_, j, row| {
            self.forward_row(limbs[j], row);
        });
        Ok(())
    }

    fn inverse_ntt(&self, dst: &mut CpuBuffer, limbs: &[usize]) -> Result<(), HalError> {
        self.check("inverse_ntt", limbs, &[dst])?;
        self.for_rows(dst, dst.shape().polynomials, limbs.len(), |_, j, row| {
            self.inverse_row_scaled(limbs[j], row, 1);
        });
        Ok(())
    }

    fn automorphism(&self, src: &CpuBuffer, galois_element: usize, limbs: &[usize]) -> Result<CpuBuffer, HalError> {
        let permutation = self.0.tables.automorphism(galois_element)?;
        self.check("automorphism", limbs, &[src])?;
        let polynomials = src.shape().polynomials;
        let mut result = self.buffer(polynomials, limbs.len())?;
        self.for_rows(&mut result, polynomials, limbs.len(), |i, j, row| {
            (self.0.kernels.permute)(row, src.row(i, j), permutation.whole());
        });
        Ok(result)
    }

    fn automorphism_accumulate(
        &self,
        acc: &mut CpuBuffer,
        src: &CpuBuffer,
        galois_element: usize,
        limbs: &[usize],
    ) -> Result<(), HalError> {
        let permutation = self.0.tables.automorphism(galois_element)?;
        self.check_prefix("automorphism_accumulate", acc, src, limbs)?;
        self.for_rows(acc, src.shape().polynomials, limbs.len(), |i, j, row| {
            (self.0.kernels.permute_add)(row, src.row(i, j), permutation.whole(), self.q(limbs[j]));
        });
        Ok(())
    }

    fn lift_signed(&self, coefficients: &[i64], limbs: &[usize]) -> Result<CpuBuffer, HalError> {
        self.lift(coefficients, limbs)
    }

    fn lift_repeated(&self, coefficients: &[i64], limbs: &[usize]) -> Result<CpuBuffer, HalError> {
        self.lift_subring("lift_repeated", coefficients, limbs, |row, coefficients, index| {
            self.lift_row(row, coefficients, index);
        })
    }

    fn lift_repeated_wide(&self, coefficients: &[i128], limbs: &[usize]) -> Result<CpuBuffer, HalError> {
        self.lift_subring("lift_repeated_wide", coefficients, limbs, |row, coefficients, index| {
            self.lift_wide_row(row, coefficients, index);
        })
    }

    fn bytes(&self, src: &CpuBuffer) -> u64 {
        size_of_val(src.words()) as u64
    }

    fn convert_basis(
        &self,
        src: &CpuBuffer,
        from: &[usize],
        to: &[usize],
        representative: Representative,
    ) -> Result<CpuBuffer, HalError> {
        self.convert(src, from, to, representative)
    }

    fn decompose(
        &self,
        src: &CpuBuffer,
        polynomial: usize,
        limbs: &[usize],
        special: &[usize],
        alpha: usize,
    ) -> Result<CpuBuffer, HalError> {
        self.extend_digits(src, polynomial, limbs, special, alpha)
    }

    fn inner_product(
        &self,
        digits: &CpuBuffer,
        key: &KeyView<'_, CpuBuffer>,
        addend: Option<&Addend<'_, CpuBuffer>>,
        galois_element: usize,
        limbs: &[usize],
    ) -> Result<CpuBuffer, HalError> {
        let mut result = self.buffer(2, limbs.len())?;
        self.key_product(&mut result, false, digits, key, addend, galois_element, limbs)?;
        Ok(result)
    }

    fn inner_product_accumulate(
        &self,
        acc: &mut CpuBuffer,
        digits: &CpuBuffer,
        key: &KeyView<'_, CpuBuffer>,
        addend: Option<&Addend<'_, CpuBuffer>>,
        galois_element: usize,
        limbs: &[usize],
    ) -> Result<(), HalError> {
        self.key_product(acc, true, digits, key, addend, galois_element, limbs)
    }

    fn hoisted_sums(
        &self,
        digits: &CpuBuffer,
        source: &Addend<'_, CpuBuffer>,
        rotations: &[HoistedRotation<'_, CpuBuffer>],
        groups: &[Vec<(usize, &CpuBuffer)>],
        limbs: &[usize],
    ) -> Result<Vec<CpuBuffer>, HalError> {
        self.rotated_sums(digits, source, rotations, groups, limbs)
    }

    fn hoisted_sum(
        &self,
        digits: &CpuBuffer,
        source: &Addend<'_, CpuBuffer>,
        rotations: &[HoistedRotation<'_, CpuBuffer>],
        limbs: &[usize],
    ) -> Result<CpuBuffer, HalError> {
        self.rotations_sum(digits, source, rotations, limbs)
    }

    fn mod_down(&self, src: &CpuBuffer, keep: &[usize], drop: &[usize]) -> Result<CpuBuffer, HalError> {
        self.divide(src, keep, drop)
    }

    fn tensor(&self, a: &CpuBuffer, b: &CpuBuffer, limbs: &[usize]) -> Result<CpuBuffer, HalError> {
        self.tensor_product(a, b, limbs)
    }
}

/// Runs `f(words, operand)` on a row and a row of `src`: at once, or block by block where `src` has to be expanded.
fn with_operand(row: &mut [u64], src: &CpuBuffer, polynomial: usize, position: usize, f: impl Fn(&mut [u64], &[u64])) {
    if src.repetition() == 1 {
        return f(row, src.row(polynomial, position));
    }
    let mut scratch = [0; BLOCK_WORDS];
    let length = BLOCK_WORDS.min(row.len());
    for (block, words) in row.chunks_mut(length).enumerate() {
        let positions = block * length..(block + 1) * length;
        f(words, src.positions(polynomial, position, positions, &mut scratch));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::primes::primes_of_bits;

    #[test]
    fn a_wiped_buffer_leaves_nothing_in_the_pool() {
        let degree = 1 << 12;
        let backend = CpuBackend::new(degree, &primes_of_bits(40, degree, 2, &[]).unwrap()).unwrap();
        let released = |wipe: bool| {
            let mut secret = backend.upload(&vec![7; 2 * degree], 1, 2).unwrap();
            if wipe {
                backend.wipe(&mut secret);
            }
            drop(secret);
            backend.buffer(1, 2).unwrap().words().to_vec()
        };
        assert_eq!(released(false), vec![7; 2 * degree], "the pool recycles");
        assert_eq!(released(true), vec![0; 2 * degree]);
    }
}
