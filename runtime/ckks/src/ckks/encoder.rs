//! Slots to integer polynomials to residues, and back.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use cachemir_hal::Backend;
use num_complex::Complex64;
use zeroize::Zeroizing;

use crate::ckks::ciphertext::{ExtendedPlaintext, Plaintext};
use crate::ckks::embedding::Embedding;
use crate::error::CkksError;
use crate::gadget::Gadget;
use crate::ring::Ring;

/// An integer polynomial in X^gap, before it is reduced modulo any prime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntegerPolynomial {
    coefficients: IntegerCoefficients,
    gap: usize,
}

/// The coefficients of a polynomial in X^gap, N/gap of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IntegerCoefficients {
    /// All coefficients are below 2^62 in absolute value.
    Narrow(Vec<i64>),
    /// All coefficients are below 2^126 in absolute value.
    Wide(Vec<i128>),
}

impl IntegerPolynomial {
    /// The coefficients of 1, X^gap, X^(2·gap), ….
    pub fn coefficients(&self) -> &IntegerCoefficients {
        &self.coefficients
    }

    /// The largest absolute value of a coefficient.
    fn largest(&self) -> f64 {
        match &self.coefficients {
            IntegerCoefficients::Narrow(integers) => {
                integers.iter().fold(0, |largest, x| x.unsigned_abs().max(largest)) as f64
            }
            IntegerCoefficients::Wide(integers) => {
                integers.iter().fold(0, |largest, x| x.unsigned_abs().max(largest)) as f64
            }
        }
    }
}

/// The shortest run of equal values in the NTT domain that is stored as one: a vector of the fastest kernels.
const SHORTEST_RUN: usize = 8;

/// Words of a limb of the plaintext of `slots` slots.
pub(crate) fn stored_words(degree: usize, slots: usize) -> usize {
    if degree / (2 * slots) >= SHORTEST_RUN { 2 * slots } else { degree }
}

const NARROW_LIMIT: f64 = (1_u64 << 62) as f64;
const WIDE_LIMIT: f64 = (1_u128 << 126) as f64;

/// Encodes and decodes vectors of slots and of coefficients. Holds the embedding's tables, built on first use.
#[derive(Clone)]
pub struct Encoder<B: Backend> {
    ring: Ring<B>,
    /// Entry k serves 2^k slots.
    embeddings: Arc<[OnceLock<Embedding>]>,
}

impl<B: Backend> Encoder<B> {
    /// An encoder for one parameter set.
    pub fn new(ring: Ring<B>) -> Self {
        let embeddings = (0..ring.parameters().log2_degree()).map(|_| OnceLock::new()).collect();
        Self { ring, embeddings }
    }

    /// The ring that plaintexts belong to.
    pub fn ring(&self) -> &Ring<B> {
        &self.ring
    }

    fn embedding(&self, slots: usize) -> Result<&Embedding, CkksError> {
        self.ring.check_slots(slots)?;
        Ok(self.embeddings[slots.trailing_zeros() as usize].get_or_init(|| Embedding::new(slots)))
    }

    /// The integer polynomial that holds `slots` (their number a power of two up to N/2) times `scale`.
    pub fn integers(&self, slots: &[Complex64], scale: f64) -> Result<IntegerPolynomial, CkksError> {
        let embedding = self.embedding(slots.len())?;
        let half = embedding.coefficients_from_slots(slots);
        let gap = self.ring.degree() / (2 * slots.len());
        let mut coefficients = vec![0_f64; 2 * slots.len()];
        for (k, value) in half.iter().enumerate() {
            coefficients[k] = value.re * scale;
            coefficients[k + slots.len()] = value.im * scale;
        }
        self.round(&coefficients, gap)
    }

    /// The integer polynomial with these coefficients times `scale`; missing high coefficients are zero.
    pub fn integers_from_coefficients(&self, coefficients: &[f64], scale: f64) -> Result<IntegerPolynomial, CkksError> {
        if coefficients.len() > self.ring.degree() {
            return Err(CkksError::Slots { slots: coefficients.len(), maximum: self.ring.degree() });
        }
        let scaled: Vec<f64> = coefficients.iter().map(|c| c * scale).collect();
        self.round(&scaled, 1)
    }

