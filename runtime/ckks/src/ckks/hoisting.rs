//! Rotations, conjugation, and the pieces of key switching that can be shared between them.
//!
//! A rotation is decomposition (most of the work), inner product with the key, division by P. Hoisting shares the
//! decomposition between rotations of one ciphertext ([`Evaluator::decompose`]); double hoisting (ePrint 2020/1203,
//! section 4) also shares the division by P between the terms of a sum ([`ExtendedCiphertext`]).

use cachemir_hal::{Addend, Backend};

use crate::ckks::ciphertext::{Ciphertext, ExtendedCiphertext, ExtendedPlaintext, RaisedCiphertext};
use crate::ckks::evaluator::{Evaluator, check_scales};
use crate::error::CkksError;
use crate::rlwe::keys::{EvaluationKeys, KeyRole, KeySwitchKey};
use crate::rlwe::switching;

/// The key-switching digits of a ciphertext's second polynomial, valid for that ciphertext only.
#[derive(Debug)]
pub struct Digits<B: Backend> {
    buffer: B::Buffer,
    level: usize,
}

impl<B: Backend> Digits<B> {
    /// Level of the ciphertext that was decomposed.
    pub fn level(&self) -> usize {
        self.level
    }
}

impl<B: Backend> Evaluator<B> {
    /// `rotation` modulo the number of slots.
    fn normalise(slots: usize, rotation: i64) -> usize {
        rotation.rem_euclid(slots as i64) as usize
    }

