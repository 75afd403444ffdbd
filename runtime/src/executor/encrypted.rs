//! The ckks stage on ciphertexts, by the engine.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use cachemir_ckks::circuits::bootstrapping::{BootstrapEntry, Bootstrapper, SlotKind};
use cachemir_ckks::circuits::polynomials::{EvaluationPlan, Polynomial};
use cachemir_ckks::{Ciphertext, CkksError, Digits, EvaluationKeys, Evaluator, ExtendedCiphertext, Plaintext, Ring};
use cachemir_hal::{Backend, HalError};
use cachemir_ir::ckks::{Bootstrap, CiphertextType, polynomial_depth};
use cachemir_ir::linear::Factor;
use cachemir_ir::slots::Chebyshev;
use num_complex::Complex64;
use rayon::prelude::*;

use super::Algebra;
use crate::Error;

impl From<CkksError> for Error {
    fn from(source: CkksError) -> Self {
        match source {
            CkksError::Backend(HalError::OutOfMemory { bytes }) => Self::OutOfMemory { bytes: bytes as u64 },
            CkksError::Interrupted => Self::Interrupted,
            CkksError::Backend(HalError::Isa { requested, reason }) => {
                Self::BadOption { option: "CACHEMIR_ISA", message: format!("{requested}: {reason}") }
            }
            other => Self::engine(&other),
        }
    }
}

/// Products that are added with one modular reduction: more of them read more streams of memory at a time than processors
/// fetch ahead.
const TERMS_AT_ONCE: usize = 4;

/// Arithmetic on ciphertexts under evaluation keys.
pub struct Encrypted<B: Backend> {
    evaluator: Evaluator<B>,
    keys: EvaluationKeys<B>,
    bootstrappers: Vec<Bootstrapper<B>>,
    slots: usize,
    entries: Mutex<Entries<B>>,
}

/// Which slots a bootstrap keeps, by what factor, within which magnitude.
#[derive(Clone, Debug, PartialEq)]
struct EntryKey {
    complex: bool,
    log2_magnitude: u32,
    factor: f64,
    keep: Option<Vec<bool>>,
}

/// Encoded first matrices of bootstraps; the least recently used ones make room for new ones.
#[derive(Debug)]
struct Entries<B: Backend> {
    kept: VecDeque<(EntryKey, Arc<BootstrapEntry<B>>)>,
    budget_bytes: u64,
}

/// The bootstraps of a kind of slots.
pub fn slot_kind(complex: bool) -> SlotKind {
    if complex { SlotKind::Complex } else { SlotKind::Real }
}

impl<B: Backend> Encrypted<B> {
    /// Arithmetic on `slots` slots. The bootstrappers are those of the plan's kinds, or a complex one for both; their
    /// first matrices, which depend
    /// on a bootstrap's mask, are kept up to `entry_budget_bytes`, but always the latest.
    pub fn new(
        evaluator: Evaluator<B>,
        keys: EvaluationKeys<B>,
        bootstrappers: Vec<Bootstrapper<B>>,
        slots: usize,
        entry_budget_bytes: u64,
    ) -> Self {
        let entries = Mutex::new(Entries { kept: VecDeque::new(), budget_bytes: entry_budget_bytes });
        Self { evaluator, keys, bootstrappers, slots, entries }
    }

    /// The ring.
    pub fn ring(&self) -> &Ring<B> {
        self.evaluator.ring()
    }

    fn canonical_scale(&self, level: u32) -> f64 {
        self.ring().parameters().canonical_scale(level as usize)
    }

    fn scale(&self, level: u32, product: bool) -> f64 {
        let scale = self.canonical_scale(level);
        if product { scale * scale } else { scale }
    }

    fn entry(&self, bootstrapper: &Bootstrapper<B>, key: EntryKey) -> Result<Arc<BootstrapEntry<B>>, Error> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = entries.kept.iter().position(|(known, _)| *known == key) {
            let (key, entry) = entries.kept.remove(index).expect("the index was just found");
            entries.kept.push_back((key, Arc::clone(&entry)));
            return Ok(entry);
        }
        let mask: Option<Vec<f64>> = match &key.keep {
            Some(keep) => Some(keep.iter().map(|&keep| if keep { key.factor } else { 0.0 }).collect()),
            None if key.factor == 1.0 => None,
            None => Some(vec![key.factor]),
        };
        let entry = Arc::new(bootstrapper.prepare_entry(&self.evaluator, mask.as_deref(), key.log2_magnitude)?);
        let bytes =
            |entries: &Entries<B>| -> u64 { entries.kept.iter().map(|(_, entry)| entry.bytes(&self.evaluator)).sum() };
        while !entries.kept.is_empty() && bytes(&entries) + entry.bytes(&self.evaluator) > entries.budget_bytes {
            entries.kept.pop_front();
        }
        entries.kept.push_back((key, Arc::clone(&entry)));
        Ok(entry)
    }
}

