//! `R_Q = Z_Q[X]/(X^N + 1)` in residue form: the backend built for one parameter set, randomness, residues as bytes.

use std::sync::Arc;

use cachemir_hal::{Backend, Modulus};

use crate::error::CkksError;
use crate::parameters::Parameters;

pub mod sampling;
pub mod serialization;

/// How the uniform halves of switching keys are kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UniformHalves {
    /// As they are.
    Stored,
    /// As seeds, expanded piece by piece whenever a key is used: keys take half the memory.
    Seeded,
}

/// A parameter set with the backend built over its primes: table indices `0 ..= maximum_level` are the chain, those
/// after it the special primes. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Ring<B: Backend> {
    backend: B,
    parameters: Arc<Parameters>,
    /// 0, 1, … over the chain, then the special primes.
    indices: Arc<[usize]>,
    moduli: Arc<[Modulus]>,
    uniform_halves: UniformHalves,
}

impl<B: Backend> Ring<B> {
    /// Builds the backend's tables for these parameters. Keys keep their uniform halves as suits the backend
    /// ([`Backend::expands_fast`]).
    pub fn new(parameters: Parameters) -> Result<Self, CkksError> {
        let primes: Vec<u64> = parameters.primes().iter().chain(parameters.special_primes()).copied().collect();
        let backend = B::new(parameters.degree(), &primes)?;
        let uniform_halves = if backend.expands_fast() { UniformHalves::Seeded } else { UniformHalves::Stored };
        Ok(Self {
            backend,
            uniform_halves,
            indices: (0..primes.len()).collect(),
            moduli: primes.into_iter().map(Modulus::new).collect(),
            parameters: Arc::new(parameters),
        })
    }

    /// The ring whose keys, made or read, keep their uniform halves in this way.
    pub fn with_uniform_halves(self, uniform_halves: UniformHalves) -> Self {
        Self { uniform_halves, ..self }
    }

    /// How keys keep their uniform halves.
    pub fn uniform_halves(&self) -> UniformHalves {
        self.uniform_halves
    }

    /// The backend.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The parameters.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Ring degree N.
    pub fn degree(&self) -> usize {
        self.parameters.degree()
    }

    /// Table indices of q_0 … q_level.
    pub fn chain(&self, level: usize) -> &[usize] {
        &self.indices[..=level]
    }

    /// Table indices of a P of `count` primes ([`Parameters::special_indices`]).
    pub fn special(&self, count: usize) -> &[usize] {
        &self.indices[self.parameters.special_indices(count)]
    }

    /// Table indices of q_0 … q_level followed by those of a P of `special` primes.
    pub fn extended(&self, level: usize, special: usize) -> Vec<usize> {
        [self.chain(level), self.special(special)].concat()
    }

    /// Arithmetic modulo the prime at a table index.
    pub fn modulus(&self, index: usize) -> &Modulus {
        &self.moduli[index]
    }

    /// Residues of an integer modulo the primes at these table indices.
    pub fn residues(&self, value: i128, limbs: &[usize]) -> Vec<u64> {
        limbs.iter().map(|&limb| self.moduli[limb].reduce_signed_wide(value)).collect()
    }

    /// Residues of a P of `count` primes modulo the primes at these table indices.
    pub fn special_product(&self, count: usize, limbs: &[usize]) -> Vec<u64> {
        limbs
            .iter()
            .map(|&limb| {
                let modulus = &self.moduli[limb];
                self.special(count)
                    .iter()
                    .fold(1, |product, &special| modulus.mul(product, modulus.reduce(self.moduli[special].value())))
            })
            .collect()
    }

    /// Refuses a level above the chain.
    pub fn check_level(&self, level: usize) -> Result<(), CkksError> {
        let maximum = self.parameters.maximum_level();
        if level > maximum {
            return Err(CkksError::LevelOutOfRange { level, maximum });
        }
        Ok(())
    }

    /// Refuses numbers of slots that are no power of two up to N/2.
    pub fn check_slots(&self, slots: usize) -> Result<(), CkksError> {
        let maximum = self.parameters.maximum_slots();
        if !slots.is_power_of_two() || slots > maximum {
            return Err(CkksError::Slots { slots, maximum });
        }
        Ok(())
    }

    /// The Galois element 5^k mod 2N, whose automorphism rotates the slots to the left by k.
    pub fn galois_element(&self, rotation: usize) -> usize {
        let mask = 2 * self.degree() - 1;
        let (mut result, mut square, mut exponent) = (1_usize, 5_usize, rotation);
        while exponent > 0 {
            if exponent & 1 == 1 {
                result = result.wrapping_mul(square) & mask;
            }
            square = square.wrapping_mul(square) & mask;
            exponent >>= 1;
        }
        result
    }

    /// The Galois element 2N - 1 of complex conjugation.
    pub fn conjugation_element(&self) -> usize {
        2 * self.degree() - 1
    }
}