    fn key<'k>(
        &self,
        keys: &'k EvaluationKeys<B>,
        role: KeyRole,
        level: usize,
    ) -> Result<&'k KeySwitchKey<B>, CkksError> {
        keys.find(self.ring.parameters(), role, level)
    }

    /// Number of primes that keys at `level` divide by.
    fn special(&self, level: usize) -> usize {
        self.ring.parameters().gadget(level).special
    }

    /// Decomposes a ciphertext for any number of rotations and conjugations.
    pub fn decompose(&self, a: &Ciphertext<B>) -> Result<Digits<B>, CkksError> {
        self.check_polynomials("decompose", a, 2)?;
        let gadget = self.ring.parameters().gadget(a.level);
        Ok(Digits { buffer: switching::decompose(&self.ring, &a.buffer, 1, a.level, gadget)?, level: a.level })
    }

    /// Refuses digits that were made at another level than the ciphertext's.
    fn check_digits(a: &Ciphertext<B>, digits: &Digits<B>) -> Result<(), CkksError> {
        if a.level == digits.level {
            return Ok(());
        }
        Err(CkksError::LevelMismatch { operation: "rotation of digits", left: a.level, right: digits.level })
    }

    /// φ(a) before its division by P, by the key from φ(s) to s.
    fn automorphism_extended(
        &self,
        a: &Ciphertext<B>,
        digits: &Digits<B>,
        key: &KeySwitchKey<B>,
        element: usize,
    ) -> Result<B::Buffer, CkksError> {
        Self::check_digits(a, digits)?;
        switching::inner_product(&self.ring, &digits.buffer, key, &a.buffer, 1, a.level, element)
    }

    /// φ(a) by the key from φ(s) to s.
    fn automorphism(
        &self,
        a: &Ciphertext<B>,
        digits: &Digits<B>,
        key: &KeySwitchKey<B>,
        element: usize,
    ) -> Result<Ciphertext<B>, CkksError> {
        let extended = self.automorphism_extended(a, digits, key, element)?;
        Ok(Ciphertext { buffer: switching::mod_down(&self.ring, &extended, a.level, key.gadget().special)?, ..*a })
    }

    /// Rotates the slots to the left by `rotation` modulo their number: slot j of the result is slot j + rotation of
    /// the operand.
    pub fn rotate(
        &self,
        a: &Ciphertext<B>,
        rotation: i64,
        keys: &EvaluationKeys<B>,
    ) -> Result<Ciphertext<B>, CkksError> {
        self.check_polynomials("rotate", a, 2)?;
        let amount = Self::normalise(a.slots, rotation);
        if amount == 0 {
            return self.truncate(a, a.level);
        }
        let key = self.key(keys, KeyRole::Rotation(amount), a.level)?;
        self.automorphism(a, &self.decompose(a)?, key, self.ring.galois_element(amount))
    }

    /// As [`rotate`](Self::rotate), with the digits of `a` at hand.
    pub fn rotate_decomposed(
        &self,
        a: &Ciphertext<B>,
        digits: &Digits<B>,
        rotation: i64,
        keys: &EvaluationKeys<B>,
    ) -> Result<Ciphertext<B>, CkksError> {
        let amount = Self::normalise(a.slots, rotation);
        if amount == 0 {
            return self.truncate(a, a.level);
        }
        let key = self.key(keys, KeyRole::Rotation(amount), a.level)?;
        self.automorphism(a, digits, key, self.ring.galois_element(amount))
    }

    /// Several rotations of one ciphertext, decomposed once.
    pub fn hoisted_rotations(
        &self,
        a: &Ciphertext<B>,
        rotations: &[i64],
        keys: &EvaluationKeys<B>,
    ) -> Result<Vec<Ciphertext<B>>, CkksError> {
        let digits = self.decompose(a)?;
        rotations.iter().map(|&rotation| self.rotate_decomposed(a, &digits, rotation, keys)).collect()
    }

    /// Conjugates every slot.
    pub fn conjugate(&self, a: &Ciphertext<B>, keys: &EvaluationKeys<B>) -> Result<Ciphertext<B>, CkksError> {
        self.conjugate_decomposed(a, &self.decompose(a)?, keys)
    }

    /// As [`conjugate`](Self::conjugate), with the digits of `a` at hand.
    pub fn conjugate_decomposed(
        &self,
        a: &Ciphertext<B>,
        digits: &Digits<B>,
        keys: &EvaluationKeys<B>,
    ) -> Result<Ciphertext<B>, CkksError> {
        let key = self.key(keys, KeyRole::Conjugation, a.level)?;
        self.automorphism(a, digits, key, self.ring.conjugation_element())
    }

    /// The same message under the secret that the key leads to.
    pub fn switch_key(&self, a: &Ciphertext<B>, key: &KeySwitchKey<B>) -> Result<Ciphertext<B>, CkksError> {
        self.check_polynomials("switch_key", a, 2)?;
        if a.level > key.level() {
            return Err(CkksError::KeyLevel {
                key: "a change of secret".to_owned(),
                key_levels: vec![key.level()],
                level: a.level,
            });
        }
        let digits = switching::decompose(&self.ring, &a.buffer, 1, a.level, key.gadget())?;
        let extended = switching::inner_product(&self.ring, &digits, key, &a.buffer, 1, a.level, 1)?;
        Ok(Ciphertext { buffer: switching::mod_down(&self.ring, &extended, a.level, key.gadget().special)?, ..*a })
    }

    /// Zero modulo Q·P, to accumulate into.
    pub fn zero_extended(&self, level: usize, scale: f64, slots: usize) -> Result<ExtendedCiphertext<B>, CkksError> {
        self.ring.check_level(level)?;
        let special = self.special(level);
        let buffer = self.ring.backend().zeros(2, level + 1 + special)?;
        Ok(ExtendedCiphertext { buffer, level, special, scale, slots })
    }

    /// P·a modulo Q·P.
    pub fn extend(&self, a: &Ciphertext<B>) -> Result<ExtendedCiphertext<B>, CkksError> {
        self.check_polynomials("extend", a, 2)?;
        let mut extended = self.zero_extended(a.level, a.scale, a.slots)?;
        let special = extended.special;
        switching::accumulate_times_special(&self.ring, &mut extended.buffer, &a.buffer, 2, a.level, special)?;
        Ok(extended)
    }

    /// A rotation before its division by P.
    pub fn rotate_extended(
        &self,
        a: &Ciphertext<B>,
        digits: &Digits<B>,
        rotation: i64,
        keys: &EvaluationKeys<B>,
    ) -> Result<ExtendedCiphertext<B>, CkksError> {
        let amount = Self::normalise(a.slots, rotation);
        if amount == 0 {
            return self.extend(a);
        }
        let key = self.key(keys, KeyRole::Rotation(amount), a.level)?;
        let buffer = self.automorphism_extended(a, digits, key, self.ring.galois_element(amount))?;
        let special = key.gadget().special;
        Ok(ExtendedCiphertext { buffer, level: a.level, special, scale: a.scale, slots: a.slots })
    }

    /// accumulator ← accumulator + the rotation of `a` before its division by P. Levels must be equal.
    pub fn rotate_accumulate_extended(
        &self,
        accumulator: &mut ExtendedCiphertext<B>,
        a: &Ciphertext<B>,
        rotation: i64,
        keys: &EvaluationKeys<B>,
    ) -> Result<(), CkksError> {
        check_scales("rotate_accumulate_extended", accumulator.scale, a.scale)?;
        Self::check_extended_level("rotate_accumulate_extended", accumulator.level, a.level)?;
        let (ring, level, special) = (&self.ring, a.level, accumulator.special);
        let amount = Self::normalise(a.slots, rotation);
        if amount == 0 {
            return switching::accumulate_times_special(ring, &mut accumulator.buffer, &a.buffer, 2, level, special);
        }
        let key = self.key(keys, KeyRole::Rotation(amount), level)?.view(level);
        let digits = self.decompose(a)?;
        let factors = ring.special_product(special, ring.chain(level));
        let constant = Addend { source: &a.buffer, polynomials: 1, factors: &factors };
        let (element, limbs) = (ring.galois_element(amount), ring.extended(level, special));
        let sum = &mut accumulator.buffer;
        Ok(ring.backend().inner_product_accumulate(sum, &digits.buffer, &key, Some(&constant), element, &limbs)?)
    }

    /// The sum of a ciphertext and its rotations by other amounts than zero, with one decomposition and one division by P.
    pub fn sum_with_rotations(
        &self,
        a: &Ciphertext<B>,
        rotations: &[usize],
        keys: &EvaluationKeys<B>,
    ) -> Result<Ciphertext<B>, CkksError> {
        let digits = self.decompose(a)?;
        let special = self.special(a.level);
        let limbs = self.ring.extended(a.level, special);
        let factors = self.ring.special_product(special, self.ring.chain(a.level));
        let source = Addend { source: &a.buffer, polynomials: 2, factors: &factors };
        let terms = std::iter::once(&0)
            .chain(rotations)
            .map(|&rotation| switching::hoisted_rotation(&self.ring, keys, KeyRole::Rotation(rotation), a.level))
            .collect::<Result<Vec<_>, _>>()?;
        let sum = self.ring.backend().hoisted_sum(&digits.buffer, &source, &terms, &limbs)?;
        Ok(Ciphertext { buffer: switching::mod_down(&self.ring, &sum, a.level, special)?, ..*a })
    }

    /// A rotation of what ModRaise returned, under the main secret.
    pub fn rotate_raised(
        &self,
        a: &RaisedCiphertext<B>,
        rotation: usize,
        keys: &EvaluationKeys<B>,
    ) -> Result<Ciphertext<B>, CkksError> {
        let key = self.key(keys, KeyRole::Raised(rotation), a.level)?;
        let element = self.ring.galois_element(rotation);
        let extended = switching::inner_product(&self.ring, &a.digit, key, &a.constant, 1, a.level, element)?;
        let buffer = switching::mod_down(&self.ring, &extended, a.level, key.gadget().special)?;
        Ok(Ciphertext { buffer, level: a.level, scale: a.scale, slots: a.slots })
    }

    /// accumulator ← accumulator + a. Levels must be equal.
    pub fn add_extended_assign(
        &self,
        accumulator: &mut ExtendedCiphertext<B>,
        a: &ExtendedCiphertext<B>,
    ) -> Result<(), CkksError> {
        check_scales("add_extended", accumulator.scale, a.scale)?;
        Self::check_extended_level("add_extended", accumulator.level, a.level)?;
        let limbs = self.ring.extended(a.level, a.special);
        self.ring.backend().add_assign(&mut accumulator.buffer, &a.buffer, &limbs)?;
        Ok(())
    }

    /// accumulator ← accumulator + Σ a_k·p_k modulo Q·P, with one modular reduction. All levels must be equal, and each
    /// pair's scales must multiply to the accumulator's.
    pub fn mul_plain_accumulate_extended(
        &self,
        accumulator: &mut ExtendedCiphertext<B>,
        pairs: &[(&ExtendedCiphertext<B>, &ExtendedPlaintext<B>)],
    ) -> Result<(), CkksError> {
        for (a, p) in pairs {
            check_scales("mul_plain_accumulate_extended", accumulator.scale, a.scale * p.scale)?;
            Self::check_extended_level("mul_plain_accumulate_extended", accumulator.level, a.level)?;
            Self::check_extended_level("mul_plain_accumulate_extended", accumulator.level, p.level)?;
        }
        let buffers: Vec<_> = pairs.iter().map(|(a, p)| (&a.buffer, &p.buffer)).collect();
        let limbs = self.ring.extended(accumulator.level, accumulator.special);
        self.ring.backend().mul_accumulate_many(&mut accumulator.buffer, &buffers, &limbs)?;
        Ok(())
    }

    fn check_extended_level(operation: &'static str, left: usize, right: usize) -> Result<(), CkksError> {
        if left == right {
            return Ok(());
        }
        Err(CkksError::LevelMismatch { operation, left, right })
    }

    /// Divides by P.
    pub fn mod_down(&self, a: &ExtendedCiphertext<B>) -> Result<Ciphertext<B>, CkksError> {
        let &ExtendedCiphertext { level, special, scale, slots, .. } = a;
        let buffer = switching::mod_down(&self.ring, &a.buffer, level, special)?;
        Ok(Ciphertext { buffer, level, scale, slots })
    }

    /// Divides by P and rescales, in one step.
    pub fn mod_down_rescale(&self, a: &ExtendedCiphertext<B>) -> Result<Ciphertext<B>, CkksError> {
        let &ExtendedCiphertext { level, special, scale, slots, .. } = a;
        if level == 0 {
            return Err(CkksError::LevelExhausted { operation: "rescale", level, needed: 1 });
        }
        let buffer = switching::mod_down_and_rescale(&self.ring, &a.buffer, level, special)?;
        let scale = scale / self.ring.parameters().primes()[level] as f64;
        Ok(Ciphertext { buffer, level: level - 1, scale, slots })
    }
}