impl<B: Backend> Algebra for Encrypted<B> {
    type Ciphertext = Ciphertext<B>;
    type Decomposition = Digits<B>;
    type Plaintext = Plaintext<B>;
    type Extended = ExtendedCiphertext<B>;

    fn slots(&self) -> usize {
        self.slots
    }

    /// The scale is Δ or Δ², and Δ ≥ 2^20: the geometric mean of the two tells them apart.
    fn level(&self, a: &Ciphertext<B>) -> (u32, bool) {
        let level = a.level() as u32;
        (level, a.scale().log2() > 1.5 * self.canonical_scale(level).log2())
    }

    fn duplicate(&self, a: &Ciphertext<B>) -> Result<Ciphertext<B>, Error> {
        Ok(a.duplicate(self.ring())?)
    }

    fn zero(&self, ty: &CiphertextType) -> Result<Ciphertext<B>, Error> {
        Ok(self.evaluator.zero(ty.level as usize, self.scale(ty.level, ty.product), self.slots)?)
    }

    fn add_assign(&self, a: &mut Ciphertext<B>, b: &Ciphertext<B>) -> Result<(), Error> {
        Ok(self.evaluator.add_assign(a, b)?)
    }

    fn subtract_assign(&self, a: &mut Ciphertext<B>, b: &Ciphertext<B>) -> Result<(), Error> {
        Ok(self.evaluator.sub_assign(a, b)?)
    }

    fn multiply(&self, a: &Ciphertext<B>, b: &Ciphertext<B>) -> Result<Ciphertext<B>, Error> {
        Ok(self.evaluator.mul(a, b, &self.keys)?)
    }

    fn encode_factor(&self, values: &[f64], level: u32) -> Result<Plaintext<B>, Error> {
        Ok(self.evaluator.encoder().encode_real(values, level as usize, self.canonical_scale(level))?)
    }

    fn encode_complex_factor(&self, real: &[f64], imaginary: &[f64], level: u32) -> Result<Plaintext<B>, Error> {
        let values: Vec<Complex64> = real.iter().zip(imaginary).map(|(&re, &im)| Complex64::new(re, im)).collect();
        Ok(self.evaluator.encoder().encode(&values, level as usize, self.canonical_scale(level))?)
    }

    fn sum_of_weights(
        &self,
        operands: &[&Ciphertext<B>],
        factors: &[Factor],
        level: u32,
    ) -> Result<Ciphertext<B>, Error> {
        let scale = self.canonical_scale(level);
        let integers = |factor: &Factor| {
            let imaginary = factor.imaginary.as_deref().unwrap_or(&[]).iter().copied().chain(std::iter::repeat(0.0));
            let values = factor.real.iter().zip(imaginary);
            let values: Vec<Complex64> = values.map(|(&re, im)| Complex64::new(re.into(), im.into())).collect();
            self.evaluator.encoder().integers(&values, scale)
        };
        let integers: Vec<_> = factors.par_iter().map(integers).collect::<Result<_, _>>()?;
        let pairs: Vec<_> = operands.iter().copied().zip(&integers).collect();
        let mut sum = self.evaluator.zero(level as usize, self.scale(level, true), self.slots)?;
        self.evaluator.mul_integers_accumulate(&mut sum, &pairs, scale)?;
        Ok(sum)
    }

    fn encode_summand(&self, values: &[f64], level: u32, product: bool) -> Result<Plaintext<B>, Error> {
        Ok(self.evaluator.encoder().encode_real(values, level as usize, self.scale(level, product))?)
    }

    fn plaintext_bytes(&self, plain: &Plaintext<B>) -> usize {
        self.ring().backend().bytes(plain.buffer()) as usize
    }

    fn multiply_plain(&self, a: &Ciphertext<B>, plain: &Plaintext<B>) -> Result<Ciphertext<B>, Error> {
        Ok(self.evaluator.mul_plain(a, plain)?)
    }

    fn multiply_plain_accumulate(
        &self,
        sum: &mut Ciphertext<B>,
        terms: &[(&Ciphertext<B>, &Plaintext<B>)],
    ) -> Result<(), Error> {
        terms.chunks(TERMS_AT_ONCE).try_for_each(|terms| Ok(self.evaluator.mul_plain_accumulate_many(sum, terms)?))
    }

    fn add_plain_assign(&self, a: &mut Ciphertext<B>, plain: &Plaintext<B>) -> Result<(), Error> {
        *a = self.evaluator.add_plain(a, plain)?;
        Ok(())
    }

    fn multiply_scalar(&self, a: &Ciphertext<B>, factor: f64) -> Result<Ciphertext<B>, Error> {
        Ok(self.evaluator.mul_scalar_at(a, factor, self.canonical_scale(a.level() as u32))?)
    }

    fn multiply_integer_assign(&self, a: &mut Ciphertext<B>, factor: i64) -> Result<(), Error> {
        *a = self.evaluator.mul_integer(a, factor)?;
        Ok(())
    }

