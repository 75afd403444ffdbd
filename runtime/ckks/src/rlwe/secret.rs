//! Secret keys and their residue form.

use cachemir_hal::Backend;
use zeroize::Zeroizing;

use crate::error::CkksError;
use crate::ring::Ring;
use crate::ring::sampling;

/// A ternary secret polynomial. It is wiped when dropped; it can be neither printed nor serialised.
pub struct SecretKey {
    coefficients: Zeroizing<Vec<i8>>,
}

impl SecretKey {
    /// A secret with independent uniform ternary coefficients.
    pub fn dense(degree: usize) -> Result<Self, CkksError> {
        Ok(Self { coefficients: sampling::ternary(&mut sampling::os_generator()?, degree) })
    }

    /// The secret with independent uniform ternary coefficients that a seed determines, for owners that keep the seed
    /// only.
    pub fn from_seed(degree: usize, seed: &sampling::Seed) -> Self {
        Self { coefficients: sampling::ternary(&mut sampling::stream(seed, 0), degree) }
    }

    /// A secret of exactly `weight` coefficients ±1. Safe under a small modulus only.
    pub fn sparse(degree: usize, weight: usize) -> Result<Self, CkksError> {
        Ok(Self { coefficients: sampling::sparse_ternary(&mut sampling::os_generator()?, degree, weight) })
    }

    pub(crate) fn from_coefficients(coefficients: Zeroizing<Vec<i8>>) -> Self {
        Self { coefficients }
    }

    /// The coefficients' residues modulo the primes at the given table indices, in the NTT domain.
    pub(crate) fn residues<B: Backend>(&self, ring: &Ring<B>, limbs: &[usize]) -> Result<SecretResidues<B>, CkksError> {
        let coefficients = Zeroizing::new(self.coefficients.iter().map(|&c| i64::from(c)).collect::<Vec<_>>());
        let buffer = ring.backend().lift_signed(&coefficients, limbs)?;
        let mut residues = SecretResidues::new(ring.backend().clone(), buffer);
        ring.backend().forward_ntt(&mut residues.buffer, limbs)?;
        Ok(residues)
    }
}

/// A buffer of secret residues, overwritten with zeros when dropped.
pub(crate) struct SecretResidues<B: Backend> {
    backend: B,
    buffer: B::Buffer,
}

impl<B: Backend> SecretResidues<B> {
    pub(crate) fn new(backend: B, buffer: B::Buffer) -> Self {
        Self { backend, buffer }
    }

    pub(crate) fn buffer(&self) -> &B::Buffer {
        &self.buffer
    }

    pub(crate) fn buffer_mut(&mut self) -> &mut B::Buffer {
        &mut self.buffer
    }
}

impl<B: Backend> Drop for SecretResidues<B> {
    fn drop(&mut self) {
        self.backend.wipe(&mut self.buffer);
    }
}
