//! The CPU's buffer: one aligned allocation, drawn from a pool.

use aligned_vec::AVec;

use crate::pool::{Pool, Words};
use crate::{HalError, Shape};

/// Residues `[polynomials][limbs][N]` in one allocation aligned to cache lines. Goes back to its
/// backend's pool when dropped.
#[derive(Debug)]
pub struct CpuBuffer {
    /// At least as long as the shape asks for.
    words: Words,
    length: usize,
    shape: Shape,
    degree: usize,
    pool: Pool,
}

impl Drop for CpuBuffer {
    fn drop(&mut self) {
        let words = std::mem::replace(&mut self.words, AVec::new(64));
        self.pool.give(words);
    }
}

impl CpuBuffer {
    /// A buffer of unspecified content, or [`HalError::OutOfMemory`].
    pub(crate) fn new(pool: &Pool, polynomials: usize, limbs: usize, degree: usize) -> Result<Self, HalError> {
        let length = polynomials
            .checked_mul(limbs)
            .and_then(|rows| rows.checked_mul(degree))
            .ok_or(HalError::OutOfMemory { bytes: usize::MAX })?;
        Ok(Self { words: pool.take(length)?, length, shape: Shape { polynomials, limbs }, degree, pool: pool.clone() })
    }

    /// A buffer of zeros, or [`HalError::OutOfMemory`].
    pub(crate) fn zeros(pool: &Pool, polynomials: usize, limbs: usize, degree: usize) -> Result<Self, HalError> {
        let mut buffer = Self::new(pool, polynomials, limbs, degree)?;
        buffer.words_mut().fill(0);
        Ok(buffer)
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    pub(crate) fn words(&self) -> &[u64] {
        &self.words[..self.length]
    }

    pub(crate) fn words_mut(&mut self) -> &mut [u64] {
        &mut self.words[..self.length]
    }

    /// A copy of all words, or [`HalError::OutOfMemory`].
    pub(crate) fn to_words(&self) -> Result<Vec<u64>, HalError> {
        let mut words = Vec::new();
        words.try_reserve_exact(self.length).map_err(|_| HalError::OutOfMemory { bytes: 8 * self.length })?;
        words.extend_from_slice(self.words());
        Ok(words)
    }

    fn row_start(&self, polynomial: usize, position: usize) -> usize {
        (polynomial * self.shape.limbs + position) * self.degree
    }

    /// One limb of one polynomial.
    pub(crate) fn row(&self, polynomial: usize, position: usize) -> &[u64] {
        let start = self.row_start(polynomial, position);
        &self.words[start..start + self.degree]
    }

    /// One limb of one polynomial, to be written.
    pub(crate) fn row_mut(&mut self, polynomial: usize, position: usize) -> &mut [u64] {
        let start = self.row_start(polynomial, position);
        &mut self.words[start..start + self.degree]
    }
}
