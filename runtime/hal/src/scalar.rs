//! The reference backend: every primitive in its plainest form.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use zeroize::Zeroize;

use crate::ntt::ScalarTransform;
use crate::tables::Tables;
use crate::uniform::Expander;
use crate::{Addend, Backend, CpuBuffer, HalError, KeyView, Modulus, Representative, Seed, Shape, UniformHalf, check};

/// Scalar arithmetic, one residue at a time. Defines the results of every backend.
#[derive(Clone)]
pub struct ScalarBackend {
    tables: Arc<Tables>,
    transforms: Arc<[ScalarTransform]>,
}

impl fmt::Debug for ScalarBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScalarBackend")
            .field("degree", &self.tables.degree)
            .field("moduli", &self.tables.values)
            .finish_non_exhaustive()
    }
}

impl ScalarBackend {
    fn modulus(&self, index: usize) -> Modulus {
        self.tables.moduli[index]
    }

    fn check(&self, operation: &'static str, limbs: &[usize], buffers: &[&CpuBuffer]) -> Result<(), HalError> {
        check::limbs(operation, limbs, self.tables.moduli.len())?;
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

    /// dst ← f(q, dst, src) position by position, on the first polynomials if `src` has fewer.
    fn zip(
        &self,
        operation: &'static str,
        dst: &mut CpuBuffer,
        src: &CpuBuffer,
        limbs: &[usize],
        f: impl Fn(&Modulus, u64, u64) -> u64,
    ) -> Result<(), HalError> {
        self.check(operation, limbs, &[dst])?;
        self.check_operand(operation, limbs, src)?;
        check::at_least(operation, "polynomials", src.shape().polynomials, dst.shape().polynomials)?;
        let repetition = src.repetition();
        for polynomial in 0..src.shape().polynomials {
            for (position, index) in limbs.iter().enumerate() {
                let q = self.modulus(*index);
                let src = src.row(polynomial, position);
                for (i, d) in dst.row_mut(polynomial, position).iter_mut().enumerate() {
                    *d = f(&q, *d, src[i / repetition]);
                }
            }
        }
        Ok(())
    }

    fn gather(
        &self,
        operation: &'static str,
        dst: &mut CpuBuffer,
        src: &CpuBuffer,
        galois_element: usize,
        limbs: &[usize],
        f: impl Fn(&Modulus, u64, u64) -> u64,
    ) -> Result<(), HalError> {
        let automorphism = self.tables.automorphism(galois_element)?;
        let permutation = automorphism.whole();
        self.check(operation, limbs, &[dst, src])?;
        check::at_least(operation, "polynomials", src.shape().polynomials, dst.shape().polynomials)?;
        for polynomial in 0..src.shape().polynomials {
            for (position, index) in limbs.iter().enumerate() {
                let q = self.modulus(*index);
                let src = src.row(polynomial, position);
                let dst = dst.row_mut(polynomial, position);
                for (i, d) in dst.iter_mut().enumerate() {
                    *d = f(&q, *d, src[permutation.source(i)]);
                }
            }
        }
        Ok(())
    }

    /// The plain transform of a ring of lower degree, whose root of unity is a power of this one's.
    fn lift_subring<T: Copy>(
        &self,
        operation: &'static str,
        coefficients: &[T],
        limbs: &[usize],
        reduce: impl Fn(&Modulus, T) -> u64,
    ) -> Result<CpuBuffer, HalError> {
        self.check(operation, limbs, &[])?;
        let degree = coefficients.len();
        let repetition = check::repetition(operation, self.tables.degree, degree)?;
        let mut result = CpuBuffer::repeated(&self.tables.pool, 1, limbs.len(), degree, repetition)?;
        for (position, index) in limbs.iter().enumerate() {
            let q = self.modulus(*index);
            let row = result.row_mut(0, position);
            for (d, c) in row.iter_mut().zip(coefficients) {
                *d = reduce(&q, *c);
            }
            let root = q.pow(self.tables.roots[*index], repetition as u64);
            ScalarTransform::new(q, root, degree).forward(row);
        }
        Ok(result)
    }

    fn check_residues(operation: &'static str, residues: &[u64], limbs: &[usize]) -> Result<(), HalError> {
        check::equal(operation, "residues", limbs.len(), residues.len())
    }
}

impl Backend for ScalarBackend {
    type Buffer = CpuBuffer;

