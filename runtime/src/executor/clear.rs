//! The ckks stage in the clear: exact complex slots, with the levels kept as a ledger.

use cachemir_ir::chebyshev;
use cachemir_ir::ckks::{Bootstrap, CiphertextType, Levels, polynomial_depth};
use cachemir_ir::slots::Chebyshev;
use num_complex::Complex64;

use super::Algebra;
use crate::Error;

/// Slots in the clear, with the level and scale that a ciphertext would have.
#[derive(Clone, Debug, PartialEq)]
pub struct ClearCiphertext {
    /// Values of the n slots.
    pub slots: Vec<Complex64>,
    /// Level that the ciphertext would have.
    pub level: u32,
    /// Whether it would await its rescale.
    pub product: bool,
}

impl ClearCiphertext {
    /// A fresh ciphertext of real values.
    pub fn fresh(values: &[f64], level: u32) -> Self {
        Self { slots: values.iter().map(|&value| value.into()).collect(), level, product: false }
    }

    /// The largest absolute value of a slot.
    pub fn max_abs(&self) -> f64 {
        self.slots.iter().map(|slot| slot.re.abs().max(slot.im.abs())).fold(0.0, f64::max)
    }

    fn map(&self, level: u32, product: bool, f: impl Fn(usize, Complex64) -> Complex64) -> Self {
        let slots = self.slots.iter().enumerate().map(|(index, &slot)| f(index, slot)).collect();
        Self { slots, level, product }
    }
}

/// A plaintext vector in the clear.
#[derive(Clone, Debug, PartialEq)]
pub enum ClearPlaintext {
    /// Real values.
    Real(Vec<f64>),
    /// Complex values.
    Complex(Vec<Complex64>),
}

impl ClearPlaintext {
    /// Complex values, by their parts.
    fn complex(real: &[f64], imaginary: &[f64]) -> Self {
        Self::Complex(real.iter().zip(imaginary).map(|(&re, &im)| Complex64::new(re, im)).collect())
    }
}

/// Arithmetic in the clear, without noise.
#[derive(Clone, Copy, Debug)]
pub struct Clear {
    slots: usize,
    levels: Levels,
}

impl Clear {
    /// Arithmetic on `slots` slots; a bootstrap gives `levels.output`.
    pub fn new(slots: usize, levels: Levels) -> Self {
        Self { slots, levels }
    }
}

/// The polynomial at a complex point.
fn evaluate(polynomial: &Chebyshev, x: Complex64) -> Complex64 {
    let [low, high] = polynomial.interval;
    let u = (x * 2.0 - low - high) / (high - low);
    chebyshev::value(&polynomial.coefficients, u)
}

impl Algebra for Clear {
    type Ciphertext = ClearCiphertext;
    type Decomposition = ();
    type Plaintext = ClearPlaintext;
    type Extended = ClearCiphertext;

    fn slots(&self) -> usize {
        self.slots
    }

    fn level(&self, a: &ClearCiphertext) -> (u32, bool) {
        (a.level, a.product)
    }

    fn duplicate(&self, a: &ClearCiphertext) -> Result<ClearCiphertext, Error> {
        Ok(a.clone())
    }

    fn zero(&self, ty: &CiphertextType) -> Result<ClearCiphertext, Error> {
        Ok(ClearCiphertext { slots: vec![Complex64::ZERO; self.slots], level: ty.level, product: ty.product })
    }

    fn add_assign(&self, a: &mut ClearCiphertext, b: &ClearCiphertext) -> Result<(), Error> {
        a.slots.iter_mut().zip(&b.slots).for_each(|(x, y)| *x += y);
        Ok(())
    }

    fn subtract_assign(&self, a: &mut ClearCiphertext, b: &ClearCiphertext) -> Result<(), Error> {
        a.slots.iter_mut().zip(&b.slots).for_each(|(x, y)| *x -= y);
        Ok(())
    }

    fn multiply(&self, a: &ClearCiphertext, b: &ClearCiphertext) -> Result<ClearCiphertext, Error> {
        Ok(a.map(a.level, true, |index, slot| slot * b.slots[index]))
    }

    fn encode_factor(&self, values: &[f64], _level: u32) -> Result<ClearPlaintext, Error> {
        Ok(ClearPlaintext::Real(values.to_vec()))
    }

    fn encode_complex_factor(&self, real: &[f64], imaginary: &[f64], _level: u32) -> Result<ClearPlaintext, Error> {
        Ok(ClearPlaintext::complex(real, imaginary))
    }

    fn encode_summand(&self, values: &[f64], _level: u32, _product: bool) -> Result<ClearPlaintext, Error> {
        Ok(ClearPlaintext::Real(values.to_vec()))
    }

    fn plaintext_bytes(&self, plain: &ClearPlaintext) -> usize {
        match plain {
            ClearPlaintext::Real(values) => size_of_val(values.as_slice()),
            ClearPlaintext::Complex(values) => size_of_val(values.as_slice()),
        }
    }

    fn multiply_plain(&self, a: &ClearCiphertext, plain: &ClearPlaintext) -> Result<ClearCiphertext, Error> {
        Ok(match plain {
            ClearPlaintext::Real(values) => a.map(a.level, true, |index, slot| slot * values[index]),
            ClearPlaintext::Complex(values) => a.map(a.level, true, |index, slot| slot * values[index]),
        })
    }