    /// Rounds to integers and spreads them with distance `gap`.
    fn round(&self, coefficients: &[f64], gap: usize) -> Result<IntegerPolynomial, CkksError> {
        let largest = coefficients.iter().fold(0_f64, |largest, c| largest.max(c.abs()));
        if coefficients.iter().any(|c| !c.is_finite()) || largest >= WIDE_LIMIT {
            return Err(CkksError::EncodingOverflow {
                log2_coefficient: largest.log2(),
                log2_limit: WIDE_LIMIT.log2(),
                level: self.ring.parameters().maximum_level(),
            });
        }
        let count = self.ring.degree() / gap;
        let coefficients = if largest < NARROW_LIMIT {
            let round = |c: &f64| (c + 0.5_f64.copysign(*c)) as i64;
            let mut integers: Vec<i64> = coefficients.iter().map(round).collect();
            integers.resize(count, 0);
            IntegerCoefficients::Narrow(integers)
        } else {
            let mut integers: Vec<i128> = coefficients.iter().map(|c| c.round() as i128).collect();
            integers.resize(count, 0);
            IntegerCoefficients::Wide(integers)
        };
        Ok(IntegerPolynomial { coefficients, gap })
    }

    /// The coefficients of a polynomial in X whose residues are made by [`Backend::mul_lifted_accumulate`]; `None` where
    /// they are too large for it, or where fewer are stored.
    pub(crate) fn narrow<'i>(
        &self,
        integers: &'i IntegerPolynomial,
        level: usize,
    ) -> Result<Option<&'i [i64]>, CkksError> {
        self.check_size(integers, level)?;
        Ok(match &integers.coefficients {
            IntegerCoefficients::Narrow(coefficients) if integers.gap == 1 => Some(coefficients),
            _ => None,
        })
    }

    fn check_size(&self, integers: &IntegerPolynomial, level: usize) -> Result<(), CkksError> {
        let log2_limit = self.ring.parameters().log2_q(level) - 1.0;
        if log2_limit < 126.0 {
            let largest = integers.largest();
            if largest.log2() >= log2_limit {
                return Err(CkksError::EncodingOverflow { log2_coefficient: largest.log2(), log2_limit, level });
            }
        }
        Ok(())
    }

    /// Residues of an integer polynomial in the NTT domain.
    fn reduce(&self, integers: &IntegerPolynomial, level: usize, limbs: &[usize]) -> Result<B::Buffer, CkksError> {
        self.check_size(integers, level)?;
        let backend = self.ring.backend();
        // Short runs of equal words are not worth their bookkeeping.
        let gap = if integers.gap >= SHORTEST_RUN { 1 } else { integers.gap };
        Ok(match &integers.coefficients {
            IntegerCoefficients::Narrow(narrow) => backend.lift_repeated(&spread(narrow, gap), limbs)?,
            IntegerCoefficients::Wide(wide) => backend.lift_repeated_wide(&spread(wide, gap), limbs)?,
        })
    }

    /// The plaintext of an integer polynomial made with `scale` and read as `slots` slots.
    pub fn lift(
        &self,
        integers: &IntegerPolynomial,
        slots: usize,
        level: usize,
        scale: f64,
    ) -> Result<Plaintext<B>, CkksError> {
        self.ring.check_level(level)?;
        let buffer = self.reduce(integers, level, self.ring.chain(level))?;
        Ok(Plaintext { buffer, level, scale, slots })
    }

    /// As [`lift`](Self::lift), modulo the primes that keys of this gadget divide by as well.
    pub fn lift_extended(
        &self,
        integers: &IntegerPolynomial,
        slots: usize,
        level: usize,
        scale: f64,
        gadget: Gadget,
    ) -> Result<ExtendedPlaintext<B>, CkksError> {
        self.ring.check_level(level)?;
        let buffer = self.reduce(integers, level, &self.ring.extended(level, gadget.special))?;
        Ok(ExtendedPlaintext { buffer, level, scale, slots })
    }

    /// Encodes `slots` (their number a power of two up to N/2) modulo q_0 ⋯ q_level.
    pub fn encode(&self, slots: &[Complex64], level: usize, scale: f64) -> Result<Plaintext<B>, CkksError> {
        self.lift(&self.integers(slots, scale)?, slots.len(), level, scale)
    }

    /// As [`encode`](Self::encode), for real slots.
    pub fn encode_real(&self, slots: &[f64], level: usize, scale: f64) -> Result<Plaintext<B>, CkksError> {
        let complex: Vec<_> = slots.iter().map(|&value| Complex64::from(value)).collect();
        self.encode(&complex, level, scale)
    }

    /// As [`encode`](Self::encode), modulo the primes that keys of this gadget divide by as well.
    pub fn encode_extended(
        &self,
        slots: &[Complex64],
        level: usize,
        scale: f64,
        gadget: Gadget,
    ) -> Result<ExtendedPlaintext<B>, CkksError> {
        self.lift_extended(&self.integers(slots, scale)?, slots.len(), level, scale, gadget)
    }

    /// Encodes real numbers as the polynomial's coefficients, not as its slots.
    pub fn encode_coefficients(
        &self,
        coefficients: &[f64],
        level: usize,
        scale: f64,
    ) -> Result<Plaintext<B>, CkksError> {
        let integers = self.integers_from_coefficients(coefficients, scale)?;
        self.lift(&integers, self.ring.parameters().maximum_slots(), level, scale)
    }

    /// The N coefficients of a plaintext, divided by its scale, within a few roundings of `f64` as long as they stay
    /// below 2^62 in absolute value (or, at low levels, below half the modulus).
    pub fn decode_coefficients(&self, plaintext: &Plaintext<B>) -> Result<Vec<f64>, CkksError> {
        let (backend, degree) = (self.ring.backend(), self.ring.degree());
        let limbs = self.ring.chain(decoding_level(&self.ring, plaintext.level, plaintext.scale));
        let mut buffer = backend.select(&plaintext.buffer, 0..1, limbs)?;
        let residues =
            backend.inverse_ntt(&mut buffer, limbs).and_then(|()| backend.download(&buffer)).map(Zeroizing::new);
        // It may be what decryption gave.
        backend.wipe(&mut buffer);
        let residues = residues?;
        let moduli: Vec<_> = limbs.iter().map(|&limb| *self.ring.modulus(limb)).collect();
        let base = MixedRadix::new(moduli);
        Ok((0..degree).map(|k| base.value(|limb| residues[limb * degree + k]) / plaintext.scale).collect())
    }

    /// The slots of a plaintext.
    pub fn decode(&self, plaintext: &Plaintext<B>) -> Result<Vec<Complex64>, CkksError> {
        let slots = plaintext.slots;
        let embedding = self.embedding(slots)?;
        let gap = self.ring.degree() / (2 * slots);
        let coefficients = self.decode_coefficients(plaintext)?;
        let half: Vec<_> =
            (0..slots).map(|k| Complex64::new(coefficients[k * gap], coefficients[(k + slots) * gap])).collect();
        Ok(embedding.slots_from_coefficients(&half))
    }
}