    fn multiply_by_i_assign(&self, a: &mut Ciphertext<B>) -> Result<(), Error> {
        Ok(self.evaluator.mul_by_i_assign(a)?)
    }

    fn rescale_assign(&self, a: &mut Ciphertext<B>) -> Result<(), Error> {
        *a = self.evaluator.rescale(a)?;
        Ok(())
    }

    fn drop_levels(&self, a: &Ciphertext<B>, to: u32) -> Result<Ciphertext<B>, Error> {
        Ok(self.evaluator.drop_to_level(a, to as usize)?)
    }

    fn rotate(&self, a: &Ciphertext<B>, by: usize) -> Result<Ciphertext<B>, Error> {
        Ok(self.evaluator.rotate(a, by as i64, &self.keys)?)
    }

    fn decompose(&self, a: &Ciphertext<B>) -> Result<Digits<B>, Error> {
        Ok(self.evaluator.decompose(a)?)
    }

    fn rotate_decomposed(&self, a: &Ciphertext<B>, digits: &Digits<B>, by: usize) -> Result<Ciphertext<B>, Error> {
        Ok(self.evaluator.rotate_decomposed(a, digits, by as i64, &self.keys)?)
    }

    fn add_rotations(&self, a: &Ciphertext<B>, by: &[usize]) -> Result<Ciphertext<B>, Error> {
        Ok(self.evaluator.sum_with_rotations(a, by, &self.keys)?)
    }

    fn extend(&self, a: Ciphertext<B>) -> Result<ExtendedCiphertext<B>, Error> {
        Ok(self.evaluator.extend(&a)?)
    }

    fn add_rotated(&self, sum: &mut ExtendedCiphertext<B>, a: &Ciphertext<B>, by: usize) -> Result<(), Error> {
        Ok(self.evaluator.rotate_accumulate_extended(sum, a, by as i64, &self.keys)?)
    }

    fn rescale_extended(&self, sum: ExtendedCiphertext<B>) -> Result<Ciphertext<B>, Error> {
        Ok(self.evaluator.mod_down_rescale(&sum)?)
    }

    fn conjugate(&self, a: &Ciphertext<B>) -> Result<Ciphertext<B>, Error> {
        Ok(self.evaluator.conjugate(a, &self.keys)?)
    }

    fn polynomial(
        &self,
        a: &Ciphertext<B>,
        polynomial: &Chebyshev,
        mask: Option<&[f64]>,
    ) -> Result<Ciphertext<B>, Error> {
        let depth = polynomial_depth(polynomial.degree()) as usize;
        let level = a
            .level()
            .checked_sub(depth)
            .filter(|_| depth > 0)
            .ok_or_else(|| Error::execution(format!("a polynomial of depth {depth} at level {}", a.level())))?;
        let plan = EvaluationPlan::new(&Polynomial::chebyshev(polynomial.coefficients.clone()));
        let mask: Option<Vec<_>> = mask.map(|mask| mask.iter().map(|&value| value.into()).collect());
        let scale = self.canonical_scale(level as u32);
        Ok(plan.evaluate(&self.evaluator, &self.keys, a, mask.as_deref(), level, scale)?)
    }

    fn bootstrap(&self, a: &Ciphertext<B>, variant: &Bootstrap, keep: Option<&[bool]>) -> Result<Ciphertext<B>, Error> {
        let of_kind = |complex| self.bootstrappers.iter().find(|known| known.plan().kind() == slot_kind(complex));
        let exact = of_kind(variant.complex);
        // A complex bootstrap of half the input is made real by adding the conjugate.
        let halved = exact.is_none();
        let bootstrapper = exact.or_else(|| of_kind(true));
        let bootstrapper = bootstrapper.ok_or_else(|| Error::execution("there is no bootstrapper of this kind"))?;
        let key = EntryKey {
            log2_magnitude: variant.log2_magnitude,
            factor: if halved { variant.factor / 2.0 } else { variant.factor },
            complex: variant.complex || halved,
            keep: keep.map(<[bool]>::to_vec),
        };
        let entry = self.entry(bootstrapper, key)?;
        let mut fresh = bootstrapper.bootstrap(&self.evaluator, &self.keys, &entry, a)?;
        if halved {
            let conjugate = self.evaluator.conjugate(&fresh, &self.keys)?;
            self.evaluator.add_assign(&mut fresh, &conjugate)?;
        }
        Ok(fresh)
    }

    fn to_bytes(&self, a: &Ciphertext<B>) -> Result<Vec<u8>, Error> {
        Ok(a.to_bytes(self.ring())?)
    }

    fn restore(&self, bytes: &[u8]) -> Result<Ciphertext<B>, Error> {
        Ok(Ciphertext::from_bytes(self.ring(), bytes)?)
    }

    fn name(&self) -> &'static str {
        super::ENCRYPTED
    }
}