    fn new(degree: usize, moduli: &[u64]) -> Result<Self, HalError> {
        let (tables, _) = Tables::new(degree, moduli)?;
        Ok(Self { transforms: tables.scalar_transforms().into(), tables: Arc::new(tables) })
    }

    fn degree(&self) -> usize {
        self.tables.degree
    }

    fn moduli(&self) -> &[u64] {
        &self.tables.values
    }

    fn description(&self) -> String {
        "cpu scalar (reference)".to_owned()
    }

    fn zeros(&self, polynomials: usize, limbs: usize) -> Result<CpuBuffer, HalError> {
        CpuBuffer::zeros(&self.tables.pool, polynomials, limbs, self.tables.degree)
    }

    fn upload(&self, data: &[u64], polynomials: usize, limbs: usize) -> Result<CpuBuffer, HalError> {
        let mut result = self.zeros(polynomials, limbs)?;
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
        let mut result = self.zeros(polynomials.len(), limb_positions.len())?;
        for (to, from) in polynomials.enumerate() {
            for (position, source) in limb_positions.iter().enumerate() {
                let row = src.row(from, *source);
                for (i, word) in result.row_mut(to, position).iter_mut().enumerate() {
                    *word = row[i / src.repetition()];
                }
            }
        }
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
        check::at_least(name, "polynomials", dst_polynomial + polynomials.len(), to.polynomials)?;
        check::at_least(name, "limbs", dst_limb + limb_positions.len(), to.limbs)?;
        for (i, polynomial) in polynomials.enumerate() {
            for (j, position) in limb_positions.clone().enumerate() {
                dst.row_mut(dst_polynomial + i, dst_limb + j).copy_from_slice(src.row(polynomial, position));
            }
        }
        Ok(())
    }

    fn wipe(&self, buffer: &mut CpuBuffer) {
        buffer.words_mut().zeroize();
    }

    fn add_assign(&self, dst: &mut CpuBuffer, src: &CpuBuffer, limbs: &[usize]) -> Result<(), HalError> {
        self.zip("add_assign", dst, src, limbs, Modulus::add)
    }

    fn sub_assign(&self, dst: &mut CpuBuffer, src: &CpuBuffer, limbs: &[usize]) -> Result<(), HalError> {
        self.zip("sub_assign", dst, src, limbs, Modulus::sub)
    }

    fn negate_assign(&self, dst: &mut CpuBuffer, limbs: &[usize]) -> Result<(), HalError> {
        self.check("negate_assign", limbs, &[dst])?;
        for polynomial in 0..dst.shape().polynomials {
            for (position, index) in limbs.iter().enumerate() {
                let q = self.modulus(*index);
                for d in dst.row_mut(polynomial, position) {
                    *d = q.neg(*d);
                }
            }
        }
        Ok(())
    }

    fn mul_assign(&self, dst: &mut CpuBuffer, src: &CpuBuffer, limbs: &[usize]) -> Result<(), HalError> {
        self.check("mul_assign", limbs, &[dst])?;
        self.check_operand("mul_assign", limbs, src)?;
        check::broadcast("mul_assign", dst.shape().polynomials, src.shape())?;
        let repetition = src.repetition();
        for polynomial in 0..dst.shape().polynomials {
            for (position, index) in limbs.iter().enumerate() {
                let q = self.modulus(*index);
                let src = src.row(polynomial % src.shape().polynomials, position);
                for (i, d) in dst.row_mut(polynomial, position).iter_mut().enumerate() {
                    *d = q.mul(*d, src[i / repetition]);
                }
            }
        }
        Ok(())
    }