/// The coefficients of p(X^gap) from those of p.
fn spread<T: Copy + Default>(coefficients: &[T], gap: usize) -> Cow<'_, [T]> {
    if gap == 1 {
        return Cow::Borrowed(coefficients);
    }
    let mut all = vec![T::default(); coefficients.len() * gap];
    for (wide, c) in all.iter_mut().step_by(gap).zip(coefficients) {
        *wide = *c;
    }
    Cow::Owned(all)
}

/// The lowest level whose modulus represents every coefficient up to 2^62 times the scale.
pub(crate) fn decoding_level<B: Backend>(ring: &Ring<B>, level: usize, scale: f64) -> usize {
    let parameters = ring.parameters();
    let wanted = scale.log2() + 64.0;
    (0..level).find(|&lower| parameters.log2_q(lower) >= wanted).unwrap_or(level)
}

/// Chinese remaindering by balanced mixed-radix digits: x = v_0 + q_0·(v_1 + q_1·(v_2 + …)) with |v_i| < q_i/2 is the
/// representative of smallest absolute value, whatever the number of moduli.
struct MixedRadix {
    moduli: Vec<cachemir_hal::Modulus>,
    /// (q_0 ⋯ q_{i-1})^-1 modulo q_i.
    inverses: Vec<u64>,
    /// q_j modulo q_i at `[i][j]`, j < i.
    radices: Vec<Vec<u64>>,
}

impl MixedRadix {
    fn new(moduli: Vec<cachemir_hal::Modulus>) -> Self {
        let radices: Vec<Vec<u64>> = moduli
            .iter()
            .enumerate()
            .map(|(i, modulus)| moduli[..i].iter().map(|lower| modulus.reduce(lower.value())).collect())
            .collect();
        let inverses = moduli
            .iter()
            .zip(&radices)
            .map(|(modulus, lower)| modulus.inv(lower.iter().fold(1, |product, &q| modulus.mul(product, q))))
            .collect();
        Self { moduli, inverses, radices }
    }

    fn value(&self, residue: impl Fn(usize) -> u64) -> f64 {
        let mut digits = [0_i64; 128];
        for (i, modulus) in self.moduli.iter().enumerate() {
            let lower = (0..i)
                .rev()
                .fold(0, |sum, j| modulus.add(modulus.mul(sum, self.radices[i][j]), modulus.reduce_signed(digits[j])));
            let digit = modulus.mul(modulus.sub(residue(i), lower), self.inverses[i]);
            digits[i] = if digit > modulus.value() / 2 { digit as i64 - modulus.value() as i64 } else { digit as i64 };
        }
        let count = self.moduli.len();
        (0..count).rev().fold(0.0, |sum, i| sum * self.moduli[i].value() as f64 + digits[i] as f64)
    }
}