    fn multiply_plain_accumulate(
        &self,
        sum: &mut ClearCiphertext,
        terms: &[(&ClearCiphertext, &ClearPlaintext)],
    ) -> Result<(), Error> {
        for (a, plain) in terms {
            let slots = sum.slots.iter_mut().zip(&a.slots);
            match plain {
                ClearPlaintext::Real(values) => slots.zip(values).for_each(|((sum, a), value)| *sum += a * value),
                ClearPlaintext::Complex(values) => slots.zip(values).for_each(|((sum, a), value)| *sum += a * value),
            }
        }
        Ok(())
    }

    fn add_plain_assign(&self, a: &mut ClearCiphertext, plain: &ClearPlaintext) -> Result<(), Error> {
        match plain {
            ClearPlaintext::Real(values) => a.slots.iter_mut().zip(values).for_each(|(x, y)| *x += y),
            ClearPlaintext::Complex(values) => a.slots.iter_mut().zip(values).for_each(|(x, y)| *x += y),
        }
        Ok(())
    }

    fn multiply_scalar(&self, a: &ClearCiphertext, factor: f64) -> Result<ClearCiphertext, Error> {
        Ok(a.map(a.level, true, |_, slot| slot * factor))
    }

    fn multiply_integer_assign(&self, a: &mut ClearCiphertext, factor: i64) -> Result<(), Error> {
        a.slots.iter_mut().for_each(|slot| *slot *= factor as f64);
        Ok(())
    }

    fn multiply_by_i_assign(&self, a: &mut ClearCiphertext) -> Result<(), Error> {
        a.slots.iter_mut().for_each(|slot| *slot *= Complex64::I);
        Ok(())
    }

    fn rescale_assign(&self, a: &mut ClearCiphertext) -> Result<(), Error> {
        a.level = a.level.checked_sub(1).ok_or_else(|| Error::execution("a rescale at level 0"))?;
        a.product = false;
        Ok(())
    }

    fn drop_levels(&self, a: &ClearCiphertext, to: u32) -> Result<ClearCiphertext, Error> {
        Ok(ClearCiphertext { level: to, ..a.clone() })
    }

    fn rotate(&self, a: &ClearCiphertext, by: usize) -> Result<ClearCiphertext, Error> {
        let mut rotated = a.clone();
        rotated.slots.rotate_left(by);
        Ok(rotated)
    }

    fn decompose(&self, _a: &ClearCiphertext) -> Result<(), Error> {
        Ok(())
    }

    fn rotate_decomposed(&self, a: &ClearCiphertext, _decomposition: &(), by: usize) -> Result<ClearCiphertext, Error> {
        self.rotate(a, by)
    }

    fn extend(&self, a: ClearCiphertext) -> Result<ClearCiphertext, Error> {
        Ok(a)
    }

    fn add_rotated(&self, sum: &mut ClearCiphertext, a: &ClearCiphertext, by: usize) -> Result<(), Error> {
        self.add_assign(sum, &self.rotate(a, by)?)
    }

    fn rescale_extended(&self, mut sum: ClearCiphertext) -> Result<ClearCiphertext, Error> {
        self.rescale_assign(&mut sum)?;
        Ok(sum)
    }

    fn conjugate(&self, a: &ClearCiphertext) -> Result<ClearCiphertext, Error> {
        Ok(a.map(a.level, a.product, |_, slot| slot.conj()))
    }

    fn polynomial(
        &self,
        a: &ClearCiphertext,
        polynomial: &Chebyshev,
        mask: Option<&[f64]>,
    ) -> Result<ClearCiphertext, Error> {
        let depth = polynomial_depth(polynomial.degree());
        let level = a.level.checked_sub(depth).ok_or_else(|| Error::execution("a polynomial without levels left"))?;
        Ok(a.map(level, false, |index, slot| evaluate(polynomial, slot) * mask.map_or(1.0, |mask| mask[index])))
    }

    fn bootstrap(
        &self,
        a: &ClearCiphertext,
        variant: &Bootstrap,
        keep: Option<&[bool]>,
    ) -> Result<ClearCiphertext, Error> {
        Ok(a.map(self.levels.output, false, |index, slot| match keep {
            Some(keep) if !keep[index] => Complex64::ZERO,
            _ if variant.complex => slot * variant.factor,
            _ => (slot.re * variant.factor).into(),
        }))
    }

    fn to_bytes(&self, a: &ClearCiphertext) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::with_capacity(5 + 16 * a.slots.len());
        bytes.extend(a.level.to_le_bytes());
        bytes.push(u8::from(a.product));
        for slot in &a.slots {
            bytes.extend(slot.re.to_le_bytes());
            bytes.extend(slot.im.to_le_bytes());
        }
        Ok(bytes)
    }

    fn restore(&self, bytes: &[u8]) -> Result<ClearCiphertext, Error> {
        let malformed = || Error::execution("the bytes are not those of slots in the clear");
        let (level, rest) = bytes.split_first_chunk::<4>().ok_or_else(malformed)?;
        let (product, rest) = rest.split_first().ok_or_else(malformed)?;
        let (numbers, []) = rest.as_chunks::<8>() else { return Err(malformed()) };
        if numbers.len() != 2 * self.slots || *product > 1 {
            return Err(malformed());
        }
        let number = |bytes: [u8; 8]| f64::from_le_bytes(bytes);
        let slots = numbers.chunks_exact(2).map(|pair| Complex64::new(number(pair[0]), number(pair[1]))).collect();
        Ok(ClearCiphertext { slots, level: u32::from_le_bytes(*level), product: *product == 1 })
    }

    fn name(&self) -> &'static str {
        super::CLEAR
    }
}