    fn mul_accumulate_many(
        &self,
        acc: &mut CpuBuffer,
        pairs: &[(&CpuBuffer, &CpuBuffer)],
        limbs: &[usize],
    ) -> Result<(), HalError> {
        let polynomials = acc.shape().polynomials;
        for (a, b) in pairs {
            self.check("mul_accumulate", limbs, &[acc, a])?;
            self.check_operand("mul_accumulate", limbs, b)?;
            check::broadcast("mul_accumulate", polynomials, a.shape())?;
            check::broadcast("mul_accumulate", polynomials, b.shape())?;
        }
        for (a, b) in pairs {
            for polynomial in 0..polynomials {
                for (position, index) in limbs.iter().enumerate() {
                    let q = self.modulus(*index);
                    let repetition = b.repetition();
                    let a = a.row(polynomial % a.shape().polynomials, position);
                    let b = b.row(polynomial % b.shape().polynomials, position);
                    let acc = acc.row_mut(polynomial, position);
                    for (i, (d, x)) in acc.iter_mut().zip(a).enumerate() {
                        *d = q.add(*d, q.mul(*x, b[i / repetition]));
                    }
                }
            }
        }
        Ok(())
    }

    fn mul_scalar_assign(&self, dst: &mut CpuBuffer, residues: &[u64], limbs: &[usize]) -> Result<(), HalError> {
        self.check("mul_scalar_assign", limbs, &[dst])?;
        Self::check_residues("mul_scalar_assign", residues, limbs)?;
        for polynomial in 0..dst.shape().polynomials {
            for (position, index) in limbs.iter().enumerate() {
                let q = self.modulus(*index);
                for d in dst.row_mut(polynomial, position) {
                    *d = q.mul(*d, residues[position]);
                }
            }
        }
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
        Self::check_residues(name, residues, limbs)?;
        check::at_least(name, "polynomials", polynomials, acc.shape().polynomials.min(a.shape().polynomials))?;
        for polynomial in 0..polynomials {
            for (position, index) in limbs.iter().enumerate() {
                let q = self.modulus(*index);
                let a = a.row(polynomial, position);
                for (d, x) in acc.row_mut(polynomial, position).iter_mut().zip(a) {
                    *d = q.add(*d, q.mul(*x, residues[position]));
                }
            }
        }
        Ok(())
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
        Self::check_residues(name, residues, limbs)?;
        check::at_least(name, "polynomials", polynomial + 1, dst.shape().polynomials)?;
        for (position, index) in limbs.iter().enumerate() {
            let q = self.modulus(*index);
            for d in dst.row_mut(polynomial, position) {
                *d = q.add(*d, residues[position]);
            }
        }
        Ok(())
    }

    fn expand_uniform(&self, seed: &Seed, polynomials: usize, limbs: &[usize]) -> Result<CpuBuffer, HalError> {
        self.check("expand_uniform", limbs, &[])?;
        let mut result = self.zeros(polynomials, limbs.len())?;
        let expander = Expander::new(seed, None);
        for polynomial in 0..polynomials {
            for (position, index) in limbs.iter().enumerate() {
                let row = expander.row(polynomial, *index, self.tables.values[*index]);
                expander.fill(row, 0, result.row_mut(polynomial, position));
            }
        }
        Ok(result)
    }

    fn forward_ntt(&self, dst: &mut CpuBuffer, limbs: &[usize]) -> Result<(), HalError> {
        self.check("forward_ntt", limbs, &[dst])?;
        for polynomial in 0..dst.shape().polynomials {
            for (position, index) in limbs.iter().enumerate() {
                self.transforms[*index].forward(dst.row_mut(polynomial, position));
            }
        }
        Ok(())
    }

