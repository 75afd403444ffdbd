//! The CPU's buffer: one aligned allocation, drawn from a pool.

use std::ops::Range;

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
    /// Words of a row.
    degree: usize,
    /// Neighbouring positions that each word stands for.
    repetition: usize,
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
        let shape = Shape { polynomials, limbs };
        Ok(Self { words: pool.take(length)?, length, shape, degree, repetition: 1, pool: pool.clone() })
    }

    /// As [`new`](Self::new), of rows of `degree` words that each stand for `repetition` positions.
    pub(crate) fn repeated(
        pool: &Pool,
        polynomials: usize,
        limbs: usize,
        degree: usize,
        repetition: usize,
    ) -> Result<Self, HalError> {
        let mut buffer = Self::new(pool, polynomials, limbs, degree)?;
        buffer.repetition = repetition;
        Ok(buffer)
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

    /// Neighbouring positions that each word stands for: 1, unless the buffer was lifted from a subring.
    pub(crate) fn repetition(&self) -> usize {
        self.repetition
    }

    /// These positions of one limb of one polynomial, in `scratch` where words stand for several.
    pub(crate) fn positions<'a>(
        &'a self,
        polynomial: usize,
        position: usize,
        positions: Range<usize>,
        scratch: &'a mut [u64],
    ) -> &'a [u64] {
        let row = self.row(polynomial, position);
        if self.repetition == 1 {
            return &row[positions];
        }
        let length = positions.len();
        let piece = self.repetition.min(length);
        let first = positions.start / self.repetition;
        for (piece, word) in scratch[..length].chunks_mut(piece).zip(&row[first..]) {
            piece.fill(*word);
        }
        &scratch[..length]
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
