//! Rotations, conjugation, and the pieces of key switching that can be shared between them.
//!
//! A rotation is decomposition (most of the work), inner product with the key, division by P. Hoisting shares the
//! decomposition between rotations of one ciphertext ([`Evaluator::decompose`]); double hoisting (ePrint 2020/1203,
//! section 4) also shares the division by P between the terms of a sum ([`ExtendedCiphertext`]).

use cachemir_hal::{Addend, Backend};

use crate::ckks::ciphertext::{Ciphertext, ExtendedCiphertext, ExtendedPlaintext};
use crate::ckks::evaluator::{Evaluator, check_scales};
use crate::error::CkksError;
use crate::rlwe::keys::{EvaluationKeys, KeySwitchKey};
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

    /// Decomposes a ciphertext for any number of rotations and conjugations.
    pub fn decompose(&self, a: &Ciphertext<B>) -> Result<Digits<B>, CkksError> {
        self.check_polynomials("decompose", a, 2)?;
        let special = self.ring.parameters().digit_limbs();
        Ok(Digits { buffer: switching::decompose(&self.ring, &a.buffer, 1, a.level, special)?, level: a.level })
    }

    /// Refuses digits that were made at another level than the ciphertext's.
    fn check_digits(a: &Ciphertext<B>, digits: &Digits<B>) -> Result<(), CkksError> {
        if a.level == digits.level {
            return Ok(());
        }
        Err(CkksError::LevelMismatch { operation: "rotation of digits", left: a.level, right: digits.level })
    }

    /// φ(a) before its division by P, by the key from s to φ^-1(s).
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

    /// φ(a) by the key from s to φ^-1(s).
    fn automorphism(
        &self,
        a: &Ciphertext<B>,
        digits: &Digits<B>,
        key: &KeySwitchKey<B>,
        element: usize,
    ) -> Result<Ciphertext<B>, CkksError> {
        let extended = self.automorphism_extended(a, digits, key, element)?;
        Ok(Ciphertext { buffer: switching::mod_down(&self.ring, &extended, a.level, key.special())?, ..*a })
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
        let key = keys.rotation(amount, a.level)?;
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
        self.automorphism(a, digits, keys.rotation(amount, a.level)?, self.ring.galois_element(amount))
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
        self.automorphism(a, digits, keys.conjugation(a.level)?, self.ring.conjugation_element())
    }

    /// The same message under the secret that the key leads to.
    pub fn switch_key(&self, a: &Ciphertext<B>, key: &KeySwitchKey<B>) -> Result<Ciphertext<B>, CkksError> {
        self.check_polynomials("switch_key", a, 2)?;
        if a.level > key.level() {
            return Err(CkksError::KeyLevel {
                key: "a change of secret".to_owned(),
                key_level: key.level(),
                level: a.level,
            });
        }
        let digits = switching::decompose(&self.ring, &a.buffer, 1, a.level, key.special())?;
        let extended = switching::inner_product(&self.ring, &digits, key, &a.buffer, 1, a.level, 1)?;
        Ok(Ciphertext { buffer: switching::mod_down(&self.ring, &extended, a.level, key.special())?, ..*a })
    }

    /// Zero modulo Q·P, to accumulate into.
    pub fn zero_extended(&self, level: usize, scale: f64, slots: usize) -> Result<ExtendedCiphertext<B>, CkksError> {
        self.ring.check_level(level)?;
        let buffer = self.ring.backend().zeros(2, level + 1 + self.ring.parameters().digit_limbs())?;
        Ok(ExtendedCiphertext { buffer, level, scale, slots })
    }

    /// P·a modulo Q·P.
    pub fn extend(&self, a: &Ciphertext<B>) -> Result<ExtendedCiphertext<B>, CkksError> {
        self.check_polynomials("extend", a, 2)?;
        let special = self.ring.parameters().digit_limbs();
        let mut extended = self.zero_extended(a.level, a.scale, a.slots)?;
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
        let key = keys.rotation(amount, a.level)?;
        let buffer = self.automorphism_extended(a, digits, key, self.ring.galois_element(amount))?;
        Ok(ExtendedCiphertext { buffer, level: a.level, scale: a.scale, slots: a.slots })
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
        let amount = Self::normalise(a.slots, rotation);
        if amount == 0 {
            let special = self.ring.parameters().digit_limbs();
            return switching::accumulate_times_special(
                &self.ring,
                &mut accumulator.buffer,
                &a.buffer,
                2,
                a.level,
                special,
            );
        }
        let key = keys.rotation(amount, a.level)?;
        let digits = self.decompose(a)?;
        let limbs = self.ring.extended(a.level, key.special());
        let factors = self.ring.special_product(key.special(), self.ring.chain(a.level));
        let addend = Addend { source: &a.buffer, polynomials: 1, factors: &factors };
        let (view, element) = (key.view(a.level), self.ring.galois_element(amount));
        let backend = self.ring.backend();
        backend.inner_product_accumulate(
            &mut accumulator.buffer,
            &digits.buffer,
            &view,
            Some(&addend),
            element,
            &limbs,
        )?;
        Ok(())
    }

    /// accumulator ← accumulator + a. Levels must be equal.
    pub fn add_extended_assign(
        &self,
        accumulator: &mut ExtendedCiphertext<B>,
        a: &ExtendedCiphertext<B>,
    ) -> Result<(), CkksError> {
        check_scales("add_extended", accumulator.scale, a.scale)?;
        Self::check_extended_level("add_extended", accumulator.level, a.level)?;
        let limbs = self.ring.extended(a.level, self.ring.parameters().digit_limbs());
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
        let limbs = self.ring.extended(accumulator.level, self.ring.parameters().digit_limbs());
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
        let &ExtendedCiphertext { level, scale, slots, .. } = a;
        let buffer = switching::mod_down(&self.ring, &a.buffer, level, self.ring.parameters().digit_limbs())?;
        Ok(Ciphertext { buffer, level, scale, slots })
    }

    /// Divides by P and rescales, in one step.
    pub fn mod_down_rescale(&self, a: &ExtendedCiphertext<B>) -> Result<Ciphertext<B>, CkksError> {
        let &ExtendedCiphertext { level, scale, slots, .. } = a;
        if level == 0 {
            return Err(CkksError::LevelExhausted { operation: "rescale", level, needed: 1 });
        }
        let special = self.ring.parameters().digit_limbs();
        let buffer = switching::mod_down_and_rescale(&self.ring, &a.buffer, level, special)?;
        let scale = scale / self.ring.parameters().primes()[level] as f64;
        Ok(Ciphertext { buffer, level: level - 1, scale, slots })
    }
}