    fn inverse_ntt(&self, dst: &mut CpuBuffer, limbs: &[usize]) -> Result<(), HalError> {
        self.check("inverse_ntt", limbs, &[dst])?;
        for polynomial in 0..dst.shape().polynomials {
            for (position, index) in limbs.iter().enumerate() {
                self.transforms[*index].inverse(dst.row_mut(polynomial, position));
            }
        }
        Ok(())
    }

    fn automorphism(&self, src: &CpuBuffer, galois_element: usize, limbs: &[usize]) -> Result<CpuBuffer, HalError> {
        let mut result = self.zeros(src.shape().polynomials, limbs.len())?;
        self.gather("automorphism", &mut result, src, galois_element, limbs, |_, _, s| s)?;
        Ok(result)
    }

    fn automorphism_accumulate(
        &self,
        acc: &mut CpuBuffer,
        src: &CpuBuffer,
        galois_element: usize,
        limbs: &[usize],
    ) -> Result<(), HalError> {
        self.gather("automorphism_accumulate", acc, src, galois_element, limbs, Modulus::add)
    }

    fn lift_signed(&self, coefficients: &[i64], limbs: &[usize]) -> Result<CpuBuffer, HalError> {
        self.check("lift_signed", limbs, &[])?;
        let degree = self.tables.degree;
        let polynomials = coefficients.len() / degree;
        check::equal("lift_signed", "coefficients", polynomials * degree, coefficients.len())?;
        let mut result = CpuBuffer::zeros(&self.tables.pool, polynomials, limbs.len(), degree)?;
        for (polynomial, coefficients) in coefficients.chunks(degree).enumerate() {
            for (position, index) in limbs.iter().enumerate() {
                let q = self.modulus(*index);
                for (d, c) in result.row_mut(polynomial, position).iter_mut().zip(coefficients) {
                    *d = q.reduce_signed(*c);
                }
            }
        }
        Ok(result)
    }

    fn lift_repeated(&self, coefficients: &[i64], limbs: &[usize]) -> Result<CpuBuffer, HalError> {
        self.lift_subring("lift_repeated", coefficients, limbs, Modulus::reduce_signed)
    }

    fn lift_repeated_wide(&self, coefficients: &[i128], limbs: &[usize]) -> Result<CpuBuffer, HalError> {
        self.lift_subring("lift_repeated_wide", coefficients, limbs, Modulus::reduce_signed_wide)
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
        self.check("convert_basis", from, &[src])?;
        self.check("convert_basis", to, &[])?;
        let table = self.tables.conversion(from, to);
        let degree = self.tables.degree;
        let polynomials = src.shape().polynomials;
        let mut result = CpuBuffer::zeros(&self.tables.pool, polynomials, to.len(), degree)?;
        let mut y = vec![0; from.len()];
        for polynomial in 0..polynomials {
            for k in 0..degree {
                let mut fraction = match representative {
                    Representative::Approximate => 0.0,
                    Representative::Centred => 0.5,
                };
                for (i, index) in from.iter().enumerate() {
                    let q = self.modulus(*index);
                    y[i] = q.mul(src.row(polynomial, i)[k], table.punctured_inverse[i]);
                    if representative == Representative::Centred {
                        fraction += y[i] as f64 * table.reciprocal[i];
                    }
                }
                let overflow = fraction as u64;
                for (j, index) in to.iter().enumerate() {
                    let p = self.modulus(*index);
                    let mut sum = p.mul(p.reduce(overflow), table.constants[j][from.len()]);
                    for (y, c) in y.iter().zip(&table.constants[j]) {
                        sum = p.add(sum, p.mul(p.reduce(*y), *c));
                    }
                    result.row_mut(polynomial, j)[k] = sum;
                }
            }
        }
        Ok(result)
    }

    fn decompose(
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
        let digits = limbs.len().div_ceil(alpha);
        let mut result = self.zeros(digits, extended.len())?;
        for digit in 0..digits {
            let own: Vec<usize> = (digit * alpha..limbs.len().min((digit + 1) * alpha)).collect();
            let own_limbs = &limbs[own[0]..own[0] + own.len()];
            let mut part = self.select(src, polynomial..polynomial + 1, &own)?;
            self.inverse_ntt(&mut part, own_limbs)?;
            let mut lifted = self.convert_basis(&part, own_limbs, &extended, Representative::Centred)?;
            self.forward_ntt(&mut lifted, &extended)?;
            self.copy_into(&mut result, digit, 0, &lifted, 0..1, 0..extended.len())?;
        }
        Ok(result)
    }

    fn inner_product(
        &self,
        digits: &CpuBuffer,
        key: &KeyView<'_, CpuBuffer>,
        addend: Option<&Addend<'_, CpuBuffer>>,
        galois_element: usize,
        limbs: &[usize],
    ) -> Result<CpuBuffer, HalError> {
        let name = "inner_product";
        self.check(name, limbs, &[digits])?;
        check::equal(name, "key positions", limbs.len(), key.positions.len())?;
        let count = digits.shape().polynomials;
        let digits = self.automorphism(digits, galois_element, limbs)?;
        let mut sums = self.zeros(2, limbs.len())?;
        let in_order: Vec<usize> = (0..limbs.len()).collect();
        let expanded;
        let (uniform, uniform_positions) = match key.a {
            UniformHalf::Stored(a) => (a, &key.positions),
            UniformHalf::Seeded(seed) => {
                expanded = self.expand_uniform(seed, count, limbs)?;
                (&expanded, &in_order)
            }
        };
        for (half, (key_half, positions)) in [(key.b, &key.positions), (uniform, uniform_positions)].iter().enumerate()
        {
            check::at_least(name, "digits of the key", count, key_half.shape().polynomials)?;
            for (position, (index, key_position)) in limbs.iter().zip(*positions).enumerate() {
                check::at_least(name, "limbs of the key", key_position + 1, key_half.shape().limbs)?;
                let q = self.modulus(*index);
                let sum = sums.row_mut(half, position);
                for digit in 0..count {
                    let pairs = digits.row(digit, position).iter().zip(key_half.row(digit, *key_position));
                    for (s, (d, k)) in sum.iter_mut().zip(pairs) {
                        *s = q.add(*s, q.mul(*d, *k));
                    }
                }
            }
        }
        if let Some(addend) = addend {
            check::at_least(name, "limbs", addend.factors.len(), limbs.len())?;
            let covered = &limbs[..addend.factors.len()];
            let turned = self.automorphism(addend.source, galois_element, covered)?;
            self.mul_scalar_accumulate(&mut sums, &turned, addend.polynomials, addend.factors, covered)?;
        }
        Ok(sums)
    }

    fn mod_down(&self, src: &CpuBuffer, keep: &[usize], drop: &[usize]) -> Result<CpuBuffer, HalError> {
        let name = "mod_down";
        let all = [keep, drop].concat();
        self.check(name, keep, &[])?;
        self.check(name, drop, &[])?;
        self.check(name, &all, &[src])?;
        let polynomials = src.shape().polynomials;
        let positions: Vec<usize> = (0..all.len()).collect();
        let (kept, dropped) = positions.split_at(keep.len());
        let mut remainder = self.select(src, 0..polynomials, dropped)?;
        self.inverse_ntt(&mut remainder, drop)?;
        let mut remainder = self.convert_basis(&remainder, drop, keep, Representative::Centred)?;
        self.forward_ntt(&mut remainder, keep)?;
        let mut result = self.select(src, 0..polynomials, kept)?;
        self.sub_assign(&mut result, &remainder, keep)?;
        let inverses = self.tables.quotient_constants(keep, drop);
        self.mul_scalar_assign(&mut result, &inverses, keep)?;
        Ok(result)
    }
}
